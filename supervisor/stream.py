"""The bounded stream of one request's messages, from the I/O thread to its reader.

Invariants: the buffer never holds more than ``max_bytes``, or one message if that alone is more;
a reader that falls behind by more costs its own request and nobody else's; what is read has no
gaps, for nothing is taken any more after a message that was refused.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from soloist.supervisor.request import Request


class Stream:
    """Messages of one request, as they arrive.

    Args:
        max_bytes: most bytes that wait for the reader.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._messages: deque[bytes] = deque()
        self._bytes = 0
        self._is_behind = False
        self._settled: Request | None = None
        self._condition = threading.Condition()
        self._notify: Callable[[], None] | None = None

    def next(self) -> bytes | None:
        """Wait for the next encoded message; ``None`` when the request has its outcome."""
        with self._condition:
            while not self._messages and self._settled is None:
                self._condition.wait()
            if not self._messages:
                return None
            message = self._messages.popleft()
            self._bytes -= len(message)
            return message

    def arm(self, notify: Callable[[], None]) -> bool:
        """Have the reader told when ``next`` need not wait; ``False`` if it need not now.

        Args:
            notify: called on the I/O thread, once.
        """
        with self._condition:
            if self._messages or self._settled is not None:
                return False
            self._notify = notify
            return True

    # -- the I/O thread's side ---------------------------------------------------------------

    def settle(self, request: Request) -> None:
        """The request has its outcome."""
        with self._condition:
            self._settled = request
            self._wake()

    def stream(self, request: Request, message: bytes) -> bool:
        """Take one message; ``False`` if the reader is too far behind for it."""
        del request
        with self._condition:
            if self._messages and self._bytes + len(message) > self._max_bytes:
                self._is_behind = True
            if self._is_behind:
                return False
            self._messages.append(message)
            self._bytes += len(message)
            self._wake()
            return True

    def _wake(self) -> None:
        self._condition.notify()
        if self._notify is not None:
            notify, self._notify = self._notify, None
            notify()
