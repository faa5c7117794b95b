"""The socket of one shared session towards callers in other processes: a ROUTER on ``ipc://``.

Owned by the I/O thread; nothing here is thread-safe. A caller is known by its *envelope*: its
routing id and, for a REQ socket, the empty delimiter.

Invariants: a malformed message never raises here; sending to a caller that has gone or takes
nothing is reported, never silently dropped (ROUTER_MANDATORY); what waits for one caller is
bounded. ``fileno`` is edge-triggered, as :class:`soloist.supervisor.channel.Channel`'s.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import zmq

from soloist.protocol import public
from soloist.protocol.public import FromCaller, Unreadable

_POLLIN = int(zmq.POLLIN)
_MOST_WAITING = 1_000
"""Messages on their way to or from one caller."""


class Envelope(NamedTuple):
    """Where an answer goes; a REQ socket takes exactly one."""

    peer: bytes
    is_req: bool


class PeerContext:
    """The ZeroMQ context of all broker sockets of one Supervisor.

    Args:
        max_sockets: most sockets at a time.
    """

    def __init__(self, max_sockets: int) -> None:
        self.zmq = zmq.Context()
        # Before the first socket: afterwards it has no effect.
        self.zmq.setsockopt(zmq.MAX_SOCKETS, max_sockets + 8)

    def close(self) -> None:
        """End it; all its sockets are closed by then."""
        self.zmq.term()


class BrokerChannel:
    """Binds one session's endpoint.

    Args:
        context: of all broker sockets.
        endpoint: ``ipc://`` address in a folder of mode 0700.
        max_bytes: largest message that a caller may send.
    """

    def __init__(self, context: PeerContext, endpoint: str, *, max_bytes: int) -> None:
        self._socket = context.zmq.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        self._socket.setsockopt(zmq.SNDHWM, _MOST_WAITING)
        self._socket.setsockopt(zmq.RCVHWM, _MOST_WAITING)
        self._socket.bind(endpoint)
        self._is_dry = False

    def fileno(self) -> int:
        """Descriptor that becomes readable, edge-triggered, when ``receive`` may give something."""
        return int(self._socket.getsockopt(zmq.FD))

    def wake(self) -> None:
        """The descriptor was readable: look again."""
        self._is_dry = False

    def has_input(self) -> bool:
        """Whether ``receive`` would give something."""
        if self._is_dry:
            return False
        self._is_dry = not int(self._socket.getsockopt(zmq.EVENTS)) & _POLLIN
        return not self._is_dry

    def receive(self) -> tuple[Envelope, FromCaller | Unreadable] | None:
        """Take one message; what cannot be read comes back as the error that says so."""
        if not self.has_input():
            return None
        peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
        is_req = len(frames) > 1 and not frames[0]
        envelope = Envelope(peer, is_req)
        if len(frames) != 1 + is_req:
            return envelope, Unreadable("a message is one frame")
        try:
            return envelope, public.decode(frames[-1])
        except Unreadable as error:
            return envelope, error

    def send(self, envelope: Envelope, data: bytes) -> bool:
        """Queue a message for a caller; ``False`` if it is gone or takes nothing."""
        self._is_dry = False  # the descriptor may just have been robbed of its edge
        delimiter = (b"",) if envelope.is_req else ()
        try:
            self._socket.send_multipart((envelope.peer, *delimiter, data), zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError):
            return False
        return True

    def close(self) -> None:
        """Close the socket; its path goes with it."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.close(0)
