"""The embedded client keeps the contract to the letter."""

import asyncio
import os
import time
from types import SimpleNamespace

import pytest

from soloist.protocol import codec
from soloist.protocol.content import AssistantMessage, ResultMessage, StreamEvent, TextBlock
from soloist.protocol.errors import ClientConnectError, ClientError, InvalidOptions
from soloist.worker import control
from soloist.worker.clients import echo
from soloist.worker.clients.base import METHODS, Client
from soloist.worker.clients.echo import EchoClient
from tests.worker.test_control import Caller

LIMIT_S = 20.0


def run(coroutine):
    async def bounded():
        return await asyncio.wait_for(coroutine, LIMIT_S)

    return asyncio.run(bounded())


async def ask(client, prompt):
    await client.query(prompt)
    return [message async for message in client.receive_response()]


async def connected(**options):
    client = EchoClient(**options)
    await client.connect()
    return client


def answers(*prompts, **options):
    async def talk():
        client = await connected(**options)
        return [await ask(client, prompt) for prompt in prompts]

    return run(talk())


def test_it_is_a_client():
    async def check():
        assert isinstance(EchoClient(), Client)
        assert all(callable(getattr(EchoClient, name)) for name in METHODS)

    run(check())


class TestTurn:
    def test_the_answer_is_the_prompt_and_the_result_comes_last(self):
        ((answer, result),) = answers("hello")
        assert answer == AssistantMessage(content=[TextBlock("hello")], model="echo")
        assert isinstance(result, ResultMessage)
        assert (result.result, result.is_error, result.num_turns) == ("hello", False, 1)

    def test_turns_of_a_conversation_are_counted(self):
        assert [turn[-1].num_turns for turn in answers("a", "b", "c")] == [1, 2, 3]

    def test_text_blocks_are_joined(self):
        blocks = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
        assert answers(blocks)[0][-1].result == "ab"

    def test_blocks_without_text_come_back_as_json(self):
        assert answers([{"type": "image"}])[0][-1].result == '[{"type": "image"}]'

    @pytest.mark.parametrize("text", ["", "x", "hello world", "äöü" * 7])
    @pytest.mark.parametrize("chunks", [1, 3, 10])
    def test_pieces_add_up_to_the_answer(self, text, chunks):
        (messages,) = answers(text, chunks=chunks)
        events = [m for m in messages if isinstance(m, StreamEvent)]
        assert len(events) == chunks
        assert "".join(e.event["delta"]["text"] for e in events) == text
        assert [type(m) for m in messages[chunks:]] == [AssistantMessage, ResultMessage]

    def test_one_prompt_can_be_told_to_fail(self):
        async def talk():
            client = await connected(fail_on="bad")
            with pytest.raises(ClientError, match="told to fail on 'bad'"):
                await ask(client, "bad")
            return await ask(client, "good")

        assert run(talk())[-1].result == "good"

    def test_one_prompt_can_be_told_to_end_the_process(self, monkeypatch):
        class Ended(Exception):
            pass

        def end(code):
            raise Ended(code)

        monkeypatch.setattr(os, "_exit", end)
        with pytest.raises(Ended, match="3"):
            answers("die", exit_on="die")


class TestInterrupt:
    def test_it_ends_the_turn_with_an_error_result(self):
        async def talk():
            client = await connected(delay_s=1000.0, chunks=2)
            await client.query("long")
            turn = client.receive_response()
            reading = asyncio.ensure_future(anext(turn))
            await asyncio.sleep(0)
            await client.interrupt()
            result = await reading
            rest = [message async for message in turn]
            return result, rest

        result, rest = run(talk())
        assert (result.is_error, result.subtype, rest) == (True, "error_during_execution", [])

    def test_without_a_turn_it_does_not_hit_the_next_one(self):
        async def talk():
            client = await connected(delay_s=0.001)
            await client.interrupt()
            return await ask(client, "next")

        assert run(talk())[-1].result == "next"

    def test_it_can_be_told_to_ignore_interrupts(self):
        async def talk():
            client = await connected(delay_s=0.01, ignore_interrupt=True)
            await client.query("stubborn")
            await client.interrupt()
            return [message async for message in client.receive_response()][-1].result

        assert run(talk()) == "stubborn"

    def test_it_can_be_told_to_lose_early_ones(self, monkeypatch):
        clock = 100.0
        monkeypatch.setattr(echo, "time", SimpleNamespace(monotonic=lambda: clock))

        async def turn(after_s):
            nonlocal clock
            client = await connected(delay_s=0.01, interrupt_deaf_s=5.0)
            await client.query("long")
            clock += after_s
            await client.interrupt()
            result = [message async for message in client.receive_response()][-1]
            return result.is_error

        assert [run(turn(after_s)) for after_s in (0.0, 4.9, 5.0)] == [False, False, True]

    def test_one_that_comes_before_the_answer_is_read_counts(self):
        async def talk():
            client = await connected(delay_s=1000.0)
            await client.query("long")
            await client.interrupt()
            return [message async for message in client.receive_response()]

        (result,) = run(talk())
        assert result.is_error


class TestConversation:
    def test_reset_begins_a_new_one(self):
        async def talk():
            client = await connected()
            await ask(client, "a")
            await client.reset()
            return await ask(client, "b")

        assert run(talk())[-1].num_turns == 1

    def test_connect_begins_a_new_one(self):
        async def talk():
            client = await connected()
            await ask(client, "a")
            await client.disconnect()
            await client.connect()
            return await ask(client, "b")

        assert run(talk())[-1].num_turns == 1

    def test_it_can_be_told_to_have_no_reset(self):
        async def check():
            assert not callable(EchoClient(resettable=False).reset)

        run(check())

    def test_it_recalls_what_was_said(self):
        turns = answers("recall", "a", [{"type": "text", "text": "b"}], "recall", "recall",
                        recall_on="recall", chunks=2)  # fmt: skip
        said = [turn[-1].result for turn in turns]
        assert said == ["", "a", "b", "recall\na\nb", "recall\na\nb\nrecall"]
        assert turns[3][0].event["delta"]["text"] == "recal"  # it is streamed like any other

    def test_its_memory_is_bounded_and_the_turns_are_counted_on(self, monkeypatch):
        monkeypatch.setattr(echo, "MAX_HISTORY_CHARS", 20)
        prompts = [f"{n:04}" for n in range(50)] + ["x" * 100]
        turns = answers(*prompts, "recall", "recall", recall_on="recall")
        assert turns[-1][-1].num_turns == 53
        assert turns[-2][-1].result == ""  # the long one is beyond what is remembered
        assert turns[-1][-1].result == "recall"
        turns = answers(*prompts[:50], "recall", recall_on="recall")
        assert turns[-1][-1].result == "0047\n0048\n0049"

    def test_both_bounds_hold_together(self, monkeypatch):
        monkeypatch.setattr(echo, "MAX_HISTORY", 3)
        monkeypatch.setattr(echo, "MAX_HISTORY_CHARS", 12)
        prompts = [f"{n:03}" for n in range(20)]
        assert answers(*prompts, "all", recall_on="all")[-1][-1].result == "018\n019"

    def test_it_remembers_the_last_thousand_prompts(self):
        async def talk():
            client = await connected(recall_on="recall", resumable=True)
            for n in range(1500):
                await client.query(str(n))
            (_, result) = await ask(client, "recall")
            assert len(client.snapshot()["history"]) == 1000
            return result

        result = run(talk())
        assert result.num_turns == 1501
        assert result.result.split("\n") == [str(n) for n in range(501, 1500)]

    def test_it_can_answer_in_another_models_name(self):
        async def talk():
            client = await connected()
            await client.set_model("other")
            first = await ask(client, "a")
            await client.set_model()
            return [turn[0].model for turn in (first, await ask(client, "b"))]

        assert run(talk()) == ["other", "echo"]

    def test_connect_can_be_told_to_fail(self):
        with pytest.raises(ClientConnectError, match="no such luck"):
            answers("never", fail_connect="no such luck", connect_delay_s=0.001)


def travelled(snapshot):
    return codec.decode_value(codec.encode_value(snapshot))


class TestContinuation:
    def test_another_client_goes_on(self):
        async def talk():
            client = await connected(resumable=True, recall_on="recall")
            await ask(client, "a")
            await client.set_model("other")
            await ask(client, "b")
            snapshot = travelled(client.snapshot())
            client = EchoClient(resumable=True, recall_on="recall")
            client.restore(snapshot)
            await client.connect()
            assert client.snapshot() == snapshot
            answer, result = await ask(client, "recall")
            await client.connect()  # and only once
            return answer.model, result.result, result.num_turns, client.snapshot()["num_turns"]

        assert run(talk()) == ("other", "a\nb", 3, 0)

    def test_a_reset_leaves_nothing_to_go_on_with(self):
        async def talk():
            client = await connected(resumable=True)
            blank = client.snapshot()
            await ask(client, "a")
            await client.reset()
            assert client.snapshot() == blank
            await ask(client, "a")
            await client.disconnect()
            return client.snapshot() == blank

        assert run(talk())

    def test_unless_it_is_told_to_be_resumable_it_is_not(self):
        async def talk():
            client = await connected()
            await ask(client, "a")
            assert client.snapshot() is None
            with pytest.raises(ClientConnectError, match="not resumable") as caught:
                client.restore({"num_turns": 0, "model": "echo", "history": []})
            return caught.value.retryable

        assert run(talk()) is False

    @pytest.mark.parametrize(
        "value",
        [None, {}, [], {"num_turns": "x", "model": "m", "history": []},
         {"num_turns": 1, "model": "m", "history": None}],
    )  # fmt: skip
    def test_what_is_no_snapshot_is_refused_for_good(self, value):
        async def check():
            with pytest.raises(ClientConnectError, match="cannot be continued") as caught:
                EchoClient(resumable=True).restore(value)
            return caught.value.retryable

        assert run(check()) is False


class TestAsking:
    @pytest.fixture
    def caller(self):
        caller = Caller()
        control.install(caller.controls)
        yield caller
        control.install(None)
        assert caller.waiting == {}

    def test_the_answer_is_what_the_caller_says(self, caller):
        caller.reply = {"text": "fine"}
        turns = answers("well?", "other", ask_on="well?")
        assert [turn[-1].result for turn in turns] == ["fine", "other"]
        assert [question.kind for question in caller.asked] == ["echo"]
        assert caller.data == [{"prompt": "well?"}]

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [({}, "no text"), ({"text": 1}, "no text"), ({"error": "nobody"}, "nobody"),
         (b"\xc1", "asking the caller failed")],
    )  # fmt: skip
    def test_without_a_usable_answer_the_turn_fails_and_the_next_goes_on(
        self, caller, reply, reason
    ):
        caller.reply = reply

        async def talk():
            client = await connected(ask_on="well?")
            with pytest.raises(ClientError, match=reason):
                await ask(client, "well?")
            return (await ask(client, "next"))[-1].result

        assert run(talk()) == "next"

    def test_an_interrupt_takes_the_question_back(self, caller):
        async def talk():
            client = await connected(ask_on="well?")
            await client.query("well?")
            turn = client.receive_response()
            reading = asyncio.ensure_future(anext(turn))
            await caller.news.wait()
            (question,) = caller.waiting.values()
            await client.interrupt()
            result = await reading
            await asyncio.wait({question})
            return result.is_error, [message async for message in turn]

        assert run(talk()) == (True, [])


def events_of(log):
    return [tuple(line.split()[:2]) for line in log.read_text().splitlines()]


class TestLog:
    def test_it_tells_when_each_turn_began_and_ended(self, tmp_path):
        log = tmp_path / "log"
        before = time.monotonic()
        answers("a", "b", log=str(log))
        rows = [line.split() for line in log.read_text().splitlines()]
        assert [row[:2] for row in rows] == [
            ["begin", "1"], ["end", "1"], ["begin", "2"], ["end", "2"],
        ]  # fmt: skip
        times = [float(row[2]) for row in rows]
        assert before <= times[0]
        assert times == sorted(times)
        assert times[-1] <= time.monotonic()

    def test_however_a_turn_ends_it_ends_once(self, tmp_path):
        log = tmp_path / "log"

        async def talk():
            client = await connected(log=str(log), chunks=2, fail_on="bad", delay_s=0.001)
            with pytest.raises(ClientError):
                await ask(client, "bad")
            await client.query("interrupted")
            await client.interrupt()
            [_ async for _ in client.receive_response()]
            await client.query("closed")
            turn = client.receive_response()
            await anext(turn)
            await turn.aclose()
            await ask(client, "good")
            [_ async for _ in client.receive_response()]  # of no turn

        run(talk())
        assert events_of(log) == [(word, str(n)) for n in range(1, 5) for word in ("begin", "end")]

    def test_a_turn_has_ended_when_its_result_is_there(self, tmp_path):
        """A reader that leaves with the result and asks again makes no two turns overlap."""
        log = tmp_path / "log"

        async def talk():
            client = await connected(log=str(log))
            for prompt in ("a", "b"):
                await client.query(prompt)
                async for message in client.receive_response():
                    if isinstance(message, ResultMessage):
                        break

        run(talk())
        assert [word for word, _ in events_of(log)] == ["begin", "end", "begin", "end"]

    def test_two_turns_at_once_can_be_seen(self, tmp_path):
        log = tmp_path / "log"

        async def talk():
            one, two = [await connected(log=str(log), delay_s=0.001) for _ in range(2)]
            await one.query("a")
            await asyncio.gather(ask(two, "b"), anext(one.receive_response()))

        run(talk())
        assert [word for word, _ in events_of(log)] == ["begin", "begin", "end", "end"]

    def test_a_process_that_dies_leaves_its_turn_open(self, tmp_path, monkeypatch):
        log = tmp_path / "log"

        def end(code):
            raise SystemExit(code)

        monkeypatch.setattr(os, "_exit", end)
        with pytest.raises(SystemExit):
            answers("die", exit_on="die", log=str(log))
        assert events_of(log) == [("begin", "1")]


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [{"delay_s": -1}, {"delay_s": "1"}, {"connect_delay_s": -0.1}, {"chunks": -1},
         {"chunks": 1.5}, {"interrupt_deaf_s": -1}, {"interrupt_deaf_s": None}, {"log": 1}],
    )  # fmt: skip
    def test_what_makes_no_sense_is_refused_by_name(self, options):
        (name,) = options
        with pytest.raises(InvalidOptions, match=name):
            EchoClient.check_options(**options)

    def test_the_others_are_not_its_business(self):
        EchoClient.check_options(delay_s=0, chunks=3, fail_on="x", whatever=1)
