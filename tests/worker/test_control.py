"""Questions to the caller: a fake supervisor answers, or does not."""

import asyncio
import functools
import gc
import subprocess
import sys

import cloudpickle
import dill
import pytest

from soloist.protocol import codec
from soloist.protocol.errors import (
    ClientError,
    LocalProtocolError,
    RemoteProtocolError,
    RequestTimeout,
)
from soloist.protocol.messages import Control, ControlReply
from soloist.worker import control
from soloist.worker.control import Controls, ask_caller, ask_hook, ask_permission

LIMIT_S = 20.0
SOON_S = 0.01


def run(coroutine):
    async def bounded():
        return await asyncio.wait_for(coroutine, LIMIT_S)

    return asyncio.run(bounded())


class Caller:
    """Takes questions; answers each with ``reply`` (bytes go out as they are) unless it is None."""

    def __init__(self, reply=None, timeout_s=LIMIT_S):
        self.reply = reply
        self.asked = []
        self.news = asyncio.Event()
        self.controls = Controls(self.take, timeout_s)

    def take(self, question):
        assert codec.decode(codec.encode(question)) == question
        self.asked.append(question)
        self.news.set()
        if self.reply is not None:
            # As a real supervisor may: the answer is there before the question's sender returns.
            self.answer(question.number, self.reply)

    def answer(self, number, reply):
        data = reply if isinstance(reply, bytes) else codec.encode_value(reply)
        self.controls.resolve(ControlReply(number, data))

    @property
    def data(self):
        return [codec.decode_value(question.data) for question in self.asked]

    @property
    def waiting(self):
        return self.controls._waiting


@pytest.fixture
def caller():
    """The caller of this very process."""
    caller = Caller()
    control.install(caller.controls)
    yield caller
    control.install(None)
    assert caller.waiting == {}


@pytest.fixture(autouse=True)
def _collected():
    """A future whose error nobody took complains in the very test that left it."""
    yield
    gc.collect()


class TestControls:
    def test_a_question_says_what_is_asked_and_during_which_lease(self):
        async def ask():
            caller = Caller(reply={"yes": True})
            await caller.controls.ask("kind", {"a": 1})
            caller.controls.lease = 7
            assert await caller.controls.ask("kind", {"a": [b"x", None]}) == {"yes": True}
            return caller

        caller = run(ask())
        assert caller.asked == [
            Control(1, 0, "kind", codec.encode_value({"a": 1})),
            Control(2, 7, "kind", codec.encode_value({"a": [b"x", None]})),
        ]
        assert caller.waiting == {}

    def test_answers_find_their_questions_in_any_order(self):
        async def ask():
            caller = Caller()
            asking = [asyncio.ensure_future(caller.controls.ask("k", {"n": n})) for n in range(3)]
            await asyncio.sleep(0)
            for question, data in reversed(list(zip(caller.asked, caller.data, strict=True))):
                caller.answer(question.number, {"to": data["n"]})
            return await asyncio.gather(*asking)

        assert run(ask()) == [{"to": 0}, {"to": 1}, {"to": 2}]

    def test_without_an_answer_in_time_it_fails_and_forgets(self):
        async def ask():
            caller = Caller(timeout_s=SOON_S)
            with pytest.raises(RequestTimeout, match=r"did not answer within 0\.01 s"):
                await caller.controls.ask("k", {})
            assert caller.waiting == {}
            caller.answer(1, {"too": "late"})
            caller.reply = {"in": "time"}
            return await caller.controls.ask("k", {})

        assert run(ask()) == {"in": "time"}

    def test_a_cancelled_question_is_forgotten(self):
        async def ask():
            caller = Caller()
            asking = asyncio.ensure_future(caller.controls.ask("k", {}))
            await asyncio.sleep(0)
            assert list(caller.waiting) == [1]
            asking.cancel()
            await asyncio.wait({asking})
            caller.answer(1, {"too": "late"})
            return asking.cancelled(), caller.waiting

        assert run(ask()) == (True, {})

    def test_an_answer_in_the_moment_of_the_cancellation_is_dropped(self):
        async def ask():
            caller = Caller()
            asking = asyncio.ensure_future(caller.controls.ask("k", {}))
            await asyncio.sleep(0)
            asking.cancel()
            caller.answer(1, {})
            await asyncio.wait({asking})
            return asking.cancelled(), caller.waiting

        assert run(ask()) == (True, {})

    def test_the_first_answer_counts_and_answers_to_nothing_are_dropped(self):
        async def ask():
            caller = Caller()
            asking = asyncio.ensure_future(caller.controls.ask("k", {}))
            await asyncio.sleep(0)
            caller.answer(2, {"nobody": "asked"})
            caller.answer(1, {"first": True})
            caller.answer(1, {"first": False})
            return await asking

        assert run(ask()) == {"first": True}

    @pytest.mark.parametrize("reply", [b"", b"\xc1", [], "yes", codec.encode_value(None)])
    def test_an_answer_that_is_no_map_is_the_callers_fault(self, reply):
        caller = Caller(reply)
        with pytest.raises(RemoteProtocolError):
            run(caller.controls.ask("k", {}))
        assert caller.waiting == {}

    def test_a_reply_with_an_error_alone_says_that_nobody_decided(self):
        with pytest.raises(ClientError, match="no handler"):
            run(Caller({"error": "no handler"}).controls.ask("k", {}))
        mixed = {"error": "part of the answer", "text": "x"}
        assert run(Caller(mixed).controls.ask("k", {})) == mixed

    @pytest.mark.parametrize("value", [object(), 2**64, {1: "x"}, "\ud800", {1, 2}])
    def test_what_cannot_be_sent_is_not_asked(self, value):
        caller = Caller({})
        with pytest.raises(LocalProtocolError, match="a k question cannot be sent"):
            run(caller.controls.ask("k", {"value": value}))
        assert (caller.asked, caller.waiting) == ([], {})

    def test_a_question_that_fails_to_leave_is_forgotten(self):
        def broken(question):
            raise OSError("no way out")

        controls = Controls(broken, LIMIT_S)
        with pytest.raises(OSError, match="no way out"):
            run(controls.ask("k", {}))
        assert controls._waiting == {}

    def test_its_state_can_be_seen(self):
        assert repr(Caller().controls) == "<Controls lease=0 waiting=[]>"


class TestAskCaller:
    def test_it_asks_the_caller_of_this_process(self, caller):
        caller.reply = {"text": "well"}
        assert run(ask_caller("echo", {"prompt": "how?"})) == {"text": "well"}
        assert (caller.asked[0].kind, caller.data) == ("echo", [{"prompt": "how?"}])

    def test_outside_a_worker_there_is_nobody_to_ask(self):
        with pytest.raises(LocalProtocolError, match="outside a worker"):
            run(ask_caller("echo", {}))


MALFORMED = [
    {},
    {"behavior": "Allow"},
    {"behavior": True},
    {"behavior": ["allow"]},
    {"behavior": "allow", "updated_input": "ls"},
    {"behavior": "allow", "updated_input": {"data": b"\x00"}},
    {"behavior": "allow", "updated_input": {"number": float("nan")}},
    {"behavior": "allow", "updated_permissions": 1},
    {"behavior": "allow", "updated_permissions": [1]},
    {"behavior": "allow", "updated_permissions": [{}]},
    {"behavior": "allow", "updated_permissions": [{"type": "addRules"}]},
    {"behavior": "allow", "updated_permissions": [{"type": "setMode", "mode": b"plan"}]},
    {"behavior": "deny", "message": 1},
    {"allow": True},
    {"error": "the handler raised KeyError"},
    [],
    "allow",
    b"\xc1",
]


class TestPermission:
    @pytest.fixture
    def sdk(self):
        return pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")

    @pytest.fixture
    def decide(self, sdk):
        def decide(tool_input=None, **context):
            return run(
                ask_permission("Bash", tool_input or {}, sdk.ToolPermissionContext(**context))
            )

        return decide

    def test_the_caller_sees_the_tool_its_input_and_what_is_known(self, sdk, caller, decide):
        caller.reply = {"behavior": "allow"}
        rule = sdk.types.PermissionRuleValue(tool_name="Bash", rule_content="ls:*")
        rules = sdk.PermissionUpdate(type="addRules", rules=[rule], behavior="allow")
        unknown = sdk.PermissionUpdate(type="fromTheFuture")
        decide(
            {"command": "ls"}, tool_use_id="tool_1", title="May I?", suggestions=[rules, unknown]
        )
        decide()
        assert [question.kind for question in caller.asked] == ["permission", "permission"]
        full, least = caller.data
        assert full == {
            "tool_name": "Bash",
            "input": {"command": "ls"},
            "tool_use_id": "tool_1",
            "title": "May I?",
            "suggestions": [
                {
                    "type": "addRules",
                    "destination": "session",
                    "rules": [{"toolName": "Bash", "ruleContent": "ls:*"}],
                    "behavior": "allow",
                },
                {"type": "fromTheFuture"},
            ],
        }
        assert least == {"tool_name": "Bash", "input": {}}

    def test_suggestions_that_the_sdk_left_as_maps_stay_maps(self, caller, decide):
        caller.reply = {"behavior": "allow"}
        decide(suggestions=[{"type": "setMode", "mode": "plan"}])
        assert caller.data[0]["suggestions"] == [{"type": "setMode", "mode": "plan"}]

    def test_an_allow_allows(self, sdk, caller, decide):
        caller.reply = {"behavior": "allow"}
        assert decide() == sdk.PermissionResultAllow()
        caller.reply = {"behavior": "allow", "updated_input": None, "updated_permissions": None}
        assert decide() == sdk.PermissionResultAllow()
        caller.reply = {"behavior": "allow", "updated_input": {"command": "ls"}}
        assert decide() == sdk.PermissionResultAllow(updated_input={"command": "ls"})

    def test_an_allow_may_take_up_the_suggestions(self, sdk, caller, decide):
        suggestion = sdk.PermissionUpdate(type="setMode", mode="acceptEdits", destination="session")
        caller.reply = {"behavior": "allow"}
        decide(suggestions=[suggestion])
        caller.reply = {"behavior": "allow", "updated_permissions": caller.data[0]["suggestions"]}
        assert decide() == sdk.PermissionResultAllow(updated_permissions=[suggestion])

    def test_a_deny_denies(self, sdk, caller, decide):
        caller.reply = {"behavior": "deny"}
        assert decide() == sdk.PermissionResultDeny(message="denied by the caller")
        caller.reply = {"behavior": "deny", "message": "not here", "interrupt": True}
        assert decide() == sdk.PermissionResultDeny(message="not here", interrupt=True)

    @pytest.mark.parametrize("reply", MALFORMED, ids=repr)
    def test_anything_else_denies_and_says_why(self, sdk, caller, decide, reply):
        caller.reply = reply
        denial = decide()
        assert isinstance(denial, sdk.PermissionResultDeny)
        assert denial.message.startswith("not allowed, because nobody allowed it: ")
        assert len(denial.message) > len("not allowed, because nobody allowed it: ")

    def test_silence_denies(self, sdk, caller, decide):
        caller.controls._timeout_s = SOON_S
        assert "did not answer within" in decide().message

    def test_input_that_cannot_be_sent_denies(self, sdk, caller, decide):
        caller.reply = {"behavior": "allow"}
        denial = decide({"number": 2**70})
        assert isinstance(denial, sdk.PermissionResultDeny)
        assert "cannot be sent" in denial.message

    def test_without_a_caller_it_denies(self, sdk, decide):
        assert "outside a worker" in decide().message

    def test_cancelling_it_is_no_denial(self, sdk, caller):
        async def ask():
            asking = asyncio.ensure_future(ask_permission("Bash", {}, sdk.ToolPermissionContext()))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})
            return asking.cancelled()

        assert run(ask())


PRE_TOOL_USE = {"hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {}}


def hook(input_data):
    return run(ask_hook(input_data, "tool_1", {"signal": None}))


class TestHook:
    def test_the_caller_sees_the_input_and_its_output_is_the_hooks(self, caller):
        caller.reply = {"output": {"continue_": False, "stopReason": "enough"}}
        assert hook(PRE_TOOL_USE) == {"continue_": False, "stopReason": "enough"}
        assert caller.asked[0].kind == "hook"
        assert caller.data == [{"input": PRE_TOOL_USE, "tool_use_id": "tool_1"}]

    def test_an_empty_output_is_one(self, caller):
        caller.reply = {"output": {}}
        assert hook(PRE_TOOL_USE) == {}

    @pytest.mark.parametrize(
        "reply",
        [{}, {"output": None}, {"output": "allow"}, {"output": {"x": b""}}, {"error": "none"}, []],
        ids=repr,
    )
    def test_anything_else_denies_the_tool(self, caller, reply):
        caller.reply = reply
        decision = hook(PRE_TOOL_USE)["hookSpecificOutput"]
        reason = decision.pop("permissionDecisionReason")
        assert decision == {"hookEventName": "PreToolUse", "permissionDecision": "deny"}
        assert reason.startswith("not allowed, because nobody allowed it: ")

    def test_silence_denies_the_tool(self, caller):
        caller.controls._timeout_s = SOON_S
        decision = hook(PRE_TOOL_USE)["hookSpecificOutput"]
        assert decision["permissionDecision"] == "deny"
        assert "did not answer" in decision["permissionDecisionReason"]

    def test_without_a_caller_the_tool_is_denied(self):
        assert hook(PRE_TOOL_USE)["hookSpecificOutput"]["permissionDecision"] == "deny"

    @pytest.mark.parametrize("event", ["PostToolUse", "Stop", "UserPromptSubmit", None])
    def test_other_hooks_say_nothing_then(self, event):
        assert hook({"hook_event_name": event}) == {}


class TestTravel:
    @pytest.mark.parametrize("function", [ask_permission, ask_hook, ask_caller])
    @pytest.mark.parametrize(
        "pickler",
        [cloudpickle.dumps, functools.partial(dill.dumps, recurse=True)],
        ids=["cloudpickle", "dill"],
    )
    def test_they_travel_by_reference(self, function, pickler):
        program = (
            "import sys, pickle, soloist.worker.control as control;"
            "sent = pickle.loads(sys.stdin.buffer.read())['can_use_tool'];"
            f"print(sent is control.{function.__name__})"
        )
        data = pickler({"can_use_tool": function})
        done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True)
        assert (done.stdout, done.stderr) == (b"True\n", b"")

    def test_importing_the_module_does_not_import_the_sdk(self):
        program = "import sys, soloist.worker.control; print('claude_agent_sdk' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        assert done.stdout == b"False\n"
