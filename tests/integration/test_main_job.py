"""The main job on real processes: map, imap, submit, and what goes wrong with single prompts."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import random
import signal
import threading
import time
from collections import deque

import pytest

from soloist import (
    AssistantMessage,
    ClientConnectError,
    ClientError,
    ClientNotFound,
    InvalidOptions,
    InvalidPrompt,
    PayloadTooLarge,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
    RestartLimitReached,
    Result,
    ResultMessage,
    ResultNotSerializable,
    StreamEvent,
    Supervisor,
    SupervisorClosed,
    WorkerLost,
)
from tests.support import descendants_of_runs, eventually, is_running, run_dirs_of


def upper(prompt: str) -> str:
    return prompt.upper()


def texts(results) -> list[str]:
    return [result.text for result in results]


class TestMap:
    def test_results_come_in_input_order(self):
        with Supervisor(size=3, client=upper) as sup:
            results = sup.map(f"p{i}" for i in range(5000))
        assert texts(results) == [f"P{i}" for i in range(5000)]
        assert [result.index for result in results] == list(range(5000))

    def test_of_nothing_is_nothing(self):
        with Supervisor(size=1, client=upper) as sup:
            assert sup.map([]) == []

    def test_content_blocks_reach_the_client_as_they_are(self):
        blocks = [{"type": "text", "text": "hello"}, {"type": "image", "source": {"data": "x"}}]
        with Supervisor(size=1, client=lambda prompt: repr(prompt)) as sup:
            assert sup.map([blocks])[0].text == repr(blocks)

    def test_the_first_error_is_raised_with_what_was_completed(self):
        def fail_on_50(prompt):
            if prompt == "50":
                raise ValueError("fifty")
            return prompt

        with Supervisor(size=2, client=fail_on_50) as sup:
            with pytest.raises(ClientError, match="fifty") as caught:
                sup.map(map(str, range(51)))
            assert caught.value.type_name == "ValueError"
            assert "fail_on_50" in caught.value.traceback_text
            completed = caught.value.completed
            assert [r.text for r in completed] == [str(r.index) for r in completed]

    def test_the_first_error_ends_the_map_before_slow_prompts_do(self):
        with Supervisor(size=2, options={"delay_s": 0.0, "fail_on": "bad"}) as fast:
            assert len(fast.map(["a", "b"])) == 2

        async def slow_or_bad(prompt):
            if prompt == "bad":
                raise ValueError(prompt)
            await asyncio.sleep(600)
            return prompt

        with Supervisor(size=2, client=slow_or_bad) as sup, pytest.raises(ClientError):
            sup.map(["slow", "bad", "slow"])

    def test_total_timeout_ends_the_whole_call(self):
        with Supervisor(size=1, options={"delay_s": 600}) as sup, pytest.raises(RequestTimeout):
            sup.map(["a", "b"], total_timeout_s=0.05)

    def test_two_threads_may_map_at_once(self):
        with Supervisor(size=2, client=upper) as sup:
            found = {}

            def one(name):
                found[name] = texts(sup.map([f"{name}{i}" for i in range(500)]))

            threads = [threading.Thread(target=one, args=(name,)) for name in "abc"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == {n: [f"{n.upper()}{i}" for i in range(500)] for n in "abc"}


class TestImap:
    def test_is_lazy_over_an_endless_input(self):
        pulled = itertools.count()
        with Supervisor(size=2, client=upper, window=50) as sup:
            results = sup.imap(f"p{i}" for i in pulled)
            assert texts(itertools.islice(results, 500)) == [f"P{i}" for i in range(500)]
            results.close()
        assert next(pulled) <= 500 + 50 + 1

    def test_a_finished_result_is_not_held_back_by_more_input(self):
        release = threading.Event()

        def prompts(sup):
            yield "first"
            time.sleep(0.002)  # longer than input is pulled while a result waits
            eventually(lambda: sup.stats().answered == 1)
            yield "second"
            assert release.wait(30)
            yield "third"

        with Supervisor(size=1, client=upper) as sup:
            results = sup.imap(prompts(sup))
            assert next(results).text == "FIRST"
            release.set()
            assert texts(results) == ["SECOND", "THIRD"]

    def test_closing_the_iterator_cancels_the_rest(self):
        with Supervisor(size=1, options={"delay_s": 0.0}) as sup:
            sup.map(["warm"])
            results = sup.imap(map(str, itertools.count()))
            next(results)
            results.close()
            eventually(lambda: sup.stats().queued + sup.stats().running == 0)
            assert sup.stats().cancelled > 0

    def test_errors_stand_in_their_place_if_asked_for(self):
        with Supervisor(size=2, options={"fail_on": "2"}) as sup:
            results = list(sup.imap(map(str, range(5)), return_exceptions=True))
        assert [type(result) for result in results] == [Result, Result, ClientError, Result, Result]

    def test_an_error_is_raised_in_its_place(self):
        with Supervisor(size=2, options={"fail_on": "2"}) as sup:
            results = sup.imap(map(str, range(5)))
            assert next(results).text + next(results).text == "01"
            with pytest.raises(ClientError):
                next(results)

    def test_unordered_gives_the_quick_ones_first(self):
        async def wait_for(prompt):
            await asyncio.sleep(float(prompt))
            return prompt

        with Supervisor(size=2, client=wait_for) as sup:
            results = list(sup.imap_unordered(["0.3", "0", "0", "0"]))
        assert texts(results)[-1] == "0.3"
        assert results[-1].index == 0

    def test_a_slow_prompt_does_not_hold_up_what_was_sent_behind_it(self):
        def nap(prompt):
            threading.Event().wait(float(prompt))
            return prompt

        with Supervisor(size=2, client=nap) as sup:
            sup.map(["0"] * 2000)  # service times are short: prompts go out in batches
            results = sup.imap_unordered(["0"] * 20 + ["1.5"] + ["0"] * 200)
            first = list(itertools.islice(results, 220))
            assert "1.5" not in texts(first)
            assert texts(results) == ["1.5"]


class TestConversations:
    @pytest.mark.parametrize("resettable", [True, False])
    def test_every_prompt_is_a_new_conversation_by_default(self, resettable):
        with Supervisor(size=2, options={"resettable": resettable}) as sup:
            assert {result.num_turns for result in sup.map(["a"] * 20)} == {1}

    def test_a_worker_keeps_its_conversation_if_asked_to(self):
        with Supervisor(size=1, isolation="worker") as sup:
            assert [result.num_turns for result in sup.map(["a"] * 5)] == [1, 2, 3, 4, 5]

    def test_a_result_carries_the_turns_messages(self):
        with Supervisor(size=1, options={"chunks": 2}) as sup:
            (result,) = sup.map(["hello"])
        kinds = [type(message) for message in result.messages]
        assert kinds == [StreamEvent, StreamEvent, AssistantMessage, ResultMessage]

    def test_query_streams_messages_as_they_arrive(self):
        with Supervisor(size=1, options={"chunks": 2, "delay_s": 600}) as sup:
            stream = sup.query("hello", timeout_s=0.05)
            with pytest.raises(RequestTimeout):
                list(stream)
        with Supervisor(size=1, options={"chunks": 3}) as sup:
            messages = list(sup.query("hello"))
            assert [type(m) for m in messages[-2:]] == [AssistantMessage, ResultMessage]
            assert len(messages) == 5
            assert [m.text for m in (messages[-2].content)] == ["hello"]

    def test_closing_a_query_interrupts_its_turn(self):
        with Supervisor(size=1, options={"chunks": 2, "delay_s": 0.0}) as sup:
            stream = sup.query("hello")
            next(stream)
            stream.close()
            assert texts(sup.map(["next"])) == ["next"]

    def test_query_of_a_bare_callable_gives_an_assistant_and_a_result_message(self):
        with Supervisor(size=1, client=upper) as sup:
            assert [type(m) for m in sup.query("a")] == [AssistantMessage, ResultMessage]


class Overlap:
    """A client of the user's own that refuses a second turn, or a second life, while one is on."""

    connected = 0
    cut_off = 0

    def __init__(self):
        self.prompt = None
        self.stop = None

    async def connect(self):
        assert Overlap.connected == 0, "two clients at once"
        assert Overlap.cut_off == 0, "a client was ended amid a turn"
        Overlap.connected += 1

    async def query(self, prompt):
        assert self.prompt is None, "two turns at once"
        self.prompt = prompt
        self.stop = asyncio.Event()

    async def receive_response(self):
        text, delay_s = self.prompt.split()
        interrupted = float(delay_s) > 0
        if interrupted:
            try:
                await asyncio.wait_for(self.stop.wait(), float(delay_s))
            except TimeoutError:
                interrupted = False
        for _ in range(10):  # an interrupted agent, too, takes a moment to end its turn
            await asyncio.sleep(0)
        self.prompt = None
        yield AssistantMessage(content=[], model="overlap")
        yield ResultMessage(
            subtype="success",
            duration_ms=0,
            duration_api_ms=0,
            is_error=interrupted,
            num_turns=1,
            session_id="",
            result=text,
        )

    async def interrupt(self):
        self.stop.set()

    async def disconnect(self):
        Overlap.connected -= 1
        Overlap.cut_off += self.prompt is not None


class TestOneTurnAtATime:
    @pytest.mark.parametrize("isolation", ["prompt", "worker"])
    def test_whatever_callers_do_and_no_answer_reaches_another(self, isolation):
        rng = random.Random(7)
        with Supervisor(size=2, client=Overlap, isolation=isolation) as sup:
            assert len(sup.map(["p 0"] * 500)) == 500  # in batches
            futures = {}
            for i in range(600):
                delay = rng.choice(["0", "0", "0.003", "600"])
                timeout_s = 0.02 if delay == "600" else None
                future = sup.submit(f"p{i} {delay}", timeout_s=timeout_s)
                futures[future] = f"p{i}"
                if rng.random() < 0.3:
                    rng.choice(list(futures)).cancel()
            done, pending = concurrent.futures.wait(futures, timeout=60)
            assert not pending
            for future in done:
                if future.cancelled():
                    continue
                error = future.exception()
                assert error is None or type(error) is RequestTimeout, error
                assert error or future.result().text == futures[future]
            assert sup.stats().restarts == 0


class TestSinglePromptsThatGoWrong:
    def test_each_fails_alone_and_typed(self):
        class Nasty(Exception):
            def __str__(self):
                raise RuntimeError

            def __reduce__(self):
                raise RuntimeError

        def client(prompt):
            match prompt:
                case "exit":
                    os._exit(5)
                case "nasty":
                    raise Nasty
                case "sys.exit":
                    raise SystemExit(3)
                case "number":
                    return 5
                case "surrogate":
                    return "\ud800"
                case "long":
                    return "x" * 20_000_000
            return prompt

        prompts = [str(i) for i in range(1000)]
        special = {
            100: ("exit", WorkerLost),
            200: ("nasty", ClientError),
            300: ("sys.exit", ClientError),
            400: ("number", ResultNotSerializable),
            500: ("surrogate", ResultNotSerializable),
            600: ("long", PayloadTooLarge),
            700: ("x" * 20_000_000, PayloadTooLarge),
            800: (5, InvalidPrompt),
            900: ("\ud800", InvalidPrompt),
        }
        for index, (prompt, _) in special.items():
            prompts[index] = prompt
        with Supervisor(size=3, client=client, max_payload_bytes=10_000_000) as sup:
            results = sup.map(prompts, return_exceptions=True)
        for index, result in enumerate(results):
            if index in special:
                assert type(result) is special[index][1], (index, result)
            else:
                assert result.text == str(index)
        assert results[100].exitcode == 5
        assert results[100].started is None
        assert results[700].started is results[800].started is False

    def test_a_timeout_says_whether_the_prompt_may_have_run(self):
        with Supervisor(size=1, options={"delay_s": 600}) as sup:
            running = sup.submit("a", timeout_s=1.0)
            is_running(running)
            waiting = sup.submit("b", timeout_s=0.05)
            with pytest.raises(RequestTimeout) as caught:
                waiting.result(30)
            assert caught.value.started is False
            with pytest.raises(RequestTimeout) as caught:
                running.result(30)
            assert caught.value.started is None
            sup.submit("c").cancel()

    def test_after_a_timeout_the_worker_answers_the_next_prompt(self):
        async def wait_for(prompt):
            await asyncio.sleep(float(prompt))
            return prompt

        with Supervisor(size=1, client=wait_for) as sup:
            with pytest.raises(RequestTimeout):
                sup.submit("600", timeout_s=0.05).result(30)
            assert sup.submit("0").result(30).text == "0"
            assert sup.stats().restarts == 0


class TestDeaths:
    def test_a_killed_worker_costs_the_prompt_that_ran_there_and_nothing_else(self):
        def client(prompt):
            if prompt == "3":
                os.kill(os.getpid(), signal.SIGKILL)
            return prompt

        with Supervisor(size=2, client=client) as sup:
            sup.map(["warm"] * 100)
            results = sup.map([str(i) for i in range(100)], return_exceptions=True)
            assert [i for i, r in enumerate(results) if not isinstance(r, Result)] == [3]
            assert results[3].exitcode == -signal.SIGKILL
            assert sup.stats().restarts == 1

    def test_results_that_were_finished_survive_the_worker(self, tmp_path):
        """Kill right after a batch of answers, so that most are still in the dead process."""

        def client(prompt):
            if prompt == "last":
                os.kill(os.getpid(), signal.SIGKILL)
            with (tmp_path / "log").open("a") as log:
                log.write(f"{prompt}\n")
            return prompt

        with Supervisor(size=1, client=client) as sup:
            for _ in range(20):
                (tmp_path / "log").write_text("")
                prompts = [str(i) for i in range(50)] + ["last"] + [str(i) for i in range(51, 80)]
                results = sup.map(prompts, return_exceptions=True)
                failed = [i for i, r in enumerate(results) if not isinstance(r, Result)]
                assert failed == [50]
                ran = (tmp_path / "log").read_text().split()
                assert sorted(ran, key=int) == [str(i) for i in range(80) if i != 50]

    def test_a_client_that_cannot_connect_fails_the_caller_at_once(self):
        with (
            Supervisor(size=4, options={"fail_connect": "no credentials"}) as sup,
            pytest.raises(ClientConnectError, match="no credentials") as caught,
        ):
            sup.map(["a"])
        assert caught.value.started is False

    def test_workers_that_die_before_their_first_answer_reach_the_restart_limit(self):
        with Supervisor(size=2, client=lambda _: os._exit(1), max_restarts=3) as sup:
            results = sup.map(["a"] * 50, return_exceptions=True)
        kinds = [type(result) for result in results]
        assert set(kinds) == {WorkerLost, RestartLimitReached}
        assert 4 <= kinds.count(WorkerLost) <= 5
        limit = next(r for r in results if type(r) is RestartLimitReached)
        assert limit.started is False
        assert "exited with code 1" in str(limit)

    def test_a_client_that_kills_its_process_while_it_connects_reaches_the_limit_too(self):
        class Suicidal:
            async def connect(self):
                os._exit(9)

            async def query(self, prompt): ...
            async def receive_response(self):
                yield

            async def interrupt(self): ...
            async def disconnect(self): ...

        with (
            Supervisor(size=1, client=Suicidal, max_restarts=2) as sup,
            pytest.raises(RestartLimitReached, match="code 9"),
        ):
            sup.map(["a"])


class TestSubmit:
    def test_is_a_real_future(self):
        with Supervisor(size=2, client=upper) as sup:
            seen = []
            done = threading.Event()
            future = sup.submit("a")
            future.add_done_callback(lambda f: (seen.append(f.result().text), done.set()))
            assert isinstance(future, concurrent.futures.Future)
            assert future.result(30).text == "A"
            assert done.wait(30)
            assert seen == ["A"]
            futures = {sup.submit(str(i)): str(i) for i in range(100)}
            for finished in concurrent.futures.as_completed(futures, timeout=30):
                assert finished.result().text == futures[finished]

    def test_callbacks_do_not_run_on_the_io_thread_and_may_submit(self, tmp_path):
        gate = tmp_path / "gate"
        os.mkfifo(gate)

        def wait(prompt):
            if prompt == "a":
                gate.read_bytes()
            return prompt.upper()

        with Supervisor(size=1, client=wait) as sup:
            found = deque()
            done = threading.Event()

            def again(future):
                found.append(threading.current_thread().name)
                found.append(sup.submit("b").result(30).text)
                done.set()

            sup.submit("a").add_done_callback(again)
            gate.write_bytes(b"x")
            assert done.wait(30)
            assert list(found) == ["soloist-callbacks", "B"]

    def test_max_pending_bounds_what_waits(self):
        with Supervisor(size=1, options={"delay_s": 600}, max_pending=3) as sup:
            futures = [sup.submit("a") for _ in range(3)]
            with pytest.raises(QueueFull):
                sup.submit("b")
            for future in futures:
                future.cancel()
            concurrent.futures.wait(futures, timeout=30)
            sup.submit("c").cancel()

    def test_a_future_keeps_its_supervisor(self):
        with pytest.warns(ResourceWarning):  # it may come as soon as the future is done
            future = Supervisor(size=1, client=upper).submit("a")
            assert future.result(30).text == "A"
            del future
            import gc

            gc.collect()


def sleeping(prompt: str) -> str:
    if prompt == "sleep":
        time.sleep(600)
    return prompt


async def async_sleeping(prompt: str) -> str:
    if prompt == "sleep":
        await asyncio.sleep(600)
    return prompt


CANCELLABLE = pytest.mark.parametrize("client", [sleeping, async_sleeping], ids=["sync", "async"])


class TestCancel:
    @CANCELLABLE
    def test_of_a_running_request_ends_it_and_the_next_answer_is_right(self, client):
        with Supervisor(size=1, client=client) as sup:
            future = sup.submit("sleep")
            is_running(future)
            assert future.cancel()
            assert future.cancelled()
            done, pending = concurrent.futures.wait([future], timeout=30)
            assert (done, pending) == ({future}, set())
            assert list(concurrent.futures.as_completed([future], timeout=30)) == [future]
            assert texts(sup.map(["next", "one"])) == ["next", "one"]

    def test_of_an_echo_with_a_long_delay_keeps_the_worker(self):
        with Supervisor(size=1, options={"delay_s": 600}, isolation="worker") as sup:
            future = sup.submit("a")
            is_running(future)
            future.cancel()
            concurrent.futures.wait([future], timeout=30)
            assert sup.stats().restarts == 0

    @CANCELLABLE
    def test_of_an_asyncio_task_around_wrap_future_stops_the_work(self, client):
        async def main(sup):
            future = sup.submit("sleep")
            await asyncio.to_thread(is_running, future)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.wrap_future(future)
            return (await asyncio.wrap_future(sup.submit("next"))).text

        with Supervisor(size=1, client=client) as sup:
            assert asyncio.run(main(sup)) == "next"

    def test_of_a_waiting_request_never_runs_it(self, tmp_path):
        def client(prompt):
            (tmp_path / prompt).touch()
            if prompt == "blocker":
                eventually((tmp_path / "go").exists)
            return prompt

        with Supervisor(size=1, client=client) as sup:
            sup.map(["warm"] * 2000)  # service times are short: some will wait at the worker
            blocker = sup.submit("blocker")
            waiting = [sup.submit(f"waiting{i}") for i in range(3)]
            eventually((tmp_path / "blocker").exists)
            for future in waiting:
                assert future.cancel()
            concurrent.futures.wait(waiting, timeout=30)
            (tmp_path / "go").touch()
            assert blocker.result(30).text == "blocker"
            assert sup.submit("after").result(30).text == "after"
            assert not list(tmp_path.glob("waiting*"))
            assert sup.stats().restarts == 0

    def test_cancel_pending_ends_what_has_not_started_and_lets_the_rest_go_on(self, tmp_path):
        def client(prompt):
            (tmp_path / "started").touch()
            eventually((tmp_path / "go").exists)
            return prompt

        with Supervisor(size=1, client=client) as sup:
            futures = [sup.submit(str(i)) for i in range(10)]
            eventually((tmp_path / "started").exists)
            sup.cancel_pending()
            errors = [future.exception(30) for future in futures[1:]]
            assert {type(error) for error in errors} == {RequestCancelled}
            assert all(error.started is False for error in errors)
            (tmp_path / "go").touch()
            assert futures[0].result(30).text == "0"

    def test_a_turn_that_ignores_interrupts_costs_its_worker_after_the_grace_time(self, tmp_path):
        async def stubborn(prompt):
            (tmp_path / prompt).touch()
            while prompt == "sleep":
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    continue
            return prompt

        with Supervisor(size=1, client=stubborn, interrupt_grace_s=0.1) as sup:
            future = sup.submit("sleep")
            eventually((tmp_path / "sleep").exists)
            future.cancel()
            concurrent.futures.wait([future], timeout=30)
            assert sup.submit("next").result(30).text == "next"
            assert sup.stats().restarts == 1


class TestClosing:
    def test_leaving_the_block_finishes_what_was_submitted(self):
        with Supervisor(size=2, client=upper) as sup:
            futures = [sup.submit(str(i)) for i in range(500)]
        assert [future.result(0).text for future in futures] == [str(i) for i in range(500)]

    def test_leaving_the_block_by_an_exception_ends_everything_at_once(self, tmp_path):
        async def endless(prompt):
            (tmp_path / prompt).touch()
            await asyncio.sleep(600)

        future = None
        with pytest.raises(KeyError), Supervisor(size=1, client=endless) as sup:
            future = sup.submit("begun")
            eventually((tmp_path / "begun").exists)
            raise KeyError
        error = future.exception(0)
        assert type(error) is SupervisorClosed
        assert error.started is None

    def test_close_is_bounded_with_a_callable_that_never_returns(self):
        sup = Supervisor(size=2, client=sleeping)
        futures = [sup.submit("sleep") for _ in range(5)]
        is_running(futures[0])
        sup.close(0.05)
        assert {type(future.exception(0)) for future in futures} == {SupervisorClosed}
        sup.close()  # again: nothing happens

    def test_kill_ends_at_once_even_what_ignores_everything(self):
        async def stubborn(prompt):
            while True:
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    continue

        sup = Supervisor(size=1, client=stubborn, interrupt_grace_s=600)
        future = sup.submit("a")
        is_running(future)
        sup.kill()
        assert type(future.exception(0)) is SupervisorClosed

    def test_drain_waits_and_then_refuses(self):
        with Supervisor(size=1, client=upper) as sup:
            futures = [sup.submit(str(i)) for i in range(100)]
            assert sup.drain(30)
            assert all(future.done() for future in futures)
            error = sup.submit("late").exception(30)
            assert type(error) is SupervisorClosed
            assert error.started is False

    def test_drain_gives_up_at_its_limit(self):
        with pytest.raises(KeyError), Supervisor(size=1, options={"delay_s": 600}) as sup:
            sup.submit("a")
            assert not sup.drain(0.05)
            raise KeyError

    def test_a_closed_supervisor_refuses(self):
        sup = Supervisor(size=1)
        sup.close()
        with pytest.raises(SupervisorClosed):
            sup.submit("a")
        with pytest.raises(SupervisorClosed):
            sup.map(["a"])
        assert sup.stats().is_closed

    def test_nothing_is_left_of_a_closed_supervisor(self):
        before = set(os.listdir("/proc/self/fd"))
        with Supervisor(size=3, client=upper) as sup:
            sup.map(["a"] * 10)
            run_dirs = run_dirs_of(os.getpid())
            assert len(run_dirs) == 1
            assert len(descendants_of_runs(run_dirs)) >= 5
        assert descendants_of_runs(run_dirs) == []
        assert not os.path.exists(run_dirs.pop())
        assert set(os.listdir("/proc/self/fd")) <= before
        names = {thread.name for thread in threading.enumerate()}
        assert not {name for name in names if name.startswith("soloist")}


class TestArguments:
    @pytest.mark.parametrize(
        "arguments",
        [
            {"size": 0},
            {"size": 1.5},
            {"size": True},
            {"timeout_s": -1},
            {"timeout_s": float("nan")},
            {"isolation": "both"},
            {"window": 0},
            {"client": 5},
            {"options": {"delay": 1}},
            {"options": {"delay_s": "soon"}},
            {"client": upper, "options": {"unknown": 1}},
            {"client": str},
        ],
    )
    def test_bad_ones_are_refused_before_anything_is_spawned(self, arguments, monkeypatch):
        monkeypatch.setattr("subprocess.Popen.__init__", pytest.fail)
        with pytest.raises(InvalidOptions):
            Supervisor(**arguments)

    def test_unknown_clients_are_named(self, monkeypatch):
        monkeypatch.setattr("subprocess.Popen.__init__", pytest.fail)
        with pytest.raises(ClientNotFound, match="did you mean 'echo'"):
            Supervisor(client="ecko")

    def test_options_of_a_callable_are_passed_to_each_call(self):
        with Supervisor(
            size=1, client=lambda p, suffix: p + suffix, options={"suffix": "!"}
        ) as sup:
            assert texts(sup.map(["a"])) == ["a!"]

    def test_a_factory_makes_the_client(self):
        from soloist.worker.clients.echo import EchoClient

        def make(chunks=0):
            return EchoClient(chunks=chunks)

        with Supervisor(size=1, client=make, options={"chunks": 2}) as sup:
            assert len(sup.map(["a"])[0].messages) == 4

    def test_stats_count_outcomes(self):
        with Supervisor(size=2, options={"fail_on": "bad"}) as sup:
            sup.map(["a", "bad", "b"], return_exceptions=True)
            stats = sup.stats()
        assert (stats.answered, stats.failed, stats.cancelled) == (2, 1, 0)
        assert (stats.size, stats.queued, stats.running, stats.restarts) == (2, 0, 0, 0)
        assert stats.workers
        assert all(worker.pid > 0 for worker in stats.workers if worker.state == "ready")
