"""The client's side of a gateway's protocol, with a clock and a gateway of the test's own."""

import itertools

import pytest

from soloist.protocol import public
from soloist.protocol.errors import (
    ClientError,
    GatewayLost,
    HelloRequired,
    OutcomeUnknown,
    PayloadTooLarge,
    ProtocolError,
    QueueFull,
    RemoteProtocolError,
    RequestCancelled,
    RequestTimeout,
    SessionLost,
    SlowReader,
    SupervisorClosed,
    to_info,
)
from soloist.protocol.transitions import LinkState
from soloist.supervisor import link as link_module
from soloist.supervisor.link import Link
from soloist.supervisor.link_actions import MAX_ANSWERS, Ask, Call, End, Pass, Renew, Say

HELLO = public.Hello([1], b"s" * 16)
BEAT_S = 5.0
CONNECT_S, RECONNECT_S = 10.0, 60.0
EPOCHS = [bytes([n]) * 16 for n in range(1, 9)]
SESSION = b"c" * 16


NUMBERS = itertools.count(1)


def new_id():
    return next(NUMBERS).to_bytes(16)


def welcome(epoch=EPOCHS[0], *, version=1, max_requests=1000, max_prompt_bytes=10**6):
    return public.Welcome(
        version, epoch, int(BEAT_S * 1000), 4096, max_prompt_bytes, max_requests, ["echo"]
    )


def query(*, session=None, is_streamed=False, on_disconnect="cancel"):
    return public.Query(
        new_id(), "p", None, is_streamed, session=session, on_disconnect=on_disconnect
    )


def result(call, messages=b"\x90"):
    return public.Result(call.id, 1, 1, "text", 1, 5, 1, 0, messages)


def error(call_id, error):
    return public.Error(call_id, None, to_info(error))


def message(call, seq):
    return public.Message(call.id, seq, b"\x80")


HELLO_REQUIRED = error(None, HelloRequired("hello"))


class World:
    """The connection's part: moves the clock, keeps what the link says and settles."""

    def __init__(self, **options):
        options = {"connect_timeout_s": CONNECT_S, "reconnect_timeout_s": RECONNECT_S, **options}
        self.now = 1_000_000.0
        self.link = Link(HELLO, **options)
        self.said = []
        self.ended = {}
        self.passed = []
        self.asked = []
        self.sockets = 0

    def do(self, actions):
        for action in actions:
            match action:
                case Say():
                    self.said.append(action.message)
                case End():
                    assert action.call.id not in self.ended, "a second outcome"
                    self.ended[action.call.id] = action.outcome
                case Pass():
                    self.passed.append(action.message)
                case Ask():
                    self.asked.append(action.question.number)
                case Renew():
                    self.sockets += 1

    def take(self):
        """What was said since the last time."""
        said, self.said = self.said, []
        return said

    def hear(self, *messages, size=100):
        for heard in messages:
            self.do(self.link.hear(heard, size, self.now))
        return self

    def add(self, asked=None, **settings):
        call = Call(query() if asked is None else asked, **settings)
        self.do(self.link.add(call, self.now))
        return call

    def pass_time(self, seconds):
        """Let time pass, as the thread does: a tick whenever one is due."""
        end = self.now + seconds
        while self.link.next_due() <= end:
            due = self.link.next_due()
            self.now = max(self.now, due)
            self.do(self.link.tick(self.now))
            assert self.link.next_due() > due or self.link.next_due() == float("inf"), "it spins"
        self.now = end
        return self

    def outcome(self, call):
        return self.ended.get(call.id)


def connected(**options):
    world = World(**options)
    world.do(world.link.connect(world.now))
    world.hear(welcome())
    world.take()
    return world


@pytest.fixture
def world():
    return connected()


def disconnect(world):
    """The gateway says that it knows nothing of this connection."""
    world.hear(HELLO_REQUIRED)
    assert world.take()[-1] == HELLO


class TestGreeting:
    def test_hello_comes_first_and_alone(self):
        world = World()
        world.do(world.link.connect(world.now))
        world.add()
        assert world.take() == [HELLO]
        assert world.sockets == 1
        world.hear(welcome())
        assert [type(said) for said in world.take()] == [public.Query]

    def test_a_refusal_ends_it(self):
        world = World()
        world.do(world.link.connect(world.now))
        call = world.add()
        world.hear(error(None, ProtocolError("no common version", started=False)))
        assert world.link.state is LinkState.OVER
        assert type(world.outcome(call)) is GatewayLost
        assert world.outcome(call).started is False
        assert "no common version" in str(world.link.failure)
        late = world.add()
        assert type(world.outcome(late)) is GatewayLost
        world.pass_time(1000)
        assert world.sockets == 1

    def test_a_refusal_that_may_pass_is_waited_for(self):
        world = World()
        world.do(world.link.connect(world.now))
        call = world.add()
        world.hear(error(None, QueueFull("too many connections")))
        assert world.link.state is LinkState.GREETING
        world.take()
        world.pass_time(2.0)
        assert world.take() == [HELLO]
        world.hear(welcome())
        assert [said.id for said in world.take()] == [call.id]

    def test_a_version_that_is_not_spoken_is_a_refusal(self):
        world = World()
        world.do(world.link.connect(world.now))
        world.hear(welcome(version=2))
        assert world.link.state is LinkState.OVER

    def test_without_an_answer_a_new_socket_is_tried_ever_more_seldom(self):
        world = World(connect_timeout_s=1000.0)
        world.do(world.link.connect(world.now))
        begins = []
        for _ in range(200):
            before = world.sockets
            world.pass_time(1)
            begins += [world.now] * (world.sockets - before)
        gaps = [b - a for a, b in itertools.pairwise(begins)]
        assert gaps[0] == 2 * link_module.GREET_S
        assert gaps == sorted(gaps)
        assert gaps[-1] == link_module.MAX_GREET_S
        assert all(said == HELLO for said in world.take())

    def test_that_takes_too_long_fails_what_waits(self):
        world = World()
        world.do(world.link.connect(world.now))
        call = world.add()
        world.pass_time(CONNECT_S - 0.1)
        assert world.outcome(call) is None
        world.pass_time(0.1)
        assert type(world.outcome(call)) is GatewayLost
        assert world.outcome(call).started is False
        assert world.link.failure is not None

    def test_a_gateway_that_comes_late_is_welcome(self):
        world = World()
        world.do(world.link.connect(world.now))
        world.pass_time(CONNECT_S + 5)
        assert type(world.outcome(world.add())) is GatewayLost
        world.hear(welcome())
        call = world.add()
        assert world.outcome(call) is None
        assert world.take()[-1].id == call.id


class TestHeartbeats:
    def test_one_who_says_nothing_pings(self, world):
        world.pass_time(BEAT_S - 0.01)
        assert world.take() == []
        world.pass_time(0.02)
        assert world.take() == [public.Ping()]

    def test_one_who_only_speaks_pings_too_for_the_gateway_says_nothing_unasked(self, world):
        for _ in range(10):
            world.pass_time(1.0)
            world.add()
            if public.Ping() in world.said:
                world.hear(public.Pong())
                world.take()
        assert world.link.state is LinkState.OPEN
        assert world.sockets == 1

    def test_three_without_a_word_bring_a_new_socket(self, world):
        world.pass_time(3 * BEAT_S - 0.1)
        assert world.sockets == 1
        assert world.take() == [public.Ping()] * 2
        world.pass_time(0.2)
        assert world.sockets == 2
        assert world.take() == [HELLO]
        assert world.link.state is LinkState.GREETING

    def test_any_word_is_a_sign_of_life(self, world):
        for _ in range(30):
            world.pass_time(BEAT_S)
            world.hear(public.Pong())
        assert world.sockets == 1

    def test_a_gateway_that_wants_one_all_the_time_does_not_get_it(self):
        world = World()
        world.do(world.link.connect(world.now))
        world.hear(welcome()._replace(heartbeat_ms=0))
        world.take()
        world.pass_time(0.1)
        assert len(world.take()) <= 2


class TestOutcomes:
    def test_each_call_gets_its_own(self, world):
        first, second = world.add(), world.add()
        world.hear(result(second), error(first.id, ClientError("no")))
        assert world.outcome(second) == result(second)
        assert type(world.outcome(first)) is ClientError
        assert world.link.outstanding == 0

    def test_once(self, world):
        call = world.add()
        world.hear(result(call), result(call), error(call.id, ClientError("no")))
        assert world.outcome(call) == result(call)

    def test_of_nobody_is_ignored(self, world):
        world.hear(public.Done(b"x" * 16), error(b"y" * 16, ClientError("no")))
        assert world.ended == {}

    @pytest.mark.parametrize(
        ("asked", "answer"),
        [
            (public.Open(new_id(), "n", None, None, None, None), public.Opened),
            (public.Close(new_id(), SESSION, False), public.Done),
            (public.Command(new_id(), SESSION, "set_model", []), public.Done),
            (public.Status(new_id(), None), public.Report),
            (query(), public.Result),
        ],
    )
    def test_of_another_kind_is_the_gateways_fault(self, world, asked, answer):
        answers = {
            public.Opened: public.Opened(asked.id, SESSION, b"t" * 16, "", 1),
            public.Done: public.Done(asked.id),
            public.Report: public.Report(asked.id, {}),
            public.Result: public.Result(asked.id, 1, 1, "", 1, 1, None, None, b"\x90"),
        }
        for cls, given in answers.items():
            world = connected()
            call = world.add(asked)
            world.hear(given)
            is_right = cls is answer
            assert (world.outcome(call) == given) is is_right
            assert (type(world.outcome(call)) is RemoteProtocolError) is not is_right

    def test_that_cannot_be_read_fails_its_call_alone(self, world):
        first, second = world.add(), world.add()
        world.do(world.link.misheard(first.id, RemoteProtocolError("garbage"), world.now))
        world.do(world.link.misheard(None, RemoteProtocolError("garbage"), world.now))
        assert type(world.outcome(first)) is RemoteProtocolError
        assert world.outcome(second) is None

    def test_an_error_about_what_has_none_is_ignored(self, world):
        call = world.add()
        world.hear(error(None, ProtocolError("a CREDIT of nothing")))
        assert world.outcome(call) is None
        assert world.link.state is LinkState.OPEN


class TestPlaces:
    def queries(self, world):
        return [said for said in world.take() if isinstance(said, public.Query)]

    def test_no_more_are_out_than_the_gateway_takes(self, world):
        world.hear(HELLO_REQUIRED, welcome(max_requests=8))
        world.take()
        calls = [world.add() for _ in range(20)]
        assert len(self.queries(world)) == 7
        for call in calls[:3]:
            world.hear(result(call))
        assert [said.id for said in self.queries(world)] == [call.id for call in calls[7:10]]
        assert world.link.outstanding == 17

    def test_some_are_kept_for_conversations(self, world):
        world.hear(HELLO_REQUIRED, welcome(max_requests=8))
        for _ in range(20):
            world.add()
        world.take()
        turns = [world.add(query(session=SESSION)) for _ in range(3)]
        assert [said.id for said in self.queries(world)] == [turns[0].id]
        order = world.add(public.Status(new_id(), None))
        assert [said.id for said in world.take()] == [order.id]

    def test_one_there_is_always(self, world):
        world.hear(HELLO_REQUIRED, welcome(max_requests=0))
        world.take()
        call = world.add()
        assert [said.id for said in self.queries(world)] == [call.id]

    def test_a_prompt_that_the_gateway_does_not_take_is_not_sent(self, world):
        call = world.add(size=10**6 + 1)
        assert type(world.outcome(call)) is PayloadTooLarge
        assert world.outcome(call).started is False
        assert world.take() == []


class TestStreams:
    def test_messages_are_passed_on_in_order_and_paid_for(self, world):
        call = world.add(query(is_streamed=True))
        world.take()
        world.hear(message(call, 1), size=10).hear(message(call, 2), size=30)
        assert len(world.passed) == 2
        world.do(world.link.credits(world.now))
        assert world.take() == [public.Credit(call.id, 40)]
        world.do(world.link.credits(world.now))
        assert world.take() == []

    def test_no_credit_after_the_outcome(self, world):
        call = world.add(query(is_streamed=True))
        world.take()
        world.hear(message(call, 1), result(call))
        world.do(world.link.credits(world.now))
        assert world.take() == []

    def test_one_that_comes_twice_is_passed_on_once(self, world):
        call = world.add(query(is_streamed=True))
        world.hear(message(call, 1), message(call, 1), message(call, 2), message(call, 1))
        assert len(world.passed) == 2

    def test_a_gap_is_the_gateways_fault(self, world):
        call = world.add(query(is_streamed=True))
        world.hear(message(call, 1), message(call, 3))
        assert type(world.outcome(call)) is RemoteProtocolError
        assert world.take()[-1] == public.Cancel(call.id)

    def test_a_slow_reader_loses_its_request(self, world):
        call = world.add(query(is_streamed=True))
        world.do(world.link.drop(call, SlowReader("slow"), world.now))
        assert type(world.outcome(call)) is SlowReader
        assert world.take()[-1] == public.Cancel(call.id)
        world.hear(message(call, 1), result(call))
        assert world.passed == []

    def test_what_was_heard_is_known_after_a_resend(self, world):
        call = world.add(query(is_streamed=True))
        world.hear(message(call, 1), message(call, 2))
        disconnect(world)
        world.hear(welcome())
        world.hear(message(call, 2))
        assert len(world.passed) == 2
        world.hear(result(call))
        assert world.outcome(call) == result(call)


class TestCancel:
    def test_one_that_is_out_is_ended_by_the_gateway(self, world):
        call = world.add()
        world.take()
        world.do(world.link.cancel(call, world.now))
        world.do(world.link.cancel(call, world.now))
        assert world.take() == [public.Cancel(call.id)]
        assert world.outcome(call) is None
        world.hear(error(call.id, RequestCancelled("by you")))
        assert type(world.outcome(call)) is RequestCancelled

    def test_one_that_was_never_sent_certainly_never_ran(self, world):
        world.hear(HELLO_REQUIRED, welcome(max_requests=1))
        world.add()
        call = world.add()
        world.take()
        world.do(world.link.cancel(call, world.now))
        assert world.outcome(call).started is False
        assert world.take() == []

    def test_without_a_connection_it_ends_here_and_there_later(self, world):
        call = world.add()
        disconnect(world)
        world.do(world.link.cancel(call, world.now))
        assert type(world.outcome(call)) is RequestCancelled
        assert world.outcome(call).started is None
        world.hear(welcome())
        assert world.take() == [public.Cancel(call.id)]

    def test_another_gateway_is_not_told(self, world):
        call = world.add()
        disconnect(world)
        world.do(world.link.cancel(call, world.now))
        world.hear(welcome(EPOCHS[1]))
        assert world.take() == []

    def test_one_that_is_being_cancelled_is_not_sent_again(self, world):
        call = world.add()
        world.do(world.link.cancel(call, world.now))
        disconnect(world)
        assert type(world.outcome(call)) is RequestCancelled
        world.hear(welcome())
        assert world.take() == [public.Cancel(call.id)]

    def test_after_the_outcome_it_is_nothing(self, world):
        call = world.add()
        world.hear(result(call))
        world.take()
        world.do(world.link.cancel(call, world.now))
        assert world.take() == []


class TestSendingAgain:
    def test_names_the_epoch_of_the_first_time(self, world):
        call = world.add()
        [first] = world.take()
        assert first.resent is None
        for epoch in (EPOCHS[0], EPOCHS[1], EPOCHS[2]):
            disconnect(world)
            world.hear(welcome(epoch))
            [again] = world.take()
            assert again == first._replace(resent=EPOCHS[0])
        world.hear(error(call.id, OutcomeUnknown("forgotten")))
        assert type(world.outcome(call)) is OutcomeUnknown

    def test_one_that_was_never_sent_is_sent_for_the_first_time(self, world):
        disconnect(world)
        world.add()
        world.hear(welcome(EPOCHS[1]))
        [said] = world.take()
        assert said.resent is None

    def test_is_in_the_order_of_the_first_time(self, world):
        calls = [world.add() for _ in range(5)]
        world.hear(result(calls[2]))
        world.take()
        disconnect(world)
        world.hear(welcome())
        assert [said.id for said in world.take()] == [calls[i].id for i in (0, 1, 3, 4)]

    def test_errors_about_what_was_said_before_the_hello_change_nothing(self, world):
        call = world.add()
        world.take()
        world.hear(HELLO_REQUIRED, error(call.id, HelloRequired("hello")), HELLO_REQUIRED)
        assert world.take() == [HELLO]
        assert world.outcome(call) is None
        world.hear(welcome())
        assert [said.id for said in world.take()] == [call.id]

    def test_a_second_welcome_changes_nothing(self, world):
        world.add()
        world.take()
        world.hear(welcome())
        assert world.take() == []

    def test_a_second_welcome_of_another_gateway_is_a_first_one(self, world):
        call, cancelled = world.add(), world.add()
        world.do(world.link.cancel(cancelled, world.now))
        world.take()
        world.hear(welcome(EPOCHS[1]))
        assert [said.id for said in world.take()] == [call.id]
        assert type(world.outcome(cancelled)) is RequestCancelled

    def test_says_what_is_left_of_its_time(self, world):
        world.add(deadline=world.now + 10.0)
        assert world.take()[0].timeout_ms == 10_000
        world.pass_time(4.0)
        disconnect(world)
        world.hear(welcome())
        assert world.take()[0].timeout_ms == 6_000


class TestConversations:
    def test_of_another_epoch_are_lost(self, world):
        mine = {"session_epoch": EPOCHS[0]}
        sent = world.add(query(session=SESSION), **mine)
        disconnect(world)
        unsent = world.add(query(session=SESSION), **mine)
        other = world.add()
        world.hear(welcome(EPOCHS[1]))
        assert type(world.outcome(sent)) is type(world.outcome(unsent)) is SessionLost
        assert [world.outcome(c).started for c in (sent, unsent)] == [None, False]
        assert [said.id for said in world.take()] == [other.id]
        late = world.add(query(session=SESSION), **mine)
        assert world.outcome(late).started is False

    def test_of_the_same_go_on(self, world):
        call = world.add(query(session=SESSION), session_epoch=EPOCHS[0])
        world.take()
        disconnect(world)
        world.hear(welcome())
        assert [said.id for said in world.take()] == [call.id]


class TestDeadlines:
    def test_the_gateways_word_is_waited_for_a_little(self, world):
        call = world.add(deadline=world.now + 1.0)
        world.pass_time(1.0 + link_module.LATE_S - 0.1)
        assert world.outcome(call) is None
        world.take()
        world.pass_time(0.2)
        assert type(world.outcome(call)) is RequestTimeout
        assert world.outcome(call).started is None
        assert public.Cancel(call.id) in world.take()

    def test_without_a_connection_it_is_not(self, world):
        call = world.add(deadline=world.now + 1.0)
        disconnect(world)
        unsent = world.add(deadline=world.now + 1.0)
        world.pass_time(1.0)
        assert [world.outcome(c).started for c in (call, unsent)] == [None, False]
        world.hear(welcome())
        assert world.take() == [public.Cancel(call.id)]

    def test_one_that_waits_here_certainly_never_ran(self, world):
        world.hear(HELLO_REQUIRED, welcome(max_requests=1))
        world.add()
        call = world.add(deadline=world.now + 1.0)
        world.pass_time(1.0)
        assert type(world.outcome(call)) is RequestTimeout
        assert world.outcome(call).started is False

    def test_of_what_is_over_are_forgotten(self, world):
        for _ in range(1000):
            world.hear(result(world.add(deadline=world.now + 3600.0)))
        assert len(world.link._times) < 200


class TestLoss:
    def test_everything_fails_when_the_gateway_stays_away(self, world):
        sent = world.add()
        disconnect(world)
        unsent = world.add()
        world.pass_time(RECONNECT_S - 0.1)
        assert world.ended == {}
        world.pass_time(0.1)
        assert {type(e) for e in world.ended.values()} == {GatewayLost}
        assert [world.outcome(c).started for c in (sent, unsent)] == [None, False]

    def test_until_it_is_back_nothing_waits_for_it_again(self, world):
        disconnect(world)
        world.pass_time(RECONNECT_S)
        assert type(world.outcome(world.add())) is GatewayLost
        world.hear(welcome())
        assert world.link.failure is None
        assert world.outcome(world.add()) is None

    def test_a_socket_that_takes_no_more_is_replaced(self, world):
        call = world.add()
        world.do(world.link.break_off(world.now))
        assert world.sockets == 2
        assert world.take()[-1] == HELLO
        world.hear(welcome())
        assert [said.id for said in world.take()][-1] == call.id

    def test_giving_up_cancels_what_may_not_run_alone(self, world):
        cancel, finish = world.add(), world.add(query(on_disconnect="finish"))
        world.take()
        world.do(world.link.give_up(SupervisorClosed, "closed", world.now))
        assert world.take() == [public.Cancel(cancel.id)]
        assert {type(world.outcome(c)) for c in (cancel, finish)} == {SupervisorClosed}


class TestQuestions:
    def question(self, call, number=1):
        return public.Control(call.id, number, "permission", {"tool_name": "Bash"})

    def test_is_asked_once_and_answered(self, world):
        call = world.add()
        world.take()
        world.hear(self.question(call), self.question(call))
        assert world.asked == [1]
        world.do(world.link.answer(call, 1, {"behavior": "allow"}, world.now))
        reply = public.ControlReply(call.id, 1, {"behavior": "allow"})
        assert world.take() == [reply]
        world.hear(self.question(call))
        assert world.asked == [1]
        assert world.take() == [reply], "the first one may have been lost"

    def test_an_answer_without_a_connection_waits_to_be_asked_for(self, world):
        call = world.add()
        world.hear(self.question(call))
        disconnect(world)
        world.do(world.link.answer(call, 1, {"behavior": "deny"}, world.now))
        world.hear(welcome())
        world.take()
        world.hear(self.question(call))
        assert world.take() == [public.ControlReply(call.id, 1, {"behavior": "deny"})]

    def test_of_a_call_that_is_over_is_nothing(self, world):
        call = world.add()
        world.hear(self.question(call), result(call))
        world.take()
        world.do(world.link.answer(call, 1, {}, world.now))
        world.hear(self.question(call, 2))
        assert world.take() == []
        assert world.asked == [1]

    def test_only_the_latest_answers_are_kept(self, world):
        call = world.add()
        for number in range(1, 3 * MAX_ANSWERS):
            world.hear(self.question(call, number))
            world.do(world.link.answer(call, number, {}, world.now))
        assert len(call.answers) == MAX_ANSWERS
