"""How long a pool takes to its first result and to close, and what its workers weigh.

A new process for each start, in turns. *First result*: from opening the pool to the result of a
first item that does nothing, imports of the pool's package included. *Memory*: what the processes
that it has started hold of their own (USS), those that only help included, divided by the number of
workers, when each has had work. *Close*: from the last result to the end of the block. Whatever
lives afterwards is counted.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import psutil

from benchmarks import _peers
from benchmarks._drivers import apart
from benchmarks._machine import own_mib
from benchmarks._peers import BY_NAME, SOLOIST
from benchmarks._suite import Effort, Figure, Outcome, check
from benchmarks._work import wait_1_ms

ITEM = "x"
_CLUSTERS = frozenset({"Ray ActorPool", "Dask", "ipyparallel"})
"""Their workers weigh so much that a few have to do."""


class Life(NamedTuple):
    """What one pool took: seconds, MiB for each worker, processes that are left."""

    first_s: float
    worker_mib: float
    close_s: float
    left: int


def run(effort: Effort) -> Outcome:
    """Start each a few times."""
    others, notes = _peers.present()
    many, few = effort.of(100, 4), effort.of(8, 2)
    lives: dict[str, list[Life]] = {}
    sizes = {}
    for _ in range(effort.of(3, 1)):
        for peer in (SOLOIST, *others):
            size = sizes[peer.name] = few if peer.name in _CLUSTERS else many
            lives.setdefault(peer.name, []).append(apart(live, peer.name, size))
    figures = []
    for what, unit, of in (
        ("first result", "s", lambda life: life.first_s),
        ("close", "s", lambda life: life.close_s),
        ("memory", "MiB/worker", lambda life: life.worker_mib),
        ("left behind", "processes", lambda life: float(life.left)),
    ):
        for name, found in lives.items():
            setting: dict[str, float | str] = {"what": what, "workers": sizes[name]}
            figures.append(Figure(name, unit, [of(life) for life in found], setting))
    return Outcome(figures, (), notes)


def live(name: str, size: int) -> Life:
    """Open a pool, have every worker work, close it."""
    started = time.perf_counter()
    with BY_NAME[name].open(wait_1_ms, size) as calls:
        check(calls.submit(ITEM)() == ITEM, "the first result is not that of its item")
        first_s = time.perf_counter() - started
        waiters = [calls.submit(ITEM) for _ in range(20 * size)]
        check(all(waiter() == ITEM for waiter in waiters), "a result is not that of its item")
        processes = psutil.Process().children(recursive=True)
        worker_mib = sum(map(own_mib, processes)) / size
        closing = time.perf_counter()
    close_s = time.perf_counter() - closing
    return Life(first_s, worker_mib, close_s, sum(map(psutil.Process.is_running, processes)))
