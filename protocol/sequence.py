"""One sequence of messages over two ways: a *lane* for short ones, ZeroMQ for the rest.

A lane is a pair of datagram sockets between a supervisor and one worker: what is sent is in the
other side's hands at once, without a thread of ZeroMQ's in between on either side. It takes no
message over :data:`LANE_BYTES`, and none while it is full; those go over ZeroMQ. Each message
begins with its number, from 1, whichever way it goes, and the receiver puts them in order.

The first message of a worker goes over ZeroMQ, so that whoever has heard it can be reached there.
Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Generic, TypeVar

from soloist.protocol.errors import RemoteProtocolError

_T = TypeVar("_T")

LANE_BYTES = 32 * 1024
"""Largest message, with its number, that a lane is given."""
_NUMBER = struct.Struct("=Q")


def numbered(number: int, payload: bytes) -> bytes:
    """Put a message's number before it."""
    return _NUMBER.pack(number) + payload


def parted(data: bytes) -> tuple[int, memoryview]:
    """Give a message's number, and the rest of it.

    Raises:
        RemoteProtocolError: there is no number; the peer's fault.
    """
    if len(data) < _NUMBER.size:
        raise RemoteProtocolError(f"a message begins with its number, not with {data!r}")
    return _NUMBER.unpack_from(data)[0], memoryview(data)[_NUMBER.size :]


class InOrder(Generic[_T]):
    """Gives what comes in any order in the order of its numbers."""

    def __init__(self) -> None:
        self._next = 1
        self._early: dict[int, _T] = {}

    def __repr__(self) -> str:
        return f"<InOrder before {self._next}, {len(self._early)} early>"

    def take(self, number: int, item: _T) -> Iterable[_T]:
        """Take one in, and give all whose turn has come; one that was there before is dropped."""
        if number == self._next and not self._early:  # nearly always
            self._next += 1
            return (item,)
        if number < self._next:
            return ()
        self._early[number] = item
        due: list[_T] = []
        while self._next in self._early:
            due.append(self._early.pop(self._next))
            self._next += 1
        return due
