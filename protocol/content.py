"""The messages of a conversation: same names and fields as the Claude Agent SDK's.

Owns the types that callers see and their form on the wire: a plain map with a ``type`` key that
holds the class's name. Conversion goes by *name* of the class, so that a client which yields the
Agent SDK's own objects works unchanged and this module needs no SDK. Pure, no I/O.

Invariants: ``from_map(to_map(message)) == message`` for every type here; what ``to_map`` gives,
``from_map`` takes; required fields have their type on both sides, optional ones are passed on as
the agent gave them; keys that this version does not know are ignored; fields that are ``None``
are left out; a content block that this version does not know stays a map.

Source: claude_agent_sdk.types (0.2.187).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator
from itertools import compress
from types import UnionType
from typing import Any, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

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
    | Map
)
"""A piece of a message; a map if it is of a kind that this version does not know."""


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
_BLOCKS: dict[str, type[Any]] = {
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
_KNOWN: dict[str, type[Any]] = {**_MESSAGES, **_BLOCKS}
_OURS = frozenset(_KNOWN.values())
_FIELDS: dict[str, tuple[str, ...]] = {
    name: tuple(field.name for field in dataclasses.fields(cls)) for name, cls in _KNOWN.items()
}


def _required(cls: type[Any]) -> dict[str, tuple[type, ...]]:
    """The fields that have no default, with the types that each may have."""
    hints = get_type_hints(cls)
    required = {}
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING:
            hint = hints[field.name]
            options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
            required[field.name] = tuple(get_origin(option) or option for option in options)
    return required


_names: dict[type, str] = {}
_MAX_NAMES = 1_000
_GETTERS = {name: operator.attrgetter(*fields) for name, fields in _FIELDS.items()}
_PLAIN = frozenset({str, int, float, bool, dict})
_CONTENT = frozenset({str, list, dict})


class _Layout(NamedTuple):
    """Which fields go into the map, for values of certain types in a certain order."""

    mask: tuple[bool, ...]
    names: tuple[str, ...]


_layouts: dict[tuple[object, ...], _Layout] = {}
"""Those met so far whose values go into the map as they are: most messages look alike."""
_MAX_LAYOUTS = 1_000
_REQUIRED = {name: _required(cls) for name, cls in _KNOWN.items()}


def is_result(message: object) -> bool:
    """Whether ``message`` ends a turn, be it ours or the Agent SDK's."""
    return _known_name(type(message)) == "ResultMessage"


def to_map(message: object) -> Map:
    """Give the wire form of a message, ours or of the same name in the Agent SDK.

    A dataclass of another name becomes a ``SystemMessage`` whose ``subtype`` is that name and
    whose ``data`` are its fields, so that no event of a newer SDK is lost.

    Raises:
        TypeError: ``message`` is no dataclass instance, lacks a required field or cannot be
            read; the client's fault.
    """
    if not _is_dataclass_instance(message):
        raise TypeError(
            f"receive_response() yielded {type(message).__name__}; yield soloist's message types "
            "(AssistantMessage, ResultMessage, ...) or the Agent SDK's"
        )
    try:
        return _message_to_map(message)
    except TypeError:
        raise
    except Exception as error:  # the object is the user's: reading it may raise anything
        raise TypeError(
            f"{type(message).__name__} cannot be read: {type(error).__name__}"
        ) from error


def from_map(value: object) -> Message:
    """Rebuild a message from its wire form.

    Raises:
        RemoteProtocolError: not a map of a known type with its required fields; the peer's fault.
    """
    name = _type_of(value)
    if name not in _MESSAGES:
        raise RemoteProtocolError(f"expected a map with a type of {', '.join(_MESSAGES)}")
    fields = _pick(name, value)
    if isinstance(fields.get("content"), list):
        fields["content"] = [_block_from(block) for block in fields["content"]]
    return _MESSAGES[name](**fields)


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
        text
        for message in messages
        if message.get("type") == "AssistantMessage"
        for text in _texts(message.get("content"))
    )


def _texts(content: object) -> Iterator[str]:
    for block in content if isinstance(content, list) else ():
        if _type_of(block) == "TextBlock" and isinstance(block.get("text"), str):
            yield block["text"]


def _known_name(cls: type) -> str:
    """Name of the nearest class in the family that this module knows, or the class's own."""
    name = _names.get(cls)
    if name is None:
        name = next((base.__name__ for base in cls.__mro__ if base.__name__ in _FIELDS), "")
        name = name or cls.__name__
        if len(_names) < _MAX_NAMES:
            _names[cls] = name
    return name


def _is_dataclass_instance(value: object) -> bool:
    if type(value) in _OURS:
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _type_of(value: object) -> str:
    """What a map says its type is; nothing if ``value`` is no map that says so."""
    name = value.get("type") if isinstance(value, dict) else None
    return name if isinstance(name, str) else ""


def _message_to_map(message: Any) -> Map:
    name = _known_name(type(message))
    if name not in _MESSAGES:
        data = dataclasses.asdict(message)
        return {"type": "SystemMessage", "subtype": type(message).__name__, "data": data}
    result = _fields_to_map(name, message)
    if isinstance(result.get("content"), list):
        result["content"] = [_block_to_map(block) for block in result["content"]]
    return result


def _block_to_map(block: Any) -> Map:
    if _is_dataclass_instance(block):
        if (known := _known_name(type(block))) in _BLOCKS:
            return _fields_to_map(known, block)
        return {**dataclasses.asdict(block), "type": type(block).__name__}
    name = _type_of(block)
    if not name:
        raise TypeError(f"a content block is one of soloist's types, not {type(block).__name__}")
    if name in _BLOCKS:
        _check_required(name, block, TypeError)
    return dict(block)


def _fields_to_map(name: str, value: object) -> Map:
    values = _values(name, value)
    key = (name, *map(type, values))
    layout = _layouts.get(key)
    if layout is None:
        return _new_layout_to_map(name, values, key)
    result: Map = {"type": name}
    result.update(zip(layout.names, compress(values, layout.mask), strict=True))
    return result


def _new_layout_to_map(name: str, values: tuple[Any, ...], key: tuple[object, ...]) -> Map:
    """The same one by one; from the second time on it goes by the layout where it may."""
    fields = {
        field: item for field, item in zip(_FIELDS[name], values, strict=True) if item is not None
    }
    is_as_it_is = True
    for field, item in fields.items():
        # Blocks are the caller's to convert: they keep the name of their type.
        if type(item) not in (_CONTENT if field == "content" else _PLAIN):
            is_as_it_is = False
            fields[field] = item if field == "content" else _plain(item)
    if isinstance(fields.get("content"), tuple):
        fields["content"] = list(fields["content"])
    _check_required(name, fields, TypeError)
    if is_as_it_is and len(_layouts) < _MAX_LAYOUTS:
        _layouts[key] = _Layout(tuple(item is not None for item in values), tuple(fields))
    return {"type": name, **fields}


def _values(name: str, value: object) -> tuple[Any, ...]:
    """The fields' values, ``None`` for those that an older or newer class does not have."""
    try:
        values: tuple[Any, ...] = _GETTERS[name](value)
    except AttributeError:
        return tuple(getattr(value, field, None) for field in _FIELDS[name])
    return values if len(_FIELDS[name]) > 1 else (values,)


def _plain(value: Any) -> Any:
    """Dataclasses in a field as maps, the rest as it is."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if _is_dataclass_instance(value) else value


def _block_from(value: Any) -> ContentBlock:
    name = _type_of(value)
    if not name:
        raise RemoteProtocolError("a content block is a map with a type")
    if name not in _BLOCKS:
        return dict(value)
    block: ContentBlock = _BLOCKS[name](**_pick(name, value))
    return block


def _pick(name: str, value: Any) -> Map:
    """The fields that the type has, from a map that may hold more."""
    _check_required(name, value, RemoteProtocolError)
    return {field: value[field] for field in _FIELDS[name] if field in value}


def _check_required(name: str, fields: Map, error: type[Exception]) -> None:
    for field, allowed in _REQUIRED[name].items():
        kind = type(fields.get(field))
        # A subclass is as good (a StrEnum, say), but a bool is no number.
        if kind not in allowed and (kind is bool or not issubclass(kind, allowed)):
            expected = " or ".join(kind.__name__ for kind in allowed)
            raise error(f"{name}.{field} must be {expected}, not {kind.__name__}")
