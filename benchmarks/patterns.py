"""The patterns of the guide side by side: what eight callers get from each, and what it weighs.

The client is ``echo`` with a service time of 20 ms. *Isolated*: ``submit`` to a pool of eight
workers. *Owned*: eight sessions, one caller each. *Shared*: one session for all. *One-shot*:
``query``, a new conversation for each call, from a pool of eight. Throughput: eight threads, each
with one question after the other. Latency: the median of one caller alone. Memory: what the
processes hold of their own (USS), the helper included. In turns; every answer is checked.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import psutil

from benchmarks._floors import PROMPT
from benchmarks._machine import own_mib
from benchmarks._suite import Effort, Figure, Outcome, check, take_turns
from soloist import ResultMessage, Supervisor
from soloist.protocol.content import Message

CALLERS = 8
SERVICE_S = 0.02
Ask = Callable[[], None]


def run(effort: Effort) -> Outcome:
    """Have each pattern serve."""
    seconds, rounds = effort.of((2.0, 5), (0.2, 1))
    with contextlib.ExitStack() as ends:
        callers: dict[str, Sequence[Ask]] = {}
        memory: dict[str, float] = {}
        for name, opened in _PATTERNS.items():
            before = set(psutil.Process().children(recursive=True))
            callers[name] = ends.enter_context(opened())
            _together(callers[name], 4 * SERVICE_S)  # so that all workers are there
            mine = set(psutil.Process().children(recursive=True)) - before
            memory[name] = sum(map(own_mib, mine))
        together = take_turns(
            {name: partial(_together, asks, seconds) for name, asks in callers.items()},
            rounds,
        )
        alone = take_turns(
            {name: partial(_alone, asks[0], seconds) for name, asks in callers.items()},
            rounds,
        )
    figures = [
        Figure(name, "/s", values, {"callers": CALLERS}) for name, values in together.items()
    ]
    figures += [Figure(name, "ms", values, {"callers": 1}) for name, values in alone.items()]
    figures += [Figure(name, "MiB", [value]) for name, value in memory.items()]
    return Outcome(figures)


def _together(asks: Sequence[Ask], seconds: float) -> float:
    """Answers a second, a thread for each caller."""
    until = time.perf_counter() + seconds
    counts: list[int] = []

    def call(ask: Ask) -> None:
        count = 0
        while time.perf_counter() < until or not count:
            ask()
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=call, args=(ask,)) for ask in asks]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    check(len(counts) == len(asks), "a caller got a wrong answer")
    return sum(counts) / elapsed


def _alone(ask: Ask, seconds: float) -> float:
    """The median milliseconds of one answer."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not times:
        started = time.perf_counter()
        ask()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def _supervisor(size: int) -> Supervisor:
    return Supervisor(size, options={"delay_s": SERVICE_S})


def _check_text(text: str) -> None:
    check(text == PROMPT, "an answer is not that of its prompt")


def _check_messages(messages: Iterator[Message]) -> None:
    *_, result = messages
    check(isinstance(result, ResultMessage) and result.result == PROMPT, "not the answer")


@contextlib.contextmanager
def _isolated() -> Iterator[Sequence[Ask]]:
    with _supervisor(CALLERS) as supervisor:
        yield [lambda: _check_text(supervisor.submit(PROMPT).result().text)] * CALLERS


@contextlib.contextmanager
def _owned() -> Iterator[Sequence[Ask]]:
    with _supervisor(1) as supervisor, contextlib.ExitStack() as ends:
        sessions = [ends.enter_context(supervisor.session()) for _ in range(CALLERS)]
        yield [
            partial(lambda session: _check_messages(session.query_and_receive(PROMPT)), session)
            for session in sessions
        ]


@contextlib.contextmanager
def _shared() -> Iterator[Sequence[Ask]]:
    with _supervisor(1) as supervisor:
        session = supervisor.shared("shared")
        yield [lambda: _check_text(session.query(PROMPT).result().text)] * CALLERS


@contextlib.contextmanager
def _one_shot() -> Iterator[Sequence[Ask]]:
    with _supervisor(CALLERS) as supervisor:
        yield [lambda: _check_messages(supervisor.query(PROMPT))] * CALLERS


_PATTERNS: dict[str, Callable[[], contextlib.AbstractContextManager[Sequence[Ask]]]] = {
    "isolated": _isolated,
    "owned": _owned,
    "shared": _shared,
    "one-shot": _one_shot,
}
