"""The thread of a connection to a gateway: owns its socket, and has the link's actions carried out.

Callers hand over through the inbox, as with a Supervisor's I/O thread; no user code runs here, and
nothing here waits except for events. What to say is decided by :mod:`soloist.supervisor.link`.

Invariants: the socket is touched by this thread alone; whatever was handed over has its outcome
when the thread has ended; it ends in bounded time once told to.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import selectors
import threading
import time
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from soloist.protocol import codec, messages, public, public_codec
from soloist.protocol.errors import (
    GatewayLost,
    RemoteProtocolError,
    SessionClosed,
    SlowReader,
    SoloistError,
    SupervisorClosed,
)
from soloist.supervisor import events
from soloist.supervisor.control import ControlDesk
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.link import Link
from soloist.supervisor.link_actions import Action, Ask, Asked, Call, End, Pass, Renew, Say
from soloist.supervisor.remote_calls import Order, Turn, reply_of
from soloist.supervisor.request import POOL, Request

_MAX_TAKEN = 1024
"""Items taken from the inbox, and from the socket, in one turn; the rest in the next."""
_LONGEST_SLEEP_S = 3600.0
_JOIN_S = 10.0


class Channel(Protocol):
    """See :class:`soloist.supervisor.remote_channel.RemoteChannel`."""

    def renew(self) -> None:
        """Connect a new socket."""

    def fileno(self) -> int:
        """Its descriptor."""

    def has_input(self) -> bool:
        """Whether something has come."""

    def receive(self) -> bytes | None:
        """Take one message."""

    def send(self, message: public.FromClient) -> bool:
        """Queue one message."""

    def close(self) -> None:
        """Close it."""


class Conversation(NamedTuple):
    """One that was opened through the gateway, in one of its epochs."""

    name: str
    handle: bytes
    epoch: bytes


class RemoteThread:
    """The thread of one connection; what others may call says so, the rest is called on itself.

    Args:
        channel: the socket; closed at the end.
        link: decides.
        desk: answers what agents ask.
        client: the gateway's name for who answers, ``None`` for its default.
        on_disconnect: what becomes of requests when the connection is gone.

    Attributes:
        inbox: the way in for others.
        greeted: the first WELCOME, or why there is none.
        conversations: by number.
    """

    def __init__(
        self,
        channel: Channel,
        link: Link,
        desk: ControlDesk,
        client: str | None,
        on_disconnect: str,
    ) -> None:
        self.inbox = Inbox()
        self.greeted: Future[public.Welcome] = Future()
        self.conversations: dict[int, Conversation] = {}
        self._channel = channel
        self._link = link
        self._desk = desk
        self._client = client
        self._on_disconnect = on_disconnect
        self._numbers = itertools.count(1)
        self._turns: dict[Request, Call] = {}
        self._is_draining = False
        self._idle_waiters: list[Future[None]] = []
        self._close_at = math.inf
        self._is_closing = False
        self._fd = -1
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name="soloist-remote", daemon=True)

    # -- called from other threads ---------------------------------------------------------------

    def start(self) -> None:
        """Start, and connect."""
        self._thread.start()

    def join(self) -> None:
        """Wait for its last steps."""
        self._thread.join(_JOIN_S)

    # -- its turns -------------------------------------------------------------------------------

    def _run(self) -> None:
        reason = "the connection is closed"
        try:
            with self._selector, contextlib.closing(self._channel):
                self._selector.register(self.inbox.fileno(), selectors.EVENT_READ, self.inbox.clear)
                self._do(self._link.connect(time.monotonic()))
                while not self._is_over():
                    self._turn()
                self._say_goodbye()
        except SoloistError as error:  # the endpoint is none
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            events.failed(events.IO_FAILED)
            reason = f"the connection's thread failed: {type(error).__name__}: {error}"
        finally:
            self._after_the_end(reason)

    def _turn(self) -> None:
        self._take_inbox()
        self._receive()
        now = time.monotonic()
        self._do(self._link.credits(now))
        if now >= self._link.next_due():
            self._do(self._link.tick(now))
        self._tell_waiters()
        if self.inbox or self._channel.has_input() or self._is_over():
            return
        if not self.inbox.may_sleep():
            return
        due = min(self._link.next_due(), self._close_at)
        timeout = min(_LONGEST_SLEEP_S, max(0.0, due - time.monotonic()))
        ready = self._selector.select(timeout)
        self.inbox.has_woken()
        for key, _ in ready:
            key.data()

    def _is_over(self) -> bool:
        if not self._is_closing:
            return False
        return not self._turns or time.monotonic() >= self._close_at

    def _take_inbox(self) -> None:
        for _ in range(_MAX_TAKEN):
            if (item := self.inbox.take()) is None:
                return
            if type(item) is Request:
                self._ask(item)
            else:
                item()  # type: ignore[operator]

    def _receive(self) -> None:
        for _ in range(_MAX_TAKEN):
            if (data := self._channel.receive()) is None:
                return
            now = time.monotonic()
            try:
                message = public_codec.decode_reply(data)
            except RemoteProtocolError as error:
                self._do(self._link.misheard(public_codec.id_of(data), error, now))
                continue
            if message is not None:
                self._do(self._link.hear(message, len(data), now))

    def _tell_waiters(self) -> None:
        if not self.greeted.done():
            if self._link.welcome is not None:
                self.greeted.set_result(self._link.welcome)
            elif self._link.failure is not None:
                self._fail(self._link.failure)
        if self._idle_waiters and not self._turns:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                waiter.set_result(None)

    def _fail(self, error: SoloistError) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(error)

    # -- what callers want -----------------------------------------------------------------------

    def ask(self, message: Asked, owner: Order[Any], **settings: Any) -> Call:
        """Ask something."""
        call = Call(message, owner, **settings)
        self._do(self._link.add(call, time.monotonic()))
        return call

    def tell(self, message: public.FromClient) -> None:
        """Say what has no answer."""
        self._do(self._link.tell(message, time.monotonic()))

    def cancel(self, requests: list[Request]) -> None:
        """End these requests early."""
        for request in requests:
            if (call := self._turns.get(request)) is not None:
                self._do(self._link.cancel(call, time.monotonic()))

    def opened(self, name: str, opened: public.Opened) -> int:
        """Give the number of a conversation; it is the same each time."""
        assert self._link.epoch is not None
        conversation = Conversation(name, opened.session, self._link.epoch)
        for number, known in self.conversations.items():
            if known.handle == opened.session:
                return number
        number = next(self._numbers)
        self.conversations[number] = conversation
        return number

    def drain(self, idle: Future[None]) -> None:
        """Take no more requests; ``idle`` is done when all have their outcome."""
        self._is_draining = True
        self._idle_waiters.append(idle)

    def close(self, drain_s: float | None) -> None:
        """Begin to close, or close faster."""
        self._is_draining = self._is_closing = True
        if drain_s is not None:
            self._close_at = min(self._close_at, time.monotonic() + drain_s)

    def _ask(self, request: Request) -> None:
        """Ask a request of the gateway."""
        if self._is_draining:
            request.settle(SupervisorClosed("it takes no more requests", started=False))
            return
        conversation = None
        if request.session != POOL:
            conversation = self.conversations.get(request.session)
            if conversation is None:
                request.settle(SessionClosed("the session is closed", started=False))
                return
        prompt = request.prompt
        query = public.Query(
            os.urandom(public.ID_BYTES),
            # A list is the caller's, who may change it.
            prompt if type(prompt) is str else codec.decode_prompt(request.payload),
            None,
            request.is_streamed,
            session=conversation and conversation.handle,
            client=None if conversation else self._client,
            on_disconnect=self._on_disconnect,
            has_control=(request.on_control or self._desk.handler) is not None,
        )
        turn = Turn(request, conversation.name if conversation else "", self._forget)
        call = self._turns[request] = Call(
            query,
            turn,
            deadline=request.deadline,
            session_epoch=conversation and conversation.epoch,
            size=len(request.payload),
        )
        self._do(self._link.add(call, time.monotonic()))

    def _forget(self, request: Request) -> None:
        self._turns.pop(request, None)

    # -- actions ---------------------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        is_stuck = False
        for action in actions:
            match action:
                case Say():
                    is_stuck = is_stuck or not self._channel.send(action.message)
                case End():
                    action.call.about.end(action.outcome)
                case Pass():
                    self._pass(action.call, action.message)
                case Ask():
                    self._question(action.call, action.question)
                case Renew():
                    self._renew()
        if is_stuck:  # what could not be said is said again, as after any loss
            self._do(self._link.break_off(time.monotonic()))

    def _renew(self) -> None:
        if self._fd >= 0:
            self._selector.unregister(self._fd)
            self._fd = -1
        self._channel.renew()
        self._fd = self._channel.fileno()
        self._selector.register(self._fd, selectors.EVENT_READ, _nothing)

    def _pass(self, call: Call, message: bytes) -> None:
        request = call.about.request
        if not request.sink.stream(request, message):
            error = SlowReader("the reader fell too far behind")
            self._do(self._link.drop(call, error, time.monotonic()))

    def _question(self, call: Call, question: public.Control) -> None:
        """Have it answered on a thread of its own."""
        turn = call.about
        welcome = self._link.welcome
        assert welcome is not None
        data = codec.encode_value(question.data)

        def answered(reply: messages.ControlReply) -> None:
            answer = reply_of(question, reply.data, welcome.max_prompt_bytes)
            self.inbox.post(lambda: self._answer(call, question.number, answer))

        self._desk.ask(
            messages.Control(question.number, 0, question.kind, data),
            turn.request.prompt,
            turn.session,
            turn.request.on_control,
            answered,
        )

    def _answer(self, call: Call, number: int, data: Any) -> None:
        self._do(self._link.answer(call, number, data, time.monotonic()))

    # -- the end ---------------------------------------------------------------------------------

    def _say_goodbye(self) -> None:
        """End what this side alone had a use for."""
        now = time.monotonic()
        self._do(self._link.give_up(SupervisorClosed, "the Supervisor is closed", now))
        for conversation in self.conversations.values():
            if not conversation.name and conversation.epoch == self._link.epoch:
                close = public.Close(
                    os.urandom(public.ID_BYTES), conversation.handle, is_drained=False
                )
                self._do(self._link.tell(close, now))

    def _after_the_end(self, reason: str) -> None:
        """Tell everybody who may still wait."""
        self.inbox.is_closed.set()
        self._link.end()
        for action in self._link.give_up(SupervisorClosed, reason, time.monotonic()):
            if isinstance(action, End):
                action.call.about.end(action.outcome)
        self._tell_waiters()
        self._fail(GatewayLost(reason, started=False))
        self.inbox.close()


def _nothing() -> None:
    """Its socket is looked at in every turn."""
