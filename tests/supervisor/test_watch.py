"""What health decides is carried out: with a monitor and workers that the test plays."""

import math

import psutil
import pytest

from soloist.protocol.transitions import WorkerEvent
from soloist.supervisor import watch as watch_module
from soloist.supervisor.crew import Worker
from soloist.supervisor.monitor import Job, Sighting
from soloist.supervisor.watch import Watch


class FakeMonitor:
    def __init__(self, tell):
        self.tell = tell
        self.orders = []
        self.is_closed = False

    def look(self, jobs):
        self.orders.append(jobs)

    def close(self, timeout_s):
        self.is_closed = True


class FakeProcess:
    pid = 4711
    incarnation = 1


class World:
    def __init__(self, monkeypatch):
        self.now = 100.0
        self.worker = Worker(1, 1)
        self.worker.advance(WorkerEvent.LOADED)
        self.workers = [self.worker]
        self.processes = {1: FakeProcess()}
        self.pinged, self.wedged, self.measured = [], [], []
        monkeypatch.setattr(watch_module, "Monitor", FakeMonitor)
        monkeypatch.setattr(watch_module, "time", self)
        self.watch = Watch(
            8.0,
            expected=lambda: self.workers,
            processes=self.processes,
            ping=self.pinged.append,
            wedged=self.wedged.append,
            measured=lambda *seen: self.measured.append(seen),
            post=lambda call: call(),
        )
        self.monitor = self.watch._monitor

    def monotonic(self):
        return self.now

    def round(self):
        self.now = max(self.now, self.watch.next_round())
        self.watch.go_round(self.now)

    def see(self, state, incarnation=1, size=None):
        self.monitor.tell([Sighting(1, incarnation, state, size)])


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_it_rests_until_something_is_expected(world):
    assert world.watch.next_round() == math.inf
    world.watch.go_round(world.now)
    assert world.monitor.orders == []
    world.watch.expect()
    assert world.watch.next_round() == world.now + 1.0


def test_who_is_silent_is_asked_and_looked_at(world):
    world.watch.expect()
    world.round()
    assert world.monitor.orders == [[Job(1, 1, 4711)]]
    assert world.pinged == [1]
    world.see(psutil.STATUS_SLEEPING)
    world.round()
    assert len(world.monitor.orders) == 2
    assert world.wedged == []


def test_one_that_is_seen_stopped_again_is_reported(world):
    world.watch.expect()
    for _ in range(2):
        assert world.wedged == []
        world.round()
        world.see(psutil.STATUS_STOPPED)
    (wedged,) = world.wedged
    assert wedged[:2] == (1, 1)


def test_one_that_is_still_being_forked_is_left_alone(world):
    process = world.processes.pop(1)
    world.watch.expect()
    world.round()
    world.round()
    assert world.monitor.orders == []
    world.processes[1] = process
    world.round()
    assert world.monitor.orders == [[Job(1, 1, 4711)]]


def test_who_has_answered_is_measured_once(world):
    world.watch.answered(1, 1)
    world.round()
    assert world.monitor.orders == [[Job(1, 1, 4711, wants_memory=True)]]
    world.see(psutil.STATUS_SLEEPING, size=5_000)
    assert world.measured == [(1, 5_000)]
    assert world.watch.next_round() == math.inf


def test_a_size_that_belongs_to_nobody_who_lives_is_no_news(world):
    world.watch.answered(1, 1)
    world.round()
    world.see(psutil.STATUS_SLEEPING, incarnation=2, size=5_000)
    world.see(psutil.STATUS_SLEEPING, size=None)
    world.processes.clear()
    world.see("", size=5_000)
    assert world.measured == []


@pytest.mark.parametrize("gone", [True, False])
def test_who_has_gone_or_is_no_longer_replaced_is_not_measured(world, gone):
    world.watch.answered(1, 1)
    if gone:
        world.processes.clear()
    else:
        world.watch.stop_measuring()
    world.watch.go_round(world.now + 10)
    assert world.monitor.orders == []


def test_after_the_end_nothing_follows_from_what_was_seen(world):
    world.watch.expect()
    world.round()
    world.see(psutil.STATUS_STOPPED)
    world.round()
    world.watch.close()
    assert world.monitor.is_closed
    world.see(psutil.STATUS_STOPPED)
    assert world.wedged == []
