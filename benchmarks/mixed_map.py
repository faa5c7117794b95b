"""A map of many short prompts and a few long ones, against a greedy schedule of the same prompts.

Of 10,000 prompts 1 percent take a second, the rest a millisecond, in an order that is the same for
everybody; eight workers wait, they do not compute. The schedule is simulated: each prompt begins,
in order, at the worker that is free first, and nothing costs anything else. Whoever hands out
several prompts at a time without looking back leaves short ones behind long ones.
"""

from __future__ import annotations

import contextlib
import heapq
import random
from collections.abc import Sequence

from benchmarks._drivers import driver, map_s
from benchmarks._peers import SOLOIST, STANDARD_EXECUTOR, STANDARD_POOL
from benchmarks._suite import Effort, Figure, Outcome, ratio, take_turns
from benchmarks._work import wait_as_told

SIZE = 8
SEED = 1
SHORT_MS = 1


def run(effort: Effort) -> Outcome:
    """Measure the map of each."""
    items = prompts(effort.of(10_000, 800), long_ms=effort.of(1_000, 100))
    ideal_s = greedy_s([int(item.split()[0]) / 1000 for item in items], SIZE)
    peers = (SOLOIST, STANDARD_POOL, STANDARD_EXECUTOR)
    with contextlib.ExitStack() as ends:
        turns = {}
        for peer in peers:
            contestant = ends.enter_context(driver(peer, wait_as_told, SIZE))
            contestant(map_s, items[:100])
            turns[peer.name] = lambda contestant=contestant: contestant(map_s, items)
        taken = take_turns(turns, effort.of(3, 1), warm_up=0)
    figures = {name: Figure(name, "s", values) for name, values in taken.items()}
    ideal = Figure("schedule", "s", [ideal_s] * len(taken[SOLOIST.name]))
    bounds = {SOLOIST.name: 1.1}
    ratios = [ratio(f, ideal, at_most=bounds.get(name)) for name, f in figures.items()]
    return Outcome([ideal, *figures.values()], ratios)


def prompts(count: int, long_ms: int) -> list[str]:
    """A hundredth of them long, each at a place of its own."""
    chance = random.Random(SEED)
    long = set(chance.sample(range(count), count // 100))
    return [f"{long_ms if i in long else SHORT_MS} ms, prompt {i}" for i in range(count)]


def greedy_s(seconds: Sequence[float], size: int) -> float:
    """When the last ends if each begins at the worker that is free first."""
    free_at = [0.0] * size
    for duration_s in seconds:
        heapq.heapreplace(free_at, free_at[0] + duration_s)
    return max(free_at)
