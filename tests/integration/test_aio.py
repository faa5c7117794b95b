"""The asyncio interface on real processes: what is cancelled, what is left, who gets what."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from soloist import (
    AssistantMessage,
    AsyncSupervisor,
    ClientConnectError,
    ClientError,
    ClientNotFound,
    InvalidOptions,
    LocalProtocolError,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
    ResultMessage,
    SessionBusy,
    SessionClosed,
    SupervisorClosed,
)
from tests.support import (
    LIMIT_S,
    ROOT,
    descendants_of_runs,
    environment,
    eventually,
    run_dirs_of,
    run_python,
)

try:
    import uvloop
except ImportError:
    LOOPS = {"asyncio": asyncio.new_event_loop}
else:
    LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

FOR_EVER_S = 600.0
SLOW = {"delay_s": FOR_EVER_S}


def same(prompt):
    return prompt


async def agent(prompt):
    """Answers at once, or, asked to be slow, never; fails when asked to."""
    if prompt == "slow":
        await asyncio.sleep(FOR_EVER_S)
    if prompt == "wrong":
        raise ValueError(prompt)
    return prompt


def run(main, loop_factory=asyncio.new_event_loop):
    """Run to the end; no task, thread or process may be left, and nothing go wrong unseen."""
    unseen = []

    async def guarded():
        asyncio.get_running_loop().set_exception_handler(lambda _, told: unseen.append(told))
        async with asyncio.timeout(LIMIT_S):
            await main()
        gc.collect()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(guarded())
    assert unseen == []
    assert not run_dirs_of(os.getpid())
    eventually(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("soloist")], LIMIT_S
    )


def on_loop(test):
    """Let an ``async def`` test run, on each loop that there is."""

    @pytest.mark.parametrize("loop", sorted(LOOPS))
    def wrapped(*args, loop, **kwargs):
        run(lambda: test(*args, **kwargs), LOOPS[loop])

    signature = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    wrapped.__signature__ = signature.replace(parameters=[*signature.parameters.values(), loop])
    return functools.update_wrapper(wrapped, test, ("__name__", "__doc__"), ())


async def agen(prompts):
    for prompt in prompts:
        yield prompt


def source(kind, prompts):
    return agen(prompts) if kind == "async" else iter(prompts)


def texts(results):
    return [result.text for result in results]


async def until(snapshot, condition):
    """Wait for something that has no event to wait on."""
    while not condition(await snapshot()):  # noqa: ASYNC110
        await asyncio.sleep(0.002)  # a loop that never rests takes the workers' processor


async def until_running(sup):
    await until(sup.stats, lambda stats: stats.running)


async def answer_of(messages):
    return [m.result async for m in messages if isinstance(m, ResultMessage)]


BOTH = pytest.mark.parametrize("kind", ["sync", "async"])


class TestMany:
    @BOTH
    @on_loop
    async def test_results_come_in_input_order(self, kind):
        prompts = [f"p{i}" for i in range(3000)]
        async with AsyncSupervisor(size=2, client=same) as sup:
            results = await sup.map(source(kind, prompts))
            assert texts(results) == prompts
            assert [result.index for result in results] == list(range(3000))
            assert [r.text async for r in sup.imap(source(kind, prompts))] == prompts
            unordered = [r async for r in sup.imap_unordered(source(kind, prompts))]
            assert sorted((r.index, r.text) for r in unordered) == list(enumerate(prompts))
            assert await sup.map(source(kind, [])) == []

    @on_loop
    async def test_the_first_error_is_raised_with_what_was_completed(self):
        async with AsyncSupervisor(size=1, client=agent) as sup:
            with pytest.raises(ClientError, match="wrong") as caught:
                await sup.map(["a", "b", "wrong", "slow"])
            assert texts(caught.value.completed) == ["a", "b"]
            outcomes = await sup.map(["a", "wrong", "c"], return_exceptions=True)
            assert [type(o).__name__ for o in outcomes] == ["Result", "ClientError", "Result"]
            got = []
            with pytest.raises(ClientError, match="wrong"):
                async for result in sup.imap(["a", "wrong", "slow"]):
                    got.append(result.text)
            assert got == ["a"]

    @on_loop
    async def test_times_bound_each_prompt_and_the_whole(self):
        async with AsyncSupervisor(size=1, options=SLOW) as sup:
            (outcome,) = await sup.map(["a"], timeout_s=0.05, return_exceptions=True)
            assert isinstance(outcome, RequestTimeout)
            with pytest.raises(RequestTimeout):
                await sup.map(["a"], total_timeout_s=0.05)
            with pytest.raises(InvalidOptions, match="timeout_s"):
                await sup.map(["a"], timeout_s=-1)

    @BOTH
    @on_loop
    async def test_an_endless_input_may_be_left_early(self, kind):
        def endless(pulled):
            while True:
                pulled.append(1)
                yield "a"

        async with AsyncSupervisor(size=2, client=same, window=50) as sup:
            for imap in (sup.imap, sup.imap_unordered):
                pulled, read = [], 0
                async for _ in imap(source(kind, endless(pulled))):
                    read += 1
                    assert len(pulled) - read <= 50
                    if read == 500:
                        break
                assert (await sup.submit("next")).text == "next"
                assert len(pulled) <= 551

    @on_loop
    async def test_the_loop_stays_responsive(self):
        beats, gaps = 0, []

        async def heart():
            nonlocal beats
            last = time.monotonic()
            while True:
                await asyncio.sleep(0)
                beats += 1
                now = time.monotonic()
                gaps.append(now - last)
                last = now

        async with AsyncSupervisor(size=2, client=same) as sup:
            beating = asyncio.create_task(heart())
            await asyncio.sleep(0)
            await sup.map(map(str, range(20_000)))
            async for _ in sup.imap(map(str, range(20_000))):
                pass
            beating.cancel()
        assert beats > 100
        gaps.sort()
        assert gaps[len(gaps) * 99 // 100] < 0.1

    @on_loop
    async def test_a_thousand_tasks_submit_at_once(self):
        async with AsyncSupervisor(size=2, client=same) as sup:

            async def ask(prompt):
                return (await sup.submit(prompt)).text

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(str(i))) for i in range(1000)]
            assert [task.result() for task in tasks] == [str(i) for i in range(1000)]
            futures = [sup.submit(str(i)) for i in range(1000)]
            assert texts(await asyncio.gather(*futures)) == [str(i) for i in range(1000)]

    @on_loop
    async def test_what_waits_is_bounded(self):
        async with AsyncSupervisor(size=1, options=SLOW, max_pending=2) as sup:
            waiting = [sup.submit("a"), sup.submit("b")]
            with pytest.raises(QueueFull):
                sup.submit("c")
            waiting[1].cancel()
            await until(sup.stats, lambda stats: stats.cancelled)
            waiting.append(sup.submit("c"))
            await sup.cancel_pending()
            with pytest.raises(RequestCancelled) as caught:
                await waiting[2]
            assert caught.value.started is False
            waiting[0].cancel()


class TestCancel:
    """What a task no longer waits for ends, and its worker is free within the grace time."""

    HOW = ("submit", "map", "imap", "query")

    @staticmethod
    async def call(how, sup):
        match how:
            case "submit":
                await sup.submit("slow")
            case "map":
                await sup.map(["slow"] * 2)
            case "imap":
                async for _ in sup.imap(agen(["slow"] * 2)):
                    pass
            case "query":
                async for _ in sup.query("slow"):
                    pass

    @on_loop
    async def test_asyncio_timeout_frees_the_worker(self):
        async with AsyncSupervisor(size=1, client=agent) as sup:
            assert (await sup.submit("first")).text == "first"
            for how in self.HOW * 3:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self.call(how, sup)
                began = time.monotonic()
                assert (await sup.submit("next")).text == "next"
                assert time.monotonic() - began < 5.0  # interrupt_grace_s
            (worker,) = (await sup.stats()).workers
            assert worker.incarnation == 1

    @on_loop
    async def test_a_task_group_that_fails_cancels_the_others(self):
        async with AsyncSupervisor(size=3, client=agent) as sup:
            for how in self.HOW:
                with pytest.raises(ExceptionGroup) as caught:
                    async with asyncio.TaskGroup() as group:
                        other = group.create_task(self.call(how, sup))
                        group.create_task(sup.map(["wrong"]))
                assert caught.group_contains(ClientError)
                assert other.cancelled()
                assert (await sup.submit("next")).text == "next"

    @on_loop
    async def test_the_stream_of_a_cancelled_task_never_reaches_another(self):
        dice = random.Random(8)
        counts = {"read": 0, "cancelled": 0}
        options = {"delay_s": 0.004, "chunks": 4}
        async with AsyncSupervisor(size=2, options=options) as sup:
            chat = await sup.shared("chat")

            async def read(prompt, messages):
                streamed = ""
                async for message in messages:
                    if isinstance(message, AssistantMessage):
                        assert message.content[0].text == prompt
                    elif isinstance(message, ResultMessage):
                        assert message.result == prompt
                    else:
                        streamed += message.event["delta"]["text"]
                        assert prompt.startswith(streamed)
                assert streamed == prompt

            async def caller(name):
                async with sup.session() as own:
                    for i in range(30):
                        prompt = f"{name} says number {i}"
                        ask = dice.choice(
                            [sup.query, chat.query_and_receive, own.query_and_receive]
                        )
                        try:
                            async with asyncio.timeout(dice.choice([0.002, 0.006, None])):
                                await read(prompt, ask(prompt))
                            counts["read"] += 1
                        except TimeoutError:
                            counts["cancelled"] += 1

            async with asyncio.TaskGroup() as group:
                for name in "abcdef":
                    group.create_task(caller(name))
            assert await answer_of(chat.query_and_receive("last")) == ["last"]
        assert counts["read"] + counts["cancelled"] == 180
        assert min(counts.values()) > 20

    @on_loop
    async def test_a_future_may_be_cancelled_while_it_runs(self):
        async with AsyncSupervisor(size=1, client=agent) as sup:
            future = sup.submit("slow")
            await until_running(sup)
            assert future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await future
            assert (await sup.submit("next")).text == "next"
            assert (await sup.stats()).cancelled == 1


class TestSession:
    @on_loop
    async def test_a_conversation(self):
        async with AsyncSupervisor(size=1, options={"chunks": 3}) as sup, sup.session() as own:
            for turn in (1, 2):
                await own.query("hello")
                *rest, last = [m async for m in own.receive_response()]
                assert (len(rest), last.result, last.num_turns) == (4, "hello", turn)
            assert await own.is_connected()
            assert await own.incarnation() == 1
            assert (await own.stats()).answered == 2
            await own.set_model("other")
            (message,) = [
                m async for m in own.query_and_receive("x") if isinstance(m, AssistantMessage)
            ]
            assert message.model == "other"
            with pytest.raises(InvalidOptions, match="set_permission_mode"):
                await own.set_permission_mode("plan")

    @on_loop
    async def test_it_may_be_awaited_and_closed_by_hand(self):
        async with AsyncSupervisor(size=1) as sup:
            own = sup.session()
            with pytest.raises(LocalProtocolError, match="async with"):
                await own.query("early")
            await own.close()
            assert await own is own
            with pytest.raises(LocalProtocolError, match="already"):
                await own
            assert await answer_of(own.query_and_receive("a")) == ["a"]
            await own.close()
            await own.close()
            assert await own.stats() is None
            assert not await own.is_connected()
            with pytest.raises(SessionClosed):
                await answer_of(own.query_and_receive("b"))

    @on_loop
    async def test_a_second_task_gets_session_busy_and_a_finished_one_is_no_user(self):
        async with AsyncSupervisor(size=1, options=SLOW) as sup, sup.session() as own:
            await own.query("mine")

            async def other():
                with pytest.raises(SessionBusy):
                    await own.query("theirs")
                with pytest.raises(SessionBusy):
                    own.receive_response()

            await asyncio.create_task(other())
            await own.interrupt()
            with contextlib.suppress(RequestCancelled):  # it may not have begun
                await answer_of(own.receive_response())
            await asyncio.create_task(own.query("of a task that ends"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await answer_of(own.query_and_receive("mine again"))

    @on_loop
    async def test_the_iterator_may_be_handed_to_another_task(self):
        async with AsyncSupervisor(size=1) as sup, sup.session() as own:
            await own.query("a")
            assert await asyncio.create_task(answer_of(own.receive_response())) == ["a"]
            await asyncio.wait_for(own.query("b"), LIMIT_S)
            assert await answer_of(own.receive_response()) == ["b"]

    @on_loop
    async def test_the_next_answer_belongs_to_the_next_question(self):
        options = {"delay_s": 0.3, "chunks": 30}
        async with AsyncSupervisor(size=1, options=options) as sup, sup.session() as own:
            for i, how in enumerate(["timeout", "aclose", "break", "unread"] * 3):
                messages = own.query_and_receive(f"stale {i}")
                if how == "timeout":
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await answer_of(messages)
                elif how == "break":
                    async for _ in messages:
                        break
                elif how == "aclose":
                    await anext(messages)
                    await messages.aclose()
                del messages
                answers = await answer_of(own.query_and_receive(f"fresh {i}"))
                assert answers == [f"fresh {i}"]
            assert await own.incarnation() == 1

    @on_loop
    async def test_interrupt_ends_the_turn_with_its_result(self):
        options = {"delay_s": FOR_EVER_S, "chunks": 60_000}
        async with AsyncSupervisor(size=1, options=options) as sup, sup.session() as own:
            await own.interrupt()
            *_, last = [m async for m in self.interrupting(own)]
            assert isinstance(last, ResultMessage)
            *_, last = [m async for m in self.interrupting(own)]
            assert last.num_turns == 2

    @staticmethod
    async def interrupting(own):
        async for message in own.query_and_receive("a"):
            await own.interrupt()
            yield message

    @on_loop
    async def test_what_cannot_connect_says_so_and_gives_its_place_back(self):
        options = {"fail_connect": "no way"}
        async with AsyncSupervisor(size=1, options=options, max_sessions=1) as sup:
            for _ in range(2):
                with pytest.raises(ClientConnectError, match="no way"):
                    async with sup.session():
                        pass
                await self.until_no_session(sup)

    @on_loop
    async def test_a_cancelled_opening_leaves_no_session(self):
        options = {"connect_delay_s": 0.2}
        async with AsyncSupervisor(size=1, options=options, max_sessions=1) as sup:
            for pause_s in (0, 0.05):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(pause_s), sup.session():
                        pytest.fail("it cannot be that fast")
                await self.until_no_session(sup)

    @on_loop
    async def test_a_forgotten_one_is_closed(self):
        async with AsyncSupervisor(size=1, max_sessions=1) as sup:
            own = await sup.session()
            with pytest.raises(QueueFull):
                await sup.session()
            with pytest.warns(ResourceWarning, match="Session was not closed"):
                del own
                gc.collect()
            await self.until_no_session(sup)

    @staticmethod
    async def until_no_session(sup):
        await until(sup.stats, lambda stats: not stats.sessions)


class TestShared:
    @on_loop
    async def test_many_tasks_share_one_conversation(self):
        async with AsyncSupervisor(size=1) as sup:

            async def caller(name):
                chat = await sup.shared("chat")
                for i in range(10):
                    prompt = f"{name}{i}"
                    assert await answer_of(chat.query_and_receive(prompt)) == [prompt]

            async with asyncio.TaskGroup() as group:
                for name in "abcdefgh":
                    group.create_task(caller(name))
            chat = await sup.shared("chat")
            assert (await chat.query("context")).num_turns == 81
            assert (await chat.stats()).name == chat.name == "chat"
            assert chat.endpoint.startswith("ipc://")

    @on_loop
    async def test_interrupt_ends_the_turn_of_whoever_runs(self):
        async with AsyncSupervisor(size=1, client=agent) as sup:
            chat = await sup.shared("chat")
            running, waiting = chat.query("slow"), chat.query("next")
            await until(chat.stats, lambda stats: stats.state == "running")
            await chat.interrupt()
            with pytest.raises(RequestCancelled):
                await running
            assert (await waiting).text == "next"

    @on_loop
    async def test_closing_drains_or_fails_those_who_wait(self):
        async with AsyncSupervisor(size=1, options={"delay_s": 0.02}) as sup:
            chat = await sup.shared("chat")
            futures = [chat.query(str(i)) for i in range(5)]
            await chat.close(drain=True)
            assert texts(await asyncio.gather(*futures)) == list("01234")
            chat = await sup.shared("chat")
            futures = [chat.query(str(i)) for i in range(5)]
            await chat.close()
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {SessionClosed}
            chat = await sup.shared("chat")
            with pytest.raises(InvalidOptions, match="timeout_s"):
                await chat.close(timeout_s=-1)

    @on_loop
    async def test_a_drain_that_takes_too_long_or_is_cancelled(self):
        async with AsyncSupervisor(size=1, client=agent) as sup:
            chat = await sup.shared("chat")
            future = chat.query("slow")
            await chat.close(drain=True, timeout_s=0.05)
            with pytest.raises(SessionClosed):
                await future
            chat = await sup.shared("chat")
            future = chat.query("slow")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await chat.close(drain=True)
            await chat.close()
            with pytest.raises(SessionClosed):
                await future


ASKING = {"ask_on": "may I?"}


class TestControl:
    @pytest.mark.parametrize("where", ["supervisor", "query", "session", "shared"])
    @on_loop
    async def test_a_coroutine_function_answers_on_the_loop(self, where):
        here, seen = threading.get_ident(), []

        async def handler(request):
            await asyncio.sleep(0)
            seen.append((request.kind, threading.get_ident()))
            return {"text": "you may"}

        async def never(request):
            return {"text": "wrong handler"}

        default = handler if where == "supervisor" else never
        own = None if where == "supervisor" else handler
        async with AsyncSupervisor(size=1, options=ASKING, on_control=default) as sup:
            match where:
                case "supervisor" | "query":
                    messages = sup.query("may I?", on_control=own)
                case "session":
                    session = await sup.session()
                    messages = session.query_and_receive("may I?", on_control=own)
                case "shared":
                    chat = await sup.shared("chat")
                    messages = chat.query_and_receive("may I?", on_control=own)
            assert await answer_of(messages) == ["you may"]
        assert seen == [("echo", here)]

    @on_loop
    async def test_a_function_answers_on_a_thread(self):
        async with AsyncSupervisor(
            size=1,
            options=ASKING,
            on_control=lambda request: {"text": threading.current_thread().name},
        ) as sup:
            assert await answer_of(sup.query("may I?")) == ["soloist-control"]

    @on_loop
    async def test_a_handler_that_waits_for_ever_is_cancelled_with_the_supervisor(self, caplog):
        asked, cancelled = asyncio.Event(), []

        async def handler(request):
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(request)

        async with AsyncSupervisor(size=1, options=ASKING, on_control=handler) as sup:
            future = sup.submit("may I?")
            await asked.wait()
            future.cancel()
        assert len(cancelled) == 1


class Left(Exception):
    """How a block is left."""


class TestEnd:
    @on_loop
    async def test_leaving_the_block_waits_for_what_was_accepted(self):
        async with AsyncSupervisor(size=2, options={"delay_s": 0.05}) as sup:
            futures = [sup.submit(str(i)) for i in range(6)]
        assert texts(await asyncio.gather(*futures)) == list("012345")
        with pytest.raises(SupervisorClosed):
            sup.submit("late")
        assert (await sup.stats()).is_closed
        assert await sup.drain(LIMIT_S)
        await sup.close()
        await sup.kill()

    @on_loop
    async def test_leaving_it_by_an_error_ends_everything(self):
        with pytest.raises(Left):
            async with AsyncSupervisor(size=1, options=SLOW) as sup:
                futures = [sup.submit("a"), sup.submit("b")]
                raise Left
        errors = await asyncio.gather(*futures, return_exceptions=True)
        assert {type(error) for error in errors} == {SupervisorClosed}

    @on_loop
    async def test_what_nobody_awaits_is_no_noise(self):
        with pytest.raises(Left):
            async with AsyncSupervisor(size=1, options=SLOW) as sup:
                _ = [sup.submit("a"), sup.submit("b")]
                raise Left

    @on_loop
    async def test_drain_says_whether_all_had_their_outcome(self):
        async with AsyncSupervisor(size=1, client=agent) as sup:
            future = sup.submit("slow")
            assert not await sup.drain(0.05)
            future.cancel()
            assert await sup.drain(LIMIT_S)

    @on_loop
    async def test_kill_ends_everything_at_once(self):
        options = SLOW | {"ignore_interrupt": True}
        async with AsyncSupervisor(size=1, options=options, interrupt_grace_s=60) as sup:
            future = sup.submit("a")
            await until_running(sup)
            await sup.kill()
            with pytest.raises(SupervisorClosed):
                await future

    @pytest.mark.parametrize("times", [1, 2])
    @on_loop
    async def test_a_cancellation_while_it_drains_ends_that_and_a_second_one_kills(self, times):
        """What ignores its interrupt would have a minute to end, after the first alone."""
        options = SLOW | {"ignore_interrupt": times == 2}
        leaving = asyncio.Event()

        async def main():
            async with AsyncSupervisor(size=1, options=options, interrupt_grace_s=60) as sup:
                _ = sup.submit("a")
                await until_running(sup)
                leaving.set()

        task = asyncio.create_task(main())
        await leaving.wait()
        for _ in range(times):
            for _ in range(10):
                await asyncio.sleep(0)
            assert not task.done()
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    @on_loop
    async def test_a_cancelled_start_leaves_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "slow_to_import.py").write_text("import time; time.sleep(0.5)")
        monkeypatch.syspath_prepend(str(tmp_path))
        for pause_s in (0, 0.05, 0.3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(pause_s):
                    async with AsyncSupervisor(size=1, preload=["slow_to_import"]):
                        pytest.fail("it cannot be that fast")
            assert not run_dirs_of(os.getpid())

    @on_loop
    async def test_a_start_that_fails_says_why(self):
        for arguments, error in (
            ({"size": 0}, InvalidOptions),
            ({"client": "no such"}, ClientNotFound),
            ({"options": {"dealy_s": 1}}, InvalidOptions),
            ({"preload": ["no_such_module"]}, ClientConnectError),
        ):
            with pytest.raises(error):
                async with AsyncSupervisor(**{"size": 1} | arguments):
                    pass
            assert not run_dirs_of(os.getpid())

    @on_loop
    async def test_start_and_close_by_hand(self):
        sup = await AsyncSupervisor(1, client=same).start()
        with pytest.raises(LocalProtocolError, match="once"):
            await sup.start()
        assert (await sup.submit("a")).text == "a"
        await sup.close(None)

    @on_loop
    async def test_another_thread_or_loop_is_refused(self):
        async with AsyncSupervisor(size=1, client=same) as sup:
            errors = []

            def elsewhere():
                for call in (sup.submit, sup.query, sup.imap):
                    try:
                        call("a")
                    except LocalProtocolError as error:
                        errors.append(error)

                async def on_another_loop():
                    await sup.map(["a"])

                try:
                    asyncio.run(on_another_loop())
                except LocalProtocolError as error:
                    errors.append(error)

            await asyncio.to_thread(elsewhere)
            assert len(errors) == 4

    @on_loop
    async def test_a_map_that_was_not_closed_ends_with_the_supervisor(self):
        async with AsyncSupervisor(size=1, client=same, window=10) as sup:
            running = sup.imap(itertools.repeat("a"))
            assert (await anext(running)).text == "a"
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(SupervisorClosed):
            async for _ in running:
                pass

    def test_a_forgotten_one_warns_and_leaves_nothing(self):
        async def main():
            await AsyncSupervisor(size=1, client=same).start()

        with pytest.warns(ResourceWarning, match="not closed") as seen:
            asyncio.run(main())
            # The thread that started it may hold it for another moment.
            eventually(lambda: gc.collect() is not None and list(seen))
        eventually(lambda: not run_dirs_of(os.getpid()))


CLEAN = """
    import asyncio, gc, threading
    from soloist import AsyncSupervisor

    async def agent(prompt):
        if prompt == "slow":
            await asyncio.sleep(600)
        return prompt

    async def endless():
        while True:
            yield "a"

    async def main():
        async with AsyncSupervisor(size=2, client=agent) as sup:
            await sup.map(["a"] * 100)
            async for result in sup.imap(endless()):
                break
            for call in (sup.submit, lambda p: anext(sup.query(p)), lambda p: sup.map([p])):
                try:
                    async with asyncio.timeout(0.02):
                        await call("slow")
                except TimeoutError:
                    pass
            async with sup.session() as own:
                async for message in own.query_and_receive("slow" if False else "a"):
                    break
            chat = await sup.shared("chat")
            await chat.query("a")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    gc.collect()
    print(sorted(t.name for t in threading.enumerate() if t.is_alive()))
"""

INTERRUPTED = """
    import asyncio
    from soloist import AsyncSupervisor

    async def main():
        async with AsyncSupervisor(size=1, options={"delay_s": 600}) as sup:
            future = sup.submit("a")
            while not (await sup.stats()).running:
                await asyncio.sleep(0.001)
            print("running", flush=True)
            await future

    asyncio.run(main())
"""


class TestScripts:
    def test_in_development_mode_nothing_is_complained_of(self):
        done = run_python("-X", "dev", "-W", "error", "-c", textwrap.dedent(CLEAN))
        slow = [line for line in done.stderr.splitlines() if "took" not in line]
        assert (done.returncode, slow) == (0, [])
        assert done.stdout == "['MainThread']\n"

    def test_control_c_ends_everything(self):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(INTERRUPTED)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
        ) as process:
            assert process.stdout.readline() == b"running\n"
            run_dirs = run_dirs_of(process.pid)
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT_S)
            assert b"KeyboardInterrupt" in process.stderr.read()
        assert run_dirs
        eventually(lambda: not descendants_of_runs(run_dirs))
