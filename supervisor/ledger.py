"""The supervisor's side of what it shares with one worker: grants and the ledger.

*Grants*: a pipe whose both ends this side keeps. It writes the number of each lease that it
sends; the worker reads one number before it runs that lease. A number is read by exactly one
side, by the kernel's word: taking the rest back revokes what has not started, and what is still
in the pipe after a death certainly never ran.

Of a chunk only the first lease's number goes that way where memory can be shared with care: see
:mod:`soloist.supervisor.barrier`. The worker counts its answers in a page of the ledger, and the
count says which prompt comes next: it is claimed thereby.

*Ledger*: an unlinked file into which the worker writes each outcome before it counts as
finished; it outlives the worker. See :mod:`soloist.protocol.ledger` for its layout.
"""

from __future__ import annotations

import array
import itertools
import os
import platform
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from soloist.protocol import codec, ledger
from soloist.protocol.errors import RemoteProtocolError
from soloist.protocol.messages import Answer, Answers, Broken, Failure, Loaded, Snapshot

_NUMBER = struct.Struct("=Q")
_PIPE_BYTES = 64 * 1024
STORES_IN_ORDER = platform.machine() in {"x86_64", "AMD64"}
"""Whether what a living worker has stored in a page can be trusted."""
Safe: TypeAlias = Answer | Answers | Failure | Loaded | Broken | Snapshot
"""What a ledger holds."""


class Ledger:
    """Grants to, and finished outcomes of, one incarnation of one worker.

    Args:
        barrier: has every worker see what was written before it, and this process what workers
            wrote; ``None`` if there is no such thing: each prompt of a chunk is claimed through the
            pipe then, as the worker has to know.
    """

    def __init__(self, barrier: Callable[[], None] | None = None) -> None:
        self.grants_r, self._grants_w = os.pipe()
        os.set_blocking(self.grants_r, False)
        os.set_blocking(self._grants_w, False)
        self.outcomes = _anonymous_file()
        self._barrier = barrier
        self._revision = 0
        self._chunks: deque[range] = deque(maxlen=ledger.PAGES)  # leases that can be taken back

    def grant(self, numbers: Sequence[int]) -> None:
        """Let the worker run these leases; comes before they are sent."""
        os.write(self._grants_w, array.array("Q", numbers))

    def grant_chunk(self, numbers: range) -> None:
        """Let the worker run these leases, which it gets as one chunk; as ``grant``."""
        if self._barrier is None:
            self.grant(numbers)
            return
        self._chunks.append(numbers)
        self.grant((numbers.start,))

    def take_back(self) -> list[int]:
        """Take every grant that the worker has not claimed; those leases never started."""
        taken: list[int] = []
        for number in self._unclaimed():
            for chunk in self._chunks:
                if chunk.start == number:
                    self._chunks.remove(chunk)
                    taken += chunk
                    break
            else:
                taken.append(number)
        if self._chunks:  # the last that is left was claimed: it runs, or did
            taken[:0] = self._cut(self._chunks.pop())
        return taken

    def _unclaimed(self) -> Iterator[int]:
        """Take what is in the pipe."""
        try:
            while data := os.read(self.grants_r, _PIPE_BYTES):
                for (number,) in _NUMBER.iter_unpack(data):
                    yield number
        except BlockingIOError:
            pass

    def _cut(self, chunk: range) -> range:
        """Take back what the worker has not claimed of a chunk that it has begun.

        The worker counts, then looks for a new revision; here there is a new revision, a barrier,
        then a look at the count. So if the worker has not seen the revision when it runs a prompt,
        that prompt is seen here to be next, or past. If it sees the revision it waits for the
        decision: the prompt that comes next for it may have been seen here, or not.

        Source: asymmetric Dekker synchronization (Dice, Huang, Yang, 2001).
        """
        if self._claimed(chunk) < chunk[-1]:
            assert self._barrier is not None
            self._revision += 1
            self._write(ledger.REVISION, self._revision)
            try:
                self._barrier()
                claimed = self._claimed(chunk)
            except OSError:  # this process may no longer ask for one: the chunk has to run
                claimed = chunk[-1]
            self._write(ledger.KEPT, claimed, chunk[-1])
            self._write(ledger.DECIDED, self._revision)
        else:
            claimed = chunk[-1]
        self._chunks.append(range(chunk.start, claimed + 1))
        return range(claimed + 1, chunk.stop)

    def _claimed(self, chunk: range) -> int:
        """The highest lease of a chunk that the worker has claimed, at least the first."""
        for page in range(ledger.PAGES):
            at = ledger.page_at(page)
            # One after the other: before it changes the lease, the worker sets the count to 0.
            if self._read(at) == chunk.start:
                return min(chunk.start + self._read(at + ledger.WORD_BYTES), chunk[-1])
        return chunk.start

    def _read(self, at: int) -> int:
        data = os.pread(self.outcomes, ledger.WORD_BYTES, at)
        return int(_NUMBER.unpack(data)[0]) if len(data) == ledger.WORD_BYTES else 0

    def _write(self, word: int, *values: int) -> None:
        data = struct.pack(f"={len(values)}Q", *values)
        os.pwrite(self.outcomes, data, word * ledger.WORD_BYTES)

    def read(self, *, is_over: bool) -> list[Safe]:
        """What the worker made safe, in order: outcomes, and how far its client came.

        Args:
            is_over: whether the worker is dead. What stands in a page can be trusted while it
                lives only if this machine shows stores in the order in which they were made.
        """
        size = os.fstat(self.outcomes).st_size - ledger.RECORDS_AT
        data = os.pread(self.outcomes, max(0, size), ledger.RECORDS_AT)
        safe: list[Safe] = []
        for _, payload in ledger.scan(data):
            try:
                message = codec.decode(payload)
            except RemoteProtocolError:
                break
            if isinstance(message, Answer | Failure | Loaded | Broken | Snapshot):
                safe.append(message)
        if not (is_over or STORES_IN_ORDER):
            return safe
        answers = [answers for page in range(ledger.PAGES) for answers in self._page(page)]
        return _in_order(safe, answers) if answers else safe

    def _page(self, page: int) -> list[Answers]:
        """The answers of a chunk, those together that follow each other."""
        head = os.pread(self.outcomes, ledger.PAGE_BYTES, ledger.page_at(page))
        if len(head) < ledger.TEXTS_AT:
            return []
        lease, count = ledger.PAGE.unpack_from(head)
        if not 0 < count <= ledger.CHUNK_ITEMS:
            return []
        try:
            texts = codec.decode_texts(head[ledger.TEXTS_AT :], count)
        except RemoteProtocolError:
            return []
        found: list[Answers] = []
        for is_text, group in itertools.groupby(range(count), lambda i: type(texts[i]) is str):
            if is_text:
                places = list(group)
                first, end = places[0], places[-1] + 1
                durations = head[ledger.PAGE.size + 8 * first : ledger.PAGE.size + 8 * end]
                found.append(Answers(lease + first, durations, texts[first:end]))
        return found

    def close(self) -> None:
        """Close this side's descriptors."""
        for descriptor in (self.grants_r, self._grants_w, self.outcomes):
            os.close(descriptor)


def _in_order(safe: list[Safe], answers: list[Answers]) -> list[Safe]:
    """Put answers from pages among records; what is about the worker stays first, or last."""
    outcomes = [*(s for s in safe if isinstance(s, Answer | Failure | Snapshot)), *answers]
    loaded = [s for s in safe if isinstance(s, Loaded)]
    broken = [s for s in safe if isinstance(s, Broken)]
    return [*loaded, *sorted(outcomes, key=lambda outcome: outcome.lease), *broken]


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("soloist-ledger", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
