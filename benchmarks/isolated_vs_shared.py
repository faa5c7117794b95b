"""Throughput and latency of N isolated workers against one serialized shared session.

The client is ``echo`` with a service time. *Isolated*: a Supervisor of N workers. *Shared*: one
session with N callers; it serves one at a time, whatever N is. Throughput: as many requests as are
answered in the time given, of ``imap_unordered`` with a window of 2 N (isolated), and of N requests
under way (shared). Latency: the median time from a request to its answer with N under way, so that
nobody waits for a worker but those who share one.

The ideal is N / service time for isolated workers and 1 / service time for a session; with no
service time there is none. All workers have answered before the time begins, and every answer is
checked. Settings take turns within a round.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from benchmarks._floors import PROMPT
from benchmarks._loop import check_text, closed_loop
from benchmarks._suite import Effort, Figure, Outcome, Ratio
from soloist import Supervisor

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128)
POINTS: dict[int, tuple[int, ...]] = {
    0: WORKERS,
    1: WORKERS,
    10: WORKERS,
    50: WORKERS,
    100: WORKERS,
    1000: (1, 16, 64),
}
"""Milliseconds of service time, and for how many workers."""
QUICK: dict[int, tuple[int, ...]] = {0: (1, 4), 10: (1, 4)}
CALLERS = frozenset({1, 8, 16, 64})
"""So many share a session: more change nothing."""
_PROMISED_MS = 50
_LEAST_TURNS = 6
"""So many service times each measurement lasts, at least."""


class Point(NamedTuple):
    """What one setting gave in one round: requests a second, seconds of latency."""

    throughput: float
    latency_s: float


def run(effort: Effort) -> Outcome:
    """Measure all points."""
    points = effort.of(POINTS, QUICK)
    isolated: dict[tuple[int, int], list[Point]] = {}
    shared: dict[tuple[int, int], list[Point]] = {}
    for _ in range(effort.of(3, 1)):
        for service_ms, sizes in points.items():
            seconds = max(effort.of(0.8, 0.1), _LEAST_TURNS * service_ms / 1000)
            for workers in sizes:
                setting = (service_ms, workers)
                isolated.setdefault(setting, []).append(_isolated(*setting, seconds))
                if workers in CALLERS or effort.is_quick:
                    shared.setdefault(setting, []).append(_shared(*setting, seconds))
    figures = [*_figures("isolated", isolated), *_figures("shared", shared)]
    return Outcome(figures, _ratios(isolated, shared))


def _isolated(service_ms: int, workers: int, seconds: float) -> Point:
    options = {"delay_s": service_ms / 1000}
    with Supervisor(workers, options=options, window=2 * workers) as supervisor:
        list(supervisor.map([PROMPT] * (4 * workers)))
        until = time.perf_counter() + seconds

        def prompts() -> Iterator[str]:
            for i in count():
                if time.perf_counter() >= until and i >= 2 * workers:
                    return
                yield PROMPT

        answered = 0
        started = time.perf_counter()
        for result in supervisor.imap_unordered(prompts()):
            check_text(result)
            answered += 1
        throughput = answered / (time.perf_counter() - started)
        loop = closed_loop(supervisor.submit, workers, seconds)
    return Point(throughput, loop.latency_s)


def _shared(service_ms: int, callers: int, seconds: float) -> Point:
    with Supervisor(1, options={"delay_s": service_ms / 1000}) as supervisor:
        session = supervisor.shared("only")
        check_text(session.query(PROMPT).result())
        # Who waits for N others needs time for N turns.
        loop = closed_loop(session.query, callers, seconds)
    return Point(loop.throughput, loop.latency_s)


def _figures(name: str, points: dict[tuple[int, int], list[Point]]) -> Iterator[Figure]:
    for (service_ms, n), found in points.items():
        setting = {"service ms": service_ms, "N": n}
        yield Figure(name, "/s", [point.throughput for point in found], setting)
        milliseconds = [1000 * point.latency_s for point in found]
        yield Figure(f"{name}, latency", "ms", milliseconds, setting)


def _ratios(
    isolated: dict[tuple[int, int], list[Point]], shared: dict[tuple[int, int], list[Point]]
) -> Sequence[Ratio]:
    """How near each comes to the ideal, and how they compare."""
    found = []
    for (service_ms, n), points in isolated.items():
        setting = {"service ms": service_ms, "N": n}
        if service_ms:
            is_promised = service_ms == _PROMISED_MS and n <= 64  # noqa: PLR2004
            values = [point.throughput * service_ms / 1000 / n for point in points]
            bound = 0.97 if is_promised else None
            found.append(Ratio("isolated / ideal", "", values, setting, at_least=bound))
    for (service_ms, n), points in shared.items():
        setting = {"service ms": service_ms, "N": n}
        if service_ms:
            bound = 0.97 if service_ms == _PROMISED_MS else None
            values = [point.throughput * service_ms / 1000 for point in points]
            found.append(Ratio("shared / ideal", "", values, setting, at_least=bound))
        pairs = zip(isolated[service_ms, n], points, strict=True)
        values = [apart.throughput / together.throughput for apart, together in pairs]
        bounds = (None, None) if service_ms != _PROMISED_MS else (0.95 * n, 1.05 * n)
        found.append(
            Ratio("isolated / shared", "", values, setting, at_least=bounds[0], at_most=bounds[1])
        )
    return found
