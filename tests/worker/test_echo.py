"""The embedded client keeps the contract to the letter."""

import asyncio
import os

import pytest

from soloist.protocol.content import AssistantMessage, ResultMessage, StreamEvent, TextBlock
from soloist.protocol.errors import ClientConnectError, ClientError, InvalidOptions
from soloist.worker.clients.base import METHODS, Client
from soloist.worker.clients.echo import EchoClient

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

    def test_connect_can_be_told_to_fail(self):
        with pytest.raises(ClientConnectError, match="no such luck"):
            answers("never", fail_connect="no such luck", connect_delay_s=0.001)


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [{"delay_s": -1}, {"delay_s": "1"}, {"connect_delay_s": -0.1}, {"chunks": -1},
         {"chunks": 1.5}],
    )  # fmt: skip
    def test_what_makes_no_sense_is_refused_by_name(self, options):
        (name,) = options
        with pytest.raises(InvalidOptions, match=name):
            EchoClient.check_options(**options)

    def test_the_others_are_not_its_business(self):
        EchoClient.check_options(delay_s=0, chunks=3, fail_on="x", whatever=1)
