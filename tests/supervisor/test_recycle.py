"""When workers that have not failed are replaced: limits, looks, rolls and places."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol.errors import RestartLimitReached
from soloist.protocol.transitions import WorkerState
from soloist.supervisor.crew import Worker
from soloist.supervisor.recycle import LOOK_EVERY_S, Gate, MemoryWatch, RecyclePolicy, Roll


class TestQuota:
    @pytest.mark.parametrize(
        ("most", "chance", "quota"),
        [
            (1, 0.0, 1),
            (1, 1.0, 1),
            (2, 1.0, 2),
            (5, 1.0, 4),
            (100, 0.0, 100),
            (100, 0.5, 90),
            (100, 1.0, 80),
        ],
    )
    def test_is_drawn_between_four_fifths_and_all_of_the_limit(self, most, chance, quota):
        assert RecyclePolicy(max_requests=most, jitter=lambda: chance).quota() == quota

    @given(st.integers(1, 10**9), st.floats(0, 1))
    def test_is_never_above_the_limit_nor_below_one(self, most, chance):
        quota = RecyclePolicy(max_requests=most, jitter=lambda: chance).quota()
        assert max(1, math.floor(0.8 * most)) <= quota <= most

    def test_is_drawn_anew_each_time(self):
        chances = iter([0.0, 1.0])
        policy = RecyclePolicy(max_requests=10, jitter=lambda: next(chances))
        assert [policy.quota(), policy.quota()] == [10, 8]

    def test_without_a_limit_there_is_none(self):
        assert RecyclePolicy().quota() == math.inf


@pytest.mark.parametrize(("size", "is_too_large"), [(99, False), (100, False), (101, True)])
def test_memory_may_reach_its_limit_but_not_pass_it(size, is_too_large):
    assert RecyclePolicy(max_memory_bytes=100).is_too_large(size) is is_too_large
    assert not RecyclePolicy().is_too_large(size)


class TestMemoryWatch:
    def test_who_has_answered_is_looked_at_once(self):
        watch = MemoryWatch(is_on=True)
        assert watch.next_at() == math.inf
        assert watch.due(100.0) == []
        watch.answered(3, 1)
        watch.answered(3, 1)
        assert watch.next_at() <= 100.0
        assert watch.due(100.0) == [(3, 1)]
        assert watch.next_at() == math.inf

    def test_a_look_is_not_repeated_before_its_time(self):
        watch = MemoryWatch(is_on=True)
        watch.answered(0, 1)
        watch.due(100.0)
        watch.answered(0, 1)
        assert watch.next_at() == 100.0 + LOOK_EVERY_S
        assert watch.due(100.0 + 0.9 * LOOK_EVERY_S) == []
        assert watch.due(100.0 + LOOK_EVERY_S) == [(0, 1)]

    def test_half_are_looked_at_at_a_time_in_turns(self):
        watch = MemoryWatch(is_on=True)
        seen = []
        for look in range(4):
            for number in range(5):
                watch.answered(number, 1)
            seen.append([number for number, _ in watch.due(look * LOOK_EVERY_S)])
        assert [len(numbers) for numbers in seen] == [3, 3, 3, 3]
        assert set(seen[0]) | set(seen[1]) == set(range(5))
        assert set(seen[2]) | set(seen[3]) == set(range(5))

    def test_the_incarnation_is_the_one_that_answered_last(self):
        watch = MemoryWatch(is_on=True)
        watch.answered(0, 1)
        watch.answered(0, 2)
        assert watch.due(0.0) == [(0, 2)]

    @pytest.mark.parametrize("is_stopped", [False, True])
    def test_without_a_limit_or_stopped_it_wants_nothing(self, is_stopped):
        watch = MemoryWatch(is_on=is_stopped)
        watch.answered(0, 1)
        watch.stop()
        watch.answered(1, 1)
        assert watch.next_at() == math.inf
        assert watch.due(1e9) == []


def crew(*states):
    workers = {}
    for number, state in enumerate(states):
        workers[number] = Worker(number, 1)
        workers[number].state = state
    return workers


STARTING, CONNECTING, READY = WorkerState.STARTING, WorkerState.CONNECTING, WorkerState.READY


class TestRoll:
    @staticmethod
    def leaving(roll, workers):
        """All that may go now."""
        numbers = []
        while (worker := roll.next(workers)) is not None:
            numbers.append(worker.number)
            worker.state = WorkerState.STOPPING
        return numbers

    @pytest.mark.parametrize(
        ("size", "count", "first"),
        [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 4, 2), (5, 5, 2), (8, 8, 4), (8, 2, 1), (2, 1, 0)],
    )
    def test_half_go_first_and_one_stays_if_there_may_be_two(self, size, count, first):
        roll, workers = Roll(size), crew(*[READY] * count)
        roll.begin(workers)
        assert self.leaving(roll, workers) == list(range(first))

    def test_a_lone_worker_wants_company_first(self):
        roll, workers = Roll(4), crew(READY)
        roll.begin(workers)
        assert roll.missing(workers) == 1
        workers[1] = Worker(1, 1)
        assert roll.missing(workers) == 0
        assert self.leaving(roll, workers) == []
        workers[1].state = READY
        assert self.leaving(roll, workers) == [0]

    def test_those_that_serve_nobody_yet_go_at_once(self):
        roll, workers = Roll(3), crew(STARTING, CONNECTING, READY)
        roll.begin(workers)
        assert self.leaving(roll, workers) == [0, 1]

    def test_those_that_are_on_their_way_out_are_waited_for(self):
        roll, workers = Roll(2), crew(WorkerState.RETIRING, WorkerState.STOPPING)
        roll.begin(workers)
        assert self.leaving(roll, workers) == []
        for number in range(2):
            assert roll.is_active
            roll.forget(number)
        assert not roll.is_active

    def test_one_that_came_later_is_none_of_its_business(self):
        roll, workers = Roll(2), crew(READY)
        roll.begin(workers)
        workers[1] = crew(READY, READY)[1]
        assert self.leaving(roll, workers) == [0]

    def test_whoever_asks_amid_it_joins(self):
        roll, workers = Roll(4), crew(READY, READY)
        roll.begin([0])
        roll.begin(workers)
        assert self.leaving(roll, workers) == [0]
        roll.forget(0)
        assert not roll.is_active

    def test_an_early_end_says_why_until_the_next_one(self):
        roll, workers = Roll(2), crew(READY, READY)
        roll.begin(workers)
        roll.end(RestartLimitReached("no"))
        assert not roll.is_active
        assert str(roll.failure) == "no"
        assert (self.leaving(roll, workers), roll.missing({})) == ([], 0)
        roll.begin(workers)
        assert roll.failure is None


class TestGate:
    def test_so_many_may_be_out(self):
        gate = Gate(2)
        assert [gate.enter(n) for n in range(4)] == [True, True, False, False]
        assert gate.called() == []
        gate.leave(0)
        assert gate.called() == [2]
        assert gate.called() == [3], "the one called before may want it no more"

    def test_who_is_over_waits_no_more(self):
        gate = Gate(1)
        gate.enter(0)
        gate.enter(1)
        gate.leave(1)
        gate.leave(0)
        assert gate.called() == []
