"""A memory barrier in workers, from outside: Linux's ``membarrier``.

A worker that writes one word of shared memory and then reads another needs a barrier in between,
lest its write is seen after its read. It does so before each prompt, and hardly ever is there
somebody who cares. So it has none, and whoever does care has the kernel execute one on every
processor that runs a process that has asked to be included (:mod:`soloist.worker.barrier`).

Source: membarrier(2), the commands GLOBAL_EXPEDITED.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

from soloist.supervisor.ledger import STORES_IN_ORDER

_SYS_MEMBARRIER = 324  # of x86-64
_QUERY = 0
_GLOBAL_EXPEDITED = 1 << 1
_REGISTER_GLOBAL_EXPEDITED = 1 << 2


def find() -> Callable[[], None] | None:
    """Give what executes a barrier, if this machine has it and memory needs no other care."""
    if sys.platform != "linux" or not STORES_IN_ORDER or sys.maxsize < 1 << 32:
        return None
    call = ctypes.CDLL(None, use_errno=True).syscall
    needed = _GLOBAL_EXPEDITED | _REGISTER_GLOBAL_EXPEDITED
    known = call(_SYS_MEMBARRIER, _QUERY, 0, 0)
    if known < 0 or known & needed != needed:
        return None

    def barrier() -> None:
        if call(_SYS_MEMBARRIER, _GLOBAL_EXPEDITED, 0, 0):
            error = ctypes.get_errno()
            raise OSError(error, f"membarrier: {os.strerror(error)}")

    return barrier
