"""``submit`` of a no-op callable with 64 futures in flight: Soloist against the standard pool.

Both have the same number of workers, get the same 100-byte prompts one by one, and are measured
in turn (A B A B ...) in one run; what counts is the ratio. Run: python benchmarks/submit_window.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from soloist import Supervisor

WINDOW = 64
PROMPT = "x" * 100


def no_op(prompt: str) -> str:
    """Give the prompt back."""
    return prompt


def throughput(submit: Callable[[], Future[Any]], count: int) -> float:
    """Requests per second with ``WINDOW`` futures in flight."""
    flying: deque[Future[Any]] = deque()
    started = time.perf_counter()
    for _ in range(count):
        if len(flying) >= WINDOW:
            flying.popleft().result()
        flying.append(submit())
    while flying:
        flying.popleft().result()
    return count / (time.perf_counter() - started)


def main() -> None:
    """Print both, and their ratio, round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=10_000, help="requests a round")
    arguments = parser.parse_args()
    ratios = []
    with (
        Supervisor(arguments.workers, client=no_op) as supervisor,
        ProcessPoolExecutor(arguments.workers) as executor,
    ):
        assert supervisor.submit(PROMPT).result().text == PROMPT
        assert executor.submit(no_op, PROMPT).result() == PROMPT
        print(f"{'Soloist':>12} {'standard':>12} {'ratio':>8}   requests/s")
        for _ in range(arguments.rounds):
            ours = throughput(lambda: supervisor.submit(PROMPT), arguments.count)
            theirs = throughput(lambda: executor.submit(no_op, PROMPT), arguments.count // 4)
            ratios.append(ours / theirs)
            print(f"{ours:12,.0f} {theirs:12,.0f} {ratios[-1]:8.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
