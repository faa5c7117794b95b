"""The host: one client, one turn at a time, whatever that client does."""

import asyncio
import contextlib
import dataclasses

import pytest

from soloist.protocol import codec, content
from soloist.protocol.content import AssistantMessage, ResultMessage, StreamEvent, TextBlock
from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    ClientNotFound,
    InvalidOptions,
    InvalidPrompt,
    LocalProtocolError,
    PayloadTooLarge,
    RateLimited,
    ResultNotSerializable,
    SoloistError,
)
from soloist.worker import host as host_module
from soloist.worker.host import Host
from tests.support import name_of

LIMIT_S = 20.0


def run(coroutine):
    async def bounded():
        return await asyncio.wait_for(coroutine, LIMIT_S)

    return asyncio.run(bounded())


def result(text="done", num_turns=1, **fields):
    values = {
        "subtype": "success",
        "duration_ms": 1,
        "duration_api_ms": 0,
        "is_error": False,
        "num_turns": num_turns,
        "session_id": "s",
        "result": text,
    }
    return ResultMessage(**{**values, **fields})


def said(text):
    return AssistantMessage(content=[TextBlock(text)], model="fake")


class Wait:
    """In a script: the turn goes on when this is set, or when it is interrupted."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()


class FakeClient:
    """Plays a script of turns; each is a list of messages, exceptions and waits."""

    def __init__(self, world):
        self.world = world
        self.pipe = []  # what was sent and not read yet: the next turn would get it
        self.turns = 0
        self.is_open = False
        world.built.append(self)

    async def connect(self):
        assert not any(client.is_open for client in self.world.built), "two clients at once"
        self.is_open = True
        self.world.note("connect", self)
        await self.world.play("connect", self)

    async def query(self, prompt):
        assert self.is_open
        self.world.note(f"query {prompt}", self)
        self.turns += 1
        self.pipe += self.world.turns.pop(0) if self.world.turns else [result(prompt, self.turns)]
        await self.world.play("query", self)

    async def receive_response(self):
        while self.pipe:
            item = self.pipe.pop(0)
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Wait):
                self.waiting = item
                item.begun.set()
                await item.gate.wait()
                continue
            yield item
            if isinstance(item, ResultMessage):
                return

    async def interrupt(self):
        self.world.note("interrupt", self)
        await self.world.play("interrupt", self)

    async def disconnect(self):
        self.world.note("disconnect", self)
        await self.world.play("disconnect", self)
        self.is_open = False


class Resettable(FakeClient):
    async def reset(self):
        self.world.note("reset", self)
        await self.world.play("reset", self)
        self.turns = 0


class World:
    """Scripts, and what happened. ``on`` maps a method to what it does instead of nothing."""

    def __init__(
        self,
        *turns,
        cls=FakeClient,
        isolation="worker",
        connect_timeout_s=None,
        max_bytes=10**6,
        **on,
    ):
        self.turns = list(turns)
        self.on = on
        self.built = []
        self.log = []
        self.host = Host(
            lambda: cls(self),
            isolation=isolation,
            connect_timeout_s=connect_timeout_s,
            max_bytes=max_bytes,
        )

    def note(self, what, client):
        self.log.append(f"{what} {self.built.index(client)}")

    async def play(self, method, client):
        action = self.on.get(method)
        if isinstance(action, BaseException) or (
            isinstance(action, type) and issubclass(action, BaseException)
        ):
            raise action
        if action is not None:
            await action(client)

    async def ask(self, prompt, on_message=None):
        """As the worker's loop does it: a turn, then ``renew``; an error comes back."""
        try:
            answer = await self.host.turn(7, prompt, on_message)
        except SoloistError as error:
            answer = error
        await self.host.renew()
        return answer


def talk(world, *prompts):
    async def all_of_it():
        await world.host.connect()
        answers = [await world.ask(prompt) for prompt in prompts]
        await world.host.disconnect()
        return answers

    return run(all_of_it())


def text(answer):
    return getattr(answer, "text", answer)


class TestTurn:
    def test_its_answer_holds_everything(self):
        world = World([said("hel"), said("lo"), result("hello", num_turns=4)])
        (answer,) = talk(world, "p")
        assert (answer.lease, answer.text, answer.num_turns) == (7, "hello", 4)
        assert 0 <= answer.duration_s < LIMIT_S
        messages = [content.from_map(m) for m in codec.decode_maps(answer.messages)]
        assert messages == [said("hel"), said("lo"), result("hello", num_turns=4)]

    def test_messages_are_passed_on_as_they_arrive(self):
        seen = []

        async def scene():
            wait = Wait()
            world = World([said("first"), wait, result()])
            await world.host.connect()
            turn = asyncio.ensure_future(world.ask("p", seen.append))
            await wait.begun.wait()
            before = [codec.decode_message(data) for data in seen]
            wait.gate.set()
            await turn
            return before

        assert run(scene()) == [said("first")]
        assert [codec.decode_message(data) for data in seen] == [said("first"), result()]

    def test_content_blocks_reach_the_client_as_they_are(self):
        world = World()
        blocks = [{"type": "text", "text": "x"}]
        talk(world, blocks)
        assert f"query {blocks} 0" in world.log

    def test_dataclasses_of_a_newer_agent_are_kept_as_system_messages(self):
        @dataclasses.dataclass
        class TaskStarted:
            name: str

        world = World([TaskStarted("build"), result()])
        (answer,) = talk(world, "p")
        message = content.from_map(codec.decode_maps(answer.messages)[0])
        assert (message.subtype, message.data) == ("TaskStarted", {"name": "build"})

    def test_text_comes_from_the_blocks_if_the_result_has_none(self):
        world = World([said("a"), StreamEvent("u", "s", {}), said("b"), result(None)])
        assert text(talk(world, "p")[0]) == "ab"

    def test_a_count_below_zero_does_not_leave_the_worker(self):
        """The wire has no such numbers: the supervisor would take it for a broken worker."""
        world = World([result(num_turns=-1)])
        (answer,) = talk(world, "p")
        assert codec.decode(codec.encode(answer)) == answer

    def test_an_iterator_without_aclose_will_do(self):
        class Plain(FakeClient):
            def receive_response(self):
                messages = self.pipe
                self.pipe = []

                class Messages:
                    def __aiter__(self):
                        return self

                    async def __anext__(self):
                        if not messages:
                            raise StopAsyncIteration
                        return messages.pop(0)

                return Messages()

        assert text(talk(World(cls=Plain), "p")[0]) == "p"


class TestIsolation:
    def test_a_worker_keeps_its_conversation(self):
        world = World(cls=Resettable, isolation="worker")
        assert [a.num_turns for a in talk(world, "a", "b", "c")] == [1, 2, 3]
        assert world.log == ["connect 0", "query a 0", "query b 0", "query c 0", "disconnect 0"]

    def test_per_prompt_it_is_reset_where_the_client_can(self):
        world = World(cls=Resettable, isolation="prompt")
        assert [a.num_turns for a in talk(world, "a", "b")] == [1, 1]
        assert world.log[:4] == ["connect 0", "query a 0", "reset 0", "query b 0"]
        assert len(world.built) == 1

    def test_per_prompt_it_is_replaced_where_the_client_cannot(self):
        world = World(isolation="prompt")
        assert [a.num_turns for a in talk(world, "a", "b")] == [1, 1]
        assert world.log[:5] == [
            "connect 0",
            "query a 0",
            "disconnect 0",
            "connect 1",
            "query b 1",
        ]

    def test_reset_that_is_none_counts_as_absent(self):
        class Without(FakeClient):
            reset = None

        world = World(cls=Without, isolation="prompt")
        talk(world, "a", "b")
        assert len(world.built) == 3

    @pytest.mark.parametrize(
        "error", [RuntimeError("no"), ClientError("no"), asyncio.CancelledError(), SystemExit(1)],
        ids=name_of,
    )  # fmt: skip
    def test_a_reset_that_raises_costs_a_new_client_and_nothing_else(self, error):
        world = World(cls=Resettable, isolation="prompt", reset=error)
        assert [text(a) for a in talk(world, "a", "b")] == ["a", "b"]
        assert world.log[2:5] == ["reset 0", "disconnect 0", "connect 1"]

    def test_a_reset_that_hangs_costs_a_new_client(self, monkeypatch):
        monkeypatch.setattr(host_module, "RESET_S", 0.001)

        async def hang(client):
            await asyncio.Event().wait()

        world = World(cls=Resettable, isolation="prompt", reset=hang)
        assert [text(a) for a in talk(world, "a", "b")] == ["a", "b"]
        assert world.built[1:] != []

    def test_a_sync_reset_is_no_reset(self):
        class Odd(FakeClient):
            def reset(self):
                return None

        world = World(cls=Odd, isolation="prompt")
        assert [text(a) for a in talk(world, "a", "b")] == ["a", "b"]
        assert len(world.built) == 3

    @pytest.mark.parametrize("isolation", ["prompt", "worker"])
    @pytest.mark.parametrize("cls", [FakeClient, Resettable])
    def test_there_are_never_two_clients_at_once(self, isolation, cls):
        turns = [[result()], [RuntimeError("boom")], [said("no end")], [result(is_error=True)]] * 3
        world = World(*turns, cls=cls, isolation=isolation)
        talk(world, *"abcdefghijkl")
        opened = 0
        for entry in world.log:
            opened += entry.startswith("connect") - entry.startswith("disconnect")
            assert opened in {0, 1}


class TestErrors:
    """What a turn that failed leaves behind never reaches the next prompt."""

    LEFT_OVER = (said("left over"), result("of the first"))

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (KeyError("k"), ClientError),
            (asyncio.CancelledError(), ClientError),
            (SystemExit(3), ClientError),
            (KeyboardInterrupt(), ClientError),
            (LocalProtocolError("ours"), LocalProtocolError),
            (ClientConnectError("gone"), ClientConnectError),
        ],
        ids=name_of,
    )
    @pytest.mark.parametrize("at", ["query", "receive"])
    def test_an_exception_fails_its_turn_and_spoils_the_client(self, error, kind, at):
        if at == "query":
            world = World(list(self.LEFT_OVER))

            async def fail_once(client):
                del world.on["query"]
                raise error

            world.on["query"] = fail_once
        else:
            world = World([error, *self.LEFT_OVER])
        first, second = talk(world, "a", "b")
        assert type(first) is kind
        assert text(second) == "b"
        assert len(world.built) == 2

    def test_the_original_is_described(self):
        (error,) = talk(World([KeyError("the key")]), "a")
        assert error.type_name == "KeyError"
        assert "the key" in str(error)
        assert "receive_response" in error.traceback_text
        assert isinstance(error.__cause__, KeyError)

    def test_a_turn_without_a_result_fails_and_spoils_the_client(self):
        world = World([said("a")], [said("b"), result("b")])
        first, second = talk(world, "a", "b")
        assert isinstance(first, ClientError)
        assert "ResultMessage" in str(first)
        assert text(second) == "b"
        assert len(world.built) == 2

    def test_a_turn_without_any_message_fails_too(self):
        (first,) = talk(World([]), "a")
        assert isinstance(first, ClientError)

    def test_a_result_that_is_not_the_last_message_is_no_end(self):
        class Chatty(FakeClient):
            async def receive_response(self):
                while self.pipe:
                    yield self.pipe.pop(0)

        world = World([result(), said("one more thing")], cls=Chatty)
        (first,) = talk(world, "a")
        assert isinstance(first, ClientError)
        assert len(world.built) == 2

    @pytest.mark.parametrize(
        "bad",
        [
            StreamEvent("u", "s", {"socket": object()}),
            StreamEvent("u", "s", {1: "a number as a key"}),
            StreamEvent("u", "s", {"big": 2**70}),
            AssistantMessage(content=[TextBlock("\ud800")], model="m"),
            "a plain string",
            None,
            AssistantMessage(content=[TextBlock(b"bytes")], model="m"),
        ],
        ids=["object", "key", "number", "surrogate", "string", "none", "field"],
    )
    def test_a_message_that_cannot_be_sent_fails_its_turn_which_is_drained(self, bad):
        seen = []
        world = World([said("before"), bad, said("after"), result("of the first")])

        async def scene():
            await world.host.connect()
            first = await world.ask("a", seen.append)
            return first, await world.ask("b")

        first, second = run(scene())
        assert type(first) is ResultNotSerializable
        assert type(bad).__name__ in str(first)
        assert (text(second), second.num_turns) == ("b", 2)
        assert len(world.built) == 1, "the conversation is kept"
        assert [codec.decode_message(data) for data in seen] == [said("before")]

    @pytest.mark.parametrize("end", [result("over"), result("over", is_error=True)])
    def test_a_turn_of_too_many_messages_is_drained_but_not_kept(self, end, monkeypatch):
        """It may go on for ever; its reader alone, who is bounded too, gets them all."""
        seen, kept = [], []
        world = World([said("x" * 100) for _ in range(50)] + [end], max_bytes=1_000)

        class Watched(host_module._Turn):
            def _take(self, message):
                super()._take(message)
                kept.append(sum(map(len, self._encoded)))

        async def scene():
            await world.host.connect()
            first = await world.ask("a", lambda data: seen.append(len(data)))
            return first, await world.ask("b")

        monkeypatch.setattr(host_module, "_Turn", Watched)
        first, second = run(scene())
        assert type(first) is (ClientError if end.is_error else PayloadTooLarge)
        assert text(second) == "b"
        assert len(world.built) == 1, "the conversation is kept"
        assert len(seen) == 51
        assert 0 < max(kept) <= 1_000
        assert kept[50] == 0

    def test_a_result_that_cannot_be_sent_ends_the_turn_all_the_same(self):
        world = World([result(structured_output=object())])
        first, second = talk(world, "a", "b")
        assert type(first) is ResultNotSerializable
        assert second.num_turns == 2

    @pytest.mark.parametrize(
        "error", [ClientError("no"), RateLimited("no"), InvalidPrompt("no")], ids=name_of
    )
    def test_the_clients_own_word_leaves_the_conversation(self, error):
        world = World([error])
        first, second = talk(world, "a", "b")
        assert first is error
        assert second.num_turns == 2
        assert len(world.built) == 1

    @pytest.mark.parametrize("how", ["false", "raises"])
    def test_a_client_that_has_lost_its_connection_is_replaced(self, how):
        class Lossy(FakeClient):
            @property
            def is_connected(self):
                if how == "raises":
                    raise RuntimeError("who knows")
                return False

        world = World([ClientError("died")], cls=Lossy)
        first, second = talk(world, "a", "b")
        assert str(first) == "died"
        assert second.num_turns == 1
        assert len(world.built) == 2

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"result": "said so"}, "said so"),
            ({"result": None, "errors": ["first", "second"]}, "first"),
            ({"result": None, "errors": 5, "subtype": "error_max_turns"}, "error_max_turns"),
            ({"result": None, "errors": "text", "subtype": "odd"}, "odd"),
            ({"result": "", "subtype": ""}, "the agent reported an error"),
        ],
    )
    def test_a_result_with_is_error_is_an_error_and_keeps_the_client(self, fields, message):
        world = World([result(is_error=True, **{"result": None, **fields})])
        first, second = talk(world, "a", "b")
        assert type(first) is ClientError
        assert str(first) == message
        assert second.num_turns == 2

    def test_the_status_of_the_service_is_passed_on(self):
        (first,) = talk(World([result(is_error=True, api_error_status=529)]), "a")
        assert (type(first), first.api_status) == (ClientError, 529)

    def test_a_rate_limit_is_told_apart(self):
        (first,) = talk(World([result(is_error=True, api_error_status=429)]), "a")
        assert (type(first), first.api_status, first.retryable) == (RateLimited, 429, True)


class TestConnect:
    @pytest.mark.parametrize("error", [ClientNotFound("no CLI"), ClientConnectError("bad key")])
    def test_a_typed_error_is_passed_on(self, error):
        world = World(connect=error)
        with pytest.raises(type(error)) as caught:
            run(world.host.connect())
        assert caught.value is error

    @pytest.mark.parametrize(
        "error",
        [OSError("disk"), Exception("control request timeout"), asyncio.CancelledError("scope"),
         SystemExit(2), KeyboardInterrupt(), TimeoutError(), BaseExceptionGroup("g", [OSError()])],
        ids=name_of,
    )  # fmt: skip
    def test_anything_else_is_a_connect_error(self, error):
        world = World(connect=error)
        with pytest.raises(ClientConnectError, match=type(error).__name__) as caught:
            run(world.host.connect())
        assert caught.value.__cause__ is error

    def test_it_takes_no_longer_than_it_may(self):
        async def hang(client):
            await asyncio.Event().wait()

        world = World(connect=hang, connect_timeout_s=0.01)
        with pytest.raises(ClientConnectError, match=r"over 0\.01 s") as caught:
            run(world.host.connect())
        assert caught.value.retryable

    def test_a_client_that_runs_out_of_its_own_time_says_so_itself(self):
        world = World(connect=TimeoutError("the service is silent"), connect_timeout_s=60)
        with pytest.raises(ClientConnectError, match="the service is silent"):
            run(world.host.connect())

    @pytest.mark.parametrize("error", [ValueError("bad option"), SystemExit(1)], ids=name_of)
    def test_a_constructor_that_raises_is_a_connect_error(self, error):
        def build():
            raise error

        with pytest.raises(ClientConnectError, match=f"be built: {type(error).__name__}"):
            Host(build, isolation="prompt")

    def test_a_typed_error_of_the_constructor_is_passed_on(self):
        error = ClientNotFound("no CLI")

        def build():
            raise error

        with pytest.raises(ClientNotFound) as caught:
            Host(build, isolation="prompt")
        assert caught.value is error

    def test_the_next_client_may_fail_to_connect_or_to_be_built(self):
        world = World(isolation="prompt")

        async def scene(**on):
            world.on.update(on)
            with pytest.raises(ClientConnectError):
                await world.ask("a")

        run(world.host.connect())
        run(scene(connect=OSError("no more")))

    def test_being_stopped_amid_connect_is_no_error_of_the_client(self):
        async def scene():
            connecting = asyncio.Event()

            async def hang(client):
                connecting.set()
                await asyncio.Event().wait()

            task = asyncio.ensure_future(World(connect=hang).host.connect())
            await connecting.wait()
            task.cancel()
            await asyncio.wait({task})
            return task.cancelled()

        assert run(scene()) is True


class TestInterrupt:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(host_module, "INTERRUPT_REPEAT_S", 0.0)

    @staticmethod
    async def interrupted(world, wait):
        """Begin a turn, interrupt it once, wait for its end."""
        await world.host.connect()
        turn = asyncio.ensure_future(world.ask("long"))
        await wait.begun.wait()
        world.host.interrupt()
        return await turn

    def test_it_is_repeated_until_the_turn_has_ended(self):
        async def scene():
            wait = Wait()
            calls = []

            async def lose_the_first_two(client):
                calls.append(client)
                if len(calls) == 3:
                    wait.gate.set()

            world = World(
                [wait, result(None, is_error=True, subtype="error_during_execution")],
                interrupt=lose_the_first_two,
            )
            first = await self.interrupted(world, wait)
            ended = len(calls)
            second = await world.ask("b")
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(calls) == ended >= 3, "no interrupt hits the next turn"
            return first, second

        first, second = run(scene())
        assert str(first) == "error_during_execution"
        assert text(second) == "b"

    def test_asked_twice_it_is_done_once(self):
        async def scene():
            wait = Wait()

            async def end(client):
                wait.gate.set()

            world = World([wait, result()], interrupt=end)
            await world.host.connect()
            turn = asyncio.ensure_future(world.ask("long"))
            await wait.begun.wait()
            world.host.interrupt()
            world.host.interrupt()
            await turn
            return world.log.count("interrupt 0")

        assert run(scene()) == 1

    def test_between_turns_it_does_nothing(self):
        async def scene():
            world = World()
            await world.host.connect()
            world.host.interrupt()
            await world.ask("a")
            world.host.interrupt()
            for _ in range(10):
                await asyncio.sleep(0)
            second = await world.ask("b")
            return world.log, second

        log, second = run(scene())
        assert not any(entry.startswith("interrupt") for entry in log)
        assert text(second) == "b"

    def test_one_between_turns_does_not_keep_the_next_from_its_own(self):
        async def scene():
            wait = Wait()

            async def end(client):
                wait.gate.set()

            world = World([result()], [wait, result()], interrupt=end)
            await world.host.connect()
            await world.ask("a")
            world.host.interrupt()
            turn = asyncio.ensure_future(world.ask("long"))
            await wait.begun.wait()
            world.host.interrupt()
            return await turn

        assert text(run(scene())) == "done"

    @pytest.mark.parametrize(
        "error", [RuntimeError("not now"), asyncio.CancelledError()], ids=name_of
    )
    def test_one_that_raises_is_tried_again(self, error):
        async def scene():
            wait = Wait()
            calls = []

            async def fail_first(client):
                calls.append(client)
                if len(calls) == 1:
                    raise error
                wait.gate.set()

            return await self.interrupted(World([wait, result()], interrupt=fail_first), wait)

        assert text(run(scene())) == "done"

    def test_one_that_hangs_ends_with_the_turn(self):
        async def scene():
            wait = Wait()
            ended = []

            async def hang(client):
                wait.gate.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append(client)

            world = World([wait, result()], interrupt=hang)
            answer = await self.interrupted(world, wait)
            return text(answer), len(ended), len(world.built)

        assert run(scene()) == ("done", 1, 1)

    def test_one_that_swallows_its_cancellation_is_not_repeated(self):
        async def scene():
            wait = Wait()

            async def swallow(client):
                wait.gate.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()

            world = World([wait, result()], interrupt=swallow)
            answer = await self.interrupted(world, wait)
            return text(answer), world.log.count("interrupt 0")

        assert run(scene()) == ("done", 1)

    def test_one_that_cannot_be_stopped_spoils_the_client(self, monkeypatch):
        monkeypatch.setattr(host_module, "CANCEL_S", 0.001)

        async def scene():
            wait = Wait()
            let_go = asyncio.Event()

            async def deaf(client):
                wait.gate.set()
                while not let_go.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await let_go.wait()

            world = World([wait, result()], interrupt=deaf)
            answer = await self.interrupted(world, wait)
            let_go.set()
            return text(answer), len(world.built)

        assert run(scene()) == ("done", 2)


class Resumable:
    """A client in a session; ``on`` maps a method to what it does when it is called."""

    def __init__(self, **on):
        self.log = []
        self.on = on

    def play(self, name, *arguments):
        self.log.append((name, *arguments))
        action = self.on.get(name)
        if isinstance(action, BaseException):
            raise action
        return action(*arguments) if callable(action) else action

    async def connect(self):
        self.play("connect")

    def snapshot(self):
        return self.play("snapshot")

    def restore(self, value):
        return self.play("restore", value)

    def set_model(self, model=None):
        return self.play("set_model", model)

    def use_control(self):
        self.play("use_control")

    async def disconnect(self):
        self.play("disconnect")


def host_of(client, **settings):
    return Host(lambda: client, isolation="worker", **settings)


async def hang(*_):
    await asyncio.Event().wait()


def stopped_amid(begin):
    """Whether a call of the host's that hangs in the client ends with the worker's stop."""

    async def scene():
        task = asyncio.ensure_future(begin())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    return run(scene())


class TestSnapshot:
    @pytest.mark.parametrize("value", [{"id": "x", "n": [1, None]}, "text", 0, {}, b"raw"])
    def test_it_is_what_the_client_says(self, value):
        data = run(host_of(Resumable(snapshot=value)).snapshot())
        assert codec.decode_value(data) == value

    def test_it_may_be_async(self):
        async def snapshot():
            return 7

        assert codec.decode_value(run(host_of(Resumable(snapshot=snapshot)).snapshot())) == 7

    def test_a_client_that_cannot_be_continued_has_none(self):
        assert run(host_of(Resumable(snapshot=None)).snapshot()) == b""

    @pytest.mark.parametrize("missing", ["snapshot", "restore"])
    def test_it_takes_both_methods(self, missing):
        """What nobody could restore would cost the session the truth when its worker dies."""
        client = Resumable(snapshot=7)
        setattr(client, missing, None)
        assert run(host_of(client).snapshot()) == b""

    @pytest.mark.parametrize(
        "value",
        [ValueError("no"), SystemExit(1), asyncio.CancelledError(), lambda: object(),
         lambda: {1: 2}, lambda: 2**70],
        ids=name_of,
    )  # fmt: skip
    def test_one_that_fails_is_none(self, value, caplog):
        assert run(host_of(Resumable(snapshot=value)).snapshot()) == b""
        assert "no snapshot" in caplog.text

    def test_one_that_hangs_is_none(self, monkeypatch):
        monkeypatch.setattr(host_module, "SNAPSHOT_S", 0.01)
        assert run(host_of(Resumable(snapshot=hang)).snapshot()) == b""

    def test_being_stopped_amid_it_is_no_error_of_the_client(self):
        host = host_of(Resumable(snapshot=hang))
        assert stopped_amid(host.snapshot) is True


class TestRestore:
    SNAPSHOT = codec.encode_value({"id": "x"})

    def test_it_comes_before_connect(self):
        client = Resumable()
        host = host_of(client, restore=self.SNAPSHOT)
        run(host.connect())
        assert client.log == [("restore", {"id": "x"}), ("connect",)]
        assert host.restored == self.SNAPSHOT

    def test_it_may_be_async(self):
        client = Resumable()

        async def restore(value):
            await asyncio.sleep(0)
            client.log.append("restored")

        client.on["restore"] = restore
        run(host_of(client, restore=self.SNAPSHOT).connect())
        assert client.log[1:] == ["restored", ("connect",)]

    def test_without_a_snapshot_it_is_not_asked_for(self):
        client = Resumable()
        host = host_of(client)
        run(host.connect())
        assert client.log == [("connect",)]
        assert host.restored == b""

    def test_a_client_that_refuses_does_not_connect(self):
        error = ClientConnectError("gone")
        client = Resumable(restore=error)
        with pytest.raises(ClientConnectError) as raised:
            run(host_of(client, restore=self.SNAPSHOT).connect())
        assert raised.value is error
        assert ("connect",) not in client.log

    @pytest.mark.parametrize("how", ["raises", "has none", "is garbage"])
    def test_whatever_goes_wrong_is_a_typed_error_and_no_blank_start(self, how):
        client = Resumable(restore=KeyError("id") if how == "raises" else None)
        if how == "has none":
            client.restore = None
        data = b"\xc1" if how == "is garbage" else self.SNAPSHOT
        with pytest.raises(SoloistError):
            run(host_of(client, restore=data).connect())
        assert ("connect",) not in client.log


class TestCommand:
    def test_it_calls_the_method(self):
        client = Resumable()
        run(host_of(client).command("set_model", ["m"]))
        assert client.log == [("set_model", "m")]

    def test_which_may_be_async(self):
        called = []

        async def set_model(model):
            await asyncio.sleep(0)
            called.append(model)

        run(host_of(Resumable(set_model=set_model)).command("set_model", [None]))
        assert called == [None]

    @pytest.mark.parametrize("name", ["set_permission_mode", "disconnect", "nothing", "__init__"])
    def test_what_the_client_has_not_or_is_none_is_refused(self, name):
        client = Resumable()
        with pytest.raises(InvalidOptions, match=name):
            run(host_of(client).command(name, []))
        assert client.log == []

    @pytest.mark.parametrize("error", [ClientError("no"), RateLimited("slow")])
    def test_a_typed_error_is_passed_on(self, error):
        with pytest.raises(ClientError) as raised:
            run(host_of(Resumable(set_model=error)).command("set_model", ["m"]))
        assert raised.value is error

    @pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), asyncio.CancelledError()])
    def test_anything_else_is_the_clients(self, error):
        with pytest.raises(ClientError, match=type(error).__name__):
            run(host_of(Resumable(set_model=error)).command("set_model", ["m"]))

    @pytest.mark.parametrize("arguments", [["a", "b", "c"], 5, None])
    def test_arguments_that_do_not_fit_are_an_error(self, arguments):
        with pytest.raises(ClientError, match="TypeError"):
            run(host_of(Resumable()).command("set_model", arguments))

    def test_being_stopped_amid_it_is_no_error_of_the_client(self):
        host = host_of(Resumable(set_model=hang))
        assert stopped_amid(lambda: host.command("set_model", ["m"])) is True


class TestControl:
    @pytest.mark.parametrize("has_control", [True, False])
    def test_the_client_hears_of_it_before_it_connects(self, has_control):
        client = Resumable()
        run(host_of(client, has_control=has_control).connect())
        assert client.log == [("use_control",)] * has_control + [("connect",)]

    def test_one_that_knows_nothing_of_it_is_left_alone(self):
        client = Resumable()
        client.use_control = None
        run(host_of(client, has_control=True).connect())

    def test_one_that_raises_cannot_be_built(self):
        with pytest.raises(ClientConnectError, match="be built"):
            host_of(Resumable(use_control=ValueError("no")), has_control=True)


class TestDisconnect:
    @pytest.mark.parametrize(
        "error", [OSError("gone"), asyncio.CancelledError(), ExceptionGroup("g", [OSError()])],
        ids=name_of,
    )  # fmt: skip
    def test_whatever_it_raises_is_swallowed(self, error):
        async def scene():
            world = World(isolation="prompt", disconnect=error)
            await world.host.disconnect()

        run(scene())

    def test_one_that_is_no_coroutine_is_survived(self):
        class Odd(FakeClient):
            def disconnect(self):
                self.is_open = False

        world = World(cls=Odd, isolation="prompt")
        assert [text(a) for a in talk(world, "a", "b")] == ["a", "b"]

    def test_one_that_hangs_is_cut_off(self, monkeypatch):
        monkeypatch.setattr(host_module, "DISCONNECT_S", 0.001)
        ended = []

        async def scene():
            async def hang(client):
                try:
                    await asyncio.Event().wait()
                finally:
                    client.is_open = False
                    ended.append(client)

            world = World(isolation="prompt", disconnect=hang)
            await world.host.connect()
            first = await world.ask("a")
            return text(first), len(ended)

        assert run(scene()) == ("a", 1)

    def test_one_that_hangs_and_swallows_its_cancellation_is_left_behind(self, monkeypatch):
        monkeypatch.setattr(host_module, "DISCONNECT_S", 0.001)
        monkeypatch.setattr(host_module, "CANCEL_S", 0.001)

        async def scene():
            let_go = asyncio.Event()

            async def deaf(client):
                while not let_go.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await let_go.wait()

            world = World(disconnect=deaf)
            await world.host.connect()
            await world.host.disconnect()
            let_go.set()

        run(scene())


def test_a_worker_that_stops_amid_a_turn_cuts_it_off():
    async def scene():
        wait = Wait()
        world = World([wait, result()])
        await world.host.connect()
        turn = asyncio.ensure_future(world.host.turn(1, "p", None))
        await wait.begun.wait()
        turn.cancel()
        await asyncio.wait({turn})
        await world.host.disconnect()
        return turn.cancelled(), world.log[-1]

    assert run(scene()) == (True, "disconnect 0")
