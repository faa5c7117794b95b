"""Conversations on an event loop: ``AsyncSession`` and ``AsyncSharedSession``.

Handles, as those of :mod:`soloist.supervisor.session`, whose rules they follow; whose turn it is
goes by task instead of thread, for all tasks share one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Generator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from soloist.protocol.codec import Prompt
from soloist.protocol.errors import LocalProtocolError
from soloist.supervisor import limits
from soloist.supervisor.aio_intake import AsyncIntake, AsyncRequestFuture, AsyncResponse
from soloist.supervisor.aio_loop import current_task, is_alive, wrap
from soloist.supervisor.brokers import Address, SessionLimits
from soloist.supervisor.control import Handler
from soloist.supervisor.engine import Engine
from soloist.supervisor.results import SessionStats
from soloist.supervisor.session import Turns, abandon, forgotten, incarnation_of, is_connected


class _AsyncHandle:
    """What both kinds of session have; what is a property there is a coroutine method here."""

    def __init__(self, intake: AsyncIntake) -> None:
        self._intake = intake

    @property
    def _number(self) -> int:
        raise NotImplementedError

    async def stats(self) -> SessionStats | None:
        """A consistent, immutable snapshot; ``None`` once the session is over."""
        return await self._intake.ask(self._intake.core.engine.session_stats(self._number))

    async def incarnation(self) -> int:
        """The number of the conversation's worker, from 1; 0 once the session is over."""
        return incarnation_of(await self.stats())

    async def is_connected(self) -> bool:
        """Whether its client can take a prompt now."""
        return is_connected(await self.stats())


class AsyncSharedSession(_AsyncHandle):
    """One conversation for many callers: they are served in the order in which they come.

    Callers in other processes and languages use the socket at ``endpoint`` (see
    ``protocol/SPEC.md``); all stand in one queue. Made by ``AsyncSupervisor.shared``.

    Attributes:
        name: what its callers call it.
        endpoint: ``ipc://`` address of its broker's socket.
        ticket: admits others through the same gateway; empty if there is none between.
    """

    def __init__(self, intake: AsyncIntake, name: str, address: Address) -> None:
        super().__init__(intake)
        self._address = address
        self.name = name
        self.endpoint = address.endpoint
        self.ticket = address.ticket

    def __repr__(self) -> str:
        return f"<AsyncSharedSession {self.name!r} {self.endpoint}>"

    @property
    def _number(self) -> int:
        return self._address.number

    def query_and_receive(
        self, prompt: Prompt, *, timeout_s: float | None = None, on_control: Handler | None = None
    ) -> AsyncResponse:
        """Send a prompt, at the end of the queue, and read the messages of its own answer.

        The prompt is sent by this call, not by the first ``anext``. Closing or dropping the
        iterator, or cancelling the task that reads it, takes the prompt out of the queue or
        interrupts its turn; nobody else gets what is left of its answer.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now, the wait in the queue included.
            on_control: answers what the client asks its caller meanwhile, in place of the
                Supervisor's; a coroutine function runs on the loop.

        Raises:
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
            InvalidOptions: ``timeout_s`` is no number of seconds.

        Reading it raises the request's error: ``QueueFull``, ``RequestTimeout``,
        ``RequestCancelled``, ``SlowReader``, ``WorkerLost``, ``SessionLost``, ``SessionClosed``
        or the client's own.
        """
        response = self._intake.response(prompt, timeout_s, self._number, on_control)
        return AsyncResponse(response, self._intake.bell)

    def query(self, prompt: Prompt, *, timeout_s: float | None = None) -> AsyncRequestFuture:
        """Send a prompt, for instance to add to the context; nobody has to wait for its answer.

        The prompt is sent by this call.

        Returns:
            A future of a ``Result``, as ``AsyncSupervisor.submit`` gives it.

        Raises:
            QueueFull: ``max_pending`` futures have no outcome yet.
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
        """
        return self._intake.future(prompt, timeout_s, self._number)

    async def interrupt(self) -> None:
        """End the running turn early, whoever asked for it; without one, do nothing.

        Its caller gets ``RequestCancelled``; the next in the queue follows.
        """
        self._intake.core.engine.interrupt_session(self._number)

    async def close(self, *, drain: bool = False, timeout_s: float | None = None) -> None:
        """End the conversation for everybody; returns when its worker has gone.

        If this is cancelled the session ends all the same, with nobody waiting for it.

        Args:
            drain: whether those who wait are still served, in up to ``timeout_s``; else they get
                ``SessionClosed``, and the running turn is interrupted.
            timeout_s: ``None`` for no limit.
        """
        await _close(self._intake.core.engine, self._number, drain=drain, timeout_s=timeout_s)


class AsyncSession(_AsyncHandle):
    """A conversation of one caller's own, with the methods of ``ClaudeSDKClient``.

    Made by ``AsyncSupervisor.session``; begins with ``async with``, or when it is awaited. It
    takes one prompt at a time, from one task at a time: whoever comes in between gets
    ``SessionBusy`` at once. ``interrupt`` may come from any task. Leaving the ``async with``
    block ends the conversation and its worker.
    """

    def __init__(self, intake: AsyncIntake) -> None:
        super().__init__(intake)
        self._turns = Turns(current_task, is_alive)
        self._address: Address | None = None
        self._forgotten: weakref.finalize[..., Any] | None = None

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def query(
        self, prompt: Prompt, *, timeout_s: float | None = None, on_control: Handler | None = None
    ) -> None:
        """Send a prompt; its answer is read with ``receive_response``, in the same task.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now to the end of the answer.
            on_control: answers what the client asks its caller meanwhile, in place of the
                Supervisor's; a coroutine function runs on the loop.

        Raises:
            SessionBusy: the turn before has not ended; read it to its end, close its iterator, or
                call ``interrupt``.
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
        """
        self._send(prompt, timeout_s, on_control)

    def receive_response(self) -> AsyncResponse:
        """Read the messages of the prompt that was sent last, as they arrive.

        The iterator may be handed to another task. Closing or dropping it before its end, or
        cancelling the task that reads it, interrupts the turn. After ``interrupt`` it ends with
        the turn's ``ResultMessage``, as ``ClaudeSDKClient``'s does.

        Raises:
            SessionBusy: another task, which is not done, sent the prompt.
            LocalProtocolError: nothing was sent.

        Reading it raises the request's error, after the messages before it.
        """
        return AsyncResponse(self._turns.read(), self._intake.bell, self._turns.is_ended)

    def query_and_receive(
        self, prompt: Prompt, *, timeout_s: float | None = None, on_control: Handler | None = None
    ) -> AsyncResponse:
        """``query``, then ``receive_response``; the prompt is sent by this call."""
        self._send(prompt, timeout_s, on_control)
        return self.receive_response()

    async def interrupt(self) -> None:
        """End the running turn early; without one, do nothing. Returns at once."""
        if (response := self._turns.interrupt()) is not None:
            self._intake.core.intake.cancel(response.request)

    async def set_model(self, model: str | None = None) -> None:
        """Go on with another model, where the client has ``set_model``.

        Raises:
            InvalidOptions: it has not.
            SoloistError: what it raised; ``WorkerLost`` if it died meanwhile.
        """
        await self._command("set_model", model)

    async def set_permission_mode(self, mode: str) -> None:
        """Go on with another permission mode, where the client has ``set_permission_mode``.

        Raises:
            InvalidOptions: it has not.
            SoloistError: what it raised; ``WorkerLost`` if it died meanwhile.
        """
        await self._command("set_permission_mode", mode)

    async def close(self) -> None:
        """End the conversation; returns when its worker has gone. May be called again.

        If this is cancelled it ends all the same, with nobody waiting for it.
        """
        if self._forgotten is None:
            return
        self._forgotten.detach()
        await _close(self._intake.core.engine, self._number, drain=False, timeout_s=None)

    @property
    def _number(self) -> int:
        if self._address is None:
            raise LocalProtocolError("a session begins with `async with`, or when it is awaited")
        return self._address.number

    async def _open(self) -> Self:
        if self._address is not None:
            raise LocalProtocolError("the session has begun already")
        self._intake.check_loop()
        engine = self._intake.core.engine
        ready: Future[None] = Future()
        opened = engine.open_session("", SessionLimits(1, None), ready)
        try:
            address = await wrap(opened)
            await wrap(ready)
        except BaseException:
            opened.add_done_callback(lambda opened: _close_unwanted(engine, opened))
            raise
        self._address = address
        self._forgotten = weakref.finalize(self, forgotten, engine, address.number)
        self._forgotten.atexit = False
        return self

    def _send(self, prompt: Prompt, timeout_s: float | None, on_control: Handler | None) -> None:
        number = self._number
        self._turns.begin(lambda: self._intake.response(prompt, timeout_s, number, on_control))

    async def _command(self, name: str, *arguments: Any) -> None:
        command = self._intake.core.engine.command
        await self._intake.ask(command(self._number, name, list(arguments)))


def _close_unwanted(engine: Engine, opened: Future[Address]) -> None:
    if opened.exception() is None:
        abandon(engine, opened.result().number)


async def _close(engine: Engine, number: int, *, drain: bool, timeout_s: float | None) -> None:
    limits.check_seconds(timeout_s=timeout_s)
    closed = wrap(engine.close_session(number, drain=drain))
    await asyncio.wait([closed], timeout=timeout_s if drain else None)
    if not closed.done():
        engine.close_session(number, drain=False)
        await closed
