"""Processes: how programs may be written that use Soloist, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from soloist import ClientNotSerializable, Supervisor
from tests.support import (
    LIMIT_S,
    descendants_of_runs,
    environment,
    eventually,
    run_dirs_of,
    run_python,
)

ONE_LINER = (
    "from soloist import Supervisor; "
    "print(len(Supervisor(size=4, client=lambda p: p.upper()).map(map(str, range(2000)))))"
)

USER_CODE = """
    import asyncio, dataclasses, enum, functools, threading
    from soloist import Supervisor

    SUFFIX = "!"

    class Colour(enum.Enum):
        RED = "red"

    @dataclasses.dataclass
    class Point:
        x: int

    class Base:
        def greet(self):
            return "base"

    class Child(Base):
        def greet(self):
            return "child of " + super().greet()

    def is_even(n):
        return True if n == 0 else is_odd(n - 1)

    def is_odd(n):
        return False if n == 0 else is_even(n - 1)

    @functools.lru_cache
    def cached(n):
        return n * 2

    LOCK = threading.Lock()

    def with_everything(prompt):
        return f"{prompt} {is_even(10)} {Colour('red').name} {Point(3)} {Child().greet()}{SUFFIX}"

    @functools.lru_cache
    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    def with_a_cache(prompt):
        return f"{prompt} {cached(4)} {fib(30)}"

    def with_a_lock(prompt):
        with LOCK:
            return f"{prompt} {cached(4)} {Colour('red').name}"

    async def coroutine(prompt):
        await asyncio.sleep(0)
        return f"{prompt} {SUFFIX}"

    for client in (with_everything, with_a_cache, with_a_lock, coroutine):
        with Supervisor(size=1, client=client) as sup:
            print(sup.map(["p"])[0].text)
"""


@pytest.fixture
def nothing_left():
    """Fails if the test leaves a process of any Supervisor, or its folder, behind."""
    run_dirs: set[str] = set()
    yield run_dirs
    eventually(lambda: not descendants_of_runs(run_dirs), timeout_s=2)
    eventually(lambda: not any(map(os.path.exists, run_dirs)), timeout_s=2)


class TestPrograms:
    def test_python_c_without_a_main_guard_exits_by_itself(self):
        done = run_python("-c", ONE_LINER, PYTHONWARNINGS="default")
        assert (done.returncode, done.stdout) == (0, "2000\n"), done.stderr

    def test_code_of_the_main_module_arrives(self, tmp_path):
        (tmp_path / "script.py").write_text(textwrap.dedent(USER_CODE))
        done = run_python("script.py", cwd=tmp_path)
        assert done.stdout.splitlines() == [
            "p True RED Point(x=3) child of base!",
            "p 8 832040",
            "p 8 RED",
            "p !",
        ], done.stderr

    def test_the_main_module_is_not_imported_again(self, tmp_path):
        (tmp_path / "script.py").write_text(
            "open('log', 'a').write('x')\nfrom soloist import Supervisor\n"
            "with Supervisor(size=2, client=lambda p: p) as sup: sup.map('ab')\n"
        )
        assert run_python("script.py", cwd=tmp_path).returncode == 0
        assert (tmp_path / "log").read_text() == "x"

    def test_code_from_exec_as_in_a_notebook_arrives(self):
        cell = textwrap.dedent(USER_CODE)
        done = run_python("-c", f"exec({cell!r}, {{'__name__': '__main__'}})")
        assert done.stdout.count("\n") == 4, done.stderr
        done = run_python("-c", f"exec({cell!r}, {{'__name__': 'cell_1'}})")
        assert done.stdout.count("\n") == 4, done.stderr

    def test_modules_named_as_ours_beside_the_script_do_no_harm(self, tmp_path):
        for name in ("worker", "protocol", "supervisor", "guard", "channel"):
            (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
        (tmp_path / "script.py").write_text(f"{ONE_LINER}\n")
        done = run_python("script.py", cwd=tmp_path, PYTHONWARNINGS="default")
        assert done.stdout == "2000\n", done.stderr

    def test_a_module_beside_the_script_can_be_used_by_the_client(self, tmp_path):
        (tmp_path / "helper.py").write_text("def shout(p): return p.upper() + '!'")
        (tmp_path / "script.py").write_text(
            "import helper\nfrom soloist import Supervisor\n"
            "with Supervisor(size=1, client=helper.shout) as sup: print(sup.map(['a'])[0].text)\n"
            "with Supervisor(size=1, client=lambda p: helper.shout(p)) as sup:\n"
            "    print(sup.map(['b'])[0].text)\n"
        )
        assert run_python("script.py", cwd=tmp_path).stdout == "A!\nB!\n"

    def test_two_supervisors_each_see_their_own_environment(self, monkeypatch):
        def read(prompt):
            return f"{prompt} {os.environ.get('SOLOIST_TEST', 'unset')}"

        monkeypatch.setenv("SOLOIST_TEST", "one")
        with Supervisor(size=1, client=read) as first:
            monkeypatch.setenv("SOLOIST_TEST", "two")
            with Supervisor(size=1, client=lambda p: "second " + read(p)) as second:
                assert second.map(["a"])[0].text == "second a two"
                assert first.map(["a"])[0].text == "a one"

    def test_what_cannot_travel_is_named(self):
        import threading

        running = threading.current_thread()

        def client(prompt):
            return prompt + running.name

        with pytest.raises(ClientNotSerializable, match="running"):
            Supervisor(client=client)

    def test_what_cannot_be_loaded_in_a_worker_is_refused_by_the_constructor(self, tmp_path):
        (tmp_path / "script.py").write_text(
            "import os, sys, types\nfrom soloist import ClientNotSerializable, Supervisor\n"
            "class Client:\n"
            "    def __call__(self, prompt): return prompt\n"
            "    def __setstate__(self, state): raise ValueError('not here')\n"
            "    def __getstate__(self): return {'a': 1}\n"
            "try: Supervisor(size=1, client=Client())\n"
            "except ClientNotSerializable as error: print('not here' in str(error))\n"
        )
        done = run_python("script.py", cwd=tmp_path)
        assert done.stdout == "True\n", done.stderr

    def test_a_fork_of_the_callers_process_is_refused_and_harms_nothing(self):
        done = run_python(
            "-W",
            "ignore::DeprecationWarning",  # Python 3.12 warns of any fork beside threads
            "-c",
            "import os\nfrom soloist import Supervisor, SupervisorClosed\n"
            "sup = Supervisor(size=1, client=lambda p: p)\n"
            "pid = os.fork()\n"
            "if not pid:\n"
            "    try: sup.submit('a')\n"
            "    except SupervisorClosed: os._exit(7)\n"
            "    os._exit(1)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
            "print(sup.submit('b').result().text)\n"
            "sup.close()\n",
        )
        assert done.stdout == "7\nb\n", done.stderr

    def test_a_failed_preload_is_an_error_that_names_the_module(self):
        from soloist import SoloistError

        with pytest.raises(SoloistError, match="no_such_module"):
            Supervisor(size=1, preload=["no_such_module"])

    def test_a_workers_print_does_not_reach_the_callers_output(self):
        done = run_python(
            "-c",
            "from soloist import Supervisor\n"
            "with Supervisor(size=1, client=lambda p: print('noise') or p) as sup:\n"
            "    print(sup.map(['a'])[0].text)\n",
        )
        assert done.stdout == "a\n"


class TestEnds:
    @pytest.mark.parametrize(
        "ending", ["", "sys.exit(3)", "raise KeyError", "os.kill(os.getpid(), 15)"]
    )
    def test_a_forgotten_supervisor_leaves_nothing(self, nothing_left, ending):
        process = start_holder("lambda p: __import__('time').sleep(600)", ending)
        nothing_left.update(wait_for_runs(process))
        process.stdin.close()
        process.wait(LIMIT_S)
        process.stdout.close()

    @pytest.mark.parametrize("moment", ["starting", "running"])
    def test_sigkill_of_the_supervisors_process_leaves_nothing(self, nothing_left, moment):
        process = start_holder("lambda p: __import__('time').sleep(600)", "")
        if moment == "running":
            assert process.stdout.readline() == b"running\n"
        nothing_left.update(wait_for_runs(process))
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()

    def test_sigkill_leaves_no_grandchild_not_even_a_daemon(self, nothing_left, tmp_path):
        """The grandchild leaves its session, ignores SIGTERM and loses its parent."""
        daemon = (
            "import os, signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "os.fork() and os._exit(0)\n"
            "os.setsid()\n"
            f"open({str(tmp_path / 'pid.new')!r}, 'w').write(str(os.getpid()))\n"
            f"os.rename({str(tmp_path / 'pid.new')!r}, {str(tmp_path / 'pid')!r})\n"
            "time.sleep(600)\n"
        )
        client = (
            f"lambda p: __import__('subprocess').run([sys.executable, '-c', {daemon!r}]) and "
            "__import__('time').sleep(600)"
        )
        process = start_holder(client, "")
        eventually((tmp_path / "pid").exists)
        grandchild = psutil.Process(int((tmp_path / "pid").read_text()))
        nothing_left.update(wait_for_runs(process))
        process.kill()
        process.wait()
        eventually(lambda: not grandchild.is_running(), timeout_s=2)
        process.stdin.close()
        process.stdout.close()

    def test_a_stopped_worker_takes_its_children_along(self, tmp_path):
        def client(prompt):
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            return str(child.pid)

        with Supervisor(size=1, client=client) as sup:
            child = psutil.Process(int(sup.map(["a"])[0].text))
            assert child.is_running()
        assert not child.is_running()

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the helper alone knows it")
    def test_the_exit_code_is_known_before_the_helper_has_reaped_the_worker(self):
        def client(prompt):
            if prompt == "die":
                os._exit(7)
            return prompt

        with Supervisor(size=1, client=client) as sup:
            helper = sup._reactor._thread._forkserver.pid
            os.kill(helper, signal.SIGSTOP)
            try:
                assert sup.submit("die").exception(LIMIT_S).exitcode == 7
            finally:
                os.kill(helper, signal.SIGCONT)
            assert sup.submit("a").result(LIMIT_S).text == "a"

    def test_ctrl_c_at_the_terminal_does_not_reach_the_workers(self):
        """Workers are in process groups of their own."""
        with Supervisor(size=1, client=lambda p: f"{os.getpgrp()} {os.getpid()}") as sup:
            group, pid = sup.map(["a"])[0].text.split()
        assert group == pid
        assert int(group) != os.getpgrp()

    def test_a_keyboard_interrupt_in_the_block_ends_it_soon(self, nothing_left):
        process = start_holder("lambda p: __import__('time').sleep(600)", "")
        assert process.stdout.readline() == b"running\n"
        nothing_left.update(wait_for_runs(process))
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) in {1, -signal.SIGINT}
        process.stdin.close()
        process.stdout.close()

    def test_the_folder_of_a_run_that_died_whole_is_removed_by_the_next_start(self):
        process = start_holder("lambda p: __import__('time').sleep(600)", "")
        (run_dir,) = wait_for_runs(process)
        for victim in [process.pid, *(p.pid for p in descendants_of_runs({run_dir}))]:
            os.kill(victim, signal.SIGSTOP)
        for victim in [*(p.pid for p in descendants_of_runs({run_dir})), process.pid]:
            os.kill(victim, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
        assert os.path.exists(run_dir)
        Supervisor(size=1).close()
        assert not os.path.exists(run_dir)


def start_holder(client: str, ending: str) -> subprocess.Popen:
    """A process that holds a Supervisor amid a prompt, then reads its input and ends."""
    code = (
        "import os, sys\nfrom soloist import Supervisor\n"
        f"sup = Supervisor(size=2, client={client})\n"
        "future = sup.submit('a')\n"
        "while not future.running(): pass\n"
        "print('running', flush=True)\n"
        "sys.stdin.read()\n"
        f"{ending}\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(PYTHONWARNINGS="default"),
    )


def wait_for_runs(process: subprocess.Popen) -> set[str]:
    return eventually(lambda: run_dirs_of(process.pid))


def test_the_snapshot_of_the_state_is_plain_data():
    import dataclasses

    with Supervisor(size=1) as sup:
        json.dumps(dataclasses.asdict(sup.stats()))
