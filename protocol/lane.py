"""Two ways for one line of messages: a *lane* for short ones, ZeroMQ for the rest.

A lane is a pair of datagram sockets between a supervisor and one worker: what is sent is in the
other side's hands at once, without a thread of ZeroMQ's in between on either side. It takes no
message over :data:`LANE_BYTES`, and none while it is full; those go over ZeroMQ.

Nothing overtakes: once a message has gone over ZeroMQ, all that follow go there, too, until the
other side has said that it has heard it. So the receiver has two rules: before it hears what came
over ZeroMQ it reads the lane dry, and what is on the lane it hears as it comes. Every message
begins with how many its sender has heard over ZeroMQ.

A worker says nothing on the lane before it has been spoken to: its first message goes over ZeroMQ,
and whoever has heard it can be reached there. Pure.
"""

from __future__ import annotations

import struct

from soloist.protocol.errors import RemoteProtocolError

LANE_BYTES = 128 * 1024
"""Largest message, with all that stands before it, that a lane is given."""
_HEARD = struct.Struct("=Q")


class Ways:
    """Which way one side's messages may go.

    Args:
        is_spoken_to: whether the lane may be used before anything has been heard.
    """

    def __init__(self, *, is_spoken_to: bool) -> None:
        self._sent = 0  # over ZeroMQ
        self._told = 0 if is_spoken_to else -1  # so many of these the other side has heard
        self._heard = 0  # over ZeroMQ

    def __repr__(self) -> str:
        return f"<Ways: {self._sent} sent over ZeroMQ, {self._told} of them heard>"

    def stamped(self, payload: bytes) -> bytes:
        """A message as it is sent, whichever way."""
        return _HEARD.pack(self._heard) + payload

    def has_lane(self, data: bytes) -> bool:
        """Whether a message may take the lane."""
        return self._sent == self._told and len(data) <= LANE_BYTES

    def went_round(self) -> None:
        """A message has been given to ZeroMQ."""
        self._sent += 1

    def came_round(self) -> None:
        """A message has been heard over ZeroMQ."""
        self._heard += 1

    def hear(self, data: bytes | memoryview, *, is_from_lane: bool) -> memoryview:
        """Take a message in, and give its payload.

        Raises:
            RemoteProtocolError: that is none; the peer's fault.
        """
        if not is_from_lane:
            self.came_round()
        told, payload = parted(data)
        self._told = max(self._told, told)
        return payload


def parted(data: bytes | memoryview) -> tuple[int, memoryview]:
    """How many messages its sender had heard, and a message's payload.

    Raises:
        RemoteProtocolError: it has no such number; the peer's fault.
    """
    if len(data) < _HEARD.size:
        raise RemoteProtocolError(f"a message begins with a number, not with {bytes(data)!r}")
    return _HEARD.unpack_from(data)[0], memoryview(data)[_HEARD.size :]
