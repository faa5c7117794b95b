"""The supervisor's socket towards its workers: one ROUTER on ``ipc://``.

The only zmq in the supervisor's pool. Owned by the I/O thread; nothing here is thread-safe.

Invariants: an identity is used by one process only; sending to a peer that has gone is
reported, never silently dropped (ROUTER_MANDATORY); flow control is by leases, never by the high
water mark. ``fileno`` is edge-triggered: after any send or receive look at ``has_input`` before
waiting on it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import zmq

from soloist.protocol import codec
from soloist.protocol.errors import RemoteProtocolError
from soloist.protocol.messages import WireMessage

_IDENTITY = struct.Struct(">BII")
# Plain numbers: zmq's enums cost a microsecond at each use.
_EVENTS = int(zmq.EVENTS)
_POLLIN, _NOBLOCK = int(zmq.POLLIN), int(zmq.NOBLOCK)
_MORE = int(zmq.SNDMORE) | _NOBLOCK
_MARK = 1  # ZeroMQ reserves identities that begin with a zero byte


def identity(number: int, life: int) -> bytes:
    """The routing id of one process: the worker's number, and which of all forks it is."""
    return _IDENTITY.pack(_MARK, number, life)


class Channel:
    """Sends to and receives from all workers.

    Args:
        endpoint: ``ipc://`` address to bind, in a folder of mode 0700.
        max_bytes: largest message that a worker may send.
    """

    def __init__(self, endpoint: str, *, max_bytes: int) -> None:
        self._context = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 64)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        self._socket.setsockopt(zmq.BACKLOG, 1024)
        self._socket.bind(endpoint)
        self._is_dry = False  # nothing was there at the last look, and nothing has happened since
        self._is_woken = False  # the descriptor reported something after the last look

    def fileno(self) -> int:
        """Descriptor that becomes readable, edge-triggered, when ``has_input`` may have changed."""
        return int(self._socket.getsockopt(zmq.FD))

    def wake(self) -> None:
        """The descriptor was readable: look again."""
        self._is_dry = False
        self._is_woken = True

    def has_input(self) -> bool:
        """Whether ``receive`` would give something."""
        if self._is_dry:
            return False
        self._is_dry = not int(self._socket.getsockopt(_EVENTS)) & _POLLIN
        return not self._is_dry

    def receive(self) -> tuple[int, int, Sequence[WireMessage | RemoteProtocolError]] | None:
        """Take what one worker sent together: ``(number, life, messages)``.

        What is not a message comes back as the error that says so; ``None`` if nothing is there.
        """
        # After a wake-up something is there; else asking is cheaper than to try and fail.
        if not self._is_woken and not self.has_input():
            return None
        self._is_woken = False
        try:  # not recv_multipart: two frames are expected, and each question takes time
            sender = self._socket.recv(_NOBLOCK)
            # Whether more follow this frame tells: to ask the socket takes longer.
            last = self._socket.recv(_NOBLOCK, copy=False)
        except zmq.Again:  # it was about something else
            self._is_dry = True
            return None
        frame = last.bytes
        is_foreign = len(sender) != _IDENTITY.size
        while last.more:
            last = self._socket.recv(_NOBLOCK, copy=False)
            is_foreign = True
        if is_foreign:
            return 0, -1, []  # from no worker of ours
        _, number, life = _IDENTITY.unpack(sender)
        try:
            return number, life, codec.decode_batch(frame)
        except RemoteProtocolError as error:
            return number, life, [error]

    def send(self, number: int, life: int, message: WireMessage) -> bool:
        """Queue a message for a worker; ``False`` if that worker is gone or takes nothing."""
        self._is_dry = False  # the descriptor may just have been robbed of its edge
        try:
            self._socket.send(identity(number, life), _MORE)
            self._socket.send(codec.encode(message), _NOBLOCK)
        except (zmq.Again, zmq.ZMQError):
            return False
        return True

    def close(self) -> None:
        """Close the socket and its context; unsent messages are dropped."""
        self._socket.close(0)
        self._context.term()
