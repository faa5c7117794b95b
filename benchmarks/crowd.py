"""A thousand conversations in one Supervisor: their start, memory and end, and how they slow one.

Each is a shared session of ``echo`` with a worker of its own. *Start*: from asking for the first to
the first answer of the last; all are asked at once. *Memory*: what the workers hold of their own
(USS), on average. *End*: how long closing the Supervisor takes, and who is left then. *Round trip*:
one question at a time to one session of a Supervisor that has 1, 100 or 1,000 open, in turns.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable

import psutil

from benchmarks._floors import PROMPT, round_trips
from benchmarks._machine import own_mib
from benchmarks._suite import Effort, Outcome, Ratio, check, ratio
from soloist import SharedSession, Supervisor

OPEN = (1, 100, 1_000)
QUICK = (1, 5, 20)
_START_S, _END_S, _WORKER_MIB, _SLOWER = 12.0, 5.0, 6.5, 1.2


def run(effort: Effort) -> Outcome:
    """Open them, ask one, close them."""
    open_ = effort.of(OPEN, QUICK)
    most = open_[-1]
    processes: set[psutil.Process] = set()
    with contextlib.ExitStack() as ends:
        crowds: dict[str, Callable[[], None]] = {}
        for count in open_:
            before = set(psutil.Process().children(recursive=True))
            supervisor = ends.enter_context(Supervisor(1, max_sessions=count))
            started = time.perf_counter()
            sessions = [supervisor.shared(f"session {i}") for i in range(count)]
            futures = [session.query(PROMPT) for session in sessions]
            check(all(f.result().text == PROMPT for f in futures), "an answer is another's")
            start_s = time.perf_counter() - started
            processes = set(psutil.Process().children(recursive=True)) - before
            middle = sessions[count // 2]

            def ask(session: SharedSession = middle) -> None:
                check(session.query(PROMPT).result().text == PROMPT, "an answer is another's")

            crowds[f"{count:,} open"] = ask
        trips = round_trips(crowds, rounds=effort.of(15, 2), count=effort.of(200, 20))
        worker_mib = statistics.mean(map(own_mib, processes))
        ending = time.perf_counter()
        supervisor.close()
        end_s = time.perf_counter() - ending
    left = sum(process.is_running() for process in processes)
    setting = {"sessions": most}
    check(not left, f"{left} processes are left")
    first, *_, last = trips.values()
    ratios = [
        ratio(last, first, at_most=_SLOWER),
        Ratio("start, seconds", "s", [start_s], setting, at_most=_START_S),
        Ratio("memory, MiB a worker", "MiB", [worker_mib], setting, at_most=_WORKER_MIB),
        Ratio("end, seconds", "s", [end_s], setting, at_most=_END_S),
    ]
    return Outcome(list(trips.values()), ratios)
