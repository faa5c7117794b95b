"""What a figure depends on beside the code: the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import psutil
import zmq

MIB = 1024 * 1024
OWN = ("soloist", "pyzmq", "msgpack", "multiprocess", "claude-agent-sdk")


def facts() -> dict[str, str]:
    """The machine, as far as it matters."""
    return {
        "processor": _processor(),
        "processors": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libzmq": zmq.zmq_version(),
        "load": f"{os.getloadavg()[0]:.2f} before the run",
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def own_mib(process: psutil.Process) -> float:
    """What a process holds that no other does (USS), in MiB; nothing if it has ended."""
    try:
        return float(process.memory_full_info().uss) / MIB
    except psutil.Error:
        return 0.0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
