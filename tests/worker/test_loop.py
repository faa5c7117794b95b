"""The loop of one worker: a fake channel, a real grant pipe and a real ledger."""

import asyncio
import collections
import contextlib
import os

import pytest

from soloist.protocol import codec
from soloist.protocol.content import AssistantMessage, ResultMessage, TextBlock
from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    InvalidOptions,
    LocalProtocolError,
    PayloadTooLarge,
    RemoteProtocolError,
    RequestCancelled,
    ResultNotSerializable,
    SoloistError,
    from_info,
)
from soloist.protocol.messages import (
    Answer,
    Broken,
    Command,
    Control,
    ControlReply,
    Done,
    Failure,
    Interrupt,
    Lease,
    Loaded,
    Ping,
    Pong,
    Ready,
    Refused,
    Run,
    Snapshot,
    Stop,
    Streamed,
    Vacant,
)
from soloist.supervisor import ledger as supervisor_ledger
from soloist.worker import control, loop
from soloist.worker.host import Host
from soloist.worker.ledger import Claims, Ledger
from soloist.worker.loop import End

LIMIT_S = 10.0


class FakeChannel:
    """A channel whose other side is a script.

    ``then`` holds what the supervisor does, one step for each time that the worker waits.
    Its descriptor is edge-triggered as one of the real ones: what arrives during a send does not
    show there.
    """

    def __init__(self):
        self.inbox = collections.deque()
        self.sent = []
        self.sends = []  # how many messages each send had
        self.then = collections.deque()
        self.on_sent = None
        self._is_dry = False  # as the real one: after a vain look it is not looked at again
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)

    def close(self):
        os.close(self._readable)
        os.close(self._writable)

    # -- the supervisor's side ---------------------------------------------------------------

    def put(self, *messages):
        self.inbox += messages
        os.write(self._writable, b"\0")

    # -- the worker's side -------------------------------------------------------------------

    def sources(self):
        return [(self._readable, self.wake)]

    def receive(self):
        while not self.inbox:
            assert self.then, "the worker would wait for ever"
            self.then.popleft()()
        return self.inbox.popleft()

    def wake(self):
        self._is_dry = False

    def receive_nowait(self):
        if self._is_dry:
            return None
        with contextlib.suppress(BlockingIOError):
            os.read(self._readable, 4096)
        self._is_dry = not self.inbox
        return self.inbox.popleft() if self.inbox else None

    def send(self, message):
        self._take([message])

    def send_encoded(self, messages):
        self._take([codec.decode(message) for message in messages])

    def _take(self, messages):
        self._is_dry = False
        self.sends.append(len(messages))
        for message in messages:
            self.sent.append(message)
            if self.on_sent is not None:
                self.on_sent(message)


class Office:
    """A desk and everything around it."""

    def __init__(self, max_bytes=10**6, barrier=None):
        self.channel = FakeChannel()
        self.shared = supervisor_ledger.Ledger(barrier)
        self.claims = Claims(self.shared.grants_r, is_in_memory=barrier is not None)
        self.desk = loop.Desk(self.channel, self.claims, Ledger(self.shared.outcomes), max_bytes)
        self.next = 1

    def run(self, *prompts, acked=0, is_streamed=False):
        """Grant leases; gives the message for them."""
        leases = []
        for prompt in prompts:
            leases.append(Lease(self.next, codec.encode_prompt(prompt), is_streamed))
            self.next += 1
        self.shared.grant([lease.number for lease in leases])
        return Run(tuple(leases), acked)

    @property
    def outcomes(self):
        return [m for m in self.channel.sent if isinstance(m, Answer | Failure)]

    @property
    def texts(self):
        return [text_of(outcome) for outcome in self.outcomes]

    def close(self):
        self.channel.close()
        self.shared.close()


def text_of(outcome):
    return outcome.text if isinstance(outcome, Answer) else from_info(outcome.error)


@pytest.fixture
def office():
    office = Office()
    yield office
    office.close()


@pytest.fixture
def strict():
    """An office whose results may have 1,000 bytes."""
    office = Office(max_bytes=1000)
    yield office
    office.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless told otherwise."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


class TestDesk:
    def reply(self, office, lease, text="x"):
        office.desk.reply(Answer(lease, 0.1, text, 1, b""))

    def claim(self, office, *prompts):
        office.claims.add(office.run(*prompts))

    @pytest.fixture
    def full(self):
        """An office whose ledger holds more than it should, none of it acknowledged."""
        office = Office(max_bytes=10**7)
        self.claim(office, "a")
        assert office.desk.claim().number == 1
        self.reply(office, 1, "x" * 2_000_000)
        yield office
        office.close()

    def test_a_full_ledger_waits_for_word_while_more_than_one_lease_does(self, full):
        full.claims.add(full.run("b", "c"))
        assert full.desk.claim() is None
        assert full.shared.take_back() == [2, 3]
        full.claims.add(full.run("b", "c", acked=1))
        assert full.desk.claim().number == 4

    def test_a_full_ledger_does_not_hold_up_the_only_lease(self, full):
        self.claim(full, "b")
        assert full.desk.claim().number == 2

    def test_nor_one_whose_grant_was_read_before_it_came(self, full):
        """It cannot be taken back: the supervisor waits for its outcome, and nothing else comes."""
        self.claim(full, "taken back")
        assert full.shared.take_back() == [2]
        late = full.run("b", "c")
        assert full.desk.claim() is None
        assert full.shared.take_back() == [4]
        full.claims.add(late)
        assert full.desk.claim().number == 3

    def test_the_only_outcome_goes_at_once(self, office, clock):
        self.claim(office, "a")
        office.claims.claim()
        self.reply(office, 1)
        assert len(office.outcomes) == 1

    def test_those_of_a_batch_go_together(self, office, clock):
        office.desk._flushed = clock.now
        self.claim(office, *"abcd")
        for lease in (1, 2, 3):
            office.claims.claim()
            self.reply(office, lease)
        assert office.channel.sends == []
        office.claims.claim()
        self.reply(office, 4)
        assert office.channel.sends == [4]

    def test_those_held_back_are_in_the_ledger_already(self, office, clock):
        office.desk._flushed = clock.now
        self.claim(office, *"ab")
        office.claims.claim()
        self.reply(office, 1, "held back")
        assert office.outcomes == []
        assert [outcome.text for outcome in office.shared.read(is_over=True)] == ["held back"]

    def test_the_ledger_comes_before_the_message(self, office):
        in_ledger = []
        office.channel.on_sent = lambda message: in_ledger.append(office.shared.read(is_over=True))
        self.claim(office, "a")
        office.claims.claim()
        self.reply(office, 1)
        assert in_ledger == [[office.outcomes[0]]]

    def test_they_are_not_held_back_for_long(self, office, clock):
        office.desk._flushed = clock.now
        self.claim(office, *"abc")
        office.claims.claim()
        self.reply(office, 1)
        clock.now += loop.FLUSH_S
        office.claims.claim()
        self.reply(office, 2)
        assert office.channel.sends == [2]

    def test_they_are_not_held_back_when_they_are_large(self, office, clock):
        office.desk._flushed = clock.now
        self.claim(office, *"abc")
        office.claims.claim()
        self.reply(office, 1, "x" * loop.FLUSH_BYTES)
        assert office.channel.sends == [1]

    def test_a_result_over_the_limit_is_an_error_that_says_so(self, strict):
        self.claim(strict, "a")
        strict.claims.claim()
        self.reply(strict, 1, "x" * 1001)
        (failure,) = strict.outcomes
        error = from_info(failure.error)
        assert isinstance(error, PayloadTooLarge)
        assert "max_payload_bytes" in str(error)
        assert error.started is None
        assert strict.shared.read(is_over=True) == [failure]

    def test_an_error_is_passed_on_whatever_the_limit(self, strict):
        self.claim(strict, "a")
        strict.claims.claim()
        strict.desk.fail(1, 0.1, ClientError("the reason " * 200))
        (error,) = strict.texts
        assert type(error) is ClientError
        assert "the reason" in str(error)

    def test_a_result_that_cannot_be_encoded_is_an_error_that_says_so(self, office):
        self.claim(office, "a")
        office.claims.claim()
        self.reply(office, 1, "\ud800")
        (error,) = office.texts
        assert type(error) is ResultNotSerializable
        assert office.shared.read(is_over=True) == office.outcomes

    @pytest.mark.parametrize(
        "message",
        [Loaded(1, 4711, True), Snapshot(0, b"state"), Broken(False, codec.decode(codec.encode(
            Failure(1, 0.0, loop.to_info(ClientError("no"))))).error)],
        ids=["loaded", "snapshot", "broken"],
    )  # fmt: skip
    def test_what_it_announces_outlives_the_process(self, office, message):
        office.desk.announce(message)
        assert office.channel.sent == [message]
        assert office.shared.read(is_over=True) == [message]

    def test_a_snapshot_goes_out_with_the_outcome_of_its_turn(self, office):
        self.claim(office, "a")
        office.claims.claim()
        office.desk.announce(Snapshot(1, b"state"))
        assert office.channel.sent == []
        assert office.shared.read(is_over=True) == [Snapshot(1, b"state")]
        self.reply(office, 1)
        assert office.channel.sends == [2]
        assert [type(m) for m in office.channel.sent] == [Snapshot, Answer]
        assert office.shared.read(is_over=True) == office.channel.sent

    def test_a_large_one_goes_before_it(self, office):
        """Together they could be more than the supervisor's socket takes."""
        self.claim(office, "a")
        office.claims.claim()
        office.desk.announce(Snapshot(1, b"x" * loop.FLUSH_BYTES))
        self.reply(office, 1)
        assert office.channel.sends == [1, 1]


def serve_sync(office, call, *steps, is_session=False):
    """Run the sync loop over what the supervisor says, then stop it."""
    for step in steps:
        office.channel.then.append(step if callable(step) else lambda m=step: office.channel.put(m))
    office.channel.then.append(lambda: office.channel.put(Stop()))
    loop.run_sync(office.desk, call, is_session=is_session)


class TestSyncSession:
    @pytest.mark.parametrize("may_stay", [True, False])
    def test_the_process_may_stay_if_it_is_told_so(self, office, may_stay):
        office.channel.inbox.append(Stop(may_stay))
        end = loop.run_sync(office.desk, str.upper, is_session=True)
        assert end is (End.MAY_STAY if may_stay else End.STOPPED)

    def test_it_can_be_continued_by_any_other(self, office):
        serve_sync(office, str.upper, office.run("a"), is_session=True)
        first, ready, answer = office.channel.sent
        assert (first.lease, codec.decode_value(first.data)) == (0, {})
        assert ready == Ready()
        assert answer.text == "A"

    def test_it_takes_no_commands(self, office):
        command = Command(7, "set_model", codec.encode_value(["m"]))
        serve_sync(office, str.upper, command, office.run("a"), is_session=True)
        (refused,) = [m for m in office.channel.sent if isinstance(m, Refused)]
        assert refused.number == 7
        assert isinstance(from_info(refused.error), InvalidOptions)
        assert office.texts == ["A"]

    def test_in_the_pool_nothing_is_said_of_that(self, office):
        serve_sync(office, str.upper, office.run("a"))
        assert not [m for m in office.channel.sent if isinstance(m, Snapshot)]


class TestSync:
    def test_it_says_that_it_is_ready_then_answers(self, office):
        serve_sync(office, str.upper, office.run("a", "b"), office.run("c"))
        assert office.channel.sent[0] == Ready()
        assert office.texts == ["A", "B", "C"]
        assert [outcome.lease for outcome in office.outcomes] == [1, 2, 3]

    def test_content_blocks_arrive_as_they_are(self, office):
        blocks = [{"type": "text", "text": "x", "deep": [1, None]}]
        seen = []
        serve_sync(office, lambda p: seen.append(p) or "ok", office.run(blocks))
        assert seen == [blocks]

    def test_each_call_is_timed(self, office, clock):
        def call(prompt):
            clock.now += 2.5
            return prompt

        serve_sync(office, call, office.run("a", "b"))
        assert [outcome.duration_s for outcome in office.outcomes] == [2.5, 2.5]

    @pytest.mark.parametrize(
        ("error", "name"),
        [
            (ValueError("bad"), "ValueError"),
            (SystemExit(3), "SystemExit"),
            (KeyboardInterrupt(), "KeyboardInterrupt"),
            (GeneratorExit(), "GeneratorExit"),
        ],
        ids=repr,
    )
    def test_whatever_the_callable_raises_fails_that_prompt_alone(self, office, error, name):
        def call(prompt):
            if prompt == "bad":
                raise error
            return prompt

        serve_sync(office, call, office.run("a", "bad", "b"))
        first, failure, last = office.texts
        assert (first, last) == ("a", "b")
        assert type(failure) is ClientError
        assert failure.type_name == name
        assert "call" in failure.traceback_text

    def test_an_error_whose_message_cannot_be_read_is_still_one(self, office):
        class Nasty(Exception):
            def __str__(self):
                raise RuntimeError

        def call(prompt):
            raise Nasty

        serve_sync(office, call, office.run("a"))
        assert office.texts[0].type_name.endswith("Nasty")

    @pytest.mark.parametrize("value", [None, 5, b"x", object()])
    def test_what_is_no_text_fails_that_prompt_alone(self, office, value):
        serve_sync(office, lambda p: value if p == "bad" else p, office.run("bad", "b"))
        failure, last = office.texts
        assert type(failure) is ResultNotSerializable
        assert last == "b"

    @pytest.mark.parametrize(
        ("text", "kind"), [("\ud800", ResultNotSerializable), ("x" * 10**6, PayloadTooLarge)]
    )
    def test_what_cannot_be_sent_fails_that_prompt_alone(self, office, text, kind):
        serve_sync(office, lambda p: text if p == "bad" else p, office.run("bad", "b"))
        failure, last = office.texts
        assert type(failure) is kind
        assert last == "b"

    def test_what_is_held_back_goes_out_before_it_waits(self, office, clock):
        """The rest of the batch was taken back: nobody follows who would send it along."""
        office.desk._flushed = clock.now

        def call(prompt):
            office.shared.take_back()
            return prompt

        def nobody_waits_with_outcomes():
            assert office.texts == ["a"]

        serve_sync(office, call, office.run("a", "b", "c"), nobody_waits_with_outcomes)
        assert office.texts == ["a"]

    def test_what_was_taken_back_does_not_run(self, office):
        run = office.run("a", "b")
        office.shared.take_back()
        serve_sync(office, str.upper, run, office.run("c"))
        assert office.texts == ["C"]

    def test_what_was_granted_before_its_message_came_runs_when_it_comes(self, office):
        gone = office.run("gone")
        office.shared.take_back()
        late = office.run("late")
        serve_sync(office, str.upper, gone, late)
        assert office.texts == ["LATE"]

    def test_messages_that_mean_nothing_to_it_are_ignored(self, office):
        serve_sync(office, str.upper, Interrupt(1), office.run("a"), Interrupt(1))
        assert office.texts == ["A"]

    def test_the_ledger_is_forgotten_as_far_as_it_is_acknowledged(self, office):
        serve_sync(office, str.upper, office.run("a", "b"), office.run("c", acked=2))
        assert [outcome.text for outcome in office.shared.read(is_over=True)] == ["C"]


class Client:
    """An async client whose turns go through gates of the test's."""

    def __init__(self, office):
        self.office = office
        self.gates = {}
        self.begun = collections.defaultdict(asyncio.Event)
        self.log = []
        self.on_query = None
        self.interrupted = asyncio.Event()

    async def connect(self):
        self.log.append("connect")

    async def query(self, prompt):
        self.prompt = prompt
        self.log.append(prompt)
        self.interrupted.clear()
        if self.on_query is not None:
            self.on_query(prompt)

    async def receive_response(self):
        prompt = self.prompt
        self.begun[prompt].set()
        yield AssistantMessage(content=[TextBlock(prompt)], model="fake")
        if prompt in self.gates:
            await asyncio.wait(
                [
                    asyncio.ensure_future(self.gates[prompt].wait()),
                    asyncio.ensure_future(self.interrupted.wait()),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        yield ResultMessage("success", 1, 0, self.interrupted.is_set(), 1, "s", result=prompt)

    async def interrupt(self):
        self.log.append("interrupt")
        self.interrupted.set()

    async def reset(self):
        self.log.append("reset")

    async def disconnect(self):
        self.log.append("disconnect")


def serve(
    office, scene, *, is_session=False, restored=b"", control_timeout_s=5.0, **client_methods
):
    """Run the async loop beside the supervisor's scene; whether its end was in order."""

    async def both():
        client = Client(office)
        for name, method in client_methods.items():
            setattr(client, name, method)
        host = Host(
            lambda: client, isolation="worker" if is_session else "prompt", restore=restored
        )
        worker = asyncio.ensure_future(
            loop.run_async(
                office.desk, host, is_session=is_session, control_timeout_s=control_timeout_s
            )
        )
        supervisor = asyncio.ensure_future(scene(client))
        async with asyncio.timeout(LIMIT_S):
            await asyncio.wait({worker, supervisor}, return_when=asyncio.FIRST_EXCEPTION)
            await supervisor
            return await worker, client

    return asyncio.run(both())


class News:
    """Wake-ups for the supervisor's scene: something was sent."""

    def __init__(self, office):
        self.office = office
        self.event = asyncio.Event()
        office.channel.on_sent = lambda message: self.event.set()

    async def until(self, condition):
        while not condition():
            self.event.clear()
            await self.event.wait()

    async def outcomes(self, count):
        await self.until(lambda: len(self.office.outcomes) >= count)
        return self.office.outcomes


class TestAsync:
    def test_it_says_that_it_is_ready_then_answers(self, office):
        async def scene(client):
            news = News(office)
            office.channel.put(office.run("a", "b"))
            await news.outcomes(2)
            office.channel.put(office.run("c"))
            await news.outcomes(3)
            office.channel.put(Stop())

        end, client = serve(office, scene)
        assert end is End.STOPPED
        assert office.channel.sent[0] == Ready()
        assert office.texts == ["a", "b", "c"]
        assert client.log == ["connect", "a", "reset", "b", "reset", "c", "reset", "disconnect"]

    def test_streamed_messages_go_out_as_they_arrive(self, office):
        async def scene(client):
            news = News(office)
            client.gates["a"] = asyncio.Event()
            office.channel.put(office.run("a", is_streamed=True))
            await news.until(lambda: any(isinstance(m, Streamed) for m in office.channel.sent))
            assert office.outcomes == []
            client.gates["a"].set()
            await news.outcomes(1)
            office.channel.put(Stop())

        serve(office, scene)
        _, first, last, outcome = office.channel.sent
        assert [m.lease for m in (first, last, outcome)] == [1, 1, 1]
        assert codec.decode_message(first.message).content == [TextBlock("a")]
        assert codec.decode_message(last.message).result == "a"

    def test_an_interrupt_ends_the_running_turn(self, office):
        async def scene(client):
            news = News(office)
            client.gates["a"] = asyncio.Event()
            office.channel.put(office.run("a", "b"))
            await client.begun["a"].wait()
            office.channel.put(Interrupt(1))
            await news.outcomes(2)
            office.channel.put(Stop())

        serve(office, scene)
        assert isinstance(office.texts[0], ClientError)
        assert office.texts[1] == "b"

    def test_an_interrupt_of_another_lease_changes_nothing(self, office):
        async def scene(client):
            news = News(office)
            client.gates["b"] = asyncio.Event()
            office.channel.put(office.run("a", "b"))
            await client.begun["b"].wait()
            office.channel.put(Interrupt(1), Interrupt(77))
            office.channel.put(office.run("c"))
            await asyncio.sleep(0)
            client.gates["b"].set()
            await news.outcomes(3)
            office.channel.put(Stop())

        _, client = serve(office, scene)
        assert office.texts == ["a", "b", "c"]
        assert "interrupt" not in client.log

    def test_an_interrupt_that_comes_together_with_its_lease_is_not_lost(self, office):
        """The grant was read before its message came: the supervisor takes it for running."""

        async def scene(client):
            news = News(office)
            client.gates["late"] = asyncio.Event()
            gone = office.run("gone")
            office.shared.take_back()
            late = office.run("late")
            office.channel.put(gone)
            while office.claims._claimed is None:  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(0)
            assert office.shared.take_back() == [], "it counts as begun"
            office.channel.put(late, Interrupt(2))
            await news.outcomes(1)
            office.channel.put(Stop())

        serve(office, scene)
        assert isinstance(office.texts[0], SoloistError), "it ended, though its gate is closed"

    def test_an_interrupt_that_comes_before_its_turn_is_not_lost(self, office):
        """Both arrive while the worker is still busy with the outcome before."""

        async def scene(client):
            news = News(office)
            wake = office.channel.on_sent

            def arrive(message):
                wake(message)
                if isinstance(message, Answer):
                    office.channel.inbox += [office.run("b"), Interrupt(2)]

            office.channel.on_sent = arrive
            client.gates["b"] = asyncio.Event()
            office.channel.put(office.run("a"))
            await news.outcomes(2)
            office.channel.put(Stop())

        _, client = serve(office, scene)
        assert isinstance(office.texts[1], RequestCancelled)
        assert "b" not in client.log, "it need not begin"

    @pytest.mark.parametrize("is_held_back", [False, True])
    def test_what_arrives_during_a_send_is_seen(self, office, clock, is_held_back):
        """The descriptor is edge-triggered: a send may swallow the edge.

        Outcomes that are held back, because more was to follow, are sent just before the wait.
        """
        office.desk._flushed = clock.now if is_held_back else 0.0

        async def scene(client):
            news = News(office)
            wake = office.channel.on_sent

            def arrive(message):
                wake(message)
                if isinstance(message, Answer) and message.text == "a":
                    office.channel.inbox.append(office.run("c"))

            office.channel.on_sent = arrive
            client.gates["a"] = asyncio.Event()
            office.channel.put(office.run("a", "b"))
            await client.begun["a"].wait()
            for _ in range(5):
                await asyncio.sleep(0)  # every edge so far has been taken note of
            office.shared.take_back()
            client.gates["a"].set()
            await news.outcomes(2)
            office.channel.put(Stop())

        serve(office, scene)
        assert office.texts == ["a", "c"]

    def test_a_message_that_comes_while_it_connects_is_not_lost(self, office):
        office.channel.inbox.append(office.run("early"))

        async def scene(client):
            news = News(office)
            await news.outcomes(1)
            office.channel.put(Stop())

        serve(office, scene)
        assert office.texts == ["early"]

    def test_a_client_that_cannot_connect_is_broken_and_the_end_not_in_order(self, office):
        async def fail():
            raise ClientConnectError("bad key")

        async def scene(client):
            pass

        end, client = serve(office, scene, connect=fail)
        assert end is End.FAILED
        (broken,) = office.channel.sent
        assert isinstance(broken, Broken)
        assert broken.is_loaded is True
        assert str(from_info(broken.error)) == "bad key"
        assert office.shared.read(is_over=True) == [broken]
        assert client.log == ["disconnect"]

    def test_a_client_that_cannot_be_renewed_is_broken_after_its_answer(self, office):
        connects = []

        async def connect_once():
            connects.append(1)
            if len(connects) > 1:
                raise OSError("no more")

        async def scene(client):
            office.channel.put(office.run("a", "b"))

        end, _ = serve(office, scene, connect=connect_once, reset=None)
        assert end is End.FAILED
        assert [type(m) for m in office.channel.sent] == [Ready, Answer, Broken]
        assert office.shared.take_back() == [2], "the other one never started"

    def test_a_turn_that_fails_costs_that_prompt_alone(self, office):
        async def scene(client):
            news = News(office)

            def fail(prompt):
                if prompt == "bad":
                    raise KeyError(prompt)

            client.on_query = fail
            office.channel.put(office.run("a", "bad", "b"))
            await news.outcomes(3)
            office.channel.put(Stop())

        end, _ = serve(office, scene)
        first, failure, last = office.texts
        assert (end, first, last) == (End.STOPPED, "a", "b")
        assert failure.type_name == "KeyError"

    def test_a_prompt_that_is_none_fails_alone(self, office):
        async def scene(client):
            news = News(office)
            lease = Lease(1, b"\xc1", False)
            office.shared.grant([lease.number])
            office.next = 2
            office.channel.put(Run((lease,), 0), office.run("b"))
            await news.outcomes(2)
            office.channel.put(Stop())

        serve(office, scene)
        assert office.texts[1] == "b"
        assert isinstance(office.outcomes[0], Failure)

    @pytest.mark.parametrize("when", ["idle", "running", "connecting"])
    def test_stop_ends_it_in_order_at_any_time(self, office, when):
        async def hang():
            await asyncio.Event().wait()

        async def scene(client):
            client.gates["a"] = asyncio.Event()
            if when == "running":
                office.channel.put(office.run("a"))
                await client.begun["a"].wait()
            office.channel.put(Stop())

        methods = {"connect": hang} if when == "connecting" else {}
        end, client = serve(office, scene, **methods)
        assert end is End.STOPPED
        assert client.log[-1] == "disconnect"
        assert office.outcomes == []

    @pytest.mark.parametrize(("hangs_on", "expected"), [(False, End.MAY_STAY), (True, End.STOPPED)])
    def test_the_process_may_stay_if_the_client_goes_in_order(self, office, hangs_on, expected):
        async def disconnect():
            if hangs_on:
                raise ConnectionError("it hangs on")

        async def scene(client):
            office.channel.put(Stop(may_stay=True))

        end, _ = serve(office, scene, disconnect=disconnect)
        assert end is expected

    def test_a_client_that_has_died_is_no_reason_to_stay(self, office):
        async def connect():
            raise ClientError("no")

        async def scene(client):
            office.channel.put(Stop(may_stay=True))

        end, _ = serve(office, scene, connect=connect)
        assert end is End.FAILED

    def test_nobody_can_be_asked_any_more_when_the_client_is_gone(self, office):
        async def scene(client):
            office.channel.put(Stop(may_stay=True))

        serve(office, scene)
        with pytest.raises(LocalProtocolError, match="no caller"):
            asyncio.run(control.ask_caller("anything", {}))

    def test_who_leaves_says_all_before_and_leaves_nothing_in_the_ledger(self, office):
        office.desk.announce(Snapshot(0, codec.encode_value("mine")))
        office.desk.put(codec.encode(Ready()))
        office.desk.leave()
        assert office.channel.sent[-2:] == [Ready(), Vacant()]
        assert office.shared.read(is_over=True) == []

    def test_stop_before_anything_else_is_heard(self, office):
        office.channel.inbox.append(Stop())

        async def scene(client):
            pass

        end, _ = serve(office, scene)
        assert end is End.STOPPED

    def test_an_oversized_streamed_message_does_not_leave_the_worker(self, strict):
        """The supervisor's socket would close the connection on it."""

        async def scene(client):
            news = News(strict)
            strict.channel.put(strict.run("x" * 500, "y" * 5000, is_streamed=True))
            await news.outcomes(2)
            strict.channel.put(Stop())

        serve(strict, scene)
        assert isinstance(strict.texts[1], PayloadTooLarge)
        streamed = [len(m.message) for m in strict.channel.sent if type(m) is Streamed]
        assert len(streamed) >= 2
        assert max(streamed) <= 1000

    def test_a_message_that_no_worker_gets_is_a_defect_that_shows(self, office):
        host = Host(lambda: Client(office), isolation="prompt")
        worker = loop._AsyncLoop(office.desk, host)
        office.channel.inbox.append(Ready())
        with pytest.raises(LocalProtocolError, match="gets no Ready"):
            worker._drain()


class TestSignsOfLife:
    def pongs(self, office):
        return sum(isinstance(message, Pong) for message in office.channel.sent)

    def test_amid_a_turn_the_loop_answers(self, office):
        async def scene(client):
            news = News(office)
            client.gates["a"] = asyncio.Event()
            office.channel.put(office.run("a"))
            await client.begun["a"].wait()
            for count in (1, 2):
                office.channel.put(Ping())
                await news.until(lambda n=count: self.pongs(office) == n)
            assert office.outcomes == []
            client.gates["a"].set()
            await news.outcomes(1)
            office.channel.put(Stop())

        end, _ = serve(office, scene)
        assert end is End.STOPPED
        assert self.pongs(office) == 2
        assert office.texts == ["a"]

    def test_also_while_the_client_connects(self, office):
        is_up = asyncio.Event()

        async def scene(client):
            news = News(office)
            office.channel.put(Ping())
            await news.until(lambda: self.pongs(office))
            assert len(office.channel.sent) == 1
            is_up.set()
            await news.until(lambda: isinstance(office.channel.sent[-1], Ready))
            office.channel.put(Stop())

        serve(office, scene, connect=is_up.wait)

    def test_many_that_come_at_once_hold_nothing_up(self, office):
        async def scene(client):
            news = News(office)
            office.channel.put(*[Ping()] * 50, office.run("a"), *[Ping()] * 50)
            await news.outcomes(1)
            await news.until(lambda: self.pongs(office) == 100)
            office.channel.put(Stop())

        serve(office, scene)
        assert office.texts == ["a"]

    def test_a_sync_callable_need_not_know_them(self, office):
        serve_sync(office, str.upper, Ping(), office.run("a"))
        assert office.texts == ["A"]
        assert self.pongs(office) == 0


class Conversation:
    """A client's own state, as its ``snapshot`` and ``restore`` show it."""

    def __init__(self, value=None):
        self.value = value
        self.log = []

    def snapshot(self):
        self.log.append("snapshot")
        return self.value

    def restore(self, value):
        self.log.append(f"restore {value}")
        self.value = value

    async def connect(self):
        self.log.append("connect")

    @property
    def methods(self):
        return {"snapshot": self.snapshot, "restore": self.restore, "connect": self.connect}


class TestSnapshots:
    def converse(self, office, *values, prompts="abc", begin=None, restored=b"", **methods):
        """A session of one turn for each value, which is the client's state after it."""
        conversation = Conversation(begin)

        async def scene(client):
            news = News(office)
            turns = iter(values)

            def on_query(prompt):
                conversation.value = next(turns)

            client.on_query = on_query
            for i, prompt in enumerate(prompts[: len(values)], 1):
                office.channel.put(office.run(prompt, acked=i - 1))
                await news.outcomes(i)
            office.channel.put(Stop())

        self.end, _ = serve(
            office,
            scene,
            is_session=True,
            restored=restored and codec.encode_value(restored),
            **{**conversation.methods, **methods},
        )
        return conversation

    def sent(self, office):
        """What went out: snapshots by their values, the rest by its kind."""
        return [
            (m.lease, codec.decode_value(m.data) if m.data else None)
            if isinstance(m, Snapshot)
            else type(m).__name__
            for m in office.channel.sent
        ]

    def test_one_comes_after_connecting_and_one_before_each_outcome(self, office):
        conversation = self.converse(office, 1, 2, begin=0)
        assert self.sent(office) == [(0, 0), "Ready", (1, 1), "Answer", (2, 2), "Answer"]
        assert conversation.log == ["connect", "snapshot", "snapshot", "snapshot"]

    def test_it_is_in_the_ledger_before_the_outcome(self, office):
        seen = []
        office.channel.on_sent = None
        real = office.desk.reply
        office.desk.reply = lambda outcome: (
            seen.append(office.shared.read(is_over=True)) or real(outcome)
        )
        self.converse(office, 1, begin=0)
        ((snapshot,),) = seen
        assert snapshot == Snapshot(1, codec.encode_value(1))
        assert office.shared.read(is_over=True) == [snapshot, *office.outcomes]

    def test_one_that_is_as_before_is_not_sent_again(self, office):
        self.converse(office, 7, 7, 8, begin=7)
        assert self.sent(office) == [(0, 7), "Ready", "Answer", "Answer", (3, 8), "Answer"]

    def test_a_client_that_can_give_none_sends_none(self, office):
        self.converse(office, None, None)
        assert self.sent(office) == ["Ready", "Answer", "Answer"]

    def test_one_that_can_be_continued_no_more_is_told(self, office):
        self.converse(office, None, begin=7)
        assert self.sent(office) == [(0, 7), "Ready", (1, None), "Answer"]

    def test_a_turn_that_failed_has_one_too(self, office):
        async def answer():
            raise ClientError("no")
            yield

        self.converse(office, 1, begin=0, receive_response=answer)
        assert self.sent(office) == [(0, 0), "Ready", (1, 1), "Failure"]
        assert self.end

    def test_restoring_comes_first_and_what_was_restored_is_not_sent_back(self, office):
        conversation = self.converse(office, "old", "new", restored="old")
        assert conversation.log[:3] == ["restore old", "connect", "snapshot"]
        assert self.sent(office) == ["Ready", "Answer", (2, "new"), "Answer"]

    def test_what_was_restored_holds_until_the_first_turn(self, office):
        """A client may know itself only after a turn; nothing was said that could be lost."""
        self.converse(office, None, None, restored="old", snapshot=lambda: None)
        assert self.sent(office) == ["Ready", (1, None), "Answer", "Answer"]

    def test_one_that_cannot_be_restored_is_broken(self, office):
        def restore(value):
            raise ClientConnectError("gone")

        conversation = Conversation()

        async def scene(client):
            pass

        end, _ = serve(
            office,
            scene,
            is_session=True,
            restored=codec.encode_value("old"),
            **{**conversation.methods, "restore": restore},
        )
        assert end is End.FAILED
        (broken,) = office.channel.sent
        assert str(from_info(broken.error)) == "gone"
        assert conversation.log == []

    def test_one_that_is_too_large_is_none(self, strict, caplog):
        """The supervisor's socket would close the connection on it, and the answer be lost."""
        self.converse(strict, "x" * 2000, begin="small")
        assert self.sent(strict) == [(0, "small"), "Ready", (1, None), "Answer"]
        assert "max_payload_bytes" in caplog.text

    def test_workers_of_the_pool_are_not_asked(self, office):
        conversation = Conversation(7)

        async def scene(client):
            news = News(office)
            office.channel.put(office.run("a"))
            await news.outcomes(1)
            office.channel.put(Stop())

        serve(office, scene, **conversation.methods)
        assert self.sent(office) == ["Ready", "Answer"]
        assert conversation.log == ["connect"]

    def test_stop_amid_one_ends_it_in_order(self, office):
        begun = asyncio.Event()

        async def snapshot():
            begun.set()
            await asyncio.Event().wait()

        async def scene(client):
            await begun.wait()
            office.channel.put(Stop())

        end, _ = serve(
            office, scene, is_session=True, snapshot=snapshot, restore=lambda value: None
        )
        assert end is End.STOPPED
        assert office.channel.sent == []


class TestSessions:
    def test_one_conversation_goes_on_from_prompt_to_prompt(self, office):
        async def scene(client):
            news = News(office)
            office.channel.put(office.run("a"))
            await news.outcomes(1)
            office.channel.put(office.run("b"))
            await news.outcomes(2)
            office.channel.put(Stop())

        _, client = serve(office, scene, is_session=True)
        assert client.log == ["connect", "a", "b", "disconnect"]

    def test_a_client_that_died_ends_the_worker(self, office):
        """A new client would answer from a blank state."""
        conversation = Conversation("before")

        async def scene(client):
            news = News(office)

            def fail(prompt):
                conversation.value = "who knows"
                raise KeyError(prompt)

            client.on_query = fail
            office.channel.put(office.run("a"), office.run("b"))
            await news.outcomes(1)

        end, client = serve(office, scene, is_session=True, **conversation.methods)
        assert end is End.FAILED
        (failure,) = office.texts
        assert failure.type_name == "KeyError"
        snapshots = [m for m in office.channel.sent if isinstance(m, Snapshot)]
        assert [m.lease for m in snapshots] == [0], "what is spoilt is not to be continued"
        assert office.shared.take_back() == [2], "the other one never started"
        assert client.log == ["a", "disconnect"]

    def test_its_last_words_are_sent_before_it_ends(self, office, clock):
        office.desk._flushed = clock.now

        async def scene(client):
            news = News(office)
            client.on_query = lambda prompt: 1 / 0
            office.channel.put(office.run("a"), office.run("b"))
            await news.outcomes(1)

        serve(office, scene, is_session=True)
        assert len(office.outcomes) == 1

    def test_an_interrupted_turn_leaves_the_conversation(self, office):
        async def scene(client):
            news = News(office)
            client.gates["a"] = asyncio.Event()
            office.channel.put(office.run("a"))
            await client.begun["a"].wait()
            office.channel.put(Interrupt(1))
            await news.outcomes(1)
            office.channel.put(office.run("b"))
            await news.outcomes(2)
            office.channel.put(Stop())

        end, client = serve(office, scene, is_session=True)
        assert end is End.STOPPED
        assert office.texts[1] == "b"
        assert client.log.count("connect") == 1


class TestCommands:
    def command(self, number, *arguments, name="set_model"):
        return Command(number, name, codec.encode_value(list(arguments)))

    def replies(self, office):
        return [m for m in office.channel.sent if isinstance(m, Done | Refused)]

    def serve(self, office, *commands, **methods):
        async def scene(client):
            news = News(office)
            office.channel.put(*commands)
            await news.until(lambda: len(self.replies(office)) == len(commands))
            office.channel.put(Stop())

        end, _ = serve(office, scene, is_session=True, **methods)
        assert end is End.STOPPED
        return self.replies(office)

    def test_one_that_is_carried_out_is_done(self, office):
        called = []
        replies = self.serve(office, self.command(7, "m"), set_model=called.append)
        assert replies == [Done(7)]
        assert called == ["m"]

    def test_they_begin_in_the_order_in_which_they_come(self, office):
        called = []

        async def set_model(model):
            called.append(model)
            await asyncio.sleep(0)

        commands = [self.command(i, i) for i in range(1, 6)]
        replies = self.serve(office, *commands, set_model=set_model)
        assert called == [1, 2, 3, 4, 5]
        assert {reply.number for reply in replies} == {1, 2, 3, 4, 5}

    @pytest.mark.parametrize(
        ("data", "kind"),
        [(codec.encode_value(["m"]), InvalidOptions), (b"\xc1", RemoteProtocolError)],
        ids=["no such method", "garbage"],
    )
    def test_one_that_cannot_be_carried_out_is_refused(self, office, data, kind):
        (refused,) = self.serve(office, Command(7, "set_model", data))
        assert refused.number == 7
        assert type(from_info(refused.error)) is kind

    def test_one_that_raises_is_refused_and_the_worker_goes_on(self, office):
        def set_model(model):
            raise ValueError(model)

        first, second = self.serve(
            office, self.command(1, "a"), self.command(2, "b"), set_model=set_model
        )
        assert isinstance(from_info(first.error), ClientError)
        assert isinstance(second, Refused)

    def test_they_come_amid_a_turn(self, office):
        called = []

        async def scene(client):
            news = News(office)
            client.gates["a"] = asyncio.Event()
            office.channel.put(office.run("a"))
            await client.begun["a"].wait()
            office.channel.put(self.command(7, "m"))
            await news.until(lambda: self.replies(office))
            assert office.outcomes == []
            client.gates["a"].set()
            await news.outcomes(1)
            office.channel.put(Stop())

        serve(office, scene, is_session=True, set_model=called.append)
        assert called == ["m"]
        assert office.texts == ["a"]

    def test_a_turn_that_comes_with_them_begins_when_they_have_ended(self, office):
        log = []

        async def set_model(model):
            for _ in range(10):
                await asyncio.sleep(0)
            log.append(model)

        async def scene(client):
            news = News(office)
            client.on_query = log.append
            for i in (1, 2):  # when it is idle, and right after a turn
                office.channel.put(self.command(i, f"m{i}"), office.run(f"p{i}"))
                await news.outcomes(i)
            office.channel.put(Stop())

        serve(office, scene, is_session=True, set_model=set_model)
        assert log == ["m1", "p1", "m2", "p2"]

    def test_a_turn_that_waits_for_one_can_be_cancelled(self, office):
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def set_model(model):
            begun.set()
            await go_on.wait()

        async def scene(client):
            news = News(office)
            office.channel.put(self.command(7, "m"), office.run("a", "b"), Interrupt(1))
            await begun.wait()
            go_on.set()
            await news.outcomes(2)
            office.channel.put(Stop())

        serve(office, scene, is_session=True, set_model=set_model)
        cancelled, answer = office.outcomes
        assert type(from_info(cancelled.error)) is RequestCancelled
        assert answer.text == "b"

    def test_one_that_hangs_does_not_hold_up_the_end(self, office):
        begun = asyncio.Event()

        async def set_model(model):
            begun.set()
            await asyncio.Event().wait()

        async def scene(client):
            office.channel.put(self.command(7, "m"))
            await begun.wait()
            office.channel.put(Stop())

        end, _ = serve(office, scene, is_session=True, set_model=set_model)
        assert end is End.STOPPED


class TestQuestions:
    def ask(self, office, data, reply=None, control_timeout_s=5.0):
        """A turn that asks its caller; gives what it got."""
        got = []

        async def receive_response():
            try:
                got.append(await control.ask_caller("echo", data))
            except Exception as error:
                got.append(error)
            yield ResultMessage("success", 1, 0, False, 1, "s", result="end")

        async def scene(client):
            news = News(office)
            office.channel.put(office.run("a"))
            if reply is not None:
                await news.until(lambda: self.questions(office))
                office.channel.put(ControlReply(self.questions(office)[0].number, reply))
            await news.outcomes(1)
            office.channel.put(Stop())

        serve(
            office,
            scene,
            is_session=True,
            control_timeout_s=control_timeout_s,
            receive_response=receive_response,
        )
        return got[0]

    def questions(self, office):
        return [m for m in office.channel.sent if isinstance(m, Control)]

    def test_they_go_to_the_caller_and_the_answer_comes_back(self, office):
        answer = self.ask(office, {"q": 1}, codec.encode_value({"text": "yes"}))
        assert answer == {"text": "yes"}
        (question,) = self.questions(office)
        assert (question.lease, question.kind) == (1, "echo")
        assert codec.decode_value(question.data) == {"q": 1}

    def test_one_that_is_too_large_is_refused_here(self, strict):
        """The supervisor's socket would close the connection on it."""
        error = self.ask(strict, {"q": "x" * 2000})
        assert isinstance(error, LocalProtocolError)
        assert "max_payload_bytes" in str(error)
        assert self.questions(strict) == []
        assert strict.texts == ["end"]
