"""The supervisor's side of the lane to one worker: the short way for short messages.

See :mod:`soloist.protocol.sequence` for what a lane is. Both ends stay open here, so that what a
worker has sent can be read after its death, and its end wakes nobody: the process's does.
Nothing here waits. Owned by the I/O thread once the worker is known to it.
"""

from __future__ import annotations

import os
import socket
from typing import Generic, TypeVar

from soloist.protocol.sequence import LANE_BYTES, InOrder, numbered

_T = TypeVar("_T")


class Lane(Generic[_T]):
    """Sends to and receives from one worker, as far as messages are short.

    Attributes:
        theirs: descriptor of the worker's end.
        heard: puts what the worker says in order, whichever way it comes.
    """

    def __init__(self) -> None:
        self._ours, self._worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        os.set_blocking(self._ours.fileno(), False)
        os.set_blocking(self._worker_end.fileno(), False)
        self.theirs = self._worker_end.fileno()
        self.heard: InOrder[_T] = InOrder()
        self._said = 0

    def fileno(self) -> int:
        """Descriptor that is readable as long as ``receive`` would give something."""
        return self._ours.fileno()

    def next(self, payload: bytes) -> bytes:
        """Number a message that is to be sent; ``sent`` follows if it is."""
        return numbered(self._said + 1, payload)

    def sent(self) -> None:
        """The numbered message went, whichever way."""
        self._said += 1

    def send(self, data: bytes) -> bool:
        """Send a numbered message; ``False`` if it has to go the other way."""
        if len(data) > LANE_BYTES:
            return False
        try:
            self._ours.send(data)
        except OSError:  # full, or the system takes less in one message
            return False
        return True

    def receive(self) -> bytes | None:
        """Take the next numbered message, if there is one."""
        try:
            return self._ours.recv(LANE_BYTES)
        except OSError:  # none is there, or this side has closed it
            return None

    def close(self) -> None:
        """Close both ends here; the worker keeps its own."""
        self._ours.close()
        self._worker_end.close()
