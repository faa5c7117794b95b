"""The host: owns exactly one client and takes it through its turns.

Each state is a method of :class:`Host` that is awaited to its end before the next begins:
``connect``, ``turn``, ``renew``, ``disconnect``; ``interrupt`` and ``command`` alone may come amid
a turn. So there are never two clients, nor two turns, at once. The client is the user's code:
whatever it raises becomes a :class:`SoloistError`, and nothing that it leaves hanging holds the
host up.

Invariant: when ``turn`` has returned or raised, no message of that turn can reach another: the
client has been drained to the end of the turn, or it is marked for renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from soloist.protocol import codec, content
from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    InvalidOptions,
    InvalidPrompt,
    PayloadTooLarge,
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
RESET_S = 10.0
"""How long a client may take to reset before it is replaced."""
CANCEL_S = 1.0
"""How long what was cut off may take to notice it."""
SNAPSHOT_S = 10.0
"""How long a client may take to say how it can be continued."""
COMMANDS = frozenset({"set_model", "set_permission_mode"})
"""Methods of a client that may be called beside its turns, where it has them."""
RATE_LIMIT_STATUS = 429

_log = logging.getLogger("soloist.worker")


class Host:
    """Holds one client.

    Args:
        new_client: builds a client that is not connected.
        isolation: ``"prompt"`` for a new conversation per prompt, ``"worker"`` to keep it.
        restore: the encoded snapshot of the conversation to continue; empty for a new one.
        has_control: whether the client's callbacks go to the caller unless it has its own.
        connect_timeout_s: how long the client may take to connect; ``None`` for no limit.
        max_bytes: most encoded bytes of a turn's messages that are kept for its answer.

    Raises:
        SoloistError: the client cannot be built; what is not typed becomes
            ``ClientConnectError``.
    """

    def __init__(
        self,
        new_client: Callable[[], Any],
        *,
        isolation: str,
        restore: bytes = b"",
        has_control: bool = False,
        connect_timeout_s: float | None = None,
        max_bytes: int = codec.MAX_PAYLOAD_BYTES,
    ) -> None:
        self._new_client = new_client
        self._restore = restore
        self._has_control = has_control
        self._connect_timeout_s = connect_timeout_s
        self._max_bytes = max_bytes
        self._is_fresh_per_prompt = isolation == "prompt"
        self._client = self._built()
        self._is_spoilt = False
        self._is_in_turn = False
        self._interrupts: asyncio.Task[None] | None = None

    @property
    def restored(self) -> bytes:
        """The encoded snapshot that the client continues; empty if it began anew."""
        return self._restore

    @property
    def is_spoilt(self) -> bool:
        """Whether the client has died or may hold remains of an earlier turn."""
        return self._is_spoilt

    async def connect(self) -> None:
        """Start the client's conversation.

        Raises:
            SoloistError: it cannot; anything that is not typed becomes ``ClientConnectError``, as
                does taking too long.
        """
        try:
            async with asyncio.timeout(self._connect_timeout_s) as limit:
                if self._restore:
                    await _awaited(self._client.restore(codec.decode_value(self._restore)))
                await self._client.connect()
        except SoloistError:
            raise
        except BaseException as error:
            if _is_ours(error):
                raise
            if limit.expired():
                error = TimeoutError(
                    f"it took over {self._connect_timeout_s:g} s (connect_timeout_s)"
                )
            raise _no_client("connect", error) from error

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
        turn = _Turn(on_message, self._max_bytes)
        self._is_in_turn = True
        try:
            await self._client.query(prompt)
            await turn.receive(self._client.receive_response())
        except (ClientError, InvalidPrompt):  # the client's own word: its turn is over
            self._is_spoilt = not self._is_connected()
            raise
        except SoloistError:
            self._is_spoilt = True
            raise
        except BaseException as error:
            self._is_spoilt = True  # who knows what it left in the pipe
            if _is_ours(error):
                raise  # the worker is stopping
            raise client_error(error) from error
        finally:
            self._is_in_turn = False
            if (interrupts := self._interrupts) is not None:
                self._interrupts = None
                # Go on only when no interrupt of this turn can reach the next.
                self._is_spoilt |= not await _is_cut_off(interrupts)
        self._is_spoilt |= not turn.is_over
        return turn.answer(lease, time.monotonic() - started)

    def interrupt(self) -> None:
        """End the running turn early; the client is asked again until the turn has ended.

        Between turns it does nothing, so that it cannot hit the next one.
        """
        if self._is_in_turn and self._interrupts is None:
            self._interrupts = asyncio.ensure_future(self._keep_interrupting())

    async def renew(self) -> None:
        """Between two prompts: give the next one what it is promised.

        A fresh conversation if isolation is per prompt, by ``reset`` where the client has one;
        in any case a new client if this one may hold remains of an earlier turn.

        Raises:
            SoloistError: as the constructor and ``connect``.
        """
        if not self._is_spoilt and (not self._is_fresh_per_prompt or await self._is_reset()):
            return
        await self.disconnect()
        self._client = self._built()
        self._is_spoilt = False
        await self.connect()

    async def snapshot(self) -> bytes:
        """What a replacement of this client needs to continue; empty if it cannot be continued."""
        take = getattr(self._client, "snapshot", None)
        if not callable(take) or not callable(getattr(self._client, "restore", None)):
            return b""
        try:
            value = take()
            if value is not None and inspect.isawaitable(value):
                async with asyncio.timeout(SNAPSHOT_S):
                    value = await value
            return b"" if value is None else codec.encode_value(value)
        except BaseException as error:
            if _is_ours(error):
                raise
            _log.warning("the client gave no snapshot: %s", client_error(error))
            return b""

    async def command(self, name: str, arguments: list[Any]) -> None:
        """Call a method of the client that is no turn.

        Raises:
            InvalidOptions: the client has no such method.
            SoloistError: what it raised; anything that is not typed, as ``ClientError``.
        """
        method = getattr(self._client, name, None) if name in COMMANDS else None
        if not callable(method):
            raise InvalidOptions(f"the client {type(self._client).__name__} has no {name}()")
        try:
            await _awaited(method(*arguments))
        except SoloistError:
            raise
        except BaseException as error:
            if _is_ours(error):
                raise
            raise client_error(error) from error

    async def disconnect(self) -> bool:
        """End the client, in bounded time, whatever it raises; whether it went in order."""

        async def run() -> None:
            await self._client.disconnect()

        task = asyncio.create_task(run())
        try:
            await asyncio.wait({task}, timeout=DISCONNECT_S)
        finally:
            is_done = task.done()
            await _is_cut_off(task)
        return is_done and not task.cancelled() and task.exception() is None

    def _built(self) -> Any:
        try:
            client = self._new_client()
            if self._has_control and callable(getattr(client, "use_control", None)):
                client.use_control()
        except SoloistError:
            raise
        except BaseException as error:
            raise _no_client("be built", error) from error
        return client

    def _is_connected(self) -> bool:
        """What the client says of itself; one that says nothing can go on."""
        try:
            return bool(getattr(self._client, "is_connected", True))
        except Exception:  # noqa: BLE001 - a property of the user's
            return False

    async def _is_reset(self) -> bool:
        """Whether the client has a ``reset`` and it worked; otherwise the client is replaced."""
        reset = getattr(self._client, "reset", None)
        if not callable(reset):
            return False
        try:
            async with asyncio.timeout(RESET_S):  # no task of its own: this is done per prompt
                await reset()
        except BaseException as error:
            if _is_ours(error):
                raise
            return False
        return True

    async def _keep_interrupting(self) -> None:
        while self._is_in_turn:
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await self._client.interrupt()
            await asyncio.sleep(INTERRUPT_REPEAT_S)


class _Turn:
    """Collects the messages of one turn; one that cannot be sent does not end the draining.

    Nor does a turn of too many: they are no longer kept then, for it may never end by itself.
    """

    def __init__(self, on_message: Callable[[bytes], None] | None, max_bytes: int) -> None:
        self.is_over = False
        self._on_message = on_message
        self._max_bytes = max_bytes
        self._bytes = 0
        self._last: content.Map = {}
        self._maps: list[content.Map] = []
        self._encoded: list[bytes] = []
        self._refusal: ResultNotSerializable | None = None

    async def receive(self, messages: AsyncIterator[Any]) -> None:
        """Take in every message to the end of the turn."""
        try:
            async for message in messages:
                self.is_over = content.is_result(message)
                if self._refusal is None:
                    self._take(message)
        finally:
            if hasattr(messages, "aclose"):  # a plain iterator has none
                await messages.aclose()

    def answer(self, lease: int, duration_s: float) -> Answer:
        """What the turn gave.

        Raises:
            ClientError: it gave an error, or nothing that can be sent.
            PayloadTooLarge: it gave too much.
        """
        if self._refusal is not None:
            raise self._refusal
        if not self.is_over:
            raise ClientError("the client's turn did not end with a ResultMessage")
        if self._last.get("is_error"):
            raise _result_error(self._last)
        if self._bytes > self._max_bytes:
            raise PayloadTooLarge(
                f"the turn's messages have {self._bytes:,} bytes, the limit is "
                f"{self._max_bytes:,}; raise max_payload_bytes"
            )
        return Answer(
            lease=lease,
            duration_s=duration_s,
            text=content.text_of(self._maps),
            num_turns=max(0, self._last["num_turns"]),  # the wire carries nothing below zero
            messages=codec.join(self._encoded),
        )

    def _take(self, message: object) -> None:
        try:
            value = content.to_map(message)
            encoded = codec.encode_map(value)
        except (TypeError, ValueError, OverflowError) as error:
            self._refusal = ResultNotSerializable(
                f"a {type(message).__name__} of the client cannot be sent: {error}"
            )
            return
        self._last = value
        self._bytes += len(encoded)
        if self._bytes <= self._max_bytes:
            self._maps.append(value)
            self._encoded.append(encoded)
        elif self._maps:
            self._maps.clear()
            self._encoded.clear()
        if self._on_message is not None:
            self._on_message(encoded)


async def _awaited(value: Any) -> Any:
    """The value, awaited if the user's method is async."""
    return await value if inspect.isawaitable(value) else value


def _is_ours(error: BaseException) -> bool:
    """Whether the worker itself cut the client off; a client may also cancel from within."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


async def _is_cut_off(task: asyncio.Task[Any]) -> bool:
    """Cancel a task; whether it has ended. One that ignores that is left behind."""
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    task.cancel()
    return bool((await asyncio.wait({task}, timeout=CANCEL_S))[0])


def _no_client(what: str, error: BaseException) -> ClientConnectError:
    return ClientConnectError(f"the client could not {what}: {client_error(error)}")


def _result_error(result: content.Map) -> ClientError:
    """The error of a turn that ended with ``is_error``."""
    errors = result.get("errors")
    reasons = [
        result.get("result"),
        *(errors if isinstance(errors, list) else ()),
        result.get("subtype"),
    ]
    message = next((str(reason) for reason in reasons if reason), "the agent reported an error")
    status = result.get("api_error_status")
    if status == RATE_LIMIT_STATUS:
        return RateLimited(message, api_status=status)
    return ClientError(message, api_status=status)
