"""The public messages: what anybody, in any language, says to the socket of a shared session.

:doc:`SPEC.md` is the normative text; this is the code's side of it. One frame holds one message:
a msgpack map with text keys, ``v`` and ``type`` among them. Pure, no I/O.

Invariants: garbage in gives :class:`RemoteProtocolError` and nothing else; unknown keys are
ignored, an unknown version or type is refused; what the worker sent encoded goes out without
being decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import msgpack

from soloist.protocol import codec
from soloist.protocol.codec import Prompt
from soloist.protocol.content import Map
from soloist.protocol.errors import ErrorInfo, RemoteProtocolError, SoloistError
from soloist.protocol.messages import Answer

VERSION = 1
"""Major version of the wire; it stands in every message."""
ID_BYTES = 16
"""Length of a request's id."""
MAX_TIMEOUT_MS = 2**53
"""Largest ``timeout_ms`` and ``bytes``: what every language's numbers hold."""


class Query(NamedTuple):
    """Caller -> broker: run this prompt."""

    id: bytes
    prompt: Prompt
    timeout_ms: int | None
    is_streamed: bool


class Cancel(NamedTuple):
    """Caller -> broker: end this request early."""

    id: bytes


class Credit(NamedTuple):
    """Caller -> broker: so many more bytes of this request's messages may come."""

    id: bytes
    bytes: int


FromCaller: TypeAlias = Query | Cancel | Credit


class Unreadable(RemoteProtocolError):
    """A message of a caller that cannot be obeyed; ``id`` says which request, if it does."""

    def __init__(self, message: str = "", *, started: bool | None = False) -> None:
        super().__init__(message, started=started)
        self.id: bytes | None = None


def decode(data: bytes) -> FromCaller:
    """Rebuild a caller's message.

    Raises:
        Unreadable: whatever is wrong with ``data``; the caller's fault.
    """
    try:
        value = codec.decode_value(data)
    except RemoteProtocolError as error:
        raise Unreadable(str(error)) from error
    if not isinstance(value, dict):
        raise Unreadable("a message is a map")
    try:
        return _message(value)
    except Unreadable as error:
        own = value.get("id")
        error.id = own if _is_id(own) else None
        raise


def _message(value: Map) -> FromCaller:
    if value.get("v") != VERSION or isinstance(value["v"], bool):
        raise Unreadable(f"v must be {VERSION}")
    kind = value.get("type")
    rebuild = _DECODERS.get(kind) if isinstance(kind, str) else None
    if rebuild is None:
        raise Unreadable(f"type must be one of {', '.join(_DECODERS)}")
    if not _is_id(value.get("id")):
        raise Unreadable(f"id must be {ID_BYTES} bytes")
    return rebuild(value)


def _query(value: Map) -> Query:
    prompt: Any = value.get("prompt")
    is_blocks = isinstance(prompt, list) and all(isinstance(block, dict) for block in prompt)
    if not isinstance(prompt, str) and not is_blocks:
        raise Unreadable("prompt must be text or an array of maps")
    timeout_ms = value.get("timeout_ms")
    if timeout_ms is not None and not _is_count(timeout_ms):
        raise Unreadable("timeout_ms must be a whole number of at least 0")
    stream = value.get("stream", False)
    if not isinstance(stream, bool):
        raise Unreadable("stream must be true or false")
    return Query(value["id"], prompt, timeout_ms, stream)


def _cancel(value: Map) -> Cancel:
    return Cancel(value["id"])


def _credit(value: Map) -> Credit:
    if not _is_count(value.get("bytes")):
        raise Unreadable("bytes must be a whole number of at least 0")
    return Credit(value["id"], value["bytes"])


_DECODERS: dict[str, Callable[[Map], FromCaller]] = {
    "QUERY": _query,
    "CANCEL": _cancel,
    "CREDIT": _credit,
}


def _is_id(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == ID_BYTES


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_TIMEOUT_MS


# -- broker -> caller --------------------------------------------------------------------------


def message(id_: bytes, seq: int, encoded: bytes) -> bytes:
    """One message of a streamed answer, ``encoded`` as the worker sent it."""
    return _map("MESSAGE", {"id": id_, "seq": seq}, "message", encoded)


def result(
    id_: bytes, answer: Answer, *, sequence: int, incarnation: int, is_streamed: bool
) -> bytes:
    """The end of a request that was answered."""
    fields = {
        "id": id_,
        "sequence": sequence,
        "incarnation": incarnation,
        "text": answer.text,
        "num_turns": answer.num_turns,
        "duration_ms": round(answer.duration_s * 1000),
    }
    messages = _NO_MESSAGES if is_streamed or not answer.messages else answer.messages
    return _map("RESULT", fields, "messages", messages)


def error(id_: bytes | None, info: ErrorInfo, *, sequence: int | None) -> bytes:
    """The end of a request that failed, or the answer to what is no request (``id`` is nil)."""
    fields: dict[str, Any] = {
        "id": id_,
        "sequence": sequence,
        "code": info.code,
        "message": info.message,
        "retryable": info.retryable,
        "started": info.started,
    }
    return _map("ERROR", fields, "details", msgpack.packb(info.details, use_bin_type=True))


_NO_MESSAGES: bytes = msgpack.packb([])


def _map(kind: str, fields: dict[str, Any], last: str, encoded: bytes) -> bytes:
    """A map whose last value is encoded already."""
    packer = msgpack.Packer(use_bin_type=True, autoreset=False)
    packer.pack_map_header(3 + len(fields))
    for key, value in {"v": VERSION, "type": kind, **fields}.items():
        packer.pack(key)
        packer.pack(value)
    packer.pack(last)
    data: bytes = packer.bytes()
    return data + encoded


def refusal(fault: SoloistError) -> ErrorInfo:
    """What a caller is told whose message could not be read."""
    return ErrorInfo(
        RemoteProtocolError.code, str(fault), retryable=False, started=False, details={}
    )
