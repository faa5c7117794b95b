"""Connections below ZeroMQ's own: halves of handshakes, of frames and of messages, in plain TCP."""

from __future__ import annotations

import contextlib
import random
import socket
from collections import deque

MAX_OPEN = 30
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
_READY_FRAME = b"\x04" + bytes([len(_READY)]) + _READY
HANDSHAKE = _GREETING + _READY_FRAME
"""All that a DEALER has to say before its first message."""
_MORE, _LONG = 1, 2


class RawPeers:
    """Opens a connection, says half of something, leaves it for a while, and closes it.

    Args:
        port: of the gateway on loopback.
        chance: decides everything.

    Attributes:
        opened: how many there were.
    """

    def __init__(self, port: int, chance: random.Random) -> None:
        self.opened = 0
        self._port = port
        self._chance = chance
        self._open: deque[socket.socket] = deque()

    def strike(self, payload: bytes) -> None:
        """Open one more; ``payload`` is what it sends a part of."""
        if len(self._open) >= MAX_OPEN:
            self._open.popleft().close()
        self.opened += 1
        with contextlib.suppress(OSError):  # whatever the gateway does with it is right
            peer = socket.create_connection(("127.0.0.1", self._port), timeout=5)
            self._open.append(peer)
            peer.sendall(self._words(payload))
            if self._chance.random() < 0.3:
                self._open.pop().close()

    def close(self) -> None:
        """Close those that are left."""
        while self._open:
            self._open.popleft().close()

    def _words(self, payload: bytes) -> bytes:
        chance = self._chance
        long = bytes([_LONG]) + chance.choice([len(payload), 2**20, 2**26, 2**63]).to_bytes(8)
        match chance.randrange(7):
            case 0:
                return chance.randbytes(chance.randrange(1, 200))
            case 1:
                return _GREETING[: chance.randrange(1, len(_GREETING))]
            case 2:
                return HANDSHAKE[: chance.randrange(len(_GREETING), len(HANDSHAKE))]
            case 3:  # a frame that promises more than it has
                return HANDSHAKE + long + payload[: chance.randrange(1 + len(payload))]
            case 4:  # a first frame without its last
                return HANDSHAKE + _short(_MORE, b"") * chance.choice([1, 3, 500])
            case 5:  # a whole one, and half of another
                return HANDSHAKE + _short(0, payload) + _short(0, payload)[:-3]
        return HANDSHAKE + chance.randbytes(chance.randrange(1, 100))


def _short(flags: int, body: bytes) -> bytes:
    body = body[:255]
    return bytes([flags, len(body)]) + body
