"""All sessions of one Supervisor: names, numbers, timers and ends; the workers are scripted."""

import math
from concurrent.futures import Future

import pytest

from soloist.protocol.errors import (
    ClientNotFound,
    InvalidOptions,
    QueueFull,
    RequestCancelled,
    RestartLimitReached,
    SessionClosed,
    SessionLost,
    SupervisorClosed,
)
from soloist.protocol.messages import Answer
from soloist.supervisor.broker import STOP_S
from soloist.supervisor.brokers import Address, Brokers, SessionLimits, SessionPolicy
from soloist.supervisor.crew import Dispatch, Ended, Interrupt, Kill, Settle, Spawn, Stop
from soloist.supervisor.rate import Limiter, RateLimit
from soloist.supervisor.request import Request

FIRST = 4
GRACE_S = 5.0
LIMITS = SessionLimits(max_queue=100, idle_timeout_s=None)


class FakeFront:
    def __init__(self, broker):
        self.broker = broker
        self.endpoint = f"ipc:///run/s{broker.number}"
        self.is_closed = False

    def close(self):
        self.is_closed = True


class Sink:
    def settle(self, request):
        pass


class World:
    """The reactor's part, and workers that do as they are told, when they are told."""

    def __init__(self, *, max_sessions=8, limit=None, snapshot=b"s"):
        self.now = 100.0
        self.limiter = Limiter(limit)
        self.snapshot = snapshot
        policy = SessionPolicy(
            max_sessions=max_sessions,
            max_restarts=2,
            restart_period_s=30.0,
            interrupt_grace_s=GRACE_S,
            limiter=self.limiter,
            max_payload_bytes=1000,
            stream_buffer_bytes=1000,
        )
        self.fronts = []
        self.log = []
        self.brokers = Brokers(FIRST, policy, self.new_front, FakeFront.close, self.execute)

    def new_front(self, broker):
        self.fronts.append(FakeFront(broker))
        return self.fronts[-1]

    def execute(self, actions):
        for action in actions:
            self.log.append(action)
            if type(action) is Settle:
                action.request.settle(action.outcome)
            elif type(action) is Ended:
                self.brokers.ended(action)

    # -- the reactor ---------------------------------------------------------------------------

    def decide(self, seconds=0.0):
        begin = len(self.log)
        self.now += seconds
        self.brokers.decide(self.now)
        assert self.brokers.next_deadline() > self.now, "the reactor would spin"
        return self.log[begin:]

    def open(self, name="", limits=LIMITS, ready=None):
        return self.brokers.open(name, limits, ready).number

    def submit(self, number, timeout_s=None):
        deadline = None if timeout_s is None else self.now + timeout_s
        request = Request("p", b"p", Sink(), deadline=deadline)
        request.session = number
        self.brokers.submit(request, self.now)
        return request

    def close(self, number, *, drain=False):
        closed = Future()
        self.brokers.close(number, self.now, drain=drain, closed=closed)
        return closed

    # -- the workers ---------------------------------------------------------------------------

    def connect(self, number):
        broker = self.brokers.touch(number)
        broker.loaded(number, 1000 + number, is_interruptible=True)
        broker.snapshot(number, self.snapshot)
        self.execute(broker.ready(number))
        self.decide()

    def answer(self, number):
        broker = self.brokers.touch(number)
        (request,) = broker.workers[number].leases
        self.execute(broker.answered(number, [Answer(request.lease, 1.0, "x", 1, b"")], self.now))
        self.decide()

    def exit(self, number, exitcode=0):
        broker = self.brokers.touch(number)
        self.execute(broker.exited(number, exitcode, (), self.now))
        self.decide()

    def up(self, name="", limits=LIMITS):
        """A session whose client is connected."""
        number = self.open(name, limits)
        self.decide()
        self.connect(number)
        return number

    def lost(self, name):
        """A session that has lost its conversation."""
        self.snapshot = b""
        number = self.up(name)
        self.submit(number)
        self.decide()
        self.exit(number, -9)
        return number

    def names(self):
        return [stats.name for stats in self.brokers.stats(self.now)]

    def is_clean(self):
        """Nothing is left of any session."""
        left = (
            self.brokers._brokers,
            self.brokers._names,
            self.brokers._limits,
            self.brokers._fronts,
            self.brokers._touched,
            self.brokers._due,
            self.brokers._starting,
            self.brokers._closing,
        )
        return not any(left) and all(front.is_closed for front in self.fronts)


def kinds(actions):
    return [type(action).__name__ for action in actions]


class TestOpening:
    def test_numbers_begin_where_the_pools_end_and_are_never_used_twice(self):
        world = World()
        first = world.open()
        assert first == FIRST
        assert world.close(first).done() is False
        world.decide()
        assert world.is_clean(), "there was no worker yet"
        assert world.open() == FIRST + 1
        assert world.open("talk") == FIRST + 2

    def test_a_name_stands_for_one_session(self):
        world = World()
        address = world.brokers.open("talk", LIMITS, None)
        assert address == Address(FIRST, f"ipc:///run/s{FIRST}")
        assert world.brokers.open("talk", LIMITS, None) == address
        assert world.open("other") == FIRST + 1
        assert kinds(world.decide()) == ["Spawn", "Spawn"]

    def test_owned_sessions_are_one_each_and_have_no_socket(self):
        world = World()
        assert world.open() != world.open()
        assert world.fronts == []
        assert world.brokers.open("", LIMITS, None).endpoint == ""

    def test_its_bounds_are_those_of_the_first_call(self):
        world = World()
        world.open("talk")
        with pytest.raises(InvalidOptions, match="talk"):
            world.open("talk", SessionLimits(1, None))
        with pytest.raises(InvalidOptions):
            world.open("talk", SessionLimits(100, 5.0))

    def test_they_are_bounded_in_number(self):
        world = World(max_sessions=2)
        world.open("a")
        world.open()
        with pytest.raises(QueueFull, match="2 sessions"):
            world.open("b")
        with pytest.raises(QueueFull):
            world.open()
        assert world.open("a") == FIRST
        assert world.names() == ["a", ""]

    def test_one_that_is_over_leaves_its_place(self):
        world = World(max_sessions=1)
        for _ in range(5):
            number = world.up("talk")
            world.close(number)
            world.decide()
            with pytest.raises(QueueFull):
                world.open("other")
            world.exit(number)
            assert world.is_clean()

    def test_one_whose_socket_cannot_be_made_leaves_nothing(self):
        world = World(max_sessions=1)

        def fail(broker):
            raise QueueFull("no more sockets")

        world.brokers._new_front = fail
        with pytest.raises(QueueFull):
            world.open("talk")
        assert world.is_clean()
        assert world.decide() == []
        world.brokers._new_front = world.new_front
        world.open("talk")

    def test_the_opener_hears_when_its_client_is_connected(self):
        world = World()
        ready = Future()
        number = world.open(ready=ready)
        world.decide()
        assert not ready.done()
        world.connect(number)
        assert ready.result(0) is None

    def test_the_opener_hears_why_it_cannot(self):
        world = World()
        ready = Future()
        number = world.open(ready=ready)
        world.decide()
        broker = world.brokers.touch(number)
        world.execute(broker.broken(number, ClientNotFound("no CLI")))
        world.decide()
        assert type(ready.exception(0)) is ClientNotFound
        world.exit(number, 1)
        assert world.is_clean()

    def test_the_opener_hears_that_it_died_again_and_again(self):
        world = World()
        ready = Future()
        number = world.open(ready=ready)
        for _ in range(3):
            world.decide(10.0)
            assert not ready.done()
            world.exit(number, 1)
        assert "exited with code 1" in str(ready.exception(0))
        assert world.is_clean(), "nobody has any use for it"

    def test_the_openers_error_is_its_own(self):
        """It is raised there: what its traceback holds must not live as long as the session."""
        world = World()
        ready = Future()
        number = world.open(ready=ready)
        world.decide()
        broker = world.brokers.touch(number)
        world.execute(broker.broken(number, ClientNotFound("no CLI")))
        world.decide()
        assert ready.exception(0) is not broker.refusal

    def test_a_named_one_that_dies_again_and_again_stays_for_those_who_ask(self):
        world = World()
        number = world.open("talk")
        for _ in range(3):
            world.decide(10.0)
            world.exit(number, 1)
        assert type(world.submit(number).outcome) is RestartLimitReached

    @pytest.mark.parametrize("has_worker", [True, False])
    @pytest.mark.parametrize("how", ["close", "end of the Supervisor"])
    def test_the_opener_hears_that_it_is_closed(self, how, has_worker):
        world = World()
        ready = Future()
        number = world.open(ready=ready)
        if has_worker:
            world.decide()
        if how == "close":
            world.close(number)
        else:
            world.brokers.close_intake("over")
            world.brokers.abort(world.now)
        world.decide()
        kind = SessionClosed if how == "close" else SupervisorClosed
        assert type(ready.exception(0)) is kind
        assert world.is_clean() == (not has_worker)


class TestRequests:
    def test_they_reach_their_session(self):
        world = World()
        a, b = world.up("a"), world.up("b")
        world.log.clear()
        first, second = world.submit(a), world.submit(b)
        assert [x.number for x in world.log] == [a, b]  # at once, without waiting for decide
        world.answer(b)
        assert second.outcome.text == "x"
        assert first.outcome is None

    def test_one_that_waits_where_something_has_happened_is_known(self):
        world = World()
        number, other = world.up("a"), world.up("b")
        world.submit(number)
        assert not world.brokers.has_queue  # it runs
        world.submit(number)
        assert world.brokers.has_queue
        world.decide()
        world.submit(other)
        assert not world.brokers.has_queue  # it waits for its turn, not for a decision

    def test_one_of_a_session_that_is_over_is_told_so(self):
        world = World()
        request = world.submit(77)
        assert type(request.outcome) is SessionClosed
        assert request.outcome.started is False

    def test_after_the_end_of_the_supervisor_they_are_told_that(self):
        world = World()
        world.brokers.close_intake("over")
        assert type(world.submit(77).outcome) is SupervisorClosed

    def test_an_interrupt_reaches_the_running_turn(self):
        world = World()
        number = world.up("a")
        request = world.submit(number)
        world.decide()
        world.brokers.interrupt(number, world.now)
        assert world.log[-1] == Interrupt(number, request.lease)
        assert world.decide() == []
        world.answer(number)
        assert type(request.outcome) is RequestCancelled

    def test_an_interrupt_of_a_session_that_is_over_does_nothing(self):
        World().brokers.interrupt(77, 0.0)

    def test_the_counters_are_the_sums(self):
        world = World()
        a, b = world.up("a"), world.up("b")
        world.open("c")
        world.submit(a)
        world.submit(a)
        world.submit(b)
        world.decide()
        assert (world.brokers.outstanding, world.brokers.busy, world.brokers.alive) == (3, 5, 3)


class TestClosing:
    def test_every_closer_hears_when_the_worker_has_gone(self):
        world = World()
        number = world.up("talk")
        closers = [world.close(number), world.close(number, drain=True)]
        assert world.decide() == [Stop(number, may_stay=True)]
        closers.append(world.close(number))
        assert not any(closed.done() for closed in closers)
        world.exit(number)
        assert all(closed.done() for closed in closers)
        assert world.is_clean()

    def test_closing_what_is_over_is_done_at_once(self):
        assert World().close(77).done()

    def test_closing_a_lost_session_is_done_at_once(self):
        world = World()
        number = world.lost("talk")
        assert world.close(number).done()
        assert world.is_clean()

    @pytest.mark.parametrize("drain", [True, False])
    def test_one_that_is_lost_while_it_closes_is_closed(self, drain):
        world = World(snapshot=b"")
        number = world.up("talk")
        running = world.submit(number)
        world.decide()
        waiting = world.submit(number)
        closed = world.close(number, drain=drain)
        world.decide()
        world.exit(number, -9)
        assert closed.done()
        assert running.outcome is not None
        assert waiting.outcome is not None
        assert world.is_clean()

    def test_its_name_is_free_while_it_closes(self):
        world = World()
        old = world.up("talk")
        world.close(old)
        world.decide()
        new = world.open("talk")
        assert new != old
        world.exit(old)
        assert world.open("talk") == new, "the end of the old one does not take the name away"
        assert world.names() == ["talk"]

    def test_one_that_serves_its_queue_first_keeps_its_name(self):
        world = World()
        number = world.up("talk")
        world.submit(number)
        world.decide()
        world.close(number, drain=True)
        assert world.open("talk") == number

    def test_a_lost_session_keeps_its_name_until_it_is_closed(self):
        world = World()
        number = world.lost("talk")
        assert world.open("talk") == number
        assert type(world.submit(number).outcome) is SessionLost
        world.close(number)
        assert world.open("talk") != number

    def test_an_idle_one_closes_by_itself(self):
        world = World()
        number = world.up("talk", SessionLimits(100, 60.0))
        assert world.brokers.next_deadline() == world.now + 60.0
        assert world.decide(60.0) == [Stop(number, may_stay=True)]
        world.exit(number)
        assert world.is_clean()
        assert type(world.submit(number).outcome) is SessionClosed


class TestTime:
    def test_only_those_are_asked_to_whom_something_happened(self):
        world = World()
        numbers = [world.up(name) for name in "abc"]
        asked = []
        for number in numbers:
            broker = world.brokers.touch(number)
            decide = broker.decide
            broker.decide = lambda now, n=number, d=decide: asked.append(n) or d(now)
        world.decide()
        asked.clear()
        world.decide(5.0)
        assert asked == []
        world.submit(numbers[1])
        world.decide()
        assert set(asked) == {numbers[1]}

    def test_it_wakes_up_for_the_first_that_is_due(self):
        world = World()
        a, b = world.up("a"), world.up("b")
        world.submit(a)
        world.submit(b)
        world.decide()
        late, later = world.submit(a, timeout_s=2.0), world.submit(b, timeout_s=3.0)
        world.decide()
        assert world.brokers.next_deadline() == world.now + 2.0
        world.decide(2.0)
        assert (late.outcome is None, later.outcome is None) == (False, True)
        assert world.brokers.next_deadline() == world.now + 1.0
        world.decide(1.0)
        assert later.outcome is not None
        assert world.brokers.next_deadline() == math.inf

    def test_what_happened_since_is_decided_at_once(self):
        """Also what the reactor itself does after the decisions, while it closes."""
        world = World()
        number = world.up("a")
        world.submit(number)
        world.decide()
        world.brokers.close_intake("over")
        world.brokers.abort(world.now)
        assert world.brokers.next_deadline() <= world.now
        world.decide()
        assert world.brokers.next_deadline() == world.now + GRACE_S

    def test_a_deadline_that_moved_is_forgotten(self):
        world = World()
        number = world.up("a", SessionLimits(100, 60.0))
        world.submit(number)
        world.decide()
        assert world.brokers.next_deadline() == math.inf
        broker = world.brokers.touch(number)
        world.decide()
        broker.decide = None  # it is not asked any more
        assert world.decide(60.0) == []

    def test_timers_take_no_memory_beyond_those_in_use(self):
        world = World()
        number = world.up("a", SessionLimits(100, 1e6))
        for _ in range(2000):
            world.submit(number, timeout_s=2e6)
            world.decide(0.001)
            world.answer(number)
        assert len(world.brokers._timers) < 200
        assert world.brokers.next_deadline() == world.now + 1e6

    def test_the_same_time_again_and_again_takes_no_memory(self):
        world = World(limit=RateLimit(per_second=1000.0))
        number = world.up("a")
        world.submit(number)
        world.decide()
        world.submit(number, timeout_s=1e6)  # it waits all the time
        for _ in range(2000):
            broker = world.brokers.touch(number)
            broker.decide(world.now)
            broker._stop_by = world.now + 1.0
            world.brokers.decide(world.now)
            broker._stop_by = math.inf
            world.brokers.touch(number)
            world.decide(0.0001)
        assert len(world.brokers._timers) < 200

    def test_sessions_that_wait_for_tokens_take_turns(self):
        world = World(limit=RateLimit(per_second=1.0, burst=1))
        numbers = [world.up(name) for name in "abc"]
        for number in numbers:
            for _ in range(4):
                world.submit(number)
        served = []
        for _ in range(12):
            world.decide(1.0)
            (dispatch,) = [a for a in world.log if type(a) is Dispatch][len(served) :]
            served.append(dispatch.number)
            world.answer(dispatch.number)
        for begin in range(0, 12, 3):
            assert set(served[begin : begin + 3]) == set(numbers), served


class TestStatistics:
    def test_they_show_every_session(self):
        world = World()
        owned, shared = world.up(), world.up("talk")
        world.submit(shared)
        world.submit(shared)
        world.decide()
        first, second = world.brokers.stats(world.now)
        assert first.name == first.endpoint == ""
        assert (first.state, first.queued, first.pid) == ("idle", 0, 1000 + owned)
        assert (second.name, second.state, second.queued) == ("talk", "running", 1)
        assert second.endpoint == f"ipc:///run/s{shared}"
        assert (second.incarnation, second.answered) == (1, 0)
        world.answer(shared)
        assert world.brokers.stats_of(shared, world.now).answered == 1

    def test_one_without_a_worker_has_no_pid(self):
        world = World()
        number = world.lost("talk")
        stats = world.brokers.stats_of(number, world.now)
        assert (stats.state, stats.pid, stats.incarnation) == ("lost", 0, 1)

    def test_there_are_none_of_what_is_over(self):
        assert World().brokers.stats_of(77, 0.0) is None

    def test_it_can_be_walked_while_sessions_end(self):
        world = World()
        for name in "abc":
            world.open(name)
        for broker in world.brokers:
            world.brokers.stop_workers(world.now)
            assert broker is not None


class TestEndOfTheSupervisor:
    def test_no_session_is_opened_any_more(self):
        world = World()
        number = world.up("talk")
        world.brokers.close_intake("over")
        with pytest.raises(SupervisorClosed, match="over"):
            world.open("other")
        assert world.open("talk") == number
        assert type(world.submit(number).outcome) is SupervisorClosed

    def test_all_are_told_interrupted_stopped_and_killed(self):
        world = World()
        idle, busy, restarting = world.up("a"), world.up("b"), world.up("c")
        starting = world.open("d")
        lost = world.lost("e")
        requests = [world.submit(number) for number in (busy, busy, restarting, starting)]
        world.exit(restarting, -9)
        world.decide()
        world.brokers.close_intake("over")
        world.brokers.abort(world.now)
        assert all(type(r.outcome) is SupervisorClosed for r in requests[:2])
        assert all(r.outcome is not None for r in requests)
        assert world.brokers.outstanding == 0
        begin = len(world.log)
        world.decide()
        world.brokers.stop_workers(world.now)
        stopped = {a.number for a in world.log[begin:] if type(a) is Stop}
        assert world.brokers.next_deadline() <= world.now
        world.decide()
        assert {busy} <= stopped
        alive = {broker.number for broker in world.brokers if broker.workers}
        killed = {a.number for a in world.decide(STOP_S) if type(a) is Kill}
        assert killed == alive
        for number in alive:
            world.exit(number, -9)
        assert world.brokers.alive == 0
        assert {idle, lost} & alive <= {idle}
        world.brokers.give_up()

    def test_a_session_that_waits_to_be_replaced_ends_at_once(self):
        world = World()
        number = world.open("a")
        world.decide()
        world.exit(number, 1)
        world.brokers.close_intake("over")
        world.brokers.abort(world.now)
        world.brokers.stop_workers(world.now)
        assert world.is_clean()
        assert world.decide(100.0) == []
        assert not [a for a in world.log if type(a) is Spawn][1:]

    def test_those_who_still_wait_are_told(self):
        world = World()
        ready = Future()
        opening = world.open(ready=ready)
        closing = world.up("a")
        closed = world.close(closing)
        world.decide()
        world.brokers.give_up()
        assert type(ready.exception(0)) is SupervisorClosed
        assert closed.result(0) is None
        assert opening != closing

    def test_cancel_pending_ends_those_who_wait_and_lets_a_session_close(self):
        world = World()
        number = world.up("a")
        world.limiter.pause_until(world.now + 1000.0)
        request = world.submit(number)
        closed = world.close(number, drain=True)
        world.decide()
        world.brokers.cancel_pending()
        assert type(request.outcome) is RequestCancelled
        assert world.decide() == [Stop(number, may_stay=True)]
        world.exit(number)
        assert closed.done()
