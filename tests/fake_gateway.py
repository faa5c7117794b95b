"""A gateway without sockets, threads or workers: peers say words, pools do what the test says."""

import collections
import itertools
from concurrent.futures import Future
from types import SimpleNamespace

import msgpack

from soloist.protocol import codec, public, public_codec
from soloist.protocol import content as c
from soloist.protocol.errors import InvalidOptions, SupervisorClosed
from soloist.protocol.messages import Answer
from soloist.supervisor.brokers import Address
from soloist.supervisor.conversations import ServedPool
from soloist.supervisor.gateway import Gateway
from soloist.supervisor.peers import GatewayLimits
from soloist.supervisor.results import SessionStats, Stats

HOME, FAR = "echo", "claude"
IPC, TCP = 0, 1
"""The places of the gateway's two sockets."""
MAX_PROMPT_BYTES = 100
MESSAGE = codec.encode_message(c.SystemMessage("said", {"x": 1}))
RESULT = codec.encode_message(c.ResultMessage("success", 3, 0, False, 1, "s", result="hello"))
SECRET = bytes(range(16))

_numbers = itertools.count(1)


def new_id():
    return next(_numbers).to_bytes(16, "big")


def query(query_id=None, *, prompt="hello", **fields):
    """A QUERY with the defaults of the specification."""
    return public.Query(query_id or new_id(), prompt, None, False)._replace(**fields)


def opening(name=None, **fields):
    """An OPEN of which nothing but the name is said."""
    return public.Open(new_id(), name, None, None, None, None)._replace(**fields)


def answer(*messages, text="hello"):
    return Answer(1, 0.0125, text, 3, codec.join(list(messages)))


class FakeChannel:
    """What arrived at one socket, and what it sent; whose address is in ``gone`` cannot hear."""

    def __init__(self, *, is_local):
        self.is_local = is_local
        self.arrived = collections.deque()
        self.sent = []
        self.gone = set()
        self.wakes = 0

    def fileno(self):
        return 77 + self.is_local

    def wake(self):
        self.wakes += 1

    def has_input(self):
        return bool(self.arrived)

    def receive(self):
        return self.arrived.popleft() if self.arrived else None

    def send(self, envelope, data):
        if envelope[0] in self.gone:
            return False
        self.sent.append((envelope, msgpack.unpackb(data)))
        return True


class FakeInbox:
    """What is to be done on the gateway's thread."""

    def __init__(self):
        self.calls = collections.deque()

    def post(self, call):
        self.calls.append(call)


class FakeHome:
    """The thread of the home pool: what it was asked to run and to end."""

    def __init__(self):
        self.inbox = FakeInbox()
        self.requests = []
        self.cancelled = []
        self.interrupted = []
        self.on_submit = self.requests.append

    def submit(self, request):
        self.on_submit(request)

    def cancel(self, requests, error=None):
        self.cancelled += [(request, error) for request in requests]

    def interrupt(self, number):
        self.interrupted.append(number)


class FakeReactor:
    """Another thread's pool: its orders wait in ``orders`` until the test has them done."""

    def __init__(self):
        self.orders = collections.deque()
        self.requests = []
        self.cancelled = []
        self.interrupted = []
        self.commands = []
        self.closed = []
        self.sessions = {}
        self.is_closed = False
        self.open_error = self.connect_error = self.command_error = None
        self._session_numbers = itertools.count(100)

    def do(self, order):
        future = Future()

        def run():
            try:
                future.set_result(order())
            except Exception as error:
                future.set_exception(error)

        self.orders.append(run)
        return future

    def submit(self, requests):
        if self.is_closed:
            raise SupervisorClosed("the Supervisor is closed", started=False)
        self.requests += requests

    def cancel(self, requests, error=None):
        self.cancelled += [(request, error) for request in requests]

    def open_session(self, name, limits, ready=None):
        return self.do(lambda: self._open(name, limits, ready))

    def _open(self, name, limits, ready):
        if self.open_error is not None:
            raise self.open_error
        for number, session in self.sessions.items():
            if name and session.name == name:
                if session.limits != limits:
                    raise InvalidOptions(f"it is open with {session.limits}")
                return Address(number, f"ipc://{number}")
        number = next(self._session_numbers)
        if ready is not None and self.connect_error is not None:
            ready.set_exception(self.connect_error)
            return Address(number, "")
        self.sessions[number] = SimpleNamespace(name=name, limits=limits)
        if ready is not None:
            ready.set_result(None)
        return Address(number, f"ipc://{number}" if name else "")

    def interrupt_session(self, number):
        self.interrupted.append(number)

    def close_session(self, number, *, drain):
        self.closed.append((number, drain))
        return self.do(lambda: self.sessions.pop(number, None) and None)

    def session_stats(self, number):
        return self.do(lambda: self._session_stats(number))

    def _session_stats(self, number):
        session = self.sessions.get(number)
        if session is None:
            return None
        return SessionStats(session.name, "idle", 1, f"ipc://{number}", 0, 4, 4711)

    def command(self, number, name, arguments):
        self.commands.append((number, name, arguments))
        return self.do(self._command)

    def _command(self):
        if self.command_error is not None:
            raise self.command_error

    def stats(self, *, has_sessions):
        return self.do(lambda: self._stats(has_sessions=has_sessions))

    def _stats(self, *, has_sessions):
        numbers = self.sessions if has_sessions else ()
        sessions = tuple(self._session_stats(number) for number in numbers)
        return Stats(2, (), 1, 2, 3, 4, 5, 6, is_closed=False, sessions=sessions)


class Client:
    """One connection, as its program sees it."""

    def __init__(self, harness, place, *, key="", is_req=False):
        self.harness = harness
        self.place = place
        self.key = key
        self.address = b"\0" + next(_numbers).to_bytes(4, "big")
        self.envelope = (self.address, b"") if is_req else (self.address,)
        self.welcome = None
        self._read = 0

    @property
    def channel(self):
        return self.harness.channels[self.place]

    @property
    def replies(self):
        """All that it has ever heard."""
        return [reply for to, reply in self.channel.sent if to == self.envelope]

    def heard(self):
        """What it has heard since the last time."""
        new = self.replies[self._read :]
        self._read += len(new)
        return new

    def one(self):
        """The one thing that it has heard since the last time."""
        [reply] = self.heard()
        return reply

    def leave(self):
        """Be gone; nobody is told."""
        self.channel.gone.add(self.address)

    def arrive(self, *payloads):
        """Have bytes arrive."""
        for payload in payloads:
            self.channel.arrived.append(([*self.envelope, payload], self.key))
        self.harness.gateway.take()

    def say(self, *messages):
        self.arrive(*map(public_codec.encode, messages))

    def hello(self, secret=None, versions=(1,)):
        """Say hello; itself, for the start of a test."""
        self.say(public.Hello(list(versions), secret))
        self.welcome = self.one()
        return self

    def ask(self, message=None, **fields):
        """Send a query that goes to a worker; its request."""
        requests = self.harness.requests
        before = len(requests)
        self.say(message or query(**fields))
        [request] = self.harness.requests[before:]
        request.order = before + 1
        return request

    def open(self, name=None, **fields):
        """Open a conversation; its OPENED."""
        self.say(opening(name, **fields))
        self.harness.settle()
        opened = self.one()
        assert opened["type"] == "OPENED", opened
        return opened


class Harness:
    """A gateway with two pools and two sockets, and a clock that stands still."""

    def __init__(self, *, pool=None, **limits):
        self.now = 1000.0
        self.processor = itertools.repeat(0.0)
        self.home = FakeHome()
        self.reactors = {HOME: FakeReactor(), FAR: FakeReactor()}
        options = {"commands": frozenset({"set_model", "compact"}), "timeout_s": None} | (
            pool or {}
        )
        self.credit_bytes = options.pop("credit_bytes", 1000)
        pools = {
            name: ServedPool(reactor, MAX_PROMPT_BYTES, self.credit_bytes, **options)
            for name, reactor in self.reactors.items()
        }
        self.channels = [FakeChannel(is_local=True), FakeChannel(is_local=False)]
        self.is_closed = False
        self.gateway = Gateway(
            self.home, pools, GatewayLimits(**limits), self,
            clock=lambda: self.now, processor_clock=lambda: next(self.processor),
        )  # fmt: skip

    def close(self):
        self.is_closed = True

    @property
    def requests(self):
        return [*self.home.requests, *self.reactors[FAR].requests]

    @property
    def cancelled(self):
        """What was to end early, in either pool."""
        both = [*self.home.cancelled, *self.reactors[FAR].cancelled]
        return [request for request, _ in both]

    def client(self, place=IPC, **options):
        """A connection that has said nothing."""
        return Client(self, place, **options)

    def peer(self, place=IPC, *, secret=None, **options):
        """A connection that was welcomed."""
        return self.client(place, **options).hello(secret)

    def settle(self):
        """Have everything done that waits to be done, in all threads."""
        while self.home.inbox.calls or any(r.orders for r in self.reactors.values()):
            for reactor in self.reactors.values():
                while reactor.orders:
                    reactor.orders.popleft()()
            while self.home.inbox.calls:
                self.home.inbox.calls.popleft()()
        self.gateway.take()

    def have_all_cost(self, seconds):
        """Every message takes so much of the processor from here on."""
        self.processor = itertools.count(step=seconds)

    def order(self, *said):
        """Have clients of one socket say these at once; whose were answered, in order.

        Just after somebody else, who is served before the others have been read.
        """
        [place] = {client.place for client, _ in said}
        channel, first = self.channels[place], self.peer(place)
        channel.sent.clear()
        all_said = [(first, public_codec.encode(public.Ping())), *said]
        channel.arrived.extend(([client.address, data], "") for client, data in all_said)
        self.gateway.take()
        clients = {client.address: client for client, _ in all_said}
        served, *others = [clients[envelope[0]] for envelope, _ in channel.sent]
        assert served is first
        return others

    def pass_time(self, seconds):
        self.now += seconds
        self.gateway.go_on(self.now)
        self.settle()

    def status(self):
        """What a new local peer is told."""
        client = self.client(is_req=True)
        client.say(public.Status(new_id(), None))
        self.settle()
        return client.one()["status"]
