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
from soloist.protocol.content import function_messages
from soloist.protocol.errors import RemoteProtocolError, SlowReader, SoloistError, to_info
from soloist.protocol.messages import Answer
from soloist.supervisor.broker import Broker
from soloist.supervisor.broker_channel import BrokerChannel
from soloist.supervisor.request import Request

MAX_TAKEN = 64
"""Messages taken at once: a peer that never stops must not keep other sessions waiting."""
_NO_MESSAGES = codec.join([])
_LONGEST_S = 1e15  # whatever a worker says, its milliseconds fit into 64 bits


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

    @property
    def incarnation(self) -> int:
        """The session's."""
        return self._broker.incarnation

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


class PeerSink:
    """Where the messages and the outcome of one foreign request go.

    Args:
        front: sends.
        envelope: where to.
        request_id: what its peer calls the request.
    """

    __slots__ = ("_credit", "_front", "_is_cut", "_max_credit", "_seq", "envelope", "id", "request")

    request: Request

    def __init__(self, front: Front, envelope: public.Envelope, request_id: bytes) -> None:
        self.envelope = envelope
        self.id = request_id
        self._front = front
        self._credit = self._max_credit = front.credit_bytes
        self._seq = 0
        self._is_cut = False

    def grant(self, count_bytes: int) -> None:
        """The peer has read so much; there is never more credit than at the beginning."""
        self._credit = min(self._max_credit, self._credit + count_bytes)

    def stream(self, request: Request, message: bytes) -> bool:
        """Send one message; ``False`` if the peer is gone or has no credit for it.

        A message larger than the whole credit goes out if nothing else is unread.
        """
        del request
        data = public_codec.encode(public.Message(self.id, self._seq + 1, message))
        is_fitting = len(data) <= self._credit or self._credit == self._max_credit
        if self._is_cut or not is_fitting or not self._front.send(self.envelope, data):
            self._is_cut = True
            return False
        self._seq += 1
        self._credit -= len(data)
        return True

    def settle(self, request: Request) -> None:
        """Send the outcome."""
        data = self._outcome(request)
        self._front.forget(self)
        self._front.send(self.envelope, data)

    def _outcome(self, request: Request) -> bytes:
        try:
            reply = self._reply(request)
        except RemoteProtocolError as error:  # the worker's
            reply = self._error(request, error)
        return public_codec.encode(reply)

    def _reply(self, request: Request) -> public.ToClient:
        outcome = request.outcome
        if isinstance(outcome, Answer):
            return self._answer(request, outcome)
        assert outcome is not None
        return self._error(request, outcome)

    def _answer(self, request: Request, answer: Answer) -> public.ToClient:
        """The result; before it, what of a streamed answer has not been sent yet."""
        duration_s = min(answer.duration_s, _LONGEST_S)
        messages = answer.messages or _messages_of_callable(answer, duration_s)
        if not self._is_whole(request):
            rest = public_codec.split(messages, self._seq)
            if self._is_cut or not all(self.stream(request, message) for message in rest):
                return self._error(request, SlowReader("the reader fell too far behind"))
            messages = _NO_MESSAGES
        return public.Result(
            self.id,
            request.order,
            self._front.incarnation,
            answer.text,
            answer.num_turns,
            round(duration_s * 1000),
            None,
            None,
            messages,
        )

    def _is_whole(self, request: Request) -> bool:
        """Whether the outcome holds the messages."""
        return not request.is_streamed

    def _error(self, request: Request, error: SoloistError) -> public.Error:
        return public.Error(self.id, request.order or None, to_info(error))


def _messages_of_callable(answer: Answer, duration_s: float) -> bytes:
    """A bare callable has none of its own."""
    messages = function_messages(answer.text, num_turns=answer.num_turns, duration_s=duration_s)
    return codec.join([codec.encode_message(message) for message in messages])
