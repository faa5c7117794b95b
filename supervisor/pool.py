"""Which worker gets which request: the pool's decisions, without any I/O.

Owns the queue, the pool's view of each worker, and the requests that failed and wait for another
attempt. Events change these three collections and *return* what is to be done; the I/O thread does
it. The clock comes in with every call.

Invariants: a worker holds at most one claimed lease; a request stands in the queue, in exactly
one worker's leases or among the delayed until it is settled, once; a lease number is never used
twice in one incarnation; ``len(workers) <= size``; while the limiter has to be asked, every
dispatch takes a token and nothing is sent to wait at a busy worker; amid a pause nothing is
dispatched and nothing waits at any worker. A part of a chunk stands for as many requests as it
has prompts; a worker holds at most as many parts as its ledger has pages.

The module is long because every event and the one decision read and write the same collections;
what has a state of its own stands elsewhere (``crew``, ``deadlines``, ``forecast``, ``rate``,
``recycle``, ``restart``, ``retry``).
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator

from soloist.protocol import codec
from soloist.protocol.codec import DURATION_BYTES
from soloist.protocol.errors import (
    RequestCancelled,
    RequestTimeout,
    RestartLimitReached,
    SoloistError,
    SupervisorClosed,
    WorkerLost,
    from_info,
)
from soloist.protocol.ledger import CHUNK_ITEMS
from soloist.protocol.messages import Answer, Answers, Chunk, Failure, Lease, Run
from soloist.protocol.transitions import RequestEvent, RequestState, WorkerEvent, WorkerState
from soloist.supervisor.chunk import Part
from soloist.supervisor.crew import (
    NOT_YET_READY,
    STOP_S,
    Action,
    Dispatch,
    Inspect,
    Interrupt,
    Kill,
    Retried,
    Revoke,
    Settle,
    SettleAll,
    SettlePart,
    Spawn,
    Stop,
    Worker,
    drained,
    end_text,
    last_words,
    lost_with,
)
from soloist.supervisor.deadlines import Deadlines
from soloist.supervisor.forecast import Forecast
from soloist.supervisor.rate import Limiter
from soloist.supervisor.recycle import RecyclePolicy, Roll
from soloist.supervisor.request import Outcome, Request
from soloist.supervisor.restart import RestartPolicy
from soloist.supervisor.retry import Retries, Retry

BATCH_S = 0.002
"""Measured service time that may wait at a busy worker, so that it need not wait for us. Of slower
prompts one may wait there if it is foretold when its turn comes; else none does: the next free
worker takes them, in order."""
CHUNK_S = 0.004
"""Measured service time of the longest part of a chunk that goes to a worker as a whole."""
MAX_BATCH = 256
"""Most requests that wait at one worker."""
MAX_BATCH_BYTES = 256 * 1024
"""Payload bytes after which no more requests are put into one message."""
INSPECT_AFTER_S = 0.004
"""How long a worker's first lease may go without news, beyond what was foretold, before its ledger
is read and what waits behind it is taken back."""


class Pool:
    """The queue and the workers of one Supervisor.

    Args:
        size: most workers at a time; they are started on demand.
        restart: decides when a worker that failed may be replaced.
        interrupt_grace_s: time for an interrupted turn to end before its worker is killed.
        limiter: the Supervisor's rate limit; by default there is none.
        retry: which requests run again after an error; by default none.
        recycle: how long a worker may live; by default for ever.
        jitter: chance in [0, 1], for the waits before further attempts.
        has_open_pages: whether the answers of a chunk can be read while its worker lives; else no
            caller's request is put into a chunk with another's, behind which it would wait.
    """

    name = ""  # sessions have one
    untold: frozenset[int] = frozenset()  # only sessions have commands

    def __init__(
        self,
        *,
        size: int,
        restart: RestartPolicy,
        interrupt_grace_s: float,
        limiter: Limiter | None = None,
        retry: Retry | None = None,
        recycle: RecyclePolicy | None = None,
        jitter: Callable[[], float] = random.random,
        has_open_pages: bool = True,
    ) -> None:
        self.size = size
        self._has_open_pages = has_open_pages
        self.workers: dict[int, Worker] = {}
        self.outstanding = 0
        self.restarts = 0
        self._restart = restart
        self._interrupt_grace_s = interrupt_grace_s
        self._limiter = Limiter() if limiter is None else limiter
        self._revoked_until = 0.0  # end of the pause for which everything was taken back
        self._retries = Retries(retry, jitter)
        self._queue: deque[Request] = deque()
        self._queued = 0  # entries of _queue that are not settled yet
        self._idle: dict[int, Worker] = {}
        self._roomy: dict[int, Worker] = {}  # busy, with room for requests that wait there
        self._spawn_at = math.inf  # when a start that has to wait may be tried again
        self._depth = 0  # how many may wait at a busy worker
        self._part_depth = 0  # the same, of a chunk
        self._undivided = 0  # a part of a chunk that is so short is not divided among workers
        self._inspect_at = math.inf
        self._service_s = 1.0  # moving estimate; quick to rise, slow to fall
        self._forecast = Forecast()
        self._foreseen_s = 0.0  # what a prompt takes before it is late; 0 for none is foretold
        self._tailed: dict[int, Worker] = {}  # more than one lease
        self._interrupting: dict[int, Worker] = {}
        self._spent: dict[int, Worker] = {}  # to be asked to exit
        self._recycle = RecyclePolicy() if recycle is None else recycle
        self._roll = Roll(size)
        self._deadlines = Deadlines()
        self._order = 1  # of the next request
        self._incarnations: dict[int, int] = {}
        self._last_failure: SoloistError | None = None
        self._closed: str | None = None

    def __repr__(self) -> str:
        return f"<Pool {self._queued} queued, {list(self.workers.values())}>"

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return self._queued

    @property
    def is_next_begun(self) -> bool:
        """Whether ``assign`` would begin with the only request that waits."""
        return self._queued == 1 and bool(self._idle) and self._limiter.is_free

    @property
    def busy(self) -> int:
        """What closing waits for: requests without outcome, and turns that still run."""
        return self.outstanding + sum(bool(worker.leases) for worker in self.workers.values())

    @property
    def running(self) -> int:
        """Requests that a worker holds, those prefetched included."""
        return self.outstanding - self._queued - self._retries.count

    @property
    def delayed(self) -> int:
        """Requests that failed and wait for their next attempt."""
        return self._retries.count

    @property
    def is_rolling(self) -> bool:
        """Whether a worker that was to be replaced by ``restart`` lives."""
        return self._roll.is_active

    @property
    def roll_failure(self) -> SoloistError | None:
        """Why the last ``restart`` ended before all were replaced, if it did."""
        return self._roll.failure

    # -- events from callers ---------------------------------------------------------------

    def submit(self, request: Request) -> list[Action]:
        """Take a request in; ``assign`` decides where it goes."""
        self.outstanding += request.count
        self._queued += request.count
        request.order = self._order
        self._order += request.count
        if self._closed is not None:
            closed = self._closed
            return [
                self._settle(r, SupervisorClosed(closed, started=False)) for r in _each(request)
            ]
        self._queue.append(request)
        if request.deadline is not None:
            self._deadlines.add(request)
            self._deadlines.sweep(self.outstanding)
        if len(self._queue) > 2 * self._queued + 64:  # more settled ones than others
            self._queue = deque(r for r in self._queue if r.state is RequestState.QUEUED)
        return []

    def cancel(
        self, request: Request, now: float, error: SoloistError | None = None
    ) -> list[Action]:
        """End a request early: those that wait at once, running ones by an interrupt.

        The caller of a running request learns of the end when its turn has been drained. A
        request that waits at a worker is revoked first; call again after ``revoked``.
        """
        if isinstance(request, Part):
            return self._cancel_chunk(request, now, error)
        if not request.order:  # it was never taken in
            return []
        if request.state in _WAITING:
            return [self._fail(request, error or RequestCancelled(_CANCELLED, started=False))]
        if request.state is not RequestState.LEASED:
            return []
        worker = self.workers[request.worker]
        if request.lease > worker.claimed:
            return [Revoke(worker.number)]
        request.advance(RequestEvent.INTERRUPT)
        request.error = error or RequestCancelled(_CANCELLED)
        return self._interrupt(worker, request, now)

    def _cancel_chunk(
        self, part: Part, now: float, error: SoloistError | None = None
    ) -> list[Action]:
        """End all of a chunk early, whichever of its parts is given."""
        chunk = part.chunk
        leased = [p.worker for p in chunk.parts if p.state is RequestState.LEASED]
        if leased:
            return [Revoke(worker) for worker in leased]  # then this is called again
        for waiting in list(chunk.parts):
            waiting.requests()
        requests = list(chunk.requests.values())
        return [action for r in requests for action in self.cancel(r, now, error)]

    def revoke_all(self) -> list[Action]:
        """Take back whatever waits at a worker; then the queue holds all that has not started."""
        return [Revoke(worker.number) for worker in self.workers.values() if worker.leases]

    def cancel_pending(self) -> list[Action]:
        """End every request that waits; ``revoke_all`` comes first."""
        return self._fail_queue(RequestCancelled, _CANCELLED)

    def restart(self) -> None:
        """Replace all workers that there are, a few at a time; ``is_rolling`` until that is done.

        Another one under way is joined.
        """
        self._roll.begin(self.workers)

    # -- events from workers ---------------------------------------------------------------

    def loaded(self, number: int, pid: int, *, is_interruptible: bool) -> None:
        """The worker has loaded the user's code and connects its client; heard twice is once."""
        worker = self.workers[number]
        if worker.pid:
            return
        worker.advance(WorkerEvent.LOADED)
        worker.pid = pid
        worker.is_interruptible = is_interruptible

    def ready(self, number: int) -> list[Action]:
        """The worker's client is connected."""
        worker = self.workers[number]
        worker.advance(WorkerEvent.READY)
        self._file(worker)
        return []

    def snapshot(self, number: int, data: bytes) -> None:
        """A worker of the pool has nothing to continue from; only sessions do."""

    def broken(self, number: int, error: SoloistError) -> list[Action]:
        """The worker's client cannot start; the worker exits by itself.

        If no worker has a client that works, everybody who waits is told at once. Heard twice is
        once.
        """
        worker = self.workers[number]
        if worker.broken is not None:
            return []
        worker.advance(WorkerEvent.BROKEN)
        worker.broken = error
        self._file(worker)
        self._last_failure = error
        if worker.answered or any(w.state is WorkerState.READY for w in self.workers.values()):
            return []
        return self._fail_queue(type(error), str(error), error)

    def wedged(self, number: int, reason: str) -> list[Action]:
        """The worker makes no progress any more; what it has not begun runs elsewhere."""
        worker = self.workers[number]
        worker.wedged = reason
        return self._kill(worker)

    def spawn_failed(self, number: int, error: SoloistError, now: float) -> list[Action]:
        """The system refused to start the process; if there is no other, who waits is told."""
        worker = self.workers[number]
        worker.advance(WorkerEvent.BROKEN)
        worker.broken = self._last_failure = error
        is_last = len(self.workers) == 1
        actions = self._fail_queue(type(error), str(error), error) if is_last else []
        return actions + self.exited(number, None, (), now)

    def answered(
        self, number: int, outcomes: Iterable[Answer | Answers | Failure], now: float
    ) -> list[Action]:
        """A worker's replies; one that is late or belongs to no running request is dropped."""
        worker = self.workers[number]
        actions: list[Action] = []
        slowest_s, together = -1.0, 1
        before = worker.answered
        for outcome in outcomes:
            if isinstance(outcome, Answers):
                slowest_s = max(slowest_s, self._answered_together(worker, outcome, actions))
                together = worker.answered - before
                continue
            lease = outcome.lease
            if not worker.leases or worker.leases[0].lease != lease:
                continue
            slowest_s = max(slowest_s, outcome.duration_s)
            request = self._pop_lease(worker)
            if isinstance(outcome, Failure):
                error, began = from_info(outcome.error), now - outcome.duration_s
                actions += self._failed(request, error, began, now)
            else:
                actions += self._answered_one(request, outcome)
        if slowest_s < 0:
            return []
        self._foretell(worker, worker.answered - before, now)
        worker.head_since = worker.busy_since = now
        if worker.interrupt_by is not None and worker.acked >= worker.interrupted:
            worker.interrupt_by = None
            self._interrupting.pop(number, None)  # one that is killed need not be among them
        self._restart.succeeded()
        self._learn(slowest_s, together)
        self._file(worker)
        return actions

    def _answered_together(self, worker: Worker, answers: Answers, actions: list[Action]) -> float:
        """Answers to a chunk, or to what was one; a turn's mean time, -1 if all was known."""
        texts, durations, done = answers.texts, answers.durations, 0
        size = DURATION_BYTES
        first = None
        while worker.leases:
            head = worker.leases[0]
            done = head.lease - answers.lease
            if not 0 <= done < len(texts):
                break
            first = done if first is None else first
            if isinstance(head, Part):
                count = min(head.count, len(texts) - done)
                part = head if count == head.count else head.split(count)
                if part is head:
                    worker.leases.popleft()
                end = done + count
                actions.append(
                    self._settle_part(part, texts[done:end], durations[size * done : size * end])
                )
                worker.acked = worker.claimed = answers.lease + end - 1
                worker.answered += count
            else:
                self._answered_singles(worker, answers, done, actions)
        if first is None:
            return -1.0
        times = memoryview(durations)[size * first :].cast("d")
        return sum(times) / len(times)

    def _answered_singles(
        self, worker: Worker, answers: Answers, done: int, actions: list[Action]
    ) -> None:
        """Answers from that place on to requests that follow each other at a worker, at least one.

        Tuples are made without their constructor, which takes longer than all else here.
        """
        leases, requests = worker.leases, []
        for lease in range(answers.lease + done, answers.lease + len(answers.texts)):
            if not leases or leases[0].lease != lease or isinstance(leases[0], Part):
                break
            requests.append(leases.popleft())
        end = done + len(requests)
        worker.acked = worker.claimed = answers.lease + end - 1
        worker.answered += len(requests)
        durations = memoryview(answers.durations).cast("d")[done:end]
        fields = zip(
            range(answers.lease + done, answers.lease + end),
            durations,
            answers.texts[done:end],
            itertools.repeat(1),
            itertools.repeat(b""),
            strict=False,
        )
        outcomes = list(map(_new_answer, fields))
        if all(request.state is RequestState.LEASED for request in requests):  # nearly always
            self.outstanding -= len(requests)
            for request in requests:
                request.advance(RequestEvent.SETTLE)
            actions.append(SettleAll(requests, outcomes))
        else:
            for request, answer in zip(requests, outcomes, strict=True):
                actions += self._answered_one(request, answer)

    def _answered_one(self, request: Request, answer: Answer) -> list[Action]:
        if request.state is RequestState.LEASED:
            return [self._settle(request, answer)]
        if request.state is RequestState.DRAINING:
            return [self._fail(request, drained(request))]
        return []  # its caller has been told

    def _pop_lease(self, worker: Worker) -> Request:
        """Take the request of a worker's first lease, which has ended."""
        head = worker.leases[0]
        worker.acked = worker.claimed = head.lease
        worker.answered += 1
        request = head.first() if isinstance(head, Part) else head
        if request is head or not head.count:
            worker.leases.popleft()
        return request

    def revoked(self, number: int, leases: Iterable[int]) -> None:
        """These leases were taken back before the worker claimed them: they wait again."""
        worker = self.workers[number]
        taken = set(leases)
        if any(isinstance(entry, Part) for entry in worker.leases):
            worker.leases = deque(_taken_apart(worker.leases, taken))
        worker.claimed = max(
            (request.lease for request in worker.leases if request.lease not in taken),
            default=worker.claimed,
        )
        back = [request for request in worker.leases if request.lease in taken]
        worker.given -= sum(request.count for request in back)
        if back:
            worker.leases = deque(r for r in worker.leases if r.lease not in taken)
            worker.cut_pages()
            self._requeue(back)
        self._file(worker)

    def measured(self, number: int, tree_rss_bytes: int, now: float) -> list[Action]:
        """The memory of a worker's process tree; one that has outgrown its limit is replaced."""
        if self._recycle.is_too_large(tree_rss_bytes):
            return self._retire(self.workers[number], now)
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

        What it had not claimed waits again, at most one attempt is lost, and the worker is
        replaced as far as the restart policy allows. A request that runs again after it has
        killed a worker counts once: the next death is its fault, not the client's.
        """
        worker = self.workers[number]
        if worker.leases:
            self.revoked(number, unclaimed)
        is_failure = worker.answered == 0 and not worker.is_ended_by_us
        worker.advance(WorkerEvent.EXITED)
        lost = list(worker.leases)
        is_failure = is_failure and not any(request.has_killed for request in lost)
        worker.leases.clear()
        self._forget(worker)
        actions: list[Action] = []
        for request in lost:
            request.has_killed = True
            if request.state is not RequestState.SETTLED:
                error = lost_with(worker, request, exitcode, stderr)
                actions += self._failed(request, error, worker.head_since, now)
        if is_failure:
            self._last_failure = worker.broken or WorkerLost(
                f"worker {number} {end_text(worker, exitcode)} before its first answer"
                f"{last_words(stderr)}",
                exitcode=exitcode,
                stderr=stderr,
            )
            self._restart.failed(now, self._last_failure)
        elif self._closed is None:
            actions.append(self.start_worker())
        return actions

    # -- decisions ---------------------------------------------------------------------------

    def assign(self, now: float) -> list[Action]:
        """Decide what every waiting request gets.

        1. An idle worker: it runs there.
        2. No idle worker and fewer than ``size``: another worker is started; also for a roll.
        3. Busy workers with room: it waits there, revocable, in equal shares; one that is foretold
           to wait for long is taken back as soon as a worker is idle.
        4. A worker with more than one lease has been silent for long: its ledger is read, and
           what waits behind the first lease is taken back.
        5. No worker is left and none may be started: everybody who waits is told.
        6. A request's next attempt is due: it waits again, in its old place.
        7. The limiter has to be asked: only idle workers get requests, each with a token. When a
           pause begins, what no worker has claimed is taken back.
        """
        if (
            now >= self._inspect_at or now >= self._retries.next_at or not self._limiter.is_free
        ) and (first := self._before(now)):
            return first
        if not self._queued and not self._roll.is_active:
            self._spawn_at = math.inf
            if self._foreseen_s and self._idle and self._tailed and (steal := self._steal(now)):
                return steal
            return self._refuse(now) if self._retries.count else []
        runs: dict[int, list[Request]] = {}
        limiter = self._limiter
        while self._queued and self._idle and (limiter.is_free or limiter.take(now)):  # 1, 7
            # The one that is idle the longest: its client had the time to begin anew.
            self._lease(next(iter(self._idle.values())), self._first_share(), runs, now)
        actions: list[Action] = []
        if self._queued or self._roll.is_active:  # 2
            actions += self._spawn(now)
        while self._queued and self._roomy and limiter.is_free:  # 3
            self._share(runs, now)
        for number, leased in runs.items():
            actions += self._dispatches(self.workers[number], leased)
        return actions + self._refuse(now) if self._queued else actions

    def expire(self, now: float) -> list[Action]:
        """End what has outlived its deadline: requests, turns that were interrupted, workers."""
        actions: list[Action] = []
        while (request := self._deadlines.due(now)) is not None:
            if request.state is RequestState.LEASED:
                worker = self.workers[request.worker]
                if request.lease > worker.claimed:
                    return [*actions, Revoke(worker.number)]  # then this is called again
                actions.append(self._fail(request, RequestTimeout(_TIMED_OUT)))
                actions += self._interrupt(worker, request, now)
            elif request.state in _WAITING:
                timeout = RequestTimeout("the deadline passed in the queue", started=False)
                actions.append(self._fail(request, timeout))
            self._deadlines.pop()
        for worker in list(self._interrupting.values()) if self._interrupting else ():
            if worker.interrupt_by is not None and worker.interrupt_by <= now:
                actions += self._kill(worker)
        if self._roll.is_active:
            actions += self._roll_on(now)
        return actions + self._stop_spent(now) if self._spent else actions

    def next_deadline(self) -> float:
        """When ``assign`` and ``expire`` want to be called if nothing happens; may be never."""
        if self._spent:
            return -math.inf
        due = min(self._deadlines.next(), self._retries.next_at, self._spawn_at, self._inspect_at)
        for worker in self._interrupting.values():
            if worker.interrupt_by is not None:
                due = min(due, worker.interrupt_by)
        if self._queued and self._idle and not self._limiter.is_free:
            due = min(due, self._limiter.next_at())
        return due

    # -- closing -----------------------------------------------------------------------------

    def close_intake(self, reason: str) -> None:
        """From now on every new request fails with ``SupervisorClosed``."""
        self._closed = reason

    def abort(self, now: float) -> list[Action]:
        """Fail everything outstanding with ``SupervisorClosed`` and interrupt what runs.

        ``revoke_all`` comes first.
        """
        self._roll.end()
        reason = self._closed or "the Supervisor is closed"
        actions = self._fail_queue(SupervisorClosed, reason)
        for worker in list(self.workers.values()):
            worker.leases = deque(_taken_apart(worker.leases, frozenset()))
            for request in list(worker.leases):
                if request.state is RequestState.SETTLED:
                    continue
                error = SupervisorClosed(reason, started=None)
                actions.append(self._fail(request, error))
                actions += self._interrupt(worker, request, now)
        return actions

    def stop_workers(self) -> list[Action]:
        """Ask every worker to exit."""
        actions: list[Action] = []
        for worker in self.workers.values():
            worker.advance(WorkerEvent.STOP)
            self._file(worker)
            actions.append(Stop(worker.number))
        return actions

    # -- helpers -----------------------------------------------------------------------------

    def _lease(
        self, worker: Worker, count: int, runs: dict[int, list[Request]], now: float
    ) -> None:
        """Give up to ``count`` requests to a worker.

        At least one, unless a part of a chunk comes first and the worker has enough.
        """
        if not worker.leases:
            worker.head_since = worker.busy_since = now
        leased = runs.setdefault(worker.number, [])
        count = int(min(count, worker.quota - worker.given))
        size = 0
        if self._part_depth and not worker.is_interruptible and count > 1:
            head = self._head()
            if isinstance(head, Part):
                self._lease_part(worker, head, count, leased)
                return
        if worker.leases and isinstance(worker.leases[-1], Part):
            self._file(worker, is_full=True)
            return
        count = min(count, self._depth + 1 - len(worker.leases))
        number, lease, queue = worker.number, worker.next_lease, self._queue
        while count and self._queued and size < MAX_BATCH_BYTES:
            request = queue[0]
            if request.state is RequestState.QUEUED and type(request) is Request:  # nearly always
                queue.popleft()
                self._queued -= 1
            else:
                request = self._pop_queue()
            request.advance(RequestEvent.LEASE)
            request.worker = number
            request.lease = lease
            request.attempts += 1
            lease += 1
            leased.append(request)
            count -= 1
            size += len(request.payload)
        given = lease - worker.next_lease
        worker.leases.extend(leased[len(leased) - given :])
        worker.given += given
        worker.next_lease = lease
        self._file(worker, is_full=size >= MAX_BATCH_BYTES)

    def _lease_part(self, worker: Worker, head: Part, count: int, leased: list[Request]) -> None:
        """Give up to ``count`` prompts of the part that comes first in the queue to a worker.

        One behind another at most: the ledger has a page for each.
        """
        if not worker.has_free_page:
            self._file(worker, is_full=True)
            return
        count = min(count, self._part_depth)
        # A short rest is not divided: two halves would cost more than one waits for the other.
        if head.count <= max(count, self._undivided) and (
            worker.quota - worker.given >= head.count
        ):
            part = head
            self._queue.popleft()
        else:
            part = head.split(count)
        self._queued -= part.count
        part.advance(RequestEvent.LEASE)
        part.worker = worker.number
        part.lease = worker.next_lease
        worker.next_lease += part.count
        worker.given += part.count
        worker.leases.append(part)
        worker.take_page(part.lease + part.count - 1)
        leased.append(part)
        self._file(worker)

    def _dispatches(self, worker: Worker, leased: list[Request]) -> list[Action]:
        """What was leased to a worker, in order; requests that follow each other together."""
        found: list[Action] = []
        single: list[Request] = []
        for request in leased:
            if not isinstance(request, Part):
                single.append(request)
                continue
            if single:
                found.append(Dispatch(worker.number, self._run(worker, single)))
                single = []
            chunk = Chunk(request.lease, tuple(request.prompts), worker.acked)
            found.append(Dispatch(worker.number, chunk))
        if single:
            found.append(Dispatch(worker.number, self._run(worker, single)))
        return found

    def _run(self, worker: Worker, requests: list[Request]) -> Run | Chunk:
        """One message for requests with leases that follow each other: a chunk if it can be one."""
        if (
            len(requests) > 1
            and self._part_depth
            and self._has_open_pages
            and not worker.is_interruptible
            and worker.has_free_page
            and not any(request.is_streamed for request in requests)
            and (texts := codec.texts_of_prompts([request.payload for request in requests]))
        ):
            worker.take_page(requests[-1].lease)
            return Chunk(requests[0].lease, texts, worker.acked)
        leases = tuple([Lease(r.lease, r.payload, r.is_streamed) for r in requests])
        return Run(leases, worker.acked)

    def _first_share(self) -> int:
        """How many an idle worker gets: one, unless a quick chunk comes first."""
        if self._part_depth and self._limiter.is_free and isinstance(self._head(), Part):
            return -(-self._queued // len(self._idle))
        return 1

    def _share(self, runs: dict[int, list[Request]], now: float) -> None:
        """Give each busy worker with room its share of the queue, as far as its room goes.

        One that has been silent for long gets nothing: ``_inspect`` would take it back at once.
        """
        roomy = list(self._roomy.values())
        if self._foreseen_s:
            roomy.sort(key=_busy_since)  # who ends first is served first
        for left, worker in zip(range(len(roomy), 0, -1), roomy, strict=True):
            if self._silent_at(worker) <= now:
                worker.inspected = worker.leases[0].lease
                self._file(worker)
            elif share := -(-self._queued // left):
                self._lease(worker, share, runs, now)

    def _spawn(self, now: float) -> list[Action]:
        free = self.size - len(self.workers)
        not_before = self._restart.not_before()
        self._spawn_at = not_before if free and now < not_before else math.inf
        if not free or now < not_before or self._restart.is_exhausted(now):
            return []
        starting = sum(worker.state in NOT_YET_READY for worker in self.workers.values())
        wanted = self._queued - starting - len(self._idle)  # some are idle for want of a token
        wanted = max(wanted, self._roll.missing(self.workers))
        return [self.start_worker() for _ in range(min(free, wanted))]

    def start_worker(self) -> Spawn:
        """Take the lowest free number for a new worker."""
        number = next(n for n in itertools.count() if n not in self.workers)
        incarnation = self._incarnations.get(number, 0) + 1
        self._incarnations[number] = incarnation
        self.restarts += incarnation > 1
        self.workers[number] = Worker(number, incarnation, self._recycle.quota())
        return Spawn(number, incarnation)

    def _refuse(self, now: float) -> list[Action]:
        """Tell those who wait, for their next attempt included, that none will come."""
        if self.workers or not self._restart.is_exhausted(now):  # 5
            return []
        reason = f"{self._restart.describe()}; the last: {self._last_failure}"
        return self._fail_queue(RestartLimitReached, reason, self._last_failure)

    def _before(self, now: float) -> list[Action]:
        """What comes before anything is handed out; if it asks, decide again afterwards."""
        if now >= self._retries.next_at:  # 6
            self._enqueue(self._retries.due(now))
        if now >= self._inspect_at and (silent := self._inspect(now)):  # 4
            return silent
        is_new_pause = self._revoked_until <= now < self._limiter.paused_until
        self._revoked_until = self._limiter.paused_until
        return self.revoke_all() if is_new_pause else []  # 7

    def _inspect(self, now: float) -> list[Action]:
        """Nothing waits behind a request that turned out slow.

        Neither outcomes that the worker has but did not send yet, nor requests that others could
        run. The worker gets no more until that request has ended.
        """
        actions: list[Action] = []
        self._inspect_at = math.inf
        for worker in list(self._tailed.values()):
            if self._silent_at(worker) <= now:
                head = worker.leases[0]
                is_seen = worker.inspected == head.lease or not isinstance(head, Part)
                worker.inspected = head.lease
                actions.append(Inspect(worker.number))
                if is_seen:
                    worker.head_since = now  # asked once; if it moves on meanwhile, again later
                    actions.append(Revoke(worker.number))
                # Else it may be on its way through its chunk; this is asked again at once.
            self._file(worker)
        return actions

    def _steal(self, now: float) -> list[Action]:
        """Take back, for a worker that is idle, what is foretold to wait longest elsewhere."""
        worker = max(self._tailed.values(), key=_busy_since)
        has_begun = worker.leases[-1].lease <= worker.claimed
        if has_begun or self._silent_at(worker) - now < 2 * INSPECT_AFTER_S:
            return []
        return [Revoke(worker.number)]

    def _foretell(self, worker: Worker, count: int, now: float) -> None:
        """Learn from so many answers, if it is known when the first one began."""
        if count == 1 and worker.inspected != worker.acked:
            self._forecast.learn(now - worker.head_since)

    def _silent_at(self, worker: Worker) -> float:
        """From when on a busy worker's first lease takes long without news."""
        return worker.head_since + self._foreseen_s + INSPECT_AFTER_S

    def _learn(self, duration_s: float, count: int = 1) -> None:
        """Take a measured service time, of so many, into the estimate that sets the depths."""
        estimate = self._service_s
        weight = 1.0 if duration_s > estimate else 1.0 - 0.9**count
        estimate += (duration_s - estimate) * weight
        self._service_s = estimate
        self._part_depth = min(CHUNK_ITEMS, int(CHUNK_S / (estimate + 1e-6)))
        self._undivided = int(BATCH_S / (estimate + 1e-6))
        depth = min(MAX_BATCH, int(BATCH_S / (estimate + 1e-6)))
        self._foreseen_s = 0.0 if depth else self._forecast.seconds
        depth = depth or int(self._foreseen_s > 0)
        if depth != self._depth:
            self._depth = depth
            for worker in self.workers.values():
                if worker.leases:
                    self._file(worker)

    def _interrupt(self, worker: Worker, request: Request, now: float) -> list[Action]:
        if worker.state not in _SERVING or request.lease <= worker.interrupted:
            return []
        worker.interrupted = request.lease
        worker.interrupt_by = now + worker.grace_s(self._interrupt_grace_s)
        self._interrupting[worker.number] = worker
        self._file(worker)
        actions = self._free_the_rest(worker)
        if worker.is_interruptible:
            actions.append(Interrupt(worker.number, request.lease))
        return actions

    def _retire(self, worker: Worker, now: float) -> list[Action]:
        """Have a worker replaced between two requests; one that serves nobody yet, at once."""
        if worker.state in NOT_YET_READY:
            return self._stop(worker, now)
        worker.advance(WorkerEvent.RETIRE)
        self._file(worker)
        return self._free_the_rest(worker)

    def _roll_on(self, now: float) -> list[Action]:
        """Let those go whose turn has come in a restart of all."""
        if self._restart.is_exhausted(now):
            reason = f"the new workers cannot start: {self._restart.describe()}"
            self._roll.end(RestartLimitReached(f"{reason}; the last: {self._last_failure}"))
        actions: list[Action] = []
        while (worker := self._roll.next(self.workers)) is not None:
            actions += self._retire(worker, now)
        return actions

    def _stop_spent(self, now: float) -> list[Action]:
        """Ask those to exit that are to be replaced and hold nothing any more."""
        return [a for worker in list(self._spent.values()) for a in self._stop(worker, now)]

    def _stop(self, worker: Worker, now: float) -> list[Action]:
        """Ask a worker to exit; one that does not is killed."""
        worker.advance(WorkerEvent.STOP)
        worker.interrupt_by = now + STOP_S
        self._interrupting[worker.number] = worker
        self._file(worker)
        return [Stop(worker.number)]

    def _kill(self, worker: Worker) -> list[Action]:
        worker.interrupt_by = math.inf
        worker.advance(WorkerEvent.STOP)
        self._file(worker)
        return [*self._free_the_rest(worker), Kill(worker.number)]

    def _free_the_rest(self, worker: Worker) -> list[Action]:
        """What has not begun at a worker that is in trouble begins elsewhere."""
        return [Revoke(worker.number)] if worker.has_tail else []

    def _file(self, worker: Worker, *, is_full: bool = False) -> None:
        """Put the worker into the collections that its state says."""
        number = worker.number
        self._idle.pop(number, None)
        self._roomy.pop(number, None)
        self._tailed.pop(number, None)
        self._spent.pop(number, None)
        if worker.is_spent:
            if not worker.leases:
                self._spent[number] = worker
        elif worker.is_open:
            if not worker.leases:
                self._idle[number] = worker
            elif (
                len(worker.leases) <= self._depth
                and worker.inspected != worker.leases[0].lease
                and not is_full
            ):
                self._roomy[number] = worker
        if worker.has_tail:
            self._tailed[number] = worker
            self._inspect_at = min(self._inspect_at, self._silent_at(worker))

    def _forget(self, worker: Worker) -> None:
        del self.workers[worker.number]
        self._roll.forget(worker.number)
        self._interrupting.pop(worker.number, None)
        self._file(worker)

    def _failed(
        self, request: Request, error: SoloistError, began: float, now: float
    ) -> list[Action]:
        """A worker's attempt ended with an error: try again, or tell the caller."""
        self._limiter.heed(error, now)
        if request.state is RequestState.DRAINING:
            return [self._fail(request, drained(request, error))]
        if request.state is not RequestState.LEASED:  # its caller has been told
            return []
        if self._retries.postpone(request, error, began, now):
            return [Retried(request)]
        return [self._fail(request, error)]

    def _fail(self, request: Request, error: SoloistError) -> Settle:
        return self._settle(request, self._retries.ending(request, error))

    def _settle_part(self, part: Part, texts: tuple[str, ...], durations: bytes) -> SettlePart:
        self.outstanding -= part.count
        done = SettlePart(part.chunk, part.start, texts, durations, part.worker)
        part.drop(part.count)
        return done

    def _settle(self, request: Request, outcome: Outcome) -> Settle:
        self.outstanding -= 1
        self._queued -= request.state is RequestState.QUEUED
        request.advance(RequestEvent.SETTLE)
        return Settle(request, outcome)

    def _fail_queue(
        self, cls: type[SoloistError], message: str, cause: SoloistError | None = None
    ) -> list[Action]:
        """An error object of its own for everybody who waits: each caller may raise it."""
        waiting = [r for e in self._queue if e.state is RequestState.QUEUED for r in _each(e)]
        waiting += self._retries.waiting()
        self._queue.clear()
        actions: list[Action] = []
        for request in waiting:
            error = cls(message, started=False)
            error.__cause__ = cause
            if isinstance(error, RestartLimitReached):
                error.causes = self._restart.causes
            actions.append(self._fail(request, error))
        return actions

    def _head(self) -> Request:
        """What comes first in the queue, which is not empty."""
        queue = self._queue
        while queue[0].state is not RequestState.QUEUED:
            queue.popleft()
        return queue[0]

    def _pop_queue(self) -> Request:
        self._queued -= 1
        head = self._head()
        request = head.first() if isinstance(head, Part) else head
        if request is head or not head.count:
            self._queue.popleft()
        return request

    def _requeue(self, requests: list[Request]) -> None:
        """What was taken back from a worker had no attempt there."""
        waiting = [r for r in requests if r.state is RequestState.LEASED]  # else its caller went
        for request in waiting:
            request.advance(RequestEvent.REVOKE)
            request.attempts -= request.count == 1 and not isinstance(request, Part)
        self._enqueue(waiting)

    def _enqueue(self, waiting: list[Request]) -> None:
        """Put requests back where they came from in the queue."""
        if not waiting:
            return
        self._queued += sum(request.count for request in waiting)
        queue, last = self._queue, max(request.order for request in waiting)
        while queue and queue[0].order < last:  # few, however long the queue is
            waiting.append(queue.popleft())
        waiting.sort(key=lambda request: request.order)
        queue.extendleft(reversed(waiting))


def _each(request: Request) -> list[Request]:
    """The request, or all those that a part stands for."""
    return request.requests() if isinstance(request, Part) else [request]


def _taken_apart(leases: Iterable[Request], taken: Collection[int]) -> Iterator[Request]:
    """Parts as requests; what of them was taken back, as parts."""
    for entry in leases:
        if not isinstance(entry, Part):
            yield entry
            continue
        numbers = range(entry.lease, entry.lease + entry.count)
        for is_taken, group in itertools.groupby(numbers, taken.__contains__):
            count = sum(1 for _ in group)
            if not is_taken:
                yield from [entry.first() for _ in range(count)]
            elif count == entry.count:
                yield entry
            else:
                yield entry.split(count)


def _busy_since(worker: Worker) -> float:
    return worker.head_since


_new_answer = functools.partial(tuple.__new__, Answer)
_SERVING = frozenset({WorkerState.READY, WorkerState.RETIRING})
_WAITING = frozenset({RequestState.QUEUED, RequestState.DELAYED})
_CANCELLED = "the request was cancelled"
_TIMED_OUT = "the deadline passed while the request was running"
