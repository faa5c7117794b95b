"""Permissions and hooks of the client ``claude`` are the caller's to decide."""

import asyncio
import gc
import json

import pytest

from soloist.protocol.errors import ClientError
from soloist.worker import control
from soloist.worker.clients.claude import ClaudeClient
from soloist.worker.control import ask_hook
from tests import stand_in
from tests.worker.test_claude import answer, ask, run
from tests.worker.test_control import Caller

sdk = pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    return stand_in.install(tmp_path_factory.mktemp("stand_in"))


@pytest.fixture
def caller():
    """The caller of this very process."""
    caller = Caller()
    control.install(caller.controls)
    yield caller
    control.install(None)


@pytest.fixture(autouse=True)
def _collected():
    """What a test left open complains (ResourceWarning) in that very test."""
    yield
    gc.collect()


async def controlled(cli, **options):
    client = ClaudeClient(cli_path=cli, **options)
    client.use_control()
    await client.connect()
    return client


def answer_of(cli, prompt, **options):
    async def scenario():
        client = await controlled(cli, **options)
        try:
            return await answer(client, prompt)
        finally:
            await client.disconnect()

    return run(scenario())


class TestPermission:
    def test_the_caller_is_asked(self, cli, caller):
        caller.reply = {"behavior": "allow", "updated_input": {"text": "safer"}}
        assert answer_of(cli, "/tool Bash rm -rf") == 'allow {"text": "safer"}'
        assert caller.data == [
            {
                "tool_name": "Bash",
                "input": {"text": "rm -rf"},
                "tool_use_id": "tool_1",
                "suggestions": [
                    {
                        "type": "addRules",
                        "destination": "session",
                        "rules": [{"toolName": "Bash"}],
                        "behavior": "allow",
                    }
                ],
            }
        ]

    def test_an_allow_with_nothing_else_leaves_the_input(self, cli, caller):
        caller.reply = {"behavior": "allow"}
        assert answer_of(cli, "/tool Bash ls") == 'allow {"text": "ls"}'

    def test_a_denial_arrives_with_its_message(self, cli, caller):
        caller.reply = {"behavior": "deny", "message": "not here"}
        assert answer_of(cli, "/tool Bash ls") == "deny not here"

    def test_a_denial_may_end_the_turn(self, cli, caller):
        caller.reply = {"behavior": "deny", "interrupt": True}

        async def scenario():
            client = await controlled(cli)
            await client.query("/tool Bash ls")
            reasons = []
            with pytest.raises(ClientError, match="interrupted"):
                async for message in client.receive_response():
                    reasons.append(getattr(message, "terminal_reason", None))
            following = await answer(client, "next")
            await client.disconnect()
            return reasons[-1], following

        assert run(scenario()) == ("aborted_streaming", "next")

    @pytest.mark.parametrize("reply", [{}, {"error": "nobody"}, b"\xc1"], ids=repr)
    def test_no_decision_is_a_denial(self, cli, caller, reply):
        caller.reply = reply
        assert answer_of(cli, "/tool Bash ls").startswith("deny not allowed, because nobody")

    def test_silence_is_a_denial_and_the_conversation_goes_on(self, cli):
        caller = Caller(timeout_s=0.05)
        control.install(caller.controls)

        async def scenario():
            client = await controlled(cli)
            said = [await answer(client, "/tool Bash ls"), await answer(client, "next")]
            await client.disconnect()
            return said

        try:
            denied, following = run(scenario())
        finally:
            control.install(None)
        assert "did not answer within 0.05 s" in denied
        assert following == "next"
        assert caller.waiting == {}

    def test_an_interrupt_takes_the_question_back(self, cli, caller):
        async def scenario():
            client = await controlled(cli)
            turn = asyncio.ensure_future(ask(client, "/tool Bash ls"))
            await caller.news.wait()
            (question,) = caller.waiting.values()
            await client.interrupt()
            result = (await turn)[-1]
            await asyncio.wait({question})
            assert caller.waiting == {}
            caller.answer(1, {"behavior": "allow"})
            following = await answer(client, "next")
            await client.disconnect()
            return result.terminal_reason, following

        assert run(scenario()) == ("aborted_streaming", "next")

    def test_a_callback_of_the_users_own_is_asked_instead(self, cli, caller):
        async def own(tool, tool_input, context):
            return sdk.PermissionResultDeny(message="my own word")

        assert answer_of(cli, "/tool Bash ls", can_use_tool=own) == "deny my own word"
        assert caller.asked == []

    def test_a_tool_of_the_users_own_for_it_is_left_alone(self, cli, caller):
        argv = json.loads(answer_of(cli, "/argv", permission_prompt_tool_name="mcp__mine__ask"))
        assert argv[argv.index("--permission-prompt-tool") + 1] == "mcp__mine__ask"

    def test_the_sdk_does_not_blame_the_user_for_our_callback(self, cli, caller, recwarn):
        assert answer_of(cli, "fine", allowed_tools=["Read"]) == "fine"
        assert list(recwarn) == []

    def test_without_control_the_caller_is_not_asked(self, cli, caller):
        async def scenario():
            client = ClaudeClient(cli_path=cli)
            await client.connect()
            said = await answer(client, "/tool Bash ls")
            await client.disconnect()
            return said

        assert run(scenario()) == "error canUseTool callback is not provided"
        assert caller.asked == []


@pytest.fixture
def hooks():
    return {"PreToolUse": [sdk.HookMatcher(hooks=[ask_hook])]}


class TestHook:
    def test_the_callers_output_is_the_hooks(self, cli, caller, hooks):
        decision = {"hookEventName": "PreToolUse", "permissionDecision": "allow"}
        caller.reply = {"output": {"hookSpecificOutput": decision, "continue_": True}}
        said = json.loads(answer_of(cli, "/hook Bash ls", hooks=hooks))
        assert said == [{"hookSpecificOutput": decision, "continue": True}]
        (data,) = caller.data
        assert data["tool_use_id"] == "tool_1"
        assert data["input"]["tool_input"] == {"text": "ls"}

    def test_no_output_is_a_denial(self, cli, caller, hooks):
        caller.reply = {"error": "the handler raised KeyError"}
        (said,) = json.loads(answer_of(cli, "/hook Bash ls", hooks=hooks))
        assert said["hookSpecificOutput"]["permissionDecision"] == "deny"
        assert "KeyError" in said["hookSpecificOutput"]["permissionDecisionReason"]
