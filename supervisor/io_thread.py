"""The I/O thread: owns every socket, descriptor and timer, and has decisions carried out.

Callers hand over through the inbox; nothing else is shared with them. No user code runs here, and
nothing here waits except for events. What is done for one worker is in
:mod:`soloist.supervisor.workers`, for one session's peers in ``fronts``.

Invariants: the sockets are touched by this thread alone; before it sleeps it has looked at the
inbox and at every socket whose edge-triggered descriptor may have been robbed of its edge; it ends
in bounded time once told to.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol

from soloist.protocol.errors import SoloistError, SupervisorClosed
from soloist.supervisor import events
from soloist.supervisor.broker import again
from soloist.supervisor.brokers import Brokers, SessionPolicy
from soloist.supervisor.calls import Calls
from soloist.supervisor.channel import Channel
from soloist.supervisor.control import ControlDesk
from soloist.supervisor.crew import Settle
from soloist.supervisor.fronts import Fronts
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.journal import Journal
from soloist.supervisor.output import Output, Outputs
from soloist.supervisor.pool import Pool
from soloist.supervisor.postponement import POSTPONED_S, Postponement
from soloist.supervisor.process import (
    HELPER_STOP_S,
    Forkserver,
    RunFolder,
    Spawner,
    WorkerConfig,
)
from soloist.supervisor.request import POOL, Request
from soloist.supervisor.results import Stats, WorkerStats
from soloist.supervisor.shutdown import Phase, Shutdown
from soloist.supervisor.wakes import Wakes
from soloist.supervisor.workers import Workers

FRAME_ROOM_BYTES = 1024 * 1024
"""What may stand in one frame beside an answer of the largest size: smaller ones, envelopes."""
_MAX_TAKEN = 1024
"""Items taken from the inbox in one turn; the rest in the next."""
_LOOK_EVERY_S = 0.001
_LONGEST_SLEEP_S = 3600.0  # epoll counts in milliseconds, in 32 bits


class Service(Protocol):
    """What else runs on the thread: looked at in each of its turns."""

    def sources(self) -> Iterable[tuple[int, Callable[[], None]]]:
        """Descriptors, and what to call when one is readable."""

    def take(self) -> None:
        """Do what there is to do, up to a bound."""

    def has_input(self) -> bool:
        """Whether ``take`` has something to do that no descriptor will report."""

    def next_deadline(self) -> float:
        """When ``go_on`` wants to be called."""

    def go_on(self, now: float) -> None:
        """Time has passed."""

    def close(self) -> None:
        """End; every request has its outcome by now."""


class IOThread:
    """The thread of one Supervisor; what others may call says so, the rest is called on itself.

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
        inbox: the way in for others.
        brokers: every session.
        workers: every worker.
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
        self._pool = pool
        self._folder = folder
        self._forkserver = forkserver
        self._template = template
        self._sessions = sessions
        self._interrupt_grace_s = interrupt_grace_s
        self._journal = Journal()
        self._calls = Calls(desk)
        self.brokers = Brokers(
            pool.size,
            sessions,
            new_front=lambda broker: self._fronts.open(broker),  # noqa: PLW0108 - made later
            close_front=lambda front: self._fronts.shut(front),  # noqa: PLW0108
            execute=lambda actions: self.workers.execute(actions),  # noqa: PLW0108
            report=self._journal.report,
        )
        self.workers = Workers(
            pool,
            self.brokers,
            calls=self._calls,
            report=self._journal.report,
            inbox=self.inbox,
            cancel=lambda request, error: self.cancel([request], error),
            wedge_after_s=wedge_after_s,
            is_measured=sessions.recycle.max_memory_bytes is not None,
        )
        self._watch = self.workers.watch
        self._look_at = 0.0  # when it looks at its descriptors although it is busy
        self._postponement = Postponement()
        self._shutdown: Shutdown | None = None
        self._idle_waiters: list[Future[None]] = []
        self._roll_waiters: list[Future[None]] = []
        self._services: list[Service] = []
        self._ends = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._run, name="soloist-io", daemon=True)

    # -- called from other threads ---------------------------------------------------------------

    @property
    def first_worker(self) -> Future[None]:
        """Done when the first worker has loaded the user's code, or failed."""
        return self.workers.first

    def start(self) -> None:
        """Start, with the first worker."""
        self._thread.start()
        self.inbox.post(lambda: self.workers.execute([self._pool.start_worker()]))

    def join(self) -> None:
        """Wait for its last steps."""
        self._thread.join(HELPER_STOP_S)

    def disown(self) -> None:
        """In a forked copy of the process: be closed, and touch nothing of the owner's."""
        self.inbox.disown()
        self._folder.disown()
        self._forkserver.disown()

    # -- its turns -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._ends:
                try:
                    self._open()
                    while not self._is_over():
                        self._turn()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
                    events.failed(events.IO_FAILED)
                    self._give_up(error)
        except Exception:  # noqa: BLE001 - whatever it is, it is reported
            events.failed(events.CLEAN_UP_FAILED)
        finally:
            self._after_the_end()

    def _open(self) -> None:
        """Open what the thread owns; what is opened first is closed last, also after a failure."""
        ends, template = self._ends, self._template
        max_frame_bytes = template.max_payload_bytes + FRAME_ROOM_BYTES
        ends.callback(self._journal.close)
        ends.callback(self._folder.remove)
        ends.callback(self._forkserver.stop, HELPER_STOP_S)
        self._channel = Channel(self._folder.endpoint, max_bytes=max_frame_bytes)
        ends.callback(self._channel.close)
        self._wakes = Wakes()
        ends.callback(self._wakes.close)
        outputs = Outputs(self._journal)
        ends.callback(outputs.close)
        self._forkserver.hand_output_to(
            lambda output: self.inbox.post(lambda: self._take_output(outputs, output))
        )
        for source, wake in (
            (self.inbox.fileno(), self.inbox.clear),
            (self._channel.fileno(), self._channel.wake),
            (outputs.fileno(), outputs.read),
        ):
            self._wakes.add(source, wake)
        self._fronts = Fronts(
            self._wakes,
            self._folder.session_endpoint,
            max_sockets=self._sessions.max_sessions,
            max_frame_bytes=max_frame_bytes,
            max_payload_bytes=template.max_payload_bytes,
            stream_buffer_bytes=self._sessions.stream_buffer_bytes,
            timeout_s=self._sessions.timeout_s,
            submit=lambda request: self.brokers.submit(request, time.monotonic()),
            cancel=lambda request: self.cancel([request]),
        )
        ends.callback(self._fronts.close)
        ends.callback(self.workers.close)
        ends.callback(self._watch.close)
        spawner = Spawner(
            self._forkserver,
            template,
            on_spawned=lambda process: self.inbox.post(lambda: self.workers.spawned(process)),
            on_failed=lambda number, error: self.inbox.post(
                lambda: self.workers.spawn_failed(number, error)
            ),
        )
        ends.callback(spawner.join, HELPER_STOP_S)
        ends.callback(self._forkserver.stop, HELPER_STOP_S)
        ends.callback(spawner.close)
        self.workers.open(self._wakes, self._channel, outputs, spawner)

    def _turn(self) -> None:
        """One turn: take in what there is, decide, then sleep until there is more.

        While there is always more it does not sleep, but looks at its descriptors now and then.
        """
        self._take_inbox()
        self.workers.take()
        self._fronts.take()
        for service in self._services:
            service.take()
        if not self._postponement.begin_turn(
            has_settled=self.workers.has_settled(), is_waited_for=self._is_waited_for()
        ):
            self._decide(time.monotonic())
        is_busy = self._has_input()
        if self._is_over() or (is_busy and time.monotonic() < self._look_at):
            return
        if not (is_busy or self.inbox.may_sleep()):
            return
        ready = self._wakes.wait(0 if is_busy else self._timeout())
        self.inbox.has_woken()
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        self._wakes.call(ready)

    def _has_input(self) -> bool:
        """Whether something has come that no descriptor will report."""
        return (
            bool(self.inbox)
            or self._fronts.has_input()
            or self._channel.has_input()
            or any(service.has_input() for service in self._services)
        )

    def _is_over(self) -> bool:
        return self._shutdown is not None and self._shutdown.phase is Phase.DONE

    def _is_waited_for(self) -> bool:
        """Whether anybody could go on by a decision."""
        return bool(
            self._pool.queued
            or self.brokers.has_queue
            or self._idle_waiters
            or self._roll_waiters
            or self._shutdown is not None
        )

    def _timeout(self) -> float:
        if self._postponement.is_on:
            return POSTPONED_S
        due = min(
            self._pool.next_deadline(),
            self.brokers.next_deadline(),
            self.workers.next_deadline(),
            self._watch.next_round(),
        )
        for service in self._services:
            due = min(due, service.next_deadline())
        if self._shutdown is not None:
            due = min(due, self._shutdown.deadline())
        return min(_LONGEST_SLEEP_S, max(0.0, due - time.monotonic()))

    def _take_inbox(self) -> None:
        """Take in what callers have handed over, up to a bound: some may never stop."""
        for _ in range(_MAX_TAKEN):
            if (item := self.inbox.take()) is None:
                return
            if isinstance(item, Request):
                self._take_in(item)
            else:
                item()

    def _take_output(self, outputs: Outputs, output: Output) -> None:
        """A helper has started."""
        if self.inbox.is_closed.is_set():
            output.close()
        else:
            outputs.add(output)

    def _decide(self, now: float) -> None:
        self._watch.go_round(now)
        self.workers.dismiss_spares(now)
        for service in self._services:
            service.go_on(now)
        # Sessions first: under a rate limit they would starve behind a map. They cannot starve it,
        # for each has one request in flight at most.
        self.brokers.decide(now)
        self.workers.execute_all(self._pool.expire, now)
        self.workers.execute_all(self._pool.assign, now)
        if self._roll_waiters and not (self._pool.is_rolling or self.brokers.is_rolling):
            self._end_roll(self._pool.roll_failure)
        if self._idle_waiters and not (self._pool.outstanding or self.brokers.outstanding):
            for waiter in self._idle_waiters:
                waiter.set_result(None)
            self._idle_waiters.clear()
        if self._shutdown is not None:
            self._advance_shutdown(self._shutdown, now)
        self.workers.reports.decided()

    # -- orders ----------------------------------------------------------------------------------

    def attach(self, service: Service) -> None:
        """Have a service run on this thread until its end."""
        self._ends.callback(service.close)
        for source, wake in service.sources():
            self._wakes.add(source, wake)
        self._services.append(service)

    def submit(self, request: Request) -> None:
        """Take a request in; one that an idle worker can begin with begins there at once."""
        self._take_in(request)
        if request.session == POOL and self._pool.is_next_begun:
            # It need not wait for the rest of the thread's turn.
            self.workers.execute_all(self._pool.assign, time.monotonic())

    def _take_in(self, request: Request) -> None:
        if request.session == POOL:
            if refusals := self._pool.submit(request):
                self.workers.execute(refusals)
        else:
            self.brokers.submit(request, time.monotonic())

    def cancel(self, requests: list[Request], error: SoloistError | None = None) -> None:
        """End these requests early; by default as their callers' doing."""
        for request in requests:
            now = time.monotonic()
            owner = self._pool if request.session == POOL else self.brokers.touch(request.session)
            if owner is not None:
                self.workers.execute_all(owner.cancel, request, now, error)

    def interrupt(self, number: int) -> None:
        """End the running turn of a session early."""
        self.brokers.interrupt(number, time.monotonic())

    def cancel_pending(self) -> None:
        """End every request that has not started."""
        self.workers.execute(self._pool.revoke_all())
        self.workers.execute(self._pool.cancel_pending())
        self.brokers.cancel_pending()

    def restart(self, rolled: Future[None]) -> None:
        """Replace all workers that there are; ``rolled`` is done when they have gone.

        Raises:
            SupervisorClosed: it is too late.
        """
        if self._shutdown is not None:
            raise SupervisorClosed("the Supervisor is closed", started=False)
        self.workers.dismiss_all_spares(time.monotonic())
        self._pool.restart()
        self.brokers.restart()
        self._roll_waiters.append(rolled)

    def drain(self, idle: Future[None]) -> None:
        """Take no more requests; ``idle`` is done when all have their outcome."""
        self._close_intake("the Supervisor is draining and takes no more requests")
        self._idle_waiters.append(idle)

    def close(self, drain_s: float | None, at_least: Phase) -> None:
        """Begin to close, or close faster."""
        now = time.monotonic()
        self._watch.stop_measuring()
        self._close_intake("the Supervisor is closed")
        if self._shutdown is None:
            self._shutdown = Shutdown(now, drain_s=drain_s, interrupt_s=self._interrupt_grace_s)
            self._next_phase(None, now)
        self._shutdown.hurry(now, drain_s=drain_s, to=at_least)

    def stats(self, *, has_sessions: bool) -> Stats:
        """A snapshot, with each session if so asked."""
        pool = self._pool
        now = time.monotonic()
        return Stats(
            size=pool.size,
            workers=tuple(
                WorkerStats(
                    w.number,
                    w.incarnation,
                    w.pid,
                    w.state.value,
                    sum(request.count for request in w.leases),
                    w.answered,
                    busy_s=w.busy_s(now),
                    silent_s=w.silent_s(now),
                )
                for w in sorted(pool.workers.values(), key=lambda w: w.number)
            ),
            queued=pool.queued + pool.delayed,
            running=pool.running,
            restarts=pool.restarts,
            is_closed=self._shutdown is not None,
            sessions=self.brokers.stats(now) if has_sessions else (),
            oldest_running_s=self._oldest_running_s(now),
            **self.workers.counts,
        )

    def _oldest_running_s(self, now: float) -> float:
        crews = (self._pool, *self.brokers)
        busy = (worker.busy_s(now) for crew in crews for worker in crew.workers.values())
        return max(busy, default=0.0)

    # -- the end ---------------------------------------------------------------------------------

    def _close_intake(self, reason: str) -> None:
        self._pool.close_intake(reason)
        self.brokers.close_intake(reason)
        self.workers.keep_no_spares(time.monotonic())

    def _next_phase(self, shutdown: Shutdown | None, now: float) -> Phase | None:
        """The phase to enter now, if there is one; without a shutdown yet, its first."""
        busy = self._pool.busy + self.brokers.busy
        alive = len(self._pool.workers) + self.brokers.alive + self.workers.spare_count
        phase = Phase.DRAIN if shutdown is None else shutdown.advance(now, busy=busy, alive=alive)
        return self.workers.reports.closing(phase, busy=busy, alive=alive)

    def _advance_shutdown(self, shutdown: Shutdown, now: float) -> None:
        while True:
            phase = self._next_phase(shutdown, now)
            match phase:
                case None | Phase.DONE:
                    return
                case Phase.INTERRUPT:
                    self.workers.execute(self._pool.revoke_all())
                    self.workers.execute(self._pool.abort(now))
                    self.brokers.abort(now)
                case Phase.STOP:
                    self.workers.execute(self._pool.stop_workers())
                    self.brokers.stop_workers(now)
                case Phase.TERM:
                    self.workers.signal(signal.SIGTERM)
                case Phase.KILL:
                    self.workers.signal(signal.SIGKILL)
                case Phase.DRAIN:
                    raise AssertionError("closing never goes back")

    def _end_roll(self, failure: SoloistError | None) -> None:
        waiters, self._roll_waiters = self._roll_waiters, []
        for waiter in waiters:
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(again(failure))

    def _give_up(self, error: Exception) -> None:
        """After a defect of this thread: everybody is told."""
        reason = f"the I/O thread failed: {type(error).__name__}: {error}"
        self.workers.first_is(SupervisorClosed(reason))
        self._close_intake(reason)
        now = time.monotonic()
        for crew in (self._pool, *self.brokers):
            self.workers.execute(a for a in crew.abort(now) if isinstance(a, Settle))

    def _after_the_end(self) -> None:
        """Tell everybody who may still wait."""
        self.inbox.is_closed.set()
        self.workers.first_is(SupervisorClosed("the Supervisor is closed", started=False))
        for waiter in self._idle_waiters:
            waiter.set_result(None)
        self._idle_waiters.clear()
        self._end_roll(None)
        self.brokers.give_up()
        self._calls.give_up(SupervisorClosed("the Supervisor is closed"))
        self.inbox.close()
