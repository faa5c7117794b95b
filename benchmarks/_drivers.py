"""Contestants in processes of their own: none feels another's threads, forks or descriptors.

A driver opens its pool, then measures a round whenever it is told to. While one measures, the
others wait for their turn.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeAlias, TypeVar

import psutil

from benchmarks._peers import BY_NAME, Calls, Peer, Work
from benchmarks._suite import CheckFailed, check

_T = TypeVar("_T")

Measure: TypeAlias = Callable[..., _T]
"""Gets the open pool's ``Calls`` and what else it is told; gives what it has seen."""

CLOSE_S = 20.0
"""A pool that is not closed by then is ended."""
WINDOW = 64
"""So many items are under way when they are handed over one by one."""


def one_by_one(calls: Calls, seconds: float, item: str) -> float:
    """Items a second, ``WINDOW`` of them under way."""
    flying: deque[Callable[[], str]] = deque()
    count = 0
    started = time.perf_counter()
    until = started + seconds
    while time.perf_counter() < until or not count:
        if len(flying) >= WINDOW:
            check(flying.popleft()() == item, "a result is not that of its item")
        flying.append(calls.submit(item))
        count += 1
    while flying:
        check(flying.popleft()() == item, "a result is not that of its item")
    return count / (time.perf_counter() - started)


def all_at_once(calls: Calls, count: int, length: int) -> float:
    """Items a second of one call of ``map``; all are different."""
    return count / map_s(calls, [f"{i:0{length}}" for i in range(count)])


def map_s(calls: Calls, items: list[str]) -> float:
    """Seconds that one call of ``map`` takes."""
    started = time.perf_counter()
    results = calls.map(items)
    elapsed = time.perf_counter() - started
    check(list(results) == items, "the results are not those of the items, in order")
    return elapsed


def round_trip(calls: Calls, count: int, item: str) -> float:
    """Microseconds from an item to its result, one at a time; the median."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        result = calls.submit(item)()
        times.append(time.perf_counter() - started)
        check(result == item, "a result is not that of its item")
    return sorted(times)[len(times) // 2] * 1e6


class Driver:
    """One contestant's process, as it is seen from here."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, measure: Measure[_T], *arguments: Any) -> _T:
        """Measure once there.

        Raises:
            CheckFailed: a result was wrong, or the contestant failed.
        """
        self._connection.send((measure, arguments))
        value: _T = self.answer()
        return value

    def answer(self) -> Any:
        """What it says next; the first time, that it is open."""
        try:
            value, failure = self._connection.recv()
        except EOFError:
            value, failure = None, "the contestant's process has died"
        if failure:
            raise CheckFailed(failure)
        return value


@contextlib.contextmanager
def driver(peer: Peer, work: Work, size: int) -> Iterator[Driver]:
    """Open a pool in a process of its own."""
    with _elsewhere(_drive, peer.name, work, size) as opened:
        opened.answer()
        yield opened


def apart(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function in a process of its own.

    Raises:
        CheckFailed: it failed, or found a wrong result.
    """
    with _elsewhere(_call, function, arguments) as called:
        value: _T = called.answer()
        return value


@contextlib.contextmanager
def _elsewhere(target: Callable[..., None], *arguments: Any) -> Iterator[Driver]:
    """Have a process run a function that is given a connection to here, and the arguments."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=target, args=(there, *arguments))
    process.start()
    there.close()
    try:
        yield Driver(here)
    finally:
        here.close()
        process.join(CLOSE_S)
        if process.exitcode is None:  # a broken pool may never close
            _end(process.pid)
            process.join()


def _end(pid: int | None) -> None:
    """End a contestant's process with all that it has started."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (*root.children(recursive=True), root):
            with contextlib.suppress(psutil.Error):
                process.kill()


def _call(connection: Connection, function: Callable[..., Any], arguments: Any) -> None:
    try:
        connection.send((function(*arguments), ""))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        connection.send((None, f"{type(error).__name__}: {error}"))


def _drive(connection: Connection, name: str, work: Work, size: int) -> None:
    try:
        with BY_NAME[name].open(work, size) as calls:
            connection.send((None, ""))
            while True:
                measure, arguments = connection.recv()
                try:
                    connection.send((measure(calls, *arguments), ""))
                except CheckFailed as error:
                    connection.send((None, f"{name}: {error}"))
    except EOFError:  # it is over
        return
    except Exception as error:  # noqa: BLE001 - whatever a pool raises, it is told
        with contextlib.suppress(OSError):
            connection.send((None, f"{name}: {type(error).__name__}: {error}"))
