"""Runs ``soloist map`` on the real CLI against the API stub: PROMPTS RESULTS SIZE.

To be run by ``tests.support_netns.run_isolated`` alone: it refuses where anything but loopback
can be reached. Prints, as JSON, what the stub saw and which processes were left.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys

import psutil

from tests.api_stub import ApiStub
from tests.support_netns import STUB_PORT

OPTIONS = {"tools": [], "setting_sources": [], "system_prompt": "You are a test."}


def main(prompts: str, results: str, size: str) -> None:
    interfaces = {name for _, name in socket.if_nameindex()}
    assert interfaces == {"lo"}, f"to be run where there is only loopback, not {interfaces}"
    command = [sys.executable, "-m", "soloist.supervisor.cli", "map", prompts, "-o", results]
    command += ["--client", "claude", "--size", size]
    for name, value in {**OPTIONS, "cwd": os.environ["HOME"]}.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    with ApiStub(port=STUB_PORT) as stub:
        subprocess.run(command, check=True, timeout=600)
        histories = [request.user_texts for request in stub.turns]
    print(json.dumps({"left": others(), "histories": sorted(histories, key=number_of)}))


def others() -> list[str]:
    """Every other process in this network namespace."""
    own = os.readlink("/proc/self/ns/net")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and os.readlink(f"/proc/{process.pid}/ns/net") == own:
                found.append(" ".join(process.cmdline())[:200])
    return found


def number_of(history: list[str]) -> int:
    return int(history[0].split()[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
