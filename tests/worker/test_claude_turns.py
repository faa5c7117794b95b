"""Which prompt a message belongs to, without any process."""

from types import SimpleNamespace

import pytest

from soloist.worker.clients.claude_turns import MAX_HELD, Attribution


def make(kind):
    def build(*uuids, **fields):
        message = type(kind, (SimpleNamespace,), {})(**fields)
        message.user_message_uuids = list(uuids) or None
        message.user_message_uuid = uuids[-1] if uuids else None
        return message

    return build


assistant, event, result = make("AssistantMessage"), make("StreamEvent"), make("ResultMessage")


def user(uuid):
    return make("UserMessage")(uuid=uuid)


def system(subtype, *uuids):
    data = {"user_message_uuids": list(uuids)} if uuids else {}
    return type("SystemMessage", (SimpleNamespace,), {})(subtype=subtype, data=data)


def waiting(*uuids, echoes=True):
    """An attribution with these prompts waiting, of a CLI that echoes uuids, or not."""
    attribution = Attribution()
    if echoes:
        attribution.sent("first")
        attribution.take(result("first"))
    for uuid in uuids:
        attribution.sent(uuid)
    return attribution


def test_a_turn_that_names_our_prompt_is_ours_to_the_result():
    attribution = waiting("a")
    turn = [system("init"), event("a"), event(), assistant(), result("a")]
    assert [attribution.take(message) for message in turn] == [("a", [m]) for m in turn]
    assert attribution.waiting == []


def test_a_cli_that_never_echoes_gives_its_turns_to_the_oldest_prompt_waiting():
    attribution = waiting("a", "b", echoes=False)
    turns = [assistant(), result(), assistant(), result()]
    assert [attribution.take(message)[0] for message in turns] == ["a", "a", "b", "b"]


def test_an_abandoned_prompts_turn_is_not_given_to_the_next_one():
    attribution = waiting("a", "b")
    assert [attribution.take(m)[0] for m in [assistant("a"), result("a")]] == ["a", "a"]
    assert [attribution.take(m)[0] for m in [assistant("b"), result("b")]] == ["b", "b"]


def test_an_interrupted_turn_without_a_name_ends_the_oldest_prompt():
    attribution = waiting("a", "b")
    assert attribution.take(result())[0] == "a"
    assert attribution.take(result("b"))[0] == "b"


def test_prompts_merged_into_one_turn_are_answered_once_as_the_newest():
    attribution = waiting("a", "b")
    assert attribution.take(result("a", "b"))[0] == "b"
    assert attribution.waiting == []


@pytest.mark.parametrize("origin", [{"kind": "task-notification"}, {"kind": "peer"}])
def test_an_injected_turn_is_nobodys(origin):
    attribution = waiting("a")
    stray = assistant()
    assert attribution.take(stray) == ("", [])
    assert attribution.take(result(origin=origin)) == ("", [])
    assert attribution.take(assistant("a"))[0] == "a"


def test_content_before_an_injected_turn_took_our_prompt_in_is_not_its_answer():
    attribution = waiting("a")
    stray, answer, end = assistant(), assistant("a"), result("a", origin={"kind": "peer"})
    assert attribution.take(stray) == ("", [])
    assert attribution.take(answer) == ("a", [answer])
    assert attribution.take(end) == ("a", [end])


def test_content_without_a_name_waits_for_the_result_that_has_one():
    attribution = waiting("a")
    local, end = assistant(), result("a")
    assert attribution.take(local) == ("", [])
    assert attribution.take(end) == ("a", [local, end])


def test_what_is_kept_back_is_bounded():
    attribution = waiting("a")
    for _ in range(MAX_HELD + 5):
        attribution.take(event())
    assert len(attribution.take(result("a"))[1]) == MAX_HELD + 1


def test_a_turn_that_names_a_stranger_is_nobodys():
    attribution = waiting("a")
    turn = [event("stranger"), assistant(), system("status"), result("stranger")]
    assert [attribution.take(message) for message in turn] == [("", [])] * 4
    assert attribution.waiting == ["a"]


def test_a_replayed_prompt_and_a_status_name_their_turn_too():
    for mark in (user("a"), system("status", "a")):
        attribution = waiting("a")
        assert attribution.take(mark) == ("a", [mark])
        assert attribution.take(user("its own"))[0] == "a"


def test_nothing_is_anybodys_while_no_prompt_waits():
    attribution = waiting()
    for message in (system("task_notification"), assistant(), result(), result("late")):
        assert attribution.take(message) == ("", [])


@pytest.mark.parametrize("echoes", [True, False])
def test_a_turn_that_spoke_before_our_prompt_was_sent_is_nobodys(echoes):
    attribution = waiting(echoes=echoes)
    attribution.take(system("init"))
    attribution.take(assistant())
    attribution.sent("a")
    assert attribution.take(assistant()) == ("", [])
    assert attribution.take(result()) == ("", [])
    attribution.take(system("init"))
    assert attribution.take(result())[0] == "a"


def test_what_is_said_outside_of_any_turn_does_not_cost_the_next_one():
    attribution = waiting()
    attribution.take(assistant())
    attribution.sent("a")
    assert attribution.take(system("init"))[0] == "a"
    assert attribution.take(result())[0] == "a"


def test_a_withdrawn_prompt_gets_nothing():
    attribution = waiting("a", "b")
    attribution.withdrawn("a")
    assert attribution.take(result())[0] == "b"


def test_repr_shows_the_state():
    attribution = waiting("a")
    attribution.take(assistant("a"))
    assert repr(attribution) == "<Attribution waiting=['a'] owner='a' held=0>"
