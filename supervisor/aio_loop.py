"""Between other threads and one event loop: wake-ups, and waits that a cancellation cannot break.

Invariants: other threads touch the loop through a bell alone, with at most one wake-up of the
loop under way per bell, however much happens; a future of another thread is never cancelled from
here, for that thread goes on to set it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

SLICE_S = 0.001
"""How long a task works without a wait before it gives the loop a turn."""
_CALLS_AT_ONCE = 256
"""Most calls that one turn of the loop is spent on."""


class Bell:
    """Has functions called on the loop, from any thread, in order.

    Args:
        loop: where; if it has been closed nothing is called, for nobody waits there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._is_rung = False

    def ring(self, call: Callable[[], None]) -> None:
        """Have ``call`` called soon."""
        self._calls.append(call)
        if not self._is_rung:
            self._is_rung = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        try:
            for _ in range(min(len(self._calls), _CALLS_AT_ONCE)):
                self._calls.popleft()()
        finally:
            self._is_rung = bool(self._calls)
            if self._calls:  # there are more, or one came just before the flag
                self._is_rung = True
                self._loop.call_soon(self._run)


class Wakeup:
    """What one task waits for and any thread sets.

    Args:
        bell: the task's loop's.
    """

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether a task waits."""
        return self._waiter is not None

    def clear(self) -> None:
        """Forget what was; on the loop alone."""
        self._is_set = False

    def set(self) -> None:
        """Wake the task; from any thread."""
        self._bell.ring(self.set_here)

    def set_here(self) -> None:
        """Wake the task; on the loop alone."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it is set, or for so long; for one task at a time."""
        if self._is_set:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(max(0.0, timeout_s), self.set_here)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


class Pace:
    """Lets the loop have its turns while a task has more to do than to wait for."""

    def __init__(self) -> None:
        self._until = time.monotonic() + SLICE_S

    def is_over(self) -> bool:
        """Whether it is time to ``pause``."""
        return time.monotonic() >= self._until

    async def pause(self) -> None:
        """Give the loop one turn."""
        await asyncio.sleep(0)
        self._until = time.monotonic() + SLICE_S


def current_task() -> asyncio.Task[Any] | None:
    """The task that runs here."""
    return asyncio.current_task()


def is_alive(task: asyncio.Task[Any] | None) -> bool:
    """Whether a task may still do something."""
    return task is not None and not task.done()


def is_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the caller runs on that loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def wrap(source: concurrent.futures.Future[_T]) -> asyncio.Future[_T]:
    """The same future for this loop; cancelling it leaves the original alone.

    ``asyncio.wrap_future`` cancels the original, and within ``asyncio.shield`` it complains of an
    error that nobody sees because its task was cancelled.
    """
    loop = asyncio.get_running_loop()
    wrapped: asyncio.Future[_T] = loop.create_future()

    def take() -> None:
        if wrapped.done():
            return
        error = source.exception()
        if error is None:
            wrapped.set_result(source.result())
        else:
            wrapped.set_exception(error)

    def done(_: concurrent.futures.Future[_T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(take)

    source.add_done_callback(done)
    return wrapped


def in_thread(function: Callable[[], _T], name: str) -> asyncio.Future[_T]:
    """Have what blocks done in a thread of its own, not in the loop's few.

    Cancelling the future leaves the thread alone.
    """
    done: concurrent.futures.Future[_T] = concurrent.futures.Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            done.set_result(context.run(function))
        except BaseException as error:  # noqa: BLE001 - the one who waits gets it
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return wrap(done)


async def outlast(awaited: asyncio.Future[Any], *hurry: Callable[[], None]) -> None:
    """Wait for the end of what must not be left half done.

    Each cancellation takes the next step of ``hurry``; the last one is raised at the end. The
    outcome of ``awaited`` is the caller's business.
    """
    cancelled: asyncio.CancelledError | None = None
    steps = iter(hurry)
    while not awaited.done():
        try:
            await asyncio.wait([awaited])
        except asyncio.CancelledError as error:
            cancelled = error
            if (step := next(steps, None)) is not None:
                step()
    if cancelled is not None:
        raise cancelled
