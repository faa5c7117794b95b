"""The client ``claude`` on the real Agent SDK, with the scripted stand-in as its CLI."""

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import psutil
import pytest

from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    ClientNotFound,
    InvalidOptions,
    InvalidPrompt,
    LocalProtocolError,
    RateLimited,
)
from soloist.worker.clients import claude, claude_cli
from soloist.worker.clients.base import Client
from soloist.worker.clients.claude import ClaudeClient
from tests import stand_in

pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")
from claude_agent_sdk import CLIConnectionError, PermissionResultAllow, PermissionResultDeny

HARD_LIMIT_S = 20


@pytest.fixture(scope="session")
def cli(tmp_path_factory):
    return stand_in.install(tmp_path_factory.mktemp("stand_in"))


@pytest.fixture(autouse=True)
def _collected():
    """What a test left open complains (ResourceWarning) in that very test."""
    yield
    gc.collect()


@pytest.fixture
def impatient(monkeypatch):
    """A CLI that does not end by itself is killed sooner."""
    monkeypatch.setattr(claude_cli, "DISCONNECT_S", 0.3)


def run(scenario):
    """Run a coroutine to its end, or fail instead of hanging."""
    return asyncio.run(asyncio.wait_for(scenario, HARD_LIMIT_S))


@contextlib.asynccontextmanager
async def connected(cli, **options):
    client = ClaudeClient(cli_path=cli, **options)
    await client.connect()
    try:
        yield client
    finally:
        await client.disconnect()


async def ask(client, prompt):
    """One whole turn; its messages."""
    await client.query(prompt)
    return [message async for message in client.receive_response()]


async def answer(client, prompt):
    return (await ask(client, prompt))[-1].result


async def failure(client, prompt, expected=ClientError):
    """A turn that fails; the messages before the error, and the error."""
    messages = []
    await client.query(prompt)
    try:
        async for message in client.receive_response():
            messages.append(message)
    except expected as error:
        return messages, error
    pytest.fail(f"no {expected.__name__} after {names(messages)}")


def names(messages):
    return [type(message).__name__ for message in messages]


async def pid_of(client):
    return int(await answer(client, "/pid"))


def assert_ends(pid):
    """The process ends, or is only a zombie that its parent has yet to reap."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            process.wait(timeout=2)


# The conversation


def test_it_has_the_shape_of_a_client():
    assert isinstance(ClaudeClient(), Client)
    assert not hasattr(ClaudeClient, "reset")


def test_a_turn_ends_with_its_result(cli):
    async def scenario():
        async with connected(cli) as client:
            return await ask(client, "hello")

    messages = run(scenario())
    assert names(messages) == ["SystemMessage", "AssistantMessage", "ResultMessage"]
    assert messages[1].content[0].text == messages[2].result == "hello"
    assert messages[2].user_message_uuids == messages[1].user_message_uuids


def test_content_blocks_are_a_prompt_too(cli):
    async def scenario():
        async with connected(cli) as client:
            blocks = [{"type": "text", "text": "two "}, {"type": "text", "text": "blocks"}]
            return await answer(client, blocks)

    assert run(scenario()) == "two blocks"


def test_pieces_are_streamed_as_they_come(cli):
    async def scenario():
        async with connected(cli) as client:
            return await ask(client, "/parts 3 abcdef")

    events = [message for message in run(scenario()) if type(message).__name__ == "StreamEvent"]
    assert [message.event["delta"]["text"] for message in events] == ["ab", "cd", "ef"]


def test_turns_share_one_conversation(cli):
    async def scenario():
        async with connected(cli) as client:
            await ask(client, "one")
            assert (await ask(client, "two"))[-1].num_turns == 2
            return await answer(client, "/history")

    assert json.loads(run(scenario())) == ["one", "two"]


def test_connecting_again_begins_a_new_conversation(cli):
    async def scenario():
        client = ClaudeClient(cli_path=cli)
        await client.connect()
        first = await pid_of(client)
        await client.disconnect()
        await client.connect()
        second = await pid_of(client)
        await client.connect()  # without a disconnect, the old conversation ends all the same
        history = await answer(client, "/history")
        await client.disconnect()
        return history, [first, second]

    history, pids = run(scenario())
    assert json.loads(history) == []
    assert len(set(pids)) == 2
    for pid in pids:
        assert_ends(pid)


def test_resume_goes_on_with_a_saved_conversation(cli, tmp_path):
    env = {stand_in.SESSIONS_VARIABLE: str(tmp_path)}

    async def scenario():
        async with connected(cli, env=env) as client:
            session_id = (await ask(client, "remember me"))[-1].session_id
        async with connected(cli, env=env, resume=session_id) as client:
            history = await answer(client, "/history")
        with pytest.raises(ClientConnectError, match="No conversation found"):
            await ClaudeClient(cli_path=cli, env=env, resume="unknown").connect()
        return history

    assert json.loads(run(scenario())) == ["remember me"]


def test_model_and_permission_mode_can_change(cli):
    async def scenario():
        async with connected(cli) as client:
            await client.set_model("other")
            await client.set_permission_mode("plan")
            return await answer(client, "/model")

    assert json.loads(run(scenario())) == ["other", "plan"]


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (PermissionResultAllow(updated_input={"text": "safer"}), 'allow {"text": "safer"}'),
        (PermissionResultDeny(message="not here"), "deny not here"),
    ],
)
def test_permissions_are_asked_of_the_callback(cli, decision, expected):
    asked = []

    async def can_use_tool(tool, tool_input, context):
        asked.append((tool, tool_input))
        return decision

    async def scenario():
        async with connected(cli, can_use_tool=can_use_tool) as client:
            return await answer(client, "/tool Bash rm -rf")

    assert run(scenario()) == expected
    assert asked == [("Bash", {"text": "rm -rf"})]


def test_every_turn_that_begins_ends(cli, tmp_path):
    log = tmp_path / "log"

    async def scenario():
        async with connected(cli, env={stand_in.LOG_VARIABLE: str(log)}) as client:
            await ask(client, "one")
            await failure(client, "/fail 500 two")

    run(scenario())
    events = [(entry.event, entry.prompt) for entry in stand_in.read_log(log)]
    assert events == [
        ("start", ""),
        ("begin", "one"),
        ("end:success", "one"),
        ("begin", "/fail 500 two"),
        ("end:fail 500", "/fail 500 two"),
        ("exit", ""),
    ]


# Whose answer is it?


@pytest.mark.parametrize("echo", ["", "/no-uuid "])
def test_the_answer_of_an_abandoned_prompt_reaches_nobody(cli, echo):
    async def scenario():
        async with connected(cli) as client:
            if not echo:
                await ask(client, "a CLI that echoes is known by its first turn")
            await client.query(f"{echo}/delay 0.1 /parts 4 stale")
            async for _ in client.receive_response():
                break
            return await ask(client, f"{echo}/parts 2 fresh")

    messages = run(scenario())
    assert "stale" not in repr(messages)
    assert names(messages)[-4:] == [
        "StreamEvent",
        "StreamEvent",
        "AssistantMessage",
        "ResultMessage",
    ]
    assert messages[-1].result == "fresh"


def test_an_injected_turn_reaches_nobody(cli):
    async def scenario():
        async with connected(cli) as client:
            await ask(client, "a CLI that echoes is known by its first turn")
            return await ask(client, "/inject stray wanted")

    messages = run(scenario())
    assert "stray" not in repr(messages)
    assert messages[-1].result == "wanted"


def test_closing_the_iterator_leaves_the_rest_of_the_turn_for_another(cli):
    async def scenario():
        async with connected(cli) as client:
            await client.query("/parts 3 abc")
            first = client.receive_response()
            seen = [await anext(first), await anext(first)]
            await first.aclose()
            seen += [message async for message in client.receive_response()]
            assert [message async for message in client.receive_response()] == []
            return seen

    assert names(run(scenario())).count("StreamEvent") == 3


def test_a_cancelled_reader_interrupts_drains_and_the_client_is_clean(cli):
    async def scenario():
        async with connected(cli) as client:
            reading = asyncio.create_task(ask(client, "/delay 30 /parts 1000 stale"))
            await asyncio.wait({reading}, timeout=0.1)
            reading.cancel()
            await asyncio.wait({reading})
            await client.interrupt()
            drained = [message async for message in client.receive_response()]
            assert drained[-1].terminal_reason == "aborted_streaming"
            return await answer(client, "fresh")

    assert run(scenario()) == "fresh"


class SmallQueue(asyncio.Queue):
    """Takes two messages and tells when a third has to wait."""

    def __init__(self):
        super().__init__(2)
        self.overflowed = asyncio.Event()

    async def put(self, item):
        if self.full():
            self.overflowed.set()
        await super().put(item)


def test_pieces_that_nobody_reads_block_neither_the_next_prompt_nor_the_end(cli):
    async def overflow(client):
        await client.query(f"/parts 500 {'x' * 1000}")
        client._turn.unread = SmallQueue()
        await client._turn.unread.overflowed.wait()

    async def scenario():
        async with connected(cli) as client:
            await overflow(client)
            fresh = await answer(client, "fresh")
            await overflow(client)
        return fresh

    assert run(scenario()) == "fresh"


# Interrupts


def test_an_interrupted_turn_ends_with_its_result_and_no_error(cli):
    async def scenario():
        async with connected(cli) as client:
            await client.query("/delay 30 /parts 300 long")
            seen = []
            async for message in client.receive_response():
                if type(message).__name__ == "StreamEvent" and "StreamEvent" not in names(seen):
                    await client.interrupt()
                seen.append(message)
            return seen[-1], await answer(client, "next")

    result, following = run(scenario())
    assert result.is_error
    assert result.terminal_reason == "aborted_streaming"
    assert following == "next"


def test_an_interrupt_that_came_before_its_turn_is_repeated(cli, tmp_path):
    log = tmp_path / "log"

    async def scenario():
        async with connected(cli, env={stand_in.LOG_VARIABLE: str(log)}) as client:
            await client.query("/slow-start 0.2 /delay 30 long")
            await client.interrupt()
            messages = [message async for message in client.receive_response()]
            return messages[-1].terminal_reason, await answer(client, "next")

    assert run(scenario()) == ("aborted_streaming", "next")
    assert [entry.event for entry in stand_in.read_log(log)].count("interrupt") == 2


def test_an_interrupt_without_a_turn_does_nothing(cli, tmp_path):
    log = tmp_path / "log"

    async def scenario():
        client = ClaudeClient(cli_path=cli, env={stand_in.LOG_VARIABLE: str(log)})
        await client.interrupt()
        await client.connect()
        await client.interrupt()
        await ask(client, "one")
        await client.interrupt()
        assert [message async for message in client.receive_response()] == []
        await client.disconnect()
        await client.interrupt()

    run(scenario())
    assert "interrupt" not in [entry.event for entry in stand_in.read_log(log)]


def test_a_turn_that_ignores_its_interrupt_ends_as_it_ends(cli):
    async def scenario():
        async with connected(cli) as client:
            await client.query("/ignore-interrupt /delay 0.2 /parts 2 stubborn")
            await client.interrupt()
            return [message async for message in client.receive_response()][-1].result

    assert run(scenario()) == "stubborn"


def test_an_interrupt_of_a_stopped_cli_fails_in_bounded_time(cli, monkeypatch, impatient):
    monkeypatch.setattr(claude, "INTERRUPT_S", 0.2)

    async def scenario():
        async with connected(cli) as client:
            os.kill(await pid_of(client), signal.SIGSTOP)
            await client.query("never")
            with pytest.raises(ClientError, match="did not answer") as caught:
                await client.interrupt()
            return caught.value.retryable

    assert run(scenario())


# Errors that the agent reports


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (401, False), (408, True), (500, True), (529, True)]
)
def test_an_api_error_raises_after_its_result(cli, status, retryable):
    async def scenario():
        async with connected(cli) as client:
            messages, error = await failure(client, f"/fail {status} no luck")
            return messages, error, await answer(client, "next")

    messages, error, following = run(scenario())
    assert messages[-1].is_error
    assert (error.api_status, error.retryable) == (status, retryable)
    assert str(error) == f"API Error: {status} no luck"
    assert type(error) is ClientError
    assert following == "next"


def test_a_rate_limit_says_when_to_come_again(cli):
    async def scenario():
        async with connected(cli) as client:
            return await failure(client, "/fail 429 slow down", RateLimited)

    messages, error = run(scenario())
    assert "RateLimitEvent" in names(messages)
    assert 0 < error.retry_after_s <= 2
    assert error.retryable
    assert error.api_status == 429


@pytest.mark.parametrize(
    ("status", "resets_in_s", "expected"),
    [("rejected", -5, 0.0), ("rejected", None, None), ("allowed_warning", 60, None)],
)
def test_only_a_limit_that_rejects_gives_a_time(status, resets_in_s, expected):
    client = ClaudeClient()
    resets_at = resets_in_s and int(datetime.now(UTC).timestamp()) + resets_in_s
    client._rate_limit = type("Limit", (), {"status": status, "resets_at": resets_at})
    assert client._retry_after_s() == expected


# A CLI that dies


def test_a_crash_in_mid_turn_is_an_error_with_its_last_words(cli):
    async def scenario():
        client = ClaudeClient(cli_path=cli)
        await client.connect()
        assert client.is_connected
        _, error = await failure(client, "/stderr ouch /parts 2 /crash 7 x")
        assert not client.is_connected
        with pytest.raises(ClientConnectError, match="connect again") as refused:
            await client.query("next")
        await client.interrupt()
        await client.connect()
        fresh = await answer(client, "fresh")
        await client.disconnect()
        return error, refused.value, fresh

    error, refused, fresh = run(scenario())
    assert "exit code 7" in str(error)
    assert "ouch" in str(error)
    assert error.retryable
    assert refused.started is False
    assert fresh == "fresh"


def test_a_death_between_turns_is_noticed(cli):
    async def scenario():
        async with connected(cli) as client:
            psutil.Process(await pid_of(client)).kill()
            await asyncio.wait({client._reader})
            assert not client.is_connected
            with pytest.raises(ClientConnectError):
                await client.set_model("other")

    run(scenario())


def test_a_prompt_that_cannot_be_written_may_have_started(cli, monkeypatch):
    async def broken(prompt):
        raise CLIConnectionError("Failed to write to process stdin")

    async def scenario():
        async with connected(cli) as client:
            monkeypatch.setattr(client._client, "query", broken)
            with pytest.raises(ClientError, match="Failed to write") as caught:
                await client.query("x")
            assert not client.is_connected
        return caught.value

    error = run(scenario())
    assert error.retryable
    assert error.started is None


def test_a_line_that_is_no_json_breaks_the_connection(cli):
    async def scenario():
        async with connected(cli) as client:
            pid = await pid_of(client)
            _, error = await failure(client, "/garbage x")
            assert not client.is_connected
        return error, pid

    error, pid = run(scenario())
    assert "JSON" in str(error)
    assert_ends(pid)


def test_a_message_that_the_sdk_cannot_parse_is_left_out(cli, caplog):
    async def scenario():
        async with connected(cli) as client:
            return await ask(client, "/unparsable fine")

    assert names(run(scenario())) == ["SystemMessage", "AssistantMessage", "ResultMessage"]
    assert "left out" in caplog.text


def test_a_prompt_that_json_cannot_carry_is_refused_before_it_is_sent(cli):
    async def scenario():
        async with connected(cli) as client:
            with pytest.raises(InvalidPrompt) as caught:
                await client.query([{"type": "image", "data": b"\x00"}])
            return caught.value.started, await answer(client, "next")

    assert run(scenario()) == (False, "next")


def test_receiving_comes_after_sending(cli):
    async def scenario():
        async with connected(cli) as client:
            with pytest.raises(LocalProtocolError):
                await anext(client.receive_response())

    run(scenario())


# Connecting


@pytest.mark.parametrize("path", ["does/not/exist", "pyproject.toml", "pyproject.toml/claude"])
def test_a_cli_that_is_no_program_is_not_found(path):
    with pytest.raises(ClientNotFound, match="cli_path") as caught:
        run(ClaudeClient(cli_path=path).connect())
    assert not caught.value.retryable


# The SDK itself may leave a stream open when its CLI ends just then.
@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
@pytest.mark.parametrize("start", ["crash:3", "exit:0"])
def test_a_cli_that_ends_at_its_start_is_a_connect_error(cli, monkeypatch, start):
    monkeypatch.setattr(claude_cli, "LOOK_AFTER_S", 0.2)
    client = ClaudeClient(cli_path=cli, extra_args={"stand-in-start": start})
    with pytest.raises(ClientConnectError, match="stand-in told to"):
        run(client.connect())
    assert not client.is_connected


def test_a_working_folder_that_is_missing_is_a_connect_error(cli):
    with pytest.raises(ClientConnectError, match="Working directory"):
        run(ClaudeClient(cli_path=cli, cwd="/does/not/exist").connect())


def test_cancelling_connect_leaves_no_process(cli, tmp_path):
    log = tmp_path / "log"
    env = {stand_in.LOG_VARIABLE: str(log)}

    async def scenario():
        client = ClaudeClient(cli_path=cli, env=env, extra_args={"stand-in-start": "hang"})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.connect(), 0.5)

    run(scenario())
    assert_ends(stand_in.read_log(log)[0].pid)


def test_a_callback_still_gets_standard_error(cli):
    lines = []

    async def scenario():
        async with connected(cli, stderr=lines.append) as client:
            await ask(client, "/stderr warning x")

    run(scenario())
    assert lines == ["warning"]


# Disconnecting


@pytest.mark.parametrize("state", ["stopped", "deaf", "in a turn", "idle"])
def test_disconnect_is_bounded_and_leaves_no_process(cli, impatient, state):
    async def scenario():
        client = ClaudeClient(cli_path=cli)
        await client.connect()
        pids = [await pid_of(client), int(await answer(client, "/spawn"))]
        if state == "stopped":
            os.kill(pids[0], signal.SIGSTOP)
        elif state == "deaf":
            await ask(client, "/deaf x")
        elif state == "in a turn":
            await client.query("/silent x")
        began = asyncio.get_running_loop().time()
        await client.disconnect()
        await client.disconnect()
        return pids, asyncio.get_running_loop().time() - began

    pids, took_s = run(scenario())
    assert took_s < 2
    for pid in pids:
        assert_ends(pid)


def test_cancelling_disconnect_kills_at_once(cli):
    async def scenario():
        client = ClaudeClient(cli_path=cli)
        await client.connect()
        pid = await pid_of(client)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.disconnect(), 0.2)
        return pid

    assert_ends(run(scenario()))


def test_disconnect_ends_a_reader_that_waits(cli):
    async def scenario():
        async with connected(cli) as client:
            reading = asyncio.create_task(ask(client, "/silent x"))
            await asyncio.wait({reading}, timeout=0.1)
            await client.disconnect()
            with pytest.raises(ClientError, match="disconnected"):
                await reading

    run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="needs a child subreaper, as workers are")
def test_in_a_worker_what_a_crashed_cli_left_is_ended_too(cli):
    async def scenario():
        async with connected(cli) as client:
            orphan = int(await answer(client, "/spawn"))
            await failure(client, "/crash 1 x")
            assert psutil.pid_exists(orphan)
        return orphan

    set_subreaper(1)
    try:
        orphan = run(scenario())
    finally:
        set_subreaper(0)
    assert not psutil.pid_exists(orphan)


def set_subreaper(value):
    pr_set_child_subreaper = 36
    assert ctypes.CDLL(None).prctl(pr_set_child_subreaper, value, 0, 0, 0) == 0


# Options and imports


def test_known_options_pass():
    ClaudeClient.check_options(model="x", cli_path="y", can_use_tool=None)


def test_an_unknown_option_names_its_neighbours():
    with pytest.raises(InvalidOptions, match="'modle'; did you mean model") as caught:
        ClaudeClient.check_options(modle="x", zzzzzz=1)
    assert "'zzzzzz'" in str(caught.value)
    with pytest.raises(InvalidOptions, match="modle"):
        run(ClaudeClient(modle="x").connect())


def test_without_the_sdk_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "claude_agent_sdk", None)
    with pytest.raises(ClientNotFound, match=r"pip install 'soloist\[claude\]'"):
        ClaudeClient.check_options()
    with pytest.raises(ClientNotFound):
        run(ClaudeClient().connect())


def test_importing_the_module_does_not_import_the_sdk():
    program = "import sys, soloist.worker.clients.claude; print('claude_agent_sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout == b"False\n"


def test_preloading_is_safe_before_a_fork_and_complete(cli):
    program = """
import asyncio, importlib, os, sys, threading
from soloist.worker.clients.claude import ClaudeClient
files = os.listdir("/proc/self/fd")
for name in ClaudeClient.preload:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
assert os.listdir("/proc/self/fd") == files
loaded = set(sys.modules)
async def turn():
    client = ClaudeClient(cli_path=sys.argv[1])
    await client.connect()
    await client.query("x")
    async for _ in client.receive_response():
        pass
    await client.disconnect()
asyncio.run(turn())
late = sorted(name for name in set(sys.modules) - loaded if name.startswith(("anyio", "claude")))
assert not late, late
"""
    subprocess.run([sys.executable, "-c", program, cli], check=True)
