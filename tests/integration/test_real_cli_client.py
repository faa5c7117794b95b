"""The client ``claude`` with the real CLI, offline: loopback alone, a stub for the API."""

import json

import pytest

from tests.support_netns import IsolationUnavailable, agent_environment, run_isolated

pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What every scenario saw; they share one process because importing the SDK is slow."""
    env = agent_environment(tmp_path_factory.mktemp("agent"))
    try:
        done = run_isolated(["-m", "tests.integration.real_cli_scenarios"], env, timeout_s=90)
    except IsolationUnavailable as reason:
        pytest.skip(f"the real CLI runs only where nothing can leave the machine: {reason}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_turns_share_a_conversation_until_the_next_connect(report):
    seen = report["two_turns"]
    assert [turn["result"] for turn in seen["turns"]] == ["first", "second"]
    assert seen["turns"][0]["names"] == ["SystemMessage", "AssistantMessage", "ResultMessage"]
    assert seen["history"] == ["first", "second"]
    assert seen["after_reconnect"] == ["third"]


def test_pieces_are_streamed(report):
    assert report["pieces"]["deltas"] == ["ab", "cd", "ef", "gh"]
    assert report["pieces"]["result"] == "abcdefgh"


@pytest.mark.parametrize("moment", ["mid_stream", "at_once"])
def test_an_interrupted_turn_ends_and_the_next_answer_is_right(report, moment):
    assert report["interrupts"][moment]["reason"] == "aborted_streaming"
    assert report["interrupts"][f"after_{moment}"]["result"] == f"fresh {moment}"


def test_api_errors_are_typed_and_leave_the_client_usable(report):
    errors = report["api_errors"]["errors"]
    codes = {status: (error["code"], error["retryable"]) for status, error in errors.items()}
    assert codes == {
        "429": ("rate_limited", True),
        "401": ("client_error", False),
        "500": ("client_error", True),
    }
    assert all(errors[status]["details"]["api_status"] == int(status) for status in errors)
    assert "no luck" in errors["500"]["message"]
    assert report["api_errors"]["after"]["result"] == "better"


def test_a_command_of_the_cli_itself_is_answered(report):
    assert report["local_command"]["names"][-2:] == ["AssistantMessage", "ResultMessage"]
    assert "Context Usage" in report["local_command"]["result"]


def test_disconnect_in_mid_turn_is_bounded_and_leaves_no_process(report):
    assert report["end"]["left"] == []
    assert report["end"]["took_s"] < 5
