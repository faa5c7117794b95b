"""``soloist serve`` in a process of its own, as a contestant."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_CONFIG = """
bind = ["ipc://{folder}/gateway", "tcp://127.0.0.1:*"]
[clients.echo]
client = "echo"
size = 1
[limits]
max_peers = {peers}
"""


@contextlib.contextmanager
def served(folder: Path, *, peers: int = 10) -> Iterator[tuple[int, list[str]]]:
    """A gateway for so many peers: its pid, and where it is found on ipc and tcp."""
    folder.mkdir(mode=0o700)
    (folder / "soloist.toml").write_text(_CONFIG.format(folder=folder, peers=peers))
    command = [sys.executable, "-m", "soloist.supervisor.cli", "serve"]
    process = subprocess.Popen(
        [*command, "--config", str(folder / "soloist.toml")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.pid, [process.stdout.readline().split(" at ")[1].strip() for _ in "12"]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
