"""Throughput of N isolated workers against one serialized shared session.

The work is an echo request with a service time of 0, 10 or 50 ms. Isolated: a Supervisor of size
N, N requests in flight. Shared: one session, N callers in threads that each wait for their own
answer; it can serve one at a time, whatever N is. The ideal for isolated workers is N / service
time, for the session 1 / service time; with a service time of 0 the ideal is what N = 1 reached,
times 1: this machine's processors are the limit then, not the workers.

Both are measured in turn in the same run, each for about ``--seconds``; every answer is checked.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

from rich.console import Console
from rich.table import Table

from soloist import Supervisor

PROMPT = "x" * 100
WORKERS = (1, 2, 4, 8, 16, 32)
SERVICE_S = (0.0, 0.010, 0.050)


def isolated(supervisor: Supervisor, workers: int, seconds: float) -> float:
    """Requests per second over ``workers`` workers, each with a conversation of its own."""
    until = time.perf_counter() + seconds

    def prompts() -> Iterator[str]:
        for i in count():
            if time.perf_counter() >= until and i >= 2 * workers:
                return
            yield PROMPT

    answered = 0
    started = time.perf_counter()
    for result in supervisor.imap_unordered(prompts()):
        assert result.text == PROMPT
        answered += 1
    return answered / (time.perf_counter() - started)


def shared(supervisor: Supervisor, callers: int, seconds: float) -> float:
    """Requests per second of ``callers`` threads on one conversation."""
    session = supervisor.shared(f"{callers} callers")
    assert session.query(PROMPT).result().text == PROMPT
    until = time.perf_counter() + seconds
    answered: list[int] = []

    def caller() -> None:
        number = 0
        while time.perf_counter() < until or not number:
            assert session.query(PROMPT).result().text == PROMPT
            number += 1
        answered.append(number)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    assert len(answered) == callers
    session.close()
    return sum(answered) / elapsed


def measure(
    contestant: Callable[[Supervisor, int, float], float], n: int, service_s: float, seconds: float
) -> float:
    """One point, on warm workers."""
    window = 2 * n if service_s else None
    with Supervisor(n, options={"delay_s": service_s}, window=window) as supervisor:
        supervisor.map([PROMPT] * (4 * n))
        return contestant(supervisor, n, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="isolated_vs_shared", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each point")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    arguments = parser.parse_args()
    table = Table(title="requests per second")
    for heading in (
        "service",
        "N",
        "isolated",
        "of ideal",
        "shared",
        "of ideal",
        "isolated/shared",
    ):
        table.add_column(heading, justify="right")
    for service_s in SERVICE_S:
        one: tuple[float, float] | None = None
        for n in arguments.workers:
            apart = measure(isolated, n, service_s, arguments.seconds)
            together = measure(shared, n, service_s, arguments.seconds)
            one = one or (apart, together)
            ideal = n / service_s if service_s else one[0]
            serial = 1 / service_s if service_s else one[1]
            table.add_row(
                f"{service_s * 1000:.0f} ms", str(n), f"{apart:,.0f}", f"{apart / ideal:.2f}",
                f"{together:,.0f}", f"{together / serial:.2f}", f"{apart / together:.1f}",
            )  # fmt: skip
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
