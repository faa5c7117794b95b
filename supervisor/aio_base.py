"""What every Supervisor offers on an event loop: :mod:`soloist.supervisor.base` for asyncio.

Owns what begins and ends with the event loop: the start and the end of the Supervisor behind, on
threads of their own, and the tasks that pull the input of maps. What is sent, and when, is the
business of the same code as there.

Invariants: nothing here blocks the loop; cancelling what waits here cancels what it waits for,
except the end, which a cancellation hurries on; once closed, no task, thread or process is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from collections.abc import Set as AbstractSet
from types import TracebackType
from typing import Any, Self

from soloist.protocol.codec import Prompt
from soloist.protocol.errors import LocalProtocolError, SoloistError
from soloist.supervisor import limits
from soloist.supervisor.aio_flow import AsyncFlow, Prompts
from soloist.supervisor.aio_intake import (
    AsyncIntake,
    AsyncRequestFuture,
    AsyncResponse,
    Core,
    Handlers,
)
from soloist.supervisor.aio_loop import in_thread, outlast, wrap
from soloist.supervisor.aio_session import AsyncSession, AsyncSharedSession
from soloist.supervisor.brokers import SessionLimits
from soloist.supervisor.control import Handler
from soloist.supervisor.flow import result_or_error
from soloist.supervisor.results import Result, Stats
from soloist.supervisor.shutdown import Phase

_START_GRACE_S = 10.0
"""How long a cancelled start is waited for; then its thread ends it alone."""


class AsyncBaseSupervisor:
    """The calls of a Supervisor on an event loop.

    Args:
        make: makes the Supervisor behind, in a thread of its own.
        arguments: what with; among them ``on_control``, ``max_pending`` and ``drain_timeout_s``.
        control_timeout_s: how long an answer that is worked out on the loop may take.
    """

    def __init__(
        self, make: Callable[..., Core], arguments: dict[str, Any], *, control_timeout_s: float
    ) -> None:
        self._make = make
        self._control_timeout_s = control_timeout_s
        self._arguments = arguments
        self._intake_: AsyncIntake | None = None
        self._handlers: Handlers | None = None
        self._ended: asyncio.Future[None] | None = None

    async def start(self) -> Self:
        """Start the workers' helper and prove that the client loads in a worker.

        Cancelled, it ends what it has started.

        Raises:
            SoloistError: see ``Supervisor``; everything has been cleaned up again.
            LocalProtocolError: it was started before.
        """
        if self._handlers is not None:
            raise LocalProtocolError("an AsyncSupervisor is started once")
        loop = asyncio.get_running_loop()
        handlers = self._handlers = Handlers(loop, self._control_timeout_s)
        on_control = handlers.on_loop(self._arguments["on_control"])
        core = await _started(self._make, {**self._arguments, "on_control": on_control})
        self._intake_ = AsyncIntake(
            core, loop, handlers, max_pending=self._arguments["max_pending"]
        )
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(self._arguments["drain_timeout_s"] if kind is None else 0.0)

    # -- many prompts ----------------------------------------------------------------------------

    async def map(
        self,
        prompts: Prompts,
        *,
        timeout_s: float | None = None,
        total_timeout_s: float | None = None,
        return_exceptions: bool = False,
    ) -> list[Result]:
        """Answer every prompt; results in input order.

        Args:
            prompts: any iterable or asynchronous iterable of ``str`` or lists of content blocks;
                pulled on the loop, by a task, so one that blocks should be asynchronous. An
                asynchronous generator is closed at the end.
            timeout_s: seconds per request from its entry into the window.
            total_timeout_s: seconds for the whole call.
            return_exceptions: put errors in the place of their results instead of raising.

        Raises:
            SoloistError: the first error, as soon as it happens; the rest has been cancelled.
                Its ``completed`` holds the results that were there, in input order.
        """
        intake = self._intake()
        flow = intake.core.new_flow(
            timeout_s, total_timeout_s, is_ordered=True, is_fail_fast=not return_exceptions
        )
        outcomes: list[Any] = []
        async with AsyncFlow(flow, prompts, intake.bell, intake.feeders) as run:
            try:
                while await run.advance():
                    outcomes.extend(result_or_error(request) for request in run.take_many())
            except SoloistError as error:
                outcomes.extend(result_or_error(request) for request in flow.window.finished())
                error.completed = [o for o in outcomes if isinstance(o, Result)]
                raise
        return outcomes

    def imap(
        self,
        prompts: Prompts,
        *,
        timeout_s: float | None = None,
        total_timeout_s: float | None = None,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[Result, None]:
        """As ``map``, lazy in and out: works over an endless generator in constant memory.

        An error is raised in its place; that, closing the generator, or cancelling the task that
        reads it cancels the rest.
        """
        return self._iterate(
            prompts, timeout_s, total_timeout_s, return_exceptions, is_ordered=True
        )

    def imap_unordered(
        self,
        prompts: Prompts,
        *,
        timeout_s: float | None = None,
        total_timeout_s: float | None = None,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[Result, None]:
        """As ``imap``, results in the order in which they come; ``index`` says which."""
        return self._iterate(
            prompts, timeout_s, total_timeout_s, return_exceptions, is_ordered=False
        )

    # -- one prompt ------------------------------------------------------------------------------

    def submit(self, prompt: Prompt, *, timeout_s: float | None = None) -> AsyncRequestFuture:
        """Send one prompt; returns at once, what it returns can be awaited.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now, the wait in the queue included.

        Returns:
            An ``asyncio.Future`` of a :class:`Result`. Cancelling it, or the task that awaits it,
            cancels the request, also if it runs.

        Raises:
            QueueFull: ``max_pending`` requests have no outcome yet.
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent.
            InvalidOptions: ``timeout_s`` is no number of seconds.
            SupervisorClosed: closed, or closing. After ``drain`` it is the future that fails so.
        """
        return self._intake().future(prompt, timeout_s)

    def query(
        self, prompt: Prompt, *, timeout_s: float | None = None, on_control: Handler | None = None
    ) -> AsyncResponse:
        """Stream the messages of one prompt, as they arrive, in a new conversation.

        The prompt is sent by this call. The last message is a ``ResultMessage``. Closing or
        dropping the iterator, or cancelling the task that reads it, interrupts the turn.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now, the wait in the queue included.
            on_control: answers what the client asks its caller meanwhile, in place of the
                Supervisor's; a coroutine function runs on the loop.

        Raises:
            InvalidOptions: the Supervisor keeps its conversations (``isolation="worker"``).
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
            SupervisorClosed: closed.

        Reading it raises the request's error, after the messages that came before it.
        """
        return self._intake().query(prompt, timeout_s, on_control)

    # -- conversations ---------------------------------------------------------------------------

    def session(self) -> AsyncSession:
        """Give a conversation of the caller's own, in a worker of its own.

        It begins with ``async with sup.session() as s``, or ``s = await sup.session()`` and
        ``await s.close()``; that returns when its client is connected.

        Raises, when it begins:
            QueueFull: ``max_sessions`` conversations are open.
            ClientNotFound, ClientConnectError: its client cannot start.
            SupervisorClosed: closed.
        """
        return AsyncSession(self._intake())

    async def shared(
        self, name: str, *, max_queue: int = 1_000, idle_timeout_s: float | None = None
    ) -> AsyncSharedSession:
        """Give the conversation of that name; the first call begins it, in a worker of its own.

        Any task may call it, any number of times. A conversation that was lost stays lost
        under its name until somebody closes it.

        Args:
            name: any text.
            max_queue: most requests that wait for their turn; then ``QueueFull``.
            idle_timeout_s: seconds without a request after which it is closed by itself.

        Raises:
            QueueFull: ``max_sessions`` conversations are open.
            InvalidOptions: it is open with other bounds, or an argument is wrong.
            SupervisorClosed: closed.
        """
        limits.check_text(name=name)
        limits.check_counts(max_queue=max_queue)
        limits.check_positive_seconds(idle_timeout_s=idle_timeout_s)
        intake = self._intake()
        opened = intake.core.engine.open_session(name, SessionLimits(max_queue, idle_timeout_s))
        return AsyncSharedSession(intake, name, await intake.ask(opened))

    # -- the whole -------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        """A consistent, immutable snapshot."""
        intake = self._intake()
        return await intake.ask(intake.core.engine.stats())

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more requests and wait for the outcome of all that were accepted.

        Returns:
            Whether all had their outcome within ``timeout_s`` (``None``: no limit).
        """
        limits.check_seconds(timeout_s=timeout_s)
        idle = wrap(self._intake().core.engine.drain())
        await asyncio.wait([idle], timeout=timeout_s)
        return idle.done()

    async def close(self, timeout_s: float | None = 0.0) -> None:
        """End everything, in bounded time, and leave nothing behind; may be called again.

        Drains for up to ``timeout_s``, then interrupts what runs, asks the workers to exit, and
        goes on to SIGTERM and SIGKILL, each with a deadline of its own. What has no outcome by
        then gets ``SupervisorClosed``. Cancelled, it still returns only when all has ended:
        a cancellation while it drains ends that, the next one skips to SIGKILL.
        """
        limits.check_seconds(timeout_s=timeout_s)
        if self._intake_ is None:
            return
        await self._end(timeout_s, Phase.DRAIN)

    # -- helpers ---------------------------------------------------------------------------------

    def _intake(self) -> AsyncIntake:
        if self._intake_ is None:
            raise LocalProtocolError(
                "an AsyncSupervisor is used in `async with`, or after `await start()`"
            )
        self._intake_.check_loop()
        return self._intake_

    def _iterate(
        self,
        prompts: Prompts,
        timeout_s: float | None,
        total_timeout_s: float | None,
        return_exceptions: bool,  # noqa: FBT001 - private
        *,
        is_ordered: bool,
    ) -> AsyncGenerator[Any, None]:
        intake = self._intake()
        flow = intake.core.new_flow(timeout_s, total_timeout_s, is_ordered=is_ordered)
        return _outcomes(
            AsyncFlow(flow, prompts, intake.bell, intake.feeders),
            return_exceptions=return_exceptions,
        )

    async def _end(self, timeout_s: float | None, at_least: Phase) -> None:
        intake, handlers = self._intake(), self._handlers
        assert handlers is not None
        core = intake.core
        core.engine.close(timeout_s, at_least=at_least)
        if self._ended is None:
            self._ended = in_thread(lambda: core.close(timeout_s), "soloist-close")
        hurry = [
            lambda: core.engine.close(0.0),
            lambda: core.engine.close(0.0, at_least=Phase.KILL),
        ]
        try:
            await outlast(self._ended, *(hurry[1:] if timeout_s == 0 else hurry))
        finally:
            await _cancelled(handlers.close() | intake.feeders)


async def _outcomes(run: AsyncFlow, *, return_exceptions: bool) -> AsyncGenerator[Any, None]:
    async with run:
        while await run.advance():
            outcome = result_or_error(run.take())
            if isinstance(outcome, SoloistError) and not return_exceptions:
                raise outcome
            yield outcome


async def _started(make: Callable[..., Core], arguments: Mapping[str, Any]) -> Core:
    """Make the Supervisor behind; cancelled, unmake it."""
    is_unwanted = threading.Event()

    def start() -> Core:
        core = make(**arguments)
        if is_unwanted.is_set():
            core.end()
        return core

    starting = in_thread(start, "soloist-start")
    try:
        await asyncio.wait([starting])
    except asyncio.CancelledError:
        is_unwanted.set()
        with contextlib.suppress(asyncio.CancelledError):  # again: then its thread does it alone
            await asyncio.wait([starting], timeout=_START_GRACE_S)
        if starting.done() and starting.exception() is None:  # it may not have seen the flag
            await outlast(in_thread(starting.result().end, "soloist-close"))
        raise
    return starting.result()


async def _cancelled(tasks: AbstractSet[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await outlast(asyncio.gather(*tasks, return_exceptions=True))
