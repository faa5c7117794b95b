"""The supervisor's side of what it shares with one worker: grants and the ledger.

*Grants*: a pipe whose both ends this side keeps. It writes the number of each lease that it
sends; the worker reads one number before it runs that lease. A number is read by exactly one
side, by the kernel's word: taking the rest back revokes what has not started, and what is still
in the pipe after a death certainly never ran.

*Ledger*: an unlinked file into which the worker writes each outcome before it counts as
finished; it outlives the worker. See :mod:`soloist.protocol.ledger` for its layout.
"""

from __future__ import annotations

import itertools
import os
import platform
import struct
import tempfile
from collections.abc import Sequence
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
    """Grants to, and finished outcomes of, one incarnation of one worker."""

    def __init__(self) -> None:
        self.grants_r, self._grants_w = os.pipe()
        os.set_blocking(self.grants_r, False)
        os.set_blocking(self._grants_w, False)
        self.outcomes = _anonymous_file()

    def grant(self, numbers: Sequence[int]) -> None:
        """Let the worker run these leases; comes before they are sent."""
        os.write(self._grants_w, struct.pack(f"={len(numbers)}Q", *numbers))

    def take_back(self) -> list[int]:
        """Take every grant that the worker has not claimed; those leases never started."""
        taken: list[int] = []
        try:
            while data := os.read(self.grants_r, _PIPE_BYTES):
                taken += [number for (number,) in _NUMBER.iter_unpack(data)]
        except BlockingIOError:
            pass
        return taken

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
        head = os.pread(self.outcomes, ledger.PAGE_BYTES, page * ledger.PAGE_BYTES)
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
