"""Public messages <-> bytes: one msgpack map each.

Pure, no I/O.

Invariants: whatever a client sends, ``read`` and ``decode`` give a request or the :class:`Error`
that answers it, and never raise; whatever a broker or gateway sends, ``decode_reply`` gives a
message or raises :class:`RemoteProtocolError`; every field has its declared type and range.

Source: SPEC.md.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import msgpack

from soloist.protocol import codec
from soloist.protocol.errors import (
    ErrorInfo,
    InvalidPrompt,
    ProtocolError,
    RemoteProtocolError,
    SoloistError,
    to_info,
)
from soloist.protocol.public import (
    FIELDS,
    ID_BYTES,
    MAX_ENVELOPE_BYTES,
    MAX_ENVELOPE_FRAMES,
    MAX_SECRET_BYTES,
    MIN_SECRET_BYTES,
    OF_BROKER,
    OF_GATEWAY,
    TO_CLIENT,
    VERSION,
    Envelope,
    Error,
    Field,
    FromClient,
    Kind,
    Message,
    OfBroker,
    Result,
    ToClient,
)

_T_co = TypeVar("_T_co", covariant=True)

_MAX_UINT = 2**64 - 1
_MAX_REPLY_DEPTH = codec.MAX_DEPTH + 2
"""A message of the conversation stands in an array in a map."""


def _is_id(value: object) -> bool:
    return type(value) is bytes and len(value) == ID_BYTES


def _is_secret(value: object) -> bool:
    return type(value) is bytes and MIN_SECRET_BYTES <= len(value) <= MAX_SECRET_BYTES


def _is_uint(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_UINT


def _is_bool(value: object) -> bool:
    return type(value) is bool


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_map(value: object) -> bool:
    return type(value) is dict


def _is_array(value: object) -> bool:
    return type(value) is list


def _is_array_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: type(value) is list and all(map(check, value))


def _is_prompt(value: object) -> bool:
    return type(value) is str or (type(value) is list and all(map(_is_block, value)))


def _is_block(value: object) -> bool:
    return type(value) is dict and type(value.get("type")) is str


_CHECKS: Mapping[Kind, Callable[[object], bool]] = {
    Kind.ID: _is_id,
    Kind.ID_OR_NIL: lambda value: value is None or _is_id(value),
    Kind.BIN: _is_secret,
    Kind.UINT: _is_uint,
    Kind.UINTS: _is_array_of(_is_uint),
    Kind.TEXT: _is_text,
    Kind.TEXTS: _is_array_of(_is_text),
    Kind.BOOL: _is_bool,
    Kind.BOOL_OR_NIL: lambda value: value is None or type(value) is bool,
    Kind.MAP: _is_map,
    Kind.MAPS: _is_array_of(_is_map),
    Kind.ARRAY: _is_array,
    Kind.PROMPT: _is_prompt,
    Kind.ON_DISCONNECT: lambda value: value == "cancel" or value == "finish",  # noqa: PLR1714
}
_Plan: TypeAlias = tuple[tuple[str, Callable[[object], bool], Field], ...]


def _plan(fields: Iterable[Field]) -> _Plan:
    return tuple((field.key, _CHECKS[field.kind], field) for field in fields)


class Dialect(NamedTuple, Generic[_T_co]):
    """What a server understands: the types of messages, each with the keys that it looks at.

    ``by_req`` are those that a REQ socket may send, for they are answered once.
    """

    classes: Mapping[str, type[_T_co]]
    plans: Mapping[str, _Plan]
    by_req: tuple[str, ...]


_PLANS = {name: _plan(fields) for name, fields in FIELDS.items()}
_WITH_OUTCOME = ("QUERY", "OPEN", "CLOSE", "COMMAND", "STATUS")
"""Each of these is answered once, under its id."""
BROKER: Dialect[OfBroker] = Dialect(
    OF_BROKER, {**_PLANS, "QUERY": _plan(FIELDS["QUERY"][:4])}, by_req=("QUERY",)
)
"""What a broker understands; it ignores those keys of a QUERY that are for a gateway."""
GATEWAY: Dialect[FromClient] = Dialect(OF_GATEWAY, _PLANS, by_req=(*_WITH_OUTCOME, "PING"))
"""What a gateway understands."""
_NAMES: Mapping[type, str] = {cls: name for name, cls in {**OF_GATEWAY, **TO_CLIENT}.items()}


# -- from a client ---------------------------------------------------------------------------------


def read(frames: list[bytes], dialect: Dialect[_T_co]) -> tuple[Envelope, _T_co | Error]:
    """Take apart what a ROUTER received: where a reply goes, and what was said.

    Args:
        frames: all frames, the sender's routing id first.
        dialect: what is understood here.
    """
    end = _end_of_envelope(frames) if len(frames) > 2 else 1  # noqa: PLR2004 - address, payload
    envelope = tuple(frames[:end])
    if not frames[0].startswith(b"\0"):
        return envelope, _refused("a client sets no routing id of its own")
    if end > 1 and (end > MAX_ENVELOPE_FRAMES or sum(map(len, envelope)) > MAX_ENVELOPE_BYTES):
        return envelope[:1], _refused("the envelope is too large")
    if len(frames) != end + 1:
        return envelope, _refused("a message is one frame, after an empty one from a REQ socket")
    return envelope, decode(frames[-1], dialect, is_req=end > 1)


def _end_of_envelope(frames: list[bytes]) -> int:
    """How many frames stand before the payload."""
    try:
        # An empty frame at the very end is an empty payload, no delimiter.
        return frames.index(b"", 1, -1) + 1
    except ValueError:
        return 1


def decode(data: bytes, dialect: Dialect[_T_co], *, is_req: bool = False) -> _T_co | Error:
    """Rebuild a request, or give the error that answers what is none.

    Only the error of what has one outcome names its request: any other would pass for the outcome
    of the one that it was about.

    Args:
        data: the payload frame.
        dialect: what is understood here.
        is_req: whether it came from a REQ socket, which may do no more than ask and wait.
    """
    about = None
    try:
        value = codec.decode_flat(data)  # half the time, and most are
        if value is None:
            value = codec.decode_value(data)
        if type(value) is not dict:
            raise ProtocolError("a message is a map", started=False)
        name, request_id = value.get("type"), value.get("id")
        if name in _WITH_OUTCOME and name in dialect.classes and _is_id(request_id):
            about = request_id
        return _from_client(value, dialect, is_req=is_req)
    except RemoteProtocolError as error:
        return _refused(str(error))
    except SoloistError as error:
        return Error(about, None, to_info(error))


def _from_client(value: Mapping[str, Any], dialect: Dialect[_T_co], *, is_req: bool) -> _T_co:
    """Check a map against ``FIELDS``.

    Raises:
        ProtocolError, InvalidPrompt: what is wrong; the peer's fault.
    """
    version, name = value.get("v"), value.get("type")
    if type(version) is not int or version != VERSION:
        raise ProtocolError(f"v is {VERSION} here, not {reprlib.repr(version)}", started=False)
    if type(name) is not str or name not in dialect.classes:
        names = ", ".join(dialect.classes)
        raise ProtocolError(f"type is one of {names}, not {reprlib.repr(name)}", started=False)
    fields: list[Any] = []
    for key, check, field in dialect.plans[name]:
        found = value.get(key)
        if found is None and not field.is_required:
            found = field.default
        elif not check(found):
            raise _unfit(name, field, found)
        fields.append(found)
    if is_req and (name not in dialect.by_req or value.get("stream")):
        names = ", ".join(dialect.by_req)
        raise ProtocolError(f"a REQ socket sends {names}, without stream", started=False)
    return dialect.classes[name](*fields)


def _unfit(name: str, field: Field, found: object) -> SoloistError:
    kind = f"{ID_BYTES} bytes of bin" if field.kind is Kind.ID else field.kind.value
    reason = f"{field.key} of {name} is {kind}, not {reprlib.repr(found)}"
    if field.kind is Kind.PROMPT and found is not None:
        return InvalidPrompt(reason)
    return ProtocolError(reason, started=False)


def _refused(reason: str) -> Error:
    return Error(None, None, to_info(ProtocolError(reason, started=False)))


# -- to a client -----------------------------------------------------------------------------------


def encode(message: ToClient | FromClient) -> bytes:
    """Give the bytes of a message."""
    if isinstance(message, Message):  # most of what is sent: by hand, to save time
        head = _head("MESSAGE", message.id)
        head["seq"] = message.seq
        return _with_last(head, "message", message.message)
    if isinstance(message, Result):
        head = _head("RESULT", message.id)
        head["sequence"] = message.sequence
        head["incarnation"] = message.incarnation
        head["text"] = message.text
        head["num_turns"] = message.num_turns
        head["duration_ms"] = message.duration_ms
        if message.attempts is not None:
            head["attempts"] = message.attempts
            head["worker"] = message.worker
        return _with_last(head, "messages", message.messages)
    if isinstance(message, Error):
        head = _head("ERROR", message.id)
        if message.sequence is not None:
            head["sequence"] = message.sequence
        head |= message.info._asdict()
    else:
        head = _fields(message)
    data: bytes = msgpack.packb(head, use_bin_type=True)
    return data


def _head(name: str, request_id: bytes | None) -> dict[str, Any]:
    return {"v": VERSION, "type": name, "id": request_id}


def _fields(message: NamedTuple) -> dict[str, Any]:
    name = _NAMES[type(message)]
    found: dict[str, Any] = {"v": VERSION, "type": name}
    for field, value in zip(FIELDS[name], message, strict=True):
        if field.is_required or value != field.default:
            found[field.key] = value
    return found


def decode_reply(data: bytes) -> ToClient | None:
    """Rebuild what a broker or a gateway said; ``None`` for a type that is not known here.

    Raises:
        RemoteProtocolError: not a message; the peer's fault.
    """
    value = codec.decode_value(data, _MAX_REPLY_DEPTH)
    if type(value) is not dict or value.get("v") != VERSION or type(value.get("type")) is not str:
        raise RemoteProtocolError("a message is a map with a version and a type")
    name = value["type"]
    if name not in TO_CLIENT:
        return None
    fields: list[Any] = []
    for key, check, field in _PLANS[name]:
        found = value.get(key)
        if found is None and not field.is_required:
            found = field.default
        elif not check(found):
            raise RemoteProtocolError(f"{key} of {name} is {field.kind.value}")
        fields.append(found)
    if name == "ERROR":
        request_id, sequence, *info = fields
        return Error(request_id, sequence, ErrorInfo(*info))
    if name in {"MESSAGE", "RESULT"}:
        fields[-1] = msgpack.packb(fields[-1], use_bin_type=True)
    return TO_CLIENT[name](*fields)


def id_of(data: bytes) -> bytes | None:
    """Give the id in a reply that ``decode_reply`` refused, ``None`` if there is none."""
    try:
        value = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException):
        return None
    found = value.get("id") if type(value) is dict else None
    return found if type(found) is bytes else None


def split(messages: bytes, start: int = 0) -> list[bytes]:
    """Take an encoded array apart, from its element ``start``; the opposite of ``codec.join``.

    Raises:
        RemoteProtocolError: not an encoded array; the worker's fault.
    """
    try:
        if _unpacker(messages[:5]).read_array_header() <= start:
            return []  # by far the most frequent, so without a look at the rest
        unpacker = _unpacker(messages)
        marks = []
        for _ in range(unpacker.read_array_header()):
            marks.append(unpacker.tell())
            unpacker.skip()
        marks.append(unpacker.tell())
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not an array of messages: {type(error).__name__}") from error
    return [messages[i:j] for i, j in itertools.pairwise(marks[start:])]


def _with_last(head: dict[str, Any], key: str, encoded: bytes) -> bytes:
    """Give the bytes of a map whose last value is encoded already."""
    data: bytes = msgpack.packb(head, use_bin_type=True)
    # A map of fewer than 16 keys has a header of one byte that counts them: now one more.
    return b"".join((bytes((data[0] + 1,)), data[1:], _KEYS[key], encoded))


def _unpacker(data: bytes) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    return unpacker


_KEYS = {key: bytes(msgpack.packb(key)) for key in ("message", "messages")}
