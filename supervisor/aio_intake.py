"""What ``AsyncSupervisor`` and its sessions share: requests whose outcomes come to one loop.

The counterpart of :mod:`soloist.supervisor.intake`, on top of it: requests are made and handed
over in the same way, and only the sinks differ. Everything here is called on the loop, except
what says otherwise.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from soloist.protocol.codec import Prompt
from soloist.protocol.content import Message
from soloist.protocol.errors import (
    LocalProtocolError,
    QueueFull,
    RequestCancelled,
    SoloistError,
    SupervisorClosed,
)
from soloist.protocol.messages import Answer
from soloist.supervisor import limits
from soloist.supervisor.aio_loop import Bell, Pace, Wakeup, is_here, wrap
from soloist.supervisor.base import BaseSupervisor
from soloist.supervisor.control import ControlRequest, Handler
from soloist.supervisor.engine import Engine
from soloist.supervisor.flow import Flow
from soloist.supervisor.intake import Intake
from soloist.supervisor.request import POOL, Request
from soloist.supervisor.response import Response
from soloist.supervisor.results import Result

_T = TypeVar("_T")

_OWN_DOING = (RequestCancelled, SupervisorClosed)
"""Errors that the caller brought about; nobody need be told of one that nobody awaits."""


class Core(BaseSupervisor):
    """The Supervisor behind; futures in place of its short waits for the engine."""

    @property
    def intake(self) -> Intake:
        """Where requests are made."""
        return self._intake

    @property
    def engine(self) -> Engine:
        """What carries them out."""
        return self._engine

    def end(self) -> None:
        """End everything at once."""
        self._kill()

    def new_flow(
        self,
        timeout_s: float | None,
        total_timeout_s: float | None,
        *,
        is_ordered: bool,
        is_fail_fast: bool = False,
    ) -> Flow:
        """Begin a ``map``.

        Raises:
            InvalidOptions: a time is no number of seconds.
        """
        window = self._new_window(is_ordered=is_ordered, is_fail_fast=is_fail_fast)
        return Flow(self._intake, window, timeout_s, total_timeout_s)


class AsyncRequestFuture(asyncio.Future[Result]):
    """The future result of one request, on the loop of its Supervisor.

    Cancelling it, or the task that awaits it, cancels the request, also if it runs: its turn is
    interrupted and drained, and then its worker is free again.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bell: Bell,
        on_cancel: Callable[[Request], None],
        pending: set[AsyncRequestFuture],
        owner: object,
    ) -> None:
        super().__init__(loop=loop)
        self._bell = bell
        self._on_cancel = on_cancel
        self._pending = pending
        self._owner: object | None = owner
        self.request: Request | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the request; ``False`` if the outcome is already there."""
        if not super().cancel(msg):
            return False
        if self.request is not None:
            self._on_cancel(self.request)
        return True

    def settle(self, request: Request) -> None:
        """Take the outcome; called by the I/O thread."""
        self._owner = None
        self._pending.discard(self)
        del request
        self._bell.ring(self._take)

    def stream(self, request: Request, message: bytes) -> bool:
        """A future takes no parts."""
        del request, message
        return True

    def _take(self) -> None:
        assert self.request is not None
        outcome = self.request.outcome
        if self.done():
            return
        if isinstance(outcome, Answer):
            self.set_result(Result.of(self.request, outcome))
        elif outcome is not None:
            self.set_exception(outcome)
            if isinstance(outcome, _OWN_DOING):
                self.exception()  # it counts as seen


class AsyncResponse(AsyncIterator[Message]):
    """Iterates over the messages of one answer; the last one is a ``ResultMessage``.

    The prompt was sent when this was made. Closing it, leaving its ``async with`` block, dropping
    it, or cancelling the task that reads it before its end interrupts the turn; what is left of
    that turn reaches nobody. It is read by one task at a time.

    Args:
        response: what is read.
        bell: of the reader's loop.
        is_ended: whether a cancelled turn that ended with this message ended as it should.

    Raises:
        SoloistError: while it is read: the request's error, after the messages before it.
    """

    def __init__(
        self,
        response: Response,
        bell: Bell,
        is_ended: Callable[[Response, Message | None], bool] = lambda *_: False,
    ) -> None:
        self._response = response
        self._is_ended = is_ended
        self._wakeup = Wakeup(bell)
        self._pace = Pace()
        self._last: Message | None = None
        self._dropped = weakref.finalize(self, response.close)
        self._dropped.atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._wakeup.is_awaited:
            raise LocalProtocolError("another task is reading this answer")
        try:
            await self._ready()
            self._last = next(self._response)
        except StopIteration:
            raise StopAsyncIteration from None
        except RequestCancelled:
            if self._is_ended(self._response, self._last):
                raise StopAsyncIteration from None
            raise
        except BaseException:
            self._dropped()
            raise
        return self._last

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it early: the turn is interrupted, and nothing more is read. Returns at once."""
        self._dropped()

    async def _ready(self) -> None:
        """Wait until the next message can be read without waiting."""
        if self._pace.is_over():
            await self._pace.pause()
        self._wakeup.clear()
        while self._response.arm(self._wakeup.set):
            await self._wakeup.wait()
            self._wakeup.clear()


class Handlers:
    """Runs ``on_control`` handlers that are coroutine functions on the loop.

    Args:
        loop: where.
        timeout_s: how long an answer may take; the worker waits no longer, and the handler is
            cancelled.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def on_loop(self, handler: Handler | None) -> Handler | None:
        """Give a handler for the control desk, which calls it on a thread of its own."""
        if handler is None:
            return None

        def answer(request: ControlRequest) -> Any:
            value = handler(request)
            return self._result(value) if inspect.iscoroutine(value) else value

        return answer

    def close(self) -> frozenset[asyncio.Task[Any]]:
        """Begin no more; give the tasks that still run."""
        self._is_closed = True
        return frozenset(self._tasks)

    def _result(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for the handler; on the control desk's thread."""
        run = self._run(work)
        try:
            future = asyncio.run_coroutine_threadsafe(run, self._loop)
        except RuntimeError:  # the loop is closed
            run.close()
            work.close()
            raise
        try:
            return future.result(self._timeout_s)
        finally:
            if not self._loop.is_closed():
                future.cancel()

    async def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.current_task()
        if self._is_closed or task is None:
            work.close()
            raise SupervisorClosed("the Supervisor is closed")
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.discard(task)


class AsyncIntake:
    """Makes requests for one loop.

    Args:
        core: the Supervisor behind.
        loop: where the answers go.
        handlers: runs ``on_control`` handlers.
        max_pending: most futures without an outcome.
    """

    def __init__(
        self,
        core: Core,
        loop: asyncio.AbstractEventLoop,
        handlers: Handlers,
        *,
        max_pending: int,
    ) -> None:
        self.core = core
        self.bell = Bell(loop)
        self.feeders: set[asyncio.Task[None]] = set()
        self._loop = loop
        self._handlers = handlers
        self._max_pending = max_pending
        self._pending: set[AsyncRequestFuture] = set()

    def check_loop(self) -> None:
        """Refuse callers on other loops and threads.

        Raises:
            LocalProtocolError: it is one.
        """
        if not is_here(self._loop):
            raise LocalProtocolError("an AsyncSupervisor is used on the event loop that began it")

    def future(
        self, prompt: Prompt, timeout_s: float | None, session: int = POOL
    ) -> AsyncRequestFuture:
        """Send a prompt whose answer is wanted as a whole; see ``Intake.future``."""
        self.check_loop()
        limits.check_seconds(timeout_s=timeout_s)
        if len(self._pending) >= self._max_pending:
            raise QueueFull(f"{self._max_pending:,} requests wait already (max_pending)")
        intake = self.core.intake
        future = AsyncRequestFuture(self._loop, self.bell, intake.cancel, self._pending, self.core)
        future.request = intake.request(prompt, future, 0, timeout_s, session=session)
        self._pending.add(future)
        try:
            intake.submit(future.request)
        except SoloistError:
            self._pending.discard(future)
            raise
        return future

    def response(
        self,
        prompt: Prompt,
        timeout_s: float | None,
        session: int,
        on_control: Handler | None,
    ) -> Response:
        """Send a prompt whose messages are wanted as they arrive; see ``Intake.response``."""
        self.check_loop()
        on_control = self._handlers.on_loop(on_control)
        return self.core.intake.response(prompt, timeout_s, self.core, session, on_control)

    def query(
        self, prompt: Prompt, timeout_s: float | None, on_control: Handler | None
    ) -> AsyncResponse:
        """Begin a new conversation; see ``Supervisor.query``."""
        self.check_loop()
        on_control = self._handlers.on_loop(on_control)
        response = self.core.query(prompt, timeout_s=timeout_s, on_control=on_control)
        return AsyncResponse(response, self.bell)

    async def ask(self, answer: Future[_T]) -> _T:
        """Await what the I/O thread does."""
        self.check_loop()
        return await wrap(answer)
