"""A broker's socket: raw ZeroMQ peers on one side, a stand-in for the broker on the other."""

import collections
import contextlib
import itertools
import os
import random
import re
import resource
import select
import socket as sockets
import threading

import msgpack
import pytest
import zmq

from soloist.protocol import codec, public, public_codec
from soloist.protocol import content as c
from soloist.protocol.errors import (
    LocalProtocolError,
    RequestCancelled,
    SlowReader,
    SoloistError,
    TooManyWorkers,
)
from soloist.protocol.messages import Answer
from soloist.supervisor import broker_channel
from soloist.supervisor.broker_channel import BrokerChannel, PeerContext
from soloist.supervisor.front import Front
from tests.support import LIMIT_S, ROOT, eventually, run_python

LIMIT_MS = int(LIMIT_S * 1000)
ID = bytes(range(16))
MAX_BYTES = 1_000_000
GARBAGE = [b"", b"\xc1", b"\x00" * 50, b"\x91" * 1000, msgpack.packb([1]), msgpack.packb({})]


def pack(kind, request_id=ID, **fields):
    return msgpack.packb({"v": 1, "type": kind, "id": request_id, **fields})


@pytest.fixture
def context():
    """Of the broker's side."""
    context = PeerContext(8)
    yield context
    context.close()


@pytest.fixture
def channel(context, tmp_path):
    channel = BrokerChannel(context, f"ipc://{tmp_path}/s1", max_bytes=MAX_BYTES)
    yield channel
    channel.close()


@pytest.fixture
def endpoint(channel, tmp_path):
    return f"ipc://{tmp_path}/s1"


@pytest.fixture
def connect(endpoint):
    """Makes sockets of clients, in a context of their own."""
    with zmq.Context() as clients, contextlib.ExitStack() as stack:

        def make(kind=zmq.DEALER, endpoint=endpoint, **options):
            socket = stack.enter_context(clients.socket(kind))
            socket.setsockopt(zmq.LINGER, 0)
            for name, value in options.items():
                socket.setsockopt(getattr(zmq, name), value)
            socket.connect(endpoint)
            return socket

        yield make


def receive(channel):
    """Wait for the next message that the broker gets."""
    while (received := channel.receive()) is None:
        assert select.select([channel.fileno()], [], [], LIMIT_S)[0]
        channel.wake()
    return received


def reply_of(socket):
    assert socket.poll(LIMIT_MS), "no reply"
    frames = socket.recv_multipart()
    assert len(frames) == 1
    return msgpack.unpackb(frames[0])


class TestRaw:
    def test_a_dealer_is_heard_and_answered(self, channel, connect):
        assert channel.receive() is None
        dealer = connect()
        dealer.send(pack("QUERY", prompt="hello"))
        envelope, query = receive(channel)
        assert query == public.Query(ID, "hello", None, False)
        assert len(envelope) == 1
        assert channel.send(envelope, msgpack.packb("reply"))
        assert reply_of(dealer) == "reply"
        assert channel.receive() is None

    @pytest.mark.parametrize("options", [{}, {"REQ_CORRELATE": 1, "REQ_RELAXED": 1}])
    def test_a_req_socket_gets_its_envelope_back(self, channel, connect, options):
        req = connect(zmq.REQ, **options)
        for _ in range(3):
            req.send(pack("QUERY", prompt="hello"))
            envelope, query = receive(channel)
            assert type(query) is public.Query
            assert envelope[-1] == b""
            assert channel.send(envelope, msgpack.packb("reply"))
            assert reply_of(req) == "reply"

    @pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ])
    @pytest.mark.parametrize("data", GARBAGE, ids=ascii)
    def test_garbage_comes_as_the_error_that_answers_it(self, channel, connect, kind, data):
        client = connect(kind)
        client.send(data)
        envelope, error = receive(channel)
        assert type(error) is public.Error
        assert channel.send(envelope, public_codec.encode(error))
        assert reply_of(client)["code"] == "protocol_error"

    @pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ])
    def test_several_frames_come_as_an_error(self, channel, connect, kind):
        client = connect(kind)
        client.send_multipart([b"x"] * 3)
        envelope, error = receive(channel)
        assert type(error) is public.Error
        assert channel.send(envelope, public_codec.encode(error))
        assert reply_of(client)["id"] is None

    def test_a_routing_id_of_a_clients_own_comes_as_an_error(self, channel, connect):
        client = connect(ROUTING_ID=b"client")
        client.send(pack("QUERY", prompt="hello"))
        envelope, error = receive(channel)
        assert "routing id" in error.info.message
        assert channel.send(envelope, public_codec.encode(error))
        assert reply_of(client)["code"] == "protocol_error"

    def test_bytes_that_are_no_zmtp_disturb_nobody(self, channel, endpoint, connect):
        path = endpoint.removeprefix("ipc://")
        rng = random.Random(5)
        for size in (0, 1, 10, 64, 1000, 100_000):
            with sockets.socket(sockets.AF_UNIX) as raw, contextlib.suppress(OSError):
                raw.connect(path)
                raw.setblocking(False)
                raw.send(rng.randbytes(size))
        connect().send(pack("CANCEL"))
        # ZeroMQ takes some of it for messages of its first version.
        while (message := receive(channel)[1]) != public.Cancel(ID):
            assert type(message) is public.Error

    def test_a_frame_over_the_limit_costs_its_sender_the_connection(self, channel, connect):
        client, other = connect(), connect()
        client.send(pack("QUERY", prompt="x" * MAX_BYTES))
        other.send(pack("CANCEL"))
        assert receive(channel)[1] == public.Cancel(ID)
        client.send(pack("CREDIT", bytes=5))  # it has connected anew
        assert receive(channel)[1] == public.Credit(ID, 5)

    def test_the_descriptor_wakes_whoever_waits(self, channel, connect):
        client = connect()
        for _ in range(20):
            client.send(pack("CANCEL"))
            while not channel.has_input():
                assert select.select([channel.fileno()], [], [], LIMIT_S)[0]
                channel.wake()
            assert channel.receive() is not None


def test_a_wake_up_about_nothing_gives_nothing(channel, connect):
    for _ in range(2):
        channel.wake()
        assert channel.receive() is None
        assert not channel.has_input()
    connect().send(pack("QUERY", prompt="x"))
    eventually(lambda: channel.wake() or channel.receive())


class TestPeersThatDoNotRead:
    def test_unknown_ones_are_reported(self, channel):
        assert not channel.send((b"\0none",), b"x")

    def test_ones_that_have_gone_are_reported(self, channel, connect):
        client = connect()
        client.send(pack("CANCEL"))
        envelope, _ = receive(channel)
        assert channel.send(envelope, b"x")
        client.close()
        eventually(lambda: not channel.send(envelope, b"x"))

    def test_slow_ones_are_reported_and_delay_nobody(self, context, connect, tmp_path, monkeypatch):
        monkeypatch.setattr(broker_channel, "MAX_WAITING", 5)
        other = f"ipc://{tmp_path}/s2"
        with contextlib.closing(BrokerChannel(context, other, max_bytes=1000)) as channel:
            slow = connect(endpoint=other, RCVHWM=1)
            slow.send(pack("CANCEL"))
            envelope, _ = receive(channel)
            eventually(lambda: not channel.send(envelope, b"x" * 100_000))
            quick = connect(endpoint=other)
            quick.send(pack("CANCEL"))
            envelope_of_quick, _ = receive(channel)
            assert channel.send(envelope_of_quick, msgpack.packb("reply"))
            assert reply_of(quick) == "reply"

            def is_free_again():
                with contextlib.suppress(zmq.Again):
                    while slow.recv(zmq.NOBLOCK):
                        pass
                return channel.send(envelope, b"again")

            eventually(is_free_again)
            while slow.recv() != b"again":
                pass


class TestOpenAndClose:
    def test_the_last_words_still_arrive_and_the_file_is_gone(self, channel, endpoint, connect):
        client = connect()
        client.send(pack("CANCEL"))
        envelope, _ = receive(channel)
        words = [msgpack.packb(str(i) * 10_000) for i in range(50)]
        for word in words:
            assert channel.send(envelope, word)
        channel.close()
        assert not os.path.exists(endpoint.removeprefix("ipc://"))
        for word in words:
            assert client.poll(LIMIT_MS)
            assert client.recv() == word

    def test_a_live_endpoint_is_not_stolen(self, context, channel, endpoint, connect):
        with pytest.raises(LocalProtocolError, match="in use"):
            BrokerChannel(context, endpoint, max_bytes=1000)
        connect().send(pack("CANCEL"))
        assert receive(channel)[1] == public.Cancel(ID)

    @pytest.mark.parametrize("path", ["missing/s1", "x" * 120])
    def test_an_endpoint_that_cannot_be_bound_says_so(self, context, tmp_path, path):
        with pytest.raises(SoloistError, match="cannot be bound"):
            BrokerChannel(context, f"ipc://{tmp_path}/{path}", max_bytes=1000)

    def test_more_sockets_than_zmq_has_by_itself_can_be_open(self, tmp_path):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        count = 1100
        if hard != resource.RLIM_INFINITY and hard < 4 * count:
            pytest.skip(f"needs {4 * count} descriptors, the hard limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * count), hard))
        try:
            context = PeerContext(count)
            with contextlib.ExitStack() as stack:
                stack.callback(context.close)
                for i in range(count):
                    channel = BrokerChannel(context, f"ipc://{tmp_path}/s{i}", max_bytes=1000)
                    stack.callback(channel.close)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_more_sockets_than_were_asked_for_say_so(self, tmp_path):
        context = PeerContext(1)
        with contextlib.ExitStack() as stack, pytest.raises(TooManyWorkers, match="no socket"):
            stack.callback(context.close)
            for i in range(1000):
                channel = BrokerChannel(context, f"ipc://{tmp_path}/s{i}", max_bytes=1000)
                stack.callback(channel.close)


class FakeBroker(threading.Thread):
    """Answers what peers ask with their own text, in order, on a thread of its own.

    The answer to ``"3:x"`` has three messages. One to ``"wait"`` comes only after a CANCEL, or
    when somebody asks ``"release"``: that frees the one that has waited longest.
    """

    incarnation = 1
    number = 8

    def __init__(self, channel, credit_bytes=public.CREDIT_BYTES):
        super().__init__()
        self.front = Front(
            channel,
            "",
            self,
            max_payload_bytes=MAX_BYTES // 2,
            stream_buffer_bytes=credit_bytes,
            submit=self._submit,
            cancel=self._cancel,
            on_sent=lambda front: None,
        )
        self.served = []
        self.cut = []
        self.waiting = collections.deque()
        self._channel = channel
        self._order = itertools.count(1)
        self._stop_r, self._stop_w = os.pipe()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        os.write(self._stop_w, b"x")
        self.join()
        os.close(self._stop_r)
        os.close(self._stop_w)

    def run(self):
        while True:
            while self.front.has_input():
                self.front.take()
            ready = select.select([self._channel.fileno(), self._stop_r], [], [])[0]
            if self._stop_r in ready:
                return
            self._channel.wake()

    def _cancel(self, request):
        if request in self.waiting:
            self.waiting.remove(request)
            request.settle(RequestCancelled("cancelled"))

    def _submit(self, request):
        request.order = next(self._order)
        prompt = codec.decode_prompt(request.payload)
        text = prompt if isinstance(prompt, str) else prompt[0]["text"]
        self.served.append(text)
        if text.startswith("wait"):
            self.waiting.append(request)
            return
        if text == "release" and self.waiting:
            self._answer(self.waiting.popleft(), "at last")
        self._answer(request, text)

    def _answer(self, request, text):
        count = int(text.partition(":")[0]) if ":" in text else 1
        pieces = [c.AssistantMessage([c.TextBlock(text)], "echo")] * count
        messages = [codec.encode_message(piece) for piece in pieces]
        for message in messages if request.is_streamed else ():
            if not request.sink.stream(request, message):
                self.cut.append(text)
                request.settle(SlowReader("too slow"))
                return
        request.settle(Answer(1, 0.001, text, request.order, codec.join(messages)))


@pytest.fixture
def broker(channel):
    with FakeBroker(channel) as broker:
        yield broker


def ask(socket, prompt, request_id=ID, **fields):
    """Send a query; give its MESSAGEs and its outcome."""
    socket.send(pack("QUERY", request_id, prompt=prompt, **fields))
    replies = [reply_of(socket)]
    while replies[-1]["type"] == "MESSAGE":
        replies.append(reply_of(socket))
    assert {reply["id"] for reply in replies} == {request_id}
    return replies[:-1], replies[-1]


class TestExchange:
    def test_a_req_socket_asks_and_is_told(self, broker, connect):
        req = connect(zmq.REQ)
        for text in ("hello", "again"):
            _, result = ask(req, text, os.urandom(16))
            assert (result["type"], result["text"]) == ("RESULT", text)
            assert [m["type"] for m in result["messages"]] == ["AssistantMessage"]

    def test_content_blocks_are_prompts_too(self, broker, connect):
        _, result = ask(connect(), [{"type": "text", "text": "hello"}])
        assert result["text"] == "hello"

    def test_a_prompt_over_the_limit_is_refused_by_its_id(self, broker, connect):
        for kind in (zmq.DEALER, zmq.REQ):
            _, error = ask(connect(kind), "x" * (MAX_BYTES // 2))
            assert (error["code"], error["started"]) == ("payload_too_large", False)
        assert broker.served == []

    def test_a_stream_comes_before_its_result(self, broker, connect):
        messages, result = ask(connect(), "3:x", stream=True)
        assert [m["seq"] for m in messages] == [1, 2, 3]
        assert result["messages"] == []

    def test_a_req_socket_gets_one_reply_whatever_it_sends(self, broker, connect):
        req = connect(zmq.REQ)
        for data in (*GARBAGE, pack("CANCEL"), pack("CREDIT", bytes=5)):
            req.send(data)
            assert reply_of(req)["id"] is None
        req.send(pack("QUERY", prompt="x", stream=True))
        assert reply_of(req)["code"] == "protocol_error"
        assert ask(req, "hello")[1]["text"] == "hello"
        assert broker.served == ["hello"]

    def test_a_query_sent_thrice_runs_once(self, broker, connect):
        dealer = connect()
        for _ in range(3):
            dealer.send(pack("QUERY", prompt="wait"))
        dealer.send(pack("CANCEL"))
        reply = reply_of(dealer)
        assert (reply["code"], reply["sequence"]) == ("request_cancelled", 1)
        assert ask(dealer, "hello", os.urandom(16))[1]["text"] == "hello"
        assert broker.served == ["wait", "hello"]

    def test_a_lazy_req_socket_that_asks_again_gets_the_answer(self, broker, connect):
        req, other = connect(zmq.REQ, REQ_CORRELATE=1, REQ_RELAXED=1), connect()
        req.send(pack("QUERY", prompt="wait"))
        eventually(lambda: broker.waiting)
        sink = broker.waiting[0].sink
        first = sink.envelope
        req.send(pack("QUERY", prompt="wait"))
        eventually(lambda: sink.envelope != first)
        ask(other, "release", os.urandom(16))
        assert reply_of(req)["text"] == "at last"
        assert broker.served == ["wait", "release"]

    def test_a_reader_that_gives_credit_is_never_cut_off(self, channel, connect):
        with FakeBroker(channel, credit_bytes=2000) as broker:
            dealer = connect()
            dealer.send(pack("QUERY", prompt="8:x", stream=True))
            for _ in range(8):
                reply = reply_of(dealer)
                dealer.send(pack("CREDIT", bytes=len(msgpack.packb(reply))))
            assert reply_of(dealer)["type"] == "RESULT"
            assert broker.cut == []

    def test_a_reader_that_gives_none_is_cut_off_and_the_others_served(self, channel, connect):
        with FakeBroker(channel, credit_bytes=2000) as broker:
            slow, quick = connect(), connect()
            slow.send(pack("QUERY", prompt="1000:x", stream=True))
            assert ask(quick, "hello")[1]["text"] == "hello"
            replies = [reply_of(slow)]
            while replies[-1]["type"] == "MESSAGE":
                replies.append(reply_of(slow))
            assert replies[-1]["code"] == "slow_reader"
            assert sum(len(msgpack.packb(reply)) for reply in replies[:-1]) <= 2000
            assert broker.cut == ["1000:x"]

    def test_a_client_that_has_gone_loses_its_requests(self, broker, connect):
        lost, other = connect(), connect()
        for i in range(3):
            lost.send(pack("QUERY", os.urandom(16), prompt=f"wait {i}"))
        eventually(lambda: len(broker.served) == 3)
        lost.close()

        def is_noticed():
            ask(other, "release", os.urandom(16))
            return not broker.waiting

        eventually(is_noticed)
        # The last answer is on its way before its request is forgotten.
        eventually(lambda: repr(broker.front) == "<Front 0 requests of 0 peers>")

    def test_many_clients_each_get_their_own_answers(self, broker, connect):
        rng = random.Random(7)
        clients = [connect(rng.choice([zmq.DEALER, zmq.REQ])) for _ in range(20)]
        for turn in range(10):
            for i, client in enumerate(clients):
                client.send(pack("QUERY", i.to_bytes(16), prompt=f"{i} in turn {turn}"))
                if client.type == zmq.DEALER and rng.random() < 0.3:
                    client.send(rng.choice(GARBAGE))
            for i, client in enumerate(clients):
                while (reply := reply_of(client))["id"] is None:
                    assert reply["code"] == "protocol_error"
                assert (reply["id"], reply["text"]) == (i.to_bytes(16), f"{i} in turn {turn}")
        assert len(broker.served) == 200


SPEC = (ROOT / "protocol" / "SPEC.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", SPEC, re.M | re.S)


class TestExamplesOfTheSpecification:
    @pytest.mark.parametrize(
        ("code", "printed"),
        [
            (
                EXAMPLES[0],
                ["AssistantMessage", "RESULT hello", "AssistantMessage", "RESULT and again"],
            ),
            (EXAMPLES[1], ["RESULT hello"]),
        ],
        ids=["dealer", "req"],
    )
    def test_work_with_nothing_of_ours(self, broker, endpoint, tmp_path, code, printed):
        script = tmp_path / "client.py"
        script.write_text(code)
        done = run_python("-I", str(script), endpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.strip() for line in done.stdout.splitlines()] == printed
