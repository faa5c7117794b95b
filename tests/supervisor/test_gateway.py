"""A gateway as a whole: its turns, its report, and peers that say anything in any order."""

import itertools

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from soloist.protocol import public, public_codec
from soloist.protocol.errors import ClientConnectError, QueueFull, SessionLost
from soloist.supervisor.control import ControlRequest
from soloist.supervisor.gateway import MAX_READ, OBEY_S
from soloist.supervisor.patience import PERIOD_S
from tests.fake_gateway import (
    FAR,
    HOME,
    IPC,
    MESSAGE,
    RESULT,
    SECRET,
    TCP,
    Client,
    Harness,
    answer,
    new_id,
    opening,
    query,
)

PING = public_codec.encode(public.Ping())


@pytest.fixture
def harness():
    return Harness()


class TestTurns:
    def test_read_so_many_messages_of_each_socket_at_once(self, harness):
        local, remote = harness.peer(IPC), harness.peer(TCP)
        for client in (local, remote):
            client.channel.arrived.extend([([client.address, PING], "")] * (MAX_READ + 2))
        harness.gateway.take()
        assert (len(local.heard()), len(remote.heard())) == (1 + MAX_READ, MAX_READ)
        assert harness.gateway.has_input()
        harness.gateway.take()
        assert (len(local.heard()), len(remote.heard())) == (1, 2)
        assert not harness.gateway.has_input()

    def test_do_what_was_said_for_so_long(self, harness):
        """Conversations go on only between, so that what many peers say must not take long."""
        client = harness.peer()
        client.channel.arrived.extend([([client.address, PING], "")] * 4)
        times = itertools.count(step=OBEY_S)
        harness.gateway._clock = lambda: next(times)
        for count in (2, 1, 1):  # with the one that comes first
            assert harness.gateway.has_input()
            harness.gateway.take()
            assert len(client.heard()) == count
        assert not harness.gateway.has_input()

    def test_serve_who_comes_first_at_once_unless_others_were_before(self, harness):
        harness.have_all_cost(0.001)
        loud, quiet = harness.peer(), harness.peer()
        channel = loud.channel
        channel.sent.clear()
        channel.arrived.extend([([loud.address, PING], ""), ([quiet.address, PING], "")])
        channel.arrived.extend([([loud.address, PING], "")] * 2)
        times = itertools.count(step=OBEY_S)
        harness.gateway._clock = lambda: next(times)
        for _ in range(3):
            harness.gateway.take()
        order = [envelope[0] for envelope, _ in channel.sent]
        assert order == [loud.address, quiet.address, loud.address, loud.address]

    def test_serve_first_who_has_cost_least(self, harness):
        harness.have_all_cost(0.001)
        loud, quiet = harness.peer(), harness.peer()
        harness.order((loud, PING))
        assert harness.order((loud, PING), (loud, PING), (quiet, PING)) == [quiet, loud, loud]

    def test_charge_more_for_what_is_no_message(self, harness):
        harness.have_all_cost(0.001)
        babbler, loud = harness.peer(), harness.peer()
        harness.order((babbler, b"?"), *[(loud, PING)] * 9)
        assert harness.order((babbler, PING), (loud, PING)) == [loud, babbler]

    def test_hear_no_more_from_who_makes_too_many_mistakes(self):
        harness = Harness(max_protocol_errors=3)
        babbler, other = harness.peer(), harness.peer()
        babbler.arrive(*[b"?"] * 4)
        *errors, last = babbler.heard()
        assert [error["code"] for error in [*errors, last]] == ["protocol_error"] * 5
        assert "max_protocol_errors" in last["message"]
        assert not any("max_protocol_errors" in error["message"] for error in errors)
        babbler.arrive(PING, b"?", PING)
        other.arrive(PING)
        assert babbler.heard() == []
        assert other.one()["type"] == "PONG"
        harness.now += PERIOD_S
        babbler.arrive(PING)
        assert babbler.one()["type"] == "PONG"

    def test_leave_alone_who_makes_few(self):
        harness = Harness(max_protocol_errors=3)
        peer = harness.peer()
        for _ in range(10):
            peer.arrive(*[b"?"] * 3)
            harness.now += PERIOD_S
        assert len(peer.heard()) == 30
        peer.arrive(PING)
        assert peer.one()["type"] == "PONG"

    def test_what_was_asked_before_the_mistakes_is_answered(self):
        harness = Harness(max_protocol_errors=1)
        peer = harness.peer()
        request = peer.ask()
        peer.arrive(b"?", b"?")
        peer.heard()
        request.settle(answer(RESULT))
        harness.settle()
        assert peer.one()["type"] == "RESULT"

    def test_who_is_not_heard_is_there_all_the_same(self):
        """Else its heartbeats would not count, and saying hello again would help it."""
        harness = Harness(max_protocol_errors=1, heartbeat_s=1.0)
        peer = harness.peer()
        peer.arrive(b"?", b"?")
        peer.heard()
        for _ in range(9):
            peer.arrive(PING)
            harness.pass_time(1.0)
        harness.now += PERIOD_S - 9.0
        peer.arrive(PING)
        assert peer.one()["type"] == "PONG"

    def test_a_bad_prompt_is_no_such_mistake(self):
        """It is answered under its id, and so must be what its sender asks next."""
        harness = Harness(max_protocol_errors=1)
        peer = harness.peer()
        for _ in range(5):
            bad = {"v": 1, "type": "QUERY", "id": new_id(), "prompt": 5}
            peer.arrive(msgpack.packb(bad, use_bin_type=True))
            assert peer.one()["id"] == bad["id"]
        peer.ask()

    def test_nor_is_what_comes_through_its_connection_from_another(self):
        harness = Harness(max_protocol_errors=1)
        peer = harness.peer()
        behind = Client(harness, IPC, is_req=True)
        behind.address, behind.envelope = peer.address, (peer.address, b"behind", b"")
        behind.arrive(*[b"?"] * 5)
        assert len(behind.heard()) == 5
        peer.arrive(PING)
        assert peer.one()["type"] == "PONG"
        peer.arrive(b"?", b"?")  # and now it is silenced itself, and no other
        behind.say(public.Status(new_id(), None))
        harness.settle()
        assert behind.one()["type"] == "REPORT"

    def test_mistakes_of_strangers_are_answered_each(self):
        harness = Harness(max_protocol_errors=1)
        stranger = harness.client()
        stranger.arrive(*[b"?"] * 5)
        assert len(stranger.heard()) == 5

    def test_have_strangers_share_an_account(self, harness):
        """A new connection costs nothing, and must not be a way to come first."""
        harness.have_all_cost(0.001)
        known, first, second = harness.peer(), harness.client(), harness.client()
        harness.order((first, PING), (known, PING), (first, PING))
        assert harness.order((second, PING), (known, PING)) == [known, second]

    def test_look_at_every_socket(self, harness):
        sources = harness.gateway.sources()
        assert [source for source, _ in sources] == [c.fileno() for c in harness.channels]
        for _, wake in sources:
            wake()
        assert [channel.wakes for channel in harness.channels] == [1, 1]

    def test_end_with_the_sockets(self, harness):
        harness.gateway.close()
        assert harness.is_closed


class TestReport:
    def test_tells_of_all_pools(self, harness):
        client = harness.peer(TCP)
        client.ask()
        client.ask(client=FAR).settle(answer())
        harness.settle()
        client.heard()
        message = public.Status(new_id(), None)
        client.say(message)
        assert client.heard() == [], "the far pool has not answered yet"
        harness.settle()
        report = client.one()
        assert (report["type"], report["id"]) == ("REPORT", message.id)
        status = report["status"]
        assert (status["peers"], status["requests"], status["kept"]) == (1, 1, 1)
        assert list(status["clients"]) == [HOME, FAR]
        for pool in status["clients"].values():
            assert (pool["size"], pool["queued"], pool["running"]) == (2, 1, 2)
            assert (pool["answered"], pool["failed"], pool["cancelled"]) == (3, 4, 5)
            assert (pool["restarts"], pool["workers"]) == (6, [])

    def test_waits_for_the_last_pool_whichever_it_is(self, harness):
        for first, second in ((HOME, FAR), (FAR, HOME)):
            client = harness.peer()
            client.say(public.Status(new_id(), None))
            for name in (first, second):
                harness.reactors[name].orders.popleft()()
                while harness.home.inbox.calls:
                    harness.home.inbox.calls.popleft()()
                assert len(client.heard()) == (name == second)

    def test_tells_names_to_local_peers_alone(self, harness):
        local, remote = harness.peer(IPC), harness.peer(TCP, key="K")
        local.open("a")
        remote.open("b", client=FAR)
        for client in (local, remote):
            client.say(public.Status(new_id(), None))
            harness.settle()
            for pool in client.one()["status"]["clients"].values():
                assert len(pool.get("sessions", ())) == (client is local)

    def test_is_answered_anew_each_time(self, harness):
        client, message = harness.peer(), public.Status(new_id(), None)
        for peers in (1, 2):
            client.say(message)
            harness.settle()
            assert client.one()["status"]["peers"] == peers
            harness.peer()

    def test_of_a_peer_that_has_gone_is_lost(self, harness):
        client = harness.peer()
        client.say(public.Status(new_id(), None))
        client.leave()
        harness.settle()
        assert harness.status()["peers"] == 0


JUNK = st.one_of(
    st.binary(max_size=20),
    st.recursive(
        st.none() | st.integers(-1, 2**64 - 1) | st.text(max_size=3) | st.binary(max_size=17),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ).map(msgpack.packb),
    st.builds(
        lambda kind, fields: msgpack.packb({"v": 1, "type": kind, **fields}),
        st.sampled_from([*public.OF_GATEWAY, "RESULT", "NOBODY"]),
        st.dictionaries(
            st.sampled_from(["id", "prompt", "session", "name", "number", "bytes", "ticket"]),
            st.none() | st.integers(0, 9) | st.binary(min_size=15, max_size=16) | st.text(),
            max_size=4,
        ),
    ),
)
OUTCOMES = {"QUERY", "OPEN", "CLOSE", "COMMAND"}
ENDS = {"RESULT", "ERROR", "OPENED", "DONE"}


class GatewayWalk(RuleBasedStateMachine):
    """Several programs say anything, and everything that can fail fails now and then.

    An id that comes again comes with ``resent``, as the specification wants it.
    """

    @initialize(nothing_kept=st.booleans())
    def begin_walk(self, nothing_kept):
        self.harness = Harness(
            pool={"control_timeout_s": 0.0},
            max_peers=6,
            max_connections=2,
            max_requests=6,
            max_queued_bytes=60,
            max_outcome_bytes=0 if nothing_kept else 3000,
            max_ids=0 if nothing_kept else 5,
            max_conversations=2,
        )
        self.harness.home.on_submit = self.submitted
        far = self.harness.reactors[FAR]
        far.submit = lambda requests: [self.submitted(request) for request in requests]
        self.clients = []
        self.running = []
        self.seen = set()
        self.ids = []
        self.handles = [new_id()]
        self.tickets = [new_id()]
        self.asked = []  # by REQ sockets: (client, envelope)
        for place, whose in ((IPC, "nobody"), (TCP, "secret"), (TCP, "key"), (IPC, "req")):
            self.come(place, whose)

    def submitted(self, request):
        exchange = getattr(request.sink, "_exchange", request.sink)
        name = (exchange.scope.name, exchange.id)
        assert name not in self.seen, "it runs twice"
        self.seen.add(name)
        request.order = len(self.seen)
        self.running.append(request)

    # -- peers -----------------------------------------------------------------------------------

    @rule(
        place=st.sampled_from([IPC, TCP]),
        whose=st.sampled_from(["nobody", "secret", "key", "req", "req with key"]),
    )
    def come(self, place, whose):
        key = "K" if "key" in whose else ""
        client = self.harness.client(place, key=key, is_req="req" in whose)
        self.clients.append(client)
        if "req" not in whose:
            client.say(public.Hello([1], SECRET if whose == "secret" else None))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def go(self, data):
        client = data.draw(st.sampled_from(self.clients))
        self.clients.remove(client)
        client.leave()

    @rule(seconds=st.sampled_from([1.0, 5.0, 15.0, 100.0, 300.0]))
    def pass_time(self, seconds):
        self.harness.now += seconds
        self.harness.gateway.go_on(self.harness.now)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def say(self, data):
        client = data.draw(st.sampled_from(self.clients))
        for _ in range(data.draw(st.integers(1, 5))):
            self.send(client, public_codec.encode(data.draw(self.messages())))

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), pool=st.sampled_from([HOME, FAR]), is_finished=st.booleans())
    def ask(self, data, pool, is_finished):
        client = data.draw(st.sampled_from(self.clients))
        is_req = len(client.envelope) > 1
        asked = query(
            prompt="x",
            client=pool,
            is_streamed=not is_req,
            on_disconnect="finish" if is_finished else "cancel",
            has_control=data.draw(st.booleans()),
        )
        self.ids.append(asked.id)
        self.send(client, public_codec.encode(asked))

    @precondition(lambda self: self.clients)
    @rule(
        data=st.data(),
        pool=st.sampled_from([HOME, FAR]),
        name=st.sampled_from([None, "a", "b"]),
        is_quick=st.booleans(),
    )
    def open(self, data, pool, name, is_quick):
        message = opening(name, client=pool)
        self.ids.append(message.id)
        client = data.draw(st.sampled_from(self.clients))
        self.send(client, public_codec.encode(message))
        if is_quick:
            self.harness.settle()
            self.learn(client)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), payload=JUNK)
    def say_junk(self, data, payload):
        self.send(data.draw(st.sampled_from(self.clients)), payload)

    def send(self, client, payload):
        if len(client.envelope) > 1:  # each time another, as with ZMQ_REQ_CORRELATE
            client.envelope = (client.address, new_id(), b"")
            self.asked.append((client, client.envelope))
        client.arrive(payload)
        self.learn(client)

    def learn(self, client):
        for reply in client.replies:
            if reply["type"] == "OPENED":
                self.handles.append(reply["session"])
                self.tickets.append(reply["ticket"])

    @st.composite
    def messages(draw, self):
        kind = draw(st.sampled_from([*["QUERY"] * 6, *["OPEN"] * 4, *sorted(public.OF_GATEWAY)]))
        is_again = bool(self.ids) and draw(st.booleans())
        about = draw(st.sampled_from(self.ids)) if is_again else new_id()
        if kind in OUTCOMES and not is_again:
            self.ids.append(about)
        handle = draw(st.sampled_from(self.handles))
        pool = draw(st.sampled_from([None, HOME, FAR, "nobody"]))
        match kind:
            case "QUERY":
                return query(
                    about,
                    prompt="x" * draw(st.integers(0, 40)),
                    is_streamed=draw(st.booleans()),
                    session=draw(st.sampled_from([None, handle])),
                    client=pool,
                    on_disconnect=draw(st.sampled_from(["cancel", "finish"])),
                    resent=self.harness.gateway._epoch if is_again else None,
                    has_control=draw(st.booleans()),
                )
            case "OPEN":
                return opening(
                    draw(st.sampled_from([None, "", "a", "b"])),
                    id=about,
                    client=pool,
                    ticket=draw(st.sampled_from([None, *self.tickets])),
                    max_queue=draw(st.sampled_from([None, 0, 5])),
                )
            case "CLOSE":
                return public.Close(about, handle, draw(st.booleans()))
            case "COMMAND":
                name = draw(st.sampled_from(["set_model", "compact", "no"]))
                return public.Command(about, handle, name, [1])
            case "CREDIT":
                return public.Credit(about, draw(st.integers(0, 5000)))
            case "CONTROL_REPLY":
                return public.ControlReply(about, draw(st.integers(0, 3)), {})
            case "STATUS":
                return public.Status(about, draw(st.sampled_from([None, handle])))
            case "HELLO":
                return public.Hello(draw(st.sampled_from([[1], [2]])), SECRET)
            case "INTERRUPT":
                return public.Interrupt(handle)
        return public.OF_GATEWAY[kind](*(about,) if kind == "CANCEL" else ())

    # -- pools -----------------------------------------------------------------------------------

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_answer=st.booleans())
    def end(self, data, is_answer):
        request = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        request.settle(answer(MESSAGE, RESULT) if is_answer else SessionLost("gone"))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def stream(self, data):
        request = data.draw(st.sampled_from(self.running))
        if request.is_streamed:
            request.sink.stream(request, MESSAGE)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ask_the_peer(self, data):
        request = data.draw(st.sampled_from(self.running))
        if request.on_control is not None:
            with pytest.raises(Exception, match="no peer has answered"):
                request.on_control(ControlRequest("permission", {}, "", ""))

    @rule(pool=st.sampled_from([HOME, FAR]), is_home=st.booleans())
    def do_something(self, pool, is_home):
        reactor, inbox = self.harness.reactors[pool], self.harness.home.inbox
        if reactor.orders:
            reactor.orders.popleft()()
        if is_home and inbox.calls:
            inbox.calls.popleft()()

    @rule()
    def do_all(self):
        self.harness.settle()

    @rule(pool=st.sampled_from([HOME, FAR]), is_full=st.booleans(), is_broken=st.booleans())
    def fail(self, pool, is_full, is_broken):
        reactor = self.harness.reactors[pool]
        reactor.open_error = QueueFull("max_sessions") if is_full else None
        reactor.connect_error = ClientConnectError("no") if is_broken else None
        reactor.command_error = ZeroDivisionError("no") if is_broken else None

    @rule(pool=st.sampled_from([HOME, FAR]))
    def lose_sessions(self, pool):
        self.harness.reactors[pool].sessions.clear()

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def the_bounds_hold(self):
        if not hasattr(self, "harness"):
            return
        gateway, limits = self.harness.gateway, self.harness.gateway._limits
        assert len(gateway._peers) <= limits.max_peers
        for scope in gateway._outcomes._scopes.values():
            assert scope.peers <= limits.max_connections
            assert len(scope.requests) <= limits.max_requests
        for peer in gateway._peers._peers.values():
            assert gateway._outcomes.scope(peer.scope.name, is_lasting=False) is peer.scope
        assert all(0 < n <= limits.max_conversations + 1 for n in self.counts().values())
        assert gateway._outcomes._kept_bytes <= limits.max_outcome_bytes
        assert gateway._outcomes._ids <= limits.max_ids

    def counts(self):
        return self.harness.gateway._conversations._counts

    def teardown(self):
        """When all has ended and everybody has gone, nothing is left."""
        if not hasattr(self, "harness"):
            return
        harness, gateway = self.harness, self.harness.gateway
        harness.settle()
        for request in self.running:
            request.settle(answer())
        harness.settle()
        self.req_sockets_had_one_reply_to_everything()
        assert gateway._outcomes.requests == 0
        assert gateway._waiting == {}
        for reactor in harness.reactors.values():
            reactor.sessions.clear()
        for _ in range(4):  # one beat to notice, one to forget, one for what that drove out
            harness.pass_time(400.0)
        assert (len(gateway._peers), gateway._peers.has_lost) == (0, False)
        conversations = vars(gateway._conversations)
        assert all(not conversations[name] for name in ("_open", "_names", "_tickets", "_counts"))
        scopes = gateway._outcomes._scopes.values()
        assert all(scope.is_lasting and scope.ids for scope in scopes)
        assert sum(len(scope.ids) for scope in scopes) <= gateway._limits.max_ids
        assert (gateway.next_deadline() == float("inf")) == (not scopes)

    def req_sockets_had_one_reply_to_everything(self):
        for client, envelope in self.asked:
            replies = [reply for to, reply in client.channel.sent if to == envelope]
            assert len(replies) <= 1
            assert client not in self.clients or not replies or replies[0]["type"] != "CONTROL"


TestGatewayWalk = GatewayWalk.TestCase
TestGatewayWalk.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
