"""The sockets of all shared sessions: opened, looked at, closed. On the I/O thread.

Owns their ZeroMQ context and knows which of them have to be looked at, whatever their descriptors
say: those report each change once, and a send may swallow the report.

Invariant: each socket is looked at once a turn at most, so that a peer who never stops keeps
nobody else waiting.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from soloist.supervisor.broker import Broker
from soloist.supervisor.broker_channel import BrokerChannel, PeerContext
from soloist.supervisor.front import Front
from soloist.supervisor.request import Request
from soloist.supervisor.wakes import Wakes


class Fronts:
    """All fronts of one Supervisor.

    Args:
        wakes: tells when a socket was readable.
        endpoint_of: the address for a session's number.
        max_sockets: most sockets at a time.
        max_frame_bytes: largest frame that a peer may send.
        max_payload_bytes: largest encoded prompt.
        stream_buffer_bytes: the credit that each streamed request begins with.
        timeout_s: limit of a request that names none.
        submit: takes a request in.
        cancel: ends one early.
    """

    def __init__(
        self,
        wakes: Wakes,
        endpoint_of: Callable[[int], str],
        *,
        max_sockets: int,
        max_frame_bytes: int,
        max_payload_bytes: int,
        stream_buffer_bytes: int,
        timeout_s: float | None,
        submit: Callable[[Request], None],
        cancel: Callable[[Request], None],
    ) -> None:
        self._wakes = wakes
        self._endpoint_of = endpoint_of
        self._max_frame_bytes = max_frame_bytes
        self._max_payload_bytes = max_payload_bytes
        self._stream_buffer_bytes = stream_buffer_bytes
        self._timeout_s = timeout_s
        self._submit = submit
        self._cancel = cancel
        self._context = PeerContext(max_sockets)
        self._wet: set[Front] = set()
        self._all: set[Front] = set()

    def open(self, broker: Broker) -> Front:
        """Bind a session's socket.

        Raises:
            SoloistError: it cannot be bound.
        """
        endpoint = self._endpoint_of(broker.number)
        channel = BrokerChannel(self._context, endpoint, max_bytes=self._max_frame_bytes)
        front = Front(
            channel,
            endpoint,
            broker,
            max_payload_bytes=self._max_payload_bytes,
            stream_buffer_bytes=self._stream_buffer_bytes,
            submit=self._submit,
            cancel=self._cancel,
            on_sent=self._wet.add,
            timeout_s=self._timeout_s,
        )
        self._wakes.add(channel.fileno(), functools.partial(self.wake, front))
        self._all.add(front)
        self._wet.add(front)
        return front

    def shut(self, front: Front) -> None:
        """Close one."""
        self._wakes.remove(front.channel.fileno())
        self._all.discard(front)
        self._wet.discard(front)
        front.channel.close()

    def close(self) -> None:
        """Close every socket that is left, and the context."""
        for front in tuple(self._all):
            self.shut(front)
        self._context.close()

    def wake(self, front: Front) -> None:
        """Its descriptor was readable; it may have been closed since."""
        if front in self._all:
            front.channel.wake()
            self._wet.add(front)

    def take(self) -> None:
        """Do what peers ask."""
        for front in tuple(self._wet):
            if front in self._wet:  # it has not been closed meanwhile
                self._wet.remove(front)
                front.take()

    def has_input(self) -> bool:
        """Whether ``take`` has something to do."""
        for front in [front for front in self._wet if not front.has_input()]:
            self._wet.remove(front)
        return bool(self._wet)
