"""Prompts on their way through one map, with a Supervisor whose answers the test decides."""

import contextlib
import json
import os
import queue
import threading
import types
from concurrent.futures import Future

import pytest

from soloist.protocol.errors import (
    ClientNotFound,
    InvalidPrompt,
    RequestCancelled,
    RequestTimeout,
    WorkerLost,
)
from soloist.supervisor import map_run
from soloist.supervisor.map_run import MapRun
from soloist.supervisor.prompts_file import Format, OutputError, PromptParser


def answer(text, cost_usd=None):
    return types.SimpleNamespace(
        text=text, num_turns=1, duration_s=0.0, usage=None, cost_usd=cost_usd, worker=0
    )


class HeldSupervisor:
    """Keeps every prompt until the test settles it; runs the first ``running`` ones."""

    def __init__(self, running=1):
        self.running = running
        self.begun = queue.SimpleQueue()  # (prompt, future) in the order of submission
        self.open = []
        self.timeouts = []

    def submit(self, prompt, *, timeout_s=None):
        future = Future()
        self.open.append(future)
        self.timeouts.append(timeout_s)
        self.begun.put((prompt, future))
        return future

    def cancel_pending(self):
        waiting = [future for future in self.open if not future.done()][self.running :]
        for future in waiting:
            future.set_exception(RequestCancelled("not begun", started=False))


class InstantSupervisor:
    """Answers in ``submit`` itself; ``failures`` maps prompts to errors."""

    def __init__(self, failures=None):
        self.failures = failures or {}
        self.on_submit = lambda: None
        self.submitted = 0
        self.is_cancelled = False

    def submit(self, prompt, *, timeout_s=None):
        self.submitted += 1
        self.on_submit()
        future = Future()
        if prompt in self.failures:
            future.set_exception(self.failures[prompt])
        else:
            future.set_result(answer(prompt.upper()))
        return future

    def cancel_pending(self):
        self.is_cancelled = True


class Piped:
    """A run between two pipes, in a thread of its own."""

    def __init__(self, supervisor, form=Format.TEXT, window=16, in_flight=16, **options):
        source, self.feed_end = os.pipe()
        read_end, target = os.pipe()
        self.job = MapRun(
            supervisor,
            PromptParser(form),
            source=source,
            target=target,
            window=window,
            in_flight=in_flight,
            **options,
        )
        self._ends = [source]
        self._lines = os.fdopen(read_end)
        self._target = target
        self.outcome = Future()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            self.outcome.set_result(self.job.run())
        except BaseException as error:
            self.outcome.set_exception(error)
        os.close(self._target)

    def feed(self, text):
        os.write(self.feed_end, text.encode())

    def end_input(self):
        if self.feed_end is not None:
            os.close(self.feed_end)
            self.feed_end = None

    def line(self):
        return json.loads(self._lines.readline())

    def lines(self):
        return [json.loads(line) for line in self._lines]

    def close(self):
        self.end_input()
        self.job.stop()
        self._thread.join()
        self._lines.close()
        # The reader sees the end of the input; before that, the number of its descriptor must
        # not be given to the next test's pipe, whose input it would take.
        for thread in threading.enumerate():
            if thread.name == "soloist-input":
                thread.join(30)
        for end in self._ends:
            os.close(end)


@contextlib.contextmanager
def piped(supervisor, **options):
    run = Piped(supervisor, **options)
    try:
        yield run
    finally:
        for future in getattr(supervisor, "open", []):
            if not future.done():
                future.set_exception(WorkerLost("the test is over"))
        run.close()


def run_on_file(supervisor, tmp_path, content, form=Format.TEXT, window=16, **options):
    path, out = tmp_path / "prompts", tmp_path / "results"
    path.write_text(content)
    with path.open("rb") as source, out.open("wb") as target:
        job = MapRun(
            supervisor,
            PromptParser(form),
            source=source.fileno(),
            target=target.fileno(),
            window=window,
            in_flight=window,
            **options,
        )
        tally = job.run()
    return tally, [json.loads(line) for line in out.read_text().splitlines()]


def test_lines_come_in_input_order_whatever_finishes_first():
    supervisor = HeldSupervisor()
    with piped(supervisor) as run:
        run.feed("a\nb\nc\n")
        run.end_input()
        begun = [supervisor.begun.get() for _ in range(3)]
        for prompt, future in reversed(begun):
            future.set_result(answer(prompt.upper()))

        assert [row["text"] for row in run.lines()] == ["A", "B", "C"]
        assert run.outcome.result().answered == 3


def test_a_result_is_written_while_the_input_pauses():
    with piped(InstantSupervisor()) as run:
        run.feed("a\n")
        assert run.line()["text"] == "A"
        run.feed("b\n")
        assert run.line()["text"] == "B"


def test_a_prompt_begins_while_an_earlier_one_runs_and_the_input_pauses():
    supervisor = HeldSupervisor()
    with piped(supervisor) as run:
        run.feed("a\n")
        assert supervisor.begun.get()[0] == "a"
        run.feed("b\n")
        assert supervisor.begun.get()[0] == "b"


def test_no_more_than_the_window_is_read_ahead_of_what_is_written(tmp_path):
    supervisor = InstantSupervisor()
    ahead = []
    out = tmp_path / "results"
    supervisor.on_submit = lambda: ahead.append(
        supervisor.submitted - out.read_bytes().count(b"\n")
    )

    tally, rows = run_on_file(supervisor, tmp_path, "x\n" * 500, window=8)

    assert tally.answered == len(rows) == 500
    assert max(ahead) == 8


def test_large_prompts_are_not_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(map_run, "WINDOW_BYTES", 1000)
    supervisor = InstantSupervisor()
    ahead = []
    out = tmp_path / "results"
    supervisor.on_submit = lambda: ahead.append(
        supervisor.submitted - out.read_bytes().count(b"\n")
    )

    run_on_file(supervisor, tmp_path, ("x" * 600 + "\n") * 20)

    assert max(ahead) == 2


def test_prompts_handed_over_at_once_are_bounded_apart_from_the_window():
    supervisor = HeldSupervisor()
    with piped(supervisor, window=16, in_flight=2, timeout_s=3.0) as run:
        run.feed("a\nb\nc\nd\n")
        run.end_input()
        (_, first), (_, second) = supervisor.begun.get(), supervisor.begun.get()
        second.set_result(answer("B"))
        third, third_future = supervisor.begun.get()
        assert third == "c"
        assert len([future for future in supervisor.open if not future.done()]) == 2
        first.set_result(answer("A"))
        third_future.set_result(answer("C"))
        supervisor.begun.get()[1].set_result(answer("D"))

        assert [row["text"] for row in run.lines()] == ["A", "B", "C", "D"]
    assert supervisor.timeouts == [3.0] * 4


def test_failed_prompts_and_malformed_lines_stand_in_their_places(tmp_path):
    supervisor = InstantSupervisor({"b": RequestTimeout("too slow")})
    content = '{"prompt": "a"}\n{"prompt": "b"}\nnonsense\n{"prompt": "d"}\n'

    tally, rows = run_on_file(supervisor, tmp_path, content, Format.JSONL)

    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row.get("error", {}).get("code") for row in rows] == [
        None,
        "request_timeout",
        "invalid_prompt",
        None,
    ]
    assert (tally.answered, tally.failed) == (2, 2)


def test_malformed_lines_wait_for_the_prompts_before_them():
    supervisor = HeldSupervisor()
    with piped(supervisor, form=Format.JSONL) as run:
        run.feed('nonsense\n{"prompt": "b"}\nnonsense\n')
        assert run.line()["index"] == 0
        run.end_input()
        supervisor.begun.get()[1].set_result(answer("B"))

        assert [row["index"] for row in run.lines()] == [1, 2]


def test_endless_malformed_input_takes_no_memory(tmp_path):
    tally, rows = run_on_file(InstantSupervisor(), tmp_path, "{\n" * 5000, Format.JSONL, window=4)

    assert tally.failed == len(rows) == 5000


def test_a_prompt_refused_by_submit_fails_alone(tmp_path):
    supervisor = InstantSupervisor()

    def refuse_second():
        if supervisor.submitted == 2:
            raise InvalidPrompt("no")

    supervisor.on_submit = refuse_second

    tally, rows = run_on_file(supervisor, tmp_path, "a\nb\nc\n")

    assert [row.get("text") for row in rows] == ["A", None, "C"]
    assert tally.failed == 1


def test_stop_finishes_what_runs_and_drops_the_rest():
    supervisor = HeldSupervisor(running=2)
    stopping = threading.Event()
    with piped(supervisor, on_stopping=stopping.set) as run:
        run.feed("a\nb\nc\nd\n")
        begun = [supervisor.begun.get()[1] for _ in range(4)]
        run.job.stop()
        assert stopping.wait(10)
        run.feed("never read\n")
        begun[1].set_result(answer("B"))
        begun[0].set_result(answer("A"))

        assert [row["text"] for row in run.lines()] == ["A", "B"]
        tally = run.outcome.result()
        assert (tally.answered, tally.dropped) == (2, 2)


def test_stop_while_nothing_comes_in_ends_at_once():
    with piped(InstantSupervisor()) as run:
        run.job.stop()

        assert run.lines() == []
        assert run.outcome.result().dropped == 0


def test_a_running_prompt_that_is_cancelled_gets_its_line():
    supervisor = HeldSupervisor(running=1)
    with piped(supervisor) as run:
        run.feed("a\n")
        _, future = supervisor.begun.get()
        run.job.stop()
        future.set_exception(RequestCancelled("interrupted", started=None))

        assert run.line()["error"]["code"] == "request_cancelled"


def test_a_client_that_is_not_there_ends_an_endless_input():
    supervisor = HeldSupervisor(running=0)
    with piped(supervisor) as run:
        run.feed("a\nb\n")
        begun = [supervisor.begun.get()[1] for _ in range(2)]
        begun[0].set_exception(ClientNotFound("install it", started=False))

        assert run.lines() == []
        tally = run.outcome.result()
        assert isinstance(tally.failure, ClientNotFound)
        assert tally.dropped == 2


def test_an_input_that_breaks_lets_what_was_read_finish(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)  # reading it raises IsADirectoryError
    null = os.open(os.devnull, os.O_WRONLY)
    job = MapRun(
        InstantSupervisor(),
        PromptParser(Format.TEXT),
        source=folder,
        target=null,
        window=4,
        in_flight=4,
    )

    assert isinstance(job.run().failure, IsADirectoryError)
    os.close(folder)
    os.close(null)


def test_a_full_disk_ends_the_run():
    full = os.open("/dev/full", os.O_WRONLY)
    source, feed_end = os.pipe()
    os.write(feed_end, b"a\n")
    job = MapRun(
        InstantSupervisor(),
        PromptParser(Format.TEXT),
        source=source,
        target=full,
        window=4,
        in_flight=4,
    )

    with pytest.raises(OutputError):
        job.run()
    for end in (full, feed_end):
        os.close(end)


def test_costs_are_added_up():
    supervisor = HeldSupervisor()
    with piped(supervisor) as run:
        run.feed("a\nb\n")
        run.end_input()
        for _ in range(2):
            supervisor.begun.get()[1].set_result(answer("x", cost_usd=0.25))

        assert run.outcome.result().cost_usd == 0.5
