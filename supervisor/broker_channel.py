"""The socket of one shared session's broker: a ROUTER on ``ipc://`` for callers elsewhere.

The only zmq for broker sockets; those of a gateway share what is here. Owned by the I/O thread;
nothing here is thread-safe. What is said on the wire is decided in
:mod:`soloist.protocol.public`, what becomes of it in :mod:`soloist.supervisor.front`.

Invariants: whatever a peer sends, ``receive`` does not raise; nothing here waits; a message that
cannot be handed to its peer at once is reported, never silently dropped (ROUTER_MANDATORY); an
endpoint is bound once and never again, for its file is removed after the close, not with it.
``fileno`` is edge-triggered: ``wake`` when it was readable, and after any send or receive look at
``has_input`` before waiting on it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import zmq

from soloist.protocol import public, public_codec
from soloist.protocol.errors import LocalProtocolError, SoloistError, TooManyWorkers

MAX_WAITING = 10_000
"""Messages that may wait for one peer; who lets more wait counts as gone."""
MAX_ARRIVED = 64
"""Messages of one peer that may wait for the broker; then they wait at the peer."""
LINGER_MS = 500
"""How long the last outcomes may take to reach their peers after the close."""
_SPARE_SOCKETS = 64  # a closed socket keeps its place until a thread of zmq's has let go of it
_BACKLOG = 1024
# Plain numbers: zmq's enums cost a microsecond at each use.
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.SNDMORE) | _NOBLOCK
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class PeerContext:
    """The ZeroMQ context of all broker sockets of one Supervisor.

    Args:
        max_sockets: most sockets at a time.
    """

    def __init__(self, max_sockets: int) -> None:
        self.zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        most = int(self.zmq.get(zmq.SOCKET_LIMIT))
        # It can no longer be set once there is a socket.
        self.zmq.set(zmq.MAX_SOCKETS, min(max_sockets + _SPARE_SOCKETS, most))

    def close(self) -> None:
        """End it when all its sockets are closed; takes up to ``LINGER_MS``."""
        self.zmq.term()


class Router:
    """A ROUTER socket for foreign peers, bound from the start.

    Args:
        context: of all such sockets.
        endpoint: address to bind.
        max_bytes: largest frame that a peer may send; a larger one ends its connection.
        options: of the socket, by zmq's numbers.

    Raises:
        TooManyWorkers: no socket or descriptor is left; the machine's limit.
        SoloistError: the endpoint cannot be bound.
    """

    def __init__(
        self,
        context: PeerContext,
        endpoint: str,
        *,
        max_bytes: int,
        options: Mapping[int, int | bytes] | None = None,
    ) -> None:
        self._is_dry = False  # nothing was there at the last look, and nothing has happened since
        self._is_woken = False  # the descriptor reported something after the last look
        try:
            self._socket = context.zmq.socket(zmq.ROUTER)
        except zmq.ZMQError as error:
            raise _converted(error, endpoint) from error
        try:
            self._bind(endpoint, max_bytes, options or {})
        except zmq.ZMQError as error:
            self._socket.close(0)
            raise _converted(error, endpoint) from error

    def _bind(self, endpoint: str, max_bytes: int, options: Mapping[int, int | bytes]) -> None:
        socket = self._socket
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        socket.setsockopt(zmq.SNDHWM, MAX_WAITING)
        socket.setsockopt(zmq.RCVHWM, MAX_ARRIVED)
        socket.setsockopt(zmq.BACKLOG, _BACKLOG)
        for option, value in options.items():
            socket.setsockopt(option, value)
        socket.bind(endpoint)

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

    def frames(self) -> tuple[list[bytes], zmq.Frame] | None:
        """Take all frames of one message, and the last as zmq has it; ``None`` if none is there."""
        # After a wake-up something is there; else to ask is cheaper than to try and fail.
        if not (self._is_woken or self.has_input()):
            return None
        self._is_woken = False
        socket = self._socket
        try:
            frames = [socket.recv(_NOBLOCK)]  # who sends; at least one more follows
        except zmq.Again:  # it was about something else
            self._is_dry = True
            return None
        while True:
            # It tells by itself whether more follow; to ask the socket takes twice as long.
            frame = socket.recv(_NOBLOCK, copy=False)
            frames.append(frame.bytes)
            if not frame.more:
                return frames, frame

    def send(self, envelope: public.Envelope, data: bytes) -> bool:
        """Queue a message; ``False`` if the peer is gone, or lets more wait than it may."""
        self._is_dry = False  # the descriptor may just have been robbed of its edge
        try:
            # Either the first frame is refused or none is.
            for frame in envelope:
                self._socket.send(frame, _MORE)
            self._socket.send(data, _NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def close(self) -> None:
        """Close; what was sent just before still reaches its peers."""
        self._socket.close(LINGER_MS)


class BrokerChannel(Router):
    """Receives from and sends to all peers of one shared session.

    Args:
        context: of all broker sockets.
        endpoint: ``ipc://`` address to bind, in a folder of mode 0700.
        max_bytes: largest frame that a peer may send; a larger one ends its connection.

    Raises:
        TooManyWorkers: no socket or descriptor is left; the machine's limit.
        SoloistError: the endpoint cannot be bound.
    """

    def __init__(self, context: PeerContext, endpoint: str, *, max_bytes: int) -> None:
        self._path = Path(endpoint.removeprefix("ipc://"))
        if self._path.exists():  # zmq would take it away from whoever has it
            raise LocalProtocolError(f"{endpoint} is in use")
        super().__init__(context, endpoint, max_bytes=max_bytes)

    def receive(self) -> tuple[public.Envelope, public.OfBroker | public.Error] | None:
        """Take one message and its sender; what is none comes as the error that answers it.

        ``None`` if nothing is there.
        """
        received = self.frames()
        return None if received is None else public_codec.read(received[0], public_codec.BROKER)

    def close(self) -> None:
        """Close and remove the endpoint; what was sent just before still reaches its peers."""
        super().close()
        self._path.unlink(missing_ok=True)


def _converted(error: zmq.ZMQError, endpoint: str) -> SoloistError:
    if error.errno in _NO_ROOM:
        return TooManyWorkers(
            f"no socket is left for {endpoint}: {error}; raise the hard limit (ulimit -Hn)",
            started=False,
        )
    return SoloistError(f"{endpoint} cannot be bound: {error}", started=False)
