"""How much of its input a pool reads before the first result comes out.

The input is a generator of 100,000 items of 100 characters; the callable does nothing; two workers.
Counted is how many items were read when the consumer gets the first result of the pool's lazy
``map``: whoever reads all of them cannot work on an input that has no end, and holds all of it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator

from benchmarks._drivers import apart
from benchmarks._peers import OTHERS, SOLOIST
from benchmarks._suite import Effort, Figure, Outcome, Ratio, check
from benchmarks._work import nothing
from soloist import Supervisor

SIZE = 2
LENGTH = 100
Mapper = Callable[[Iterable[str]], Iterator[str]]


def run(effort: Effort) -> Outcome:
    """Count what each has read."""
    count = effort.of(100_000, 20_000)
    figures, absent = [], []
    installed = {peer.name: peer.is_installed for peer in (SOLOIST, *OTHERS)}
    for name in _MAPPERS:
        if installed[name]:
            read = apart(items_read, name, count)
            figures.append(Figure(name, "items", [read]))
        else:
            absent.append(name)
    notes = [f"not installed: {', '.join(absent)}"] if absent else []
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

    with _MAPPERS[name]() as mapper:
        results = mapper(items())
        check(next(iter(results)) == f"{0:0{LENGTH}}", "the first result is not the first item's")
        return float(read)


@contextlib.contextmanager
def _soloist() -> Iterator[Mapper]:
    with Supervisor(SIZE, client=nothing) as supervisor:
        yield lambda items: (result.text for result in supervisor.imap(items))


@contextlib.contextmanager
def _pool() -> Iterator[Mapper]:
    with importlib.import_module("multiprocessing").Pool(SIZE) as pool:
        yield lambda items: pool.imap(nothing, items)


@contextlib.contextmanager
def _executor() -> Iterator[Mapper]:
    with importlib.import_module("concurrent.futures").ProcessPoolExecutor(SIZE) as executor:
        yield lambda items: executor.map(nothing, items)


@contextlib.contextmanager
def _loky() -> Iterator[Mapper]:
    executor = importlib.import_module("loky").ProcessPoolExecutor(SIZE)
    try:
        yield lambda items: executor.map(nothing, items)
    finally:
        executor.shutdown(kill_workers=True)


@contextlib.contextmanager
def _mpire() -> Iterator[Mapper]:
    with importlib.import_module("mpire").WorkerPool(SIZE) as pool:
        yield lambda items: pool.imap(nothing, items)


@contextlib.contextmanager
def _pebble() -> Iterator[Mapper]:
    with importlib.import_module("pebble").ProcessPool(SIZE) as pool:
        yield lambda items: pool.map(nothing, items).result()


_MAPPERS: dict[str, Callable[[], contextlib.AbstractContextManager[Mapper]]] = {
    "Soloist": _soloist,
    "Pool": _pool,
    "ProcessPoolExecutor": _executor,
    "loky": _loky,
    "mpire": _mpire,
    "Pebble": _pebble,
}
