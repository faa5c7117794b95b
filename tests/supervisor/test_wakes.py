"""What the I/O thread sleeps on."""

import contextlib
import os
import select
import time

import pytest

from soloist.supervisor.wakes import Wakes

LIMIT_S = 20.0


class Pipe:
    def __init__(self, wakes, on_wake=None):
        self.wakes = wakes
        self.r, self.w = os.pipe()
        self.count = 0
        self.on_wake = on_wake
        wakes.add(self.r, self.wake)

    def wake(self):
        self.count += 1
        if self.on_wake is not None:
            self.on_wake()

    def close(self):
        os.close(self.r)
        os.close(self.w)


@pytest.fixture(params=["epoll", "poll"])
def wakes(request, monkeypatch):
    if request.param == "poll":
        monkeypatch.delattr(select, "epoll", raising=False)
    elif not hasattr(select, "epoll"):
        pytest.skip("no epoll here")
    with contextlib.closing(Wakes()) as wakes:
        yield wakes


@pytest.fixture
def pipes(wakes):
    pipes = [Pipe(wakes) for _ in range(3)]
    yield pipes
    for pipe in pipes:
        pipe.close()


def test_what_is_readable_is_called(wakes, pipes):
    os.write(pipes[1].w, b"x")
    wakes.call(wakes.wait(LIMIT_S))
    assert [pipe.count for pipe in pipes] == [0, 1, 0]


def test_as_often_as_there_is_something_left(wakes, pipes):
    os.write(pipes[0].w, b"x")
    wakes.call(wakes.wait(0))
    wakes.call(wakes.wait(0))
    os.read(pipes[0].r, 1)
    wakes.call(wakes.wait(0))
    assert pipes[0].count == 2


def test_without_anything_it_sleeps_as_long_as_it_is_told(wakes, pipes):
    started = time.monotonic()
    assert wakes.wait(0.0104) == []
    assert time.monotonic() - started >= 0.0104, "a little longer rather than in a circle"


def test_what_was_removed_is_not_called(wakes, pipes):
    os.write(pipes[0].w, b"x")
    wakes.remove(pipes[0].r)
    assert wakes.wait(0) == []


def test_what_is_removed_by_another_call_is_not_called(wakes, pipes):
    def remove_the_other():
        wakes.remove(pipes[1 - pipes.index(first)].r)

    for first in pipes[:2]:
        os.write(first.w, b"x")
    ready = wakes.wait(0)
    first = next(pipe for pipe in pipes if pipe.r == ready[0])
    first.on_wake = remove_the_other
    wakes.call(ready)
    assert sorted(pipe.count for pipe in pipes) == [0, 0, 1]
