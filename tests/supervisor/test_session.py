"""Handles of conversations and how their answers are read, over a scripted I/O thread."""

import gc
import threading
import time
import weakref
from concurrent.futures import Future

import pytest

from soloist.protocol import codec
from soloist.protocol.content import AssistantMessage, ResultMessage, TextBlock
from soloist.protocol.errors import (
    ClientError,
    InvalidOptions,
    InvalidPrompt,
    LocalProtocolError,
    PayloadTooLarge,
    QueueFull,
    RequestCancelled,
    SessionBusy,
    SessionClosed,
    SupervisorClosed,
    WorkerLost,
)
from soloist.protocol.messages import Answer
from soloist.supervisor.brokers import Address
from soloist.supervisor.futures import Dispatcher
from soloist.supervisor.intake import Intake
from soloist.supervisor.request import POOL
from soloist.supervisor.results import SessionStats
from soloist.supervisor.session import Session, SharedSession

NUMBER = 8
LIMIT_S = 20.0


def said(text):
    return AssistantMessage(content=[TextBlock(text)], model="fake")


def result(text="end", *, is_error=False):
    return ResultMessage("success", 1, 0, is_error, 1, "s", result=text)


class FakeReactor:
    """Takes orders; the test says what comes of them."""

    def __init__(self):
        self.requests = []
        self.cancelled = []
        self.interrupted = []
        self.closes = []
        self.commands = []
        self.closing = Future()
        self.closed = threading.Event()
        self.orders = []
        self.is_closed = threading.Event()
        self.state = "idle"

    @property
    def last(self):
        return self.requests[-1]

    # -- what handles call ---------------------------------------------------------------------

    def submit(self, requests):
        if self.is_closed.is_set():
            raise SupervisorClosed("the Supervisor is closed", started=False)
        self.requests += requests
        self.orders.append("submit")

    def cancel(self, requests):
        self.cancelled += requests
        self.orders.append("cancel")

    def interrupt_session(self, number):
        self.interrupted.append(number)

    def close_session(self, number, *, drain):
        if self.is_closed.is_set():
            raise SupervisorClosed("the Supervisor is closed", started=False)
        self.closes.append((number, drain))
        self.closed.set()
        return self.closing

    def session_stats(self, number):
        stats = Future()
        known = None if self.state is None else SessionStats("talk", self.state, 3, "", 0, 1, 4711)
        stats.set_result(known)
        return stats

    def command(self, number, name, arguments):
        self.commands.append((number, name, arguments))
        done = Future()
        if self.state is None:
            done.set_exception(WorkerLost("it died"))
        else:
            done.set_result(None)
        return done

    # -- what comes of it ----------------------------------------------------------------------

    def say(self, *messages, request=None):
        request = request or self.last
        return [request.sink.stream(request, codec.encode_message(m)) for m in messages]

    def end(self, outcome=None, *, messages=(), request=None):
        request = request or self.last
        if outcome is None:
            data = codec.join([codec.encode_message(m) for m in messages]) if messages else b""
            outcome = Answer(1, 0.5, "text", 1, data)
        request.settle(outcome)

    def answer(self, text="end", request=None):
        """A whole turn."""
        self.say(said(text), result(text), request=request)
        self.end(messages=[said(text), result(text)], request=request)


class World:
    def __init__(self, **settings):
        self.reactor = FakeReactor()
        settings = {
            "timeout_s": None,
            "max_pending": 10,
            "max_payload_bytes": 1000,
            "stream_buffer_bytes": 1000,
            **settings,
        }
        self.intake = Intake(self.reactor, Dispatcher(), **settings)

    def session(self):
        return Session(self.intake, Address(NUMBER, ""), self)

    def shared(self, name="talk"):
        return SharedSession(self.intake, name, Address(NUMBER, "ipc:///run/s8"), self)

    def ask(self, timeout_s=None):
        return self.intake.response("p", timeout_s, owner=self)


pytestmark = pytest.mark.filterwarnings("ignore:a Session was not closed:ResourceWarning")


@pytest.fixture
def world():
    return World()


def in_thread(call):
    """Run ``call`` in a thread that has ended on return; gives its value or its error."""
    outcome = []

    def run():
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive(), "it hangs"
    return outcome[0]


class Caller:
    """A thread that stays alive and does what it is told."""

    def __init__(self):
        self._orders = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._news:
            self._orders.append(None)
            self._news.notify()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "it hangs"

    def begin(self, call):
        done = Future()
        with self._news:
            self._orders.append((call, done))
            self._news.notify()
        return done

    def do(self, call):
        return self.begin(call).result(LIMIT_S)

    def _run(self):
        while (order := self._next()) is not None:
            call, done = order
            try:
                done.set_result(call())
            except Exception as error:
                done.set_exception(error)

    def _next(self):
        with self._news:
            while not self._orders:
                self._news.wait()
            return self._orders.pop(0)


class TestIntake:
    def test_a_request_belongs_to_its_session_or_the_pool(self, world):
        assert world.intake.request("p", None).session == POOL
        assert world.intake.request("p", None, session=NUMBER).session == NUMBER

    def test_the_time_of_a_request_begins_with_its_call(self):
        intake = World(timeout_s=50.0).intake
        before = time.monotonic()
        usual = intake.request("p", None)
        special = intake.request("p", None, timeout_s=3.0)
        after = time.monotonic()
        assert before + 50.0 <= usual.deadline <= after + 50.0
        assert before + 3.0 <= special.deadline <= after + 3.0
        assert World().intake.request("p", None).deadline is None

    @pytest.mark.parametrize(
        ("prompt", "error"), [(5, InvalidPrompt), ("x" * 2000, PayloadTooLarge)]
    )
    def test_what_cannot_be_sent_is_told_at_once(self, world, prompt, error):
        with pytest.raises(error):
            world.intake.response(prompt, None, world)
        with pytest.raises(error):
            world.intake.future(prompt, None, world)
        assert world.reactor.requests == []
        assert not world.intake._pending

    @pytest.mark.parametrize("timeout_s", [-1, float("nan"), "1", True])
    def test_a_time_that_is_none_is_refused(self, world, timeout_s):
        with pytest.raises(InvalidOptions):
            world.intake.response("p", timeout_s, world)
        with pytest.raises(InvalidOptions):
            world.intake.future("p", timeout_s, world)
        assert world.reactor.requests == []

    def test_futures_without_an_outcome_are_bounded(self):
        world = World(max_pending=2)
        futures = [world.intake.future("p", None, world) for _ in range(2)]
        with pytest.raises(QueueFull):
            world.intake.future("p", None, world)
        world.reactor.end(request=futures[0].request)
        world.intake.future("p", None, world)

    def test_what_could_not_be_handed_over_does_not_count(self, world):
        world.reactor.is_closed.set()
        for _ in range(20):
            with pytest.raises(SupervisorClosed):
                world.intake.future("p", None, world)
        assert not world.intake._pending

    def test_a_stream_has_the_handler_of_its_call_or_none(self, world):
        def handler(request):
            return True

        assert world.intake.response("p", None, world).request.on_control is None
        own = world.intake.response("p", None, world, on_control=handler)
        assert own.request.on_control is handler
        assert own.request.is_streamed


class TestResponse:
    def test_messages_come_as_they_arrive(self, world):
        response = world.ask()
        world.reactor.say(said("a"))
        assert next(response) == said("a")
        world.reactor.say(said("b"))
        assert next(response) == said("b")
        assert not response.is_over
        world.reactor.say(result())
        world.reactor.end(messages=[said("a"), said("b"), result()])
        assert list(response) == [result()]
        assert list(response) == []

    def test_what_was_not_streamed_follows_with_the_outcome(self, world):
        response = world.ask()
        world.reactor.say(said("a"))
        world.reactor.end(messages=[said("a"), said("b"), result()])
        assert list(response) == [said("a"), said("b"), result()]

    def test_a_bare_callable_has_messages_too(self, world):
        response = world.ask()
        world.reactor.end()
        assert [type(m) for m in response] == [AssistantMessage, ResultMessage]

    def test_the_error_comes_after_the_messages_before_it(self, world):
        response = world.ask()
        world.reactor.say(said("a"))
        world.reactor.end(ClientError("no"))
        assert next(response) == said("a")
        with pytest.raises(ClientError):
            next(response)
        assert list(response) == []

    def test_closing_it_interrupts_the_turn_and_gives_no_more(self, world):
        response = world.ask()
        world.reactor.say(said("a"), said("b"))
        assert next(response) == said("a")
        response.close()
        assert world.reactor.cancelled == [response.request]
        assert response.is_closed
        assert list(response) == []
        world.reactor.end(RequestCancelled("it was"))
        assert list(response) == []

    def test_leaving_its_block_closes_it(self, world):
        with world.ask() as response:
            pass
        assert world.reactor.cancelled == [response.request]

    def test_closing_it_after_its_end_changes_nothing(self, world):
        response = world.ask()
        world.reactor.answer()
        list(response)
        response.close()
        response.close()
        assert world.reactor.cancelled == []

    def test_dropping_it_interrupts_the_turn(self, world):
        request = world.ask().request
        assert world.reactor.cancelled == [request]

    def test_dropping_it_in_mid_answer_interrupts_the_turn(self, world):
        response = world.ask()
        request = response.request
        world.reactor.say(said("a"))
        for _ in response:
            break
        del response
        assert world.reactor.cancelled == [request]

    def test_dropping_it_after_its_end_changes_nothing(self, world):
        response = world.ask()
        world.reactor.answer()
        del response
        assert world.reactor.cancelled == []

    def test_a_detached_one_may_be_dropped(self, world):
        response = world.ask()
        response.detach()
        del response
        assert world.reactor.cancelled == []

    def test_a_reader_that_waits_is_released_by_a_close(self, world):
        response = world.ask()
        with Caller() as reader:
            rest = reader.begin(lambda: list(response))
            response.close()
            world.reactor.end(RequestCancelled("it was"))  # the I/O thread, after the drain
            assert rest.result(LIMIT_S) == []

    def test_what_ends_while_it_waits_after_a_close_is_not_told(self, world):
        response = world.ask()
        wait = response._stream.next

        def closed_meanwhile():
            response.close()
            world.reactor.end(RequestCancelled("it was"))
            return wait()

        response._stream.next = closed_meanwhile
        assert list(response) == []

    def test_it_says_when_its_result_was_read(self, world):
        response = world.ask()
        assert not response.is_read
        world.reactor.say(said("a"), result())
        next(response)
        assert not response.is_read
        next(response)
        assert response.is_read
        assert not response.is_over

    def test_it_keeps_its_owner_alive_to_its_end(self, world):
        class Owner:
            pass

        owner = Owner()
        alive = weakref.ref(owner)
        responses = [world.intake.response("p", None, owner) for _ in range(3)]
        del owner
        assert alive() is not None
        for response in responses[:2]:
            world.reactor.answer(request=response.request)
            list(response)
        assert alive() is not None
        responses[2].close()
        assert alive() is None

    def test_nothing_is_left_of_those_that_failed(self, world):
        """A raised error leads to the reader; nothing for ever may lead to the error."""
        before = len(weakref.finalize._registry)
        readers = []
        for _ in range(20):
            response = world.ask()
            readers.append(weakref.ref(response))
            world.reactor.end(ClientError("no"))
            with pytest.raises(ClientError):
                next(response)
        del response
        world.reactor.requests.clear()
        gc.collect()
        assert len(weakref.finalize._registry) == before
        assert [reader() for reader in readers] == [None] * 20

    def test_nothing_is_left_of_those_that_were_read(self, world):
        before = len(weakref.finalize._registry)
        for i in range(200):
            response = world.ask()
            world.reactor.answer()
            if i % 2:
                list(response)
            if i % 3 == 0:
                response.close()
        del response
        world.reactor.requests.clear()
        assert len(weakref.finalize._registry) == before


class TestOwned:
    def test_a_turn_is_sent_then_read(self, world):
        session = world.session()
        assert session.query("p") is None
        assert world.reactor.last.session == NUMBER
        assert world.reactor.last.prompt == "p"
        world.reactor.answer("hello")
        assert list(session.receive_response()) == [said("hello"), result("hello")]
        world.reactor.requests.clear()
        answer = session.query_and_receive("q", timeout_s=5.0)
        assert world.reactor.last.deadline is not None, "it was sent before the first next"
        world.reactor.answer("again")
        assert list(answer)[-1] == result("again")
        assert world.reactor.cancelled == []

    def test_reading_comes_after_sending(self, world):
        with pytest.raises(LocalProtocolError):
            world.session().receive_response()

    def test_a_prompt_amid_a_turn_is_refused_at_once(self, world):
        session = world.session()
        session.query("a")
        with pytest.raises(SessionBusy) as raised:
            session.query("b")
        assert raised.value.started is False
        assert len(world.reactor.requests) == 1
        world.reactor.answer("a")
        assert next(session.receive_response()) == said("a")

    def test_one_that_cannot_be_sent_changes_nothing(self, world):
        session = world.session()
        session.query("a")
        world.reactor.answer("a")
        with pytest.raises(PayloadTooLarge):
            session.query("x" * 2000)
        assert list(session.receive_response())[-1] == result("a")

    def test_a_prompt_may_follow_a_turn_that_has_ended_unread(self, world):
        session = world.session()
        session.query("a")
        world.reactor.answer("a")
        session.query("b")
        world.reactor.answer("b")
        assert list(session.receive_response()) == [said("b"), result("b")]
        assert world.reactor.cancelled == []

    def test_a_prompt_may_follow_a_result_though_the_outcome_is_still_to_come(self, world):
        """The result is a message like any other; the turn's outcome comes just after it."""
        session = world.session()
        first = session.query_and_receive("a")
        request = world.reactor.last
        world.reactor.say(said("a"), result("a"))
        assert [next(first), next(first)] == [said("a"), result("a")]
        session.query("b")
        assert world.reactor.cancelled == []
        world.reactor.end(messages=[said("a"), result("a")], request=request)
        assert list(first) == []
        world.reactor.answer("b")
        assert list(session.receive_response()) == [said("b"), result("b")]

    def test_a_prompt_may_follow_a_closed_iterator(self, world):
        session = world.session()
        answer = session.query_and_receive("a")
        request = world.reactor.last
        answer.close()
        assert world.reactor.cancelled == [request]
        session.query("b")
        world.reactor.end(RequestCancelled("it was"), request=request)
        world.reactor.answer("b")
        assert list(session.receive_response()) == [said("b"), result("b")]

    def test_leaving_a_loop_closes_its_iterator(self, world):
        session = world.session()
        session.query("a")
        world.reactor.say(said("a"), said("b"))
        for _ in session.receive_response():
            break
        assert world.reactor.cancelled == [world.reactor.last]
        session.query("b")

    def test_what_nobody_reads_runs_on(self, world):
        session = world.session()
        session.query("a")
        gc.collect()
        assert world.reactor.cancelled == []

    def test_an_error_is_raised_where_it_is_read(self, world):
        session = world.session()
        session.query("a")
        world.reactor.say(said("a"))
        world.reactor.end(ClientError("no"))
        answer = session.receive_response()
        assert next(answer) == said("a")
        with pytest.raises(ClientError):
            next(answer)
        session.query("b")

    def test_it_can_be_read_again_without_effect(self, world):
        session = world.session()
        session.query("a")
        world.reactor.answer("a")
        list(session.receive_response())
        assert list(session.receive_response()) == []


class TestInterrupt:
    def test_it_ends_the_turn_with_its_result_and_no_error(self, world):
        session = world.session()
        session.query("a")
        session.interrupt()
        assert world.reactor.cancelled == [world.reactor.last]
        world.reactor.say(said("half"), result("cut", is_error=True))
        world.reactor.end(RequestCancelled("it was"))
        last = list(session.receive_response())[-1]
        assert (last.result, last.is_error) == ("cut", True)

    def test_a_turn_that_ends_without_a_result_says_so(self, world):
        session = world.session()
        session.query("a")
        session.interrupt()
        world.reactor.say(said("half"))
        world.reactor.end(RequestCancelled("it was"))
        answer = session.receive_response()
        assert next(answer) == said("half")
        with pytest.raises(RequestCancelled):
            next(answer)

    def test_other_errors_are_not_hidden(self, world):
        session = world.session()
        session.query("a")
        session.interrupt()
        world.reactor.say(result())
        world.reactor.end(WorkerLost("it died"))
        with pytest.raises(WorkerLost):
            list(session.receive_response())

    def test_a_cancelled_turn_that_nobody_interrupted_is_an_error(self, world):
        session = world.session()
        session.query("a")
        world.reactor.say(result())
        world.reactor.end(RequestCancelled("by somebody else"))
        with pytest.raises(RequestCancelled):
            list(session.receive_response())

    def test_the_next_prompt_need_not_wait(self, world):
        session = world.session()
        session.query("a")
        first = world.reactor.last
        session.interrupt()
        session.query("b")
        assert world.reactor.cancelled == [first]
        world.reactor.end(RequestCancelled("it was"), request=first)
        world.reactor.answer("b")
        assert list(session.receive_response()) == [said("b"), result("b")]

    def test_without_a_turn_it_does_nothing(self, world):
        session = world.session()
        session.interrupt()
        assert world.reactor.cancelled == []

    def test_after_a_turn_it_does_not_hit_the_next(self, world):
        session = world.session()
        session.query("a")
        world.reactor.answer("a")
        session.interrupt()
        session.query("b")
        world.reactor.end(RequestCancelled("by somebody else"))
        with pytest.raises(RequestCancelled):
            list(session.receive_response())

    def test_any_thread_may_do_it(self, world):
        session = world.session()
        session.query("a")
        assert in_thread(session.interrupt) is None
        assert world.reactor.cancelled == [world.reactor.last]


class TestThreads:
    def test_a_second_one_is_refused_while_the_first_is_at_it(self, world):
        session = world.session()
        session.query("a")
        assert type(in_thread(lambda: session.query("b"))) is SessionBusy
        assert type(in_thread(session.receive_response)) is SessionBusy

    def test_a_second_one_may_send_when_the_turn_has_ended(self, world):
        session = world.session()
        session.query("a")
        world.reactor.answer("a")
        with Caller() as other:
            other.do(lambda: session.query("b"))
            with pytest.raises(SessionBusy):
                session.query("c")
            with pytest.raises(SessionBusy):
                session.receive_response()

    def test_a_second_one_does_not_read_along_after_an_interrupt(self, world):
        """Two readers of one stream: one of them would wait for ever."""
        session = world.session()
        answer = session.query_and_receive("a")
        with Caller() as other:
            other.do(session.interrupt)
            with pytest.raises(SessionBusy):
                other.do(session.receive_response)
        answer.close()

    def test_the_turn_of_a_thread_that_has_died_gives_way(self, world):
        session = world.session()
        in_thread(lambda: session.query("a"))
        dead = world.reactor.last
        session.query("b")
        assert world.reactor.cancelled == [dead]
        assert world.reactor.orders == ["submit", "cancel", "submit"], "the queue has one place"
        world.reactor.end(RequestCancelled("it was"), request=dead)
        world.reactor.answer("b")
        assert list(session.receive_response()) == [said("b"), result("b")]

    def test_the_turn_of_a_thread_that_has_died_may_be_read(self, world):
        session = world.session()
        in_thread(lambda: session.query("a"))
        world.reactor.answer("a")
        assert list(session.receive_response()) == [said("a"), result("a")]

    def test_by_one_other_thread(self, world):
        session = world.session()
        in_thread(lambda: session.query("a"))
        with Caller() as one:
            answer = one.do(session.receive_response)
            with pytest.raises(SessionBusy):
                session.receive_response()
            world.reactor.answer("a")
            assert one.do(lambda: list(answer))[-1] == result("a")

    def test_of_many_at_the_same_moment_one_is_taken(self, world):
        session = world.session()
        start = threading.Barrier(8)
        outcomes = []

        def run(name):
            start.wait(LIMIT_S)
            try:
                session.query(name)
            except SessionBusy:
                outcomes.append("busy")
            else:
                outcomes.append("sent")
            end.wait(LIMIT_S)

        end = threading.Barrier(8)
        threads = [threading.Thread(target=run, args=(str(i),), daemon=True) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert sorted(outcomes) == ["busy"] * 7 + ["sent"]
        assert len(world.reactor.requests) == 1

    def test_nobody_comes_between_the_look_and_the_sending(self, world):
        session = world.session()
        is_locked = []
        submit = world.reactor.submit

        def watched(requests):
            is_locked.append(session._turns._lock.locked())
            submit(requests)

        world.reactor.submit = watched
        session.query("a")
        assert is_locked == [True]


class TestEnd:
    def test_closing_waits_for_the_worker(self, world):
        session = world.session()
        with Caller() as caller:
            closed = caller.begin(session.close)
            assert not closed.done()
            world.reactor.closing.set_result(None)
            closed.result(LIMIT_S)
        assert world.reactor.closes == [(NUMBER, False)]

    def test_leaving_its_block_closes_it(self, world):
        world.reactor.closing.set_result(None)
        with world.session() as session:
            pass
        assert world.reactor.closes == [(NUMBER, False)]
        session.close()

    def test_one_that_is_forgotten_is_closed(self, world):
        session = world.session()
        session.query("a")
        with pytest.warns(ResourceWarning, match="Session was not closed"):
            del session
            gc.collect()
        assert world.reactor.closes == [(NUMBER, False)]

    def test_one_that_was_closed_is_not_closed_again_when_it_is_dropped(self, world):
        world.reactor.closing.set_result(None)
        session = world.session()
        session.close()
        del session
        gc.collect()
        assert len(world.reactor.closes) == 1

    def test_one_that_is_forgotten_after_the_supervisors_end_is_no_matter(self, world):
        session = world.session()
        world.reactor.is_closed.set()
        del session
        gc.collect()

    def test_one_that_is_being_read_is_not_forgotten(self, world):
        answer = world.session().query_and_receive("a")
        gc.collect()
        assert world.reactor.closes == []
        world.reactor.answer("a")
        assert list(answer)[-1] == result("a")
        gc.collect()
        assert world.reactor.closes == [(NUMBER, False)]

    def test_its_finalizers_are_gone_with_it(self, world):
        before = len(weakref.finalize._registry)
        for _ in range(20):
            session = world.session()
            session.query("a")
            world.reactor.answer()
            for _ in session.receive_response():
                pass
            session.query("b")
            world.reactor.end(ClientError("no"))
            with pytest.raises(ClientError):
                list(session.receive_response())
            del session
        world.reactor.requests.clear()
        gc.collect()
        assert len(weakref.finalize._registry) == before


class TestCommands:
    def test_they_reach_the_client(self, world):
        session = world.session()
        session.set_model("m")
        session.set_model()
        session.set_permission_mode("plan")
        assert world.reactor.commands == [
            (NUMBER, "set_model", ["m"]),
            (NUMBER, "set_model", [None]),
            (NUMBER, "set_permission_mode", ["plan"]),
        ]

    def test_their_errors_are_raised(self, world):
        world.reactor.state = None
        with pytest.raises(WorkerLost):
            world.session().set_model("m")


@pytest.mark.parametrize("kind", ["session", "shared"])
class TestStatistics:
    @pytest.mark.parametrize(
        ("state", "is_connected"),
        [("idle", True), ("running", True), ("draining", True), ("starting", False),
         ("lost", False), ("closing", False), (None, False)],
    )  # fmt: skip
    def test_they_are_the_brokers(self, world, kind, state, is_connected):
        world.reactor.state = state
        handle = getattr(world, kind)()
        assert handle.is_connected is is_connected
        assert handle.incarnation == (0 if state is None else 3)
        assert (handle.stats() is None) == (state is None)


class TestShared:
    def test_its_answer_is_read_by_who_asked(self, world):
        chat = world.shared()
        first, second = chat.query_and_receive("a"), chat.query_and_receive("b", timeout_s=3.0)
        assert [r.session for r in world.reactor.requests] == [NUMBER, NUMBER]
        world.reactor.answer("a", request=first.request)
        world.reactor.answer("b", request=second.request)
        assert list(second)[-1] == result("b")
        assert list(first)[-1] == result("a")

    def test_a_prompt_may_be_added_without_reading(self, world):
        future = world.shared().query("a")
        assert world.reactor.last.session == NUMBER
        assert not world.reactor.last.is_streamed
        world.reactor.end()
        assert future.result(LIMIT_S).text == "text"

    def test_a_cancelled_future_cancels_its_request(self, world):
        future = world.shared().query("a")
        assert future.cancel()
        assert world.reactor.cancelled == [future.request]

    def test_it_can_be_interrupted_by_anybody(self, world):
        world.shared().interrupt()
        assert world.reactor.interrupted == [NUMBER]

    def test_a_handle_that_is_dropped_closes_nothing(self, world):
        world.shared()
        gc.collect()
        assert world.reactor.closes == []

    def test_it_says_who_it_is(self, world):
        chat = world.shared("support-42")
        assert (chat.name, chat.endpoint) == ("support-42", "ipc:///run/s8")
        assert repr(chat) == "<SharedSession 'support-42' ipc:///run/s8>"

    @pytest.mark.parametrize("drain", [True, False])
    def test_closing_waits_for_the_worker(self, world, drain):
        chat = world.shared()
        with Caller() as caller:
            closed = caller.begin(lambda: chat.close(drain=drain))
            world.reactor.closing.set_result(None)
            closed.result(LIMIT_S)
        assert world.reactor.closes == [(NUMBER, drain)]

    def test_a_drain_that_takes_too_long_is_cut_short(self, world):
        chat = world.shared()
        close = world.reactor.close_session

        def close_session(number, *, drain):
            if not drain:
                world.reactor.closing.set_result(None)
            return close(number, drain=drain)

        world.reactor.close_session = close_session
        chat.close(drain=True, timeout_s=0.01)
        assert world.reactor.closes == [(NUMBER, True), (NUMBER, False)]

    def test_without_a_drain_the_time_is_not_the_callers(self, world):
        chat = world.shared()
        with Caller() as caller:
            closed = caller.begin(lambda: chat.close(timeout_s=0.0))
            world.reactor.closed.wait(LIMIT_S)
            world.reactor.closing.set_result(None)
            closed.result(LIMIT_S)
        assert world.reactor.closes == [(NUMBER, False)]

    @pytest.mark.parametrize("timeout_s", [-1, float("nan"), "1"])
    def test_a_time_that_is_none_is_refused(self, world, timeout_s):
        world.reactor.closing.set_result(None)
        with pytest.raises(InvalidOptions):
            world.shared().close(drain=True, timeout_s=timeout_s)
        assert world.reactor.closes == []

    def test_after_its_end_the_error_is_where_the_answer_would_be(self, world):
        answer = world.shared().query_and_receive("a")
        world.reactor.end(SessionClosed("the session is closed", started=False))
        with pytest.raises(SessionClosed):
            next(answer)
