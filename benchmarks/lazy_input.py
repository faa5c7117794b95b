"""How much of its input a pool reads before the first result comes out.

The input is a generator of 100,000 items of 100 characters; the callable does nothing; two workers.
Counted is how many items were read when the consumer gets the first result of the pool's lazy
``map``: whoever reads all of them cannot work on an input that has no end, and holds all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import _peers
from benchmarks._drivers import apart
from benchmarks._peers import (
    BY_NAME,
    LOKY,
    MPIRE,
    PEBBLE,
    SOLOIST,
    STANDARD_EXECUTOR,
    STANDARD_POOL,
)
from benchmarks._suite import Effort, Figure, Outcome, Ratio, check
from benchmarks._work import nothing

SIZE = 2
LENGTH = 100
LAZY = (SOLOIST, STANDARD_POOL, STANDARD_EXECUTOR, LOKY, MPIRE, PEBBLE)
"""Who has such a ``map``; others of the same interface do as these."""


def run(effort: Effort) -> Outcome:
    """Count what each has read."""
    count = effort.of(100_000, 20_000)
    peers, notes = _peers.present(LAZY)
    figures = [Figure(peer.name, "items", [apart(items_read, peer.name, count)]) for peer in peers]
    share = Ratio("read by Soloist / all", "", [figures[0].median / count], at_most=0.1)
    return Outcome(figures, [share], notes)


def items_read(name: str, count: int) -> float:
    """How many were read when the first result came."""
    read = 0

    def items() -> Iterator[str]:
        nonlocal read
        for i in range(count):
            read += 1
            yield f"{i:0{LENGTH}}"

    with BY_NAME[name].open(nothing, SIZE) as calls:
        assert calls.lazy is not None
        results = calls.lazy(items())
        check(next(iter(results)) == f"{0:0{LENGTH}}", "the first result is not the first item's")
        return float(read)
