"""``connect_async``: the calls of ``connect`` for asyncio."""

from __future__ import annotations

from typing import Any

from soloist.supervisor.aio import arguments_of, with_arguments_of
from soloist.supervisor.aio_base import AsyncBaseSupervisor
from soloist.supervisor.aio_intake import Core
from soloist.supervisor.aio_session import AsyncSharedSession
from soloist.supervisor.connect import RemoteSupervisor, joining_of
from soloist.supervisor.remote import Remote

_CONTROL_S = 60.0
"""How long a coroutine handler may take; how long the gateway waits is its operator's choice."""


class _RemoteCore(Core, RemoteSupervisor):
    """The connection behind."""

    @property
    def remote(self) -> Remote:
        """What carries requests out."""
        return self._remote


class AsyncRemoteSupervisor(AsyncBaseSupervisor):
    """``RemoteSupervisor`` for asyncio: the same arguments, names and errors, awaited.

    To be used on one event loop, in ``async with soloist.connect_async(...) as sup``, or with
    ``await sup.start()`` and ``await sup.close()``. A task that is cancelled cancels what it waits
    for, also in mid-turn.

    Args are those of :class:`~soloist.supervisor.connect.RemoteSupervisor`. An ``on_control``
    handler that is a coroutine function runs on the loop.

    Raises:
        TypeError: there is no such argument. All else that ``RemoteSupervisor`` raises comes from
            ``start``.
    """

    @with_arguments_of(RemoteSupervisor.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        arguments = arguments_of(RemoteSupervisor, args, kwargs)
        super().__init__(_RemoteCore, arguments, control_timeout_s=_CONTROL_S)

    async def shared(
        self,
        name: str,
        *,
        max_queue: int | None = None,
        idle_timeout_s: float | None = None,
        ticket: bytes | None = None,
    ) -> AsyncSharedSession:
        """Give the conversation of that name; see ``RemoteSupervisor.shared``."""
        joining = joining_of(name, max_queue, idle_timeout_s, ticket)
        intake = self._intake()
        core = intake.core
        assert isinstance(core, _RemoteCore)
        opened = core.remote.join_session(name, joining)
        return AsyncSharedSession(intake, name, await intake.ask(opened))


connect_async = AsyncRemoteSupervisor
"""Connect to a gateway; see :class:`AsyncRemoteSupervisor`."""
