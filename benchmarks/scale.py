"""How far one Supervisor reaches, by the real pool under a simulated clock, and by measurement.

What a request costs in the supervising process and in its worker is measured as processor time,
of a loop with 32 requests of a millisecond under way; what passes beside that, of a loop with one.
With these costs the simulation (``_simulation``) tells the throughput of other settings, some of
which are measured, too: the ratio of the two says how far to believe it. Then it goes where this
machine cannot: 1,000 workers, whose clients wait elsewhere for an answer, as agents do; and 1,000
machines, each with a Supervisor and an equal part of one map, where the slowest part decides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import psutil

from benchmarks._loop import closed_loop
from benchmarks._simulation import Costs, makespan, throughput
from benchmarks._suite import Effort, Figure, Outcome, Ratio
from soloist import Supervisor

MEASURED = ((1, 10), (4, 10), (16, 10), (64, 10), (64, 50))
"""Workers and milliseconds that are measured and simulated."""
QUICK = ((4, 10),)
AGENTS_S = (1.0, 10.0, 60.0)
"""What the turns of agents take, about."""
WORKERS = 1_000
MACHINES = 1_000
SEED = 1


def run(effort: Effort) -> Outcome:
    """Measure the costs, then simulate."""
    costs = _costs(effort)
    figures = [
        Figure(name, "us", [1e6 * value], {"what": "a request costs"})
        for name, value in (
            ("supervisor", costs.supervisor_s),
            ("worker", costs.worker_s),
            ("on the way", 2 * costs.hop_s),
        )
    ]
    ratios = []
    for workers, service_ms in effort.of(MEASURED, QUICK):
        setting: dict[str, float | str] = {"N": workers, "service ms": service_ms}
        seconds = effort.of(3.0, 0.3)
        measured = _throughput(workers, service_ms, 2 * workers, seconds)
        simulated = throughput(workers, costs, service_ms / 1000, rounds=20, under_way=2 * workers)
        figures.append(Figure("measured", "/s", [measured], setting))
        figures.append(Figure("simulated", "/s", [simulated], setting))
        ratios.append(Ratio("simulated / measured", "", [simulated / measured], setting))
    many = effort.of(WORKERS, 50)
    for service_s in AGENTS_S:
        setting = {"N": many, "service s": service_s}
        reached = throughput(many, costs, service_s, rounds=5, under_way=2 * many)
        figures.append(Figure("one machine", "/s", [reached], setting))
        ratios.append(Ratio("one machine / ideal", "", [reached * service_s / many], setting))
    ratios.append(_machines(effort, costs, many))
    limit = Figure("at most", "/s", [1 / costs.supervisor_s], {"what": "one Supervisor"})
    return Outcome([*figures, limit], ratios)


def _costs(effort: Effort) -> Costs:
    """What one request costs here."""
    seconds = effort.of(4.0, 0.5)
    size, service_ms = 32, 1
    processors = psutil.cpu_count() or 1
    with Supervisor(size, options={"delay_s": service_ms / 1000}) as supervisor:
        closed_loop(supervisor.submit, size, 0.5)
        own, workers = psutil.Process(), psutil.Process().children(recursive=True)
        before = _processor_s([own]), _processor_s(workers)
        count = len(closed_loop(supervisor.submit, size, seconds).latencies_s)
        supervisor_s = (_processor_s([own]) - before[0]) / count
        worker_s = (_processor_s(workers) - before[1]) / count
    one = _throughput(1, service_ms, 1, seconds)
    hop_s = max(0.0, (1 / one - service_ms / 1000 - supervisor_s - worker_s) / 2)
    return Costs(supervisor_s, worker_s, hop_s, processors=processors)


def _processor_s(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _throughput(workers: int, service_ms: float, under_way: int, seconds: float) -> float:
    """Requests a second."""
    options = {"delay_s": service_ms / 1000}
    with Supervisor(workers, options=options, window=max(64, under_way)) as supervisor:
        closed_loop(supervisor.submit, under_way, 0.3)
        return closed_loop(supervisor.submit, under_way, seconds).throughput


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
