"""Throughput, latency and memory of N isolated workers against one serialized shared session.

The client is ``echo`` with a service time. *Isolated*: a Supervisor of N workers. *Shared*: one
session with N callers; it serves one at a time, whatever N is. Throughput: as many requests as are
answered in the time given, of ``imap_unordered`` with a window of 2 N (isolated; without the first
and the last answer of each worker), and of N requests under way (shared). Latency: the median time
from a request to its answer with N under way, so that nobody waits for a worker but those who share
one. Memory: what the processes that were started hold of their own (USS).

The ideal is N / service time for isolated workers and 1 / service time for a session; with no
service time there is none. *Answers gained / memory paid*: how many times the answers of the shared
session, by how many times its memory; where it falls below 1, isolation costs more than it gives.
All workers have answered before the time begins, and every answer is checked. Settings take turns
within a round.
"""

from __future__ import annotations

from benchmarks._floors import PROMPT
from benchmarks._headline import Client, Plan, measure, outcome
from benchmarks._suite import Effort, Outcome

ECHO = Client(
    prompt=lambda _: PROMPT,
    options=lambda service_ms: {"options": {"delay_s": service_ms / 1000}},
)
_ALL = (1, 2, 4, 8, 16, 32, 64, 128)
_SOME = (1, 4, 16, 64, 128)
_CALLERS = (1, 16, 64)
FULL = Plan(
    isolated={"isolated": {}},
    workers={**dict.fromkeys((0, 10, 50), _ALL), **dict.fromkeys((1, 100), _SOME), 1000: (1, 64)},
    callers={**dict.fromkeys((0, 1, 10, 50, 100), _CALLERS), 1000: (1, 16)},
    seconds=0.8,
    turns=6,
    rounds=3,
)
QUICK = Plan(
    isolated={"isolated": {}},
    workers=dict.fromkeys((0, 10), (1, 4)),
    callers=dict.fromkeys((0, 10), (1, 4)),
    seconds=0.1,
    turns=6,
    rounds=1,
)


def run(effort: Effort) -> Outcome:
    """Measure all points."""
    plan = effort.of(FULL, QUICK)
    return outcome(plan, measure(ECHO, plan), promised_ms=50)
