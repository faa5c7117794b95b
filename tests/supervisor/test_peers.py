"""Who is connected to a gateway: hello, whose ids and conversations, heartbeats, bounds."""

import msgpack
import pytest

from soloist.protocol import public
from tests.fake_gateway import HOME, IPC, SECRET, TCP, Harness, answer, new_id, opening, query

OTHER_SECRET = bytes(range(1, 33))


@pytest.fixture
def harness():
    return Harness()


class TestHello:
    def test_is_answered_with_what_the_peer_has_to_know(self):
        harness = Harness(heartbeat_s=2.5, max_requests=7)
        client = harness.client()
        client.say(public.Hello([3, 1], None))
        welcome = client.one()
        assert len(welcome.pop("epoch")) == 16
        assert welcome == {
            "v": 1,
            "type": "WELCOME",
            "version": 1,
            "heartbeat_ms": 2500,
            "credit_bytes": 1000,
            "max_prompt_bytes": 100,
            "max_requests": 7,
            "clients": ["echo", "claude"],
        }

    @pytest.mark.parametrize("versions", [[], [2], [0, 2**64 - 1]])
    def test_without_a_version_of_ours_is_refused(self, harness, versions):
        client = harness.client()
        client.say(public.Hello(versions, None))
        error = client.one()
        assert (error["id"], error["code"]) == (None, "protocol_error")
        client.say(public.Ping())
        assert client.one()["code"] == "hello_required"

    def test_comes_first(self, harness):
        client = harness.client()
        for message in (
            query(),
            opening("a"),
            public.Close(new_id(), new_id(), False),
            public.Command(new_id(), new_id(), "set_model", []),
            public.Status(new_id(), None),
        ):
            client.say(message)
            error = client.one()
            assert (error["code"], error["id"]) == ("hello_required", message.id)
            assert (error["started"], error["retryable"]) == (False, True)
        for message in (public.Ping(), public.Interrupt(new_id())):
            client.say(message)
            error = client.one()
            assert (error["code"], error["id"]) == ("hello_required", None)
        harness.settle()
        assert harness.requests == []
        assert harness.reactors[HOME].sessions == {}

    def test_that_comes_after_a_query_lets_the_same_query_run(self, harness):
        client, first = harness.client(), query()
        client.say(first)
        assert client.one()["code"] == "hello_required"
        client.hello()
        assert client.ask(first)

    def test_may_come_again_and_changes_nothing(self, harness):
        client = harness.peer(secret=SECRET)
        request_id = new_id()
        request = client.ask(query(request_id))
        client.say(public.Hello([1], OTHER_SECRET))
        again = client.one()
        assert again == client.welcome
        client.say(query(request_id))
        assert len(harness.requests) == 1
        request.settle(answer())
        assert client.one()["type"] == "RESULT"
        assert harness.status()["peers"] == 1

    def test_tells_another_epoch_in_another_life(self, harness):
        assert harness.peer().welcome["epoch"] == harness.peer().welcome["epoch"]
        assert harness.peer().welcome["epoch"] != Harness().peer().welcome["epoch"]


class TestScope:
    """Whether an id of one connection is known on another."""

    def are_one(self, first, second):
        harness = first.harness
        asked = query()
        first.ask(asked).settle(answer())
        before = len(harness.requests)
        second.say(asked)
        return len(harness.requests) == before

    def test_is_the_connection(self, harness):
        assert not self.are_one(harness.peer(), harness.peer())
        assert not self.are_one(harness.peer(TCP), harness.peer(TCP))

    def test_is_the_secret_if_there_is_one(self, harness):
        peers = [harness.peer(place, secret=SECRET) for place in (IPC, IPC, TCP)]
        assert self.are_one(peers[0], peers[1])
        assert self.are_one(peers[1], peers[2])
        assert not self.are_one(peers[0], harness.peer(secret=OTHER_SECRET))

    def test_is_the_key_if_there_is_one(self, harness):
        peer = harness.peer(TCP, key="K", secret=SECRET)
        assert self.are_one(peer, harness.peer(TCP, key="K"))
        assert self.are_one(peer, harness.peer(TCP, key="K", secret=OTHER_SECRET))
        assert self.are_one(peer, harness.client(TCP, key="K", is_req=True))
        assert not self.are_one(peer, harness.peer(TCP, key="L", secret=SECRET))
        assert not self.are_one(peer, harness.peer(TCP, secret=SECRET))

    def test_of_connections_with_the_same_address_on_two_sockets_is_not_one(self, harness):
        first, second = harness.client(), harness.client(TCP)
        second.address, second.envelope = first.address, first.envelope
        assert not self.are_one(first.hello(), second.hello())

    def test_of_a_key_that_looks_like_a_secret_is_another(self, harness):
        secret = b"k" * 16
        assert not self.are_one(
            harness.peer(TCP, secret=secret), harness.peer(TCP, key=secret.decode())
        )


class TestHeartbeat:
    def test_is_answered(self, harness):
        client = harness.peer()
        client.say(public.Ping(), public.Ping())
        assert client.heard() == [{"v": 1, "type": "PONG"}] * 2

    def test_keeps_a_peer(self, harness):
        client = harness.peer()
        for _ in range(20):
            harness.pass_time(5.0)
            client.say(public.Ping())
        assert {reply["type"] for reply in client.heard()} == {"PONG"}

    def test_that_is_missing_three_times_means_that_it_has_gone(self, harness):
        client = harness.peer()
        harness.pass_time(14.9)
        assert harness.status()["peers"] == 1
        harness.pass_time(5.0)
        assert harness.status()["peers"] == 0
        client.say(public.Ping())
        assert client.one()["code"] == "hello_required"

    @pytest.mark.parametrize("sign", [public.Ping(), public.Cancel(new_id()), query(), b"\xc1"])
    def test_is_whatever_a_peer_says(self, harness, sign):
        client, silent = harness.peer(), harness.peer()
        for _ in range(3):
            harness.pass_time(5.0)
            client.arrive(sign) if isinstance(sign, bytes) else client.say(sign)
        harness.pass_time(0.0)
        assert harness.status()["peers"] == 1
        client.heard()
        client.say(public.Ping())
        assert client.one()["type"] == "PONG"
        silent.say(public.Ping())
        assert silent.one()["code"] == "hello_required"

    def test_is_asked_for_as_long_as_there_is_something(self, harness):
        gateway = harness.gateway
        assert gateway.next_deadline() == float("inf")
        client = harness.peer()
        assert gateway.next_deadline() == harness.now + 5.0
        harness.pass_time(4.0)
        client.say(public.Ping())
        assert gateway.next_deadline() == harness.now + 1.0
        harness.pass_time(1.0)
        assert gateway.next_deadline() == harness.now + 5.0
        for _ in range(3):
            harness.pass_time(5.0)
        assert gateway.next_deadline() == float("inf"), "nobody is left"


class TestGone:
    def test_is_noticed_when_there_is_something_for_it(self, harness):
        client = harness.peer()
        first, second = client.ask(), client.ask()
        client.leave()
        first.settle(answer())
        assert harness.gateway.has_input()
        harness.gateway.take()
        assert harness.cancelled == [second]
        assert harness.status()["peers"] == 0
        assert not harness.gateway.has_input()

    def test_of_a_req_socket_ends_what_it_asked_and_nothing_else(self, harness):
        asker, other = harness.client(is_req=True), harness.peer()
        request, running = asker.ask(), other.ask()
        asker.leave()
        request.settle(answer())
        harness.gateway.take()
        assert harness.cancelled == []
        running.settle(answer())
        assert other.replies[-1]["type"] == "RESULT"

    def test_is_gone_once_and_does_not_take_its_successor_along(self):
        harness = Harness(max_outcome_bytes=0, max_ids=0)
        first = harness.peer(secret=SECRET)
        first.say(public.Status(new_id(), None))  # is answered when it has gone
        harness.now += 15.0
        harness.gateway.go_on(harness.now)
        second = harness.peer(secret=SECRET)
        second.say(opening())
        first.leave()
        harness.settle()
        assert second.one()["type"] == "OPENED"
        assert harness.reactors[HOME].closed == []


class TestBounds:
    def test_more_connections_are_refused(self):
        harness = Harness(max_peers=2)
        first, second = harness.peer(), harness.peer()
        third = harness.client()
        third.say(public.Hello([1], None))
        error = third.one()
        assert (error["id"], error["code"]) == (None, "queue_full")
        third.say(public.Ping())
        assert third.one()["code"] == "hello_required"
        first.say(public.Ping())
        second.say(public.Ping())
        assert {reply["type"] for reply in first.heard() + second.heard()} == {"PONG"}

    def test_one_that_is_not_there_any_more_makes_room(self):
        harness = Harness(max_peers=2)
        gone, here = harness.peer(), harness.peer()
        request = gone.ask()
        gone.leave()
        assert harness.peer().welcome["type"] == "WELCOME"
        assert harness.cancelled == [request]
        here.heard()
        here.say(public.Ping())
        assert here.one()["type"] == "PONG"

    def test_those_of_one_secret_have_a_bound_of_their_own(self):
        harness = Harness(max_connections=2)
        mine = [harness.peer(secret=SECRET) for _ in range(2)]
        third = harness.client()
        third.say(public.Hello([1], SECRET))
        assert third.one()["code"] == "queue_full"
        assert harness.peer(secret=OTHER_SECRET).welcome["type"] == "WELCOME"
        assert harness.peer().welcome["type"] == "WELCOME"
        mine[0].leave()
        assert third.hello(SECRET).welcome["type"] == "WELCOME"

    def test_of_one_secret_are_looked_at_among_others_who_have_been_silent_for_longer(self):
        harness = Harness(max_connections=1)
        others = [harness.peer() for _ in range(10)]
        harness.peer(secret=SECRET).leave()
        assert harness.peer(secret=SECRET).welcome["type"] == "WELCOME"
        assert all(other.heard() == [] for other in others)

    def test_the_only_one_of_a_secret_that_has_gone_makes_room(self):
        harness = Harness(max_connections=1, max_outcome_bytes=0)
        first = harness.peer(secret=SECRET)
        first.leave()
        second = harness.peer(secret=SECRET)
        asked = query()
        request = second.ask(asked)
        assert harness.status()["requests"] == 1
        request.settle(answer())
        assert second.one()["type"] == "RESULT"
        second.say(asked)
        assert second.one()["code"] == "outcome_unknown"

    def test_req_sockets_leave_nothing(self, harness):
        for message in (public.Ping(), query(client="nobody")):
            harness.client(is_req=True).say(message)
        assert len(harness.gateway._outcomes) == 0

    def test_who_was_refused_leaves_nothing(self):
        harness = Harness(max_peers=1)
        harness.peer()
        for _ in range(10):
            harness.client().hello(SECRET)
        assert len(harness.gateway._outcomes) == 1

    def test_those_who_have_been_silent_longest_are_looked_at_first(self):
        harness = Harness(max_peers=20)
        peers = [harness.peer() for _ in range(20)]
        peers[0].say(public.Ping())
        peers[0].leave()
        late = harness.client()
        late.say(public.Hello([1], None))
        assert late.one()["code"] == "queue_full", "eight are looked at, and it spoke just now"
        peers[1].leave()
        assert late.hello().welcome["type"] == "WELCOME"


def test_words_that_are_none_are_answered(harness):
    client = harness.peer()
    for payload in (b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"v": 1, "type": "NO"})):
        client.arrive(payload)
        error = client.one()
        assert (error["id"], error["code"]) == (None, "protocol_error")
