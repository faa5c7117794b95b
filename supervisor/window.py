"""The bounded window between a consumer of ``map``/``imap`` and the I/O thread.

The consumer's thread puts requests in and takes outcomes out; the I/O thread settles them in
between. Memory is bounded by a count and by bytes, finished but unread outcomes included.

Invariant: the I/O thread never waits here; it wakes the consumer only if that sleeps on what has
just come.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from soloist.protocol.messages import Answer
from soloist.supervisor.request import Request

_ENTRY_BYTES = 1024  # what a request and its outcome take beside their payload, roughly


class Window:
    """Requests in flight and outcomes not yet read, of one ``map``.

    Args:
        max_requests: most requests inside.
        max_bytes: most bytes of prompts and answers inside; one request always fits.
        is_ordered: whether outcomes are taken in input order.
        is_fail_fast: whether the first error wakes the consumer, whatever it waits for.
    """

    def __init__(
        self, *, max_requests: int, max_bytes: int, is_ordered: bool, is_fail_fast: bool
    ) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._is_ordered = is_ordered
        self._is_fail_fast = is_fail_fast
        self._inside: deque[Request] = deque()  # ordered: all; unordered: the finished ones
        self._unfinished: dict[int, Request] = {}  # unordered only
        self._count = 0
        self._bytes = 0  # of prompts; written by the consumer alone
        self._answer_bytes = 0  # of settled answers; those are settled by the I/O thread alone
        self._taken_bytes = 0  # of answers taken; written by the consumer alone
        self._is_waiting = False
        self._awaited: Request | None = None
        self._wakeup = threading.Event()
        self._notify: Callable[[], None] | None = None  # in place of the event
        self.first_error: Request | None = None

    def __len__(self) -> int:
        return self._count

    def has_room(self) -> bool:
        """Whether one more request may be put in."""
        held = self._bytes + self._answer_bytes - self._taken_bytes
        return not self._count or (self._count < self._max_requests and held < self._max_bytes)

    def put(self, request: Request) -> None:
        """Put a request in, before it is handed over."""
        self._count += 1
        self._bytes += len(request.payload) + _ENTRY_BYTES
        if self._is_ordered:
            self._inside.append(request)
        else:
            self._unfinished[request.index] = request

    def is_ready(self) -> bool:
        """Whether ``take`` would give a request at once."""
        inside = self._inside
        return bool(inside) and inside[0].outcome is not None

    def take(self) -> Request:
        """Take the next finished request out; ``is_ready`` has said that there is one."""
        request = self._inside.popleft()
        self._unfinished.pop(request.index, None)
        self._count -= 1
        self._bytes -= len(request.payload) + _ENTRY_BYTES
        self._taken_bytes += _size(request)
        return request

    def wait(self, deadline: float | None) -> bool:
        """Sleep until ``is_ready`` or ``has_failed``; ``False`` if ``deadline`` came first."""
        while self.arm():
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                return False
            self._wakeup.wait(timeout)
        self._is_waiting = False
        return True

    def arm(self, notify: Callable[[], None] | None = None) -> bool:
        """Have the consumer woken by what it waits for; ``False`` if that is there already.

        Args:
            notify: called on the I/O thread, once, in place of waking who sleeps in ``wait``.
        """
        if self.is_ready() or self.has_failed():
            return False
        self._wakeup.clear()
        self._notify = notify
        self._awaited = self._inside[0] if self._is_ordered else None
        self._is_waiting = True
        return not (self.is_ready() or self.has_failed())  # it may have come before the flag

    def has_failed(self) -> bool:
        """Whether there is an error that the consumer must not wait for in order."""
        return self._is_fail_fast and self.first_error is not None

    def unsettled(self) -> list[Request]:
        """What has no outcome yet; for cancelling the rest."""
        inside = self._inside if self._is_ordered else self._unfinished.values()
        return [request for request in inside if request.outcome is None]

    def finished(self) -> list[Request]:
        """What has its outcome and was not taken."""
        return [request for request in tuple(self._inside) if request.outcome is not None]

    # -- the I/O thread's side ---------------------------------------------------------------

    def settle(self, request: Request) -> None:
        """Take note of an outcome and wake the consumer if it waits for it.

        The consumer calls it, too, for a prompt that cannot be sent.
        """
        is_error = type(request.outcome) is not Answer
        if not is_error:
            self._answer_bytes += _size(request)
        elif self.first_error is None:
            self.first_error = request
        if not self._is_ordered:
            self._inside.append(request)
        if self._is_waiting and (is_error or self._awaited is None or self._awaited is request):
            self._is_waiting = False
            (self._notify or self._wakeup.set)()

    def stream(self, request: Request, message: bytes) -> bool:
        """A window takes no parts."""
        del request, message
        return True


def _size(request: Request) -> int:
    outcome = request.outcome
    return len(outcome.text) + len(outcome.messages) if type(outcome) is Answer else 0
