"""When a worker that failed may be replaced: backoff and intensity."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.protocol.errors import WorkerLost
from soloist.supervisor.restart import RestartPolicy, longest_delay_s


def policy(max_restarts=3, period_s=10.0, jitter=1.0, **kwargs):
    return RestartPolicy(
        max_restarts=max_restarts, period_s=period_s, jitter=lambda: jitter, **kwargs
    )


class TestBackoff:
    def test_a_first_worker_may_start_at_once(self):
        assert policy().not_before() <= 0.0

    def test_delays_double_up_to_the_longest(self):
        restart = policy(first_delay_s=1.0, max_delay_s=5.0)
        delays = []
        for now in (100.0, 200.0, 300.0, 400.0, 500.0):
            restart.failed(now)
            delays.append(restart.not_before() - now)
        assert delays == [1.0, 2.0, 4.0, 5.0, 5.0]

    @pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
    def test_jitter_takes_up_to_half_of_the_delay(self, jitter, share):
        restart = policy(jitter=jitter, first_delay_s=1.0)
        restart.failed(100.0)
        assert restart.not_before() == 100.0 + share

    def test_success_begins_anew(self):
        restart = policy(first_delay_s=1.0)
        for now in (1.0, 2.0):
            restart.failed(now)
        restart.succeeded()
        assert restart.not_before() <= 0.0
        restart.failed(3.0)
        assert restart.not_before() == 4.0

    def test_thousands_of_failures_do_not_overflow(self):
        restart = policy(period_s=0.5)
        for now in range(5000):
            restart.failed(float(now))
        assert 4999.0 < restart.not_before() <= 5004.0


class TestIntensity:
    def test_the_limit_itself_is_tolerated(self):
        restart = policy(max_restarts=3)
        for now in (0.0, 1.0, 2.0):
            restart.failed(now)
            assert not restart.is_exhausted(now)

    def test_one_more_within_the_period_reaches_the_limit(self):
        restart = policy(max_restarts=3, period_s=10.0)
        for now in (0.0, 1.0, 2.0, 10.0):
            restart.failed(now)
        assert restart.is_exhausted(10.0)

    def test_failures_further_apart_never_reach_it(self):
        restart = policy(max_restarts=3, period_s=10.0)
        for step in range(100):
            restart.failed(step * 3.4)
            assert not restart.is_exhausted(step * 3.4)

    def test_it_is_over_when_the_period_has_passed(self):
        restart = policy(max_restarts=0, period_s=10.0)
        restart.failed(5.0)
        assert restart.is_exhausted(14.9)
        assert not restart.is_exhausted(15.0)

    def test_until_then_no_worker_may_be_started(self):
        """So that the reactor can sleep until it is worth trying again."""
        restart = policy(max_restarts=0, period_s=10.0, first_delay_s=1.0)
        restart.failed(5.0)
        restart.succeeded()
        assert restart.not_before() == 15.0

    def test_no_restart_at_all_may_be_wanted(self):
        restart = policy(max_restarts=0)
        assert not restart.is_exhausted(0.0)
        restart.failed(0.0)
        assert restart.is_exhausted(0.0)

    def test_a_success_does_not_hide_the_failures_around_it(self):
        restart = policy(max_restarts=1)
        restart.failed(0.0)
        restart.succeeded()
        restart.failed(1.0)
        assert restart.is_exhausted(1.0)

    def test_it_says_what_the_limit_is(self):
        text = policy(max_restarts=7, period_s=2.5).describe()
        assert "7" in text
        assert "2.5 s" in text

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 20), max_size=30), st.integers(0, 4), st.floats(0.5, 10))
    def test_more_than_the_limit_in_any_period_reaches_it(self, gaps, limit, period_s):
        restart = policy(max_restarts=limit, period_s=period_s)
        times, now = [], 0.0
        for gap in gaps:
            now += gap
            restart.failed(now)
            times.append(now)
            crowd = sum(now - t <= period_s for t in times)
            assert restart.is_exhausted(now) == (crowd > limit)


@pytest.mark.parametrize(
    ("max_restarts", "period_s"), [(20, 30.0), (0, 30.0), (5, 30.0), (3, 5.0), (50, 60.0)]
)
@pytest.mark.parametrize("start_s", [0.0, 0.2])
def test_the_delays_alone_do_not_keep_the_limit_from_being_reached(max_restarts, period_s, start_s):
    """One worker at a time, none of which ever starts."""
    restart = RestartPolicy(
        max_restarts=max_restarts,
        period_s=period_s,
        max_delay_s=longest_delay_s(max_restarts, period_s),
        jitter=lambda: 1.0,
    )
    now = 0.0
    for _ in range(max_restarts + 1):
        assert not restart.is_exhausted(now)
        now = max(now, restart.not_before()) + start_s
        restart.failed(now)
    assert restart.is_exhausted(now)


@pytest.mark.parametrize(("max_restarts", "period_s"), [(10**6, 30.0), (3, 0.0)])
def test_they_do_not_vanish_however_many_failures_are_allowed(max_restarts, period_s):
    assert longest_delay_s(max_restarts, period_s) == 0.5


def test_the_last_few_causes_are_kept_newest_last():
    restart = RestartPolicy(max_restarts=3, period_s=10.0)
    errors = [WorkerLost(str(number)) for number in range(9)]
    for error in errors:
        restart.failed(0.0, error)
    assert restart.causes == tuple(errors[-5:])
