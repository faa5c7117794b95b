"""Messages that have been read and not yet obeyed: who has cost least of late goes first.

Not the first is served but the one that has taken least of the processor in the last seconds: who
asks now and then does not wait behind those who say more than there is time for, and these share
what is left.

Pure: it is told the time and what each message cost.

Invariants: what one connection said stays in order; whoever goes on being served soon has cost more
than who waits; what a connection has cost is forgotten in the second round after.

Source: forward decay (Cormode, Shkapenyuk, Srivastava, Xu, ICDE 2009): costs are weighted up as
time passes instead of down, so that those of the past need not be touched.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import math
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")

_DECAY_S = 1.0
"""In this time a cost loses 63 percent of its weight."""
_ROUND_S = 20.0
"""Then the weights begin anew, before they are too large for a float."""
_NOTHING_S = 1e-9
"""What weighs less then is forgotten."""


class Arrivals(Generic[_K, _T]):
    """A line for each connection that has said something.

    Args:
        max_count: most messages in all lines.
        max_bytes: with so many bytes in them no more are taken in; the last may be any size.
        account: on whose account a connection's messages are now; several may share one.
    """

    def __init__(
        self, max_count: int, max_bytes: int, account: Callable[[_K], Hashable] = lambda key: key
    ) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._lines: dict[_K, collections.deque[tuple[_T, int]]] = {}
        self._account = account
        self._costs: dict[Hashable, float] = {}  # of late, in seconds as of the round's begin
        self._served: Hashable = None
        self._heads: list[tuple[float, int, _K]] = []
        self._ties = itertools.count()
        self._begun_at = -math.inf
        self._count = self._bytes = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether no more should be added."""
        return self._count >= self._max_count or self._bytes >= self._max_bytes

    def add(self, key: _K, message: _T, size: int) -> None:
        """Take a message of so many bytes in."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = collections.deque()
            self._push(key)
        line.append((message, size))
        self._count += 1
        self._bytes += size

    def next(self) -> tuple[_K, _T]:
        """Give the message whose turn it is; there is one. Then say what it ``cost``."""
        while True:
            known, _, key = heapq.heappop(self._heads)
            self._served = self._account(key)
            if known >= self._costs.get(self._served, 0.0):
                break
            self._push(key)  # another connection has had something on the same account
        line = self._lines[key]
        message, size = line.popleft()
        if line:
            self._push(key)
        else:
            del self._lines[key]
        self._count -= 1
        self._bytes -= size
        return key, message

    def served(self, key: _K) -> None:
        """A message of this connection is served that was not ``add``-ed: ``cost`` follows."""
        self._served = self._account(key)

    def cost(self, seconds: float, now: float) -> None:
        """Say what the message took that was given last."""
        if now > self._begun_at + _ROUND_S:
            self._begin_round(now)
        weight = math.exp((now - self._begun_at) / _DECAY_S)
        self._costs[self._served] = self._costs.get(self._served, 0.0) + seconds * weight

    def _push(self, key: _K) -> None:
        cost = self._costs.get(self._account(key), 0.0)
        heapq.heappush(self._heads, (cost, next(self._ties), key))

    def _begin_round(self, now: float) -> None:
        """Weigh all anew, and forget what has no weight left."""
        weight = math.exp((self._begun_at - now) / _DECAY_S)
        self._begun_at = now
        weighed = ((account, cost * weight) for account, cost in self._costs.items())
        self._costs = {account: cost for account, cost in weighed if cost > _NOTHING_S}
        self._heads = [(cost * weight, tie, key) for cost, tie, key in self._heads]
        heapq.heapify(self._heads)  # some may have become equal
