"""The supervisor's side of the lane to one worker: the short way for short messages.

See :mod:`soloist.protocol.lane` for what a lane is. Both ends stay open here, so that what a
worker has sent can be read after its death, and its end wakes nobody: the process's does.
Nothing here waits. Owned by the I/O thread once the worker is known to it.
"""

from __future__ import annotations

import socket

from soloist.protocol.lane import LANE_BYTES, Ways


class Lane:
    """Sends to and receives from one worker, as far as messages are short.

    Attributes:
        theirs: descriptor of the worker's end.
        ways: which way a message to the worker goes.
    """

    def __init__(self) -> None:
        self._ours, self._worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._ours, self._worker_end):
            end.settimeout(0)  # also where the program has set a default for all sockets
            # As far as the system allows; it counts more than what is sent.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LANE_BYTES)
        self.theirs = self._worker_end.fileno()
        self.ways = Ways(is_spoken_to=True)

    def fileno(self) -> int:
        """Descriptor that is readable as long as ``receive`` would give something."""
        return self._ours.fileno()

    def send(self, data: bytes) -> bool:
        """Send a message; ``False`` if there is no room for it."""
        try:
            self._ours.send(data)
        except OSError:  # full, or the system takes less in one message
            return False
        return True

    def receive(self, buffer: memoryview) -> memoryview | None:
        """Take the next message, if there is one, into a buffer of ``LANE_BYTES``."""
        try:
            return buffer[: self._ours.recv_into(buffer)]
        except OSError:  # none is there, or this side has closed it
            return None

    def close(self) -> None:
        """Close both ends here; the worker keeps its own."""
        self._ours.close()
        self._worker_end.close()
