"""Run a script where nothing but loopback can be reached, in an environment built from scratch.

Owns the launcher for every test that starts a real agent CLI. Linux alone: the script runs in a
network namespace of its own whose only interface is ``lo``. Run as a program, this file brings
``lo`` up and then becomes the script.

Invariants: nothing of the caller's environment is passed on; when ``run_isolated`` returns or
raises, no process is left in the namespace.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

_ROOT = Path(__file__).resolve().parent.parent
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_NAMESPACE_FD = "SOLOIST_TEST_NAMESPACE_FD"


STUB_PORT = 8000
"""A port that is free in every namespace: nothing else lives there."""


class IsolationUnavailable(Exception):
    """This machine grants no network namespace; the message says why."""


def run_isolated(
    script_args: Sequence[str], env: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run ``python *script_args`` in a network namespace that has only loopback.

    The working directory is the repository's root, so that ``-m tests...`` works too.

    Args:
        script_args: what follows the interpreter's name on the command line.
        env: the script's whole environment.
        timeout_s: seconds after which everything in the namespace is killed.

    Raises:
        IsolationUnavailable: no namespace can be made here; skip the test.
        subprocess.TimeoutExpired: the script was still running after ``timeout_s``.
    """
    unshare = _unshare_command()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [*unshare, sys.executable, __file__, *script_args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=_ROOT,
                env={**env, _NAMESPACE_FD: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                text=True,
            )
        with _namespace_from(ours) as namespace:
            try:
                stdout, stderr = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired as error:
                _kill_all_in(namespace)
                error.stdout, error.stderr = process.communicate()
                raise
            finally:
                _kill_all_in(namespace)
                process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextlib.contextmanager
def _namespace_from(launcher: socket.socket) -> Iterator[str]:
    """The name of the script's namespace, which stays its own until the end.

    The kernel gives the name of a namespace that has ended to the next one, another test's; so
    this one is held open until nobody will be killed for being in it.
    """
    _, (held,), _, _ = socket.recv_fds(launcher, 1, 1)
    try:
        namespace = os.readlink(f"/proc/self/fd/{held}")
        assert namespace != os.readlink("/proc/self/ns/net"), "the script must not run out here"
        yield namespace
    finally:
        os.close(held)


def output_of(script_args: Sequence[str], folder: Path, timeout_s: float) -> str:
    """What a script with an agent's CLI in it prints; the test is skipped without a namespace.

    Args:
        script_args: see ``run_isolated``.
        folder: for the CLI's own files.
        timeout_s: see ``run_isolated``.
    """
    import pytest  # the launcher, which is this file too, needs none of it

    try:
        done = run_isolated(script_args, agent_environment(folder), timeout_s)
    except IsolationUnavailable as reason:
        pytest.skip(f"the real CLI runs only where nothing can leave the machine: {reason}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def agent_environment(folder: Path, port: int = STUB_PORT) -> dict[str, str]:
    """The whole environment of a script that starts the real agent CLI against the API stub.

    Args:
        folder: scratch folder; it becomes the home and holds the CLI's configuration.
        port: where the script lets ``tests.api_stub`` listen.
    """
    return {
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "CLAUDE_CONFIG_DIR": str(folder / "config"),
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "ANTHROPIC_API_KEY": "dummy",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
    }


@functools.cache
def _unshare_command() -> tuple[str, ...]:
    """The way of making a namespace that works here: as root, else in a user namespace."""
    program = shutil.which("unshare")
    if program is None:
        raise IsolationUnavailable("the program unshare (util-linux) is not installed")
    for flags in ("-n", "-rn"):
        tried = subprocess.run([program, flags, "true"], capture_output=True, text=True)
        if tried.returncode == 0:
            return (program, flags)
    raise IsolationUnavailable(f"no network namespace can be made: {tried.stderr.strip()}")


def _kill_all_in(namespace: str) -> None:
    """End whatever lives in the namespace, also what left the script's process tree."""
    killed = [process for process in psutil.process_iter() if _namespace_of(process) == namespace]
    for process in killed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(killed, timeout=1)


def _namespace_of(process: psutil.Process) -> str | None:
    try:
        return os.readlink(f"/proc/{process.pid}/ns/net")
    except OSError:  # it ended meanwhile, or belongs to another user
        return None


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _become(script_args: list[str]) -> None:
    _bring_loopback_up()
    with socket.socket(fileno=int(os.environ.pop(_NAMESPACE_FD))) as caller:
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        socket.send_fds(caller, [b"\0"], [namespace])
    os.execv(sys.executable, [sys.executable, *script_args])


if __name__ == "__main__":
    _become(sys.argv[1:])
