"""The fault suite's short form: every step once or more, with fixed seeds. See ``__main__``."""

from __future__ import annotations

import statistics

import pytest

from tests.faults import measure, soak
from tests.faults.steps import Action, Step
from tests.faults.taps import Taps

ECHO = tuple(setup for setup in soak.SETUPS if not setup.is_claude)
CLAUDE = tuple(setup for setup in soak.SETUPS if setup.is_claude)
PER_ROUND = 24
"""Enough for every step that a setup can reach."""
OF_ECHO = frozenset().union(*(setup.steps for setup in ECHO))


@pytest.fixture(scope="module")
def echo():
    return soak.run(PER_ROUND * len(ECHO), seed=1, per_round=PER_ROUND, setups=ECHO)


class TestEcho:
    def test_no_promise_is_broken(self, echo):
        assert echo.violations == []

    def test_every_step_was_reached_and_struck_by_a_kill(self, echo):
        assert {step for step, action in echo.struck if action is Action.KILL} == OF_ECHO

    def test_every_kind_of_outcome_was_there(self, echo):
        assert set(echo.tally.outcomes) >= {
            "answer", "client_error", "invalid_prompt", "request_cancelled", "request_timeout",
            "result_not_serializable", "session_lost", "slow_reader", "supervisor_closed",
            "worker_lost",
        }  # fmt: skip

    def test_few_faults_found_no_occasion(self, echo):
        assert echo.missed.total() <= echo.cycles / 10, echo.missed


class TestClaude:
    def test_the_agents_program_is_killed_too(self):
        pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")
        summary = soak.run(6, seed=43, per_round=30, setups=CLAUDE)
        assert summary.violations == []
        assert Step.AGENT in summary.reached


def test_every_step_belongs_to_a_setup():
    assert frozenset().union(*(setup.steps for setup in soak.SETUPS)) == frozenset(Step)


def test_a_map_under_kills_loses_what_had_started_and_not_finished():
    report = measure.map_under_kills(prompts=800, workers=4, every_s=0.05, turn_s=0.001, seed=1)
    assert report.violations == []
    assert report.kills >= 5
    assert 0 < report.lost <= report.kills


def test_a_worker_that_has_worked_is_replaced_at_once():
    """The bound of the median belongs to a quiet machine (``python -m tests.faults``)."""
    report = measure.replacement(12)
    assert statistics.quantiles(report.samples_ms, n=4)[0] < 50


def test_the_taps_leave_no_trace():
    from soloist.supervisor import io_thread, request

    before = io_thread.Channel, io_thread.Spawner, request.Request.settle
    with Taps(lambda *_: None):
        assert (io_thread.Channel, io_thread.Spawner, request.Request.settle) != before
    assert (io_thread.Channel, io_thread.Spawner, request.Request.settle) == before
