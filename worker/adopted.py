"""Zombies that a worker has adopted: daemons of tools, whose parents ended before them.

A worker is a subreaper, so that nothing escapes; what it adopts is its own to wait for, once that
has ended, and nobody else will. Owns: reaping those, between turns. Must not: reap a process that
the user's code has started, which would lose its exit code, so it never waits for just any child.

Invariant: only what certainly was not started by this process is reaped. That is told by the
session. A process that is not the leader of its session got it from its parent; if it is not ours,
then we were not that parent. The rest is left alone, as a leader may be a child of the client's
(``start_new_session``), and so may whatever is in our own session: what of those was adopted stays
a zombie until the worker ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from soloist.worker import guard

EVERY_S = 1.0
"""How often children are looked at, at most."""


class Adopted:
    """The children of this process that others have started (Linux)."""

    def __init__(self) -> None:
        self._session = os.getsid(0)
        self._due = 0.0 if sys.platform == "linux" else float("inf")

    def reap(self) -> None:
        """Reap those that have ended; to be called between turns, as often as one likes."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + EVERY_S
        if os.getsid(0) != self._session:  # the user's code has moved us: nothing is certain now
            return
        for pid in guard.children():
            with contextlib.suppress(OSError):  # somebody else has reaped it just now
                self._reap(pid)

    def _reap(self, pid: int) -> None:
        if os.getsid(pid) in {self._session, pid}:
            return
        descriptor = os.pidfd_open(pid)
        try:
            # Looked at again, for until it was opened another might have come by this pid.
            if os.getsid(pid) not in {self._session, pid}:
                os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
        finally:
            os.close(descriptor)
