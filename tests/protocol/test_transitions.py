"""The state tables: what may follow what, checked by rules rather than by a second table."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from soloist.protocol.errors import LocalProtocolError
from soloist.protocol.transitions import (
    LINK,
    REQUEST,
    SESSION,
    WORKER,
    LinkEvent,
    LinkState,
    RequestEvent,
    RequestState,
    SessionEvent,
    SessionState,
    WorkerEvent,
    WorkerState,
    advance,
)

TABLES = {
    "worker": (WORKER, WorkerState, WorkerEvent),
    "request": (REQUEST, RequestState, RequestEvent),
    "session": (SESSION, SessionState, SessionEvent),
    "link": (LINK, LinkState, LinkEvent),
}
ALIVE = [state for state in WorkerState if state is not WorkerState.DEAD]
WALKS = settings(max_examples=50, stateful_step_count=12)
OPEN = [state for state in RequestState if state is not RequestState.SETTLED]


def follow(table, state, *events):
    for event in events:
        state = advance(table, state, event)
    return state


def reachable(table, start):
    found = {start}
    todo = [start]
    while todo:
        for state in table[todo.pop()].values():
            if state not in found:
                found.add(state)
                todo.append(state)
    return found


@pytest.mark.parametrize(("table", "states", "events"), TABLES.values(), ids=TABLES)
class TestEveryTable:
    def test_has_a_row_for_every_state(self, table, states, events):
        assert set(table) == set(states)

    def test_uses_every_event(self, table, states, events):
        assert {event for row in table.values() for event in row} == set(events)

    def test_reaches_every_state_and_always_an_end(self, table, states, events):
        first, *_, last = states
        assert reachable(table, first) == set(states)
        for state in states:
            assert last in reachable(table, state)
        assert [state for state in states if not table[state]] == [last]

    def test_cannot_be_changed(self, table, states, events):
        with pytest.raises(TypeError):
            table[next(iter(states))] = {}

    def test_names_the_impossible(self, table, states, events):
        for state, event in itertools.product(states, events):
            if event not in table[state]:
                with pytest.raises(LocalProtocolError) as raised:
                    advance(table, state, event)
                assert str(event) in str(raised.value)
                assert str(state) in str(raised.value)


class TestWorker:
    def test_lives_through_its_states_in_order(self):
        events = [
            WorkerEvent.LOADED,
            WorkerEvent.READY,
            WorkerEvent.RETIRE,
            WorkerEvent.STOP,
            WorkerEvent.EXITED,
        ]
        path = itertools.accumulate(
            events, lambda state, event: advance(WORKER, state, event), initial=next(iter(ALIVE))
        )
        assert list(path) == list(WorkerState)

    @pytest.mark.parametrize("state", ALIVE)
    def test_is_dead_once_it_exits_and_only_then(self, state):
        ends = {event for event, after in WORKER[state].items() if after is WorkerState.DEAD}
        assert ends == {WorkerEvent.EXITED}

    @pytest.mark.parametrize("state", ALIVE)
    @pytest.mark.parametrize("event", [WorkerEvent.STOP, WorkerEvent.BROKEN])
    def test_is_stopping_from_a_stop_or_a_broken_client_on(self, state, event):
        assert advance(WORKER, state, event) is WorkerState.STOPPING

    @pytest.mark.parametrize("event", [event for event in WorkerEvent if event.name != "EXITED"])
    def test_that_is_stopping_is_not_moved_by_what_it_says(self, event):
        assert advance(WORKER, WorkerState.STOPPING, event) is WorkerState.STOPPING

    @pytest.mark.parametrize(
        ("state", "event"),
        [
            (WorkerState.STARTING, WorkerEvent.READY),
            (WorkerState.CONNECTING, WorkerEvent.LOADED),
            (WorkerState.READY, WorkerEvent.LOADED),
            (WorkerState.READY, WorkerEvent.READY),
            (WorkerState.RETIRING, WorkerEvent.READY),
        ],
    )
    def test_cannot_say_things_out_of_order(self, state, event):
        with pytest.raises(LocalProtocolError):
            advance(WORKER, state, event)

    @pytest.mark.parametrize("event", WorkerEvent)
    def test_that_is_dead_does_nothing(self, event):
        with pytest.raises(LocalProtocolError):
            advance(WORKER, WorkerState.DEAD, event)

    @given(st.lists(st.sampled_from(WorkerEvent), max_size=12))
    def test_never_goes_back(self, events):
        order = list(WorkerState)
        state = WorkerState.STARTING
        for event in events:
            if event in WORKER[state]:
                after = advance(WORKER, state, event)
                assert order.index(after) >= order.index(state)
                state = after


class TestRequest:
    @pytest.mark.parametrize("state", OPEN)
    def test_can_be_settled_from_any_state_and_in_no_other_way(self, state):
        ends = {event for event, after in REQUEST[state].items() if after is RequestState.SETTLED}
        assert ends == {RequestEvent.SETTLE}

    @pytest.mark.parametrize("event", RequestEvent)
    def test_that_is_settled_stays_so(self, event):
        with pytest.raises(LocalProtocolError):
            advance(REQUEST, RequestState.SETTLED, event)

    def test_can_be_leased_again_after_it_was_revoked(self):
        cycle = [RequestEvent.LEASE, RequestEvent.REVOKE] * 3
        assert follow(REQUEST, RequestState.QUEUED, *cycle) is RequestState.QUEUED

    def test_whose_caller_lost_interest_is_never_run_again(self):
        state = follow(REQUEST, RequestState.QUEUED, RequestEvent.LEASE, RequestEvent.INTERRUPT)
        assert state is RequestState.DRAINING
        assert reachable(REQUEST, state) == {state, RequestState.SETTLED}

    def test_that_failed_waits_again_before_it_is_leased_again(self):
        state = follow(REQUEST, RequestState.QUEUED, RequestEvent.LEASE, RequestEvent.RETRY)
        assert state is RequestState.DELAYED
        assert set(REQUEST[state]) == {RequestEvent.DUE, RequestEvent.SETTLE}
        assert follow(REQUEST, state, RequestEvent.DUE) is RequestState.QUEUED

    @pytest.mark.parametrize("state", [s for s in RequestState if s is not RequestState.LEASED])
    def test_that_no_worker_holds_cannot_fail_there(self, state):
        with pytest.raises(LocalProtocolError):
            advance(REQUEST, state, RequestEvent.RETRY)


class TestSession:
    LIVING = (
        SessionState.STARTING, SessionState.IDLE, SessionState.RUNNING, SessionState.DRAINING
    )  # fmt: skip

    @pytest.mark.parametrize("ends", [[], [SessionEvent.INTERRUPT]], ids=["whole", "interrupted"])
    def test_runs_one_turn_after_the_other(self, ends):
        turn = [SessionEvent.DISPATCH, *ends, SessionEvent.ANSWER]
        assert follow(SESSION, SessionState.IDLE, *turn * 3) is SessionState.IDLE

    @pytest.mark.parametrize("state", [s for s in SessionState if s is not SessionState.IDLE])
    def test_begins_a_turn_only_when_the_one_before_has_ended(self, state):
        with pytest.raises(LocalProtocolError):
            advance(SESSION, state, SessionEvent.DISPATCH)

    @pytest.mark.parametrize("state", LIVING)
    def test_whose_worker_dies_starts_again_or_is_lost(self, state):
        assert advance(SESSION, state, SessionEvent.EXIT) is SessionState.STARTING
        assert advance(SESSION, state, SessionEvent.LOSE) is SessionState.LOST

    def test_that_is_lost_never_runs_again(self):
        assert reachable(SESSION, SessionState.LOST) == {SessionState.LOST, SessionState.CLOSED}

    @pytest.mark.parametrize("state", LIVING)
    def test_can_be_closed_at_any_time_and_ends_with_its_worker(self, state):
        events = [SessionEvent.CLOSE, SessionEvent.EXIT]
        assert follow(SESSION, state, *events) is SessionState.CLOSED

    def test_that_closes_never_runs_again(self):
        assert reachable(SESSION, SessionState.CLOSING) == {
            SessionState.CLOSING,
            SessionState.CLOSED,
        }

    @pytest.mark.parametrize(
        "event", [SessionEvent.READY, SessionEvent.INTERRUPT, SessionEvent.ANSWER]
    )
    def test_that_closes_is_not_moved_by_what_its_worker_says(self, event):
        assert advance(SESSION, SessionState.CLOSING, event) is SessionState.CLOSING

    def test_is_interrupted_once_a_turn(self):
        with pytest.raises(LocalProtocolError):
            advance(SESSION, SessionState.DRAINING, SessionEvent.INTERRUPT)


class RequestWalk(RuleBasedStateMachine):
    """A random walk beside a model: who holds it, whether anybody waits, whether it waits."""

    def __init__(self):
        super().__init__()
        self.state = RequestState.QUEUED
        self.is_with_worker = False
        self.is_wanted = True
        self.is_delayed = False
        self.settled = 0

    def attempt(self, event, *, possible):
        try:
            self.state = advance(REQUEST, self.state, event)
        except LocalProtocolError:
            assert not possible
            return False
        assert possible
        return True

    @rule()
    def lease(self):
        possible = not self.settled and not self.is_with_worker and not self.is_delayed
        if self.attempt(RequestEvent.LEASE, possible=possible):
            self.is_with_worker = True

    @rule()
    def revoke(self):
        if self.attempt(RequestEvent.REVOKE, possible=self.is_with_worker and self.is_wanted):
            self.is_with_worker = False

    @rule()
    def interrupt(self):
        if self.attempt(RequestEvent.INTERRUPT, possible=self.is_with_worker and self.is_wanted):
            self.is_wanted = False

    @rule()
    def retry(self):
        if self.attempt(RequestEvent.RETRY, possible=self.is_with_worker and self.is_wanted):
            self.is_with_worker = False
            self.is_delayed = True

    @rule()
    def fall_due(self):
        if self.attempt(RequestEvent.DUE, possible=self.is_delayed):
            self.is_delayed = False

    @rule()
    def settle(self):
        if self.attempt(RequestEvent.SETTLE, possible=not self.settled):
            self.settled += 1
            self.is_with_worker = self.is_delayed = False

    @invariant()
    def is_settled_at_most_once(self):
        assert self.settled <= 1
        assert (self.state is RequestState.SETTLED) == (self.settled == 1)

    @invariant()
    def is_leased_or_draining_while_a_worker_holds_it(self):
        holding = {RequestState.LEASED, RequestState.DRAINING}
        assert (self.state in holding) == self.is_with_worker


TestRequestWalk = RequestWalk.TestCase
TestRequestWalk.settings = WALKS


class SessionWalk(RuleBasedStateMachine):
    """A random walk beside a model of what a session has: a worker, a turn, a future."""

    def __init__(self):
        super().__init__()
        self.state = SessionState.STARTING
        self.is_ready = False
        self.turn = ""  # or "wanted", or "unwanted"
        self.is_lost = self.is_closing = self.is_over = False

    def attempt(self, event, *, possible):
        try:
            self.state = advance(SESSION, self.state, event)
        except LocalProtocolError:
            assert not possible
        else:
            assert possible
        return possible

    @property
    def is_open(self):
        return not (self.is_lost or self.is_closing or self.is_over)

    @rule()
    def connects(self):
        possible = self.is_closing or (self.is_open and not self.is_ready)
        if self.attempt(SessionEvent.READY, possible=possible):
            self.is_ready = True

    @rule()
    def begins_a_turn(self):
        if self.attempt(
            SessionEvent.DISPATCH, possible=self.is_open and self.is_ready and not self.turn
        ):
            self.turn = "wanted"

    @rule()
    def is_interrupted(self):
        possible = self.is_closing or (self.is_open and self.turn == "wanted")
        if self.attempt(SessionEvent.INTERRUPT, possible=possible):
            self.turn = "unwanted"

    @rule()
    def answers(self):
        possible = self.is_closing or (self.is_open and bool(self.turn))
        if self.attempt(SessionEvent.ANSWER, possible=possible):
            self.turn = ""

    @rule()
    def loses_its_worker(self):
        if self.attempt(SessionEvent.EXIT, possible=self.is_open or self.is_closing):
            self.is_over, self.is_closing = self.is_closing, False
            self.is_ready, self.turn = False, ""

    @rule()
    def loses_its_conversation(self):
        if self.attempt(SessionEvent.LOSE, possible=self.is_open):
            self.is_lost = True

    @rule()
    def is_closed(self):
        if self.attempt(SessionEvent.CLOSE, possible=self.is_open or self.is_lost):
            self.is_over, self.is_closing = self.is_lost, not self.is_lost
            self.is_lost = False

    @invariant()
    def state_follows_from_what_happened(self):
        if self.is_over:
            expected = SessionState.CLOSED
        elif self.is_closing:
            expected = SessionState.CLOSING
        elif self.is_lost:
            expected = SessionState.LOST
        elif not self.is_ready:
            expected = SessionState.STARTING
        else:
            expected = {
                "": SessionState.IDLE,
                "wanted": SessionState.RUNNING,
                "unwanted": SessionState.DRAINING,
            }[self.turn]
        assert self.state is expected


TestSessionWalk = SessionWalk.TestCase
TestSessionWalk.settings = WALKS


class WorkerWalk(RuleBasedStateMachine):
    """A random walk beside a model of what has happened so far."""

    def __init__(self):
        super().__init__()
        self.state = WorkerState.STARTING
        self.said = []
        self.is_told_to_end = False
        self.has_exited = False

    def attempt(self, event, *, possible):
        try:
            self.state = advance(WORKER, self.state, event)
        except LocalProtocolError:
            assert not possible
        else:
            assert possible

    @rule()
    def loads(self):
        possible = not self.has_exited and (self.is_told_to_end or not self.said)
        self.attempt(WorkerEvent.LOADED, possible=possible)
        if possible:
            self.said.append("loaded")

    @rule()
    def connects(self):
        possible = not self.has_exited and (self.is_told_to_end or self.said == ["loaded"])
        self.attempt(WorkerEvent.READY, possible=possible)
        if possible:
            self.said.append("ready")

    @rule(event=st.sampled_from([WorkerEvent.STOP, WorkerEvent.BROKEN]))
    def is_ended(self, event):
        self.attempt(event, possible=not self.has_exited)
        self.is_told_to_end = True

    @rule()
    def exits(self):
        self.attempt(WorkerEvent.EXITED, possible=not self.has_exited)
        self.has_exited = True

    @invariant()
    def state_follows_from_what_happened(self):
        if self.has_exited:
            expected = WorkerState.DEAD
        elif self.is_told_to_end:
            expected = WorkerState.STOPPING
        else:
            expected = list(WorkerState)[len(self.said)]
        assert self.state is expected


TestWorkerWalk = WorkerWalk.TestCase
TestWorkerWalk.settings = WALKS
