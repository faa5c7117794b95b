"""How long a prompt holds its worker: foretold only where lately all took about the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.supervisor.forecast import FORESEEN_S, LEAST_LEARNED, STEADY, Forecast


def learned(*seconds):
    forecast = Forecast()
    for value in seconds:
        forecast.learn(value)
    return forecast


@pytest.mark.parametrize("seconds", [1e-4, 0.02, FORESEEN_S])
def test_what_is_always_the_same_is_foretold(seconds):
    assert learned(*[seconds] * LEAST_LEARNED).seconds == pytest.approx(seconds)


def test_not_after_too_few():
    assert learned(*[0.02] * (LEAST_LEARNED - 1)).seconds == 0.0


def test_nor_what_takes_long():
    assert learned(*[FORESEEN_S * 1.01] * 100).seconds == 0.0


@pytest.mark.parametrize("odd", [0.02 * STEADY * 1.2, 0.02 / STEADY / 1.2, 0.0])
def test_one_that_does_not_fit_ends_it_at_once(odd):
    forecast = learned(*[0.02] * 100)
    forecast.learn(odd)
    assert forecast.seconds == 0.0


def test_and_is_forgotten_after_a_while():
    forecast = learned(*[0.02] * 100, 1.0)
    for _ in range(60):
        forecast.learn(0.02)
    assert forecast.seconds == pytest.approx(0.02, rel=STEADY - 1)


@given(st.lists(st.floats(0.0, 1e6), max_size=50))
def test_it_is_never_less_than_the_last_nor_more_than_may_be_foretold(seconds):
    forecast = learned(*seconds)
    assert 0.0 <= forecast.seconds <= FORESEEN_S
    if forecast.seconds:
        assert forecast.seconds >= seconds[-1] * (1 - 1e-9)
