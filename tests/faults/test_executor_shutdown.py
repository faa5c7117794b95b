"""The end: pending work, callers that still come, the interpreter's exit, forks, garbage."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from soloist import QueueFull, RequestCancelled, Supervisor, SupervisorClosed
from tests.faults.executor_gates import Gate, gated
from tests.support import LIMIT_S, descendants_of_runs, environment, eventually, run_dirs_of

START = """
import atexit, concurrent.futures, os, sys, threading, time, warnings
from soloist import Supervisor, SoloistError, SupervisorClosed
warnings.simplefilter("ignore", ResourceWarning)
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
def work(prompt):
    if prompt == "long":
        threading.Event().wait()
    return prompt
"""


def run_script(body: str) -> str:
    """What the script says; it ends by itself, in order, and leaves nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(body)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONWARNINGS="default"),
    ) as script:
        run_dirs = eventually(lambda: run_dirs_of(script.pid) or script.poll() is not None)
        try:
            stdout, stderr = script.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            script.send_signal(signal.SIGKILL)
            raise
    assert (script.returncode, stderr) == (0, "")
    if isinstance(run_dirs, set):
        eventually(lambda: not descendants_of_runs(run_dirs), timeout_s=2)
    return stdout


class TestInterpreterExit:
    def test_with_work_pending_ends_it_and_everybody_hears_of_it(self):
        seen = run_script(
            """
            sup = Supervisor(2, client=work)
            futures = [sup.submit("long") for _ in range(10)]

            def wait():
                done, pending = concurrent.futures.wait(futures)
                print("waiter", len(done), len(pending))

            def late():
                waiter.join()
                try:
                    sup.submit("late")
                except SupervisorClosed as error:
                    print("late", error.started)

            def slow(future):
                time.sleep(0.02)
                print("callback", type(future.exception()).__name__)

            waiter = threading.Thread(target=wait, daemon=True)
            waiter.start()
            for future in futures[:3]:
                future.add_done_callback(slow)
            close_all = sys.modules["soloist.supervisor.at_exit"]._close_all
            atexit.unregister(close_all)
            atexit.register(late)
            atexit.register(close_all)  # so it runs before the one above
            """
        )
        assert sorted(seen.splitlines()) == [
            *["callback SupervisorClosed"] * 3,
            "late False",
            "waiter 10 0",
        ]

    def test_before_it_closes_everything_whoever_comes_is_answered(self):
        seen = run_script(
            """
            def late(name):
                print(name, sup.submit("late").result(10).text)

            def thread():
                threading.main_thread().join()
                late("thread")

            atexit.register(late, "atexit")
            sup = Supervisor(1, client=work)
            threading.Thread(target=thread).start()
            """
        )
        assert seen == "thread late\natexit late\n"

    def test_callbacks_that_are_still_to_come_run_first(self):
        """The executors of the standard library run them all before their block is left."""
        seen = run_script(
            """
            class Owner:
                pass

            owner = Owner()  # garbage in a cycle, beside that
            owner.sup = Supervisor(1, client=work)
            owner.future = owner.sup.submit("long")
            owner.future.add_done_callback(lambda f, owner=owner: owner.sup.stats())
            del owner

            def slow(future):
                time.sleep(0.02)
                print(future.result().text, flush=True)

            with Supervisor(1, client=work) as sup:
                for i in range(20):
                    sup.submit(str(i)).add_done_callback(slow)
            """
        )
        assert seen.split() == [str(i) for i in range(20)]


def test_a_fork_amid_work_and_callbacks_leaves_the_parents_alone():
    """The child ends in the ordinary way, functions of atexit included, and has its own."""
    seen = run_script(
        """
        gate, begun = threading.Event(), threading.Event()
        sup = Supervisor(2, client=work)
        futures = [sup.submit(str(i)) for i in range(200)]
        sup._dispatcher.call(lambda: (begun.set(), gate.wait()))  # a callback that takes long
        begun.wait()
        pid = os.fork()
        if not pid:
            try:
                sup.submit("a")
            except SupervisorClosed:
                with Supervisor(1, client=work) as own:
                    print(own.map(["the child's own"])[0].text, flush=True)
            started = time.monotonic()
            sup.close()
            print(time.monotonic() - started < 4, flush=True)
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print([f.result(10).text for f in futures] == [str(i) for i in range(200)])
        gate.set()
        sup.close()
        """
    )
    assert seen.splitlines() == ["the child's own", "True", "7", "True"]


class TestClose:
    def test_wakes_everybody_who_waits(self, tmp_path):
        gate = Gate(tmp_path / "gate")
        sup = Supervisor(1, client=gated)
        futures = [sup.submit(gate.prompt), *(sup.submit("a") for _ in range(20))]
        gate.wait_begun()
        found: list = []
        waits = [
            lambda: found.append(concurrent.futures.wait(futures, LIMIT_S).not_done),
            lambda: found.append(
                set(concurrent.futures.as_completed(futures, LIMIT_S)) ^ {*futures}
            ),
            *(lambda f=f: found.append(f.exception(LIMIT_S) and set()) for f in futures),
            lambda: found.append(sup.drain(LIMIT_S) and set()),
        ]
        threads = [threading.Thread(target=wait, daemon=True) for wait in waits]
        for thread in threads:
            thread.start()
        sup.close()
        for thread in threads:
            thread.join(LIMIT_S)
        assert found == [set()] * len(waits)
        assert {type(f.exception(0)) for f in futures} == {SupervisorClosed}
        assert [f.exception(0).started for f in futures] == [None] + [False] * 20

    def test_waits_for_callbacks_but_not_for_ever(self, monkeypatch, tmp_path):
        monkeypatch.setattr("soloist.supervisor.at_exit.CALLBACKS_S", 0.05)
        stuck, seen = threading.Event(), []
        with Supervisor(1, client=gated) as sup:
            for i in range(10):
                sup.submit("a").add_done_callback(lambda _, i=i: seen.append(i))
        assert seen == list(range(10))
        gate = Gate(tmp_path / "gate")
        with Supervisor(1, client=gated) as sup:
            sup.submit(gate.prompt).add_done_callback(lambda _: stuck.wait(LIMIT_S))
            gate.open()
        stuck.set()

    @pytest.mark.parametrize("end", ["close", "kill"])
    def test_from_a_callback_ends_everything(self, tmp_path, end):
        gate, done = Gate(tmp_path / "gate"), threading.Event()
        sup = Supervisor(1, client=gated)
        first, held = sup.submit("a"), sup.submit(gate.prompt)
        first.add_done_callback(lambda _: (getattr(sup, end)(), done.set()))
        assert done.wait(LIMIT_S)
        assert type(held.exception(LIMIT_S)) is SupervisorClosed
        sup.close()

    def test_from_many_threads_at_once_returns_in_each(self):
        sup = Supervisor(1, client=gated)
        sup.submit("a")
        threads = [
            threading.Thread(target=end, daemon=True)
            for end in [sup.close, sup.kill, sup.close, lambda: sup.drain(LIMIT_S)] * 4
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()

    def test_with_threads_that_go_on_submitting_settles_what_they_got(self):
        sup = Supervisor(2, client=gated, max_pending=100)
        futures: list = []
        pause = threading.Event()

        def submit():
            try:
                while True:
                    try:
                        futures.append(sup.submit("a"))
                    except QueueFull:
                        pause.wait(0.001)
            except SupervisorClosed as error:
                refused.append(error.started)

        refused: list = []
        threads = [threading.Thread(target=submit, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(futures) > 100)
        sup.close()
        for thread in threads:
            thread.join(LIMIT_S)
        assert refused == [False] * 4
        assert not concurrent.futures.wait(futures, LIMIT_S).not_done
        errors = {type(future.exception(0)) for future in futures}
        assert errors <= {type(None), SupervisorClosed}

    def test_a_submit_from_a_callback_at_the_blocks_end_is_settled(self, tmp_path):
        gate, late = Gate(tmp_path / "gate"), []

        def again(_):
            try:
                late.append(sup.submit("late"))
            except SupervisorClosed as error:
                late.append(error)

        with Supervisor(1, client=gated) as sup:
            sup.submit(gate.prompt).add_done_callback(again)
            gate.wait_begun()
            sup._reactor.close(LIMIT_S)  # what leaving the block does first
            gate.open()
        (one,) = late
        error = one if isinstance(one, SupervisorClosed) else one.exception(0)
        assert (type(error), error.started) == (SupervisorClosed, False)

    def test_after_cancel_pending_finishes_what_runs(self, tmp_path):
        gate = Gate(tmp_path / "gate")
        with Supervisor(1, client=gated) as sup:
            running = sup.submit(gate.prompt)
            gate.wait_begun()
            pending = [sup.submit("a") for _ in range(10)]
            sup.cancel_pending()
            gate.open()
        assert running.result(0).text == "released"
        assert {type(future.exception(0)) for future in pending} == {RequestCancelled}

    def test_without_waiting_leaves_the_rest_to_the_io_thread(self, tmp_path):
        """``shutdown(wait=False)`` is a drop of the last reference here: nobody waits."""
        gate = Gate(tmp_path / "gate")
        sup = Supervisor(1, client=gated)
        run_dirs = run_dirs_of(os.getpid())
        future = sup.submit(gate.prompt)
        gate.wait_begun()
        del sup  # the future keeps it
        gc.collect()
        with pytest.warns(ResourceWarning, match="was not closed"):
            gate.open()  # the warning comes with the answer: nobody holds it any more
            assert future.result(LIMIT_S).text == "released"
            eventually(lambda: gc.collect() is not None and not descendants_of_runs(run_dirs))


class TestGarbage:
    def test_a_supervisor_in_a_cycle_with_its_futures_is_collected(self):
        class Owner:
            pass

        owner = Owner()
        owner.sup = Supervisor(1, client=gated)
        owner.futures = [owner.sup.submit("a") for _ in range(5)]
        called = threading.Semaphore(0)
        for future in owner.futures:
            future.add_done_callback(lambda _, owner=owner: called.release())
        owner.me = owner
        for _ in range(5):
            assert called.acquire(timeout=LIMIT_S)
        freed = threading.Event()
        weakref.finalize(owner, freed.set)
        reactor = weakref.ref(owner.sup._reactor)
        with pytest.warns(ResourceWarning, match="was not closed"):
            del owner, future
            eventually(lambda: gc.collect() is not None and freed.is_set())
        eventually(lambda: reactor() is None or reactor().is_closed.is_set())

    def test_that_is_collected_on_the_io_thread_blocks_nothing(self):
        """The collector runs wherever memory is asked for."""

        class Owner:
            pass

        with Supervisor(1, client=gated) as other:
            owner = Owner()
            owner.me, owner.sup = owner, Supervisor(1, client=gated)
            closed = owner.sup._reactor.is_closed
            gc.disable()
            try:
                with pytest.warns(ResourceWarning, match="was not closed"):
                    del owner
                    other._reactor.inbox.ask(gc.collect).result(LIMIT_S)
            finally:
                gc.enable()
            assert closed.wait(LIMIT_S)
            assert other.submit("a").result(LIMIT_S).text == "a"
