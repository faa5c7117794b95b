"""The pool's decisions: plain examples, then a random environment against its invariants."""

import collections
import functools
import itertools
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
    RateLimited,
    RequestCancelled,
    RequestTimeout,
    RestartLimitReached,
    SlowReader,
    SoloistError,
    SupervisorClosed,
    WorkerLost,
    to_info,
)
from soloist.protocol.messages import Answer, Chunk, Failure
from soloist.protocol.transitions import RequestState
from soloist.supervisor import pool as pool_module
from soloist.supervisor.crew import (
    STOP_S,
    SYNC_GRACE_S,
    Dispatch,
    Inspect,
    Interrupt,
    Kill,
    Retried,
    Revoke,
    Settle,
    Spawn,
    Stop,
)
from soloist.supervisor.forecast import FORESEEN_S, LEAST_LEARNED, STEADY
from soloist.supervisor.pool import INSPECT_AFTER_S, MAX_BATCH, MAX_BATCH_BYTES, Pool
from soloist.supervisor.rate import Limiter, RateLimit
from soloist.supervisor.recycle import RecyclePolicy
from soloist.supervisor.request import Request
from soloist.supervisor.restart import RestartPolicy
from soloist.supervisor.retry import Retry

GRACE_S = 5.0
FAST_S = 1e-6


class FakeWorker:
    """A worker process with its grant pipe and its ledger, one step at a time."""

    def __init__(self, world, number, incarnation):
        self.world = world
        self.number = number
        self.incarnation = incarnation
        self.pipe = collections.deque()
        self.leases = {}
        self.running = None
        self.begun = 0
        self.is_stuck = False  # the running turn ends by an interrupt or not at all
        self.ledger = []  # every outcome since the start
        self.delivered = 0  # how many of them were sent
        self.heard = 0  # how many of them the pool has taken in

    def load(self, is_interruptible=True):
        self.world.pool.loaded(self.number, 1000 + self.number, is_interruptible=is_interruptible)
        return self

    def ready(self):
        self.world.pool.ready(self.number)
        return self

    def claim(self):
        """Begin the next granted lease, if there is one."""
        assert self.running is None
        if self.pipe:
            self.running = self.pipe.popleft()
            self.begun += 1
            self.world.has_begun(self.leases[self.running])
        return self.running

    def finish(self, duration_s=1.0, error=None):
        """End the running lease: it is in the ledger, its message is still to come."""
        assert not self.is_stuck
        lease, self.running = self.running, None
        assert lease is not None
        if error is None:
            outcome = Answer(lease, duration_s, self.world.text(self.leases[lease]), 1, b"")
        else:
            outcome = Failure(lease, duration_s, to_info(error))
            self.world.refused[self.leases[lease]] += error.started is False
        self.ledger.append(outcome)

    def deliver(self):
        """Its messages arrive."""
        outcomes, self.delivered = self.ledger[self.delivered :], len(self.ledger)
        return self.say(*outcomes)

    def say(self, *outcomes):
        self.is_heard(outcomes)
        return self.world.execute(self.world.pool.answered(self.number, outcomes, self.world.now))

    def is_heard(self, outcomes):
        """What the pool hears for the first time may be a call for a pause."""
        for outcome in self.ledger[self.heard :]:
            if any(outcome is said for said in outcomes):
                self.heard += 1
                info = getattr(outcome, "error", None)
                if pause_s := info and info.details.get("retry_after_s"):
                    until = self.world.now + pause_s
                    self.world.paused_until = max(self.world.paused_until, until)

    def answer(self, duration_s=1.0, error=None):
        """Run the next lease to its end and deliver it."""
        if self.running is None:
            assert self.claim() is not None
        self.finish(duration_s, error)
        return self.deliver()

    def take_back(self):
        taken, self.pipe = list(self.pipe), collections.deque()
        return taken

    def die(self, exitcode=-9):
        """The process ends; the reactor reads everything it left."""
        del self.world.workers[self.number]
        pool, now = self.world.pool, self.world.now
        self.is_heard(self.ledger)
        self.world.execute(pool.answered(self.number, self.ledger, now))
        return self.world.execute(pool.exited(self.number, exitcode, self.take_back(), now))


def numbers_of(run):
    """The leases of a message to a worker."""
    if isinstance(run, Chunk):
        return list(range(run.number, run.number + len(run.prompts)))
    return [lease.number for lease in run.leases]


class World:
    """The reactor's part: executes actions, moves the clock, keeps the accounts."""

    def __init__(
        self,
        size=1,
        max_restarts=3,
        period_s=30.0,
        grace_s=GRACE_S,
        limit=None,
        retry=None,
        recycle=None,
    ):
        self.now = 100.0
        self.is_deciding = False
        self.restart = RestartPolicy(
            max_restarts=max_restarts, period_s=period_s, jitter=lambda: 1.0
        )
        self.limit = limit
        self.limiter = Limiter(limit)
        self.retry = retry
        self.pool = Pool(
            size=size,
            restart=self.restart,
            interrupt_grace_s=grace_s,
            limiter=self.limiter,
            retry=retry,
            recycle=recycle,
            jitter=lambda: 1.0,
        )
        self.workers = {}
        self.numbers = itertools.count()
        self.requests = []
        self.outcomes = {}
        self.begun = []
        self.refused = collections.Counter()  # attempts that a client said it never began
        self.dispatched = []  # times
        self.paused_until = 0.0
        self.log = []

    # -- what callers do ---------------------------------------------------------------------

    def submit(self, count=1, timeout_s=None, payload=b"p", **kwargs):
        made = []
        for _ in range(count):
            deadline = None if timeout_s is None else self.now + timeout_s
            index = next(self.numbers)
            request = Request("p", payload, self, index=index, deadline=deadline, **kwargs)
            self.requests.append(request)
            self.execute(self.pool.submit(request))
            made.append(request)
        return made

    def cancel(self, request, error=None):
        self.run_to_end(lambda: self.pool.cancel(request, self.now, error))

    # -- what the reactor does ---------------------------------------------------------------

    def decide(self):
        """One turn of the reactor; gives the actions in order."""
        begin = len(self.log)
        for _ in range(3):
            self.is_deciding = True
            self.run_to_end(lambda: self.pool.expire(self.now))
            self.is_deciding = False
            self.run_to_end(lambda: self.pool.assign(self.now))
            if self.pool.next_deadline() > self.now:
                self.is_settled_down()
                return self.log[begin:]
        raise AssertionError("the reactor would spin")

    def is_settled_down(self):
        """What must hold after every turn."""
        if self.now < self.paused_until:
            assert not any(w.pipe for w in self.workers.values()), "something may begin in a pause"
        elif self.limiter.has_token(self.now):
            assert not (self.pool.queued and self.pool._idle), "a token lies idle"

    def run_to_end(self, decide):
        for _ in range(1000):
            actions = decide()
            self.execute(actions)
            if not any(type(action) in {Revoke, Inspect} for action in actions):
                return
        raise AssertionError("the pool never stops asking")

    def execute(self, actions):
        for action in actions:
            self.log.append(action)
            handler = getattr(self, f"do_{type(action).__name__.lower()}", None)
            if handler is not None:
                handler(action)
        return actions

    def do_spawn(self, action):
        assert action.number not in self.workers
        assert len(self.workers) < self.pool.size
        self.workers[action.number] = FakeWorker(self, action.number, action.incarnation)

    def do_dispatch(self, action):
        worker = self.workers[action.number]
        held = {r.lease: r for r in self.pool.workers[action.number].leases}
        waiting = [r.index for r in self.pool._queue if r.state is RequestState.QUEUED]
        self.is_within_its_rate(action)
        for number in numbers_of(action.run):
            assert held[number].index < min(waiting, default=math.inf), "not in order"
            assert number not in worker.leases, "a lease number was used twice"
            worker.leases[number] = held[number]
            worker.pipe.append(number)

    def is_within_its_rate(self, action):
        assert self.now >= self.paused_until, "dispatched amid a pause"
        self.dispatched += [self.now] * len(numbers_of(action.run))
        if self.limit is not None:
            assert len(self.pool.workers[action.number].leases) == 1, "something waits at a worker"
            for before, begin in enumerate(self.dispatched):
                most = self.limit.burst + self.limit.per_second * (self.now - begin)
                assert len(self.dispatched) - before <= most + 1e-6, "too many dispatched"

    def do_revoke(self, action):
        self.pool.revoked(action.number, self.workers[action.number].take_back())

    def do_inspect(self, action):
        worker = self.workers[action.number]
        worker.delivered = len(worker.ledger)
        worker.say(*worker.ledger)

    def do_interrupt(self, action):
        worker = self.workers[action.number]
        if worker.running == action.lease and worker.is_stuck == "until interrupted":
            worker.is_stuck = False

    def do_stop(self, action):
        worker = self.workers[action.number]
        if self.is_deciding:  # else everything ends
            assert worker.running is None, "a worker is replaced between requests"
            assert not worker.pipe

    def do_settle(self, action):
        self.settle(action.request, action.outcome)

    def do_settleall(self, action):
        for request, answer in zip(action.requests, action.answers, strict=True):
            self.settle(request, answer)

    def settle(self, request, outcome):
        assert request not in self.outcomes, f"{request} settled twice"
        self.outcomes[request] = request.outcome = outcome

    # -- shorthand ---------------------------------------------------------------------------

    def up(self, count=None, **load):
        """Bring up workers that are ready: all that were spawned, or ``count`` idle ones."""
        if count is not None:
            for _ in range(count):
                self.execute([self.pool.start_worker()])
        for worker in self.workers.values():
            if self.pool.workers[worker.number].state.value == "starting":
                worker.load(**load).ready()
        return list(self.workers.values())

    def tick(self, seconds):
        self.now += seconds
        return self.decide()

    def text(self, request):
        return f"answer {request.index}"

    def has_begun(self, request):
        if request in self.begun:
            assert request.failure is not None, f"{request} runs twice"
            assert self.begun.count(request) < self.retry.attempts
            assert not request.may_have_run or self.retry.may_have_run
        self.begun.append(request)
        assert request.attempts == self.begun.count(request)

    def learn(self, depth):
        """Answer quick prompts until the pool trusts that they are quick."""
        worker = next(iter(self.workers.values()))
        for _ in range(400):
            if self.pool._depth >= depth:
                return
            self.submit()
            self.decide()
            holder = next(w for w in self.workers.values() if w.pipe)
            holder.answer(duration_s=2e-3 / (depth + 0.5) - 1e-6)
        raise AssertionError(f"the depth stays at {self.pool._depth}, {worker}")

    def outcome(self, request):
        return self.outcomes.get(request)

    def texts(self, requests):
        return [getattr(self.outcome(r), "text", self.outcome(r)) for r in requests]


def kinds(actions):
    return [type(action).__name__ for action in actions]


def sent(actions):
    """Lease counts by worker of every dispatch."""
    return {a.number: len(numbers_of(a.run)) for a in actions if type(a) is Dispatch}


def busy_world(**kwargs):
    """One worker that runs one request."""
    load = {k: kwargs.pop(k) for k in list(kwargs) if k == "is_interruptible"}
    timeout_s = kwargs.pop("timeout_s", None)
    world = World(**kwargs)
    (worker,) = world.up(1, **load)
    (request,) = world.submit(timeout_s=timeout_s)
    world.decide()
    worker.claim()
    return world, worker, request


def batch_world(count=4, size=1, **kwargs):
    """One quick worker that was given ``count`` requests in one message."""
    world = World(size=size, **kwargs)
    (worker,) = world.up(1)
    world.learn(16)
    requests = world.submit(count)
    assert sent(world.decide()) == {worker.number: count}
    return world, worker, requests


class TestAssignment:
    def test_an_idle_worker_gets_the_first_request(self):  # 1
        world = World(size=2)
        world.up(1)
        first, _ = world.submit(2)
        actions = world.decide()
        assert kinds(actions) == ["Spawn", "Dispatch"]
        assert actions[1].run.leases[0].number == first.lease
        assert (
            repr(world.pool) == "<Pool 1 queued, [<Worker 0.1 ready 1>, <Worker 1.1 starting 0>]>"
        )

    def test_without_an_idle_worker_another_is_started_for_each_that_waits(self):  # 2
        world = World(size=8)
        world.submit(3)
        assert world.decide() == [Spawn(0, 1), Spawn(1, 1), Spawn(2, 1)]
        assert world.decide() == []
        world.submit()
        assert world.decide() == [Spawn(3, 1)]

    def test_never_more_than_size_are_started(self):
        world = World(size=2)
        world.submit(10)
        assert world.decide() == [Spawn(0, 1), Spawn(1, 1)]
        world.submit(10)
        assert world.decide() == []

    def test_an_idle_worker_comes_before_a_new_one(self):
        world = World(size=4)
        world.up(2)
        world.submit(2)
        actions = world.decide()
        assert kinds(actions) == ["Dispatch", "Dispatch"]
        assert sent(actions) == {0: 1, 1: 1}

    def test_the_order_is_first_come_first_served(self):
        world = World(size=2)
        world.up(2)
        requests = world.submit(9)
        dispatched = []
        while any(world.outcome(r) is None for r in requests):
            for action in world.decide():
                worker = world.workers[action.number]
                dispatched += [worker.leases[number] for number in numbers_of(action.run)]
            next(w for w in world.workers.values() if w.pipe).answer()
        assert dispatched == requests
        assert world.texts(requests) == [f"answer {i}" for i in range(9)]

    def test_slow_prompts_never_wait_at_a_worker(self):
        world, worker, _ = busy_world()
        waiting = world.submit(3)
        assert world.decide() == []
        assert [r.state for r in waiting] == [RequestState.QUEUED] * 3
        worker.finish(duration_s=0.5)
        worker.deliver()
        assert sent(world.decide()) == {0: 1}

    def test_quick_prompts_go_in_batches(self):  # 3
        world, worker, requests = batch_world(count=10)
        assert repr(world.pool) == "<Pool 0 queued, [<Worker 0.1 ready 10>]>"
        for _ in requests:
            worker.claim()
            worker.finish(FAST_S)
        worker.deliver()
        assert world.texts(requests) == [f"answer {r.index}" for r in requests]

    def test_a_batch_is_one_message_with_what_is_acknowledged(self):
        world, worker, requests = batch_world(count=3)
        worker.claim()
        worker.finish(FAST_S)
        worker.deliver()
        world.submit(2)
        (dispatch,) = [a for a in world.decide() if type(a) is Dispatch]
        assert dispatch.run.acked == requests[0].lease
        assert numbers_of(dispatch.run) == [
            requests[-1].lease + 1,
            requests[-1].lease + 2,
        ]

    def test_one_slow_answer_ends_the_batches(self):
        world, worker, _ = batch_world(count=1)
        worker.answer(duration_s=1.0)
        world.submit(5)
        assert sent(world.decide()) == {0: 1}

    def test_quick_answers_restore_them_slowly(self):
        world, worker, _ = batch_world(count=1)
        worker.answer(duration_s=1.0)
        for _ in range(10):
            world.submit()
            world.decide()
            worker.answer(FAST_S)
        world.submit(5)
        assert sent(world.decide()) == {0: 1}

    def test_shares_differ_by_one_at_most(self):
        world = World(size=2)
        world.up(2)
        world.learn(64)
        world.submit(21)
        assert sorted(sent(world.decide()).values()) == [10, 11]

    def test_however_quick_a_batch_is_bounded(self):
        world = World(size=1)
        world.up(1)
        world.learn(MAX_BATCH)
        world.submit(10 * MAX_BATCH)
        assert sent(world.decide()) == {0: MAX_BATCH + 1}
        assert world.decide() == []

    def test_a_message_is_bounded_in_bytes(self):
        world = World(size=1)
        world.up(1)
        world.learn(64)
        world.submit(30, payload=b"x" * (MAX_BATCH_BYTES // 4))
        (count,) = sent(world.decide()).values()
        assert 4 <= count <= 6

    def test_a_payload_over_the_bound_goes_by_itself(self):
        world = World(size=1)
        world.up(1)
        world.learn(64)
        world.submit(3, payload=b"x" * (2 * MAX_BATCH_BYTES))
        assert sent(world.decide())[0] <= 2

    def test_one_that_comes_alone_to_an_idle_worker_can_begin_at_once(self):
        world = World(size=2)
        world.up(1)
        assert not world.pool.is_next_begun
        world.submit()
        assert world.pool.is_next_begun
        world.submit()
        assert not world.pool.is_next_begun, "there is another, and they may go together"
        world.decide()
        world.submit()
        assert not world.pool.is_next_begun, "nobody is idle"

    def test_nobody_is_told_before_all_hope_is_gone(self):  # 5
        world = World(size=2, max_restarts=0)
        (request,) = world.submit()
        world.decide()
        world.submit()
        world.decide()
        world.workers[0].die()
        assert world.decide() == []
        world.workers[1].die()
        assert kinds(world.decide()) == ["Settle", "Settle"]
        assert isinstance(world.outcome(request), RestartLimitReached)

    def test_nothing_to_do_is_nothing_done(self):
        world = World()
        assert world.decide() == []
        assert world.pool.next_deadline() == math.inf
        assert repr(world.pool) == "<Pool 0 queued, []>"


class TestAttempts:
    def test_a_dispatch_is_one_attempt(self):
        _, _, request = busy_world()
        assert request.attempts == 1

    def test_one_that_was_taken_back_is_none(self):
        world, worker, requests = batch_world(count=3)
        worker.claim()
        world.execute(world.pool.revoke_all())
        assert [r.attempts for r in requests] == [1, 0, 0]
        worker.die()
        world.decide()
        (again,) = world.up()
        world.decide()
        assert requests[1].attempts == 1
        assert again.claim() is not None


class TestRevoke:
    def test_what_is_taken_back_keeps_its_place(self):
        world, worker, requests = batch_world(count=4)
        later = world.submit(2)
        worker.claim()
        world.execute(world.pool.revoke_all())
        assert list(world.pool._queue) == [*requests[1:], *later][: len(world.pool._queue)]
        assert [r.state for r in requests[1:]] == [RequestState.QUEUED] * 3
        assert world.pool.queued == 5

    def test_nothing_to_take_back_changes_nothing(self):
        world, _, request = busy_world()
        world.execute([Revoke(0)])
        assert request.state is RequestState.LEASED
        assert repr(world.pool) == "<Pool 0 queued, [<Worker 0.1 ready 1>]>"

    def test_its_old_lease_means_nothing_any_more(self):
        world, worker, requests = batch_world(count=2)
        worker.claim()
        old = requests[1].lease
        world.execute([Revoke(0)])
        worker.answer(FAST_S)
        world.decide()
        assert requests[1].lease > old
        worker.say(Answer(old, 0.1, "of the old lease", 1, b""))
        assert world.outcome(requests[1]) is None


class TestRevokeOfTwoWorkers:
    def test_what_is_taken_back_from_both_is_in_order(self):
        world = World(size=2)
        world.up(2)
        world.learn(16)
        requests = world.submit(8)
        world.decide()
        for worker in world.workers.values():
            worker.claim()
        world.execute(world.pool.revoke_all())
        waiting = [r for r in requests if r.state is RequestState.QUEUED]
        assert len(waiting) == 6
        assert list(world.pool._queue) == waiting

    def test_however_often_they_went_to_and_fro(self):
        """A request taken back may stand behind later ones at its next worker."""
        world = World(size=2)
        world.up(2)
        world.learn(4)
        early = world.submit(4)
        world.decide()
        for worker in world.workers.values():
            worker.claim()
        late = world.submit(4)
        world.decide()
        one = world.workers[0]
        world.execute([Revoke(one.number)])
        one.answer(FAST_S)
        world.decide()
        world.execute(world.pool.revoke_all())
        waiting = [r for r in [*early, *late] if r.state is RequestState.QUEUED]
        assert list(world.pool._queue) == waiting != []

    def test_of_what_stands_at_a_worker_in_another_order(self):
        """One that came later may stand before one that came earlier, taken back elsewhere."""
        world = World(size=2)
        world.up(2)
        world.learn(4)
        (first,) = world.submit()
        world.decide()
        world.workers[first.worker].claim()
        other = world.workers[1 - first.worker]
        world.now += INSPECT_AFTER_S * 0.75
        requests = world.submit(6)
        world.decide()
        world.tick(INSPECT_AFTER_S * 0.5)  # the first one's tail goes to the other, as it has room
        held = list(world.pool.workers[other.number].leases)
        assert held == [requests[n] for n in (0, 4, 5, 1, 2)]
        assert list(world.pool._queue) == [requests[3]]
        world.execute([Revoke(other.number)])
        assert list(world.pool._queue) == requests


class TestSilence:
    """A worker with more than one lease says nothing: case 4."""

    def test_what_waits_behind_goes_to_another(self):
        world, slow, requests = batch_world(count=3, size=2)
        slow.claim()
        assert world.tick(INSPECT_AFTER_S * 0.9) == []
        actions = world.tick(INSPECT_AFTER_S * 0.2)
        assert kinds(actions)[:2] == ["Inspect", "Revoke"]
        assert Spawn(1, 1) in world.log
        world.up()
        world.decide()
        other = world.workers[1]
        for _ in requests[1:]:
            other.answer(FAST_S)
            world.decide()
        assert world.texts(requests) == [None, *[f"answer {r.index}" for r in requests[1:]]]

    def test_finished_ones_whose_messages_are_held_back_are_read_from_the_ledger(self):
        world, worker, requests = batch_world(count=3)
        for _ in range(2):
            worker.claim()
            worker.finish(FAST_S)
        worker.claim()
        world.tick(INSPECT_AFTER_S)
        assert world.texts(requests) == [*[f"answer {r.index}" for r in requests[:2]], None]
        assert worker.deliver() == []

    def test_the_silent_worker_gets_no_more_until_that_request_has_ended(self):
        world, worker, requests = batch_world(count=3)
        worker.claim()
        world.tick(INSPECT_AFTER_S)
        assert repr(world.pool) == "<Pool 2 queued, [<Worker 0.1 ready 1>]>"
        assert world.tick(1.0) == []
        worker.finish(FAST_S)
        worker.deliver()
        assert sent(world.decide()) != {}
        assert requests[1].state is RequestState.LEASED

    def test_the_clock_is_set_for_it(self):
        world, worker, _ = batch_world(count=2)
        worker.claim()
        assert world.pool.next_deadline() == world.now + INSPECT_AFTER_S

    def test_a_single_slow_request_is_left_alone(self):
        world, _, _ = busy_world()
        assert world.pool.next_deadline() == math.inf
        assert world.tick(3600.0) == []

    def test_a_worker_that_makes_progress_is_left_alone(self):
        world, worker, _ = batch_world(count=4)
        for _ in range(3):
            worker.answer(FAST_S)
            assert world.tick(INSPECT_AFTER_S * 0.9) == []

    def test_nothing_is_sent_to_wait_behind_it(self):
        """It would be taken back at once, and sent to the next silent worker, and so on."""
        world = World(size=3)
        world.up(3)
        world.learn(16)
        world.submit(3)
        world.decide()
        for worker in world.workers.values():
            worker.claim()
        world.now += INSPECT_AFTER_S
        (waiting,) = world.submit()
        assert world.decide() == []
        world.workers[1].answer(FAST_S)
        assert sent(world.decide()) == {1: 1}
        assert waiting.worker == 1

    def test_old_news_from_the_ledger_teaches_nothing(self):
        """An Inspect gives everything since the last acknowledgement, mostly known already."""
        world, worker, _ = batch_world(count=1)
        worker.answer(duration_s=1.0)
        before = world.pool._service_s
        for _ in range(50):
            worker.say(*worker.ledger)
        assert world.pool._service_s == before


STEADY_S = 0.05


def steady_world(*durations, size=2):
    """Idle workers, and prompts that took so long; as many as are needed for a forecast."""
    world = World(size=size)
    world.up(size)
    for _, duration_s in zip(range(LEAST_LEARNED), itertools.cycle(durations), strict=False):
        world.submit()
        world.decide()
        world.now += duration_s
        next(w for w in world.workers.values() if w.pipe).answer(duration_s)
    world.decide()
    return world


def both_busy(world, apart_s=0.02):
    """Give both workers a prompt, one after the other, and wait as long; the earlier first."""
    busy = []
    for _ in range(2):
        (request,) = world.submit()
        world.decide()
        busy.append(world.workers[request.worker])
        busy[-1].claim()
        world.tick(apart_s)
    return busy


class TestForecast:
    """Prompts that all take about the same: one may wait where its turn comes first."""

    def test_one_waits_at_each_worker_and_no_more(self):
        world = steady_world(STEADY_S)
        both_busy(world)
        world.submit(4)
        assert sent(world.decide()) == {0: 1, 1: 1}
        assert world.pool.queued == 2

    def test_the_worker_that_ends_first_is_the_first_to_have_one(self):
        world = steady_world(STEADY_S)
        early, _ = both_busy(world)
        world.pool._file(world.pool.workers[early.number])  # as when it was looked at meanwhile
        world.submit()
        assert sent(world.decide()) == {early.number: 1}

    def test_it_begins_as_soon_as_the_turn_before_it_ends(self):
        world = steady_world(STEADY_S)
        early, _ = both_busy(world)
        (waiting,) = world.submit()
        world.decide()
        early.finish(STEADY_S)
        assert early.claim() == waiting.lease  # before anybody has heard of the answer

    @pytest.mark.parametrize(
        "durations",
        [(STEADY_S, STEADY_S * STEADY * 1.2), (FORESEEN_S * 1.01,), (STEADY_S, 0.001), (1.0,)],
    )
    def test_nothing_waits_where_the_end_cannot_be_foretold(self, durations):
        world = steady_world(*durations)
        both_busy(world)
        world.submit(4)
        assert sent(world.decide()) == {}

    def test_nor_after_too_few_measurements(self):
        world = World(size=1)
        world.up(1)
        for _ in range(LEAST_LEARNED - 1):
            world.submit()
            world.decide()
            world.now += STEADY_S
            world.workers[0].answer(STEADY_S)
        world.submit(2)
        assert sent(world.decide()) == {0: 1}

    def test_nor_where_the_client_takes_its_time_between_prompts(self):
        """Its turns are all the same, but it connects anew for each, and that takes long."""
        world = World(size=1)
        world.up(1)
        for _ in range(2 * LEAST_LEARNED):
            world.submit()
            world.decide()
            world.now += FORESEEN_S + STEADY_S
            world.workers[0].answer(STEADY_S)
        world.submit(2)
        assert sent(world.decide()) == {0: 1}

    def test_behind_one_that_takes_longer_than_foretold_it_waits_no_longer(self):
        world = steady_world(STEADY_S)
        early, late = both_busy(world)
        (waiting,) = world.submit()
        world.decide()
        assert waiting.worker == early.number
        assert world.tick(0.01) == []
        assert kinds(world.tick(INSPECT_AFTER_S)) == ["Inspect", "Revoke", "Dispatch"]
        assert waiting.worker == late.number

    def test_a_forecast_that_comes_to_nothing_is_taken_back(self):
        world = steady_world(STEADY_S)
        _, late = both_busy(world)
        first, second = world.submit(2)
        world.decide()
        late.answer(0.001)
        late.answer(0.001)
        world.decide()
        assert first.worker == late.number
        assert second in world.outcomes

    def test_an_idle_worker_takes_over_what_would_wait_for_long(self):
        world = steady_world(STEADY_S)
        early, late = both_busy(world)
        first, second = world.submit(2)
        world.decide()
        world.cancel(first)
        world.now += 0.01
        early.answer(STEADY_S)
        actions = world.decide()
        assert actions[0] == Revoke(late.number)
        assert (second.worker, second.attempts) == (early.number, 1)

    def test_and_not_what_is_about_to_begin(self):
        world = steady_world(STEADY_S)
        early, _ = both_busy(world, apart_s=0.002)
        first, _ = world.submit(2)
        world.decide()
        world.cancel(first)
        world.now += STEADY_S - 0.004
        early.answer(STEADY_S)
        assert world.decide() == []

    def test_what_has_begun_is_asked_for_once(self):
        world = steady_world(STEADY_S)
        early, late = both_busy(world)
        first, _ = world.submit(2)
        world.decide()
        world.cancel(first)
        late.finish(STEADY_S)
        late.claim()  # its second: nobody has heard of it yet
        world.now += 0.01
        early.answer(STEADY_S)
        assert world.decide() == [Revoke(late.number)]
        assert world.decide() == []

    def test_cancelled_there_it_never_ran(self):
        world = steady_world(STEADY_S)
        both_busy(world)
        (waiting,) = world.submit()
        world.decide()
        world.cancel(waiting)
        assert world.outcome(waiting).started is False
        assert waiting not in world.begun

    def test_with_its_worker_dead_it_runs_elsewhere(self):
        world = steady_world(STEADY_S)
        early, late = both_busy(world)
        (waiting,) = world.submit()
        world.decide()
        early.die()
        late.answer(STEADY_S)
        world.decide()
        late.answer(STEADY_S)
        assert world.outcome(waiting).text == f"answer {waiting.index}"


class TestCancel:
    def test_in_the_queue_it_ends_at_once_and_certainly_never_ran(self):
        world = World()
        (request,) = world.submit()
        world.cancel(request)
        assert isinstance(world.outcome(request), RequestCancelled)
        assert world.outcome(request).started is False
        assert world.decide() == []
        assert (world.pool.outstanding, world.pool.queued) == (0, 0)

    def test_of_the_very_first_request_ends_it(self):
        world = World()
        (first,) = world.submit()
        assert first.order == 1  # 0 says that one was never taken in
        world.cancel(first)
        assert isinstance(world.outcome(first), RequestCancelled)

    def test_of_what_was_never_taken_in_is_nothing(self):
        world = World()
        never = Request("a", b"ta", None)
        assert world.pool.cancel(never, world.now) == []
        assert (world.pool.outstanding, world.pool.queued) == (0, 0)
        assert never.outcome is None

    def test_while_it_waits_at_a_worker_it_is_taken_back_and_never_ran(self):
        world, worker, requests = batch_world(count=3)
        worker.claim()
        world.cancel(requests[1])
        assert world.outcome(requests[1]).started is False
        world.decide()
        worker.answer(FAST_S)
        world.decide()
        worker.answer(FAST_S)
        assert world.begun[-2:] == [requests[0], requests[2]]

    def test_running_it_is_interrupted_and_ends_when_it_is_drained(self):
        world, worker, request = busy_world()
        world.cancel(request)
        assert world.log[-1] == Interrupt(0, request.lease)
        assert world.outcome(request) is None
        assert request.state is RequestState.DRAINING
        worker.finish()
        worker.deliver()
        assert isinstance(world.outcome(request), RequestCancelled)
        assert world.outcome(request).started is None

    def test_while_it_drains_its_worker_gets_nothing_and_then_goes_on(self):
        world, worker, request = busy_world()
        world.cancel(request)
        (waiting,) = world.submit()
        assert world.decide() == []
        worker.finish(error=ClientError("interrupted"))
        worker.deliver()
        assert sent(world.decide()) == {0: 1}
        worker.answer()
        assert world.texts([waiting]) == ["answer 1"]

    def test_what_waits_behind_it_goes_elsewhere_at_once(self):
        world, worker, (first,) = batch_world(count=1)
        worker.claim()
        world.execute([Revoke(0)])  # now the pool knows that it runs
        (behind,) = world.submit()
        world.decide()
        assert behind.state is RequestState.LEASED
        world.cancel(first)
        assert behind.state is RequestState.QUEUED
        assert world.log[-1] == Interrupt(0, first.lease)

    def test_again_while_it_drains_changes_nothing(self):
        world, _, request = busy_world()
        world.cancel(request)
        count = len(world.log)
        world.cancel(request)
        assert len(world.log) == count

    def test_after_the_outcome_it_changes_nothing(self):
        world, worker, request = busy_world()
        worker.finish()
        worker.deliver()
        count = len(world.log)
        world.cancel(request)
        assert len(world.log) == count
        assert world.texts([request]) == ["answer 0"]

    def test_one_whose_claim_was_not_known_is_found_running(self):
        world, worker, requests = batch_world(count=2)
        worker.claim()
        world.cancel(requests[0])
        assert Interrupt(0, requests[0].lease) in world.log
        assert requests[1].state is RequestState.QUEUED

    @pytest.mark.parametrize("state", ["queued", "running"])
    def test_the_reason_is_what_its_caller_hears(self, state):
        world, worker, request = busy_world()
        if state == "queued":
            (request,) = world.submit()
        world.cancel(request, SlowReader("too far behind"))
        if state == "running":
            worker.finish()
            worker.deliver()
        assert isinstance(world.outcome(request), SlowReader)

    def test_a_sync_callable_may_end_by_itself_for_a_moment(self):
        world, worker, request = busy_world(is_interruptible=False)
        world.cancel(request)
        assert not any(type(a) in {Interrupt, Kill} for a in world.log)
        worker.finish()
        worker.deliver()
        assert isinstance(world.outcome(request), RequestCancelled)
        assert world.tick(2 * SYNC_GRACE_S) == []

    def test_a_sync_callable_that_does_not_is_ended_with_its_worker(self):
        world, worker, request = busy_world(is_interruptible=False)
        world.cancel(request)
        assert world.pool.next_deadline() == world.now + SYNC_GRACE_S
        assert kinds(world.tick(SYNC_GRACE_S)) == ["Kill"]
        worker.die()
        assert isinstance(world.outcome(request), RequestCancelled)

    def test_pending_ones_are_all_that_has_not_begun(self):
        world, worker, requests = batch_world(count=3)
        worker.claim()
        waiting = world.submit(2)
        world.execute(world.pool.revoke_all())
        world.execute(world.pool.cancel_pending())
        cancelled = [*requests[1:], *waiting]
        assert {world.outcome(r).started for r in cancelled} == {False}
        worker.finish()
        worker.deliver()
        assert world.texts(requests[:1]) == [f"answer {requests[0].index}"]


class TestCancelOfTwo:
    """The first has finished and its message is on its way; the second runs."""

    @staticmethod
    def scene(**kwargs):
        world, worker, requests = batch_world(count=2, **kwargs)
        worker.claim()
        worker.finish(FAST_S)
        worker.claim()
        return world, worker, requests

    def test_the_one_that_runs_is_interrupted_although_both_are_cancelled(self):
        world, _, (first, second) = self.scene()
        world.cancel(first)
        world.cancel(second)
        assert Interrupt(0, second.lease) in world.log

    def test_the_one_that_runs_is_not_disturbed_by_the_other(self):
        world, worker, (first, second) = self.scene()
        world.cancel(first)
        worker.deliver()
        world.tick(GRACE_S + 1)
        assert not any(type(a) is Kill for a in world.log)
        worker.finish(FAST_S)
        worker.deliver()
        assert world.texts([second]) == [f"answer {second.index}"]

    def test_a_message_of_the_other_does_not_end_the_grace(self):
        world, worker, (_, second) = self.scene()
        world.cancel(second)
        worker.deliver()
        assert world.pool.next_deadline() <= world.now + GRACE_S
        assert Kill(0) in world.tick(GRACE_S)

    def test_no_more_is_given_while_the_second_drains(self):
        world, worker, (_, second) = self.scene()
        world.cancel(second)
        worker.deliver()
        world.submit()
        assert sent(world.decide()) == {}

    def test_both_time_out(self):
        world = World()
        (worker,) = world.up(1)
        world.learn(16)
        first, second = world.submit(2, timeout_s=1.0)
        world.decide()
        worker.claim()
        worker.finish(FAST_S)
        worker.claim()
        world.tick(1.0)
        assert Interrupt(0, second.lease) in world.log
        assert isinstance(world.outcome(second), RequestTimeout)
        assert world.outcome(first) is not None

    def test_both_are_aborted(self):
        world, _, (_, second) = self.scene()
        world.pool.close_intake("over")
        world.execute(world.pool.revoke_all())
        world.run_to_end(lambda: world.pool.abort(world.now))
        assert Interrupt(0, second.lease) in world.log


class TestTimeout:
    def test_in_the_queue_it_certainly_never_ran(self):
        world, _, _ = busy_world()
        (request,) = world.submit(timeout_s=1.0)
        assert world.pool.next_deadline() == world.now + 1.0
        world.tick(1.0)
        assert isinstance(world.outcome(request), RequestTimeout)
        assert world.outcome(request).started is False

    def test_while_it_waits_at_a_worker_it_certainly_never_ran(self):
        world = World()
        (worker,) = world.up(1)
        world.learn(16)
        first, second = world.submit(2, timeout_s=INSPECT_AFTER_S / 2)
        world.decide()
        worker.claim()
        world.tick(INSPECT_AFTER_S / 2)
        assert world.outcome(second).started is False
        assert world.outcome(first).started is None

    def test_running_its_caller_is_free_at_once_and_the_turn_is_interrupted(self):
        world, worker, request = busy_world(timeout_s=1.0)
        world.tick(1.0)
        assert isinstance(world.outcome(request), RequestTimeout)
        assert world.outcome(request).started is None
        assert world.log[-1] == Interrupt(0, request.lease)
        world.submit()
        assert world.decide() == []
        worker.finish()
        worker.deliver()
        assert sent(world.decide()) == {0: 1}

    def test_the_late_answer_reaches_nobody(self):
        world, worker, request = busy_world(timeout_s=1.0)
        world.tick(1.0)
        (after,) = world.submit()
        worker.finish()
        worker.deliver()
        world.decide()
        assert isinstance(world.outcome(request), RequestTimeout)
        worker.answer()
        assert world.texts([after]) == ["answer 1"]

    def test_one_that_drains_already_is_left_alone(self):
        world, _, request = busy_world(timeout_s=1.0)
        world.cancel(request)
        count = len(world.log)
        world.tick(1.0)
        assert len(world.log) == count

    def test_one_that_was_answered_in_time_is_left_alone(self):
        world, worker, request = busy_world(timeout_s=1.0)
        worker.finish()
        worker.deliver()
        assert world.tick(2.0) == []
        assert world.texts([request]) == ["answer 0"]

    def test_many_end_in_the_order_of_their_deadlines(self):
        world, _, _ = busy_world()
        late = world.submit(timeout_s=3.0)
        early = world.submit(2, timeout_s=1.0)
        world.tick(1.0)
        assert [r in world.outcomes for r in [*early, *late]] == [True, True, False]

    def test_a_request_taken_back_from_a_silent_worker_can_still_time_out(self):
        world = World()
        (worker,) = world.up(1)
        world.learn(16)
        _, second = world.submit(2, timeout_s=1.0)
        world.decide()
        worker.claim()
        world.tick(INSPECT_AFTER_S)
        assert second.state is RequestState.QUEUED
        world.tick(1.0)
        assert world.outcome(second).started is False


class TestGrace:
    def test_a_turn_that_does_not_end_costs_its_worker(self):
        world, worker, request = busy_world()
        world.cancel(request)
        assert world.pool.next_deadline() == world.now + GRACE_S
        assert world.tick(GRACE_S / 2) == []
        assert world.tick(GRACE_S / 2) == [Kill(0)]
        assert world.tick(GRACE_S) == []
        worker.die()
        assert isinstance(world.outcome(request), RequestCancelled)

    def test_a_turn_that_ends_in_time_costs_nothing(self):
        world, worker, request = busy_world()
        world.cancel(request)
        world.tick(GRACE_S - 0.1)
        worker.finish()
        worker.deliver()
        assert world.tick(1.0) == []
        assert repr(world.pool) == "<Pool 0 queued, [<Worker 0.1 ready 0>]>"

    def test_a_worker_killed_on_purpose_is_no_failure_and_is_replaced_at_once(self):
        world = World(max_restarts=0)
        for round_ in range(5):
            if not round_:
                world.up(1)
            (request,) = world.submit()
            world.decide()
            world.workers[0].claim()
            world.cancel(request)
            assert Kill(0) in world.tick(GRACE_S)
            assert Spawn(0, round_ + 2) in world.workers[0].die()
            world.up()
        assert world.pool.restarts == 5

    def test_what_it_answered_on_the_way_out_is_dropped_with_the_cancelled(self):
        world, worker, request = busy_world()
        world.cancel(request)
        world.tick(GRACE_S)
        worker.finish()
        worker.die()
        assert isinstance(world.outcome(request), RequestCancelled)

    def test_nobody_else_is_hit_by_the_kill(self):
        """Until the signal lands the worker could finish the turn and claim the next."""
        world, worker, requests = batch_world(count=2, grace_s=0.0)
        worker.claim()
        waiting_at_the_kill = []
        world.do_kill = lambda action: waiting_at_the_kill.append(list(worker.pipe))
        world.execute([Revoke(0)])  # now the pool knows that it runs
        world.decide()
        world.cancel(requests[0])
        world.decide()
        assert waiting_at_the_kill == [[]]


class TestDeath:
    def test_idle_it_costs_nothing_and_is_replaced_at_once_if_it_was_of_use(self):
        world, worker, _ = busy_world()
        worker.finish()
        worker.deliver()
        assert worker.die() == [Spawn(0, 2)]
        assert world.pool.restarts == 1

    def test_running_one_request_it_costs_that_one(self):
        world, worker, request = busy_world()
        worker.die(-9)
        lost = world.outcome(request)
        assert isinstance(lost, WorkerLost)
        assert (lost.started, lost.exitcode, lost.retryable) == (None, -9, True)
        assert "signal 9" in str(lost)

    @pytest.mark.parametrize(
        ("exitcode", "text"), [(None, "died"), (3, "exited with code 3"), (-11, "by signal 11")]
    )
    def test_the_error_says_how_it_ended(self, exitcode, text):
        world, worker, request = busy_world()
        worker.die(exitcode)
        assert text in str(world.outcome(request))

    def test_in_a_batch_it_costs_one_and_the_others_keep_their_place(self):
        world, worker, requests = batch_world(count=4)
        later = world.submit(1)
        world.decide()
        worker.claim()
        worker.die()
        assert [isinstance(world.outcome(r), WorkerLost) for r in requests] == [
            True, False, False, False,
        ]  # fmt: skip
        assert list(world.pool._queue) == [*requests[1:], *later]
        world.up()
        world.decide()
        for _ in range(4):
            world.workers[0].answer(FAST_S)
            world.decide()
        assert world.begun[-4:] == [*requests[1:], *later]

    def test_between_two_it_costs_nothing(self):
        world, worker, requests = batch_world(count=2)
        worker.claim()
        worker.finish(FAST_S)
        worker.die()
        assert world.texts(requests) == [f"answer {requests[0].index}", None]
        assert requests[1].state is RequestState.QUEUED

    def test_finished_ones_are_delivered_first(self):
        world, worker, requests = batch_world(count=4)
        for _ in range(2):
            worker.claim()
            worker.finish(FAST_S)
        worker.claim()
        worker.die()
        texts = [f"answer {r.index}" for r in requests[:2]]
        assert world.texts(requests[:2]) == texts
        assert isinstance(world.outcome(requests[2]), WorkerLost)
        assert world.outcome(requests[3]) is None

    def test_before_it_claimed_anything_it_costs_nothing(self):
        world = World()
        (worker,) = world.up(1)
        (request,) = world.submit()
        world.decide()
        worker.die()
        assert world.outcome(request) is None
        assert request.state is RequestState.QUEUED
        assert request.attempts == 0

    def test_draining_its_caller_hears_of_the_cancellation_alone(self):
        world, worker, request = busy_world()
        world.cancel(request)
        worker.die()
        assert isinstance(world.outcome(request), RequestCancelled)

    def test_after_a_timeout_nobody_hears_of_it_again(self):
        world, worker, request = busy_world(timeout_s=1.0)
        world.tick(1.0)
        worker.die()
        assert isinstance(world.outcome(request), RequestTimeout)

    @pytest.mark.parametrize("step", ["starting", "connecting", "ready"])
    def test_before_its_first_answer_it_is_a_failure_and_the_backoff_begins(self, step):
        world = World()
        world.submit()
        world.decide()
        worker = world.workers[0]
        if step != "starting":
            worker.load()
        if step == "ready":
            worker.ready()
        assert worker.die() == []
        assert world.decide() == []
        assert world.pool.next_deadline() > world.now
        world.now = world.pool.next_deadline()
        assert world.decide() == [Spawn(0, 2)]

    def test_a_number_comes_back_as_another_incarnation(self):
        world, worker, _ = busy_world()
        worker.finish()
        worker.deliver()
        for incarnation in (2, 3, 4):
            world.workers[0].die()
            (worker,) = world.up()
            assert worker.incarnation == incarnation
            world.submit()
            world.decide()
            worker.answer()


class TestWedged:
    def wedge(self, world, number, reason="stopped (process state T)"):
        return world.execute(world.pool.wedged(number, reason))

    def test_it_is_killed_and_gets_nothing_more(self):
        world, _, _ = busy_world()
        assert self.wedge(world, 0) == [Kill(0)]
        world.submit()
        assert sent(world.decide()) == {}

    def test_its_running_request_is_lost_and_the_error_says_why(self):
        world, worker, request = busy_world()
        self.wedge(world, 0)
        worker.die()
        lost = world.outcome(request)
        assert isinstance(lost, WorkerLost)
        assert (lost.started, lost.exitcode, lost.retryable) == (None, -9, True)
        assert "was wedged, stopped (process state T), and was killed by signal 9" in str(lost)

    def test_what_it_had_not_begun_runs_elsewhere(self):
        world, worker, requests = batch_world(count=4)
        worker.claim()
        assert kinds(self.wedge(world, 0)) == ["Revoke", "Kill"]
        assert list(world.pool._queue) == requests[1:]
        worker.die()
        assert [r for r in requests if world.outcome(r) is not None] == requests[:1]

    def test_one_that_had_not_begun_its_only_request_costs_none(self):
        world = World()
        (worker,) = world.up(1)
        (request,) = world.submit()
        world.decide()
        self.wedge(world, 0)
        worker.die()
        assert world.outcome(request) is None
        assert request.attempts == 0
        world.tick(1.0)
        (again,) = world.up()
        world.decide()
        again.answer()
        assert world.texts([request]) == ["answer 0"]

    def test_a_worker_that_was_of_use_is_replaced_at_once(self):
        world, worker, _ = busy_world()
        worker.answer()
        self.wedge(world, 0)
        assert worker.die() == [Spawn(0, 2)]

    def test_one_that_never_was_counts_towards_the_limit(self):
        world = World(max_restarts=2)
        (request,) = world.submit()
        for _ in range(3):
            world.tick(5.0)
            (worker,) = world.workers.values()
            worker.load()
            self.wedge(world, 0)
            worker.die()
        world.decide()
        assert isinstance(world.outcome(request), RestartLimitReached)
        assert "was wedged" in str(world.outcome(request))

    def test_amid_an_interrupt_it_is_not_killed_twice(self):
        world, worker, request = busy_world()
        world.cancel(request)
        self.wedge(world, 0)
        assert world.tick(GRACE_S + 1) == []
        worker.die()
        assert isinstance(world.outcome(request), RequestCancelled)

    @pytest.mark.parametrize("how_far", ["starting", "connecting", "stopping"])
    def test_it_may_be_so_in_any_state(self, how_far):
        world = World()
        world.execute([world.pool.start_worker()])
        (worker,) = world.workers.values()
        if how_far != "starting":
            worker.load()
        if how_far == "stopping":
            world.execute(world.pool.stop_workers())
        assert self.wedge(world, 0) == [Kill(0)]
        worker.die()

    def test_how_long_its_request_has_been_running(self):
        world, worker, _ = busy_world()
        view = world.pool.workers[0]
        assert view.busy_s(world.now + 3) == 3
        world.submit()
        world.now += 10
        world.decide()
        worker.answer()
        assert view.busy_s(world.now + 3) == 0
        world.decide()
        assert view.busy_s(world.now + 3) == 3

    def test_how_long_it_has_been_silent(self):
        world, _, _ = busy_world()
        view = world.pool.workers[0]
        assert view.silent_s(world.now) == 0
        view.heard_at = world.now
        assert view.silent_s(world.now + 7) == 7


class TestLateReplies:
    def test_one_of_no_lease_is_dropped(self):
        world, worker, request = busy_world()
        assert worker.say(Answer(99, 0.1, "whose?", 1, b"")) == []
        assert world.outcome(request) is None

    def test_the_same_again_is_dropped(self):
        world, worker, request = busy_world()
        worker.finish()
        worker.deliver()
        assert worker.say(*worker.ledger, *worker.ledger) == []
        assert world.pool.outstanding == 0
        assert request.state is RequestState.SETTLED

    def test_one_out_of_order_is_dropped(self):
        world, worker, requests = batch_world(count=2)
        assert worker.say(Answer(requests[1].lease, 0.1, "too early", 1, b"")) == []
        assert world.texts(requests) == [None, None]

    def test_one_of_a_timed_out_request_does_not_reach_the_next(self):
        world, worker, request = busy_world(timeout_s=1.0)
        world.tick(1.0)
        (after,) = world.submit()
        worker.finish()
        worker.deliver()
        world.decide()
        assert worker.say(Answer(request.lease, 0.1, "late", 1, b"")) == []
        assert world.outcome(after) is None

    def test_an_error_is_an_outcome_as_good(self):
        world, worker, request = busy_world()
        worker.finish(error=ClientError("no", api_status=500))
        worker.deliver()
        assert isinstance(world.outcome(request), ClientError)
        assert world.outcome(request).api_status == 500
        assert worker.die() == [Spawn(0, 2)]

    def test_an_error_in_a_batch_fails_its_own_request_alone(self):
        world, worker, requests = batch_world(count=3)
        worker.answer(FAST_S)
        worker.answer(FAST_S, error=ClientError("no"))
        worker.answer(FAST_S)
        first, second, third = (world.outcome(r) for r in requests)
        assert isinstance(second, ClientError)
        assert (first.text, third.text) == (
            f"answer {requests[0].index}",
            f"answer {requests[2].index}",
        )


class TestBroken:
    def test_without_another_client_that_works_everybody_is_told_at_once(self):
        world = World(size=2)
        requests = world.submit(3)
        world.decide()
        world.workers[0].load()
        world.execute(world.pool.broken(0, ClientConnectError("bad key")))
        for request in requests:
            error = world.outcome(request)
            assert isinstance(error, ClientConnectError)
            assert str(error) == "bad key"
            assert error.started is False
        assert len({id(world.outcome(r)) for r in requests}) == 3

    def test_with_another_client_that_works_they_wait_for_that(self):
        world = World(size=2)
        (good,) = world.up(1)
        world.submit(2)
        world.decide()
        bad = world.workers[1].load()
        assert world.pool.broken(1, ClientConnectError("bad key")) == []
        bad.die(1)
        good.answer()
        world.decide()
        good.answer()
        assert world.texts(world.requests) == ["answer 0", "answer 1"]

    def test_a_client_that_worked_once_is_only_replaced(self):
        world, worker, _ = busy_world()
        worker.finish()
        worker.deliver()
        (request,) = world.submit()
        world.execute(world.pool.broken(0, ClientConnectError("gone")))
        assert world.outcome(request) is None
        assert world.decide() == []
        assert worker.die(1) == [Spawn(0, 2)]
        world.up()
        world.decide()
        world.workers[0].answer()
        assert world.texts([request]) == ["answer 1"]

    def test_it_is_given_nothing_any_more(self):
        world = World(size=1)
        (worker,) = world.up(1)
        world.execute(world.pool.broken(0, ClientConnectError("gone")))
        world.submit()
        assert sent(world.decide()) == {}
        worker.die(1)
        assert world.decide() == []

    def test_heard_twice_it_is_heard_once(self):
        world = World()
        world.submit()
        world.decide()
        world.execute(world.pool.broken(0, ClientConnectError("bad key")))
        (later,) = world.submit()
        assert world.pool.broken(0, ClientConnectError("bad key")) == []
        assert world.outcome(later) is None

    def test_loaded_twice_is_loaded_once(self):
        world = World()
        (worker,) = world.up(1)
        worker.load()
        assert repr(world.pool) == "<Pool 0 queued, [<Worker 0.1 ready 0>]>"

    def test_it_counts_as_a_failure(self):
        world = World(max_restarts=0)
        world.submit()
        world.decide()
        world.execute(world.pool.broken(0, ClientConnectError("bad key")))
        world.workers[0].die(1)
        (request,) = world.submit()
        world.decide()
        error = world.outcome(request)
        assert isinstance(error, RestartLimitReached)
        assert "bad key" in str(error)
        assert isinstance(error.__cause__, ClientConnectError)


class TestRestartLimit:
    @staticmethod
    def fail_until_told(world):
        deaths = 0
        for _ in range(50):
            world.decide()
            if not world.pool.queued:
                return deaths
            if world.workers:
                next(iter(world.workers.values())).die(1)
                deaths += 1
            else:
                world.now = max(world.now, world.pool.next_deadline())
        raise AssertionError("nobody was told")

    def test_what_a_dead_worker_wrote_last_stands_in_the_errors(self):
        world, worker, request = busy_world(max_restarts=0)
        (waiting,) = world.submit()
        world.decide()
        del world.workers[0]
        words = "Traceback\n  ...\nValueError: boom\n \n"
        world.execute(world.pool.exited(0, 1, worker.take_back(), world.now, words))
        assert world.outcome(request).stderr == words
        assert str(world.outcome(request)).endswith(". Its last words: ValueError: boom")
        world.decide()
        assert "ValueError: boom" in str(world.outcome(waiting))
        assert world.outcome(waiting).causes[0].stderr == words

    def test_at_the_limit_everybody_who_waits_is_told(self):
        world = World(max_restarts=3, period_s=30.0)
        requests = world.submit(5)
        assert self.fail_until_told(world) == 4
        errors = [world.outcome(r) for r in requests]
        assert {type(e) for e in errors} == {RestartLimitReached}
        assert {e.started for e in errors} == {False}
        assert "more than 3 failed starts within 30 s" in str(errors[0])
        assert "exited with code 1 before its first answer" in str(errors[0])

    def test_each_is_told_the_last_few_causes_newest_last(self):
        world = World(max_restarts=7)
        requests = world.submit(2)
        for code in range(1, 9):
            world.decide()
            if not world.workers:
                world.tick(world.pool.next_deadline() - world.now)
            world.workers[0].die(code)
        world.decide()
        for request in requests:
            causes = world.outcome(request).causes
            assert [cause.exitcode for cause in causes] == [4, 5, 6, 7, 8]

    def test_those_who_wait_for_another_attempt_are_told_at_once_too(self):
        retry = Retry(attempts=9, first_delay_s=20.0, max_delay_s=20.0, may_have_run=True)
        world, worker, request = busy_world(max_restarts=0, retry=retry)
        worker.die(1)
        assert request.state is RequestState.DELAYED
        world.decide()
        error = world.outcome(request)
        assert isinstance(error, RestartLimitReached)
        assert error.started is None  # its first attempt may have run

    def test_a_prompt_that_kills_every_worker_counts_once(self):
        retry = Retry(attempts=9, first_delay_s=0.0, may_have_run=True)
        world, _, request = busy_world(max_restarts=1, retry=retry)
        for attempt in range(1, 9):
            world.workers[0].die(7)
            assert not world.pool._restart.is_exhausted(world.now), attempt
            world.tick(1.0)
            world.up()
            world.decide()
            world.workers[0].claim()
        world.workers[0].die(7)
        assert type(world.outcome(request)) is WorkerLost
        (other,) = world.submit()
        world.decide()
        world.up()
        world.decide()
        world.workers[0].answer()
        assert world.texts([other]) == [world.text(other)]

    def test_its_first_victim_counts_and_so_do_other_prompts(self):
        retry = Retry(attempts=9, first_delay_s=0.0, may_have_run=True)
        world, worker, _ = busy_world(max_restarts=0, retry=retry)
        worker.die(7)
        assert world.pool._restart.is_exhausted(world.now)

    def test_a_worker_that_dies_before_it_claims_says_nothing_of_the_prompt(self):
        retry = Retry(attempts=9, first_delay_s=0.0, may_have_run=True)
        world, worker, _ = busy_world(max_restarts=1, retry=retry)
        worker.die(7)
        world.tick(1.0)
        world.up()
        world.decide()
        world.workers[0].die(7)  # it had the lease, and had not begun it
        assert world.pool._restart.is_exhausted(world.now)

    def test_who_comes_later_is_told_promptly_too(self):
        world = World(max_restarts=3)
        world.submit()
        self.fail_until_told(world)
        (late,) = world.submit()
        world.decide()
        assert isinstance(world.outcome(late), RestartLimitReached)

    def test_when_the_period_has_passed_it_tries_again(self):
        world = World(max_restarts=3, period_s=30.0)
        world.submit()
        self.fail_until_told(world)
        world.now += 31.0
        world.submit()
        assert kinds(world.decide()) == ["Spawn"]

    def test_a_worker_that_was_of_use_is_always_replaced(self):
        world = World(max_restarts=0)
        world.up(1)
        for _ in range(20):
            world.submit()
            world.decide()
            worker = world.workers[0]
            worker.answer()
            assert len(worker.die()) == 1
            world.up()
        assert world.pool.restarts == 20

    def test_success_ends_the_backoff(self):
        world = World(size=2, max_restarts=10)
        world.submit(2)
        world.decide()
        world.workers[1].die(1)
        assert world.decide() == []
        world.up()
        world.decide()
        world.workers[0].answer()
        world.submit(2)
        assert Spawn(1, 2) in world.decide()


class TestNextDeadline:
    """When the reactor may sleep; a time in the past would have it spin."""

    def test_while_enough_workers_start_it_may_sleep(self):
        world = World(size=8)
        world.submit(2)
        world.decide()
        assert world.pool.next_deadline() == math.inf

    def test_at_the_limit_it_may_sleep_while_another_worker_works(self):
        world = World(size=2, max_restarts=0, period_s=30.0)
        world.up(1)
        world.submit(2)
        world.decide()
        world.workers[0].claim()
        world.workers[1].die(1)
        world.now += 10.0
        world.decide()
        assert world.pool.next_deadline() > world.now

    def test_a_start_that_nobody_waits_for_any_more_wakes_nobody(self):
        world = World()
        (request,) = world.submit()
        world.decide()
        world.workers[0].die(1)
        world.decide()
        world.cancel(request)
        world.tick(1.0)
        assert world.pool.next_deadline() == math.inf

    def test_after_each_decision_it_lies_ahead(self):
        world = World(size=2)
        world.submit(3, timeout_s=1.0)
        for _ in range(30):
            world.decide()
            deadline = world.pool.next_deadline()
            assert deadline > world.now
            if deadline == math.inf:
                break
            world.now = deadline
        assert len(world.outcomes) == 3


class TestClosing:
    def test_new_requests_are_refused(self):
        world = World()
        world.pool.close_intake("over")
        (request,) = world.submit()
        error = world.outcome(request)
        assert isinstance(error, SupervisorClosed)
        assert (str(error), error.started) == ("over", False)
        assert (world.pool.outstanding, world.pool.queued) == (0, 0)

    def test_old_ones_go_on(self):
        world, worker, request = busy_world()
        (waiting,) = world.submit()
        world.pool.close_intake("over")
        worker.finish()
        worker.deliver()
        world.decide()
        worker.answer()
        assert world.texts([request, waiting]) == ["answer 0", "answer 1"]
        assert world.pool.busy == 0

    def test_old_ones_still_get_workers(self):
        world = World()
        (request,) = world.submit()
        world.pool.close_intake("over")
        world.decide()
        world.up()
        world.decide()
        world.workers[0].answer()
        assert world.texts([request]) == ["answer 0"]

    def test_a_worker_that_dies_is_not_replaced_for_nothing(self):
        world, worker, _ = busy_world()
        worker.finish()
        worker.deliver()
        world.pool.close_intake("over")
        assert worker.die() == []
        assert world.decide() == []

    def test_abort_fails_everything_and_says_what_may_have_run(self):
        world, worker, requests = batch_world(count=3)
        worker.claim()
        world.submit(1)
        world.pool.close_intake("over")
        world.execute(world.pool.revoke_all())
        world.run_to_end(lambda: world.pool.abort(world.now))
        errors = [world.outcome(r) for r in world.requests[-4:]]
        assert {type(e) for e in errors} == {SupervisorClosed}
        assert [e.started for e in errors] == [None, False, False, False]
        assert Interrupt(0, requests[0].lease) in world.log
        assert world.pool.outstanding == 0

    def test_abort_leaves_turns_that_are_waited_for(self):
        world, worker, _ = busy_world()
        world.pool.close_intake("over")
        world.execute(world.pool.revoke_all())
        world.execute(world.pool.abort(world.now))
        assert (world.pool.outstanding, world.pool.busy) == (0, 1)
        worker.finish()
        worker.deliver()
        assert world.pool.busy == 0

    def test_abort_of_what_drains_already_settles_it(self):
        world, worker, request = busy_world()
        world.cancel(request)
        world.pool.close_intake("over")
        world.execute(world.pool.revoke_all())
        world.execute(world.pool.abort(world.now))
        assert isinstance(world.outcome(request), SoloistError)
        worker.die()
        assert world.pool.busy == 0

    def test_all_workers_are_asked_to_stop_and_get_nothing_more(self):
        world = World(size=3)
        world.up(2)
        world.submit(3)
        world.decide()
        assert world.execute(world.pool.stop_workers()) == [Stop(0), Stop(1), Stop(2)]
        for worker in list(world.workers.values()):
            if world.pool.workers[worker.number].pid == 0:
                worker.load().ready()
        world.submit()
        assert sent(world.decide()) == {}

    def test_a_worker_that_was_stopped_is_no_failure(self):
        world = World(size=1, max_restarts=0)
        (worker,) = world.up(1)
        world.pool.close_intake("over")
        world.execute(world.pool.stop_workers())
        assert worker.die(0) == []
        assert not world.pool._restart.is_exhausted(world.now)


class TestCounters:
    def test_they_follow_a_request(self):
        world = World()

        def counts():
            return (world.pool.outstanding, world.pool.queued, world.pool.running, world.pool.busy)

        assert counts() == (0, 0, 0, 0)
        world.submit(2)
        assert counts() == (2, 2, 0, 2)
        world.decide()
        (worker,) = world.up()
        world.decide()
        assert counts() == (2, 1, 1, 3)
        worker.answer()
        assert counts() == (1, 1, 0, 1)
        world.decide()
        worker.answer()
        assert counts() == (0, 0, 0, 0)


def dispatch_times(world, requests):
    """Run until all have their outcome; every dispatched request is answered at once."""
    begin, times = world.now, []
    for _ in range(10 * len(requests)):
        count = len(world.dispatched)
        world.decide()
        times += world.dispatched[count:]
        for worker in [w for w in world.workers.values() if w.pipe]:
            worker.answer(FAST_S)
        if all(r in world.outcomes for r in requests):
            return [time - begin for time in times]
        if world.pool.next_deadline() < math.inf:
            world.now = max(world.now, world.pool.next_deadline())
    raise AssertionError(f"it does not end: {world.pool}")


class TestRateLimit:
    """Case 7, the rate."""

    def test_five_hundred_at_fifty_a_second_take_nine_point_eight_seconds(self):
        world = World(size=8, limit=RateLimit(50, burst=10))
        world.up(8)
        times = dispatch_times(world, world.submit(500))
        assert len(times) == 500
        assert times[9] == 0.0
        assert times[10:12] == pytest.approx([0.02, 0.04])
        assert times[-1] == pytest.approx(9.8)

    def test_a_busy_pool_is_not_given_tokens_in_advance(self):
        world = World(size=1, limit=RateLimit(10))
        (worker,) = world.up(1)
        world.submit(3)
        world.decide()
        worker.claim()
        assert world.tick(5.0) == []
        worker.finish()
        worker.deliver()
        assert sent(world.decide()) == {0: 1}

    def test_however_quick_they_are_nothing_waits_at_a_worker(self):
        world = World(size=1, limit=RateLimit(1000, burst=50))
        world.up(1)
        world.pool._service_s = FAST_S
        world.pool._learn(FAST_S)
        assert world.pool._depth > 16
        requests = world.submit(10)
        assert sent(world.decide()) == {0: 1}
        assert [r.state for r in requests[1:]] == [RequestState.QUEUED] * 9

    def test_the_clock_is_set_for_the_next_token(self):
        world = World(size=2, limit=RateLimit(4))
        world.up(2)
        world.submit(2)
        assert sent(world.decide()) == {0: 1}
        assert world.pool.next_deadline() == world.now + 0.25
        assert sent(world.tick(0.25)) == {1: 1}

    @pytest.mark.parametrize("reason", ["nobody waits", "nobody is idle"])
    def test_it_may_sleep_on_when(self, reason):
        world = World(size=1, limit=RateLimit(4))
        world.up(1)
        world.submit(2 if reason == "nobody is idle" else 1)
        world.decide()
        assert world.pool.next_deadline() == math.inf

    def test_an_idle_worker_without_a_token_is_no_reason_to_start_another(self):
        world = World(size=4, limit=RateLimit(1))
        world.up(2)
        world.submit(2)
        assert sent(world.decide()) == {0: 1}
        assert len(world.workers) == 2
        world.submit(1)
        assert [a for a in world.decide() if type(a) is Spawn] == [Spawn(2, 1)]

    def test_one_that_is_cancelled_while_it_waits_costs_no_token(self):
        world = World(size=2, limit=RateLimit(1))
        world.up(2)
        _, second, third = world.submit(3)
        world.decide()
        world.cancel(second)
        world.tick(1.0)
        assert third.state is RequestState.LEASED

    def test_another_who_takes_from_the_same_bucket_delays_the_pool(self):
        world = World(size=2, limit=RateLimit(1))
        world.up(2)
        world.submit(2)
        world.decide()
        world.now += 1.0
        assert world.limiter.take(world.now)  # a session's broker
        assert world.decide() == []
        assert world.pool.next_deadline() == world.now + 1.0

    def test_deadlines_hold_in_its_queue(self):
        world = World(size=2, limit=RateLimit(0.1))
        world.up(2)
        _, second = world.submit(2, timeout_s=3.0)
        world.decide()
        assert world.pool.next_deadline() == world.now + 3.0
        world.tick(3.0)
        assert world.outcome(second).started is False


class TestPause:
    """Case 7, the pause: one worker's client was told to wait, and all do."""

    @staticmethod
    def scene(retry_after_s=1.0, size=3, **kwargs):
        world = World(size=size, **kwargs)
        world.up(size)
        requests = world.submit(size)
        world.decide()
        for worker in world.workers.values():
            worker.claim()
        first = next(iter(world.workers.values()))
        first.answer(error=RateLimited("slow down", retry_after_s=retry_after_s))
        return world, requests

    @pytest.mark.parametrize("limit", [None, RateLimit(1000, burst=100)], ids=["free", "limited"])
    def test_stops_all_workers_for_that_second(self, limit):
        world, _ = self.scene(limit=limit)
        world.submit(5)
        assert sent(world.decide()) == {}
        for worker in list(world.workers.values())[1:]:
            worker.answer()
        assert world.tick(0.999) == []
        assert sent(world.tick(0.001)) == {0: 1, 1: 1, 2: 1}

    def test_the_clock_is_set_for_its_end(self):
        world, _ = self.scene()
        world.submit()
        world.decide()
        assert world.pool.next_deadline() == world.now + 1.0

    def test_what_runs_goes_on(self):
        world, requests = self.scene()
        world.tick(0.5)
        for worker in list(world.workers.values())[1:]:
            worker.answer()
        assert world.texts(requests[1:]) == ["answer 1", "answer 2"]

    def test_what_waits_at_a_worker_is_taken_back(self):
        world = World(size=2)
        world.up(2)
        world.learn(16)
        requests = world.submit(12)
        world.decide()
        one, two = world.workers.values()
        one.claim()
        two.claim()
        one.answer(FAST_S, error=RateLimited("slow down", retry_after_s=1.0))
        one.claim()  # it was quicker than the pool
        actions = world.decide()
        assert [a for a in actions if type(a) is Revoke] == [Revoke(0), Revoke(1)]
        assert not one.pipe
        assert not two.pipe
        assert sum(r.state is RequestState.QUEUED for r in requests) == 9
        assert [r.attempts for r in requests if r.state is RequestState.QUEUED] == [0] * 9

    def test_what_an_idle_worker_has_not_begun_yet_is_taken_back_too(self):
        """Its client may still be connecting anew, and would begin amid the pause."""
        world = World(size=2)
        one, two = world.up(2)
        _, second = world.submit(2)
        world.decide()
        one.answer(error=RateLimited("slow down", retry_after_s=1.0))
        world.decide()
        assert second.state is RequestState.QUEUED
        assert not two.pipe
        assert sent(world.tick(1.0)) == {0: 1}

    def test_it_takes_back_once(self):
        world, _ = self.scene()
        world.submit(3)
        world.decide()
        count = len(world.log)
        for _ in range(5):
            world.tick(0.1)
        assert not any(type(a) is Revoke for a in world.log[count:])

    def test_prolonged_it_lasts_longer(self):
        world, _ = self.scene()
        world.submit()
        world.decide()
        world.now += 0.5
        world.workers[1].answer(error=RateLimited("slower", retry_after_s=2.0))
        assert world.decide() == []  # nothing can have been sent that could be taken back
        assert sent(world.tick(1.0)) == {}
        assert sent(world.tick(1.0)) != {}

    def test_a_second_one_takes_back_again(self):
        world, _ = self.scene()
        world.tick(1.0)
        world.submit()
        assert sent(world.decide()) == {0: 1}
        world.workers[1].answer(error=RateLimited("again", retry_after_s=1.0))
        assert Revoke(0) in world.decide()

    def test_ordered_by_another_it_takes_back_as_well(self):
        world, _, requests = batch_world(count=4)
        world.limiter.pause_until(world.now + 1.0)  # a session's broker
        world.paused_until = world.now + 1.0
        world.decide()
        assert {r.state for r in requests} == {RequestState.QUEUED}

    def test_quick_prompts_go_in_batches_again_afterwards(self):
        world, worker, _ = batch_world(count=1)
        worker.answer(FAST_S, error=RateLimited("slow down", retry_after_s=1.0))
        world.submit(9)
        world.decide()
        assert sent(world.tick(1.0)) == {0: 9}
        assert world.limiter.is_free

    @pytest.mark.parametrize("state", ["cancelled", "timed out"])
    def test_an_outcome_that_nobody_waits_for_is_heeded_too(self, state):
        world, worker, request = busy_world(timeout_s=1.0)
        if state == "cancelled":
            world.cancel(request)
        else:
            world.tick(1.0)
        worker.finish(error=RateLimited("slow down", retry_after_s=1.0))
        worker.deliver()
        world.submit()
        assert sent(world.tick(0.9)) == {}
        assert sent(world.tick(0.2)) == {0: 1}

    def test_old_news_does_not_prolong_it(self):
        world, _ = self.scene()
        world.now += 0.9
        world.workers[0].say(*world.workers[0].ledger)
        world.submit()
        assert sent(world.tick(0.1)) != {}

    def test_no_time_no_pause(self):
        world, _ = self.scene(retry_after_s=None)
        world.submit()
        assert sent(world.decide()) == {0: 1}


REFUSED = functools.partial(RateLimited, "refused", started=False)


class TestRetry:
    """Case 6: what failed may run again."""

    @staticmethod
    def delayed_world(error=None, **kwargs):
        """One worker, one request: its first attempt has failed."""
        policy = {"first_delay_s": 1.0, "max_delay_s": 100.0, **kwargs.pop("policy", {})}
        world, worker, request = busy_world(retry=Retry(**policy), **kwargs)
        worker.answer(error=error or REFUSED())
        return world, worker, request

    def test_it_waits_and_then_runs_again(self):
        world, worker, request = self.delayed_world()
        assert request.state is RequestState.DELAYED
        assert world.log[-1] == Retried(request)
        assert world.decide() == []
        assert world.tick(0.999) == []
        assert sent(world.tick(0.001)) == {0: 1}
        worker.answer()
        assert world.texts([request]) == ["answer 0"]
        assert request.attempts == 2

    def test_the_clock_is_set_for_it(self):
        world, _, _ = self.delayed_world()
        assert world.pool.next_deadline() == world.now + 1.0

    def test_without_a_policy_nothing_runs_twice(self):
        world, worker, request = busy_world()
        worker.answer(error=REFUSED())
        assert isinstance(world.outcome(request), RateLimited)

    def test_the_last_error_is_the_callers(self):
        world, worker, request = self.delayed_world(error=REFUSED(), policy={"attempts": 3})
        for wait_s, text in ((1.0, "second"), (2.0, "third")):
            assert world.outcome(request) is None
            assert sent(world.tick(wait_s)) == {0: 1}
            worker.answer(error=RateLimited(text, started=False))
        assert str(world.outcome(request)) == "third"
        assert str(world.outcome(request).__cause__) == "second"
        assert request.attempts == 3

    def test_an_error_that_the_policy_does_not_mean_is_final(self):
        world, worker, request = busy_world(retry=Retry())
        worker.answer(error=ClientError("no", started=False))
        assert isinstance(world.outcome(request), ClientError)

    @pytest.mark.parametrize("may_have_run", [False, True])
    def test_what_ran_on_a_worker_that_died_only_if_the_policy_says_so(self, may_have_run):
        world, worker, request = busy_world(retry=Retry(may_have_run=may_have_run))
        worker.die()
        assert isinstance(world.outcome(request), WorkerLost) != may_have_run
        assert (request.state is RequestState.DELAYED) == may_have_run
        if may_have_run:
            world.decide()
            world.tick(1.0)
            world.up()
            assert sent(world.decide()) == {0: 1}

    def test_what_had_not_begun_there_is_no_second_attempt(self):
        _, worker, requests = batch_world(count=3, retry=Retry(may_have_run=True))
        worker.claim()
        worker.die()
        assert [r.state.value for r in requests] == ["delayed", "queued", "queued"]
        assert [r.attempts for r in requests] == [1, 0, 0]

    def test_a_streamed_one_is_never_repeated(self):
        world = World(retry=Retry())
        (worker,) = world.up(1)
        (request,) = world.submit(is_streamed=True)
        world.decide()
        worker.answer(error=REFUSED())
        assert isinstance(world.outcome(request), RateLimited)

    def test_when_due_it_comes_before_those_that_came_later(self):
        world, worker, request = self.delayed_world()
        later = world.submit(3)
        world.decide()
        worker.claim()
        world.tick(1.0)
        assert list(world.pool._queue) == [request, *later[1:]]
        worker.answer()
        world.decide()
        worker.answer()
        assert world.begun == [request, later[0], request]

    def test_several_that_are_due_at_once_are_in_order(self):
        world = World(size=2, retry=Retry(first_delay_s=1.0))
        world.up(2)
        requests = world.submit(2)
        world.decide()
        world.workers[1].answer(error=REFUSED())
        world.workers[0].answer(error=REFUSED())
        first, second = [a for a in world.tick(1.0) if type(a) is Dispatch]
        assert requests == [world.pool.workers[a.number].leases[0] for a in (first, second)]

    def test_others_run_meanwhile(self):
        world, _, _ = self.delayed_world()
        world.submit()
        assert sent(world.decide()) == {0: 1}

    def test_a_death_in_a_second_attempt_may_have_run(self):
        world, worker, request = self.delayed_world()
        world.tick(1.0)
        worker.claim()
        worker.die()
        assert isinstance(world.outcome(request), WorkerLost)
        assert world.outcome(request).started is None
        assert str(world.outcome(request).__cause__) == "refused"

    def test_what_the_service_asked_for_is_waited_and_nothing_longer(self):
        world, _, _ = self.delayed_world(error=REFUSED(retry_after_s=7.0))
        assert world.pool.next_deadline() == world.now + 7.0
        assert sent(world.tick(7.0)) == {0: 1}

    def test_the_rate_limit_holds_for_second_attempts_too(self):
        world, _, request = self.delayed_world(limit=RateLimit(0.1))
        assert world.tick(1.0) == []
        assert request.state is RequestState.QUEUED
        assert world.pool.next_deadline() == pytest.approx(world.now + 9.0)
        assert sent(world.tick(9.0)) == {0: 1}


class TestRetryEnds:
    """A request that waits for its next attempt ends early."""

    UNSURE = functools.partial(RateLimited, "in mid-turn")

    @classmethod
    def scene(cls, error=None, **kwargs):
        policy = {"may_have_run": True, **kwargs.pop("policy", {})}
        return TestRetry.delayed_world(error=error, policy=policy, **kwargs)

    @pytest.mark.parametrize(("error", "started"), [(REFUSED, False), (UNSURE, None)])
    def test_by_a_cancel_which_says_what_may_have_run(self, error, started):
        world, _, request = self.scene(error=error())
        world.cancel(request)
        assert isinstance(world.outcome(request), RequestCancelled)
        assert world.outcome(request).started is started
        assert (world.pool.outstanding, world.pool.delayed) == (0, 0)
        assert world.tick(1.0) == []

    @pytest.mark.parametrize(("error", "started"), [(REFUSED, False), (UNSURE, None)])
    def test_by_a_cancel_when_it_is_due_and_waits_again(self, error, started):
        world, _, request = self.scene(error=error())
        world.submit()
        world.decide()
        world.tick(1.0)
        assert request.state is RequestState.QUEUED
        world.cancel(request)
        assert world.outcome(request).started is started

    def test_by_its_deadline(self):
        """The reactor was late: retry and deadline have both passed."""
        world, _, request = self.scene(error=self.UNSURE(), timeout_s=3.0)
        assert request.state is RequestState.DELAYED
        world.tick(3.0)
        assert isinstance(world.outcome(request), RequestTimeout)
        assert world.outcome(request).started is None
        assert str(world.outcome(request).__cause__) == "in mid-turn"

    def test_by_its_deadline_in_the_queue(self):
        world, _, request = self.scene(error=self.UNSURE(), timeout_s=3.0)
        world.submit()
        world.decide()
        world.tick(1.0)
        world.tick(2.0)
        assert isinstance(world.outcome(request), RequestTimeout)
        assert world.outcome(request).started is None

    @pytest.mark.parametrize("policy", [{"total_s": 0.9}, {}], ids=["total", "deadline"])
    def test_at_once_if_the_next_attempt_would_come_too_late(self, policy):
        world, _, request = self.scene(policy=policy, timeout_s=0.9)
        assert isinstance(world.outcome(request), RateLimited)

    @pytest.mark.parametrize("end", ["error", "death"])
    def test_at_once_if_the_first_attempt_took_all_the_time(self, end):
        retry = Retry(total_s=10.0, first_delay_s=1.0, may_have_run=True)
        world, worker, request = busy_world(retry=retry)
        world.now += 9.5
        if end == "error":
            worker.answer(duration_s=9.5, error=REFUSED())
        else:
            worker.die()
        assert request.state is RequestState.SETTLED

    def test_by_a_refusal_after_an_attempt_that_may_have_run(self):
        world, worker, request = self.scene(error=self.UNSURE(), policy={"attempts": 3})
        world.tick(1.0)
        worker.answer(error=REFUSED())
        world.cancel(request)
        assert world.outcome(request).started is None

    def test_by_cancel_pending(self):
        world, _, request = self.scene()
        world.execute(world.pool.revoke_all())
        world.execute(world.pool.cancel_pending())
        assert isinstance(world.outcome(request), RequestCancelled)

    @pytest.mark.parametrize(("error", "started"), [(REFUSED, False), (UNSURE, None)])
    def test_by_an_abort(self, error, started):
        world, _, request = self.scene(error=error())
        world.pool.close_intake("over")
        world.execute(world.pool.revoke_all())
        world.execute(world.pool.abort(world.now))
        assert isinstance(world.outcome(request), SupervisorClosed)
        assert world.outcome(request).started is started
        assert world.pool.busy == 0

    def test_but_a_drain_waits_for_it(self):
        world, worker, request = self.scene()
        world.pool.close_intake("over")
        assert world.pool.busy == 1
        world.tick(1.0)
        worker.answer()
        assert world.texts([request]) == ["answer 0"]
        assert world.pool.busy == 0

    def test_when_no_worker_may_be_started_any_more(self):
        world, worker, request = self.scene(max_restarts=0)
        worker.die()  # it was of use: the next one starts at once, and dies at once
        world.workers[0].die(1)
        assert request.state is RequestState.DELAYED
        world.tick(1.0)
        assert isinstance(world.outcome(request), RestartLimitReached)

    def test_when_no_client_can_start(self):
        world, worker, request = self.scene()
        worker.die()
        world.workers[0].load()
        world.execute(world.pool.broken(0, ClientConnectError("bad key")))
        assert isinstance(world.outcome(request), ClientConnectError)

    def test_in_mid_run_a_cancel_is_the_last_word(self):
        world, worker, request = self.scene()
        world.tick(1.0)
        worker.claim()
        world.cancel(request)
        worker.answer(error=REFUSED())
        assert isinstance(world.outcome(request), RequestCancelled)

    def test_a_timeout_in_mid_run_is_the_last_word(self):
        world, worker, request = self.scene(timeout_s=3.0)
        world.tick(1.0)
        worker.claim()
        world.tick(2.0)
        assert isinstance(world.outcome(request), RequestTimeout)
        worker.answer(error=REFUSED())
        assert world.pool.delayed == 0
        assert world.tick(60.0) == []

    def test_the_counters_follow(self):
        world, worker, _ = self.scene()
        pool = world.pool

        def counts():
            return (pool.outstanding, pool.queued, pool.running, pool.delayed, pool.busy)

        assert counts() == (1, 0, 0, 1, 1)
        world.submit()
        world.decide()
        assert counts() == (2, 0, 1, 1, 3)
        world.tick(1.0)
        assert counts() == (2, 1, 1, 0, 3)
        worker.answer()
        world.decide()
        worker.answer()
        assert counts() == (0, 0, 0, 0, 0)


def limited(count, chance=0.0):
    return RecyclePolicy(max_requests=count, jitter=lambda: chance)


SMALL = RecyclePolicy(max_memory_bytes=1000)


class TestQuota:
    def test_a_spent_worker_is_asked_to_exit_between_two_requests_and_followed_at_once(self):
        world = World(recycle=limited(2))
        (worker,) = world.up(1)
        world.submit(3)
        world.decide()
        worker.answer()
        assert kinds(world.decide()) == ["Dispatch"]
        worker.answer()
        assert kinds(world.decide()) == ["Stop"]
        assert kinds(worker.die(0)) == ["Spawn"]
        assert world.pool.restarts == 1
        (successor,) = world.up()
        world.decide()
        successor.answer()
        assert world.texts(world.requests) == ["answer 0", "answer 1", "answer 2"]

    def test_also_when_nobody_waits_so_that_the_next_one_need_not(self):
        world, worker, _ = busy_world(recycle=limited(1))
        worker.answer()
        assert kinds(world.decide()) == ["Stop"]
        assert kinds(worker.die(0)) == ["Spawn"]

    def test_not_before_it_has_nothing_left_to_do(self):
        world, _, _ = busy_world(recycle=limited(1))
        assert world.decide() == []

    def test_a_batch_is_no_longer_than_what_is_left(self):
        world = World(recycle=limited(400))
        (worker,) = world.up(1)
        world.learn(16)
        view = world.pool.workers[0]
        view.quota = worker.begun + 10
        world.submit(64)
        assert sent(world.decide()) == {0: 10}
        while worker.claim():
            worker.finish(FAST_S)
        worker.deliver()
        assert view.given == worker.begun == view.quota
        assert kinds(world.decide()) == ["Stop"]

    def test_what_was_taken_back_does_not_count(self):
        world, worker, _ = batch_world(count=4, recycle=limited(400))
        view = world.pool.workers[0]
        view.quota = view.given  # as if it ended with these
        worker.claim()
        world.tick(INSPECT_AFTER_S)
        assert view.given == view.quota - 3
        for _ in range(3):
            worker.answer()
            assert sent(world.decide()) == {0: 1}
        worker.answer()
        assert kinds(world.decide()) == ["Stop"]

    def test_one_whose_ledger_shows_that_it_is_spent_is_asked_at_once(self):
        world, worker, requests = batch_world(count=3, recycle=limited(400))
        view = world.pool.workers[0]
        view.quota = view.given
        while worker.claim():
            worker.finish(FAST_S)
        assert kinds(world.tick(INSPECT_AFTER_S))[-1] == "Stop"
        assert world.texts(requests) == [f"answer {r.index}" for r in requests]

    def test_the_share_that_one_cannot_take_goes_to_another(self):
        world = World(size=2, recycle=limited(400))
        world.up(2)
        world.learn(16)
        world.pool.workers[0].quota = world.pool.workers[0].given + 2
        world.submit(19)
        assert sent(world.decide()) == {0: 2, 1: 17}

    def test_each_incarnation_has_a_limit_of_its_own(self):
        chances = iter([0.0, 0.5, 1.0])
        recycle = RecyclePolicy(max_requests=100, jitter=lambda: next(chances))
        world = World(size=3, recycle=recycle)
        world.up(3)
        assert [w.quota for w in world.pool.workers.values()] == [100, 90, 80]

    def test_it_is_no_failure_even_if_it_dies_of_it(self):
        world = World(recycle=limited(1), max_restarts=0)
        world.up(1)
        for _ in range(5):
            world.submit()
            (worker,) = world.up()
            world.decide()
            worker.answer()
            world.decide()
            worker.die(-11)
        assert world.pool.restarts == 5
        assert not world.restart.is_exhausted(world.now)

    def test_one_that_does_not_exit_is_killed(self):
        world, worker, _ = busy_world(recycle=limited(1))
        worker.answer()
        world.decide()
        assert world.pool.next_deadline() == world.now + STOP_S
        assert kinds(world.tick(STOP_S)) == ["Kill"]
        assert kinds(worker.die()) == ["Spawn"]
        assert world.pool.next_deadline() == math.inf

    def test_a_cancelled_turn_counts_and_is_waited_for(self):
        world, worker, request = busy_world(recycle=limited(1))
        world.cancel(request)
        assert world.decide() == []
        worker.answer()
        assert kinds(world.decide()) == ["Stop"]

    def test_without_a_limit_a_worker_lives_for_ever(self):
        world = World()
        (worker,) = world.up(1)
        for _ in range(500):
            world.submit()
            world.decide()
            worker.answer()
        assert Stop not in {type(a) for a in world.log}


class TestMemoryLimit:
    def measured(self, world, worker, tree_rss_bytes):
        world.run_to_end(lambda: world.pool.measured(worker.number, tree_rss_bytes, world.now))

    def test_a_worker_at_its_limit_stays(self):
        world, worker, _ = busy_world(recycle=SMALL)
        self.measured(world, worker, 1000)
        worker.answer()
        assert world.decide() == []

    def test_above_it_an_idle_one_is_asked_to_exit(self):
        world, worker, _ = busy_world(recycle=SMALL)
        worker.answer()
        self.measured(world, worker, 1001)
        assert kinds(world.decide()) == ["Stop"]
        assert kinds(worker.die(0)) == ["Spawn"]

    def test_above_it_a_busy_one_ends_what_it_runs_and_the_rest_goes_elsewhere(self):
        world, worker, requests = batch_world(count=3, recycle=SMALL, size=2)
        worker.claim()
        self.measured(world, worker, 1001)
        assert [r.state.value for r in requests] == ["leased", "queued", "queued"]
        assert sent(world.decide()) == {}
        worker.finish(FAST_S)
        worker.deliver()
        assert "Stop" in kinds(world.decide())
        assert world.texts(requests[:1]) == [f"answer {requests[0].index}"]

    def test_a_retiring_worker_can_be_interrupted(self):
        world, worker, request = busy_world(recycle=SMALL)
        self.measured(world, worker, 1001)
        world.cancel(request)
        assert kinds(world.log)[-1] == "Interrupt"
        assert kinds(world.tick(GRACE_S)) == ["Kill"]

    def test_a_retiring_worker_that_dies_costs_what_it_ran(self):
        world, worker, request = busy_world(recycle=SMALL)
        self.measured(world, worker, 1001)
        worker.die()
        assert isinstance(world.outcome(request), WorkerLost)

    def test_measured_twice_is_measured_once(self):
        world, worker, _ = busy_world(recycle=SMALL)
        for _ in range(2):
            self.measured(world, worker, 1001)
        worker.answer()
        assert kinds(world.decide()) == ["Stop"]
        self.measured(world, worker, 1001)
        assert world.decide() == []

    def test_without_a_limit_no_size_matters(self):
        world, worker, _ = busy_world()
        worker.answer()
        self.measured(world, worker, 10**15)
        assert world.decide() == []


class TestRestartOfAll:
    def rolled(self, world, *, is_busy=False):
        """Roll to the end; the fewest workers that were in service at any moment."""
        fewest = world.pool.size
        for _ in range(200):
            world.decide()
            states = [w.state.value for w in world.pool.workers.values()]
            fewest = min(fewest, states.count("ready"))
            if not world.pool.is_rolling:
                return fewest
            for worker in list(world.workers.values()):
                state = world.pool.workers[worker.number].state.value
                if state == "starting":
                    worker.load().ready()
                elif state == "stopping":
                    worker.die(0)
                elif worker.pipe or worker.running:
                    worker.answer()
        raise AssertionError("it never ends")

    @pytest.mark.parametrize("size", range(1, 8))
    def test_every_worker_is_replaced_and_half_stay_in_service(self, size):
        world = World(size=size)
        old = world.up(size)
        world.pool.restart()
        assert self.rolled(world) == size - max(1, size // 2)
        assert not set(old) & set(world.workers.values())
        assert world.pool.restarts == size

    def test_a_lone_worker_that_may_have_another_gets_it_first(self):
        world = World(size=4)
        (old,) = world.up(1)
        world.pool.restart()
        assert kinds(world.decide()) == ["Spawn"]
        assert old in world.workers.values()
        world.up()
        assert kinds(world.decide()) == ["Stop"]
        old.die(0)
        assert not world.pool.is_rolling

    def test_requests_are_served_meanwhile_and_none_is_lost(self):
        world = World(size=4)
        world.up(4)
        requests = world.submit(60)
        world.decide()
        world.pool.restart()
        self.rolled(world)
        world.up()
        while world.pool.outstanding:
            world.decide()
            for worker in [w for w in world.workers.values() if w.pipe or w.running]:
                worker.answer()
        assert world.texts(requests) == [f"answer {r.index}" for r in requests]

    def test_what_has_not_begun_on_a_leaving_worker_goes_to_another(self):
        world, worker, requests = batch_world(count=4)
        worker.claim()
        world.pool.restart()
        world.decide()
        assert [r.state.value for r in requests] == ["leased", "queued", "queued", "queued"]
        worker.answer()
        world.decide()
        worker.die(0)
        world.up()
        assert sent(world.decide()).keys() == {0}

    def test_one_that_has_not_connected_goes_at_once_and_is_no_failure(self):
        world = World(size=2, max_restarts=0)
        world.submit()
        world.decide()
        (worker,) = world.workers.values()
        world.pool.restart()
        assert kinds(world.decide()) == ["Stop", "Spawn"]
        assert kinds(worker.die(None)) == ["Spawn"]
        assert not world.pool.is_rolling
        assert not world.restart.is_exhausted(world.now)

    def test_the_next_goes_when_the_last_successor_serves(self):
        world = World(size=2)
        first, second = world.up(2)
        world.pool.restart()
        assert [a.number for a in world.decide()] == [0]
        first.die(0)
        assert world.decide() == []
        world.up()
        assert [a.number for a in world.decide()] == [1]
        second.die(0)
        assert not world.pool.is_rolling

    def test_successors_that_cannot_start_end_it_and_the_others_stay(self):
        world = World(size=2, max_restarts=1)
        first, second = world.up(2)
        world.pool.restart()
        world.decide()
        first.die(0)
        for _ in range(2):
            world.decide()
            world.tick(max(0.0, min(world.pool.next_deadline() - world.now, 60.0)))
            world.execute(world.pool.broken(0, ClientConnectError("bad key")))
            world.workers[0].die(1)
        world.decide()
        assert not world.pool.is_rolling
        assert isinstance(world.pool.roll_failure, RestartLimitReached)
        assert "bad key" in str(world.pool.roll_failure)
        assert list(world.workers.values()) == [second]
        world.submit()
        assert sent(world.decide()) == {1: 1}

    def test_asked_for_twice_it_is_done_once(self):
        world = World(size=2)
        world.up(2)
        world.pool.restart()
        world.decide()
        world.pool.restart()
        self.rolled(world)
        assert world.pool.restarts == 2

    def test_asked_for_again_it_is_done_again(self):
        world = World(size=2)
        world.up(2)
        for _ in range(2):
            world.pool.restart()
            self.rolled(world)
            world.up()
        assert world.pool.restarts == 4

    def test_of_nobody_is_over_at_once(self):
        world = World(size=2)
        world.pool.restart()
        assert not world.pool.is_rolling

    def test_a_worker_that_dies_by_itself_has_been_replaced(self):
        world = World(size=2)
        first, second = world.up(2)
        world.pool.restart()
        world.decide()
        second.die()
        first.die(0)
        assert not world.pool.is_rolling

    def test_an_abort_ends_it_and_starts_nobody(self):
        world = World(size=3)
        world.up(3)
        world.pool.restart()
        world.decide()
        world.pool.close_intake("over")
        world.execute(world.pool.abort(world.now))
        world.execute(world.pool.stop_workers())
        for worker in list(world.workers.values()):
            worker.die(0)
            world.decide()
        assert world.workers == {}
        assert not world.pool.is_rolling

    def test_amid_a_drain_it_goes_on(self):
        world = World(size=2)
        world.up(2)
        world.pool.close_intake("draining")
        world.pool.restart()
        assert self.rolled(world) == 1


class TestMemory:
    def test_of_queue_and_deadlines_is_bounded_when_requests_come_and_are_cancelled(self):
        world, _, _ = busy_world()
        for _ in range(5000):
            (request,) = world.submit(timeout_s=1e6)
            world.cancel(request)
            world.outcomes.clear()
        assert len(world.pool._queue) < 200
        assert len(world.pool._deadlines) < 200

    def test_of_deadlines_is_bounded_when_requests_are_answered_in_time(self):
        world = World()
        (worker,) = world.up(1)
        for _ in range(2000):
            world.submit(timeout_s=1e6)
            world.decide()
            worker.answer()
        assert len(world.pool._deadlines) < 200

    def test_the_living_are_never_swept_away(self):
        world, _, _ = busy_world()
        kept = world.submit(50, timeout_s=2.0)
        for _ in range(1000):
            (request,) = world.submit(timeout_s=1e6)
            world.cancel(request)
        assert [r for r in world.pool._queue if r.state is RequestState.QUEUED] == kept
        world.tick(2.0)
        assert all(isinstance(world.outcome(r), RequestTimeout) for r in kept)


RETRIES = [
    Retry(first_delay_s=0.1, total_s=5.0),
    Retry(attempts=4, first_delay_s=0.004, on=(SoloistError,), may_have_run=True),
]
ERRORS = {
    "client error": lambda: ClientError("no"),
    "refused": lambda: RateLimited("no", started=False),
    "refused for a while": lambda: RateLimited("no", retry_after_s=0.3, started=False),
    "refused in mid-turn": lambda: RateLimited("no", retry_after_s=1.2),
}


class PoolWalk(RuleBasedStateMachine):
    """Callers, workers, messages and the clock, in any order that a real run may have."""

    @initialize(
        size=st.integers(1, 3),
        pace_s=st.sampled_from([None, 4e-4, STEADY_S]),
        sync=st.booleans(),
        limit=st.sampled_from([None, None, RateLimit(20.0, burst=3), RateLimit(300.0)]),
        retry=st.sampled_from([None, *RETRIES]),
        most=st.sampled_from([None, None, 1, 2, 5, 20]),
        chance=st.sampled_from([0.0, 0.6, 1.0]),
    )
    def begin(self, size, pace_s, sync, limit, retry, most, chance):
        recycle = RecyclePolicy(max_requests=most, max_memory_bytes=1000, jitter=lambda: chance)
        self.most = math.inf if most is None else most
        self.world = World(size=size, max_restarts=8, limit=limit, retry=retry, recycle=recycle)
        self.is_interruptible = not sync
        if pace_s is not None:
            self.world.up(size, is_interruptible=self.is_interruptible)
            # By hand: hundreds of quick answers take too long.
            for _ in range(LEAST_LEARNED):
                self.world.pool._forecast.learn(pace_s)
            self.world.pool._service_s = pace_s
            self.world.pool._learn(pace_s)
        self.seen = len(self.world.log)

    # -- the environment ---------------------------------------------------------------------

    def workers(self, can):
        return [w for w in self.world.workers.values() if can(w)]

    def state(self, worker):
        return self.world.pool.workers[worker.number].state.value

    def pick(self, data, can):
        return data.draw(st.sampled_from(self.workers(can)))

    def any_worker(can):  # a precondition for the rules below
        return precondition(lambda self: any(can(self, w) for w in self.workers(bool)))

    @rule(
        count=st.integers(1, 5),
        timeout_s=st.none() | st.sampled_from([0.001, 0.02, 1.0]),
        is_streamed=st.sampled_from([False, False, False, True]),
    )
    def submit(self, count, timeout_s, is_streamed):
        self.world.submit(count, timeout_s, is_streamed=is_streamed)

    @precondition(lambda self: len(self.world.outcomes) < len(self.world.requests))
    @rule(data=st.data())
    def cancel(self, data):
        alive = [r for r in self.world.requests if r not in self.world.outcomes]
        self.world.cancel(data.draw(st.sampled_from(alive)))

    @precondition(lambda self: self.world.pool.delayed)
    @rule(data=st.data())
    def cancel_a_delayed_one(self, data):
        delayed = [r for r in self.world.requests if r.state is RequestState.DELAYED]
        self.world.cancel(data.draw(st.sampled_from(delayed)))

    @precondition(lambda self: self.world.pool.outstanding > 8)
    @rule()
    def cancel_pending(self):
        self.world.execute(self.world.pool.revoke_all())
        self.world.execute(self.world.pool.cancel_pending())
        assert (self.world.pool.queued, self.world.pool.delayed) == (0, 0)

    @rule()
    def decide(self):
        self.world.decide()

    @rule(seconds=st.sampled_from([0.001, 0.005, 0.1, 1.0, 6.0]))
    def pass_time(self, seconds):
        self.world.tick(seconds)

    @any_worker(lambda self, w: self.world.pool.workers[w.number].answered)
    @rule(data=st.data())
    def outgrow(self, data):
        worker = self.pick(data, lambda w: self.world.pool.workers[w.number].answered)
        now = self.world.now
        self.world.execute(self.world.pool.measured(worker.number, 1001, now))

    @rule()
    def restart(self):
        self.world.pool.restart()

    @any_worker(lambda self, w: self.state(w) == "stopping")
    @rule(data=st.data(), exitcode=st.sampled_from([0, 0, 1, -11]))
    def exit(self, data, exitcode):
        """It was asked to; however it does so, that is no failure."""
        worker = self.pick(data, lambda w: self.state(w) == "stopping")
        before = list(self.world.restart._failures), dict(self.world.outcomes)
        worker.die(exitcode)
        assert before == (list(self.world.restart._failures), self.world.outcomes)

    @any_worker(lambda self, w: self.state(w) == "starting")
    @rule(data=st.data())
    def load(self, data):
        worker = self.pick(data, lambda w: self.state(w) == "starting")
        worker.load(is_interruptible=self.is_interruptible)

    @any_worker(lambda self, w: self.state(w) == "connecting")
    @rule(data=st.data(), is_well=st.sampled_from([True, True, True, False]))
    def connect(self, data, is_well):
        worker = self.pick(data, lambda w: self.state(w) == "connecting")
        if is_well:
            worker.ready()
        else:
            self.world.execute(self.world.pool.broken(worker.number, ClientConnectError("no")))
            worker.die(1)

    @any_worker(lambda self, w: w.pipe and w.running is None)
    @rule(data=st.data())
    def claim(self, data):
        self.pick(data, lambda w: w.pipe and w.running is None).claim()

    @any_worker(lambda self, w: w.running is not None)
    @rule(data=st.data(), how=st.sampled_from(["until interrupted", "for ever"]))
    def stick(self, data, how):
        self.pick(data, lambda w: w.running is not None).is_stuck = how

    @any_worker(lambda self, w: w.running is not None and not w.is_stuck)
    @rule(
        data=st.data(),
        duration_s=st.sampled_from([FAST_S] * 9 + [1.0]),
        error=st.sampled_from([None, None, None, *ERRORS]),
    )
    def finish(self, data, duration_s, error):
        worker = self.pick(data, lambda w: w.running is not None and not w.is_stuck)
        worker.finish(duration_s, ERRORS[error]() if error else None)

    @any_worker(lambda self, w: w.running is not None and not w.is_stuck)
    @rule(data=st.data(), error=st.sampled_from([*ERRORS]))
    def fail_and_say_so(self, data, error):
        """Before the others have begun what was sent to them."""
        worker = self.pick(data, lambda w: w.running is not None and not w.is_stuck)
        worker.finish(FAST_S, ERRORS[error]())
        worker.deliver()
        self.world.decide()

    @any_worker(lambda self, w: not w.is_stuck and (w.pipe or w.running is not None))
    @rule(data=st.data())
    def rush(self, data):
        """A quick worker runs through all it has before anybody hears of it."""
        worker = self.pick(data, lambda w: not w.is_stuck and (w.pipe or w.running is not None))
        while worker.running is not None or worker.claim() is not None:
            worker.finish(FAST_S)

    @any_worker(lambda self, w: len(w.pipe) > 1 and w.running is None)
    @rule(data=st.data(), how=st.sampled_from(["until interrupted", "for ever"]))
    def rush_and_stick(self, data, how):
        """It gets stuck in its last one, and nobody has heard of the others yet."""
        worker = self.pick(data, lambda w: len(w.pipe) > 1 and w.running is None)
        while worker.claim() is not None and worker.pipe:
            worker.finish(FAST_S)
        worker.is_stuck = how

    @any_worker(lambda self, w: w.running is not None and w.delivered < len(w.ledger))
    @rule(data=st.data(), is_of_all=st.booleans())
    def cancel_what_it_holds(self, data, is_of_all):
        worker = self.pick(data, lambda w: w.running is not None and w.delivered < len(w.ledger))
        held = list(self.world.pool.workers[worker.number].leases)
        for request in held if is_of_all else [worker.leases[worker.running]]:
            self.world.cancel(request)

    @any_worker(lambda self, w: w.delivered < len(w.ledger))
    @rule(data=st.data())
    def deliver(self, data):
        self.pick(data, lambda w: w.delivered < len(w.ledger)).deliver()

    @any_worker(lambda self, w: w.delivered)
    @rule(data=st.data())
    def repeat_itself(self, data):
        worker = self.pick(data, lambda w: w.delivered)
        worker.say(*worker.ledger[: worker.delivered])

    @any_worker(lambda self, w: True)
    @rule(data=st.data())
    def die(self, data):
        worker = self.pick(data, bool)
        running = worker.leases.get(worker.running)
        before = set(self.world.outcomes)
        worker.die(-9)
        lost = [
            r
            for r in set(self.world.outcomes) - before
            if isinstance(self.world.outcome(r), WorkerLost)
        ]
        assert lost in ([], [running]), "a death costs the request that ran and no other"

    @any_worker(lambda self, w: True)
    @rule(data=st.data())
    def is_wedged(self, data):
        worker = self.pick(data, bool)
        self.world.execute(self.world.pool.wedged(worker.number, "stopped"))

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def killed_workers_die(self):
        for action in self.world.log[self.seen :]:
            if type(action) is Settle and type(action.outcome) is Answer:
                assert action.outcome.text == self.world.text(action.request)
        killed = [a.number for a in self.world.log[self.seen :] if type(a) is Kill]
        self.seen = len(self.world.log)
        for number in killed:
            self.world.workers[number].die(-9)

    @invariant()
    def the_counters_match(self):
        pool, world = self.world.pool, self.world
        alive = [r for r in world.requests if r not in world.outcomes]
        assert pool.outstanding == len(alive)
        assert pool.queued == sum(r.state is RequestState.QUEUED for r in alive)
        assert pool.delayed == sum(r.state is RequestState.DELAYED for r in alive)
        assert pool.running == len(alive) - pool.queued - pool.delayed
        assert all(r.state is RequestState.SETTLED for r in world.outcomes)
        assert len(pool.workers) <= pool.size

    @invariant()
    def every_request_is_in_one_place(self):
        places = collections.Counter()
        for worker in self.world.pool.workers.values():
            assert [r.lease for r in worker.leases] == sorted(r.lease for r in worker.leases)
            for request in worker.leases:
                places[request] += 1
                assert request.worker == worker.number
        for request in self.world.pool._queue:
            places[request] += request.state is RequestState.QUEUED
        for request in self.world.pool._retries.waiting():
            assert request.state is RequestState.DELAYED
            places[request] += 1
        assert all(count <= 1 for count in places.values())
        alive = [r for r in self.world.requests if r not in self.world.outcomes]
        assert all(places[r] == 1 for r in alive)

    @invariant()
    def no_incarnation_is_given_more_than_its_quota(self):
        for worker in self.workers(bool):
            view = self.world.pool.workers[worker.number]
            assert 1 <= view.quota <= self.most
            assert worker.begun <= view.given <= view.quota

    @invariant()
    def nothing_that_began_waits_again(self):
        """Unless it failed and the policy wants another attempt."""
        begun = set(self.world.begun)
        again = [r for r in self.world.pool._queue if r in begun and r.state is RequestState.QUEUED]
        again += self.world.pool._retries.waiting()
        for request in again:
            assert not request.is_streamed
            assert request.failure is not None
            assert request.attempts < self.world.retry.attempts
            assert self.world.retry.may_have_run or request.failure.started is False

    @invariant()
    def nothing_that_began_is_said_not_to_have(self):
        begun = collections.Counter(self.world.begun)
        for request, outcome in self.world.outcomes.items():
            if type(outcome) is Answer:
                assert begun[request]
            elif outcome.started is False:
                assert begun[request] == self.world.refused[request]

    @invariant()
    def a_pause_lasts_as_long_as_was_asked(self):
        assert self.world.limiter.paused_until == self.world.paused_until

    @invariant()
    def the_queue_is_in_order(self):
        waiting = [r.index for r in self.world.pool._queue if r.state is RequestState.QUEUED]
        assert waiting == sorted(waiting)

    def teardown(self):
        """Given workers that do their work, everything comes to an end.

        Turns that are stuck do so as well, once they have been cancelled: by the interrupt, or
        by the kill after the time of grace.
        """
        if not hasattr(self, "seen"):
            return
        world = self.world
        for request in world.requests:
            if request in (w.leases.get(w.running) for w in self.workers(lambda w: w.is_stuck)):
                world.cancel(request)
        until = world.now + GRACE_S + 60.0
        while (world.pool.busy or world.pool.is_rolling) and world.now < until:
            world.decide()
            self.killed_workers_die()
            for worker in self.workers(bool):
                self.advance(worker)
            world.now += 0.1
        assert len(world.outcomes) == len(world.requests), world.pool
        assert world.pool.busy == 0, world.pool
        assert not world.pool.is_rolling, world.pool

    def advance(self, worker):
        if self.state(worker) == "stopping":
            worker.die(0)
            return
        if self.state(worker) == "starting":
            worker.load(is_interruptible=self.is_interruptible)
        if self.state(worker) == "connecting":
            worker.ready()
        if not worker.is_stuck and (worker.running is not None or worker.claim() is not None):
            worker.finish(FAST_S)
        worker.deliver()


TestPoolWalk = PoolWalk.TestCase
TestPoolWalk.settings = settings(
    max_examples=75,
    stateful_step_count=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)


def test_the_pool_is_pure():
    """It knows no clock of its own: every test above passes the time in."""
    assert not hasattr(pool_module, "time")
