"""Whose message is next: its own line's oldest, of the connection that has cost least of late."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.supervisor.arrivals import Arrivals


@pytest.fixture
def arrivals():
    return Arrivals(max_count=100, max_bytes=1_000)


def served(arrivals, cost_s=0.0, now=0.0):
    """Take all that is there, each at the same cost; whose they were."""
    keys = []
    while arrivals:
        keys.append(arrivals.next()[0])
        arrivals.cost(cost_s, now)
    return keys


def spend(arrivals, key, seconds, now=0.0):
    arrivals.add(key, None, 1)
    assert arrivals.next()[0] == key
    arrivals.cost(seconds, now)


class TestOrder:
    def test_is_that_of_arrival_where_nothing_costs(self, arrivals):
        for key in "abc":
            arrivals.add(key, None, 1)
        assert served(arrivals) == list("abc")

    def test_takes_turns_where_all_cost_the_same(self, arrivals):
        for key in "aaabbbc":
            arrivals.add(key, None, 1)
        assert served(arrivals, 0.001) == list("abcabab")

    def test_who_has_cost_least_comes_first_with_all_it_says(self, arrivals):
        spend(arrivals, "loud", 0.010)
        for key in ("loud", "loud", "quiet", "quiet"):
            arrivals.add(key, None, 1)
        assert served(arrivals, 0.001) == ["quiet", "quiet", "loud", "loud"]

    def test_a_cost_loses_its_weight(self, arrivals):
        spend(arrivals, "once", 0.010, now=0.0)
        spend(arrivals, "now", 0.002, now=5.0)
        for key in ("now", "once"):
            arrivals.add(key, None, 1)
        assert served(arrivals, now=5.0) == ["once", "now"]

    @pytest.mark.parametrize(
        ("after_s", "order"),
        [(0, ["quiet", "loud"]), (19, ["quiet", "loud"]), (60, ["loud", "quiet"]),
         (1e9, ["loud", "quiet"])],
    )  # fmt: skip
    def test_is_that_of_arrival_when_the_costs_are_forgotten(self, arrivals, after_s, order):
        spend(arrivals, "loud", 0.010, now=5e8)
        spend(arrivals, "else", 0.001, now=5e8 + after_s)
        for key in ("loud", "quiet"):
            arrivals.add(key, None, 1)
        assert served(arrivals, now=5e8 + after_s) == order

    def test_outlives_a_new_round_in_those_who_wait(self, arrivals):
        """Weights begin anew every 20 s, for a float would not hold them for a day."""
        for key, cost_s in (("a", 0.002), ("b", 0.001), ("c", 0.003)):
            spend(arrivals, key, cost_s, now=0.0)
            arrivals.add(key, None, 1)
        arrivals.add("new", None, 1)
        arrivals.next()
        arrivals.cost(0.0, 25.0)
        assert served(arrivals, now=25.0) == ["b", "a", "c"]

    def test_those_who_share_an_account_pay_together(self):
        arrivals = Arrivals(100, 1_000, account=lambda key: key[0])
        for key in ("a1", "a2", "a3", "b1", "b1"):
            arrivals.add(key, None, 1)
        assert served(arrivals, 0.001) == ["a1", "b1", "a2", "b1", "a3"]

    def test_nobody_waits_for_ever_behind_new_ones(self):
        arrivals = Arrivals(10_000, 100_000, account=lambda key: "old" if key == "old" else "new")
        spend(arrivals, "old", 0.005)
        arrivals.add("old", None, 1)
        keys = []
        for number in range(100):
            arrivals.add(number, None, 1)
            keys.append(arrivals.next()[0])
            arrivals.cost(0.001, 0.0)
        assert keys.index("old") in (5, 6)


class TestBounds:
    def test_count(self):
        arrivals = Arrivals(max_count=2, max_bytes=1_000)
        arrivals.add("a", None, 1)
        assert not arrivals.is_full
        arrivals.add("a", None, 1)
        assert arrivals.is_full
        assert len(arrivals) == 2
        arrivals.next()
        assert not arrivals.is_full

    def test_bytes(self):
        arrivals = Arrivals(max_count=10, max_bytes=100)
        arrivals.add("a", None, 99)
        assert not arrivals.is_full
        arrivals.add("a", None, 5_000)
        assert arrivals.is_full
        arrivals.next()
        assert arrivals.is_full
        arrivals.next()
        assert not arrivals.is_full

    def test_what_connections_have_cost_is_forgotten(self, arrivals):
        for number in range(1_000):
            spend(arrivals, number, 0.001, now=number / 20)
        assert len(arrivals._costs) < 900


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 0.1)), max_size=60), st.data())
def test_nothing_is_lost_and_each_line_stays_in_order(said, data):
    arrivals, given_, taken = Arrivals(1_000, 10**6), collections.defaultdict(list), []
    now = 0.0
    for number, (key, cost_s) in enumerate(said):
        arrivals.add(key, number, 1)
        given_[key].append(number)
        while arrivals and data.draw(st.booleans()):
            taken.append(arrivals.next())
            now += cost_s * 100
            arrivals.cost(cost_s, now)
    while arrivals:
        taken.append(arrivals.next())
        arrivals.cost(0.001, now)
    for key, numbers in given_.items():
        assert [number for k, number in taken if k == key] == numbers
    assert len(taken) == len(said)
