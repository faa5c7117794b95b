"""One frozen type per message between a supervisor and its own workers.

This is the internal contract; it may change with every release. A *lease* is the number under
which one worker holds one request: it counts up from 1 in every incarnation, so that a late
reply can never be taken for another's. Pure data; :mod:`soloist.protocol.codec` puts it on the
wire.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from soloist.protocol.errors import ErrorInfo

VERSION = 1
"""Version of the internal contract; a worker states it in :class:`Loaded`."""


class Lease(NamedTuple):
    """One request in the hands of one worker.

    ``prompt`` is the encoded prompt (see ``codec.encode_prompt``); ``is_streamed`` asks for every
    message as it arrives, not for the answer alone.
    """

    number: int
    prompt: bytes
    is_streamed: bool


class Run(NamedTuple):
    """Supervisor -> worker: work through these leases in order.

    A lease may run only once its number has been read from the grant pipe. ``acked`` is the
    highest lease whose outcome the supervisor has; the ledger may forget up to there.
    """

    leases: tuple[Lease, ...]
    acked: int


class Chunk(NamedTuple):
    """Supervisor -> worker: run these prompts, all text, as leases ``number``, ``number + 1``, ...

    Each may run only once its number has been read from the grant pipe, as with :class:`Run`. For
    sync callables only.
    """

    number: int
    prompts: tuple[str, ...]
    acked: int


class Interrupt(NamedTuple):
    """Supervisor -> worker: end this lease's turn early, drain it, then answer."""

    lease: int


class Stop(NamedTuple):
    """Supervisor -> worker: disconnect the client and exit.

    With ``may_stay`` the process may say :class:`Vacant` instead.
    """

    may_stay: bool = False


class Reuse(NamedTuple):
    """Supervisor -> vacant worker: hold another client, as one that was just started would.

    ``restore`` is the snapshot of the conversation to continue; empty for a new one.
    """

    restore: bytes


class Ping(NamedTuple):
    """Supervisor -> worker: say that your event loop turns. Sync callables are never asked."""


class Command(NamedTuple):
    """Supervisor -> worker: call a method of the client that is no turn (``set_model``, ...).

    ``arguments`` is the encoded list of positional arguments; ``number`` comes back in
    :class:`Done` or :class:`Refused`.
    """

    number: int
    name: str
    arguments: bytes


class ControlReply(NamedTuple):
    """Supervisor -> worker: the caller's word on the :class:`Control` of that number.

    ``data`` is the encoded reply, a map.
    """

    number: int
    data: bytes


class Loaded(NamedTuple):
    """Worker -> supervisor: the user's code is loaded; the client connects next."""

    version: int
    pid: int
    is_interruptible: bool


class Ready(NamedTuple):
    """Worker -> supervisor: the client is connected."""


class Vacant(NamedTuple):
    """Worker -> supervisor: the client is gone and has left nothing; what is next, Reuse or Stop?

    Whatever was said to the client's turns is of no account from here on, either way.
    """


class Broken(NamedTuple):
    """Worker -> supervisor: the client cannot be loaded or connected; the worker exits.

    ``is_loaded`` says that the user's code had been loaded: ``Loaded`` may be lost on its way.
    """

    is_loaded: bool
    error: ErrorInfo


class Snapshot(NamedTuple):
    """Worker -> supervisor: what a replacement needs to continue this conversation.

    ``data`` is encoded and opaque to the supervisor; empty if the client can give nothing, and
    then what it gave before holds no longer. Written to the ledger before the outcome of
    ``lease``, the turn it includes; ``lease`` is 0 before the first turn. Session workers only.
    """

    lease: int
    data: bytes


class Control(NamedTuple):
    """Worker -> supervisor: the client asks its caller (permissions, hooks) during ``lease``.

    ``data`` is an encoded map; ``kind`` says what is asked.
    """

    number: int
    lease: int
    kind: str
    data: bytes


class Pong(NamedTuple):
    """Worker -> supervisor: the event loop turns."""


class Done(NamedTuple):
    """Worker -> supervisor: the command of that number was carried out."""

    number: int


class Refused(NamedTuple):
    """Worker -> supervisor: the command of that number failed."""

    number: int
    error: ErrorInfo


class Streamed(NamedTuple):
    """Worker -> supervisor: one encoded message of a streamed lease, as it arrived."""

    lease: int
    message: bytes


class Answer(NamedTuple):
    """Worker -> supervisor: the lease's turn ended with a result.

    ``messages`` is the encoded list of the turn's messages, empty for a bare callable.
    ``duration_s`` is the turn's wall time in the worker.
    """

    lease: int
    duration_s: float
    text: str
    num_turns: int
    messages: bytes


class Answers(NamedTuple):
    """Worker -> supervisor: leases of a chunk that follow each other were answered.

    ``durations`` holds a native double for each text: seconds from one answer to the next.
    """

    lease: int
    durations: bytes
    texts: tuple[str, ...]


class Failure(NamedTuple):
    """Worker -> supervisor: the lease's turn ended with an error."""

    lease: int
    duration_s: float
    error: ErrorInfo


ToWorker: TypeAlias = Run | Chunk | Interrupt | Stop | Reuse | Command | ControlReply | Ping
ToSupervisor: TypeAlias = (
    Loaded
    | Ready
    | Vacant
    | Broken
    | Snapshot
    | Control
    | Pong
    | Done
    | Refused
    | Streamed
    | Answer
    | Answers
    | Failure
)
WireMessage: TypeAlias = ToWorker | ToSupervisor
Outcome: TypeAlias = Answer | Answers | Failure
