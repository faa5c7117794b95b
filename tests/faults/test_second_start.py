"""Starts that go wrong: tried again, told apart from each other, or told to who waits."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest

from soloist import RestartLimitReached, Supervisor, WorkerLost
from soloist.protocol.messages import Loaded
from soloist.supervisor import io_thread, process
from tests.support import LIMIT_S, eventually


def test_a_helper_that_dies_while_it_forks_costs_nothing(monkeypatch):
    """The first process has said that it has loaded when the helper dies without an answer."""
    has_loaded = threading.Event()
    finish = process._Fork.finish
    ghosts = []

    class Channel(io_thread.Channel):
        def receive(self):
            received = super().receive()
            if received is not None and any(type(m) is Loaded for m in received.messages):
                has_loaded.set()
            return received

    def first_fails(self, *number):
        worker = finish(self, *number)
        if not ghosts:
            ghosts.append(worker)
            assert has_loaded.wait(LIMIT_S)
            worker.signal(signal.SIGKILL)
            worker.close()
            raise EOFError("as from a helper that died")
        return worker

    monkeypatch.setattr(io_thread, "Channel", Channel)
    monkeypatch.setattr(process._Fork, "finish", first_fails)
    with Supervisor(1) as sup:
        assert [r.text for r in sup.map(["a", "b"], timeout_s=LIMIT_S)] == ["a", "b"]
        assert sup.stats().workers[0].pid != ghosts[0].pid


TRIES = 2
"""How often one start asks for a process."""


class TestRefused:
    """The system gives no more processes."""

    @staticmethod
    def refuse(monkeypatch, times):
        begin, left = process._Fork.__init__, [times]

        def refused(self, *arguments):
            if left[0]:
                left[0] -= 1
                raise OSError(errno.EAGAIN, "no more processes")
            begin(self, *arguments)

        monkeypatch.setattr(process._Fork, "__init__", refused)

    def test_for_a_while_who_waits_is_told_and_the_next_start_is_another(self, monkeypatch):
        with Supervisor(1) as sup:
            self.refuse(monkeypatch, TRIES)
            os.kill(sup.stats().workers[0].pid, signal.SIGKILL)
            eventually(lambda: not sup.stats().workers)
            with pytest.raises(WorkerLost, match="no more processes") as refused:
                sup.map(["a"], timeout_s=LIMIT_S)
            assert refused.value.started is False
            assert sup.map(["a"], timeout_s=LIMIT_S)[0].text == "a"

    def test_for_good_the_limit_is_reached_and_conversations_go_on(self, monkeypatch):
        with Supervisor(1, max_restarts=2) as sup:
            chat = sup.shared("chat")
            chat.query("a").result(LIMIT_S)
            self.refuse(monkeypatch, 1_000)
            os.kill(sup.stats().workers[0].pid, signal.SIGKILL)
            eventually(lambda: not sup.stats().workers)
            # The first of three was the death of a worker that had not answered anything.
            errors = [sup.submit("a").exception(LIMIT_S) for _ in range(4)]
            assert [type(error) for error in errors] == [WorkerLost] * 2 + [RestartLimitReached] * 2
            assert all("no more processes" in str(error) for error in errors)
            with pytest.raises(WorkerLost, match="no more processes"):
                sup.session()
            assert chat.query("b").result(LIMIT_S).text == "b"
