"""When a dead worker may be replaced: intensity limit and jittered exponential backoff.

Pure: the clock comes in with every call, chance through ``jitter``. Only deaths before READY or
before an incarnation's first outcome are reported here; a worker that has worked is replaced at
once and never asked about.

Invariant: never more than ``max_restarts`` failures within any ``period_s`` without the limit
being reached.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from soloist.protocol.errors import SoloistError

_MAX_CAUSES = 5
"""So many of the last errors are kept."""
_LONGEST_S = 5.0
_LEAST_LONGEST_S = 0.5
"""However many failures are allowed: a start costs a process."""


def longest_delay_s(max_restarts: int, period_s: float) -> float:
    """The longest delay with which the limit can still be reached by one worker at a time.

    With longer ones the failures of a client that never starts would be too far apart, and
    whoever waits for it would wait for ever. Half of the period is left for the starts.
    """
    return max(_LEAST_LONGEST_S, min(_LONGEST_S, period_s / 2 / (max_restarts + 1)))


class RestartPolicy:
    """Intensity as OTP's supervisors have it, with backoff.

    Args:
        max_restarts: failures tolerated within ``period_s``.
        period_s: length of the sliding window in seconds.
        first_delay_s: delay after the first failure; it doubles with each further one in a row.
        max_delay_s: longest delay.
        jitter: gives a factor in [0, 1]; the delay is between half and all of the computed one.
    """

    def __init__(
        self,
        *,
        max_restarts: int,
        period_s: float,
        first_delay_s: float = 0.05,
        max_delay_s: float = _LONGEST_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._max_restarts = max_restarts
        self._period_s = period_s
        self._first_delay_s = first_delay_s
        self._max_delay_s = max_delay_s
        self._jitter = jitter
        self._failures: deque[float] = deque(maxlen=max_restarts + 1)
        self._causes: deque[SoloistError] = deque(maxlen=_MAX_CAUSES)
        self._in_a_row = 0
        self._not_before = 0.0

    @property
    def causes(self) -> tuple[SoloistError, ...]:
        """Why the last few died, newest last."""
        return tuple(self._causes)

    def failed(self, now: float, cause: SoloistError | None = None) -> None:
        """A worker died before it was of any use."""
        self._failures.append(now)
        if cause is not None:
            self._causes.append(cause)
        delay = min(self._first_delay_s * 2.0**self._in_a_row, self._max_delay_s)
        self._in_a_row = min(self._in_a_row + 1, 32)
        self._not_before = now + delay * (0.5 + 0.5 * self._jitter())

    def succeeded(self) -> None:
        """A worker gave its first outcome: the backoff begins anew."""
        self._in_a_row = 0
        self._not_before = 0.0

    def not_before(self) -> float:
        """Earliest time for the next worker: after the delay, and the window if that is full."""
        return max(self._not_before, self._exhausted_until())

    def is_exhausted(self, now: float) -> bool:
        """Whether the limit is reached; it is not any more once the window has passed."""
        return now < self._exhausted_until()

    def _exhausted_until(self) -> float:
        failures = self._failures
        if len(failures) > self._max_restarts and failures[-1] - failures[0] <= self._period_s:
            return failures[-1] + self._period_s
        return 0.0

    def describe(self) -> str:
        """The limit in words, for error messages."""
        return f"more than {self._max_restarts} failed starts within {self._period_s:g} s"
