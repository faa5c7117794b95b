"""Contestants in processes of their own: what they measure comes back, or why they could not."""

import os
import signal

import pytest

from benchmarks import _drivers
from benchmarks._peers import OTHERS, SOLOIST
from benchmarks._suite import CheckFailed, check
from benchmarks._work import nothing

HERE = [peer for peer in (SOLOIST, *OTHERS) if not peer.package or peer.package == "multiprocess"]


def works(calls):
    items = [f"item {i}" for i in range(20)]
    check(list(calls.map(items)) == items, "map")
    waiters = [calls.submit(item) for item in items]
    check([waiter() for waiter in waiters] == items, "submit")
    check(calls.submit("x")(10.0) == "x", "a wait with an end")
    return os.getpid()


def dies(calls):
    signal.raise_signal(signal.SIGKILL)


def is_wrong(calls):
    check(calls.submit("x")() == "y", "x is not y")


def fails():
    raise KeyError("why")


@pytest.mark.parametrize("peer", HERE, ids=lambda peer: peer.name)
def test_each_pool_does_what_is_asked_elsewhere(peer):
    with _drivers.driver(peer, nothing, 2) as contestant:
        assert contestant(works) != os.getpid()


def test_a_wrong_result_is_told_and_the_contestant_goes_on():
    with _drivers.driver(SOLOIST, nothing, 1) as contestant:
        with pytest.raises(CheckFailed, match="Soloist: x is not y"):
            contestant(is_wrong)
        assert contestant(works)


def test_a_contestant_that_dies_is_a_failure():
    with (
        pytest.raises(CheckFailed, match="died"),
        _drivers.driver(SOLOIST, nothing, 1) as contestant,
    ):
        contestant(dies)


def test_one_that_cannot_begin_is_a_failure():
    with (
        pytest.raises(CheckFailed, match="Soloist: InvalidOptions"),
        _drivers.driver(SOLOIST, nothing, -1),
    ):
        pass


def test_a_function_apart_gives_its_value_or_its_failure():
    assert _drivers.apart(os.getpid) != os.getpid()
    with pytest.raises(CheckFailed, match="KeyError: 'why'"):
        _drivers.apart(fails)
