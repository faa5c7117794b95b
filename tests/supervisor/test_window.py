"""The window of a ``map``: bounded in count and bytes, and no wake-up for nothing."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.protocol.errors import ClientError
from soloist.protocol.messages import Answer
from soloist.supervisor.request import Request
from soloist.supervisor.window import Window

LARGE = 10**9


def new(index=0, size=10, window=None):
    return Request("p", b"p" * size, window, index=index)


def answer(size=5):
    return Answer(1, 0.1, "x" * size, 1, b"")


def make(max_requests=100, max_bytes=LARGE, is_ordered=True, is_fail_fast=False):
    return Window(
        max_requests=max_requests,
        max_bytes=max_bytes,
        is_ordered=is_ordered,
        is_fail_fast=is_fail_fast,
    )


def fill(window, count, size=10):
    requests = [new(i, size, window) for i in range(count)]
    for request in requests:
        window.put(request)
    return requests


class ScriptedEvent:
    """The consumer's event; each sleep plays the next piece of what the I/O thread does."""

    def __init__(self, *script):
        self.script = list(script)
        self.is_set = False
        self.wakeups = 0
        self.timeouts = []

    def clear(self):
        self.is_set = False

    def set(self):
        self.is_set = True
        self.wakeups += 1

    def wait(self, timeout):
        self.timeouts.append(timeout)
        while not self.is_set:
            assert self.script, "the consumer would sleep for ever"
            if self.script[0] is None:  # the time is over
                del self.script[0]
                return
            self.script.pop(0)()


def script(window, *steps):
    window._wakeup = ScriptedEvent(*steps)
    return window._wakeup


class TestOrder:
    def test_ordered_outcomes_are_taken_in_input_order(self):
        window = make()
        requests = fill(window, 3)
        for i in (2, 0, 1):
            requests[i].settle(answer())
        assert [window.take().index for _ in range(3)] == [0, 1, 2]

    def test_ordered_nothing_is_ready_before_the_first(self):
        window = make()
        requests = fill(window, 2)
        requests[1].settle(answer())
        assert not window.is_ready()
        requests[0].settle(answer())
        assert window.is_ready()

    def test_unordered_outcomes_are_taken_as_they_come(self):
        window = make(is_ordered=False)
        requests = fill(window, 3)
        for i in (2, 0, 1):
            requests[i].settle(answer())
            assert window.is_ready()
        assert [window.take().index for _ in range(3)] == [2, 0, 1]
        assert not window.is_ready()

    @pytest.mark.parametrize("is_ordered", [True, False])
    def test_it_knows_what_is_settled_and_what_is_not(self, is_ordered):
        window = make(is_ordered=is_ordered)
        requests = fill(window, 4)
        requests[0].settle(answer())
        requests[2].settle(ClientError("no"))
        assert {r.index for r in window.unsettled()} == {1, 3}
        assert {r.index for r in window.finished()} == {0, 2}
        window.take()
        assert {r.index for r in window.finished()} == {2}
        assert len(window) == 3


class TestBounds:
    @pytest.mark.parametrize("is_ordered", [True, False])
    def test_the_count_includes_finished_but_unread_outcomes(self, is_ordered):
        window = make(max_requests=3, is_ordered=is_ordered)
        requests = fill(window, 3)
        assert not window.has_room()
        for request in requests:
            request.settle(answer())
        assert not window.has_room()
        window.take()
        assert window.has_room()

    def test_the_bytes_of_prompts_count(self):
        window = make(max_bytes=10_000)
        fill(window, 1, size=9_000)
        assert not window.has_room()

    def test_the_bytes_of_answers_count_until_they_are_read(self):
        window = make(max_bytes=20_000)
        requests = fill(window, 3)
        assert window.has_room()
        requests[0].settle(answer(20_000))
        assert not window.has_room()
        window.take()
        assert window.has_room()

    def test_the_messages_of_an_answer_count_too(self):
        window = make(max_bytes=20_000)
        requests = fill(window, 2)
        requests[1].settle(Answer(1, 0.1, "", 1, b"m" * 20_000))
        assert not window.has_room()

    def test_one_request_always_fits(self):
        window = make(max_bytes=1)
        assert window.has_room()
        fill(window, 1, size=10**6)
        assert not window.has_room()

    def test_even_empty_prompts_cost_something(self):
        window = make(max_requests=LARGE, max_bytes=100_000)
        put = 0
        while window.has_room():
            window.put(new(put, 0, window))
            put += 1
        assert put <= 1000

    @settings(deadline=None)
    @given(st.booleans(), st.lists(st.tuples(st.integers(0, 5000), st.integers(-1, 5000))))
    def test_when_all_is_read_nothing_is_held(self, is_ordered, sizes):
        window = make(is_ordered=is_ordered)
        requests = [new(i, size, window) for i, (size, _) in enumerate(sizes)]
        for request in requests:
            window.put(request)
        for request, (_, size) in zip(requests, sizes, strict=True):
            request.settle(ClientError("no") if size < 0 else answer(size))
        taken = [window.take() for _ in sizes]
        assert set(taken) == set(requests)
        assert len(window) == 0
        assert window._bytes + window._answer_bytes - window._taken_bytes == 0

    def test_an_error_that_the_consumer_settles_leaves_the_count_of_answers_to_the_io_thread(self):
        """Two threads that add to one number lose updates."""
        writes = []

        class Watched(Window):
            def __setattr__(self, name, value):
                writes.append(name)
                object.__setattr__(self, name, value)

        window = make()
        window.__class__ = Watched
        first, second = fill(window, 2)
        first.settle(answer())
        assert writes.count("_answer_bytes") == 1
        second.settle(ClientError("cannot be sent"))
        assert writes.count("_answer_bytes") == 1


class TestWait:
    def test_what_is_ready_needs_no_sleep(self):
        window = make()
        fill(window, 1)[0].settle(answer())
        event = script(window)
        assert window.wait(deadline=0.0) is True
        assert event.timeouts == []

    def test_ordered_it_is_woken_by_the_first_alone(self):
        window = make()
        requests = fill(window, 3)
        event = script(
            window,
            lambda: requests[2].settle(answer()),
            lambda: requests[1].settle(answer()),
            lambda: requests[0].settle(answer()),
        )
        assert window.wait(None) is True
        assert event.wakeups == 1
        assert [window.take().index for _ in range(3)] == [0, 1, 2]

    def test_unordered_it_is_woken_by_any_and_only_once(self):
        window = make(is_ordered=False)
        requests = fill(window, 3)
        event = script(window, lambda: [r.settle(answer()) for r in requests])
        assert window.wait(None) is True
        assert event.wakeups == 1

    def test_nobody_is_woken_who_does_not_sleep(self):
        window = make()
        event = script(window)
        for request in fill(window, 3):
            request.settle(answer())
        assert event.wakeups == 0

    @pytest.mark.parametrize("is_ordered", [True, False])
    def test_an_outcome_just_before_the_sleep_is_not_missed(self, is_ordered):
        """The I/O thread does not wake whom it takes for awake: the consumer looks again."""
        window = make(is_ordered=is_ordered)
        (request,) = fill(window, 1)
        event = script(window)
        event.clear = lambda: request.outcome or request.settle(answer())
        assert window.wait(None) is True
        assert event.wakeups == 0

    def test_an_outcome_just_after_the_flag_wakes(self):
        window = make()
        (request,) = fill(window, 1)

        class Racing(type(window)):
            @property
            def _is_waiting(self):
                return self.__dict__["waiting"]

            @_is_waiting.setter
            def _is_waiting(self, value):
                self.__dict__["waiting"] = value
                if value:
                    request.settle(answer())

        window.__class__ = Racing
        assert window.wait(None) is True

    def test_the_deadline_ends_it(self):
        window = make()
        fill(window, 1)
        event = script(window, None)
        deadline = time.monotonic() + 1e-9
        assert window.wait(deadline) is False
        assert all(timeout <= 1e-9 for timeout in event.timeouts)

    def test_after_a_deadline_it_can_wait_again(self):
        window = make()
        (request,) = fill(window, 1)
        assert window.wait(time.monotonic() - 1) is False
        event = script(window, lambda: request.settle(answer()))
        assert window.wait(None) is True
        assert event.wakeups == 1

    def test_fail_fast_is_woken_by_an_error_anywhere(self):
        window = make(is_fail_fast=True)
        requests = fill(window, 3)
        script(window, lambda: requests[2].settle(ClientError("third")))
        assert window.wait(None) is True
        assert window.has_failed()
        assert window.first_error is requests[2]
        assert not window.is_ready()

    def test_fail_fast_keeps_the_first_error_in_time(self):
        window = make(is_fail_fast=True)
        requests = fill(window, 3)
        requests[2].settle(ClientError("first"))
        requests[0].settle(ClientError("second"))
        assert window.first_error is requests[2]

    def test_otherwise_an_error_is_waited_for_in_its_turn(self):
        window = make()
        requests = fill(window, 3)
        script(
            window,
            lambda: requests[2].settle(ClientError("third")),
            lambda: requests[0].settle(answer()),
        )
        assert window.wait(None) is True
        assert not window.has_failed()
        assert window.take() is requests[0]

    def test_a_window_takes_no_parts(self):
        window = make()
        assert window.stream(new(), b"part") is True

    @pytest.mark.parametrize("is_ordered", [True, False])
    def test_two_real_threads_lose_nothing(self, is_ordered):
        window = make(max_requests=8, is_ordered=is_ordered)
        handed, more = [], threading.Semaphore(0)

        def io():
            while True:
                more.acquire()
                request = handed.pop(0)
                if request is None:
                    return
                request.settle(answer())

        thread = threading.Thread(target=io, daemon=True)
        thread.start()
        seen = []
        for i in range(3000):
            while not window.has_room():
                assert window.wait(time.monotonic() + 20)
                seen.append(window.take().index)
            request = new(i, 1, window)
            window.put(request)
            handed.append(request)
            more.release()
        while len(window):
            assert window.wait(time.monotonic() + 20)
            seen.append(window.take().index)
        handed.append(None)
        more.release()
        thread.join(20)
        assert sorted(seen) == list(range(3000))
        if is_ordered:
            assert seen == sorted(seen)
