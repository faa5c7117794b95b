"""What a peer of the gateway asked and has no answer to yet: one :class:`Exchange` each.

A prompt is to the gateway what it is to a session's own socket, so it is a ``ReplySink``; what is
new is that its peer may go and come back on another connection, or leave it to run on. All this
happens on the gateway's thread: :class:`FarSink` brings what comes from another pool's there.

Invariants: exactly one reply ends an exchange; a stream that was cut off, because its peer went or
asked again, goes on with nothing but the outcome, which then holds every message; so does the
outcome that is kept for who asks again.

Source: SPEC.md, sections 2.4, 2.5 and 2.7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Protocol, TypeAlias

from soloist.protocol import public, public_codec
from soloist.protocol.content import Map
from soloist.protocol.errors import SlowReader, SoloistError
from soloist.supervisor.control import ControlRequest
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.outcomes import Scope
from soloist.supervisor.patience import Patience
from soloist.supervisor.reply_sink import ReplySink
from soloist.supervisor.request import Request


class GatewayChannel(Protocol):
    """One socket of the gateway; see :mod:`soloist.supervisor.gateway_channel`."""

    @property
    def is_local(self) -> bool:
        """Whether all its peers are one owner: who may enter its folder."""

    def fileno(self) -> int:
        """Descriptor that becomes readable, edge-triggered, when ``has_input`` may have changed."""

    def wake(self) -> None:
        """The descriptor was readable: look again."""

    def has_input(self) -> bool:
        """Whether ``receive`` would give something."""

    def receive(self) -> tuple[list[bytes], str] | None:
        """One message: its frames, and the sender's key (may be empty)."""

    def send(self, envelope: public.Envelope, data: bytes) -> bool:
        """Queue a message; ``False`` if the peer is gone, or lets more wait than it may."""


Key: TypeAlias = tuple[int, bytes]
"""A connection: the place of its socket among all, its routing id."""


@dataclasses.dataclass(slots=True, eq=False)
class Peer:
    """One connection.

    Attributes:
        key: which one.
        channel: its socket.
        scope: of its ids.
        owner: of its conversations.
        on_lost: told when it cannot be reached any more.
        heard_at: when it said something.
        asked: what it waits for, by id.
        patience: how much more nonsense is put up with.
        is_gone: whether that has been noticed.
    """

    key: Key
    channel: GatewayChannel
    scope: Scope[Asked]
    owner: Hashable
    on_lost: Callable[[Peer], None]
    heard_at: float
    patience: Patience
    asked: dict[bytes, Asked] = dataclasses.field(default_factory=dict)
    is_gone: bool = False

    @property
    def envelope(self) -> public.Envelope:
        """Where what a DEALER did not ask for goes."""
        return (self.key[1],)

    def send(self, envelope: public.Envelope, message: public.ToClient | bytes) -> bool:
        """Send a reply; ``False`` if it is gone."""
        data = message if isinstance(message, bytes) else public_codec.encode(message)
        if self.channel.send(envelope, data):
            return True
        self.on_lost(self)
        return False

    def attach(self, asked: Asked, envelope: public.Envelope) -> None:
        """Let it wait for this from here on, and no other."""
        asked.detach()
        asked.peer, asked.envelope = self, envelope
        self.asked[asked.id] = asked


class Call:
    """What a peer asked that is no prompt; it is answered once, and nothing ends it early.

    Args:
        call_id: what its peer calls it.
        on_over: told what the answer is, just before it is sent.
    """

    __slots__ = ("_on_over", "envelope", "id", "peer", "scope")

    size = 0

    def __init__(
        self,
        peer: Peer,
        envelope: public.Envelope,
        call_id: bytes,
        on_over: Callable[[Asked, bytes], None],
    ) -> None:
        self.id = call_id
        self.scope = peer.scope
        self.peer: Peer | None = None
        self.envelope = envelope
        self._on_over = on_over
        peer.attach(self, envelope)

    def detach(self) -> None:
        """Nobody waits for it any more."""
        if self.peer is not None:
            del self.peer.asked[self.id]
            self.peer = None

    def answer(self, reply: public.ToClient) -> None:
        """Send the one reply."""
        data = public_codec.encode(reply)
        peer = self.peer
        self._on_over(self, data)
        if peer is not None:
            peer.send(self.envelope, data)
            self.detach()


class Exchange(ReplySink):
    """One prompt of a peer's.

    Args:
        peer: who asked.
        envelope: where a reply goes.
        query: what was asked.
        size: bytes of its prompt.
        credit_bytes: the credit that a stream begins with.
        on_over: told what the outcome is, with every message, just before it is sent.

    Attributes:
        target: the pool's name and the session's number.
        outlives: whether it runs on when its peer has gone.
    """

    __slots__ = (
        "_count",
        "_is_cut_off",
        "_on_over",
        "_questions",
        "outlives",
        "peer",
        "scope",
        "size",
        "target",
    )

    def __init__(
        self,
        peer: Peer,
        envelope: public.Envelope,
        query: public.Query,
        *,
        target: tuple[str, int],
        size: int,
        credit_bytes: int,
        on_over: Callable[[Asked, bytes], None],
    ) -> None:
        super().__init__(envelope, query.id, credit_bytes)
        self.scope = peer.scope
        self.target = target
        self.size = size
        self.outlives = query.on_disconnect == "finish"
        self.peer: Peer | None = None
        self._on_over = on_over
        self._is_cut_off = False  # from the stream: its peer has gone, or has asked again
        self._count = 0
        self._questions: dict[int, tuple[public.Control, Future[Map]]] = {}
        peer.attach(self, envelope)

    def asked_again(self) -> None:
        """Its peer may be another one now: ask again what the agent asks."""
        for question, answer in tuple(self._questions.values()):
            if not answer.done():
                self._put(question)

    def detach(self) -> None:
        """Its peer does not wait for it any more, so its stream ends, whoever does next."""
        if self.peer is not None:
            del self.peer.asked[self.id]
            self.peer = None
            self._is_cut_off = True

    def send(self, data: bytes) -> bool:
        """Send a reply; ``False`` if the peer is gone."""
        if self.peer is None:
            return False
        is_sent = self.peer.send(self.envelope, data)
        self._is_cut_off |= not is_sent
        return is_sent

    def over(self, said: bytes, whole: public.Result | None) -> None:
        """It has its outcome."""
        for _, answer in self._questions.values():
            answer.cancel()
        # What was streamed may be lost with the connection: who asks again has it all again.
        self._on_over(self, said if whole is None else public_codec.encode(whole))

    def settle(self, request: Request) -> None:
        """Send the outcome."""
        super().settle(request)
        request.on_control = None  # it knows the exchange, which knows the request
        self.detach()

    def stream(self, request: Request, message: bytes) -> bool:
        """Send one message, unless nobody is there who has heard those before it."""
        # What becomes of a request whose peer has gone is not decided here.
        return self._is_cut_off or super().stream(request, message) or self._is_cut_off

    def is_whole(self, request: Request) -> bool:
        """Whether the outcome holds the messages: nobody has heard all of them."""
        return self._is_cut_off or not request.is_streamed

    def ask(self, question: ControlRequest, answer: Future[Map]) -> None:
        """Pass a question of the agent's on; its answer is cancelled when nobody can give it."""
        if self.request.outcome is not None:
            answer.cancel()
            return
        for number in [number for number, (_, late) in self._questions.items() if late.done()]:
            del self._questions[number]
        self._count += 1
        control = public.Control(self.id, self._count, question.kind, question.data)
        self._questions[self._count] = control, answer
        self._put(control)

    def answered(self, number: int, data: Map) -> None:
        """Its caller has answered; an answer that comes twice or too late is nothing."""
        _, answer = self._questions.pop(number, (None, None))
        if answer is not None and answer.set_running_or_notify_cancel():
            answer.set_result(data)

    def _put(self, question: public.Control) -> None:
        if len(self.envelope) == 1:  # a REQ socket hears nothing but the outcome
            self.send(public_codec.encode(question))

    def _attempts(self, request: Request) -> tuple[int, int]:
        return request.attempts, request.worker


Asked: TypeAlias = Exchange | Call
"""What has one answer."""


class FarSink:
    """Brings what the I/O thread of another pool says to the gateway's.

    Args:
        exchange: where it goes.
        home: the way to the gateway's thread.
        max_bytes: most bytes of messages that are on their way.
        cancel: ends requests early, for that reason; called on the gateway's thread.
    """

    __slots__ = ("_cancel", "_exchange", "_home", "_max_bytes", "_sent_bytes", "_taken_bytes")

    def __init__(
        self,
        exchange: Exchange,
        home: Inbox,
        max_bytes: int,
        cancel: Callable[[tuple[Request], SoloistError], None],
    ) -> None:
        self._exchange = exchange
        self._home = home
        self._max_bytes = max_bytes
        self._cancel = cancel
        self._sent_bytes = 0  # written by the other pool's thread alone
        self._taken_bytes = 0  # written by the gateway's alone

    def stream(self, request: Request, message: bytes) -> bool:
        """Pass one message on; ``False`` if too much is on its way."""
        unread = self._sent_bytes - self._taken_bytes
        if unread and unread + len(message) > self._max_bytes:
            return False
        self._sent_bytes += len(message)
        self._home.post(lambda: self._take(request, message))
        return True

    def settle(self, request: Request) -> None:
        """Pass the outcome on."""
        self._home.post(lambda: self._exchange.settle(request))

    def _take(self, request: Request, message: bytes) -> None:
        self._taken_bytes += len(message)
        if not self._exchange.stream(request, message):
            self._cancel((request,), SlowReader("the reader of the stream fell too far behind"))
