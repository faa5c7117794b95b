"""Keeps an eye on workers: who makes no progress, and who grows.

Owns the monitor of one Supervisor and carries out what :mod:`soloist.supervisor.health` and
``recycle.MemoryWatch`` decide. On the I/O thread.

Invariant: when nobody has anything to do, nothing here costs anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from soloist.supervisor.crew import Look, Ping, Wedged, Worker
from soloist.supervisor.health import Finding, Health
from soloist.supervisor.monitor import Job, Monitor, Sighting
from soloist.supervisor.process import HELPER_STOP_S, WorkerProcess
from soloist.supervisor.recycle import MemoryWatch


class Watch:
    """Looks after the workers that have something to do.

    Args:
        wedge_after_s: see ``Supervisor``.
        expected: gives those workers.
        processes: every worker's process, by number.
        ping: asks a worker's event loop for a sign of life.
        wedged: ends a worker that makes no progress.
        measured: takes the memory of a worker's process tree in bytes; ``None`` if nobody asks.
        post: has something done on the I/O thread.
    """

    def __init__(
        self,
        wedge_after_s: float | None,
        *,
        expected: Callable[[], Iterable[Worker]],
        processes: Mapping[int, WorkerProcess],
        ping: Callable[[int], None],
        wedged: Callable[[Wedged], None],
        measured: Callable[[int, int], None] | None,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._health = Health(wedge_after_s)
        self._monitor = Monitor(lambda sightings: post(lambda: self._seen(sightings)))
        self._expected = expected
        self._processes = processes
        self._ping = ping
        self._wedged = wedged
        self._measured = measured
        self._memory = MemoryWatch(is_on=measured is not None)
        self._is_closed = False

    def expect(self) -> None:
        """Somebody has got something to do."""
        if self._health.next_round == math.inf:  # asked with each dispatch: the clock costs more
            self._health.expect(time.monotonic())

    def answered(self, number: int, incarnation: int) -> None:
        """A worker has ended a request: it may have grown."""
        self._memory.answered(number, incarnation)

    def next_round(self) -> float:
        """When ``go_round`` wants to be called; may be never."""
        return min(self._health.next_round, self._memory.next_at())

    def go_round(self, now: float) -> None:
        """See to the workers, if it is time; after whatever they said has been taken in."""
        if now >= self._health.next_round:
            self._carry_out(self._health.check(now, self._expected()))
        if now >= self._memory.next_at():
            self._measure(self._memory.due(now))

    def stop_measuring(self) -> None:
        """Nobody is replaced any more."""
        self._memory.stop()

    def close(self) -> None:
        """Look no more; what has been seen by then is of no use to anybody."""
        self._is_closed = True
        self._monitor.close(HELPER_STOP_S)

    def _carry_out(self, findings: Iterable[Finding]) -> None:
        jobs: list[Job] = []
        for finding in findings:
            match finding:
                case Ping(number):
                    self._ping(number)
                case Look(number, incarnation):
                    if (process := self._processes.get(number)) is not None:
                        jobs.append(Job(number, incarnation, process.pid))
                    else:  # it is being forked
                        self._health.seen(number, incarnation, math.inf, is_stopped=False)
                case Wedged():
                    self._wedged(finding)
        if jobs:
            self._monitor.look(jobs)

    def _measure(self, workers: Iterable[tuple[int, int]]) -> None:
        jobs = []
        for number, incarnation in workers:
            process = self._process(number, incarnation)
            if process is not None:
                jobs.append(Job(number, incarnation, process.pid, wants_memory=True))
        if jobs:
            self._monitor.look(jobs)

    def _process(self, number: int, incarnation: int) -> WorkerProcess | None:
        process = self._processes.get(number)
        return process if process is not None and process.incarnation == incarnation else None

    def _seen(self, sightings: Sequence[Sighting]) -> None:
        now = time.monotonic()
        if self._is_closed:
            return
        for sighting in sightings:
            number, incarnation = sighting.number, sighting.incarnation
            is_stopped = sighting.is_stopped
            self._carry_out(self._health.seen(number, incarnation, now, is_stopped=is_stopped))
            size = sighting.tree_rss_bytes
            if self._measured and size is not None and self._process(number, incarnation):
                self._measured(number, size)
