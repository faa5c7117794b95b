"""Kills in the process tree with the real CLI in mid-turn; prints what was seen as JSON.

To be run by ``tests.support_netns.run_isolated`` alone: it refuses where anything but loopback
can be reached. With the argument ``hold`` it is the program whose tree is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from soloist import Supervisor
from soloist.protocol.errors import SoloistError
from tests.api_stub import ApiStub
from tests.faults.process_tree import GONE_S, GUARDS, SUPERVISOR, children_of, process
from tests.integration.real_cli_map import OPTIONS, others
from tests.support import eventually
from tests.support_netns import STUB_PORT

CELLS = [(SUPERVISOR, "worker"), ("worker",)]


def main() -> None:
    interfaces = {name for _, name in socket.if_nameindex()}
    assert interfaces == {"lo"}, f"to be run where there is only loopback, not {interfaces}"
    with ApiStub(port=STUB_PORT):
        seen = {" + ".join(cell): trial(cell) for cell in CELLS}
    print(json.dumps({"cells": seen, "left": others()}))


def trial(cell: tuple[str, ...]) -> dict[str, object]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.real_cli_tree", "hold"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            return killed(program, cell)
        finally:
            program.kill()


def killed(program: subprocess.Popen[str], cell: tuple[str, ...]) -> dict[str, object]:
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stdout.readline() == "streaming\n"
    line = [program.pid]
    while children := children_of(line[-1]):
        line.append(children[0])
    parts = dict(zip((SUPERVISOR, *GUARDS, "helper", "worker", "cli"), line, strict=False))
    doomed = [process(pid) for pid in below(parts["worker"] if cell == ("worker",) else line[1])]
    for victim in cell:
        os.kill(parts[victim], signal.SIGKILL)
    since = time.monotonic()
    eventually(lambda: not any(p.is_alive() for p in doomed), timeout_s=GONE_S)
    folder = Path(os.environ["TMPDIR"])
    if SUPERVISOR in cell:
        program.wait()
        eventually(lambda: not list(folder.glob("soloist-*")), timeout_s=GONE_S)
    gone_ms = (time.monotonic() - since) * 1000
    program.stdin.close()
    answer = program.stdout.read().split()
    program.wait()
    return {"had_cli": "cli" in parts, "gone_ms": round(gone_ms), "answer": answer}


def below(pid: int) -> list[int]:
    return [pid, *(other for child in children_of(pid) for other in below(child))]


def hold() -> None:
    """Be amid a turn until the input ends; if still there then, say how it ended, and go on."""
    options = {**OPTIONS, "cwd": os.environ["HOME"], "include_partial_messages": True}
    with Supervisor(1, client="claude", options=options) as sup:
        stream = sup.query("[parts=600 delay_s=0.1] " + "long answer " * 200)
        for _ in range(6):
            next(stream)
        print("streaming", flush=True)
        sys.stdin.read()
        try:
            list(stream)
        except SoloistError as error:
            print(error.code)
        print(sup.map(["next"])[0].text, flush=True)


if __name__ == "__main__":
    hold() if sys.argv[1:] == ["hold"] else main()
