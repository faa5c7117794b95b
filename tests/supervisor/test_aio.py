"""The asyncio interface without processes: wake-ups, futures, streams, both sides of a map."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import threading
from collections import deque
from concurrent.futures import CancelledError, Future

import pytest

from soloist import AsyncSession, AsyncSharedSession, AsyncSupervisor, Session, SharedSession
from soloist.protocol import codec
from soloist.protocol.content import AssistantMessage, ResultMessage, TextBlock
from soloist.protocol.errors import (
    ClientError,
    InvalidPrompt,
    LocalProtocolError,
    RequestCancelled,
    RequestTimeout,
    SessionBusy,
    SupervisorClosed,
)
from soloist.protocol.messages import Answer
from soloist.supervisor import aio_loop, flow
from soloist.supervisor.aio_flow import AsyncFlow
from soloist.supervisor.aio_intake import AsyncRequestFuture, AsyncResponse, Handlers
from soloist.supervisor.aio_loop import Bell, Pace, Wakeup, in_thread, outlast, wrap
from soloist.supervisor.api import Supervisor
from soloist.supervisor.control import ControlRequest
from soloist.supervisor.flow import Flow
from soloist.supervisor.request import Request
from soloist.supervisor.response import Response
from soloist.supervisor.session import TurnReader, Turns
from soloist.supervisor.stream import Stream
from soloist.supervisor.window import Window

LIMIT_S = 20.0


def run(main):
    """Run a coroutine to its end; no task may be left, and nothing may have gone wrong unseen."""
    unseen = []

    async def guarded():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unseen.append(context))
        async with asyncio.timeout(LIMIT_S):
            result = await main()
        await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    result = asyncio.run(guarded())
    assert unseen == []
    return result


def on_loop(test):
    """Let an ``async def`` test run."""

    def wrapped(*args, **kwargs):
        run(lambda: test(*args, **kwargs))

    wrapped.__signature__ = inspect.signature(test)
    wrapped.__name__ = test.__name__
    return wrapped


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0)


def answer(text="x"):
    return Answer(1, 0.1, text, 1, b"")


# -- aio_loop ----------------------------------------------------------------------------------


class FakeLoop:
    def __init__(self):
        self.wakeups = 0
        self.ready = deque()

    def call_soon_threadsafe(self, call):
        self.wakeups += 1
        self.ready.append(call)

    def call_soon(self, call):
        self.ready.append(call)

    def turn(self):
        for _ in range(len(self.ready)):
            self.ready.popleft()()


class TestBell:
    def test_many_calls_are_one_wakeup(self):
        loop, called = FakeLoop(), []
        bell = Bell(loop)
        for i in range(100):
            bell.ring(lambda i=i: called.append(i))
        assert (loop.wakeups, called) == (1, [])
        loop.turn()
        assert called == list(range(100))
        bell.ring(lambda: called.append("again"))
        assert loop.wakeups == 2

    def test_a_call_that_rings_is_heard(self):
        loop, called = FakeLoop(), []
        bell = Bell(loop)
        bell.ring(lambda: bell.ring(lambda: called.append(1)))
        loop.turn()
        loop.turn()
        assert called == [1]

    def test_one_turn_of_the_loop_is_not_spent_on_any_number_of_calls(self):
        loop, called = FakeLoop(), []
        bell = Bell(loop)
        count = 3 * aio_loop._CALLS_AT_ONCE
        for i in range(count):
            bell.ring(lambda i=i: called.append(i))
        loop.turn()
        assert 0 < len(called) < count
        loop.turn()
        loop.turn()
        assert called == list(range(count))
        assert loop.wakeups == 1

    def test_a_call_that_fails_silences_nothing(self):
        loop, called = FakeLoop(), []
        bell = Bell(loop)
        bell.ring(lambda: 1 / 0)
        bell.ring(lambda: called.append(1))
        with pytest.raises(ZeroDivisionError):
            loop.turn()
        loop.turn()
        bell.ring(lambda: called.append(2))
        loop.turn()
        assert called == [1, 2]

    def test_when_the_loop_is_closed_nobody_is_called(self):
        loop = asyncio.new_event_loop()
        loop.close()
        Bell(loop).ring(lambda: pytest.fail("called"))

    @on_loop
    async def test_threads_lose_no_call(self):
        bell, called, done = Bell(asyncio.get_running_loop()), [], asyncio.Event()

        def call(name, i):
            called.append((name, i))
            if len(called) == 8000:
                done.set()

        def hammer(name):
            for i in range(2000):
                bell.ring(functools.partial(call, name, i))

        threads = [threading.Thread(target=hammer, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        await done.wait()
        for thread in threads:
            thread.join()
        for name in range(4):
            assert [i for n, i in called if n == name] == list(range(2000))


class TestWakeup:
    @on_loop
    async def test_it_is_set_before_during_and_not_by_what_was_cleared(self):
        wakeup = Wakeup(Bell(asyncio.get_running_loop()))
        wakeup.set_here()
        await wakeup.wait()
        wakeup.clear()
        waiting = asyncio.ensure_future(wakeup.wait())
        await turns()
        assert wakeup.is_awaited
        assert not waiting.done()
        threading.Thread(target=wakeup.set).start()
        await waiting
        assert not wakeup.is_awaited

    @on_loop
    async def test_a_time_ends_it(self):
        await Wakeup(Bell(asyncio.get_running_loop())).wait(0.001)

    @on_loop
    async def test_cancelled_it_can_be_waited_for_again(self):
        wakeup = Wakeup(Bell(asyncio.get_running_loop()))
        waiting = asyncio.ensure_future(wakeup.wait(600))
        await turns()
        waiting.cancel()
        await turns()
        assert not wakeup.is_awaited
        wakeup.set()
        await wakeup.wait()


class TestPace:
    @on_loop
    async def test_others_have_their_turn_when_the_slice_is_over(self):
        pace, others = Pace(), []
        asyncio.get_running_loop().call_soon(others.append, 1)
        while not pace.is_over():
            pass
        assert others == []
        await pace.pause()
        assert others == [1]
        assert not pace.is_over()


class TestOutlast:
    @on_loop
    async def test_each_cancellation_hurries_and_the_last_is_raised_at_the_end(self):
        end, steps = asyncio.get_running_loop().create_future(), []
        task = asyncio.ensure_future(
            outlast(end, lambda: steps.append("interrupt"), lambda: steps.append("kill"))
        )
        for expected in ([], ["interrupt"], ["interrupt", "kill"], ["interrupt", "kill"]):
            await turns()
            assert steps == expected
            task.cancel()
        await turns()
        assert not task.done()
        end.set_result(None)
        with pytest.raises(asyncio.CancelledError):
            await task

    @on_loop
    async def test_left_alone_it_just_waits(self):
        end = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(end.set_result, None)
        await outlast(end)
        await outlast(end)

    @on_loop
    async def test_asyncio_timeout_sees_its_own_cancellation(self):
        end = asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await outlast(end, lambda: end.set_result(None))


class TestInThread:
    @on_loop
    async def test_it_gives_what_the_function_gave_or_raised(self):
        assert await in_thread(threading.get_ident, "t") != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 / 0, "t")

    @on_loop
    async def test_cancelling_it_leaves_the_other_thread_alone(self):
        go, seen = threading.Event(), threading.Event()
        future = in_thread(lambda: (go.wait(LIMIT_S), seen.set()), "t")
        future.cancel()
        go.set()
        assert await in_thread(lambda: seen.wait(LIMIT_S), "u")

    @on_loop
    async def test_the_future_of_another_thread_is_never_cancelled(self):
        """The I/O thread sets it; finding it cancelled would end that thread."""
        source = Future()
        waiting = asyncio.ensure_future(wrap(source))
        await turns()
        waiting.cancel()
        await turns()
        assert not source.cancelled()
        source.set_exception(ClientError("nobody awaits this"))
        await turns()


# -- futures -----------------------------------------------------------------------------------


class MadeFuture:
    def __init__(self):
        loop = asyncio.get_running_loop()
        self.cancelled, self.pending = [], set()
        self.future = AsyncRequestFuture(
            loop, Bell(loop), self.cancelled.append, self.pending, self
        )
        self.request = self.future.request = Request("p", b"p", self.future, index=7)
        self.pending.add(self.future)

    def settle(self, outcome=None):
        thread = threading.Thread(target=self.request.settle, args=(outcome or answer("text"),))
        thread.start()
        thread.join()


class TestFuture:
    @on_loop
    async def test_an_answer_is_a_result(self):
        made = MadeFuture()
        assert isinstance(made.future, asyncio.Future)
        made.settle()
        assert not made.future.done()  # that is the loop's to do
        result = await made.future
        assert (result.text, result.index) == ("text", 7)
        assert made.pending == set()
        assert made.future._owner is None

    @on_loop
    async def test_an_error_is_raised_as_it_is(self):
        made, error = MadeFuture(), ClientError("no")
        made.settle(error)
        with pytest.raises(ClientError) as caught:
            await made.future
        assert caught.value is error

    @on_loop
    async def test_cancelling_the_task_that_awaits_it_cancels_the_request_once(self):
        made = MadeFuture()

        async def wait():
            await made.future

        task = asyncio.ensure_future(wait())
        await turns()
        task.cancel()
        await turns()
        assert task.cancelled()
        assert made.future.cancelled()
        assert made.cancelled == [made.request]
        assert made.future.cancel() is False
        made.settle(RequestCancelled("drained"))
        await turns()
        assert made.cancelled == [made.request]

    @on_loop
    async def test_what_comes_after_the_cancellation_is_dropped(self):
        made = MadeFuture()
        made.future.cancel()
        made.settle(answer("too late"))
        await turns()
        assert made.future.cancelled()

    @on_loop
    async def test_a_cancellation_after_the_outcome_reached_this_process_wins(self):
        made = MadeFuture()
        made.settle()
        made.future.cancel()
        await turns()
        assert made.future.cancelled()

    @pytest.mark.parametrize("error", [SupervisorClosed("end"), RequestCancelled("you did")])
    def test_what_the_caller_brought_about_needs_nobody_to_see_it(self, error):
        @on_loop
        async def test():
            made = MadeFuture()
            made.settle(error)
            await turns()

        test()

    def test_another_error_that_nobody_sees_is_reported_as_asyncio_does(self):
        unseen = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: unseen.append(context["exception"]))
            made = MadeFuture()
            made.settle(ClientError("unseen"))
            await turns()
            del made
            gc.collect()

        asyncio.run(main())
        assert [str(error) for error in unseen] == ["unseen"]

    @on_loop
    async def test_it_takes_no_parts(self):
        made = MadeFuture()
        assert made.future.stream(made.request, b"part") is True
        made.settle()
        await made.future


# -- streams -----------------------------------------------------------------------------------


def encoded(text):
    return codec.encode_message(AssistantMessage(content=[TextBlock(text)], model="m"))


def result_message(text="", *, is_error=False):
    return codec.encode_message(
        ResultMessage("success", 1, 1, is_error, 1, session_id="s", result=text)
    )


class MadeResponse:
    """A response as ``Intake.response`` makes it, with the I/O thread's side played by a test."""

    def __init__(self, max_bytes=10**6):
        self.cancelled = []
        self.stream = Stream(max_bytes)
        self.request = Request("p", b"p", self.stream, is_streamed=True)
        self.response = Response(self.request, self.stream, self.cancelled.append, self)

    def reader(self, **more):
        return AsyncResponse(self.response, Bell(asyncio.get_running_loop()), **more)

    def say(self, *texts):
        for text in texts:
            assert self.stream.stream(self.request, encoded(text))

    def settle(self, outcome=None):
        self.request.settle(outcome or Answer(1, 0.1, "", 1, b""))


def text_of(message):
    return message.content[0].text


class TestResponse:
    @on_loop
    async def test_messages_come_in_order_as_they_come_and_then_the_end(self):
        made = MadeResponse()
        got = []

        async def read():
            async for message in made.reader():
                got.append(text_of(message))

        reader = asyncio.ensure_future(read())
        await turns()
        threading.Thread(target=made.say, args=("a", "b")).start()
        await until(lambda: len(got) == 2)
        made.say("c")
        threading.Thread(target=made.settle).start()
        await reader
        assert got == ["a", "b", "c"]
        assert made.cancelled == []

    @on_loop
    async def test_the_error_comes_after_the_messages_before_it(self):
        made = MadeResponse()
        made.say("a")
        made.settle(ClientError("no"))
        reader, got = made.reader(), []
        with pytest.raises(ClientError, match="no"):
            async for message in reader:
                got.append(text_of(message))
        assert got == ["a"]
        assert [m async for m in reader] == []

    @on_loop
    async def test_cancelling_the_reading_task_ends_the_turn(self):
        made = MadeResponse()

        async def read():
            async for _ in made.reader():
                pass

        task = asyncio.ensure_future(read())
        await turns()
        made.say("a")
        await turns()
        task.cancel()
        await turns()
        assert task.cancelled()
        assert made.cancelled == [made.request]

    @on_loop
    async def test_asyncio_timeout_ends_the_turn(self):
        made = MadeResponse()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                async for _ in made.reader():
                    pass
        assert made.cancelled == [made.request]

    @pytest.mark.parametrize("how", ["aclose", "with", "drop", "break"])
    def test_ending_it_early_ends_the_turn(self, how):
        @on_loop
        async def test():
            made = MadeResponse()
            made.say("a", "b")
            reader = made.reader()
            assert text_of(await anext(reader)) == "a"
            if how == "aclose":
                await reader.aclose()
            elif how == "with":
                async with reader:
                    pass
            elif how == "break":
                async for _ in reader:
                    break
            if how in {"aclose", "with"}:
                assert [m async for m in reader] == []
            del reader
            assert made.cancelled == [made.request]

        test()

    @on_loop
    async def test_closing_it_from_another_task_ends_the_reading_when_the_turn_has_ended(self):
        made = MadeResponse()
        reader = made.reader()
        reading = asyncio.ensure_future(anext(reader, None))
        await turns()
        await reader.aclose()
        made.say("stale")
        assert await reading is None

    @on_loop
    async def test_after_its_end_nothing_is_cancelled(self):
        made = MadeResponse()
        made.say("a")
        made.settle()
        async with made.reader() as reader:
            first, last = [m async for m in reader]
        assert (text_of(first), type(last)) == ("a", ResultMessage)
        del reader
        assert made.cancelled == []

    @pytest.mark.parametrize("how", ["aclose", "drop"])
    def test_after_its_result_there_is_nothing_to_cancel(self, how):
        """The outcome follows the last message: who stops at that has not ended it early."""

        @on_loop
        async def test():
            made = MadeResponse()
            made.stream.stream(made.request, result_message("all"))
            reader = made.reader()
            assert (await anext(reader)).result == "all"
            if how == "aclose":
                await reader.aclose()
            made.response = None
            del reader
            gc.collect()
            assert made.cancelled == []

        test()

    @on_loop
    async def test_a_second_reader_is_told_and_the_first_reads_on(self):
        made = MadeResponse()
        reader = made.reader()
        first = asyncio.ensure_future(anext(reader))
        await turns()
        with pytest.raises(LocalProtocolError, match="another task"):
            await anext(reader)
        made.say("a")
        assert text_of(await first) == "a"
        assert made.cancelled == []
        made.settle()

    @on_loop
    async def test_a_long_buffer_leaves_the_loop_its_turns(self):
        made, beats = MadeResponse(), 0
        made.say(*map(str, range(3000)))
        made.settle()

        async def heart():
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        beating = asyncio.ensure_future(heart())
        reader = made.reader()
        reader._pace.is_over = lambda: True
        assert len([m async for m in reader]) == 3000
        assert beats >= 3000
        beating.cancel()

    @on_loop
    async def test_an_interrupted_turn_ends_with_its_result(self):
        made = MadeResponse()
        made.stream.stream(made.request, result_message("cut", is_error=True))
        made.settle(RequestCancelled("interrupted"))
        reader = made.reader(is_ended=lambda response, last: isinstance(last, ResultMessage))
        assert [m.result async for m in reader] == ["cut"]

    @on_loop
    async def test_a_cancelled_turn_without_result_is_an_error(self):
        made = MadeResponse()
        made.say("half")
        made.settle(RequestCancelled("interrupted"))
        reader = made.reader(is_ended=lambda response, last: isinstance(last, ResultMessage))
        with pytest.raises(RequestCancelled):
            _ = [m async for m in reader]


class TestArm:
    def test_a_stream_tells_once_and_only_who_has_to_wait(self):
        made, told = MadeResponse(), []
        assert made.response.arm(lambda: told.append(1)) is True
        made.say("a", "b")
        assert told == [1]
        assert made.response.arm(lambda: told.append(2)) is False
        next(made.response)
        next(made.response)
        assert made.response.arm(lambda: told.append(3)) is True
        made.settle()
        assert told == [1, 3]
        assert list(made.response) == []
        assert made.response.arm(lambda: told.append(4)) is False

    def test_a_closed_response_needs_no_waiting(self):
        made = MadeResponse()
        made.response.close()
        assert made.response.arm(lambda: pytest.fail("told")) is False

    @pytest.mark.parametrize("is_ordered", [True, False])
    def test_a_window_tells_in_place_of_its_own_event(self, is_ordered):
        window, told = make_window(is_ordered=is_ordered), []
        first, second = Request("a", b"a", window), Request("b", b"b", window, index=1)
        window.put(first)
        window.put(second)
        assert window.arm(lambda: told.append(1)) is True
        if is_ordered:
            second.settle(answer())
            assert told == []
        first.settle(answer())
        assert told == [1]
        assert window.arm(lambda: told.append(2)) is False
        assert not window._wakeup.is_set()

    def test_without_it_the_event_is_set_as_ever(self):
        window = make_window()
        request = Request("a", b"a", window)
        window.put(request)
        assert window.arm() is True
        request.settle(answer())
        assert window._wakeup.is_set()


# -- maps --------------------------------------------------------------------------------------


def make_window(max_requests=4, *, is_ordered=True, is_fail_fast=False):
    return Window(
        max_requests=max_requests, max_bytes=10**9, is_ordered=is_ordered, is_fail_fast=is_fail_fast
    )


class FakeIntake:
    """Where a flow's requests go; answers at once if ``is_prompt``, else when a test says so."""

    def __init__(self, *, is_prompt=False):
        self.is_prompt = is_prompt
        self.is_closed = False
        self.submitted = []
        self.cancelled = []
        self.engine = self

    def request(self, prompt, sink, index, timeout_s):
        if prompt == "unsendable":
            raise InvalidPrompt(prompt)
        return Request(prompt, prompt.encode(), sink, index=index)

    def submit(self, request):
        if self.is_closed:
            raise SupervisorClosed("closed", started=False)
        self.submitted.append(request)
        if self.is_prompt:
            request.settle(answer(request.prompt.upper()))

    def cancel(self, requests):
        self.cancelled.extend(requests)

    def answer(self, *prompts):
        """As the I/O thread does, on another thread."""

        def settle():
            for request in self.submitted:
                if request.prompt in prompts:
                    request.settle(answer(request.prompt.upper()))

        thread = threading.Thread(target=settle)
        thread.start()
        thread.join()

    @property
    def prompts(self):
        return [request.prompt for request in self.submitted]


class MadeFlow:
    def __init__(self, prompts, *, total_timeout_s=None, is_prompt=False, **window):
        self.intake = FakeIntake(is_prompt=is_prompt)
        self.window = make_window(**window)
        self.feeders = set()
        self.flow = Flow(self.intake, self.window, None, total_timeout_s)
        self.run = AsyncFlow(self.flow, prompts, Bell(asyncio.get_running_loop()), self.feeders)

    async def rest(self):
        got = []
        while await self.run.advance():
            got.extend(r.outcome.text for r in self.run.take_many())
        return got


async def agen(prompts, closed=None):
    try:
        for prompt in prompts:
            yield prompt
    finally:
        if closed is not None:
            closed.append(True)


def source(kind, prompts):
    return agen(prompts) if kind == "async" else iter(prompts)


BOTH = pytest.mark.parametrize("kind", ["sync", "async"])


class TestFlow:
    @BOTH
    @pytest.mark.parametrize("is_ordered", [True, False])
    def test_everything_comes(self, kind, is_ordered):
        @on_loop
        async def test():
            prompts = [str(i) for i in range(1000)]
            made = MadeFlow(source(kind, prompts), is_ordered=is_ordered, is_prompt=True)
            async with made.run:
                assert await made.rest() == prompts
                assert not await made.run.advance()
            await turns()
            assert made.feeders == set()

        test()

    @BOTH
    def test_of_nothing_is_nothing(self, kind):
        @on_loop
        async def test():
            made = MadeFlow(source(kind, []))
            async with made.run:
                assert not await made.run.advance()

        test()

    @BOTH
    def test_no_more_is_pulled_than_the_window_holds(self, kind):
        @on_loop
        async def test():
            made = MadeFlow(source(kind, map(str, range(100))), max_requests=4)
            async with made.run:
                await turns(50)
                assert made.intake.prompts == ["0", "1", "2", "3"]
                made.intake.answer("0", "1")
                await turns(50)
                assert len(made.intake.prompts) == 4  # finished but unread: still in the window
                assert await made.run.advance()
                assert made.run.take().prompt == "0"
                await turns(50)
                assert made.intake.prompts == ["0", "1", "2", "3", "4"]

        test()

    @BOTH
    def test_leaving_it_cancels_the_rest_and_pulls_no_more(self, kind):
        @on_loop
        async def test():
            made = MadeFlow(source(kind, map(str, range(100))), max_requests=4)
            async with made.run:
                await turns(20)
                made.intake.answer("0")
            assert [r.prompt for r in made.intake.cancelled] == ["1", "2", "3"]
            made.intake.answer("1", "2", "3")
            await turns(20)
            assert len(made.intake.prompts) == 4
            assert made.feeders == set()

        test()

    @on_loop
    async def test_cancelling_the_consumer_cancels_the_rest(self):
        made = MadeFlow(agen(map(str, range(100))), max_requests=4)

        async def consume():
            async with made.run:
                await made.rest()

        task = asyncio.ensure_future(consume())
        await turns(20)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert len(made.intake.cancelled) == 4
        assert made.feeders == set()

    @on_loop
    async def test_an_async_generator_is_closed_at_the_end(self):
        for count in (2, 100):
            closed = []
            made = MadeFlow(agen(map(str, range(count)), closed), is_prompt=True)
            async with made.run:
                assert await made.run.advance()
            assert closed == [True]

    @on_loop
    async def test_an_async_generator_may_take_its_time_to_close(self):
        closed = []

        async def slow_to_close():
            try:
                while True:
                    yield "a"
            finally:
                await turns(20)
                closed.append(True)

        made = MadeFlow(slow_to_close(), is_prompt=True)
        async with made.run:
            assert await made.run.advance()
        assert closed == [True]

    @on_loop
    async def test_an_input_that_pauses_withholds_no_answer(self):
        go_on = asyncio.Event()

        async def pausing():
            yield "a"
            await go_on.wait()
            yield "b"

        made = MadeFlow(pausing(), is_prompt=True)
        async with made.run:
            assert await made.run.advance()
            assert made.run.take().prompt == "a"
            more = asyncio.ensure_future(made.run.advance())
            await turns(20)
            assert not more.done()
            go_on.set()
            assert await more
            assert made.run.take().prompt == "b"
            assert not await made.run.advance()

    @BOTH
    def test_what_the_input_raises_reaches_the_consumer(self, kind):
        def failing():
            yield "a"
            raise ZeroDivisionError

        async def async_failing():
            yield "a"
            raise ZeroDivisionError

        @on_loop
        async def test():
            made = MadeFlow(failing() if kind == "sync" else async_failing())
            with pytest.raises(ZeroDivisionError):
                async with made.run:
                    await made.run.advance()
            assert [r.prompt for r in made.intake.cancelled] == ["a"]

        test()

    @on_loop
    async def test_what_is_no_input_reaches_the_consumer(self):
        with pytest.raises(TypeError):
            async with MadeFlow(3).run as run:
                await run.advance()

    @BOTH
    def test_a_prompt_that_cannot_be_sent_fails_in_its_place(self, kind):
        @on_loop
        async def test():
            made = MadeFlow(source(kind, ["a", "unsendable", "b"]), is_prompt=True)
            async with made.run:
                outcomes = []
                while await made.run.advance():
                    outcomes.append(type(made.run.take().outcome))
            assert outcomes == [Answer, InvalidPrompt, Answer]

        test()

    @on_loop
    async def test_fail_fast_wakes_for_an_error_anywhere(self):
        made = MadeFlow(iter("abc"), is_fail_fast=True)
        async with made.run:
            waiting = asyncio.ensure_future(made.run.advance())
            await turns(20)
            made.intake.submitted[2].settle(ClientError("third"))
            assert await waiting
            with pytest.raises(ClientError, match="third"):
                made.run.take()

    @BOTH
    def test_the_whole_may_take_only_so_long(self, kind):
        @on_loop
        async def test():
            made = MadeFlow(source(kind, "abc"), total_timeout_s=0.01)
            with pytest.raises(RequestTimeout):
                async with made.run:
                    await made.rest()
            assert len(made.intake.cancelled) == 3

        test()

    @on_loop
    async def test_an_input_that_never_comes_does_not_outlive_the_time(self):
        async def never():
            await asyncio.Event().wait()
            yield "a"

        made = MadeFlow(never(), total_timeout_s=0.01)
        with pytest.raises(RequestTimeout):
            async with made.run:
                await made.rest()

    @on_loop
    async def test_an_end_that_came_in_time_is_no_timeout(self):
        made = MadeFlow(iter("ab"), total_timeout_s=600, is_prompt=True)
        async with made.run:
            assert await made.rest() == ["A", "B"]
            made.flow.deadline = 0.0
            assert not await made.run.advance()

    @on_loop
    async def test_when_the_supervisor_closes_the_consumer_is_told(self):
        made = MadeFlow(iter("abcdef"), max_requests=2)
        with pytest.raises(SupervisorClosed):
            async with made.run:
                await turns(20)
                for feeder in made.feeders:
                    feeder.cancel()
                await made.run.advance()
        made = MadeFlow(iter("abcdef"))
        made.intake.is_closed = True
        with pytest.raises(SupervisorClosed):
            async with made.run:
                await made.run.advance()

    @BOTH
    def test_an_endless_fast_map_leaves_the_loop_its_turns(self, kind, monkeypatch):
        """With a slice of nothing there is a turn of the loop for every prompt."""
        monkeypatch.setattr(aio_loop, "SLICE_S", 0.0)
        monkeypatch.setattr(flow, "_PULL_S", 0.0)

        @on_loop
        async def test():
            made, beats = MadeFlow(source(kind, ["a"] * 1000), is_prompt=True), 0

            async def heart():
                nonlocal beats
                while True:
                    beats += 1
                    await asyncio.sleep(0)

            beating = asyncio.ensure_future(heart())
            async with made.run:
                assert len(await made.rest()) == 1000
            beating.cancel()
            assert beats >= 1000

        test()


class TestSyncFlow:
    def test_a_late_consumer_of_an_empty_window_is_told_and_not_given_a_short_list(self):
        made = Flow(FakeIntake(is_prompt=True), make_window(max_requests=1), None, 600)
        running = made.run(iter("abc"))
        assert next(running).prompt == "a"
        made.deadline = 0.0
        with pytest.raises(RequestTimeout):
            next(running)


# -- sessions ----------------------------------------------------------------------------------


class User:
    """A caller that can die."""

    def __init__(self):
        self.is_alive = True


class TestTurns:
    def make(self):
        self.now = self.first = User()
        self.second = User()
        return Turns(lambda: self.now, lambda user: user.is_alive)

    def test_one_prompt_at_a_time(self):
        turns, made = self.make(), MadeResponse()
        turns.begin(lambda: made.response)
        with pytest.raises(SessionBusy):
            turns.begin(lambda: pytest.fail("sent"))
        made.settle()
        turns.begin(lambda: MadeResponse().response)

    @pytest.mark.parametrize("how", ["close", "interrupt"])
    def test_the_next_may_come_when_the_turn_was_given_up(self, how):
        turns, made, following = self.make(), MadeResponse(), MadeResponse()
        turns.begin(lambda: made.response)
        made.response.close() if how == "close" else turns.interrupt()
        turns.begin(lambda: following.response)
        assert turns.read() is following.response

    def test_nobody_reads_the_answer_to_a_living_users_prompt(self):
        turns, made = self.make(), MadeResponse()
        turns.begin(lambda: made.response)
        self.now = self.second
        for _ in range(2):
            with pytest.raises(SessionBusy):
                turns.read()
            made.settle() if made.request.outcome is None else None  # over makes no difference

    def test_who_reads_is_the_user(self):
        turns, made = self.make(), MadeResponse()
        turns.begin(lambda: made.response)
        self.first.is_alive = False
        self.now = self.second
        assert turns.read() is made.response
        self.now = User()
        with pytest.raises(SessionBusy):
            turns.begin(lambda: pytest.fail("sent"))

    def test_the_turn_of_a_dead_user_is_ended(self):
        turns, made, following = self.make(), MadeResponse(), MadeResponse()
        turns.begin(lambda: made.response)
        self.first.is_alive = False
        self.now = self.second

        def send():
            assert made.cancelled == [made.request]  # a session's queue has one place
            return following.response

        turns.begin(send)
        assert turns.read() is following.response

    def test_reading_comes_after_sending(self):
        with pytest.raises(LocalProtocolError):
            self.make().read()

    def test_an_answer_that_nobody_reads_runs_on(self):
        turns, made = self.make(), MadeResponse()
        turns.begin(lambda: made.response)
        del turns
        gc.collect()
        assert made.cancelled == []


class TestTurnReader:
    def make(self):
        turns, made = Turns(User, lambda user: False), MadeResponse()
        turns.begin(lambda: made.response)
        return turns, made

    @pytest.mark.parametrize("how", ["close", "with", "drop"])
    @pytest.mark.parametrize("read", [0, 1])
    def test_ending_it_early_ends_the_turn_also_before_its_first_message(self, how, read):
        turns, made = self.make()
        made.say("a", "b")
        reader = TurnReader(turns, turns.read())
        for _ in range(read):
            next(reader)
        if how == "close":
            reader.close()
            assert list(reader) == []
        elif how == "with":
            with reader:
                pass
        del reader
        assert made.cancelled == [made.request]

    def test_an_interrupted_turn_ends_with_its_result(self):
        turns, made = self.make()
        made.stream.stream(made.request, result_message("cut", is_error=True))
        turns.interrupt()
        made.settle(RequestCancelled("interrupted"))
        assert [m.result for m in TurnReader(turns, turns.read())] == ["cut"]

    def test_a_cancelled_turn_without_result_is_an_error(self):
        turns, made = self.make()
        turns.interrupt()
        made.settle(RequestCancelled("interrupted"))
        with pytest.raises(RequestCancelled):
            list(TurnReader(turns, turns.read()))


# -- handlers ----------------------------------------------------------------------------------

ASKED = ControlRequest("echo", {"prompt": "p"}, "p", "")


class TestHandlers:
    def make(self, timeout_s=LIMIT_S):
        return Handlers(asyncio.get_running_loop(), timeout_s)

    @on_loop
    async def test_a_coroutine_function_runs_on_the_loop(self):
        here = threading.get_ident()

        async def handler(request):
            await asyncio.sleep(0)
            return request, threading.get_ident()

        answer = self.make().on_loop(handler)
        assert await in_thread(lambda: answer(ASKED), "t") == (ASKED, here)

    @on_loop
    async def test_a_function_runs_where_it_is_called(self):
        answer = self.make().on_loop(lambda request: threading.get_ident())
        assert await in_thread(lambda: answer(ASKED), "t") != threading.get_ident()
        assert self.make().on_loop(None) is None

    @on_loop
    async def test_what_it_raises_is_raised(self):
        async def handler(request):
            raise ZeroDivisionError

        answer = self.make().on_loop(handler)
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: answer(ASKED), "t")

    @on_loop
    async def test_one_that_takes_too_long_is_cancelled(self):
        cancelled = asyncio.Event()

        async def handler(request):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        answer = self.make(timeout_s=0.01).on_loop(handler)
        with pytest.raises(TimeoutError):
            await in_thread(lambda: answer(ASKED), "t")
        await cancelled.wait()

    @on_loop
    async def test_closing_gives_the_tasks_that_still_run_and_lets_none_begin(self):
        handlers, begun = self.make(), asyncio.Event()

        async def handler(request):
            begun.set()
            await asyncio.Event().wait()

        answer = handlers.on_loop(handler)
        waiting = in_thread(lambda: answer(ASKED), "t")
        await begun.wait()
        (task,) = handlers.close()
        task.cancel()
        with pytest.raises(CancelledError):
            await waiting
        with pytest.raises(SupervisorClosed):
            await in_thread(lambda: answer(ASKED), "t")

    def test_when_the_loop_is_closed_it_fails(self):
        loop = asyncio.new_event_loop()
        handlers = Handlers(loop, LIMIT_S)
        loop.close()

        async def handler(request):
            pytest.fail("called")

        with pytest.raises(RuntimeError):
            handlers.on_loop(handler)(ASKED)


# -- the whole ---------------------------------------------------------------------------------


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def public(cls):
    return {
        name
        for name in dir(cls)
        if not name.startswith("_") and callable(inspect.getattr_static(cls, name))
    }


class TestInterface:
    def test_the_constructor_takes_what_supervisors_does(self):
        assert parameters(AsyncSupervisor) == parameters(Supervisor)
        with pytest.raises(TypeError, match="sise"):
            AsyncSupervisor(sise=3)

    @pytest.mark.parametrize(
        ("sync", "other"),
        [
            (Supervisor, AsyncSupervisor),
            (Session, AsyncSession),
            (SharedSession, AsyncSharedSession),
        ],
    )
    def test_names_and_arguments_are_the_same(self, sync, other):
        assert public(sync) <= public(other)
        for name in public(sync):
            assert parameters(getattr(other, name)) == parameters(getattr(sync, name)), name

    @on_loop
    async def test_it_is_used_after_its_start(self):
        sup = AsyncSupervisor(size=1)
        for call in (lambda: sup.submit("a"), sup.session, lambda: sup.query("a")):
            with pytest.raises(LocalProtocolError, match="async with"):
                call()
        with pytest.raises(LocalProtocolError, match="async with"):
            await sup.stats()
        await sup.close()
        await sup.kill()

    def test_making_one_needs_no_loop(self):
        AsyncSupervisor(size=1)
