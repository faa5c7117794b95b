"""Sessions of a Supervisor on the real CLI against the API stub; prints what was seen as JSON.

To be run by ``tests.support_netns.run_isolated`` alone: it refuses where anything but loopback
can be reached.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import psutil

from soloist import ResultMessage, Supervisor
from soloist.protocol.errors import SoloistError
from tests.api_stub import ApiStub
from tests.integration.real_cli_map import OPTIONS, others
from tests.support import eventually
from tests.support_netns import STUB_PORT


def main() -> None:
    interfaces = {name for _, name in socket.if_nameindex()}
    assert interfaces == {"lo"}, f"to be run where there is only loopback, not {interfaces}"
    seen = {}
    options = {**OPTIONS, "cwd": os.environ["HOME"], "include_partial_messages": True}
    with ApiStub(port=STUB_PORT) as stub, Supervisor(1, client="claude", options=options) as sup:
        chat = sup.shared("chat")
        seen["first"] = ask(chat, "first")
        seen["cancel"] = cancel(chat)
        seen["after_cancel"] = ask(chat, "second")
        seen["incarnation"] = [chat.incarnation]
        for victim in ("cli", "worker"):
            seen[f"{victim}_killed"] = kill(chat, victim)
            seen[f"after_{victim}"] = ask(chat, f"after the {victim} was killed")
            seen["incarnation"].append(chat.incarnation)
            seen[f"{victim}_history"] = stub.turns[-1].user_texts
        with sup.session() as own:
            own.query("my own")
            seen["own"] = [type(message).__name__ for message in own.receive_response()][-1]
            own.set_model("another-model")
            seen["own_text"] = list(own.query_and_receive("again"))[-1].result
            seen["own_history"] = stub.turns[-1].user_texts
            seen["own_model"] = stub.turns[-1].body["model"]
        seen["one_shot"] = list(sup.query("one shot"))[-1].result
        seen["one_shot_history"] = stub.turns[-1].user_texts
    seen["left"] = others()
    print(json.dumps(seen))


def ask(chat, prompt):
    started = time.monotonic()
    *_, result = chat.query_and_receive(prompt, timeout_s=30)
    assert isinstance(result, ResultMessage)
    return {"text": result.result, "took_s": time.monotonic() - started}


def cancel(chat):
    """Close the iterator in mid-stream."""
    with chat.query_and_receive("[parts=60 delay_s=0.1] " + "long answer " * 20) as messages:
        return [type(next(messages)).__name__ for _ in range(6)]


def kill(chat, victim):
    """Kill the CLI or the worker in mid-turn; what its caller gets."""
    messages = chat.query_and_receive("[parts=60 delay_s=0.1] cut off by " + victim)
    for _ in range(6):
        next(messages)
    worker = chat.stats().pid
    pid = worker if victim == "worker" else psutil.Process(worker).children()[0].pid
    before = chat.incarnation
    os.kill(pid, signal.SIGKILL)
    try:
        list(messages)
    except SoloistError as error:
        eventually(lambda: chat.incarnation > before)
        return [error.code, error.started]
    return ["nothing", False]


if __name__ == "__main__":
    main()
