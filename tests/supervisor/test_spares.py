"""Which process is kept, which is given, which has to go, and when."""

import math

import pytest

from soloist.supervisor.crew import STOP_S
from soloist.supervisor.spares import KEPT_S, MOST, Spares


@pytest.fixture
def spares():
    return Spares()


def test_without_any_there_is_nothing_to_give_and_nothing_to_wait_for(spares):
    assert spares.take() is None
    assert (len(spares), list(spares), spares.next_at()) == (0, [], math.inf)


def test_the_last_that_came_is_given_so_that_the_others_grow_old(spares):
    for now, process in enumerate("abc"):
        spares.keep(process, now)
    assert [spares.take(), spares.take()] == ["c", "b"]
    assert list(spares) == ["a"]


def test_one_that_was_taken_is_kept_by_nobody(spares):
    spares.keep("a", 0.0)
    assert spares.take() == "a"
    assert spares.take() is None
    assert not spares.drop("a")


def test_one_that_has_ended_is_not_given(spares):
    spares.keep("a", 0.0)
    assert spares.drop("a")
    assert spares.take() is None
    assert not spares.drop("a")


def test_there_is_room_for_so_many(spares):
    for process in range(MOST):
        assert spares.has_room
        spares.keep(process, 0.0)
    assert not spares.has_room
    spares.take()
    assert spares.has_room


class TestAge:
    def test_who_is_not_wanted_for_long_is_dismissed_once(self, spares):
        spares.keep("a", 0.0)
        spares.keep("b", 1.0)
        assert spares.next_at() == KEPT_S
        assert spares.old(KEPT_S - 0.1) == []
        assert spares.old(KEPT_S) == ["a"]
        assert spares.old(KEPT_S) == []
        assert list(spares) == ["b", "a"]  # it has not ended yet

    def test_one_that_was_dismissed_is_not_given_and_counts_until_its_end(self, spares):
        spares.keep("a", 0.0)
        assert spares.all(0.0) == ["a"]
        assert spares.take() is None
        assert len(spares) == 1
        assert spares.drop("a")
        assert len(spares) == 0

    def test_one_that_does_not_go_is_late_once(self, spares):
        spares.keep("a", 0.0)
        spares.all(3.0)
        assert spares.next_at() == 3.0 + STOP_S
        assert spares.late(3.0 + STOP_S - 0.1) == []
        assert spares.late(3.0 + STOP_S) == ["a"]
        assert spares.late(9e9) == []
        assert spares.next_at() == math.inf

    def test_whatever_is_due_first_is_waited_for(self, spares):
        spares.keep("a", 0.0)
        spares.all(0.0)
        spares.keep("b", 0.0)
        assert spares.next_at() == min(KEPT_S, STOP_S)


def test_once_closed_it_keeps_no_more(spares):
    spares.keep("a", 0.0)
    spares.close()
    assert not spares.has_room
    assert spares.all(0.0) == ["a"]
