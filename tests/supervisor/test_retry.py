"""The retry policy, and the requests that wait for their next attempt."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    InvalidOptions,
    RateLimited,
    RequestCancelled,
    SoloistError,
    WorkerLost,
)
from soloist.protocol.transitions import RequestEvent, RequestState
from soloist.supervisor.request import Request
from soloist.supervisor.retry import Retries, Retry

NOW = 1000.0


def refused(retry_after_s=None):
    return RateLimited("refused", retry_after_s=retry_after_s, started=False)


class TestValues:
    def test_there_are_three_attempts_unless_told_otherwise(self):
        retry = Retry()
        assert (retry.attempts, retry.total_s, retry.may_have_run) == (3, 60.0, False)

    def test_cannot_be_changed(self):
        with pytest.raises(AttributeError):
            Retry().attempts = 5

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("attempts", 0),
            ("attempts", 2.0),
            ("attempts", True),
            ("attempts", None),
            ("total_s", -1),
            ("total_s", math.nan),
            ("total_s", math.inf),
            ("total_s", "60"),
            ("first_delay_s", -0.1),
            ("first_delay_s", None),
            ("first_delay_s", True),
            ("max_delay_s", math.inf),
            ("on", ()),
            ("on", [RateLimited]),
            ("on", RateLimited),
            ("on", (ValueError,)),
            ("on", (RateLimited(),)),
            ("may_have_run", 1),
            ("may_have_run", None),
        ],
    )
    def test_that_cannot_be_used_are_refused_by_name(self, name, value):
        with pytest.raises(InvalidOptions, match=f"^{name} "):
            Retry(**{name: value})

    def test_at_the_edge_are_fine(self):
        assert Retry(attempts=1, total_s=None, on=(SoloistError,), first_delay_s=0, max_delay_s=0)
        assert Retry(total_s=0).delay_s(refused(), 1, 0.0, 0.0) is None


class TestWhich:
    def test_by_default_what_is_retryable(self):
        retry = Retry(may_have_run=True)
        assert retry.delay_s(WorkerLost("gone"), 1, 0.0, 0.0) is not None
        assert retry.delay_s(ClientError("no"), 1, 0.0, 0.0) is None

    def test_the_error_itself_knows_whether_it_is(self):
        """A client may know better than the class."""
        error = ClientError("overloaded", started=False)
        error.retryable = True
        assert Retry().delay_s(error, 1, 0.0, 0.0) is not None

    def test_or_what_the_policy_names(self):
        retry = Retry(on=(ClientError,), may_have_run=True)
        assert retry.delay_s(ClientError("no"), 1, 0.0, 0.0) is not None
        assert retry.delay_s(refused(), 1, 0.0, 0.0) is not None  # a subclass
        assert retry.delay_s(WorkerLost("gone"), 1, 0.0, 0.0) is None

    @pytest.mark.parametrize("on", [None, (RateLimited, WorkerLost)])
    def test_what_may_have_run_only_if_the_policy_says_so(self, on):
        for error in (RateLimited("in mid-turn"), WorkerLost("gone")):
            assert error.started is None
            assert Retry(on=on).delay_s(error, 1, 0.0, 0.0) is None
            assert Retry(on=on, may_have_run=True).delay_s(error, 1, 0.0, 0.0) is not None
            error.started = False
            assert Retry(on=on).delay_s(error, 1, 0.0, 0.0) is not None


class TestHowOften:
    def test_as_many_attempts_as_it_says(self):
        retry = Retry(attempts=3)
        assert retry.delay_s(refused(), 2, 0.0, 0.0) is not None
        assert retry.delay_s(refused(), 3, 0.0, 0.0) is None
        assert Retry(attempts=1).delay_s(refused(), 1, 0.0, 0.0) is None

    def test_no_attempt_becomes_due_after_the_total(self):
        retry = Retry(total_s=10.0, first_delay_s=2.0)
        assert retry.delay_s(refused(), 1, 8.0, 1.0) == 2.0
        assert retry.delay_s(refused(), 1, 8.001, 1.0) is None

    def test_without_a_total_time_does_not_matter(self):
        assert Retry(total_s=None).delay_s(refused(), 1, 1e9, 0.0) is not None


class TestHowSoon:
    def test_delays_double_up_to_the_longest(self):
        retry = Retry(attempts=10, first_delay_s=1.0, max_delay_s=5.0)
        delays = [retry.delay_s(refused(), n, 0.0, 1.0) for n in range(1, 6)]
        assert delays == [1.0, 2.0, 4.0, 5.0, 5.0]

    @pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
    def test_jitter_takes_up_to_half_of_the_delay(self, jitter, share):
        assert Retry(first_delay_s=1.0).delay_s(refused(), 1, 0.0, jitter) == share

    def test_what_the_service_asked_for_is_the_least(self):
        retry = Retry(first_delay_s=1.0, max_delay_s=2.0)
        assert retry.delay_s(refused(30.0), 1, 0.0, 0.0) == 30.0
        assert retry.delay_s(refused(0.1), 1, 0.0, 1.0) == 1.0
        assert retry.delay_s(refused(-5.0), 1, 0.0, 1.0) == 1.0

    def test_and_counts_towards_the_total(self):
        assert Retry(total_s=20.0).delay_s(refused(30.0), 1, 0.0, 0.0) is None

    def test_thousands_of_attempts_do_not_overflow(self):
        retry = Retry(attempts=10_000, total_s=None)
        assert retry.delay_s(refused(), 9_999, 0.0, 1.0) == retry.max_delay_s

    @given(
        attempts=st.integers(1, 5),
        so_far=st.integers(1, 6),
        elapsed_s=st.floats(0, 100),
        jitter=st.floats(0, 1),
        retry_after_s=st.none() | st.floats(-1, 100),
        first_delay_s=st.floats(0, 10),
        max_delay_s=st.floats(0, 10),
        total_s=st.none() | st.floats(0, 100),
    )
    def test_a_delay_keeps_to_every_bound(
        self,
        attempts,
        so_far,
        elapsed_s,
        jitter,
        retry_after_s,
        first_delay_s,
        max_delay_s,
        total_s,
    ):
        retry = Retry(attempts, total_s, None, first_delay_s, max_delay_s)
        delay_s = retry.delay_s(refused(retry_after_s), so_far, elapsed_s, jitter)
        if delay_s is not None:
            assert so_far < attempts
            assert delay_s >= max(0.0, retry_after_s or 0.0)
            assert delay_s <= max(max_delay_s, retry_after_s or 0.0)
            assert total_s is None or elapsed_s + delay_s <= total_s


class TestRetries:
    """The requests that wait; the pool's tests show them at work."""

    @staticmethod
    def leased(order=0, attempts=1, **kwargs):
        request = Request("p", b"p", **kwargs)
        request.order = order
        request.attempts = attempts
        request.advance(RequestEvent.LEASE)
        return request

    @staticmethod
    def retries(**kwargs):
        return Retries(Retry(first_delay_s=1.0, **kwargs), jitter=lambda: 1.0)

    def test_without_a_policy_every_error_is_final(self):
        request = self.leased()
        retries = Retries(None)
        assert not retries.postpone(request, refused(), NOW, NOW)
        assert request.state is RequestState.LEASED
        assert (retries.count, retries.next_at) == (0, math.inf)

    def test_one_that_waits_is_delayed_until_its_time(self):
        request, retries = self.leased(), self.retries()
        assert retries.postpone(request, refused(), NOW, NOW)
        assert request.state is RequestState.DELAYED
        assert (retries.count, retries.next_at) == (1, NOW + 1.0)
        assert retries.due(NOW + 0.999) == []
        assert retries.due(NOW + 1.0) == [request]
        assert request.state is RequestState.QUEUED
        assert (retries.count, retries.next_at) == (0, math.inf)

    def test_a_streamed_one_is_never_repeated(self):
        request = self.leased(is_streamed=True)
        assert not self.retries().postpone(request, refused(), NOW, NOW)

    def test_no_wait_goes_past_the_deadline(self):
        assert not self.retries().postpone(self.leased(deadline=NOW + 1.0), refused(), NOW, NOW)
        assert self.retries().postpone(self.leased(deadline=NOW + 1.01), refused(), NOW, NOW)

    def test_the_total_counts_from_the_first_attempts_beginning(self):
        request, retries = self.leased(), self.retries(attempts=9, total_s=10.0)
        assert retries.postpone(request, refused(), NOW - 4.0, NOW)
        retries.due(NOW + 1.0)
        request.advance(RequestEvent.LEASE)
        # The second began just now, and failed at once.
        assert not retries.postpone(request, refused(), NOW + 5.5, NOW + 5.5)
        assert retries.postpone(request, refused(), NOW + 5.0, NOW + 5.0)

    def test_those_that_wait_are_in_order(self):
        retries = self.retries()
        late, early = self.leased(order=7), self.leased(order=3)
        retries.postpone(late, refused(), NOW, NOW)
        retries.postpone(early, refused(), NOW, NOW + 1.0)
        assert retries.waiting() == [early, late]

    def test_one_that_ends_early_waits_no_more(self):
        request, retries = self.leased(), self.retries()
        retries.postpone(request, refused(), NOW, NOW)
        retries.ending(request, RequestCancelled("enough"))
        request.advance(RequestEvent.SETTLE)
        assert retries.count == 0
        assert retries.waiting() == []
        assert retries.due(NOW + 9.0) == []
        assert retries.next_at == math.inf

    def test_memory_is_bounded_when_those_that_wait_end_early(self):
        retries = self.retries()
        for order in range(2000):
            request = self.leased(order)
            retries.postpone(request, refused(3.0), NOW, NOW)
            retries.ending(request, RequestCancelled("enough"))
            request.advance(RequestEvent.SETTLE)
            assert len(retries._delayed) < 100


class TestHistory:
    """What the last word says of the attempts before it."""

    @staticmethod
    def after(failure, last):
        request = TestRetries.leased()
        retries = TestRetries.retries(may_have_run=True)
        assert retries.postpone(request, failure, NOW, NOW)
        return retries.ending(request, last)

    def test_an_earlier_attempt_may_have_run_so_the_request_may(self):
        last = self.after(WorkerLost("gone"), RequestCancelled("enough", started=False))
        assert last.started is None

    def test_if_none_can_have_run_the_request_never_did(self):
        last = self.after(refused(), RequestCancelled("enough", started=False))
        assert last.started is False

    def test_it_names_the_attempt_before(self):
        failure = refused()
        assert self.after(failure, RequestCancelled("enough")).__cause__ is failure

    def test_a_cause_of_its_own_comes_first(self):
        last, cause = RequestCancelled("enough"), ClientConnectError("no key")
        last.__cause__ = cause
        assert self.after(refused(), last).__cause__ is cause

    def test_a_first_attempts_error_is_left_as_it_is(self):
        error = refused()
        assert TestRetries.retries().ending(TestRetries.leased(), error) is error
        assert (error.started, error.__cause__) == (False, None)

    def test_however_many_attempts_only_one_is_kept(self):
        request, retries = TestRetries.leased(), TestRetries.retries(attempts=99, total_s=None)
        for attempt in range(1, 50):
            request.attempts = attempt
            retries.postpone(request, refused(), NOW, NOW)
            retries.due(math.inf)
            request.advance(RequestEvent.LEASE)
        last = retries.ending(request, refused())
        assert last.__cause__ is request.failure
        assert request.failure.__cause__ is None
