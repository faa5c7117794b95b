"""Zombies that a worker has adopted, told from children of the client's own."""

import subprocess
import sys

import psutil
import pytest

from soloist import Supervisor
from tests.support import LIMIT_S, eventually, run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")

# Its leader ends at once and leaves a process of its session behind, which ends soon: not at once,
# for on a busy machine the shell might come to reap it.
DAEMON = ["setsid", "sh", "-c", "sleep 0.3 & echo $!"]

SCRIPT = """
import subprocess, sys
from soloist.worker import adopted, guard
from tests.support import eventually
from tests.worker.test_adopted import DAEMON, is_zombie
guard.adopt_orphans()
own = [
    subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], **how)
    for how in ({}, {"start_new_session": True}, {"process_group": 0})
]
daemon = int(subprocess.check_output(DAEMON))
for pid in (daemon, *(process.pid for process in own)):
    eventually(lambda: is_zombie(pid))
orphans = adopted.Adopted()
orphans.reap()
print(daemon in guard.children(), [process.pid in guard.children() for process in own])
second = int(subprocess.check_output(DAEMON))
eventually(lambda: is_zombie(second))
orphans.reap()
print(is_zombie(second))  # it does not look that often
orphans._due = 0
orphans.reap()
print(is_zombie(second), [process.wait() for process in own])
"""


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_they_alone_are_reaped_and_exit_codes_of_others_are_kept():
    done = run_python("-c", SCRIPT, PYTHONWARNINGS="default")
    assert done.stdout.splitlines() == [
        "False [True, True, True]",
        "True",
        "False [3, 3, 3]",
    ], done.stderr


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_worker_gets_rid_of_them_between_turns(kind):
    def client(prompt):
        if prompt == "daemon":
            return subprocess.check_output(DAEMON, text=True)
        return prompt

    async def async_client(prompt):
        return client(prompt)

    with Supervisor(1, client=client if kind == "sync" else async_client) as sup:
        daemon = int(sup.submit("daemon").result(LIMIT_S).text)

        def is_gone() -> bool:
            sup.submit("a").result(LIMIT_S)
            return not psutil.pid_exists(daemon)

        eventually(is_gone)
        assert sup.stats().restarts == 0
