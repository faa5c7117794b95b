"""The end, from every state that a Supervisor can be in: bounded, and nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from soloist import Result, SessionLost, SoloistError, Supervisor, SupervisorClosed
from tests.support import (
    LIMIT_S,
    descendants_of_runs,
    environment,
    eventually,
    is_running,
    run_dirs_of,
)
from tests.support_clients import PatientEcho, pid_of

GRACE_S = 0.2
BOUND_S = GRACE_S + 4.0 + 1.0 + 2.0 + 3.0
"""Interrupt, stop, TERM, KILL and the helper, as docs/limits.md says."""
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from soloist.supervisor.cli import main
sys.exit(main())
"""
SLACK_S = 3.0
"""What a busy machine may add."""


def stay():
    """Hold the whole process up."""
    while True:
        time.sleep(600)


class Endless(PatientEcho):
    """Takes for ever to connect while a file is there, or to disconnect."""

    def __init__(self, file="", stays=False):
        super().__init__(chunks=2, resumable=True)
        self._file = file
        self._stays = stays

    def _is_held(self):
        return bool(self._file) and os.path.exists(self._file)

    async def connect(self):
        if self._is_held():
            await asyncio.sleep(600)
        await super().connect()

    async def query(self, prompt):
        await super().query(prompt)
        if prompt == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    async def disconnect(self):
        if self._stays:
            stay()
        await super().disconnect()


class Scene:
    """A Supervisor in some state, and all that was asked of it."""

    def __init__(self, ends, tmp_path):
        self.ends = ends
        self.file = tmp_path / "endless"
        self.futures = []
        self.threads = []

    def start(self, size=1, **settings):
        self.sup = Supervisor(size, interrupt_grace_s=GRACE_S, **settings)
        self.ends.callback(self.sup.kill)
        return self.sup

    def ask(self, *prompts, to=None):
        ask = self.sup.submit if to is None else to.query
        self.futures += [ask(prompt) for prompt in prompts]
        return self.futures[-1]

    def in_thread(self, work):
        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()


def starting(scene):
    """The worker connects; requests wait for it, in the queue and in a conversation."""
    scene.file.touch()
    sup = scene.start(client=Endless, options={"file": str(scene.file)})
    scene.ask("a", "b")
    scene.ask("c", to=sup.shared("chat"))


def in_mid_turn(scene):
    sup = scene.start(client=Endless)
    is_running(scene.ask("long"))
    is_running(scene.ask("long", to=sup.shared("chat")))


def with_queued_work(scene):
    sup = scene.start(client=Endless)
    is_running(scene.ask("long"))
    scene.ask(*"abcdef")
    is_running(scene.ask("long", to=sup.shared("chat")))
    scene.ask(*"ghi", to=sup.shared("chat"))


def in_mid_stream(scene):
    sup = scene.start(client=Endless)
    for response in (sup.query("long"), sup.shared("chat").query_and_receive("long")):
        next(response)
        scene.in_thread(lambda response=response: scene.futures.append(outcome_of(response)))


def outcome_of(response):
    try:
        return list(response)
    except SoloistError as error:
        return error


def amid_a_restart(scene):
    sup = scene.start(2, client=Endless)
    is_running(scene.ask("long"))
    is_running(scene.ask("long", to=sup.shared("chat")))
    assert not sup.restart(0.05)
    scene.in_thread(sup.restart)


def in_the_backoff_of_a_replacement(scene):
    sup = scene.start(options={"fail_connect": "no"}, max_restarts=1000, restart_period_s=1000.0)
    eventually(lambda: not sup.stats().workers)
    scene.ask("a")


def with_stopped_workers(scene):
    """One amid a turn, one idle."""
    sup = scene.start(client=Endless)
    chat = sup.shared("chat")
    scene.ask("a", to=chat).result(LIMIT_S)
    is_running(scene.ask("long"))
    for pid in (sup.stats().workers[0].pid, chat.stats().pid):
        os.kill(pid, signal.SIGSTOP)


def with_a_worker_that_ignores_stop_and_sigterm(scene):
    scene.start(client=Endless, options={"stays": True}, isolation="worker")
    scene.ask("deaf").result(LIMIT_S)


def amid_recycling(scene):
    """The worker has been asked to exit, and does not."""
    sup = scene.start(
        client=Endless,
        options={"stays": True},
        isolation="worker",
        max_requests_per_worker=1,
    )
    chat = sup.shared("chat")
    scene.ask("a").result(LIMIT_S)
    scene.ask("b", to=chat).result(LIMIT_S)
    eventually(lambda: sup.stats().workers[0].state == "stopping")
    scene.ask("c")
    scene.ask("d", to=chat)


def with_a_lost_session(scene):
    sup = scene.start(client=PatientEcho, options={"chunks": 2})
    chat = sup.shared("chat")
    scene.ask("a", to=chat).result(LIMIT_S)
    os.kill(chat.stats().pid, signal.SIGKILL)
    eventually(lambda: chat.stats().state == "lost")
    assert isinstance(scene.ask("b", to=chat).exception(LIMIT_S), SessionLost)


def with_a_callable_that_never_returns(scene):
    scene.start(client=lambda prompt: __import__("time").sleep(600))
    is_running(scene.ask("a"))
    scene.ask("b")


def with_threads_that_never_stop_submitting(scene):
    sup = scene.start(max_pending=10**9)

    def submit():
        with contextlib.suppress(SupervisorClosed):
            while True:
                sup.submit("a")

    for _ in range(2):
        scene.in_thread(submit)
    eventually(lambda: sup.stats().answered)


SCENES = [
    starting,
    in_mid_turn,
    with_queued_work,
    in_mid_stream,
    amid_a_restart,
    in_the_backoff_of_a_replacement,
    with_stopped_workers,
    with_a_worker_that_ignores_stop_and_sigterm,
    amid_recycling,
    with_a_lost_session,
    with_a_callable_that_never_returns,
    with_threads_that_never_stop_submitting,
]


@pytest.fixture
def scene(tmp_path):
    descriptors = set(os.listdir("/proc/self/fd"))
    threads = set(threading.enumerate())
    with contextlib.ExitStack() as ends:
        scene = Scene(ends, tmp_path)
        yield scene
        run_dirs = {str(scene.sup._reactor._thread._folder.path)}
        assert scene.sup.is_closed
        for thread in scene.threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        for future in scene.futures:
            if hasattr(future, "exception"):
                future = future.exception(0) or future.result(0)
            assert isinstance(future, Result | SoloistError), future
        assert descendants_of_runs(run_dirs) == []
        assert not any(map(os.path.exists, run_dirs))
    assert not [t for t in set(threading.enumerate()) - threads if t.name.startswith("soloist")]
    del scene.sup
    assert set(os.listdir("/proc/self/fd")) <= descriptors


@contextlib.contextmanager
def within(seconds):
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds + SLACK_S


@pytest.mark.parametrize("enter", SCENES)
class TestFromEveryState:
    def test_close_is_bounded_and_leaves_nothing(self, scene, enter):
        enter(scene)
        with within(0.1 + BOUND_S):
            scene.sup.close(0.1)

    def test_drain_gives_up_in_time_and_kill_ends_it(self, scene, enter):
        enter(scene)
        with within(0.1):
            scene.sup.drain(0.1)
        with pytest.raises(SupervisorClosed):
            raise scene.sup.submit("late").exception(LIMIT_S)
        with within(0.0):
            scene.sup.kill()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_to_the_command_kills_what_ignores_everything(second, tmp_path):
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-c",
                COMMAND,
                "map",
                "--size",
                "1",
                "--max-requests-per-worker",
                "1",
            ),
            *("--set", "delay_s=600", "--set", "ignore_interrupt=true"),
            *("--set", f'log="{tmp_path / "log"}"'),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    with process.stdout, process.stderr:
        process.stdin.write(b"a\nb\n")
        process.stdin.close()
        eventually((tmp_path / "log").exists)
        run_dirs = run_dirs_of(process.pid)
        assert run_dirs
        process.send_signal(signal.SIGINT)
        # It waits for what runs; the note that it does so is for terminals.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        with within(0.0):
            process.send_signal(second)
            assert process.wait(LIMIT_S) == 130
        assert process.stdout.read() == process.stderr.read() == b""
    assert descendants_of_runs(run_dirs) == []
    assert not any(map(os.path.exists, run_dirs))


HOLDER = """
    import os, sys, signal
    from soloist import Supervisor
    from tests.support_clients import PatientEcho
    sup = Supervisor(2, client=PatientEcho, options={"chunks": 2, "resumable": True})
    chat, own = sup.shared("chat"), sup.session()
    if "idle" not in sys.argv:
        responses = [sup.query("long"), chat.query_and_receive("long")]
        for response in responses:
            next(response)
        own.query("long")
        next(own.receive_response())
    print("up", flush=True)
    sys.stdin.read()
"""


class TestForgotten:
    """Nobody closes it: the process just ends."""

    @pytest.mark.parametrize("how", ["", "sys.exit(3)", "os._exit(4)", "del sup, chat, own"])
    @pytest.mark.parametrize("what", ["idle", "busy"])
    def test_the_process_ends_soon_and_leaves_nothing(self, what, how):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOLDER) + how, what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(PYTHONWARNINGS="default"),
        )
        with process.stdout:
            assert process.stdout.readline() == b"up\n"
            run_dirs = eventually(lambda: run_dirs_of(process.pid))
            with within(10.0):
                process.stdin.close()
                process.wait(LIMIT_S)
            assert process.returncode == {"sys.exit(3)": 3, "os._exit(4)": 4}.get(how, 0)
        eventually(lambda: not descendants_of_runs(run_dirs), timeout_s=2)
        eventually(lambda: not any(map(os.path.exists, run_dirs)), timeout_s=2)


def test_a_worker_that_does_not_exit_holds_up_recycling_for_a_bounded_time(tmp_path):
    """It is killed, and its successor answers."""

    class Stays(PatientEcho):
        async def disconnect(self):
            stay()

    with Supervisor(1, client=Stays, isolation="worker", max_requests_per_worker=1) as sup:
        with within(2 * 5.0):
            assert [result.num_turns for result in sup.map(["a", "b"])] == [1, 1]
        sup.kill()


def test_close_amid_quick_recycling_gives_every_request_its_outcome():
    for _ in range(3):
        sup = Supervisor(2, client=pid_of, max_requests_per_worker=2)
        futures = [sup.submit("p") for _ in range(200)]
        futures[20].result(LIMIT_S)
        sup.close(0.0)
        errors = [future.exception(0) for future in futures]
        assert {type(error) for error in errors} <= {type(None), SupervisorClosed}
        assert sum(error is None for error in errors) >= 20


def test_who_waits_for_a_restart_hears_of_the_end_of_the_io_thread(caplog):
    sup = Supervisor(1, client=PatientEcho)
    future = sup.submit("long")
    is_running(future)
    assert not sup.restart(0.05)
    waits = threading.Thread(target=sup.restart)
    waits.start()
    eventually(lambda: len(sup._reactor._thread._roll_waiters) == 2)

    def fail():
        raise KeyError("a defect")

    sup._reactor.inbox.post(fail)
    waits.join(LIMIT_S)
    assert not waits.is_alive()
    assert type(future.exception(LIMIT_S)) is SupervisorClosed
    assert "a defect" in caplog.text
    sup.close()
