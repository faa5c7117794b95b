"""What callers get: :class:`Result` and the immutable snapshots of ``stats()``."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import msgspec

from soloist.protocol import codec
from soloist.protocol.codec import Prompt
from soloist.protocol.content import Map, Message, from_map, function_messages
from soloist.protocol.messages import Answer
from soloist.supervisor.request import Request

_DURATION = struct.Struct("=d")


class Turn(NamedTuple):
    """What is known of a turn beside its text; ``messages`` are encoded, empty for a callable."""

    num_turns: int
    duration_s: float
    attempts: int
    worker: int
    messages: bytes

    def of(self, _index: int) -> Turn:
        """This one."""
        return self


class ChunkTurns:
    """The turns of prompts that were answered together by a callable.

    Args:
        first: position of the first prompt in the input.
        durations_s: of each, native doubles.
        worker: number of their worker.
    """

    __slots__ = ("_durations_s", "_first", "_worker")

    def __init__(self, first: int, durations_s: bytes, worker: int) -> None:
        self._first = first
        self._durations_s = durations_s
        self._worker = worker

    def of(self, index: int) -> Turn:
        """The turn of the prompt in that position of the input."""
        (duration_s,) = _DURATION.unpack_from(
            self._durations_s, _DURATION.size * (index - self._first)
        )
        return Turn(1, duration_s, 1, self._worker, b"")


Turns: TypeAlias = Turn | ChunkTurns
_new_turn = functools.partial(tuple.__new__, Turn)
"""Its constructor takes twice as long; one is made per prompt."""


class Result(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The answer to one prompt.

    A ``map`` makes one per prompt, so it has few fields, is made in C and is no concern of the
    garbage collector, which would look at all results again and again while there come more of
    them; what is rarely asked for is looked up. Results compare by identity.

    Attributes:
        index: position of the prompt in the input, from 0.
        prompt: the prompt as it was given.
        text: the answer's text.
        num_turns: turns of the conversation so far, this one included; 1 for a new one.
        duration_s: seconds that the turn took in the worker.
        attempts: how often the prompt was given to a worker that may have run it.
        worker: number of the worker that answered.
    """

    index: int
    prompt: Prompt
    text: str
    _turns: Turns

    @classmethod
    def of(cls, request: Request, answer: Answer) -> Result:
        """What the caller of a request gets for its answer."""
        _, duration_s, text, num_turns, messages = answer
        turn = _new_turn((num_turns, duration_s, request.attempts, request.worker, messages))
        return cls(request.index, request.prompt, text, turn)

    def __repr__(self) -> str:
        return f"<Result {self.index} {self.text!r:.60}>"

    @property
    def num_turns(self) -> int:
        """See above, as the next three."""
        return self._turns.of(self.index).num_turns

    @property
    def duration_s(self) -> float:
        """Seconds in the worker."""
        return self._turns.of(self.index).duration_s

    @property
    def attempts(self) -> int:
        """Attempts so far."""
        return self._turns.of(self.index).attempts

    @property
    def worker(self) -> int:
        """Its number."""
        return self._turns.of(self.index).worker

    @property
    def messages(self) -> list[Message]:
        """Every message of the turn, decoded on each access; the last is a ``ResultMessage``."""
        turn = self._turns.of(self.index)
        if not turn.messages:
            return function_messages(
                self.text, num_turns=turn.num_turns, duration_s=turn.duration_s
            )
        return [from_map(value) for value in codec.decode_maps(turn.messages)]

    @property
    def usage(self) -> Map | None:
        """Token usage as the client reported it, ``None`` if it did not."""
        return self._last().get("usage")

    @property
    def cost_usd(self) -> float | None:
        """Cost in US dollars as the client reported it, ``None`` if it did not."""
        return self._last().get("total_cost_usd")

    def _last(self) -> dict[str, Any]:
        maps = codec.decode_maps(self._turns.of(self.index).messages)
        return maps[-1] if maps else {}


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker at the moment of the snapshot.

    ``state`` is one of ``starting``, ``connecting``, ``ready``, ``retiring`` (it ends what it runs
    and gets no more), ``stopping``; ``running`` counts the requests it holds, ``answered`` those
    of this incarnation. ``busy_s`` is how long it has had the request that it runs, 0 without one;
    ``silent_s`` how long it has said nothing: an idle worker has no reason to, a busy client is
    asked for a sign of life every now and then (see ``wedge_after_s``), and a sync callable cannot
    give one before its answer.
    """

    number: int
    incarnation: int
    pid: int
    state: str
    running: int
    answered: int
    busy_s: float = 0.0
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SessionStats:
    """One session at the moment of the snapshot.

    ``name`` is empty for an owned session. ``state`` is one of ``starting``, ``idle``,
    ``running``, ``draining`` (the rest of a turn that nobody wants), ``lost``, ``closing``.
    ``queued`` requests wait, ``answered`` turns have ended in all incarnations. ``pid`` is its
    worker's, 0 while there is none; ``busy_s`` and ``silent_s`` are as in ``WorkerStats``.
    """

    name: str
    state: str
    incarnation: int
    endpoint: str
    queued: int
    answered: int
    pid: int
    busy_s: float = 0.0
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Stats:
    """A Supervisor at one moment.

    ``queued`` requests wait for a worker, ``running`` ones are held by one; ``answered``,
    ``failed`` and ``cancelled`` count outcomes since the start (timeouts and lost requests are
    failures); ``restarts`` counts workers that replaced an earlier one, for whatever reason.
    ``oldest_running_s`` is the longest ``busy_s`` of all workers, those of sessions included:
    whether the Supervisor makes progress, where everything else only says that it lives.
    """

    size: int
    workers: tuple[WorkerStats, ...]
    queued: int
    running: int
    answered: int
    failed: int
    cancelled: int
    restarts: int
    is_closed: bool
    sessions: tuple[SessionStats, ...] = ()
    oldest_running_s: float = 0.0
