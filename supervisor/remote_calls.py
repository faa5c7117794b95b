"""What becomes of a gateway's answers: outcomes of requests, addresses, snapshots, words of agents.

No I/O. Each owner of a call takes its one outcome; called on the connection's thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from soloist.protocol import codec, public
from soloist.protocol.content import Map
from soloist.protocol.errors import RemoteProtocolError, SoloistError
from soloist.protocol.messages import Answer
from soloist.protocol.transitions import RequestEvent
from soloist.supervisor.link_actions import Answered
from soloist.supervisor.request import Request
from soloist.supervisor.results import SessionStats, Stats, WorkerStats

_T = TypeVar("_T")

Outcome: TypeAlias = Answered | SoloistError


class Turn:
    """A request of this side that is asked of a gateway.

    Args:
        request: whose sink gets everything.
        session: the name of its conversation, empty for none.
        on_over: told when it has its outcome.
    """

    def __init__(self, request: Request, session: str, on_over: Callable[[Request], None]) -> None:
        self.request = request
        self.session = session
        self._on_over = on_over

    def end(self, outcome: Outcome) -> None:
        """Settle the request."""
        request = self.request
        self._on_over(request)
        request.advance(RequestEvent.SETTLE)
        if isinstance(outcome, public.Result):
            request.order = outcome.sequence
            request.attempts = 1 if outcome.attempts is None else outcome.attempts
            request.worker = -1 if outcome.worker is None else outcome.worker
            request.settle(_answer(outcome))
        else:
            assert isinstance(outcome, SoloistError)
            request.settle(outcome)


class Afterwards(NamedTuple, Generic[_T]):
    """What is an answer, too: after one of these errors, this."""

    errors: tuple[type[SoloistError], ...]
    value: Callable[[], _T]


class Order(Generic[_T]):
    """Anything else that is asked of a gateway.

    Args:
        take: makes the answer of the outcome.
        afterwards: which errors are none.

    Attributes:
        answer: whoever asked waits for it.
    """

    def __init__(self, take: Callable[[Any], _T], afterwards: Afterwards[_T] | None) -> None:
        self.answer: Future[_T] = Future()
        self._take = take
        self._afterwards = afterwards

    def end(self, outcome: Outcome) -> None:
        """Answer."""
        if isinstance(outcome, SoloistError):
            self.fail(outcome)
            return
        try:
            answer = self._take(outcome)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for it
            self.fail(error)
        else:
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Answer with this error, unless it is none here."""
        if self._afterwards is not None and isinstance(error, self._afterwards.errors):
            self.answer.set_result(self._afterwards.value())
        else:
            self.answer.set_exception(error)


def _answer(result: public.Result) -> Answer:
    return Answer(0, result.duration_ms / 1000, result.text, result.num_turns, result.messages)


# -- what an agent asks ----------------------------------------------------------------------------


def reply_of(question: public.Control, data: bytes, max_bytes: int) -> Map:
    """Put what the control desk says into the gateway's words; whatever says nothing denies.

    Args:
        question: what was asked.
        data: the desk's encoded reply.
        max_bytes: largest that the gateway takes.
    """
    reply = codec.decode_value(data) if len(data) <= max_bytes else {"error": "it is too large"}
    if reply.keys() == {"error"}:
        return _denial(question, str(reply["error"]))
    if question.kind == "hook":
        output: Map = reply["output"] if isinstance(reply["output"], dict) else {}
        return output
    known: Map = reply
    return known


def _denial(question: public.Control, reason: str) -> Map:
    if question.kind == "permission":
        return {"behavior": "deny", "message": reason}
    if question.kind != "hook":
        return {"error": reason}
    asked = question.data.get("input")
    event = asked.get("hook_event_name") if isinstance(asked, dict) else None
    if event != "PreToolUse":
        return {}
    decision = {
        "hookEventName": event,
        "permissionDecision": "deny",
        "permissionDecisionReason": reason,
    }
    return {"hookSpecificOutput": decision}


# -- snapshots -------------------------------------------------------------------------------------


def stats_of(status: Map, client: str) -> Stats:
    """Give the snapshot of one client of the gateway.

    Raises:
        RemoteProtocolError: the report says nothing of it.
    """
    clients = status.get("clients")
    found = clients.get(client) if isinstance(clients, dict) else None
    if not isinstance(found, dict):
        raise RemoteProtocolError(f"the gateway's report says nothing of {client!r}")
    lists = {
        "workers": tuple(_made(WorkerStats, worker) for worker in _maps(found, "workers")),
        "sessions": tuple(_made(SessionStats, session) for session in _maps(found, "sessions")),
    }
    made: Stats = _made(Stats, {**found, **lists, "is_closed": False})
    return made


def session_stats_of(status: Map) -> SessionStats | None:
    """Give the snapshot of a conversation, ``None`` if it is over."""
    return _made(SessionStats, status) if status else None


def _maps(status: Map, key: str) -> list[Map]:
    values = status.get(key)
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


_EMPTY: Mapping[str, Any] = {"int": 0, "float": 0.0, "str": "", "bool": False}


def _made(cls: type[Any], values: Map) -> Any:
    """Fill the fields that a report has; one that is missing or of another type is empty."""
    made = {}
    for field in dataclasses.fields(cls):
        value, kind = values.get(field.name), str(field.type)
        empty = _EMPTY.get(kind, ())
        is_fitting = isinstance(value, float | int if kind == "float" else type(empty))
        made[field.name] = value if is_fitting else empty
    return cls(**made)
