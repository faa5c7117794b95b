"""What a client asks its caller in mid-turn: permissions, hooks, or anything of a client's own.

Owns the questions of this process that wait for their answer. A question goes out as
``Control``; what the caller says comes back as ``ControlReply``: a map, or ``{"error": text}`` if
nobody decided.

Invariants: a question ends with its answer, its deadline or its asker's cancellation, and is
then forgotten; a reply after that is dropped. Only a well-formed "allow" allows: whatever else
comes, or keeps an answer from coming, denies and says why. The functions travel to a worker by
reference: what they need there is installed by its loop.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from soloist.protocol import codec
from soloist.protocol.content import Map
from soloist.protocol.errors import (
    ClientError,
    LocalProtocolError,
    RemoteProtocolError,
    RequestTimeout,
)
from soloist.protocol.messages import Control, ControlReply

if TYPE_CHECKING:
    from claude_agent_sdk import PermissionResult, PermissionUpdate, ToolPermissionContext

PERMISSION: Final = "permission"
"""``kind`` of the questions of :func:`ask_permission`."""
HOOK: Final = "hook"
"""``kind`` of the questions of :func:`ask_hook`."""

_CONTEXT = (
    "tool_use_id", "agent_id", "blocked_path", "decision_reason", "title", "display_name",
    "description",
)  # fmt: skip


class Controls:
    """The questions of one worker.

    Args:
        send: takes a question on its way to the supervisor.
        timeout_s: how long an answer may take.

    Attributes:
        lease: the turn in flight; a question says during which it was asked.
    """

    def __init__(self, send: Callable[[Control], None], timeout_s: float) -> None:
        self.lease = 0
        self._send = send
        self._timeout_s = timeout_s
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    def __repr__(self) -> str:
        return f"<Controls lease={self.lease} waiting={list(self._waiting)}>"

    async def ask(self, kind: str, data: Mapping[str, Any]) -> Map:
        """Ask the caller and wait for what it says. Cancelling it takes the question back.

        Args:
            kind: what is asked.
            data: the question; plain msgpack values.

        Raises:
            LocalProtocolError: ``data`` cannot be sent; the client's fault.
            RequestTimeout: nobody answered in time.
            ClientError: nobody decided; the message says why.
            RemoteProtocolError: the answer is no map; the caller's fault.
        """
        number = next(self._numbers)
        question = Control(number, self.lease, kind, _encoded(kind, data))
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(question)
            async with asyncio.timeout(self._timeout_s):
                return _decoded(await answer)
        except TimeoutError as error:
            raise RequestTimeout(
                f"the caller did not answer within {self._timeout_s:g} s"
            ) from error
        finally:
            del self._waiting[number]

    def resolve(self, reply: ControlReply) -> None:
        """Take the caller's word; what nobody waits for any more is dropped."""
        answer = self._waiting.get(reply.number)
        if answer is not None and not answer.done():
            answer.set_result(reply.data)


_installed: Controls | None = None


def install(controls: Controls | None) -> None:
    """Let this process ask through ``controls``; ``None`` leaves nobody to ask."""
    global _installed  # noqa: PLW0603 - callbacks are found by name, with nothing to hold it
    _installed = controls


async def ask_caller(kind: str, data: Mapping[str, Any]) -> Map:
    """Ask whoever sent the prompt that runs now; for clients of one's own.

    Args:
        kind: what is asked; the ``on_control`` handler sees it.
        data: the question; plain msgpack values.

    Returns:
        The handler's reply.

    Raises:
        LocalProtocolError: not in a worker, or ``data`` cannot be sent; the client's fault.
        RequestTimeout: nobody answered in time.
        ClientError: nobody decided (there is no handler, or it failed).
        RemoteProtocolError: the reply is no map; the caller's fault.
    """
    if _installed is None:
        raise LocalProtocolError("there is no caller to ask outside a worker")
    return await _installed.ask(kind, data)


async def ask_permission(
    tool_name: str, tool_input: dict[str, Any], context: ToolPermissionContext
) -> PermissionResult:
    """Let the caller decide whether a tool may be used: a ``can_use_tool`` for Claude.

    The caller sees ``tool_name``, ``input``, ``suggestions`` (the CLI's own, as maps) and those
    of the context's fields that have a value. It answers ``{"behavior": "allow"}``, perhaps with
    ``updated_input`` (a map) and ``updated_permissions`` (maps such as the suggestions), or
    ``{"behavior": "deny"}``, perhaps with ``message`` and ``interrupt``.

    Returns:
        The caller's decision; a denial if there is none, or none that can be understood.

    Source: claude_agent_sdk.types ``CanUseTool`` (0.2.187).
    """
    import claude_agent_sdk as sdk  # noqa: PLC0415 - only this client's users have it

    try:
        question = _permission_question(tool_name, tool_input, context)
        return _permission(await ask_caller(PERMISSION, question))
    except Exception as error:  # noqa: BLE001 - whatever it is, the tool must not be used
        return sdk.PermissionResultDeny(message=_refusal(error))


async def ask_hook(input_data: Any, tool_use_id: str | None, context: Any) -> dict[str, Any]:
    """Let the caller decide what a hook says: a hook callback for Claude.

    The caller sees ``input`` and ``tool_use_id`` and answers ``{"output": map}`` with the SDK's
    hook output. The CLI itself gives up on a hook after its ``HookMatcher.timeout`` (60 s unless
    set) and goes on as if it had said nothing: let that be longer than the Supervisor's deadline,
    or set ``on_failure="block"``.

    Returns:
        The caller's output. If there is none, or none that can be understood, a ``PreToolUse``
        hook denies the tool and any other says nothing.

    Source: claude_agent_sdk.types ``HookCallback`` (0.2.187).
    """
    del context  # nothing in it but what the SDK plans for
    try:
        reply = await ask_caller(HOOK, {"input": input_data, "tool_use_id": tool_use_id})
        return _json_map(reply, "output")
    except Exception as error:  # noqa: BLE001 - whatever it is, the tool must not be used
        return _hook_denial(input_data, _refusal(error))


def _encoded(kind: str, data: Mapping[str, Any]) -> bytes:
    try:
        return codec.encode_value(dict(data))
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"a {kind} question cannot be sent: {error}") from error


def _decoded(data: bytes) -> Map:
    reply = codec.decode_value(data)
    if not isinstance(reply, dict):
        raise RemoteProtocolError(f"the caller answers with a map, not {type(reply).__name__}")
    if reply.keys() == {"error"}:
        raise ClientError(str(reply["error"]))
    return reply


def _permission_question(
    tool_name: str, tool_input: dict[str, Any], context: ToolPermissionContext
) -> Map:
    known = {name: getattr(context, name, None) for name in _CONTEXT}
    suggestions = [_as_map(update) for update in getattr(context, "suggestions", None) or ()]
    return {
        "tool_name": tool_name,
        "input": tool_input,
        **({"suggestions": suggestions} if suggestions else {}),
        **{name: value for name, value in known.items() if value is not None},
    }


def _as_map(update: PermissionUpdate | Map) -> Map:
    """A permission update as the CLI writes it; one that this SDK does not know, by its type."""
    if isinstance(update, dict):  # older SDKs leave them as they came
        return update
    try:
        return update.to_dict()
    except ValueError:
        return {"type": update.type}


def _permission(reply: Map) -> PermissionResult:
    import claude_agent_sdk as sdk  # noqa: PLC0415 - only this client's users have it

    reply = {name: value for name, value in reply.items() if value is not None}
    behavior, message = reply.get("behavior"), reply.get("message", "")
    if behavior == "allow":
        return sdk.PermissionResultAllow(
            updated_input=_json_map(reply, "updated_input") if "updated_input" in reply else None,
            updated_permissions=_updates(reply.get("updated_permissions")),
        )
    if behavior != "deny":
        raise RemoteProtocolError(f"a permission's behavior is allow or deny, not {behavior!r}")
    if not isinstance(message, str):
        raise RemoteProtocolError(f"a denial's message is text, not {type(message).__name__}")
    return sdk.PermissionResultDeny(
        message=message or "denied by the caller", interrupt=reply.get("interrupt") is True
    )


def _updates(maps: Any) -> list[PermissionUpdate] | None:
    """The permission updates of an answer; none is left out, for it may be a restriction."""
    import claude_agent_sdk as sdk  # noqa: PLC0415 - only this client's users have it

    if maps is None:
        return None
    try:
        updates = [sdk.PermissionUpdate.from_dict(update) for update in maps]
        json.dumps([update.to_dict() for update in updates], allow_nan=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError(
            f"updated_permissions cannot be used: {type(error).__name__}: {error}"
        ) from error
    return updates


def _json_map(reply: Map, name: str) -> Map:
    """A map that the CLI can be told; the SDK would turn another into no answer at all."""
    value = reply.get(name)
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{name} is a map, not {type(value).__name__}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"JSON cannot carry {name}: {error}") from error
    return value


def _refusal(error: Exception) -> str:
    return f"not allowed, because nobody allowed it: {str(error) or type(error).__name__}"


def _hook_denial(input_data: Any, reason: str) -> dict[str, Any]:
    event = input_data.get("hook_event_name") if isinstance(input_data, Mapping) else None
    if event != "PreToolUse":
        return {}
    decision = {
        "hookEventName": event,
        "permissionDecision": "deny",
        "permissionDecisionReason": reason,
    }
    return {"hookSpecificOutput": decision}
