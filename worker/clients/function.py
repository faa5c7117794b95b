"""A bare callable ``prompt -> str`` as a client.

A sync callable needs no client object: :func:`call` runs it directly, with no event loop in the
process. An async one becomes an :class:`AsyncFunctionClient`, so that it can be interrupted.

A bare callable is stateless by contract: every call is turn 1.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from soloist.protocol.content import Map, Message, ResultMessage, function_messages
from soloist.protocol.errors import ResultNotSerializable, client_error


def text_of(value: object) -> str:
    """Check what a callable returned.

    Raises:
        ResultNotSerializable: it is not a ``str``, or not one that UTF-8 can carry.
    """
    if type(value) is not str:
        raise ResultNotSerializable(
            f"the callable returned {type(value).__name__}; return a str, "
            "for example json.dumps(value)"
        )
    return value


class AsyncFunctionClient:
    """An async callable in the client contract's shape.

    Args:
        function: async callable ``prompt -> str``.
        options: keyword arguments for each call.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function = functools.partial(function, **options)
        self._prompt: Any = None
        self._task: asyncio.Future[Any] | None = None

    async def connect(self) -> None:
        """Nothing to connect."""

    async def reset(self) -> None:
        """Nothing to forget."""

    def snapshot(self) -> Map:
        """Nothing to remember: any other can go on."""
        return {}

    def restore(self, value: object) -> None:
        """Nothing to go on with."""

    async def query(self, prompt: Any) -> None:
        """Take the next prompt."""
        self._prompt = prompt

    async def receive_response(self) -> AsyncIterator[Message]:
        """Run the callable and yield its answer; of an interrupted call, a result that says so."""
        started = time.monotonic()
        task = self._task = asyncio.ensure_future(self._call())
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            self._task = None
        duration_s = time.monotonic() - started
        if task.cancelled():
            yield _cancelled(duration_s)
            return
        for message in function_messages(
            text_of(task.result()), num_turns=1, duration_s=duration_s
        ):
            yield message

    async def interrupt(self) -> None:
        """Cancel the running call."""
        if self._task is not None:
            self._task.cancel()

    async def disconnect(self) -> None:
        """Nothing to disconnect."""

    async def _call(self) -> Any:
        try:
            return await self._function(self._prompt)
        except (SystemExit, KeyboardInterrupt) as error:  # out of a task they would end the loop
            raise client_error(error) from error


def _cancelled(duration_s: float) -> ResultMessage:
    return ResultMessage(
        subtype="error_during_execution",
        duration_ms=round(duration_s * 1000),
        duration_api_ms=0,
        is_error=True,
        num_turns=1,
        session_id="",
        result="the call was cancelled",
    )
