"""The two sides of a ``map`` on an event loop: a task that pulls the input, and the consumer.

The counterpart of ``Flow.run``, on top of :class:`~soloist.supervisor.flow.Flow`. The input is
pulled by a task of its own, so that one that pauses withholds no finished answer; both tasks run
on the loop, give it a turn at least every ``SLICE_S``, and touch the window in turns.

Invariants: the task pulls only while the window has room; when the block is left the input has
been closed, what had no outcome cancelled, and the task has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeAlias

from soloist.protocol.codec import Prompt
from soloist.protocol.errors import SupervisorClosed
from soloist.supervisor.aio_loop import Bell, Pace, Wakeup, outlast
from soloist.supervisor.flow import Flow
from soloist.supervisor.request import Request

Prompts: TypeAlias = Iterable[Prompt] | AsyncIterable[Prompt]
"""The input of a ``map``; an asynchronous generator is closed at the end."""


class AsyncFlow:
    """One ``map``, ``imap`` or ``imap_unordered``; to be used in an ``async with`` block.

    Args:
        flow: the requests.
        prompts: where they come from.
        bell: the loop's.
        feeders: holds the pulling task while it lives.
    """

    def __init__(
        self, flow: Flow, prompts: Prompts, bell: Bell, feeders: set[asyncio.Task[None]]
    ) -> None:
        self._flow = flow
        self._window = flow.window
        self._prompts = prompts
        self._feeders = feeders
        self._is_exhausted = False
        self._pace = Pace()  # the consumer's
        self._news = Wakeup(bell)  # what the consumer waits for
        self._room = Wakeup(bell)  # what the pulling task waits for

    async def __aenter__(self) -> Self:
        self._feeder = asyncio.get_running_loop().create_task(self._feed(), name="soloist-feeder")
        self._feeders.add(self._feeder)
        self._feeder.add_done_callback(self._fed)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flow.cancel_rest()
        self._feeder.cancel()
        await outlast(self._feeder)

    # -- the consumer's side -----------------------------------------------------------------

    async def advance(self) -> bool:
        """Wait for a finished request, or for the first error of a fail-fast window.

        Returns:
            Whether there is one; ``False`` at the end.

        Raises:
            RequestTimeout: the whole took too long.
            Exception: what the input raised.
        """
        if self._pace.is_over():
            await self._pace.pause()
        while True:
            self._check()
            if self._is_exhausted and not len(self._window):
                return False
            if self._flow.is_late():
                raise self._flow.timeout()
            if self._window.is_ready() or self._window.has_failed():
                return True
            await self._wait()

    def take(self) -> Request:
        """Take one; ``advance`` has said that there is one.

        Raises:
            SoloistError: the first error, if the window is fail-fast.
        """
        request = self._flow.take()
        if self._room.is_awaited and self._window.has_room():
            self._room.set_here()
        return request

    def take_many(self) -> Iterator[Request]:
        """Take what is finished, but not for long."""
        yield self.take()
        while self._window.is_ready() and not self._pace.is_over():
            yield self.take()

    def _check(self) -> None:
        """Raise what ended the pulling task, if that did not reach the end of the input."""
        if self._is_exhausted or not self._feeder.done():
            return
        if self._feeder.cancelled():
            raise SupervisorClosed("the Supervisor is closed", started=False)
        error = self._feeder.exception()
        if error is not None:
            raise error

    async def _wait(self) -> None:
        self._news.clear()
        if len(self._window) and not self._window.arm(self._news.set):
            return
        deadline = self._flow.deadline
        await self._news.wait(None if deadline is None else deadline - time.monotonic())

    # -- the pulling task --------------------------------------------------------------------

    async def _feed(self) -> None:
        """Pull until the end of the input or of the time."""
        if isinstance(self._prompts, AsyncIterable):
            source = aiter(self._prompts)
            try:
                await self._feed_from(source)
            finally:
                if (aclose := getattr(source, "aclose", None)) is not None:
                    await aclose()
            return
        rest = iter(self._prompts)
        while not self._flow.is_late():
            self._is_exhausted = self._flow.fill(rest, is_brief=True)
            self._news.set_here()
            if self._is_exhausted:
                return
            await asyncio.sleep(0)
            await self._until_room()

    async def _feed_from(self, source: AsyncIterator[Prompt]) -> None:
        pace = Pace()
        async for prompt in source:
            self._flow.put(prompt)
            if len(self._window) == 1:
                self._news.set_here()
            if pace.is_over():
                await pace.pause()
            await self._until_room()
            if self._flow.is_late():
                return
        self._is_exhausted = True

    async def _until_room(self) -> None:
        while not self._window.has_room():
            self._room.clear()
            await self._room.wait()

    def _fed(self, feeder: asyncio.Task[None]) -> None:
        self._feeders.discard(feeder)
        if not feeder.cancelled():
            feeder.exception()  # it counts as seen; the consumer raises it if it still cares
        self._news.set_here()
