"""Requests by the time at which something is due: a heap that forgets the settled lazily.

Pure. Invariant: entries of settled requests never outnumber the others by more than ``_SLACK``
plus their number after a ``sweep``; an entry of a request that is not settled is never lost.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush

from soloist.protocol.transitions import RequestState
from soloist.supervisor.request import Request

_SLACK = 64
"""So many settled entries are not worth a sweep."""


class Deadlines:
    """Requests in the order of their times; of equal ones, the lower ``order`` comes first.

    No two requests here have the same ``order``.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        """Entries, those of settled requests that are not swept yet included."""
        return len(self._heap)

    def add(self, request: Request) -> None:
        """Take in a request's deadline, if it has one."""
        if request.deadline is not None:
            heappush(self._heap, (request.deadline, request.order, request))

    def push(self, when: float, request: Request) -> None:
        """Take in a request whose time is ``when``."""
        heappush(self._heap, (when, request.order, request))

    def due(self, now: float) -> Request | None:
        """The first request whose time has come and that is not settled; it stays until ``pop``."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            if heap[0][2].state is not RequestState.SETTLED:
                return heap[0][2]
            heappop(heap)
        return None

    def pop(self) -> None:
        """Drop what ``due`` gave."""
        heappop(self._heap)

    def next(self) -> float:
        """The first time, which may be a settled request's; infinite for none."""
        return self._heap[0][0] if self._heap else math.inf

    def sweep(self, live_count: int) -> None:
        """Drop the settled if they outnumber the ``live_count`` others; call it after adding."""
        if len(self._heap) > 2 * live_count + _SLACK:
            self._heap = [e for e in self._heap if e[2].state is not RequestState.SETTLED]
            heapify(self._heap)

    def requests(self) -> list[Request]:
        """All that are not settled, in no order."""
        return [e[2] for e in self._heap if e[2].state is not RequestState.SETTLED]
