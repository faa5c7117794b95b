"""The gateway with a socket and workers that are played: whatever peers and workers do, in any
order, every peer that listens hears each outcome once, and no prompt runs twice."""

import collections
import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from soloist.protocol import public, public_codec
from soloist.protocol.errors import RequestCancelled, WorkerLost
from soloist.protocol.messages import Answer
from soloist.protocol.public import SILENT_HEARTBEATS
from soloist.supervisor.conversations import ServedPool
from soloist.supervisor.gateway import Gateway
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.peers import GatewayLimits

LIMITS = GatewayLimits(
    heartbeat_s=1.0, max_peers=6, max_connections=3, max_requests=4, max_outcome_bytes=4_000,
    max_ids=6, retention_s=20.0,
)  # fmt: skip
SECRETS = (b"1" * 16, b"2" * 16, None)


class Socket:
    """What peers say, and what they hear; also the gateway's only channel."""

    is_local = False

    def __init__(self):
        self.said = collections.deque()
        self.heard = []
        self.unreachable = set()

    @property
    def channels(self):
        return [self]

    def has_input(self):
        return bool(self.said)

    def receive(self):
        if not self.said:
            return None
        envelope, message = self.said.popleft()
        return [*envelope, public_codec.encode(message)], ""

    def send(self, envelope, data):
        if envelope[0] in self.unreachable:
            return False
        self.heard.append((envelope[0], public_codec.decode_reply(data)))
        return True

    def close(self):
        pass


class Home:
    """The I/O thread's side: what is submitted and cancelled."""

    def __init__(self):
        self.inbox = Inbox()
        self.waiting = []
        self.cancelled = []

    def submit(self, request):
        request.worker, request.attempts = 0, 1
        self.waiting.append(request)

    def cancel(self, requests, error=None):
        self.cancelled += [request for request in requests if request in self.waiting]


class Connection:
    """One peer, as the model sees it."""

    def __init__(self, address, secret, is_req=False):
        self.address = address
        self.owner = secret or address
        self.envelope = (address, b"") if is_req else (address,)


class GatewayMachine(RuleBasedStateMachine):
    """Knows of every id who waits for it, how often it ran and what came of it."""

    @initialize()
    def begin(self):
        self.now = 1000.0
        self.socket, self.home = Socket(), Home()
        pool = ServedPool(None, max_payload_bytes=1_000, credit_bytes=1_000)
        clock = lambda: self.now  # noqa: E731
        self.gateway = Gateway(self.home, {"echo": pool}, LIMITS, self.socket, clock=clock)
        self.peers = []  # who is there
        self.waits = {}  # who waits for an id of an owner's: its connection
        self.runs = collections.Counter()
        self.outcomes = {}
        self.ids = {}  # the request of an id, while it runs
        self.finish = set()
        self.numbers = itertools.count(1)
        self.epoch = None

    def teardown(self):
        if hasattr(self, "home"):
            self.home.inbox.close()

    # -- what happens

    @rule(secret=st.sampled_from(SECRETS))
    def connect(self, secret):
        peer = Connection(b"\0%04d" % next(self.numbers), secret)
        [said] = self.say(peer, public.Hello([1], secret))
        if isinstance(said, public.Welcome):
            self.peers.append(peer)
            assert self.epoch in {None, said.epoch}
            self.epoch = said.epoch
        else:
            assert said.info.code == "queue_full"
            same = sum(p.owner == peer.owner for p in self.peers)
            assert same >= LIMITS.max_connections or self.is_full()

    def is_full(self):
        """Those that are gone may hold a place until they are found out."""
        return len(self.peers) + len(self.socket.unreachable) >= LIMITS.max_peers

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), outlives=st.booleans(), is_req=st.booleans())
    def ask(self, data, outlives, is_req):
        peer = data.draw(st.sampled_from(self.peers))
        if is_req:
            peer = Connection(b"\0%04d" % next(self.numbers), None, is_req=True)
        request_id = b"%016d" % next(self.numbers)
        before = len(self.home.waiting)
        said = self.say(peer, self.query(request_id, outlives))
        if len(self.home.waiting) == before:
            assert [error.info.code for error in said] == ["queue_full"]
            assert self.running(peer.owner) >= LIMITS.max_requests
            return
        assert {type(message) for message in said} <= {public.Accepted}
        assert not (is_req and said)
        key = peer.owner, request_id
        self.begun(key, peer)
        if outlives:
            self.finish.add(key)

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def ask_again(self, data):
        key, peer = data.draw(st.sampled_from(self.known()))
        before = len(self.home.waiting)
        said = self.say(peer, self.query(key[1], resent=self.epoch))
        assert len(self.home.waiting) == before, "it would run a second time"
        if key in self.ids:
            assert said == []
            self.waits[key] = peer
        else:
            [outcome] = said
            code = outcome.info.code if isinstance(outcome, public.Error) else None
            assert code == "outcome_unknown" or self.outcomes[key] in (None, outcome)

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), is_ours=st.booleans())
    def send_what_never_arrived(self, data, is_ours):
        peer = data.draw(st.sampled_from(self.peers))
        request_id = b"%016d" % next(self.numbers)
        before = len(self.home.waiting)
        epoch = self.epoch if is_ours else b"another epoch..."
        said = self.say(peer, self.query(request_id, resent=epoch))
        if len(self.home.waiting) > before:
            assert is_ours
            self.begun((peer.owner, request_id), peer)
        else:
            assert said[0].info.code in {"outcome_unknown", "queue_full"}

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def cancel(self, data):
        key, peer = data.draw(st.sampled_from(self.known()))
        before = len(self.home.cancelled)
        assert self.say(peer, public.Cancel(key[1])) == []
        assert len(self.home.cancelled) == before + (key in self.ids)

    @precondition(lambda self: self.home.waiting)
    @rule(data=st.data(), ends=st.sampled_from(["answer", "death"]), size=st.integers(0, 900))
    def a_worker_ends(self, data, ends, size):
        request = data.draw(st.sampled_from(self.home.waiting))
        self.settle(request, is_lost=ends == "death", size=size)

    @precondition(lambda self: self.home.cancelled)
    @rule()
    def a_cancelled_one_ends(self):
        self.settle(self.home.cancelled[0])

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def vanish(self, data):
        peer = data.draw(st.sampled_from(self.peers))
        self.peers.remove(peer)
        self.socket.unreachable.add(peer.address)

    @rule(beats=st.sampled_from([1, SILENT_HEARTBEATS, 25]))
    def time_passes(self, beats):
        for _ in range(beats):
            self.now += LIMITS.heartbeat_s
            for peer in self.peers:
                assert self.say(peer, public.Ping()) == [public.Pong()]
            self.gateway.go_on(self.now)
        if beats >= SILENT_HEARTBEATS:
            for key, request in self.ids.items():
                is_gone = self.waits[key].address in self.socket.unreachable
                assert not is_gone or key in self.finish or request in self.home.cancelled
            self.socket.unreachable.clear()

    # -- what is known

    def say(self, peer, message):
        """Give what that peer hears of it; nobody else hears anything."""
        self.socket.heard.clear()
        self.socket.said.append((peer.envelope, message))
        while self.gateway.has_input():
            self.gateway.take()
        others = [said for address, said in self.socket.heard if address != peer.address]
        if type(message) is public.Hello:  # are they still there?
            others = [said for said in others if said != public.Pong()]
        assert others == []
        return [said for address, said in self.socket.heard if address == peer.address]

    def query(self, request_id, outlives=False, resent=None):
        on_disconnect = "finish" if outlives else "cancel"
        return public.Query(
            request_id, "hello", None, is_streamed=False, on_disconnect=on_disconnect, resent=resent
        )

    def known(self):
        """Every id that one who is there may send again, and who."""
        keys = [*self.ids, *self.outcomes]
        return [(key, peer) for key in keys for peer in self.peers if peer.owner == key[0]]

    def running(self, owner):
        return sum(key[0] == owner for key in self.ids)

    def begun(self, key, peer):
        self.runs[key] += 1
        self.ids[key] = self.home.waiting[-1]
        self.waits[key] = peer

    def settle(self, request, *, is_lost=False, size=0):
        """Let it end; whoever waits for it hears that, once, and nobody else."""
        self.socket.heard.clear()
        self.home.waiting.remove(request)
        outcome = Answer(0, 0.1, "x" * size, 1, b"\x90")
        if request in self.home.cancelled:
            self.home.cancelled = [r for r in self.home.cancelled if r is not request]
            outcome = RequestCancelled("cancelled")
        elif is_lost:
            outcome = WorkerLost("it died")
        [key] = [key for key, running in self.ids.items() if running is request]
        del self.ids[key]
        peer = self.waits.pop(key)
        request.settle(outcome)
        heard = list(self.socket.heard)
        if peer.address not in self.socket.unreachable and self.is_there(peer):
            [(address, reply)] = heard
            assert address == peer.address
            assert reply.id == key[1]
            self.outcomes[key] = reply
        else:
            assert heard == []
            self.outcomes[key] = None
        while self.gateway.has_input():
            self.gateway.take()

    def is_there(self, peer):
        return peer in self.peers or len(peer.envelope) > 1

    @invariant()
    def nothing_runs_twice(self):
        assert all(count == 1 for count in self.runs.values())

    @invariant()
    def bounds_hold(self):
        assert len(self.gateway._peers) <= LIMITS.max_peers
        scopes = self.gateway._outcomes._scopes.values()
        assert all(scope.peers <= LIMITS.max_connections for scope in scopes)
        assert self.gateway._outcomes.requests == len(self.ids) == len(self.home.waiting)
        owners = collections.Counter(owner for owner, _ in self.ids)
        assert all(count <= LIMITS.max_requests for count in owners.values())
        kept = self.gateway._outcomes._kept_bytes
        assert kept <= LIMITS.max_outcome_bytes
        assert self.gateway._outcomes._ids <= LIMITS.max_ids
        assert sum(self.gateway._waiting.values()) == len(self.ids)


GatewayMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = GatewayMachine.TestCase
