"""Which ids are known, and what of them: also in random orders, against a model."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from soloist.supervisor import outcomes as outcomes_module
from soloist.supervisor.outcomes import OVERHEAD_BYTES, Outcomes, Unknown

COST = OVERHEAD_BYTES + 4
"""Of the outcomes here."""


def new_id(number):
    return number.to_bytes(16, "big")


def run(outcomes, scope, *numbers, now=0.0, outcome=b"done"):
    """Let requests of these ids come and end."""
    for number in numbers:
        outcomes.begin(scope, new_id(number), f"request {number}", 10)
        outcomes.end(scope, new_id(number), 10, outcome, now)


def states(outcomes, scope, *numbers):
    return [outcomes.find(scope, new_id(number)) for number in numbers]


@pytest.fixture
def outcomes():
    return Outcomes(max_bytes=10 * COST, max_ids=10, retention_s=300.0)


class TestId:
    def test_is_new_until_it_comes(self, outcomes):
        scope = outcomes.scope("a", is_lasting=True)
        assert states(outcomes, scope, 1) == [Unknown.NEW]

    def test_gives_its_request_then_its_outcome(self, outcomes):
        scope = outcomes.scope("a", is_lasting=True)
        outcomes.begin(scope, new_id(1), "request", 10)
        assert states(outcomes, scope, 1) == ["request"]
        assert (outcomes.requests, outcomes.kept, scope.queued_bytes) == (1, 0, 10)
        outcomes.end(scope, new_id(1), 10, b"done", 0.0)
        assert states(outcomes, scope, 1) == [b"done"]
        assert (outcomes.requests, outcomes.kept, scope.queued_bytes) == (0, 1, 0)

    def test_of_one_scope_means_nothing_in_another(self, outcomes):
        a, b = outcomes.scope("a", is_lasting=True), outcomes.scope("b", is_lasting=True)
        run(outcomes, a, 1)
        assert states(outcomes, b, 1) == [Unknown.NEW]

    def test_is_known_after_its_outcome_was_kept_long_enough(self, outcomes):
        scope = outcomes.scope("a", is_lasting=True)
        run(outcomes, scope, 1, now=0.0)
        run(outcomes, scope, 2, now=100.0)
        outcomes.expire(299.0)
        assert states(outcomes, scope, 1, 2) == [b"done", b"done"]
        outcomes.expire(300.0)
        assert states(outcomes, scope, 1, 2, 3) == [Unknown.FORGOTTEN, b"done", Unknown.NEW]

    def test_is_forgotten_in_parts(self):
        outcomes = Outcomes(max_bytes=10**9, max_ids=10**6, retention_s=300.0)
        scope = outcomes.scope("a", is_lasting=True)
        run(outcomes, scope, *range(600), now=0.0)
        parts = []
        while outcomes.expire(300.0):
            parts.append(outcomes.kept)
        assert parts == [344, 88]
        assert outcomes.kept == 0

    def test_without_a_request_may_have_come_once_ids_were_forgotten(self, outcomes):
        scope = outcomes.scope("a", is_lasting=True)
        run(outcomes, scope, *range(11))
        outcomes.expire(300.0)
        found = states(outcomes, scope, *range(11))
        assert set(found) == {Unknown.DOUBTFUL, Unknown.FORGOTTEN}
        assert found == sorted(found, key=lambda state: state is Unknown.FORGOTTEN), "oldest first"
        assert states(outcomes, scope, 99) == [Unknown.DOUBTFUL]

    def test_of_a_connection_that_comes_anew_may_have_come_on_an_earlier_one(self, outcomes):
        assert states(outcomes, outcomes.scope("c", is_lasting=False), 1) == [Unknown.DOUBTFUL]


class TestBounds:
    def test_the_oldest_outcome_of_the_scope_that_has_most_gives_way(self, outcomes):
        a, b = outcomes.scope("a", is_lasting=True), outcomes.scope("b", is_lasting=True)
        run(outcomes, b, 100, 101)
        run(outcomes, a, *range(8))
        assert outcomes.kept == 10
        run(outcomes, b, 102)
        assert states(outcomes, b, 100, 101, 102) == [b"done"] * 3
        assert states(outcomes, a, 0, 1, 2) == [Unknown.FORGOTTEN, Unknown.FORGOTTEN, b"done"]

    def test_a_single_outcome_over_the_bound_is_not_kept(self, outcomes):
        a, b = outcomes.scope("a", is_lasting=True), outcomes.scope("b", is_lasting=True)
        run(outcomes, b, 100)
        run(outcomes, a, 1, outcome=bytes(11 * COST))
        assert states(outcomes, a, 1) == [Unknown.FORGOTTEN]
        assert states(outcomes, b, 100) == [b"done"]

    def test_exactly_the_bound_is_kept(self, outcomes):
        scope = outcomes.scope("a", is_lasting=True)
        run(outcomes, scope, 1, outcome=bytes(10 * COST - OVERHEAD_BYTES))
        assert outcomes.kept == 1

    def test_an_empty_outcome_costs_something(self):
        outcomes = Outcomes(10 * OVERHEAD_BYTES, 100, 300.0)
        run(outcomes, outcomes.scope("a", is_lasting=True), *range(50), outcome=b"")
        assert outcomes.kept <= 10

    def test_the_ids_of_who_has_most_give_way(self, outcomes):
        a, b = outcomes.scope("a", is_lasting=True), outcomes.scope("b", is_lasting=True)
        run(outcomes, b, 100, 101)
        run(outcomes, a, *range(8))
        outcomes.expire(300.0)
        run(outcomes, b, 102)
        outcomes.expire(300.0)
        assert states(outcomes, b, 100, 101, 102) == [Unknown.FORGOTTEN] * 3
        assert states(outcomes, a, 0, 1, 2) == [
            Unknown.DOUBTFUL,
            Unknown.DOUBTFUL,
            Unknown.FORGOTTEN,
        ]
        assert states(outcomes, b, 999) == [Unknown.NEW], "nothing of its was forgotten"

    def test_nothing_at_all_may_be_kept(self):
        outcomes = Outcomes(0, 0, 300.0)
        scope = outcomes.scope("a", is_lasting=True)
        run(outcomes, scope, 1, 2)
        assert states(outcomes, scope, 1, 2, 3) == [Unknown.DOUBTFUL] * 3
        outcomes.tidy(scope)
        assert len(outcomes) == 0


class TestScope:
    def test_is_the_same_while_there_is_something_of_it(self, outcomes):
        scope = outcomes.scope("a", is_lasting=True)
        outcomes.begin(scope, new_id(1), "request", 0)
        outcomes.tidy(scope)
        assert outcomes.scope("a", is_lasting=True) is scope

    @pytest.mark.parametrize("is_lasting", [True, False])
    def test_vanishes_when_there_is_nothing_of_it(self, outcomes, is_lasting):
        scope = outcomes.scope("a", is_lasting=is_lasting)
        outcomes.join(scope)
        outcomes.tidy(scope)
        assert len(outcomes) == 1, "a connection"
        outcomes.leave(scope)
        assert len(outcomes) == 0

    def test_whose_owner_can_come_back_stays_as_long_as_its_ids(self, outcomes):
        scope = outcomes.scope("a", is_lasting=True)
        outcomes.join(scope)
        run(outcomes, scope, 1)
        outcomes.leave(scope)
        outcomes.expire(300.0)
        assert outcomes.scope("a", is_lasting=True) is scope
        assert states(outcomes, scope, 1) == [Unknown.FORGOTTEN]

    def test_of_a_connection_is_forgotten_with_it(self, outcomes):
        scope = outcomes.scope("c", is_lasting=False)
        outcomes.join(scope)
        run(outcomes, scope, 1, 2)
        outcomes.leave(scope)
        assert (len(outcomes), outcomes.kept) == (0, 0)

    def test_of_a_connection_that_has_gone_stays_for_what_runs(self, outcomes):
        scope = outcomes.scope("c", is_lasting=False)
        outcomes.join(scope)
        outcomes.begin(scope, new_id(1), "request", 0)
        outcomes.leave(scope)
        assert len(outcomes) == 1
        outcomes.end(scope, new_id(1), 0, b"done", 0.0)
        outcomes.expire(300.0)
        assert len(outcomes) == 0

    def test_of_which_ids_were_forgotten_says_so_when_it_comes_again(self):
        outcomes = Outcomes(0, 0, 300.0)
        scope = outcomes.scope("a", is_lasting=True)
        run(outcomes, scope, 1)
        outcomes.tidy(scope)
        again = outcomes.scope("a", is_lasting=True)
        assert again is not scope
        assert states(outcomes, again, 1) == [Unknown.DOUBTFUL]

    def test_that_is_tidied_twice_does_not_take_its_successor_along(self, outcomes):
        scope = outcomes.scope("a", is_lasting=True)
        outcomes.tidy(scope)
        successor = outcomes.scope("a", is_lasting=True)
        outcomes.tidy(scope)
        assert outcomes.scope("a", is_lasting=True) is successor


class OutcomesWalk(RuleBasedStateMachine):
    """Scopes come and go, requests begin and end, time passes.

    The model is what was ever done: all ids of lasting scopes by name, with what ended them.
    """

    NAMES = ("a", "b", "c")
    RETENTION_S = 100.0

    @initialize(max_bytes=st.sampled_from([0, 3 * COST, 40 * COST]), max_ids=st.integers(0, 12))
    def begin_walk(self, max_bytes, max_ids):
        self.max_bytes, self.max_ids = max_bytes, max_ids
        self.outcomes = Outcomes(max_bytes, max_ids, self.RETENTION_S)
        self.now = 0.0
        self.count = 0
        self.ended = {name: {} for name in self.NAMES}  # of lasting scopes: (outcome, until)
        self.running = []  # (scope, id, size)
        self.joined = []
        self.ended_count = 0

    def next_id(self):
        self.count += 1
        return new_id(self.count)

    @rule(name=st.sampled_from(NAMES))
    def come(self, name):
        scope = self.outcomes.scope(name, is_lasting=True)
        self.outcomes.join(scope)
        self.joined.append(scope)

    @rule()
    def come_without_a_secret(self):
        self.count += 1
        scope = self.outcomes.scope(("connection", self.count), is_lasting=False)
        self.outcomes.join(scope)
        self.joined.append(scope)

    @precondition(lambda self: self.joined)
    @rule(data=st.data())
    def go(self, data):
        self.outcomes.leave(self.joined.pop(data.draw(st.integers(0, len(self.joined) - 1))))

    @precondition(lambda self: self.joined)
    @rule(data=st.data(), size=st.integers(0, 5))
    def ask(self, data, size):
        scope = data.draw(st.sampled_from(self.joined))
        request_id = self.next_id()
        if scope.is_lasting and self.ended_count <= self.max_ids:
            assert self.outcomes.find(scope, request_id) is Unknown.NEW
        self.outcomes.begin(scope, request_id, (scope, request_id, size), size)
        self.running.append((scope, request_id, size))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), length=st.integers(0, 8))
    def end(self, data, length):
        place = data.draw(st.integers(0, len(self.running) - 1))
        scope, request_id, size = self.running.pop(place)
        outcome = request_id[-1:] * length
        self.outcomes.end(scope, request_id, size, outcome, self.now)
        self.ended_count += 1
        if scope.is_lasting:
            self.ended[scope.name][request_id] = (outcome, self.now + self.RETENTION_S)

    @rule(seconds=st.sampled_from([0.0, 10.0, 60.0, 100.0]))
    def pass_time(self, seconds):
        self.now += seconds
        self.outcomes.expire(self.now)

    @invariant()
    def no_id_that_came_is_new(self):
        for name, ended in getattr(self, "ended", {}).items():
            scope = self.outcomes.scope(name, is_lasting=True)
            for request_id, (outcome, _) in ended.items():
                assert self.outcomes.find(scope, request_id) in {
                    outcome,
                    Unknown.FORGOTTEN,
                    Unknown.DOUBTFUL,
                }
            self.outcomes.tidy(scope)
        for scope, request_id, size in getattr(self, "running", ()):
            assert self.outcomes.find(scope, request_id) == (scope, request_id, size)

    @invariant()
    def the_bounds_hold_and_the_counts_are_right(self):
        if not hasattr(self, "outcomes"):
            return
        outcomes, scopes = self.outcomes, self.outcomes._scopes.values()
        sizes = [len(found) + OVERHEAD_BYTES for s in scopes for _, found in s.kept.values()]
        assert outcomes._kept_bytes == sum(sizes) <= self.max_bytes
        assert outcomes._ids == sum(len(scope.ids) for scope in scopes) <= self.max_ids
        assert outcomes.kept == len(sizes)
        assert outcomes.requests == len(self.running)
        for scope in scopes:
            sizes = [size for owner, _, size in self.running if owner is scope]
            assert (len(scope.requests), scope.queued_bytes) == (len(sizes), sum(sizes))
            assert scope.peers == self.joined.count(scope)

    @invariant()
    def who_has_a_connection_or_a_request_is_known(self):
        for scope in [*getattr(self, "joined", ()), *(r[0] for r in getattr(self, "running", ()))]:
            assert self.outcomes.scope(scope.name, is_lasting=scope.is_lasting) is scope

    def teardown(self):
        """When all has ended and all have gone, ids alone are left, and they have a bound."""
        if not hasattr(self, "outcomes"):
            return
        for scope, request_id, size in self.running:
            self.outcomes.end(scope, request_id, size, b"done", self.now)
        for scope in self.joined:
            self.outcomes.leave(scope)
        self.outcomes.expire(self.now + self.RETENTION_S)
        self.outcomes.expire(self.now + self.RETENTION_S)  # what gave way in the first round
        assert (self.outcomes.kept, self.outcomes.requests) == (0, 0)
        assert len(self.outcomes) <= self.max_ids
        assert all(s.is_lasting and s.ids for s in self.outcomes._scopes.values())


TestOutcomesWalk = OutcomesWalk.TestCase
TestOutcomesWalk.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_outcomes_are_pure():
    """They know no clock of their own: every test above passes the time in."""
    assert not hasattr(outcomes_module, "time")
