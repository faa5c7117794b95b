"""A client whose turns last as long as a test wants; workers import it, so it imports little."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support import eventually


class Gate:
    """Holds one turn until it is opened.

    Args:
        path: a file that is not there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def prompt(self) -> str:
        """The prompt whose turn waits here."""
        return f"hold {self.path}"

    def wait_begun(self) -> None:
        """Wait until the turn has begun."""
        eventually(Path(f"{self.path}.begun").exists)

    def open(self) -> None:
        """Let the turn end."""
        self.path.touch()


async def gated(prompt: str) -> str:
    """``hold PATH`` waits at that gate, ``fail-after PATH`` fails there, ``fail TEXT`` at once."""
    word, _, rest = prompt.partition(" ")
    if word in {"hold", "fail-after"}:
        await _pass(rest)
    if word.startswith("fail"):
        raise ValueError(rest)
    return "released" if word == "hold" else prompt


async def _pass(path: str) -> None:
    _touch(f"{path}.begun")
    # Nothing tells an event loop of a file.
    while not _exists(path):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def _touch(path: str) -> None:
    Path(path).touch()


def _exists(path: str) -> bool:
    return Path(path).exists()
