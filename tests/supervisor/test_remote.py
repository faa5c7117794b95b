"""The thread of a connection and its engine, before a gateway that a test plays in memory."""

import os
import queue
import threading

import msgpack
import pytest

from soloist import (
    ClientNotFound,
    GatewayLost,
    QueueFull,
    RemoteProtocolError,
    RequestCancelled,
    SessionClosed,
    SlowReader,
    SupervisorClosed,
)
from soloist.protocol import codec, public, public_codec
from soloist.protocol.errors import HelloRequired, InvalidOptions, to_info
from soloist.supervisor import events
from soloist.supervisor.base import BaseSupervisor
from soloist.supervisor.brokers import SessionLimits
from soloist.supervisor.control import ControlDesk
from soloist.supervisor.link import Link
from soloist.supervisor.remote import Remote
from soloist.supervisor.remote_calls import reply_of, session_stats_of, stats_of
from soloist.supervisor.remote_thread import RemoteThread
from tests.support import LIMIT_S

EPOCH, SESSION, TICKET = b"e" * 16, b"c" * 16, b"t" * 16
SAID = msgpack.packb({"type": "SystemMessage", "subtype": "x", "data": {}})
RESULT = {
    "type": "ResultMessage",
    "subtype": "success",
    "duration_ms": 1,
    "duration_api_ms": 1,
    "is_error": False,
    "num_turns": 1,
    "session_id": "s",
    "result": "done",
}


class FakeChannel:
    """A socket whose other end is the test."""

    def __init__(self):
        self.said = queue.SimpleQueue()
        self.coming = queue.SimpleQueue()
        self.sockets = 0
        self.is_closed = False
        self.is_full = False
        self.failure = None
        self._read, self._write = os.pipe()

    # -- the thread's side -------------------------------------------------------------------

    def renew(self):
        if self.failure is not None:
            raise self.failure
        self.sockets += 1

    def fileno(self):
        return self._read

    def has_input(self):
        return not self.coming.empty()

    def receive(self):
        if self.coming.empty():
            return None
        os.read(self._read, 1)
        return self.coming.get()

    def send(self, message):
        if self.is_full:
            self.is_full = False
            return False
        self.said.put(public_codec.decode(public_codec.encode(message), public_codec.GATEWAY))
        return True

    def close(self):
        self.is_closed = True
        os.close(self._read)
        os.close(self._write)

    # -- the test's side ---------------------------------------------------------------------

    def reply(self, *messages):
        for message in messages:
            data = message if isinstance(message, bytes) else public_codec.encode(message)
            self.coming.put(data)
            os.write(self._write, b"x")

    def heard(self, kind):
        """Wait for the next message of a type; others are passed over."""
        while not isinstance(message := self.said.get(timeout=LIMIT_S), kind):
            pass
        return message

    def rest(self):
        rest = []
        while not self.said.empty():
            rest.append(self.said.get())
        return rest


class World:
    def __init__(self, *, client=None, handler=None, connect_timeout_s=LIMIT_S, **settings):
        self.channel = FakeChannel()
        link = Link(
            public.Hello([1], b"s" * 16),
            connect_timeout_s=connect_timeout_s,
            reconnect_timeout_s=LIMIT_S,
        )
        self.thread = RemoteThread(self.channel, link, ControlDesk(handler), client, "cancel")
        self.remote = Remote(self.thread, client)
        self.settings = settings

    def welcome(self, epoch=EPOCH):
        self.channel.reply(public.Welcome(1, epoch, 60_000, 10**6, 10**6, 100, ["echo", "b"]))

    def start(self):
        self.welcome()
        self.remote.start()
        self.channel.heard(public.Hello)
        settings = {"stream_buffer_bytes": 10**6, "max_pending": 100, **self.settings}
        self.sup = BaseSupervisor(
            self.remote,
            window=100,
            window_bytes=10**6,
            timeout_s=None,
            max_payload_bytes=10**6,
            drain_timeout_s=None,
            **settings,
        )
        return self

    def result(self, query, messages=b"\x90", text="done"):
        self.channel.reply(public.Result(query.id, 1, 1, text, 1, 2, 3, 4, messages))

    def open(self, *, name=""):
        opened = self.remote.open_session(name, SessionLimits(3, 1.5))
        asked = self.channel.heard(public.Open)
        self.channel.reply(public.Opened(asked.id, SESSION, TICKET, "ipc://x", 1))
        return asked, opened.result(LIMIT_S)


@pytest.fixture
def world():
    made = World().start()
    yield made
    made.sup.close()


def refusal(asked, error):
    return public.Error(asked.id, None, to_info(error))


class TestLife:
    def test_connects_asks_and_says_goodbye(self):
        world = World().start()
        future = world.sup.submit("hello")
        query = world.channel.heard(public.Query)
        assert (query.prompt, query.client, query.is_streamed) == ("hello", None, False)
        world.result(query)
        result = future.result(LIMIT_S)
        assert (result.text, result.attempts, result.worker) == ("done", 3, 4)
        assert result.duration_s == 0.002
        assert result.messages == []
        running = world.sup.submit("again")
        query = world.channel.heard(public.Query)
        world.sup.close()
        assert type(running.exception(0)) is SupervisorClosed
        assert world.channel.rest() == [public.Cancel(query.id)]
        assert world.channel.is_closed
        assert not world.thread._thread.is_alive()

    def test_a_conversation_of_ones_own_is_closed_with_it(self, world):
        world.open()
        world.sup.close()
        assert world.channel.heard(public.Close).session == SESSION

    def test_one_with_a_name_stays(self, world):
        world.open(name="chat")
        world.sup.close()
        assert world.channel.rest() == []

    def test_without_a_gateway_there_is_none(self):
        world = World(connect_timeout_s=0.05)
        with pytest.raises(GatewayLost):
            world.remote.start()
        assert world.channel.is_closed

    def test_nor_with_an_endpoint_that_is_none(self):
        world = World()
        world.channel.failure = InvalidOptions("no endpoint")
        with pytest.raises(InvalidOptions, match="no endpoint"):
            world.remote.start()

    def test_nor_without_the_client(self):
        world = World(client="c")
        world.welcome()
        with pytest.raises(ClientNotFound, match="echo, b"):
            world.remote.start()
        assert world.remote.is_closed.is_set()

    def test_a_defect_is_reported_and_everybody_told(self, caplog):
        world = World().start()
        future = world.sup.submit("a")
        world.channel.heard(public.Query)
        world.channel.failure = RuntimeError("broken")
        world.remote.inbox.post(lambda: world.thread._renew())
        assert type(future.exception(LIMIT_S)) is SupervisorClosed
        assert world.remote.is_closed.wait(LIMIT_S)
        assert [record.event for record in caplog.records] == [events.IO_FAILED.name]
        world.sup.close()

    def test_drain_waits_for_outcomes_and_takes_no_more(self, world):
        future = world.sup.submit("a")
        assert world.sup.drain(0.01) is False
        late = world.sup.submit("b")
        assert type(late.exception(LIMIT_S)) is SupervisorClosed
        world.result(world.channel.heard(public.Query))
        assert world.sup.drain(LIMIT_S) is True
        assert future.result(0).text == "done"

    def test_after_the_end_everything_has_an_answer(self, world):
        _, address = world.open()
        world.sup.close()
        number = address.number
        assert world.remote.drain().result(LIMIT_S) is None
        assert world.remote.close_session(number, drain=False).result(LIMIT_S) is None
        assert world.remote.session_stats(number).result(LIMIT_S) is None
        for failing in (
            world.remote.stats(),
            world.remote.command(number, "set_model", []),
            world.remote.open_session("x", SessionLimits(1, None)),
        ):
            assert type(failing.exception(LIMIT_S)) is SupervisorClosed

    def test_a_fork_of_its_process_is_closed(self, world):
        world.remote.disown()
        with pytest.raises(SupervisorClosed):
            world.sup.submit("a")
        world.remote.is_closed.clear()
        world.remote.inbox._is_forked = False


class TestRequests:
    def test_a_stream_is_passed_on_and_paid_for(self, world):
        response = world.sup.query("a")
        query = world.channel.heard(public.Query)
        assert query.is_streamed
        payload = public_codec.encode(public.Message(query.id, 1, SAID))
        world.channel.reply(payload)
        assert next(response).subtype == "x"
        assert world.channel.heard(public.Credit) == public.Credit(query.id, len(payload))
        world.result(query)
        assert list(response) == []

    def test_one_that_goes_on_elsewhere_leaves_out_what_was_heard(self, world):
        response = world.sup.query("a")
        query = world.channel.heard(public.Query)
        world.channel.reply(public.Message(query.id, 1, SAID))
        assert next(response).subtype == "x"
        world.channel.reply(public.Error(None, None, to_info(HelloRequired("hello"))))
        world.channel.heard(public.Hello)
        world.welcome()
        assert world.channel.heard(public.Query).resent == EPOCH
        world.result(query, codec.join([SAID, SAID, msgpack.packb(RESULT)]))
        assert [type(m).__name__ for m in response] == ["SystemMessage", "ResultMessage"]

    def test_a_slow_reader_costs_its_own_request(self):
        world = World(stream_buffer_bytes=1).start()
        response, other = world.sup.query("a"), world.sup.submit("b")
        query = world.channel.heard(public.Query)
        for seq in (1, 2):
            world.channel.reply(public.Message(query.id, seq, SAID))
        assert world.channel.heard(public.Cancel).id == query.id
        assert next(response).subtype == "x"
        with pytest.raises(SlowReader):
            next(response)
        assert not other.done()
        world.sup.close()

    def test_a_prompt_of_blocks_is_sent_as_it_was(self, world):
        prompt = [{"type": "text", "text": "a"}]
        world.sup.submit(prompt)
        assert world.channel.heard(public.Query).prompt == prompt

    def test_cancel(self, world):
        future = world.sup.submit("a")
        query = world.channel.heard(public.Query)
        assert future.cancel()
        world.channel.heard(public.Cancel)
        world.channel.reply(refusal(query, RequestCancelled("by you")))
        assert world.sup.drain(LIMIT_S)

    def test_what_cannot_be_read_fails_what_it_is_about(self, world):
        future = world.sup.submit("a")
        query = world.channel.heard(public.Query)
        bad = msgpack.packb({"v": 1, "type": "RESULT", "id": query.id})
        world.channel.reply(b"\xc1", b"", msgpack.packb({"v": 1, "type": "NEWS"}), bad)
        assert type(future.exception(LIMIT_S)) is RemoteProtocolError

    def test_a_socket_that_takes_no_more_is_replaced(self, world):
        world.channel.is_full = True
        future = world.sup.submit("a")
        world.channel.heard(public.Hello)
        assert world.channel.sockets == 2
        world.welcome()
        query = world.channel.heard(public.Query)
        assert query.resent == EPOCH
        world.result(query)
        assert future.result(LIMIT_S).text == "done"


class TestConversations:
    def test_opening_and_joining(self, world):
        asked, address = world.open(name="chat")
        assert (asked.name, asked.client) == ("chat", "echo")
        assert (asked.max_queue, asked.idle_timeout_ms) == (3, 1500)
        assert address[1:] == ("ipc://x", TICKET)
        assert world.open(name="chat")[1].number == address.number

    def test_one_without_a_name_has_the_operators_bounds(self, world):
        asked, _ = world.open()
        assert (asked.name, asked.max_queue, asked.idle_timeout_ms) == (None, None, None)

    def test_one_that_cannot_begin(self, world):
        ready = threading.Event()
        opened = world.remote.open_session("", SessionLimits(1, None))
        opened.add_done_callback(lambda _: ready.set())
        world.channel.reply(refusal(world.channel.heard(public.Open), QueueFull("full")))
        assert ready.wait(LIMIT_S)
        assert type(opened.exception()) is QueueFull

    def test_asking_in_it(self, world):
        _, address = world.open()
        request = world.sup._intake.future("a", None, None, address.number).request
        query = world.channel.heard(public.Query)
        assert (query.session, query.client) == (SESSION, None)
        world.result(query)
        assert world.sup.drain(LIMIT_S)
        assert request.outcome.text == "done"

    def test_commands_and_interrupts(self, world):
        _, address = world.open()
        done = world.remote.command(address.number, "set_model", ["x"])
        command = world.channel.heard(public.Command)
        assert command[1:] == (SESSION, "set_model", ["x"])
        world.channel.reply(public.Done(command.id))
        assert done.result(LIMIT_S) is None
        with pytest.raises(InvalidOptions):
            world.remote.command(address.number, "set_model", [object()])
        world.remote.interrupt_session(address.number)
        assert world.channel.heard(public.Interrupt).session == SESSION
        world.remote.interrupt_session(99)

    @pytest.mark.parametrize("is_over", [False, True])
    def test_closing(self, world, is_over):
        _, address = world.open()
        closed = world.remote.close_session(address.number, drain=True)
        close = world.channel.heard(public.Close)
        assert close.is_drained
        over = refusal(close, SessionClosed("it is over"))
        world.channel.reply(over if is_over else public.Done(close.id))
        assert closed.result(LIMIT_S) is None
        assert world.remote.close_session(address.number, drain=False).result(LIMIT_S) is None
        late = world.sup._intake.future("a", None, None, address.number)
        assert type(late.exception(LIMIT_S)) is SessionClosed

    def test_status(self, world):
        _, address = world.open()
        asked = world.remote.session_stats(address.number)
        status = world.channel.heard(public.Status)
        world.channel.reply(public.Report(status.id, {"name": "n", "queued": 3, "state": "idle"}))
        stats = asked.result(LIMIT_S)
        assert (stats.name, stats.state, stats.queued, stats.pid) == ("n", "idle", 3, 0)
        asked = world.remote.stats()
        status = world.channel.heard(public.Status)
        world.channel.reply(public.Report(status.id, {"clients": {}}))
        assert type(asked.exception(LIMIT_S)) is RemoteProtocolError


class TestQuestions:
    def test_is_answered_by_the_requests_own_handler(self):
        world = World(handler=lambda _: False).start()
        world.sup.query("p", on_control=lambda q: q.prompt == "p")
        query = world.channel.heard(public.Query)
        assert query.has_control
        world.channel.reply(public.Control(query.id, 1, "permission", {"tool_name": "Bash"}))
        reply = world.channel.heard(public.ControlReply)
        assert reply == public.ControlReply(query.id, 1, {"behavior": "allow"})
        world.sup.close()

    def test_without_a_handler_none_is_asked_for(self, world):
        world.sup.submit("p")
        assert not world.channel.heard(public.Query).has_control

    @pytest.mark.parametrize(
        ("kind", "data", "answer"),
        [
            ("permission", {}, {"behavior": "deny", "message": "no"}),
            ("hook", {"input": {"hook_event_name": "Stop"}}, {}),
            ("hook", {}, {}),
            ("riddle", {}, {"error": "no"}),
        ],
    )
    def test_nobody_who_decides_is_a_no(self, kind, data, answer):
        question = public.Control(SESSION, 1, kind, data)
        assert reply_of(question, codec.encode_value({"error": "no"}), 1000) == answer

    def test_a_hook_before_a_tool_denies_it(self):
        data = {"input": {"hook_event_name": "PreToolUse"}}
        question = public.Control(SESSION, 1, "hook", data)
        said = reply_of(question, codec.encode_value({"error": "no"}), 1000)
        assert said["hookSpecificOutput"]["permissionDecision"] == "deny"

    def test_a_hooks_output_is_the_answer(self):
        question = public.Control(SESSION, 1, "hook", {})
        reply = codec.encode_value({"output": {"continue": False}})
        assert reply_of(question, reply, 1000) == {"continue": False}
        assert reply_of(question, codec.encode_value({"output": 1}), 1000) == {}

    def test_one_that_is_too_large_is_a_no(self):
        question = public.Control(SESSION, 1, "permission", {})
        reply = codec.encode_value({"behavior": "allow", "updated_input": {"x": "y" * 1000}})
        assert reply_of(question, reply, 100)["behavior"] == "deny"


class TestSnapshots:
    def test_what_is_missing_or_foreign_is_empty(self):
        found = {
            "size": "many",
            "running": 2,
            "workers": [{"number": 1, "busy_s": 1, "new": True}, 5],
            "sessions": 3,
        }
        stats = stats_of({"clients": {"a": found}}, "a")
        assert (stats.size, stats.running, stats.sessions) == (0, 2, ())
        assert [(w.number, w.busy_s, w.state) for w in stats.workers] == [(1, 1, "")]
        assert session_stats_of({}) is None
