"""The client contract: what a class needs so that a worker can hold it.

It is ``ClaudeSDKClient``'s shape. Nothing here is inherited from: a class someone already has
with these methods works unchanged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, runtime_checkable

from soloist.protocol.codec import Prompt


@runtime_checkable
class Client(Protocol):
    """One conversation with one agent. Never has more than one turn in flight.

    Optional methods, each sync or async where it is not said otherwise:

    ``async reset()`` begins a new conversation on the same connection.
    ``check_options(**options)`` (sync, static or class method) refuses bad options before anything
    is spawned.
    ``set_model(model)``, ``set_permission_mode(mode)`` may be called beside a turn.
    ``snapshot()`` gives what another client of the same options needs to go on with this
    conversation: a plain msgpack value, small, or ``None`` if none can. It is called after
    ``connect`` and after each turn, and must hold that turn; whoever gets it may outlive this
    process.
    ``restore(value)`` comes before ``connect``, which then goes on with that conversation. Either
    raises ``ClientConnectError`` (with ``retryable = False`` if trying again is of no use) rather
    than begin with less than was answered.
    ``use_control()`` (sync) comes before ``connect`` if there is a caller to ask: the client then
    lets it decide on what it would decide itself. Any client may ask by
    ``soloist.worker.control.ask_caller``.
    """

    async def connect(self) -> None:
        """Start the conversation. Raising ends the worker; see ``ClientConnectError``."""

    async def query(self, prompt: Any) -> None:
        """Send a prompt (``str`` or content blocks); returns once it is sent."""

    def receive_response(self) -> AsyncIterator[Any]:
        """Yield the turn's messages; the last one is a ``ResultMessage``."""

    async def interrupt(self) -> None:
        """End the running turn early; ``receive_response`` then ends with its result."""

    async def disconnect(self) -> None:
        """End the conversation and whatever it started."""


METHODS = ("connect", "query", "receive_response", "interrupt", "disconnect")

__all__ = ["METHODS", "Client", "Prompt"]
