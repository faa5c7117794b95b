"""Conversations with real workers and sockets: whose answer is whose, what a crash costs."""

import gc
import os
import signal
import threading
from collections import Counter

import psutil
import pytest

import soloist
from soloist import (
    AssistantMessage,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
    ResultMessage,
    SessionBusy,
    SessionClosed,
    SessionLost,
    SlowReader,
    StreamEvent,
    Supervisor,
    SupervisorClosed,
    WorkerLost,
)
from soloist.supervisor import oneshot
from tests import session_load as load
from tests import stand_in
from tests.support import LIMIT_S, eventually
from tests.support_clients import PatientEcho


def text_of(messages):
    *_, result = messages
    assert isinstance(result, ResultMessage)
    return result.result


def pids_of_sessions(sup):
    return {session.pid for session in sup.stats().sessions}


@pytest.fixture(scope="module")
def sup():
    """Turns in four pieces; a long one lasts until it is interrupted."""
    options = {"chunks": 4, "recall_on": "recall", "resumable": True}
    with Supervisor(1, client=PatientEcho, options=options) as supervisor:
        yield supervisor


@pytest.fixture
def chat(sup, request):
    session = sup.shared(request.node.name)
    yield session
    session.close()


@pytest.fixture(scope="module")
def on_cli(tmp_path_factory):
    """A Supervisor on the scripted CLI, and a list whose last member answers its questions.

    Shared, because importing the SDK is slow.
    """
    pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")
    folder = tmp_path_factory.mktemp("cli")
    handlers = []
    with Supervisor(
        1,
        client="claude",
        options={"cli_path": stand_in.install(folder), "cwd": str(folder)},
        on_control=lambda question: handlers[-1](question),
    ) as supervisor:
        yield supervisor, handlers


class TestLoad:
    """Many callers, some of them rude."""

    @pytest.mark.parametrize(
        ("threads", "peers", "requests"),
        [(8, 2, 25), pytest.param(40, 10, 200, marks=pytest.mark.soak)],
    )
    def test_polite_callers_get_their_own_answers_in_order(
        self, tmp_path, threads, peers, requests
    ):
        log = tmp_path / "turns"
        with Supervisor(1, options={"log": str(log)}) as sup:
            outcomes = load.run(sup.shared("all"), threads=threads, peers=peers, requests=requests)
        total = (threads + peers) * requests
        assert Counter(outcome.kind for outcome in outcomes) == {"answer": total}
        load.check_own_answers(outcomes)
        assert load.check_in_order(outcomes) == list(range(1, total + 1))
        assert load.check_no_overlap(log) == total

    @pytest.mark.parametrize(
        ("threads", "peers", "requests"),
        [(8, 2, 20), pytest.param(40, 10, 200, marks=pytest.mark.soak)],
    )
    def test_no_answer_is_stale_whatever_the_others_do(self, tmp_path, threads, peers, requests):
        log = tmp_path / "turns"
        options = {"log": str(log), "chunks": 4, "delay_s": 0.001}
        memory = psutil.Process().memory_info
        with Supervisor(1, options=options, stream_buffer_bytes=load.BUFFER_BYTES) as sup:
            chat = sup.shared("all")
            load.run(chat, threads=threads, peers=peers, requests=requests // 10, seed=1)
            gc.collect()
            before = memory().rss
            outcomes = load.run(chat, threads=threads, peers=peers, requests=requests, seed=2)
            gc.collect()
            grown = memory().rss - before
            assert text_of(chat.query_and_receive("still here")) == "still here"
            assert chat.incarnation == 1
        load.check_own_answers(outcomes)
        load.check_in_order(outcomes)
        load.check_no_overlap(log)
        kinds = Counter(outcome.kind for outcome in outcomes)
        assert kinds["answer"] > len(outcomes) / 2
        assert len(kinds) >= 4, kinds
        assert grown < 16_000_000

    @pytest.mark.parametrize(
        ("threads", "peers", "requests"),
        [(4, 1, 10), pytest.param(40, 10, 200, marks=pytest.mark.soak)],
    )
    def test_on_the_scripted_cli(self, on_cli, threads, peers, requests):
        sup, _ = on_cli
        chat = sup.shared("all")
        outcomes = load.run(chat, threads=threads, peers=peers, requests=requests)
        chat.close()
        load.check_own_answers(outcomes)
        assert load.check_in_order(outcomes) == list(range(1, (threads + peers) * requests + 1))


class TestTheNextAnswerIsTheNextQuestions:
    """The known defect of a lock around a client: one turn behind, for ever."""

    def test_after_the_iterator_was_closed(self, chat):
        with chat.query_and_receive("long") as messages:
            assert isinstance(next(messages), StreamEvent)
        assert text_of(chat.query_and_receive("next")) == "next"

    def test_after_the_iterator_was_dropped(self, chat):
        next(chat.query_and_receive("long"))
        assert text_of(chat.query_and_receive("next")) == "next"

    def test_after_an_interrupt(self, chat):
        messages = chat.query_and_receive("long")
        next(messages)
        chat.interrupt()
        with pytest.raises(RequestCancelled):
            list(messages)
        assert text_of(chat.query_and_receive("next")) == "next"

    def test_after_an_interrupt_of_nothing(self, chat):
        chat.interrupt()
        assert text_of(chat.query_and_receive("next")) == "next"

    def test_after_a_timeout(self, chat):
        with pytest.raises(RequestTimeout):
            list(chat.query_and_receive("long", timeout_s=0.1))
        assert text_of(chat.query_and_receive("next")) == "next"

    def test_after_a_cancelled_future(self, chat):
        future = chat.query("long")
        eventually(future.running)
        assert future.cancel()
        assert chat.query("next").result(LIMIT_S).text == "next"

    def test_after_the_callers_thread_died(self, chat):
        def caller():
            messages = chat.query_and_receive("long")
            next(messages)

        thread = threading.Thread(target=caller)
        thread.start()
        thread.join()
        assert text_of(chat.query_and_receive("next")) == "next"

    def test_although_the_first_interrupt_is_lost(self):
        options = {"delay_s": 30.0, "interrupt_deaf_s": 0.3}
        with Supervisor(1, options=options, interrupt_grace_s=20.0) as sup:
            chat = sup.shared("deaf")
            future = chat.query("first")
            eventually(future.running)
            future.cancel()
            follower = chat.query("next")
            eventually(follower.running, timeout_s=10)
            assert chat.incarnation == 1
            follower.cancel()

    def test_although_the_client_ignores_interrupts(self):
        options = {"delay_s": 2.0, "chunks": 20, "ignore_interrupt": True}
        resumable = {"resumable": True, "recall_on": "?"}
        with Supervisor(1, options={**options, **resumable}, interrupt_grace_s=0.2) as sup:
            chat = sup.shared("stubborn")
            assert chat.query("remember").result(LIMIT_S).text == "remember"
            next(running := chat.query_and_receive("again"))  # its turn has begun
            chat.interrupt()
            with pytest.raises(RequestCancelled):
                list(running)
            assert chat.query("?").result(LIMIT_S).text == "remember"
            assert chat.incarnation == 2


class TestWaiting:
    def test_a_deadline_counts_in_the_queue_too(self, chat):
        running = chat.query("long")
        with pytest.raises(RequestTimeout) as late:
            list(chat.query_and_receive("waits", timeout_s=0.05))
        assert late.value.started is False
        assert not running.done()

    def test_who_gives_up_is_never_asked(self, chat):
        running = chat.query_and_receive("long")
        waiting = [chat.query(f"waits {i}") for i in range(5)]
        last = chat.query("recall")
        for future in waiting:
            assert future.cancel()
        next(running)  # its turn has begun: it will be remembered
        chat.interrupt()
        with pytest.raises(RequestCancelled):
            list(running)
        assert last.result(LIMIT_S).text == "long"

    def test_a_full_queue_says_so_at_once(self, sup):
        chat = sup.shared("small", max_queue=2)
        running = chat.query("long")
        eventually(running.running)
        waiting = [chat.query(f"waits {i}") for i in range(2)]
        with pytest.raises(QueueFull) as full:
            chat.query("one too many").result(LIMIT_S)
        assert full.value.started is False
        running.cancel()
        assert [future.result(LIMIT_S).text for future in waiting] == ["waits 0", "waits 1"]
        chat.close()

    def test_a_reader_that_stops_costs_only_itself(self):
        """It delays nobody by more than its own turn, and is cut off at its bound of bytes."""
        options = {"delay_s": 0.1, "chunks": 20}
        with Supervisor(1, options=options, stream_buffer_bytes=10_000) as sup:
            chat = sup.shared("abandoned")
            abandoned = chat.query_and_receive("x" * 100_000)
            next(abandoned)
            others = [chat.query(f"other {i}") for i in range(10)]
            texts = [other.result(LIMIT_S).text for other in others]
            assert texts == [f"other {i}" for i in range(10)]
            with pytest.raises(SlowReader):
                list(abandoned)


class TestTheEnd:
    def test_close_fails_who_waits_and_interrupts_what_runs(self, sup):
        chat = sup.shared("closing")
        running, waiting = chat.query_and_receive("long"), chat.query("waits")
        next(running)  # its turn has begun
        chat.close()
        with pytest.raises(SessionClosed) as never:
            waiting.result(LIMIT_S)
        with pytest.raises(SessionClosed) as ran:
            list(running)
        assert (never.value.started, ran.value.started) == (False, None)
        with pytest.raises(SessionClosed):
            chat.query("too late").result(LIMIT_S)
        assert chat.stats() is None
        assert not os.path.exists(chat.endpoint.removeprefix("ipc://"))

    def test_close_with_drain_serves_who_waits(self, sup):
        chat = sup.shared("draining")
        futures = [chat.query(f"waits {i}") for i in range(3)]
        chat.close(drain=True)
        assert [future.result(0).text for future in futures] == [f"waits {i}" for i in range(3)]

    def test_an_idle_session_closes_itself(self, sup):
        chat = sup.shared("idle", idle_timeout_s=0.3)
        assert chat.query("a").result(LIMIT_S).num_turns == 1
        eventually(lambda: chat.stats() is None)
        with pytest.raises(SessionClosed):
            chat.query("b").result(LIMIT_S)

    def test_the_supervisors_end_is_the_sessions(self):
        with Supervisor(1, options={"delay_s": 30.0}, interrupt_grace_s=1.0) as sup:
            chat = sup.shared("chat")
            own = sup.session()
            running, waiting = chat.query("long"), chat.query("waits")
            eventually(running.running)
            sup.close()
        for future in (running, waiting):
            with pytest.raises(SupervisorClosed):
                future.result(LIMIT_S)
        with pytest.raises(SupervisorClosed):
            own.query("too late")

    def test_no_more_than_so_many_are_open(self):
        with Supervisor(1, max_sessions=2) as sup:
            first = sup.shared("a")
            with sup.session():
                assert sup.shared("a").query("again").result(LIMIT_S).num_turns == 1
                with pytest.raises(QueueFull, match="max_sessions"):
                    sup.shared("b")
            assert sup.shared("b").query("now").result(LIMIT_S).text == "now"
            first.close()

    def test_map_waits_for_no_session(self, sup):
        with sup.session() as own:
            own.query("long")
            assert [result.text for result in sup.map(["a"])] == ["a"]
            assert own.stats().state == "running"


class TestCrash:
    def test_a_resumed_conversation_goes_on_in_order(self, chat):
        assert chat.query("before").result(LIMIT_S).num_turns == 1
        pid = chat.stats().pid
        running = chat.query_and_receive("long")
        waiting = [chat.query("recall"), chat.query("after")]
        next(running)  # it has begun: what has not would begin again, elsewhere
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerLost) as lost:
            list(running)
        assert lost.value.started is None
        assert waiting[0].result(LIMIT_S).text == "before"
        assert waiting[1].result(LIMIT_S).num_turns == 3
        assert chat.incarnation == 2

    def test_one_that_cannot_be_resumed_is_lost_and_says_so(self):
        with Supervisor(1, client=PatientEcho, options={"chunks": 1}) as sup:
            chat = sup.shared("chat")
            assert chat.query("before").result(LIMIT_S).num_turns == 1
            pid = chat.stats().pid
            running, waiting = chat.query_and_receive("long"), chat.query("waits")
            next(running)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(WorkerLost):
                list(running)
            with pytest.raises(SessionLost) as lost:
                waiting.result(LIMIT_S)
            assert lost.value.started is False
            with pytest.raises(SessionLost):
                sup.shared("chat").query("again").result(LIMIT_S)
            chat.close()
            assert sup.shared("chat").query("anew").result(LIMIT_S).num_turns == 1

    def test_a_client_that_cannot_start_fails_its_callers_at_once(self):
        with Supervisor(1, options={"fail_connect": "no luck"}) as sup:
            with pytest.raises(soloist.ClientConnectError, match="no luck"):
                sup.shared("chat").query("a").result(LIMIT_S)
            with pytest.raises(soloist.ClientConnectError, match="no luck"):
                sup.session()

    def test_nobody_waits_for_ever_for_a_client_that_does_not_connect(self):
        with Supervisor(1, options={"connect_delay_s": 600}, connect_timeout_s=0.1) as sup:
            with pytest.raises(soloist.ClientConnectError, match="connect_timeout_s"):
                sup.session()
            gc.collect()  # what could not begin need not be closed: no ResourceWarning
            with pytest.raises(soloist.ClientConnectError, match="connect_timeout_s"):
                sup.submit("a").result(LIMIT_S)


class TestOwned:
    def test_it_has_the_methods_of_the_agent_sdks_client(self, sup):
        with sup.session() as own:
            assert own.is_connected
            own.query("one")
            kinds = [type(message) for message in own.receive_response()]
            assert kinds == [StreamEvent] * 4 + [AssistantMessage, ResultMessage]
            *_, said, result = own.query_and_receive("two")
            assert (said.content[0].text, result.num_turns) == ("two", 2)
            own.set_model("other")
            *_, said, _ = own.query_and_receive("three")
            assert said.model == "other"
        assert not own.is_connected

    def test_a_second_thread_is_told_at_once(self, sup):
        heard = []

        def intruder(session):
            for use in (lambda: session.query("mine"), session.receive_response):
                try:
                    use()
                except SessionBusy as error:
                    heard.append(error.started)

        with sup.session() as own:
            own.query("long")
            thread = threading.Thread(target=intruder, args=(own,))
            thread.start()
            thread.join()
            assert heard == [False, False]
            with pytest.raises(SessionBusy):
                own.query("not yet")

    def test_an_interrupted_turn_ends_with_its_result(self, sup):
        with sup.session() as own:
            own.query("long")
            messages = own.receive_response()
            next(messages)
            threading.Thread(target=own.interrupt).start()
            *_, last = messages
            assert isinstance(last, ResultMessage)
            assert last.is_error
            assert text_of(own.query_and_receive("next")) == "next"

    def test_its_worker_is_free_after_it(self, sup):
        with sup.session() as own:
            pid = own.stats().pid
            assert pid in pids_of_sessions(sup)
        assert pid not in pids_of_sessions(sup)

    def test_one_that_was_forgotten_is_closed(self, sup):
        with pytest.warns(ResourceWarning, match="Session was not closed"):
            pid = sup.session().stats().pid
            gc.collect()
        eventually(lambda: pid not in pids_of_sessions(sup))


@pytest.fixture
def forgets_one_shots():
    """Else their workers stay for the next call, and for other tests to find."""
    yield
    while oneshot._supervisors:
        oneshot._supervisors.popitem()[1].close()


class TestOneShot:
    @pytest.mark.usefixtures("forgets_one_shots")
    def test_every_call_is_a_new_conversation(self):
        for prompt in ("a", "b"):
            *_, result = soloist.query(prompt)
            assert (result.result, result.num_turns) == (prompt, 1)

    def test_the_prompt_is_sent_by_the_call(self, sup):
        messages = sup.query("early", timeout_s=LIMIT_S)
        eventually(lambda: messages.is_over)
        assert text_of(messages) == "early"

    def test_a_map_never_shows_a_prompt_the_history_of_another(self):
        options = {"recall_on": "recall"}
        for more in ({}, {"resettable": False}):
            with Supervisor(2, options={**options, **more}) as sup:
                texts = [result.text for result in sup.map(["secret", "recall"] * 10)]
            assert texts == ["secret", ""] * 10


class TestCallbacks:
    def test_the_caller_is_asked_and_what_it_says_is_the_answer(self):
        asked = []

        def on_control(question):
            asked.append((question.kind, question.data, question.prompt, question.session))
            return {"text": "from the caller"}

        with Supervisor(1, options={"ask_on": "ask"}, on_control=on_control) as sup:
            assert sup.map(["ask"])[0].text == "from the caller"
            chat = sup.shared("chat")
            own = chat.query_and_receive("ask", on_control=lambda _: {"text": "from its own"})
            assert text_of(own) == "from its own"
            assert text_of(chat.query_and_receive("ask")) == "from the caller"
        assert asked == [
            ("echo", {"prompt": "ask"}, "ask", ""),
            ("echo", {"prompt": "ask"}, "ask", "chat"),
        ]

    @pytest.mark.parametrize("verdict", [True, False, None, {"behavior": "deny"}])
    def test_the_caller_decides_on_the_scripted_clis_tools(self, on_cli, verdict):
        sup, handlers = on_cli
        asked = []

        def on_control(question):
            asked.append((question.kind, question.data["tool_name"]))
            return verdict

        handlers.append(on_control)
        text = sup.map(["/tool Bash hello"])[0].text
        assert text.startswith("allow" if verdict is True else "deny")
        assert asked == [("permission", "Bash")]

    def test_without_an_answer_in_time_the_answer_is_no(self):
        is_over = threading.Event()
        with Supervisor(
            1,
            options={"ask_on": "ask"},
            on_control=lambda _: is_over.wait(LIMIT_S),
            control_timeout_s=0.2,
        ) as sup:
            with pytest.raises(soloist.SoloistError):
                sup.map(["ask"])
            is_over.set()
