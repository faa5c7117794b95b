"""Numbers that callers pass: refused before anything is spawned, and named."""

import math
import resource

import pytest

from soloist.protocol.errors import InvalidOptions, TooManyWorkers
from soloist.supervisor import limits


class TestCounts:
    @pytest.mark.parametrize("value", [1, 2, 10**9])
    def test_whole_numbers_from_one_on_are_taken(self, value):
        limits.check_counts(size=value, window=value)

    @pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True, False, math.inf])
    def test_anything_else_is_refused_by_name(self, value):
        with pytest.raises(InvalidOptions, match=f"window must be .* not {value!r}"):
            limits.check_counts(size=1, window=value)

    def test_the_least_can_be_lowered(self):
        limits.check_counts(0, max_restarts=0)
        with pytest.raises(InvalidOptions, match="at least 0, not -1"):
            limits.check_counts(0, max_restarts=-1)


class TestSeconds:
    @pytest.mark.parametrize("value", [0, 0.0, 1, 0.5, 1e6])
    def test_numbers_from_zero_on_are_taken(self, value):
        limits.check_seconds(timeout_s=value)
        limits.check_limited_seconds(grace_s=value)

    @pytest.mark.parametrize(
        "value", [-1, -0.1, math.nan, math.inf, -math.inf, 10**400, "1", True, 1j]
    )
    @pytest.mark.parametrize("check", [limits.check_seconds, limits.check_limited_seconds])
    def test_anything_else_is_refused_by_name(self, check, value):
        with pytest.raises(InvalidOptions, match="timeout_s must be"):
            check(timeout_s=value)

    def test_none_means_no_limit_only_where_there_may_be_none(self):
        limits.check_seconds(timeout_s=None)
        with pytest.raises(InvalidOptions, match="grace_s must be seconds, at least 0, not None"):
            limits.check_limited_seconds(grace_s=None)


class Rlimit:
    """``resource.getrlimit`` and ``setrlimit`` of a process that is not this one."""

    def __init__(self, monkeypatch, soft, hard):
        self.limits = (soft, hard)
        monkeypatch.setattr(resource, "getrlimit", lambda which: self.limits)
        monkeypatch.setattr(resource, "setrlimit", lambda which, new: setattr(self, "limits", new))


class TestDescriptors:
    def test_enough_are_left_alone(self, monkeypatch):
        rlimit = Rlimit(monkeypatch, 1024, 4096)
        limits.reserve_descriptors(8)
        assert rlimit.limits == (1024, 4096)

    def test_the_soft_limit_grows_by_what_the_workers_need(self, monkeypatch):
        rlimit = Rlimit(monkeypatch, 1024, 100_000)
        limits.reserve_descriptors(1000)
        soft, hard = rlimit.limits
        assert soft - 1024 >= 1000 * 3
        assert hard == 100_000

    def test_the_soft_limit_stays_within_the_hard_one(self, monkeypatch):
        rlimit = Rlimit(monkeypatch, 1024, 2048)
        limits.reserve_descriptors(150)
        assert rlimit.limits == (2048, 2048)

    def test_more_than_the_hard_limit_is_refused_and_changes_nothing(self, monkeypatch):
        rlimit = Rlimit(monkeypatch, 1024, 2048)
        with pytest.raises(TooManyWorkers, match=r"5,000 workers need .* may have 2,048") as caught:
            limits.reserve_descriptors(5000)
        assert caught.value.started is False
        assert rlimit.limits == (1024, 2048)

    @pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 10**9])
    def test_a_generous_hard_limit_is_no_obstacle(self, monkeypatch, hard):
        rlimit = Rlimit(monkeypatch, 1024, hard)
        limits.reserve_descriptors(5000)
        assert rlimit.limits[0] >= 5000 * 3

    def test_no_limit_at_all_is_left_alone(self, monkeypatch):
        infinity = resource.RLIM_INFINITY
        rlimit = Rlimit(monkeypatch, infinity, infinity)
        limits.reserve_descriptors(100_000)
        assert rlimit.limits == (infinity, infinity)
