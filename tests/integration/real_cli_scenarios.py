"""Drives ``ClaudeClient`` with the real CLI against the API stub; prints what it saw as JSON.

To be run by ``tests.support_netns.run_isolated`` alone: it refuses where anything but loopback
can be reached.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
from claude_agent_sdk import HookMatcher, PermissionResultAllow, PermissionResultDeny

from soloist.protocol import codec
from soloist.protocol.errors import ClientConnectError, ClientError, to_info
from soloist.protocol.messages import ControlReply
from soloist.worker import control
from soloist.worker.clients.claude import ClaudeClient
from tests.api_stub import ApiStub
from tests.support_netns import STUB_PORT

LIMIT_S = 20
OPTIONS = {"tools": [], "setting_sources": [], "system_prompt": "You are a test."}


def built(**options):
    return ClaudeClient(**{"cwd": os.environ["HOME"], **OPTIONS, **options})


async def connected(**options):
    client = built(**options)
    await client.connect()
    return client


async def ask(client, prompt):
    await client.query(prompt)
    return [message async for message in client.receive_response()]


def seen(messages):
    return {
        "names": [type(message).__name__ for message in messages],
        "result": messages[-1].result,
        "reason": messages[-1].terminal_reason,
    }


# -- scenarios that share a CLI, because starting one is slow --------------------------------------


async def plain(stub):
    """One CLI with nothing special; the second one, after connecting anew, meets errors."""
    client = await connected()
    turns = await two_turns(client, stub)
    await client.connect()
    await ask(client, "third")
    after_reconnect = stub.turns[-1].user_texts
    report = {
        "two_turns": {**turns, "after_reconnect": after_reconnect},
        "api_errors": await api_errors(client),
        "local_command": await local_command(client),
    }
    await client.disconnect()
    return report


async def two_turns(client, stub):
    turns = [seen(await ask(client, "first")), seen(await ask(client, "second"))]
    return {"turns": turns, "history": stub.turns[-1].user_texts}


async def api_errors(client):
    errors = {}
    for status in (429, 401, 500):
        try:
            await ask(client, f"[status={status}] no luck")
        except ClientError as error:
            errors[str(status)] = to_info(error)._asdict()
    return {"errors": errors, "after": seen(await ask(client, "better"))}


async def local_command(client):
    """Its message names no prompt, although this CLI does so otherwise."""
    await ask(client, "hello")
    return seen(await ask(client, "/context"))


async def streaming(stub):
    """One CLI that streams, until its end in mid-turn."""
    client = await connected(include_partial_messages=True)
    return {
        "pieces": await pieces(client),
        "interrupts": await interrupts(client),
        "end": await end(client),
    }


async def pieces(client):
    messages = await ask(client, "[parts=4 delay_s=0.01] abcdefgh")
    events = [m.event for m in messages if type(m).__name__ == "StreamEvent"]
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    return {"deltas": deltas, **seen(messages)}


async def interrupts(client):
    """One in mid-stream, one at once (the CLI forgets such an interrupt)."""
    runs = {}
    for name, at_once in (("mid_stream", False), ("at_once", True)):
        await client.query("[parts=200 delay_s=0.1] " + "stale " * 200)
        if at_once:
            await client.interrupt()
        messages = []
        async for message in client.receive_response():
            messages.append(message)
            event = getattr(message, "event", {})
            if event.get("type") == "content_block_delta" and not at_once:
                await client.interrupt()
        runs[name] = seen(messages)
        runs[f"after_{name}"] = seen(await ask(client, f"fresh {name}"))
    return runs


async def end(client):
    await client.query("[parts=200 delay_s=0.1] " + "long " * 200)
    began = time.monotonic()
    await client.disconnect()
    took_s = time.monotonic() - began
    left = [process.name() for process in psutil.Process().children(recursive=True)]
    return {"took_s": took_s, "left": left}


# -- tools and their permissions -------------------------------------------------------------------


def touch(name):
    """A prompt that has the agent use a tool for which it needs permission."""
    return "[tool=Bash] " + json.dumps({"command": f"touch {name}", "description": "a test"})


async def touched(client, stub, name):
    """What became of the attempt: whether the file is there, and what the agent was told."""
    await ask(client, touch(name))
    return is_there(name), stub.turns[-1].user_texts[-1]


def is_there(name):
    return Path(os.environ["HOME"], name).exists()


async def own_permission(stub):
    """A ``can_use_tool`` of the user's own denies, changes and allows."""
    asked = []

    async def can_use_tool(tool, tool_input, context):
        asked.append([tool, tool_input["command"], bool(context.tool_use_id)])
        if "denied" in tool_input["command"]:
            return PermissionResultDeny(message="not here")
        if "changed" in tool_input["command"]:
            return PermissionResultAllow(updated_input={**tool_input, "command": "touch safer"})
        return PermissionResultAllow()

    client = await connected(tools=["Bash"], can_use_tool=can_use_tool)
    seen = {name: await touched(client, stub, name) for name in ("denied", "changed", "allowed")}
    await client.disconnect()
    return {**seen, "safer": is_there("safer"), "asked": asked}


class Caller:
    """Answers every question with what ``decide`` says to its kind and data."""

    def __init__(self, decide):
        self.questions = []
        self._decide = decide
        self._controls = control.Controls(self._take, LIMIT_S)
        control.install(self._controls)

    def _take(self, question):
        data = codec.decode_value(question.data)
        self.questions.append([question.kind, sorted(data)])
        reply = self._decide(question.kind, data)
        self._controls.resolve(ControlReply(question.number, codec.encode_value(reply)))


async def callers_permission(stub):
    """With no callback of the user's own, the caller decides; what is no decision denies."""

    def decide(kind, data):
        command = data["input"]["command"]
        return {"behavior": "deny" if "refused" in command else "allow"} | (
            {"behavior": "perhaps"} if "unclear" in command else {}
        )

    caller = Caller(decide)
    client = built(tools=["Bash"])
    client.use_control()
    await client.connect()
    names = ("granted", "refused", "unclear")
    seen = {name: await touched(client, stub, name) for name in names}
    await client.disconnect()
    return {**seen, "questions": caller.questions}


async def callers_hook(stub):
    """The caller decides in a hook; without an answer of its, the tool is denied."""

    def decide(kind, data):
        command = data["input"]["tool_input"]["command"]
        decision = {"hookEventName": "PreToolUse", "permissionDecision": "allow"}
        return {"output": {"hookSpecificOutput": decision}} if "let" in command else {}

    caller = Caller(decide)
    hooks = {"PreToolUse": [HookMatcher(hooks=[control.ask_hook])]}
    client = await connected(tools=["Bash"], hooks=hooks)
    seen = {name: await touched(client, stub, name) for name in ("let", "barred")}
    await client.disconnect()
    return {**seen, "questions": caller.questions}


# -- what another CLI goes on with -----------------------------------------------------------------


async def killed(client):
    """Kill the client's CLI; gives the snapshot of before."""
    snapshot = client.snapshot()
    os.kill(client._client._transport._process.pid, signal.SIGKILL)
    await asyncio.wait({client._reader})
    await client.disconnect()
    return snapshot


async def restored(snapshot, **options):
    client = built(**options)
    client.restore(codec.decode_value(codec.encode_value(snapshot)))
    await client.connect()
    return client


async def continued(stub):
    """The CLI is killed between two turns, and in mid-turn; another goes on."""
    client = await connected()
    await ask(client, "my name is Ada")
    client = await restored(await killed(client), include_partial_messages=True)
    answers = [seen(await ask(client, "second"))["result"]]
    await client.query("[parts=200 delay_s=0.1] " + "x" * 200)
    async for message in client.receive_response():
        if getattr(message, "event", {}).get("type") == "content_block_delta":
            break
    client = await restored(await killed(client))
    turns = len(stub.turns)
    answers.append(seen(await ask(client, "third"))["result"])
    history, turns = stub.turns[-1].user_texts, len(stub.turns) - turns
    await client.disconnect()
    return {"answers": answers, "history": history, "turns": turns}


async def killed_before_a_word(stub):
    """Nothing was said: nothing is missing, and the conversation can begin."""
    snapshot = await killed(await connected())
    client = await restored(snapshot)
    answer = seen(await ask(client, "hello"))["result"]
    await client.disconnect()
    return {"snapshot": sorted(snapshot), "answer": answer, "history": stub.turns[-1].user_texts}


async def killed_with_the_answer(stub):
    """What was answered is kept, even if the CLI dies the moment its result is here."""
    kept = []
    client = await connected()
    for prompt in ("first", "second", "third"):
        await client.query(prompt)
        async for message in client.receive_response():
            if type(message).__name__ == "ResultMessage":
                os.kill(client._client._transport._process.pid, signal.SIGKILL)
        kept.append(_remembered(stub))
        client = await restored(await killed_already(client))
    await ask(client, "again")
    await client.disconnect()
    return [*kept, _remembered(stub)]


def _remembered(stub):
    """What the CLI knew when it asked last: the prompts, and how many of them were answered."""
    turn = stub.turns[-1]
    roles = [message["role"] for message in turn.body["messages"]]
    return [turn.user_texts, roles.count("assistant")]


async def killed_already(client):
    snapshot = client.snapshot()
    await client.disconnect()
    return snapshot


async def cleared(stub):
    """The CLI goes on under another session id after ``/clear``."""
    client = await connected()
    await ask(client, "forget me")
    before = client.snapshot()
    await ask(client, "/clear")
    await ask(client, "keep me")
    snapshot = await killed(client)
    client = await restored(snapshot)
    await ask(client, "again")
    await client.disconnect()
    return {"moved": before != snapshot, "history": stub.turns[-1].user_texts}


async def unknown(stub):
    """The CLI does not have what it is to resume: an error for good, and no blank answer."""
    client = built()
    client.restore({"session_id": "00000000-0000-4000-8000-000000000000"})
    try:
        await client.connect()
    except ClientConnectError as error:
        return to_info(error)._asdict()


TOGETHER = (plain, streaming)
"""Each gives the reports of several scenarios, by their names."""
ALONE = (
    own_permission,
    callers_permission,
    callers_hook,
    continued,
    killed_before_a_word,
    killed_with_the_answer,
    cleared,
    unknown,
)


def played(scenario, stub):
    try:
        return asyncio.run(asyncio.wait_for(scenario(stub), 3 * LIMIT_S))
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def main():
    interfaces = [name for _, name in socket.if_nameindex()]
    assert interfaces == ["lo"], f"more than loopback can be reached: {interfaces}"
    report = {}
    with ApiStub(port=STUB_PORT) as stub:
        for scenarios in TOGETHER:
            report.update(played(scenarios, stub))
        for scenario in ALONE:
            report[scenario.__name__] = played(scenario, stub)
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
