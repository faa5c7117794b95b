"""What callers in other processes see of one shared session: a socket, and their requests.

Turns what they say into requests for the broker's FIFO, and outcomes into what they hear. Owned
by the I/O thread; decides nothing about the order of service. Each request from elsewhere has a
:class:`PeerSink`, which is to it what a future or a stream is to one from here.

Invariants: an id that has no outcome yet runs once, however often its peer sends it; a request
hears exactly one RESULT or ERROR, and nothing after it; a reader that does not keep up, or has
gone, costs its own requests and nobody else's; nothing that a peer does raises here.

Source: SPEC.md, chapter 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from soloist.protocol import codec, public, public_codec
from soloist.protocol.errors import SoloistError, to_info
from soloist.supervisor.broker import Broker
from soloist.supervisor.broker_channel import BrokerChannel
from soloist.supervisor.reply_sink import ReplySink
from soloist.supervisor.request import Request

MAX_TAKEN = 64
"""Messages taken at once: a peer that never stops must not keep other sessions waiting."""


class Front:
    """All peers of one shared session, and their requests without an outcome.

    Args:
        channel: the session's socket.
        endpoint: its address.
        broker: the session.
        max_payload_bytes: largest encoded prompt.
        stream_buffer_bytes: the credit that each streamed request begins with.
        submit: takes a request in.
        cancel: ends one early.
        on_sent: told when ``take`` has to be called again, whatever the descriptor says.
        timeout_s: limit of a request that names none.
    """

    def __init__(
        self,
        channel: BrokerChannel,
        endpoint: str,
        broker: Broker,
        *,
        max_payload_bytes: int,
        stream_buffer_bytes: int,
        submit: Callable[[Request], None],
        cancel: Callable[[Request], None],
        on_sent: Callable[[Front], None],
        timeout_s: float | None = None,
    ) -> None:
        self.channel = channel
        self.endpoint = endpoint
        self.credit_bytes = stream_buffer_bytes
        self._broker = broker
        self._max_payload_bytes = max_payload_bytes
        self._submit = submit
        self._cancel = cancel
        self._on_sent = on_sent
        self._timeout_s = timeout_s
        self._sinks: dict[bytes, dict[bytes, PeerSink]] = {}  # by routing id, by id
        self._gone: set[bytes] = set()

    def __repr__(self) -> str:
        count = sum(map(len, self._sinks.values()))
        return f"<Front {count} requests of {len(self._sinks)} peers>"

    def has_input(self) -> bool:
        """Whether ``take`` has something to do."""
        return bool(self._gone) or self.channel.has_input()

    def take(self) -> None:
        """Do what peers ask, up to ``MAX_TAKEN`` messages; the rest at the next call."""
        self._drop_gone()
        for _ in range(MAX_TAKEN):
            received = self.channel.receive()
            if received is None:
                return
            self._hear(*received)
        self._on_sent(self)

    def send(self, envelope: public.Envelope, data: bytes) -> bool:
        """Send a reply; ``False`` if the peer is gone: then all that it asked is cancelled."""
        is_sent = self.channel.send(envelope, data)
        if not is_sent and envelope[0] in self._sinks:
            self._gone.add(envelope[0])
        self._on_sent(self)
        return is_sent

    def forget(self, sink: PeerSink) -> None:
        """The request has its outcome: its id means nothing any more."""
        peer = sink.envelope[0]
        sinks = self._sinks[peer]
        del sinks[sink.id]
        if not sinks:
            del self._sinks[peer]

    def _hear(self, envelope: public.Envelope, message: public.OfBroker | public.Error) -> None:
        if isinstance(message, public.Error):
            self.send(envelope, public_codec.encode(message))
            return
        sink = self._sinks.get(envelope[0], {}).get(message.id)
        if isinstance(message, public.Query):
            self._ask(envelope, message, sink)
        elif sink is None:
            return  # its outcome is on its way
        elif isinstance(message, public.Cancel):
            self._cancel(sink.request)
        else:
            sink.grant(message.granted_bytes)

    def _ask(self, envelope: public.Envelope, query: public.Query, sink: PeerSink | None) -> None:
        if sink is not None:
            # A REQ socket that asks again listens only to an answer of its latest envelope.
            sink.envelope = envelope
            return
        try:
            payload = codec.encode_prompt(query.prompt, self._max_payload_bytes)
        except SoloistError as error:
            self.send(envelope, public_codec.encode(public.Error(query.id, None, to_info(error))))
            return
        timeout_s = self._timeout_s if query.timeout_ms is None else query.timeout_ms / 1000
        sink = PeerSink(self, envelope, query.id)
        sink.request = Request(
            "",  # only a Result would show it, and there is none of this request
            payload,
            sink,
            deadline=None if timeout_s is None else time.monotonic() + timeout_s,
            is_streamed=query.is_streamed,
        )
        sink.request.session = self._broker.number
        self._sinks.setdefault(envelope[0], {})[query.id] = sink
        self._submit(sink.request)

    def _drop_gone(self) -> None:
        while self._gone:
            for sink in tuple(self._sinks.get(self._gone.pop(), {}).values()):
                self._cancel(sink.request)


class PeerSink(ReplySink):
    """Where the messages and the outcome of one foreign request go.

    Args:
        front: sends.
        envelope: where to.
        request_id: what its peer calls the request.
    """

    __slots__ = ("_front",)

    def __init__(self, front: Front, envelope: public.Envelope, request_id: bytes) -> None:
        super().__init__(envelope, request_id, front.credit_bytes)
        self._front = front

    def send(self, data: bytes) -> bool:
        """Send a reply; ``False`` if the peer is gone."""
        return self._front.send(self.envelope, data)

    def over(self, said: bytes, whole: public.Result | None) -> None:
        """Its id means nothing any more."""
        del said, whole
        self._front.forget(self)
