"""The pool's decisions on chunks: plain examples, then a random environment against invariants."""

import array
import collections
import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from soloist.protocol import codec
from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    RequestCancelled,
    RestartLimitReached,
    SoloistError,
    SupervisorClosed,
    WorkerLost,
    to_info,
)
from soloist.protocol.ledger import CHUNK_ITEMS, PAGES
from soloist.protocol.messages import Answer, Answers, Failure, Run
from soloist.protocol.messages import Chunk as ChunkMessage
from soloist.protocol.transitions import RequestState
from soloist.supervisor.chunk import Chunk, Part
from soloist.supervisor.crew import Inspect, Interrupt, Kill, Revoke, SettlePart
from soloist.supervisor.pool import INSPECT_AFTER_S, Pool
from soloist.supervisor.rate import Limiter, RateLimit
from soloist.supervisor.recycle import RecyclePolicy
from soloist.supervisor.request import Request
from soloist.supervisor.restart import RestartPolicy
from soloist.supervisor.results import Result
from soloist.supervisor.retry import Retry

FAST_S = 1e-6
GRACE_S = 5.0


class FakeWorker:
    """A worker with its grant pipe, its ledger and what it has not said yet."""

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.pipe = collections.deque()
        self.items = {}  # lease -> (index, number of its chunk or 0)
        self.acked = 0
        self.pages = collections.deque([[0, 0] for _ in range(PAGES)])  # chunk, last that it holds
        self.running = None
        self.is_stuck = False
        self.ledger = []
        self.said = 0

    def claim(self):
        assert self.running is None
        if self.pipe:
            self.running = self.pipe.popleft()
            index, chunk = self.items[self.running]
            if chunk and chunk != self.pages[-1][0]:
                assert self.pages[0][1] <= self.acked, "there is no room for the chunk's answers"
                self.pages.rotate(-1)
                self.pages[-1] = [chunk, 0]
            self.world.has_begun(index)
        return self.running

    def finish(self, error=None, duration_s=FAST_S):
        lease, self.running = self.running, None
        if self.items[lease][1]:
            self.pages[-1][1] = lease
        self.ledger.append((lease, duration_s, error))

    def run(self, count=None):
        """Run so many of what it has, or all."""
        for _ in itertools.count() if count is None else range(count):
            if self.running is None and self.claim() is None:
                return self
            self.finish()
        return self

    def messages(self, outcomes):
        """As the worker would say it: answers to a chunk together."""
        found = []
        for lease, duration_s, error in outcomes:
            index, is_chunked = self.items[lease]
            if error is not None:
                found.append(Failure(lease, duration_s, to_info(error)))
                continue
            text, last = self.world.text(index), found[-1] if found else None
            if not is_chunked:
                found.append(Answer(lease, duration_s, text, 1, b""))
            elif isinstance(last, Answers) and last.lease + len(last.texts) == lease:
                durations = last.durations + array.array("d", [duration_s]).tobytes()
                found[-1] = Answers(last.lease, durations, (*last.texts, text))
            else:
                found.append(Answers(lease, array.array("d", [duration_s]).tobytes(), (text,)))
        return found

    def deliver(self):
        rest, self.said = self.ledger[self.said :], len(self.ledger)
        return self.say(self.messages(rest))

    def say(self, messages):
        return self.world.execute(self.world.pool.answered(self.number, messages, self.world.now))

    def say_all(self):
        return self.say(self.messages(self.ledger))

    def die(self, exitcode=-9):
        del self.world.workers[self.number]
        self.say_all()
        taken, pool = list(self.pipe), self.world.pool
        return self.world.execute(pool.exited(self.number, exitcode, taken, self.world.now))


class World:
    """Executes actions and keeps the accounts, by a prompt's position."""

    def __init__(self, size=1, *, max_restarts=8, is_interruptible=False, **kwargs):
        self.now = 100.0
        self.is_interruptible = is_interruptible
        self.pool = Pool(
            size=size,
            restart=RestartPolicy(max_restarts=max_restarts, period_s=30.0, jitter=lambda: 1.0),
            interrupt_grace_s=GRACE_S,
            jitter=lambda: 1.0,
            **kwargs,
        )
        self.workers = {}
        self.chunks = []
        self.count = 0
        self.outcomes = {}
        self.begun = collections.Counter()
        self.log = []

    def text(self, index):
        return f"answer {index}"

    def has_begun(self, index):
        assert index not in self.outcomes or self.is_draining(index)
        self.begun[index] += 1
        assert self.begun[index] == 1, f"{index} runs twice"

    def is_draining(self, index):
        return isinstance(self.outcomes[index], SoloistError)

    def up(self, count):
        for _ in range(count):
            self.execute([self.pool.start_worker()])
        return self.connect()

    def connect(self):
        for worker in self.workers.values():
            if self.pool.workers[worker.number].state.value == "starting":
                pid, sync = 1000 + worker.number, not self.is_interruptible
                self.pool.loaded(worker.number, pid, is_interruptible=not sync)
                self.pool.ready(worker.number)
        return list(self.workers.values())

    def quick(self):
        """The pool knows that prompts are quick."""
        self.pool._service_s = FAST_S
        self.pool._learn(FAST_S)
        return self

    def submit(self, count):
        """Hand a chunk over."""
        chunk = Chunk([f"p{self.count + i}" for i in range(count)], self.count, self.is_settled)
        self.count += count
        self.chunks.append(chunk)
        self.execute(self.pool.submit(Part(chunk, 0, count)))
        return chunk

    def submit_one(self, prompt=None, **kwargs):
        prompt = f"p{self.count}" if prompt is None else prompt
        # As a gateway's: nobody but the worker needs the prompt, and that gets it encoded.
        request = Request("", codec.encode_prompt(prompt), self, index=self.count, **kwargs)
        self.count += 1
        self.execute(self.pool.submit(request))
        return request

    def settle(self, request):
        """The sink of single requests."""
        self.note(request.index, request.outcome)

    def is_settled(self, chunk, count, failed):
        del failed
        assert chunk.left >= 0
        fresh = [r for r in chunk.results() if self.index_of(chunk, r) not in self.outcomes]
        assert len(fresh) <= count
        for outcome in chunk._settled:
            if outcome.index not in self.outcomes:
                self.note(outcome.index, outcome.outcome)
        for result in chunk.results():
            if isinstance(result, Result) and result.index not in self.outcomes:
                self.note(result.index, result)
                assert result.prompt == f"p{result.index}"

    @staticmethod
    def index_of(chunk, outcome):
        if isinstance(outcome, Result):
            return outcome.index
        return next(r.index for r in chunk._settled if r.outcome is outcome)

    def note(self, index, outcome):
        assert index not in self.outcomes, f"{index} settled twice"
        self.outcomes[index] = outcome
        if not isinstance(outcome, SoloistError):
            assert outcome.text == self.text(index)
            assert self.begun[index] == 1

    def cancel(self, chunk):
        self.until_done(lambda: self.pool.cancel(Part(chunk, 0, 0), self.now))

    def decide(self):
        begin = len(self.log)
        for _ in range(4):
            self.until_done(lambda: self.pool.expire(self.now))
            self.until_done(lambda: self.pool.assign(self.now))
            if self.pool.next_deadline() > self.now:
                return self.log[begin:]
        raise AssertionError("the reactor would spin")

    def tick(self, seconds):
        self.now += seconds
        return self.decide()

    def until_done(self, decide):
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
        self.workers[action.number] = FakeWorker(self, action.number)

    def do_dispatch(self, action):
        worker, view = self.workers[action.number], self.pool.workers[action.number]
        held = {r.lease + i: r.index + i for r in view.leases for i in range(r.count)}
        run = action.run
        is_chunked = isinstance(run, ChunkMessage)
        if is_chunked:
            assert not view.is_interruptible
            numbers = range(run.number, run.number + len(run.prompts))
            assert [f"p{held[n]}" for n in numbers] == list(run.prompts)
        else:
            numbers = [lease.number for lease in run.leases]
        for number in numbers:
            assert number not in worker.items, "a lease number was used twice"
            worker.items[number] = held[number], run.number if is_chunked else 0
            worker.pipe.append(number)
        worker.acked = max(worker.acked, run.acked)

    def do_revoke(self, action):
        worker = self.workers[action.number]
        taken, worker.pipe = list(worker.pipe), collections.deque()
        self.pool.revoked(action.number, taken)

    def do_inspect(self, action):
        worker = self.workers[action.number]
        worker.said = len(worker.ledger)
        worker.say_all()

    def do_settle(self, action):
        action.request.settle(action.outcome)

    def do_settleall(self, action):
        for request, answer in zip(action.requests, action.answers, strict=True):
            request.settle(answer)

    def do_settlepart(self, action):
        action.chunk.answered(action.start, action.texts, action.durations, action.worker)


def chunks_of(actions):
    return [a.run for a in actions if isinstance(getattr(a, "run", None), ChunkMessage)]


def quick_world(size=1, **kwargs):
    world = World(size, **kwargs).quick()
    return world, *world.up(size)


class TestDispatch:
    def test_what_is_not_known_to_be_quick_goes_one_by_one(self):
        world = World(2)
        world.up(2)
        chunk = world.submit(10)
        actions = world.decide()
        assert chunks_of(actions) == []
        assert [len(a.run.leases) for a in actions if hasattr(a, "run")] == [1, 1]
        assert (world.pool.queued, world.pool.running, chunk.left) == (8, 2, 10)

    def test_what_is_quick_goes_together(self):
        world, worker = quick_world()
        world.submit(100)
        (message,) = chunks_of(world.decide())
        assert message == ChunkMessage(1, tuple(f"p{i}" for i in range(100)), 0)
        worker.run().deliver()
        assert len(world.outcomes) == 100
        assert world.pool.outstanding == 0

    def test_workers_get_equal_shares(self):
        world = World(2)
        world.pool._service_s = 1e-5
        world.pool._learn(1e-5)
        world.up(2)
        world.submit(600)
        assert [len(c.prompts) for c in chunks_of(world.decide())] == [300, 300]

    def test_a_short_chunk_is_not_divided(self):
        world, *_ = quick_world(2)
        world.submit(100)
        assert [len(c.prompts) for c in chunks_of(world.decide())] == [100]

    def test_many_quick_answers_outweigh_a_slow_one(self):
        """Each message counts for as many as it has."""
        world, worker = quick_world()
        world.pool._learn(1e-3)
        assert world.pool._part_depth < 5
        world.submit(200)
        for _ in range(40):
            world.decide()
            worker.run().deliver()
        assert world.pool._part_depth > 500

    def test_as_much_goes_as_takes_little_time(self):
        world = World(1)
        world.pool._service_s = 1e-4
        world.pool._learn(1e-4)
        world.up(1)
        world.submit(1000)
        sizes = [len(c.prompts) for c in chunks_of(world.decide())]
        assert sizes == [39, 39]

    def test_one_waits_behind_another_and_no_more(self):
        world, worker = quick_world()
        for _ in range(5):
            world.submit(CHUNK_ITEMS)
        assert len(chunks_of(world.decide())) == PAGES
        worker.run(CHUNK_ITEMS).deliver()
        (third,) = chunks_of(world.decide())
        assert third.acked == CHUNK_ITEMS

    def test_a_client_with_an_event_loop_gets_no_chunk(self):
        world, *_ = quick_world(is_interruptible=True)
        world.submit(100)
        assert chunks_of(world.decide()) == []

    def test_single_requests_keep_their_places_among_chunks(self):
        world, worker = quick_world()
        world.submit(3)
        one = world.submit_one()
        world.submit(3)
        while world.pool.outstanding:
            world.decide()
            worker.run().deliver()
        assert list(world.outcomes) == list(range(7))
        assert type(one.outcome) is Answer

    def test_no_more_goes_than_the_worker_may_be_given(self):
        recycle = RecyclePolicy(max_requests=10, jitter=lambda: 0.0)
        world, _ = quick_world(recycle=recycle)
        world.submit(30)
        assert [len(c.prompts) for c in chunks_of(world.decide())] == [10]

    def test_a_rate_limit_takes_a_token_for_each(self):
        world, *_ = quick_world(limiter=Limiter(RateLimit(10.0, burst=1)))
        world.submit(30)
        assert chunks_of(world.decide()) == []
        assert world.pool.running == 1


class TestTogether:
    """Single requests that go to a worker in one message."""

    @staticmethod
    def sent(actions):
        """How many prompts each message has, and whether it is a chunk."""
        runs = [a.run for a in actions if hasattr(a, "run")]
        return [(len(r[1] if type(r) is ChunkMessage else r.leases), type(r)) for r in runs]

    def submit(self, world, count):
        requests = [world.submit_one() for _ in range(count)]
        return requests, self.sent(world.decide())

    def test_quick_ones_are_a_chunk(self):
        world, worker = quick_world()
        requests, sent = self.submit(world, 5)
        assert sent == [(5, ChunkMessage)]
        worker.run().deliver()
        assert [r.outcome.text for r in requests] == [f"answer {i}" for i in range(5)]
        assert {(r.outcome.num_turns, r.outcome.duration_s) for r in requests} == {(1, FAST_S)}

    def test_one_alone_is_none(self):
        world, _ = quick_world()
        assert self.submit(world, 1)[1] == [(1, Run)]

    def test_nor_are_those_for_a_client_with_an_event_loop(self):
        world, _ = quick_world(is_interruptible=True)
        assert self.submit(world, 3)[1] == [(3, Run)]

    @pytest.mark.parametrize(
        "other", [{"prompt": [{"type": "text", "text": "a"}]}, {"is_streamed": True}]
    )
    def test_nor_are_those_with_one_that_is_more_than_text(self, other):
        world, _ = quick_world()
        world.submit_one(**other)
        assert self.submit(world, 2)[1] == [(3, Run)]

    def test_nor_are_those_whose_answers_cannot_be_read_before_the_last(self):
        """Else one caller's answer would wait behind another's slow prompt."""
        world, _ = quick_world(has_open_pages=False)
        assert self.submit(world, 3)[1] == [(3, Run)]
        world.submit(10)
        assert self.sent(world.decide()) == [(10, ChunkMessage)]

    def test_nor_are_those_for_whose_answers_there_is_no_room_yet(self):
        world, worker = quick_world()
        messages = [self.submit(world, 3)[1] for _ in range(PAGES + 1)]
        assert messages == [[(3, ChunkMessage)]] * PAGES + [[(3, Run)]]
        worker.run(3).deliver()
        assert self.submit(world, 3)[1] == [(3, ChunkMessage)]
        worker.run().deliver()
        assert world.pool.outstanding == 0

    def test_a_chunk_of_a_map_waits_for_room(self):
        world, worker = quick_world()
        for _ in range(PAGES):
            self.submit(world, 3)
        world.submit(10)
        assert self.sent(world.decide()) == []
        worker.run(3).deliver()
        assert self.sent(world.decide()) == [(10, ChunkMessage)]

    def test_what_is_taken_back_needs_no_room(self):
        world, worker = quick_world()
        first, *others = [r for _ in range(PAGES) for r in self.submit(world, 3)[0]]
        worker.claim()
        world.execute(world.pool.revoke_all())
        for request in others:
            world.execute(world.pool.cancel(request, world.now))
        worker.finish()
        worker.deliver()
        assert type(first.outcome) is Answer
        assert world.pool.workers[0].has_free_page  # else it would be idle for ever
        world.submit(10)
        assert self.sent(world.decide()) == [(10, ChunkMessage)]

    def test_one_that_is_slow_costs_the_others_nothing(self):
        world = World(2)
        world.quick()
        first, second = world.up(2)
        requests, _ = self.submit(world, 6)
        (stuck,) = [w for w in (first, second) if len(w.pipe) > 1][:1]
        stuck.claim()
        world.tick(INSPECT_AFTER_S)
        for worker in {first, second} - {stuck}:
            worker.run().deliver()
            world.decide()
            worker.run().deliver()
        assert sum(r.outcome is None for r in requests) == 1

    def test_a_death_costs_the_one_that_ran(self):
        world, worker = quick_world()
        requests, _ = self.submit(world, 5)
        worker.run(2).claim()
        worker.die()
        kinds = [type(r.outcome) for r in requests]
        assert kinds == [Answer, Answer, WorkerLost, type(None), type(None)]
        assert world.pool.queued == 2


class TestOutcomes:
    def test_may_come_in_pieces(self):
        world, worker = quick_world()
        chunk = world.submit(10)
        world.decide()
        worker.run(4).deliver()
        assert (chunk.left, world.pool.running) == (6, 6)
        worker.run(6).deliver()
        assert [r.text for r in chunk.results()] == [f"answer {i}" for i in range(10)]
        assert {(r.num_turns, r.attempts, r.worker, r.duration_s) for r in chunk.results()} == {
            (1, 1, 0, FAST_S)
        }

    def test_heard_twice_are_heard_once(self):
        world, worker = quick_world()
        world.submit(10)
        world.decide()
        worker.run(4).deliver()
        assert worker.say_all() == []
        worker.run(3)
        settled = worker.say_all()
        assert [(a.start, len(a.texts)) for a in settled] == [(4, 3)]
        worker.run().say_all()
        assert len(world.outcomes) == 10

    def test_one_that_fails_fails_alone(self):
        world, worker = quick_world()
        chunk = world.submit(10)
        world.decide()
        worker.run(4).claim()
        worker.finish(ClientError("no"))
        worker.run().deliver()
        results = chunk.results()
        assert isinstance(results[4], ClientError)
        assert [r.index for r in results if isinstance(r, Result)] == [0, 1, 2, 3, *range(5, 10)]

    def test_one_that_fails_is_tried_again_by_itself(self):
        policy = Retry(attempts=2, on=(ClientError,), may_have_run=True)
        world, worker = quick_world(retry=policy)
        chunk = world.submit(3)
        world.decide()
        worker.run(1).claim()
        worker.finish(ClientError("no"))
        worker.run().deliver()
        assert (chunk.left, world.pool.delayed) == (1, 1)
        world.begun.clear()
        world.tick(2.0)
        worker.run().deliver()
        assert [r.attempts for r in chunk.results()] == [1, 2, 1]


class TestSlow:
    def scene(self):
        world, first, second = quick_world(2)
        second_chunk = world.submit(100)
        world.decide()
        assert second_chunk.left == 100
        return world, first, second

    def test_progress_is_seen_without_taking_anything_back(self):
        world, worker, _ = self.scene()
        worker.run(40)
        actions = world.tick(INSPECT_AFTER_S * 1.1)
        assert [type(a) for a in actions] == [Inspect, SettlePart]
        assert len(world.outcomes) == 40
        worker.run(40)
        actions = world.tick(INSPECT_AFTER_S * 1.1)
        assert [type(a) for a in actions] == [Inspect, SettlePart]

    def test_without_progress_the_rest_goes_to_another(self):
        world, worker, other = self.scene()
        worker.run(40).claim()
        world.tick(INSPECT_AFTER_S * 1.1)
        world.tick(INSPECT_AFTER_S * 1.1)
        assert [r.lease for r in world.pool.workers[0].leases] == [41]
        other.run().deliver()
        world.decide()
        other.run().deliver()
        assert sorted(world.outcomes) == [*range(40), *range(41, 100)]
        worker.finish(duration_s=1.0)
        worker.deliver()
        assert len(world.outcomes) == 100

    def test_what_was_taken_out_of_the_middle_comes_back(self):
        """Taking back may read the pipe in pieces, and the worker in between."""
        world, worker, other = self.scene()
        worker.run(10).claim()
        taken = [n for n in worker.pipe if n != 50]
        worker.pipe = collections.deque([50])
        world.pool.revoked(0, taken)
        assert [(type(r), r.lease) for r in world.pool.workers[0].leases][-2:] == [
            (Request, 11),
            (Request, 50),
        ]
        worker.finish()
        worker.run().deliver()
        while world.pool.outstanding:
            world.decide()
            worker.run().deliver()
            other.run().deliver()
        assert len(world.outcomes) == 100


class TestEnds:
    @pytest.mark.parametrize("done", [0, 1, 5, 9])
    def test_a_death_costs_the_one_that_ran(self, done):
        world, worker = quick_world()
        chunk = world.submit(10)
        world.decide()
        worker.run(done).claim()
        worker.die()
        world.decide()
        world.connect()
        for _ in range(5):
            world.tick(1.0)
            world.connect()
            for other in list(world.workers.values()):
                other.run().deliver()
        results = chunk.results()
        assert isinstance(results[done], WorkerLost)
        assert sum(isinstance(r, Result) for r in results) == 9

    def test_a_death_between_two_costs_none(self):
        world, worker = quick_world()
        world.submit(10)
        world.decide()
        worker.run(5)
        worker.die()
        assert len(world.outcomes) == 5
        assert world.pool.queued == 5

    def test_a_cancel_ends_what_has_not_begun_at_once(self):
        world, worker = quick_world()
        chunks = [world.submit(CHUNK_ITEMS) for _ in range(4)]
        world.decide()
        worker.run(3).deliver()
        worker.claim()
        for chunk in chunks:
            world.cancel(chunk)
        worker.finish()
        worker.deliver()
        errors = [o for o in world.outcomes.values() if isinstance(o, SoloistError)]
        assert len(world.outcomes) == 4 * CHUNK_ITEMS
        assert {type(e) for e in errors} == {RequestCancelled}
        assert sum(e.started is not False for e in errors) == 1

    def test_a_cancel_of_what_was_not_taken_in_is_nothing(self):
        world, _ = quick_world()
        chunk = Chunk(["a"], 0, world.is_settled)
        world.cancel(chunk)
        assert world.outcomes == {}

    def test_a_running_one_that_is_cancelled_costs_its_worker_in_the_end(self):
        world, worker = quick_world()
        chunk = world.submit(10)
        world.decide()
        worker.claim()
        world.cancel(chunk)
        assert any(isinstance(a, Kill) for a in world.tick(1.0))
        assert not any(isinstance(a, Interrupt) for a in world.log)

    def test_after_the_end_all_are_refused(self):
        world, _ = quick_world()
        world.pool.close_intake("over")
        chunk = world.submit(10)
        assert {type(e) for e in chunk.results()} == {SupervisorClosed}
        assert len({id(e) for e in chunk.results()}) == 10, "each may be raised"

    @pytest.mark.parametrize("is_revoked", [True, False])
    def test_an_abort_ends_all(self, is_revoked):
        world, worker = quick_world()
        chunk = world.submit(2 * CHUNK_ITEMS)
        world.decide()
        worker.run(3).claim()
        if is_revoked:
            world.execute(world.pool.revoke_all())
        world.execute(world.pool.abort(world.now))
        assert chunk.left == 0
        assert world.pool.outstanding == 0

    def test_cancel_pending_ends_what_waits(self):
        world, worker = quick_world()
        chunk = world.submit(10)
        world.decide()
        worker.claim()
        world.execute(world.pool.revoke_all())
        world.execute(world.pool.cancel_pending())
        assert chunk.left == 1

    def test_if_no_worker_can_start_all_are_told(self):
        world = World(1, max_restarts=0)
        world.execute([world.pool.start_worker()])
        chunk = world.submit(10)
        world.execute(world.pool.broken(0, ClientConnectError("no")))
        world.workers[0].die(1)
        world.decide()
        assert {type(e) for e in chunk.results()} <= {ClientConnectError, RestartLimitReached}
        assert chunk.left == 0

    def test_one_outcome_for_all_is_given_to_each(self):
        world, _ = quick_world()
        chunk = Chunk(["p0", "p1"], 0, world.is_settled)
        error = SupervisorClosed("no")
        Part(chunk, 0, 2).settle(error)
        assert chunk.results() == [error, error]


class ChunkWalk(RuleBasedStateMachine):
    """Callers, sync workers, messages and the clock, in any order that a real run may have."""

    @initialize(size=st.integers(1, 3), most=st.sampled_from([None, None, 7, 40]))
    def begin(self, size, most):
        recycle = RecyclePolicy(max_requests=most, jitter=lambda: 0.0)
        self.world = World(size, recycle=recycle).quick()
        self.world.up(size)
        self.seen = 0

    def pick(self, data, can):
        found = [w for w in self.world.workers.values() if can(w)]
        return data.draw(st.sampled_from(found))

    def any_worker(can):  # a precondition for the rules below
        return precondition(lambda self: any(can(w) for w in self.world.workers.values()))

    @rule(count=st.sampled_from([1, 2, 5, 30, 200]))
    def submit(self, count):
        self.world.submit(count)

    @rule()
    def submit_one(self):
        self.world.submit_one()

    @rule()
    def decide(self):
        self.world.decide()

    @rule(seconds=st.sampled_from([0.001, 0.005, 0.1, 6.0]))
    def pass_time(self, seconds):
        self.world.tick(seconds)

    @rule()
    def connect(self):
        self.world.connect()

    @rule()
    def restart(self):
        self.world.pool.restart()

    @precondition(lambda self: any(c.left for c in self.world.chunks))
    @rule(data=st.data())
    def cancel(self, data):
        self.world.cancel(data.draw(st.sampled_from([c for c in self.world.chunks if c.left])))

    @any_worker(lambda w: w.running is None and w.pipe)
    @rule(data=st.data(), count=st.sampled_from([1, 2, 20, None]), begins=st.booleans())
    def run(self, data, count, begins):
        worker = self.pick(data, lambda w: w.running is None and w.pipe).run(count)
        if begins:
            worker.claim()

    @any_worker(lambda w: w.running is not None)
    @rule(
        data=st.data(),
        duration_s=st.sampled_from([FAST_S, FAST_S, 1.0]),
        is_well=st.sampled_from([True, True, False]),
    )
    def finish(self, data, duration_s, is_well):
        worker = self.pick(data, lambda w: w.running is not None)
        worker.finish(None if is_well else ClientError("no"), duration_s)

    @any_worker(lambda w: w.said < len(w.ledger))
    @rule(data=st.data())
    def deliver(self, data):
        self.pick(data, lambda w: w.said < len(w.ledger)).deliver()

    @any_worker(lambda w: w.said)
    @rule(data=st.data())
    def repeat_itself(self, data):
        self.pick(data, lambda w: w.said).say_all()

    @any_worker(lambda w: len(w.pipe) > 2)
    @rule(data=st.data(), at=st.integers(0, 1000))
    def take_back_in_pieces(self, data, at):
        """The worker claims one between two reads of the supervisor's."""
        worker = self.pick(data, lambda w: len(w.pipe) > 2)
        pipe = list(worker.pipe)
        kept = pipe[at % len(pipe)]
        worker.pipe = collections.deque([kept])
        self.world.pool.revoked(worker.number, [n for n in pipe if n != kept])
        if worker.running is None:
            worker.claim()
        else:
            worker.finish()
            worker.claim()

    @any_worker(lambda w: True)
    @rule(data=st.data())
    def die(self, data):
        worker = self.pick(data, bool)
        running = None if worker.running is None else worker.items[worker.running][0]
        before = set(self.world.outcomes)
        worker.die()
        lost = [
            i
            for i in set(self.world.outcomes) - before
            if isinstance(self.world.outcomes[i], WorkerLost)
        ]
        assert lost in ([], [running])

    @invariant()
    def killed_workers_die(self):
        if not hasattr(self, "seen"):
            return
        killed = {a.number for a in self.world.log[self.seen :] if type(a) is Kill}
        self.seen = len(self.world.log)
        for number in killed:
            if number in self.world.workers:
                self.world.workers[number].die()

    @invariant()
    def the_counters_match(self):
        if not hasattr(self, "seen"):
            return
        pool, world = self.world.pool, self.world
        assert pool.outstanding == world.count - len(world.outcomes)
        queued = sum(r.count for r in pool._queue if r.state is RequestState.QUEUED)
        assert pool.queued == queued
        assert sum(c.left for c in world.chunks) <= pool.outstanding

    @invariant()
    def everything_is_in_one_place(self):
        if not hasattr(self, "seen"):
            return
        places = collections.Counter()
        for worker in self.world.pool.workers.values():
            leases = [r.lease + i for r in worker.leases for i in range(r.count)]
            assert leases == sorted(set(leases))
            assert worker.given <= worker.quota
            for request in worker.leases:
                places.update(range(request.index, request.index + request.count))
        waiting = [r for r in self.world.pool._queue if r.state is RequestState.QUEUED]
        assert [r.order for r in waiting] == sorted(r.order for r in waiting)
        for request in waiting:
            places.update(range(request.index, request.index + request.count))
            for index in range(request.index, request.index + request.count):
                assert not self.world.begun[index], "what began waits again"
        assert all(count == 1 for count in places.values())
        assert all(i in places for i in range(self.world.count) if i not in self.world.outcomes)

    @invariant()
    def nothing_that_began_is_said_not_to_have(self):
        if not hasattr(self, "seen"):
            return
        for index, outcome in self.world.outcomes.items():
            if isinstance(outcome, SoloistError) and outcome.started is False:
                assert not self.world.begun[index]

    def teardown(self):
        if not hasattr(self, "seen"):
            return
        world = self.world
        for _ in range(3000):
            if not world.pool.busy and not world.pool.is_rolling:
                break
            world.tick(0.05)
            self.killed_workers_die()
            for worker in list(world.workers.values()):
                if world.pool.workers[worker.number].state.value == "stopping":
                    worker.die(0)
                else:
                    worker.run().deliver()
            world.connect()
        assert len(world.outcomes) == world.count
        assert all(chunk.left == 0 for chunk in world.chunks)
        assert not any(chunk.parts or chunk.requests for chunk in world.chunks)


TestChunkWalk = ChunkWalk.TestCase
TestChunkWalk.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
