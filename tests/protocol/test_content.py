"""The messages of a conversation: their wire form, and their likeness to the Agent SDK's."""

import ast
import dataclasses
import enum
import inspect
import pathlib
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol import content as c
from soloist.protocol.errors import RemoteProtocolError
from tests.protocol import strategies

ALL = {**strategies.CONTENT, **strategies.BLOCKS}
RESULT = c.ResultMessage("success", 5, 0, is_error=False, num_turns=1, session_id="s")


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"type": "AssistantMessage", "model": "m", "content": list(blocks)}


class TestWireForm:
    @pytest.mark.parametrize("cls", strategies.CONTENT, ids=lambda cls: cls.__name__)
    @given(data=st.data())
    def test_comes_back_equal(self, cls, data):
        message = data.draw(strategies.CONTENT[cls])
        value = c.to_map(message)
        assert value["type"] == cls.__name__
        assert c.from_map(value) == message

    @pytest.mark.parametrize("cls", strategies.CONTENT, ids=lambda cls: cls.__name__)
    def test_holds_every_field(self, cls):
        names = [field.name for field in dataclasses.fields(cls)]
        kinds = {"content": [], "data": {}, "event": {}, "is_error": True, "num_turns": 1}
        kinds |= {"duration_ms": 1, "duration_api_ms": 1}
        message = cls(**{name: kinds.get(name, name) for name in names})
        assert set(c.to_map(message)) == {"type", *names}
        assert c.from_map(c.to_map(message)) == message

    def test_leaves_out_what_is_none(self):
        assert c.to_map(c.UserMessage("hi")) == {"type": "UserMessage", "content": "hi"}

    def test_keeps_what_is_false_or_empty(self):
        block = c.ToolResultBlock("id", "", is_error=False)
        (value,) = c.to_map(c.UserMessage([block]))["content"]
        assert value == {
            "type": "ToolResultBlock",
            "tool_use_id": "id",
            "content": "",
            "is_error": False,
        }

    def test_takes_a_tuple_of_blocks_for_a_list(self):
        message = c.AssistantMessage((c.TextBlock("x"),), "m")
        assert c.from_map(c.to_map(message)) == c.AssistantMessage([c.TextBlock("x")], "m")

    def test_takes_a_subclass_of_the_type_of_a_field(self):
        class Model(enum.StrEnum):
            SMALL = "small"

        assert c.to_map(c.AssistantMessage([], Model.SMALL))["model"] == "small"

    def test_has_dataclasses_inside_fields_as_maps(self):
        @dataclasses.dataclass
        class Deferred:
            id: str

        message = dataclasses.replace(
            RESULT, deferred_tool_use=Deferred("a"), permission_denials=[Deferred("b"), "c"]
        )
        value = c.to_map(message)
        assert value["deferred_tool_use"] == {"id": "a"}
        assert value["permission_denials"] == [{"id": "b"}, "c"]

    def test_keeps_messages_of_other_names_as_events(self):
        @dataclasses.dataclass
        class Info:
            status: str

        @dataclasses.dataclass
        class RateLimitEvent:
            rate_limit_info: Info
            uuid: str

        event = c.from_map(c.to_map(RateLimitEvent(Info("allowed"), "u")))
        data = {"rate_limit_info": {"status": "allowed"}, "uuid": "u"}
        assert event == c.SystemMessage("RateLimitEvent", data)

    def test_of_a_lone_block_is_an_event_too(self):
        assert c.to_map(c.TextBlock("x"))["subtype"] == "TextBlock"

    def test_keeps_blocks_of_other_names_as_maps(self):
        @dataclasses.dataclass
        class ImageBlock:
            source: str
            type: str = "image"

        message = c.from_map(c.to_map(c.AssistantMessage([ImageBlock("x")], "m")))
        assert message == c.AssistantMessage([{"type": "ImageBlock", "source": "x"}], "m")

    def test_takes_blocks_that_are_maps(self):
        block = {"type": "text", "text": "hi"}
        message = c.AssistantMessage([block], "m")
        assert c.from_map(c.to_map(message)) == message

    def test_takes_a_subclass_for_its_base(self):
        @dataclasses.dataclass(frozen=True)
        class TaskStartedMessage(c.SystemMessage):
            task_id: str = ""

        @dataclasses.dataclass(frozen=True)
        class LoudBlock(c.TextBlock):
            volume: int = 11

        event = c.from_map(c.to_map(TaskStartedMessage("task_started", {"a": 1}, "t")))
        assert event == c.SystemMessage("task_started", {"a": 1})
        message = c.from_map(c.to_map(c.AssistantMessage([LoudBlock("x")], "m")))
        assert message == c.AssistantMessage([c.TextBlock("x")], "m")

    def test_takes_a_class_of_an_older_sdk_that_lacks_a_field(self):
        @dataclasses.dataclass
        class ToolResultBlock:
            tool_use_id: str

        message = c.AssistantMessage(content=[ToolResultBlock("7")], model="m")
        assert c.to_map(message)["content"] == [{"type": "ToolResultBlock", "tool_use_id": "7"}]

    def test_remembers_the_names_of_only_so_many_classes(self, monkeypatch):
        monkeypatch.setattr(c, "_MAX_NAMES", len(c._names))
        event = dataclasses.make_dataclass("Event", [])()
        assert [c.to_map(event)["subtype"] for _ in range(2)] == ["Event", "Event"]
        assert type(event) not in c._names

    def test_a_message_like_an_earlier_one_keeps_its_own_values(self):
        first = c.to_map(c.StreamEvent("1", "s", {"a": 1}, user_message_uuid="u"))
        second = c.to_map(c.StreamEvent("2", "t", {"b": 2}, user_message_uuid="v"))
        other = c.to_map(c.StreamEvent("3", "t", {}, parent_tool_use_id="p"))
        kind = {"type": "StreamEvent"}
        assert first == {**kind, "uuid": "1", "session_id": "s", "event": {"a": 1},
                         "user_message_uuid": "u"}  # fmt: skip
        assert second == {**kind, "uuid": "2", "session_id": "t", "event": {"b": 2},
                          "user_message_uuid": "v"}  # fmt: skip
        assert other == {**kind, "uuid": "3", "session_id": "t", "event": {},
                         "parent_tool_use_id": "p"}  # fmt: skip

    def test_a_wrong_type_is_seen_also_after_a_right_one(self):
        for _ in range(2):
            assert c.to_map(c.SystemMessage("s", {}))["data"] == {}
            with pytest.raises(TypeError, match="data must be dict, not str"):
                c.to_map(c.SystemMessage("s", "text"))

    def test_remembers_only_so_many_layouts(self, monkeypatch):
        monkeypatch.setattr(c, "_layouts", {})
        monkeypatch.setattr(c, "_MAX_LAYOUTS", 1)
        for _ in range(2):
            assert c.to_map(c.SystemMessage("s", {})) == {
                "type": "SystemMessage", "subtype": "s", "data": {},
            }  # fmt: skip
            assert c.to_map(c.UserMessage("hi")) == {"type": "UserMessage", "content": "hi"}
        assert len(c._layouts) == 1


class TestMessagesThatCannotBeSent:
    @pytest.mark.parametrize(
        "message",
        ["text", None, 5, {}, object(), c.ResultMessage],
        ids=lambda value: type(value).__name__,
    )
    def test_name_the_types_to_yield_instead(self, message):
        with pytest.raises(TypeError, match="yield soloist's message types"):
            c.to_map(message)

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            (c.AssistantMessage([], None), "AssistantMessage.model must be str, not NoneType"),
            (c.AssistantMessage("text", "m"), "content must be list, not str"),
            (c.UserMessage(None), "content must be str or list, not NoneType"),
            (c.SystemMessage("x", []), "data must be dict, not list"),
            (c.SystemMessage(5, {}), "subtype must be str, not int"),
            (dataclasses.replace(RESULT, num_turns=True), "num_turns must be int, not bool"),
            (dataclasses.replace(RESULT, num_turns=1.0), "num_turns must be int, not float"),
            (dataclasses.replace(RESULT, is_error=0), "is_error must be bool, not int"),
            (c.AssistantMessage([c.TextBlock(5)], "m"), "TextBlock.text must be str, not int"),
            (c.AssistantMessage([{"type": "TextBlock"}], "m"), "TextBlock.text must be str"),
            (c.AssistantMessage([{}], "m"), "content block"),
            (c.AssistantMessage(["text"], "m"), "content block"),
            (c.AssistantMessage([{"type": []}], "m"), "content block"),
        ],
        ids=repr,
    )
    def test_name_the_field_that_is_wrong(self, message, text):
        with pytest.raises(TypeError, match=text):
            c.to_map(message)

    def test_and_cannot_even_be_read_are_a_type_error(self):
        @dataclasses.dataclass
        class Event:
            value: Any

        @dataclasses.dataclass
        class ResultMessage:
            @property
            def subtype(self):
                raise ZeroDivisionError

        cycle: list[Any] = []
        cycle.append(cycle)
        for message in (
            ResultMessage(),
            Event(cycle),
            Event(threading.Lock()),
            dataclasses.replace(RESULT, errors=cycle),
        ):
            with pytest.raises(TypeError):
                c.to_map(message)


class TestMapsFromAPeer:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            5,
            "AssistantMessage",
            [],
            {},
            {"type": None},
            {"type": []},
            {"type": {}},
            {"type": "Unknown"},
            {"type": "TextBlock", "text": "a block is no message"},
            {"type": "UserMessage"},
            {"type": "UserMessage", "content": None},
            {"type": "UserMessage", "content": 5},
            {"type": "AssistantMessage", "content": "text", "model": "m"},
            {"type": "AssistantMessage", "content": []},
            {"type": "AssistantMessage", "content": {}, "model": "m"},
            {"type": "SystemMessage", "subtype": "x", "data": "text"},
            {"type": "StreamEvent", "uuid": "", "session_id": ""},
            assistant(None),
            assistant("text"),
            assistant([]),
            assistant({}),
            assistant({"type": 5}),
            assistant({"type": ["TextBlock"]}),
            assistant({"type": "TextBlock"}),
            assistant({"type": "TextBlock", "text": None}),
            assistant({"type": "ToolUseBlock", "id": "a", "name": "b", "input": []}),
        ],
        ids=repr,
    )
    def test_that_are_no_messages_are_its_fault(self, value):
        with pytest.raises(RemoteProtocolError):
            c.from_map(value)

    @pytest.mark.parametrize("cls", strategies.CONTENT, ids=lambda cls: cls.__name__)
    @given(data=st.data())
    def test_must_have_every_required_field(self, cls, data):
        value = c.to_map(data.draw(strategies.CONTENT[cls]))
        for field in dataclasses.fields(cls):
            if field.default is dataclasses.MISSING:
                for broken in ({**value, field.name: None}, {**value, field.name: object()}):
                    with pytest.raises(RemoteProtocolError, match=field.name):
                        c.from_map(broken)
                with pytest.raises(RemoteProtocolError, match=field.name):
                    c.from_map({key: value[key] for key in value.keys() - {field.name}})

    def test_may_have_keys_that_this_version_does_not_know(self):
        value = assistant({"type": "TextBlock", "text": "x", "new": 1})
        assert c.from_map({**value, "new": 2}) == c.AssistantMessage([c.TextBlock("x")], "m")

    @given(strategies.garbage_values)
    def test_give_a_message_or_are_its_fault(self, value):
        for candidate in (value, assistant(value), {**assistant(), "content": value}):
            try:
                message = c.from_map(candidate)
            except RemoteProtocolError:
                continue
            assert isinstance(message, c.Message)


class TestAnswers:
    def test_end_with_a_result_of_any_origin(self):
        foreign = dataclasses.make_dataclass("ResultMessage", [])
        derived = type("FinalResult", (c.ResultMessage,), {})
        assert c.is_result(RESULT)
        assert c.is_result(foreign())
        assert c.is_result(object.__new__(derived))
        assert not c.is_result(c.SystemMessage("x", {}))
        assert not c.is_result("ResultMessage")

    def test_have_the_results_text(self):
        maps = [assistant({"type": "TextBlock", "text": "draft"})]
        for text in ("final", ""):
            result = c.to_map(dataclasses.replace(RESULT, result=text))
            assert c.text_of([*maps, result]) == text

    def test_without_the_results_text_have_the_agents_own(self):
        messages = [
            c.UserMessage([c.TextBlock("not this")]),
            c.AssistantMessage(
                [c.TextBlock("a"), c.ThinkingBlock("hm", "s"), {"type": "new", "text": "no"}], "m"
            ),
            c.SystemMessage("x", {}),
            c.AssistantMessage([c.TextBlock("b")], "m"),
            RESULT,
        ]
        assert c.text_of([c.to_map(message) for message in messages]) == "ab"

    def test_of_nothing_have_no_text(self):
        assert c.text_of([]) == ""

    @pytest.mark.parametrize(
        "value",
        [
            {},
            {"result": 5},
            {"type": "AssistantMessage"},
            {"type": "AssistantMessage", "content": 5},
            {"type": "AssistantMessage", "content": "text"},
            assistant(None, 5, "x", {}, {"type": []}, {"type": "TextBlock"}),
            assistant({"type": "TextBlock", "text": None}),
        ],
        ids=repr,
    )
    def test_of_damaged_maps_have_no_text(self, value):
        assert c.text_of([value]) == ""

    def test_of_a_bare_callable_are_two_messages(self):
        first, last = c.function_messages("hi", num_turns=3, duration_s=0.0126)
        assert first == c.AssistantMessage([c.TextBlock("hi")], "function")
        assert c.is_result(last)
        assert last == c.ResultMessage(
            "success", 13, 0, is_error=False, num_turns=3, session_id="", result="hi"
        )
        assert c.text_of([c.to_map(first), c.to_map(last)]) == "hi"


@pytest.fixture(scope="module")
def sdk():
    return pytest.importorskip("claude_agent_sdk").types


class TestLikenessToTheAgentSdk:
    @pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
    def test_same_fields_in_the_same_order_with_the_same_defaults(self, sdk, cls):
        theirs = dataclasses.fields(getattr(sdk, cls.__name__))
        ours = dataclasses.fields(cls)
        assert [f.name for f in ours] == [f.name for f in theirs]
        assert [f.default for f in ours] == [f.default for f in theirs]

    def test_every_block_and_message_is_known(self, sdk):
        kinds = (*sdk.ContentBlock.__args__, *sdk.Message.__args__)
        unknown = {kind.__name__ for kind in kinds} - {cls.__name__ for cls in ALL}
        # These become a SystemMessage.
        assert unknown <= {"RateLimitEvent", "ConversationResetMessage"}

    @pytest.mark.parametrize("cls", strategies.CONTENT, ids=lambda cls: cls.__name__)
    @given(data=st.data())
    def test_its_objects_have_the_wire_form_of_ours(self, sdk, cls, data):
        ours = data.draw(strategies.CONTENT[cls])
        assert c.to_map(_theirs(sdk, ours)) == c.to_map(ours)

    def test_its_special_events_arrive_as_system_messages(self, sdk):
        event = sdk.HookEventMessage("hook_started", {"a": 1}, "PreToolUse")
        assert c.from_map(c.to_map(event)) == c.SystemMessage("hook_started", {"a": 1})
        limit = sdk.RateLimitEvent(sdk.RateLimitInfo("allowed"), "u", "s")
        arrived = c.from_map(c.to_map(limit))
        assert arrived.subtype == "RateLimitEvent"
        assert arrived.data["rate_limit_info"]["status"] == "allowed"

    def test_its_deferred_tool_use_arrives_as_a_map(self, sdk):
        result = _theirs(sdk, RESULT)
        result.deferred_tool_use = sdk.DeferredToolUse(id="a", name="b", input={"x": 1})
        arrived = c.from_map(c.to_map(result))
        assert arrived.deferred_tool_use == {"id": "a", "name": "b", "input": {"x": 1}}


def _theirs(sdk: Any, ours: Any) -> Any:
    """The Agent SDK's object of the same name with the same fields."""
    if isinstance(ours, list):
        return [_theirs(sdk, item) for item in ours]
    if not dataclasses.is_dataclass(ours):
        return ours
    fields = {f.name: _theirs(sdk, getattr(ours, f.name)) for f in dataclasses.fields(ours)}
    return getattr(sdk, type(ours).__name__)(**fields)


def test_the_module_needs_nothing_but_the_standard_library_and_errors():
    tree = ast.parse(pathlib.Path(inspect.getfile(c)).read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    assert {m for m in modules if m.split(".")[0] not in sys.stdlib_module_names} == {
        "soloist.protocol.errors"
    }
