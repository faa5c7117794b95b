"""Which ids a gateway knows, and what has become of them: so that none runs twice.

Owns, for every scope of ids, the requests without outcome, the outcomes that are kept for a while,
and the ids whose outcomes are not kept any more. Pure: the clock comes in with every call.

Invariants: all outcomes that are kept have at most ``max_bytes`` together, and at most ``max_ids``
ids are known without theirs; where there is too much, the scope that has most gives way, its oldest
first, so that nobody can drive out another's; a scope of which an id was forgotten says so, for
then what is sent again and is not known may have run.

Source: SPEC.md, section 2.5.
"""

from __future__ import annotations

import collections
import enum
import itertools
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_E = TypeVar("_E")

OVERHEAD_BYTES = 352
"""What an outcome costs beside its bytes: so the number of those that are kept is bounded, too."""
_MAX_EXPIRED = 256
"""So many are forgotten at once: nobody is heard meanwhile."""
_PART = 8
"""One eighth of a scope gives way at once, so that looking for the largest is rare."""


class Unknown(enum.Enum):
    """What may be said of an id that has neither a request nor an outcome."""

    NEW = "new"
    """It never came."""
    DOUBTFUL = "doubtful"
    """It may have come: ids of its scope have been forgotten."""
    FORGOTTEN = "forgotten"
    """It came, and its outcome is not kept any more."""


class Scope(Generic[_E]):
    """The ids of one owner.

    Args:
        name: what tells scopes apart.
        is_lasting: whether its owner can come back on another connection.
        has_forgotten: whether ids of it may have been known before.

    Attributes:
        requests: what has no outcome yet, by id.
        peers: its connections.
        queued_bytes: of the prompts among ``requests``.
        kept: outcomes with the time until which they are kept, by id, the oldest first.
        ids: those whose outcomes are not kept any more, the oldest first.
        kept_bytes: of ``kept``.
    """

    def __init__(self, name: Hashable, *, is_lasting: bool, has_forgotten: bool) -> None:
        self.name = name
        self.is_lasting = is_lasting
        self.has_forgotten = has_forgotten
        self.requests: dict[bytes, _E] = {}
        self.peers = 0
        self.queued_bytes = 0
        self.kept: collections.OrderedDict[bytes, tuple[float, bytes]] = collections.OrderedDict()
        self.ids: dict[bytes, None] = {}  # takes less than an OrderedDict, and gives way in parts
        self.kept_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost with it."""
        has_ids = self.is_lasting and self.ids
        return not (self.requests or self.kept or has_ids or self.peers)

    def forget_outcome(self) -> int:
        """Keep no more than the id of the oldest outcome; the bytes that it had."""
        request_id, (_, outcome) = self.kept.popitem(last=False)
        self.ids[request_id] = None
        size = len(outcome) + OVERHEAD_BYTES
        self.kept_bytes -= size
        return size


class Outcomes(Generic[_E]):
    """All scopes, and what is kept for them.

    Args:
        max_bytes: most bytes of outcomes that are kept.
        max_ids: most ids that are known without their outcomes.
        retention_s: how long an outcome is kept.
    """

    def __init__(self, max_bytes: int, max_ids: int, retention_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_ids = max_ids
        self._retention_s = retention_s
        self._scopes: dict[Hashable, Scope[_E]] = {}
        self._has_forgotten = False
        self._kept_bytes = 0
        self._ids = 0

    def __len__(self) -> int:
        """Scopes."""
        return len(self._scopes)

    @property
    def requests(self) -> int:
        """Requests without an outcome."""
        return sum(len(scope.requests) for scope in self._scopes.values())

    @property
    def kept(self) -> int:
        """Outcomes that are kept."""
        return sum(len(scope.kept) for scope in self._scopes.values())

    def scope(self, name: Hashable, *, is_lasting: bool) -> Scope[_E]:
        """Give a scope.

        Args:
            name: what tells scopes apart.
            is_lasting: whether its owner can come back on another connection; what is sent again
                by one that cannot was another's before.
        """
        scope = self._scopes.get(name)
        if scope is None:
            has_forgotten = self._has_forgotten or not is_lasting
            scope = Scope(name, is_lasting=is_lasting, has_forgotten=has_forgotten)
            self._scopes[name] = scope
        return scope

    def find(self, scope: Scope[_E], request_id: bytes) -> _E | bytes | Unknown:
        """What is known of an id: its request, its outcome, or neither."""
        if (request := scope.requests.get(request_id)) is not None:
            return request
        if (kept := scope.kept.get(request_id)) is not None:
            return kept[1]
        if request_id in scope.ids:
            return Unknown.FORGOTTEN
        return Unknown.DOUBTFUL if scope.has_forgotten else Unknown.NEW

    def begin(self, scope: Scope[_E], request_id: bytes, request: _E, size: int) -> None:
        """A request has come; its id is new.

        Args:
            scope: whose.
            request_id: what it is called.
            request: what ``find`` gives from here on.
            size: bytes of its prompt.
        """
        scope.requests[request_id] = request
        scope.queued_bytes += size

    def end(
        self, scope: Scope[_E], request_id: bytes, size: int, outcome: bytes, now: float
    ) -> None:
        """It has its outcome, which is kept for a while."""
        del scope.requests[request_id]
        scope.queued_bytes -= size
        cost = len(outcome) + OVERHEAD_BYTES
        scope.kept[request_id] = (now + self._retention_s, outcome)
        scope.kept_bytes += cost
        self._kept_bytes += cost
        while self._kept_bytes > self._max_bytes:
            largest = self._largest(lambda scope: scope.kept_bytes)
            for _ in range(1 + len(largest.kept) // _PART):
                self._forget_outcome(largest)

    def join(self, scope: Scope[_E]) -> None:
        """A connection has come."""
        scope.peers += 1

    def leave(self, scope: Scope[_E]) -> None:
        """A connection has gone."""
        scope.peers -= 1
        while scope.kept and not scope.is_lasting:
            self._forget_outcome(scope)
        self.tidy(scope)

    def tidy(self, scope: Scope[_E]) -> None:
        """Forget a scope of which there is nothing."""
        if scope.is_idle and self._scopes.get(scope.name) is scope:
            del self._scopes[scope.name]
            self._ids -= len(scope.ids)

    def expire(self, now: float) -> bool:
        """Forget what has been kept for long enough, a part of it; whether there is more."""
        left = _MAX_EXPIRED
        for scope in tuple(self._scopes.values()):
            while scope.kept and next(iter(scope.kept.values()))[0] <= now:
                if not left:
                    return True
                self._forget_outcome(scope)
                left -= 1
            self.tidy(scope)
        return False

    def _forget_outcome(self, scope: Scope[_E]) -> None:
        self._kept_bytes -= scope.forget_outcome()
        self._ids += 1
        if self._ids > self._max_ids:
            largest = self._largest(lambda scope: len(scope.ids))
            for request_id in [*itertools.islice(largest.ids, 1 + len(largest.ids) // _PART)]:
                del largest.ids[request_id]
                self._ids -= 1
            largest.has_forgotten = self._has_forgotten = True

    def _largest(self, size: Callable[[Scope[_E]], int]) -> Scope[_E]:
        return max(self._scopes.values(), key=size)
