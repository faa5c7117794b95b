"""The real pool under a simulated clock: workers, messages and processors are events in a heap.

Decisions are made by :class:`soloist.supervisor.pool.Pool` itself; what is simulated is what they
cost and how long clients take. Costs are of three kinds: what one request takes of a processor in
the supervising process, which does one thing at a time, and in its worker; and what passes between
the two beside that (waking up, the system's part). Processors serve whoever came first.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from soloist.protocol.messages import Answer
from soloist.supervisor.crew import Action, Dispatch, Revoke, Settle, Spawn
from soloist.supervisor.pool import Pool
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


class Simulation:
    """One Supervisor with so many workers.

    Args:
        size: of its pool.
        costs: of everything but the clients.
        service_s: what the client takes for the request of that index.

    Attributes:
        now: simulated seconds since its beginning.
        answered: when each request had its answer, in that order.
    """

    def __init__(self, size: int, costs: Costs, service_s: Callable[[int], float]) -> None:
        self.now = 0.0
        self.answered: list[float] = []
        self._costs = costs
        self._service_s = service_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = itertools.count()
        self._free = costs.processors
        self._is_supervising = False
        self._jobs: deque[tuple[bool, float, Callable[[], None]]] = deque()
        self._workers: dict[int, _Worker] = {}
        self._unsent: Iterable[int] = ()
        restart = RestartPolicy(max_restarts=3, period_s=30.0)
        self._pool = Pool(size=size, restart=restart, interrupt_grace_s=1.0)

    def run(self, count: int, *, under_way: int) -> list[float]:
        """Have so many requests answered, a number of them under way; gives ``answered``."""
        self._unsent = iter(range(count))
        for _ in range(under_way):
            self._send_next()
        while len(self.answered) < count:
            self._step()
        return self.answered

    # -- time and processors -------------------------------------------------------------------

    def _step(self) -> None:
        deadline = self._pool.next_deadline()
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
        self._jobs.append((supervises, seconds, then))
        self._begin_jobs()

    def _begin_jobs(self) -> None:
        waiting: deque[tuple[bool, float, Callable[[], None]]] = deque()
        while self._jobs and self._free:
            supervises, seconds, then = job = self._jobs.popleft()
            if supervises and self._is_supervising:
                waiting.append(job)
                continue
            self._free -= 1
            self._is_supervising |= supervises
            self.after(seconds, partial(self._end_job, supervises, then))
        self._jobs.extendleft(reversed(waiting))

    def _end_job(self, supervises: bool, then: Callable[[], None]) -> None:  # noqa: FBT001
        self._free += 1
        if supervises:
            self._is_supervising = False
        then()
        self._begin_jobs()

    # -- the supervisor ------------------------------------------------------------------------

    def _send_next(self) -> None:
        index = next(iter(self._unsent), None)
        if index is not None:
            request = Request("", b"t", index=index)
            self._supervise(lambda: self._execute(self._pool.submit(request)))

    def _supervise(self, then: Callable[[], None]) -> None:
        """Half of what a request costs there: as it comes, or as its answer does."""

        def decided() -> None:
            then()
            self._decide()

        self.work(self._costs.supervisor_s / 2, decided, supervises=True)

    def _decide(self) -> None:
        for decide in (self._pool.expire, self._pool.assign):
            while actions := decide(self.now):
                self._execute(actions)
                if not any(isinstance(action, Revoke) for action in actions):
                    break

    def _execute(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Settle(request, outcome):
                    request.outcome = outcome
                    self.answered.append(self.now)
                    self._send_next()
                case Dispatch(number, run):
                    leases = [lease.number for lease in run.leases]
                    held = {r.lease: r.index for r in self._pool.workers[number].leases}
                    given = [(lease, self._service_s(held[lease])) for lease in leases]
                    arrive = partial(self._workers[number].take, given)
                    self.after(self._costs.hop_s, arrive)
                    self._workers[number].grant(leases)
                case Revoke(number):
                    self._pool.revoked(number, self._workers[number].give_back())
                case Spawn(number):
                    self._workers[number] = _Worker(self, number)
                    self.after(self._costs.start_s, partial(self._ready, number))
                case _:  # nothing is late or lost here, and no answer is held back
                    pass

    def _ready(self, number: int) -> None:
        self._pool.loaded(number, 1, is_interruptible=True)
        self._execute(self._pool.ready(number))
        self._decide()

    def hear(self, number: int, lease: int, duration_s: float) -> None:
        """A worker has an answer."""
        answer = Answer(lease, duration_s, "", 1, b"")
        self.after(
            self._costs.hop_s,
            lambda: self._supervise(
                lambda: self._execute(self._pool.answered(number, [answer], self.now))
            ),
        )

    @property
    def worker_s(self) -> float:
        """What a request costs its worker."""
        return self._costs.worker_s


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

        simulation.work(simulation.worker_s, lambda: simulation.after(service_s, end))


def throughput(size: int, costs: Costs, service_s: float, *, rounds: int, under_way: int) -> float:
    """Requests a second of a closed loop, without its beginning and its end.

    Where clients take all the time, ``size`` answers come together: what is counted begins and ends
    with the last of such.
    """
    counted = max(rounds, -(-50 // size)) * size
    edge = -(-under_way // size) * size
    ends = Simulation(size, costs, lambda _: service_s).run(counted + 2 * edge, under_way=under_way)
    return counted / (ends[edge + counted - 1] - ends[edge - 1])


def makespan(size: int, costs: Costs, seconds: list[float], *, under_way: int) -> float:
    """When the last of these has its answer; each takes as long as it says."""
    return Simulation(size, costs, seconds.__getitem__).run(len(seconds), under_way=under_way)[-1]
