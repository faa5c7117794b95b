"""Messages <-> bytes: msgpack arrays ``[tag, *fields]`` with size and depth limits.

Owns every byte that crosses between a supervisor and its workers. Garbage in gives
:class:`RemoteProtocolError` and nothing else; what this side may not send gives a typed local
error. Pure, no I/O.

Invariants: ``decode(encode(message)) == message`` and of the same type; every decoded field has
its declared type, and its numbers lie in 0 to 2**64 - 1; what a caller gives (prompts,
messages, the details of an error) holds only text, bytes, numbers, booleans, None, lists and maps
with text as keys, nested at most ``MAX_DEPTH`` deep. What ``encode_prompt`` and
``encode_message`` accept, the other side decodes.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable, Collection, Iterable, Sequence
from types import NoneType
from typing import Any, TypeAlias, TypeVar, cast

import msgpack

from soloist.protocol import messages as m
from soloist.protocol.content import Map, Message, from_map, to_map
from soloist.protocol.errors import (
    ErrorInfo,
    InvalidPrompt,
    LocalProtocolError,
    PayloadTooLarge,
    RemoteProtocolError,
    SoloistError,
    client_error,
)

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""Largest encoded prompt or answer, unless the Supervisor is told otherwise."""
MAX_DEPTH = 64
"""Deepest nesting of lists and maps in anything that crosses the wire."""

DURATION_BYTES = 8
"""Of each duration in an ``Answers``."""

Prompt: TypeAlias = str | list[Map]
"""A prompt: text, or a list of content blocks as the Messages API has them."""

_T = TypeVar("_T")

_MAX_INT = 2**64 - 1
_MAX_ENCODED_BYTES = 2**32
"""More than msgpack can say of anything's length."""
_SCALARS = frozenset({str, int, bool, float, bytes, NoneType})
_CONTAINERS = frozenset({dict, list, tuple})
_TEXT_KEYS = frozenset({str})
_SMALL = 60
"""Containers, and children of each, that are few enough to be looked at the quick way."""
_SMALL_BYTES = 64 * 1024
_SHORT_MAPS = range(0x80, 0x90)
"""First bytes of a map of fewer than 16 keys, by their number."""
_TOO_MUCH = range(_SMALL + 1)
_SENDABLE = (str, int, float, bytes, bytearray)


class _Shape:
    """The field types of one record; every way they may combine is laid out beforehand."""

    __slots__ = ("combinations", "has_records", "numbers")

    def __init__(self, *fields: tuple[type, ...]) -> None:
        self.combinations = frozenset(itertools.product(*fields))
        self.numbers = tuple(i for i, allowed in enumerate(fields) if int in allowed)
        self.has_records = _ARRAY in fields

    def check(self, name: str, values: Sequence[Any]) -> None:
        kinds = tuple(map(type, values))
        if kinds not in self.combinations:
            found = ", ".join(kind.__name__ for kind in kinds[:10])
            raise RemoteProtocolError(f"{name} cannot have the fields ({found})")
        for i in self.numbers:
            # An int as the bound: infinity and not-a-number fail it, and it is fast.
            if not 0 <= values[i] <= _MAX_INT:
                raise RemoteProtocolError(f"{name} has a number out of range: {values[i]}")


_TEXT, _BLOCKS = b"t", b"b"
_INT, _STR, _BYTES, _BOOL, _ARRAY = (int,), (str,), (bytes,), (bool,), (tuple,)
_NUMBER = (float, int)

_SHAPES: tuple[tuple[type[m.WireMessage], _Shape], ...] = (
    (m.Run, _Shape(_ARRAY, _INT)),
    (m.Interrupt, _Shape(_INT)),
    (m.Stop, _Shape(_BOOL)),
    (m.Loaded, _Shape(_INT, _INT, _BOOL)),
    (m.Ready, _Shape()),
    (m.Broken, _Shape(_BOOL, _ARRAY)),
    (m.Streamed, _Shape(_INT, _BYTES)),
    (m.Answer, _Shape(_INT, _NUMBER, _STR, _INT, _BYTES)),
    (m.Failure, _Shape(_INT, _NUMBER, _ARRAY)),
    (m.Command, _Shape(_INT, _STR, _BYTES)),
    (m.ControlReply, _Shape(_INT, _BYTES)),
    (m.Snapshot, _Shape(_INT, _BYTES)),
    (m.Control, _Shape(_INT, _INT, _STR, _BYTES)),
    (m.Done, _Shape(_INT)),
    (m.Refused, _Shape(_INT, _ARRAY)),
    (m.Ping, _Shape()),
    (m.Pong, _Shape()),
    (m.Chunk, _Shape(_INT, _ARRAY, _INT)),
    (m.Answers, _Shape(_INT, _BYTES, _ARRAY)),
    (m.Vacant, _Shape()),
    (m.Reuse, _Shape(_BYTES)),
)
_TAGS: dict[type[m.WireMessage], int] = {cls: tag for tag, (cls, _) in enumerate(_SHAPES)}
_LEASE = _Shape(_INT, _BYTES, _BOOL)
_ERROR = _Shape(_STR, _STR, _BOOL, (bool, NoneType), (dict,))


def encode(message: m.WireMessage) -> bytes:
    """Give a message's bytes.

    Raises:
        LocalProtocolError: a field holds what msgpack cannot carry; our own defect.
    """
    try:
        return msgpack.packb((_TAGS[type(message)], *message), use_bin_type=True)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{type(message).__name__} cannot be encoded: {error}") from error


def decode(data: bytes | memoryview) -> m.WireMessage:
    """Rebuild a message from its bytes.

    Raises:
        RemoteProtocolError: whatever is wrong with ``data``; the peer's fault.
    """
    return _message(_unpack(data))


def decode_batch(data: bytes | memoryview) -> list[m.WireMessage]:
    """Rebuild messages that ``join`` put together.

    Raises:
        RemoteProtocolError: whatever is wrong with any of them; the peer's fault.
    """
    batch = _unpack(data)
    if type(batch) is not tuple:
        raise RemoteProtocolError("a batch is an array of messages")
    return [_message(values) for values in batch]


def join(encoded: list[bytes]) -> bytes:
    """Put encoded values together into one encoded array, without decoding them."""
    count = len(encoded)
    header = _HEADERS[count] if count < len(_HEADERS) else _array_header(count)
    return header + b"".join(encoded)


def encode_answers(lease: int, durations: bytes, texts: bytes) -> bytes:
    """Give the bytes of an ``Answers`` whose texts are already encoded, one after the other."""
    message = (_TAGS[m.Answers], lease, durations)
    count = len(durations) // DURATION_BYTES
    fields = b"".join(map(msgpack.packb, message))
    return _HEADERS[len(message) + 1] + fields + _array_header(count) + texts


def decode_texts(data: bytes, count: int) -> tuple[str, ...]:
    """Rebuild so many texts that were encoded one after the other; what follows is ignored.

    Raises:
        RemoteProtocolError: that is not what it is; the peer's fault.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    try:
        texts = tuple(itertools.islice(unpacker, count))
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not texts: {type(error).__name__} {error}") from error
    if len(texts) != count:
        raise RemoteProtocolError(f"{len(texts)} texts, not {count}")
    return texts


def size_of_texts(values: Collection[object]) -> int | None:
    """How many bytes these have as UTF-8; ``None`` if one is no text that can be sent."""
    if not _TEXT_KEYS.issuperset(map(type, values)):
        return None
    try:
        return len("".join(cast("Collection[str]", values)).encode())
    except UnicodeEncodeError:
        return None


def _array_header(count: int) -> bytes:
    header: bytes = msgpack.Packer().pack_array_header(count)
    return header


_HEADERS = tuple(map(_array_header, range(16)))
"""Nearly all that are needed; a packer takes its time to make."""


def _message(values: Any) -> m.WireMessage:
    if type(values) is not tuple or not values or type(values[0]) is not int:
        raise RemoteProtocolError("a message is an array that begins with its tag")
    tag, *fields = values
    if not 0 <= tag < len(_SHAPES):
        raise RemoteProtocolError(f"unknown message tag {tag}")
    cls, shape = _SHAPES[tag]
    shape.check(cls.__name__, fields)
    if shape.has_records:
        _decode_records(cls, fields)
    # Not cls(*fields): the shape was checked, and every answer comes through here.
    return tuple.__new__(cls, fields)


def encode_prompt(prompt: Prompt, max_bytes: int = MAX_PAYLOAD_BYTES) -> bytes:
    """Give a prompt's bytes: ``t`` and UTF-8 text, or ``b`` and content blocks in msgpack.

    Text, by far the most frequent, so needs no packer on either side.

    Args:
        prompt: a ``str``, or a list of content blocks (maps).
        max_bytes: largest encoded size.

    Raises:
        InvalidPrompt: neither, or not encodable (lone surrogates, foreign objects); the caller's.
        PayloadTooLarge: over ``max_bytes`` or ``MAX_DEPTH``; the caller's.
    """
    if isinstance(prompt, str) and len(prompt) > max_bytes:
        raise _too_large("prompt", len(prompt), max_bytes)
    try:
        if isinstance(prompt, str):
            data = _TEXT + str.encode(prompt)  # a subclass may have its own way
        else:
            _check_blocks(prompt, max_bytes)
            data = _BLOCKS + msgpack.packb(prompt, use_bin_type=True)
    except SoloistError:
        raise
    except Exception as error:  # a list or map of a user's own class raises anything
        raise InvalidPrompt(f"the prompt cannot be encoded: {client_error(error)}") from error
    if len(data) > max_bytes:
        raise _too_large("prompt", len(data), max_bytes)
    return data


def decode_prompt(data: bytes) -> Prompt:
    """Rebuild a prompt; content blocks come back as lists and maps.

    Raises:
        RemoteProtocolError: not a prompt; the peer's fault.
    """
    kind, body = data[:1], data[1:]
    if kind == _TEXT:
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError(f"the prompt is not UTF-8: {error}") from error
    if kind != _BLOCKS:
        raise RemoteProtocolError("a prompt is text or content blocks")
    blocks = _unpack(body, use_list=True)
    _check_received(blocks)
    if not isinstance(blocks, list) or not all(map(_is_block, blocks)):
        raise RemoteProtocolError("a prompt is text or content blocks")
    return blocks


def texts_of_prompts(encoded: Sequence[bytes]) -> tuple[str, ...]:
    """Give the texts of encoded prompts of this side's own; none if any is more than text."""
    if {data[:1] for data in encoded} - {_TEXT}:
        return ()
    return tuple([data[1:].decode() for data in encoded])


def encode_message(message: object) -> bytes:
    """Give the bytes of one message of a conversation (see ``content.to_map``).

    Raises:
        TypeError, ValueError, OverflowError: it holds what msgpack cannot carry, or nests deeper
            than ``MAX_DEPTH``; the client's.
    """
    return encode_map(to_map(message))


def encode_map(value: Map) -> bytes:
    """Give the bytes of a message that is a map already.

    Raises:
        TypeError, ValueError, OverflowError: as ``encode_message``.
    """
    if not _is_small(value):
        _check_sent(value, _MAX_ENCODED_BYTES)
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def decode_message(data: bytes) -> Message:
    """Rebuild one message of a conversation.

    Raises:
        RemoteProtocolError: not such a message; the peer's fault.
    """
    value = _unpack(data, use_list=True)
    _check_received(value)
    return from_map(value)


def encode_value(value: object) -> bytes:
    """Give the bytes of any plain value: a snapshot, the arguments of a command, a reply.

    Raises:
        TypeError, ValueError, OverflowError: it holds what msgpack cannot carry, or nests deeper
            than ``MAX_DEPTH``.
    """
    _check_sent([value], _MAX_ENCODED_BYTES, MAX_DEPTH + 1)
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def decode_value(data: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """Rebuild what ``encode_value`` gave.

    Args:
        data: its bytes.
        max_depth: deepest nesting of lists and maps in it.

    Raises:
        RemoteProtocolError: not such a value, or a key stands in a map twice; the peer's fault.
    """
    value = _unpack(data, use_list=True, object_pairs_hook=_distinct)
    _check_received([value], max_depth + 1)
    return value


def decode_flat(data: bytes) -> dict[str, Any] | None:
    """Rebuild a short map of nothing but text, numbers and the like, as most requests are.

    ``None`` for anything else, which may be in order: ``decode_value`` says.

    Raises:
        RemoteProtocolError: not msgpack; the peer's fault.
    """
    if not data or data[0] not in _SHORT_MAPS or len(data) > _SMALL_BYTES:
        return None
    value = _unpack(data, use_list=True)
    # With as many keys as were announced, none stood there twice.
    if len(value) != data[0] - _SHORT_MAPS[0] or not _TEXT_KEYS.issuperset(map(type, value)):
        return None
    return value if _SCALARS.issuperset(map(type, value.values())) else None


def decode_maps(data: bytes) -> list[Map]:
    """Rebuild an encoded list of messages as plain maps; an empty string is an empty list.

    Raises:
        RemoteProtocolError: not a list of maps; the peer's fault.
    """
    if not data:
        return []
    values = _unpack(data, use_list=True)
    _check_received(values, MAX_DEPTH + 1)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise RemoteProtocolError("messages are a list of maps")
    return values


def _unpack(
    data: bytes | memoryview,
    *,
    use_list: bool = False,
    object_pairs_hook: Callable[[list[tuple[Any, Any]]], Any] | None = None,
) -> Any:
    try:
        return msgpack.unpackb(
            data,
            use_list=use_list,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=object_pairs_hook,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not a message: {type(error).__name__} {error}") from error


def _distinct(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Refuse a key that stands there twice: another reader may take the other value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in a map")
    return found


def _check_received(value: Any, max_depth: int = MAX_DEPTH) -> None:
    """Refuse deep nesting, extension types and keys that are not text."""
    level: list[Any] = [value]
    for _ in range(max_depth):
        below: list[Any] = []
        for container in level:
            kind = type(container)
            if kind not in _CONTAINERS:
                raise RemoteProtocolError(f"a list or map was expected, not {kind.__name__}")
            # The unpacker lets nothing but text and bytes be a key.
            if kind is dict and bytes in map(type, container):
                raise RemoteProtocolError("the keys of a map are text")
            children = container.values() if kind is dict else container
            below += [child for child in children if type(child) not in _SCALARS]
        if not below:
            return
        level = below
    raise RemoteProtocolError(f"nested deeper than {max_depth}")


def _is_small(value: Map) -> bool:
    """Whether ``value`` certainly passes ``_check_sent``: most messages do, for half the time."""
    level: list[Any] = [value]
    count = 0
    while level:
        count += len(level)
        if count > _SMALL:
            return False
        below: list[Any] = []
        for container in level:
            children = _plain_children(container)
            if len(children) > _SMALL:
                return False
            for child in children:
                kind = type(child)
                if kind not in _SCALARS:
                    below.append(child)
                elif (kind is str or kind is bytes) and len(child) > _SMALL_BYTES:
                    return False
        level = below
    return True


def _plain_children(container: Any) -> Collection[Any]:
    """What an ordinary list or map holds; of anything else, too much."""
    kind = type(container)
    if kind is list:
        return cast("list[Any]", container)
    if kind is dict and _TEXT_KEYS.issuperset(map(type, container)):
        return cast("dict[str, Any]", container).values()
    return _TOO_MUCH


def _check_sent(value: Any, max_bytes: int, max_depth: int = MAX_DEPTH) -> None:
    """Refuse what the other side would refuse, and what would never end.

    Each container is looked at once a level, however often it stands there: a cycle, or sharing
    that multiplies when it is written out, takes no longer than the plain thing.

    Raises:
        TypeError: a value or a key of a foreign type.
        ValueError: nested too deep, or certainly more than ``max_bytes`` when written out.
    """
    size = 0
    level = {id(value): (value, 1)}
    for _ in range(max_depth):
        below: dict[int, tuple[Any, int]] = {}
        for container, times in level.values():
            for child in _children(container):
                kind = type(child)
                if kind is str or kind is bytes:
                    size += times * len(child)
                elif kind not in _SCALARS and not isinstance(child, _SENDABLE):
                    known = below.get(id(child), (child, 0))[1]
                    below[id(child)] = (child, known + times)
                size += times
        if size > max_bytes:
            raise ValueError(f"it has at least {size:,} bytes, the limit is {max_bytes:,}")
        if not below:
            return
        level = below
    raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def _children(container: Any) -> Iterable[Any]:
    # msgpack's extension type is a tuple by inheritance.
    if isinstance(container, list | tuple) and not isinstance(container, msgpack.ExtType):
        return container
    if not isinstance(container, dict):
        raise TypeError(f"{type(container).__name__} cannot be sent")
    for key in container:
        if not isinstance(key, str):
            raise TypeError(f"the keys of a map must be str, not {type(key).__name__}")
    return container.values()


def _decode_records(cls: type[m.WireMessage], fields: list[Any]) -> None:
    """Put the records that a message holds in the place of their arrays."""
    if cls is m.Run:
        fields[0] = tuple([_record(m.Lease, lease, _LEASE) for lease in fields[0]])
    elif cls is m.Chunk:
        _check_texts(fields[1])
    elif cls is m.Answers:
        _check_texts(fields[2])
        if len(fields[1]) != DURATION_BYTES * len(fields[2]):
            raise RemoteProtocolError("Answers have a duration for each text")
    else:
        fields[-1] = _record(ErrorInfo, fields[-1], _ERROR)
        _check_received(fields[-1].details)


def _check_texts(values: tuple[Any, ...]) -> None:
    if not _TEXT_KEYS.issuperset(map(type, values)):
        raise RemoteProtocolError("a chunk is made of texts")


def _record(cls: type[_T], values: Any, shape: _Shape) -> _T:
    if type(values) is not tuple:
        raise RemoteProtocolError(f"{cls.__name__} is an array, not {type(values).__name__}")
    shape.check(cls.__name__, values)
    return cls(*values)


def _check_blocks(prompt: object, max_bytes: int) -> None:
    if not isinstance(prompt, list):
        raise InvalidPrompt(
            f"a prompt is a str or a list of content blocks, not {type(prompt).__name__}; "
            "pass str(value) or json.dumps(value)"
        )
    for block in prompt:
        if not _is_block(block):
            raise InvalidPrompt(
                'a content block is a map with a "type", for example '
                f'{{"type": "text", "text": "..."}}, not {reprlib.repr(block)}'
            )
    try:
        _check_sent(prompt, max_bytes)
    except (TypeError, RuntimeError) as error:  # the latter: another thread is changing it
        raise InvalidPrompt(f"the prompt cannot be encoded: {error}") from error
    except ValueError as error:
        raise PayloadTooLarge(f"the prompt cannot be sent: {error}", started=False) from error


def _is_block(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _too_large(what: str, size: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the {what} has {size:,} bytes, the limit is {limit:,}; "
        "raise max_payload_bytes or send a reference to the data",
        started=False,
    )
