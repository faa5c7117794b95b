"""What several test modules need: scripts in processes of their own, and who is left of them."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from soloist.supervisor.process import RUN_VARIABLE

ROOT = Path(__file__).parent.parent
LIMIT_S = 30.0
"""After this long a wait counts as failed; no test takes this long when all is well."""


def eventually(condition, timeout_s: float = LIMIT_S):
    """Wait for something that has no event to wait on; give what ``condition`` gave."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.005)
    return value


@contextlib.contextmanager
def nothing_for_the_collector() -> Iterator[None]:
    """What is not needed any more must be free already: no object knows itself."""
    gc.collect()
    gc.disable()
    try:
        yield
        assert not gc.collect()
    finally:
        gc.enable()


def name_of(value: object) -> str:
    """The value in a test's name, the same in every process: with no address."""
    return re.sub(r" (of \w+ object )?at 0x[0-9a-f]+", "", repr(value))


def is_running(future) -> bool:
    return eventually(future.running)


def descendants_of_runs(run_dirs: set[str]) -> list[psutil.Process]:
    """Every live process that a Supervisor with one of these run folders has started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(RUN_VARIABLE) in run_dirs:
                found.append(process)
    return found


def run_dirs_of(pid: int) -> set[str]:
    """The run folders of the Supervisors that live in process ``pid``."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            run_dir = process.environ().get(RUN_VARIABLE)
            if run_dir and process.ppid() == pid:
                found.add(run_dir)
    return found


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **more}


def run_python(*args: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess:
    """Run a Python process to its end."""
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=cwd,
        env=environment(**more),
        check=False,
    )
