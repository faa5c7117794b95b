"""The worker's two ways to its supervisor: the lane, and one DEALER. The only zmq in the worker.

Short messages take the lane, all others go over ZeroMQ; both come out in the order in which they
were sent (see :mod:`soloist.protocol.sequence`). Nothing here is thread-safe; the worker's main
thread owns it.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import zmq

from soloist.protocol import codec
from soloist.protocol.messages import WireMessage
from soloist.protocol.sequence import LANE_BYTES, InOrder, numbered, parted

_NOBLOCK = int(zmq.NOBLOCK)
LINGER_MS = 2000
"""How long a worker that exits may wait for its last words to be taken."""


class Channel:
    """Sends to and receives from the supervisor.

    Args:
        endpoint: the supervisor's ``ipc://`` address.
        identity: routing id of this incarnation.
        lane: descriptor of this side's end, non-blocking; it is closed with the channel.
    """

    def __init__(self, endpoint: str, identity: bytes, lane: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.connect(endpoint)
        self._lane = socket.socket(fileno=lane)
        self._said = 0
        self._in_order: InOrder[WireMessage] = InOrder()
        self._heard: deque[WireMessage] = deque()  # in order, and not given out yet
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
        while not self._heard:
            data = self._from_lane() or self._from_socket()
            if data is None:
                return None
            number, payload = parted(data)
            self._heard.extend(self._in_order.take(number, codec.decode(payload)))
        return self._heard.popleft()

    def send(self, message: WireMessage) -> None:
        """Send a message; waits only if a thousand are already on their way."""
        self.send_encoded([codec.encode(message)])

    def send_encoded(self, messages: list[bytes]) -> None:
        """Send messages that are already encoded, together."""
        self._said += 1
        data = numbered(self._said, codec.join(messages))
        if self._said > 1 and len(data) <= LANE_BYTES:
            try:
                self._lane.send(data)
            except OSError:  # full, or the system takes less in one message
                pass
            else:
                return
        self._is_socket_dry = False  # the descriptor may just have been robbed of its edge
        self._socket.send(data)

    def _wake_lane(self) -> None:
        self._is_lane_dry = False

    def _wake_socket(self) -> None:
        self._is_socket_dry = False

    def _from_lane(self) -> bytes | None:
        if self._is_lane_dry:
            return None
        try:
            return self._lane.recv(LANE_BYTES)
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
