"""Clients for tests. A module of its own: workers import it, so it imports little."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

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
