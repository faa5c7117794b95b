"""Edges at which this system once broke: each test names what went wrong."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from soloist import InvalidOptions, RequestTimeout, Supervisor, SupervisorClosed
from soloist.supervisor import pool
from tests.support import LIMIT_S, eventually, run_python


def same(prompt: str) -> str:
    return prompt


def test_no_wakeup_of_an_async_worker_is_lost():
    """A send swallowed the edge of the socket's descriptor; the next request hung for ever."""
    with Supervisor(size=2) as sup:
        for burst in range(150):
            futures = [sup.submit(str(i)) for i in range(1 + burst % 40)]
            assert [f.result(LIMIT_S).text for f in futures] == [
                str(i) for i in range(len(futures))
            ]


def test_a_timeout_of_months_is_an_ordinary_timeout():
    """epoll counts milliseconds in 32 bits."""
    with Supervisor(size=1, client=same, timeout_s=90 * 86_400) as sup:
        assert sup.submit("a", timeout_s=1e9).result(LIMIT_S).text == "a"


@pytest.mark.parametrize("timeout_s", [float("nan"), -1, "3", True])
def test_a_timeout_that_is_none_is_refused(timeout_s):
    with Supervisor(size=1, client=same) as sup:
        for call in (sup.submit, sup.query):
            with pytest.raises(InvalidOptions, match="timeout_s"):
                call("a", timeout_s=timeout_s)


@pytest.mark.parametrize("name", ["interrupt_grace_s", "restart_period_s"])
def test_a_grace_without_limit_is_refused(name):
    with pytest.raises(InvalidOptions, match=name):
        Supervisor(size=1, **{name: None})


@pytest.mark.parametrize("max_restarts", [-1, 1.5, "a"])
def test_a_restart_limit_that_is_none_is_refused(max_restarts):
    with pytest.raises(InvalidOptions, match="max_restarts"):
        Supervisor(size=1, max_restarts=max_restarts)


def test_total_timeout_bounds_a_map_whose_results_are_always_ready():
    def slow_input():
        pause = threading.Event()
        while True:
            yield "a"
            pause.wait(0.01)

    with Supervisor(size=1, client=same) as sup, pytest.raises(RequestTimeout) as caught:
        sup.map(slow_input(), total_timeout_s=0.2)
    assert caught.value.completed


def test_drain_after_close_returns():
    sup = Supervisor(size=1, client=same)
    sup.close()
    assert sup.drain(LIMIT_S)


def test_a_defect_of_the_io_thread_reaches_everybody_who_waits(caplog):
    sup = Supervisor(size=1, options={"delay_s": 600})
    futures = [sup.submit("a") for _ in range(3)]
    sup._reactor.inbox.post(lambda: 1 / 0)
    errors = [future.exception(LIMIT_S) for future in futures]
    assert {type(error) for error in errors} == {SupervisorClosed}
    assert "ZeroDivisionError" in str(errors[0])
    sup.close()
    with pytest.raises(SupervisorClosed):
        sup.submit("b")
    assert "the I/O thread failed" in caplog.text


def test_a_callback_that_exits_ends_no_other(tmp_path):
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)

    def held(prompt):
        if prompt == "a":
            with open(gate):
                pass
        return prompt

    with Supervisor(size=1, client=held) as sup:
        sup.submit("a").add_done_callback(lambda _: sys.exit(1))  # before it ends
        with open(gate, "w"):
            pass
        called = threading.Event()
        sup.submit("b").add_done_callback(lambda _: called.set())
        assert called.wait(LIMIT_S)


def test_a_fork_after_close_keeps_the_callers_descriptors():
    done = run_python(
        "-W",
        "ignore::DeprecationWarning",  # Python 3.12 warns of any fork beside threads
        "-c",
        "import os\nfrom soloist import Supervisor, SupervisorClosed\n"
        "Supervisor(size=1).close()\n"
        "live = Supervisor(size=1)\n"
        "mine = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    for descriptor in mine: os.fstat(descriptor)\n"
        "    live.close()\n"
        "    os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "print(live.map(['a'])[0].text)\n"
        "live.close()\n",
    )
    assert done.stdout == "7\na\n", done.stderr


def test_prompts_one_by_one_go_round_the_idle_workers():
    """The last one used was taken again, although its client was still beginning anew."""
    with Supervisor(size=3, options={"resettable": False}) as sup:
        sup.map(["a"] * 3)
        futures = [sup.submit("a") for _ in range(3)]
        for future in futures:
            future.result(LIMIT_S)
        eventually(lambda: all(worker.state == "ready" for worker in sup.stats().workers))
        ready = len(sup.stats().workers)
        used = [sup.submit("a").result(LIMIT_S).worker for _ in range(2 * ready)]
        assert len(set(used)) == ready


def test_a_saturated_workers_ledger_stays_small():
    """It was forgotten only when, by chance, every outcome in it had been acknowledged."""

    def long_answer(prompt):
        until = time.perf_counter() + 0.0005
        while time.perf_counter() < until:
            pass
        return "x" * 50_000

    with Supervisor(size=1, client=long_answer, window=100) as sup:
        largest = 0
        for result in sup.imap(["a"] * 1500):
            if result.index % 50 == 0:
                for process in sup._reactor._thread.workers._processes.values():
                    largest = max(largest, os.fstat(process.ledger.outcomes).st_size)
    # All answers together are 75 MB. What waits at a worker, twice, and 1 MiB may stand there.
    assert largest < 2 * pool.MAX_BATCH * 50_000 + 2**21


def test_a_map_that_comes_too_late_is_refused_and_counts_for_nothing():
    with Supervisor(size=1) as sup:
        sup.map(["a"])
        sup._reactor.inbox.shut()  # what closing does first
        for _ in range(3):
            with pytest.raises(SupervisorClosed):
                sup.map(["b"])
        stats = sup.stats()
        assert (stats.queued, stats.running, stats.cancelled) == (0, 0, 0)


def test_an_inbox_that_is_never_empty_leaves_time_for_the_rest():
    is_over = threading.Event()
    with Supervisor(size=1) as sup:

        def again():
            if not is_over.is_set():
                sup._reactor.inbox.post(again)

        sup._reactor.inbox.post(again)
        try:
            assert sup.submit("a").result(LIMIT_S).text == "a"
        finally:
            is_over.set()


def test_the_constructor_leaves_nothing_when_it_fails():
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(Exception, match="no_such_module"):
            Supervisor(size=1, preload=["no_such_module"])
    assert set(os.listdir("/proc/self/fd")) <= before
    assert not [t for t in threading.enumerate() if t.name.startswith("soloist")]
