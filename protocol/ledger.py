"""Layout of a worker's ledger: finished outcomes that survive the worker's death.

A worker appends each outcome to a file that it shares with the supervisor before it counts as
finished. The file is a run of records from offset 0; each append also writes a zero header
behind itself, so that what remains of older, overwritten records is never read. Pure: bytes in,
bytes out; :mod:`soloist.worker.ledger` writes and :mod:`soloist.supervisor.ledger` reads.

Record: ``magic u32 | lease u64 | length u32 | crc32 u32 | payload``. A record that was cut short
by a SIGKILL fails its length or its checksum and ends the run.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

HEADER = struct.Struct("<IQII")
_MAGIC = 0x534F4C4F
END = bytes(HEADER.size)


def record(lease: int, payload: bytes) -> bytes:
    """Give the bytes of one record, without the end mark."""
    return HEADER.pack(_MAGIC, lease, len(payload), zlib.crc32(payload)) + payload


def scan(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield ``(lease, payload)`` of each whole record from the start of ``data``."""
    offset = 0
    while len(data) - offset >= HEADER.size:
        magic, lease, length, checksum = HEADER.unpack_from(data, offset)
        start = offset + HEADER.size
        payload = data[start : start + length]
        if magic != _MAGIC or len(payload) != length or zlib.crc32(payload) != checksum:
            return
        yield lease, payload
        offset = start + length
