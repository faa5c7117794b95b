"""What a thread that computes costs those who wait for answers in the same process.

Measures the round trip of 100 bytes, one at a time, in a quiet process and with a thread beside it
that never lets go of the interpreter by itself: whoever wakes up then waits for the interpreter's
switch interval (5 ms), each time.

- executor: ``ProcessPoolExecutor.submit(...).result()``, a function that gives its argument back;
- soloist: ``Supervisor.submit(...).result()``, the client ``echo``;
- served: the same of ``soloist.connect``, to ``soloist serve`` in a process of its own, where
  everything but the caller's own side is out of that thread's reach.

In turns; each has one worker. Every answer is checked.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import soloist
from benchmarks._floors import PROMPT, median_us
from benchmarks._served import served
from benchmarks._suite import Effort, Figure, Outcome, check, ratio, take_turns


def run(effort: Effort) -> Outcome:
    """Measure each, in a quiet process and in a busy one."""
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=spawn) as executor,
        soloist.Supervisor(1) as supervisor,
        served(Path(folder) / "served") as (_, (endpoint, _)),
        soloist.connect(endpoint) as far,
    ):
        asked: dict[str, Callable[[], str]] = {
            "executor": lambda: executor.submit(given_back, PROMPT).result(),
            "soloist": lambda: supervisor.submit(PROMPT).result().text,
            "served": lambda: far.submit(PROMPT).result().text,
        }
        turns: dict[str, Callable[[], float]] = {}
        for name, ask in asked.items():
            turns[name] = functools.partial(_quiet, ask, effort.of(300, 20))
            turns[f"{name}, busy"] = functools.partial(_busy, ask, effort.of(50, 5))
        taken = take_turns(turns, effort.of(9, 2))
    figures = {name: Figure(name, "us", values) for name, values in taken.items()}
    ratios = [
        ratio(figures[f"{name}{state}"], figures[f"executor{state}"])
        for state in ("", ", busy")
        for name in ("soloist", "served")
    ]
    return Outcome(list(figures.values()), ratios)


def given_back(prompt: str) -> str:
    """What the executor's worker does."""
    return prompt


def _quiet(ask: Callable[[], str], count: int) -> float:
    return median_us(lambda: check(ask() == PROMPT, "not the answer"), count)


def _busy(ask: Callable[[], str], count: int) -> float:
    with _computing():
        return _quiet(ask, count)


@contextlib.contextmanager
def _computing() -> Iterator[None]:
    """A thread that computes meanwhile."""
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            sum(range(1_000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
