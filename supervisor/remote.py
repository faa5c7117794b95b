"""The connection to a gateway as other threads see it: an engine like a Supervisor's own.

Owns the way in to one connection's thread. Any thread may call anything here, and nothing but
``start`` and ``join`` waits; no future from here may be cancelled.

Invariant: each future gets its answer, also when the thread ends first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from soloist.protocol import codec, public
from soloist.protocol.content import Map
from soloist.protocol.errors import (
    ClientNotFound,
    GatewayLost,
    InvalidOptions,
    SessionClosed,
    SessionLost,
    SoloistError,
    SupervisorClosed,
)
from soloist.supervisor.brokers import Address, SessionLimits
from soloist.supervisor.link_actions import Asked
from soloist.supervisor.remote_calls import Afterwards, Order, session_stats_of, stats_of
from soloist.supervisor.remote_thread import RemoteThread
from soloist.supervisor.request import Request
from soloist.supervisor.results import SessionStats, Stats
from soloist.supervisor.shutdown import Phase

_T = TypeVar("_T")

_OVER = (SessionClosed, SessionLost)


class Joining(NamedTuple):
    """How a conversation is opened; ``None`` for what the gateway decides."""

    ticket: bytes | None = None
    max_queue: int | None = None
    idle_timeout_s: float | None = None


class Remote:
    """One connection to a gateway.

    Args:
        thread: its thread, not started.
        client: the gateway's name for who answers, ``None`` for its default.

    Attributes:
        inbox: the way in.
        is_closed: set when the thread has ended, or in a fork of its process.
    """

    takes_parts = False

    def __init__(self, thread: RemoteThread, client: str | None) -> None:
        self._thread = thread
        self._client = client
        self.inbox = thread.inbox
        self.is_closed = thread.inbox.is_closed

    # -- its life --------------------------------------------------------------------------------

    def start(self) -> public.Welcome:
        """Connect; return when the gateway has said welcome.

        Raises:
            GatewayLost: it cannot be reached, or refuses.
            InvalidOptions: the endpoint is none.
            ClientNotFound: it has no such client.
        """
        self._thread.start()
        try:
            welcome = self._thread.greeted.result()
            self._client = _chosen(self._client, welcome.clients)
        except BaseException:
            self.close(0.0)
            self.is_closed.wait()
            self.join()
            raise
        return welcome

    def drain(self) -> Future[None]:
        """Take no more requests; the future is done when all have their outcome."""
        done: Future[None] = Future()

        def begun(answer: Future[None]) -> None:
            if answer.exception() is not None:  # there is nothing any more
                done.set_result(None)

        self.inbox.ask(lambda: self._thread.drain(done)).add_done_callback(begun)
        return done

    def close(self, drain_s: float | None, *, at_least: Phase = Phase.DRAIN) -> None:
        """Begin to close, or close faster; ``is_closed`` is set at the end.

        From now on ``submit`` raises.
        """
        self.inbox.shut()
        drain_s = drain_s if at_least is Phase.DRAIN else 0.0
        self.inbox.post(lambda: self._thread.close(drain_s))

    def join(self) -> None:
        """Wait for the thread's last steps after ``is_closed``."""
        self._thread.join()

    def disown(self) -> None:
        """In a forked copy of the process: be closed, and touch nothing of the owner's."""
        self.inbox.disown()

    # -- requests --------------------------------------------------------------------------------

    def submit(self, requests: Iterable[Request]) -> None:
        """Hand requests over.

        Raises:
            SupervisorClosed: it is closing, or this process is a fork of its owner.
        """
        self.inbox.submit(requests)

    def cancel(self, requests: Iterable[Request]) -> None:
        """End these requests early."""
        rest = list(requests)
        self.inbox.post(lambda: self._thread.cancel(rest))

    def stats(self) -> Future[Stats]:
        """A snapshot of the gateway's client.

        It fails with ``GatewayLost`` and ``SupervisorClosed``.
        """
        client = self._client or ""
        return self._ask(
            lambda _: public.Status(_new_id(), None),
            lambda report: stats_of(report.status, client),
        )

    def status(self) -> Future[Map]:
        """What the gateway reports of itself and all its clients.

        It fails with ``GatewayLost`` and ``SupervisorClosed``.
        """
        return self._ask(lambda _: public.Status(_new_id(), None), lambda report: report.status)

    # -- sessions --------------------------------------------------------------------------------

    def open_session(
        self, name: str, limits: SessionLimits, ready: Future[None] | None = None
    ) -> Future[Address]:
        """Give the session of that name, a new one if there is none or the name is empty.

        It fails as the gateway says, and with ``GatewayLost`` and ``SupervisorClosed``. A session
        without a name has no bounds here: they are the operator's.
        """
        joining = Joining(None, limits.max_queue, limits.idle_timeout_s) if name else Joining()
        opened = self.join_session(name, joining)
        if ready is not None:
            opened.add_done_callback(lambda opened: _follow(opened, ready))
        return opened

    def join_session(self, name: str, joining: Joining) -> Future[Address]:
        """Give the session of that name or ticket; it fails as ``open_session`` does."""
        idle_s = joining.idle_timeout_s
        idle_ms = None if idle_s is None else max(1, round(idle_s * 1000))

        def address(opened: public.Opened) -> Address:
            return Address(self._thread.opened(name, opened), opened.endpoint, opened.ticket)

        return self._ask(
            lambda _: public.Open(
                _new_id(), name or None, self._client, joining.ticket, joining.max_queue, idle_ms
            ),
            address,
        )

    def interrupt_session(self, number: int) -> None:
        """End the running turn of a session early; without a connection it is not heard."""

        def interrupt() -> None:
            if (conversation := self._thread.conversations.get(number)) is not None:
                self._thread.tell(public.Interrupt(conversation.handle))

        self.inbox.post(interrupt)

    def close_session(self, number: int, *, drain: bool) -> Future[None]:
        """Close a session; the future is done when its worker has gone, or it was over.

        It fails with ``GatewayLost`` if that cannot be said, unless the session is nobody else's:
        then it ends with the connection.
        """
        known = self._thread.conversations.get(number)
        passed: tuple[type[SoloistError], ...] = (*_OVER, SupervisorClosed)
        if known is not None and not known.name:
            passed = (*passed, GatewayLost)

        def closed(_: object) -> None:
            self._thread.conversations.pop(number, None)

        return self._ask(
            lambda handle: public.Close(_new_id(), handle, drain),
            closed,
            number=number,
            afterwards=Afterwards(passed, lambda: closed(None)),
        )

    def session_stats(self, number: int) -> Future[SessionStats | None]:
        """A snapshot of one session; ``None`` if it is over."""
        return self._ask(
            lambda handle: public.Status(_new_id(), handle),
            lambda report: session_stats_of(report.status),
            number=number,
            afterwards=Afterwards((*_OVER, SupervisorClosed), lambda: None),
        )

    def command(self, number: int, name: str, arguments: list[Any]) -> Future[None]:
        """Call a method of a session's client that is no turn.

        It fails as the gateway says, and with ``GatewayLost`` and ``SupervisorClosed``.

        Raises:
            InvalidOptions: the arguments cannot be sent.
        """
        try:
            data = codec.encode_value(arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidOptions(f"{name}() cannot be sent this: {error}") from error
        sent = codec.decode_value(data)
        return self._ask(
            lambda handle: public.Command(_new_id(), handle, name, sent),
            lambda _: None,
            number=number,
            size=len(data),
        )

    # -- helpers ---------------------------------------------------------------------------------

    def _ask(
        self,
        make: Callable[[bytes], Asked],
        take: Callable[[Any], _T],
        *,
        number: int | None = None,
        afterwards: Afterwards[_T] | None = None,
        size: int = 0,
    ) -> Future[_T]:
        """Ask the gateway something.

        Args:
            make: makes the message, for the handle of the conversation.
            take: makes the answer of its outcome.
            number: of the conversation that it is about.
            afterwards: which errors are no errors.
            size: bytes of what is sent.
        """
        order = Order(take, afterwards)

        def begin() -> None:
            handle, epoch = b"", None
            if number is not None:
                if (conversation := self._thread.conversations.get(number)) is None:
                    raise SessionClosed("the session is closed", started=False)
                handle, epoch = conversation.handle, conversation.epoch
            self._thread.ask(make(handle), order, session_epoch=epoch, size=size)

        def begun(first: Future[None]) -> None:
            if (error := first.exception()) is not None:
                order.fail(error)

        self.inbox.ask(begin).add_done_callback(begun)
        return order.answer


def _new_id() -> bytes:
    return os.urandom(public.ID_BYTES)


def _follow(opened: Future[Address], ready: Future[None]) -> None:
    if (error := opened.exception()) is None:
        ready.set_result(None)
    else:
        ready.set_exception(error)


def _chosen(client: str | None, clients: list[str]) -> str:
    if client is not None and client not in clients:
        text = f"the gateway has no client {client!r}; it has {', '.join(clients)}"
        raise ClientNotFound(text, started=False)
    return client or next(iter(clients), "")
