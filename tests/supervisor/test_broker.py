"""A session's decisions: plain examples, then a random environment against their invariants."""

import itertools
import json
import math

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    ClientNotFound,
    QueueFull,
    RateLimited,
    RequestCancelled,
    RequestTimeout,
    RestartLimitReached,
    SessionClosed,
    SessionLost,
    SlowReader,
    SoloistError,
    SupervisorClosed,
    WorkerLost,
    to_info,
)
from soloist.protocol.messages import Answer, Failure
from soloist.protocol.transitions import RequestState, SessionState
from soloist.supervisor import broker as broker_module
from soloist.supervisor.broker import STOP_S, Broker
from soloist.supervisor.crew import (
    SYNC_GRACE_S,
    Ended,
    Interrupt,
    Kill,
    Settle,
    Spawn,
    Stop,
    Tell,
)
from soloist.supervisor.rate import Limiter, RateLimit
from soloist.supervisor.recycle import Gate, RecyclePolicy
from soloist.supervisor.request import Request
from soloist.supervisor.restart import RestartPolicy

NUMBER = 8
GRACE_S = 5.0
PERIOD_S = 30.0
TELLS = {"set_model": b"1", "set_permission_mode": b"2"}


class FakeWorker:
    """A worker process, its conversation, its grants and its ledger, one step at a time."""

    def __init__(self, world, spawn):
        self.world = world
        self.incarnation = spawn.incarnation
        self.history = json.loads(spawn.restore) if spawn.restore else []
        self.granted = []
        self.leases = {}
        self.running = None
        self.is_stuck = False
        self.is_resumable = world.is_resumable
        self.ledger = []  # what it said last and would say again after its death
        self.delivered = 0
        self.told = []

    @property
    def state(self):
        return self.world.broker.workers[NUMBER].state.value

    def load(self, *, is_interruptible=True):
        self.world.broker.loaded(NUMBER, 4711, is_interruptible=is_interruptible)
        return self

    def ready(self):
        self._note_snapshot()
        self.deliver()
        self.world.execute(self.world.broker.ready(NUMBER))
        return self

    def claim(self):
        """Begin the lease that was granted, if there is one."""
        assert self.running is None
        if self.granted:
            self.running = self.granted.pop(0)
            self.world.has_begun(self.leases[self.running], self)
        return self.running

    def finish(self, error=None):
        """End the running lease: it is in the ledger, its message is still to come."""
        assert not self.is_stuck
        lease, self.running = self.running, None
        assert lease is not None
        request = self.leases[lease]
        self.history.append(request.index)
        self._note_snapshot()
        if error is None:
            self.ledger.append(Answer(lease, 1.0, self.world.text(request), 1, b""))
        else:
            self.ledger.append(Failure(lease, 1.0, to_info(error)))

    def deliver(self):
        """What it said arrives."""
        rest, self.delivered = self.ledger[self.delivered :], len(self.ledger)
        return self.say(*rest)

    def say(self, *messages):
        done = []
        broker, world = self.world.broker, self.world
        for message in messages:
            if isinstance(message, bytes):
                broker.snapshot(NUMBER, message)
                world.snapshot = message
            else:
                done += world.execute(broker.answered(NUMBER, [message], world.now))
        return done

    def answer(self, error=None):
        """Run the lease that was granted to its end and deliver it."""
        if self.running is None:
            assert self.claim() is not None
        self.finish(error)
        return self.deliver()

    def breaks(self, error=None):
        error = error or ClientConnectError("no")
        return self.world.execute(self.world.broker.broken(NUMBER, error))

    def die(self, exitcode=-9):
        """The process ends; the reactor reads everything it left."""
        world = self.world
        world.worker = None
        self.say(*self.ledger)
        taken, self.granted = self.granted, []
        return world.execute(world.broker.exited(NUMBER, exitcode, taken, world.now))

    def _note_snapshot(self):
        self.ledger.append(json.dumps(self.history).encode() if self.is_resumable else b"")


class World:
    """The reactor's part: executes actions, moves the clock, keeps the accounts."""

    def __init__(
        self,
        *,
        max_queue=1000,
        max_queue_bytes=10**6,
        max_restarts=3,
        idle_timeout_s=None,
        limit=None,
        is_resumable=True,
        recycle=None,
        gate=None,
    ):
        self.now = 100.0
        self.limiter = Limiter(limit)
        self.restart = RestartPolicy(
            max_restarts=max_restarts, period_s=PERIOD_S, jitter=lambda: 1.0
        )
        self.broker = Broker(
            "talk",
            NUMBER,
            max_queue=max_queue,
            max_queue_bytes=max_queue_bytes,
            restart=self.restart,
            interrupt_grace_s=GRACE_S,
            idle_timeout_s=idle_timeout_s,
            limiter=self.limiter,
            recycle=recycle,
            gate=gate,
        )
        self.is_resumable = is_resumable
        self.worker = None
        self.snapshot = b""
        self.numbers = itertools.count()
        self.requests = []
        self.outcomes = {}
        self.begun = []
        self.log = []
        self.is_ended = False

    # -- what callers do ---------------------------------------------------------------------

    def submit(self, count=1, timeout_s=None, payload=b"p"):
        made = []
        for _ in range(count):
            deadline = None if timeout_s is None else self.now + timeout_s
            request = Request("p", payload, self, index=next(self.numbers), deadline=deadline)
            self.requests.append(request)
            self.execute(self.broker.submit(request))
            made.append(request)
        return made

    def cancel(self, request, error=None):
        return self.execute(self.broker.cancel(request, self.now, error))

    def close(self, *, drain=False):
        return self.execute(self.broker.close(self.now, drain=drain))

    # -- what the reactor does ---------------------------------------------------------------

    def decide(self):
        """One turn of the reactor; gives the actions in order."""
        begin = len(self.log)
        for _ in range(20):
            actions = self.broker.decide(self.now)
            if not actions:
                if not self.is_ended:
                    assert self.broker.next_deadline() > self.now, "the reactor would spin"
                return self.log[begin:]
            self.execute(actions)
        raise AssertionError("it never stops deciding")

    def tick(self, seconds):
        self.now += seconds
        return self.decide()

    def execute(self, actions):
        for action in actions:
            assert not self.is_ended, f"{action} after the end"
            self.log.append(action)
            handler = getattr(self, f"do_{type(action).__name__.lower()}", None)
            if handler is not None:
                handler(action)
        return actions

    def do_spawn(self, action):
        assert self.worker is None
        assert action.number == NUMBER
        assert action.is_session
        assert action.restore == self.snapshot
        assert action.restore or not self.begun, "it would begin from a blank state"
        self.worker = FakeWorker(self, action)

    def do_dispatch(self, action):
        (lease,) = action.run.leases
        (request,) = self.broker.workers[NUMBER].leases
        assert self.worker.running is None, "two at once"
        assert self.worker.granted == [], "two at once"
        assert lease.number not in self.worker.leases, "a lease number was used twice"
        assert lease.number == request.lease
        assert request not in self.outcomes
        waiting = [r.order for r in self.requests if r.state is RequestState.QUEUED]
        assert request.order < min(waiting, default=math.inf), "not in order"
        self.worker.leases[lease.number] = request
        self.worker.granted.append(lease.number)

    def do_interrupt(self, action):
        if self.worker.running == action.lease and self.worker.is_stuck == "until interrupted":
            self.worker.is_stuck = False

    def do_tell(self, action):
        assert self.worker.state == "ready"
        self.worker.told.append((action.name, action.arguments))

    def do_stop(self, action):
        if self.broker.refusal is None:  # it is to go on elsewhere
            assert self.worker.running is None, "a worker is replaced between requests"
            assert not self.worker.granted
            assert self.snapshot or not self.begun, "it would begin from a blank state"

    def do_settle(self, action):
        request = action.request
        assert request not in self.outcomes, f"{request} settled twice"
        self.outcomes[request] = action.outcome
        request.outcome = action.outcome

    def do_ended(self, action):
        assert action.number == NUMBER
        assert self.worker is None, "its worker still lives"
        assert self.broker.outstanding == self.broker.busy == 0
        self.is_ended = True

    # -- shorthand ---------------------------------------------------------------------------

    def up(self, **load):
        """Bring up the worker, when its time has come."""
        self.decide()
        if self.worker is None:
            self.tick(self.broker.next_deadline() - self.now)
        self.worker.load(**load).ready()
        self.decide()
        return self.worker

    def text(self, request):
        return f"answer {request.index}"

    def has_begun(self, request, worker):
        assert request not in self.begun, f"{request} runs twice"
        said = [r.index for r in self.begun if r in self.outcomes]
        answered = [i for i in said if type(self.outcomes[self.requests[i]]) is Answer]
        if worker.is_resumable:
            missing = set(answered) - set(worker.history)
            assert not missing, f"the conversation lacks {missing}"
        self.begun.append(request)

    def outcome(self, request):
        return self.outcomes.get(request)

    @property
    def state(self):
        return self.broker.state


def kinds(actions):
    return [type(action).__name__ for action in actions]


def busy_world(timeout_s=None, is_interruptible=True, **kwargs):
    """A session that runs one request."""
    world = World(**kwargs)
    worker = world.up(is_interruptible=is_interruptible)
    (request,) = world.submit(timeout_s=timeout_s)
    world.decide()
    worker.claim()
    return world, worker, request


def lost_world(**kwargs):
    """A session whose conversation died with its worker."""
    world, worker, _ = busy_world(is_resumable=False, **kwargs)
    worker.die()
    assert world.state is SessionState.LOST
    return world


class TestQueue:
    def test_a_new_session_starts_its_worker_by_itself(self):
        world = World()
        assert world.decide() == [Spawn(NUMBER, 1, is_session=True, restore=b"")]
        assert repr(world.broker) == "<Broker 8.1 starting 0 queued>"
        assert world.decide() == []
        assert world.broker.next_deadline() == math.inf

    def test_requests_wait_for_its_client(self):
        world = World()
        (request,) = world.submit()
        assert kinds(world.decide()) == ["Spawn"]
        worker = world.worker.load()
        assert world.decide() == []
        worker.ready()
        (dispatch,) = world.decide()
        assert dispatch.run.leases[0].number == request.lease == 1
        assert dispatch.run.leases[0].prompt == request.payload
        assert world.state is SessionState.RUNNING

    def test_they_run_one_at_a_time_in_the_order_of_arrival(self):
        world = World()
        worker = world.up()
        requests = world.submit(10)
        for request in requests:
            assert kinds(world.decide()) == ["Dispatch"]
            assert world.decide() == [], "one is in flight"
            assert worker.claim() == request.lease
            worker.answer()
        assert [world.outcome(r).text for r in requests] == [f"answer {i}" for i in range(10)]
        assert [r.order for r in requests] == list(range(1, 11))
        assert [r.attempts for r in requests] == [1] * 10
        assert world.broker.answered_count == 10

    def test_a_dispatch_says_which_outcomes_have_arrived(self):
        world = World()
        worker = world.up()
        world.submit(2)
        (first,) = world.decide()
        worker.answer()
        (second,) = world.decide()
        assert [first.run.acked, second.run.acked] == [0, 1]

    def test_the_place_in_the_order_counts_those_that_were_refused(self):
        world, _, _ = busy_world(max_queue=1)
        requests = world.submit(3)
        assert [r.order for r in requests] == [2, 3, 4]

    def test_clears_cancelled_requests(self):
        world, worker, _ = busy_world()
        gone, kept = world.submit(2)
        world.cancel(gone)
        assert type(world.outcome(gone)) is RequestCancelled
        assert world.outcome(gone).started is False
        worker.answer()
        (dispatch,) = world.decide()
        assert worker.leases[dispatch.run.leases[0].number] is kept
        assert gone not in world.begun

    def test_clears_requests_whose_time_is_up(self):
        world, worker, _ = busy_world()
        (late,) = world.submit(timeout_s=1.0)
        (kept,) = world.submit()
        assert world.broker.next_deadline() == world.now + 1.0
        assert kinds(world.tick(1.0)) == ["Settle"]
        error = world.outcome(late)
        assert type(error) is RequestTimeout
        assert error.started is False
        worker.answer()
        world.decide()
        assert kept.state is RequestState.LEASED
        assert late not in world.begun

    def test_one_whose_time_is_up_when_its_turn_comes_is_not_dispatched(self):
        world, worker, _ = busy_world()
        (late,) = world.submit(timeout_s=1.0)
        world.now += 2.0
        worker.answer()
        assert kinds(world.decide()) == ["Settle"]
        assert type(world.outcome(late)) is RequestTimeout

    def test_it_is_bounded(self):
        world, worker, running = busy_world(max_queue=2)
        waiting = world.submit(2)
        (refused,) = world.submit()
        error = world.outcome(refused)
        assert type(error) is QueueFull
        assert "2 requests wait" in str(error)
        assert error.started is False
        assert [world.outcome(r) for r in (running, *waiting)] == [None] * 3
        worker.answer()
        world.decide()
        (welcome,) = world.submit()
        assert world.outcome(welcome) is None

    def test_it_is_bounded_before_its_client_is_connected(self):
        world = World(max_queue=2)
        *_, refused = world.submit(3)
        assert type(world.outcome(refused)) is QueueFull

    def test_what_runs_at_once_does_not_wait(self):
        world = World(max_queue=1)
        world.up()
        requests = world.submit(1)
        world.decide()
        requests += world.submit(1)
        assert [world.outcome(r) for r in requests] == [None, None]

    def test_doesnt_leak_places(self):
        """Those that were cancelled, timed out or refused take none."""
        world, worker, _ = busy_world(max_queue=2)
        for _ in range(10):
            (cancelled,) = world.submit()
            world.submit(timeout_s=0.5)
            world.submit()
            world.cancel(cancelled)
            world.tick(0.5)
        a, b = world.submit(2)
        assert world.outcome(a) is world.outcome(b) is None
        assert world.broker.queued == 2
        worker.answer()
        world.decide()
        assert world.broker.queued == 1

    def test_it_is_bounded_in_bytes_but_one_always_fits(self):
        world, worker, _ = busy_world(max_queue_bytes=100)
        (large,) = world.submit(payload=b"x" * 500)
        (refused,) = world.submit(payload=b"x")
        assert world.outcome(large) is None
        assert type(world.outcome(refused)) is QueueFull
        assert "bytes" in str(world.outcome(refused))
        world.cancel(large)
        fitting = world.submit(2, payload=b"x" * 50)
        (refused,) = world.submit(payload=b"x")
        assert [world.outcome(r) for r in fitting] == [None, None]
        assert type(world.outcome(refused)) is QueueFull
        worker.answer()
        world.decide()
        assert world.broker._queued_bytes == 50

    def test_errors_of_the_client_end_their_request_alone(self):
        world, worker, request = busy_world()
        (other,) = world.submit()
        worker.answer(ClientError("no"))
        assert type(world.outcome(request)) is ClientError
        world.decide()
        worker.answer()
        assert world.outcome(other).text == "answer 1"


class TestInterrupt:
    def test_a_running_request_is_interrupted_and_its_caller_told_at_the_end(self):
        world, worker, request = busy_world()
        assert world.cancel(request) == [Interrupt(NUMBER, request.lease)]
        assert world.outcome(request) is None
        assert world.state is SessionState.DRAINING
        worker.answer()
        error = world.outcome(request)
        assert type(error) is RequestCancelled
        assert error.started is None
        assert world.state is SessionState.IDLE

    def test_the_reason_is_the_callers(self):
        world, worker, request = busy_world()
        world.cancel(request, SlowReader("too slow"))
        worker.answer()
        assert type(world.outcome(request)) is SlowReader

    def test_the_next_one_waits_for_the_end_of_the_turn(self):
        world, worker, request = busy_world()
        (follower,) = world.submit()
        world.cancel(request)
        assert world.decide() == []
        worker.answer()
        assert kinds(world.decide()) == ["Dispatch"]
        worker.answer()
        assert world.outcome(follower).text == "answer 1"

    def test_it_is_sent_once_however_often_it_is_asked_for(self):
        world, _, request = busy_world()
        world.cancel(request)
        due = world.broker.next_deadline()
        world.now += 1.0
        assert world.cancel(request) == []
        assert world.broker.interrupt(world.now) == []
        assert world.broker.next_deadline() == due

    def test_interrupt_ends_the_running_turn_and_nothing_else(self):
        world, worker, request = busy_world()
        (waiting,) = world.submit()
        assert world.execute(world.broker.interrupt(world.now)) == [
            Interrupt(NUMBER, request.lease)
        ]
        worker.answer()
        assert type(world.outcome(request)) is RequestCancelled
        assert world.outcome(waiting) is None

    @pytest.mark.parametrize("when", ["new", "starting", "idle", "lost", "closing"])
    def test_without_a_turn_it_does_nothing(self, when):
        world = lost_world() if when == "lost" else World()
        if when == "starting":
            world.decide()
        if when in {"idle", "closing"}:
            world.up()
        if when == "closing":
            world.close()
            world.decide()
        assert world.broker.interrupt(world.now) == []

    def test_a_turn_that_does_not_end_costs_the_worker(self):
        world, worker, request = busy_world()
        (follower,) = world.submit()
        world.cancel(request)
        assert world.broker.next_deadline() == world.now + GRACE_S
        assert world.tick(GRACE_S - 0.1) == []
        assert world.tick(0.1) == [Kill(NUMBER)]
        worker.die()
        assert type(world.outcome(request)) is RequestCancelled
        again = world.up()
        assert (again.incarnation, request.incarnation, follower.incarnation) == (2, 1, 2)
        again.answer()
        assert world.outcome(follower).text == "answer 1"

    def test_a_worker_that_is_being_killed_gets_nothing_more(self):
        """Its answer was on its way; what follows must not go down with it."""
        world, worker, request = busy_world()
        (follower,) = world.submit()
        world.cancel(request)
        world.tick(GRACE_S)
        worker.answer()
        assert world.decide() == []
        worker.die()
        assert world.outcome(follower) is None
        assert follower.attempts == 0

    def test_the_kill_of_a_worker_is_repeated_until_it_is_gone(self):
        """The first one may come to a process that is not known yet."""
        world, _, request = busy_world()
        world.cancel(request)
        assert world.tick(GRACE_S) == [Kill(NUMBER)]
        assert world.tick(STOP_S) == [Kill(NUMBER)]

    def test_a_sync_callable_is_not_interrupted_but_killed_soon(self):
        world, worker, request = busy_world(is_interruptible=False)
        assert world.cancel(request) == []
        assert world.tick(SYNC_GRACE_S) == [Kill(NUMBER)]
        worker.die()
        assert type(world.outcome(request)) is RequestCancelled

    def test_that_a_turn_is_cut_off_is_no_failure_of_its_worker(self):
        world = World(max_restarts=0)
        for _ in range(5):
            worker = world.up(is_interruptible=False)
            (request,) = world.submit(timeout_s=1.0)
            world.decide()
            worker.claim()
            world.tick(1.0)
            assert world.tick(SYNC_GRACE_S) == [Kill(NUMBER)]
            worker.die()
            assert type(world.outcome(request)) is RequestTimeout
        assert world.broker.incarnation == 5
        assert kinds(world.decide()) == ["Spawn"], "at once"

    def test_a_timeout_is_told_at_once_and_the_turn_drained(self):
        world, worker, request = busy_world(timeout_s=2.0)
        (follower,) = world.submit()
        assert kinds(world.tick(2.0)) == ["Settle", "Interrupt"]
        error = world.outcome(request)
        assert type(error) is RequestTimeout
        assert error.started is None
        assert world.state is SessionState.DRAINING
        assert world.decide() == []
        worker.answer()
        assert world.outcome(request) is error
        world.decide()
        assert follower.state is RequestState.LEASED

    def test_a_timeout_amid_the_drain_changes_nothing(self):
        world, worker, request = busy_world(timeout_s=2.0)
        world.cancel(request)
        assert world.tick(2.0) == []
        worker.answer()
        assert type(world.outcome(request)) is RequestCancelled

    def test_the_time_of_an_answered_request_passes_without_effect(self):
        world, worker, _ = busy_world(timeout_s=2.0)
        worker.answer()
        world.submit()
        world.decide()
        assert world.tick(5.0) == []

    def test_replies_that_are_not_the_running_requests_are_dropped(self):
        world, worker, request = busy_world()
        worker.answer()
        stale = Answer(request.lease, 1.0, "stale", 1, b"")
        assert worker.say(stale) == []
        (other,) = world.submit()
        world.decide()
        assert worker.say(stale, Answer(77, 1.0, "foreign", 1, b"")) == []
        assert world.outcome(other) is None
        worker.answer()
        assert world.outcome(other).text == "answer 1"


class TestDeath:
    def test_the_running_request_is_lost_and_the_conversation_goes_on(self):
        world, worker, _ = busy_world()
        worker.answer()
        (running,) = world.submit()
        followers = world.submit(2)
        world.decide()
        worker.claim()
        worker.die(-11)
        error = world.outcome(running)
        assert type(error) is WorkerLost
        assert (error.started, error.exitcode) == (None, -11)
        assert world.state is SessionState.STARTING
        assert world.decide() == [Spawn(NUMBER, 2, is_session=True, restore=b"[0]")]
        again = world.worker.load().ready()
        assert again.history == [0]
        for follower in followers:
            world.decide()
            again.answer()
            assert type(world.outcome(follower)) is Answer
        assert again.history == [0, 2, 3]

    def test_what_had_not_begun_waits_again_at_the_head(self):
        world = World()
        worker = world.up()
        first, second = world.submit(2)
        world.decide()
        worker.die()
        assert world.outcome(first) is None
        assert first.state is RequestState.QUEUED
        assert first.attempts == 0
        assert world.broker.queued == 2
        again = world.up()
        assert again.claim() == first.lease
        assert first.attempts == 1
        again.answer()
        world.decide()
        again.answer()
        assert type(world.outcome(second)) is Answer

    def test_a_finished_answer_is_delivered_though_its_message_was_lost(self):
        world, worker, request = busy_world()
        worker.finish()
        worker.die()
        assert world.outcome(request).text == "answer 0"
        assert world.decide()[-1].restore == b"[0]"

    def test_cancelling_what_was_never_taken_in_is_nothing(self):
        world = World()
        never = Request("a", b"ta", None)
        assert world.broker.cancel(never, world.now) == []
        assert (world.broker.outstanding, world.broker.queued) == (0, 0)

    def test_a_cancelled_request_that_never_began_says_so(self):
        world = World()
        worker = world.up()
        (request,) = world.submit()
        world.decide()
        world.cancel(request)
        worker.die()
        assert type(world.outcome(request)) is RequestCancelled
        assert world.outcome(request).started is False

    def test_a_request_that_timed_out_is_not_told_twice(self):
        world, worker, request = busy_world(timeout_s=1.0)
        world.tick(1.0)
        worker.die()
        assert type(world.outcome(request)) is RequestTimeout

    def test_that_never_began_a_turn_begins_anew(self):
        world = World(is_resumable=False)
        worker = world.up()
        world.submit()
        world.decide()
        worker.die()
        again = world.up()
        assert again.incarnation == 2
        again.answer()

    @pytest.mark.parametrize("how", ["answered", "begun", "cancelled", "timed out"])
    def test_wakes_pending_waiters_on_failure(self, how):
        """A conversation that may have begun is never begun again from a blank state."""
        world, worker, request = busy_world(is_resumable=False, timeout_s=1.0)
        if how == "answered":
            worker.answer()
        if how == "cancelled":
            world.cancel(request)
        if how == "timed out":
            world.tick(1.0)
        waiting = world.submit(3)
        actions = worker.die()
        assert world.state is SessionState.LOST
        errors = [world.outcome(r) for r in waiting]
        assert [type(e) for e in errors] == [SessionLost] * 3
        assert len(set(map(id, errors))) == 3, "each caller raises one of its own"
        assert all(e.started is False and type(e.__cause__) is WorkerLost for e in errors)
        assert actions
        assert world.decide() == []

    def test_what_is_asked_in_the_answer_to_a_loss_is_told_too(self):
        """The state says so before anybody hears of it."""
        world, worker, _ = busy_world(is_resumable=False)
        (waiting,) = world.submit()
        states = []
        world.do_settle = lambda action: (
            states.append(world.state) or World.do_settle(world, action)
        )
        worker.die()
        (late,) = world.submit()
        assert set(states) == {SessionState.LOST}
        assert type(world.outcome(waiting)) is type(world.outcome(late)) is SessionLost

    def test_a_client_that_cannot_be_continued_any_more_is_lost(self):
        world, worker, _ = busy_world()
        worker.answer()
        worker.is_resumable = False
        world.submit()
        world.decide()
        worker.answer()
        worker.die()
        assert world.state is SessionState.LOST

    def test_replacements_that_fail_are_spaced_and_limited(self):
        world, worker, _ = busy_world(max_restarts=2)
        worker.answer()
        (waiting,) = world.submit()
        world.decide()
        worker.die()
        delays = []
        while world.state is not SessionState.LOST and len(delays) < 10:
            wait = world.broker.next_deadline() - world.now
            delays.append(wait if math.isfinite(wait) else 0.0)
            world.tick(max(0.0, delays[-1]))
            world.worker.die(1)
        assert delays[0] == 0.0
        assert delays[1:] == sorted(delays[1:])
        assert delays[1] > 0.0
        assert len(delays) == 3
        assert type(world.outcome(waiting)) is SessionLost

    def test_one_that_never_comes_up_is_given_up(self):
        world = World(max_restarts=2)
        (waiting,) = world.submit()
        for _ in range(3):
            assert world.state is SessionState.STARTING
            world.tick(max(0.0, min(world.broker.next_deadline() - world.now, 10.0)))
            world.worker.die(1)
        error = world.outcome(waiting)
        assert type(error) is RestartLimitReached
        assert error.started is False
        assert "exited with code 1" in str(error)
        assert [(type(cause), cause.exitcode) for cause in error.causes] == [(WorkerLost, 1)] * 3
        (late,) = world.submit()
        assert world.outcome(late).causes == error.causes
        assert world.broker.incarnation == 3

    def test_one_that_has_worked_is_replaced_at_once(self):
        world = World(max_restarts=0)
        for _ in range(5):
            worker = world.up()
            world.submit()
            world.decide()
            worker.answer()
            worker.die()
            assert kinds(world.decide()) == ["Spawn"]
            world.worker.load().ready()
            world.decide()
            world.submit()
            world.decide()
            world.worker.answer()
            world.worker.die()

    def test_the_time_of_a_waiting_request_passes_while_it_is_replaced(self):
        world, worker, _ = busy_world()
        (waiting,) = world.submit(timeout_s=1.0)
        worker.die()
        world.decide()
        world.tick(1.0)
        assert type(world.outcome(waiting)) is RequestTimeout

    def test_an_exit_of_an_idle_worker_is_no_reason_to_wake_up_for_ever(self):
        world = World(idle_timeout_s=10.0)
        worker = world.up()
        worker.die()
        world.decide()
        world.tick(1.0)
        assert world.tick(60.0) == [], "its replacement is not ready yet"
        assert world.broker.next_deadline() == math.inf


class TestWedged:
    def wedge(self, world, reason="stopped (process state T)"):
        return world.execute(world.broker.wedged(NUMBER, reason))

    def test_it_is_killed_its_request_lost_and_the_conversation_goes_on(self):
        world, worker, request = busy_world()
        (follower,) = world.submit()
        assert self.wedge(world) == [Kill(NUMBER)]
        assert world.decide() == []
        worker.die()
        lost = world.outcome(request)
        assert type(lost) is WorkerLost
        assert (lost.started, lost.exitcode) == (None, -9)
        assert "was wedged, stopped (process state T)" in str(lost)
        again = world.up()
        assert again.incarnation == 2
        world.decide()
        again.answer()
        assert type(world.outcome(follower)) is Answer

    def test_without_a_snapshot_the_reason_is_that_of_the_loss(self):
        world, worker, _ = busy_world(is_resumable=False)
        (follower,) = world.submit()
        self.wedge(world)
        worker.die()
        assert world.state is SessionState.LOST
        assert type(world.outcome(follower)) is SessionLost
        assert "was wedged, stopped" in str(world.outcome(follower))

    def test_it_is_killed_until_it_is_gone(self):
        world, _, _ = busy_world()
        self.wedge(world)
        world.decide()
        assert world.tick(STOP_S) == [Kill(NUMBER)]

    @pytest.mark.parametrize("how_far", ["starting", "connecting", "idle", "draining", "closing"])
    def test_it_may_be_so_in_any_state(self, how_far):
        world = World()
        world.decide()
        worker = world.worker
        if how_far != "starting":
            worker.load()
        if how_far not in {"starting", "connecting"}:
            worker.ready()
        if how_far == "draining":
            (request,) = world.submit()
            world.decide()
            worker.claim()
            world.cancel(request)
        if how_far == "closing":
            world.close()
            world.decide()
        assert self.wedge(world) == [Kill(NUMBER)]
        worker.die()
        assert world.is_ended == (how_far == "closing")

    def test_one_that_was_never_of_use_counts_towards_the_limit(self):
        world = World(max_restarts=2)
        (request,) = world.submit()
        for _ in range(3):
            world.tick(5.0)
            self.wedge(world)
            world.worker.die()
        assert type(world.outcome(request)) is RestartLimitReached

    def test_how_long_its_request_has_been_running(self):
        world, worker, _ = busy_world()
        view = world.broker.workers[NUMBER]
        assert view.busy_s(world.now + 3) == 3
        worker.answer()
        assert view.busy_s(world.now + 3) == 0


class TestBroken:
    def test_a_first_client_that_cannot_start_is_told_at_once(self):
        world = World()
        waiting = world.submit(2)
        world.decide()
        world.worker.load().breaks(ClientNotFound("no CLI"))
        errors = [world.outcome(r) for r in waiting]
        assert [type(e) for e in errors] == [ClientNotFound] * 2
        assert errors[0] is not errors[1]
        assert [e.started for e in errors] == [False] * 2
        (late,) = world.submit()
        assert type(world.outcome(late)) is ClientNotFound
        assert world.decide() == []
        assert world.worker.die(1)[-1] == Ended(NUMBER)
        assert world.is_ended

    def test_the_error_keeps_its_details(self):
        world = World()
        (waiting,) = world.submit()
        world.decide()
        world.worker.load().breaks(RateLimited("slow", retry_after_s=7.0, api_status=429))
        error = world.outcome(waiting)
        assert type(error) is RateLimited
        assert (error.retry_after_s, error.api_status, error.retryable) == (7.0, 429, True)

    def test_it_is_heard_once(self):
        world = World()
        world.decide()
        world.worker.load().breaks()
        assert world.worker.breaks() == []

    def test_one_that_does_not_exit_by_itself_is_killed(self):
        world = World()
        world.decide()
        world.worker.load().breaks()
        world.decide()
        assert world.tick(STOP_S) == [Kill(NUMBER)]
        world.worker.die()
        assert world.is_ended

    def test_a_replacement_that_does_not_exit_by_itself_is_killed_and_replaced(self):
        world, worker, _ = busy_world()
        worker.answer()
        worker.die()
        world.decide()
        world.worker.load().breaks()
        world.decide()
        assert world.tick(STOP_S) == [Kill(NUMBER)]
        world.worker.die()
        assert kinds(world.tick(10.0)) == ["Spawn"]
        assert world.tick(10 * STOP_S) == [], "the new one is not killed"

    def test_a_replacement_is_tried_again(self):
        world, worker, _ = busy_world()
        (waiting,) = world.submit()
        worker.answer()
        worker.die()
        world.decide()
        world.worker.load().breaks(ClientConnectError("not now"))
        assert world.outcome(waiting) is None
        world.worker.die(1)
        assert world.decide() == []
        assert kinds(world.tick(10.0)) == ["Spawn"]
        world.worker.load().ready()
        world.decide()
        world.worker.answer()
        assert type(world.outcome(waiting)) is Answer

    def test_a_replacement_that_need_not_be_tried_again_is_the_end(self):
        world, worker, _ = busy_world()
        worker.answer()
        (waiting,) = world.submit()
        worker.die()
        world.decide()
        error = ClientConnectError("the conversation is gone")
        error.retryable = False
        world.worker.load().breaks(error)
        world.worker.die(1)
        assert world.state is SessionState.LOST
        assert type(world.outcome(waiting)) is SessionLost
        assert "the conversation is gone" in str(world.outcome(waiting))

    def test_a_process_that_cannot_be_started_is_told(self):
        world = World()
        (waiting,) = world.submit()
        world.decide()
        world.worker = None
        error = WorkerLost("no memory", started=False)
        world.execute(world.broker.spawn_failed(NUMBER, error, world.now))
        assert type(world.outcome(waiting)) is WorkerLost
        assert world.is_ended

    def test_a_replacement_process_that_cannot_be_started_is_tried_again(self):
        world, worker, _ = busy_world()
        worker.answer()
        worker.die()
        world.decide()
        world.worker = None
        error = WorkerLost("no memory", started=False)
        world.execute(world.broker.spawn_failed(NUMBER, error, world.now))
        assert world.state is SessionState.STARTING
        assert kinds(world.tick(10.0)) == ["Spawn"]


class TestLost:
    def test_it_answers_with_an_error_until_it_is_closed(self):
        world = lost_world()
        requests = world.submit(2)
        errors = [world.outcome(r) for r in requests]
        assert [type(e) for e in errors] == [SessionLost] * 2
        assert errors[0] is not errors[1]
        with pytest.raises(SessionLost):
            world.broker.command(1, "set_model", b"x")
        assert world.close() == [Ended(NUMBER)]
        (settle,) = world.broker.submit(Request("p", b"p"))
        assert type(settle.outcome) is SessionClosed

    def test_it_has_nothing_to_wake_up_for(self):
        world, worker, _ = busy_world(is_resumable=False, idle_timeout_s=10.0)
        worker.answer()
        world.decide()
        assert math.isfinite(world.broker.next_deadline())
        worker.die()
        world.submit()
        world.decide()
        assert world.broker.next_deadline() == math.inf
        assert world.tick(100.0) == []
        assert world.state is SessionState.LOST

    @pytest.mark.parametrize("drain", [True, False])
    def test_closing_it_ends_it_at_once(self, drain):
        world = lost_world()
        assert world.close(drain=drain) == [Ended(NUMBER)]

    def test_it_has_no_worker_to_stop(self):
        world = lost_world()
        world.broker.close_intake("over")
        assert world.broker.abort(world.now) == []
        assert world.broker.stop_workers(world.now) == []
        (late,) = world.submit()
        assert type(world.outcome(late)) is SupervisorClosed


class TestClose:
    def end(self, world):
        """The worker does as it is told."""
        assert world.worker.die(0)[-1] == Ended(NUMBER)
        assert world.is_ended

    def test_an_idle_session_stops_its_worker_then_ends(self):
        world = World()
        world.up()
        assert world.close() == []
        assert world.decide() == [Stop(NUMBER, may_stay=True)]
        assert world.state is SessionState.CLOSING
        (late,) = world.submit()
        assert type(world.outcome(late)) is SessionClosed
        assert world.outcome(late).started is False
        assert world.decide() == []
        self.end(world)

    def test_a_worker_that_does_not_exit_is_killed(self):
        world = World()
        world.up()
        world.close()
        world.decide()
        assert world.broker.next_deadline() == world.now + STOP_S
        assert world.tick(STOP_S) == [Kill(NUMBER)]
        self.end(world)

    def test_before_its_worker_was_spawned(self):
        world = World()
        (waiting,) = world.submit()
        world.close()
        assert type(world.outcome(waiting)) is SessionClosed
        assert world.decide() == [Ended(NUMBER)]

    @pytest.mark.parametrize("how_far", ["spawned", "loaded"])
    def test_while_its_worker_starts(self, how_far):
        world = World()
        world.decide()
        if how_far == "loaded":
            world.worker.load()
        world.close()
        assert world.decide() == [Stop(NUMBER)]
        if how_far == "spawned":
            world.worker.load()
        world.worker.ready()
        assert world.decide() == []
        self.end(world)

    def test_while_its_worker_waits_to_be_replaced(self):
        world = World()
        world.decide()
        world.worker.die(1)
        world.close()
        assert world.decide() == [Ended(NUMBER)]

    def test_while_its_worker_cannot_be_started(self):
        world = World()
        world.decide()
        world.close()
        world.decide()
        world.worker = None
        error = WorkerLost("no memory", started=False)
        world.execute(world.broker.spawn_failed(NUMBER, error, world.now))
        assert world.is_ended

    def test_those_who_wait_are_told_and_the_running_turn_is_interrupted(self):
        world, worker, running = busy_world()
        waiting = world.submit(2)
        actions = world.close()
        assert kinds(actions) == ["Settle", "Settle", "Interrupt"]
        assert [type(world.outcome(r)) for r in waiting] == [SessionClosed] * 2
        assert [world.outcome(r).started for r in waiting] == [False] * 2
        assert world.decide() == []
        worker.answer()
        assert type(world.outcome(running)) is SessionClosed
        assert world.outcome(running).started is None
        assert world.decide() == [Stop(NUMBER, may_stay=True)]
        self.end(world)

    def test_with_a_drain_those_who_wait_are_served_first(self):
        world, worker, running = busy_world()
        waiting = world.submit(2)
        assert world.close(drain=True) == []
        (late,) = world.submit()
        assert type(world.outcome(late)) is SessionClosed
        for _ in range(3):
            worker.answer()
            world.decide()
        assert [type(world.outcome(r)) for r in (running, *waiting)] == [Answer] * 3
        assert world.state is SessionState.CLOSING
        self.end(world)

    def test_with_a_drain_also_before_it_is_connected(self):
        world = World()
        (waiting,) = world.submit()
        world.close(drain=True)
        worker = world.up()
        worker.answer()
        assert world.decide() == [Stop(NUMBER, may_stay=True)]
        assert type(world.outcome(waiting)) is Answer
        self.end(world)

    def test_a_drain_can_be_cut_short(self):
        world, worker, running = busy_world()
        (waiting,) = world.submit()
        world.close(drain=True)
        world.close(drain=False)
        assert type(world.outcome(waiting)) is SessionClosed
        worker.answer()
        assert type(world.outcome(running)) is SessionClosed
        world.decide()
        self.end(world)

    def test_a_second_close_changes_nothing(self):
        world, worker, _ = busy_world()
        world.close()
        assert world.close() == []
        assert world.close(drain=True) == []
        worker.answer()
        world.decide()
        assert world.close() == []
        self.end(world)

    @pytest.mark.parametrize("is_resumable", [True, False])
    @pytest.mark.parametrize("drain", [True, False])
    def test_a_worker_that_dies_while_it_closes_is_no_reason_to_stay(self, is_resumable, drain):
        world, worker, _ = busy_world(is_resumable=is_resumable)
        (waiting,) = world.submit()
        world.close(drain=drain)
        worker.die()
        world.decide()
        if is_resumable and drain:
            world.up().answer()
            assert type(world.outcome(waiting)) is Answer
            world.decide()
            self.end(world)
        assert world.is_ended
        assert world.outcome(waiting) is not None

    def test_a_turn_that_never_ends_is_cut_off(self):
        """Also when its conversation is lost with it."""
        world, worker, request = busy_world(is_resumable=False)
        world.close()
        assert world.tick(GRACE_S) == [Kill(NUMBER)]
        worker.die()
        assert type(world.outcome(request)) is SessionClosed
        assert world.is_ended

    def test_after_a_timeout_it_waits_for_the_turn(self):
        world, worker, _ = busy_world(timeout_s=1.0)
        world.tick(1.0)
        assert world.close() == []
        assert world.decide() == []
        worker.answer()
        assert world.decide() == [Stop(NUMBER, may_stay=True)]
        self.end(world)

    def test_a_drain_that_fails_to_connect_ends(self):
        world = World(max_restarts=0)
        (waiting,) = world.submit()
        world.decide()
        world.close(drain=True)
        world.worker.load().breaks(ClientNotFound("no CLI"))
        world.worker.die(1)
        assert world.is_ended
        assert isinstance(world.outcome(waiting), SoloistError)

    def test_what_its_worker_says_meanwhile_changes_nothing(self):
        world = World()
        worker = world.up()
        world.close()
        world.decide()
        worker.breaks()
        worker.say(b"[9]", Answer(9, 1.0, "?", 1, b""))
        self.end(world)


class TestIdle:
    def test_it_closes_after_that_long_without_a_request(self):
        world = World(idle_timeout_s=60.0)
        world.up()
        assert world.broker.next_deadline() == world.now + 60.0
        assert world.tick(59.0) == []
        assert world.tick(1.0) == [Stop(NUMBER, may_stay=True)]
        (late,) = world.submit()
        assert type(world.outcome(late)) is SessionClosed
        assert "idle" in str(world.outcome(late))
        world.worker.die(0)
        assert world.is_ended

    def test_each_request_starts_the_time_anew(self):
        world = World(idle_timeout_s=60.0)
        worker = world.up()
        for _ in range(3):
            assert world.tick(59.0) == []
            world.submit()
            world.decide()
            worker.answer()
            assert world.decide() == []
        assert world.tick(60.0) == [Stop(NUMBER, may_stay=True)]

    def test_neither_a_long_turn_nor_a_slow_start_is_idle(self):
        world = World(idle_timeout_s=60.0)
        world.submit()
        world.decide()
        assert world.tick(600.0) == []
        worker = world.worker.load().ready()
        world.decide()
        assert world.tick(600.0) == []
        worker.answer()
        assert world.decide() == []
        assert world.tick(59.0) == []

    def test_nor_is_one_whose_requests_wait_for_the_rate_limit(self):
        world = World(idle_timeout_s=60.0)
        world.up()
        world.limiter.pause_until(world.now + 200.0)
        (request,) = world.submit()
        assert world.tick(100.0) == []
        world.cancel(request)
        assert world.decide() == []
        assert world.tick(59.0) == []
        assert world.tick(1.0) == [Stop(NUMBER, may_stay=True)]

    def test_a_replacement_that_waits_for_requests_is(self):
        world = World(idle_timeout_s=60.0)
        world.up().die()
        world.tick(10.0)
        world.worker.load().ready()
        world.decide()
        assert world.tick(60.0) == [Stop(NUMBER, may_stay=True)]

    def test_without_a_timeout_it_stays(self):
        world = World()
        world.up()
        assert world.broker.next_deadline() == math.inf
        assert world.tick(1e9) == []


class TestCommands:
    def test_they_are_passed_on(self):
        world = World()
        world.up()
        assert world.broker.command(7, "set_model", b"x") == [Tell(NUMBER, 7, "set_model", b"x")]

    def test_they_may_come_amid_a_turn(self):
        world, _, _ = busy_world()
        assert kinds(world.broker.command(7, "set_model", b"x")) == ["Tell"]

    def test_those_of_a_starting_session_wait_for_its_client(self):
        world = World()
        assert world.broker.command(7, "set_model", b"x") == []
        world.decide()
        assert world.broker.command(8, "set_model", b"y") == []
        world.worker.load()
        actions = world.broker.ready(NUMBER)
        assert actions == [Tell(NUMBER, 7, "set_model", b"x"), Tell(NUMBER, 8, "set_model", b"y")]

    def test_a_replacement_is_told_the_last_of_each_again(self):
        world = World()
        worker = world.up()
        for call, (name, value) in enumerate(
            [("set_model", b"a"), ("set_permission_mode", b"b"), ("set_model", b"c")], 1
        ):
            world.execute(world.broker.command(call, name, value))
        worker.die()
        world.tick(10.0)
        world.execute(world.broker.command(9, "set_model", b"d"))
        again = world.worker.load().ready()
        assert again.told[:2] == [("set_model", b"c"), ("set_permission_mode", b"b")]
        assert again.told[2:] == [("set_model", b"d")]
        again.die()
        world.tick(10.0)
        last = world.worker.load().ready()
        assert dict(last.told) == {"set_model": b"d", "set_permission_mode": b"b"}
        assert len(last.told) == 2

    def test_a_closed_session_refuses_them(self):
        world = World()
        world.up()
        world.close()
        with pytest.raises(SessionClosed):
            world.broker.command(7, "set_model", b"x")


class TestRate:
    def test_each_dispatch_takes_a_token(self):
        world = World(limit=RateLimit(per_second=2.0, burst=1))
        worker = world.up()
        world.submit(3)
        times = []
        for _ in range(3):
            actions = world.decide()
            if not actions:
                due = world.broker.next_deadline()
                actions = world.tick(due - world.now)
            assert kinds(actions) == ["Dispatch"]
            times.append(world.now)
            worker.answer()
        assert times == [100.0, 100.5, 101.0]

    def test_one_that_waits_for_a_token_can_time_out_or_be_cancelled(self):
        world = World()
        world.up()
        world.limiter.pause_until(world.now + 1000.0)
        (late,) = world.submit(timeout_s=1.0)
        (gone,) = world.submit()
        assert world.decide() == []
        world.cancel(gone)
        world.tick(1.0)
        assert type(world.outcome(late)) is RequestTimeout
        assert type(world.outcome(gone)) is RequestCancelled

    def test_a_client_that_is_told_to_pause_pauses_all(self):
        world, worker, request = busy_world()
        world.submit()
        worker.answer(RateLimited("slow", retry_after_s=3.0))
        assert type(world.outcome(request)) is RateLimited
        assert world.decide() == []
        assert world.broker.next_deadline() == world.now + 3.0
        assert world.limiter.next_at() == world.now + 3.0
        assert kinds(world.tick(3.0)) == ["Dispatch"]

    def test_also_when_its_caller_has_gone(self):
        world, worker, request = busy_world()
        world.cancel(request)
        worker.answer(RateLimited("slow", retry_after_s=3.0))
        assert world.limiter.next_at() == world.now + 3.0


class TestEndOfTheSupervisor:
    def test_new_requests_are_refused_and_accepted_ones_run(self):
        world, worker, running = busy_world()
        (waiting,) = world.submit()
        world.broker.close_intake("over")
        (late,) = world.submit()
        error = world.outcome(late)
        assert type(error) is SupervisorClosed
        assert (str(error), error.started) == ("over", False)
        worker.answer()
        world.decide()
        worker.answer()
        assert type(world.outcome(running)) is type(world.outcome(waiting)) is Answer
        assert world.decide() == [Stop(NUMBER, may_stay=True)]

    def test_an_abort_tells_everybody_at_once_and_interrupts(self):
        world, worker, running = busy_world()
        (waiting,) = world.submit()
        world.broker.close_intake("over")
        actions = world.execute(world.broker.abort(world.now))
        assert kinds(actions) == ["Settle", "Interrupt", "Settle"]
        assert type(world.outcome(running)) is type(world.outcome(waiting)) is SupervisorClosed
        assert [world.outcome(r).started for r in (running, waiting)] == [None, False]
        assert world.broker.busy == 1, "its turn still runs"
        assert world.execute(world.broker.abort(world.now)) == []
        worker.answer()
        assert world.broker.busy == 0

    def test_an_abort_tells_those_who_were_cancelled_why(self):
        world, _, request = busy_world()
        world.cancel(request)
        world.broker.close_intake("over")
        world.execute(world.broker.abort(world.now))
        assert type(world.outcome(request)) is RequestCancelled

    def test_an_abort_does_not_tell_twice_those_who_timed_out(self):
        world, _, request = busy_world(timeout_s=1.0)
        world.tick(1.0)
        world.broker.close_intake("over")
        assert world.broker.abort(world.now) == []
        assert type(world.outcome(request)) is RequestTimeout

    @pytest.mark.parametrize("how_far", ["new", "spawned", "loaded", "idle", "running", "waiting"])
    def test_its_worker_is_stopped_from_any_state(self, how_far):
        world = World()
        if how_far == "waiting":
            world.decide()
            world.worker.die(1)
        elif how_far in {"idle", "running"}:
            world.up()
        elif how_far != "new":
            world.decide()
        if how_far == "loaded":
            world.worker.load()
        if how_far == "running":
            world.submit()
            world.decide()
            world.worker.claim()
        world.broker.close_intake("over")
        world.execute(world.broker.abort(world.now))
        actions = world.execute(world.broker.stop_workers(world.now))
        if world.worker is None:
            assert actions == [Ended(NUMBER)]
        else:
            assert [(type(a), a.number) for a in actions] == [(Stop, NUMBER)]
            assert world.broker.stop_workers(world.now) == []
            world.decide()
            world.worker.die(0)
        assert world.is_ended
        assert len(world.outcomes) == len(world.requests)

    def test_what_never_began_at_a_stopped_worker_is_told_at_its_end(self):
        world = World()
        worker = world.up()
        (request,) = world.submit()
        world.decide()
        world.broker.close_intake("over")
        world.execute(world.broker.stop_workers(world.now))
        worker.die(0)
        assert type(world.outcome(request)) is SupervisorClosed
        assert world.outcome(request).started is False
        assert world.is_ended

    def test_a_stopped_worker_has_the_time_to_stop(self):
        """Also if the turn that it runs was to end before."""
        world, _, request = busy_world()
        world.cancel(request)
        world.tick(GRACE_S - 1.0)
        world.broker.close_intake("over")
        world.execute(world.broker.stop_workers(world.now))
        assert world.tick(STOP_S - 1.0) == []
        assert world.tick(1.0) == [Kill(NUMBER)]

    def test_a_stopped_worker_is_not_interrupted(self):
        world, worker, request = busy_world()
        world.broker.close_intake("over")
        world.execute(world.broker.stop_workers(world.now))
        assert world.cancel(request) == []
        worker.die(0)
        assert type(world.outcome(request)) is RequestCancelled

    def test_a_worker_that_dies_after_an_abort_is_not_replaced(self):
        world, worker, _ = busy_world()
        world.broker.close_intake("over")
        world.execute(world.broker.abort(world.now))
        worker.die()
        assert world.decide() == [Ended(NUMBER)]

    def test_cancel_pending_ends_those_who_wait_alone(self):
        world, worker, running = busy_world()
        waiting = world.submit(2)
        world.execute(world.broker.cancel_pending())
        assert [type(world.outcome(r)) for r in waiting] == [RequestCancelled] * 2
        assert [world.outcome(r).started for r in waiting] == [False] * 2
        worker.answer()
        assert type(world.outcome(running)) is Answer


class TestCounters:
    def test_they_follow_a_request(self):
        world = World()
        worker = world.up()

        def counts():
            broker = world.broker
            return (broker.outstanding, broker.queued, broker._queued_bytes, broker.busy)

        assert counts() == (0, 0, 0, 0)
        first, second = world.submit(2, payload=b"xyz")
        assert counts() == (2, 2, 6, 2)
        world.decide()
        assert counts() == (2, 1, 3, 3)
        worker.die()
        assert counts() == (2, 2, 6, 2)
        worker = world.up()
        worker.answer()
        assert counts() == (1, 1, 3, 1)
        world.cancel(second)
        assert counts() == (0, 0, 0, 0)
        assert world.outcome(first)


def limited(count, chance=0.0):
    return RecyclePolicy(max_requests=count, jitter=lambda: chance)


SMALL = RecyclePolicy(max_memory_bytes=1000)


class TestRecycling:
    def test_a_spent_worker_is_followed_by_one_with_its_conversation(self):
        world = World(recycle=limited(2))
        worker = world.up()
        requests = world.submit(5)
        seen = []
        while len(world.outcomes) < 5:
            world.decide()
            if world.worker.state == "stopping":
                assert world.state is SessionState.IDLE
                world.worker.die(0)
                world.decide()
                world.worker.load().ready()
                world.decide()
            worker = world.worker
            worker.answer()
            seen.append((world.broker.incarnation, worker.history))
        assert [n for n, _ in seen] == [1, 1, 2, 2, 3]
        assert seen[-1][1] == [0, 1, 2, 3, 4]
        assert [world.outcome(r).text for r in requests] == [world.text(r) for r in requests]

    def test_at_once_although_nobody_waits(self):
        world, worker, _ = busy_world(recycle=limited(1))
        worker.answer()
        assert kinds(world.decide()) == ["Stop"]
        worker.die(0)
        assert kinds(world.decide()) == ["Spawn"]
        assert not world.restart.is_exhausted(world.now)

    def test_it_is_no_failure(self):
        world = World(recycle=limited(1), max_restarts=0)
        for _ in range(4):
            worker = world.up()
            world.submit()
            world.decide()
            worker.answer()
            world.decide()
            worker.die(-11)
        assert world.state is SessionState.STARTING

    def test_one_that_does_not_exit_is_killed(self):
        world, worker, _ = busy_world(recycle=limited(1))
        worker.answer()
        world.decide()
        assert kinds(world.tick(STOP_S)) == ["Kill"]
        worker.die()
        assert kinds(world.decide()) == ["Spawn"]

    def test_one_that_cannot_be_continued_keeps_its_worker(self):
        world = World(recycle=limited(1), is_resumable=False)
        worker = world.up()
        for _ in range(3):
            world.submit()
            world.decide()
            worker.answer()
        world.execute(world.broker.measured(NUMBER, 10**15, world.now))
        assert Stop not in {type(a) for a in world.log}
        assert world.broker.incarnation == 1

    def test_one_that_has_outgrown_its_limit_is_replaced_between_two_turns(self):
        world, worker, _ = busy_world(recycle=SMALL)
        world.execute(world.broker.measured(NUMBER, 1000, world.now))
        world.execute(world.broker.measured(NUMBER, 1001, world.now))
        assert world.decide() == []
        worker.answer()
        assert kinds(world.decide()) == ["Stop"]
        worker.die(0)
        world.up()
        world.submit()
        assert kinds(world.decide()) == ["Dispatch"]

    def test_a_command_amid_it_is_for_the_next_worker(self):
        world, worker, _ = busy_world(recycle=limited(1))
        worker.answer()
        world.decide()
        assert world.execute(world.broker.command(7, "set_model", b"1")) == []
        assert world.broker.untold == {7}
        worker.die(0)
        assert world.up().told == [("set_model", b"1")]
        assert world.broker.untold == frozenset()

    def test_it_waits_for_the_reply_to_a_command(self):
        world, worker, _ = busy_world(recycle=limited(1))
        world.execute(world.broker.command(7, "set_model", b"1"))
        worker.answer()
        assert world.decide() == []
        world.broker.replied(7)
        assert kinds(world.decide()) == ["Stop"]

    def test_also_one_that_had_waited_for_its_client(self):
        world = World(recycle=limited(1))
        world.broker.command(7, "set_model", b"1")
        worker = world.up()
        world.submit()
        world.decide()
        worker.answer()
        assert world.decide() == []
        world.broker.replied(7)
        assert kinds(world.decide()) == ["Stop"]

    @pytest.mark.parametrize("drain", [False, True])
    def test_closing_it_meanwhile_ends_it(self, drain):
        world, worker, _ = busy_world(recycle=limited(1))
        worker.answer()
        world.decide()
        (waiting,) = world.submit()
        world.close(drain=drain)
        world.decide()
        worker.die(0)
        if drain:
            world.up().answer()
            assert world.outcome(waiting).text == world.text(waiting)
            world.decide()
            world.worker.die(0)
        assert world.is_ended

    def test_who_waits_meanwhile_can_give_up_or_time_out(self):
        world, worker, _ = busy_world(recycle=limited(1))
        worker.answer()
        world.decide()
        late, never, patient = *world.submit(timeout_s=1.0), *world.submit(2)
        world.cancel(never)
        world.tick(1.0)
        assert isinstance(world.outcome(late), RequestTimeout)
        assert isinstance(world.outcome(never), RequestCancelled)
        worker.die(0)
        world.up().answer()
        assert world.outcome(patient).text == world.text(patient)

    def test_a_worker_that_dies_by_itself_is_not_blamed_for_the_last_ones_size(self):
        world, worker, _ = busy_world(recycle=SMALL)
        world.execute(world.broker.measured(NUMBER, 1001, world.now))
        worker.die()
        world.up()
        assert world.decide() == []


class TestRestartOfAll:
    def test_an_idle_one_moves_at_once(self):
        world, worker, _ = busy_world()
        worker.answer()
        world.broker.restart()
        assert world.broker.is_rolling
        assert kinds(world.decide()) == ["Stop"]
        worker.die(0)
        assert not world.broker.is_rolling
        assert world.up().history == [0]

    def test_a_busy_one_moves_after_its_turn(self):
        world, worker, request = busy_world()
        world.broker.restart()
        assert world.decide() == []
        worker.answer()
        assert kinds(world.decide()) == ["Stop"]
        assert world.outcome(request).text == world.text(request)

    def test_one_without_a_turn_has_nothing_to_lose(self):
        world = World(is_resumable=False)
        world.up()
        world.broker.restart()
        assert kinds(world.decide()) == ["Stop"]

    def test_one_that_cannot_be_continued_is_left_out(self):
        world, worker, _ = busy_world(is_resumable=False)
        worker.answer()
        world.broker.restart()
        assert not world.broker.is_rolling
        assert world.decide() == []

    def test_one_that_turns_out_so_in_its_first_turn_is_left_out(self):
        world, worker, _ = busy_world(is_resumable=False)
        world.broker.restart()
        assert world.broker.is_rolling
        worker.answer()
        world.decide()
        assert not world.broker.is_rolling
        worker.is_resumable = True
        world.submit()
        world.decide()
        worker.answer()
        assert world.decide() == [], "the restart is long over"

    @pytest.mark.parametrize("how_far", ["starting", "connecting"])
    def test_one_that_starts_moves_when_it_has(self, how_far):
        world = World()
        world.decide()
        if how_far == "connecting":
            world.worker.load()
        world.broker.restart()
        worker = world.worker
        if how_far == "starting":
            worker.load()
        worker.ready()
        assert kinds(world.decide()) == ["Stop"]

    def test_one_without_a_worker_gets_a_new_one_anyway(self):
        world, worker, _ = busy_world()
        worker.die()
        world.broker.restart()
        assert not world.broker.is_rolling
        world.up()
        assert not world.broker.is_rolling

    def test_it_waits_for_a_place(self):
        gate = Gate(1)
        gate.enter(99)
        world, worker, _ = busy_world(gate=gate)
        worker.answer()
        world.broker.restart()
        assert world.decide() == []
        assert gate.called() == []
        gate.leave(99)
        assert gate.called() == [NUMBER]
        assert kinds(world.decide()) == ["Stop"]
        worker.die(0)
        assert not gate.enter(99)
        world.up()
        assert gate.enter(99)

    @pytest.mark.parametrize("end", ["close", "lose"])
    def test_its_end_gives_the_place_back(self, end):
        gate = Gate(1)
        world, worker, _ = busy_world(gate=gate, max_restarts=0)
        worker.answer()
        world.broker.restart()
        world.decide()
        if end == "close":
            world.close()
            world.decide()
            worker.die(0)
        else:
            worker.die(0)
            world.decide()
            world.worker.die(1)
            assert world.state is SessionState.LOST
        assert gate.enter(99)

    def test_commands_that_wait_for_a_worker_that_never_comes_wait_no_more(self):
        world, worker, _ = busy_world(max_restarts=0)
        worker.answer()
        world.broker.restart()
        world.decide()
        world.execute(world.broker.command(7, "set_model", b"1"))
        worker.die(0)
        world.decide()
        assert world.broker.untold == {7}
        world.worker.die(1)
        assert world.broker.untold == frozenset()


class TestMemory:
    def test_of_queue_and_deadlines_is_bounded_when_requests_come_and_are_cancelled(self):
        world, _, _ = busy_world()
        for _ in range(5000):
            (request,) = world.submit(timeout_s=1e6)
            world.cancel(request)
            world.outcomes.clear()
            world.requests.clear()
        assert len(world.broker._queue) < 200
        assert len(world.broker._deadlines) < 200

    def test_of_deadlines_is_bounded_when_requests_are_answered_in_time(self):
        world = World()
        worker = world.up()
        for _ in range(2000):
            world.submit(timeout_s=1e6)
            world.decide()
            worker.answer()
            world.begun.clear()
        assert len(world.broker._deadlines) < 200

    def test_the_living_are_never_swept_away(self):
        world, _, _ = busy_world()
        kept = world.submit(50, timeout_s=2.0)
        for _ in range(1000):
            (request,) = world.submit(timeout_s=1e6)
            world.cancel(request)
        assert [r for r in world.broker._queue if r.state is RequestState.QUEUED] == kept
        world.tick(2.0)
        assert all(isinstance(world.outcome(r), RequestTimeout) for r in kept)

    def test_of_settings_is_one_value_each(self):
        world = World()
        world.up()
        for call in range(100):
            world.broker.command(call, "set_model", b"%d" % call)
        assert len(world.broker._settings) == 1


class BrokerWalk(RuleBasedStateMachine):
    """Callers, the worker, messages and the clock, in any order that a real run may have."""

    MAX_QUEUE = 4
    MAX_BYTES = 12

    @initialize(
        sync=st.booleans(),
        is_resumable=st.sampled_from([True, True, False]),
        limit=st.none() | st.just(RateLimit(per_second=2.0, burst=2)),
        idle_timeout_s=st.none() | st.just(20.0),
        most=st.sampled_from([None, 1, 3]),
        is_gate_free=st.sampled_from([True, True, False]),
    )
    def begin(self, sync, is_resumable, limit, idle_timeout_s, most, is_gate_free):
        self.most = math.inf if most is None else most
        gate = Gate(1)
        if not is_gate_free:
            gate.enter(99)
        self.world = World(
            max_queue=self.MAX_QUEUE,
            max_queue_bytes=self.MAX_BYTES,
            max_restarts=3,
            is_resumable=is_resumable,
            limit=limit,
            idle_timeout_s=idle_timeout_s,
            recycle=RecyclePolicy(max_requests=most, max_memory_bytes=1000, jitter=lambda: 0.0),
            gate=gate,
        )
        self.is_interruptible = not sync
        self.cancelled = set()
        self.deadlines = {}
        self.is_closing = False
        self.is_draining = False
        self.is_lost = False
        self.seen = 0
        self.world.decide()

    # -- the environment ---------------------------------------------------------------------

    @property
    def worker(self):
        return self.world.worker

    def alive(self):
        return [r for r in self.world.requests if r not in self.world.outcomes]

    def a_worker(can):
        return precondition(
            lambda self: not self.world.is_ended and self.worker and can(self.worker)
        )

    is_open = precondition(lambda self: not self.world.is_ended)

    @is_open
    @rule(
        count=st.integers(1, 3),
        timeout_s=st.none() | st.sampled_from([0.01, 0.5, 3.0]),
        size=st.integers(1, 8),
    )
    def submit(self, count, timeout_s, size):
        for _ in range(count):
            broker, world = self.world.broker, self.world
            waiting, waiting_bytes = broker.queued, broker._queued_bytes
            is_idle = broker.state is SessionState.IDLE and not waiting
            is_full = not is_idle and (
                waiting >= self.MAX_QUEUE or (waiting > 0 and waiting_bytes + size > self.MAX_BYTES)
            )
            is_refused = broker.refusal is not None
            (request,) = world.submit(timeout_s=timeout_s, payload=b"x" * size)
            outcome = world.outcome(request)
            assert (type(outcome) is QueueFull) == (is_full and not is_refused)
            assert (outcome is not None) == (is_full or is_refused)
            if self.is_lost and not self.is_closing:
                assert type(outcome) in {SessionLost, RestartLimitReached}
            if outcome is None and timeout_s is not None:
                self.deadlines[request] = world.now + timeout_s

    @precondition(lambda self: not self.world.is_ended and self.alive())
    @rule(data=st.data(), is_slow=st.booleans())
    def cancel(self, data, is_slow):
        request = data.draw(st.sampled_from(self.alive()))
        was_running = request.state is not RequestState.QUEUED
        self.world.cancel(request, SlowReader("slow") if is_slow else None)
        self.cancelled.add(request)
        assert (self.world.outcome(request) is None) == was_running

    @is_open
    @rule()
    def interrupt(self):
        running = [r for r in self.alive() if r.state is RequestState.LEASED]
        self.world.execute(self.world.broker.interrupt(self.world.now))
        self.cancelled.update(running)

    @is_open
    @rule(name=st.sampled_from(sorted(TELLS)))
    def command(self, name):
        try:
            self.world.execute(self.world.broker.command(1, name, TELLS[name]))
        except SoloistError:
            assert self.is_closing or self.is_lost or self.world.broker.refusal

    @is_open
    @rule()
    def reply_to_the_command(self):
        self.world.broker.replied(1)

    @a_worker(lambda w: w.delivered)
    @rule()
    def outgrow(self):
        self.world.execute(self.world.broker.measured(NUMBER, 1001, self.world.now))

    @is_open
    @rule()
    def restart(self):
        self.world.broker.restart()

    @a_worker(lambda w: w.state == "stopping")
    @rule(exitcode=st.sampled_from([0, 0, -11]))
    def exit(self, exitcode):
        """It was asked to, or broke: only that may cost the conversation."""
        world = self.world
        was_broken = world.broker.workers[NUMBER].broken is not None
        failures, was_idle = list(world.restart._failures), world.state is SessionState.IDLE
        self.worker.die(exitcode)
        assert was_broken or failures == list(world.restart._failures)
        assert not was_idle or world.state is SessionState.STARTING

    @is_open
    @rule()
    def decide(self):
        self.world.decide()

    @rule(seconds=st.sampled_from([0.01, 0.06, 0.5, 1.0, 6.0, 31.0]))
    def pass_time(self, seconds):
        self.world.tick(seconds)
        now = self.world.now
        assert not [r for r in self.alive() if self.is_due(r, now)]

    def is_due(self, request, now):
        is_wanted = request.state in {RequestState.QUEUED, RequestState.LEASED}
        return is_wanted and self.deadlines.get(request, math.inf) <= now

    @a_worker(lambda w: w.state == "starting")
    @rule()
    def load(self):
        self.worker.load(is_interruptible=self.is_interruptible)

    @a_worker(lambda w: w.state == "connecting")
    @rule()
    def connect(self):
        self.worker.ready()

    @a_worker(lambda w: w.state in {"starting", "connecting"})
    @rule(retryable=st.booleans(), exits=st.booleans())
    def fail_to_connect(self, retryable, exits):
        error = ClientConnectError("no")
        error.retryable = retryable
        self.worker.breaks(error)
        if exits:
            self.world.decide()
            self.worker.die(1)

    @a_worker(lambda w: w.state == "starting")
    @rule()
    def fail_to_spawn(self):
        world = self.world
        world.worker = None
        error = WorkerLost("no memory", started=False)
        world.execute(world.broker.spawn_failed(NUMBER, error, world.now))

    @a_worker(lambda w: w.granted and w.running is None)
    @rule()
    def claim(self):
        self.worker.claim()

    @a_worker(lambda w: w.running is not None)
    @rule(how=st.sampled_from(["until interrupted", "for ever"]))
    def stick(self, how):
        self.worker.is_stuck = how

    @a_worker(lambda w: w.running is not None and not w.is_stuck)
    @rule(how=st.sampled_from(["well", "well", "error", "limited", "last"]))
    def finish(self, how):
        error = {
            "error": ClientError("no"),
            "limited": RateLimited("slow", retry_after_s=2.0),
        }.get(how)
        if how == "last":
            self.worker.is_resumable = False
        self.worker.finish(error)

    @a_worker(lambda w: w.delivered < len(w.ledger))
    @rule()
    def deliver(self):
        self.worker.deliver()

    @a_worker(lambda w: w.delivered)
    @rule()
    def repeat_itself(self):
        said = [m for m in self.worker.ledger[: self.worker.delivered] if type(m) is not bytes]
        assert self.worker.say(*said) == []

    @a_worker(lambda w: True)
    @rule(exitcode=st.sampled_from([-9, 1, None]))
    def die(self, exitcode):
        worker, before = self.worker, set(self.world.outcomes)
        running = worker.leases.get(worker.running)
        worker.die(exitcode)
        lost = [
            r
            for r in set(self.world.outcomes) - before
            if isinstance(self.world.outcome(r), WorkerLost)
        ]
        assert lost in ([], [running]), "a death costs the request that ran and no other"

    @a_worker(lambda w: True)
    @rule()
    def is_wedged(self):
        self.world.execute(self.world.broker.wedged(NUMBER, "stopped"))

    @is_open
    @rule(drain=st.booleans(), dice=st.integers(1, 6))
    def close(self, drain, dice):
        if dice < 6 and not self.is_closing:
            return  # or most walks were short
        self.is_closing = True
        self.is_draining = drain and (self.is_draining or self.world.broker.refusal is None)
        self.world.close(drain=drain)
        if not drain:
            assert self.world.broker.queued == 0

    @is_open
    @rule(dice=st.integers(1, 6))
    def end_the_supervisor(self, dice):
        if dice < 6 and not self.is_closing:
            return
        self.is_closing = True
        world = self.world
        world.broker.close_intake("over")
        world.execute(world.broker.abort(world.now))
        assert self.alive() == []
        world.execute(world.broker.stop_workers(world.now))

    @is_open
    @rule()
    def cancel_pending(self):
        waiting = [r for r in self.alive() if r.state is RequestState.QUEUED]
        self.world.execute(self.world.broker.cancel_pending())
        self.cancelled.update(waiting)
        assert self.world.broker.queued == 0

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def killed_workers_die(self):
        for action in self.world.log[self.seen :]:
            if type(action) is Settle and type(action.outcome) is Answer:
                assert action.outcome.text == self.world.text(action.request)
                assert action.request not in self.cancelled, "it had lost interest"
        killed = [a for a in self.world.log[self.seen :] if type(a) is Kill]
        self.seen = len(self.world.log)
        if killed and self.worker:
            self.worker.die(-9)
        self.seen = len(self.world.log)

    @invariant()
    def the_counters_match(self):
        broker, alive = self.world.broker, self.alive()
        queued = [r for r in alive if r.state is RequestState.QUEUED]
        assert broker.outstanding == len(alive)
        assert broker.queued == len(queued) <= self.MAX_QUEUE + 1
        assert broker._queued_bytes == sum(len(r.payload) for r in queued)
        held = sum(len(w.leases) for w in broker.workers.values())
        assert broker.busy == len(alive) + (held > 0)
        assert held <= 1
        assert all(r.state is RequestState.SETTLED for r in self.world.outcomes)

    @invariant()
    def every_request_is_in_one_place(self):
        broker = self.world.broker
        places = [r for r in broker._queue if r.state is RequestState.QUEUED]
        places += [r for w in broker.workers.values() for r in w.leases]
        assert len(places) == len(set(places))
        assert set(self.alive()) <= set(places)
        orders = [r.order for r in broker._queue if r.state is RequestState.QUEUED]
        assert orders == sorted(orders)

    @invariant()
    def no_incarnation_is_given_more_than_its_quota(self):
        for view in self.world.broker.workers.values():
            if self.worker and self.worker.is_resumable and self.world.is_resumable:
                assert view.given <= self.most or self.world.broker._calls

    @invariant()
    def requests_start_in_the_order_of_arrival(self):
        orders = [r.order for r in self.world.begun]
        assert orders == sorted(orders)

    @invariant()
    def what_is_said_of_the_start_is_true(self):
        begun = set(self.world.begun)
        for request, outcome in self.world.outcomes.items():
            if type(outcome) is Answer:
                assert request in begun
            elif outcome.started is False:
                assert request not in begun

    @invariant()
    def a_lost_session_stays_lost_until_it_is_closed(self):
        is_lost = self.world.state is SessionState.LOST
        assert not (self.is_lost and not is_lost and not self.is_closing)
        self.is_lost = self.is_lost or is_lost
        if is_lost:
            assert self.worker is None
            assert self.world.broker.outstanding == 0

    @invariant()
    def it_is_over_when_it_says_so(self):
        world = self.world
        ends = [a for a in world.log if type(a) is Ended]
        assert len(ends) == (1 if world.is_ended else 0)
        assert world.is_ended == (world.state is SessionState.CLOSED)

    @invariant()
    def turns_that_were_to_end_have_a_limit(self):
        """Nothing that was cancelled, closed or broken is waited for without one."""
        world = self.world
        if world.is_ended or world.state not in {SessionState.DRAINING, SessionState.CLOSING}:
            return
        world.decide()
        assert world.broker.next_deadline() < math.inf or world.is_ended

    def teardown(self):
        """Given a worker that does its work, everything comes to an end."""
        if not hasattr(self, "seen"):
            return
        world = self.world
        if not world.is_ended:
            self.drive(lambda: not world.broker.outstanding)
            assert self.alive() == [], world.broker
            world.close(drain=True)
            self.drive(lambda: world.is_ended)
        assert world.is_ended, world.broker
        assert len(world.outcomes) == len(world.requests)

    def drive(self, is_over):
        world = self.world
        until = world.now + 200.0
        while not is_over() and world.now < until:
            world.decide()
            self.killed_workers_die()
            if self.worker is not None:
                self.advance(self.worker)
            world.now += 0.1

    def advance(self, worker):
        if worker.is_stuck:
            self.world.cancel(worker.leases[worker.running])
            return
        if worker.state == "stopping":
            worker.die(0)
            return
        if worker.state == "starting":
            worker.load(is_interruptible=self.is_interruptible)
        if worker.state == "connecting":
            worker.ready()
        if worker.running is not None or worker.claim() is not None:
            worker.finish()
        worker.deliver()


TestBrokerWalk = BrokerWalk.TestCase
TestBrokerWalk.settings = settings(
    max_examples=75,
    stateful_step_count=50,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)


def test_the_broker_is_pure():
    """It knows no clock of its own: every test above passes the time in."""
    assert not hasattr(broker_module, "time")
