"""How far one Supervisor reaches: its real decisions under a simulated clock, and measurements.

What a request costs in the supervising process and in its worker is measured as processor time,
of a loop with 32 requests of a millisecond under way, to a pool and to shared sessions; what passes
beside that, of a loop with one. With these costs the simulation (``_simulation``), which runs the
real pool and the real brokers, tells the throughput of other settings, some of which are measured,
too: the ratio of the two says how far to believe it. Then it goes where this machine cannot: 1,000
workers or shared sessions, whose clients wait elsewhere for an answer, as agents do; and 1,000
machines, each with a Supervisor and an equal part of one map, where the slowest part decides.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import psutil

from benchmarks._loop import closed_loop
from benchmarks._simulation import Costs, makespan, sessions_throughput, throughput
from benchmarks._suite import Effort, Figure, Outcome, Ratio
from soloist import Supervisor

MEASURED = ((1, 10), (4, 10), (16, 10), (64, 10), (64, 50))
"""Workers, or sessions, and milliseconds that are measured and simulated."""
QUICK = ((4, 10),)
AGENTS_S = (1.0, 10.0, 60.0)
"""What the turns of agents take, about."""
MANY = 1_000
MACHINES = 1_000
CALLERS = 2
"""For each worker and each session: one is served, one waits."""
SEED = 1


@contextlib.contextmanager
def _pool(size: int, service_ms: int, under_way: int) -> Iterator[Callable[[str], Future[Any]]]:
    options = {"delay_s": service_ms / 1000}
    with Supervisor(size, options=options, window=max(64, under_way)) as supervisor:
        yield supervisor.submit


@contextlib.contextmanager
def _sessions(
    count: int, service_ms: int, under_way: int
) -> Iterator[Callable[[str], Future[Any]]]:
    """Sessions in turn; answers come in the same order, so that each has as many callers."""
    del under_way
    options = {"delay_s": service_ms / 1000}
    with Supervisor(1, options=options, max_sessions=count) as supervisor:
        turns = itertools.cycle([supervisor.shared(str(number)) for number in range(count)])
        yield lambda prompt: next(turns).query(prompt)


class Kind(NamedTuple):
    """A pool, or shared sessions: how to open them, and how they are simulated."""

    opened: Callable[
        [int, int, int], contextlib.AbstractContextManager[Callable[[str], Future[Any]]]
    ]
    simulated: Callable[[int, Costs, float, int], float]


KINDS = {
    "workers": Kind(
        _pool,
        lambda n, costs, service_s, rounds: throughput(
            n, costs, service_s, rounds=rounds, under_way=CALLERS * n
        ),
    ),
    "shared sessions": Kind(
        _sessions,
        lambda n, costs, service_s, rounds: sessions_throughput(
            n, costs, service_s, rounds=rounds, callers=CALLERS
        ),
    ),
}


def run(effort: Effort) -> Outcome:
    """Measure the costs, then simulate."""
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    for what, kind in KINDS.items():
        costs = _costs(effort, kind)
        figures += _shown(what, costs)
        for n, service_ms in effort.of(MEASURED, QUICK):
            setting: dict[str, float | str] = {"what": what, "N": n, "service ms": service_ms}
            measured = _throughput(kind, n, service_ms, CALLERS * n, effort.of(3.0, 0.3))
            simulated = kind.simulated(n, costs, service_ms / 1000, 20)
            figures.append(Figure("measured", "/s", [measured], setting))
            figures.append(Figure("simulated", "/s", [simulated], setting))
            ratios.append(Ratio("simulated / measured", "", [simulated / measured], setting))
        many = effort.of(MANY, 50)
        for service_s in AGENTS_S:
            setting = {"what": what, "N": many, "service s": service_s}
            reached = kind.simulated(many, costs, service_s, 5)
            figures.append(Figure("one machine", "/s", [reached], setting))
            ratios.append(Ratio("one machine / ideal", "", [reached * service_s / many], setting))
        if what == "workers":
            ratios.append(_machines(effort, costs, many))
    return Outcome(figures, ratios)


def _shown(what: str, costs: Costs) -> Iterator[Figure]:
    """What one request costs, and what that comes to."""
    setting: dict[str, float | str] = {"what": what}
    yield Figure("supervisor, of a request", "us", [1e6 * costs.supervisor_s], setting)
    yield Figure("worker, of a request", "us", [1e6 * costs.worker_s], setting)
    yield Figure("on the way, of a request", "us", [2e6 * costs.hop_s], setting)
    yield Figure("one Supervisor at most", "/s", [1 / costs.supervisor_s], setting)


def _costs(effort: Effort, kind: Kind) -> Costs:
    """What one request costs here."""
    seconds = effort.of(4.0, 0.5)
    size, service_ms = 32, 1
    processors = psutil.cpu_count() or 1
    with kind.opened(size, service_ms, size) as submit:
        closed_loop(submit, size, 0.5)
        own, workers = psutil.Process(), psutil.Process().children(recursive=True)
        before = _processor_s([own]), _processor_s(workers)
        count = len(closed_loop(submit, size, seconds).latencies_s)
        supervisor_s = (_processor_s([own]) - before[0]) / count
        worker_s = (_processor_s(workers) - before[1]) / count
    one = _throughput(kind, 1, service_ms, 1, seconds)
    hop_s = max(0.0, (1 / one - service_ms / 1000 - supervisor_s - worker_s) / 2)
    return Costs(supervisor_s, worker_s, hop_s, processors=processors)


def _processor_s(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _throughput(kind: Kind, n: int, service_ms: int, under_way: int, seconds: float) -> float:
    """Requests a second."""
    with kind.opened(n, service_ms, under_way) as submit:
        closed_loop(submit, under_way, 0.3)
        return closed_loop(submit, under_way, seconds).throughput


def _machines(effort: Effort, costs: Costs, workers: int) -> Ratio:
    """How near many machines come to the ideal of one map, ten prompts for each worker.

    Turns take a time with a long tail (log-normal, median 10 s). A sample of machines is simulated;
    of them all, as many are drawn as there are machines, and the slowest ends the map.
    """
    chance = random.Random(SEED)
    parts = []
    for _ in range(effort.of(20, 3)):
        seconds = [10 * chance.lognormvariate(0.0, 0.5) for _ in range(10 * workers)]
        ideal_s = sum(seconds) / workers
        parts.append(makespan(workers, costs, seconds, under_way=2 * workers) / ideal_s)
    slowest = max(chance.choices(parts, k=MACHINES))
    setting = {"machines": MACHINES, "N": workers}
    return Ratio("time of the slowest part / ideal", "", [slowest], setting)
