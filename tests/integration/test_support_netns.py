"""The launcher that every test of a real agent CLI relies on: nothing gets out of it."""

import subprocess

import psutil
import pytest

from tests import support_netns
from tests.support_netns import IsolationUnavailable, run_isolated

TIMEOUT_S = 20


def isolated(program, env, timeout_s=TIMEOUT_S):
    try:
        return run_isolated(["-c", program], env, timeout_s)
    except IsolationUnavailable as reason:
        pytest.skip(str(reason))


def test_only_loopback_can_be_reached():
    program = """
import socket
print([name for _, name in socket.if_nameindex()])
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError as error:
    print(error.errno)
"""
    done = isolated(program, {})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["['lo']", "101"]  # the network is unreachable


def test_the_environment_is_what_was_given(monkeypatch):
    monkeypatch.setenv("SECRET", "must stay here")
    done = isolated("import os; print(sorted(os.environ))", {"LC_ALL": "C", "ONLY": "this"})
    assert done.stdout == "['LC_ALL', 'ONLY']\n"


def test_nothing_outlives_it():
    program = """
import subprocess, sys
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
print(left.pid, flush=True)
if {hangs}:
    left.wait()
"""
    done = isolated(program.format(hangs=False), {})
    with pytest.raises(subprocess.TimeoutExpired) as late:
        isolated(program.format(hangs=True), {}, timeout_s=1)
    for output in (done.stdout, late.value.stdout):
        assert not is_running(int(output))


def test_no_other_namespace_takes_its_name_before_the_last_look_for_its_processes(monkeypatch):
    """Else whatever runs there would be killed: the kernel uses a free name again at once."""
    kill_all_in, others = support_netns._kill_all_in, []

    def with_another(namespace):
        look = [*support_netns._unshare_command(), "readlink", "/proc/self/ns/net"]
        for _ in range(30):  # a name is free some milliseconds after the last process's end
            others.append(subprocess.run(look, capture_output=True, text=True, check=True).stdout)
        kill_all_in(namespace)
        assert f"{namespace}\n" not in others

    monkeypatch.setattr(support_netns, "_kill_all_in", with_another)
    assert isolated("print('done')", {}).stdout == "done\n"
    assert others


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
