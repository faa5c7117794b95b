"""The supervisor's side of what it shares with one worker: grants and the ledger.

*Grants*: a pipe whose both ends this side keeps. It writes the number of each lease that it
sends; the worker reads one number before it runs that lease. A number is read by exactly one
side, by the kernel's word: taking the rest back revokes what has not started, and what is still
in the pipe after a death certainly never ran.

*Ledger*: an unlinked file into which the worker writes each outcome before it counts as
finished; it outlives the worker. See :mod:`soloist.protocol.ledger` for its layout.
"""

from __future__ import annotations

import os
import struct
import tempfile

from soloist.protocol import codec, ledger
from soloist.protocol.errors import RemoteProtocolError
from soloist.protocol.messages import Answer, Broken, Failure, Lease, Loaded, Snapshot

_NUMBER = struct.Struct("=Q")


class Ledger:
    """Grants to, and finished outcomes of, one incarnation of one worker."""

    def __init__(self) -> None:
        self.grants_r, self._grants_w = os.pipe()
        os.set_blocking(self.grants_r, False)
        os.set_blocking(self._grants_w, False)
        self.outcomes = _anonymous_file()

    def grant(self, leases: tuple[Lease, ...]) -> None:
        """Let the worker run these leases; comes before they are sent."""
        os.write(self._grants_w, b"".join(_NUMBER.pack(lease.number) for lease in leases))

    def take_back(self) -> list[int]:
        """Take every grant that the worker has not claimed; those leases never started."""
        taken: list[int] = []
        try:
            while data := os.read(self.grants_r, 4096):
                taken += [number for (number,) in _NUMBER.iter_unpack(data)]
        except BlockingIOError:
            pass
        return taken

    def read(self) -> list[Answer | Failure | Loaded | Broken | Snapshot]:
        """What the worker made safe, in order: outcomes, and how far its client came."""
        data = os.pread(self.outcomes, os.fstat(self.outcomes).st_size, 0)
        outcomes: list[Answer | Failure | Loaded | Broken | Snapshot] = []
        for _, payload in ledger.scan(data):
            try:
                message = codec.decode(payload)
            except RemoteProtocolError:
                break
            if isinstance(message, Answer | Failure | Loaded | Broken | Snapshot):
                outcomes.append(message)
        return outcomes

    def close(self) -> None:
        """Close this side's descriptors."""
        for descriptor in (self.grants_r, self._grants_w, self.outcomes):
            os.close(descriptor)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("soloist-ledger", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
