"""The host: owns exactly one client and takes it through its turns.

Each state is a method of :class:`Host` that is awaited to its end before the next begins:
``connect``, ``turn``, ``renew``, ``disconnect``; ``interrupt`` alone may come amid a turn. So
there are never two clients, nor two turns, at once.

Invariant: when ``turn`` has returned or raised, no message of that turn can reach another: the
client has been drained to the end of the turn, or it is marked for renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from soloist.protocol import codec, content
from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    RateLimited,
    ResultNotSerializable,
    SoloistError,
    client_error,
)
from soloist.protocol.messages import Answer

INTERRUPT_REPEAT_S = 0.5
"""An interrupt in the first moment of a turn may be lost by the client: it is repeated."""
DISCONNECT_S = 3.0
"""How long a client may take to disconnect before the host goes on without it."""


class Host:
    """Holds one client.

    Args:
        new_client: builds a client that is not connected.
        isolation: ``"prompt"`` for a new conversation per prompt, ``"worker"`` to keep it.
    """

    def __init__(self, new_client: Callable[[], Any], *, isolation: str) -> None:
        self._new_client = new_client
        self._is_fresh_per_prompt = isolation == "prompt"
        self._client = new_client()
        self._is_spoilt = False
        self._interrupts: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Start the client's conversation.

        Raises:
            SoloistError: it cannot; anything that is not typed becomes ``ClientConnectError``.
        """
        try:
            await self._client.connect()
        except SoloistError:
            raise
        except Exception as error:
            cause = client_error(error)
            raise ClientConnectError(f"the client could not connect: {cause}") from error

    async def turn(
        self, lease: int, prompt: codec.Prompt, on_message: Callable[[bytes], None] | None
    ) -> Answer:
        """Run one prompt to the end of its turn.

        Args:
            lease: whom the answer is for.
            prompt: the decoded prompt.
            on_message: gets each encoded message as it arrives.

        Raises:
            SoloistError: the client's typed error; anything else it raised, as ``ClientError``.
        """
        started = time.monotonic()
        try:
            maps, encoded = await self._receive(prompt, on_message)
        except ClientError:
            self._is_spoilt = not getattr(self._client, "is_connected", True)
            raise
        except SoloistError:
            self._is_spoilt = True
            raise
        except asyncio.CancelledError as error:
            self._is_spoilt = True
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the worker is stopping
            raise ClientError("the client's turn was cancelled from within") from error
        except Exception as error:
            self._is_spoilt = True  # who knows what it left in the pipe
            raise client_error(error) from error
        finally:
            await self._stop_interrupts()
        result = maps[-1]
        if result.get("is_error"):
            raise _result_error(result)
        return Answer(
            lease=lease,
            duration_s=time.monotonic() - started,
            text=content.text_of(maps),
            num_turns=result["num_turns"],
            messages=codec.join_messages(encoded),
        )

    def interrupt(self) -> None:
        """End the running turn early; the client is asked again until the turn has ended."""
        if self._interrupts is None:
            self._interrupts = asyncio.ensure_future(self._keep_interrupting())

    async def renew(self) -> None:
        """Between two prompts: give the next one what it is promised.

        A fresh conversation if isolation is per prompt, by ``reset`` where the client has one;
        in any case a new client if this one may hold remains of an earlier turn.

        Raises:
            SoloistError: as ``connect``.
        """
        reset = getattr(self._client, "reset", None)
        if not self._is_spoilt:
            if not self._is_fresh_per_prompt:
                return
            if callable(reset) and await self._is_reset(reset):
                return
        await self.disconnect()
        self._client = self._new_client()
        self._is_spoilt = False
        await self.connect()

    async def disconnect(self) -> None:
        """End the client, in bounded time, whatever it raises."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.disconnect(), DISCONNECT_S)

    async def _receive(
        self, prompt: codec.Prompt, on_message: Callable[[bytes], None] | None
    ) -> tuple[list[content.Map], list[bytes]]:
        """Send the prompt; collect its messages, as maps and encoded, to the end of the turn."""
        maps: list[content.Map] = []
        encoded: list[bytes] = []
        await self._client.query(prompt)
        async with contextlib.aclosing(self._client.receive_response()) as messages:
            async for message in messages:
                maps.append(content.to_map(message))
                encoded.append(_encoded(message))
                if on_message is not None:
                    on_message(encoded[-1])
        if not maps or maps[-1]["type"] != "ResultMessage":
            self._is_spoilt = True
            raise ClientError("the client's turn did not end with a ResultMessage")
        return maps, encoded

    async def _is_reset(self, reset: Callable[[], Any]) -> bool:
        try:
            await reset()
        except Exception:  # noqa: BLE001 - a client that cannot reset is replaced
            return False
        return True

    async def _keep_interrupting(self) -> None:
        while True:
            with contextlib.suppress(Exception):
                await self._client.interrupt()
            await asyncio.sleep(INTERRUPT_REPEAT_S)

    async def _stop_interrupts(self) -> None:
        task, self._interrupts = self._interrupts, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


def _encoded(message: object) -> bytes:
    try:
        return codec.encode_message(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise ResultNotSerializable(
            f"a {type(message).__name__} of the client cannot be encoded: {error}"
        ) from error


def _result_error(result: dict[str, Any]) -> ClientError:
    """The error of a turn that ended with ``is_error``."""
    reasons = [result.get("result"), *(result.get("errors") or ()), result.get("subtype")]
    message = next((str(reason) for reason in reasons if reason), "the agent reported an error")
    status = result.get("api_error_status")
    if status == RATE_LIMIT_STATUS:
        return RateLimited(message, api_status=status)
    return ClientError(message, api_status=status)


RATE_LIMIT_STATUS = 429
