"""The public wire: what a program in any language says to a broker's socket, and what it hears.

Owns the messages of ``SPEC.md`` and their bytes. Pure, no I/O.

Invariants: whatever arrives, ``read`` and ``decode`` give a request or the :class:`Error` that
answers it, and never raise; every field of a request has its declared type and range; ``FIELDS``
says what the specification says. Messages of the conversation arrive here encoded and leave
encoded: none is decoded on its way to a peer.

Source: SPEC.md, chapter 1.
"""

from __future__ import annotations

import enum
import itertools
import reprlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import msgpack

from soloist.protocol import codec
from soloist.protocol.codec import Prompt
from soloist.protocol.errors import (
    ErrorInfo,
    InvalidPrompt,
    ProtocolError,
    RemoteProtocolError,
    SoloistError,
    to_info,
)

SPEC_VERSION = "1.0"
VERSION = 1
"""The major version, which stands in every message."""
ID_BYTES = 16
CREDIT_BYTES = 4 * 1024 * 1024
"""The initial credit of a streamed request, unless the operator says otherwise."""
MAX_ENVELOPE_FRAMES = 8
MAX_ENVELOPE_BYTES = 1024

Envelope: TypeAlias = tuple[bytes, ...]
"""The address that a reply goes to: the peer's routing id; and what a REQ socket puts before its
payload, up to and including the empty frame, to be sent back as it came."""

_MAX_UINT = 2**64 - 1


class Query(NamedTuple):
    """Client -> broker: run this prompt when its turn comes."""

    id: bytes
    prompt: Prompt
    timeout_ms: int | None
    is_streamed: bool


class Cancel(NamedTuple):
    """Client -> broker: end this request early."""

    id: bytes


class Credit(NamedTuple):
    """Client -> broker: so many bytes of this request's messages have been read."""

    id: bytes
    granted_bytes: int


class Message(NamedTuple):
    """Broker -> client: one encoded message of a streamed request; ``seq`` counts from 1."""

    id: bytes
    seq: int
    message: bytes


class Result(NamedTuple):
    """Broker -> client: the request's turn ended.

    ``sequence`` is its place in the order of arrival at the broker, from 1; ``messages`` is an
    encoded array, of nothing if they were streamed.
    """

    id: bytes
    sequence: int
    incarnation: int
    text: str
    num_turns: int
    duration_ms: int
    messages: bytes


class Error(NamedTuple):
    """Broker -> client: the request failed, or (``id`` is ``None``) something could not be read."""

    id: bytes | None
    sequence: int | None
    info: ErrorInfo


FromClient: TypeAlias = Query | Cancel | Credit
ToClient: TypeAlias = Message | Result | Error


class Kind(enum.Enum):
    """The type of a field, as the specification calls it."""

    ID = "id"
    ID_OR_NIL = "id or nil"
    UINT = "uint"
    TEXT = "str"
    BOOL = "bool"
    BOOL_OR_NIL = "bool or nil"
    MAP = "map"
    MAPS = "array of maps"
    PROMPT = "str or array of maps"


class Field(NamedTuple):
    """One key of a message; ``default`` stands for an optional one that is missing or nil."""

    key: str
    kind: Kind
    is_required: bool = True
    default: Any = None


FIELDS: Mapping[str, tuple[Field, ...]] = MappingProxyType(
    {
        "QUERY": (
            Field("id", Kind.ID),
            Field("prompt", Kind.PROMPT),
            Field("timeout_ms", Kind.UINT, is_required=False),
            Field("stream", Kind.BOOL, is_required=False, default=False),
        ),
        "CANCEL": (Field("id", Kind.ID),),
        "CREDIT": (Field("id", Kind.ID), Field("bytes", Kind.UINT)),
        "MESSAGE": (
            Field("id", Kind.ID),
            Field("seq", Kind.UINT),
            Field("message", Kind.MAP),
        ),
        "RESULT": (
            Field("id", Kind.ID),
            Field("sequence", Kind.UINT),
            Field("incarnation", Kind.UINT),
            Field("text", Kind.TEXT),
            Field("num_turns", Kind.UINT),
            Field("duration_ms", Kind.UINT),
            Field("messages", Kind.MAPS),
        ),
        "ERROR": (
            Field("id", Kind.ID_OR_NIL),
            Field("sequence", Kind.UINT, is_required=False),
            Field("code", Kind.TEXT),
            Field("message", Kind.TEXT),
            Field("retryable", Kind.BOOL),
            Field("started", Kind.BOOL_OR_NIL),
            Field("details", Kind.MAP),
        ),
    }
)
"""Every message by its type, with its keys beyond ``v`` and ``type``, in the order in which this
side writes them."""

_FROM_CLIENT: Mapping[str, type[FromClient]] = {"QUERY": Query, "CANCEL": Cancel, "CREDIT": Credit}


def _is_id(value: object) -> bool:
    return type(value) is bytes and len(value) == ID_BYTES


def _is_uint(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_UINT


def _is_bool(value: object) -> bool:
    return type(value) is bool


def _is_prompt(value: object) -> bool:
    return type(value) is str or (type(value) is list and all(map(_is_block, value)))


def _is_block(value: object) -> bool:
    return type(value) is dict and type(value.get("type")) is str


_CHECKS: Mapping[Kind, Callable[[object], bool]] = {
    Kind.ID: _is_id,
    Kind.UINT: _is_uint,
    Kind.BOOL: _is_bool,
    Kind.PROMPT: _is_prompt,
}


_PLANS = {
    name: tuple((field.key, _CHECKS[field.kind], field) for field in FIELDS[name])
    for name in _FROM_CLIENT
}


def read(frames: list[bytes]) -> tuple[Envelope, FromClient | Error]:
    """Take apart what a ROUTER received: where a reply goes, and what was said.

    Args:
        frames: all frames, the sender's routing id first.
    """
    end = _end_of_envelope(frames) if len(frames) > 2 else 1  # noqa: PLR2004 - address, payload
    envelope = tuple(frames[:end])
    if not frames[0].startswith(b"\0"):
        return envelope, _refused("a client sets no routing id of its own")
    if end > 1 and (end > MAX_ENVELOPE_FRAMES or sum(map(len, envelope)) > MAX_ENVELOPE_BYTES):
        return envelope[:1], _refused("the envelope is too large")
    if len(frames) != end + 1:
        return envelope, _refused("a message is one frame, after an empty one from a REQ socket")
    return envelope, decode(frames[-1], is_req=end > 1)


def _end_of_envelope(frames: list[bytes]) -> int:
    """How many frames stand before the payload."""
    try:
        # An empty frame at the very end is an empty payload, no delimiter.
        return frames.index(b"", 1, -1) + 1
    except ValueError:
        return 1


def decode(data: bytes, *, is_req: bool = False) -> FromClient | Error:
    """Rebuild a request, or give the error that answers what is none.

    Only the error of a QUERY names its request: any other would pass for the outcome of the one
    that it was about.

    Args:
        data: the payload frame.
        is_req: whether it came from a REQ socket, which may do no more than ask and wait.
    """
    about = None
    try:
        value = codec.decode_value(data)
        if type(value) is not dict:
            raise ProtocolError("a message is a map", started=False)
        if value.get("type") == "QUERY" and _is_id(value.get("id")):
            about = value["id"]
        return _from_client(value, is_req=is_req)
    except RemoteProtocolError as error:
        return _refused(str(error))
    except SoloistError as error:
        return Error(about, None, to_info(error))


def encode(reply: ToClient) -> bytes:
    """Give the bytes of what a broker says."""
    if isinstance(reply, Message):
        head = _head("MESSAGE", reply.id)
        head["seq"] = reply.seq
        return _with_last(head, "message", reply.message)
    if isinstance(reply, Result):
        head = _head("RESULT", reply.id)
        head["sequence"] = reply.sequence
        head["incarnation"] = reply.incarnation
        head["text"] = reply.text
        head["num_turns"] = reply.num_turns
        head["duration_ms"] = reply.duration_ms
        return _with_last(head, "messages", reply.messages)
    head = _head("ERROR", reply.id)
    if reply.sequence is not None:
        head["sequence"] = reply.sequence
    data: bytes = msgpack.packb(head | reply.info._asdict(), use_bin_type=True)
    return data


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


def _from_client(value: Mapping[str, Any], *, is_req: bool) -> FromClient:
    """Check a map against ``FIELDS``.

    Raises:
        ProtocolError, InvalidPrompt: what is wrong; the peer's fault.
    """
    version, name = value.get("v"), value.get("type")
    if type(version) is not int or version != VERSION:
        raise ProtocolError(f"v is {VERSION} here, not {reprlib.repr(version)}", started=False)
    if type(name) is not str or name not in _FROM_CLIENT:
        known = ", ".join(_FROM_CLIENT)
        raise ProtocolError(f"type is one of {known}, not {reprlib.repr(name)}", started=False)
    fields: list[Any] = []
    for key, check, field in _PLANS[name]:
        found = value.get(key)
        if found is None and not field.is_required:
            found = field.default
        elif not check(found):
            raise _unfit(name, field, found)
        fields.append(found)
    if is_req and (name != "QUERY" or fields[-1]):
        raise ProtocolError("a REQ socket sends QUERY without stream, nothing else", started=False)
    return _FROM_CLIENT[name](*fields)


def _unfit(name: str, field: Field, found: object) -> SoloistError:
    kind = f"{ID_BYTES} bytes of bin" if field.kind is Kind.ID else field.kind.value
    reason = f"{field.key} of {name} is {kind}, not {reprlib.repr(found)}"
    if field.kind is Kind.PROMPT and found is not None:
        return InvalidPrompt(reason)
    return ProtocolError(reason, started=False)


def _refused(reason: str) -> Error:
    return Error(None, None, to_info(ProtocolError(reason, started=False)))


def _head(name: str, request_id: bytes | None) -> dict[str, Any]:
    return {"v": VERSION, "type": name, "id": request_id}


def _with_last(head: dict[str, Any], key: str, encoded: bytes) -> bytes:
    """Give the bytes of a map whose last value is encoded already."""
    count: bytes = msgpack.Packer().pack_map_header(len(head) + 1)
    data = memoryview(msgpack.packb(head, use_bin_type=True))
    # A map of fewer than 16 keys has a header of one byte: it is replaced by one that counts on.
    return b"".join((count, data[1:], _KEYS[key], encoded))


def _unpacker(data: bytes) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    return unpacker


_KEYS = {key: bytes(msgpack.packb(key)) for key in ("message", "messages")}
