"""The supervisor's two ways to its workers: a lane to each, and one ROUTER on ``ipc://``.

Short messages take the lane, all others go over ZeroMQ (see :mod:`soloist.protocol.lane`).
The only zmq in the supervisor's pool. Owned by the I/O thread; nothing here is thread-safe.

Invariants: an identity is used by one process only; ZeroMQ drops nothing silently that is for a
peer that has gone (ROUTER_MANDATORY); flow control is by leases, never by the high water mark.
``fileno``, the ROUTER's, is edge-triggered: after any send or receive look at ``has_input`` before
waiting on it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import zmq

from soloist.protocol import codec
from soloist.protocol.errors import RemoteProtocolError
from soloist.protocol.lane import LANE_BYTES, parted
from soloist.protocol.messages import WireMessage
from soloist.supervisor.lane import Lane

_IDENTITY = struct.Struct(">BII")
# Plain numbers: zmq's enums cost a microsecond at each use.
_EVENTS = int(zmq.EVENTS)
_POLLIN, _NOBLOCK = int(zmq.POLLIN), int(zmq.NOBLOCK)
_MORE = int(zmq.SNDMORE) | _NOBLOCK
_MARK = 1  # ZeroMQ reserves identities that begin with a zero byte


def identity(number: int, life: int) -> bytes:
    """The routing id of one process: its first worker's number, and which of all forks it is."""
    return _IDENTITY.pack(_MARK, number, life)


Said: TypeAlias = Sequence[WireMessage | RemoteProtocolError]
"""What a worker sent together; what was no message is the error that says so."""


class Received(NamedTuple):
    """What came from one worker.

    Attributes:
        number: the worker's, 0 for somebody who is none.
        life: which of all forks it is, -1 for somebody who is none.
        messages: what it sent together.
    """

    number: int
    life: int
    messages: Said


class Peer(Protocol):
    """A worker that can be sent to."""

    life: int
    identity: bytes
    lane: Lane

    @property
    def number(self) -> int:
        """The worker's, as long as it is that worker."""


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
        self._peers: dict[bytes, Peer] = {}
        self._buffer = memoryview(bytearray(LANE_BYTES))  # for what a lane holds
        self._readable: dict[Peer, None] = {}  # whose lanes may hold something, in turn
        self._frame: tuple[Peer, bytes] | None = None  # waits until its sender's lane is dry
        self._is_lanes_turn = False

    def fileno(self) -> int:
        """Descriptor that becomes readable, edge-triggered, when ``has_input`` may have changed."""
        return int(self._socket.getsockopt(zmq.FD))

    def wake(self) -> None:
        """The descriptor was readable: look again."""
        self._is_dry = False
        self._is_woken = True

    def add(self, peer: Peer) -> None:
        """A worker is known from now on."""
        self._peers[peer.identity] = peer

    def remove(self, peer: Peer) -> None:
        """A worker has gone, and all that it has sent has been received."""
        del self._peers[peer.identity]
        self._readable.pop(peer, None)

    def wake_lane(self, peer: Peer) -> None:
        """A worker's lane was readable: look there."""
        self._readable[peer] = None

    def has_input(self) -> bool:
        """Whether ``receive`` may give something."""
        return self._frame is not None or bool(self._readable) or self._has_frames()

    def _has_frames(self) -> bool:
        if self._is_dry:
            return False
        self._is_dry = not int(self._socket.getsockopt(_EVENTS)) & _POLLIN
        return not self._is_dry

    def receive(self) -> Received | None:
        """Take what one worker sent together; ``None`` if nothing is there."""
        if self._frame is not None:
            return self._before_frame(*self._frame)
        # In turns, so that neither way keeps the other waiting, nor a worker another one.
        self._is_lanes_turn = not self._is_lanes_turn
        if self._is_lanes_turn:
            return self._from_lanes() or self._from_socket()
        return self._from_socket() or self._from_lanes()

    def _from_lanes(self) -> Received | None:
        while self._readable:
            peer = next(iter(self._readable))
            del self._readable[peer]
            data = peer.lane.receive(self._buffer)
            if data is not None:
                self._readable[peer] = None
                return _received(peer, data, is_from_lane=True)
        return None

    def _before_frame(self, peer: Peer, frame: bytes) -> Received:
        """What its sender had put on the lane before, then the frame."""
        data = peer.lane.receive(self._buffer)
        if data is not None:
            return _received(peer, data, is_from_lane=True)
        self._frame = None
        return _received(peer, frame, is_from_lane=False)

    def _from_socket(self) -> Received | None:
        # After a wake-up something is there; else asking is cheaper than to try and fail.
        if not self._is_woken and not self._has_frames():
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
            return Received(0, -1, ())  # from no worker of ours
        peer = self._peers.get(sender)
        if peer is None:  # not known yet: it has said nothing on its lane
            _, number, life = _IDENTITY.unpack(sender)
            return Received(number, life, _messages(frame, lambda data: parted(data)[1]))
        self._frame = peer, frame
        return self._before_frame(peer, frame)

    def send(self, peer: Peer, message: WireMessage) -> bool:
        """Queue a message for a worker; ``False`` if neither way takes it."""
        lane = peer.lane
        data = lane.ways.stamped(codec.encode(message))
        if lane.ways.has_lane(data) and lane.send(data):
            return True
        is_sent = self._send_frames(peer.identity, data)
        if is_sent:
            lane.ways.went_round()
        return is_sent

    def _send_frames(self, receiver: bytes, data: bytes) -> bool:
        self._is_dry = False  # the descriptor may just have been robbed of its edge
        try:
            self._socket.send(receiver, _MORE)
            self._socket.send(data, _NOBLOCK)
        except (zmq.Again, zmq.ZMQError):
            return False
        return True

    def close(self) -> None:
        """Close the socket and its context; unsent messages are dropped."""
        self._socket.close(0)
        self._context.term()


def _received(peer: Peer, data: bytes | memoryview, *, is_from_lane: bool) -> Received:
    hear = functools.partial(peer.lane.ways.hear, is_from_lane=is_from_lane)
    return Received(peer.number, peer.life, _messages(data, hear))


def _messages(
    data: bytes | memoryview, payload_of: Callable[[bytes | memoryview], memoryview]
) -> Said:
    try:
        return codec.decode_batch(payload_of(data))
    except RemoteProtocolError as error:
        return [error]
