"""The process of the claude CLI behind a ``ClaudeSDKClient``, and the end of it.

Owns what the Agent SDK has no public way for: seeing that a CLI ended while the SDK still
connects to it, and ending one with everything that it started in bounded time (the SDK alone
takes 10 s for a stopped CLI, and leaves its children).

What a CLI started is found below it, and by a mark in the environment below this process: a
worker is a child subreaper, so what lost its parent (its CLI crashed) is still its descendant.

Invariants: the SDK's internals are looked at here alone, and only through ``getattr`` with a
default: a newer SDK that hides them makes the end slower, never wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from claude_agent_sdk import ClaudeSDKClient

DISCONNECT_S = 2.0
"""Seconds that the CLI has to end by itself; then its process tree is killed."""
KILLED_S = 2.0
"""Seconds that the SDK has to notice that its CLI was killed."""
REAP_S = 0.3
"""Seconds in which killed processes are reaped and the output of dead ones read to its end."""
MARK = "SOLOIST_CONVERSATION"
"""Environment variable that marks all processes of one conversation."""
LOOK_AFTER_S = 1.0
"""Seconds of connecting after which a CLI that ended without a word is noticed."""

_log = logging.getLogger(__name__)


def _process_of(client: ClaudeSDKClient) -> Any:
    """The CLI's process. The SDK has no public way; without it, only ``disconnect`` is weaker."""
    return getattr(getattr(client, "_transport", None), "_process", None)


async def exit_of(client: ClaudeSDKClient) -> int:
    """Wait for the end of a CLI that the SDK is still connecting to; returns its exit code."""
    await asyncio.sleep(LOOK_AFTER_S)
    process = _process_of(client)
    if process is None:
        await asyncio.Event().wait()
    return int(await process.wait())


async def stderr_drained(client: ClaudeSDKClient) -> None:
    """Let the last words of a CLI that has just ended arrive; one that lives may say more."""
    process = _process_of(client)
    reading = getattr(getattr(client, "_transport", None), "_stderr_task", None)
    if process is not None and process.returncode is not None and reading is not None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(reading.wait(), timeout=REAP_S)


async def end(client: ClaudeSDKClient, ending: asyncio.Task[None], mark: str) -> None:
    """Wait a bounded time for the SDK to end its CLI, then kill what is left of it.

    Cancelling it kills at once, and still sees the end through.

    Args:
        client: what is being ended.
        ending: the task in which the SDK ends it.
        mark: value of ``MARK`` in the environment of this client's CLI.
    """
    ending.add_done_callback(_retrieve_error)
    process = _process_of(client)
    tree = _ProcessTree(process, mark)
    try:
        await asyncio.wait({ending}, timeout=DISCONNECT_S)
    finally:
        left = tree.kill()
        if not ending.done():  # with its CLI killed, the SDK comes to an end
            await asyncio.wait({ending}, timeout=KILLED_S)
            ending.cancel()
        await _stdout_drained(process)
        if left:
            await asyncio.to_thread(psutil.wait_procs, left, timeout=REAP_S)


async def _stdout_drained(process: Any) -> None:
    """Read to the end of a dead CLI's output: asyncio keeps the pipe open until somebody does."""
    if process is None or process.returncode is None or process.stdout is None:
        return
    with contextlib.suppress(Exception):
        async with asyncio.timeout(REAP_S):
            async for _ in process.stdout:
                pass


def _retrieve_error(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.debug("the Agent SDK's clean-up failed", exc_info=task.exception())


class _ProcessTree:
    """The CLI and everything that it started."""

    def __init__(self, process: Any, mark: str) -> None:
        self._mark = mark
        self._root = _living(process, mark)
        self._below: set[psutil.Process] = set()
        self._look()

    def kill(self) -> list[psutil.Process]:
        """Kill what is left and return it, without the CLI itself: asyncio reaps that."""
        self._look()
        left = [process for process in self._below if process.is_running()]
        for process in (*left, *([self._root] if self._root else ())):
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil never hits a reused id
                process.kill()
        return left

    def _look(self) -> None:
        if self._root is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._below.update(self._root.children(recursive=True))
        ours = psutil.Process().children(recursive=True)
        self._below.update(process for process in ours if _mark_of(process) == self._mark)
        self._below -= {self._root}


def _living(process: Any, mark: str) -> psutil.Process | None:
    """The CLI, unless it is gone: its process id may be another's by now."""
    if process is None or process.returncode is not None:
        return None
    try:
        found = psutil.Process(process.pid)
    except psutil.NoSuchProcess:
        return None
    return found if _mark_of(found) == mark else None


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:
        return None
