"""The embedded client: it answers with the prompt, so that everything can be tried offline.

It keeps the contract of a real agent's client to the letter: a conversation with a history,
streamed parts, interrupts, errors and slow connects, all on demand by options.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from soloist.protocol.content import (
    AssistantMessage,
    Message,
    ResultMessage,
    StreamEvent,
    TextBlock,
)
from soloist.protocol.errors import ClientConnectError, ClientError, InvalidOptions


class EchoClient:
    """Answers each prompt with itself.

    A prompt of content blocks is answered with its text blocks joined. ``num_turns`` of the
    result counts the conversation's turns.

    Args:
        delay_s: seconds that a turn takes; it can be interrupted at any time.
        chunks: number of ``StreamEvent`` pieces sent before the answer, spread over ``delay_s``.
        fail_connect: message of the ``ClientConnectError`` that ``connect`` raises, if not empty.
        connect_delay_s: seconds that ``connect`` takes.
        fail_on: a prompt that equals this is answered with a ``ClientError``.
        exit_on: a prompt that equals this ends the process at once with exit code 3.
        resettable: whether ``reset`` may be used; otherwise the client is connected anew.
    """

    def __init__(
        self,
        *,
        delay_s: float = 0.0,
        chunks: int = 0,
        fail_connect: str = "",
        connect_delay_s: float = 0.0,
        fail_on: str | None = None,
        exit_on: str | None = None,
        resettable: bool = True,
    ) -> None:
        self._delay_s = delay_s
        self._chunks = chunks
        self._fail_connect = fail_connect
        self._connect_delay_s = connect_delay_s
        self._fail_on = fail_on
        self._exit_on = exit_on
        self._history: list[str] = []
        self._interrupted = asyncio.Event()
        if not resettable:
            self.reset = None  # type: ignore[assignment,method-assign]

    @staticmethod
    def check_options(
        *, delay_s: Any = 0.0, chunks: Any = 0, connect_delay_s: Any = 0.0, **others: Any
    ) -> None:
        """Refuse values that make no sense, before anything is spawned."""
        for name, value in (("delay_s", delay_s), ("connect_delay_s", connect_delay_s)):
            if not isinstance(value, int | float) or value < 0:
                raise InvalidOptions(f"{name} must be a number of seconds >= 0, not {value!r}")
        if not isinstance(chunks, int) or chunks < 0:
            raise InvalidOptions(f"chunks must be a whole number >= 0, not {chunks!r}")
        del others  # their names are checked against the constructor

    async def connect(self) -> None:
        """Begin a conversation with no history."""
        if self._connect_delay_s:
            await asyncio.sleep(self._connect_delay_s)
        if self._fail_connect:
            raise ClientConnectError(self._fail_connect)
        self._history = []

    async def reset(self) -> None:
        """Begin a new conversation on the same connection."""
        self._history = []

    async def query(self, prompt: Any) -> None:
        """Take the next prompt."""
        self._interrupted.clear()
        self._history.append(prompt if isinstance(prompt, str) else _text(prompt))

    async def receive_response(self) -> AsyncIterator[Message]:
        """Stream the pieces, then the answer, then the result."""
        text = self._history[-1]
        if text == self._exit_on:
            os._exit(3)
        pieces = max(self._chunks, 1)
        for i in range(pieces):
            if self._delay_s and await self._is_interrupted_within(self._delay_s / pieces):
                yield self._result("", subtype="error_during_execution", is_error=True)
                return
            if self._chunks:
                yield StreamEvent(uuid="", session_id="echo", event=_delta(text, i, pieces))
        if text == self._fail_on:
            raise ClientError(f"told to fail on {text!r}")
        yield AssistantMessage(content=[TextBlock(text)], model="echo")
        yield self._result(text)

    async def interrupt(self) -> None:
        """End the running turn; without one, do nothing."""
        self._interrupted.set()

    async def disconnect(self) -> None:
        """End the conversation."""
        self._history = []

    async def _is_interrupted_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._interrupted.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _result(
        self, text: str, *, subtype: str = "success", is_error: bool = False
    ) -> ResultMessage:
        return ResultMessage(
            subtype=subtype,
            duration_ms=round(self._delay_s * 1000),
            duration_api_ms=0,
            is_error=is_error,
            num_turns=len(self._history),
            session_id="echo",
            result=text,
        )


def _text(blocks: list[dict[str, Any]]) -> str:
    texts = [block["text"] for block in blocks if isinstance(block.get("text"), str)]
    return "".join(texts) if texts else json.dumps(blocks)


def _delta(text: str, i: int, pieces: int) -> dict[str, Any]:
    part = text[len(text) * i // pieces : len(text) * (i + 1) // pieces]
    return {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": part},
    }
