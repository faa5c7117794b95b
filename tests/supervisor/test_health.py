"""Who is wedged: on a clock that the test moves, with workers that answer or do not."""

import math

import pytest

from soloist.protocol.transitions import WorkerEvent
from soloist.supervisor.crew import Look, Ping, Wedged, Worker
from soloist.supervisor.health import EXIT_S, LOOK_S, Health, is_expected

WEDGE_S = 30.0
FOUND_S = 4.0
"""Within this time a stopped process is found; ``Supervisor`` says so."""

HISTORIES = {
    "starting": [],
    "connecting": ["loaded"],
    "ready": ["loaded", "ready"],
    "retiring": ["loaded", "ready", "retire"],
}


class FakeWorker:
    """A worker that can be stopped, and whose event loop can be blocked."""

    def __init__(self, number, *, has_loop=True, state="ready"):
        self.view = Worker(number, 1)
        self.view.is_interruptible = has_loop
        for event in HISTORIES[state]:
            self.view.advance(WorkerEvent(event))
        self.is_stopped = False
        self.is_blocked = False
        self.pings = self.looks = 0


class World:
    """The reactor's part: a turn whenever a round is due, and every answer at the next turn."""

    def __init__(self, *workers, wedge_after_s=WEDGE_S):
        self.now = 100.0
        self.health = Health(wedge_after_s)
        self.workers = {worker.view.number: worker for worker in workers}
        self.wedged = []
        self.answers = []
        for worker in workers:
            self.give_work(worker)

    def give_work(self, worker):
        worker.view.leases.append(object())
        worker.view.busy_since = self.now
        self.health.expect(self.now)

    def run(self, seconds):
        """Let time pass, at most until the first is wedged."""
        until = self.now + seconds
        while not self.wedged and self.health.next_round <= until:
            self.now = self.health.next_round
            self.turn()
        if not self.wedged:
            self.now = until
        return self

    def turn(self):
        """Take in what came, then make the round."""
        self.take()
        expected = [w.view for w in self.workers.values() if is_expected(w.view)]
        self.carry_out(self.health.check(self.now, expected))
        self.take()

    def take(self):
        answers, self.answers = self.answers, []
        for answer in answers:
            answer()

    def carry_out(self, findings):
        for finding in findings:
            worker = self.workers[finding.number]
            match finding:
                case Ping():
                    worker.pings += 1
                    if not worker.is_blocked and not worker.is_stopped:
                        self.answers.append(lambda w=worker: self.hear(w))
                case Look():
                    worker.looks += 1
                    self.answers.append(lambda w=worker: self.see(w))
                case Wedged():
                    worker.view.wedged = finding.reason
                    self.wedged.append(finding)

    def hear(self, worker):
        worker.view.heard_at = self.now

    def see(self, worker):
        number, incarnation = worker.view.number, worker.view.incarnation
        is_stopped = worker.is_stopped
        self.carry_out(self.health.seen(number, incarnation, self.now, is_stopped=is_stopped))

    def sleep(self, seconds):
        """The I/O thread itself loses time: it wakes so much later than it meant to."""
        self.now = self.health.next_round + seconds
        self.turn()


class TestStopped:
    @pytest.mark.parametrize("has_loop", [True, False])
    @pytest.mark.parametrize("wedge_after_s", [WEDGE_S, None, 0.4])
    def test_a_stopped_worker_is_found_in_bounded_time(self, has_loop, wedge_after_s):
        worker = FakeWorker(1, has_loop=has_loop)
        world = World(worker, wedge_after_s=wedge_after_s)
        world.run(10.3)
        worker.is_stopped = True
        began = world.now
        world.run(60)
        (wedged,) = world.wedged
        assert wedged.number == 1
        assert world.now - began <= FOUND_S
        if wedge_after_s != 0.4:
            assert "stopped" in wedged.reason
            assert not wedged.is_blocked

    @pytest.mark.parametrize("state", ["starting", "connecting"])
    def test_also_while_it_starts(self, state):
        worker = FakeWorker(1, state=state)
        worker.is_stopped = True
        world = World(worker).run(FOUND_S)
        assert "stopped" in world.wedged[0].reason

    def test_one_that_is_stopped_for_a_moment_is_left_alone(self):
        worker = FakeWorker(1, has_loop=False)
        world = World(worker)
        for _ in range(20):
            worker.is_stopped = True
            world.run(LOOK_S)
            worker.is_stopped = False
            world.run(LOOK_S)
        assert worker.looks > 10
        assert world.wedged == []

    def test_only_the_stopped_one_is_ended(self):
        workers = [FakeWorker(number) for number in range(4)]
        world = World(*workers).run(20)
        workers[2].is_stopped = True
        world.run(60)
        assert [wedged.number for wedged in world.wedged] == [2]

    def test_one_that_speaks_is_not_looked_at(self):
        worker = FakeWorker(1)
        world = World(worker)
        for _ in range(1000):
            world.hear(worker)
            world.run(LOOK_S / 2)
        assert worker.looks == worker.pings == 0

    def test_a_worker_is_looked_at_once_at_a_time(self):
        worker = FakeWorker(1, has_loop=False)
        world = World(worker)
        world.see = lambda worker: None  # the monitor does not answer
        world.run(20)
        assert worker.looks == 1

    def test_what_was_seen_of_its_predecessor_says_nothing_of_it(self):
        worker = FakeWorker(1)
        world = World(worker).run(2)
        worker.view.incarnation = 2
        world.see = lambda worker: None
        for _ in range(3):
            world.now += LOOK_S
            assert world.health.seen(1, 1, world.now, is_stopped=True) == []
            world.turn()
        assert world.health.seen(7, 1, world.now, is_stopped=True) == []
        assert world.wedged == []

    def test_two_looks_at_nearly_the_same_moment_are_one(self):
        worker = FakeWorker(1)
        world = World(worker).run(2)
        for _ in range(10):
            assert world.health.seen(1, 1, world.now, is_stopped=True) == []

    def test_its_end_is_asked_for_once(self):
        worker = FakeWorker(1)
        worker.is_stopped = True
        world = World(worker).run(FOUND_S)
        world.wedged.clear()
        world.run(60)
        assert world.wedged == []


class TestBlocked:
    @pytest.mark.parametrize("state", ["connecting", "ready", "retiring"])
    def test_a_blocked_event_loop_is_found_in_bounded_time(self, state):
        worker = FakeWorker(1, state=state)
        world = World(worker).run(100.3)
        worker.is_blocked = True
        began = world.now
        world.run(1000)
        (wedged,) = world.wedged
        assert wedged.is_blocked
        assert "30 s" in wedged.reason
        assert WEDGE_S <= world.now - began <= WEDGE_S * 9 / 8 + 2 * LOOK_S

    @pytest.mark.parametrize("wedge_after_s", [0.4, 5.0, WEDGE_S])
    def test_a_slow_request_of_ten_minutes_is_left_alone(self, wedge_after_s):
        worker = FakeWorker(1)
        world = World(worker, wedge_after_s=wedge_after_s).run(600)
        assert world.wedged == []
        assert worker.pings > 600 / wedge_after_s

    def test_a_sync_callable_is_never_asked(self):
        worker = FakeWorker(1, has_loop=False)
        worker.is_blocked = True
        world = World(worker, wedge_after_s=0.1).run(600)
        assert world.wedged == []
        assert worker.pings == 0
        assert worker.looks > 100

    def test_one_that_still_loads_has_no_loop_yet(self):
        worker = FakeWorker(1, state="starting")
        worker.is_blocked = True
        world = World(worker).run(600)
        assert world.wedged == []
        assert worker.pings == 0

    def test_without_a_limit_nobody_is_asked(self):
        worker = FakeWorker(1)
        worker.is_blocked = True
        world = World(worker, wedge_after_s=None).run(10**4)
        assert world.wedged == []
        assert worker.pings == 0

    def test_one_that_comes_back_in_time_begins_anew(self):
        worker = FakeWorker(1)
        world = World(worker)
        for _ in range(10):
            worker.is_blocked = True
            world.run(WEDGE_S - 1)
            worker.is_blocked = False
            world.hear(worker)
            world.run(1)
        assert world.wedged == []

    def test_it_is_asked_once_until_it_answers(self):
        worker = FakeWorker(1)
        worker.is_blocked = True
        World(worker).run(WEDGE_S - 1)
        assert worker.pings == 1

    def test_a_new_request_does_not_inherit_the_silence_before(self):
        worker = FakeWorker(1)
        world = World(worker).run(1)
        worker.view.leases.clear()
        world.run(1000)
        worker.is_blocked = True
        world.give_work(worker)
        world.run(WEDGE_S)
        assert world.wedged == []
        world.run(WEDGE_S)
        assert len(world.wedged) == 1


class TestExit:
    @pytest.mark.parametrize("has_loop", [True, False])
    def test_one_that_does_not_exit_is_ended(self, has_loop):
        worker = FakeWorker(1, has_loop=has_loop)
        worker.view.advance(WorkerEvent.STOP)
        worker.is_blocked = True
        world = World(worker).run(60)
        assert "exit" in world.wedged[0].reason
        assert worker.pings == 0
        assert EXIT_S <= world.now - 100 <= EXIT_S + 2 * LOOK_S

    def test_its_client_need_not_answer_while_it_disconnects(self):
        worker = FakeWorker(1)
        worker.is_blocked = True
        world = World(worker, wedge_after_s=0.4).run(0.3)
        assert worker.pings == 1
        worker.view.advance(WorkerEvent.STOP)
        world.run(EXIT_S - 1)
        assert world.wedged == []

    def test_the_time_counts_from_its_order(self):
        worker = FakeWorker(1, has_loop=False)
        world = World(worker).run(600)
        worker.view.advance(WorkerEvent.STOP)
        world.run(EXIT_S - 1)
        assert world.wedged == []


class TestLag:
    def test_time_that_the_supervisor_lost_counts_against_nobody(self):
        """The machine slept: everybody was silent, and nobody can have answered yet."""
        workers = [FakeWorker(number) for number in range(3)]
        world = World(*workers).run(3)
        for worker in workers:
            worker.is_blocked = True
        world.run(WEDGE_S / 2)
        world.sleep(10 * WEDGE_S)
        world.sleep(10 * WEDGE_S)
        assert world.wedged == []
        for worker in workers:
            worker.is_blocked = False
            world.hear(worker)
        world.run(100)
        assert world.wedged == []

    def test_a_late_round_decides_nothing(self):
        """Right after it woke, an answer may still be on its way through the sockets."""
        worker = FakeWorker(1)
        worker.is_blocked = True
        world = World(worker).run(WEDGE_S + 2)
        before = world.health.next_round
        world.sleep(1000)
        assert world.wedged == []
        assert world.now - before == 1000

    def test_the_blocked_one_is_found_all_the_same(self):
        worker = FakeWorker(1)
        worker.is_blocked = True
        world = World(worker).run(10)
        world.sleep(1000)
        began = world.now
        world.run(100)
        assert len(world.wedged) == 1
        assert world.now - began <= WEDGE_S

    def test_a_little_lateness_is_no_lost_time(self):
        worker = FakeWorker(1)
        worker.is_blocked = True
        world = World(worker)
        began = world.now
        while not world.wedged:
            world.sleep(0.3)
        assert world.now - began < 2 * WEDGE_S

    def test_two_looks_with_lost_time_between_prove_nothing(self):
        """Supervisor and workers were stopped together, and it was continued first."""
        worker = FakeWorker(1, has_loop=False)
        world = World(worker)
        while not worker.looks:
            worker.is_stopped = True
            world.run(LOOK_S)
        world.sleep(100)
        world.run(LOOK_S)
        assert worker.looks == 2
        worker.is_stopped = False
        world.run(60)
        assert world.wedged == []

    def test_a_look_that_was_under_way_amid_it_proves_nothing(self):
        worker = FakeWorker(1, has_loop=False)
        worker.is_stopped = True
        world = World(worker).run(1.5)
        world.now = world.health.next_round + 100
        assert world.health.seen(1, 1, world.now, is_stopped=True) == []


class TestRest:
    def test_no_rounds_while_nobody_has_anything_to_do(self):
        worker = FakeWorker(1)
        world = World(worker).run(5)
        worker.view.leases.clear()
        world.run(1.5)
        assert world.health.next_round == math.inf
        assert world.health.check(world.now, []) == []

    def test_rounds_begin_again_with_work(self):
        worker = FakeWorker(1)
        world = World(worker)
        worker.view.leases.clear()
        world.run(1000)
        worker.is_stopped = True
        world.give_work(worker)
        assert world.run(FOUND_S).wedged

    def test_there_is_no_round_before_its_time(self):
        world = World(FakeWorker(1))
        due = world.health.next_round
        assert world.health.check(due - 0.01, []) == []
        assert world.health.next_round == due

    def test_its_text_shows_whom_it_watches(self):
        world = World(FakeWorker(3)).run(2)
        assert repr(world.health).startswith("<Health watches {3: ")
