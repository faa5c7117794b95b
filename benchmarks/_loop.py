"""A closed loop: a number of requests under way at any time, for a while."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from benchmarks._floors import PROMPT
from benchmarks._suite import check
from soloist.supervisor.results import Result

_LEAST = 2


class Loop(NamedTuple):
    """What a closed loop gave.

    Attributes:
        latencies_s: of each request, from asking to its answer, in the order of asking.
        elapsed_s: until the last had its answer.
    """

    latencies_s: list[float]
    elapsed_s: float

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.latencies_s) / self.elapsed_s

    @property
    def latency_s(self) -> float:
        """The median."""
        return statistics.median(self.latencies_s)


def check_text(result: Result) -> None:
    """See that an answer says ``PROMPT``, as that of ``echo`` does.

    Raises:
        CheckFailed: it is not.
    """
    check(result.text == PROMPT, "an answer is not that of its prompt")


def closed_loop(
    submit: Callable[[str], Future[Result]],
    under_way: int,
    seconds: float,
    *,
    prompt: str = PROMPT,
) -> Loop:
    """Ask for so long, and wait for all answers; every one is checked, see ``check_text``."""
    flying: deque[tuple[float, Future[Result]]] = deque()
    times: list[float] = []

    def land() -> None:
        began, future = flying.popleft()
        check_text(future.result())
        times.append(time.perf_counter() - began)

    started = time.perf_counter()
    while time.perf_counter() < started + seconds or len(times) < _LEAST:
        while len(flying) < under_way:
            flying.append((time.perf_counter(), submit(prompt)))
        land()
    while flying:
        land()
    return Loop(times, time.perf_counter() - started)
