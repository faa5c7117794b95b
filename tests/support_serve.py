"""Clients that the tests of ``soloist serve`` name in its configuration."""

import os
import threading
from pathlib import Path

from soloist import ask_caller


def logged(prompt: str) -> str:
    """Write down that the prompt runs, then wait until it may end; answer it in capitals."""
    folder = Path(os.environ["SOLOIST_TEST_FOLDER"])
    with (folder / "log").open("a") as log:
        log.write(f"{prompt}\n")
    pause = threading.Event()
    while not (folder / "go").exists():
        pause.wait(0.005)
    return prompt.upper()


async def asks(prompt: str) -> str:
    """Ask the caller something, and answer with what he says."""
    reply = await ask_caller("riddle", {"about": prompt})
    return reply["word"]
