"""Looks at processes, on a thread of its own: the I/O thread would wait for each look.

Owns that thread. Decides nothing. Invariants: every job is answered, once, unless the monitor is
closed first; a process that has gone, or may not be looked at, is an unknown; no thread before
the first look.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import psutil


class Job(NamedTuple):
    """A worker to look at, a descendant of this process.

    ``wants_memory`` asks what it and all below it take.
    """

    number: int
    incarnation: int
    pid: int
    wants_memory: bool = False


class Sighting(NamedTuple):
    """How a worker looked.

    ``state`` is one of psutil's ``STATUS_*``, empty if unknown; ``tree_rss_bytes`` is the resident
    memory of the worker's process and all below it, ``None`` if unknown or not asked for.
    """

    number: int
    incarnation: int
    state: str
    tree_rss_bytes: int | None

    @property
    def is_stopped(self) -> bool:
        """Whether the process is stopped; one that a debugger holds is not."""
        return self.state == psutil.STATUS_STOPPED


class Monitor:
    """Looks at workers.

    Args:
        tell: gets what was seen, the jobs of one ``look`` together; called on the thread.
    """

    def __init__(self, tell: Callable[[Sequence[Sighting]], None]) -> None:
        self._tell = tell
        self._jobs: queue.SimpleQueue[Sequence[Job] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def look(self, jobs: Sequence[Job]) -> None:
        """Have these workers looked at, soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="soloist-monitor", daemon=True)
            self._thread.start()
        self._jobs.put(jobs)

    def close(self, timeout_s: float) -> None:
        """Look no more, and wait for the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (jobs := self._jobs.get()) is not None:
            self._tell(look(jobs))


def look(jobs: Iterable[Job]) -> list[Sighting]:
    """Look at these workers now; one pass over all processes, if memory is asked for."""
    jobs = list(jobs)
    memory = _tree_memory([job.pid for job in jobs if job.wants_memory])
    return [
        Sighting(
            job.number,
            job.incarnation,
            _state(job.pid),
            memory.get(job.pid) if job.wants_memory else None,
        )
        for job in jobs
    ]


def _state(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except (psutil.Error, OSError):
        return ""


def _tree_memory(roots: Sequence[int]) -> dict[int, int]:
    """Resident bytes of each of these processes with all below it."""
    if not roots:
        return {}
    children: dict[int, list[psutil.Process]] = {}
    found: dict[int, psutil.Process] = {}
    # Of this process: that reads the list of all processes once, and looks closer at few.
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            children.setdefault(process.ppid(), []).append(process)
            found[process.pid] = process
    return {root: _sum(found[root], children) for root in roots if root in found}


def _sum(root: psutil.Process, children: dict[int, list[psutil.Process]]) -> int:
    total, tree = 0, [root]
    seen = {root.pid}
    while tree:
        process = tree.pop()
        total += _rss(process)
        for child in children.get(process.pid, ()):
            if child.pid not in seen:  # ids may have been used again while the list was read
                seen.add(child.pid)
                tree.append(child)
    return total


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except (psutil.Error, OSError):
        return 0  # it has just gone
