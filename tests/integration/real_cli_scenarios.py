"""Drives ``ClaudeClient`` with the real CLI against the API stub; prints what it saw as JSON.

To be run by ``tests.support_netns.run_isolated`` alone: it refuses where anything but loopback
can be reached.
"""

import asyncio
import json
import os
import socket
import sys
import time

import psutil

from soloist.protocol.errors import ClientError, to_info
from soloist.worker.clients.claude import ClaudeClient
from tests.api_stub import ApiStub
from tests.support_netns import STUB_PORT

LIMIT_S = 20
OPTIONS = {"tools": [], "setting_sources": [], "system_prompt": "You are a test."}


async def connected(**options):
    client = ClaudeClient(cwd=os.environ["HOME"], **OPTIONS, **options)
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


async def two_turns(stub):
    client = await connected()
    turns = [seen(await ask(client, "first")), seen(await ask(client, "second"))]
    history = stub.turns[-1].user_texts
    await client.connect()
    await ask(client, "third")
    await client.disconnect()
    return {"turns": turns, "history": history, "after_reconnect": stub.turns[-1].user_texts}


async def pieces(stub):
    client = await connected(include_partial_messages=True)
    messages = await ask(client, "[parts=4 delay_s=0.01] abcdefgh")
    await client.disconnect()
    events = [m.event for m in messages if type(m).__name__ == "StreamEvent"]
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    return {"deltas": deltas, **seen(messages)}


async def interrupts(stub):
    """One in mid-stream, one at once (the CLI forgets such an interrupt)."""
    client = await connected(include_partial_messages=True)
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
    await client.disconnect()
    return runs


async def api_errors(stub):
    client = await connected()
    errors = {}
    for status in (429, 401, 500):
        try:
            await ask(client, f"[status={status}] no luck")
        except ClientError as error:
            errors[str(status)] = to_info(error)._asdict()
    after = seen(await ask(client, "better"))
    await client.disconnect()
    return {"errors": errors, "after": after}


async def local_command(stub):
    """Its message names no prompt, although this CLI does so otherwise."""
    client = await connected()
    await ask(client, "hello")
    messages = await ask(client, "/context")
    await client.disconnect()
    return seen(messages)


async def end(stub):
    client = await connected()
    await client.query("[parts=200 delay_s=0.1] " + "long " * 200)
    began = time.monotonic()
    await client.disconnect()
    took_s = time.monotonic() - began
    left = [process.name() for process in psutil.Process().children(recursive=True)]
    return {"took_s": took_s, "left": left}


SCENARIOS = (two_turns, pieces, interrupts, api_errors, local_command, end)


def main():
    interfaces = [name for _, name in socket.if_nameindex()]
    assert interfaces == ["lo"], f"more than loopback can be reached: {interfaces}"
    report = {}
    with ApiStub(port=STUB_PORT) as stub:
        for scenario in SCENARIOS:
            try:
                report[scenario.__name__] = asyncio.run(asyncio.wait_for(scenario(stub), LIMIT_S))
            except Exception as error:
                report[scenario.__name__] = {"failed": f"{type(error).__name__}: {error}"}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
