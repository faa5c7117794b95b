"""What a client can leave behind in its process is found."""

import io
import os
import signal
import subprocess
import sys
import threading

import pytest

from soloist.worker import guard
from soloist.worker.traces import Traces


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """A worker has one thread and no children; here others may come to their end meanwhile."""
    threads, children = set(threading.enumerate()), set(guard.children())
    all_children = guard.children

    def count():
        return 1 + len(set(threading.enumerate()) - threads)

    monkeypatch.setattr("soloist.worker.traces.threading.active_count", count)
    monkeypatch.setattr(
        "soloist.worker.traces.guard.children", lambda: list(set(all_children()) - children)
    )


def test_of_nothing_there_is_none():
    assert Traces().found() == ""


def test_a_thread():
    traces, end = Traces(), threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert "threads" in traces.found()
    end.set()
    thread.join()
    assert traces.found() == ""


def test_a_process_and_one_that_nobody_has_waited_for():
    traces = Traces()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert "processes" in traces.found()
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert "processes" in traces.found()
        child.wait()
    assert traces.found() == ""


def test_another_folder(monkeypatch, tmp_path):
    traces = Traces()
    monkeypatch.chdir(tmp_path)
    assert "folder" in traces.found()


def test_a_folder_that_is_gone(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    traces = Traces()
    assert traces.found() == ""
    monkeypatch.chdir(tmp_path)
    assert "folder" in traces.found()


def test_another_environment(monkeypatch):
    traces = Traces()
    monkeypatch.setenv("SOLOIST_TEST_TRACE", "1")
    assert "environment" in traces.found()


def test_another_umask():
    traces = Traces()
    before = os.umask(0o012)
    try:
        assert "umask" in traces.found()
        assert os.umask(0o012) == 0o012, "to look changes nothing"
    finally:
        os.umask(before)


def test_a_timer():
    traces = Traces()
    signal.setitimer(signal.ITIMER_VIRTUAL, 1000.0)
    assert "timers" in traces.found()
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    assert traces.found() == ""


def test_a_signal_handler():
    traces = Traces()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    assert "handlers" in traces.found()
    signal.signal(signal.SIGUSR1, before)
    assert traces.found() == ""


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_another_standard_output(monkeypatch, name):
    traces = Traces()
    monkeypatch.setattr(sys, name, io.StringIO())
    assert "output" in traces.found()


def test_another_file_in_the_place_of_the_standard_output(monkeypatch, tmp_path):
    traces = Traces()
    with (tmp_path / "x").open("w") as other:
        monkeypatch.setattr("soloist.worker.traces._OUTPUTS", (1, other.fileno()))
        assert "output" in traces.found()


def test_a_closed_one_is_none(monkeypatch):
    monkeypatch.setattr("soloist.worker.traces._OUTPUTS", (1_000_000,))
    assert Traces().found() == ""
