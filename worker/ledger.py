"""The worker's side of what it shares with the supervisor: claims and the ledger.

Invariants: no lease runs before its number was read from the grant pipe, and a number is read by
exactly one process; an outcome is in the ledger before it is sent. See
:mod:`soloist.supervisor.ledger` for the other side.
"""

from __future__ import annotations

import os
import struct

from soloist.protocol import ledger
from soloist.protocol.messages import Lease, Run

_NUMBER = struct.Struct("=Q")
_KEEP_BYTES = 1 << 20
"""The ledger's file is cut back when it has outgrown this and may be forgotten."""


class Claims:
    """The leases that have arrived, and the right to run them.

    Args:
        grants: read end of the grant pipe, non-blocking.
    """

    def __init__(self, grants: int) -> None:
        self._grants = grants
        self._arrived: dict[int, Lease] = {}
        self._claimed: int | None = None
        self.acked = 0

    def add(self, run: Run) -> None:
        """Take in what the supervisor sent."""
        self.acked = max(self.acked, run.acked)
        for lease in run.leases:
            self._arrived[lease.number] = lease

    def __len__(self) -> int:
        return len(self._arrived)

    def is_empty(self) -> bool:
        """Whether nothing has arrived that ``claim`` might give."""
        return not self._arrived

    @property
    def is_committed(self) -> bool:
        """Whether a grant has been read whose lease has not run: nobody can take it back."""
        return self._claimed is not None

    def claim(self) -> Lease | None:
        """Claim the next lease; ``None`` if there is none to run until another message comes.

        A lease whose grant was taken back is forgotten. A grant whose lease has not arrived yet
        is kept: the message is on its way.
        """
        if self._claimed is None:
            if not self._arrived:
                return None
            try:
                (self._claimed,) = _NUMBER.unpack(os.read(self._grants, _NUMBER.size))
            except BlockingIOError:
                self._arrived.clear()
                return None
        lease = self._arrived.pop(self._claimed, None)
        if lease is None:
            return None
        while self._arrived and next(iter(self._arrived)) < lease.number:  # taken back
            del self._arrived[next(iter(self._arrived))]
        self._claimed = None
        return lease


class Ledger:
    """Writes outcomes where they outlive this process.

    Args:
        file: descriptor of the file shared with the supervisor.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._offset = 0
        self._last = 0

    def is_full(self, *, acked: int) -> bool:
        """Whether it has outgrown its size and holds what the supervisor may not have."""
        return self._offset > _KEEP_BYTES and acked < self._last

    def append(self, lease: int, payload: bytes, *, acked: int) -> None:
        """Write one encoded outcome; on return it survives the death of this process.

        Args:
            lease: its lease; ``NO_LEASE`` for the worker's word on itself. ``Loaded`` comes
                before every outcome and is overwritten by the first, ``Broken`` comes last.
            payload: the encoded ``Answer``, ``Failure``, ``Loaded`` or ``Broken``.
            acked: highest lease whose outcome the supervisor has for certain.
        """
        if acked >= self._last:
            if self._offset > _KEEP_BYTES:
                os.ftruncate(self._file, 0)
            self._offset = 0
        data = ledger.record(lease, payload)
        self._write(data + ledger.END)
        self._offset += len(data)
        self._last = max(self._last, lease)

    def _write(self, data: bytes) -> None:
        written = os.pwrite(self._file, data, self._offset)
        while written < len(data):
            written += os.pwrite(self._file, data[written:], self._offset + written)
