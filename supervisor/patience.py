"""How much of what is no message a gateway puts up with from one connection.

A program with a defect gets its errors, and whoever wrote it sees them. One that goes on costs its
gateway more than all who ask something; it is not heard for a while, which costs next to nothing.

Pure: the time comes in with every call.
"""

from __future__ import annotations

import math

PERIOD_S = 10.0
"""Mistakes are counted for so long, and who has made too many is not heard for so long."""


class Patience:
    """What one connection may still say that is no message.

    Args:
        most: mistakes that are put up with in ``PERIOD_S``.
    """

    __slots__ = ("_count", "_ends_at", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._ends_at = -math.inf

    def __repr__(self) -> str:
        return f"<Patience: {self._count} of {self._most}>"

    def is_over(self, now: float) -> bool:
        """Whether nothing is heard just now."""
        return self._count > self._most and now < self._ends_at

    def mistake(self, now: float) -> bool:
        """Count one; whether it was one too many, so that nothing is heard for ``PERIOD_S``."""
        if self.is_over(now):
            return False  # it was said before, and waited in line
        if now >= self._ends_at:
            self._count, self._ends_at = 0, now + PERIOD_S
        self._count += 1
        is_one_too_many = self._count > self._most
        if is_one_too_many:
            self._ends_at = now + PERIOD_S
        return is_one_too_many
