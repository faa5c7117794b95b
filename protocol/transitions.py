"""State tables: worker and request. Everything that decides a state lives in this file.

A table maps state -> event -> next state; a missing key *is* the error. Pure.

Worker::

    STARTING -loaded-> CONNECTING -ready-> READY -stop-> STOPPING -exited-> DEAD

A worker that exits from any state is DEAD. A worker whose client cannot start is STOPPING from
its ``broken`` on. Whether a READY worker is idle or busy is not a state: it follows from the
leases that it holds.

Request::

    QUEUED -lease-> LEASED -settle-> SETTLED
       ^               |
       +----revoke-----+        LEASED -interrupt-> DRAINING -settle-> SETTLED

A request in DRAINING has lost its caller's interest (cancelled, timed out, its stream closed):
whatever its worker still says of it is dropped. Every request reaches SETTLED exactly once.
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
    STOPPING = "stopping"
    DEAD = "dead"


class WorkerEvent(_Symbol):
    """What happens to a worker."""

    LOADED = "loaded"
    READY = "ready"
    BROKEN = "broken"
    STOP = "stop"
    EXITED = "exited"


class RequestState(_Symbol):
    """Where a request is in its life."""

    QUEUED = "queued"
    LEASED = "leased"
    DRAINING = "draining"
    SETTLED = "settled"


class RequestEvent(_Symbol):
    """What happens to a request."""

    LEASE = "lease"
    REVOKE = "revoke"
    INTERRUPT = "interrupt"
    SETTLE = "settle"


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
            WorkerEvent.STOP: WorkerState.STOPPING,
            WorkerEvent.EXITED: WorkerState.DEAD,
        },
        WorkerState.STOPPING: {
            # What a worker said before it heard of the stop changes nothing.
            WorkerEvent.LOADED: WorkerState.STOPPING,
            WorkerEvent.READY: WorkerState.STOPPING,
            WorkerEvent.BROKEN: WorkerState.STOPPING,
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
            RequestEvent.SETTLE: RequestState.SETTLED,
        },
        RequestState.DRAINING: {
            RequestEvent.SETTLE: RequestState.SETTLED,
        },
        RequestState.SETTLED: {},
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
