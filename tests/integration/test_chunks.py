"""Chunks of quick prompts on real processes: what goes wrong with one costs no other anything."""

from __future__ import annotations

import collections
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from soloist import (
    ClientError,
    InvalidPrompt,
    RequestTimeout,
    Result,
    ResultNotSerializable,
    Supervisor,
    SupervisorClosed,
    WorkerLost,
)
from soloist.supervisor import barrier
from tests.support import eventually

COUNT = 6000


@pytest.fixture(autouse=True, params=["in memory", "by the pipe"])
def claims(request, monkeypatch):
    """How prompts of a chunk are claimed."""
    if request.param == "by the pipe":
        monkeypatch.setattr(barrier, "find", lambda: None)
    elif barrier.find() is None:
        pytest.skip("no barrier on this machine")


def quick(prompt: str) -> str:
    return prompt


def prompts(count: int = COUNT) -> list[str]:
    return [f"p{i}" for i in range(count)]


def warm(sup: Supervisor) -> None:
    """Have its workers known as quick."""
    sup.map(prompts(3000))


class Marking:
    """A callable that notes each call in a file, and does something special for some prompts.

    Args:
        path: each call appends its prompt to it, in one write.
        special: by prompt.
    """

    def __init__(self, path: Path, **special) -> None:
        self.path = str(path)
        self.special = special

    def __call__(self, prompt: str) -> str:
        if prompt.startswith("p"):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{prompt}\n".encode())
            os.close(descriptor)
        act = self.special.get(prompt)
        return act() if act is not None else prompt

    @staticmethod
    def calls(path: Path) -> collections.Counter:
        return collections.Counter(path.read_text().split())


def die() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def fail() -> str:
    raise ValueError("no")


def test_results_say_what_they_are_about():
    with Supervisor(size=2, client=quick) as sup:
        warm(sup)
        results = sup.map(prompts())
    assert [r.text for r in results] == prompts()
    assert [r.index for r in results] == list(range(COUNT))
    assert {r.num_turns for r in results} == {1}
    assert {r.attempts for r in results} == {1}
    assert {r.worker for r in results} <= {0, 1}
    assert all(0 <= r.duration_s < 5 for r in results)
    assert results[7].messages[-1].result == "p7"
    assert results[7].usage is None


def test_the_default_map_really_goes_in_chunks():
    with Supervisor(size=2, client=quick) as sup:
        warm(sup)
        turns = {id(r._turns) for r in sup.map(prompts())}
    assert len(turns) < COUNT / 20


@pytest.mark.parametrize("seed", range(3))
def test_a_prompt_that_kills_its_worker_costs_itself_alone(tmp_path, seed):
    bad = random.Random(seed).sample(prompts(), 5)
    client = Marking(tmp_path / "calls", **dict.fromkeys(bad, die))
    with Supervisor(size=2, client=client) as sup:
        sup.map([f"w{i}" for i in range(3000)])
        results = sup.map(prompts(), return_exceptions=True)
    lost = [f"p{i}" for i, r in enumerate(results) if not isinstance(r, Result)]
    assert sorted(lost) == sorted(bad)
    assert all(isinstance(results[int(p[1:])], WorkerLost) for p in bad)
    assert Marking.calls(tmp_path / "calls") == dict.fromkeys(prompts(), 1), "each ran once"


@pytest.mark.parametrize("seed", range(2))
def test_workers_that_are_killed_at_any_time_cost_one_each_and_nothing_runs_twice(tmp_path, seed):
    """From outside, at whatever step they happen to be."""
    chance = random.Random(seed)
    kills = 0
    with Supervisor(size=2, client=Marking(tmp_path / "calls"), max_restarts=1000) as sup:
        sup.map([f"w{i}" for i in range(3000)])
        found: list = []
        names = prompts(120_000)
        thread = threading.Thread(
            target=lambda: found.extend(sup.map(names, return_exceptions=True))
        )
        thread.start()
        while thread.is_alive():
            thread.join(chance.uniform(0.002, 0.02))
            pids = [w.pid for w in sup.stats().workers if w.answered and w.pid]
            if thread.is_alive() and pids and kills < 30:
                try:
                    os.kill(chance.choice(pids), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                kills += 1
    lost = [name for name, r in zip(names, found, strict=True) if not isinstance(r, Result)]
    assert all(isinstance(r, Result | WorkerLost) for r in found)
    assert all(r.text == name for name, r in zip(names, found, strict=True) if name not in lost)
    assert kills >= 5
    assert len(lost) <= kills
    calls = Marking.calls(tmp_path / "calls")
    assert max(calls.values()) == 1
    assert set(names) - set(calls) <= set(lost)


def leave_a_fork_that(ends) -> str:
    """Fork; the child does that, in the client's code, and comes back out of it."""
    child = os.fork()
    if not child:
        return ends()
    os.waitpid(child, 0)
    return "forked"


@pytest.mark.parametrize(
    "ends", [lambda: "returned", fail, sys.exit], ids=["returns", "raises", "exits"]
)
@pytest.mark.parametrize("is_chunk", [True, False], ids=["of a chunk", "single"])
def test_a_fork_that_comes_back_is_no_worker(tmp_path, ends, is_chunk):
    """It would run what follows a second time, and give its answers to the wrong prompts."""
    path = tmp_path / "calls"
    client = Marking(path, p1234=lambda: leave_a_fork_that(ends))
    names = prompts()
    with Supervisor(size=2, client=client) as sup:
        if is_chunk:
            sup.map([f"w{i}" for i in range(3000)])
            texts = [r.text for r in sup.map(names)]
        else:
            names = names[1230:1240]
            texts = [sup.submit(name).result(20).text for name in names]
    assert texts == ["forked" if name == "p1234" else name for name in names]
    assert Marking.calls(path) == dict.fromkeys(names, 1)


def test_a_slow_prompt_holds_nobody_up(tmp_path):
    """It ends when all others have run: whoever were held behind it would never run."""
    path = tmp_path / "calls"

    def wait_for_the_others() -> str:
        until = time.monotonic() + 30
        while path.read_text().count("\n") < COUNT and time.monotonic() < until:
            time.sleep(0.005)
        return "late" if time.monotonic() > until else "last"

    client = Marking(path, p1234=wait_for_the_others)
    with Supervisor(size=2, client=client) as sup:
        sup.map([f"w{i}" for i in range(3000)])
        results = sup.map(prompts())
    assert results[1234].text == "last"
    assert results[1234].duration_s > 0.004
    assert Marking.calls(path) == dict.fromkeys(prompts(), 1)


def test_errors_of_single_prompts_stand_in_their_place():
    special = {"p10": fail, "p2000": lambda: 7, "p2001": lambda: "\ud800", "p2002": fail}
    with Supervisor(size=2, client=Marking(Path("/dev/null"), **special)) as sup:
        sup.map([f"w{i}" for i in range(3000)])
        results = sup.map([*prompts(), 5, "\ud800"], return_exceptions=True)
    errors = {i: type(r) for i, r in enumerate(results) if not isinstance(r, Result)}
    assert errors == {
        10: ClientError,
        2000: ResultNotSerializable,
        2001: ResultNotSerializable,
        2002: ClientError,
        COUNT: InvalidPrompt,
        COUNT + 1: InvalidPrompt,
    }


def test_the_first_error_ends_the_map_and_the_supervisor_goes_on():
    with Supervisor(size=2, client=Marking(Path("/dev/null"), p3000=fail)) as sup:
        sup.map([f"w{i}" for i in range(3000)])
        with pytest.raises(ClientError) as caught:
            sup.map(prompts(200_000))
        completed = caught.value.completed
        assert [r.index for r in completed] == sorted(r.index for r in completed)
        eventually(lambda: (s := sup.stats()).queued + s.running == 0)
        assert sup.stats().cancelled > 0
        assert [r.text for r in sup.map(["p1", "p2"])] == ["p1", "p2"]


def test_the_whole_may_take_so_long():
    def slow(prompt: str) -> str:
        if prompt == "p999":
            time.sleep(60)
        return prompt

    with Supervisor(size=1, client=slow, interrupt_grace_s=0.1) as sup:
        begun = time.monotonic()
        with pytest.raises(RequestTimeout) as caught:
            sup.map(prompts(), total_timeout_s=1.0)
        assert time.monotonic() - begun < 20
        assert len(caught.value.completed) == 999
        assert sup.map(["p1"])[0].text == "p1"


def test_closed_in_the_middle_it_tells_everybody():
    with Supervisor(size=2, client=quick) as sup:
        warm(sup)
        found: list = []

        def run():
            try:
                found.extend(sup.map(prompts(2_000_000), return_exceptions=True))
            except SupervisorClosed as error:
                found.append(error)

        thread = threading.Thread(target=run)
        before = sup.stats().answered
        thread.start()
        eventually(lambda: sup.stats().answered > before + 5000)
        sup.close()
        thread.join(30)
        assert not thread.is_alive()
    assert isinstance(found[-1], SupervisorClosed)
    assert len(found[-1].completed) > 0


def test_others_are_served_meanwhile():
    with Supervisor(size=2, client=quick) as sup:
        warm(sup)
        found: list = []
        thread = threading.Thread(target=lambda: found.extend(sup.map(prompts(100_000))))
        thread.start()
        served = 0
        while thread.is_alive() and served < 50:
            assert sup.submit("other").result(timeout=30).text == "other"
            served += 1
        thread.join(60)
    assert len(found) == 100_000
    assert served


def test_workers_with_a_quota_are_replaced_and_nothing_is_lost():
    with Supervisor(size=2, client=quick, max_requests_per_worker=700) as sup:
        results = sup.map(prompts())
        restarts = sup.stats().restarts
    assert [r.text for r in results] == prompts()
    assert restarts >= 5
