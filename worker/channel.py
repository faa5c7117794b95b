"""The worker's socket towards its supervisor: one DEALER. The only zmq in the worker.

Nothing here is thread-safe; the worker's main thread owns it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import zmq

from soloist.protocol import codec
from soloist.protocol.messages import WireMessage

_NOBLOCK = int(zmq.NOBLOCK)
LINGER_MS = 2000
"""How long a worker that exits may wait for its last words to be taken."""


class Channel:
    """Sends to and receives from the supervisor.

    Args:
        endpoint: the supervisor's ``ipc://`` address.
        identity: routing id of this incarnation.
    """

    def __init__(self, endpoint: str, identity: bytes) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.connect(endpoint)
        self._is_dry = False  # nothing was there at the last look, and nothing has happened since

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._context.term()

    def fileno(self) -> int:
        """Edge-triggered descriptor: after any send or receive look at ``receive_nowait``."""
        return int(self._socket.getsockopt(zmq.FD))

    def receive(self) -> WireMessage:
        """Wait for the next message."""
        return codec.decode(self._socket.recv())

    def wake(self) -> None:
        """The descriptor was readable: look again."""
        self._is_dry = False

    def receive_nowait(self) -> WireMessage | None:
        """Take the next message if there is one."""
        if self._is_dry:
            return None
        try:
            return codec.decode(self._socket.recv(_NOBLOCK))
        except zmq.Again:
            self._is_dry = True
            return None

    def send(self, message: WireMessage) -> None:
        """Send a message; waits only if a thousand are already on their way."""
        self.send_encoded([codec.encode(message)])

    def send_encoded(self, messages: list[bytes]) -> None:
        """Send messages that are already encoded, together."""
        self._is_dry = False  # the descriptor may just have been robbed of its edge
        self._socket.send(codec.join(messages))
