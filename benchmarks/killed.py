"""What is lost when a worker is killed in the middle of the work.

Two workers, 40 items handed over one by one, each of a millisecond; the 20th kills the process that
runs it. Lost is an item that has no result within five seconds of the last one: the one that
kills, at least. Also 2,000 items by one call of ``map``, the 1,000th of which kills: there, whoever
gives an error instead of results has lost them all. Soloist is asked for errors in the place of
results, as its ``map`` offers. A new pool, in a process of its own, for each round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from benchmarks import _peers
from benchmarks._drivers import driver
from benchmarks._peers import SOLOIST, Calls
from benchmarks._suite import Effort, Figure, Outcome, Ratio
from benchmarks._work import KILL, MILLISECOND, die_on_kill

ITEMS = 40


def run(effort: Effort) -> Outcome:
    """Kill a worker of each."""
    others, notes = _peers.present()
    patience_s, many = effort.of(5.0, 1.0), effort.of(2_000, 200)
    lost: dict[tuple[str, str], list[float]] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(effort.of(3, 1)):
        for peer in (SOLOIST, *others):
            for how, measure, count in (
                ("one by one", one_by_one, ITEMS),
                ("by map", at_once, many),
            ):
                with driver(peer, die_on_kill, 2) as contestant:
                    found, took_s = contestant(measure, count, patience_s)
                lost.setdefault((peer.name, how), []).append(found)
                seconds.setdefault((peer.name, how), []).append(took_s)
    figures = [Figure(name, "lost", v, {"how": how}) for (name, how), v in lost.items()]
    figures += [Figure(name, "s", v, {"how": how}) for (name, how), v in seconds.items()]
    ratios = [
        Ratio("lost by Soloist", "", lost[SOLOIST.name, how], {"how": how}, at_most=1)
        for how in ("one by one", "by map")
    ]
    return Outcome(figures, ratios, notes)


def one_by_one(calls: Calls, count: int, patience_s: float) -> tuple[float, float]:
    """Items lost, and seconds to the last that was not."""
    items = _items(count)
    started = last = time.perf_counter()
    lost = 0
    waiters = []
    for item in items:
        try:
            waiters.append(calls.submit(item))
        except Exception:  # noqa: BLE001 - a broken pool refuses in its own way
            lost += 1
    for waiter in waiters:
        try:
            waiter(max(0.001, last + patience_s - time.perf_counter()))
        except BaseException:  # noqa: BLE001 - and so it fails
            lost += 1
        else:
            last = time.perf_counter()
    return float(lost), last - started


def at_once(calls: Calls, count: int, patience_s: float) -> tuple[float, float]:
    """The same of one call of ``map``, which may never return."""
    items = _items(count)
    results: list[Sequence[object]] = []
    call_map = calls.map_on or calls.map
    started = time.perf_counter()

    def call() -> None:
        try:
            results.append(list(call_map(items)))
        except BaseException:  # noqa: BLE001 - whatever it raises, there are no results
            results.append([])

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(patience_s + 2 * count * MILLISECOND)
    took_s = time.perf_counter() - started
    right = sum(a == b for a, b in zip(items, results[0], strict=False)) if results else 0
    return float(count - right), took_s


def _items(count: int) -> list[str]:
    items = [f"item {i}" for i in range(count)]
    items[count // 2] = KILL
    return items
