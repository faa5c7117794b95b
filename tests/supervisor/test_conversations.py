"""Conversations through a gateway: who may use which, and what is said of them."""

import pytest

from soloist.protocol import public
from soloist.protocol.errors import ClientConnectError, ClientError, QueueFull
from tests.fake_gateway import (
    FAR,
    HOME,
    IPC,
    SECRET,
    TCP,
    Harness,
    answer,
    new_id,
    opening,
    query,
)
from tests.support import nothing_for_the_collector


@pytest.fixture
def harness():
    return Harness()


def code_of(client, message):
    """Say something that is refused; the code of the error."""
    client.say(message)
    client.harness.settle()
    error = client.one()
    assert error["type"] == "ERROR", error
    return error["code"]


def reply_to(client, message):
    client.say(message)
    client.harness.settle()
    return client.one()


def forget_all(harness, *peers):
    """Let time pass until no outcome is kept; the peers stay."""
    for _ in range(70):
        harness.pass_time(5.0)
        for peer in peers:
            peer.say(public.Ping())
    for peer in peers:
        peer.heard()


class TestOpen:
    def test_begins_a_conversation(self, harness):
        client, message = harness.peer(), opening("a")
        opened = reply_to(client, message)
        assert (len(opened["session"]), len(opened["ticket"])) == (16, 16)
        assert opened["session"] != opened["ticket"]
        assert opened["id"] == message.id
        assert (opened["endpoint"], opened["incarnation"]) == ("ipc://100", 1)

    def test_of_a_name_that_is_open_joins_it(self, harness):
        first, second = harness.peer().open("a"), harness.peer().open("a")
        assert first | {"id": None} == second | {"id": None}
        assert len(harness.reactors[HOME].sessions) == 1

    def test_of_another_name_or_client_does_not(self, harness):
        client = harness.peer()
        handles = {
            client.open(name, client=pool)["session"] for name in "ab" for pool in (HOME, FAR)
        }
        assert len(handles) == 4
        assert [len(r.sessions) for r in harness.reactors.values()] == [2, 2]

    def test_that_is_sent_again_begins_nothing(self, harness):
        client, message = harness.peer(secret=SECRET), opening()
        client.say(message)
        second = harness.peer(secret=SECRET)
        second.say(message)
        harness.settle()
        assert client.heard() == []
        opened = second.one()
        second.say(message)
        assert second.one() == opened
        assert len(harness.reactors[HOME].sessions) == 1

    def test_of_one_name_twice_at_once_is_one(self, harness):
        client, other = harness.peer(), harness.peer()
        client.say(opening("a"), opening("a"))
        other.say(opening("a"))
        harness.settle()
        handles = {reply["session"] for reply in client.heard() + other.heard()}
        assert len(handles) == 1
        assert harness.gateway._conversations._counts == {"local": 1}

    def test_of_a_name_that_is_just_being_opened_with_bounds_joins_it(self, harness):
        client = harness.peer()
        client.say(opening("a", max_queue=5), opening("a"))
        harness.settle()
        first, second = client.heard()
        assert second["type"] == "OPENED"
        assert first["session"] == second["session"]

    def test_of_a_name_that_is_just_being_opened_with_other_bounds_is_refused(self, harness):
        client = harness.peer()
        client.say(opening("a", max_queue=5), opening("a", max_queue=0))
        harness.settle()
        refused, opened = client.heard()
        assert (opened["type"], refused["code"]) == ("OPENED", "invalid_options")

    def test_of_a_name_that_is_just_being_opened_in_vain_is_tried_itself(self, harness):
        client, reactor = harness.peer(), harness.reactors[HOME]
        reactor.open_error = QueueFull("max_sessions")
        client.say(opening("a", max_queue=5), opening("a"))
        reactor.orders.popleft()()
        reactor.open_error = None
        harness.settle()
        refused, opened = client.heard()
        assert (refused["code"], opened["type"]) == ("queue_full", "OPENED")

    def test_of_no_client_is_refused(self, harness):
        assert code_of(harness.peer(), opening("a", client="nobody")) == "invalid_options"

    def test_that_the_pool_refuses_is_refused(self, harness):
        harness.reactors[FAR].open_error = QueueFull("max_sessions")
        assert code_of(harness.peer(), opening("a", client=FAR)) == "queue_full"
        assert harness.gateway._conversations._counts == {}

    def test_of_one_that_ended_by_itself_begins_another(self, harness):
        client = harness.peer()
        first = client.open("a")
        harness.reactors[HOME].sessions.clear()
        second = client.open("a")
        assert first["session"] != second["session"]
        assert first["ticket"] != second["ticket"]
        assert code_of(client, query(session=first["session"])) == "session_closed"
        assert code_of(client, opening(ticket=first["ticket"])) == "session_closed"
        assert len(harness.gateway._conversations) == 1

    def test_of_one_that_ends_at_that_moment_says_so(self, harness):
        client, reactor = harness.peer(), harness.reactors[HOME]
        client.say(opening("a"))
        reactor.orders.popleft()()
        reactor.sessions.clear()
        harness.settle()
        assert client.one()["code"] == "session_closed"
        assert len(harness.gateway._conversations) == 0
        assert harness.gateway._conversations._counts == {}


class TestEndpoint:
    def test_is_for_local_peers_alone(self, harness):
        local, remote = harness.peer(IPC), harness.peer(TCP)
        opened = local.open("a")
        assert opened["endpoint"] == "ipc://100"
        assert remote.open("a")["endpoint"] == ""
        assert remote.open(ticket=opened["ticket"])["endpoint"] == ""
        for peer in (local, remote):
            status = reply_to(peer, public.Status(new_id(), opened["session"]))["status"]
            assert status["endpoint"] == ("ipc://100" if peer is local else "")

    def test_is_empty_without_a_name(self, harness):
        assert harness.peer().open()["endpoint"] == ""


class TestBoundsOfOne:
    def limits(self, harness):
        return [session.limits for session in harness.reactors[HOME].sessions.values()]

    def test_are_the_operators_or_its_own(self):
        harness = Harness(max_queue=50, idle_timeout_s=60.0)
        client = harness.peer()
        client.open("a")
        client.open("b", max_queue=7, idle_timeout_ms=1500)
        assert self.limits(harness) == [(50, 60.0), (7, 1.5)]

    @pytest.mark.parametrize(
        "fields",
        [
            {"max_queue": 0},
            {"max_queue": 51},
            {"idle_timeout_ms": 0},
            {"idle_timeout_ms": 60_001},
            {"max_queue": 2**64 - 1},
        ],
    )
    def test_are_from_one_to_the_operators(self, fields):
        harness = Harness(max_queue=50, idle_timeout_s=60.0)
        assert code_of(harness.peer(), opening("a", **fields)) == "invalid_options"
        assert harness.gateway._conversations._counts == {}

    def test_may_be_at_the_operators(self):
        harness = Harness(max_queue=50, idle_timeout_s=60.0)
        harness.peer().open("a", max_queue=50, idle_timeout_ms=60_000)

    def test_may_be_anything_where_the_operator_has_none(self):
        harness = Harness(idle_timeout_s=None)
        client = harness.peer()
        client.open("a")
        client.open("b", idle_timeout_ms=2**64 - 1)
        assert next(limits.idle_timeout_s for limits in self.limits(harness)) is None

    def test_that_differ_from_those_of_an_open_one_are_refused(self, harness):
        client = harness.peer()
        opened = client.open("a", max_queue=7)
        assert code_of(client, opening("a", max_queue=8)) == "invalid_options"
        assert code_of(client, opening("a", max_queue=7, idle_timeout_ms=1)) == "invalid_options"
        assert client.open("a", max_queue=7)["session"] == opened["session"]
        assert client.open("a")["session"] == opened["session"]
        assert harness.gateway._conversations._counts == {"local": 1}


class TestOwner:
    """Whose a conversation is: its name and its handle are of no use to anybody else."""

    def owners(self, harness):
        return [
            harness.peer(IPC),
            harness.peer(TCP, secret=SECRET),
            harness.peer(TCP),
            harness.peer(TCP, key="K"),
            harness.peer(TCP, key="L", secret=SECRET),
        ]

    def test_has_names_of_its_own(self, harness):
        owners = self.owners(harness)
        assert len({owner.open("a")["session"] for owner in owners}) == 5
        names = {session.name for session in harness.reactors[HOME].sessions.values()}
        assert len(names) == 5

    def test_is_the_key_or_secret_on_tcp(self, harness):
        for fields in ({"secret": SECRET}, {"key": "K"}):
            first, second = harness.peer(TCP, **fields), harness.peer(TCP, **fields)
            assert first.open("a")["session"] == second.open("a")["session"]

    def test_is_one_for_all_local_peers(self, harness):
        first, second = harness.peer(secret=SECRET), harness.client(is_req=True)
        assert first.open("a")["session"] == second.open("a")["session"]

    def test_has_handles_that_are_no_use_to_others(self, harness):
        owners = self.owners(harness)
        session = owners[0].open("a")["session"]
        for other in owners[1:]:
            for message in (
                query(session=session),
                public.Close(new_id(), session, False),
                public.Command(new_id(), session, "set_model", []),
                public.Status(new_id(), session),
                public.Interrupt(session),
            ):
                assert code_of(other, message) == "session_closed"
        assert harness.reactors[HOME].closed == []
        assert harness.home.interrupted == []

    def test_has_names_that_nobody_can_say_for_it(self, harness):
        """A local peer reads all names in the status, and may open any."""
        harness.peer(TCP, key="K").open("a")
        [session] = harness.reactors[HOME].sessions.values()
        harness.peer(IPC).open(session.name)
        assert len(harness.reactors[HOME].sessions) == 2


class TestTicket:
    def test_admits_another_owner(self, harness):
        first, second = harness.peer(TCP), harness.peer(TCP)
        opened = first.open("a", client=FAR)
        joined = second.open(ticket=opened["ticket"], name="b", client="nobody", max_queue=0)
        assert joined["session"] == opened["session"]
        assert joined["ticket"] == opened["ticket"]
        assert second.ask(session=opened["session"]) in harness.reactors[FAR].requests
        assert reply_to(second, public.Close(new_id(), opened["session"], False))["type"] == "DONE"

    def test_admits_to_one_without_a_name_too(self, harness):
        first, second = harness.peer(TCP), harness.peer(TCP)
        opened = first.open()
        assert second.open(ticket=opened["ticket"])["session"] == opened["session"]

    def test_takes_no_place(self):
        harness = Harness(max_conversations=1)
        first, second = harness.peer(TCP), harness.peer(TCP)
        opened = first.open("a")
        second.open("a")
        second.open(ticket=opened["ticket"])
        assert set(harness.gateway._conversations._counts.values()) == {1}

    def test_that_is_none_is_refused(self, harness):
        client = harness.peer()
        opened = client.open("a")
        assert code_of(client, opening(ticket=new_id())) == "session_closed"
        assert code_of(client, opening(ticket=opened["session"])) == "session_closed"

    def test_is_void_when_the_conversation_is_over(self, harness):
        client = harness.peer()
        opened = client.open("a")
        harness.reactors[HOME].sessions.clear()
        assert code_of(client, opening(ticket=opened["ticket"])) == "session_closed"
        assert len(harness.gateway._conversations) == 0

    def test_admits_many_but_not_endlessly_many(self, harness):
        opened = harness.peer(TCP, key="K").open("a")
        first = harness.peer(TCP, key="first")
        first.open(ticket=opened["ticket"])
        for number in range(1100):
            joiner = harness.client(TCP, key=str(number), is_req=True)
            joiner.open(ticket=opened["ticket"])
            if number % 100 == 0:
                first.say(public.Interrupt(opened["session"]))
        [conversation] = harness.gateway._conversations._open.values()
        assert len(conversation.admitted) <= 1000
        assert first.heard() == [], "who uses it stays in"
        assert harness.client(TCP, key="K", is_req=True).open("a")


class TestWithoutName:
    def test_is_open_when_its_client_is_connected(self, harness):
        client, reactor = harness.peer(), harness.reactors[HOME]
        client.say(opening(), opening(""))
        harness.settle()
        first, second = client.heard()
        assert first["session"] != second["session"]
        assert [session.name for session in reactor.sessions.values()] == ["", ""]

    def test_is_refused_if_its_client_cannot_start(self, harness):
        harness.reactors[HOME].connect_error = ClientConnectError("no")
        client = harness.peer()
        assert code_of(client, opening()) == "client_connect_error"
        assert len(harness.gateway._conversations) == 0
        assert harness.gateway._conversations._counts == {}

    def test_is_refused_if_the_pool_refuses_it(self, harness):
        harness.reactors[HOME].open_error = QueueFull("max_sessions")
        assert code_of(harness.peer(), opening()) == "queue_full"
        assert harness.gateway._conversations._counts == {}

    def test_ends_with_the_last_connection_of_its_scope(self, harness):
        first, second = harness.peer(secret=SECRET), harness.peer(secret=SECRET)
        opened, reactor = first.open(client=FAR), harness.reactors[FAR]
        named = second.open("b", client=FAR)
        for _ in range(3):
            harness.pass_time(5.0)
            second.say(public.Ping())
        assert reactor.closed == [], "the first has gone"
        for _ in range(4):
            harness.pass_time(5.0)
        assert reactor.closed == [(100, False)]
        third = harness.peer(secret=SECRET)
        assert code_of(third, query(session=opened["session"])) == "session_closed"
        assert third.open("b", client=FAR)["session"] == named["session"]
        assert harness.gateway._conversations._counts == {"local": 1}

    def test_of_another_scope_stays(self, harness):
        harness.peer().open()
        stays = harness.peer()
        stays.open()
        for _ in range(4):
            harness.pass_time(5.0)
            stays.say(public.Ping())
        assert harness.reactors[HOME].closed == [(100, False)]

    def test_ends_if_its_peer_goes_before_it_is_open(self, harness):
        client = harness.peer()
        client.say(opening())
        harness.now += 15.0
        harness.gateway.go_on(harness.now)
        harness.settle()
        assert harness.reactors[HOME].sessions == {}
        assert len(harness.gateway._conversations) == 0
        assert harness.gateway._conversations._counts == {}


class TestPlaces:
    """How many conversations an owner may have."""

    def test_are_so_many_for_each_owner(self):
        harness = Harness(max_conversations=2)
        client, other = harness.peer(TCP, key="K"), harness.peer(TCP, key="L")
        client.open("a")
        client.open()
        for name in (None, "b"):
            assert code_of(client, opening(name)) == "queue_full"
        assert code_of(harness.peer(TCP, key="K"), opening("b")) == "queue_full"
        other.open("a")
        other.open("b")

    def test_do_not_count_for_who_joins(self):
        harness = Harness(max_conversations=1)
        first, second = harness.peer(), harness.peer()
        opened = first.open("a")
        assert second.open("a")["session"] == opened["session"]
        assert code_of(second, opening("b")) == "queue_full"

    def test_of_those_that_have_ended_are_free_for_their_successors(self):
        harness = Harness(max_conversations=1)
        client = harness.peer()
        client.open("a")
        harness.reactors[HOME].sessions.clear()
        client.open("a")
        assert code_of(client, opening("b")) == "queue_full"
        assert harness.gateway._conversations._counts == {"local": 1}

    def test_are_free_after_the_end(self):
        harness = Harness(max_conversations=1)
        client = harness.peer()
        for name in ("a", None, "b", None):
            session = client.open(name)["session"]
            assert reply_to(client, public.Close(new_id(), session, False))["type"] == "DONE"
        assert harness.gateway._conversations._counts == {}

    def test_are_free_after_an_end_without_a_word(self):
        harness = Harness(max_conversations=2)
        client = harness.peer()
        client.open("a")
        client.open()
        harness.reactors[HOME].sessions.clear()
        harness.pass_time(5.0)
        assert len(harness.gateway._conversations) == 0
        client.open("b")
        client.open("c")

    def test_are_taken_while_it_is_being_opened(self):
        harness = Harness(max_conversations=1)
        client = harness.peer()
        client.say(opening("a"))
        client.say(opening("b"))
        harness.settle()
        assert sorted(reply["type"] for reply in client.heard()) == ["ERROR", "OPENED"]


class TestClose:
    @pytest.mark.parametrize("is_drained", [False, True])
    def test_is_done_when_its_worker_has_gone(self, harness, is_drained):
        client = harness.peer()
        opened = client.open("a", client=FAR)
        message = public.Close(new_id(), opened["session"], is_drained)
        client.say(message)
        assert client.heard() == []
        assert harness.reactors[FAR].closed == [(100, is_drained)]
        harness.settle()
        assert client.one() == {"v": 1, "type": "DONE", "id": message.id}
        assert code_of(client, query(session=opened["session"])) == "session_closed"

    def test_twice_is_done_twice(self, harness):
        client = harness.peer()
        session = client.open("a")["session"]
        client.say(public.Close(new_id(), session, True), public.Close(new_id(), session, False))
        harness.settle()
        assert [reply["type"] for reply in client.heard()] == ["DONE", "DONE"]
        assert harness.gateway._conversations._counts == {}

    def test_that_is_sent_again_is_done_once(self, harness):
        client = harness.peer()
        message = public.Close(new_id(), client.open("a")["session"], False)
        done = reply_to(client, message)
        assert reply_to(client, message) == done
        assert len(harness.reactors[HOME].closed) == 1

    def test_lets_its_name_begin_anew_at_once(self, harness):
        client, reactor = harness.peer(), harness.reactors[HOME]
        session = client.open("a")["session"]
        close = reactor.close_session

        def close_slowly(number, *, drain):
            reactor.sessions[number].name = ""
            return close(number, drain=drain)

        reactor.close_session = close_slowly
        client.say(public.Close(new_id(), session, True), opening("a"))
        harness.settle()
        assert {reply["type"] for reply in client.heard()} == {"DONE", "OPENED"}
        assert len(harness.gateway._conversations) == 1
        assert harness.gateway._conversations._counts == {"local": 1}

    def test_of_none_is_refused(self, harness):
        assert code_of(harness.peer(), public.Close(new_id(), new_id(), False)) == "session_closed"


class TestInterrupt:
    @pytest.mark.parametrize("pool", [HOME, FAR])
    def test_reaches_the_pool_and_has_no_answer(self, harness, pool):
        client = harness.peer()
        session = client.open("a", client=pool)["session"]
        client.say(public.Interrupt(session))
        target = harness.home if pool == HOME else harness.reactors[pool]
        assert target.interrupted == [100]
        assert client.heard() == []

    def test_of_none_is_refused_without_an_id(self, harness):
        client = harness.peer()
        client.say(public.Interrupt(new_id()))
        error = client.one()
        assert (error["id"], error["code"]) == (None, "session_closed")


class TestCommand:
    def test_is_called(self, harness):
        client = harness.peer()
        session = client.open("a", client=FAR)["session"]
        message = public.Command(new_id(), session, "set_model", ["sonnet", 3])
        assert reply_to(client, message) == {"v": 1, "type": "DONE", "id": message.id}
        assert harness.reactors[FAR].commands == [(100, "set_model", ["sonnet", 3])]
        client.say(message)
        assert client.one()["type"] == "DONE"
        assert len(harness.reactors[FAR].commands) == 1

    @pytest.mark.parametrize("name", ["disconnect", "", "__init__", "set_model ", "query"])
    def test_is_among_the_operators(self, harness, name):
        client = harness.peer()
        session = client.open("a")["session"]
        assert code_of(client, public.Command(new_id(), session, name, [])) == "invalid_options"
        assert harness.reactors[HOME].commands == []

    @pytest.mark.parametrize("error", [ClientError("no"), ZeroDivisionError("of its own")])
    def test_may_fail(self, harness, error):
        client = harness.peer()
        session = client.open("a")["session"]
        harness.reactors[HOME].command_error = error
        message = public.Command(new_id(), session, "compact", [])
        client.say(message)
        harness.settle()
        reply = client.one()
        assert (reply["type"], reply["id"]) == ("ERROR", message.id)

    def test_of_none_is_refused(self, harness):
        message = public.Command(new_id(), new_id(), "set_model", [])
        assert code_of(harness.peer(), message) == "session_closed"


class TestStatusOfOne:
    def test_tells_how_it_is(self, harness):
        client = harness.peer(TCP, key="K")
        opened = client.open("a")
        message = public.Status(new_id(), opened["session"])
        report = reply_to(client, message)
        assert (report["type"], report["id"]) == ("REPORT", message.id)
        status = report["status"]
        assert status["name"] == "a", "as its owner calls it"
        joiner = harness.peer(TCP, key="another")
        joiner.open(ticket=opened["ticket"])
        message = public.Status(new_id(), opened["session"])
        assert reply_to(joiner, message)["status"]["name"] == "", "and nobody else"
        assert (status["state"], status["incarnation"], status["queued"]) == ("idle", 1, 0)
        assert (status["answered"], status["pid"], status["endpoint"]) == (4, 4711, "")

    def test_is_empty_when_it_is_over(self, harness):
        client = harness.peer()
        session = client.open("a")["session"]
        harness.reactors[HOME].sessions.clear()
        assert reply_to(client, public.Status(new_id(), session))["status"] == {}

    def test_is_answered_anew_each_time(self, harness):
        client = harness.peer()
        session = client.open()["session"]
        message = public.Status(new_id(), session)
        assert reply_to(client, message)["status"]["name"] == ""
        harness.reactors[HOME].sessions.clear()
        assert reply_to(client, message)["status"] == {}

    def test_of_none_is_refused(self, harness):
        assert code_of(harness.peer(), public.Status(new_id(), new_id())) == "session_closed"


def test_a_conversation_goes_on_when_all_its_peers_have_gone(harness):
    client = harness.peer(TCP, secret=SECRET)
    opened = client.open("a")
    client.ask(session=opened["session"]).settle(answer())
    for _ in range(4):
        harness.pass_time(5.0)
    again = harness.peer(TCP, secret=SECRET)
    assert again.ask(session=opened["session"]).session == 100
    assert again.open("a")["session"] == opened["session"]
    forget_all(harness, again)
    assert again.open("a")["session"] == opened["session"]


class TestFree:
    def test_is_what_was_asked_when_it_is_answered(self, harness):
        client = harness.peer()
        with nothing_for_the_collector():
            for name in ("a", "a", None):
                session = client.open(name)["session"]
                reply_to(client, public.Status(new_id(), session))
                reply_to(client, public.Command(new_id(), session, "compact", []))
            reply_to(client, public.Status(new_id(), None))
            reply_to(client, public.Close(new_id(), session, True))
            harness.pass_time(5.0)  # and it looks which have ended
            harness.settle()


class TestThoseThatEndedByThemselves:
    @pytest.mark.parametrize("count", [3, 100])
    def test_are_found_a_part_at_a_time_and_all_soon(self, count):
        harness = Harness(max_conversations=count)
        for number in range(count):
            harness.peer().open(str(number))
        harness.reactors[HOME].sessions.clear()
        left = []
        for _ in range(12):
            harness.pass_time(5.0)
            left.append(len(harness.gateway._conversations))
        assert left[-1] == 0
        assert count - left[0] == min(count, 12)
