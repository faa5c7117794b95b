"""Workers that hang, each in its way, with real processes: found, replaced, the others unhurt."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from soloist import (
    AsyncSupervisor,
    ClientConnectError,
    InvalidOptions,
    ResultMessage,
    Supervisor,
    WorkerLost,
)
from soloist.worker.clients.echo import EchoClient
from tests.support import (
    LIMIT_S,
    descendants_of_runs,
    environment,
    eventually,
    is_running,
    run_dirs_of,
)
from tests.support_clients import PatientEcho

FOUND_S = 4.0
"""A stopped process is found within this time."""
SLACK_S = 3.0
"""What starting a replacement, and a busy machine, may take beside."""


@pytest.fixture(autouse=True)
def nothing_left():
    """Fails if a test leaves a process of a Supervisor, or its folder, behind."""
    before = run_dirs_of(os.getpid())
    seen: set[str] = set()
    yield seen
    left = (run_dirs_of(os.getpid()) | seen) - before
    eventually(lambda: not descendants_of_runs(left), timeout_s=2)
    eventually(lambda: not any(map(os.path.exists, left)), timeout_s=2)


@pytest.fixture
def watch_time():
    """Gives the seconds since the test began."""
    began = time.monotonic()
    return lambda: time.monotonic() - began


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


def stops_itself(prompt: str) -> str:
    if prompt == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    return prompt


async def blocks(prompt: str) -> str:
    if prompt == "block":
        time.sleep(600)  # noqa: ASYNC251 - that is the point
    await asyncio.sleep(0)
    return prompt


def backtrack(prompt: str) -> str:
    """Like one expression that backtracks for seconds: the interpreter lock is hardly given up."""
    until = time.monotonic() + float(prompt)
    while time.monotonic() < until:
        re.match(r"(a+)+$", "a" * 20 + "b")
    return prompt


def text_of(messages) -> str:
    *_, result = messages
    assert isinstance(result, ResultMessage)
    return result.result


def once(path: str) -> bool:
    """Whether nobody has come here before."""
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Clumsy(EchoClient):
    """Does something stupid the first time that it comes to ``where``."""

    def __init__(self, *, where: str, what: str, path: str, **options) -> None:
        self._stumble = functools.partial(stumble, where, what, path)
        super().__init__(**options)
        self._stumble("init")

    async def connect(self) -> None:
        self._stumble("connect")
        await super().connect()

    async def disconnect(self) -> None:
        self._stumble("disconnect")
        await super().disconnect()


def stumble(where: str, what: str, path: str, place: str) -> None:
    if place != where or not once(path):
        return
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "block":
        time.sleep(600)
    else:
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
        raise ClientConnectError("first time")


class TestStopped:
    def test_one_of_four_in_a_map_costs_one_request(self, watch_time):
        prompts = [str(i) for i in range(1000)]
        prompts[500] = "stop"
        with Supervisor(size=4, client=stops_itself) as sup:
            results = sup.map(prompts, return_exceptions=True)
            assert watch_time() < FOUND_S + SLACK_S
            assert sup.stats().restarts == 1
        lost = results.pop(500)
        assert isinstance(lost, WorkerLost)
        assert lost.started is None
        assert "was wedged, stopped (process state T)" in str(lost)
        assert [result.text for result in results] == [p for p in prompts if p != "stop"]

    @pytest.mark.parametrize("client", [stops_itself, blocks])
    def test_what_an_idle_one_is_given_runs_elsewhere(self, client, watch_time):
        with Supervisor(size=1, client=client) as sup:
            assert sup.map(["a"])[0].text == "a"
            (worker,) = sup.stats().workers
            stop(worker.pid)
            (result,) = sup.map(["b"])
            assert watch_time() < FOUND_S + SLACK_S
            assert (result.text, result.attempts) == ("b", 1)
            (again,) = sup.stats().workers
            assert again.incarnation == 2

    def test_one_that_is_continued_at_once_is_left_alone(self):
        with Supervisor(size=1, client=backtrack) as sup:
            future = sup.submit("3")
            is_running(future)
            (worker,) = sup.stats().workers
            stop(worker.pid)
            os.kill(worker.pid, signal.SIGCONT)
            assert future.result(LIMIT_S).text == "3"
            assert sup.stats().restarts == 0

    def test_while_it_connects(self, tmp_path, watch_time):
        options = {"where": "connect", "what": "stop", "path": str(tmp_path / "been")}
        with Supervisor(size=1, client=Clumsy, options=options) as sup:
            assert sup.map(["a"])[0].text == "a"
            assert watch_time() < FOUND_S + SLACK_S
            assert sup.stats().restarts == 1

    def test_the_first_one_while_it_loads_the_client(self, tmp_path, watch_time):
        options = {"where": "init", "what": "stop", "path": str(tmp_path / "been")}
        with pytest.raises(WorkerLost):
            Supervisor(size=1, client=Clumsy, options=options).close()
        assert watch_time() < FOUND_S + SLACK_S

    def test_a_conversation_goes_on_in_its_next_incarnation(self, watch_time):
        options = {"chunks": 4, "recall_on": "recall", "resumable": True}
        with Supervisor(size=1, client=PatientEcho, options=options) as sup:
            chat = sup.shared("chat")
            assert text_of(chat.query_and_receive("first")) == "first"
            turn = chat.query_and_receive("long")
            next(turn)
            waiting = chat.query("recall")
            assert chat.stats().busy_s > 0
            stop(chat.stats().pid)
            with pytest.raises(WorkerLost, match="was wedged"):
                list(turn)
            assert watch_time() < FOUND_S + SLACK_S
            assert waiting.result(LIMIT_S).text == "first"
            assert chat.incarnation == 2

    def test_a_command_to_an_idle_one_is_not_waited_for_in_vain(self, watch_time):
        with Supervisor(size=1, options={"resumable": True}) as sup, sup.session() as own:
            text_of(own.query_and_receive("a"))
            stop(own.stats().pid)
            with pytest.raises(WorkerLost):
                own.set_model("other")
            assert watch_time() < FOUND_S + SLACK_S
            assert text_of(own.query_and_receive("b")) == "b"

    @pytest.mark.parametrize("is_busy", [True, False])
    def test_it_does_not_hold_up_the_end(self, is_busy, nothing_left):
        sup = Supervisor(size=1, options={"delay_s": 600.0 if is_busy else 0.0})
        future = sup.submit("a")
        is_running(future) if is_busy else future.result(LIMIT_S)
        nothing_left |= run_dirs_of(os.getpid())
        (worker,) = sup.stats().workers
        stop(worker.pid)
        began = time.monotonic()
        sup.close()
        assert time.monotonic() - began < FOUND_S + SLACK_S
        assert not psutil.pid_exists(worker.pid)


class TestBlocked:
    def test_it_is_replaced_and_the_others_go_on(self, watch_time):
        with Supervisor(size=2, client=blocks, wedge_after_s=0.5) as sup:
            prompts = ["a", "block", *"bcdefghijk"]
            results = sup.map(prompts, return_exceptions=True)
            assert watch_time() < FOUND_S + SLACK_S
            lost = results.pop(1)
            assert isinstance(lost, WorkerLost)
            assert "its event loop blocked for over 0.5 s" in str(lost)
            assert [result.text for result in results] == [*"abcdefghijk"]

    def test_for_asyncio_too(self):
        async def scene():
            async with AsyncSupervisor(size=1, client=blocks, wedge_after_s=0.3) as sup:
                with pytest.raises(WorkerLost, match="was wedged"):
                    await sup.map(["block"])
                return (await sup.map(["a"]))[0].text

        assert asyncio.run(scene()) == "a"

    def test_a_turn_that_is_slow_but_not_blocked_is_left_alone(self):
        with Supervisor(size=2, options={"delay_s": 1.5}, wedge_after_s=0.2) as sup:
            future = sup.submit("a")
            is_running(future)
            eventually(lambda: sup.stats().oldest_running_s > 1.0)
            (worker,) = sup.stats().workers
            assert worker.busy_s > 1.0
            assert worker.silent_s < 0.5
            assert future.result(LIMIT_S).text == "a"
            stats = sup.stats()
            assert (stats.restarts, stats.oldest_running_s) == (0, 0.0)

    def test_a_sync_callable_is_left_alone_whatever_it_does(self):
        with Supervisor(size=1, client=backtrack, wedge_after_s=0.2) as sup:
            assert sup.map(["3"])[0].text == "3"
            assert sup.stats().restarts == 0

    def test_in_connect_it_is_a_client_that_cannot_start(self, tmp_path):
        options = {"where": "connect", "what": "block", "path": str(tmp_path / "been")}
        with Supervisor(size=1, client=Clumsy, options=options, wedge_after_s=0.3) as sup:
            with pytest.raises(ClientConnectError, match="event loop blocked for over"):
                sup.map(["a"])
            assert sup.map(["b"])[0].text == "b"

    def test_between_two_prompts_it_costs_none(self, tmp_path):
        """Its prompt has been answered, the next has not begun."""
        options = {"where": "disconnect", "what": "block", "path": str(tmp_path / "been")}
        options |= {"resettable": False}
        with Supervisor(size=1, client=Clumsy, options=options, wedge_after_s=0.3) as sup:
            assert [result.text for result in sup.map([*"abc"])] == [*"abc"]
            assert sup.stats().restarts == 1

    def test_one_that_does_not_exit_is_ended(self, tmp_path):
        """Its client could not start, and left something that the loop waits for."""
        options = {"where": "connect", "what": "linger", "path": str(tmp_path / "been")}
        with Supervisor(size=1, client=Clumsy, options=options) as sup:
            # Who comes before its start has failed hears of that; who comes after it need not.
            with contextlib.suppress(ClientConnectError):
                sup.map(["a"], timeout_s=LIMIT_S)
            assert sup.map(["b"], timeout_s=LIMIT_S)[0].text == "b"
            assert sup.stats().restarts == 1

    @pytest.mark.parametrize("value", [0, -1, "1", True, float("nan")])
    def test_the_limit_is_a_positive_number_of_seconds(self, value):
        with pytest.raises(InvalidOptions, match="wedge_after_s must be"):
            Supervisor(size=1, wedge_after_s=value)


SLEEPER = """
import sys
from soloist import Supervisor

options = {"delay_s": 4.0}
with Supervisor(size=2, options=options, wedge_after_s=0.4) as sup:
    futures = [sup.submit(prompt) for prompt in "ab"]
    while not all(future.running() for future in futures): pass
    print("running", flush=True)
    print([future.result().text for future in futures], sup.stats().restarts, flush=True)
"""


@pytest.mark.parametrize("is_whole_tree", [True, False])
def test_a_supervisor_that_was_stopped_itself_ends_nobody(is_whole_tree, nothing_left):
    """Nor if its workers were stopped with it, and go on a moment later."""
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout.readline() == b"running\n"
        nothing_left |= run_dirs_of(process.pid)
        workers = [
            p for p in descendants_of_runs(nothing_left) if is_whole_tree and not p.children()
        ]
        threading.Event().wait(0.7)  # some signs of life were asked for and given
        process.send_signal(signal.SIGSTOP)
        for worker in workers:
            worker.suspend()
        threading.Event().wait(1.5)  # what counts is that time passes
        process.send_signal(signal.SIGCONT)
        threading.Event().wait(0.1)
        for worker in workers:
            worker.resume()
        assert process.stdout.readline() == b"['a', 'b'] 0\n"
        assert process.wait(LIMIT_S) == 0
