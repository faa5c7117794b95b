"""The client ``claude``: one conversation with the claude CLI through the Claude Agent SDK.

Owns one ``ClaudeSDKClient``, and with it one CLI process, from ``connect`` to ``disconnect``. It
is the one boundary where the SDK's exceptions become Soloist's. The SDK is imported inside
functions, so that importing this module costs nothing and needs no SDK.

Invariants: the answer of an abandoned, cancelled or injected turn is never yielded for another
prompt (``claude_turns`` decides); an API error raises after its result was yielded; after
``disconnect`` the CLI's process tree is gone, whatever state it was in, and that takes bounded
time; ``connect`` always begins a new conversation unless the options or ``restore`` say otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import logging
import uuid
import warnings
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from soloist.protocol.codec import Prompt
from soloist.protocol.content import Map, is_result
from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    ClientNotFound,
    InvalidOptions,
    InvalidPrompt,
    LocalProtocolError,
)
from soloist.worker.clients import claude_errors
from soloist.worker.clients.claude_cli import MARK, end, exit_of, stderr_drained
from soloist.worker.clients.claude_resume import Resumption, UnknownConversation
from soloist.worker.clients.claude_turns import Attribution
from soloist.worker.control import ask_permission

if TYPE_CHECKING:
    from types import ModuleType

    from claude_agent_sdk import ClaudeSDKClient

INTERRUPT_S = 5.0
"""Seconds that the CLI has to acknowledge an interrupt or another control request."""
MAX_UNREAD = 1_000
"""Messages of a turn that wait for their reader; beyond, the CLI is no longer read."""

_STDERR_LINES, _STDERR_LINE_CHARS = 40, 500
_DECIDERS = ("can_use_tool", "permission_prompt_tool_name")

_log = logging.getLogger(__name__)


class ClaudeClient:
    """A conversation with the claude CLI.

    Messages are the Agent SDK's own objects. Besides the client contract it has ``set_model``,
    ``set_permission_mode``, ``snapshot``, ``restore``, ``use_control`` and ``is_connected``. There
    is no ``reset``: the CLI has no cheap way of forgetting that keeps nothing, so a new
    conversation is a new connection.

    Args:
        options: the fields of ``claude_agent_sdk.ClaudeAgentOptions``, nothing else. What the CLI
            writes to standard error is kept for error messages, and passed to ``stderr`` if that
            option is given.

    Source: claude_agent_sdk.client, claude_agent_sdk.types (0.2.187).
    """

    preload = (
        "claude_agent_sdk",
        "claude_agent_sdk._internal.message_parser",
        "claude_agent_sdk._internal.query",
        "claude_agent_sdk._internal.session_resume",
        "claude_agent_sdk._internal.session_store_validation",
        "claude_agent_sdk._internal.transport.subprocess_cli",
        "anyio._backends._asyncio",
        "anyio._core._subprocesses",
    )
    """Modules worth importing before a worker is forked; they start no thread, open no file."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._client: ClaudeSDKClient | None = None
        self._reader: asyncio.Task[None] | None = None
        self._repeating: asyncio.Task[None] | None = None
        self._attribution = Attribution()
        self._resumption = Resumption(options)
        self._is_controlled = False
        self._turn: _Turn | None = None
        self._lost: ClientError | None = None
        self._rate_limit: Any = None
        self._mark = ""
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Refuse names that ``ClaudeAgentOptions`` does not have.

        Raises:
            InvalidOptions: an unknown name; the message says which ones come near.
            ClientNotFound: the Agent SDK is not installed.
        """
        known = [field.name for field in dataclasses.fields(_sdk().ClaudeAgentOptions)]
        complaints = [_unknown_option(name, known) for name in options if name not in known]
        if complaints:
            raise InvalidOptions("; ".join(complaints))

    @property
    def is_connected(self) -> bool:
        """Whether the CLI can take a prompt; ``False`` once it has died."""
        return self._client is not None and self._lost is None

    def use_control(self) -> None:
        """Let the caller decide on permissions, unless the options say who does."""
        self._is_controlled = True

    def snapshot(self) -> Map | None:
        """What another client needs to go on with this conversation; ``None`` if none can.

        Good from ``connect`` on, except with ``continue_conversation``: then from the first result.
        It names the conversation in the CLI's own store, and what ``set_model`` and
        ``set_permission_mode`` have changed.
        """
        return self._resumption.snapshot()

    def restore(self, value: object) -> None:
        """Let the next ``connect`` go on with the conversation of a snapshot.

        Raises:
            ClientConnectError: ``value`` is no snapshot of this client's; not retryable.
        """
        self._resumption.restore(value)

    async def connect(self) -> None:
        """Start a CLI and with it a new conversation, or the restored one; ends the one before.

        Cancelling it ends the CLI that was being started.

        Raises:
            ClientNotFound: the SDK or the CLI is missing, or is no program; the user's.
            InvalidOptions: the SDK refused the options; the user's.
            ClientConnectError: the CLI did not start up; its standard error is in the message.
                Not retryable if it cannot resume the conversation, or has it already.
        """
        await self.disconnect()
        unknown: UnknownConversation | None = None
        for options in self._resumption.ways():
            try:
                await self._start(options)
            except UnknownConversation as error:
                unknown = error
            else:
                return
        assert unknown is not None, "there is always a way"
        raise unknown

    async def _start(self, options: dict[str, Any]) -> None:
        self._stderr.clear()
        client = self._new_client(options)
        connecting = asyncio.create_task(client.connect())
        try:
            await self._wait_connected(client, connecting)
        except BaseException:
            connecting.cancel()
            await end(client, connecting, self._mark)
            raise
        self._resumption.connected()
        self._client, self._lost, self._turn = client, None, None
        self._attribution = Attribution()
        self._reader = asyncio.create_task(self._read(client, self._attribution))

    async def query(self, prompt: Prompt) -> None:
        """Send a prompt. A turn that is still running is abandoned: nobody gets its answer.

        Raises:
            ClientConnectError: not connected, or the CLI has died; the prompt never started.
            InvalidPrompt: JSON cannot carry the prompt; the caller's.
            ClientError: the CLI died while the prompt was being sent.
        """
        client = self._connected()
        if self._turn is not None:
            self._turn.abandon()
        if self._repeating is not None:  # it must not hit the turn that begins now
            await asyncio.wait({self._repeating}, timeout=INTERRUPT_S)
        turn = self._turn = _Turn(str(uuid.uuid4()))
        self._attribution.sent(turn.uuid)
        try:
            await client.query(_as_stream(prompt, turn.uuid))
        except (TypeError, ValueError) as error:  # of json.dumps, before anything was written
            self._attribution.withdrawn(turn.uuid)
            self._turn = None
            raise InvalidPrompt(f"the prompt cannot be sent as JSON: {error}") from error
        except Exception as error:
            self._lost = self._lost or claude_errors.lost(error, self._last_words())
            raise self._lost from error

    async def receive_response(self) -> AsyncIterator[Any]:
        """Yield the messages of the prompt sent last; ends after its ``ResultMessage``.

        Closing the iterator leaves the turn running; another call goes on where it stopped. Once
        the result was yielded, another call yields nothing.

        Raises:
            RateLimited: the service's limit was hit; raised after the result was yielded.
            ClientError: the agent reported an error (raised after the result was yielded), or the
                CLI died in mid-turn (``is_connected`` is then ``False``).
        """
        turn = self._turn
        if turn is None:
            raise LocalProtocolError("receive_response() comes after query()")
        while not turn.is_over:
            message = await turn.unread.get()
            if isinstance(message, ClientError):
                turn.is_over = True
                raise message
            turn.note(message)
            yield message
        if turn.error_result is not None:
            result, turn.error_result = turn.error_result, None
            raise claude_errors.error_of(result, turn.api_error, self._retry_after_s())

    async def interrupt(self) -> None:
        """End the running turn early; its result follows. Without a turn, do nothing.

        Raises:
            ClientError: the CLI did not acknowledge it in ``INTERRUPT_S``.
        """
        turn = self._turn
        if not self.is_connected or turn is None or turn.is_over:
            return
        turn.is_interrupted = True
        await self._control(self._connected().interrupt())

    async def set_model(self, model: str | None = None) -> None:
        """Go on with another model; ``None`` is the CLI's default."""
        await self._control(self._connected().set_model(model))
        self._resumption.chose("model", model)

    async def set_permission_mode(self, mode: Any) -> None:
        """Go on with another permission mode (``ClaudeAgentOptions.permission_mode``)."""
        await self._control(self._connected().set_permission_mode(mode))
        self._resumption.chose("permission_mode", mode)

    async def disconnect(self) -> None:
        """End the conversation, its CLI and everything that the CLI started. Never raises."""
        client, self._client = self._client, None
        if self._turn is not None:
            self._turn.abandon()
            self._turn.unread.put_nowait(ClientError("disconnected in mid-turn"))
        for task in (self._reader, self._repeating):
            if task is not None:
                task.cancel()
        self._reader = self._repeating = None
        if client is not None:
            await end(client, asyncio.create_task(client.disconnect()), self._mark)

    def _new_client(self, options: dict[str, Any]) -> ClaudeSDKClient:
        sdk = _sdk()
        self._mark = str(uuid.uuid4())
        own: dict[str, Any] = {
            "stderr": self._note_stderr,
            "env": {**self._options.get("env", {}), MARK: self._mark},
        }
        if self._is_controlled and not any(map(options.get, _DECIDERS)):
            own["can_use_tool"] = ask_permission
            _silence_advice(sdk)
        try:
            whole = sdk.ClaudeAgentOptions(**{**options, **own})
        except TypeError as error:
            raise claude_errors.refused(error) from error
        client: ClaudeSDKClient = sdk.ClaudeSDKClient(whole)
        return client

    async def _wait_connected(
        self, client: ClaudeSDKClient, connecting: asyncio.Task[None]
    ) -> None:
        """Wait for the first of connected and dead: the SDK would wait 60 s for a dead CLI."""
        exited = asyncio.create_task(exit_of(client))
        try:
            await asyncio.wait({connecting, exited}, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                await connecting
                return
            await stderr_drained(client)
        except Exception as error:
            raise claude_errors.unstarted(_sdk(), error, self._last_words()) from error
        finally:
            exited.cancel()
        words = f"the claude CLI ended with exit code {exited.result()} while connecting"
        raise claude_errors.ended_at_start(words, self._last_words())

    async def _read(self, client: ClaudeSDKClient, attribution: Attribution) -> None:
        """Hand the CLI's messages to the turn that they belong to, until the CLI is gone.

        Always reading, also between turns, is what makes control requests and the CLI's death
        noticeable: the SDK reads no further once 100 messages wait.
        """
        error: Exception | None = None
        try:
            await self._read_messages(client, attribution)
        except Exception as broken:  # noqa: BLE001 - the SDK raises bare Exceptions too
            error = broken
        await stderr_drained(client)
        self._lost = self._lost or claude_errors.lost(error, self._last_words())
        if self._turn is not None:
            await self._turn.unread.put(self._lost)

    async def _read_messages(self, client: ClaudeSDKClient, attribution: Attribution) -> None:
        async for message in _messages_of(client):
            if type(message).__name__ == "RateLimitEvent":
                self._rate_limit = message.rate_limit_info
            self._resumption.saw(message)
            owner, messages = attribution.take(message)
            turn = self._turn
            if turn is None or turn.uuid != owner:
                continue
            for own in messages:
                await turn.unread.put(own)
            if turn.is_interrupted and getattr(message, "subtype", None) == "init":
                # The CLI acknowledges, and forgets, an interrupt that comes before its turn runs.
                self._repeating = asyncio.create_task(self._repeat_interrupt(client))

    async def _repeat_interrupt(self, client: ClaudeSDKClient) -> None:
        with contextlib.suppress(ClientError):
            await self._control(client.interrupt())

    async def _control(self, request: Awaitable[None]) -> None:
        """Wait for the CLI's acknowledgement of a control request, for a bounded time."""
        try:
            async with asyncio.timeout(INTERRUPT_S):
                await request
        except TimeoutError as error:
            late = ClientError(f"the claude CLI did not answer within {INTERRUPT_S:g} s")
            late.retryable = True
            raise late from error
        except Exception as error:
            raise ClientError(str(error)) from error

    def _connected(self) -> ClaudeSDKClient:
        if self._client is None:
            raise ClientConnectError("not connected; call connect() first", started=False)
        if self._lost is not None:
            raise ClientConnectError(f"{self._lost}; connect again", started=False)
        return self._client

    def _note_stderr(self, line: str) -> None:
        self._stderr.append(line[:_STDERR_LINE_CHARS])
        if self._options.get("stderr") is not None:
            self._options["stderr"](line)

    def _last_words(self) -> str:
        return "\n".join(["", "its standard error:", *self._stderr]) if self._stderr else ""

    def _retry_after_s(self) -> float | None:
        limit = self._rate_limit
        if limit is None or limit.status != "rejected" or limit.resets_at is None:
            return None
        return max(0.0, float(limit.resets_at) - datetime.now(UTC).timestamp())


class _Turn:
    """One prompt and what has arrived of its answer."""

    def __init__(self, turn_uuid: str) -> None:
        self.uuid = turn_uuid
        self.unread: asyncio.Queue[Any] = asyncio.Queue(MAX_UNREAD)
        self.is_interrupted = False
        self.is_over = False
        self.api_error: str | None = None
        self.error_result: Any = None

    def note(self, message: Any) -> None:
        """Remember what ``receive_response`` must know after it has yielded ``message``."""
        if type(message).__name__ == "AssistantMessage" and message.error is not None:
            self.api_error = message.error
        if is_result(message):
            self.is_over = True
            if message.is_error and not (self.is_interrupted and claude_errors.is_aborted(message)):
                self.error_result = message

    def abandon(self) -> None:
        """Drop what nobody will read, so that whoever waits to add to it goes on."""
        while not self.unread.empty():
            self.unread.get_nowait()


def _sdk() -> ModuleType:
    try:
        import claude_agent_sdk  # noqa: PLC0415 - costs 0.7 s; only this client's users need it
    except ImportError as error:
        raise ClientNotFound(
            "the client 'claude' needs the Claude Agent SDK: pip install 'soloist[claude]' "
            f"({error})"
        ) from error
    return claude_agent_sdk


def _silence_advice(sdk: ModuleType) -> None:
    """Keep the SDK from warning the user of a ``can_use_tool`` that is not the user's."""
    advice = getattr(sdk, "CanUseToolShadowedWarning", None)
    if advice is not None:
        warnings.filterwarnings("ignore", category=advice)


def _unknown_option(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known)
    hint = f"did you mean {' or '.join(near)}?" if near else "see claude_agent_sdk's documentation"
    return f"ClaudeAgentOptions has no option {name!r}; {hint}"


async def _as_stream(prompt: Prompt, prompt_uuid: str) -> AsyncIterator[dict[str, Any]]:
    yield {
        "type": "user",
        "message": {"role": "user", "content": prompt},
        "parent_tool_use_id": None,
        "uuid": prompt_uuid,
    }


async def _messages_of(client: ClaudeSDKClient) -> AsyncIterator[Any]:
    """The SDK's messages; one that it cannot parse is left out unless it ends a turn."""
    while True:
        try:
            async for message in client.receive_messages():
                yield message
        except _sdk().ClaudeSDKError as error:
            data = getattr(error, "data", None) or {}
            if type(error).__name__ != "MessageParseError" or data.get("type") == "result":
                raise
            _log.warning("left out a message that the Agent SDK cannot parse: %s", error)
        else:
            return
