"""What users of ``concurrent.futures`` may expect of ``submit``, on real processes.

After the questions that CPython asks of its own executors. One difference: a future whose request
runs can be cancelled. The tests share one Supervisor and leave nothing running in it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import threading
import weakref
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError

import pytest

from soloist import ClientError, Supervisor
from tests.faults.executor_gates import Gate, gated
from tests.support import LIMIT_S, eventually


@pytest.fixture(scope="module")
def sup():
    with Supervisor(2, client=gated) as shared:
        shared.map(["warm"] * 4)
        yield shared


@pytest.fixture
def gates(tmp_path, sup):
    """Makes gates; all that are still shut are opened at the end."""
    made = []

    def make() -> Gate:
        made.append(Gate(tmp_path / f"gate{len(made)}"))
        return made[-1]

    yield make
    for gate in made:
        gate.open()
    eventually(lambda: sup.stats().running == 0)


def in_thread(function, *args):
    """Start a thread; its result."""
    found: concurrent.futures.Future = concurrent.futures.Future()

    def run():
        try:
            found.set_result(function(*args))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found


def waits(thread_result) -> bool:
    """Whether it has not come yet, given a moment in which it would have."""
    return concurrent.futures.wait([thread_result], 0.02).done == set()


class TestResult:
    def test_a_result_that_is_waited_for_too_briefly_is_still_to_come(self, sup, gates):
        gate = gates()
        future = sup.submit(gate.prompt)
        for wait in (future.result, future.exception):
            for timeout_s in (0, 0.01):
                with pytest.raises(TimeoutError):
                    wait(timeout_s)
        assert not future.done()
        gate.open()
        assert future.result(LIMIT_S).text == "released"
        assert future.exception(0) is None

    def test_an_error_is_the_same_object_each_time(self, sup):
        future = sup.submit("fail on purpose")
        error = future.exception(LIMIT_S)
        with pytest.raises(ClientError, match="on purpose") as caught:
            future.result()
        assert caught.value is error

    def test_many_threads_get_one_result(self, sup, gates):
        gate = gates()
        future = sup.submit(gate.prompt)
        waiting = [in_thread(future.result, LIMIT_S) for _ in range(16)]
        gate.open()
        assert len({id(found.result(LIMIT_S)) for found in waiting}) == 1

    def test_its_repr_says_how_it_stands(self, sup, gates):
        gate = gates()
        future = sup.submit(gate.prompt)
        assert "RequestFuture at" in repr(future)
        assert "state=pending" in repr(future)
        gate.open()
        future.result(LIMIT_S)
        assert "returned Result" in repr(future)
        failed = sup.submit("fail x")
        failed.exception(LIMIT_S)
        assert "raised ClientError" in repr(failed)
        cancelled = sup.submit(gates().prompt)
        cancelled.cancel()
        assert "state=cancelled" in repr(cancelled)

    def test_what_nobody_holds_any_more_is_freed(self, sup):
        freed = [threading.Event(), threading.Event()]
        ran = threading.Event()
        for event in freed:
            future = sup.submit("a")
            weakref.finalize(future, event.set)
            if event is freed[1]:
                future.add_done_callback(lambda _: ran.set())
                assert ran.wait(LIMIT_S)
            future.result(LIMIT_S)
            del future
        eventually(lambda: gc.collect() is not None and all(event.is_set() for event in freed))

    def test_a_future_that_nobody_holds_is_answered_all_the_same(self, sup):
        answered = sup.stats().answered
        for _ in range(20):
            sup.submit("a")
        gc.collect()
        eventually(lambda: sup.stats().answered == answered + 20)


class TestCancel:
    @pytest.mark.parametrize("wait", ["result", "exception"])
    def test_wakes_who_waits_for_it(self, sup, gates, wait):
        future = sup.submit(gates().prompt)
        waiting = in_thread(getattr(future, wait), LIMIT_S)
        assert waits(waiting)
        assert future.cancel()
        with pytest.raises(CancelledError):
            waiting.result(LIMIT_S)

    @pytest.mark.parametrize("return_when", [ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION])
    @pytest.mark.parametrize("is_running", [True, False], ids=["running", "queued"])
    def test_wakes_wait(self, sup, gates, return_when, is_running):
        busy = [] if is_running else [gates() for _ in range(2)]
        for gate in busy:
            sup.submit(gate.prompt)
            gate.wait_begun()
        gate = gates()
        future = sup.submit(gate.prompt)
        if is_running:
            gate.wait_begun()
        waiting = in_thread(concurrent.futures.wait, [future], LIMIT_S, return_when)
        assert waits(waiting)
        future.cancel()
        assert waiting.result(LIMIT_S).done == {future}

    def test_wakes_as_completed(self, sup, gates):
        gate = gates()
        future = sup.submit(gate.prompt)
        gate.wait_begun()
        waiting = in_thread(list, concurrent.futures.as_completed([future], LIMIT_S))
        assert waits(waiting)
        future.cancel()
        assert waiting.result(LIMIT_S) == [future]

    def test_after_the_end_changes_nothing(self, sup):
        for prompt in ("a", "fail x"):
            future = sup.submit(prompt)
            future.exception(LIMIT_S)
            assert (future.cancel(), future.cancelled(), future.done()) == (False, False, True)

    def test_from_many_threads_at_once_is_one_cancel(self, sup, gates):
        before = sup.stats().cancelled
        gate = gates()
        future = sup.submit(gate.prompt)
        gate.wait_begun()
        cancels = [in_thread(future.cancel) for _ in range(16)]
        assert {found.result(LIMIT_S) for found in cancels} == {True}
        eventually(lambda: sup.stats().running == 0)
        assert sup.stats().cancelled == before + 1


class TestCallbacks:
    def test_run_in_their_order_with_the_future(self, sup, gates):
        gate, seen, done = gates(), [], threading.Event()
        future = sup.submit(gate.prompt)
        for i in range(10):
            future.add_done_callback(lambda f, i=i: seen.append((i, f)))
        future.add_done_callback(lambda _: done.set())
        gate.open()
        assert done.wait(LIMIT_S)
        assert seen == [(i, future) for i in range(10)]

    def test_one_that_raises_is_logged_and_costs_the_others_nothing(self, sup, gates, caplog):
        gate, done = gates(), threading.Event()
        future = sup.submit(gate.prompt)
        future.add_done_callback(lambda _: {}["a defect"])
        future.add_done_callback(lambda _: done.set())
        with caplog.at_level(logging.ERROR, "concurrent.futures"):
            gate.open()
            assert done.wait(LIMIT_S)
        assert "a defect" in caplog.text

    def test_one_added_at_the_end_runs_at_once_where_it_was_added(self, sup):
        for prompt in ("a", "fail x"):
            future = sup.submit(prompt)
            future.exception(LIMIT_S)
            threads = []
            future.add_done_callback(lambda _, t=threads: t.append(threading.current_thread()))
            assert threads == [threading.current_thread()]

    def test_one_that_raises_there_is_logged_too(self, sup, caplog):
        future = sup.submit("a")
        future.result(LIMIT_S)
        with caplog.at_level(logging.ERROR, "concurrent.futures"):
            future.add_done_callback(lambda _: {}["a defect"])
        assert "a defect" in caplog.text

    def test_of_a_cancelled_one_run_once(self, sup, gates):
        gate, seen = gates(), []
        future = sup.submit(gate.prompt)
        gate.wait_begun()
        future.add_done_callback(seen.append)
        future.cancel()
        concurrent.futures.wait([future], LIMIT_S)
        eventually(lambda: seen)
        later = threading.Event()
        sup.submit("a").add_done_callback(lambda _: later.set())
        assert later.wait(LIMIT_S)
        assert seen == [future]

    def test_one_may_add_another_and_cancel_others(self, sup, gates):
        gate, other = gates(), sup.submit(gates().prompt)
        done = threading.Event()
        future = sup.submit(gate.prompt)
        future.add_done_callback(lambda f: f.add_done_callback(lambda _: other.cancel()))
        other.add_done_callback(lambda _: done.set())
        gate.open()
        assert done.wait(LIMIT_S)
        assert other.cancelled()

    def test_a_chain_of_a_hundred_submits_each_from_a_callback(self, sup):
        done = threading.Event()

        def again(future):
            number = int(future.result().text)
            if number == 100:
                done.set()
            else:
                sup.submit(str(number + 1)).add_done_callback(again)

        sup.submit("0").add_done_callback(again)
        assert done.wait(LIMIT_S)


class TestWait:
    def test_for_the_first(self, sup, gates):
        slow, quick = gates(), sup.submit("a")
        held = sup.submit(slow.prompt)
        done, rest = concurrent.futures.wait([held, quick], LIMIT_S, FIRST_COMPLETED)
        assert (done, rest) == ({quick}, {held})

    def test_for_the_first_when_some_have_ended(self, sup, gates):
        ended = [sup.submit("a"), sup.submit("fail x")]
        concurrent.futures.wait(ended, LIMIT_S)
        held = sup.submit(gates().prompt)
        done, rest = concurrent.futures.wait([held, *ended], LIMIT_S, FIRST_COMPLETED)
        assert (done, rest) == (set(ended), {held})

    def test_for_the_first_error(self, sup, gates):
        first, held = gates(), sup.submit(gates().prompt)
        failing = sup.submit(f"fail-after {first.path}")
        waiting = in_thread(concurrent.futures.wait, [held, failing], LIMIT_S, FIRST_EXCEPTION)
        assert waits(waiting)
        first.open()
        done, rest = waiting.result(LIMIT_S)
        assert (done, rest) == ({failing}, {held})

    def test_for_an_error_that_never_comes_is_for_all(self, sup):
        futures = [sup.submit("a") for _ in range(5)]
        futures[0].result(LIMIT_S)
        done, rest = concurrent.futures.wait(futures, LIMIT_S, FIRST_EXCEPTION)
        assert (done, rest) == (set(futures), set())

    def test_a_cancelled_one_is_no_error(self, sup, gates):
        gate, cancelled = gates(), gates()
        held, victim = sup.submit(gate.prompt), sup.submit(cancelled.prompt)
        waiting = in_thread(concurrent.futures.wait, [held, victim], LIMIT_S, FIRST_EXCEPTION)
        cancelled.wait_begun()
        victim.cancel()
        assert waits(waiting)
        gate.open()
        assert waiting.result(LIMIT_S).done == {held, victim}

    def test_for_all_ends_at_its_time_limit(self, sup, gates):
        quick, held = sup.submit("a"), sup.submit(gates().prompt)
        quick.result(LIMIT_S)
        done, rest = concurrent.futures.wait([quick, held], 0.02)
        assert (done, rest) == ({quick}, {held})

    def test_each_is_counted_once(self, sup):
        future = sup.submit("a")
        assert concurrent.futures.wait([future] * 3, LIMIT_S).done == {future}


class TestAsCompleted:
    def test_gives_those_that_have_ended_first(self, sup, gates):
        gate = gates()
        held = sup.submit(gate.prompt)
        ended = [sup.submit("a"), sup.submit("fail x")]
        concurrent.futures.wait(ended, LIMIT_S)
        completed = concurrent.futures.as_completed([held, *ended], LIMIT_S)
        assert {next(completed), next(completed)} == set(ended)
        gate.open()
        assert list(completed) == [held]

    @pytest.mark.parametrize("timeout_s", [0, 0.02])
    def test_ends_at_its_time_limit_after_what_there_was(self, sup, gates, timeout_s):
        quick, held = sup.submit("a"), sup.submit(gates().prompt)
        quick.result(LIMIT_S)
        seen = []
        with pytest.raises(TimeoutError, match=r"1 \(of 2\)"):
            seen.extend(concurrent.futures.as_completed([held, quick], timeout_s))
        assert seen == [quick]

    def test_gives_duplicates_once(self, sup, gates):
        gate = gates()
        future = sup.submit(gate.prompt)
        completed = concurrent.futures.as_completed(itertools.repeat(future, 5), LIMIT_S)
        gate.open()
        assert list(completed) == [future]

    def test_gives_cancelled_ones_too(self, sup, gates):
        gate = gates()
        cancelled, quick = sup.submit(gate.prompt), sup.submit("a")
        gate.wait_begun()
        cancelled.cancel()
        assert set(concurrent.futures.as_completed([cancelled, quick], LIMIT_S)) == {
            cancelled,
            quick,
        }


class TestThreads:
    def test_submit_and_cancel_each_others_and_all_end(self, sup):
        futures: list = []

        def work(number: int):
            for i in range(40):
                futures.append(sup.submit(f"{number}.{i}"))
                if i % 3 == 0:
                    futures[(number * 7919 + i) % len(futures)].cancel()

        for found in [in_thread(work, number) for number in range(8)]:
            found.result(LIMIT_S)
        done, pending = concurrent.futures.wait(futures, LIMIT_S)
        assert (len(done), pending) == (320, set())
        for future in done:
            assert future.cancelled() or future.result().text == future.result().prompt


class TestAsyncio:
    def test_gather_gives_results_and_errors_in_order(self, sup):
        async def main():
            wrapped = [asyncio.wrap_future(sup.submit(p)) for p in ("a", "fail x", "b")]
            return await asyncio.gather(*wrapped, return_exceptions=True)

        first, error, last = asyncio.run(main())
        assert (first.text, type(error), last.text) == ("a", ClientError, "b")

    def test_cancelling_one_of_many_tasks_stops_its_request_alone(self, sup, gates):
        gate, other = gates(), gates()

        async def main():
            futures = [sup.submit(gate.prompt), sup.submit(other.prompt)]
            tasks = [asyncio.wrap_future(future) for future in futures]
            await asyncio.to_thread(gate.wait_begun)
            tasks[0].cancel()
            other.open()
            done, _ = await asyncio.wait(tasks, timeout=LIMIT_S)
            assert done == set(tasks)
            return futures, tasks[1].result().text

        futures, text = asyncio.run(main())
        assert (futures[0].cancelled(), text) == (True, "released")

    def test_a_loop_that_is_closed_before_the_outcome_harms_nobody(self, sup, gates, caplog):
        gate = gates()
        future = sup.submit(gate.prompt)

        async def main():
            kept.append(asyncio.wrap_future(future))

        kept: list = []
        asyncio.run(main())
        with caplog.at_level(logging.CRITICAL, "concurrent.futures"):
            gate.open()
            assert future.result(LIMIT_S).text == "released"
            done = threading.Event()
            sup.submit("a").add_done_callback(lambda _: done.set())
            assert done.wait(LIMIT_S)
