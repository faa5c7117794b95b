"""The worker's two ways to its supervisor: the lane, and one DEALER. The only zmq in the worker.

Short messages take the lane, all others go over ZeroMQ (see :mod:`soloist.protocol.lane`). Nothing
here is thread-safe; the worker's main thread owns it.
"""

from __future__ import annotations

import mmap
import select
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

import zmq

from soloist.protocol import codec
from soloist.protocol.lane import LANE_BYTES, Ways
from soloist.protocol.messages import WireMessage

_NOBLOCK = int(zmq.NOBLOCK)
LINGER_MS = 2000
"""How long a worker that exits may wait for its last words to be taken."""


class Channel:
    """Sends to and receives from the supervisor.

    Args:
        endpoint: the supervisor's ``ipc://`` address.
        identity: routing id of this incarnation.
        lane: descriptor of this side's end; it is closed with the channel.
    """

    def __init__(self, endpoint: str, identity: bytes, lane: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.connect(endpoint)
        self._lane = socket.socket(fileno=lane)
        self._lane.settimeout(0)  # also where the client has set a default for all sockets
        # For what the lane holds; what is never written to takes no memory.
        self._buffer = memoryview(mmap.mmap(-1, LANE_BYTES, flags=mmap.MAP_PRIVATE))
        self._ways = Ways(is_spoken_to=False)
        self._frame: bytes | None = None  # came over ZeroMQ, and waits for what is on the lane
        # Nothing was there at the last look, and nothing has happened since.
        self._is_socket_dry = self._is_lane_dry = False
        self._poll = select.poll()
        self._wakes: dict[int, Callable[[], None]] = {}
        for descriptor, wake in self.sources():
            self._poll.register(descriptor, select.POLLIN)
            self._wakes[descriptor] = wake

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lane.close()
        self._socket.close()
        self._context.term()

    def disown(self) -> None:
        """In a fork of this process: say nothing on the lane; ZeroMQ sees to its own side."""
        self._lane.close()

    def sources(self) -> list[tuple[int, Callable[[], None]]]:
        """Descriptors, and what to call when one is readable, before ``receive_nowait``.

        One is edge-triggered: after any send look at ``receive_nowait``, too.
        """
        return [
            (self._lane.fileno(), self._wake_lane),
            (int(self._socket.getsockopt(zmq.FD)), self._wake_socket),
        ]

    def receive(self) -> WireMessage:
        """Wait for the next message."""
        while (message := self.receive_nowait()) is None:
            for descriptor, _ in self._poll.poll():
                self._wakes[descriptor]()
        return message

    def receive_nowait(self) -> WireMessage | None:
        """Take the next message if there is one."""
        while (data := self._from_lane()) is None:
            if self._frame is not None:
                frame, self._frame = self._frame, None
                return codec.decode(self._ways.hear(frame, is_from_lane=False))
            self._frame = self._from_socket()
            if self._frame is None:
                return None
            self._is_lane_dry = False  # what was sent before it is there by now
        return codec.decode(self._ways.hear(data, is_from_lane=True))

    def send(self, message: WireMessage) -> None:
        """Send a message; waits only if a thousand are already on their way."""
        self.send_encoded([codec.encode(message)])

    def send_encoded(self, messages: list[bytes]) -> None:
        """Send messages that are already encoded, together."""
        data = self._ways.stamped(codec.join(messages))
        if self._ways.has_lane(data):
            try:
                self._lane.send(data)
            except OSError:  # full, or the system takes less in one message
                pass
            else:
                return
        self._ways.went_round()
        self._is_socket_dry = False  # the descriptor may just have been robbed of its edge
        self._socket.send(data)

    def _wake_lane(self) -> None:
        self._is_lane_dry = False

    def _wake_socket(self) -> None:
        self._is_socket_dry = False

    def _from_lane(self) -> memoryview | None:
        if self._is_lane_dry:
            return None
        try:
            return self._buffer[: self._lane.recv_into(self._buffer)]
        except BlockingIOError:
            self._is_lane_dry = True
            return None

    def _from_socket(self) -> bytes | None:
        if self._is_socket_dry:
            return None
        try:
            return self._socket.recv(_NOBLOCK)
        except zmq.Again:
            self._is_socket_dry = True
            return None
