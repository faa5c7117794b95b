"""A link over a network that loses, repeats and delays: one outcome each, and nothing runs twice.

The gateway is a model of section 2.5 of SPEC.md. A connection carries messages in order; when it
breaks, the rest of what was under way is lost, and the next one is a new peer.
"""

from collections import Counter, deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from soloist.protocol import public
from soloist.protocol.errors import (
    HelloRequired,
    OutcomeUnknown,
    RequestCancelled,
    SlowReader,
    SoloistError,
    to_info,
)
from soloist.protocol.transitions import LinkState
from soloist.supervisor.link import Link
from soloist.supervisor.link_actions import Call, End, Pass, Renew, Say

HEARTBEAT_S = 1.0
MAX_REQUESTS = 4


class Gateway:
    """What a gateway does with ids; ``runs`` counts over all its lives."""

    def __init__(self):
        self.runs = Counter()
        self.life = 0
        self.restart()

    def restart(self):
        self.life += 1
        self.epoch = bytes([self.life % 256]) * 16
        self.is_greeted = False
        self.running = {}  # by id: the number of MESSAGEs, None if its stream has ended
        self.outcomes = {}
        self.has_forgotten = False

    def hear(self, message):
        """Give the replies."""
        if isinstance(message, public.Hello):
            self.is_greeted = True
            welcome = public.Welcome(
                1, self.epoch, int(HEARTBEAT_S * 1000), 100, 10**6, MAX_REQUESTS, ["echo"]
            )
            return [welcome]
        if not self.is_greeted:
            about = message.id if isinstance(message, public.Query) else None
            return [public.Error(about, None, to_info(HelloRequired("hello")))]
        match message:
            case public.Ping():
                return [public.Pong()]
            case public.Query():
                return self.query(message)
            case public.Cancel() if message.id in self.running:
                return [self.end(message.id, RequestCancelled("by you"))]
        return []

    def query(self, query):
        if query.id in self.outcomes:
            return [self.outcomes[query.id]]
        if query.id in self.running:
            self.running[query.id] = None
            return []
        if query.resent is not None and (query.resent != self.epoch or self.has_forgotten):
            return [public.Error(query.id, None, to_info(OutcomeUnknown("forgotten")))]
        self.runs[query.id] += 1
        self.running[query.id] = 0 if query.is_streamed else None
        return []

    def stream(self, request_id):
        if self.running[request_id] is None:
            return []
        self.running[request_id] += 1
        return [public.Message(request_id, self.running[request_id], b"\x80")]

    def end(self, request_id, error=None):
        del self.running[request_id]
        if error is None:
            reply = public.Result(request_id, 1, 1, "", 1, 0, 1, 0, b"\x90")
        else:
            reply = public.Error(request_id, None, to_info(error))
        self.outcomes[request_id] = reply
        return reply

    def forget(self):
        self.outcomes.clear()
        self.has_forgotten = True


class Network(RuleBasedStateMachine):
    calls = Bundle("calls")

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.gateway = Gateway()
        self.up = deque()  # from the client
        self.down = deque()
        self.sent = set()
        self.outcomes = {}
        self.heard = Counter()
        self.all = []
        hello = public.Hello([1], b"s" * 16)
        self.link = Link(hello, connect_timeout_s=20.0, reconnect_timeout_s=20.0)
        self.do(self.link.connect(self.now))

    def do(self, actions):
        for action in actions:
            match action:
                case Say():
                    self.check_sent(action.message)
                    self.up.append(action.message)
                case Renew():
                    self.up.clear()
                    self.down.clear()
                    self.gateway.is_greeted = False
                case End():
                    assert action.call.id not in self.outcomes, "a second outcome"
                    self.outcomes[action.call.id] = action.outcome
                case Pass():
                    assert action.call.id not in self.outcomes, "a message after the outcome"
                    self.heard[action.call.id] += 1

    def check_sent(self, message):
        if isinstance(message, public.Query):
            assert (message.id in self.sent) == (message.resent is not None)
            assert message.id not in self.outcomes
            self.sent.add(message.id)

    # -- the client --------------------------------------------------------------------------

    @rule(target=calls, is_streamed=st.booleans(), timeout_s=st.sampled_from([None, 3.0, 30.0]))
    def ask(self, is_streamed, timeout_s):
        query = public.Query(len(self.all).to_bytes(16), "p", None, is_streamed)
        deadline = None if timeout_s is None else self.now + timeout_s
        call = Call(query, deadline=deadline)
        self.all.append(call)
        self.do(self.link.add(call, self.now))
        return call

    @rule(call=calls)
    def cancel(self, call):
        self.do(self.link.cancel(call, self.now))

    @rule(call=calls)
    def fall_behind(self, call):
        if call.epoch is not None:
            self.do(self.link.drop(call, SlowReader("slow"), self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def wait(self, seconds):
        end = self.now + seconds
        while (due := self.link.next_due()) <= end:
            self.now = max(self.now, due)
            self.do(self.link.tick(self.now))
            assert self.link.next_due() > due
        self.now = end

    # -- the network -------------------------------------------------------------------------

    @precondition(lambda self: self.up)
    @rule(count=st.integers(1, 5))
    def carry_up(self, count):
        for _ in range(min(count, len(self.up))):
            self.down.extend(self.gateway.hear(self.up.popleft()))

    @precondition(lambda self: self.down)
    @rule(count=st.integers(1, 5), times=st.sampled_from([1, 1, 2]))
    def carry_down(self, count, times):
        for _ in range(count):
            if self.down:  # what is done may clear it
                message = self.down.popleft()
                for _ in range(times):
                    self.do(self.link.hear(message, 50, self.now))

    @rule(kept_up=st.integers(0, 3), kept_down=st.integers(0, 3))
    def break_connection(self, kept_up, kept_down):
        """What has not left yet goes by the next connection; what has arrived is there."""
        self.up = deque(list(self.up)[len(self.up) - kept_up :] if kept_up else [])
        self.down = deque(list(self.down)[:kept_down])
        self.gateway.is_greeted = False

    # -- the gateway -------------------------------------------------------------------------

    @rule()
    def restart_gateway(self):
        self.break_connection(0, 3)
        self.gateway.restart()

    @rule()
    def forget(self):
        self.gateway.forget()

    @precondition(lambda self: self.gateway.running)
    @rule(data=st.data())
    def stream(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.gateway.running)))
        self.say(self.gateway.stream(request_id))

    @precondition(lambda self: self.gateway.running)
    @rule(data=st.data())
    def end_turn(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.gateway.running)))
        self.say([self.gateway.end(request_id)])

    def say(self, replies):
        if self.gateway.is_greeted:
            self.down.extend(replies)

    # -- what holds --------------------------------------------------------------------------

    @invariant()
    def nothing_runs_twice(self):
        assert all(count == 1 for count in self.gateway.runs.values())

    @invariant()
    def no_more_are_out_than_the_gateway_takes(self):
        out = [call for call in self.all if call.epoch is not None and not call.is_over]
        assert len(out) <= MAX_REQUESTS

    @invariant()
    def what_certainly_never_ran_has_not(self):
        for request_id, outcome in self.outcomes.items():
            if isinstance(outcome, SoloistError) and outcome.started is False:
                assert not self.gateway.runs[request_id]

    def teardown(self):
        """On a network that works, everything comes to its end."""
        for _ in range(200):
            if not self.link.outstanding:
                break
            for request_id in list(self.gateway.running):
                self.say([self.gateway.end(request_id)])
            self.wait(0.5)
            while self.up or self.down:
                self.carry_up(5)
                self.carry_down(5, 1)
        assert set(self.outcomes) == {call.id for call in self.all}
        assert self.link.state is not LinkState.OVER
        assert not any(call.epoch is None for call in self.link._sent.values())


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=75, stateful_step_count=60, deadline=None)
