"""Looks at real processes."""

import os
import queue
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from soloist.supervisor.monitor import Job, Monitor, Sighting, look
from tests.support import LIMIT_S, eventually

WITH_CHILD = (
    "import subprocess, sys\n"
    "ballast = bytearray(30_000_000)\n"
    "child = subprocess.Popen([sys.executable, '-c', "
    "'import sys; b = bytearray(30_000_000); print(1, flush=True); sys.stdin.read()'])\n"
    "child.wait()\n"
)


@pytest.fixture
def process():
    with subprocess.Popen(
        [sys.executable, "-c", WITH_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"1\n"
        yield process
        process.send_signal(signal.SIGCONT)
        process.stdin.close()


def test_a_stopped_process_is_seen_as_stopped_and_no_other(process):
    process.send_signal(signal.SIGSTOP)
    jobs = [Job(3, 7, process.pid), Job(4, 1, os.getpid())]
    eventually(lambda: look(jobs)[0].is_stopped)
    stopped, other = look(jobs)
    assert stopped == Sighting(3, 7, psutil.STATUS_STOPPED, None)
    assert other[:2] == (4, 1)
    assert not other.is_stopped
    process.send_signal(signal.SIGCONT)
    eventually(lambda: not look(jobs)[0].is_stopped)


def test_one_that_a_debugger_holds_is_not_stopped():
    assert not Sighting(1, 1, psutil.STATUS_TRACING_STOP, None).is_stopped


def test_one_that_has_gone_is_unknown(process):
    process.kill()
    process.wait()
    job = Job(1, 2, process.pid, wants_memory=True)
    assert look([job]) == [Sighting(1, 2, "", None)]


def test_one_that_may_not_be_looked_at_is_unknown(monkeypatch):
    def denied(pid):
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", denied)
    assert look([Job(1, 2, os.getpid())]) == [Sighting(1, 2, "", None)]


def test_memory_is_that_of_the_whole_tree_and_only_if_wanted(process):
    alone = psutil.Process(process.pid).memory_info().rss
    tree, none = look([Job(1, 1, process.pid, wants_memory=True), Job(2, 1, process.pid)])
    assert tree.tree_rss_bytes > alone + 30_000_000
    assert tree.state
    assert none.tree_rss_bytes is None


def test_what_goes_while_memory_is_summed_counts_nothing(monkeypatch):
    class Going:
        """Its second child has gone when it is asked for its parent, the first a moment later."""

        def __init__(self, pid):
            self.pid = pid

        def ppid(self):
            if self.pid == 9:
                raise psutil.NoSuchProcess(self.pid)
            return os.getpid()

        def status(self):
            return psutil.STATUS_RUNNING

        def children(self, recursive):
            assert recursive
            return [Going(8), Going(9)]

        def memory_info(self):
            raise psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(psutil, "Process", lambda pid=None: Going(pid or os.getpid()))
    sightings = look([Job(1, 1, 8, wants_memory=True), Job(2, 1, 9, wants_memory=True)])
    assert [sighting.tree_rss_bytes for sighting in sightings] == [0, None]


def test_the_monitor_answers_each_order_on_a_thread_of_its_own():
    seen = queue.SimpleQueue()
    monitor = Monitor(lambda sightings: seen.put((threading.current_thread().name, sightings)))
    for number in range(3):
        monitor.look([Job(number, 1, os.getpid()), Job(number, 2, os.getpid())])
    for number in range(3):
        name, sightings = seen.get(timeout=LIMIT_S)
        assert name == "soloist-monitor"
        assert [sighting[:2] for sighting in sightings] == [(number, 1), (number, 2)]
    monitor.close(LIMIT_S)
    assert "soloist-monitor" not in {thread.name for thread in threading.enumerate()}


def test_without_an_order_there_is_no_thread():
    before = set(threading.enumerate())
    monitor = Monitor(print)
    assert set(threading.enumerate()) == before
    monitor.close(LIMIT_S)
