"""The client ``claude`` with the real CLI, offline: loopback alone, a stub for the API."""

import json

import pytest

from tests.support_netns import output_of

pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What every scenario saw; they share one process because importing the SDK is slow."""
    folder = tmp_path_factory.mktemp("agent")
    return json.loads(
        output_of(["-m", "tests.integration.real_cli_scenarios"], folder, timeout_s=240)
    )


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


def test_a_callback_of_the_users_own_decides_on_tools(report):
    seen = report["own_permission"]
    assert seen["denied"] == [False, "not here"]
    assert seen["changed"][0] is False
    assert seen["safer"] is True
    assert seen["allowed"][0] is True
    assert seen["asked"] == [
        ["Bash", f"touch {name}", True] for name in ("denied", "changed", "allowed")
    ]


def test_else_the_caller_decides_and_what_is_no_decision_denies(report):
    seen = report["callers_permission"]
    assert seen["granted"][0] is True
    assert seen["refused"] == [False, "denied by the caller"]
    assert seen["unclear"][0] is False
    assert "nobody allowed it" in seen["unclear"][1]
    assert len(seen["questions"]) == 3
    for kind, names in seen["questions"]:
        assert kind == "permission"
        assert {"tool_name", "input", "tool_use_id"} <= set(names)


def test_the_caller_decides_in_a_hook_and_silence_denies(report):
    seen = report["callers_hook"]
    assert seen["let"][0] is True
    assert seen["barred"][0] is False
    assert "nobody allowed it" in seen["barred"][1]
    assert seen["questions"] == [["hook", ["input", "tool_use_id"]]] * 2


def test_another_client_goes_on_after_the_cli_was_killed(report):
    seen = report["continued"]
    assert seen["answers"] == ["second", "third"]
    first, second, cut_off, third = seen["history"]
    assert [first, second, third] == ["my name is Ada", "second", "third"]
    assert cut_off.endswith("xxx")
    assert seen["turns"] == 1  # the turn that was cut off is remembered, not run again


def test_a_conversation_in_which_nothing_was_said_begins_again(report):
    assert report["killed_before_a_word"] == {
        "snapshot": ["is_new", "session_id"],
        "answer": "hello",
        "history": ["hello"],
    }


def test_what_was_answered_is_kept_whenever_the_cli_dies(report):
    prompts = ["first", "second", "third", "again"]
    assert report["killed_with_the_answer"] == [[prompts[: i + 1], i] for i in range(4)]


def test_a_cleared_conversation_is_followed(report):
    assert report["cleared"] == {"moved": True, "history": ["keep me", "again"]}


def test_a_conversation_that_the_cli_does_not_have_is_an_error_for_good(report):
    assert report["unknown"]["code"] == "client_connect_error"
    assert "No conversation found" in report["unknown"]["message"]
    assert report["unknown"]["retryable"] is False


def test_disconnect_in_mid_turn_is_bounded_and_leaves_no_process(report):
    assert report["end"]["left"] == []
    assert report["end"]["took_s"] < 5
