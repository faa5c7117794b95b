"""The embedded client: it answers with the prompt, so that everything can be tried offline.

It keeps the contract of a real agent's client to the letter: a conversation with a history,
streamed parts, interrupts, errors and slow connects, questions to the caller, and the
continuation by another client, all on demand by options.

Invariant: however long a conversation lasts, its history is bounded in number and size.
"""

from __future__ import annotations

import asyncio
import json
import os
import reprlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from soloist.protocol.content import (
    AssistantMessage,
    Map,
    Message,
    ResultMessage,
    StreamEvent,
    TextBlock,
)
from soloist.protocol.errors import ClientConnectError, ClientError, InvalidOptions, SoloistError
from soloist.worker.clients.turn_log import TurnLog
from soloist.worker.control import ask_caller

MAX_HISTORY = 1_000
"""Prompts that a conversation remembers; ``num_turns`` counts all."""
MAX_HISTORY_CHARS = 1_000_000
"""Characters that it remembers, unless the last prompt alone has more."""

_MODEL = "echo"
_T = TypeVar("_T")


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
        recall_on: a prompt that equals this is answered with the prompts before it, a line each.
        ask_on: a prompt that equals this is asked of the caller, as ``echo`` with the ``prompt``;
            the answer is the reply's ``text``.
        resettable: whether ``reset`` may be used; otherwise the client is connected anew.
        resumable: whether another client can go on with this conversation.
        ignore_interrupt: whether interrupts do nothing.
        interrupt_deaf_s: seconds from a turn's beginning in which an interrupt is lost.
        log: path of a file to which each turn's beginning and end are appended (``TurnLog``).
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
        recall_on: str | None = None,
        ask_on: str | None = None,
        resettable: bool = True,
        resumable: bool = False,
        ignore_interrupt: bool = False,
        interrupt_deaf_s: float = 0.0,
        log: str | None = None,
    ) -> None:
        self._delay_s = delay_s
        self._chunks = chunks
        self._fail_connect = fail_connect
        self._connect_delay_s = connect_delay_s
        self._fail_on = fail_on
        self._exit_on = exit_on
        self._recall_on = recall_on
        self._ask_on = ask_on
        self._resumable = resumable
        self._ignore_interrupt = ignore_interrupt
        self._interrupt_deaf_s = interrupt_deaf_s
        self._log = TurnLog(log)
        self._conversation = _Conversation()
        self._restored: _Conversation | None = None
        self._prompt = ""
        self._deaf_until = 0.0
        self._interrupted = asyncio.Event()
        self._roused = asyncio.Event()  # interrupted, or a pause is over
        if not resettable:
            self.reset = None  # type: ignore[assignment,method-assign]

    @staticmethod
    def check_options(
        *,
        delay_s: Any = 0.0,
        chunks: Any = 0,
        connect_delay_s: Any = 0.0,
        interrupt_deaf_s: Any = 0.0,
        log: Any = None,
        **others: Any,
    ) -> None:
        """Refuse values that make no sense, before anything is spawned."""
        seconds = {
            "delay_s": delay_s,
            "connect_delay_s": connect_delay_s,
            "interrupt_deaf_s": interrupt_deaf_s,
        }
        for name, value in seconds.items():
            if not isinstance(value, int | float) or value < 0:
                raise InvalidOptions(f"{name} must be a number of seconds >= 0, not {value!r}")
        if not isinstance(chunks, int) or chunks < 0:
            raise InvalidOptions(f"chunks must be a whole number >= 0, not {chunks!r}")
        if log is not None and not isinstance(log, str):
            raise InvalidOptions(f"log must be the path of a file, as text, not {log!r}")
        del others  # their names are checked against the constructor

    async def connect(self) -> None:
        """Begin a conversation with no history, or go on with the restored one."""
        if self._connect_delay_s:
            await asyncio.sleep(self._connect_delay_s)
        if self._fail_connect:
            raise ClientConnectError(self._fail_connect)
        self._conversation, self._restored = self._restored or _Conversation(), None

    async def reset(self) -> None:
        """Begin a new conversation on the same connection."""
        self._conversation = _Conversation()

    def snapshot(self) -> Map | None:
        """What another client needs to go on; ``None`` unless ``resumable``."""
        return self._conversation.as_map() if self._resumable else None

    def restore(self, value: object) -> None:
        """Let ``connect`` go on with the conversation of a snapshot.

        Raises:
            ClientConnectError: it is none, or the client is not ``resumable``; not retryable.
        """
        if not self._resumable:
            raise _not_restored("this client is not resumable")
        self._restored = _Conversation.of_map(value)

    async def set_model(self, model: str | None = None) -> None:
        """Answer in another model's name."""
        self._conversation.model = model or _MODEL

    async def query(self, prompt: Any) -> None:
        """Take the next prompt."""
        self._interrupted.clear()
        self._roused.clear()
        self._deaf_until = time.monotonic() + self._interrupt_deaf_s
        self._prompt = prompt if isinstance(prompt, str) else _text(prompt)
        self._conversation.num_turns += 1
        self._conversation.remember(self._prompt)
        self._log.begin(self._conversation.num_turns)

    async def receive_response(self) -> AsyncIterator[Message]:
        """Stream the pieces, then the answer, then the result."""
        text, model = self._prompt, self._conversation.model
        if text == self._exit_on:
            os._exit(3)
        try:
            answer = await self._answer(text)
            pieces = max(self._chunks, 1)
            for i in range(pieces):
                if self._delay_s:
                    await self._pause(self._delay_s / pieces)
                if self._chunks:
                    yield StreamEvent(uuid="", session_id="echo", event=_delta(answer, i, pieces))
            if text == self._fail_on:
                raise ClientError(f"told to fail on {text!r}")
            yield AssistantMessage(content=[TextBlock(answer)], model=model)
            result = self._result(answer)
        except _Interrupted:
            result = self._result("", subtype="error_during_execution", is_error=True)
        finally:
            self._log.end()
        yield result

    async def interrupt(self) -> None:
        """End the running turn; without one, do nothing."""
        if not self._ignore_interrupt and time.monotonic() >= self._deaf_until:
            self._interrupted.set()
            self._roused.set()

    async def disconnect(self) -> None:
        """End the conversation."""
        self._conversation = _Conversation()

    async def _answer(self, text: str) -> str:
        if text == self._recall_on:
            return "\n".join(list(self._conversation.history)[:-1])
        if text == self._ask_on:
            return await self._unless_interrupted(_ask(text))
        return text

    async def _pause(self, seconds: float) -> None:
        """Let time pass; an interrupt ends it. Takes no task, so that it costs next to nothing."""
        timer = asyncio.get_running_loop().call_later(seconds, self._roused.set)
        try:
            await self._roused.wait()
        finally:
            timer.cancel()
        if self._interrupted.is_set():
            raise _Interrupted
        self._roused.clear()

    async def _unless_interrupted(self, work: Awaitable[_T]) -> _T:
        task = asyncio.ensure_future(work)
        interrupted = asyncio.ensure_future(self._interrupted.wait())
        try:
            await asyncio.wait({task, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _Interrupted
            return task.result()
        finally:
            task.cancel()
            interrupted.cancel()

    def _result(
        self, text: str, *, subtype: str = "success", is_error: bool = False
    ) -> ResultMessage:
        return ResultMessage(
            subtype=subtype,
            duration_ms=round(self._delay_s * 1000),
            duration_api_ms=0,
            is_error=is_error,
            num_turns=self._conversation.num_turns,
            session_id="echo",
            result=text,
        )


class _Interrupted(Exception):
    """The turn was interrupted."""


class _Conversation:
    """What was said so far, as much of it as is remembered."""

    def __init__(self) -> None:
        self.num_turns = 0
        self.model = _MODEL
        self.history: deque[str] = deque(maxlen=MAX_HISTORY)
        self._chars = 0

    @classmethod
    def of_map(cls, value: Any) -> _Conversation:
        self = cls()
        try:
            self.num_turns, self.model = int(value["num_turns"]), str(value["model"])
            for said in value["history"]:
                self.remember(str(said))
        except (LookupError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise _not_restored(f"{what} in the snapshot {reprlib.repr(value)}") from error
        return self

    def as_map(self) -> Map:
        history = list(self.history)
        return {"num_turns": self.num_turns, "model": self.model, "history": history}

    def remember(self, prompt: str) -> None:
        """Add a prompt, and forget the oldest beyond the bounds."""
        if len(self.history) == MAX_HISTORY:
            self._forget()
        self.history.append(prompt)
        self._chars += len(prompt)
        while self._chars > MAX_HISTORY_CHARS and len(self.history) > 1:
            self._forget()

    def _forget(self) -> None:
        self._chars -= len(self.history.popleft())


def _not_restored(why: str) -> ClientConnectError:
    error = ClientConnectError(f"the conversation cannot be continued: {why}")
    error.retryable = False
    return error


async def _ask(prompt: str) -> str:
    try:
        reply = await ask_caller("echo", {"prompt": prompt})
    except ClientError:
        raise
    except SoloistError as error:  # the client's own word: its turn is over, it can go on
        raise ClientError(f"asking the caller failed: {error}") from error
    text = reply.get("text")
    if not isinstance(text, str):
        raise ClientError(f"the caller's reply has no text: {reprlib.repr(reply)}")
    return text


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
