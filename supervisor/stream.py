"""The bounded stream of one request's messages, from the I/O thread to its reader.

Invariants: the buffer never holds more than ``max_bytes``, or one message if that alone is more;
a reader that falls behind by more costs its own request and nobody else's; what is read has no
gaps, for nothing is taken any more after a message that was refused. The I/O thread never waits
here: there is no lock that a reader could hold.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

from soloist.supervisor.request import Request


class Stream:
    """Messages of one request, as they arrive.

    Args:
        max_bytes: most bytes that wait for the reader.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._taken_bytes = 0  # written by the I/O thread alone
        self._read_bytes = 0  # written by the reader alone
        self._is_behind = False
        self._is_over = False
        self._notify: Callable[[], None] | None = None

    def next(self) -> bytes | None:
        """Wait for the next encoded message; ``None`` when the request has its outcome."""
        if self._is_over:
            return None
        message = self._messages.get()
        if message is None:
            self._is_over = True
        else:
            self._read_bytes += len(message)
        return message

    def arm(self, notify: Callable[[], None]) -> bool:
        """Have the reader told when ``next`` need not wait; ``False`` if it need not now.

        Args:
            notify: called on the I/O thread, once; perhaps also if this gives ``False``.
        """
        self._notify = notify
        if self._is_over or not self._messages.empty():
            self._notify = None
            return False
        return True

    # -- the I/O thread's side ---------------------------------------------------------------

    def settle(self, request: Request) -> None:
        """The request has its outcome."""
        del request
        self._put(None)

    def stream(self, request: Request, message: bytes) -> bool:
        """Take one message; ``False`` if the reader is too far behind for it."""
        del request
        unread = self._taken_bytes - self._read_bytes
        if unread and unread + len(message) > self._max_bytes:
            self._is_behind = True
        if self._is_behind:
            return False
        self._taken_bytes += len(message)
        self._put(message)
        return True

    def _put(self, message: bytes | None) -> None:
        self._messages.put(message)
        notify, self._notify = self._notify, None
        if notify is not None:
            notify()
