"""Isolated workers against one serialized shared session, whatever the client is.

Each setting is a Supervisor of its own, open as long as it is measured; settings take turns within
a round. What a setting weighs is what the processes that its Supervisor started hold of their own
(USS): helper, workers, and what their clients start; a session that is shared is not charged with
the pool's worker beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import psutil

from benchmarks._loop import check_text, closed_loop
from benchmarks._machine import own_mib
from benchmarks._suite import Figure, Outcome, Ratio
from soloist import Supervisor

SESSION = "shared"
_LEAST_EACH = 4
"""Prompts for each worker, at least."""
_LATENCY = "{}, latency"


class Client(NamedTuple):
    """What is asked.

    Attributes:
        prompt: what to ask so that it takes so many milliseconds and says ``_floors.PROMPT``.
        options: what a Supervisor of it needs, beside its size, for so many milliseconds.
    """

    prompt: Callable[[int], str]
    options: Callable[[int], Mapping[str, Any]]


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        isolated: contestants, by name, and the options in which they differ.
        workers: how many, by milliseconds of service time.
        callers: so many share a session, by milliseconds of service time.
        seconds: that each measurement lasts, at least.
        turns: service times that each measurement lasts, at least.
        rounds: of all settings.
    """

    isolated: Mapping[str, Mapping[str, Any]]
    workers: Mapping[int, Sequence[int]]
    callers: Mapping[int, Sequence[int]]
    seconds: float
    turns: int
    rounds: int


class Point(NamedTuple):
    """What one setting gave in one round: requests a second, seconds of latency, MiB."""

    throughput: float
    latency_s: float
    mib: float


Points = dict[tuple[str, int, int], list[Point]]
"""By contestant, milliseconds of service time and N."""


def measure(client: Client, plan: Plan) -> Points:
    """Measure all settings, round by round."""
    points: Points = {}
    for _ in range(plan.rounds):
        for service_ms, sizes in plan.workers.items():
            seconds = max(plan.seconds, plan.turns * service_ms / 1000)
            prompt, options = client.prompt(service_ms), client.options(service_ms)
            for n in sizes:
                for name, own in plan.isolated.items():
                    point = _isolated(prompt, {**options, **own}, n, seconds)
                    points.setdefault((name, service_ms, n), []).append(point)
            for n in plan.callers[service_ms]:
                point = _shared(prompt, options, n, seconds)
                points.setdefault((SESSION, service_ms, n), []).append(point)
    return points


def _isolated(prompt: str, options: Mapping[str, Any], workers: int, seconds: float) -> Point:
    with Supervisor(workers, window=2 * workers, **options) as supervisor:
        list(supervisor.map([prompt] * (2 * workers)))
        until = time.perf_counter() + seconds

        def prompts() -> Iterator[str]:
            for i in count():
                if time.perf_counter() >= until and i >= _LEAST_EACH * workers:
                    return
                yield prompt

        times: list[float] = []
        for result in supervisor.imap_unordered(prompts()):
            check_text(result)
            times.append(time.perf_counter())
        throughput = _steady(times, workers)
        loop = closed_loop(supervisor.submit, workers, seconds, prompt=prompt)
        return Point(throughput, loop.latency_s, _started_mib(but=()))


def _steady(times: Sequence[float], workers: int) -> float:
    """Answers a second without the first and the last of each worker, when not all are busy.

    They may come in waves, of an answer of each: whole waves are counted.
    """
    waves = len(times) // workers - 2
    first = workers - 1
    return waves * workers / (times[first + waves * workers] - times[first])


def _shared(prompt: str, options: Mapping[str, Any], callers: int, seconds: float) -> Point:
    with Supervisor(1, **options) as supervisor:
        session = supervisor.shared("only")
        check_text(session.query(prompt).result())
        # Who waits for N others needs time for N turns.
        loop = closed_loop(session.query, callers, seconds, prompt=prompt)
        pool = [worker.pid for worker in supervisor.stats().workers]
        return Point(loop.throughput, loop.latency_s, _started_mib(but=pool))


def _started_mib(*, but: Collection[int]) -> float:
    """What all that was started holds of its own, but for those processes."""
    started = psutil.Process().children(recursive=True)
    return sum(own_mib(process) for process in started if process.pid not in but)


def outcome(plan: Plan, points: Points, *, promised_ms: int | None = None) -> Outcome:
    """Figures, how near they come to the ideal, what N times the memory gives.

    Args:
        plan: what was measured.
        points: what ``measure`` gave.
        promised_ms: the service time that DESIGN promises something of.
    """
    found: list[Ratio] = []
    for (name, service_ms, n), values in points.items():
        if service_ms:
            width = 1 if name == SESSION else n
            ideals = [point.throughput * service_ms / 1000 / width for point in values]
            least = 0.97 if service_ms == promised_ms and width <= _PROMISED_N else None
            setting = _setting(service_ms, n)
            found.append(Ratio(f"{name} / ideal", "", ideals, setting, at_least=least))
    for name in plan.isolated:
        found += _against_shared(name, plan, points, promised_ms)
        found += _worth(name, plan, points)
    return Outcome(list(_figures(points)), found, list(_crossovers(found)))


_PROMISED_N = 64


def _setting(service_ms: int, n: int) -> dict[str, float | str]:
    return {"service ms": service_ms, "N": n}


def _figures(points: Points) -> Iterator[Figure]:
    for (name, service_ms, n), found in points.items():
        setting = _setting(service_ms, n)
        yield Figure(name, "/s", [point.throughput for point in found], setting)
        milliseconds = [1000 * point.latency_s for point in found]
        yield Figure(_LATENCY.format(name), "ms", milliseconds, setting)
        yield Figure(name, "MiB", [point.mib for point in found], setting)


def _against_shared(
    name: str, plan: Plan, points: Points, promised_ms: int | None
) -> Iterator[Ratio]:
    """How many times the answers of as many callers who share a session."""
    for service_ms, callers in plan.callers.items():
        for n in callers:
            if (name, service_ms, n) not in points:
                continue
            pairs = zip(points[name, service_ms, n], points[SESSION, service_ms, n], strict=True)
            values = [apart.throughput / together.throughput for apart, together in pairs]
            low, high = (0.95 * n, 1.05 * n) if service_ms == promised_ms else (None, None)
            setting = _setting(service_ms, n)
            yield Ratio(f"{name} / shared", "", values, setting, at_least=low, at_most=high)


def _worth(name: str, plan: Plan, points: Points) -> Iterator[Ratio]:
    """Times the answers of a session that is always busy, by times its memory."""
    for service_ms, sizes in plan.workers.items():
        together = points[SESSION, service_ms, max(plan.callers[service_ms])]
        answers = statistics.median(point.throughput for point in together)
        mib = statistics.median(point.mib for point in together)
        for n in sizes:
            values = [
                (point.throughput / answers) / (point.mib / mib)
                for point in points[name, service_ms, n]
            ]
            yield Ratio(f"{name}{_WORTH}", "", values, _setting(service_ms, n))


_WORTH = ", answers gained / memory paid"


def _crossovers(ratios: Sequence[Ratio]) -> Iterator[str]:
    """From which N on isolation's memory costs more than it gives."""
    curves: dict[tuple[str, float | str], dict[float, bool]] = {}
    for found in ratios:
        if found.name.endswith(_WORTH):
            curve = curves.setdefault((found.name, found.setting["service ms"]), {})
            curve[float(found.setting["N"])] = found.median >= 1
    for (name, service_ms), curve in curves.items():
        last = max((n for n, pays in curve.items() if pays), default=0)
        beyond = [n for n in curve if n > last]
        what = f"{name.removesuffix(_WORTH)}, service {service_ms} ms: "
        if not last:
            yield f"{what}no N measured gives more than its memory costs."
        elif not beyond:
            yield f"{what}up to N = {last:.0f} gives more than its memory costs."
        else:
            yield f"{what}from N = {beyond[0]:.0f} on its memory costs more than it gives."
