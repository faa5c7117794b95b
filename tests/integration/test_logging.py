"""What the library and its workers say, from real processes."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from soloist import (
    ClientConnectError,
    ClientNotFound,
    RestartLimitReached,
    Result,
    Retry,
    SessionLost,
    SoloistError,
    Supervisor,
    WorkerLost,
)
from soloist.supervisor import events, output
from tests.support import LIMIT_S, ROOT, environment, eventually, run_python


class Heard(logging.Handler):
    """Keeps records, and lets a test wait for one."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.came = threading.Condition()

    def emit(self, record):
        with self.came:
            self.records.append(record)
            self.came.notify_all()

    def wait_for(self, predicate):
        with self.came:
            assert self.came.wait_for(lambda: any(map(predicate, self.records)), LIMIT_S)

    def lines(self, stream):
        return [r.getMessage() for r in self.records if getattr(r, "stream", "") == stream]

    def events(self):
        return [r.event for r in self.records if hasattr(r, "event")]

    def of(self, event):
        return [r for r in self.records if getattr(r, "event", "") == event.name]


@pytest.fixture(autouse=True)
def buffered(monkeypatch):
    """As users run it: what is printed is written when a line, or the process, ends."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture
def heard():
    logger, handler = logging.getLogger("soloist"), Heard()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)
    for record in handler.records:
        record.getMessage()  # each can be formatted


def talk(prompt):
    print("out", prompt)
    print("err", prompt, file=sys.stderr)
    subprocess.run(["sh", "-c", f"echo child {prompt}"])
    print("unfinished", end="")
    return prompt


def die(prompt):
    print("first line", file=sys.stderr)
    print("last words of", prompt, file=sys.stderr)
    os._exit(7)


class Conversation:
    """A client for conversations; its prompts say what happens."""

    turns = 0

    async def connect(self):
        print("connecting", file=sys.stderr)

    async def query(self, prompt):
        self.prompt = prompt

    async def receive_response(self):
        from soloist.protocol.content import ResultMessage

        if self.prompt == "die":
            die(self.prompt)
        if self.prompt == "wait":
            import asyncio

            await asyncio.sleep(600)
        self.turns += 1
        yield ResultMessage(
            subtype="success",
            duration_ms=0,
            duration_api_ms=0,
            is_error=False,
            num_turns=self.turns,
            session_id="s",
            result=str(self.turns),
        )

    async def interrupt(self): ...
    async def disconnect(self): ...


class Resumable(Conversation):
    async def snapshot(self):
        return str(self.turns).encode()

    async def restore(self, state):
        self.turns = int(state)


class TestLines:
    def test_what_workers_print_is_logged(self, heard):
        with Supervisor(size=1, client=talk) as sup:
            sup.map(["a", "b"])
        assert heard.lines("stdout") == [
            "out a",
            "child a",
            "unfinishedout b",
            "child b",
            "unfinished",
        ]
        assert heard.lines("stderr") == ["err a", "err b"]
        out = next(r for r in heard.records if r.getMessage() == "out a")
        assert (out.name, out.levelname) == ("soloist.worker.0", "INFO")
        assert (out.worker, out.incarnation, out.stream) == (0, 1, "stdout")
        err = next(r for r in heard.records if r.getMessage() == "err a")
        assert (err.levelname, err.stream) == ("WARNING", "stderr")

    def test_nothing_of_it_reaches_the_terminal_unasked(self):
        done = run_python(
            "-c",
            "import os, sys\nfrom soloist import Supervisor\n"
            "def client(prompt):\n"
            "    print('out', flush=True); print('err', file=sys.stderr)\n"
            "    if prompt == 'b': os._exit(1)\n"
            "    os.system('echo child >&2'); return prompt\n"
            "with Supervisor(size=1, client=client) as sup:\n"
            "    sup.map('ab', return_exceptions=True)\n"
            "    with sup.session() as own: pass\n",
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_a_conversations_worker_has_a_logger_of_its_own(self, heard):
        size = 77  # no other test has so many workers
        with Supervisor(size=size, client=Conversation) as sup, sup.session() as own:
            own.query("a")
            list(own.receive_response())
        record = next(r for r in heard.records if r.getMessage() == "connecting")
        of_session = f"soloist.worker.{size}"
        assert (record.name, record.worker) in {("soloist.worker.0", 0), (of_session, size)}
        assert of_session in {r.name for r in heard.records if r.getMessage() == "connecting"}
        assert of_session not in logging.root.manager.loggerDict

    def test_what_the_library_warns_of_in_a_worker_is_logged(self, heard):
        def client(prompt):
            logging.getLogger("soloist.worker").warning("mind %s", prompt)
            return prompt

        with Supervisor(size=1, client=client) as sup:
            sup.map(["a"])
        assert heard.lines("stderr") == ["mind a"]

    def test_the_helpers_words_are_logged_once(self, heard, tmp_path, monkeypatch):
        (tmp_path / "chatty.py").write_text(
            "import sys\nprint('hello')\nprint('x' * 70_000, file=sys.stderr)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        with Supervisor(size=2, client=lambda p: p, preload=["chatty"]) as sup:
            sup.map("abcd")
        assert heard.lines("stdout") == ["hello"]
        record = next(r for r in heard.records if r.getMessage() == "hello")
        assert (record.name, record.levelname) == ("soloist.helper", "INFO")
        assert "bytes cut" in "".join(heard.lines("stderr"))

    def test_a_helper_that_cannot_start_says_why(self, tmp_path, monkeypatch):
        (tmp_path / "deadly.py").write_text(
            "import os, sys\nprint('no licence', file=sys.stderr)\nos._exit(3)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(ClientConnectError, match="no licence"):
            Supervisor(size=1, preload=["deadly"])
        assert set(os.listdir("/proc/self/fd")) <= before

    def test_a_worker_that_prints_for_ever_starves_nobody_and_is_never_blocked(self, heard):
        logging.getLogger("soloist").setLevel(logging.ERROR)

        def client(prompt):
            if prompt != "flood":
                return prompt
            for _ in range(300_000):
                print("all work and no play")
            return "done"

        with Supervisor(size=2, client=client) as sup:
            flood = sup.submit("flood")
            answers = [sup.submit(str(i)).result(LIMIT_S).text for i in range(200)]
            assert answers == [str(i) for i in range(200)]
            assert flood.result(LIMIT_S).text == "done"

    def test_a_handler_that_blocks_stops_neither_work_nor_closing(self, heard):
        gate = threading.Event()
        heard.emit = lambda record: gate.wait(LIMIT_S)
        with Supervisor(size=2, client=talk) as sup:
            assert len(sup.map(map(str, range(20)))) == 20
        assert not [t for t in threading.enumerate() if t.name == "soloist-io"]
        gate.set()
        eventually(lambda: not [t for t in threading.enumerate() if t.name == "soloist-log"])

    def test_a_handler_may_call_the_supervisor(self, heard):
        seen = []
        with Supervisor(size=1, client=talk) as sup:
            heard.emit = lambda record: seen.append(sup.stats().size)
            sup.map(["a"])
        assert seen

    def test_nothing_is_left_open(self, heard):
        with Supervisor(size=1, client=talk) as sup:
            sup.map(["warm"])
        before = set(os.listdir("/proc/self/fd"))
        with Supervisor(size=2, client=talk) as sup:
            sup.map("abcd")
            os.kill(sup.stats().workers[0].pid, signal.SIGKILL)
            sup.map("abcd", return_exceptions=True)
        assert set(os.listdir("/proc/self/fd")) <= before
        assert not [t for t in threading.enumerate() if t.name.startswith("soloist")]

    def test_each_worker_takes_ten_descriptors(self):
        with Supervisor(size=1, client=talk) as sup:
            before = len(os.listdir("/proc/self/fd"))
            sessions = [sup.session() for _ in range(4)]
            assert len(os.listdir("/proc/self/fd")) - before <= 10 * 4
            for session in sessions:
                session.close()

    def test_a_grandchild_that_keeps_the_pipe_delays_no_end(self, heard):
        def client(prompt):
            subprocess.Popen(["sleep", "600"], start_new_session=True)
            die(prompt)

        with Supervisor(size=1, client=client) as sup:
            with pytest.raises(WorkerLost) as caught:
                sup.submit("x").result(LIMIT_S)
            assert caught.value.stderr == "first line\nlast words of x"


class TestErrors:
    def test_a_lost_worker_says_its_last_words(self):
        with Supervisor(size=1, client=die) as sup, pytest.raises(WorkerLost) as caught:
            sup.map(["me"])
        error = caught.value
        assert (error.exitcode, error.stderr) == (7, "first line\nlast words of me")
        assert str(error).endswith(". Its last words: last words of me")

    def test_what_it_wrote_just_before_its_end_is_read_first(self, monkeypatch):
        monkeypatch.setattr(output, "_TURN_BYTES", 64)
        monkeypatch.setattr(output, "_LEAST_BYTES", 64)

        def client(prompt):
            os.write(2, b"line\n" * 8000)
            die(prompt)

        with Supervisor(size=1, client=client) as sup, pytest.raises(WorkerLost) as caught:
            sup.map(["me"])
        assert caught.value.stderr.endswith("first line\nlast words of me")

    def test_a_silent_one_has_none(self):
        with (
            Supervisor(size=1, client=lambda _: os._exit(1)) as sup,
            pytest.raises(WorkerLost) as caught,
        ):
            sup.map(["a"])
        assert caught.value.stderr == ""
        assert str(caught.value).endswith("it may have run in part")

    def test_the_restart_limit_names_its_causes(self):
        with Supervisor(size=1, client=die, max_restarts=2) as sup:
            results = sup.map("abcdef", return_exceptions=True)
        limit = next(r for r in results if isinstance(r, RestartLimitReached))
        assert [type(cause) for cause in limit.causes] == [WorkerLost] * 3
        assert [cause.stderr[-1] for cause in limit.causes] == ["a", "b", "c"]
        assert "last words of c" in str(limit)

    def test_at_the_limit_all_who_wait_are_told_together(self):
        with Supervisor(size=2, client=die, max_restarts=3) as sup:
            futures = [sup.submit(str(i)) for i in range(200)]
            first = next(
                f for f in futures if isinstance(f.exception(LIMIT_S), RestartLimitReached)
            )
            assert first.exception().started is False
            for future in futures:
                future.exception(1.0)

    def test_the_causes_of_failed_starts_are_their_typed_errors(self):
        options = {"fail_connect": "no credentials"}
        with Supervisor(size=1, options=options, max_restarts=1) as sup:
            errors = []
            while not errors or not isinstance(errors[-1], RestartLimitReached):
                with pytest.raises(SoloistError) as caught:
                    sup.map(["a"])
                errors.append(caught.value)
        assert [type(cause) for cause in errors[-1].causes] == [ClientConnectError] * 2

    def test_a_poison_prompt_costs_itself_alone(self):
        def client(prompt):
            if prompt == "poison":
                die(prompt)
            return prompt

        retry = Retry(attempts=8, first_delay_s=0.01, max_delay_s=0.01, may_have_run=True)
        with Supervisor(size=1, client=client, max_restarts=1, retry=retry) as sup:
            poison = sup.submit("poison")
            others = [sup.submit(str(i)) for i in range(10)]
            error = poison.exception(LIMIT_S)
            assert type(error) is WorkerLost
            assert error.__cause__ is not None
            assert [f.result(LIMIT_S).text for f in others] == [str(i) for i in range(10)]
            assert sup.stats().restarts >= 8

    @pytest.mark.parametrize("number", range(3))
    def test_a_poison_prompt_alone_never_reaches_the_limit(self, number):
        """Nothing else runs between its attempts, so that every worker dies before an answer."""
        retry = Retry(attempts=6, first_delay_s=0.0, max_delay_s=0.0, may_have_run=True)
        with Supervisor(size=1, client=die, max_restarts=number, retry=retry) as sup:
            error = sup.submit("poison").exception(LIMIT_S)
        kind = RestartLimitReached if number == 0 else WorkerLost
        assert type(error) is kind


class TestEvents:
    def test_of_a_run_that_goes_well(self, heard):
        with Supervisor(size=1, client=talk) as sup:
            sup.map(["a"])
        assert heard.events() == [
            "worker.spawned",
            "worker.loaded",
            "worker.ready",
            *["supervisor.closing"] * 3,
            "worker.exited",
            "supervisor.closing",
        ]
        (exited,) = heard.of(events.WORKER_EXITED)
        assert (exited.worker, exited.incarnation, exited.exitcode) == (0, 1, 0)
        assert (exited.state, exited.signal, exited.levelname) == ("stopping", None, "INFO")
        phases = [record.phase for record in heard.of(events.CLOSING)]
        assert phases == ["drain", "interrupt", "stop", "done"]
        assert {r.name for r in heard.records if hasattr(r, "event")} == {"soloist.supervisor"}

    def test_of_a_worker_that_dies(self, heard):
        def client(prompt):
            if prompt == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            return prompt

        retry = Retry(attempts=2, first_delay_s=0.0, may_have_run=True)
        with Supervisor(size=1, client=client, retry=retry) as sup:
            results = sup.map(["a", "die", "b"], return_exceptions=True)
        assert [type(r) for r in results] == [Result, WorkerLost, Result]
        exits = [r for r in heard.of(events.WORKER_EXITED) if r.state == "ready"]
        assert [(r.exitcode, r.signal) for r in exits] == [(-9, "SIGKILL")] * 2
        assert [r.incarnation for r in heard.of(events.WORKER_REPLACED)] == [2, 3]
        (retried,) = heard.of(events.REQUEST_RETRIED)
        assert (retried.index, retried.attempts, retried.code) == (1, 1, "worker_lost")
        (lost,) = heard.of(events.REQUEST_LOST)
        assert (lost.index, lost.worker, lost.levelname) == (1, 0, "WARNING")

    def test_of_the_restart_limit(self, heard):
        with Supervisor(size=1, client=die, max_restarts=1) as sup:
            sup.map("abcdef", return_exceptions=True)
        (reached,) = heard.of(events.RESTART_LIMIT_REACHED)
        assert (reached.requests, reached.levelname) == (4, "WARNING")
        (replaced,) = heard.of(events.WORKER_REPLACED)
        assert replaced.delay_s >= 0.025

    def test_of_a_client_that_cannot_start(self, heard):
        with (
            Supervisor(size=1, options={"fail_connect": "no"}, max_restarts=1) as sup,
            pytest.raises(ClientConnectError),
        ):
            sup.map(["a"])
        broken = heard.of(events.WORKER_BROKEN)
        assert broken[0].code == "client_connect_error"
        assert len(broken) == len({record.incarnation for record in broken})

    def test_of_turns_that_are_interrupted_and_of_one_that_does_not_end(self, heard):
        with Supervisor(size=1, client=Conversation, interrupt_grace_s=0.05) as sup:
            future = sup.submit("wait", timeout_s=0.2)
            assert future.exception(LIMIT_S)
            heard.wait_for(lambda r: getattr(r, "event", "") == "worker.killed")
        assert heard.of(events.TURN_INTERRUPTED)[0].lease == 1
        assert heard.of(events.WORKER_KILLED)[0].levelname == "WARNING"

    def test_of_conversations(self, heard):
        with Supervisor(size=1, client=Resumable) as sup:
            chat = sup.shared("talk", idle_timeout_s=None)
            list(chat.query_and_receive("a"))
            os.kill(sup.stats().sessions[0].pid, signal.SIGKILL)
            heard.wait_for(lambda r: getattr(r, "event", "") == "session.resumed")
            chat.close()
            list(sup.shared("short", idle_timeout_s=0.05).query_and_receive("a"))
            heard.wait_for(lambda r: getattr(r, "event", "") == "session.idle")
        told = [(r.event, r.session) for r in heard.records if hasattr(r, "session")]
        assert told == [
            ("session.opened", "talk"),
            ("session.resumed", "talk"),
            ("session.closed", "talk"),
            ("session.opened", "short"),
            ("session.idle", "short"),
            ("session.closed", "short"),
        ]
        assert heard.of(events.SESSION_RESUMED)[0].incarnation == 2

    def test_of_a_conversation_that_is_lost(self, heard):
        with Supervisor(size=1, client=Conversation) as sup:
            chat = sup.shared("talk")
            list(chat.query_and_receive("a"))
            with pytest.raises(WorkerLost) as caught:
                list(chat.query_and_receive("die"))
            assert caught.value.stderr.endswith("last words of die")
            with pytest.raises(SessionLost, match="last words of die"):
                list(chat.query_and_receive("b"))
            chat.close()
        (lost,) = heard.of(events.SESSION_LOST)
        assert (lost.session, lost.code, lost.levelname) == ("talk", "session_lost", "WARNING")
        assert len(heard.of(events.SESSION_CLOSED)) == 1

    def test_of_closing_by_force(self, heard):
        sup = Supervisor(size=1, client=lambda _: signal.pause())
        sup.submit("a")
        heard.wait_for(lambda r: getattr(r, "event", "") == "worker.ready")
        sup.kill()
        assert [r.phase for r in heard.of(events.CLOSING_BY_FORCE)][-1] == "kill"


def test_permanent_failures_of_a_start_are_told_and_transient_ones_tried_again(tmp_path):
    """In a conversation, which tries a start again before anybody is told."""

    class Client(Conversation):
        async def connect(self):
            print("x", file=(tmp_path / "starts").open("a"))
            raise ClientNotFound("no CLI")

    with Supervisor(size=1, client=Client) as sup:
        with pytest.raises(ClientNotFound):
            sup.session()
        starts = len((tmp_path / "starts").read_text().split())
        assert starts <= 2  # the pool's first worker and the conversation's


class TestCommandLine:
    def run(self, tmp_path, *more):
        (tmp_path / "loud.py").write_text(
            "import sys\n"
            "from soloist.worker.clients.echo import EchoClient\n"
            "class Loud(EchoClient):\n"
            "    async def query(self, prompt):\n"
            "        print('loud', prompt, '\\x1b[31m')\n"
            "        await super().query(prompt)\n"
        )
        info = tmp_path / "loud-1.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[soloist.clients]\nloud = loud:Loud\n")
        (tmp_path / "prompts.txt").write_text("a\nb\n")
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.run(
            [sys.executable, "-m", "soloist.supervisor.cli", *more, "--client", "loud"],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            cwd=tmp_path,
            env=environment() | {"PYTHONPATH": path},
            check=False,
        )

    def test_unasked_it_shows_nothing_of_the_workers(self, tmp_path):
        done = self.run(tmp_path, "map", "prompts.txt")
        assert (done.returncode, done.stderr) == (0, "")

    def test_verbose_shows_what_they_print_and_steers_no_terminal(self, tmp_path):
        done = self.run(tmp_path, "map", "prompts.txt", "-v", "--size", "1")
        assert done.returncode == 0
        assert re.search(r"soloist\.worker\.0: loud a \\x1b\[31m\n", done.stderr)
        assert "2 prompts: 2 answered" in done.stderr
        assert done.stdout.count("\n") == 2

    def test_a_query_has_it_too(self, tmp_path):
        done = self.run(tmp_path, "query", "hello", "--verbose")
        assert (done.returncode, done.stdout) == (0, "hello\n")
        assert "soloist.worker.0: loud hello" in done.stderr
        assert self.run(tmp_path, "query", "hello").stderr == ""
