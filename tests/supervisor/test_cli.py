"""The command ``soloist``: what it prints, writes, and exits with.

Options and exit codes run in this process with a Supervisor that answers at once. Signals, pipes
and terminals run the real command; where a test must decide when a prompt ends, its client asks
the test over a socket.
"""

import contextlib
import itertools
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import types
from concurrent.futures import Future
from pathlib import Path

import pytest

from soloist.protocol.content import (
    AssistantMessage,
    ResultMessage,
    StreamEvent,
    TextBlock,
)
from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    ClientNotFound,
    InvalidOptions,
    RestartLimitReached,
)
from soloist.supervisor import cli, command_line, commands, serve_commands  # noqa: F401

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
COMMAND = """
import sys
from soloist.supervisor.cli import main
sys.exit(main())
"""
# Makes a terminal the one that Ctrl-C is typed at.
LOGIN = """
import os
if {0} is not None:
    os.login_tty({0})
"""


# -- in this process -----------------------------------------------------------------------------


class InstantSupervisor:
    """Answers at once; ``failures`` maps prompts to errors."""

    failures = types.MappingProxyType({})

    def __init__(self, **settings):
        self.settings = settings
        self.prompts = []
        self.closed = []

    def submit(self, prompt, *, timeout_s=None):
        self.prompts.append((prompt, timeout_s))
        future = Future()
        if prompt in self.failures:
            future.set_exception(self.failures[prompt])
        else:
            future.set_result(
                types.SimpleNamespace(
                    text=prompt, num_turns=1, duration_s=0.0, usage=None, cost_usd=None, worker=0
                )
            )
        return future

    def query(self, prompt, *, timeout_s=None):
        self.prompts.append((prompt, timeout_s))
        for part in (prompt[:1], prompt[1:]):
            event = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": part}}
            yield StreamEvent(uuid="", session_id="", event=event)
        if prompt in self.failures:
            raise self.failures[prompt]
        yield AssistantMessage(content=[TextBlock(prompt)], model="m")
        yield ResultMessage(
            "success", 0, 0, is_error=False, num_turns=1, session_id="s", result=prompt
        )

    def cancel_pending(self):
        pass

    def close(self, timeout_s=None):
        self.closed.append(timeout_s)

    def kill(self):
        self.closed.append("killed")


@pytest.fixture
def started(monkeypatch):
    """The Supervisors that commands of this test have started."""
    made = []

    def make(**settings):
        made.append(InstantSupervisor(**settings))
        return made[-1]

    monkeypatch.setattr(commands, "Supervisor", make)
    return made


@pytest.fixture
def failing(monkeypatch):
    """Prompts that fail, and how."""
    failures = {}
    monkeypatch.setattr(InstantSupervisor, "failures", failures)
    return failures


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a\nb\nc\n")
    return str(path)


@pytest.fixture
def stdin(monkeypatch):
    """Give standard input this content."""

    def set_content(content):
        read_end, write_end = os.pipe()
        os.write(write_end, content)
        os.close(write_end)
        stream = os.fdopen(read_end)
        monkeypatch.setattr(sys, "stdin", stream)
        streams.callback(stream.close)

    with contextlib.ExitStack() as streams:
        yield set_content


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_map_writes_results_to_standard_output(started, prompts, capfd):
    assert command_line.run(["map", prompts]) == 0

    output = capfd.readouterr()
    assert [row["text"] for row in rows_of(output.out)] == ["a", "b", "c"]
    assert output.err == ""
    assert started[0].closed == [10.0]


def test_map_writes_results_to_a_file(started, prompts, tmp_path, capfd):
    out = tmp_path / "out.jsonl"

    assert command_line.run(["map", prompts, "-o", str(out)]) == 0

    assert [row["prompt"] for row in rows_of(out.read_text())] == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_map_reads_standard_input_when_no_file_is_named(started, stdin, capfd):
    stdin(b'{"prompt": "x", "id": 1}\n')

    assert command_line.run(["map"]) == 0

    (row,) = rows_of(capfd.readouterr().out)
    assert (row["text"], row["id"]) == ("x", 1)


def test_options_reach_the_supervisor(started, prompts):
    arguments = ["--client", "c", "--size", "3", "--isolation", "worker", "--timeout-s", "1.5"]
    arguments += ["--max-requests-per-worker", "7", "--max-memory-bytes", "1000"]
    settings = ["--set", "n=3", "--set", "on=true", "--set", "s=text=x", "--set", 'q="3"']

    assert command_line.run(["map", prompts, *arguments, *settings, "--set", "x=NaN"]) == 0

    assert started[0].settings == {
        "client": "c",
        "size": 3,
        "isolation": "worker",
        "max_requests_per_worker": 7,
        "max_memory_bytes": 1000,
        "options": {"n": 3, "on": True, "s": "text=x", "q": "3", "x": "NaN"},
    }
    assert started[0].prompts == [("a", 1.5), ("b", 1.5), ("c", 1.5)]


def test_prompts_can_be_left_out_of_the_results(started, prompts, capfd):
    assert command_line.run(["map", prompts, "--no-prompt"]) == 0

    assert all("prompt" not in row for row in rows_of(capfd.readouterr().out))


def test_some_failed_prompts_exit_1(started, failing, prompts, capfd):
    failing["b"] = ClientError("no")

    assert command_line.run(["map", prompts]) == 1

    assert [row.get("text") for row in rows_of(capfd.readouterr().out)] == ["a", None, "c"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["map", "no-such-file"],
        ["map", "{prompts}", "--size", "0"],
        ["map", "{prompts}", "--timeout-s", "0"],
        ["map", "{prompts}", "--set", "no-value"],
        ["map", "{prompts}", "--set", "=no-key"],
        ["map", "{prompts}", "--isolation", "none"],
        ["map", "{prompts}", "--max-requests-per-worker", "0"],
        ["map", "{prompts}", "--max-memory-bytes", "0"],
        ["map", "{prompts}", "--format", "text", "--field", "q"],
        ["map", "{prompts}", "-o", "{prompts}"],
        ["map", "{prompts}", "-o", "{prompts}", "--force"],
        ["map", "{prompts}", "-o", "/no/such/folder/out"],
        ["map", "{prompts}", "more"],
        ["query", ""],
        ["no-such-command"],
        ["--no-such-option"],
        [],
    ],
)
def test_wrong_usage_exits_2_and_starts_nothing(started, prompts, capfd, arguments):
    arguments = [argument.format(prompts=prompts) for argument in arguments]

    assert command_line.run(arguments) == 2

    assert started == []
    output = capfd.readouterr()
    assert output.out == ""
    assert "Usage" in output.err
    assert Path(prompts).read_text() == "a\nb\nc\n"


def test_results_that_exist_are_overwritten_only_with_force(started, prompts, tmp_path, capfd):
    out = tmp_path / "out.jsonl"
    out.write_text("paid for\n" * 100)

    assert command_line.run(["map", prompts, "-o", str(out)]) == 2
    assert "--force" in capfd.readouterr().err
    assert out.read_text() == "paid for\n" * 100
    assert command_line.run(["map", prompts, "-o", str(out), "--force"]) == 0
    assert len(rows_of(out.read_text())) == 3


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidOptions("no option 'x'"), 2),
        (ClientNotFound("no client 'y'"), 2),
        (ClientConnectError("refused"), 1),
    ],
)
@pytest.mark.parametrize("command", ["map", "query"])
def test_a_supervisor_that_cannot_start_is_one_message(
    monkeypatch, prompts, tmp_path, capfd, error, code, command
):
    def fail(**_):
        raise error

    monkeypatch.setattr(commands, "Supervisor", fail)
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")
    more = ["-o", str(out), "--force"] if command == "map" else []

    assert command_line.run([command, prompts, *more]) == code

    assert capfd.readouterr() == ("", f"Error: {error}\n")
    assert out.read_text() == "old\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(ClientNotFound("install it", started=False), 2), (RestartLimitReached("enough"), 1)],
)
def test_a_client_that_cannot_start_while_mapping_is_one_message(
    started, failing, prompts, capfd, error, code
):
    failing["a"] = error

    assert command_line.run(["map", prompts]) == code

    output = capfd.readouterr()
    assert output.err == f"Error: {error}\n"
    assert [row["text"] for row in rows_of(output.out)] == ["b", "c"]


def test_a_full_disk_is_one_message(started, prompts, capfd):
    assert command_line.run(["map", prompts, "-o", "/dev/full"]) == 1

    assert "No space left" in capfd.readouterr().err
    assert started[0].closed == [0]


def test_verbose_summarizes_without_a_terminal(started, prompts, capfd):
    assert command_line.run(["map", prompts, "-v"]) == 0

    assert capfd.readouterr().err.startswith("3 prompts: 3 answered, 0 failed, ")


def test_query_shows_the_text_once(started, capfd):
    assert command_line.run(["query", "hello", "--client", "c", "--timeout-s", "2"]) == 0

    assert capfd.readouterr() == ("hello\n", "")
    assert started[0].prompts == [("hello", 2.0)]
    assert started[0].settings == {"size": 1, "client": "c", "options": {}}


@pytest.mark.parametrize("arguments", [["query"], ["query", "-"]])
def test_query_takes_its_prompt_from_a_pipe(started, stdin, capfd, arguments):
    stdin("two\nlinés\n".encode())

    assert command_line.run(arguments) == 0

    assert capfd.readouterr().out == "two\nlinés\n"
    assert started[0].prompts[0][0] == "two\nlinés"


def test_query_refuses_a_prompt_that_is_not_text(started, stdin):
    stdin(b"\xff\xfe")

    assert command_line.run(["query", "-"]) == 2


def test_query_can_print_every_message_as_json(started, capfd):
    assert command_line.run(["query", "hello", "--json"]) == 0

    types_shown = [row["type"] for row in rows_of(capfd.readouterr().out)]
    assert types_shown == ["StreamEvent", "StreamEvent", "AssistantMessage", "ResultMessage"]


def test_query_that_fails_exits_1_after_what_was_shown(started, failing, capfd):
    failing["hello"] = ClientError("overloaded")

    assert command_line.run(["query", "hello"]) == 1

    assert capfd.readouterr() == ("hello\n", "Error: overloaded\n")


def test_query_has_claude_send_its_text_in_pieces_unless_told_otherwise(started):
    command_line.run(["query", "x", "--client", "claude"])
    command_line.run(
        ["query", "x", "--client", "claude", "--set", "include_partial_messages=false"]
    )
    command_line.run(["query", "x", "--client", "claude", "--json"])

    options = [supervisor.settings["options"] for supervisor in started]
    assert options == [{"include_partial_messages": True}, {"include_partial_messages": False}, {}]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["map", "--help"], ["query", "-h"], ["--version"]]
)
def test_help_and_version_fit_80_columns_and_start_nothing(started, capfd, arguments):
    assert command_line.run(arguments) == 0

    output = capfd.readouterr()
    assert max(map(len, output.out.splitlines())) <= 80
    assert started == []


def forget_commands(monkeypatch):
    """Have the commands imported anew by the next ``main``, and not by anybody after this test."""
    for name in ("command_line", "commands", "serve_commands"):
        monkeypatch.delitem(sys.modules, f"soloist.supervisor.{name}")
        monkeypatch.delattr(sys.modules["soloist.supervisor"], name)


def test_missing_libraries_are_named_in_one_line(monkeypatch, capsys):
    forget_commands(monkeypatch)
    monkeypatch.setitem(sys.modules, "click", None)

    assert cli.main() == 2

    assert capsys.readouterr().err == (
        "soloist: the command line needs: pip install 'soloist[cli]'\n"
    )


def test_another_missing_module_is_not_hidden(monkeypatch):
    forget_commands(monkeypatch)
    monkeypatch.setitem(sys.modules, "soloist.supervisor.map_run", None)

    with pytest.raises(ModuleNotFoundError):
        cli.main()


# -- the real command ------------------------------------------------------------------------------

GATE_CLIENT = """
import asyncio
from soloist.protocol.content import AssistantMessage, ResultMessage, TextBlock


class GateClient:
    def __init__(self, *, port):
        self._port = port

    async def connect(self):
        pass

    async def query(self, prompt):
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(prompt.encode() + b"\\n")
        await self._writer.drain()

    async def receive_response(self):
        text = (await self._reader.readline()).decode()
        self._writer.close()
        yield AssistantMessage(content=[TextBlock(text)], model="gate")
        yield ResultMessage("success", 0, 0, is_error=not text, num_turns=1, session_id="gate",
                            result=text)

    async def reset(self):
        pass

    async def interrupt(self):
        self._writer.close()

    async def disconnect(self):
        pass
"""


class Gate:
    """The other side of the gate client: sees each turn begin, and ends it."""

    def __init__(self, folder):
        (folder / "gate_client.py").write_text(GATE_CLIENT)
        metadata = folder / "gate-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gate\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(
            "[soloist.clients]\ngate = gate_client:GateClient\n"
        )
        self.folder = folder
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(20)
        port = self.server.getsockname()[1]
        self.options = ["--client", "gate", "--set", f"port={port}"]

    def next_turn(self):
        connection, _ = self.server.accept()
        connection.settimeout(20)
        return Turn(connection)

    def close(self):
        self.server.close()


class Turn:
    def __init__(self, connection):
        self._connection = connection
        self._stream = connection.makefile("rb")
        self.prompt = self._stream.readline().decode().removesuffix("\n")

    def answer(self, text):
        self._connection.sendall(text.encode())
        self.wait_ended()

    def wait_ended(self):
        """Wait until the worker has closed its side."""
        with contextlib.suppress(ConnectionResetError):
            self._stream.read()
        self._stream.close()
        self._connection.close()


@pytest.fixture
def gate(tmp_path):
    folder = tmp_path / "gate"
    folder.mkdir()
    gate = Gate(folder)
    yield gate
    gate.close()


@pytest.fixture
def command():
    """Start the real command; what is left of it at the end is killed."""
    processes = []

    def start(*arguments, path=(), login=None, **streams):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
        process = subprocess.Popen(
            [sys.executable, "-c", LOGIN.format(login) + COMMAND, *map(str, arguments)],
            env=environment,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            | streams,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        with process:
            pass


def feed(process, text):
    process.stdin.write(text.encode())
    process.stdin.flush()


def test_five_thousand_prompts_come_back_in_order(command, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"id": "n{i}", "prompt": "p{i}"}}\n' for i in range(5000)))

    process = command("map", source, "--size", 2, "-o", out)
    assert process.communicate(timeout=30) == (b"", b"")

    assert process.returncode == 0
    rows = rows_of(out.read_text())
    assert [(row["index"], row["id"], row["text"]) for row in rows] == [
        (i, f"n{i}", f"p{i}") for i in range(5000)
    ]
    assert {row["num_turns"] for row in rows} == {1}


def test_the_examples_run(command):
    process = command("map", EXAMPLES / "prompts.jsonl", "--size", 2)
    output, _ = process.communicate(timeout=30)

    rows = rows_of(output.decode())
    assert process.returncode == 0
    assert len(rows) == len({row["id"] for row in rows}) == 20
    assert rows[18]["text"] == "This prompt is a list of content blocks. Repeat it in capitals."


def test_each_failed_prompt_says_why_and_the_exit_code_is_1(command):
    process = command(
        "map", "--format", "jsonl", "--set", "fail_on=b", "--size", 1, stdin=subprocess.PIPE
    )
    output, errors = process.communicate(b'{"prompt": "a"}\n{"prompt": "b"}\n{\n', timeout=30)

    rows = rows_of(output.decode())
    assert process.returncode == 1
    assert errors == b""
    assert [row.get("error", {}).get("code") for row in rows] == [
        None,
        "client_error",
        "invalid_prompt",
    ]


def test_an_unknown_client_or_option_is_wrong_usage(command):
    for arguments in (["--client", "no-such-client"], ["--set", "no_such_option=1"]):
        process = command("map", EXAMPLES / "prompts.txt", *arguments)
        output, errors = process.communicate(timeout=30)

        assert (process.returncode, output) == (2, b"")
        assert errors.startswith(b"Error: ")
        assert b"no" in errors
        assert b"Traceback" not in errors


def test_query_streams_an_answer(command, gate):
    process = command("query", "say hi", *gate.options, path=[gate.folder])
    turn = gate.next_turn()
    assert turn.prompt == "say hi"
    turn.answer("hi\n")

    assert process.communicate(timeout=30) == (b"hi\n", b"")
    assert process.returncode == 0


def test_query_shows_pieces_once(command):
    process = command("query", "one two three", "--set", "chunks=3")

    assert process.communicate(timeout=30) == (b"one two three\n", b"")
    assert process.returncode == 0


def test_endless_input_is_read_lazily_and_a_closed_output_ends_the_command_quietly(command):
    process = command("map", "--size", 2, stdin=subprocess.PIPE)

    def generate():
        with contextlib.suppress(BrokenPipeError):
            for i in itertools.count():
                feed(process, f"prompt {i}\n")

    generator = threading.Thread(target=generate)
    generator.start()
    rows = [json.loads(process.stdout.readline()) for _ in range(1500)]
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    generator.join()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()

    assert [row["text"] for row in rows] == [f"prompt {i}" for i in range(1500)]
    assert process.stderr.read() == b""


def test_a_result_comes_while_the_input_pauses(command):
    process = command("map", "--size", 1, stdin=subprocess.PIPE)

    for prompt in ("first", "second"):
        feed(process, f"{prompt}\n")
        assert json.loads(process.stdout.readline())["text"] == prompt
    process.stdin.close()
    assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_finishes_what_runs_and_begins_nothing_more(command, gate, number, code):
    process = command(
        "map", "-v", "--size", 2, *gate.options, path=[gate.folder], stdin=subprocess.PIPE
    )
    feed(process, "".join(f"{name}\n" for name in "abcdef"))
    running = [gate.next_turn(), gate.next_turn()]

    process.send_signal(number)
    assert process.stderr.readline().startswith(b"Finishing what runs")
    for turn in running:
        turn.answer(turn.prompt.upper() + "\n")

    assert process.wait(timeout=30) == code
    rows = rows_of(process.stdout.read().decode())
    expected = sorted(turn.prompt for turn in running)
    assert [row["prompt"] for row in rows] == expected
    assert [row["text"] for row in rows] == [prompt.upper() + "\n" for prompt in expected]
    assert b"2 answered, 0 failed, 4 not begun" in process.stderr.read()
    gate.server.settimeout(0)
    with pytest.raises(BlockingIOError):
        gate.server.accept()


def test_a_second_signal_stops_what_runs(command, gate):
    process = command(
        "map", "-v", "--size", 1, *gate.options, path=[gate.folder], stdin=subprocess.PIPE
    )
    feed(process, "a\nb\n")
    turn = gate.next_turn()

    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith(b"Finishing what runs")
    process.send_signal(signal.SIGINT)

    assert process.wait(timeout=30) == 130
    turn.wait_ended()
    assert process.stdout.read() == b""
    assert b"Traceback" not in process.stderr.read()


def test_one_signal_stops_a_query(command, gate):
    process = command("query", "a", *gate.options, path=[gate.folder])
    turn = gate.next_turn()

    process.send_signal(signal.SIGINT)

    assert process.wait(timeout=30) == 130
    turn.wait_ended()
    assert process.stdout.read() == process.stderr.read() == b""


def test_a_killed_run_leaves_whole_lines(command, tmp_path):
    out = tmp_path / "out.jsonl"
    process = command("map", "--size", 2, "-o", out, stdin=subprocess.PIPE)
    for i in range(3000):  # more than pipe, reader and window hold: some must be written
        feed(process, f"{i} {'x' * 400}\n")
    process.kill()
    process.wait(timeout=30)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()

    content = out.read_bytes()
    assert content.endswith(b"\n")
    rows = rows_of(content.decode())
    assert len(rows) > 100
    assert [row["index"] for row in rows] == list(range(len(rows)))


def read_all(descriptor):
    """Everything written to a terminal until its last writer has gone."""
    seen = b""
    with contextlib.suppress(OSError):  # Linux's way to say that
        while part := os.read(descriptor, 4096):
            seen += part
    os.close(descriptor)
    return seen.decode()


def test_progress_is_drawn_on_a_terminal_and_goes_away(command, gate, tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("a\n" * 7)
    screen, terminal = pty.openpty()
    process = command(
        "map", source, "--size", 1, *gate.options, path=[gate.folder], stderr=terminal
    )
    os.close(terminal)
    for _ in range(7):
        gate.next_turn().answer("x\n")
    seen = read_all(screen)

    assert process.wait(timeout=30) == 0
    assert "/7" in seen
    assert "failed" in seen
    assert "left" in seen
    assert seen.splitlines()[-1].strip().endswith("/s)")
    assert "7 prompts: 7 answered, 0 failed" in seen
    assert len(process.stdout.read().splitlines()) == 7


def test_ctrl_c_typed_at_the_terminal_leaves_the_workers_alone(command, gate, tmp_path):
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("a\n" * 5)
    screen, terminal = pty.openpty()
    process = command(
        *("map", source, "-o", out, "--size", 2, *gate.options),
        path=[gate.folder],
        pass_fds=[terminal],
        login=terminal,
    )
    os.close(terminal)
    turns = [gate.next_turn(), gate.next_turn()]

    os.write(screen, b"\x03")
    seen = b""
    while b"Finishing what runs" not in seen:
        seen += os.read(screen, 4096)
    for turn in turns:
        turn.answer("x\n")
    seen += read_all(screen).encode()

    assert process.wait(timeout=30) == 130
    assert [row["text"] for row in rows_of(out.read_text())] == ["x\n", "x\n"]
    assert b"2 answered, 0 failed, 3 not begun" in seen


def test_the_module_runs_as_a_command():
    shown = subprocess.run(
        [sys.executable, "-m", "soloist.supervisor.cli", "--version"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    assert shown.stdout.startswith("soloist ")
