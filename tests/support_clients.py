"""Clients for tests. A module of its own: workers import it, so it imports little."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

from soloist.protocol.content import AssistantMessage, Message
from soloist.worker.clients.echo import EchoClient


class PatientEcho(EchoClient):
    """An echo whose turns for prompts that begin with ``long`` last until they are interrupted.

    Their pieces come at once. So a test need not race against a turn's end.
    """

    async def receive_response(self) -> AsyncIterator[Message]:
        """As the echo's."""
        turn = super().receive_response()
        async for message in turn:
            if isinstance(message, AssistantMessage) and self._prompt.startswith("long"):
                await self._interrupted.wait()
                await turn.aclose()
                message = self._result("", subtype="error_during_execution", is_error=True)
            yield message


def pid_of(prompt: str) -> str:
    """Answers with the process that ran it."""
    return str(os.getpid())


class UntidyEcho(EchoClient):
    """An echo that does to its process what its prompts say, and does not undo it."""

    is_poisoned = False
    _is_stubborn = False

    def __init__(self, *, variable: str = "", **options: Any) -> None:
        if variable:
            os.environ[variable] = "set by a constructor"
        super().__init__(**options)

    async def connect(self) -> None:
        """As the echo's, unless one before has seen to it that nobody can."""
        if UntidyEcho.is_poisoned:
            raise ConnectionError("poisoned")
        await super().connect()

    async def query(self, prompt: str) -> None:
        """As the echo's."""
        match prompt.split():
            case ["folder"]:
                os.chdir("/")
            case ["environment"]:
                os.environ["SOLOIST_TEST_TRACE"] = "1"
            case ["umask"]:
                os.umask(0o012)
            case ["thread"]:
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            case ["process"]:
                subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220 - it is not waited for
            case ["refusal"]:
                self._is_stubborn = True
            case ["timer"]:
                signal.setitimer(signal.ITIMER_REAL, 1000.0)
            case ["handler"]:
                signal.signal(signal.SIGUSR1, lambda *_: None)
            case ["output"]:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            case ["poison"]:
                UntidyEcho.is_poisoned = True  # its module stays, whoever comes next
            case ["tasks"]:
                asyncio.get_running_loop().create_task(asyncio.sleep(1000))
            case ["say", *words]:
                print(*words, file=sys.stderr)
        await super().query(prompt)

    async def disconnect(self) -> None:
        """As the echo's, if it is in the mood."""
        if self._is_stubborn:
            raise ConnectionError("not now")
        await super().disconnect()
