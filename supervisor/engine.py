"""What carries requests out: the I/O thread of a Supervisor, or the connection to a gateway.

Whoever makes requests (:mod:`soloist.supervisor.intake`) and the handles of sessions know no more
of what is below them than this.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Protocol

from soloist.supervisor.brokers import Address, SessionLimits
from soloist.supervisor.request import Request
from soloist.supervisor.results import SessionStats, Stats
from soloist.supervisor.shutdown import Phase


class Engine(Protocol):
    """Takes requests from any thread and settles each once, on a thread of its own.

    Nothing here waits, except for ``join``. Each future gets its answer, also when the engine
    ends first; none may be cancelled.
    """

    @property
    def takes_parts(self) -> bool:
        """Whether :class:`~soloist.supervisor.chunk.Part` may stand for its prompts' requests."""

    @property
    def is_closed(self) -> threading.Event:
        """Set when everything has ended, or in a fork of its process."""

    def submit(self, requests: Iterable[Request]) -> None:
        """Hand requests over.

        Raises:
            SupervisorClosed: it is closing, or this process is a fork of its owner.
        """

    def cancel(self, requests: Iterable[Request]) -> None:
        """End these requests early."""

    def open_session(
        self, name: str, limits: SessionLimits, ready: Future[None] | None = None
    ) -> Future[Address]:
        """Give the session of that name, a new one if there is none or the name is empty.

        Args:
            name: what its callers call it.
            limits: its bounds.
            ready: done when its client is connected, or failed.
        """

    def interrupt_session(self, number: int) -> None:
        """End the running turn of a session early."""

    def close_session(self, number: int, *, drain: bool) -> Future[None]:
        """Close a session; the future is done when its worker has gone."""

    def session_stats(self, number: int) -> Future[SessionStats | None]:
        """A snapshot of one session; ``None`` if it is over."""

    def command(self, number: int, name: str, arguments: list[Any]) -> Future[None]:
        """Call a method of a session's client that is no turn.

        Raises:
            InvalidOptions: the arguments cannot be sent.
        """

    def stats(self) -> Future[Stats]:
        """A snapshot."""

    def drain(self) -> Future[None]:
        """Take no more requests; the future is done when all have their outcome."""

    def close(self, drain_s: float | None, *, at_least: Phase = Phase.DRAIN) -> None:
        """Begin to close, or close faster; ``is_closed`` is set at the end."""

    def join(self) -> None:
        """Wait for the last steps after ``is_closed``."""

    def disown(self) -> None:
        """In a forked copy of the process: be closed, and touch nothing of the owner's."""
