"""When the I/O thread goes to sleep before it has decided what follows from an answer.

Whoever has an answer needs the interpreter's lock to go on, which the thread has until it sleeps;
and what is asked next has to be decided anyway, then with the rest.

Pure. Invariants: nobody waits for what is postponed; nothing is postponed twice.
"""

from __future__ import annotations

POSTPONED_S = 0.001
"""How long decisions wait if nothing else happens: epoll counts in milliseconds."""


class Postponement:
    """Says, turn by turn, whether decisions are postponed.

    Attributes:
        is_on: whether this turn's are left for the next, at most ``POSTPONED_S`` later.
    """

    def __init__(self) -> None:
        self.is_on = False

    def begin_turn(self, *, has_settled: bool, is_waited_for: bool) -> bool:
        """Whether this turn decides nothing.

        Args:
            has_settled: whether a request had its outcome in this turn.
            is_waited_for: whether a decision would be of use to anybody by now.
        """
        self.is_on = has_settled and not is_waited_for and not self.is_on
        return self.is_on
