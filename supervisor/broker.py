"""One session's decisions: a bounded FIFO, one request in flight, a worker that may be replaced.

Owns the queue and the view of the one worker of a session, owned or shared. Events change these
and *return* what is to be done, as in :mod:`soloist.supervisor.pool`; ``decide`` says what comes
next. Pure: the clock comes in with every call.

Invariants: the worker holds at most one request; requests start in the order of ``order``, their
place in the order of arrival, from 1; an entry that is cancelled or out of time is dropped before
it is dispatched; the next request is dispatched only when the turn before has ended or its worker
is dead; a worker without the conversation of its predecessor never gets a request; one is
replaced on purpose only between two turns, if its conversation can be continued. When a session
ends, its state says so first, then those waiting are told.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable

from soloist.protocol.errors import (
    QueueFull,
    RateLimited,
    RequestCancelled,
    RequestTimeout,
    RestartLimitReached,
    SessionClosed,
    SessionLost,
    SoloistError,
    SupervisorClosed,
    WorkerLost,
    from_info,
    to_info,
)
from soloist.protocol.messages import Answer, Failure, Lease, Run
from soloist.protocol.transitions import (
    SESSION,
    RequestEvent,
    RequestState,
    SessionEvent,
    SessionState,
    WorkerEvent,
    WorkerState,
    advance,
)
from soloist.supervisor.crew import (
    STOP_S,
    Action,
    Dispatch,
    Ended,
    Interrupt,
    Kill,
    Settle,
    Spawn,
    Stop,
    Tell,
    Worker,
    drained,
    end_text,
    last_words,
    lost_with,
    outcome_of,
)
from soloist.supervisor.deadlines import Deadlines
from soloist.supervisor.rate import Limiter
from soloist.supervisor.recycle import Gate, RecyclePolicy
from soloist.supervisor.request import Outcome, Request
from soloist.supervisor.restart import RestartPolicy

_IN_FLIGHT = frozenset({SessionState.RUNNING, SessionState.DRAINING})
_BACK = frozenset({SessionEvent.READY, SessionEvent.LOSE, SessionEvent.CLOSE})
"""Ends the time in which it is out of service for a while."""
_OVER = frozenset({SessionState.CLOSING, SessionState.LOST, SessionState.CLOSED})


class Broker:
    """The decisions of one session.

    Args:
        name: what its callers call it; empty for an owned session.
        number: its worker's number, which no other worker of this Supervisor ever has.
        max_queue: most requests that wait.
        max_queue_bytes: most bytes of prompts that wait; one always fits.
        restart: when a worker that failed may be replaced.
        interrupt_grace_s: time for an interrupted turn to end before its worker is killed.
        idle_timeout_s: closes itself after so long without a request; ``None`` for never.
        limiter: the Supervisor's rate limit.
        recycle: how long a worker may live; by default for ever.
        gate: how many sessions may be out of service in a restart of all.
    """

    def __init__(
        self,
        name: str,
        number: int,
        *,
        max_queue: int,
        max_queue_bytes: int,
        restart: RestartPolicy,
        interrupt_grace_s: float,
        idle_timeout_s: float | None,
        limiter: Limiter,
        recycle: RecyclePolicy | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.name = name
        self.number = number
        self.state = SessionState.STARTING
        self.incarnation = 0
        self.answered_count = 0
        self.outstanding = 0
        self.workers: dict[int, Worker] = {}  # none or one, as the pool has many
        self._settings: dict[str, bytes] = {}  # what a replacement is told again
        self._untold: list[Tell] = []
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._restart = restart
        self._interrupt_grace_s = interrupt_grace_s
        self._idle_timeout_s = idle_timeout_s
        self._limiter = limiter
        self._recycle = RecyclePolicy() if recycle is None else recycle
        self._gate = Gate() if gate is None else gate
        self._roll_below = 0  # incarnations that are to be replaced
        self._is_too_large = False
        self._calls: set[int] = set()  # commands that the worker has not replied to
        self._queue: deque[Request] = deque()
        self._queued = 0  # entries of _queue that are not settled yet
        self._queued_bytes = 0
        self._deadlines = Deadlines()
        self._order = itertools.count(1)
        self._snapshot = b""
        self._has_history = False  # whether a turn may ever have begun
        self._spawn_at = -math.inf
        self._idle_at = math.inf  # when it will have been idle for too long
        self.was_idle = False  # for too long, so that it is being closed
        self._stop_by = math.inf
        self.refusal: SoloistError | None = None  # what new requests get
        self._cause: SoloistError | None = None  # why the last start failed

    def __repr__(self) -> str:
        return f"<Broker {self.number}.{self.incarnation} {self.state.value} {self._queued} queued>"

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return self._queued

    @property
    def has_history(self) -> bool:
        """Whether there may be a conversation that a replacement has to continue."""
        return self._has_history

    @property
    def busy(self) -> int:
        """What closing waits for: requests without outcome, and a turn that still runs."""
        return self.outstanding + sum(bool(worker.leases) for worker in self.workers.values())

    @property
    def untold(self) -> frozenset[int]:
        """Commands that wait for the next worker to be ready."""
        return frozenset(tell.call for tell in self._untold)

    @property
    def is_rolling(self) -> bool:
        """Whether a worker that is to be replaced by ``restart`` lives."""
        return bool(self.workers) and self.incarnation < self._roll_below

    # -- events from callers -----------------------------------------------------------------

    def submit(self, request: Request) -> list[Action]:
        """Take a request in, at the end of the queue; ``decide`` says when it runs."""
        self.outstanding += 1
        self._queued += 1
        self._queued_bytes += len(request.payload)
        request.order = next(self._order)
        self._idle_at = math.inf
        if self.refusal is not None:
            return [self._settle(request, again(self.refusal))]
        if self._is_full():
            return [self._settle(request, QueueFull(self._full_text()))]
        self._deadlines.add(request)
        self._queue.append(request)
        self._sweep()
        return []

    def cancel(
        self, request: Request, now: float, error: SoloistError | None = None
    ) -> list[Action]:
        """End a request early: one that waits at once, the running one by an interrupt.

        The caller of a running request learns of the end when its turn has been drained.
        """
        if not request.order:  # it was never taken in
            return []
        if request.state is RequestState.QUEUED:
            never = error or RequestCancelled("the request was cancelled", started=False)
            return [self._settle(request, never)]
        if request.state is not RequestState.LEASED:
            return []
        request.advance(RequestEvent.INTERRUPT)
        request.error = error or RequestCancelled("the request was cancelled")
        return self._interrupt(request, now)

    def interrupt(self, now: float) -> list[Action]:
        """End the running turn early, whoever asked for it; without one, do nothing."""
        return [a for request in self._running() for a in self.cancel(request, now)]

    def command(self, call: int, name: str, arguments: bytes) -> list[Action]:
        """Have a method of the client called; a replacement of the client is told again.

        Raises:
            SoloistError: the session is over.
        """
        if self.refusal is not None:
            raise again(self.refusal)
        tell = Tell(self.number, call, name, arguments)
        if self.state is SessionState.STARTING or self._is_between_workers():
            self._untold.append(tell)
            return []
        self._settings[name] = arguments
        self._calls.add(call)
        return [tell]

    def replied(self, call: int) -> None:
        """The client's method has been called."""
        self._calls.discard(call)

    def restart(self) -> None:
        """Replace the worker between two turns; without effect if its conversation would be lost.

        ``is_rolling`` until that is done.
        """
        if self._can_resume():
            self._roll_below = self.incarnation + 1

    def close(self, now: float, *, drain: bool) -> list[Action]:
        """Take no more requests; run or fail those that wait, then end the worker."""
        if self.refusal is not None and self.state is not SessionState.LOST:
            return [] if drain else self._fail_rest(now)
        self.refusal = SessionClosed("the session is closed", started=False)
        if self.state is SessionState.LOST:
            self._advance(SessionEvent.CLOSE)
            return [Ended(self.number)]
        return [] if drain else self._fail_rest(now)

    def cancel_pending(self) -> list[Action]:
        """End every request that waits."""
        return self._fail_queue(RequestCancelled("the request was cancelled", started=False))

    # -- events from the worker ----------------------------------------------------------------

    def begin_again(self, number: int) -> None:
        """Another process is started for a worker that has not begun yet."""
        self.workers[number] = Worker(number, self.incarnation, self._recycle.quota())

    def loaded(self, number: int, pid: int, *, is_interruptible: bool) -> None:
        """The worker has loaded the user's code and connects its client; heard twice is once."""
        worker = self.workers[number]
        if worker.pid:
            return
        worker.advance(WorkerEvent.LOADED)
        worker.pid = pid
        worker.is_interruptible = is_interruptible

    def ready(self, number: int) -> list[Action]:
        """The worker's client is connected, in the conversation's last state if it had one."""
        self.workers[number].advance(WorkerEvent.READY)
        self._advance(SessionEvent.READY)
        self._idle_at = math.inf  # decide sets it
        again = [Tell(number, 0, name, data) for name, data in self._settings.items()]
        self._settings.update((tell.name, tell.arguments) for tell in self._untold)
        untold, self._untold = self._untold, []
        self._calls.update(tell.call for tell in untold)
        return [*again, *untold]

    def snapshot(self, number: int, data: bytes) -> None:
        """What a replacement would continue from; empty if it could not."""
        del number
        self._snapshot = data

    def broken(self, number: int, error: SoloistError) -> list[Action]:
        """The worker's client cannot start; the worker exits by itself. Heard twice is once."""
        worker = self.workers[number]
        if worker.broken is not None:
            return []
        worker.advance(WorkerEvent.BROKEN)
        worker.broken = error
        if self._has_history or self.refusal is not None:
            return []
        return self._end(error)  # there was no conversation yet: the caller is told at once

    def wedged(self, number: int, reason: str) -> list[Action]:
        """The worker makes no progress any more; ``decide`` sees to it that it ends."""
        worker = self.workers[number]
        worker.wedged = reason
        worker.interrupt_by = None
        worker.advance(WorkerEvent.STOP)
        return [Kill(number)]

    def spawn_failed(self, number: int, error: SoloistError, now: float) -> list[Action]:
        """The system refused to start the process."""
        return self.broken(number, error) + self.exited(number, None, (), now)

    def answered(
        self, number: int, outcomes: Iterable[Answer | Failure], now: float
    ) -> list[Action]:
        """The worker's replies; one that belongs to no running request is dropped."""
        worker = self.workers[number]
        actions: list[Action] = []
        for outcome in outcomes:
            if not worker.leases or worker.leases[0].lease != outcome.lease:
                continue
            request = worker.leases.popleft()
            worker.acked = outcome.lease
            worker.answered += 1
            worker.interrupt_by = None
            self.answered_count += 1
            self._has_history = True
            self._advance(SessionEvent.ANSWER)
            self._restart.succeeded()
            final = outcome_of(outcome)
            if isinstance(final, RateLimited):
                self._limiter.heed(final, now)
            if request.state is RequestState.LEASED:
                actions.append(self._settle(request, final))
            elif request.state is RequestState.DRAINING:
                actions.append(self._settle(request, drained(request, final)))
        return actions

    def measured(self, number: int, tree_rss_bytes: int, now: float) -> list[Action]:
        """The memory of the worker's process tree; ``decide`` says what follows."""
        del number, now
        self._is_too_large |= self._recycle.is_too_large(tree_rss_bytes)
        return []

    def exited(
        self,
        number: int,
        exitcode: int | None,
        unclaimed: Iterable[int],
        now: float,
        stderr: str = "",
    ) -> list[Action]:
        """The worker's process has ended and everything it said has been read.

        1. The session is closing: that was its end.
        2. The conversation can be continued, or none had begun: the worker is replaced.
        3. It cannot: the session is lost, and those who wait are told.
        """
        worker = self.workers.pop(number)
        is_failure = worker.answered == 0 and not worker.is_ended_by_us
        worker.advance(WorkerEvent.EXITED)
        self._idle_at = self._stop_by = math.inf
        self._is_too_large = False
        self._calls.clear()
        actions = self._give_up(worker, exitcode, set(unclaimed), stderr)
        if self.state is SessionState.CLOSING:  # 1
            self._advance(SessionEvent.EXIT)
            return [*actions, *self._fail_queue(self.refusal), Ended(self.number)]
        self._cause = worker.broken or WorkerLost(
            f"worker {number} {end_text(worker, exitcode)}{last_words(stderr)}",
            exitcode=exitcode,
            stderr=stderr,
        )
        if is_failure:
            self._restart.failed(now, self._cause)
        if self._can_go_on(worker, now):  # 2
            self._advance(SessionEvent.EXIT)
            self._spawn_at = self._restart.not_before() if is_failure else now
            return actions
        return [*actions, *self._lose(now)]  # 3

    def revoked(self, number: int, leases: Iterable[int]) -> None:
        """Nothing is taken back from a worker that lives: it holds what runs and no more."""

    # -- decisions -----------------------------------------------------------------------------

    def decide(self, now: float) -> list[Action]:
        """What comes next; to be called after every event and when ``next_deadline`` has come."""
        actions = self._expire(now)
        if self._is_done():
            actions += self._stop(now)
        elif self._is_spent():
            actions += self._replace()
        elif self._has_turn() and self._limiter.has_token(now):
            actions += self._dispatch(now)
        elif self.state is SessionState.STARTING and not self.workers and self._spawn_at <= now:
            actions.append(self._spawn())
        elif self.state is SessionState.IDLE and not self._queued and self._idle_timeout_s:
            actions += self._rest(now)
        return actions

    def next_deadline(self) -> float:
        """When ``decide`` wants to be called if nothing happens; may be never."""
        due = min(self._deadlines.next(), self._idle_at, self._stop_by)
        for worker in self.workers.values():
            if worker.interrupt_by is not None:
                due = min(due, worker.interrupt_by)
        if self.state is SessionState.STARTING and not self.workers:
            due = min(due, self._spawn_at)
        if self._has_turn():
            due = min(due, self._limiter.next_at())
        return due

    # -- the end of the Supervisor -------------------------------------------------------------

    def close_intake(self, reason: str) -> None:
        """From now on every new request fails with ``SupervisorClosed``."""
        self.refusal = SupervisorClosed(reason, started=False)

    def abort(self, now: float) -> list[Action]:
        """Fail everything outstanding with the reason of ``close_intake``; interrupt what runs."""
        actions = self._fail_rest(now)
        for request in self._running():  # nobody may be there any more to drain their turn
            if request.state is not RequestState.SETTLED:
                actions.append(self._settle(request, drained(request)))
        return actions

    def stop_workers(self, now: float) -> list[Action]:
        """Ask the worker to exit."""
        return self._stop(now) if self.state not in _OVER else []

    # -- helpers -------------------------------------------------------------------------------

    def _advance(self, event: SessionEvent) -> None:
        self.state = advance(SESSION, self.state, event)
        if event in _BACK:
            self._gate.leave(self.number)

    def _running(self) -> list[Request]:
        return [request for worker in self.workers.values() for request in worker.leases]

    def _has_turn(self) -> bool:
        """Whether a request waits and nothing but the rate limit keeps it from its turn."""
        if self.state is not SessionState.IDLE or not self._queued:
            return False
        return self.workers[self.number].is_open

    def _is_full(self) -> bool:
        waiting = self._queued - 1  # without the one that comes in
        return waiting >= self._max_queue or (
            waiting > 0 and self._queued_bytes > self._max_queue_bytes
        )

    def _full_text(self) -> str:
        if self._queued <= self._max_queue:
            return f"over {self._max_queue_bytes:,} bytes of prompts wait for this session"
        return f"{self._queued - 1:,} requests wait for this session already (max_queue)"

    def _is_done(self) -> bool:
        """Whether a session that takes no more requests has nothing left to do."""
        return self.refusal is not None and self.state not in _OVER and not self.busy

    def _dispatch(self, now: float) -> list[Action]:
        request = self._pop_queue()
        worker = self.workers[self.number]
        request.advance(RequestEvent.LEASE)
        request.worker = worker.number
        request.lease = worker.claimed = worker.next_lease
        request.attempts += 1
        request.incarnation = self.incarnation
        worker.next_lease += 1
        worker.given += 1
        worker.leases.append(request)
        worker.busy_since = now
        self._limiter.take(now)
        self._idle_at = math.inf
        self._advance(SessionEvent.DISPATCH)
        lease = Lease(request.lease, request.payload, request.is_streamed)
        return [Dispatch(self.number, Run((lease,), worker.acked))]

    def _spawn(self) -> Spawn:
        self.incarnation += 1
        quota = self._recycle.quota()
        self.workers[self.number] = Worker(self.number, self.incarnation, quota)
        return Spawn(self.number, self.incarnation, is_session=True, restore=self._snapshot)

    def _stop(self, now: float) -> list[Action]:
        self._advance(SessionEvent.CLOSE)
        self._stop_by = now + STOP_S
        self._idle_at = math.inf
        if not self.workers:
            self._advance(SessionEvent.EXIT)
            return [Ended(self.number)]
        worker = self.workers[self.number]
        is_idle = worker.state is WorkerState.READY and not worker.leases
        may_stay = is_idle and self._recycle.is_unlimited
        worker.advance(WorkerEvent.STOP)
        worker.interrupt_by = None
        return [Stop(self.number, may_stay=may_stay)]

    def _rest(self, now: float) -> list[Action]:
        assert self._idle_timeout_s is not None
        if self._idle_at == math.inf:
            self._idle_at = now + self._idle_timeout_s
        if now < self._idle_at:
            return []
        self.was_idle = True
        self.refusal = SessionClosed("the session was closed: idle for too long", started=False)
        return self._stop(now)

    def _expire(self, now: float) -> list[Action]:
        """End what has outlived its deadline: requests, interrupted turns, a slow exit."""
        actions: list[Action] = []
        while (request := self._deadlines.due(now)) is not None:
            self._deadlines.pop()
            if request.state is RequestState.LEASED:
                late = RequestTimeout("the deadline passed while the request was running")
                actions.append(self._settle(request, late))
                actions += self._interrupt(request, now)
            elif request.state is RequestState.QUEUED:
                late = RequestTimeout("the deadline passed in the queue", started=False)
                actions.append(self._settle(request, late))
        for worker in self.workers.values():
            actions += self._expire_worker(worker, now)
        return actions

    def _expire_worker(self, worker: Worker, now: float) -> list[Action]:
        """Kill a worker whose turn or whose exit takes too long, until it is gone."""
        is_late = worker.interrupt_by is not None and worker.interrupt_by <= now
        if is_late or self._stop_by <= now:
            worker.interrupt_by = None
            worker.advance(WorkerEvent.STOP)
            self._stop_by = now + STOP_S
            return [Kill(worker.number)]
        if worker.state is WorkerState.STOPPING:  # also one that is to exit by itself
            self._stop_by = min(self._stop_by, now + STOP_S)
        return []

    def _interrupt(self, request: Request, now: float) -> list[Action]:
        worker = self.workers[self.number]
        if self.state is not SessionState.RUNNING:
            return []
        self._advance(SessionEvent.INTERRUPT)
        worker.interrupt_by = now + worker.grace_s(self._interrupt_grace_s)
        return [Interrupt(self.number, request.lease)] if worker.is_interruptible else []

    def _give_up(
        self, worker: Worker, exitcode: int | None, unclaimed: set[int], stderr: str
    ) -> list[Action]:
        """What a dead worker was running is lost; if it had not begun, it waits again, first."""
        actions: list[Action] = []
        for request in worker.leases:
            if request.lease not in unclaimed:
                self._has_history = True
            elif request.state is RequestState.LEASED:
                request.advance(RequestEvent.REVOKE)
                request.attempts -= 1
                self._queue.appendleft(request)
                self._queued += 1
                self._queued_bytes += len(request.payload)
                continue
            elif request.state is RequestState.DRAINING and request.error is not None:
                request.error.started = False
            if request.state is not RequestState.SETTLED:
                lost = lost_with(worker, request, exitcode, stderr)
                actions.append(self._settle(request, lost))
        worker.leases.clear()
        return actions

    def _can_go_on(self, worker: Worker, now: float) -> bool:
        if self._restart.is_exhausted(now):
            return False
        if worker.broken is not None and not worker.broken.retryable:
            return False
        return self._can_resume()

    def _can_resume(self) -> bool:
        """Whether another worker would be in the same conversation."""
        return bool(self._snapshot) or not self._has_history

    def _is_between_workers(self) -> bool:
        """Whether its worker is on its way out, to be followed by another."""
        return self.state is SessionState.IDLE and not self.workers[self.number].is_open

    def _is_spent(self) -> bool:
        """Whether its worker is to be replaced, and now."""
        if self.state is not SessionState.IDLE or self._calls:
            return False
        worker = self.workers[self.number]
        if not worker.is_open:
            return False
        if not self._can_resume():
            self._roll_below = 0  # it keeps its worker
            return False
        if worker.is_spent or self._is_too_large:
            return True
        return self.is_rolling and self._gate.enter(self.number)

    def _replace(self) -> list[Action]:
        """Ask the worker to exit; its end is that of any worker whose conversation goes on."""
        self.workers[self.number].advance(WorkerEvent.STOP)
        return [Stop(self.number)]

    def _lose(self, now: float) -> list[Action]:
        """The conversation is gone: first the state says so, then those waiting hear of it.

        One that was to close has nothing left to do and ends.
        """
        was_open = self.refusal is None
        self._advance(SessionEvent.LOSE)
        self._untold.clear()
        error: SoloistError
        if self._restart.is_exhausted(now) and not self._has_history:
            error = RestartLimitReached(
                f"{self._restart.describe()}; the last: {self._cause}",
                causes=self._restart.causes,
            )
        else:
            error = SessionLost(
                f"the conversation is lost: {self._cause}. Close the session to begin another",
                started=False,
            )
        error.__cause__ = self._cause
        self.refusal = error
        actions = self._fail_queue(error)
        if was_open:
            return actions
        self._advance(SessionEvent.CLOSE)
        return [*actions, Ended(self.number)]

    def _end(self, error: SoloistError) -> list[Action]:
        """It could not even begin: everybody is told why, and the session is over."""
        self.refusal = again(error)
        self.refusal.started = False
        self._advance(SessionEvent.CLOSE)
        self._untold.clear()
        return self._fail_queue(self.refusal)

    def _fail_rest(self, now: float) -> list[Action]:
        """Fail those who wait, and end the running turn early."""
        refusal = self.refusal
        assert refusal is not None
        actions = self._fail_queue(refusal)
        for request in self._running():
            error = again(refusal)
            error.started = None
            actions += self.cancel(request, now, error)
        return actions

    def _fail_queue(self, error: SoloistError | None) -> list[Action]:
        """An error object of its own for everybody who waits: each caller may raise it."""
        waiting = [r for r in self._queue if r.state is RequestState.QUEUED]
        self._queue.clear()
        if error is None:
            assert not waiting
            return []
        return [self._settle(request, again(error)) for request in waiting]

    def _settle(self, request: Request, outcome: Outcome) -> Settle:
        self.outstanding -= 1
        if request.state is RequestState.QUEUED:
            self._queued -= 1
            self._queued_bytes -= len(request.payload)
        request.advance(RequestEvent.SETTLE)
        return Settle(request, outcome)

    def _pop_queue(self) -> Request:
        while True:
            request = self._queue.popleft()
            if request.state is RequestState.QUEUED:
                self._queued -= 1
                self._queued_bytes -= len(request.payload)
                return request

    def _sweep(self) -> None:
        """Drop settled requests before they outnumber the live ones."""
        if len(self._queue) > 2 * self._queued + 64:
            self._queue = deque(r for r in self._queue if r.state is RequestState.QUEUED)
        self._deadlines.sweep(self.outstanding)


def again(error: SoloistError) -> SoloistError:
    """The same error as an object of its own, as each caller may raise it."""
    copy = from_info(to_info(error))
    copy.__cause__ = error.__cause__
    if isinstance(error, RestartLimitReached):
        copy.causes = error.causes  # type: ignore[attr-defined]
    return copy
