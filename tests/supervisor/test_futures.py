"""``RequestFuture``: a real Future that can be cancelled while it runs."""

import concurrent.futures
import gc
import logging
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from soloist.protocol.errors import ClientError, RequestCancelled
from soloist.protocol.messages import Answer
from soloist.protocol.transitions import RequestEvent, RequestState
from soloist.supervisor.futures import Dispatcher, RequestFuture
from soloist.supervisor.request import Request
from soloist.supervisor.results import Result
from tests.support import eventually

LIMIT_S = 20.0


def is_waited_for(future):
    return bool(vars(future._condition).get("_waiters"))


@pytest.fixture
def dispatcher():
    dispatcher = Dispatcher()
    yield dispatcher
    dispatcher.close()
    if dispatcher._thread is not None:
        dispatcher._thread.join(LIMIT_S)
        assert not dispatcher._thread.is_alive()


class Made:
    """A future with its request, as ``Supervisor.submit`` makes them."""

    def __init__(self, dispatcher):
        self.cancelled = []
        self.pending = set()
        self.future = RequestFuture(self.cancelled.append, dispatcher, self.pending, owner=self)
        self.request = self.future.request = Request("p", b"p", self.future, index=7)
        self.pending.add(self.future)

    def run(self):
        self.request.advance(RequestEvent.LEASE)

    def settle(self, outcome=None):
        self.request.settle(outcome or Answer(1, 0.5, "text", 1, b""))


@pytest.fixture
def made(dispatcher):
    return Made(dispatcher)


@pytest.fixture
def without_collector():
    gc.disable()
    yield
    gc.enable()


class TestOutcome:
    def test_an_answer_is_a_result(self, made):
        made.settle()
        result = made.future.result(0)
        assert isinstance(result, Result)
        assert (result.text, result.index) == ("text", 7)

    def test_an_error_is_raised_as_it_is(self, made):
        error = ClientError("no")
        made.settle(error)
        assert made.future.exception(0) is error
        with pytest.raises(ClientError, match="no"):
            made.future.result(0)

    def test_it_is_pending_until_then_also_while_it_runs(self, made):
        assert (made.future.running(), made.future.done()) == (False, False)
        made.run()
        assert (made.future.running(), made.future.done()) == (True, False)
        assert made.future._state == "PENDING"
        made.settle()
        assert (made.future.running(), made.future.done()) == (False, True)

    @pytest.mark.parametrize(
        "wait",
        [
            lambda future: future.result(LIMIT_S),
            lambda future: concurrent.futures.wait([future], LIMIT_S).done.pop(),
            lambda future: next(concurrent.futures.as_completed([future], LIMIT_S)),
        ],
    )
    def test_who_waits_for_it_is_woken(self, made, wait):
        """Two threads, the second for what the first has made to wait on."""
        woken = []
        waiting = [threading.Thread(target=lambda: woken.append(wait(made.future))) for _ in "12"]
        for thread in waiting:
            thread.start()
        eventually(lambda: made.future._waiters or is_waited_for(made.future), timeout_s=LIMIT_S)
        made.settle()
        for thread in waiting:
            thread.join(LIMIT_S)
        assert len(woken) == 2

    def test_who_waits_in_vain_is_told(self, made):
        with pytest.raises(TimeoutError):
            made.future.result(0.001)
        assert concurrent.futures.wait([made.future], 0).not_done == {made.future}
        made.settle()
        assert made.future.result(0).text == "text"

    def test_it_has_whatever_a_future_has(self, made):
        """Its constructor stands in the place of Future's own."""
        plain, ours = vars(concurrent.futures.Future()), vars(made.future)
        assert {name: type(value) for name, value in plain.items() if name != "_condition"} == {
            name: type(ours[name]) for name in plain if name != "_condition"
        }
        assert isinstance(ours["_condition"], threading.Condition)
        assert repr(ours["_condition"]).endswith(", 0)>")
        with ours["_condition"]:
            ours["_condition"].notify()
            assert ours["_condition"].acquire(blocking=False)
            ours["_condition"].release()

    def test_it_is_no_longer_held(self, made):
        assert made.pending == {made.future}
        made.settle()
        assert made.pending == set()
        assert made.future._owner is None

    def test_it_and_its_request_do_not_hold_each_other(self, made, without_collector):
        made.settle()
        future = weakref.ref(made.future)
        made.future = made.request = None
        assert future() is None

    def test_what_its_holder_has_set_stays(self, made):
        made.future.set_result("mine")
        made.settle()
        assert made.future.result(0) == "mine"

    def test_the_standard_waiters_see_it(self, made):
        woken = []
        waiter = threading.Thread(
            target=lambda: woken.append(concurrent.futures.wait([made.future], LIMIT_S)),
            daemon=True,
        )
        waiter.start()
        made.settle()
        waiter.join(LIMIT_S)
        assert woken[0].done == {made.future}


class TestCancel:
    @pytest.mark.parametrize("state", ["queued", "running"])
    def test_it_is_told_once_and_the_caller_is_free_at_once(self, made, state):
        if state == "running":
            made.run()
        assert made.future.cancel() is True
        assert made.future.cancel() is True
        assert made.cancelled == [made.request]
        assert made.future.cancelled()
        with pytest.raises(CancelledError):
            made.future.result(0)

    @pytest.mark.parametrize("outcome", [RequestCancelled("so be it"), None], ids=["ended", "late"])
    def test_waiters_go_on_when_the_turn_has_been_drained(self, made, outcome):
        made.run()
        made.future.cancel()
        assert concurrent.futures.wait([made.future], timeout=0).not_done == {made.future}
        assert made.pending == {made.future}
        made.settle(outcome)
        assert concurrent.futures.wait([made.future], timeout=0).done == {made.future}
        assert list(concurrent.futures.as_completed([made.future], timeout=0)) == [made.future]
        assert made.pending == set()
        assert made.future.cancelled()

    def test_after_the_outcome_it_is_refused(self, made):
        made.settle()
        assert made.future.cancel() is False
        assert made.cancelled == []
        assert made.future.result(0).text == "text"

    def test_a_cancelled_one_does_not_count_as_running(self, made):
        made.run()
        made.future.cancel()
        assert made.request.state is RequestState.LEASED
        assert not made.future.running()


class TestCallbacks:
    def test_they_run_on_the_dispatcher_not_on_the_thread_that_settles(self, made):
        threads, done = [], threading.Event()

        def callback(future):
            threads.append((threading.current_thread().name, future))
            done.set()

        made.future.add_done_callback(callback)
        made.settle()
        assert done.wait(LIMIT_S)
        assert threads == [("soloist-callbacks", made.future)]

    def test_one_that_blocks_does_not_hold_up_the_io_thread(self, made, dispatcher):
        gate, done = threading.Event(), threading.Event()
        made.future.add_done_callback(lambda _: gate.wait(LIMIT_S))
        other = Made(dispatcher)
        other.future.add_done_callback(lambda _: done.set())
        made.settle()
        other.settle()
        assert not done.is_set()
        gate.set()
        assert done.wait(LIMIT_S)

    def test_one_that_raises_costs_the_others_nothing(self, made, dispatcher, caplog):
        done = threading.Event()
        made.future.add_done_callback(lambda _: 1 / 0)
        made.future.add_done_callback(lambda _: done.set())
        with caplog.at_level(logging.ERROR, "concurrent.futures"):
            made.settle()
            assert done.wait(LIMIT_S)
        assert "exception calling callback" in caplog.text

    def test_one_that_exits_does_not_end_the_callbacks_of_others(self, made, dispatcher, caplog):
        done = threading.Event()

        def leave(future):
            raise SystemExit(1)

        made.future.add_done_callback(leave)
        other = Made(dispatcher)
        other.future.add_done_callback(lambda _: done.set())
        made.settle()
        other.settle()
        assert done.wait(LIMIT_S)
        assert "SystemExit" in caplog.text

    def test_one_that_comes_after_the_outcome_runs_at_once(self, made):
        made.settle()
        seen = []
        made.future.add_done_callback(seen.append)
        assert seen == [made.future]

    def test_they_run_when_it_is_cancelled_too(self, made):
        done = threading.Event()
        made.future.add_done_callback(lambda _: done.set())
        made.future.cancel()
        assert done.wait(LIMIT_S)

    def test_without_any_no_thread_is_started(self, made, dispatcher):
        made.settle()
        assert dispatcher._thread is None

    def test_they_run_in_order(self, made, dispatcher):
        seen, done = [], threading.Event()
        all_made = [Made(dispatcher) for _ in range(20)]
        for i, one in enumerate(all_made):
            one.future.add_done_callback(lambda _, i=i: seen.append(i))
        all_made[-1].future.add_done_callback(lambda _: done.set())
        for one in all_made:
            one.settle()
        assert done.wait(LIMIT_S)
        assert seen == list(range(20))


class TestDispatcher:
    def test_what_was_handed_in_before_close_still_runs(self):
        dispatcher = Dispatcher()
        seen = []
        for i in range(100):
            dispatcher.call(lambda i=i: seen.append(i))
        dispatcher.close()
        dispatcher._thread.join(LIMIT_S)
        assert seen == list(range(100))

    def test_what_comes_after_close_runs_all_the_same(self):
        """The last outcomes of a Supervisor that closes may come that late."""
        dispatcher = Dispatcher()
        dispatcher.call(lambda: None)
        dispatcher.close()
        dispatcher._thread.join(LIMIT_S)
        done = threading.Event()
        dispatcher.call(done.set)
        assert done.wait(LIMIT_S)
        dispatcher._thread.join(LIMIT_S)
        assert not dispatcher._thread.is_alive()

    def test_join_waits_for_what_was_handed_in(self):
        dispatcher = Dispatcher()
        gate, seen = threading.Event(), []
        dispatcher.call(lambda: gate.wait(LIMIT_S))
        dispatcher.call(lambda: seen.append(1))
        dispatcher.join(0.01)
        assert seen == []
        threading.Timer(0.01, gate.set).start()
        dispatcher.join(LIMIT_S)
        assert seen == [1]
        dispatcher.close()

    def test_what_is_run_need_not_wait_for_itself(self):
        dispatcher = Dispatcher()
        done = threading.Event()
        dispatcher.call(lambda: (dispatcher.join(LIMIT_S), done.set()))
        assert done.wait(LIMIT_S / 2)
        dispatcher.close()

    def test_it_does_not_keep_what_it_ran_last(self):
        dispatcher = Dispatcher()
        freed = threading.Event()

        def hand_in():
            def callback():
                pass

            weakref.finalize(callback, freed.set)
            dispatcher.call(callback)

        hand_in()
        assert freed.wait(LIMIT_S)
        dispatcher.close()

    def test_a_forgotten_supervisor_may_be_collected_amid_a_call(self, monkeypatch):
        """The collector runs where it likes, and the Supervisor's finalizer closes this."""
        dispatcher = Dispatcher()

        class Collecting(threading.Thread):
            def __init__(self, **arguments):
                dispatcher.close()
                super().__init__(**arguments)

        done = threading.Event()
        caller = threading.Thread(target=dispatcher.call, args=[done.set], daemon=True)
        monkeypatch.setattr("soloist.supervisor.futures.threading.Thread", Collecting)
        caller.start()
        assert done.wait(LIMIT_S)

    def test_many_threads_start_one(self):
        dispatcher = Dispatcher()
        names, barrier, done = set(), threading.Barrier(8), threading.Semaphore(0)

        def call():
            barrier.wait(LIMIT_S)
            dispatcher.call(lambda: (names.add(threading.get_ident()), done.release()))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert done.acquire(timeout=LIMIT_S)
        for thread in threads:
            thread.join(LIMIT_S)
        assert len(names) == 1
        dispatcher.close()


def test_a_future_takes_no_parts(made):
    assert made.future.stream(made.request, b"part") is True
