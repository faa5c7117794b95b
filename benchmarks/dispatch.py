"""What it costs to hand a pool a callable's items: one by one, and all at once by ``map``.

Every pool has two workers, is used by its defaults and runs in a process of its own; they take
turns. The items are text of 100 characters; the callable gives them back, at once or after a
millisecond. One by one: 64 items are under way at any time. At once: one call of ``map`` over a
list of 200,000; a pool that would take more than a second gets a shorter one. Workers are warm:
each contestant's first round is not counted. Every result is compared with its item.

*Survives* says whether the rest of the work is done when a worker is killed; what the others lose
is in ``killed``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from benchmarks import _peers
from benchmarks._drivers import Driver, all_at_once, driver, one_by_one
from benchmarks._peers import PEBBLE, SOLOIST, STANDARD_EXECUTOR, STANDARD_POOL, Peer, Work
from benchmarks._suite import CheckFailed, Effort, Figure, Outcome, Ratio, ratio, take_turns
from benchmarks._work import nothing, wait_1_ms

LENGTH = 100
SIZE = 2
LEAST = 200
"""Items of a ``map``, however slow."""


def run(effort: Effort) -> Outcome:
    """Measure them all."""
    others, absent = _peers.present()
    notes: list[str] = []
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    for work, milliseconds in ((nothing, 0), (wait_1_ms, 1)):
        one, at_once = _measured(effort, (SOLOIST, *others), work, milliseconds, notes)
        figures += [*one.values(), *at_once.values()]
        if work is nothing:
            ratios += _promised(one, at_once, others)
    survivors = ", ".join(peer.name for peer in others if peer.survives)
    notes.append(f"survive the death of a worker: {survivors}")
    return Outcome(figures, ratios, notes + absent)


def _measured(
    effort: Effort, peers: tuple[Peer, ...], work: Work, milliseconds: int, notes: list[str]
) -> tuple[dict[str, Figure], dict[str, Figure]]:
    seconds = effort.of(1.0, 0.1)
    most = effort.of(200_000, 2_000) if not milliseconds else effort.of(2_000, 200)
    rounds = effort.of(7, 2)
    setting: dict[str, float | str] = {"work ms": milliseconds}
    with contextlib.ExitStack() as ends:
        drivers = {}
        for peer in peers:
            try:
                drivers[peer.name] = ends.enter_context(driver(peer, work, SIZE))
            except CheckFailed as error:
                if peer is SOLOIST:
                    raise
                notes.append(f"does not take part: {error}")
        counts = {}
        for name, contestant in drivers.items():
            counts[name] = LEAST
            for _ in "12":  # a pool that has just begun is slow, so the first says little
                rate = contestant(all_at_once, counts[name], LENGTH)
                counts[name] = max(LEAST, min(most, round(rate * seconds)))
        item = "x" * LENGTH
        one = _turns(drivers, lambda c, _: c(one_by_one, seconds, item), rounds)
        whole = _turns(drivers, lambda c, name: c(all_at_once, counts[name], LENGTH), rounds)
    return (
        {n: Figure(n, "/s", v, {"how": "one by one", **setting}) for n, v in one.items()},
        {n: Figure(n, "/s", v, {"how": "by map", **setting}) for n, v in whole.items()},
    )


def _turns(
    drivers: dict[str, Driver], measure: Callable[[Driver, str], float], rounds: int
) -> dict[str, list[float]]:
    calls = {
        name: lambda name=name, contestant=contestant: measure(contestant, name)
        for name, contestant in drivers.items()
    }
    return take_turns(calls, rounds)


def _promised(
    one: dict[str, Figure], at_once: dict[str, Figure], others: list[Peer]
) -> list[Ratio]:
    ours, whole = one[SOLOIST.name], at_once[SOLOIST.name]
    found = [ratio(whole, at_once[STANDARD_POOL.name], at_least=0.8)]
    survivors = [p.name for p in others if p.survives and p.name in at_once]
    found += [ratio(whole, at_once[name], at_least=3.0) for name in survivors]
    for peer, bound in ((PEBBLE, 3.0), (STANDARD_EXECUTOR, 6.0)):
        if peer.name in one:
            found.append(ratio(ours, one[peer.name], at_least=bound))
    return found
