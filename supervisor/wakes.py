"""What the I/O thread sleeps on: descriptors, each with what is to be called when it is readable.

In the place of ``selectors``, which does more for everybody else and takes three times as long:
this is on the way of every request, twice. The cost does not grow with the descriptors that are
silent where there is ``epoll``; elsewhere there is ``poll``.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable


class Wakes:
    """Descriptors that are watched, level-triggered, for input."""

    def __init__(self) -> None:
        self._calls: dict[int, Callable[[], object]] = {}
        self._has_epoll = hasattr(select, "epoll")
        self._poll = select.epoll() if self._has_epoll else select.poll()

    def add(self, descriptor: int, call: Callable[[], object]) -> None:
        """Have ``call`` called when there is something to read."""
        self._poll.register(descriptor, select.POLLIN)  # epoll's flag is the same
        self._calls[descriptor] = call

    def remove(self, descriptor: int) -> None:
        """Forget a descriptor; before it is closed."""
        self._poll.unregister(descriptor)
        del self._calls[descriptor]

    def wait(self, timeout_s: float) -> list[int]:
        """Sleep until there is something to read; then see to it with ``call``."""
        timeout = timeout_s if self._has_epoll else math.ceil(timeout_s * 1000)
        return [descriptor for descriptor, _ in self._poll.poll(timeout)]

    def call(self, descriptors: list[int]) -> None:
        """Do what is to be done about these, unless they were removed meanwhile."""
        for descriptor in descriptors:
            if (call := self._calls.get(descriptor)) is not None:
                call()

    def close(self) -> None:
        """Watch nothing any more."""
        self._calls.clear()
        if (close := getattr(self._poll, "close", None)) is not None:  # poll has none
            close()
