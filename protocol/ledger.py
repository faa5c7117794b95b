"""Layout of a worker's ledger: finished outcomes that survive the worker's death.

A worker puts each outcome into a file that it shares with the supervisor before it counts as
finished. The file begins with the *control block*, by which a part of a chunk is taken back, and
two *pages*, each for the answers of one chunk; a run of *records* follows at :data:`RECORDS_AT`,
for everything else. Pure: bytes in, bytes out; :mod:`soloist.worker.ledger` writes and
:mod:`soloist.supervisor.ledger` reads, but for the control block, with which it is the other way.

Records: each append also writes a zero header (:data:`END`) behind itself, and a worker whose
outcomes are acknowledged starts again at the first.

Record: ``magic u32 | lease u64 | length u32 | crc32 u32 | payload``, the checksum over all else.

Invariants: leases never descend, as a worker finishes them in order, and what belongs to a lease
beside its outcome (a snapshot) comes before that; :data:`NO_LEASE` stands for what belongs to
none and is the last that a worker writes. What a SIGKILL cut short ends the run, wherever it
struck: in a payload or a header (the checksum tells), or between a record and its end mark (what
is left of an older record has a lower lease).

Page: ``lease u64 | count u64 | durations f64[CHUNK_ITEMS] | texts``, native. It is written as
memory, for a system call for each answer would take longer than many a callable: first an answer,
then, in one store, the ``count`` that includes it. A SIGKILL comes between two stores; after it
everything that was stored is there. In the place of an answer that stands among the records there
is a ``nil``.

Control block: ``revision u64 | decided u64 | kept u64 | end u64``, native. Each time that a part of
a chunk is taken back there is a new revision, then it is decided: the leases after ``kept`` and up
to ``end`` are not to run; then ``decided`` is that revision. The worker compares the revision with
the last one that it knows before it runs the next prompt of a chunk. By the count in its page it
has said before that this one is next, so that either side sees what the other has done: see
:meth:`soloist.supervisor.ledger.Ledger.take_back`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

CHUNK_ITEMS = 1024
"""Most prompts in a chunk."""
PAGES = 2
"""A chunk may wait behind another; when a third comes the first is acknowledged."""
PAGE_BYTES = 512 * 1024
WORD_BYTES = 8
REVISION, DECIDED, KEPT, END_OF_CUT = range(4)
"""The words of the control block."""
CONTROL_BYTES = 64
"""A cache line, though the block is shorter: the count behind it is written all the time."""
PAGE = struct.Struct("=QQ")
"""What a page begins with: the lease of its first answer, and how many there are."""
TEXTS_AT = PAGE.size + 8 * CHUNK_ITEMS
RECORDS_AT = CONTROL_BYTES + PAGES * PAGE_BYTES
HEADER = struct.Struct("<IQII")
END = bytes(HEADER.size)
NO_LEASE = 0
_MAGIC = 0x534F4C4F
_SUMMED = struct.Struct("<IQI")


def page_at(page: int) -> int:
    """Where in the file a page begins."""
    return CONTROL_BYTES + page * PAGE_BYTES


def record(lease: int, payload: bytes) -> bytes:
    """Give the bytes of one record, without the end mark."""
    length = len(payload)
    checksum = zlib.crc32(payload, zlib.crc32(_SUMMED.pack(_MAGIC, lease, length)))
    return HEADER.pack(_MAGIC, lease, length, checksum) + payload


def scan(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield ``(lease, payload)`` of each whole record from the start of ``data``."""
    offset = 0
    last = -1
    while last != NO_LEASE and len(data) - offset >= HEADER.size:
        magic, lease, length, checksum = HEADER.unpack_from(data, offset)
        start = offset + HEADER.size
        if magic != _MAGIC or NO_LEASE < lease < last or length > len(data) - start:
            return
        payload = data[start : start + length]
        summed = zlib.crc32(data[offset : offset + _SUMMED.size])
        if zlib.crc32(payload, summed) != checksum:
            return
        yield lease, payload
        offset = start + length
        last = lease
