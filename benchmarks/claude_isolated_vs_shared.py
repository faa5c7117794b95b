"""The same with the Claude Agent SDK: workers with a CLI each against one shared conversation.

The CLI is a stand-in, a Python program that speaks the CLI's protocol, answers after the service
time and calls no service; the SDK on top of it is the real one. *Isolated*: each worker goes on
with its conversation (``isolation="worker"``). *Isolated, new each*: every prompt is a conversation
of its own, which for this client is a CLI of its own (``isolation="prompt"``, the default of
``map``), so the time to start one is in it. *Shared*: one session with N callers.

Throughput, latency, memory and the ideal are those of ``isolated_vs_shared``; memory holds the
stand-ins, which weigh about a tenth of a real CLI. Starting and JSON on pipes take processor time
that a real CLI takes, too, more of it. Every answer is checked. Settings take turns in a round.
"""

from __future__ import annotations

import importlib.util
import tempfile

from benchmarks._floors import PROMPT
from benchmarks._headline import Client, Plan, measure, outcome
from benchmarks._suite import Effort, Outcome
from tests import stand_in

_ISOLATED = {"isolated": {"isolation": "worker"}, "isolated, new each": {"isolation": "prompt"}}
FULL = Plan(
    isolated=_ISOLATED,
    workers=dict.fromkeys((10, 1000), (1, 4, 16, 64)),
    callers=dict.fromkeys((10, 1000), (1, 4, 16)),
    seconds=1.0,
    turns=4,
    rounds=2,
)
QUICK = Plan(
    isolated=_ISOLATED,
    workers={10: (1, 4)},
    callers={10: (4,)},
    seconds=0.1,
    turns=4,
    rounds=1,
)


def run(effort: Effort) -> Outcome:
    """Measure all points."""
    if importlib.util.find_spec("claude_agent_sdk") is None:
        return Outcome(notes=["the Claude Agent SDK is not installed"])
    plan = effort.of(FULL, QUICK)
    with tempfile.TemporaryDirectory() as folder:
        options = {"cli_path": stand_in.install(folder)}
        client = Client(
            prompt=lambda service_ms: f"/delay {service_ms / 1000} {PROMPT}",
            options=lambda _: {"client": "claude", "options": options},
        )
        return outcome(plan, measure(client, plan))
