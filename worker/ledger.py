"""The worker's side of what it shares with the supervisor: claims and the ledger.

Invariants: no lease runs before its number was read from the grant pipe, and a number is read by
exactly one process, or, in a chunk, before the count of answers says that it is next and nothing
says that it was taken back; an outcome is in the ledger before it is sent. See
:mod:`soloist.supervisor.ledger` for the other side.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading

from soloist.protocol import ledger
from soloist.protocol.errors import LocalProtocolError
from soloist.protocol.messages import Chunk, Lease, Run

_NUMBER = struct.Struct("=Q")
_NIL = b"\xc0"
_UNDECIDED_S = 0.0001
"""How often to look whether the supervisor has decided what it takes back. It does within some
microseconds, unless its machine has other things to do."""
_KEEP_BYTES = 1 << 20
"""The ledger's file is cut back when it has outgrown this and may be forgotten."""


class Claims:
    """The leases that have arrived, and the right to run them.

    Args:
        grants: read end of the grant pipe, non-blocking.
        is_in_memory: whether only a chunk's first lease is claimed by the pipe; then this process
            is included in barriers.

    Attributes:
        revision: the last one of the control block that is known; none, ever, if all leases are
            claimed by the pipe.
    """

    def __init__(self, grants: int, *, is_in_memory: bool) -> None:
        self._grants = grants
        self._arrived: dict[int, Lease | Chunk] = {}
        self._claimed: int | None = None
        self.acked = 0
        self.revision = 0 if is_in_memory else -1

    def add(self, run: Run | Chunk) -> None:
        """Take in what the supervisor sent."""
        self.acked = max(self.acked, run.acked)
        for lease in (run,) if type(run) is Chunk else run.leases:  # type: ignore[union-attr]
            self._arrived[lease.number] = lease

    def disown(self) -> None:
        """In a fork of this process: nothing is claimed here, ever."""
        self._grants = -1

    def __len__(self) -> int:
        return len(self._arrived)

    def is_empty(self) -> bool:
        """Whether nothing has arrived that ``claim`` might give."""
        return not self._arrived

    @property
    def is_committed(self) -> bool:
        """Whether a grant has been read whose lease has not run: nobody can take it back."""
        return self._claimed is not None

    def claim(self) -> Lease | Chunk | None:
        """Claim the next lease, or the first of a chunk.

        ``None`` if there is none to run until another message comes.

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

    def claim_next(self, lease: int, last: int, control: memoryview) -> int:
        """Claim a chunk's next lease, which is counted as such in its page.

        There is no need to ask if the control block has the ``revision`` that is known.

        Args:
            lease: the one that follows.
            last: of the chunk.
            control: the control block.

        Returns:
            The lease that is claimed, most often that one; 0 if the rest was taken back.
        """
        if self.revision < 0:
            return self._claim_up_to(last)
        revision, kept, end = _decision(control)
        if lease > kept:  # else it has still to be asked for those that follow
            self.revision = revision
        return 0 if kept < lease <= end else lease

    def _claim_up_to(self, last: int) -> int:
        try:
            (claimed,) = _NUMBER.unpack(os.read(self._grants, _NUMBER.size))
        except BlockingIOError:
            return 0
        if claimed <= last:
            return int(claimed)
        self._claimed = claimed
        return 0


def _decision(control: memoryview) -> tuple[int, int, int]:
    """The last revision, the lease that was kept, and the last one that was taken back after it."""
    while True:
        revision = control[ledger.REVISION]
        if control[ledger.DECIDED] == revision:
            kept, end = control[ledger.KEPT], control[ledger.END_OF_CUT]
            if control[ledger.REVISION] == revision:  # else that may be half of the next one
                return revision, kept, end
        threading.Event().wait(_UNDECIDED_S)


class Page:
    """Where the answers of one chunk are made safe, and kept until they are sent.

    Args:
        memory: of the file.
        offset: of the page in it.

    Attributes:
        memory: as given.
        control: the control block, which is the supervisor's.
        head: the lease of the first answer, then how many answers there are.
        durations: seconds of each.
        end: where in the memory the last text must end.
        count: how many answers there are, as far as this object was told.
        position: where in the memory the next text goes.
    """

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self.memory = memory
        self.control = memoryview(memory)[: ledger.CONTROL_BYTES].cast("Q")
        self.head = memoryview(memory)[offset : offset + ledger.PAGE.size].cast("Q")
        times = memoryview(memory)[offset + ledger.PAGE.size : offset + ledger.TEXTS_AT]
        self.durations = times.cast("d")
        self._times = times
        self._start = offset + ledger.TEXTS_AT
        self.end = offset + ledger.PAGE_BYTES - ledger.CHUNK_ITEMS  # so nils always have room
        self._lease = self.count = 0

    @property
    def last(self) -> int:
        """Highest lease that it holds."""
        return self._lease + self.count - 1

    def disown(self) -> None:
        """In a fork of this process: whoever touches it fails."""
        for view in (self.head, self.durations, self._times, self.control):
            view.release()
        with contextlib.suppress(BufferError):  # the other page has not let go of it yet
            self.memory.close()

    def begin(self, lease: int) -> None:
        """Forget what it holds; what comes is for the leases from this one on."""
        self.head[1] = 0
        self.head[0] = self._lease = lease
        self.count = self._sent = 0
        self.position = self._sent_to = self._start

    def skip(self, count: int = 1) -> None:
        """Leave out leases that have no outcome here; ``take`` comes before."""
        end = self.position + count * len(_NIL)
        self.memory[self.position : end] = _NIL * count
        self.position = self._sent_to = end
        self.count = self._sent = self.head[1] = self.count + count

    def take(self) -> tuple[int, bytes, bytes]:
        """The answers that were not taken yet: the first one's place, durations, texts."""
        first, start = self._sent, self._sent_to
        self._sent, self._sent_to = self.count, self.position
        durations = self._times[8 * first : 8 * self.count].tobytes()
        return first, durations, self.memory[start : self.position]


class Ledger:
    """Writes outcomes where they outlive this process.

    Args:
        file: descriptor of the file shared with the supervisor.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._offset = 0  # from the first record
        self._last = 0
        self._pages: list[Page] = []

    def page(self, lease: int, *, acked: int) -> Page:
        """Give an empty page for the answers of a chunk.

        Args:
            lease: its first lease.
            acked: highest lease whose outcome the supervisor has for certain.
        """
        if not self._pages:
            if os.fstat(self._file).st_size < ledger.RECORDS_AT:
                os.ftruncate(self._file, ledger.RECORDS_AT)
            memory = mmap.mmap(self._file, ledger.RECORDS_AT)
            self._pages = [Page(memory, ledger.page_at(i)) for i in range(ledger.PAGES)]
        page = self._pages.pop(0)
        if acked < page.last:
            raise LocalProtocolError("a chunk was sent before there was room for its answers")
        self._pages.append(page)
        page.begin(lease)
        return page

    def disown(self) -> None:
        """In a fork of this process: whoever writes fails."""
        self._file = -1
        for page in self._pages:
            page.disown()

    def clear(self) -> None:
        """Leave nothing for whoever comes next; this object is of no use after it."""
        os.ftruncate(self._file, 0)

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
                os.ftruncate(self._file, ledger.RECORDS_AT)
            self._offset = 0
        data = ledger.record(lease, payload)
        self._write(data + ledger.END)
        self._offset += len(data)
        self._last = max(self._last, lease)

    def _write(self, data: bytes) -> None:
        offset = ledger.RECORDS_AT + self._offset
        written = os.pwrite(self._file, data, offset)
        while written < len(data):
            written += os.pwrite(self._file, data[written:], offset + written)
