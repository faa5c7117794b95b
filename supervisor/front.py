"""What callers in other processes see of one shared session: a socket, and their requests.

Owns the requests that came over the socket, by caller and id. On the I/O thread.

Invariants: a QUERY that can be read gets exactly one RESULT or ERROR, as long as its caller is
there; an id without an outcome is never run a second time; a REQ socket gets exactly one reply
to whatever it sends; what waits for the reader of a stream is bounded by its credit; nothing
that a caller sends raises here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from soloist.protocol import codec, public
from soloist.protocol.errors import InvalidPrompt, PayloadTooLarge, SoloistError, to_info
from soloist.protocol.messages import Answer
from soloist.protocol.public import Cancel, Credit, FromCaller, Query, Unreadable
from soloist.supervisor.broker import Broker
from soloist.supervisor.broker_channel import BrokerChannel, Envelope
from soloist.supervisor.request import Request

_Key = tuple[bytes, bytes]


class Front:
    """Turns a caller's messages into requests of the session, and outcomes into its replies.

    Args:
        channel: the session's socket.
        endpoint: its address.
        broker: the session.
        max_payload_bytes: largest encoded prompt.
        stream_buffer_bytes: the credit that each streamed request begins with.
        submit: takes a request in.
        cancel: ends one early.
        on_sent: told after each message that goes out: the socket has to be looked at again.
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
    ) -> None:
        self.channel = channel
        self.endpoint = endpoint
        self._broker = broker
        self._max_payload_bytes = max_payload_bytes
        self._stream_buffer_bytes = stream_buffer_bytes
        self._submit = submit
        self._cancel = cancel
        self._on_sent = on_sent
        self._requests: dict[_Key, PeerSink] = {}

    def take(self) -> None:
        """Take in all that has come."""
        while (received := self.channel.receive()) is not None:
            envelope, message = received
            self._handle(envelope, message)

    def send(self, envelope: Envelope, data: bytes) -> bool:
        """Send to a caller; ``False`` if it has gone or takes nothing."""
        self._on_sent(self)
        return self.channel.send(envelope, data)

    def done(self, key: _Key) -> None:
        """Forget a request that has its outcome."""
        self._requests.pop(key, None)

    def _handle(self, envelope: Envelope, message: FromCaller | Unreadable) -> None:
        if isinstance(message, Unreadable):
            self._refuse(envelope, message.id, message)
        elif envelope.is_req and not isinstance(message, Query):
            self._refuse(envelope, message.id, Unreadable("a REQ socket sends nothing but QUERY"))
        elif isinstance(message, Query):
            self._query(envelope, message)
        elif (sink := self._requests.get((envelope.peer, message.id))) is None:
            return  # it has its outcome already
        elif isinstance(message, Cancel):
            self._cancel(sink.request)
        else:
            sink.grant(message)

    def _query(self, envelope: Envelope, query: Query) -> None:
        key = (envelope.peer, query.id)
        if key in self._requests:
            return  # sent again: it runs once
        try:
            payload = codec.encode_prompt(query.prompt, self._max_payload_bytes)
        except (InvalidPrompt, PayloadTooLarge) as error:
            error.started = False
            self._refuse(envelope, query.id, error)
            return
        sink = PeerSink(self, envelope, query.id, self._stream_buffer_bytes)
        sink.request = Request(
            query.prompt,
            payload,
            sink,
            deadline=_deadline(query.timeout_ms),
            is_streamed=query.is_streamed and not envelope.is_req,
        )
        sink.request.session = self._broker.number
        self._requests[key] = sink
        self._submit(sink.request)

    def _refuse(self, envelope: Envelope, id_: bytes | None, error: SoloistError) -> None:
        info = public.refusal(error) if isinstance(error, Unreadable) else to_info(error)
        self.send(envelope, public.error(id_, info, sequence=None))

    @property
    def incarnation(self) -> int:
        """The session's."""
        return self._broker.incarnation


class PeerSink:
    """Where the outcome of a caller's request goes.

    Args:
        front: the session's socket.
        envelope: the caller.
        id_: what the caller calls the request.
        credit_bytes: how many bytes of messages may be sent before the caller grants more.
    """

    request: Request

    def __init__(self, front: Front, envelope: Envelope, id_: bytes, credit_bytes: int) -> None:
        self._front = front
        self._envelope = envelope
        self._id = id_
        self._most_bytes = self._credit_bytes = credit_bytes
        self._seq = 0
        self._is_gone = False

    def grant(self, credit: Credit) -> None:
        """Take more credit in; never more than at the beginning is left unspent."""
        self._credit_bytes = min(self._most_bytes, self._credit_bytes + credit.bytes)

    def settle(self, request: Request) -> None:
        """Send the one outcome."""
        self._front.done((self._envelope.peer, self._id))
        if self._is_gone:
            return
        outcome = request.outcome
        if isinstance(outcome, Answer):
            data = public.result(
                self._id,
                outcome,
                sequence=request.order,
                incarnation=self._front.incarnation,
                is_streamed=request.is_streamed,
            )
        else:
            assert outcome is not None
            data = public.error(self._id, to_info(outcome), sequence=request.order)
        self._front.send(self._envelope, data)

    def stream(self, request: Request, message: bytes) -> bool:
        """Send one message; ``False`` if the caller has gone or granted too little."""
        del request
        # The first one always goes, however long it is.
        if self._seq and self._credit_bytes < len(message):
            return False
        self._credit_bytes -= len(message)
        self._seq += 1
        data = public.message(self._id, self._seq, message)
        self._is_gone = not self._front.send(self._envelope, data)
        return not self._is_gone


def _deadline(timeout_ms: int | None) -> float | None:
    return None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
