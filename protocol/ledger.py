"""Layout of a worker's ledger: finished outcomes that survive the worker's death.

A worker appends each outcome to a file that it shares with the supervisor before it counts as
finished. The file is a run of records from offset 0; each append also writes a zero header
(:data:`END`) behind itself, and a worker whose outcomes are acknowledged starts again at offset
0. Pure: bytes in, bytes out; :mod:`soloist.worker.ledger` writes and
:mod:`soloist.supervisor.ledger` reads.

Record: ``magic u32 | lease u64 | length u32 | crc32 u32 | payload``, the checksum over all else.

Invariants: leases never descend, as a worker finishes them in order, and what belongs to a lease
beside its outcome (a snapshot) comes before that; :data:`NO_LEASE` stands for what belongs to
none and is the last that a worker writes. What a SIGKILL cut short ends the run, wherever it
struck: in a payload or a header (the checksum tells), or between a record and its end mark (what
is left of an older record has a lower lease).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

HEADER = struct.Struct("<IQII")
END = bytes(HEADER.size)
NO_LEASE = 0
_MAGIC = 0x534F4C4F
_SUMMED = struct.Struct("<IQI")


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
