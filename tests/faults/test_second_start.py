"""A start that is tried again: what the first process said is not taken for the second's word."""

from __future__ import annotations

import signal
import threading

from soloist import Supervisor
from soloist.protocol.messages import Ready
from soloist.supervisor import io_thread, process
from tests.support import LIMIT_S


def test_a_helper_that_dies_while_it_forks_costs_nothing(monkeypatch):
    """The first process is READY and has said so when the helper dies without an answer."""
    is_ready = threading.Event()
    finish = process._Fork.finish
    ghosts = []

    class Channel(io_thread.Channel):
        def receive(self):
            received = super().receive()
            if received is not None and any(type(m) is Ready for m in received[2]):
                is_ready.set()
            return received

    def first_fails(self, *number):
        worker = finish(self, *number)
        if not ghosts:
            ghosts.append(worker)
            assert is_ready.wait(LIMIT_S)
            worker.signal(signal.SIGKILL)
            worker.close()
            raise EOFError("as from a helper that died")
        return worker

    monkeypatch.setattr(io_thread, "Channel", Channel)
    monkeypatch.setattr(process._Fork, "finish", first_fails)
    with Supervisor(1) as sup:
        assert [r.text for r in sup.map(["a", "b"], timeout_s=LIMIT_S)] == ["a", "b"]
        assert sup.stats().workers[0].pid != ghosts[0].pid
