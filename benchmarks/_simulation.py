"""The real pool and brokers under a simulated clock: messages and processors are events in a heap.

Decisions are made by :class:`soloist.supervisor.pool.Pool` and
:class:`soloist.supervisor.broker.Broker` themselves; what is simulated is what they cost and how
long clients take. Costs are of three kinds: what one request takes of a processor in the
supervising process, which does one thing at a time, and in its worker; and what passes between the
two beside that (waking up, the system's part). Processors serve whoever came first.
"""

from __future__ import annotations

import abc
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from soloist.protocol.messages import Answer, Run
from soloist.supervisor.broker import Broker
from soloist.supervisor.crew import Action, Dispatch, Revoke, Settle, Spawn
from soloist.supervisor.pool import Pool
from soloist.supervisor.rate import Limiter
from soloist.supervisor.request import Request
from soloist.supervisor.restart import RestartPolicy


class Costs(NamedTuple):
    """What a request costs, in seconds.

    Attributes:
        supervisor_s: of a processor, in the supervising process.
        worker_s: of a processor, in the worker.
        hop_s: of nobody's, on each way.
        start_s: from ordering a worker to its first request.
        processors: so many there are.
    """

    supervisor_s: float = 0.0
    worker_s: float = 0.0
    hop_s: float = 0.0
    start_s: float = 0.0
    processors: int = 2


class Simulation(abc.ABC):
    """One Supervisor, its processors and its workers; what decides there is a subclass's.

    Args:
        costs: of everything but the clients.
        service_s: what the client takes for the request of that index.

    Attributes:
        now: simulated seconds since its beginning.
        answered: when each request had its answer, in that order.
    """

    def __init__(self, costs: Costs, service_s: Callable[[int], float]) -> None:
        self.now = 0.0
        self.answered: list[float] = []
        self.costs = costs
        self._service_s = service_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = itertools.count()
        self._free = costs.processors
        self._is_supervising = False
        self._jobs: deque[_Job] = deque()
        self._workers: dict[int, _Worker] = {}
        self._unsent: Iterable[int] = ()

    def run(self, count: int, *, under_way: int) -> list[float]:
        """Have so many requests answered, a number of them under way; gives ``answered``."""
        self._unsent = iter(range(count))
        for place in range(under_way):
            self._send_next(place)
        while len(self.answered) < count:
            self._step()
        return self.answered

    # -- what decides --------------------------------------------------------------------------

    @abc.abstractmethod
    def _submit(self, request: Request, place: int) -> None:
        """Take a request in; ``place`` tells those under way apart."""

    @abc.abstractmethod
    def _ready(self, number: int) -> None:
        """A worker has started."""

    @abc.abstractmethod
    def _answered(self, number: int, answer: Answer) -> None:
        """A worker's answer has come."""

    @abc.abstractmethod
    def _next_deadline(self) -> float:
        """When ``_decide`` is due if nothing happens."""

    @abc.abstractmethod
    def _decide(self) -> None:
        """Do what is due."""

    # -- time and processors -------------------------------------------------------------------

    def _step(self) -> None:
        deadline = self._next_deadline()
        if self._events and self._events[0][0] <= deadline:
            self.now, _, act = heapq.heappop(self._events)
            act()
        else:
            self.now = max(self.now, deadline)
            self._decide()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something happen later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._ties), act))

    def work(self, seconds: float, then: Callable[[], None], *, supervises: bool = False) -> None:
        """Take a processor for so long, when there is one; supervising goes one by one."""
        self._jobs.append(_Job(seconds, then, supervises))
        self._begin_jobs()

    def _begin_jobs(self) -> None:
        waiting: deque[_Job] = deque()
        while self._jobs and self._free:
            job = self._jobs.popleft()
            if job.supervises and self._is_supervising:
                waiting.append(job)
                continue
            self._free -= 1
            self._is_supervising |= job.supervises
            self.after(job.seconds, partial(self._end_job, job))
        self._jobs.extendleft(reversed(waiting))

    def _end_job(self, job: _Job) -> None:
        self._free += 1
        if job.supervises:
            self._is_supervising = False
        job.then()
        self._begin_jobs()

    # -- the supervising process ---------------------------------------------------------------

    def _send_next(self, place: int) -> None:
        index = next(iter(self._unsent), None)
        if index is not None:
            request = Request("", b"t", index=index)
            request.sink = place
            self._supervise(lambda: self._submit(request, place))

    def _supervise(self, then: Callable[[], None]) -> None:
        """Half of what a request costs there: as it comes, or as its answer does."""
        self.work(self.costs.supervisor_s / 2, then, supervises=True)

    def _execute(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Settle(request, outcome):
                    request.outcome = outcome
                    self.answered.append(self.now)
                    self._send_next(request.sink)
                case Dispatch(number, run):
                    assert isinstance(run, Run), "chunks are not simulated"
                    leases = [lease.number for lease in run.leases]
                    given = [
                        (lease, self._service_s(self._index(number, lease))) for lease in leases
                    ]
                    arrive = partial(self._workers[number].take, given)
                    self.after(self.costs.hop_s, arrive)
                    self._workers[number].grant(leases)
                case Revoke(number):
                    self._revoked(number, self._workers[number].give_back())
                case Spawn(number):
                    self._workers[number] = _Worker(self, number)
                    self.after(self.costs.start_s, partial(self._ready, number))
                case _:  # nothing is late or lost here, and no answer is held back
                    pass

    @abc.abstractmethod
    def _index(self, number: int, lease: int) -> int:
        """Of the request that a worker holds under that lease."""

    def _revoked(self, number: int, leases: list[int]) -> None:
        """A worker gave these back; who takes none back never hears it."""
        raise NotImplementedError

    def hear(self, number: int, lease: int, duration_s: float) -> None:
        """A worker has an answer."""
        answer = Answer(lease, duration_s, "", 1, b"")
        heard = partial(self._answered, number, answer)
        self.after(self.costs.hop_s, partial(self._supervise, heard))


class PoolSimulation(Simulation):
    """A pool of so many workers."""

    def __init__(self, size: int, costs: Costs, service_s: Callable[[int], float]) -> None:
        super().__init__(costs, service_s)
        self._pool = Pool(size=size, restart=_restart(), interrupt_grace_s=1.0)

    def _submit(self, request: Request, place: int) -> None:
        del place  # any worker will do
        self._execute(self._pool.submit(request))
        self._decide()

    def _ready(self, number: int) -> None:
        self._pool.loaded(number, 1, is_interruptible=True)
        self._execute(self._pool.ready(number))
        self._decide()

    def _answered(self, number: int, answer: Answer) -> None:
        self._execute(self._pool.answered(number, [answer], self.now))
        self._decide()

    def _next_deadline(self) -> float:
        return self._pool.next_deadline()

    def _decide(self) -> None:
        for decide in (self._pool.expire, self._pool.assign):
            while actions := decide(self.now):
                self._execute(actions)
                if not any(isinstance(action, Revoke) for action in actions):
                    break

    def _index(self, number: int, lease: int) -> int:
        return next(r.index for r in self._pool.workers[number].leases if r.lease == lease)

    def _revoked(self, number: int, leases: list[int]) -> None:
        self._pool.revoked(number, leases)


class SessionsSimulation(Simulation):
    """So many shared sessions; who asks is always with the same one."""

    def __init__(self, sessions: int, costs: Costs, service_s: Callable[[int], float]) -> None:
        super().__init__(costs, service_s)
        limiter = Limiter()
        self._brokers = [
            Broker(
                str(number),
                number,
                max_queue=10_000,
                max_queue_bytes=1 << 30,
                restart=_restart(),
                interrupt_grace_s=1.0,
                idle_timeout_s=None,
                limiter=limiter,
            )
            for number in range(sessions)
        ]
        self._decide()

    def _submit(self, request: Request, place: int) -> None:
        broker = self._brokers[place % len(self._brokers)]
        self._go_on(broker, broker.submit(request))

    def _ready(self, number: int) -> None:
        broker = self._brokers[number]
        broker.loaded(number, 1, is_interruptible=True)
        self._go_on(broker, broker.ready(number))

    def _answered(self, number: int, answer: Answer) -> None:
        broker = self._brokers[number]
        self._go_on(broker, broker.answered(number, [answer], self.now))

    def _next_deadline(self) -> float:
        return math.inf  # without limits of time or rate, something always happens

    def _decide(self) -> None:
        for broker in self._brokers:
            self._go_on(broker, ())

    def _go_on(self, broker: Broker, actions: Iterable[Action]) -> None:
        """What follows an event: the next turn begins before an answer brings a question."""
        self._execute([*actions, *broker.decide(self.now)])

    def _index(self, number: int, lease: int) -> int:
        (request,) = self._brokers[number].workers[number].leases
        assert request.lease == lease
        return request.index


def _restart() -> RestartPolicy:
    return RestartPolicy(max_restarts=3, period_s=30.0)


class _Job(NamedTuple):
    """What waits for a processor."""

    seconds: float
    then: Callable[[], None]
    supervises: bool


class _Worker:
    """Runs its leases in order, as far as they are not taken back."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        self._simulation = simulation
        self._number = number
        self._granted: set[int] = set()
        self._arrived: deque[tuple[int, float]] = deque()
        self._is_busy = False

    def grant(self, leases: list[int]) -> None:
        """These may run when they come."""
        self._granted.update(leases)

    def give_back(self) -> list[int]:
        """What has not begun is taken back."""
        taken, self._granted = sorted(self._granted), set()
        return taken

    def take(self, leases: list[tuple[int, float]]) -> None:
        """They have come."""
        self._arrived.extend(leases)
        self._go_on()

    def _go_on(self) -> None:
        while self._arrived and not self._is_busy:
            lease, service_s = self._arrived.popleft()
            if lease in self._granted:
                self._granted.discard(lease)
                self._is_busy = True
                self._begin(lease, service_s)

    def _begin(self, lease: int, service_s: float) -> None:
        simulation, began_at = self._simulation, self._simulation.now

        def end() -> None:
            simulation.hear(self._number, lease, simulation.now - began_at)
            self._is_busy = False
            self._go_on()

        simulation.work(simulation.costs.worker_s, lambda: simulation.after(service_s, end))


def throughput(size: int, costs: Costs, service_s: float, *, rounds: int, under_way: int) -> float:
    """Requests a second of a pool in a closed loop, without its beginning and its end."""
    simulation = PoolSimulation(size, costs, lambda _: service_s)
    return _throughput(simulation, size, rounds=rounds, under_way=under_way)


def sessions_throughput(
    sessions: int, costs: Costs, service_s: float, *, rounds: int, callers: int
) -> float:
    """The same of shared sessions, each with so many callers."""
    simulation = SessionsSimulation(sessions, costs, lambda _: service_s)
    return _throughput(simulation, sessions, rounds=rounds, under_way=sessions * callers)


def _throughput(simulation: Simulation, size: int, *, rounds: int, under_way: int) -> float:
    """Where clients take all the time, ``size`` answers come together.

    What is counted begins and ends with the last of such.
    """
    counted = max(rounds, -(-50 // size)) * size
    edge = -(-under_way // size) * size
    ends = simulation.run(counted + 2 * edge, under_way=under_way)
    return counted / (ends[edge + counted - 1] - ends[edge - 1])


def makespan(size: int, costs: Costs, seconds: list[float], *, under_way: int) -> float:
    """When the last of these has its answer; each takes as long as it says."""
    simulation = PoolSimulation(size, costs, seconds.__getitem__)
    return simulation.run(len(seconds), under_way=under_way)[-1]
