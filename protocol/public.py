"""The public wire: what a program in any language says to a broker or a gateway, and what it hears.

Owns the messages of ``SPEC.md`` and the table of their keys; :mod:`soloist.protocol.public_codec`
makes bytes of them. Pure data.

Invariant: the fields of a message stand in the order of its keys in ``FIELDS``, which says what
the specification says. Messages of the conversation are bytes here: none is decoded on its way to
a peer.

Source: SPEC.md.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from soloist.protocol.codec import Prompt
from soloist.protocol.content import Map
from soloist.protocol.errors import ErrorInfo

SPEC_VERSION = "1.1"
VERSION = 1
"""The major version, which stands in every message."""
ID_BYTES = 16
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 16, 64
CREDIT_BYTES = 4 * 1024 * 1024
"""The initial credit of a streamed request, unless the operator says otherwise."""
SILENT_HEARTBEATS = 3
"""After so many without a word, a peer or a gateway counts as gone."""
MAX_ENVELOPE_FRAMES = 8
MAX_ENVELOPE_BYTES = 1024

Envelope: TypeAlias = tuple[bytes, ...]
"""The address that a reply goes to: the peer's routing id; and what a REQ socket puts before its
payload, up to and including the empty frame, to be sent back as it came."""


# -- from a client, to a broker or a gateway -------------------------------------------------------


class Query(NamedTuple):
    """Client -> broker, gateway: run this prompt when its turn comes.

    The fields after ``is_streamed`` are the gateway's alone. ``resent`` is the epoch in which it
    was sent first, if this is not the first time.
    """

    id: bytes
    prompt: Prompt
    timeout_ms: int | None
    is_streamed: bool
    session: bytes | None = None
    client: str | None = None
    on_disconnect: str = "cancel"
    resent: bytes | None = None
    has_control: bool = False


class Cancel(NamedTuple):
    """Client -> broker, gateway: end this request early."""

    id: bytes


class Credit(NamedTuple):
    """Client -> broker, gateway: so many bytes of this request's messages have been read."""

    id: bytes
    granted_bytes: int


# -- from a client, to a gateway -------------------------------------------------------------------


class Hello(NamedTuple):
    """Client -> gateway: the first message of a connection; ``secret`` says whose it is."""

    versions: list[int]
    secret: bytes | None


class Open(NamedTuple):
    """Client -> gateway: begin a conversation, or join the one of that name."""

    id: bytes
    name: str | None
    client: str | None
    ticket: bytes | None
    max_queue: int | None
    idle_timeout_ms: int | None


class Close(NamedTuple):
    """Client -> gateway: end a conversation for everybody."""

    id: bytes
    session: bytes
    is_drained: bool


class Interrupt(NamedTuple):
    """Client -> gateway: end the running turn of a conversation early, whoever asked for it."""

    session: bytes


class Command(NamedTuple):
    """Client -> gateway: call a method of a conversation's client that is no turn."""

    id: bytes
    session: bytes
    name: str
    arguments: list[Any]


class ControlReply(NamedTuple):
    """Client -> gateway: the answer to a ``Control``."""

    id: bytes
    number: int
    data: Map


class Status(NamedTuple):
    """Client -> gateway: how are you, or how is that conversation?"""

    id: bytes
    session: bytes | None


class Ping(NamedTuple):
    """Client -> gateway: I am here; are you?"""


# -- to a client, from a broker or a gateway -------------------------------------------------------


class Message(NamedTuple):
    """Broker, gateway -> client: one encoded message of a streamed request; ``seq`` from 1."""

    id: bytes
    seq: int
    message: bytes


class Result(NamedTuple):
    """Broker, gateway -> client: the request's turn ended.

    ``sequence`` is its place in the order of arrival at the broker or pool, from 1; ``messages``
    is an encoded array, of nothing if they were streamed; ``attempts`` and ``worker`` come from a
    gateway alone.
    """

    id: bytes
    sequence: int
    incarnation: int
    text: str
    num_turns: int
    duration_ms: int
    attempts: int | None
    worker: int | None
    messages: bytes


class Error(NamedTuple):
    """Broker, gateway -> client: it failed, or (``id`` is ``None``) something could not be read."""

    id: bytes | None
    sequence: int | None
    info: ErrorInfo


# -- to a client, from a gateway -------------------------------------------------------------------


class Welcome(NamedTuple):
    """Gateway -> client: the answer to ``Hello``.

    ``epoch`` is another in each life of a gateway; of ``clients`` the first is the default.
    """

    version: int
    epoch: bytes
    heartbeat_ms: int
    credit_bytes: int
    max_prompt_bytes: int
    max_requests: int
    clients: list[str]


class Accepted(NamedTuple):
    """Gateway -> client: the request was taken in, and waits behind so many others."""

    id: bytes
    position: int


class Opened(NamedTuple):
    """Gateway -> client: the conversation is open."""

    id: bytes
    session: bytes
    ticket: bytes
    endpoint: str
    incarnation: int


class Done(NamedTuple):
    """Gateway -> client: what was asked has been done."""

    id: bytes


class Control(NamedTuple):
    """Gateway -> client: the agent asks its caller."""

    id: bytes
    number: int
    kind: str
    data: Map


class Report(NamedTuple):
    """Gateway -> client: the answer to ``Status``."""

    id: bytes
    status: Map


class Pong(NamedTuple):
    """Gateway -> client: I am here."""


OfBroker: TypeAlias = Query | Cancel | Credit
"""What a client may say to a broker."""
FromClient: TypeAlias = (
    OfBroker | Hello | Open | Close | Interrupt | Command | ControlReply | Status | Ping
)
ToClient: TypeAlias = (
    Message | Result | Error | Welcome | Accepted | Opened | Done | Control | Report | Pong
)


class Kind(enum.Enum):
    """The type of a field, as the specification calls it."""

    ID = "id"
    ID_OR_NIL = "id or nil"
    BIN = "bin of 16 to 64 bytes"
    UINT = "uint"
    UINTS = "array of uint"
    TEXT = "str"
    TEXTS = "array of str"
    BOOL = "bool"
    BOOL_OR_NIL = "bool or nil"
    MAP = "map"
    MAPS = "array of maps"
    ARRAY = "array"
    PROMPT = "str or array of maps"
    ON_DISCONNECT = "`cancel` or `finish`"


class Field(NamedTuple):
    """One key of a message; ``default`` stands for an optional one that is missing or nil."""

    key: str
    kind: Kind
    is_required: bool = True
    default: Any = None


def _optional(key: str, kind: Kind, default: Any = None) -> Field:
    return Field(key, kind, is_required=False, default=default)


_ID = Field("id", Kind.ID)
_SESSION = Field("session", Kind.ID)

FIELDS: Mapping[str, tuple[Field, ...]] = MappingProxyType(
    {
        "QUERY": (
            _ID,
            Field("prompt", Kind.PROMPT),
            _optional("timeout_ms", Kind.UINT),
            _optional("stream", Kind.BOOL, default=False),
            _optional("session", Kind.ID),
            _optional("client", Kind.TEXT),
            _optional("on_disconnect", Kind.ON_DISCONNECT, default="cancel"),
            _optional("resent", Kind.ID),
            _optional("control", Kind.BOOL, default=False),
        ),
        "CANCEL": (_ID,),
        "CREDIT": (_ID, Field("bytes", Kind.UINT)),
        "MESSAGE": (_ID, Field("seq", Kind.UINT), Field("message", Kind.MAP)),
        "RESULT": (
            _ID,
            Field("sequence", Kind.UINT),
            Field("incarnation", Kind.UINT),
            Field("text", Kind.TEXT),
            Field("num_turns", Kind.UINT),
            Field("duration_ms", Kind.UINT),
            _optional("attempts", Kind.UINT),
            _optional("worker", Kind.UINT),
            Field("messages", Kind.MAPS),
        ),
        "ERROR": (
            Field("id", Kind.ID_OR_NIL),
            _optional("sequence", Kind.UINT),
            Field("code", Kind.TEXT),
            Field("message", Kind.TEXT),
            Field("retryable", Kind.BOOL),
            Field("started", Kind.BOOL_OR_NIL),
            Field("details", Kind.MAP),
        ),
        "HELLO": (Field("versions", Kind.UINTS), _optional("secret", Kind.BIN)),
        "OPEN": (
            _ID,
            _optional("name", Kind.TEXT),
            _optional("client", Kind.TEXT),
            _optional("ticket", Kind.ID),
            _optional("max_queue", Kind.UINT),
            _optional("idle_timeout_ms", Kind.UINT),
        ),
        "CLOSE": (_ID, _SESSION, _optional("drain", Kind.BOOL, default=False)),
        "INTERRUPT": (_SESSION,),
        "COMMAND": (_ID, _SESSION, Field("name", Kind.TEXT), Field("arguments", Kind.ARRAY)),
        "CONTROL_REPLY": (_ID, Field("number", Kind.UINT), Field("data", Kind.MAP)),
        "STATUS": (_ID, _optional("session", Kind.ID)),
        "PING": (),
        "WELCOME": (
            Field("version", Kind.UINT),
            Field("epoch", Kind.ID),
            Field("heartbeat_ms", Kind.UINT),
            Field("credit_bytes", Kind.UINT),
            Field("max_prompt_bytes", Kind.UINT),
            Field("max_requests", Kind.UINT),
            Field("clients", Kind.TEXTS),
        ),
        "ACCEPTED": (_ID, Field("position", Kind.UINT)),
        "OPENED": (
            _ID,
            _SESSION,
            Field("ticket", Kind.ID),
            Field("endpoint", Kind.TEXT),
            Field("incarnation", Kind.UINT),
        ),
        "DONE": (_ID,),
        "CONTROL": (
            _ID,
            Field("number", Kind.UINT),
            Field("kind", Kind.TEXT),
            Field("data", Kind.MAP),
        ),
        "REPORT": (_ID, Field("status", Kind.MAP)),
        "PONG": (),
    }
)
"""Every message by its type, with its keys beyond ``v`` and ``type``, in the order in which this
side writes them."""

OF_BROKER: Mapping[str, type[OfBroker]] = MappingProxyType(
    {"QUERY": Query, "CANCEL": Cancel, "CREDIT": Credit}
)
"""What a broker understands, by its type."""
OF_GATEWAY: Mapping[str, type[FromClient]] = MappingProxyType(
    {
        **OF_BROKER,
        "HELLO": Hello,
        "OPEN": Open,
        "CLOSE": Close,
        "INTERRUPT": Interrupt,
        "COMMAND": Command,
        "CONTROL_REPLY": ControlReply,
        "STATUS": Status,
        "PING": Ping,
    }
)
"""What a gateway understands, by its type."""
TO_CLIENT: Mapping[str, type[ToClient]] = MappingProxyType(
    {
        "MESSAGE": Message,
        "RESULT": Result,
        "ERROR": Error,
        "WELCOME": Welcome,
        "ACCEPTED": Accepted,
        "OPENED": Opened,
        "DONE": Done,
        "CONTROL": Control,
        "REPORT": Report,
        "PONG": Pong,
    }
)
"""What a client understands, by its type."""
