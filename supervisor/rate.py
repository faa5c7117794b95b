"""How often requests may be dispatched: a token bucket, and a pause that the service asked for.

Pure: the clock comes in. One :class:`Limiter` serves the pool and every session of a Supervisor;
all of them run on the I/O thread.

Invariants: within any ``t`` seconds at most ``burst + per_second * t`` tokens are taken, none
while dispatch is paused; ``has_token(now)`` is ``now >= next_at()``, to the last bit, so whoever
sleeps until ``next_at()`` gets a token and never wakes for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from soloist.protocol.errors import InvalidOptions, RateLimited, SoloistError

MAX_PAUSE_S = 3600.0
"""A service that asks for a longer pause is asked again after this one."""
_MOST = 1_000_000_000
"""Nobody needs a limit beyond; within, all times are finite and exact enough."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many requests may begin, all workers and sessions of a Supervisor taken together.

    Attributes:
        per_second: requests a second in the long run; fractions are fine.
        burst: how many may begin at once after a while without any.

    Raises:
        InvalidOptions: a number is out of its range; the caller's.
    """

    per_second: float
    burst: int = 1

    def __post_init__(self) -> None:
        rate: object = self.per_second
        burst: object = self.burst
        if not isinstance(rate, int | float) or isinstance(rate, bool):
            raise InvalidOptions(f"per_second must be a number, not {rate!r}")
        if not 1 / _MOST <= rate <= _MOST:  # nor is not-a-number
            raise InvalidOptions(f"per_second must be a number above 0, up to 1e9, not {rate!r}")
        if not isinstance(burst, int) or isinstance(burst, bool) or not 1 <= burst <= _MOST:
            raise InvalidOptions(f"burst must be a whole number from 1 to 1e9, not {burst!r}")


class Limiter:
    """Grants dispatches.

    Args:
        limit: the rate; ``None`` for no other limit than pauses.

    Attributes:
        is_free: whether nobody needs to ask: no rate is set, and no pause is on.
        paused_until: end of the last pause.
    """

    def __init__(self, limit: RateLimit | None = None) -> None:
        self.is_free = limit is None
        self.paused_until = 0.0
        self._limit = limit
        self._interval_s = 0.0 if limit is None else 1.0 / limit.per_second
        self._burst = 1 if limit is None else limit.burst
        # The bucket was last full at _since, and _taken tokens were taken from then on. Counting
        # is exact where adding up intervals is not: the last token of a burst would come late.
        self._since = 0.0
        self._taken = 0

    def __repr__(self) -> str:
        return f"<Limiter {self._limit} next_at={self.next_at():.3f}>"

    def has_token(self, now: float) -> bool:
        """Whether a request may be dispatched."""
        return now >= self.next_at()

    def next_at(self) -> float:
        """When the next request may be dispatched; in the past if one may be now."""
        is_due = self._since + (self._taken + 1 - self._burst) * self._interval_s
        return max(is_due, self.paused_until)

    def take(self, now: float) -> bool:
        """Take a token if there is one; to be followed by a dispatch."""
        if now < self.next_at():
            return False
        if self._since + self._taken * self._interval_s <= now:  # it is full again
            self._since, self._taken = now, 0
        self._taken += 1
        self.is_free = self._limit is None
        return True

    def pause_until(self, when: float) -> None:
        """Grant nothing before ``when``; a pause is never shortened."""
        if when > self.paused_until:
            self.paused_until = when
            self.is_free = False

    def heed(self, error: SoloistError, now: float) -> None:
        """Pause if a client was told to: all share the account that the service limits."""
        if isinstance(error, RateLimited) and error.retry_after_s:
            self.pause_until(now + min(error.retry_after_s, MAX_PAUSE_S))
