"""The phases of closing: drain, interrupt, stop, TERM, KILL, each with a deadline.

Pure: the clock and the counts come in, the phase to enter comes out.

Invariant: from any state the last phase is reached in bounded time, and no phase is entered
twice.
"""

from __future__ import annotations

import enum
import math


class Phase(enum.IntEnum):
    """How far closing has come; each is harsher than the one before."""

    DRAIN = 0
    INTERRUPT = 1
    STOP = 2
    TERM = 3
    KILL = 4
    DONE = 5


class Shutdown:
    """Decides when to get harsher.

    Args:
        now: ``time.monotonic()`` at the start.
        drain_s: time for what is outstanding to finish, ``None`` for as long as it takes.
        interrupt_s: time for interrupted turns to end.
        stop_s: time for clients to disconnect and workers to exit.
        term_s: time after SIGTERM.
        kill_s: time after SIGKILL, after which nothing is waited for any more.
    """

    def __init__(
        self,
        now: float,
        *,
        drain_s: float | None,
        interrupt_s: float,
        stop_s: float = 4.0,
        term_s: float = 1.0,
        kill_s: float = 2.0,
    ) -> None:
        self.phase = Phase.DRAIN
        self._limits = {
            Phase.DRAIN: drain_s,
            Phase.INTERRUPT: interrupt_s,
            Phase.STOP: stop_s,
            Phase.TERM: term_s,
            Phase.KILL: kill_s,
        }
        self._entered = now

    def hurry(self, now: float, *, drain_s: float | None, to: Phase = Phase.DRAIN) -> None:
        """Shorten what is left of the drain, or skip ahead to a harsher phase."""
        if self.phase is Phase.DRAIN and drain_s is not None:
            deadline = min(self.deadline(), now + drain_s)
            self._limits[Phase.DRAIN] = deadline - self._entered
        if self.phase < to:
            for phase in Phase:
                if self.phase <= phase < to:
                    self._limits[phase] = 0.0

    def deadline(self) -> float:
        """When the present phase ends by itself; infinite for never."""
        limit = self._limits.get(self.phase)
        return math.inf if limit is None else self._entered + limit

    def advance(self, now: float, *, busy: int, alive: int) -> Phase | None:
        """Give the next phase if it is time for it.

        Args:
            now: the clock.
            busy: requests and turns that have not ended.
            alive: worker processes that live.
        """
        if self.phase is Phase.DONE:
            return None
        is_over = now >= self.deadline()
        is_finished = not alive if self.phase >= Phase.STOP else not busy
        if not (is_over or is_finished):
            return None
        if self.phase >= Phase.STOP and not alive:
            self.phase = Phase.DONE
        else:
            self.phase = Phase(self.phase + 1)
        self._entered = now
        return self.phase
