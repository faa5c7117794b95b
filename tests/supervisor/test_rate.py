"""The token bucket and the pause: how many, how soon, and never too early or for nothing."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.protocol.errors import ClientError, InvalidOptions, RateLimited
from soloist.supervisor.rate import MAX_PAUSE_S, Limiter, RateLimit

NOW = 1_000_000.0  # a machine that has been up for days


def limiter(per_second=2.0, burst=1):
    return Limiter(RateLimit(per_second, burst))


def taken_at_once(limiter, now):
    count = 0
    while limiter.take(now):
        count += 1
    return count


class TestRateLimit:
    def test_says_one_at_a_time_unless_told_otherwise(self):
        assert RateLimit(5) == RateLimit(per_second=5, burst=1)

    def test_cannot_be_changed(self):
        with pytest.raises(AttributeError):
            RateLimit(5).burst = 3

    @pytest.mark.parametrize("rate", [0, -1, 1e-12, 1e12, math.inf, math.nan, "5", None, True])
    def test_refuses_a_rate_that_is_none(self, rate):
        with pytest.raises(InvalidOptions, match="per_second"):
            RateLimit(rate)

    @pytest.mark.parametrize("burst", [0, -1, 1.5, "1", None, True, 10**30])
    def test_refuses_a_burst_that_is_none(self, burst):
        with pytest.raises(InvalidOptions, match="burst"):
            RateLimit(5, burst)

    @pytest.mark.parametrize("rate", [1e-9, 0.1, 50, 1e9])
    @pytest.mark.parametrize("burst", [1, 10**9])
    def test_takes_all_others_and_they_work(self, rate, burst):
        bucket = limiter(rate, burst)
        assert bucket.take(NOW)
        assert math.isfinite(bucket.next_at())


class TestTokens:
    def test_a_burst_comes_at_once_to_the_last_token(self):
        for burst in range(1, 200):
            assert taken_at_once(limiter(3.0, burst), NOW) == burst

    def test_then_one_per_interval(self):
        bucket = limiter(4.0, burst=3)
        taken_at_once(bucket, NOW)
        times = []
        now = NOW
        for _ in range(5):
            now = bucket.next_at()
            assert taken_at_once(bucket, now) == 1
            times.append(now - NOW)
        assert times == [0.25, 0.5, 0.75, 1.0, 1.25]

    def test_a_while_without_any_fills_the_bucket_and_no_more(self):
        bucket = limiter(4.0, burst=3)
        taken_at_once(bucket, NOW)
        assert taken_at_once(bucket, NOW + 0.5) == 2
        assert taken_at_once(bucket, NOW + 3600.0) == 3

    def test_asking_takes_nothing(self):
        bucket = limiter(burst=1)
        assert bucket.has_token(NOW)
        assert bucket.has_token(NOW)
        assert bucket.take(NOW)
        assert not bucket.has_token(NOW)
        assert not bucket.take(NOW)
        assert bucket.has_token(NOW + 0.5)

    def test_what_was_refused_costs_nothing(self):
        bucket = limiter(2.0)
        bucket.take(NOW)
        for _ in range(100):
            assert not bucket.take(NOW + 0.4)
        assert bucket.next_at() == NOW + 0.5

    def test_without_a_rate_there_is_always_one(self):
        bucket = Limiter()
        for step in range(100):
            assert bucket.take(NOW + step // 10)
        assert bucket.next_at() <= NOW + 9

    def test_fifty_a_second_with_a_burst_of_ten_grants_five_hundred_in_nine_point_eight(self):
        bucket, now, count = limiter(50, burst=10), NOW, 0
        while count < 500:
            now = max(now, bucket.next_at())
            count += bucket.take(now)
        assert now - NOW == pytest.approx(9.8)

    @settings(deadline=None)
    @given(
        rate=st.floats(0.01, 10_000),
        burst=st.integers(1, 50),
        gaps=st.lists(st.floats(0, 5) | st.just(0.0) | st.none(), max_size=80),
    )
    def test_never_too_many_and_none_wasted(self, rate, burst, gaps):
        """``None`` sleeps until the next token; the others look when they like, and take all."""
        bucket, now, times = limiter(rate, burst), NOW, []
        tokens, before = float(burst), NOW
        for gap in gaps:
            now = max(now, bucket.next_at()) if gap is None else now + gap
            tokens = min(burst, tokens + (now - before) * rate)
            before = now
            count = taken_at_once(bucket, now)
            assert count or gap is not None, "it woke for nothing"
            assert abs(count - tokens) < 1 + 1e-3, "too many, or one was withheld"
            tokens -= count
            times += [now] * count
        for first, begin in enumerate(times):
            for last in (first, len(times) - 1):
                most = burst + rate * (times[last] - begin)
                assert last - first + 1 <= most + 1e-3

    @given(rate=st.floats(0.01, 1e6), burst=st.integers(1, 20), now=st.floats(0, 1e8))
    def test_there_is_none_before_the_time_it_names_and_one_at_it(self, rate, burst, now):
        bucket = limiter(rate, burst)
        for _ in range(2 * burst):
            due = bucket.next_at()
            assert not bucket.has_token(math.nextafter(due, -math.inf))
            assert bucket.has_token(due)
            now = max(now, due)
            assert bucket.take(now)


class TestPause:
    @pytest.mark.parametrize(
        "bucket", [Limiter(), limiter(100.0, burst=5)], ids=["free", "limited"]
    )
    def test_nothing_is_granted_before_its_end(self, bucket):
        bucket.pause_until(NOW + 1.0)
        assert not bucket.has_token(NOW + 0.999)
        assert not bucket.take(NOW + 0.999)
        assert bucket.next_at() == NOW + 1.0
        assert bucket.take(NOW + 1.0)

    def test_is_never_shortened(self):
        bucket = Limiter()
        bucket.pause_until(NOW + 5.0)
        bucket.pause_until(NOW + 1.0)
        assert bucket.next_at() == NOW + 5.0

    def test_can_be_prolonged(self):
        bucket = Limiter()
        bucket.pause_until(NOW + 1.0)
        bucket.pause_until(NOW + 5.0)
        assert bucket.next_at() == NOW + 5.0

    def test_leaves_the_rate_in_force(self):
        bucket = limiter(1.0)
        bucket.take(NOW)
        bucket.pause_until(NOW + 0.5)
        assert bucket.next_at() == NOW + 1.0

    def test_that_lies_in_the_past_stops_nobody(self):
        bucket = Limiter()
        bucket.pause_until(NOW - 1.0)
        assert bucket.take(NOW)


class TestFree:
    def test_without_a_rate_nobody_needs_to_ask(self):
        assert Limiter().is_free
        assert Limiter(None).is_free

    def test_with_one_everybody_does_for_ever(self):
        bucket = limiter(1000.0)
        assert not bucket.is_free
        bucket.take(NOW)
        assert not bucket.is_free

    def test_a_pause_ends_with_the_first_grant_after_it(self):
        bucket = Limiter()
        bucket.pause_until(NOW + 1.0)
        assert not bucket.is_free
        bucket.take(NOW + 0.5)
        assert not bucket.is_free
        bucket.take(NOW + 1.0)
        assert bucket.is_free


class TestHeed:
    def test_it_pauses_for_as_long_as_the_service_asked(self):
        bucket = Limiter()
        bucket.heed(RateLimited("slow down", retry_after_s=2.5), NOW)
        assert bucket.next_at() == NOW + 2.5

    @pytest.mark.parametrize(
        "error",
        [
            RateLimited("no time named"),
            RateLimited("now", retry_after_s=0),
            RateLimited("in the past", retry_after_s=-5.0),
            ClientError("of another kind"),
        ],
        ids=str,
    )
    def test_it_goes_on_after_all_else(self, error):
        bucket = Limiter()
        bucket.heed(error, NOW)
        assert bucket.has_token(NOW)

    def test_it_asks_again_after_an_hour_at_most(self):
        bucket = Limiter()
        bucket.heed(RateLimited(retry_after_s=1e15), NOW)
        assert bucket.next_at() == NOW + MAX_PAUSE_S


def test_it_says_what_it_is():
    assert "per_second=5" in repr(limiter(5))
