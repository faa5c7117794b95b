"""The reactor as other threads see it: orders to the I/O thread, most of them answered by futures.

Owns the way in to one Supervisor's I/O thread. Any thread may call anything here, and nothing but
``start`` and ``join`` waits; no future from here may be cancelled.

Invariant: each future gets its answer, also when the thread ends first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from soloist.protocol import codec
from soloist.protocol.errors import InvalidOptions, SoloistError, SupervisorClosed
from soloist.supervisor.brokers import Address, SessionLimits
from soloist.supervisor.io_thread import IOThread, Service
from soloist.supervisor.request import Request
from soloist.supervisor.results import SessionStats, Stats
from soloist.supervisor.shutdown import Phase

_T = TypeVar("_T")


class Reactor:
    """Runs one pool, and a broker for every session, on a thread of its own.

    Args:
        thread: that one, not started.

    Attributes:
        inbox: the way in.
        is_closed: set when the thread has ended, or in a fork of its process.
    """

    takes_parts = True

    def __init__(self, thread: IOThread) -> None:
        self._thread = thread
        self.inbox = thread.inbox
        self.is_closed = thread.inbox.is_closed

    # -- its life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread and the first worker; return when that has loaded the user's code.

        Raises:
            SoloistError: it could not; everything has been cleaned up again.
        """
        self._thread.start()
        try:
            self._thread.first_worker.result()
        except BaseException:
            self.close(0.0, at_least=Phase.KILL)
            self.is_closed.wait()
            self.join()
            raise

    def drain(self) -> Future[None]:
        """Take no more requests; the future is done when all have their outcome."""
        return self._order(self._thread.drain, is_done_at_the_end=True)

    def restart(self) -> Future[None]:
        """Replace all workers that there are; the future is done when they have gone.

        It fails with ``RestartLimitReached`` if their successors cannot start.
        """
        return self._order(self._thread.restart)

    def close(self, drain_s: float | None, *, at_least: Phase = Phase.DRAIN) -> None:
        """Begin to close, or close faster; ``is_closed`` is set at the end.

        From now on ``submit`` raises.
        """
        self.inbox.shut()
        self.inbox.post(lambda: self._thread.close(drain_s, at_least))

    def join(self) -> None:
        """Wait for the thread's last steps after ``is_closed``, so that nothing of it is left."""
        self._thread.join()

    def disown(self) -> None:
        """In a forked copy of the process: be closed, and touch nothing of the owner's."""
        self._thread.disown()

    def attach(self, service: Callable[[IOThread], Service]) -> Future[None]:
        """Have something run on the thread, beside its own work, until its end.

        Args:
            service: makes it; called on the thread.
        """
        return self.inbox.ask(lambda: self._thread.attach(service(self._thread)))

    # -- requests --------------------------------------------------------------------------------

    def submit(self, requests: Iterable[Request]) -> None:
        """Hand requests over.

        Raises:
            SupervisorClosed: it is closing, or this process is a fork of its owner.
        """
        self.inbox.submit(requests)

    def cancel(self, requests: Iterable[Request], error: SoloistError | None = None) -> None:
        """End these requests early; by default as their callers' doing."""
        rest = list(requests)
        self.inbox.post(lambda: self._thread.cancel(rest, error))

    def cancel_pending(self) -> None:
        """End every request that has not started."""
        self.inbox.post(self._thread.cancel_pending)

    def stats(self, *, has_sessions: bool = True) -> Future[Stats]:
        """A snapshot, taken on the I/O thread; without the sessions it does not grow with them."""

        def stats() -> Stats:
            return self._thread.stats(has_sessions=has_sessions)

        return self._ask(stats, afterwards=stats)

    # -- sessions --------------------------------------------------------------------------------

    def open_session(
        self, name: str, limits: SessionLimits, ready: Future[None] | None = None
    ) -> Future[Address]:
        """Give the session of that name, a new one if there is none or the name is empty.

        It fails as ``Brokers.open`` says, and with ``SupervisorClosed``.
        """
        return self.inbox.ask(lambda: self._thread.brokers.open(name, limits, ready))

    def interrupt_session(self, number: int) -> None:
        """End the running turn of a session early."""
        self.inbox.post(lambda: self._thread.interrupt(number))

    def close_session(self, number: int, *, drain: bool) -> Future[None]:
        """Close a session; the future is done when its worker has gone."""

        def close(closed: Future[None]) -> None:
            now = time.monotonic()
            self._thread.brokers.close(number, now, drain=drain, closed=closed)

        return self._order(close, is_done_at_the_end=True)

    def session_stats(self, number: int) -> Future[SessionStats | None]:
        """A snapshot of one session; ``None`` if it is over."""

        def stats() -> SessionStats | None:
            return self._thread.brokers.stats_of(number, time.monotonic())

        return self._ask(stats, afterwards=lambda: None)

    def command(self, number: int, name: str, arguments: list[Any]) -> Future[None]:
        """Call a method of a session's client that is no turn.

        The future is done when the client has answered; it fails with ``SessionClosed``, what the
        client raised, ``WorkerLost`` if it died meanwhile, or ``SupervisorClosed``.

        Raises:
            InvalidOptions: the arguments cannot be sent.
        """
        try:
            data = codec.encode_value(arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidOptions(f"{name}() cannot be sent this: {error}") from error
        return self._order(lambda done: self._thread.workers.command(number, name, data, done))

    def _order(
        self, order: Callable[[Future[None]], None], *, is_done_at_the_end: bool = False
    ) -> Future[None]:
        """Have something begun on the thread, which sets the future when it is done.

        Args:
            order: begins it.
            is_done_at_the_end: whether what cannot begin any more is as good as done; else the
                future fails.
        """
        done: Future[None] = Future()

        def begun(answer: Future[None]) -> None:
            if (error := answer.exception()) is None:
                return
            if is_done_at_the_end:
                done.set_result(None)
            else:
                done.set_exception(error)

        self.inbox.ask(lambda: order(done)).add_done_callback(begun)
        return done

    def _ask(self, question: Callable[[], _T], *, afterwards: Callable[[], _T]) -> Future[_T]:
        """Ask on the thread; once that has ended, on this one."""
        answer: Future[_T] = Future()

        def asked(first: Future[_T]) -> None:
            try:
                answer.set_result(first.result())
            except SupervisorClosed:
                answer.set_result(afterwards())
            except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for it
                answer.set_exception(error)

        self.inbox.ask(question).add_done_callback(asked)
        return answer
