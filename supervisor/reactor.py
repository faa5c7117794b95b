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
from soloist.protocol.errors import InvalidOptions, SupervisorClosed
from soloist.supervisor.brokers import Address, SessionLimits, SessionPolicy
from soloist.supervisor.control import ControlDesk
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.io_thread import IOThread
from soloist.supervisor.pool import Pool
from soloist.supervisor.process import Forkserver, RunFolder, WorkerConfig
from soloist.supervisor.request import Request
from soloist.supervisor.results import SessionStats, Stats
from soloist.supervisor.shutdown import Phase

_T = TypeVar("_T")


class Reactor:
    """Runs one pool, and a broker for every session, on a thread of its own.

    Args:
        pool: its decisions.
        folder: the run folder; removed at the end.
        forkserver: where workers come from; stopped at the end.
        template: what every worker is told.
        sessions: how sessions are made.
        desk: answers what clients ask.
        interrupt_grace_s: time for interrupted turns to end.
        wedge_after_s: how long a worker's event loop may be blocked; ``None`` for no limit.

    Attributes:
        inbox: the way in.
        is_closed: set when the thread has ended, or in a fork of its process.
    """

    def __init__(
        self,
        pool: Pool,
        folder: RunFolder,
        forkserver: Forkserver,
        *,
        template: WorkerConfig,
        sessions: SessionPolicy,
        desk: ControlDesk,
        interrupt_grace_s: float,
        wedge_after_s: float | None,
    ) -> None:
        self.inbox = Inbox()
        self.is_closed = self.inbox.is_closed
        self._folder = folder
        self._forkserver = forkserver
        self._thread = IOThread(
            self.inbox,
            pool,
            folder,
            forkserver,
            template=template,
            sessions=sessions,
            desk=desk,
            interrupt_grace_s=interrupt_grace_s,
            wedge_after_s=wedge_after_s,
        )

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
        idle: Future[None] = Future()

        def drained(asked: Future[None]) -> None:
            if asked.exception() is not None:  # everything has ended
                idle.set_result(None)

        self.inbox.ask(lambda: self._thread.drain(idle)).add_done_callback(drained)
        return idle

    def restart(self) -> Future[None]:
        """Replace all workers that there are; the future is done when they have gone.

        It fails with ``RestartLimitReached`` if their successors cannot start.
        """
        rolled: Future[None] = Future()

        def asked(answer: Future[None]) -> None:
            if (error := answer.exception()) is not None:
                rolled.set_exception(error)

        self.inbox.ask(lambda: self._thread.restart(rolled)).add_done_callback(asked)
        return rolled

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
        self.inbox.disown()
        self._folder.disown()
        self._forkserver.disown()

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

    def cancel_pending(self) -> None:
        """End every request that has not started."""
        self.inbox.post(self._thread.cancel_pending)

    def stats(self) -> Future[Stats]:
        """A snapshot, taken on the I/O thread."""
        return self._ask(self._thread.stats, afterwards=self._thread.stats)

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
        self.inbox.post(lambda: self._thread.brokers.interrupt(number, time.monotonic()))

    def close_session(self, number: int, *, drain: bool) -> Future[None]:
        """Close a session; the future is done when its worker has gone."""
        closed: Future[None] = Future()

        def close() -> None:
            now = time.monotonic()
            self._thread.brokers.close(number, now, drain=drain, closed=closed)

        def asked(answer: Future[None]) -> None:
            if answer.exception() is not None:  # the Supervisor is closed
                closed.set_result(None)

        self.inbox.ask(close).add_done_callback(asked)
        return closed

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
        done: Future[None] = Future()
        try:
            data = codec.encode_value(arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidOptions(f"{name}() cannot be sent this: {error}") from error

        def asked(answer: Future[None]) -> None:
            if (error := answer.exception()) is not None:
                done.set_exception(error)

        self.inbox.ask(
            lambda: self._thread.workers.command(number, name, data, done)
        ).add_done_callback(asked)
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
