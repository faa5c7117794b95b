"""``AsyncSupervisor``: the interface of ``Supervisor`` for asyncio."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from soloist.supervisor import limits
from soloist.supervisor.aio_base import AsyncBaseSupervisor
from soloist.supervisor.aio_intake import Core
from soloist.supervisor.aio_loop import wrap
from soloist.supervisor.api import Supervisor
from soloist.supervisor.reactor import Reactor
from soloist.supervisor.shutdown import Phase

_P = ParamSpec("_P")


class _OwnCore(Core, Supervisor):
    """The Supervisor behind, with what only the owner of workers can do."""

    @property
    def reactor(self) -> Reactor:
        """The I/O thread."""
        return self._reactor


def with_arguments_of(
    model: Callable[Concatenate[Any, _P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _P], None]]:
    """Let a constructor have the arguments of another, for readers and type checkers alike."""

    def decorate(function: Any) -> Any:
        function.__signature__ = inspect.signature(model)
        return function

    return decorate


def arguments_of(model: type, args: Any, kwargs: Any) -> dict[str, Any]:
    """What a constructor is called with, by name, defaults included.

    Raises:
        TypeError: it has no such argument.
    """
    bound = inspect.signature(model).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


class AsyncSupervisor(AsyncBaseSupervisor):
    """``Supervisor`` for asyncio: the same arguments, names and errors, awaited.

    To be used on one event loop, in ``async with AsyncSupervisor(...) as sup``, or with ``await
    sup.start()`` and ``await sup.close()``. Leaving the block normally waits for what was
    accepted, up to ``drain_timeout_s``; leaving it by an exception or a cancellation ends
    everything. A task that is cancelled cancels what it waits for, also in mid-turn, so
    ``asyncio.timeout`` and ``asyncio.TaskGroup`` mean what they say.

    Args are those of :class:`~soloist.supervisor.api.Supervisor`. An ``on_control`` handler that
    is a coroutine function runs on the loop; it is cancelled when ``control_timeout_s`` are over.

    Raises:
        TypeError: there is no such argument. All else that ``Supervisor`` raises comes from
            ``start``, before anything is spawned where that is so there.
    """

    @with_arguments_of(Supervisor.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        arguments = arguments_of(Supervisor, args, kwargs)
        super().__init__(_OwnCore, arguments, control_timeout_s=arguments["control_timeout_s"])

    async def cancel_pending(self) -> None:
        """End every request that has not started with ``RequestCancelled``; what runs goes on."""
        self._core().cancel_pending()

    async def restart(self, timeout_s: float | None = None) -> bool:
        """Replace every worker that there is by a new one, without losing a request.

        See ``Supervisor.restart``. Cancelled, it waits no more; the restart goes on.

        Returns:
            Whether all have gone within ``timeout_s`` (``None``: no limit); if not, it goes on.

        Raises:
            RestartLimitReached: the new workers cannot start; those that are left stay.
            SupervisorClosed: closed.
        """
        limits.check_seconds(timeout_s=timeout_s)
        rolled = wrap(self._core().reactor.restart())
        try:
            await asyncio.wait([rolled], timeout=timeout_s)
            if rolled.done():
                rolled.result()
                return True
            return False
        finally:
            rolled.cancel()

    async def kill(self) -> None:
        """End everything at once by SIGKILL; what has no outcome gets ``SupervisorClosed``."""
        if self._intake_ is not None:
            await self._end(0.0, Phase.KILL)

    def _core(self) -> _OwnCore:
        core = self._intake().core
        assert isinstance(core, _OwnCore)
        return core
