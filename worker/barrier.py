"""The worker's side of a memory barrier from outside: see :mod:`soloist.supervisor.barrier`."""

from __future__ import annotations

import ctypes
import os

_SYS_MEMBARRIER = 324  # of x86-64
_REGISTER_GLOBAL_EXPEDITED = 1 << 2


def be_included() -> None:
    """Have the supervisor's barriers include this process.

    Raises:
        OSError: the system does not know them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_MEMBARRIER, _REGISTER_GLOBAL_EXPEDITED, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"membarrier: {os.strerror(error)}")
