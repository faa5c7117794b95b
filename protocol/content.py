"""The messages of a conversation: same names and fields as the Claude Agent SDK's.

Owns the types that callers see and their form on the wire: a plain map with a ``type`` key that
holds the class's name. Conversion goes by *name* of the class, so that a client which yields the
Agent SDK's own objects works unchanged and this module needs no SDK. Pure, no I/O.

Invariants: ``from_map(to_map(message)) == message`` for every type here; keys that this version
does not know are ignored; fields that are ``None`` are left out.

Source: claude_agent_sdk.types (0.2.187).
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from soloist.protocol.errors import RemoteProtocolError

Map: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class TextBlock:
    """A piece of plain text."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ThinkingBlock:
    """A piece of the model's reasoning."""

    thinking: str
    signature: str


@dataclasses.dataclass(frozen=True, slots=True)
class ToolUseBlock:
    """The agent calls a tool."""

    id: str
    name: str
    input: Map


@dataclasses.dataclass(frozen=True, slots=True)
class ToolResultBlock:
    """What a tool gave back."""

    tool_use_id: str
    content: str | list[Map] | None = None
    is_error: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ServerToolUseBlock:
    """The agent calls a tool that the API runs by itself."""

    id: str
    name: str
    input: Map


@dataclasses.dataclass(frozen=True, slots=True)
class ServerToolResultBlock:
    """What a tool of the API gave back."""

    tool_use_id: str
    content: Map


ContentBlock: TypeAlias = (
    TextBlock
    | ThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ServerToolUseBlock
    | ServerToolResultBlock
)


@dataclasses.dataclass(frozen=True, slots=True)
class UserMessage:
    """What the user, or a tool in the user's place, said."""

    content: str | list[ContentBlock]
    uuid: str | None = None
    parent_tool_use_id: str | None = None
    tool_use_result: Map | None = None
    origin: Map | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class AssistantMessage:
    """What the agent said."""

    content: list[ContentBlock]
    model: str
    parent_tool_use_id: str | None = None
    error: str | None = None
    usage: Map | None = None
    message_id: str | None = None
    stop_reason: str | None = None
    session_id: str | None = None
    uuid: str | None = None
    user_message_uuid: str | None = None
    user_message_uuids: list[str] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SystemMessage:
    """An event of the agent's own; ``subtype`` says which, ``data`` is what came with it."""

    subtype: str
    data: Map


@dataclasses.dataclass(frozen=True, slots=True)
class StreamEvent:
    """A partial update while the agent writes (raw API stream event)."""

    uuid: str
    session_id: str
    event: Map
    parent_tool_use_id: str | None = None
    user_message_uuid: str | None = None
    user_message_uuids: list[str] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ResultMessage:
    """The last message of every turn.

    ``duration_ms`` is milliseconds of wall time, ``total_cost_usd`` US dollars.
    """

    subtype: str
    duration_ms: int
    duration_api_ms: int
    is_error: bool
    num_turns: int
    session_id: str
    stop_reason: str | None = None
    total_cost_usd: float | None = None
    usage: Map | None = None
    result: str | None = None
    structured_output: Any = None
    model_usage: Map | None = None
    permission_denials: list[Any] | None = None
    deferred_tool_use: Map | None = None
    errors: list[str] | None = None
    api_error_status: int | None = None
    uuid: str | None = None
    terminal_reason: str | None = None
    origin: Map | None = None
    user_message_uuid: str | None = None
    user_message_uuids: list[str] | None = None


Message: TypeAlias = UserMessage | AssistantMessage | SystemMessage | StreamEvent | ResultMessage

_MESSAGES: dict[str, type[Message]] = {
    cls.__name__: cls
    for cls in (UserMessage, AssistantMessage, SystemMessage, StreamEvent, ResultMessage)
}
_BLOCKS: dict[str, type[ContentBlock]] = {
    cls.__name__: cls
    for cls in (
        TextBlock,
        ThinkingBlock,
        ToolUseBlock,
        ToolResultBlock,
        ServerToolUseBlock,
        ServerToolResultBlock,
    )
}
_FIELDS: dict[str, tuple[str, ...]] = {
    name: tuple(field.name for field in dataclasses.fields(cls))
    for name, cls in {**_MESSAGES, **_BLOCKS}.items()
}


def is_result(message: object) -> bool:
    """Whether ``message`` ends a turn, be it ours or the Agent SDK's."""
    return _known_name(type(message)) == "ResultMessage"


def to_map(message: object) -> Map:
    """Give the wire form of a message, ours or of the same name in the Agent SDK.

    A dataclass of another name becomes a ``SystemMessage`` whose ``subtype`` is that name and
    whose ``data`` are its fields, so that no event of a newer SDK is lost.

    Raises:
        TypeError: ``message`` is no dataclass instance at all; the client's fault.
    """
    if not dataclasses.is_dataclass(message) or isinstance(message, type):
        raise TypeError(
            f"receive_response() yielded {type(message).__name__}; yield soloist's message types "
            "(AssistantMessage, ResultMessage, ...) or the Agent SDK's"
        )
    name = _known_name(type(message))
    if name not in _MESSAGES:
        data = dataclasses.asdict(message)
        return {"type": "SystemMessage", "subtype": type(message).__name__, "data": data}
    return _fields_to_map(name, message)


def from_map(value: object) -> Message:
    """Rebuild a message from its wire form.

    Raises:
        RemoteProtocolError: not a map of a known type with its required fields; the peer's fault.
    """
    name, fields = _typed(value, _MESSAGES)
    if name in {"AssistantMessage", "UserMessage"} and not isinstance(fields.get("content"), str):
        fields["content"] = _blocks_from(fields.get("content"))
    return _build(_MESSAGES[name], fields)


def function_messages(text: str, *, num_turns: int, duration_s: float) -> list[Message]:
    """The two messages that stand for the answer of a bare callable."""
    duration_ms = round(duration_s * 1000)
    return [
        AssistantMessage(content=[TextBlock(text)], model="function"),
        ResultMessage(
            subtype="success",
            duration_ms=duration_ms,
            duration_api_ms=0,
            is_error=False,
            num_turns=num_turns,
            session_id="",
            result=text,
        ),
    ]


def text_of(messages: list[Map]) -> str:
    """The answer's text: the result's own, else the agent's text blocks joined."""
    if messages and isinstance(messages[-1].get("result"), str):
        return str(messages[-1]["result"])
    return "".join(
        block["text"]
        for message in messages
        if message["type"] == "AssistantMessage"
        for block in message["content"]
        if block["type"] == "TextBlock"
    )


def _known_name(cls: type) -> str:
    """Name of the nearest class in the family that this module knows, or the class's own."""
    for base in cls.__mro__:
        if base.__name__ in _FIELDS:
            return base.__name__
    return cls.__name__


def _fields_to_map(name: str, value: object) -> Map:
    result: Map = {"type": name}
    for field in _FIELDS[name]:
        item = getattr(value, field, None)
        if item is not None:
            result[field] = _plain(item)
    return result


def _plain(value: Any) -> Any:
    """Content blocks and other dataclasses as maps, the rest as it is."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    name = _known_name(type(value))
    return _fields_to_map(name, value) if name in _BLOCKS else dataclasses.asdict(value)


def _blocks_from(value: object) -> list[ContentBlock]:
    if not isinstance(value, list | tuple):
        raise RemoteProtocolError(f"content must be a list of blocks, not {type(value).__name__}")
    return [_build(_BLOCKS[name], fields) for name, fields in (_typed(v, _BLOCKS) for v in value)]


def _typed(value: object, known: dict[str, Any]) -> tuple[str, Map]:
    if not isinstance(value, dict) or value.get("type") not in known:
        raise RemoteProtocolError(f"expected a map with a type of {', '.join(known)}")
    name = value["type"]
    return name, {field: value[field] for field in _FIELDS[name] if field in value}


def _build(cls: Any, fields: Map) -> Any:
    try:
        return cls(**fields)
    except TypeError as error:
        raise RemoteProtocolError(f"{cls.__name__} lacks a field: {error}") from error
