"""Prompts through a gateway: run once, heard by who asked last, whole if their stream was cut."""

import concurrent.futures
import threading

import msgpack
import pytest

from soloist.protocol import public, public_codec
from soloist.protocol.errors import (
    ClientError,
    RequestCancelled,
    RequestTimeout,
    SessionLost,
    SlowReader,
    SupervisorClosed,
)
from soloist.protocol.messages import Answer
from soloist.supervisor.control import ControlRequest
from soloist.supervisor.request import POOL
from tests.fake_gateway import (
    FAR,
    HOME,
    IPC,
    MESSAGE,
    RESULT,
    SECRET,
    TCP,
    Harness,
    answer,
    new_id,
    opening,
    query,
)
from tests.support import nothing_for_the_collector

WHOLE = [msgpack.unpackb(MESSAGE), msgpack.unpackb(RESULT)]


@pytest.fixture
def harness():
    return Harness()


def types(replies):
    return [reply["type"] for reply in replies]


class TestQuery:
    def test_becomes_a_request_of_the_pool(self, harness):
        client = harness.peer()
        request = client.ask(is_streamed=True)
        assert (request.payload, request.session, request.is_streamed) == (b"thello", POOL, True)
        assert (request.deadline, request.on_control) == (None, None)
        assert client.heard() == []

    def test_has_one_result(self, harness):
        client, asked = harness.peer(), query()
        request = client.ask(asked)
        request.attempts, request.worker = 2, 1
        request.settle(answer(MESSAGE, RESULT))
        assert client.one() == {
            "v": 1,
            "type": "RESULT",
            "id": asked.id,
            "sequence": 1,
            "incarnation": 1,
            "text": "hello",
            "num_turns": 3,
            "duration_ms": 12,
            "attempts": 2,
            "worker": 1,
            "messages": WHOLE,
        }

    @pytest.mark.parametrize("has_control", [False, True])
    @pytest.mark.parametrize("pool", [HOME, FAR])
    def test_is_freed_with_its_answer_and_not_only_by_the_collector(
        self, harness, pool, has_control
    ):
        client = harness.peer()
        with nothing_for_the_collector():
            request = client.ask(client=pool, has_control=has_control)
            harness.home.requests.clear()
            harness.reactors[FAR].requests.clear()
            request.settle(answer(MESSAGE, RESULT))
            harness.settle()
            del request
        assert client.one()["type"] == "RESULT"

    def test_or_one_error(self, harness):
        client, asked = harness.peer(), query()
        client.ask(asked).settle(SessionLost("it is gone"))
        error = client.one()
        assert (error["id"], error["sequence"], error["code"]) == (asked.id, 1, "session_lost")

    def test_of_a_worker_that_sends_nonsense_is_an_error(self, harness):
        client, asked = harness.peer(), query(is_streamed=True)
        client.ask(asked).settle(Answer(1, 0.1, "hello", 1, b"\xc1"))
        error = client.one()
        assert error["code"] == "remote_protocol_error"
        client.say(asked)
        assert client.one() == error

    def test_names_its_client(self, harness):
        client = harness.peer()
        client.ask(client=HOME)
        client.ask(client=FAR)
        client.ask()
        assert len(harness.home.requests) == 2
        assert len(harness.reactors[FAR].requests) == 1
        asked = query(client="nobody")
        client.heard()
        client.say(asked)
        error = client.one()
        assert (error["id"], error["code"], error["started"]) == (
            asked.id,
            "invalid_options",
            False,
        )

    def test_has_its_own_limit_or_the_operators(self):
        harness = Harness(pool={"timeout_s": 7.0})
        client = harness.peer()
        assert client.ask().deadline == harness.now + 7.0
        assert client.ask(timeout_ms=0).deadline == harness.now
        assert client.ask(timeout_ms=2500).deadline == harness.now + 2.5

    def test_with_a_prompt_over_the_limit_is_refused_and_may_come_again(self, harness):
        client, asked = harness.peer(), query(prompt="x" * 100)
        for _ in range(2):
            client.say(asked)
            assert client.one()["code"] == "payload_too_large"
        assert client.ask(asked._replace(prompt="x" * 99))

    def test_of_a_conversation_goes_there(self, harness):
        client = harness.peer()
        opened = client.open("a", client=FAR)
        request = client.ask(session=opened["session"], client="of no effect")
        assert request in harness.reactors[FAR].requests
        assert request.session == 100

    def test_of_no_conversation_is_refused(self, harness):
        client, asked = harness.peer(), query(session=new_id())
        client.say(asked)
        error = client.one()
        assert (error["id"], error["code"], error["started"]) == (
            asked.id,
            "session_closed",
            False,
        )

    def test_that_is_settled_at_once_has_one_reply(self, harness):
        client = harness.peer()
        client.ask()
        harness.home.on_submit = lambda request: request.settle(SupervisorClosed("x"))
        client.say(query())
        assert client.one()["code"] == "supervisor_closed"

    def test_to_a_pool_that_has_ended_is_refused(self, harness):
        client = harness.peer()
        client.ask(client=FAR)
        harness.reactors[FAR].is_closed = True
        asked = query(client=FAR)
        client.say(asked)
        error = client.one()
        assert (error["id"], error["code"], error["started"]) == (
            asked.id,
            "supervisor_closed",
            False,
        )
        harness.reactors[FAR].requests[0].settle(answer())
        harness.settle()
        assert harness.gateway._waiting == {}


class TestAccepted:
    @pytest.mark.parametrize("pool", [HOME, FAR])
    def test_tells_how_many_are_before_it(self, harness, pool):
        mine, other = harness.peer(), harness.peer(TCP)
        asked = [query(client=pool) for _ in range(3)]
        first = mine.ask(asked[0])
        assert mine.heard() == []
        other.say(asked[1])
        assert other.one() == {"v": 1, "type": "ACCEPTED", "id": asked[1].id, "position": 1}
        mine.say(asked[2])
        assert mine.one()["position"] == 2
        first.settle(answer())
        harness.settle()
        mine.heard()
        mine.say(query(client=pool))
        assert mine.one()["position"] == 2

    def test_counts_each_conversation_and_pool_for_itself(self, harness):
        client = harness.peer()
        a, b = client.open("a")["session"], client.open("b")["session"]
        for session in (a, b, None):
            client.say(query(session=session))
            assert client.heard() == []
            client.say(query(session=session))
            assert client.one()["position"] == 1

    def test_is_not_for_req_sockets_nor_for_those_that_are_sent_again(self, harness):
        harness.peer().ask()
        asker = harness.client(is_req=True)
        asker.ask()
        assert asker.heard() == []
        client, asked = harness.peer(), query()
        client.say(asked)
        assert client.one()["type"] == "ACCEPTED"
        client.say(asked)
        assert client.heard() == []


class TestAgain:
    def test_while_it_runs_it_is_heard_of_once(self, harness):
        client, asked = harness.peer(), query()
        request = client.ask(asked)
        client.say(asked, asked._replace(prompt="another", client="nobody"))
        assert client.heard() == []
        request.settle(answer())
        assert client.one()["type"] == "RESULT"

    def test_from_elsewhere_it_is_heard_of_there(self, harness):
        first, asked = harness.peer(secret=SECRET), query()
        request = first.ask(asked)
        second = harness.peer(TCP, secret=SECRET)
        second.say(asked)
        request.settle(answer())
        assert first.heard() == []
        assert second.one()["type"] == "RESULT"

    def test_from_elsewhere_it_is_no_longer_that_of_who_goes(self, harness):
        first, asked = harness.peer(secret=SECRET), query()
        first.ask(asked)
        second = harness.peer(secret=SECRET)
        second.say(asked)
        harness.now += 10.0
        second.say(public.Ping())
        harness.pass_time(5.0)
        assert harness.status()["peers"] == 1
        assert harness.cancelled == []

    @pytest.mark.parametrize("resent", [False, True])
    def test_after_its_outcome_it_has_that_again(self, harness, resent):
        client, asked = harness.peer(), query()
        client.ask(asked).settle(answer(MESSAGE))
        outcome = client.one()
        epoch = client.welcome["epoch"] if resent else None
        client.say(asked._replace(resent=epoch, client="nobody"))
        assert client.one() == outcome
        assert len(harness.requests) == 1

    @pytest.mark.parametrize("resent", [None, "now", "before"])
    def test_after_it_was_forgotten_nobody_knows(self, harness, resent):
        client, asked = harness.peer(secret=SECRET), query()
        client.ask(asked).settle(answer())
        client.heard()
        for _ in range(100):
            harness.pass_time(5.0)
            client.say(public.Ping())
        client.heard()
        epoch = {None: None, "now": client.welcome["epoch"], "before": new_id()}[resent]
        client.say(asked._replace(resent=epoch))
        error = client.one()
        assert (error["id"], error["code"]) == (asked.id, "outcome_unknown")
        assert (error["started"], error["retryable"]) == (None, False)
        assert len(harness.requests) == 1

    def test_that_never_arrived_runs(self, harness):
        client = harness.peer(secret=SECRET)
        assert client.ask(resent=client.welcome["epoch"])

    def test_of_another_epoch_does_not_run(self, harness):
        client, asked = harness.peer(secret=SECRET), query(resent=new_id())
        client.say(asked)
        assert client.one()["code"] == "outcome_unknown"
        assert harness.requests == []
        client.say(asked)
        assert client.one()["code"] == "outcome_unknown"

    def test_of_a_scope_whose_ids_were_forgotten_does_not_run(self):
        harness = Harness(max_outcome_bytes=0, max_ids=1)
        client = harness.peer(secret=SECRET)
        for _ in range(3):
            client.ask().settle(answer())
        client.heard()
        client.say(query(resent=client.welcome["epoch"]))
        assert client.one()["code"] == "outcome_unknown"
        assert client.ask(), "but one that is new does"

    def test_without_a_secret_on_another_connection_does_not_run(self, harness):
        client = harness.peer()
        client.say(query(resent=client.welcome["epoch"]))
        assert client.one()["code"] == "outcome_unknown"

    def test_with_the_id_of_something_else_has_the_outcome_of_that(self, harness):
        client, shared_id = harness.peer(), new_id()
        client.say(opening("a", id=shared_id), query(shared_id))
        harness.settle()
        assert client.one()["type"] == "OPENED"
        assert harness.requests == []
        request_id = new_id()
        request = client.ask(query(request_id))
        client.say(opening("b", id=request_id))
        harness.settle()
        request.settle(answer())
        assert client.one()["type"] == "RESULT"
        assert len(harness.reactors[HOME].sessions) == 1


class TestReq:
    def test_hears_exactly_one_thing(self, harness):
        for payload in (
            b"",
            b"garbage",
            msgpack.packb({"v": 2, "type": "QUERY"}),
            public_codec.encode(public.Hello([1], None)),
            public_codec.encode(public.Cancel(new_id())),
            public_codec.encode(public.Credit(new_id(), 1)),
            public_codec.encode(public.Interrupt(new_id())),
            public_codec.encode(public.ControlReply(new_id(), 1, {})),
            public_codec.encode(query(is_streamed=True)),
            public_codec.encode(query(client="nobody")),
            public_codec.encode(query(session=new_id())),
            public_codec.encode(query(resent=new_id())),
            public_codec.encode(query(prompt="x" * 200)),
            public_codec.encode(opening("a")),
            public_codec.encode(opening("b", client="nobody")),
            public_codec.encode(opening("b", ticket=new_id())),
            public_codec.encode(public.Close(new_id(), new_id(), True)),
            public_codec.encode(public.Command(new_id(), new_id(), "set_model", [])),
            public_codec.encode(public.Status(new_id(), None)),
            public_codec.encode(public.Status(new_id(), new_id())),
            public_codec.encode(public.Ping()),
        ):
            client = harness.client(is_req=True)
            client.arrive(payload)
            harness.settle()
            assert len(client.heard()) == 1, payload

    def test_hears_the_outcome_and_nothing_else(self, harness):
        client = harness.client(is_req=True)
        request = client.ask()
        request.settle(answer(MESSAGE))
        result = client.one()
        assert (result["type"], len(result["messages"])) == ("RESULT", 1)

    def test_that_asks_again_is_answered_to_its_latest_envelope(self, harness):
        client, asked = harness.client(is_req=True), query()
        client.envelope = (client.address, b"\0\0\0\1", b"")
        request = client.ask(asked)
        client.envelope = (client.address, b"\0\0\0\2", b"")
        client.say(asked)
        request.settle(answer())
        [(to, _)] = harness.channels[IPC].sent
        assert to == client.envelope
        client.envelope = (client.address, b"\0\0\0\3", b"")
        client.say(asked)
        assert client.one()["type"] == "RESULT"

    def test_is_never_asked_by_the_agent(self, harness):
        client = harness.client(is_req=True)
        assert client.ask(has_control=True).on_control is None

    def test_that_asks_for_what_another_began_is_not_asked_by_the_agent_either(self, harness):
        first, asked = harness.peer(TCP, key="K"), query(has_control=True)
        request = first.ask(asked)
        desk = Desk(harness, request)
        desk.ask()
        assert first.one()["type"] == "CONTROL"
        second = harness.client(TCP, key="K", is_req=True)
        second.say(asked)
        desk.ask()
        request.settle(answer())
        assert second.one()["type"] == "RESULT"
        desk.join()


class TestStream:
    def test_goes_out_as_it_comes_then_the_result_without_messages(self, harness):
        client, asked = harness.peer(), query(is_streamed=True)
        request = client.ask(asked)
        assert request.sink.stream(request, MESSAGE)
        assert client.one() == {
            "v": 1,
            "type": "MESSAGE",
            "id": asked.id,
            "seq": 1,
            "message": WHOLE[0],
        }
        request.settle(answer(MESSAGE, RESULT))
        replies = client.heard()
        assert [reply.get("seq") for reply in replies] == [2, None]
        assert replies[1]["messages"] == []

    def test_ends_when_the_request_is_sent_again(self, harness):
        client, asked = harness.peer(), query(is_streamed=True)
        request = client.ask(asked)
        request.sink.stream(request, MESSAGE)
        client.say(asked)
        assert request.sink.stream(request, MESSAGE)
        request.settle(answer(MESSAGE, RESULT))
        replies = client.heard()
        assert types(replies) == ["MESSAGE", "RESULT"]
        assert replies[-1]["messages"] == WHOLE

    def test_that_was_heard_is_whole_in_the_outcome_that_is_sent_again(self, harness):
        """What was sent just before a connection broke may be lost with it, the outcome too."""
        first, asked = harness.peer(secret=SECRET), query(is_streamed=True)
        request = first.ask(asked)
        request.sink.stream(request, MESSAGE)
        request.settle(answer(MESSAGE, RESULT))
        assert first.heard()[-1]["messages"] == []
        second = harness.peer(secret=SECRET)
        second.say(asked)
        result = second.one()
        assert (result["type"], result["messages"]) == ("RESULT", WHOLE)

    def test_whose_peer_was_silent_for_too_long_leaves_a_whole_outcome(self, harness):
        asked = query(is_streamed=True, on_disconnect="finish")
        request = harness.peer(secret=SECRET).ask(asked)
        harness.pass_time(15.0)
        assert request.sink.stream(request, MESSAGE), "nobody is too slow a reader"
        request.settle(answer(MESSAGE, RESULT))
        second = harness.peer(secret=SECRET)
        second.say(asked)
        assert second.one()["messages"] == WHOLE

    @pytest.mark.parametrize("sent", [0, 1])
    def test_whose_connection_breaks_leaves_a_whole_outcome(self, harness, sent):
        first = harness.peer(secret=SECRET)
        asked = query(is_streamed=True, on_disconnect="finish")
        request = first.ask(asked)
        assert all(request.sink.stream(request, MESSAGE) for _ in range(sent))
        first.leave()
        assert request.sink.stream(request, MESSAGE), "what becomes of it is decided elsewhere"
        harness.gateway.take()
        assert request.sink.stream(request, RESULT)
        request.settle(answer(MESSAGE, RESULT))
        second = harness.peer(secret=SECRET)
        second.say(asked)
        assert second.one()["messages"] == WHOLE

    def test_whose_connection_breaks_at_the_very_end_leaves_a_whole_outcome(self, harness):
        first, asked = harness.peer(secret=SECRET), query(is_streamed=True)
        request = first.ask(asked)
        first.leave()
        request.settle(answer(MESSAGE, RESULT))
        second = harness.peer(secret=SECRET)
        second.say(asked)
        assert second.one()["messages"] == WHOLE

    def test_goes_on_for_who_comes_back(self, harness):
        first = harness.peer(secret=SECRET)
        asked = query(is_streamed=True, on_disconnect="finish")
        request = first.ask(asked)
        first.leave()
        request.sink.stream(request, MESSAGE)
        harness.gateway.take()
        second = harness.peer(secret=SECRET)
        second.say(asked)
        request.sink.stream(request, RESULT)
        request.settle(answer(MESSAGE, RESULT))
        result = second.one()
        assert (result["type"], result["messages"]) == ("RESULT", WHOLE)


class TestCredit:
    def ask(self, **fields):
        """A streamed request with credit for one message."""
        asked = query(is_streamed=True, **fields)
        size = len(public_codec.encode(public.Message(asked.id, 1, MESSAGE)))
        harness = Harness(pool={"credit_bytes": size})
        client = harness.peer(secret=SECRET)
        return harness, client, asked, client.ask(asked), size

    def test_that_does_not_suffice_ends_the_stream(self):
        _, client, _, request, _ = self.ask()
        assert [request.sink.stream(request, MESSAGE) for _ in range(2)] == [True, False]
        request.settle(SlowReader("x"))
        assert types(client.heard()) == ["MESSAGE", "ERROR"]

    def test_that_was_returned_counts_again(self):
        _, client, asked, request, size = self.ask()
        for _ in range(3):
            assert request.sink.stream(request, MESSAGE)
            client.say(public.Credit(asked.id, size))
        client.say(public.Credit(new_id(), size))

    def test_of_another_peer_is_not_taken(self):
        harness, _, asked, request, size = self.ask()
        assert request.sink.stream(request, MESSAGE)
        for other in (harness.peer(), harness.peer(secret=SECRET)):
            other.say(public.Credit(asked.id, size))
        assert not request.sink.stream(request, MESSAGE)

    def test_that_did_not_suffice_gives_the_same_outcome_again(self):
        _, client, asked, request, _ = self.ask()
        request.settle(answer(MESSAGE, RESULT))
        replies = client.heard()
        assert (types(replies), replies[-1]["code"]) == (["MESSAGE", "ERROR"], "slow_reader")
        client.say(asked)
        assert client.one() == replies[-1]


class TestFarPool:
    """What another thread says of a request comes through the home's inbox."""

    def test_is_heard_on_the_gateways_thread_alone(self, harness):
        client = harness.peer()
        request = client.ask(client=FAR, is_streamed=True)
        assert request.sink.stream(request, MESSAGE)
        request.settle(answer(MESSAGE, RESULT))
        assert client.heard() == []
        harness.settle()
        assert types(client.heard()) == ["MESSAGE", "MESSAGE", "RESULT"]

    def test_may_have_so_much_on_its_way(self, harness):
        client = harness.peer()
        request = client.ask(client=FAR, is_streamed=True)
        count = 1000 // len(MESSAGE)
        taken = [request.sink.stream(request, MESSAGE) for _ in range(count + 1)]
        assert taken == [True] * count + [False]
        assert client.heard() == []

    def test_may_always_have_one_on_its_way(self, harness):
        client = harness.peer()
        request = client.ask(client=FAR, is_streamed=True)
        assert request.sink.stream(request, bytes(2000))
        assert not request.sink.stream(request, MESSAGE)

    def test_what_was_taken_makes_room(self, harness):
        client, asked = harness.peer(), query(client=FAR, is_streamed=True)
        request = client.ask(asked)
        for _ in range(20):
            assert all(request.sink.stream(request, MESSAGE) for _ in range(5))
            harness.settle()
            client.say(public.Credit(asked.id, 1000))
        assert types(client.heard()) == ["MESSAGE"] * 100

    def test_whose_reader_is_too_slow_is_ended_for_that(self):
        harness = Harness(pool={"credit_bytes": 100})
        client = harness.peer()
        request = client.ask(client=FAR, is_streamed=True)
        for _ in range(2):
            request.sink.stream(request, MESSAGE)
            harness.settle()
        [(cancelled, error)] = harness.reactors[FAR].cancelled
        assert cancelled is request
        assert isinstance(error, SlowReader)

    def test_ends_early_there(self, harness):
        client, asked = harness.peer(), query(client=FAR)
        request = client.ask(asked)
        client.say(public.Cancel(asked.id))
        assert harness.reactors[FAR].cancelled == [(request, None)]


class TestCancel:
    def test_goes_to_the_pool(self, harness):
        client, asked = harness.peer(), query()
        request = client.ask(asked)
        client.say(public.Cancel(asked.id))
        assert harness.home.cancelled == [(request, None)]
        assert client.heard() == []
        request.settle(RequestCancelled("x"))
        assert client.one()["code"] == "request_cancelled"

    def test_of_what_is_not_there_does_nothing(self, harness):
        client, asked = harness.peer(), query()
        client.ask(asked).settle(answer())
        client.heard()
        client.say(public.Cancel(asked.id), public.Cancel(new_id()))
        assert (client.heard(), harness.cancelled) == ([], [])

    def test_may_come_on_another_connection_of_its_scope(self, harness):
        asked = query()
        request = harness.peer(secret=SECRET).ask(asked)
        harness.peer(secret=SECRET).say(public.Cancel(asked.id))
        assert harness.cancelled == [request]

    def test_of_anothers_does_nothing(self, harness):
        asked = query()
        harness.peer().ask(asked)
        harness.peer().say(public.Cancel(asked.id))
        assert harness.cancelled == []

    def test_does_not_end_what_is_no_prompt(self, harness):
        client, message = harness.peer(), opening("a")
        client.say(message, public.Cancel(message.id))
        harness.settle()
        assert client.one()["type"] == "OPENED"


class TestDisconnect:
    def silent(self, harness):
        """Let all be silent for too long."""
        for _ in range(3):
            harness.pass_time(5.0)

    @pytest.mark.parametrize("pool", [HOME, FAR])
    def test_cancels(self, harness, pool):
        first, asked = harness.peer(secret=SECRET), query(client=pool)
        request = first.ask(asked)
        self.silent(harness)
        assert harness.cancelled == [request]
        request.settle(RequestCancelled("x"))
        harness.settle()
        assert first.heard() == []
        second = harness.peer(secret=SECRET)
        second.say(asked)
        assert second.one()["code"] == "request_cancelled"

    @pytest.mark.parametrize("pool", [HOME, FAR])
    def test_or_lets_it_finish(self, harness, pool):
        first = harness.peer(secret=SECRET)
        asked = query(client=pool, on_disconnect="finish")
        request = first.ask(asked)
        self.silent(harness)
        assert harness.cancelled == []
        request.settle(answer())
        harness.settle()
        second = harness.peer(secret=SECRET)
        second.say(asked)
        assert second.one()["type"] == "RESULT"

    def test_lets_who_comes_back_before_the_end_hear_it(self, harness):
        first, asked = harness.peer(secret=SECRET), query(on_disconnect="finish")
        request = first.ask(asked)
        self.silent(harness)
        second = harness.peer(secret=SECRET)
        second.say(asked)
        request.settle(answer())
        assert second.one()["type"] == "RESULT"

    def test_of_a_connection_without_a_secret_leaves_nothing(self, harness):
        request = harness.peer().ask(on_disconnect="finish")
        self.silent(harness)
        request.settle(answer())
        harness.pass_time(300.0)
        assert len(harness.gateway._outcomes) == 0


class TestBounds:
    def test_requests_of_one_scope(self):
        harness = Harness(max_requests=2)
        client = harness.peer(secret=SECRET)
        requests = [client.ask(), client.ask()]
        refused = query()
        for message in (refused, opening("a")):
            harness.peer(secret=SECRET).say(message)
            client.heard()
        client.say(refused)
        error = client.one()
        assert (error["id"], error["code"], error["started"]) == (refused.id, "queue_full", False)
        client.say(opening("a"))
        assert client.one()["code"] == "queue_full"
        assert harness.peer().ask(), "another scope"
        requests[0].settle(answer())
        assert client.ask(refused)

    def test_bytes_of_prompts_of_one_scope(self):
        harness = Harness(max_queued_bytes=50)
        client = harness.peer()
        first = client.ask(prompt="x" * 90)
        client.say(query(prompt=""))
        assert client.one()["code"] == "queue_full"
        first.settle(answer())
        assert client.ask(prompt="x" * 24)
        assert client.ask(prompt="x" * 24)
        client.heard()
        client.say(query(prompt=""))
        assert client.one()["code"] == "queue_full"

    def test_bytes_are_counted_back(self):
        harness = Harness(max_queued_bytes=50)
        client = harness.peer()
        for _ in range(100):
            client.ask(prompt="x" * 30).settle(answer())
        assert set(types(client.heard())) == {"RESULT"}


class Desk:
    """The threads that wait for the answers to an agent's questions."""

    def __init__(self, harness, request):
        self.harness = harness
        self.on_control = request.on_control
        self.posted = threading.Event()
        self.futures = []
        self.threads = concurrent.futures.ThreadPoolExecutor(4)
        inbox = harness.home.inbox
        inbox.post = lambda call: (inbox.calls.append(call), self.posted.set())

    def ask(self, kind="permission", **data):
        """Let the agent ask; returns when the gateway has heard it."""
        self.posted.clear()
        question = ControlRequest(kind, data, "hello", "")
        future = self.threads.submit(self.on_control, question)
        self.futures.append(future)
        assert self.posted.wait(10.0)
        self.harness.settle()
        return future

    def join(self):
        """Every question has had an answer, or a no, long before its time was over."""
        assert not concurrent.futures.wait(self.futures, 10.0).not_done
        self.threads.shutdown()
        return [future.exception() or future.result() for future in self.futures]


class TestControl:
    @pytest.fixture(autouse=True)
    def client(self, harness):
        client = self.client = harness.peer(secret=SECRET)
        self.asked = query(has_control=True, on_disconnect="finish")
        self.request = client.ask(self.asked)
        self.desk = Desk(harness, self.request)
        return client

    def reply(self, number, client=None, **data):
        (client or self.client).say(public.ControlReply(self.asked.id, number, data))

    def test_asks_who_asked(self, client):
        self.desk.ask("permission", tool_name="Bash")
        assert client.one() == {
            "v": 1,
            "type": "CONTROL",
            "id": self.asked.id,
            "number": 1,
            "kind": "permission",
            "data": {"tool_name": "Bash"},
        }
        self.reply(1, behavior="allow")
        assert self.desk.join() == [{"behavior": "allow"}]

    def test_counts_its_questions_which_may_be_answered_in_any_order(self, client):
        self.desk.ask(x=1)
        self.desk.ask(x=2)
        assert [(reply["number"], reply["data"]) for reply in client.heard()] == [
            (1, {"x": 1}),
            (2, {"x": 2}),
        ]
        self.reply(2, y=2)
        self.reply(1, y=1)
        assert self.desk.join() == [{"y": 1}, {"y": 2}]

    def test_takes_the_first_answer_and_no_other(self, client):
        self.desk.ask()
        self.reply(2, y=0)
        self.reply(1, y=1)
        self.reply(1, y=2)
        assert self.desk.join() == [{"y": 1}]
        assert types(client.heard()) == ["CONTROL"]

    def test_is_no_when_the_peer_says_that_nobody_decides(self):
        self.desk.ask()
        self.reply(1, error="nobody is there")
        [error] = self.desk.join()
        assert isinstance(error, ClientError)

    def test_takes_no_answer_of_anothers(self, harness):
        self.desk.ask()
        self.reply(1, harness.peer(), y=0)
        self.reply(1, harness.peer(secret=SECRET), y=0)
        self.reply(1, y=1)
        assert self.desk.join() == [{"y": 1}]

    def test_is_asked_again_where_the_request_is_sent_again(self, harness, client):
        self.desk.ask(x=1)
        self.desk.ask(x=2)
        self.reply(1)
        client.leave()
        second = harness.peer(secret=SECRET)
        second.say(self.asked)
        assert [(reply["number"], reply["data"]) for reply in second.heard()] == [(2, {"x": 2})]
        self.reply(2, second, y=2)
        assert self.desk.join() == [{}, {"y": 2}]

    def test_is_no_when_the_request_is_over(self):
        self.desk.ask()
        self.request.settle(RequestCancelled("x"))
        [error] = self.desk.join()
        assert isinstance(error, RequestTimeout)

    def test_is_no_when_the_request_was_over_before_it_came(self, client):
        self.request.settle(RequestCancelled("x"))
        client.heard()
        self.desk.ask()
        [error] = self.desk.join()
        assert isinstance(error, RequestTimeout)
        assert client.heard() == []

    def test_is_not_for_those_who_answer_none(self, client):
        assert client.ask().on_control is None


class TestControlDeadline:
    def test_is_no_and_it_is_not_asked_again(self):
        harness = Harness(pool={"control_timeout_s": 0.01})
        client, asked = harness.peer(), query(has_control=True)
        request = client.ask(asked)
        desk = Desk(harness, request)
        desk.ask()
        [error] = desk.join()
        assert isinstance(error, RequestTimeout)
        assert client.one()["type"] == "CONTROL"
        client.say(asked)
        assert client.heard() == []
        client.say(public.ControlReply(asked.id, 1, {}))
        request.settle(answer())
        assert client.one()["type"] == "RESULT"
