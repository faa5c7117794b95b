"""A bare callable as a client."""

import asyncio

import pytest

from soloist.protocol.content import ResultMessage
from soloist.protocol.errors import ClientError, ResultNotSerializable
from soloist.worker.clients.base import Client
from soloist.worker.clients.function import AsyncFunctionClient, text_of

LIMIT_S = 20.0


def run(coroutine):
    async def bounded():
        return await asyncio.wait_for(coroutine, LIMIT_S)

    return asyncio.run(bounded())


async def ask(client, prompt):
    await client.query(prompt)
    return [message async for message in client.receive_response()]


class Text(str):
    __slots__ = ()


class TestTextOf:
    @pytest.mark.parametrize("text", ["", "x", "ä" * 1000])
    def test_text_is_passed_on(self, text):
        assert text_of(text) is text

    @pytest.mark.parametrize(
        "value", [None, 1, b"x", ["x"], {"a": 1}, Text("x"), object], ids=lambda v: str(type(v))
    )
    def test_anything_else_is_refused_with_advice(self, value):
        with pytest.raises(ResultNotSerializable, match=r"return a str, for example json\.dumps"):
            text_of(value)


class TestAsyncFunctionClient:
    def test_it_is_a_client(self):
        async def check():
            assert isinstance(AsyncFunctionClient(ask, {}), Client)

        run(check())

    def test_it_answers_with_what_the_callable_returns(self):
        async def shout(prompt, *, mark):
            return prompt.upper() + mark

        async def talk():
            client = AsyncFunctionClient(shout, {"mark": "!"})
            await client.connect()
            return [await ask(client, prompt) for prompt in ("a", "b")]

        for messages, text in zip(run(talk()), ("A!", "B!"), strict=True):
            assert isinstance(messages[-1], ResultMessage)
            assert (messages[-1].result, messages[-1].num_turns) == (text, 1)

    def test_what_it_raises_comes_through(self):
        async def fail(prompt):
            raise KeyError(prompt)

        with pytest.raises(KeyError, match="a"):
            run(ask(AsyncFunctionClient(fail, {}), "a"))

    @pytest.mark.parametrize("leave", [SystemExit, KeyboardInterrupt])
    def test_what_would_end_the_loop_is_an_error_too(self, leave):
        async def fail(prompt):
            raise leave(prompt)

        with pytest.raises(ClientError, match=f"{leave.__name__}: a"):
            run(ask(AsyncFunctionClient(fail, {}), "a"))

    def test_what_cannot_be_sent_is_refused(self):
        async def number(prompt):
            return len(prompt)

        with pytest.raises(ResultNotSerializable, match="returned int"):
            run(ask(AsyncFunctionClient(number, {}), "abc"))

    def test_an_interrupt_cancels_the_call_and_the_next_one_runs(self):
        begun = asyncio.Event()
        cancelled = []

        async def work(prompt):
            if prompt == "quick":
                return prompt
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(prompt)
                raise

        async def talk():
            client = AsyncFunctionClient(work, {})
            turn = asyncio.ensure_future(ask(client, "long"))
            await begun.wait()
            await client.interrupt()
            (result,) = await turn
            assert result.is_error
            return await ask(client, "quick")

        assert run(talk())[-1].result == "quick"
        assert cancelled == ["long"]

    def test_without_a_call_an_interrupt_does_nothing(self):
        async def echo(prompt):
            return prompt

        async def talk():
            client = AsyncFunctionClient(echo, {})
            await client.interrupt()
            await client.reset()
            first = await ask(client, "a")
            await client.interrupt()
            second = await ask(client, "b")
            await client.disconnect()
            return first[-1].result + second[-1].result

        assert run(talk()) == "ab"

    def test_any_other_can_go_on_where_one_stopped(self):
        async def echo(prompt):
            return prompt

        async def talk():
            snapshot = AsyncFunctionClient(echo, {}).snapshot()
            client = AsyncFunctionClient(echo, {})
            client.restore(snapshot)
            await client.connect()
            return snapshot, (await ask(client, "a"))[-1].result

        assert run(talk()) == ({}, "a")

    def test_a_call_does_not_outlive_its_reader(self):
        begun = asyncio.Event()
        ended = []

        async def work(prompt):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(prompt)

        async def talk():
            client = AsyncFunctionClient(work, {})
            turn = asyncio.ensure_future(ask(client, "long"))
            await begun.wait()
            turn.cancel()
            await asyncio.wait({turn})

        run(talk())
        assert ended == ["long"]
