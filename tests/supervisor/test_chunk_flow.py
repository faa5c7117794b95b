"""The consumer's side of a map over a list, against an engine that answers when it is told to."""

import gc
import threading
import time
import weakref
from collections import deque

import pytest

from soloist.protocol.errors import (
    ClientError,
    InvalidOptions,
    InvalidPrompt,
    PayloadTooLarge,
    RequestTimeout,
    SupervisorClosed,
)
from soloist.protocol.ledger import CHUNK_ITEMS
from soloist.protocol.messages import Answer
from soloist.supervisor import chunk_flow
from soloist.supervisor.chunk import MOST_BYTES, Part
from soloist.supervisor.chunk_flow import ChunkFlow
from soloist.supervisor.request import Request
from soloist.supervisor.results import Result
from tests.support import eventually


class FakeIntake:
    """Engine and intake: answers at once what ``answer`` says, else when ``step`` is called."""

    def __init__(self, answer=str.upper, *, max_payload_bytes=10**6, is_open=True):
        self.engine = self
        self.max_payload_bytes = max_payload_bytes
        self.answer = answer
        self.is_open = is_open
        self.is_held = False
        self.held = deque()
        self.sizes = []
        self.cancelled = []

    def request(self, prompt, sink, index):
        if not isinstance(prompt, str | list):
            raise InvalidPrompt("no prompt")
        if len(prompt) > self.max_payload_bytes:
            raise PayloadTooLarge("too large")
        return Request(prompt, b"", sink, index=index)

    def submit(self, request):
        if not self.is_open:
            raise SupervisorClosed("closed")
        self.sizes.append(request.count)
        self.held.append(request)
        if not self.is_held:
            self.step()

    def cancel(self, requests):
        self.cancelled += [r for part in requests for r in part.chunk.prompts]

    def step(self):
        """Answer what came first."""
        request = self.held.popleft()
        if not isinstance(request, Part):
            request.settle(self.outcome(request.prompt))
            return
        texts = [self.outcome(p) for p in request.prompts]
        if all(isinstance(t, Answer) for t in texts):
            chunk, start, count = request.chunk, request.start, request.count
            request.drop(count)
            chunk.answered(start, tuple(t.text for t in texts), bytes(8 * count), 0)
            return
        for single, outcome in zip(request.requests(), texts, strict=True):
            single.settle(outcome)

    def outcome(self, prompt):
        found = self.answer(prompt)
        return Answer(1, 0.0, found, 1, b"") if isinstance(found, str) else found


def flow(intake, *, window=1024, is_fail_fast=True, total_timeout_s=None, may_grow=False):
    return ChunkFlow(
        intake,
        max_requests=window,
        may_grow=may_grow,
        total_timeout_s=total_timeout_s,
        is_fail_fast=is_fail_fast,
    )


def numbered(count):
    return [f"p{i}" for i in range(count)]


def fails_at(*bad):
    return lambda prompt: ClientError(prompt) if prompt in bad else prompt.upper()


class TestResults:
    @pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 5000])
    @pytest.mark.parametrize("window", [1, 7, 1024])
    def test_are_in_order(self, count, window):
        prompts = numbered(count)
        results = flow(FakeIntake(), window=window).run(prompts)
        assert [r.text for r in results] == [p.upper() for p in prompts]
        assert [r.index for r in results] == list(range(count))
        assert [r.prompt for r in results] == prompts

    def test_of_a_tuple_are_the_same(self):
        assert [r.text for r in flow(FakeIntake()).run(("a", "b"))] == ["A", "B"]

    def test_errors_stand_in_their_place_if_so_asked(self):
        intake = FakeIntake(fails_at("p3", "p700"))
        results = flow(intake, is_fail_fast=False).run(numbered(1000))
        assert [i for i, r in enumerate(results) if not isinstance(r, Result)] == [3, 700]
        assert str(results[700]) == "p700"
        assert intake.cancelled == []

    def test_errors_leave_nothing_for_the_collector(self):
        """Requests and chunk would hold each other, and all their prompts."""
        intake = FakeIntake(fails_at("p3"))
        intake.is_held = True
        run = flow(intake, is_fail_fast=False)
        run._put(["p3", "p4"])
        chunk = weakref.ref(run._chunks[0])
        gc.disable()
        try:
            intake.step()
            results = run._chunks.popleft().results()
            assert chunk() is None
        finally:
            gc.enable()
        assert [type(r) for r in results] == [ClientError, Result]

    def test_the_first_error_ends_it_with_what_there_is(self):
        intake = FakeIntake(fails_at("p300"))
        with pytest.raises(ClientError, match="p300") as caught:
            flow(intake).run(numbered(1000))
        indexes = [r.index for r in caught.value.completed]
        assert indexes == sorted(indexes)
        assert set(range(300)) <= set(indexes)
        assert 300 not in indexes


class TestPrompts:
    @pytest.mark.parametrize("bad", [7, None, "\ud800", b"bytes"], ids=repr)
    def test_one_that_cannot_be_sent_fails_in_its_place(self, bad):
        def refuse(prompt):
            return InvalidPrompt("no") if prompt == "\ud800" else prompt.upper()

        results = flow(FakeIntake(refuse), is_fail_fast=False).run(["a", bad, "c"])
        assert [type(r) for r in results] == [Result, InvalidPrompt, Result]

    def test_content_blocks_go_by_themselves(self):
        intake = FakeIntake(lambda prompt: str(len(prompt)))
        results = flow(intake).run(["a", [{"type": "text"}], "b"])
        assert [r.text for r in results] == ["1", "1", "1"]
        assert intake.sizes == [1, 1, 1]

    def test_one_that_is_too_large_fails_alone(self):
        intake = FakeIntake(max_payload_bytes=5)
        results = flow(intake, is_fail_fast=False).run(["a", "123456", "c"])
        assert [type(r) for r in results] == [Result, PayloadTooLarge, Result]

    def test_a_chunk_has_a_bound_in_bytes(self):
        intake = FakeIntake()
        flow(intake, window=8192).run(["x" * 10_000] * 100)
        assert max(intake.sizes) == MOST_BYTES // 10_000
        intake.sizes.clear()
        flow(intake).run(["x" * 2 * MOST_BYTES] * 3)
        assert intake.sizes == [1, 1, 1]


class TestWindow:
    @pytest.mark.parametrize("window", [1, 3, 8, 100, 1024])
    def test_no_more_is_in_flight(self, window):
        intake = FakeIntake()
        intake.is_held = True
        done = []
        thread = threading.Thread(
            target=lambda: done.extend(flow(intake, window=window).run(numbered(3000)))
        )
        thread.start()
        most = 0
        while len(done) < 3000:
            eventually(lambda: intake.held or done)
            most = max(most, sum(request.count for request in tuple(intake.held)))
            if intake.held:
                intake.step()
            if intake.sizes and sum(intake.sizes) == 3000 and not intake.held:
                thread.join(10)
        thread.join(10)
        assert most <= window
        assert [r.index for r in done] == list(range(3000))

    def test_it_goes_on_while_the_first_chunk_is_slow(self):
        intake = FakeIntake()
        intake.is_held = True
        done = []
        thread = threading.Thread(
            target=lambda: done.extend(flow(intake, window=8).run(numbered(100)))
        )
        thread.start()
        eventually(lambda: len(intake.held) == 4)
        slow = intake.held.popleft()
        for _ in range(49):
            eventually(lambda: intake.held)
            intake.step()
        assert sum(intake.sizes) == 100
        assert done == []
        intake.held.append(slow)
        intake.step()
        thread.join(10)
        assert [r.index for r in done] == list(range(100))

    @pytest.mark.parametrize(
        ("step_s", "may_grow", "longest"),
        [(1e-5, True, CHUNK_ITEMS), (1e-5, False, 16), (1.0, True, 16)],
    )
    def test_it_grows_with_quick_prompts_if_it_may(self, monkeypatch, step_s, may_grow, longest):
        class Clock:
            now = 0.0

            @classmethod
            def monotonic(cls):
                cls.now += step_s
                return cls.now

        monkeypatch.setattr(chunk_flow, "time", Clock)
        intake = FakeIntake()
        intake.is_held = True
        done = []
        thread = threading.Thread(
            target=lambda: done.extend(
                flow(intake, window=64, may_grow=may_grow).run(numbered(20_000))
            )
        )
        thread.start()
        while thread.is_alive():
            while intake.held:
                intake.step()
            thread.join(0.001)
        assert len(done) == 20_000
        assert max(intake.sizes) == longest


class TestEnds:
    def test_a_closed_engine_ends_it(self):
        with pytest.raises(SupervisorClosed) as caught:
            flow(FakeIntake(is_open=False)).run(["a"])
        assert caught.value.completed == []

    def test_the_whole_may_take_so_long(self):
        intake = FakeIntake()
        intake.is_held = True
        begun = time.monotonic()
        with pytest.raises(RequestTimeout, match=r"longer than 0\.05 s"):
            flow(intake, total_timeout_s=0.05).run(numbered(10))
        assert time.monotonic() - begun < 5
        assert intake.cancelled == numbered(10)

    def test_a_time_that_is_none_is_refused(self):
        with pytest.raises(InvalidOptions):
            flow(FakeIntake(), total_timeout_s=-1)

    def test_an_error_wakes_a_consumer_that_waits_for_another(self):
        intake = FakeIntake(fails_at("p9"))
        intake.is_held = True
        caught = []

        def run():
            try:
                flow(intake, window=8).run(numbered(40))
            except ClientError as error:
                caught.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        eventually(lambda: len(intake.held) == 4)
        first = intake.held.popleft()
        while not caught and (thread.is_alive() or caught):
            if intake.held:
                intake.step()
        thread.join(10)
        assert str(caught[0]) == "p9"
        assert first.prompts[0] in intake.cancelled
