"""Callers elsewhere: their requests, their credit, their outcomes, with a socket that is none."""

import collections
import time

import msgpack
import pytest

from soloist.protocol import codec, public, public_codec
from soloist.protocol import content as c
from soloist.protocol.errors import ProtocolError, RequestCancelled, SessionLost, to_info
from soloist.protocol.messages import Answer
from soloist.protocol.transitions import RequestState
from soloist.supervisor import front as front_module
from soloist.supervisor.front import Front

ALICE, BOB = (b"\0alic",), (b"\0bob.",)
ID, OTHER = bytes(range(16)), bytes(range(1, 17))
MESSAGE = codec.encode_message(c.SystemMessage("said", {"x": 1}))
RESULT = codec.encode_message(c.ResultMessage("success", 3, 0, False, 1, "s", result="hello"))


class FakeChannel:
    """What peers sent, in order, and what each was sent."""

    def __init__(self):
        self.inbox = collections.deque()
        self.sent = []
        self.gone = set()

    def has_input(self):
        return bool(self.inbox)

    def receive(self):
        return self.inbox.popleft() if self.inbox else None

    def send(self, envelope, data):
        if envelope[0] in self.gone:
            return False
        self.sent.append((envelope, msgpack.unpackb(data)))
        return True

    def replies_to(self, envelope):
        return [reply for to, reply in self.sent if to == envelope]


class Harness:
    """A front between a fake channel and lists of what it wants done."""

    number = 9

    def __init__(self, **options):
        self.channel = FakeChannel()
        self.submitted = []
        self.cancelled = []
        self.looks = 0
        limits = {"max_payload_bytes": 100, "stream_buffer_bytes": 1000} | options
        self.front = Front(
            self.channel,
            "ipc://s",
            self,
            submit=self.submitted.append,
            cancel=self.cancelled.append,
            on_sent=self.look_again,
            **limits,
        )

    def look_again(self, front):
        assert front is self.front
        self.looks += 1

    def hear(self, *messages):
        self.channel.inbox.extend(messages)
        self.front.take()

    def ask(self, envelope=ALICE, request_id=ID, *, order=1, **fields):
        """Have a query arrive; give the request that the broker gets."""
        before = len(self.submitted)
        self.hear((envelope, query(request_id, **fields)))
        [request] = self.submitted[before:]
        request.order = order
        return request


@pytest.fixture
def harness():
    return Harness()


@pytest.fixture
def channel(harness):
    return harness.channel


def query(request_id=ID, *, prompt="hello", timeout_ms=None, is_streamed=False):
    return public.Query(request_id, prompt, timeout_ms, is_streamed)


def answer(*messages, duration_s=0.0125):
    return Answer(1, duration_s, "hello", 3, codec.join(list(messages)))


class TestQuery:
    def test_becomes_a_request_of_the_session(self, harness, channel):
        request = harness.ask(is_streamed=True)
        assert request.payload == b"thello"
        assert request.session == 9
        assert request.is_streamed
        assert request.state is RequestState.QUEUED
        assert channel.sent == []

    def test_has_its_own_limit_or_the_operators(self, harness):
        before = time.monotonic()
        assert harness.ask().deadline is None
        assert before + 5 <= harness.ask(BOB, timeout_ms=5000).deadline <= time.monotonic() + 5
        limited = Harness(timeout_s=7.0)
        assert before + 7 <= limited.ask().deadline <= time.monotonic() + 7
        assert before <= limited.ask(BOB, timeout_ms=0).deadline <= time.monotonic()

    def test_with_a_prompt_over_the_limit_is_refused(self, harness, channel):
        harness.hear((ALICE, query(prompt="x" * 100)))
        [(to, reply)] = channel.sent
        assert (to, reply["id"], reply["code"]) == (ALICE, ID, "payload_too_large")
        assert reply["started"] is False
        assert harness.submitted == []
        assert harness.ask(prompt="x" * 99)

    def test_that_comes_twice_runs_once(self, harness, channel):
        request = harness.ask()
        harness.hear((ALICE, query()), (ALICE, query()))
        assert harness.submitted == [request]
        request.settle(answer())
        assert len(channel.sent) == 1

    def test_that_comes_twice_is_answered_to_its_latest_envelope(self, harness, channel):
        first, second = (ALICE[0], b"\0\0\0\1", b""), (ALICE[0], b"\0\0\0\2", b"")
        request = harness.ask(first)
        harness.hear((second, query()))
        request.settle(answer())
        assert [to for to, _ in channel.sent] == [second]

    def test_of_another_peer_with_the_same_id_is_another_request(self, harness, channel):
        first, second = harness.ask(), harness.ask(BOB)
        second.settle(RequestCancelled("x"))
        first.settle(answer())
        assert [reply["type"] for reply in channel.replies_to(ALICE)] == ["RESULT"]
        assert [reply["type"] for reply in channel.replies_to(BOB)] == ["ERROR"]

    def test_may_use_the_id_again_once_there_is_an_outcome(self, harness, channel):
        harness.ask().settle(answer())
        harness.ask().settle(answer())
        assert len(channel.sent) == 2

    def test_leaves_nothing_behind_after_its_outcome(self, harness, channel):
        first, second = harness.ask(), harness.ask(request_id=OTHER)
        assert repr(harness.front) == "<Front 2 requests of 1 peers>"
        first.settle(answer())
        second.settle(answer())
        assert repr(harness.front) == "<Front 0 requests of 0 peers>"


class TestOutcome:
    def test_is_a_result_with_all_messages(self, harness, channel):
        request = harness.ask(order=9)
        request.incarnation = 4
        request.settle(answer(MESSAGE, RESULT))
        assert channel.sent == [
            (
                ALICE,
                {
                    "v": 1,
                    "type": "RESULT",
                    "id": ID,
                    "sequence": 9,
                    "incarnation": 4,
                    "text": "hello",
                    "num_turns": 3,
                    "duration_ms": 12,
                    "messages": [msgpack.unpackb(MESSAGE), msgpack.unpackb(RESULT)],
                },
            )
        ]

    def test_of_a_bare_callable_has_messages_too(self, harness, channel):
        harness.ask().settle(Answer(1, 0.1, "hello", 1, b""))
        [(_, reply)] = channel.sent
        assistant, result = map(c.from_map, reply["messages"])
        assert assistant.content == [c.TextBlock("hello")]
        assert (result.result, result.duration_ms) == ("hello", 100)

    def test_with_an_absurd_duration_is_still_sent(self, harness, channel):
        for messages in (b"", codec.join([])):
            harness.ask().settle(Answer(1, 1.8e19, "hello", 1, messages))
        assert [reply["type"] for _, reply in channel.sent] == ["RESULT", "RESULT"]

    def test_may_be_an_error(self, harness, channel):
        harness.ask(order=2).settle(SessionLost("it is gone", started=False))
        assert channel.sent == [
            (
                ALICE,
                {
                    "v": 1,
                    "type": "ERROR",
                    "id": ID,
                    "sequence": 2,
                    "code": "session_lost",
                    "message": "it is gone",
                    "retryable": False,
                    "started": False,
                    "details": {},
                },
            )
        ]

    def test_of_what_was_never_queued_has_no_sequence(self, harness, channel):
        harness.ask(order=0).settle(SessionLost("it is gone"))
        assert "sequence" not in channel.sent[0][1]

    def test_of_a_worker_that_sends_nonsense_is_an_error(self, harness, channel):
        request = harness.ask(is_streamed=True)
        request.settle(Answer(1, 0.1, "hello", 1, b"\xc1"))
        assert [reply["code"] for _, reply in channel.sent] == ["remote_protocol_error"]


class TestStream:
    def test_goes_out_as_it_comes_then_the_result_without_messages(self, harness, channel):
        request = harness.ask(is_streamed=True)
        assert request.sink.stream(request, MESSAGE)
        assert request.sink.stream(request, RESULT)
        request.settle(answer(MESSAGE, RESULT))
        replies = channel.replies_to(ALICE)
        assert [reply["type"] for reply in replies] == ["MESSAGE", "MESSAGE", "RESULT"]
        assert [reply.get("seq") for reply in replies] == [1, 2, None]
        assert replies[0]["message"] == msgpack.unpackb(MESSAGE)
        assert replies[2]["messages"] == []

    def test_is_completed_with_what_did_not_come_by_itself(self, harness, channel):
        request = harness.ask(is_streamed=True)
        request.sink.stream(request, MESSAGE)
        request.settle(answer(MESSAGE, MESSAGE, RESULT))
        replies = channel.replies_to(ALICE)
        assert [reply.get("seq") for reply in replies] == [1, 2, 3, None]
        assert replies[2]["message"] == msgpack.unpackb(RESULT)

    def test_of_a_bare_callable_has_messages_too(self, harness, channel):
        harness.ask(is_streamed=True).settle(Answer(1, 0.1, "hello", 1, b""))
        replies = channel.replies_to(ALICE)
        assert [reply["type"] for reply in replies] == ["MESSAGE", "MESSAGE", "RESULT"]
        assert replies[1]["message"]["result"] == "hello"


def size_of_first():
    return len(public_codec.encode(public.Message(ID, 1, MESSAGE)))


class TestCredit:
    def ask(self, count=1):
        """Have a streamed query arrive, with credit for so many of these messages."""
        harness = Harness(stream_buffer_bytes=count * size_of_first())
        return harness, harness.ask(is_streamed=True)

    def test_ends_the_stream_when_it_does_not_suffice(self):
        harness, request = self.ask(2)
        sent = [request.sink.stream(request, MESSAGE) for _ in range(4)]
        assert sent == [True, True, False, False]
        assert len(harness.channel.sent) == 2

    def test_that_is_spent_does_not_stop_the_outcome(self):
        harness, request = self.ask()
        assert request.sink.stream(request, MESSAGE)
        request.settle(answer(MESSAGE))
        assert harness.channel.sent[-1][1]["type"] == "RESULT"

    def test_that_was_returned_counts_again(self):
        harness, request = self.ask()
        for _ in range(5):
            assert request.sink.stream(request, MESSAGE)
            harness.hear((ALICE, public.Credit(ID, size_of_first())))
        assert request.sink.stream(request, MESSAGE)
        assert not request.sink.stream(request, MESSAGE)

    def test_never_grows_beyond_what_it_was(self):
        harness, request = self.ask()
        harness.hear((ALICE, public.Credit(ID, 2**64 - 1)))
        assert request.sink.stream(request, MESSAGE)
        assert not request.sink.stream(request, MESSAGE)

    def test_comes_too_late_once_a_message_was_refused(self):
        harness, request = self.ask()
        assert request.sink.stream(request, MESSAGE)
        assert not request.sink.stream(request, MESSAGE)
        harness.hear((ALICE, public.Credit(ID, 1000)))
        assert not request.sink.stream(request, MESSAGE)
        request.settle(answer(MESSAGE))
        assert len(harness.channel.sent) == 2
        assert harness.channel.sent[-1][1]["code"] == "slow_reader"

    @pytest.mark.parametrize(("missing", "is_sent"), [(0, True), (1, False)])
    def test_that_is_whole_lets_any_message_through(self, missing, is_sent):
        harness = Harness(stream_buffer_bytes=10)
        request = harness.ask(is_streamed=True)
        assert request.sink.stream(request, MESSAGE)
        harness.hear((ALICE, public.Credit(ID, size_of_first() - missing)))
        assert request.sink.stream(request, MESSAGE) is is_sent

    def test_holds_for_the_rest_of_an_answer_too(self):
        harness, request = self.ask()
        request.settle(answer(MESSAGE, RESULT))
        assert [reply["type"] for _, reply in harness.channel.sent] == ["MESSAGE", "ERROR"]
        assert harness.channel.sent[-1][1]["code"] == "slow_reader"

    def test_of_each_request_is_its_own(self):
        harness, first = self.ask()
        second = harness.ask(request_id=OTHER, is_streamed=True)
        for request in (first, second):
            assert request.sink.stream(request, MESSAGE)


class TestCancel:
    def test_goes_to_the_broker(self, harness, channel):
        request = harness.ask()
        harness.hear((ALICE, public.Cancel(ID)))
        assert harness.cancelled == [request]
        request.settle(RequestCancelled("x"))
        assert [reply["code"] for _, reply in channel.sent] == ["request_cancelled"]

    def test_and_credit_of_what_is_not_there_do_nothing(self, harness, channel):
        harness.ask()
        harness.hear(
            (ALICE, public.Cancel(OTHER)),
            (ALICE, public.Credit(OTHER, 5)),
            (BOB, public.Cancel(ID)),
            (BOB, public.Credit(ID, 5)),
        )
        assert harness.cancelled == []
        assert channel.sent == []


GARBAGE = public.Error(None, None, to_info(ProtocolError("no", started=False)))


class TestGarbage:
    def test_is_answered_and_goes_no_further(self, harness, channel):
        harness.hear((ALICE, GARBAGE), (ALICE, query()))
        assert len(harness.submitted) == 1
        [(to, reply)] = channel.sent
        assert (to, reply["id"], reply["code"]) == (ALICE, None, "protocol_error")

    def test_of_a_peer_that_has_gone_costs_nothing(self, harness, channel):
        channel.gone.add(ALICE[0])
        harness.hear((ALICE, GARBAGE))
        assert not harness.front.has_input()

    def test_without_end_does_not_keep_others_waiting(self, harness, channel, monkeypatch):
        monkeypatch.setattr(front_module, "MAX_TAKEN", 3)
        harness.hear(*[(ALICE, public.Cancel(OTHER))] * 5)
        assert len(channel.inbox) == 2
        assert harness.front.has_input()
        assert harness.looks == 1
        harness.front.take()
        assert not channel.inbox
        assert harness.looks == 1


class TestSending:
    def test_asks_for_another_look_at_the_socket(self, harness):
        request = harness.ask(is_streamed=True)
        assert harness.looks == 0
        request.sink.stream(request, MESSAGE)
        assert harness.looks == 1
        request.settle(answer(MESSAGE))
        assert harness.looks == 2

    def test_to_a_peer_that_has_gone_cancels_all_that_it_asked(self, harness, channel):
        streamed = harness.ask(is_streamed=True)
        waiting = harness.ask(request_id=OTHER)
        others = harness.ask(BOB)
        channel.gone.add(ALICE[0])
        assert not streamed.sink.stream(streamed, MESSAGE)
        assert harness.front.has_input()
        assert harness.looks == 1
        harness.front.take()
        assert harness.cancelled == [streamed, waiting]
        for request in (streamed, waiting):
            request.settle(RequestCancelled("x"))
        others.settle(answer())
        assert [to for to, _ in channel.sent] == [BOB]
        harness.front.take()
        assert len(harness.cancelled) == 2
        assert not harness.front.has_input()

    def test_an_outcome_finds_out_that_its_peer_has_gone(self, harness, channel):
        first, second = harness.ask(), harness.ask(request_id=OTHER)
        channel.gone.add(ALICE[0])
        first.settle(answer())
        harness.front.take()
        assert harness.cancelled == [second]

    def test_cancels_in_any_order_even_if_that_settles_at_once(self, harness, channel):
        requests = [harness.ask(request_id=bytes([i]) * 16) for i in range(5)]
        harness.front._cancel = lambda request: request.settle(RequestCancelled("x"))
        channel.gone.add(ALICE[0])
        requests[2].settle(answer())
        harness.front.take()
        assert all(request.outcome is not None for request in requests)
        assert not harness.front.has_input()
        assert repr(harness.front) == "<Front 0 requests of 0 peers>"
