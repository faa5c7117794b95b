"""Closing: every phase has an end, and none comes twice."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.supervisor.shutdown import Phase, Shutdown

BUSY = {"busy": 1, "alive": 2}
IDLE = {"busy": 0, "alive": 2}
GONE = {"busy": 0, "alive": 0}


def closing(drain_s=10.0, interrupt_s=5.0, now=100.0):
    return Shutdown(
        now, drain_s=drain_s, interrupt_s=interrupt_s, stop_s=4.0, term_s=1.0, kill_s=2.0
    )


def walk(shutdown, now, **counts):
    """The phases entered at this moment."""
    entered = []
    while (phase := shutdown.advance(now, **counts)) is not None:
        entered.append(phase)
    return entered


class TestOrder:
    def test_nothing_outstanding_goes_straight_to_stop(self):
        assert walk(closing(), 100.0, **IDLE) == [Phase.INTERRUPT, Phase.STOP]

    def test_nothing_alive_is_done_at_once(self):
        assert walk(closing(), 100.0, **GONE) == [Phase.INTERRUPT, Phase.STOP, Phase.DONE]

    def test_what_never_ends_goes_through_every_phase_by_the_clock(self):
        shutdown = closing()
        times = {}
        for tenth in range(1000, 1300):
            for phase in walk(shutdown, tenth / 10, **BUSY):
                times[phase.name] = tenth / 10
        assert times == {
            "INTERRUPT": 110.0, "STOP": 115.0, "TERM": 119.0, "KILL": 120.0, "DONE": 122.0,
        }  # fmt: skip

    def test_the_clock_at_rest_enters_nothing(self):
        shutdown = closing()
        assert walk(shutdown, 109.9, **BUSY) == []
        assert shutdown.phase is Phase.DRAIN

    def test_workers_that_exit_in_time_are_spared_the_rest(self):
        shutdown = closing()
        walk(shutdown, 100.0, **IDLE)
        assert walk(shutdown, 101.0, **GONE) == [Phase.DONE]

    def test_turns_that_still_run_are_not_stopped_before_their_time(self):
        shutdown = closing()
        assert walk(shutdown, 110.0, **BUSY) == [Phase.INTERRUPT]
        assert walk(shutdown, 112.0, **BUSY) == []
        assert walk(shutdown, 112.5, **IDLE) == [Phase.STOP]

    def test_it_stays_done(self):
        shutdown = closing()
        walk(shutdown, 100.0, **GONE)
        assert shutdown.advance(1e9, **BUSY) is None
        assert shutdown.deadline() == math.inf


class TestDeadline:
    def test_is_that_of_the_present_phase(self):
        shutdown = closing()
        deadlines = [shutdown.deadline()]
        for now in (110.0, 115.0, 119.0, 120.0):
            walk(shutdown, now, **BUSY)
            deadlines.append(shutdown.deadline())
        assert deadlines == [110.0, 115.0, 119.0, 120.0, 122.0]

    def test_a_drain_without_limit_has_none(self):
        shutdown = closing(drain_s=None)
        assert shutdown.deadline() == math.inf
        assert walk(shutdown, 1e9, **BUSY) == []
        assert walk(shutdown, 1e9, **IDLE) == [Phase.INTERRUPT, Phase.STOP]


class TestHurry:
    @pytest.mark.parametrize("first", [None, 10.0])
    def test_a_shorter_drain_counts_from_now(self, first):
        shutdown = closing(drain_s=first)
        shutdown.hurry(103.0, drain_s=2.0)
        assert shutdown.deadline() == 105.0

    @pytest.mark.parametrize("again", [None, 8.0, 100.0])
    def test_a_longer_drain_changes_nothing(self, again):
        shutdown = closing(drain_s=10.0)
        shutdown.hurry(103.0, drain_s=again)
        assert shutdown.deadline() == 110.0

    def test_a_drain_of_zero_ends_it_now(self):
        shutdown = closing(drain_s=None)
        shutdown.hurry(103.0, drain_s=0.0)
        assert walk(shutdown, 103.0, **BUSY) == [Phase.INTERRUPT]

    def test_after_the_drain_a_new_limit_for_it_means_nothing(self):
        shutdown = closing()
        walk(shutdown, 110.0, **BUSY)
        shutdown.hurry(111.0, drain_s=0.0)
        assert shutdown.deadline() == 115.0

    def test_to_kill_enters_every_phase_at_once_and_waits_for_the_dead_alone(self):
        shutdown = closing(drain_s=None)
        shutdown.hurry(103.0, drain_s=0.0, to=Phase.KILL)
        assert walk(shutdown, 103.0, **BUSY) == [
            Phase.INTERRUPT,
            Phase.STOP,
            Phase.TERM,
            Phase.KILL,
        ]
        assert walk(shutdown, 104.9, **BUSY) == []
        assert walk(shutdown, 105.0, **BUSY) == [Phase.DONE]

    @pytest.mark.parametrize("at", [110.0, 115.0, 119.0])
    def test_to_kill_works_amid_any_phase(self, at):
        shutdown = closing()
        for now in (110.0, 115.0, 119.0):
            if now <= at:
                walk(shutdown, now, **BUSY)
        shutdown.hurry(at + 0.5, drain_s=None, to=Phase.KILL)
        assert walk(shutdown, at + 0.5, **BUSY)[-1] is Phase.KILL

    def test_back_to_a_milder_phase_changes_nothing(self):
        shutdown = closing()
        shutdown.hurry(100.0, drain_s=0.0, to=Phase.KILL)
        walk(shutdown, 100.0, **BUSY)
        shutdown.hurry(100.5, drain_s=None, to=Phase.STOP)
        assert shutdown.phase is Phase.KILL
        assert shutdown.deadline() == 102.0


counts = st.tuples(st.integers(0, 2), st.integers(0, 2))
hurries = st.tuples(st.none() | st.floats(0, 5), st.sampled_from(list(Phase)[:5]))


@settings(deadline=None)
@given(
    st.none() | st.floats(0, 5),
    st.lists(st.tuples(st.floats(0, 3), counts, st.none() | hurries), max_size=30),
)
def test_from_any_state_it_ends_in_bounded_time_and_no_phase_comes_twice(drain_s, steps):
    now = 0.0
    shutdown = closing(drain_s=drain_s, now=now)
    entered = []
    for gap, (busy, alive), hurry in steps:
        now += gap
        if hurry is not None:
            shutdown.hurry(now, drain_s=hurry[0], to=hurry[1])
        entered += walk(shutdown, now, busy=busy, alive=alive)
    shutdown.hurry(now, drain_s=0.0)
    entered += walk(shutdown, now, **BUSY)
    while (deadline := shutdown.deadline()) < math.inf:
        entered += walk(shutdown, deadline, **BUSY)
    assert entered == sorted(set(entered))
    assert shutdown.phase is Phase.DONE
    # DONE may come early, straight from STOP; before that nothing is left out.
    assert [int(phase) for phase in entered[:-1]] == list(range(1, len(entered)))
