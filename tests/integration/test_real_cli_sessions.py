"""Sessions with the real CLI, offline: loopback alone, a stub for the API."""

import json

import pytest

from tests.support_netns import output_of

pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    return json.loads(
        output_of(["-m", "tests.integration.real_cli_sessions"], folder, timeout_s=120)
    )


def test_a_turn_cancelled_in_mid_stream_is_followed_by_the_right_answer(seen):
    assert "StreamEvent" in seen["cancel"]
    assert seen["after_cancel"]["text"] == "second"
    assert seen["incarnation"][0] == 1


@pytest.mark.parametrize("victim", ["cli", "worker"])
def test_the_conversation_is_resumed(seen, victim):
    assert seen[f"after_{victim}"]["text"] == f"after the {victim} was killed"
    history = seen[f"{victim}_history"]
    assert history[0] == "first"
    assert "second" in history
    assert history[-1] == f"after the {victim} was killed"


def test_each_death_costs_the_running_request_and_raises_the_incarnation(seen):
    assert seen["cli_killed"] == ["client_error", None]
    assert seen["worker_killed"] == ["worker_lost", None]
    assert seen["incarnation"] == [1, 2, 3]


def test_an_owned_session_keeps_its_conversation(seen):
    assert seen["own"] == "ResultMessage"
    assert seen["own_text"] == "again"
    assert seen["own_history"] == ["my own", "again"]
    assert seen["own_model"] == "another-model"


def test_a_one_shot_query_has_no_history(seen):
    assert seen["one_shot"] == "one shot"
    assert seen["one_shot_history"] == ["one shot"]


def test_nothing_is_left(seen):
    assert seen["left"] == []
