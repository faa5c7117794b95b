"""State tables: worker, request and session. Everything that decides a state lives in this file.

A table maps state -> event -> next state; a missing key *is* the error. Pure.

Worker::

    STARTING -loaded-> CONNECTING -ready-> READY -retire-> RETIRING -stop-> STOPPING -exited-> DEAD

A worker may be stopped from any state, and one that exits from any state is DEAD. One in RETIRING
ends what it runs and gets nothing more. A worker whose client cannot start is STOPPING from
its ``broken`` on. Whether a READY worker is idle or busy is not a state: it follows from the
leases that it holds.

Request::

    QUEUED -lease-> LEASED -settle-> SETTLED
       ^               |
       +----revoke-----+        LEASED -interrupt-> DRAINING -settle-> SETTLED
       |             retry
       +-due- DELAYED <-+       DELAYED -settle-> SETTLED

A request in DRAINING has lost its caller's interest (cancelled, timed out, its stream closed):
whatever its worker still says of it is dropped. One in DELAYED has failed and waits for its next
attempt. Every request reaches SETTLED exactly once.

Session::

    STARTING -ready-> IDLE -dispatch-> RUNNING -interrupt-> DRAINING
       ^               ^                  |                    |
       |               +------answer------+-------answer-------+
       +--exit-- (any of these, if the conversation can be continued; else -lose-> LOST)

    any -close-> CLOSING -exit-> CLOSED        LOST -close-> CLOSED

A session in DRAINING runs the rest of a turn that nobody wants. A LOST one answers everything
with an error until it is closed: it never begins again from a blank state by itself.

A client's connection to a gateway::

    NEW -connect-> GREETING -welcome-> OPEN      NEW, GREETING, OPEN -end-> OVER
     ^                | ^                | |
     +----silence-----+ +----unknown-----+ |
     +----------------silence--------------+

``UNKNOWN`` is the gateway's ``hello_required``: the connection is another one than it was.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias, TypeVar

from soloist.protocol.errors import LocalProtocolError


class _Symbol(enum.Enum):
    """A member is hashed by identity, in C: Enum's own hash costs more than the table look-up."""

    __hash__ = object.__hash__


class WorkerState(_Symbol):
    """Where a worker is in its life."""

    STARTING = "starting"
    CONNECTING = "connecting"
    READY = "ready"
    RETIRING = "retiring"
    STOPPING = "stopping"
    DEAD = "dead"


class WorkerEvent(_Symbol):
    """What happens to a worker."""

    LOADED = "loaded"
    READY = "ready"
    BROKEN = "broken"
    RETIRE = "retire"
    STOP = "stop"
    EXITED = "exited"


class RequestState(_Symbol):
    """Where a request is in its life."""

    QUEUED = "queued"
    LEASED = "leased"
    DRAINING = "draining"
    DELAYED = "delayed"
    SETTLED = "settled"


class RequestEvent(_Symbol):
    """What happens to a request."""

    LEASE = "lease"
    REVOKE = "revoke"
    INTERRUPT = "interrupt"
    RETRY = "retry"
    DUE = "due"
    SETTLE = "settle"


class SessionState(_Symbol):
    """Where a session is in its life."""

    STARTING = "starting"
    IDLE = "idle"
    RUNNING = "running"
    DRAINING = "draining"
    LOST = "lost"
    CLOSING = "closing"
    CLOSED = "closed"


class SessionEvent(_Symbol):
    """What happens to a session."""

    READY = "ready"
    DISPATCH = "dispatch"
    INTERRUPT = "interrupt"
    ANSWER = "answer"
    EXIT = "exit"
    LOSE = "lose"
    CLOSE = "close"


class LinkState(_Symbol):
    """Where a client's connection to a gateway is in its life."""

    NEW = "new"
    GREETING = "greeting"
    OPEN = "open"
    OVER = "over"


class LinkEvent(_Symbol):
    """What happens to a client's connection to a gateway."""

    CONNECT = "connect"
    WELCOME = "welcome"
    UNKNOWN = "unknown"
    SILENCE = "silence"
    END = "end"


_S = TypeVar("_S", bound=enum.Enum)
_E = TypeVar("_E", bound=enum.Enum)
Table: TypeAlias = Mapping[_S, Mapping[_E, _S]]

WORKER: Table[WorkerState, WorkerEvent] = MappingProxyType(
    {
        WorkerState.STARTING: {
            WorkerEvent.LOADED: WorkerState.CONNECTING,
            WorkerEvent.BROKEN: WorkerState.STOPPING,
            WorkerEvent.STOP: WorkerState.STOPPING,
            WorkerEvent.EXITED: WorkerState.DEAD,
        },
        WorkerState.CONNECTING: {
            WorkerEvent.READY: WorkerState.READY,
            WorkerEvent.BROKEN: WorkerState.STOPPING,
            WorkerEvent.STOP: WorkerState.STOPPING,
            WorkerEvent.EXITED: WorkerState.DEAD,
        },
        WorkerState.READY: {
            WorkerEvent.BROKEN: WorkerState.STOPPING,
            WorkerEvent.RETIRE: WorkerState.RETIRING,
            WorkerEvent.STOP: WorkerState.STOPPING,
            WorkerEvent.EXITED: WorkerState.DEAD,
        },
        WorkerState.RETIRING: {
            WorkerEvent.BROKEN: WorkerState.STOPPING,
            WorkerEvent.RETIRE: WorkerState.RETIRING,
            WorkerEvent.STOP: WorkerState.STOPPING,
            WorkerEvent.EXITED: WorkerState.DEAD,
        },
        WorkerState.STOPPING: {
            # What a worker said before it heard of the stop changes nothing.
            WorkerEvent.LOADED: WorkerState.STOPPING,
            WorkerEvent.READY: WorkerState.STOPPING,
            WorkerEvent.BROKEN: WorkerState.STOPPING,
            WorkerEvent.RETIRE: WorkerState.STOPPING,
            WorkerEvent.STOP: WorkerState.STOPPING,
            WorkerEvent.EXITED: WorkerState.DEAD,
        },
        WorkerState.DEAD: {},
    }
)

REQUEST: Table[RequestState, RequestEvent] = MappingProxyType(
    {
        RequestState.QUEUED: {
            RequestEvent.LEASE: RequestState.LEASED,
            RequestEvent.SETTLE: RequestState.SETTLED,
        },
        RequestState.LEASED: {
            RequestEvent.REVOKE: RequestState.QUEUED,
            RequestEvent.INTERRUPT: RequestState.DRAINING,
            RequestEvent.RETRY: RequestState.DELAYED,
            RequestEvent.SETTLE: RequestState.SETTLED,
        },
        RequestState.DRAINING: {
            RequestEvent.SETTLE: RequestState.SETTLED,
        },
        RequestState.DELAYED: {
            RequestEvent.DUE: RequestState.QUEUED,
            RequestEvent.SETTLE: RequestState.SETTLED,
        },
        RequestState.SETTLED: {},
    }
)

_DEATH: Mapping[SessionEvent, SessionState] = {
    SessionEvent.EXIT: SessionState.STARTING,
    SessionEvent.LOSE: SessionState.LOST,
    SessionEvent.CLOSE: SessionState.CLOSING,
}

SESSION: Table[SessionState, SessionEvent] = MappingProxyType(
    {
        SessionState.STARTING: {SessionEvent.READY: SessionState.IDLE, **_DEATH},
        SessionState.IDLE: {SessionEvent.DISPATCH: SessionState.RUNNING, **_DEATH},
        SessionState.RUNNING: {
            SessionEvent.ANSWER: SessionState.IDLE,
            SessionEvent.INTERRUPT: SessionState.DRAINING,
            **_DEATH,
        },
        SessionState.DRAINING: {SessionEvent.ANSWER: SessionState.IDLE, **_DEATH},
        SessionState.LOST: {SessionEvent.CLOSE: SessionState.CLOSED},
        SessionState.CLOSING: {
            # What happens before the worker hears of the end changes nothing.
            SessionEvent.READY: SessionState.CLOSING,
            SessionEvent.INTERRUPT: SessionState.CLOSING,
            SessionEvent.ANSWER: SessionState.CLOSING,
            SessionEvent.EXIT: SessionState.CLOSED,
        },
        SessionState.CLOSED: {},
    }
)

LINK: Table[LinkState, LinkEvent] = MappingProxyType(
    {
        LinkState.NEW: {
            LinkEvent.CONNECT: LinkState.GREETING,
            LinkEvent.END: LinkState.OVER,
        },
        LinkState.GREETING: {
            LinkEvent.WELCOME: LinkState.OPEN,
            # It is about what was said before the HELLO.
            LinkEvent.UNKNOWN: LinkState.GREETING,
            LinkEvent.SILENCE: LinkState.NEW,
            LinkEvent.END: LinkState.OVER,
        },
        LinkState.OPEN: {
            LinkEvent.WELCOME: LinkState.OPEN,
            LinkEvent.UNKNOWN: LinkState.GREETING,
            LinkEvent.SILENCE: LinkState.NEW,
            LinkEvent.END: LinkState.OVER,
        },
        LinkState.OVER: {},
    }
)


def advance(table: Table[_S, _E], state: _S, event: _E) -> _S:
    """Give the state that follows.

    Raises:
        LocalProtocolError: the table has no such transition; a defect in the caller.
    """
    try:
        return table[state][event]
    except KeyError:
        raise LocalProtocolError(f"{event} cannot happen in {state}") from None
