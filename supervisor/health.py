"""Which workers are wedged: they have something to do and make no progress.

Owns what is known of each worker that is expected to make progress. Makes rounds: who is silent
is looked at (is the process stopped?) and, if it has an event loop, asked for a sign of life. Pure:
the clock comes in, actions come out; ``seen`` and the workers' ``heard_at`` bring the answers.

Invariants: no rounds are made while nobody is expected to make progress; whoever says anything is
not wedged; a sync callable is never asked, for it cannot be told from a slow one; time that the
I/O thread itself lost (the process was stopped, a C call held the interpreter) counts against
nobody, and nothing is decided on what was found amid it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

from soloist.protocol.transitions import WorkerState
from soloist.supervisor.crew import Look, Ping, Wedged, Worker

LOOK_S = 1.0
"""Silence after which a process is looked at, and again after as long. Stopped at two looks in a
row is stopped: a tool may stop a process for a moment."""
EXIT_S = 5.0
"""How long a worker that is to exit may take; its client has 4 s to disconnect."""
_ASK_AFTER = 1 / 8
"""Part of ``wedge_after_s`` after which a silent event loop is asked."""
_SHORTEST_ROUND_S = 0.05
_LOOKS_APART_S = 0.75 * LOOK_S
"""Looks are made apart from here, sooner or later: nearer to each other they count as one."""

Finding: TypeAlias = Ping | Look | Wedged


def is_expected(worker: Worker) -> bool:
    """Whether the worker has something to do; not one whose end has been seen to."""
    if worker.wedged:
        return False
    return worker.state is not WorkerState.READY or bool(worker.leases)


class _Watch:
    """What is known of one worker. Counts in seconds for which the I/O thread was awake."""

    __slots__ = (
        "asked_s",
        "heard_at",
        "incarnation",
        "is_looked_at",
        "silent_s",
        "stopped_at",
        "stopping_s",
        "unseen_s",
    )

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.heard_at = -math.inf
        self.silent_s = 0.0
        self.asked_s: float | None = None  # since it was asked
        self.is_looked_at = False  # a look is on its way
        self.unseen_s = 0.0  # since the last look, or word
        self.stopped_at: float | None = None  # when it was first seen stopped
        self.stopping_s = 0.0  # since it is to exit

    def go_on(self, worker: Worker, now: float, step_s: float) -> None:
        """Another ``step_s`` have passed since the last round."""
        if worker.heard_at == self.heard_at:
            self.silent_s += step_s
            self.unseen_s += step_s
            if self.asked_s is not None:
                self.asked_s += step_s
        else:  # it has said something, or is new here
            self.heard_at = worker.heard_at
            since = max(worker.heard_at, worker.busy_since)
            self.silent_s = self.unseen_s = min(now - since, step_s)
            self.asked_s = self.stopped_at = None
        if not step_s:
            self.stopped_at = None
        if worker.state is WorkerState.STOPPING:
            self.stopping_s += step_s


class Health:
    """Watches over workers.

    Args:
        wedge_after_s: how long an event loop that was asked may owe the answer; ``None`` for as
            long as it likes.

    Attributes:
        next_round: when ``check`` wants to be called; infinite for not before ``expect``.
    """

    def __init__(self, wedge_after_s: float | None) -> None:
        self.next_round = math.inf
        self._wedge_after_s = math.inf if wedge_after_s is None else wedge_after_s
        self._ask_after_s = self._wedge_after_s * _ASK_AFTER
        self._round_s = min(LOOK_S, max(_SHORTEST_ROUND_S, self._ask_after_s))
        self._last_round = 0.0
        self._watches: dict[int, _Watch] = {}

    def __repr__(self) -> str:
        silent = {number: watch.silent_s for number, watch in self._watches.items()}
        return f"<Health watches {silent}>"

    def expect(self, now: float) -> None:
        """Somebody has got something to do."""
        if self.next_round == math.inf:
            self._last_round = now
            self.next_round = now + self._round_s

    def check(self, now: float, expected: Iterable[Worker]) -> list[Finding]:
        """Make a round, when it is time for one and whatever came has been taken in.

        Args:
            now: the clock.
            expected: every worker that is expected to make progress.
        """
        if now < self.next_round:
            return []
        step_s = 0.0 if self._is_late(now) else min(now - self._last_round, self._round_s)
        watches: dict[int, _Watch] = {}
        findings: list[Finding] = []
        for worker in expected:
            watch = self._watches.get(worker.number)
            if watch is None or watch.incarnation != worker.incarnation:
                watch = _Watch(worker.incarnation)
            watch.go_on(worker, now, step_s)
            watches[worker.number] = watch
            findings += self._findings(worker, watch)
        self._watches = watches
        self._last_round = now
        self.next_round = now + self._round_s if watches else math.inf
        return findings

    def seen(self, number: int, incarnation: int, now: float, *, is_stopped: bool) -> list[Finding]:
        """A look has shown whether a process is stopped; ``False`` if nobody knows."""
        watch = self._watches.get(number)
        if watch is None or watch.incarnation != incarnation:
            return []
        watch.is_looked_at = False
        if not is_stopped or self._is_late(now):
            watch.stopped_at = None
        elif watch.stopped_at is None:
            watch.stopped_at = now
        elif now - watch.stopped_at >= _LOOKS_APART_S:
            return [Wedged(number, incarnation, "stopped (process state T)")]
        return []

    def _is_late(self, now: float) -> bool:
        """Whether this thread lost time: what came meanwhile may not even have reached it yet."""
        return now > self.next_round + self._round_s

    def _findings(self, worker: Worker, watch: _Watch) -> list[Finding]:
        number, incarnation = worker.number, worker.incarnation
        if watch.stopping_s >= EXIT_S:
            return [Wedged(number, incarnation, f"told to exit and still there after {EXIT_S:g} s")]
        has_loop = worker.is_interruptible and worker.state in _LOOPING
        if has_loop and watch.asked_s is not None and watch.asked_s >= self._wedge_after_s:
            reason = f"its event loop blocked for over {self._wedge_after_s:g} s"
            return [Wedged(number, incarnation, reason, is_blocked=True)]
        findings: list[Finding] = []
        if watch.unseen_s >= LOOK_S and not watch.is_looked_at:
            watch.is_looked_at = True
            watch.unseen_s = 0.0
            findings.append(Look(number, incarnation))
        if watch.silent_s >= self._ask_after_s and watch.asked_s is None and has_loop:
            watch.asked_s = 0.0
            findings.append(Ping(number))
        return findings


_LOOPING = frozenset({WorkerState.CONNECTING, WorkerState.READY, WorkerState.RETIRING})
"""States in which a client's event loop is there to answer; one that is to exit reads no more."""
