"""What callers get: :class:`Result` and the immutable snapshots of ``stats()``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from soloist.protocol import codec
from soloist.protocol.content import Map, Message, from_map, function_messages
from soloist.protocol.messages import Answer
from soloist.supervisor.request import Request


class Result:
    """The answer to one prompt.

    A class with slots and lazy fields, for a ``map`` makes one per prompt. Results compare by
    identity.

    Attributes:
        index: position of the prompt in the input, from 0.
        prompt: the prompt as it was given.
        text: the answer's text.
        num_turns: turns of the conversation so far, this one included; 1 for a new one.
        duration_s: seconds that the turn took in the worker.
        attempts: how often the prompt was given to a worker that may have run it.
        worker: number of the worker that answered.
    """

    __slots__ = (
        "_encoded",
        "attempts",
        "duration_s",
        "index",
        "num_turns",
        "prompt",
        "text",
        "worker",
    )

    def __init__(self, request: Request, answer: Answer) -> None:
        self.index = request.index
        self.prompt = request.prompt
        self.text = answer.text
        self.num_turns = answer.num_turns
        self.duration_s = answer.duration_s
        self.attempts = request.attempts
        self.worker = request.worker
        self._encoded = answer.messages

    def __repr__(self) -> str:
        return f"<Result {self.index} {self.text!r:.60}>"

    @property
    def messages(self) -> list[Message]:
        """Every message of the turn, decoded on each access; the last is a ``ResultMessage``."""
        if not self._encoded:
            return function_messages(
                self.text, num_turns=self.num_turns, duration_s=self.duration_s
            )
        return [from_map(value) for value in codec.decode_maps(self._encoded)]

    @property
    def usage(self) -> Map | None:
        """Token usage as the client reported it, ``None`` if it did not."""
        return self._last().get("usage")

    @property
    def cost_usd(self) -> float | None:
        """Cost in US dollars as the client reported it, ``None`` if it did not."""
        return self._last().get("total_cost_usd")

    def _last(self) -> dict[str, Any]:
        maps = codec.decode_maps(self._encoded)
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
