"""What each signal means, by what came before it."""

import signal

import pytest

from soloist.supervisor.stop_signals import KillNow, StopNow, StopSignals

INTERRUPT, TERMINATE = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def default_handlers():
    """What a fresh process has; afterwards what there was."""
    old = {number: signal.getsignal(number) for number in (INTERRUPT, TERMINATE)}
    signal.signal(INTERRUPT, signal.default_int_handler)
    signal.signal(TERMINATE, signal.SIG_DFL)
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def test_the_first_signal_stops_what_need_not_be_finished():
    with StopSignals() as signals:
        with pytest.raises(StopNow) as stop:
            signal.raise_signal(INTERRUPT)
        assert type(stop.value) is StopNow
        assert signals.exit_code == 130


def test_a_signal_while_stopping_kills_and_further_ones_change_nothing():
    with StopSignals():
        with pytest.raises(StopNow):
            signal.raise_signal(INTERRUPT)
        with pytest.raises(KillNow):
            signal.raise_signal(TERMINATE)
        signal.raise_signal(INTERRUPT)


def test_a_gentle_phase_is_asked_to_finish_once_then_killed():
    asked = []
    with StopSignals() as signals:
        signals.be_gentle(lambda: asked.append(1))
        signal.raise_signal(TERMINATE)
        assert asked == [1]
        with pytest.raises(KillNow):
            signal.raise_signal(INTERRUPT)
        assert asked == [1]
        assert signals.exit_code == 143


def test_after_the_gentle_phase_a_signal_stops():
    with StopSignals() as signals:
        signals.be_gentle(lambda: None)
        signals.be_abrupt()
        with pytest.raises(StopNow) as stop:
            signal.raise_signal(INTERRUPT)
        assert type(stop.value) is StopNow


def test_after_a_gentle_phase_that_was_asked_to_finish_a_signal_kills():
    with StopSignals() as signals:
        signals.be_gentle(lambda: None)
        signal.raise_signal(INTERRUPT)
        signals.be_abrupt()
        with pytest.raises(KillNow):
            signal.raise_signal(INTERRUPT)


def test_a_signal_that_was_ignored_stays_ignored():
    signal.signal(INTERRUPT, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(INTERRUPT)
        assert signals.exit_code is None
    assert signal.getsignal(INTERRUPT) is signal.SIG_IGN


def test_the_old_handlers_come_back():
    with StopSignals():
        assert signal.getsignal(INTERRUPT) is not signal.default_int_handler
    assert signal.getsignal(INTERRUPT) is signal.default_int_handler
