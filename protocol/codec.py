"""Messages <-> bytes: msgpack arrays ``[tag, *fields]`` with size and depth limits.

Owns every byte that crosses between a supervisor and its workers. Garbage in gives
:class:`RemoteProtocolError` and nothing else; what this side may not send gives a typed local
error. Pure, no I/O.

Invariants: ``decode(encode(message)) == message`` and of the same type; every decoded field has
its declared type; nothing nests deeper than ``MAX_DEPTH``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import msgpack

from soloist.protocol import messages as m
from soloist.protocol.content import Map, Message, from_map, to_map
from soloist.protocol.errors import (
    ErrorInfo,
    InvalidPrompt,
    LocalProtocolError,
    PayloadTooLarge,
    RemoteProtocolError,
)

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""Largest encoded prompt or answer, unless the Supervisor is told otherwise."""
MAX_DEPTH = 64
"""Deepest nesting of lists and maps in anything that crosses the wire."""

Prompt: TypeAlias = str | list[Map]
"""A prompt: text, or a list of content blocks as the Messages API has them."""

_T = TypeVar("_T")


class _Shape:
    """The field types of one record; every way they may combine is laid out beforehand."""

    __slots__ = ("combinations", "has_containers", "integers", "length")

    def __init__(self, *fields: tuple[type, ...]) -> None:
        self.length = len(fields)
        self.combinations = frozenset(itertools.product(*fields))
        self.integers = tuple(i for i, allowed in enumerate(fields) if int in allowed)
        self.has_containers = any(kind in _CONTAINERS for allowed in fields for kind in allowed)

    def check(self, name: str, values: Sequence[Any]) -> None:
        kinds = tuple(map(type, values))
        if kinds not in self.combinations:
            found = ", ".join(kind.__name__ for kind in kinds)
            raise RemoteProtocolError(f"{name} cannot have the fields ({found})")
        for i in self.integers:
            if values[i] < 0:
                raise RemoteProtocolError(f"{name} has a negative field")
        if self.has_containers:
            _check_depth(values)


_CONTAINERS = (tuple, list, dict)
_INT, _STR, _BYTES, _BOOL, _ARRAY = (int,), (str,), (bytes,), (bool,), (tuple,)
_NUMBER = (float, int)

_SHAPES: tuple[tuple[type[m.WireMessage], _Shape], ...] = (
    (m.Run, _Shape(_ARRAY, _INT)),
    (m.Interrupt, _Shape(_INT)),
    (m.Stop, _Shape()),
    (m.Loaded, _Shape(_INT, _INT, _BOOL)),
    (m.Ready, _Shape()),
    (m.Broken, _Shape(_ARRAY)),
    (m.Streamed, _Shape(_INT, _BYTES)),
    (m.Answer, _Shape(_INT, _NUMBER, _STR, _INT, _BYTES)),
    (m.Failure, _Shape(_INT, _NUMBER, _ARRAY)),
)
_TAGS: dict[type[m.WireMessage], int] = {cls: tag for tag, (cls, _) in enumerate(_SHAPES)}
_LEASE = _Shape(_INT, _BYTES, _BOOL)
_ERROR = _Shape(_STR, _STR, _BOOL, (bool, type(None)), (dict,))


def encode(message: m.WireMessage) -> bytes:
    """Give a message's bytes.

    Raises:
        LocalProtocolError: a field holds what msgpack cannot carry; our own defect.
    """
    try:
        return msgpack.packb((_TAGS[type(message)], *message), use_bin_type=True)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{type(message).__name__} cannot be encoded: {error}") from error


def decode(data: bytes) -> m.WireMessage:
    """Rebuild a message from its bytes.

    Raises:
        RemoteProtocolError: whatever is wrong with ``data``; the peer's fault.
    """
    values = _unpack(data)
    if type(values) is not tuple or not values or type(values[0]) is not int:
        raise RemoteProtocolError("a message is an array that begins with its tag")
    tag, *fields = values
    if not 0 <= tag < len(_SHAPES):
        raise RemoteProtocolError(f"unknown message tag {tag}")
    cls, shape = _SHAPES[tag]
    shape.check(cls.__name__, fields)
    if cls is m.Run:
        fields[0] = tuple(_record(m.Lease, lease, _LEASE) for lease in fields[0])
    elif cls is m.Broken or cls is m.Failure:
        fields[-1] = _record(ErrorInfo, fields[-1], _ERROR)
    return cls(*fields)


def encode_prompt(prompt: Prompt, max_bytes: int = MAX_PAYLOAD_BYTES) -> bytes:
    """Give a prompt's bytes.

    Args:
        prompt: a ``str``, or a list of content blocks (maps).
        max_bytes: largest encoded size.

    Raises:
        InvalidPrompt: neither, or not encodable (lone surrogates, foreign objects); the caller's.
        PayloadTooLarge: over ``max_bytes`` or ``MAX_DEPTH``; the caller's.
    """
    if type(prompt) is not str:
        _check_blocks(prompt)
    elif len(prompt) > max_bytes:
        raise _too_large("prompt", len(prompt), max_bytes)
    try:
        data: bytes = msgpack.packb(prompt, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidPrompt(f"the prompt cannot be encoded: {error}") from error
    if len(data) > max_bytes:
        raise _too_large("prompt", len(data), max_bytes)
    return data


def decode_prompt(data: bytes) -> Prompt:
    """Rebuild a prompt; content blocks come back as lists and maps.

    Raises:
        RemoteProtocolError: not a prompt; the peer's fault.
    """
    prompt = _unpack(data, use_list=True)
    if not isinstance(prompt, str | list):
        raise RemoteProtocolError(f"a prompt is text or content blocks, not {type(prompt)}")
    if type(prompt) is list:
        _check_depth(prompt)
    return prompt


def encode_message(message: object) -> bytes:
    """Give the bytes of one message of a conversation (see ``content.to_map``).

    Raises:
        TypeError, ValueError, OverflowError: it holds what msgpack cannot carry; the client's.
    """
    data: bytes = msgpack.packb(to_map(message), use_bin_type=True)
    return data


def decode_message(data: bytes) -> Message:
    """Rebuild one message of a conversation.

    Raises:
        RemoteProtocolError: not such a message; the peer's fault.
    """
    value = _unpack(data, use_list=True)
    if type(value) in _CONTAINERS:
        _check_depth(value)
    return from_map(value)


def join_messages(encoded: list[bytes]) -> bytes:
    """Put encoded messages together into one encoded list, without decoding them."""
    return msgpack.Packer().pack_array_header(len(encoded)) + b"".join(encoded)


def decode_maps(data: bytes) -> list[Map]:
    """Rebuild an encoded list of messages as plain maps; an empty string is an empty list.

    Raises:
        RemoteProtocolError: not a list of maps; the peer's fault.
    """
    if not data:
        return []
    values = _unpack(data, use_list=True)
    if type(values) in _CONTAINERS:
        _check_depth(values)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise RemoteProtocolError("messages are a list of maps")
    return values


def _unpack(data: bytes, *, use_list: bool = False) -> Any:
    try:
        return msgpack.unpackb(data, use_list=use_list, raw=False, strict_map_key=True)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not a message: {error}") from error


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) in _CONTAINERS
        ]
        if not level:
            return
    raise RemoteProtocolError(f"nested deeper than {MAX_DEPTH}")


def _record(cls: type[_T], values: Any, shape: _Shape) -> _T:
    if type(values) is not tuple:
        raise RemoteProtocolError(f"{cls.__name__} is an array, not {type(values).__name__}")
    shape.check(cls.__name__, values)
    return cls(*values)


def _check_blocks(prompt: object) -> None:
    if type(prompt) is not list:
        raise InvalidPrompt(
            f"a prompt is a str or a list of content blocks, not {type(prompt).__name__}; "
            "pass str(value) or json.dumps(value)"
        )
    for block in prompt:
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidPrompt(
                'a content block is a map with a "type", for example '
                f'{{"type": "text", "text": "..."}}, not {block!r:.80}'
            )
    try:
        _check_depth(prompt)
    except RemoteProtocolError as error:
        raise PayloadTooLarge(f"the prompt is {error}", started=False) from error


def _too_large(what: str, size: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the {what} has {size:,} bytes, the limit is {limit:,}; "
        "raise max_payload_bytes or send a reference to the data",
        started=False,
    )
