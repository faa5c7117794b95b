"""``soloist.connect`` with real gateways: the same calls as ever, and what a cut costs."""

import asyncio
import gc
import itertools
import os
import signal
import socket
import threading
from collections import Counter

import pytest

import soloist
from soloist import (
    ClientError,
    ClientNotFound,
    GatewayLost,
    InvalidOptions,
    OutcomeUnknown,
    RequestCancelled,
    RequestTimeout,
    ResultMessage,
    SessionBusy,
    SessionClosed,
    SessionLost,
    SlowReader,
    StreamEvent,
    SupervisorClosed,
    WorkerLost,
)
from soloist.supervisor import keys
from tests.forwarder import Forwarder
from tests.support import LIMIT_S, ROOT, eventually
from tests.wire_peer import Server

CONFIG = """
bind = ["{endpoint}"]

[clients.patient]
client = "tests.support_clients:PatientEcho"
size = 2
options = {{ chunks = 4, fail_on = "fail", exit_on = "exit", recall_on = "recall" }}

[clients.logged]
client = "tests.support_serve:logged"
size = 2

[clients.asks]
client = "tests.support_serve:asks"
size = 1

[clients.slow]
client = "echo"
size = 1
options = {{ delay_s = 1.0, chunks = 20 }}

[limits]
heartbeat_s = 0.2
max_requests = 64
"""


def text_of(messages):
    *_, result = messages
    assert isinstance(result, ResultMessage)
    return result.result


def free_endpoint():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


class Gateway:
    """A server that can be killed and started again at the same place."""

    def __init__(self, folder):
        self.endpoint = free_endpoint()
        self.folder = folder
        (folder / "soloist.toml").write_text(CONFIG.format(endpoint=self.endpoint))
        self.start()

    def start(self):
        self.server = Server(
            "--config",
            str(self.folder / "soloist.toml"),
            cwd=ROOT,
            SOLOIST_TEST_FOLDER=str(self.folder),
        )

    def kill(self):
        os.kill(self.server.process.pid, signal.SIGKILL)
        self.server.__exit__()

    def begun(self):
        """What has run with ``logged``, and how often."""
        log = self.folder / "log"
        return Counter(log.read_text().split()) if log.exists() else Counter()

    def go(self):
        (self.folder / "go").touch()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    made = Gateway(tmp_path_factory.mktemp("served"))
    yield made
    made.server.__exit__()


@pytest.fixture
def own(tmp_path):
    """One that a test may do to what it likes."""
    made = Gateway(tmp_path)
    yield made
    made.server.__exit__()


@pytest.fixture(scope="module")
def sup(gateway):
    with soloist.connect(gateway.endpoint) as supervisor:
        yield supervisor


class TestPatterns:
    def test_map_gives_results_in_order_beyond_what_the_gateway_takes_at_once(self, sup):
        prompts = [f"p{i}" for i in range(500)]
        results = sup.map(prompts)
        assert [result.text for result in results] == prompts
        assert [result.index for result in results] == list(range(500))
        assert {(result.attempts, result.num_turns) for result in results} == {(1, 1)}
        assert {result.worker for result in results} <= {0, 1}

    def test_map_raises_the_first_error_and_keeps_what_was_paid_for(self, sup):
        with pytest.raises(ClientError) as raised:
            sup.map(["a", "b", "fail", "c"])
        assert {result.text for result in raised.value.completed} <= {"a", "b", "c"}
        outcomes = sup.map(["a", "fail"], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [soloist.Result, ClientError]

    def test_imap_of_an_endless_input(self, sup):
        results = sup.imap(str(i) for i in itertools.count())
        assert [next(results).text for _ in range(5)] == ["0", "1", "2", "3", "4"]
        results.close()
        assert {r.text for r in sup.imap_unordered("abc")} == set("abc")

    def test_a_future_that_runs_can_be_cancelled_and_the_worker_is_free_again(self, sup):
        futures = [sup.submit("long") for _ in range(2)]
        eventually(lambda: sup.stats().running == 2)
        assert all(future.cancel() for future in futures)
        assert [r.text for r in sup.map("ab", timeout_s=LIMIT_S)] == ["a", "b"]

    def test_a_stream(self, sup):
        messages = list(sup.query("hello"))
        assert len([m for m in messages if isinstance(m, StreamEvent)]) == 4
        assert text_of(messages) == "hello"

    def test_a_stream_that_is_closed_ends_its_turn(self, sup):
        responses = [sup.query("long") for _ in range(2)]
        for response in responses:
            assert isinstance(next(response), StreamEvent)
            response.close()
        assert text_of(sup.query("a", timeout_s=LIMIT_S)) == "a"

    def test_an_owned_conversation(self, sup):
        with sup.session() as own:
            assert text_of(own.query_and_receive("a")) == "a"
            assert text_of(own.query_and_receive("recall")) == "a"
            own.query("long")
            with pytest.raises(SessionBusy):
                own.query("b")
            reader = own.receive_response()
            assert isinstance(next(reader), StreamEvent)
            own.interrupt()
            assert isinstance(list(reader)[-1], ResultMessage)
            assert own.is_connected
            assert own.incarnation == 1
            with pytest.raises(InvalidOptions):
                own.set_model("other")
        assert own.stats() is None
        with pytest.raises(SessionClosed):
            list(own.query_and_receive("b"))

    def test_a_shared_conversation_by_name_and_by_ticket(self, gateway, sup):
        chat = sup.shared("support")
        assert chat.query("a").result(LIMIT_S).num_turns == 1
        again = sup.shared("support")
        assert text_of(again.query_and_receive("recall")) == "a"
        with soloist.connect(gateway.endpoint) as other:
            joined = other.shared("theirs", ticket=chat.ticket)
            assert joined.query("c").result(LIMIT_S).num_turns == 3
            alien = other.shared("support")
            assert alien.query("a").result(LIMIT_S).num_turns == 1
            alien.close()
            joined.close(drain=True, timeout_s=LIMIT_S)
        with pytest.raises(SessionClosed):
            chat.query("d").result(LIMIT_S)
        with pytest.raises(SessionClosed):
            sup.shared("any", ticket=b"t" * 16)

    def test_interrupting_a_shared_one_ends_the_turn_of_whoever_it_is(self, sup):
        chat = sup.shared("noisy")
        response = chat.query_and_receive("long")
        assert isinstance(next(response), StreamEvent)
        chat.interrupt()
        with pytest.raises(RequestCancelled):
            list(response)
        chat.close()

    def test_what_an_agent_asks(self, gateway):
        asked = []

        def answer(question):
            asked.append((question.kind, question.data, question.prompt))
            return {"word": "yes"}

        with soloist.connect(gateway.endpoint, client="asks", on_control=answer) as sup:
            assert sup.submit("may I").result(LIMIT_S).text == "yes"
            own = sup.query("may he", on_control=lambda _: {"word": "no"})
            assert text_of(own) == "no"
        assert asked == [("riddle", {"about": "may I"}, "may I")]

    def test_status(self, sup):
        stats = sup.stats()
        assert stats.size == 2
        assert len(stats.workers) == 2
        assert stats.answered > 0
        assert not stats.is_closed


class TestErrors:
    def test_of_the_agent_and_of_its_worker(self, sup):
        with pytest.raises(ClientError) as raised:
            sup.submit("fail").result(LIMIT_S)
        assert raised.value.started is None
        with pytest.raises(WorkerLost) as lost:
            list(sup.query("exit"))
        assert lost.value.exitcode == 3

    def test_a_deadline(self, sup):
        with pytest.raises(RequestTimeout) as raised:
            sup.submit("long", timeout_s=0.3).result(LIMIT_S)
        assert raised.value.started is None
        with pytest.raises(RequestTimeout):
            sup.map(["long"], total_timeout_s=0.3)

    def test_a_reader_that_falls_behind(self, gateway):
        with soloist.connect(gateway.endpoint, stream_buffer_bytes=1) as sup:
            response = sup.query("a")
            with pytest.raises(SlowReader):
                eventually(lambda: response.is_over)
                list(response)

    def test_nobody_there(self):
        with pytest.raises(GatewayLost) as raised:
            soloist.connect(free_endpoint(), connect_timeout_s=0.2)
        assert raised.value.started is False

    def test_what_there_is_not(self, gateway):
        with pytest.raises(ClientNotFound, match=r"nobody.*patient"):
            soloist.connect(gateway.endpoint, client="nobody")
        for wrong in (
            {"endpoint": "nonsense"},
            {"secret": b"short"},
            {"server_key": "short"},
            {"key_file": "alone"},
            {"on_disconnect": "maybe"},
            {"window": 0},
        ):
            with pytest.raises(InvalidOptions):
                soloist.connect(**{"endpoint": gateway.endpoint, **wrong})

    def test_closing(self, gateway):
        with soloist.connect(gateway.endpoint) as sup:
            future = sup.submit("a")
        assert future.result(0).text == "a"
        assert sup.is_closed
        with pytest.raises(SupervisorClosed):
            sup.submit("b")
        sup = soloist.connect(gateway.endpoint)
        future = sup.submit("long")
        assert sup.drain(0.1) is False
        sup.close()
        assert type(future.exception(0)) is SupervisorClosed

    def test_one_that_is_forgotten_ends(self, gateway):
        sup = soloist.connect(gateway.endpoint)
        closed = sup._engine.is_closed
        with pytest.warns(ResourceWarning, match=r"soloist\.connect"):
            del sup
            gc.collect()
        assert closed.wait(LIMIT_S)


class TestKeys:
    def test_who_has_the_right_one_is_let_in(self, tmp_path):
        server_key, _ = keys.new_pair(tmp_path, "server")
        _, good = keys.new_pair(tmp_path / "clients", "good")
        _, bad = keys.new_pair(tmp_path, "bad")
        config = CONFIG.format(endpoint=free_endpoint())
        config += '[security]\nkey_file = "server.key_secret"\nclients = "clients"\n'
        (tmp_path / "soloist.toml").write_text(config)
        key = keys.load(server_key)[0].decode()
        with Server("--config", str(tmp_path / "soloist.toml"), cwd=ROOT) as server:
            options = {"endpoint": server.endpoint, "server_key": key, "connect_timeout_s": 0.5}
            with soloist.connect(**{**options, "connect_timeout_s": 10.0}, key_file=good) as sup:
                assert sup.submit("a").result(LIMIT_S).text == "a"
            for wrong in ({"key_file": bad}, {}, {"key_file": good, "server_key": "0" * 40}):
                with pytest.raises(GatewayLost):
                    soloist.connect(**{**options, **wrong})


class TestLoss:
    def test_after_a_kill_nothing_runs_twice_and_every_outcome_is_typed(self, own):
        with soloist.connect(own.endpoint, client="logged") as sup:
            futures = [sup.submit(f"p{i}") for i in range(20)]
            chat = sup.shared("chat")
            turn = chat.query("turn")
            eventually(lambda: sum(own.begun().values()) == 3)
            own.kill()
            own.go()
            later = sup.submit("later")
            own.start()
            errors = [future.exception(LIMIT_S) for future in futures]
            assert {type(error) for error in errors} == {OutcomeUnknown}
            assert {error.started for error in errors} == {None}
            assert type(turn.exception(LIMIT_S)) is SessionLost
            assert isinstance(later.exception(LIMIT_S), OutcomeUnknown | None)
            with pytest.raises(SessionLost) as lost:
                chat.query("more").result(LIMIT_S)
            assert lost.value.started is False
            assert chat.stats() is None
            chat.close()
            assert sup.submit("again").result(LIMIT_S).text == "AGAIN"
            assert sup.shared("chat").query("new").result(LIMIT_S).num_turns == 1
        assert set(own.begun().values()) == {1}

    def test_a_gateway_that_does_not_come_back(self, own):
        with soloist.connect(own.endpoint, client="logged", reconnect_timeout_s=0.3) as sup:
            future = sup.submit("a")
            eventually(own.begun)
            own.kill()
            error = future.exception(LIMIT_S)
            assert type(error) is GatewayLost
            assert error.started is None
            late = sup.submit("b").exception(LIMIT_S)
            assert type(late) is GatewayLost
            assert late.started is False

    def test_a_stream_that_is_cut_goes_on_whole(self, gateway):
        whole = [type(m) for m in self.cut_in_the_middle(gateway, cuts=0)]
        messages = self.cut_in_the_middle(gateway, cuts=1)
        assert [type(m) for m in messages] == whole
        pieces = "".join(m.event["delta"]["text"] for m in messages if isinstance(m, StreamEvent))
        assert pieces == text_of(messages)

    def cut_in_the_middle(self, gateway, cuts):
        prompt = "abcdefghijklmnopqrstuvwxyz" * 2
        with (
            Forwarder(gateway.endpoint) as line,
            soloist.connect(line.endpoint, client="slow", on_disconnect="finish") as sup,
        ):
            response = sup.query(prompt)
            messages = [next(response)]
            for _ in range(cuts):
                line.cut()
                line.restore()
            messages += response
            assert line.connections == 1 + cuts
            return messages

    def test_what_was_asked_meanwhile_arrives(self, gateway):
        with Forwarder(gateway.endpoint) as line, soloist.connect(line.endpoint) as sup:
            before = sup.submit("long", timeout_s=2.0)
            line.cut()
            futures = [sup.submit(str(i)) for i in range(50)]
            chat = threading.Thread(target=lambda: sup.shared("meanwhile").close())
            chat.start()
            line.restore()
            assert [f.result(LIMIT_S).text for f in futures] == [str(i) for i in range(50)]
            chat.join(LIMIT_S)
            assert type(before.exception(LIMIT_S)) is RequestTimeout

    def test_a_cancellation_without_a_connection_reaches_the_gateway_later(self, gateway):
        with Forwarder(gateway.endpoint) as line, soloist.connect(line.endpoint) as sup:
            future = sup.submit("long")
            eventually(lambda: sup.stats().running)
            line.cut()
            assert future.cancel()
            line.restore()
            eventually(lambda: not sup.stats().running)


class TestAsync:
    def test_the_same_calls(self, gateway):
        async def main():
            async with soloist.connect_async(gateway.endpoint) as sup:
                results = await sup.map(map(str, range(200)))
                assert [r.text for r in results] == [str(i) for i in range(200)]
                assert (await sup.submit("a")).text == "a"
                assert text_of([m async for m in sup.query("b")]) == "b"
                async with sup.session() as own:
                    await own.query("c")
                    assert text_of([m async for m in own.receive_response()]) == "c"
                    assert (await own.stats()).answered == 1
                chat = await sup.shared("async")
                assert (await chat.query("d")).num_turns == 1
                joined = await sup.shared("again", ticket=chat.ticket)
                assert (await joined.query("e")).num_turns == 2
                await chat.close()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await sup.submit("long")
                with pytest.raises(ClientError):
                    await sup.submit("fail")
                assert (await sup.stats()).size == 2

        asyncio.run(main())

    def test_a_handler_that_is_a_coroutine_runs_on_the_loop(self, gateway):
        async def main():
            loop = asyncio.get_running_loop()

            async def answer(question):
                return {"word": str(asyncio.get_running_loop() is loop)}

            arguments = {"client": "asks", "on_control": answer}
            async with soloist.connect_async(gateway.endpoint, **arguments) as sup:
                assert (await sup.submit("may I")).text == "True"

        asyncio.run(main())

    def test_nobody_there(self):
        async def main():
            with pytest.raises(GatewayLost):
                await soloist.connect_async(free_endpoint(), connect_timeout_s=0.2).start()

        asyncio.run(main())
