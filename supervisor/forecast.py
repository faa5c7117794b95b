"""How long a prompt holds its worker, where that can be foretold.

Pure. What counts is the time from when a worker could begin a prompt to its answer, so that a
client which has to connect anew in between is not taken for a quick one.
"""

from __future__ import annotations

FORESEEN_S = 0.1
"""For slower prompts nothing is foretold: it would gain little, and who waits in vain would lose
more."""
STEADY = 1.25
"""The slowest lately may have taken so many times as long as the fastest, and no longer."""
LEAST_LEARNED = 8
"""Measurements before anything is foretold."""
_WEIGHT = 0.1
"""Of one measurement that makes the slowest faster or the fastest slower."""


class Forecast:
    """Learns from each answer.

    Attributes:
        seconds: what a prompt takes before it is late; 0 while that cannot be foretold.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._learned = 0
        self._slowest_s = self._fastest_s = 0.0

    def learn(self, seconds: float) -> None:
        """Take a measurement in: one that does not fit counts at once, and is slowly forgotten."""
        self._learned += 1
        slow, fast, weight = self._slowest_s, self._fastest_s, max(_WEIGHT, 1 / self._learned)
        slow += (seconds - slow) * (1.0 if seconds > slow else weight)
        fast += (seconds - fast) * (1.0 if seconds < fast else weight)
        self._slowest_s, self._fastest_s = slow, fast
        is_steady = self._learned >= LEAST_LEARNED and slow <= STEADY * fast
        self.seconds = slow if is_steady and slow <= FORESEEN_S else 0.0
