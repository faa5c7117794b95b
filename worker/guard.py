"""Guards: processes that die with their parent and take every descendant along.

The tree is ``supervisor -> guard -> guard -> guard -> forkserver -> worker -> anything``. Guards
and workers are child subreapers (Linux): whatever loses its parent below a worker becomes the
worker's child, whatever loses its worker becomes a guard's child, where exactly one child is
legitimate. A guard ends every other child. When its own parent or its legitimate child is gone it
ends children until ``waitpid`` says that there are none, then removes the run folder and exits.

Owns: the guards' loop and the death signal of workers. Must not: walk the process tree, trust a
pid that it has not reaped (a child keeps its pid until we reap it), or change the user's own
process.

Invariants: a guard is told to clean up (SIGTERM), never killed by another guard that still has
time, so that a second kill amid the clean-up finds as many of them as before. Guards block
signals instead of ignoring them: an ignored signal would pass on to the agents' programs.

Weaker elsewhere: without subreapers (macOS) a daemon that leaves its parent escapes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Never

LEVELS = 3
LOCK_NAME = "lock"
"""File in the run folder that the supervisor keeps locked as long as it lives."""
POLL_S = 0.2
"""How often a guard looks for orphans and for its parent; deaths of children wake it at once."""
CLEANUP_S = 1.0
"""How long an inner guard may take to clean up before its parent ends it."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_IS_LINUX = sys.platform == "linux"


def stand(run_dir: str, parent: int, levels: int = LEVELS) -> None:
    """Fork ``levels`` guards; return in the innermost child, which they watch.

    Args:
        run_dir: folder to remove once everything below is gone.
        parent: pid of the process whose end must end this tree.
        levels: number of guards.
    """
    os.setpgid(0, 0)
    for _ in range(levels):
        adopt_orphans()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        own = os.getpid()
        child = os.fork()
        if child:
            _Guard(parent, child, run_dir).watch()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        parent = own
    die_with_parent(parent)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own (Linux)."""
    if _IS_LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` (its parent's pid) ends (Linux).

    It exits at once if ``parent`` ended before the signal was set.
    """
    if _IS_LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def remove_abandoned(run_dir: str) -> None:
    """Remove a run folder if the supervisor that holds its lock is gone."""
    with contextlib.suppress(OSError), (Path(run_dir) / LOCK_NAME).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(run_dir, ignore_errors=True)


def children() -> list[int]:
    """Pids of this process's direct children, zombies included."""
    pid = os.getpid()
    with contextlib.suppress(OSError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    import psutil  # noqa: PLC0415 - only where /proc has no list of children

    return [child.pid for child in psutil.Process(pid).children()]


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


class _Guard:
    """One guard's life; never returns to the caller."""

    def __init__(self, parent: int, child: int, run_dir: str) -> None:
        self._parent = parent
        self._child = child
        self._run_dir = run_dir

    def watch(self) -> Never:
        """Wait for the parent's or the child's end or an order, then clean up and exit."""
        try:
            _close_descriptors()
            while os.getppid() == self._parent:
                known = set(children())  # first: what comes by the child's death is no stray
                if not self._has_child():
                    break
                for stray in known.intersection(children()) - {self._child}:
                    _kill(stray, signal.SIGKILL)
                if _wait_signal(POLL_S) in {signal.SIGTERM, signal.SIGHUP}:
                    break
            self._clean_up()
        finally:
            os._exit(0)

    def _has_child(self) -> bool:
        """Reap whatever has ended; whether the legitimate child has not."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == self._child:
                return False
            if pid == 0:
                return True

    def _clean_up(self) -> None:
        """Let the inner guards finish, end every other child, until none is left.

        If the next guard is dead, the one after that is a child now.
        """
        deadline = time.monotonic() + CLEANUP_S
        while _reap():
            for pid in children():
                is_told = _is_in_our_group(pid) and time.monotonic() < deadline
                _kill(pid, signal.SIGTERM if is_told else signal.SIGKILL)
            _wait_signal(0.01)
        remove_abandoned(self._run_dir)


def _reap() -> bool:
    """Reap whatever has ended; whether any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _is_in_our_group(pid: int) -> bool:
    """Whether it is a guard or the forkserver; workers and all below them are in other groups."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid) == os.getpgrp()
    return False


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)  # noqa: TID251 - one of the two places that signal processes


def _wait_signal(timeout_s: float) -> int | None:
    if not hasattr(signal, "sigtimedwait"):  # macOS
        time.sleep(min(timeout_s, 0.05))  # noqa: TID251 - it has no wait with a time limit
        return signal.SIGTERM if signal.SIGTERM in signal.sigpending() else None
    info = signal.sigtimedwait(_SIGNALS, timeout_s)
    return info.si_signo if info else None


def _close_descriptors() -> None:
    """Keep nothing open: a held pipe or socket would look like a living process."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX") if not _IS_LINUX else _highest_descriptor() + 1)


def _highest_descriptor() -> int:
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
