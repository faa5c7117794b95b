"""A chunk in the loop of a worker: a fake channel, a real grant pipe and a real ledger."""

import itertools
import os
import struct

import pytest

from soloist.protocol.errors import (
    ClientError,
    LocalProtocolError,
    PayloadTooLarge,
    ResultNotSerializable,
    from_info,
)
from soloist.protocol.messages import Answer, Answers, Chunk, Failure, Stop
from soloist.worker import chunk as chunk_module
from soloist.worker import loop
from tests.worker.test_loop import Office


@pytest.fixture(params=[None, lambda: None], ids=["by the pipe", "in memory"])
def office(request):
    office = Office(max_bytes=100_000, barrier=request.param)
    yield office
    office.close()


class Clock:
    """A clock that goes on by a step at each look."""

    def __init__(self, step_s=0.0):
        self.step_s = step_s
        self.now = 100.0

    def monotonic(self):
        self.now += self.step_s
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(chunk_module, "time", clock)
    return clock


def chunk_of(office, *prompts, acked=0):
    """Grant a chunk; gives the message for it."""
    numbers = range(office.next, office.next + len(prompts))
    office.next += len(prompts)
    office.shared.grant_chunk(numbers)
    return Chunk(numbers[0], prompts, acked)


def serve(office, call, *steps):
    """Serve what the steps put there, then stop."""
    office.channel.then.extend([*steps, lambda: office.channel.put(Stop())])
    loop.run_sync(office.desk, call)


def outcomes(office):
    """Single ones and those of chunks, by lease."""
    found = {}
    for message in office.channel.sent:
        if isinstance(message, Answers):
            for i, text in enumerate(message.texts):
                assert message.lease + i not in found
                found[message.lease + i] = text
        elif isinstance(message, Answer):
            found[message.lease] = message.text
        elif isinstance(message, Failure):
            found[message.lease] = type(from_info(message.error))
    return found


def together(office):
    return [m for m in office.channel.sent if isinstance(m, Answers)]


def test_answers_come_together(office):
    serve(office, str.upper, lambda: office.channel.put(chunk_of(office, "a", "b", "c")))
    (answers,) = together(office)
    assert (answers.lease, answers.texts) == (1, ("A", "B", "C"))
    assert len(answers.durations) == 24


def test_a_duration_counts_from_the_answer_before(office, clock):
    clock.step_s = 1e-5
    serve(office, str.upper, lambda: office.channel.put(chunk_of(office, "a", "b")))
    (answers,) = together(office)
    assert struct.unpack("=2d", answers.durations) == pytest.approx([1e-5, 1e-5])


def test_answers_are_safe_before_the_next_prompt_begins(office):
    seen = []

    def call(prompt):
        found = office.shared.read(is_over=True)
        seen.append(found[0].texts if found else ())
        return prompt

    serve(office, call, lambda: office.channel.put(chunk_of(office, "a", "b", "c")))
    assert seen == [(), ("a",), ("a", "b")]


def test_those_of_a_long_one_are_sent_on_the_way(office, clock):
    clock.step_s = chunk_module.SEND_S * 0.6
    serve(office, str.upper, lambda: office.channel.put(chunk_of(office, *"abcde")))
    assert [answers.texts for answers in together(office)] == [("A", "B"), ("C", "D"), ("E",)]
    assert outcomes(office) == dict(enumerate("ABCDE", start=1))


def fails_at(bad, error):
    def call(prompt):
        if prompt == bad:
            raise error
        return prompt

    return call


@pytest.mark.parametrize("bad", list("abc"))
@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(1)], ids=["ValueError", "SystemExit"]
)
def test_one_that_raises_fails_alone_and_in_its_place(office, bad, error):
    serve(office, fails_at(bad, error), lambda: office.channel.put(chunk_of(office, *"abc")))
    expected = {i: p if p != bad else ClientError for i, p in enumerate("abc", start=1)}
    assert outcomes(office) == expected
    assert list(outcomes(office)) == [1, 2, 3], "in order"
    assert [m.lease for m in office.shared.read(is_over=True)] == sorted(
        m.lease for m in office.shared.read(is_over=True)
    )


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (7, ResultNotSerializable),
        ("\ud800", ResultNotSerializable),
        ("x" * 100_001, PayloadTooLarge),
    ],
    ids=["no text", "no UTF-8", "too large"],
)
def test_a_result_that_cannot_be_sent_fails_alone(office, result, error):
    serve(
        office,
        lambda prompt: result if prompt == "b" else prompt,
        lambda: office.channel.put(chunk_of(office, *"abc")),
    )
    found = outcomes(office)
    assert (found[1], found[3]) == ("a", "c")
    assert found[2] is error


def test_an_answer_for_which_the_page_has_no_room_comes_by_itself(office):
    prompts = [c * 90_000 for c in "abcdefgh"]
    serve(office, str.upper, lambda: office.channel.put(chunk_of(office, *prompts)))
    assert outcomes(office) == {i: p.upper() for i, p in enumerate(prompts, start=1)}
    assert any(isinstance(m, Answer) for m in office.channel.sent)
    safe = {}
    for message in office.shared.read(is_over=True):
        texts = message.texts if isinstance(message, Answers) else (message.text,)
        safe |= {message.lease + i: text for i, text in enumerate(texts)}
    assert safe == outcomes(office)


@pytest.mark.parametrize("at", list("abc"))
def test_what_is_taken_back_in_the_middle_does_not_run(office, at):
    ran = []

    def call(prompt):
        ran.append(prompt)
        if prompt == at:
            office.shared.take_back()
        return prompt

    serve(
        office,
        call,
        lambda: office.channel.put(chunk_of(office, *"abc")),
        lambda: office.channel.put(chunk_of(office, *"xyz")),
    )
    assert "".join(ran) == "abc"[: "abc".index(at) + 1] + "xyz"
    assert list(outcomes(office).values()) == ran


def test_what_is_granted_while_it_runs_follows_it(office):
    late = []

    def call(prompt):
        if prompt == "a":
            office.shared.take_back()
            late.append(chunk_of(office, *"xy"))
        return prompt

    serve(
        office,
        call,
        lambda: office.channel.put(chunk_of(office, *"abc")),
        lambda: office.channel.put(late[0]),
    )
    assert outcomes(office) == {1: "a", 4: "x", 5: "y"}


def test_those_between_that_were_taken_back_leave_a_gap(office):
    if office.claims.revision == 0:
        pytest.skip("in memory what is taken back is the end")

    def call(prompt):
        if prompt == "b":
            os.read(office.shared.grants_r, 16)
        return prompt

    serve(office, call, lambda: office.channel.put(chunk_of(office, *"abcdef")))
    assert outcomes(office) == {1: "a", 2: "b", 5: "e", 6: "f"}
    assert [(m.lease, m.texts) for m in office.shared.read(is_over=True)] == [
        (1, ("a", "b")),
        (5, ("e", "f")),
    ]


def test_chunks_and_single_leases_follow_each_other(office):
    calls = itertools.count()

    def both():
        office.channel.put(chunk_of(office, "a", "b"), office.run("c"))
        office.channel.put(chunk_of(office, "d"))

    def more():
        office.channel.put(chunk_of(office, "e", "f", acked=4))

    serve(office, lambda prompt: f"{prompt}{next(calls)}", both, more)
    assert list(outcomes(office).values()) == ["a0", "b1", "c2", "d3", "e4", "f5"]


def test_a_chunk_for_which_there_is_no_room_is_the_supervisors_fault(office):
    def three():
        office.channel.put(*[chunk_of(office, p) for p in "abc"])

    with pytest.raises(LocalProtocolError):
        serve(office, str.upper, three)
