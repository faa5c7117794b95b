"""Replacing workers that have not failed: by their age, by their memory, and all on request.

Pure: the clock comes in with every call, chance through ``jitter``. Nothing here counts as a
failure, and nothing here ends a worker amid a request: the pool and the brokers decide when.

Invariants: no incarnation's own limit is above the given one, or below 1; memory is looked at
only after an answer, and at most at half of those who gave one at a time; a roll leaves at least
half of the pool in service, and one worker in any case if it may have two.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping

from soloist.protocol.errors import SoloistError
from soloist.protocol.transitions import WorkerState
from soloist.supervisor.crew import NOT_YET_READY, Worker

LOOK_EVERY_S = 0.5
"""Between two looks at the memory of workers; each is looked at by every other look at most."""
SPREAD = 0.2
"""An incarnation's own limit of requests is up to this part below the given one."""
SESSIONS_AT_ONCE = 4
"""Conversations that a roll takes out of service at a time: each waits for a client to start."""


class RecyclePolicy:
    """How long a worker may live.

    Args:
        max_requests: most requests of one incarnation; ``None`` for no limit.
        max_memory_bytes: resident memory of its process tree that it may have between two
            requests; ``None`` for no limit.
        jitter: chance in [0, 1].
    """

    def __init__(
        self,
        *,
        max_requests: int | None = None,
        max_memory_bytes: int | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.max_requests = max_requests
        self.max_memory_bytes = max_memory_bytes
        self._jitter = jitter

    @property
    def is_unlimited(self) -> bool:
        """Whether a worker may live for ever."""
        return self.max_requests is None and self.max_memory_bytes is None

    def quota(self) -> float:
        """Most requests of the next incarnation: drawn, so that not all are spent at once."""
        if self.max_requests is None:
            return math.inf
        return max(1, round(self.max_requests * (1.0 - SPREAD * self._jitter())))

    def is_too_large(self, tree_rss_bytes: int) -> bool:
        """Whether a process tree has outgrown its limit."""
        return self.max_memory_bytes is not None and tree_rss_bytes > self.max_memory_bytes


class MemoryWatch:
    """Whose memory is to be measured, and when.

    Half of those who have answered since they were last looked at, the longest ago first, every
    ``LOOK_EVERY_S``: so each about once a second, and never all are found too large at once.

    Args:
        is_on: whether there is a limit at all.
    """

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self._fresh: dict[int, int] = {}  # number: incarnation that answered
        self._next_at = -math.inf

    def answered(self, number: int, incarnation: int) -> None:
        """A worker has ended a request: it may have grown."""
        if self.is_on:
            self._fresh[number] = incarnation

    def next_at(self) -> float:
        """When ``due`` wants to be called; may be never."""
        return self._next_at if self._fresh else math.inf

    def due(self, now: float) -> list[tuple[int, int]]:
        """Number and incarnation of those to be measured now."""
        if now < self.next_at():
            return []
        self._next_at = now + LOOK_EVERY_S
        chosen = list(self._fresh.items())[: -(-len(self._fresh) // 2)]
        for number, _ in chosen:
            del self._fresh[number]
        return chosen

    def stop(self) -> None:
        """Measure no more."""
        self.is_on = False
        self._fresh.clear()


class Roll:
    """A restart of all the workers of a pool that there are when it begins, a few at a time.

    Args:
        size: most workers of the pool.
    """

    def __init__(self, size: int) -> None:
        self.failure: SoloistError | None = None
        """Why the last one ended early, with workers left that were not replaced."""
        self._size = size
        self._due: dict[int, None] = {}
        self._wanted = 0  # workers that there are to be meanwhile
        self._kept = 0  # of these, in service

    @property
    def is_active(self) -> bool:
        """Whether a worker of before lives."""
        return bool(self._due)

    def begin(self, numbers: Iterable[int]) -> None:
        """Begin with these workers, unless one is under way: then this joins that one."""
        if self._due:
            return
        self.failure = None
        self._due = dict.fromkeys(numbers)
        present = len(self._due)
        # A lone worker that might have another one beside it gets that first.
        self._kept = max(present - max(1, present // 2), min(1, self._size - 1))
        self._wanted = max(present, self._kept + 1)

    def end(self, failure: SoloistError | None = None) -> None:
        """Replace no more."""
        self._due.clear()
        self.failure = failure

    def forget(self, number: int) -> None:
        """A worker has ended, for whatever reason."""
        self._due.pop(number, None)

    def missing(self, workers: Mapping[int, Worker]) -> int:
        """How many workers are to be started although nobody waits for them."""
        return self._wanted - len(workers) if self._due else 0

    def next(self, workers: Mapping[int, Worker]) -> Worker | None:
        """The worker that may go now, if there is one: it must be told before this is asked again.

        One that has not connected serves nobody; one in service goes if enough others are.
        """
        if not self._due:
            return None
        in_service = sum(worker.state is WorkerState.READY for worker in workers.values())
        leaving = NOT_YET_READY
        if in_service > self._kept:
            leaving |= {WorkerState.READY}
        return next((workers[n] for n in self._due if workers[n].state in leaving), None)


class Gate:
    """Lets so many sessions be out of service at a time; the others wait for a place.

    Args:
        places: most that are out.
    """

    def __init__(self, places: int = SESSIONS_AT_ONCE) -> None:
        self._places = places
        self._out: set[int] = set()
        self._waiting: dict[int, None] = {}

    def enter(self, number: int) -> bool:
        """Take a place; if there is none, stand in line for one."""
        if len(self._out) < self._places:
            self._out.add(number)
            self._waiting.pop(number, None)
            return True
        self._waiting[number] = None
        return False

    def leave(self, number: int) -> None:
        """Be in service again, or over."""
        self._out.discard(number)
        self._waiting.pop(number, None)

    def called(self) -> list[int]:
        """Who has waited and may enter now; who wants it no more need not."""
        if not self._waiting:
            return []
        called = list(self._waiting)[: self._places - len(self._out)]
        for number in called:
            del self._waiting[number]
        return called
