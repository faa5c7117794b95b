"""Processes whose conversation has ended, kept for a while for the next one.

Starting a process takes ten times what a new client in one that is there takes. Pure: the clock
comes in with every call; :mod:`soloist.supervisor.workers` does to them what is said here.

Invariants: what is taken is kept by nobody; one that is not to be used again is never given, and
is counted until it has ended; of those kept, the last that came is given, so that the others grow
old.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from soloist.supervisor.crew import STOP_S

MOST = 32
"""So many are kept."""
KEPT_S = 30.0
"""So long each."""

Process = TypeVar("Process")


class Spares(Generic[Process]):
    """What is there for the next conversation."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, Process]] = deque()  # with its last moment, by that
        self._leaving: dict[Process, float] = {}  # by when it has to be gone
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Spares: {len(self._kept)} kept, {len(self._leaving)} leaving>"

    def __len__(self) -> int:
        """How many there are, those that have been dismissed included."""
        return len(self._kept) + len(self._leaving)

    def __iter__(self) -> Iterator[Process]:
        return iter([*(process for _, process in self._kept), *self._leaving])

    @property
    def has_room(self) -> bool:
        """Whether another would be kept."""
        return len(self._kept) < MOST and not self._is_closed

    def keep(self, process: Process, now: float) -> None:
        """Keep one; ``has_room`` was asked before."""
        self._kept.append((now + KEPT_S, process))

    def take(self) -> Process | None:
        """Give one that is to be used, if there is one."""
        return self._kept.pop()[1] if self._kept else None

    def drop(self, process: Process) -> bool:
        """One has ended; whether it was among these."""
        count = len(self)
        self._kept = deque(entry for entry in self._kept if entry[1] is not process)
        self._leaving.pop(process, None)
        return len(self) < count

    def next_at(self) -> float:
        """When ``old`` or ``late`` has something to give; may be never."""
        due = min(self._leaving.values(), default=math.inf)
        return min(due, self._kept[0][0]) if self._kept else due

    def old(self, now: float) -> list[Process]:
        """Dismiss those that nobody has wanted for long: they are to be told to exit."""
        return self._dismiss(now, sum(due <= now for due, _ in self._kept))

    def all(self, now: float) -> list[Process]:
        """Dismiss all: they are to be told to exit."""
        return self._dismiss(now, len(self._kept))

    def close(self) -> None:
        """Keep no more from now on."""
        self._is_closed = True

    def late(self, now: float) -> list[Process]:
        """Those that should have been gone by now: they are to be killed."""
        late = [process for process, due in self._leaving.items() if due <= now]
        for process in late:
            self._leaving[process] = math.inf
        return late

    def _dismiss(self, now: float, count: int) -> list[Process]:
        dismissed = [self._kept.popleft()[1] for _ in range(count)]
        self._leaving.update(dict.fromkeys(dismissed, now + STOP_S))
        return dismissed
