"""What processes print: lines, limits, and pipes of one's own."""

from __future__ import annotations

import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.supervisor import output as output_module
from soloist.supervisor.output import MAX_LINE_BYTES, MAX_TAIL_CHARS, Lines, Output, Outputs, Pipes
from tests.support import nothing_for_the_collector


class FakeJournal:
    def __init__(self):
        self.lines = []

    def write(self, logger, level, lines, fields):
        self.lines += [(logging.getLevelName(level), fields["stream"], line) for line in lines]


class World:
    def __init__(self):
        self.journal = FakeJournal()
        self.outputs = Outputs(self.journal)
        self.pipes = []

    def process(self, number=0, *, is_session=False):
        pipes = Pipes()
        self.pipes.append(pipes)
        made = Output.of_worker(pipes, number, 1, is_session=is_session)
        self.outputs.add(made)
        return made, *pipes.writers

    def close(self):
        self.outputs.close()
        for pipes in self.pipes:
            pipes.close()


@pytest.fixture
def world():
    before = set(os.listdir("/proc/self/fd"))
    world = World()
    logging.getLogger("soloist").setLevel(logging.INFO)
    yield world
    logging.getLogger("soloist").setLevel(logging.NOTSET)
    world.close()
    assert set(os.listdir("/proc/self/fd")) <= before


class TestLines:
    @given(
        st.lists(st.text("ab\r", max_size=5), max_size=8).map("\n".join), st.lists(st.integers(0))
    )
    def test_the_pieces_in_which_they_come_make_no_difference(self, text, cuts):
        data, lines, found, begin = text.encode(), Lines(), [], 0
        for cut in sorted(cut % (len(data) + 1) for cut in cuts):
            found += lines.feed(data[begin:cut])
            begin = cut
        found += [*lines.feed(data[begin:]), *lines.end()]
        *whole, rest = text.split("\n")
        assert found == [line.removesuffix("\r") for line in [*whole, *([rest] if rest else [])]]

    @pytest.mark.parametrize("piece", [1000, 10**9])
    @pytest.mark.parametrize("end", [b"\n", b""])
    def test_a_long_one_is_cut_and_says_so(self, piece, end):
        lines, data = Lines(), b"x" * 100_000 + end
        found = []
        for begin in range(0, len(data), piece):
            found += lines.feed(data[begin : begin + piece])
        found += lines.end()
        assert found == ["x" * MAX_LINE_BYTES + f" ... {100_000 - MAX_LINE_BYTES} bytes cut"]
        assert lines.feed(b"next\n") == ["next"]

    def test_what_is_no_utf8_has_backslashes(self):
        assert Lines().feed(b"a\xffb\n") == ["a\\xffb"]


class TestReading:
    def test_each_of_the_two_has_its_level(self, world):
        _, stdout, stderr = world.process()
        os.write(stdout, b"out\npart")
        world.outputs.read()
        os.write(stdout, b"ly\n")
        os.write(stderr, b"err\n")
        world.outputs.read()
        assert sorted(world.journal.lines) == [
            ("INFO", "stdout", "out"),
            ("INFO", "stdout", "partly"),
            ("WARNING", "stderr", "err"),
        ]

    def test_one_call_reads_a_bounded_part_of_each(self, world, monkeypatch):
        monkeypatch.setattr(output_module, "_TURN_BYTES", 8192)
        ends = [world.process(number)[1] for number in range(4)]
        for end in ends:
            os.write(end, b"x\n" * 30_000)
        world.outputs.read()
        assert len(world.journal.lines) == 4 * output_module._LEAST_BYTES // 2

    def test_at_the_exit_all_is_read_though_a_child_holds_the_pipe(self, world):
        made, stdout, stderr = world.process()
        os.write(stdout, b"x\n" * 30_000)
        os.write(stderr, b"last\nwords")
        assert world.outputs.finish(made) == "last\nwords"  # the writers are still open
        assert len(world.journal.lines) == 30_002
        assert made.is_closed
        world.outputs.read()

    def test_at_the_exit_a_child_that_prints_for_ever_is_left(self, world, monkeypatch):
        made, *_ = world.process()
        monkeypatch.setattr(output_module.os, "read", lambda *_: b"x\n" * 1000)
        world.outputs.finish(made)
        assert len(world.journal.lines) <= 2 * output_module._AT_EXIT_BYTES // 2 + 2000

    def test_the_end_of_file_of_both_is_the_end(self, world):
        made, _, stderr = world.process()
        os.write(stderr, b"last")
        world.pipes[0].close_writers()
        world.outputs.read()
        world.outputs.read()
        assert made.is_closed
        assert world.outputs.finish(made) == "last"

    def test_of_a_process_that_has_ended_is_freed_and_not_only_by_the_collector(self, world):
        with nothing_for_the_collector():
            world.outputs.finish(world.process()[0])

    def test_what_nobody_wants_is_read_nevertheless(self, world):
        logging.getLogger("soloist").setLevel(logging.ERROR)
        made, stdout, stderr = world.process()
        os.set_blocking(stdout, False)
        for _ in range(10):
            os.write(stdout, b"x" * 60_000)  # BlockingIOError if the pipe is full
            world.outputs.read()
        os.write(stderr, b"why\n")
        assert world.outputs.finish(made) == "why"


class TestTail:
    def test_it_keeps_the_last_lines_of_standard_error(self, world):
        made, stdout, stderr = world.process()
        os.write(stdout, b"not this\n")
        os.write(stderr, "".join(f"line {i}\n" for i in range(100)).encode())
        assert world.outputs.finish(made).split("\n") == [f"line {i}" for i in range(80, 100)]

    def test_it_is_bounded(self, world):
        made, _, stderr = world.process()
        os.write(stderr, (b"x" * 3000 + b"\n") * 20)
        assert len(world.outputs.finish(made)) == MAX_TAIL_CHARS


class TestBeforeAnybodyListens:
    def test_what_is_printed_meanwhile_does_not_fill_the_pipe(self, world):
        pipes, (ready_r, ready_w) = Pipes(), os.pipe()
        made = Output.of_helper(pipes, 1)
        os.write(pipes.writers[1], b"import\n" * 8000)
        assert not made.wait_beside(ready_r, 0.5)
        os.set_blocking(pipes.writers[1], False)
        os.write(pipes.writers[1], b"import\n" * 8000)
        os.write(pipes.writers[1], b"done\n")
        os.write(ready_w, b"!")
        assert made.wait_beside(ready_r, 30)
        assert made.stderr().endswith("import\ndone")
        world.outputs.add(made)
        assert world.journal.lines[-1] == ("WARNING", "stderr", "done")
        assert made.logger.name == "soloist.helper"
        for end in (ready_r, ready_w):
            os.close(end)
        pipes.close_writers()

    def test_its_end_does_not_make_the_wait_spin(self, world):
        pipes, (ready_r, ready_w) = Pipes(), os.pipe()
        made = Output.of_helper(pipes, 1)
        pipes.close_writers()
        assert not made.wait_beside(ready_r, 0.02)
        made.close()
        for end in (ready_r, ready_w):
            os.close(end)


class TestLoggers:
    def test_the_pools_are_listed(self, world):
        made, *_ = world.process(41)
        assert logging.root.manager.loggerDict["soloist.worker.41"] is made.logger

    def test_those_of_conversations_are_not_and_follow_their_parent(self, world):
        made, *_ = world.process(4711, is_session=True)
        parent = logging.getLogger("soloist.worker")
        assert made.logger.name == "soloist.worker.4711"
        assert made.logger.parent is parent
        assert "soloist.worker.4711" not in logging.root.manager.loggerDict
        assert made.logger.isEnabledFor(logging.INFO)
        parent.setLevel(logging.ERROR)
        assert not made.logger.isEnabledFor(logging.INFO)
        parent.setLevel(logging.NOTSET)
        assert made.logger.isEnabledFor(logging.INFO)
