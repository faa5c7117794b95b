"""What a client leaves behind in its process: a process that holds any is not given to another.

Owns the list of what is looked at. It is not complete, and cannot be: what a client has done to
modules it has imported stays, as it does between the prompts of a pool's worker.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from soloist.worker import guard

_OUTPUTS = (1, 2)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Traces:
    """Tells what has changed since its construction."""

    def __init__(self) -> None:
        self._before = _state()

    def found(self) -> str:
        """What is left, in words; empty if nothing is."""
        if threading.active_count() > 1:
            return "threads"
        if guard.children():
            return "processes"
        state = _state()
        return next((what for what, value in self._before.items() if state[what] != value), "")


def _state() -> dict[str, Any]:
    return {
        "another environment": dict(os.environ),
        "another working folder": _folder(),
        "another umask": _mask(),
        "another standard output": (sys.stdout, sys.stderr, *map(_file, _OUTPUTS)),
        "signal handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "timers": [signal.getitimer(timer) for timer in _TIMERS],
    }


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _file(descriptor: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:  # it is closed
        return None
    return status.st_dev, status.st_ino
