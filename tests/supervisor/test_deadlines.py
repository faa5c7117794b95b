"""The heap of requests by time: in order, nothing lost, and the settled take no room."""

import math

from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol.transitions import RequestEvent, RequestState
from soloist.supervisor.deadlines import Deadlines
from soloist.supervisor.request import Request


def requests(*deadlines):
    made = []
    for order, deadline in enumerate(deadlines):
        request = Request("p", b"p", deadline=deadline)
        request.order = order
        made.append(request)
    return made


def heap_of(*made):
    heap = Deadlines()
    for request in made:
        heap.add(request)
    return heap


def settle(*made):
    for request in made:
        request.advance(RequestEvent.SETTLE)


def drain(heap, now):
    out = []
    while (request := heap.due(now)) is not None:
        heap.pop()
        out.append(request)
    return out


class TestOrder:
    def test_nothing_is_never_due(self):
        heap = Deadlines()
        assert heap.due(math.inf) is None
        assert heap.next() == math.inf
        assert len(heap) == 0

    def test_one_without_a_deadline_is_never_due(self):
        heap = heap_of(*requests(None))
        assert heap.next() == math.inf
        assert heap.due(1e9) is None

    def test_the_first_comes_first(self):
        late, early, middle = made = requests(3.0, 1.0, 2.0)
        assert drain(heap_of(*made), 3.0) == [early, middle, late]

    def test_of_equal_times_the_older_comes_first(self):
        made = requests(1.0, 1.0, 1.0)
        assert drain(heap_of(*reversed(made)), 1.0) == made

    def test_it_is_due_at_its_time_and_not_before(self):
        (request,) = requests(1.0)
        heap = heap_of(request)
        assert heap.due(math.nextafter(1.0, 0.0)) is None
        assert heap.due(1.0) is request

    def test_it_stays_until_it_is_taken(self):
        (request,) = requests(1.0)
        heap = heap_of(request)
        assert heap.due(1.0) is request
        assert heap.due(1.0) is request
        heap.pop()
        assert heap.due(1.0) is None

    def test_next_is_the_first_time(self):
        first, second = requests(1.0, 2.0)
        heap = heap_of(second, first)
        assert heap.next() == 1.0
        drain(heap, 1.0)
        assert heap.next() == 2.0

    def test_any_time_will_do(self):
        (request,) = requests(None)
        heap = Deadlines()
        heap.push(5.0, request)
        assert heap.next() == 5.0
        assert drain(heap, 5.0) == [request]


class TestSettled:
    def test_ones_are_skipped(self):
        first, second, third = made = requests(1.0, 2.0, 3.0)
        heap = heap_of(*made)
        settle(first, second)
        assert drain(heap, 5.0) == [third]
        assert len(heap) == 0

    def test_ones_that_are_not_due_are_left_to_the_sweep(self):
        (request,) = requests(1.0)
        heap = heap_of(request)
        settle(request)
        assert heap.due(0.5) is None
        assert len(heap) == 1

    def test_ones_are_swept_when_they_outnumber_the_others(self):
        made = requests(*[5.0] * 200)
        heap = heap_of(*made)
        settle(*made[10:])
        heap.sweep(10)
        assert len(heap) == 10
        assert drain(heap, 5.0) == made[:10]

    def test_ones_alone_are_swept(self):
        made = requests(*[5.0] * 200)
        heap = heap_of(*made)
        states = [state for state in RequestState if state is not RequestState.SETTLED]
        for request, state in zip(made, states, strict=False):
            request.state = state
        settle(*made[len(states) :])
        heap.sweep(len(states))
        assert drain(heap, 5.0) == made[: len(states)]

    def test_a_few_are_not_worth_a_sweep(self):
        made = requests(*[5.0] * 60)
        heap = heap_of(*made)
        settle(*made)
        heap.sweep(0)
        assert len(heap) == 60

    def test_ones_are_no_requests_any_more(self):
        made = requests(3.0, 1.0, 2.0)
        heap = heap_of(*made)
        settle(made[1])
        assert set(heap.requests()) == {made[0], made[2]}

    def test_memory_is_bounded_however_many_come_and_go(self):
        heap = Deadlines()
        for request in requests(*[1e9] * 5000):
            heap.add(request)
            heap.sweep(1)
            settle(request)
            assert len(heap) < 100

    @given(
        st.lists(
            st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), min_size=1, max_size=300
        )
    )
    def test_no_other_is_ever_lost(self, steps):
        made = requests(*[float(deadline) for deadline, _, _ in steps])
        heap, alive = Deadlines(), []
        for request, (_, is_settled, is_swept) in zip(made, steps, strict=True):
            heap.add(request)
            if is_settled:
                settle(request)
            else:
                alive.append(request)
            if is_swept:
                heap.sweep(len(alive))
        assert all(r.state is not RequestState.SETTLED for r in heap.requests())
        assert drain(heap, 9.0) == sorted(alive, key=lambda r: (r.deadline, r.order))
