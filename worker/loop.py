"""Receive, call the client, reply: the loop of one worker.

Two loops with one contract: :func:`run_sync` for a sync callable, with no event loop in the
process, and :func:`run_async` for a client. Both claim each lease before they run it, and put
each outcome into the ledger before they send it.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from soloist.protocol import codec, ledger
from soloist.protocol.errors import (
    InvalidOptions,
    LocalProtocolError,
    PayloadTooLarge,
    RequestCancelled,
    ResultNotSerializable,
    SoloistError,
    to_info,
)
from soloist.protocol.messages import (
    Answer,
    Broken,
    Chunk,
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
    WireMessage,
)
from soloist.worker import chunk, control
from soloist.worker.adopted import Adopted
from soloist.worker.channel import Channel
from soloist.worker.clients import function
from soloist.worker.host import Host
from soloist.worker.ledger import Claims, Ledger, Page

FLUSH_S = 0.001
"""How long finished outcomes may be held back to go out together."""
FLUSH_BYTES = 64 * 1024
"""Bytes of finished outcomes that go out at once."""

_log = logging.getLogger("soloist.worker")


class Desk:
    """What both loops share: the leases that came in and the way out for outcomes.

    Args:
        channel: to the supervisor.
        claims: the right to run.
        ledger: what survives this process.
        max_bytes: largest encoded outcome.
    """

    def __init__(self, channel: Channel, claims: Claims, ledger: Ledger, max_bytes: int) -> None:
        self.channel = channel
        self.claims = claims
        self._ledger = ledger
        self.max_bytes = max_bytes
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._flushed = 0.0

    def disown(self) -> None:
        """In a fork of this process, of the client's making: it is no worker.

        One that comes back from the client's code fails here, before it has told or changed
        anything.
        """
        self.claims.disown()
        self._ledger.disown()
        self.channel.disown()

    def claim(self) -> Lease | Chunk | None:
        """The next lease to run, or chunk to begin with, if there is one.

        A ledger that has grown large is not let grow further while more than one lease waits:
        what waits is then taken back or followed by more, and either way the supervisor says
        which outcomes it has, so that the ledger may be forgotten. A grant that was read before
        its lease came cannot be taken back: nobody but us would ever do anything about it.
        """
        is_waited_for = len(self.claims) > 1 and not self.claims.is_committed
        if is_waited_for and self._ledger.is_full(acked=self.claims.acked):
            return None
        return self.claims.claim()

    def reply(self, outcome: Answer | Failure) -> None:
        """Make the outcome safe, then send it, soon.

        Outcomes that follow each other within ``FLUSH_S`` go together. The last of a batch goes
        at once; one that is held back by a slow successor is read from the ledger instead.
        """
        payload = self._encode(outcome)
        self._ledger.append(outcome.lease, payload, acked=self.claims.acked)
        self._outbox.append(payload)
        self._outbox_bytes += len(payload)
        now = time.monotonic()
        if (
            self.claims.is_empty()
            or now - self._flushed >= FLUSH_S
            or self._outbox_bytes >= FLUSH_BYTES
        ):
            self.flush()
            self._flushed = now

    def page(self, chunk: Chunk) -> Page:
        """Where a chunk's answers are made safe."""
        return self._ledger.page(chunk.number, acked=self.claims.acked)

    def put(self, payload: bytes) -> None:
        """Hold an encoded message back, but not too many; ``flush`` must follow soon."""
        self._outbox.append(payload)
        self._outbox_bytes += len(payload)
        if self._outbox_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is held back."""
        if self._outbox:
            self.channel.send_encoded(self._outbox)
            self._outbox = []
            self._outbox_bytes = 0

    def fail(self, lease: int, duration_s: float, error: BaseException) -> None:
        """Reply with an error."""
        self.reply(Failure(lease, duration_s, to_info(error)))

    def announce(self, message: Loaded | Broken | Snapshot) -> None:
        """Say, in a way that survives this process, how far the client has come."""
        payload = codec.encode(message)
        lease = message.lease if isinstance(message, Snapshot) else ledger.NO_LEASE
        self._ledger.append(lease, payload, acked=self.claims.acked)
        self.put(payload)  # a large one goes by itself: with a large outcome it would be too much
        if lease == ledger.NO_LEASE:
            self.flush()

    def leave(self) -> None:
        """Say that the client is gone and has left nothing, here neither."""
        self.flush()
        self._ledger.clear()
        self.channel.send(Vacant())

    def _encode(self, outcome: Answer | Failure) -> bytes:
        try:
            payload = codec.encode(outcome)
        except LocalProtocolError as error:
            refusal: SoloistError = ResultNotSerializable(f"the result cannot be sent: {error}")
        else:
            if len(payload) <= self.max_bytes or isinstance(outcome, Failure):
                return payload
            refusal = PayloadTooLarge(
                f"the result has {len(payload):,} bytes, the limit is {self.max_bytes:,}; raise "
                "max_payload_bytes or return a reference to the data"
            )
        return codec.encode(Failure(outcome.lease, outcome.duration_s, to_info(refusal)))


class End(enum.Enum):
    """How serving has ended."""

    FAILED = "the client cannot go on"
    STOPPED = "the process is to exit"
    MAY_STAY = "the client is gone, and the process may stay"


def run_sync(desk: Desk, call: Callable[[Any], Any], *, is_session: bool = False) -> End:
    """Serve a sync callable until told to stop."""
    if is_session:  # a bare callable is stateless by contract: any other can continue
        desk.announce(Snapshot(ledger.NO_LEASE, codec.encode_value({})))
    desk.channel.send(Ready())
    adopted = Adopted()
    while True:
        lease = desk.claim()
        if lease is not None:
            if isinstance(lease, Chunk):
                chunk.run(desk, lease, call)
            else:
                _run_one(desk, lease, call)
            continue
        desk.flush()
        adopted.reap()
        message = desk.channel.receive()
        if isinstance(message, Run | Chunk):
            desk.claims.add(message)
        elif isinstance(message, Command):
            error = InvalidOptions(f"a bare callable has no {message.name}()")
            desk.channel.send(Refused(message.number, to_info(error)))
        elif isinstance(message, Stop):
            return End.MAY_STAY if message.may_stay else End.STOPPED


def _run_one(desk: Desk, lease: Lease, call: Callable[[Any], Any]) -> None:
    started = time.monotonic()
    try:
        text = function.text_of(call(codec.decode_prompt(lease.prompt)))
    except BaseException as error:  # noqa: BLE001 - sys.exit() in user code is its failure
        desk.fail(lease.number, time.monotonic() - started, error)
    else:
        desk.reply(Answer(lease.number, time.monotonic() - started, text, 1, b""))


async def run_async(
    desk: Desk, host: Host, *, is_session: bool = False, control_timeout_s: float = 0.0
) -> End:
    """Serve a client until told to stop.

    Args:
        desk: where leases come from and outcomes go.
        host: holds the client.
        is_session: whether a client that has died ends the worker, so that the supervisor knows;
            snapshots of the client are sent then.
        control_timeout_s: how long the client's questions to its caller may take.
    """
    return await _AsyncLoop(desk, host, is_session, control_timeout_s).run()


class _Doorbell(asyncio.Future[None]):
    """What one task waits for; it goes on within ``ring``.

    With a plain future it would go on in the loop's next round, a poll and a few calls later: that
    much longer takes each prompt.
    """

    _waiter: Callable[[], object] | None = None

    def add_done_callback(
        self, fn: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        """Have the task go on; called by ``await``."""
        run = (contextvars.copy_context() if context is None else context).run
        self._waiter = functools.partial(run, fn, self)

    def ring(self) -> None:
        """Have the task go on: now, or soon if another one is running."""
        self.set_result(None)
        if self._waiter is not None:
            if asyncio.current_task() is None:
                self._waiter()
            else:
                self.get_loop().call_soon(self._waiter)

    def cancel(self, msg: Any | None = None) -> bool:
        """Have the task cancelled."""
        is_cancelled = super().cancel(msg)
        if is_cancelled and self._waiter is not None:
            self.get_loop().call_soon(self._waiter)
        return is_cancelled


class _AsyncLoop:
    def __init__(
        self,
        desk: Desk,
        host: Host,
        is_session: bool = False,  # noqa: FBT001, FBT002 - private
        control_timeout_s: float = 0.0,
    ) -> None:
        self._desk = desk
        self._host = host
        self._is_session = is_session
        self._snapshot = host.restored  # what the supervisor has
        self._controls = control.Controls(self._ask, timeout_s=control_timeout_s)
        self._commands: set[asyncio.Task[None]] = set()
        self._is_flush_due = False
        self._running = 0  # lease of the turn in flight
        self._unwanted = 0  # highest lease whose interrupt came before its turn
        self._adopted = Adopted()
        self._idle: _Doorbell | None = None  # rung when there may be a lease to claim
        self._stopped = asyncio.Event()
        self._may_stay = False

    async def run(self) -> End:
        control.install(self._controls)
        loop = asyncio.get_running_loop()
        sources = self._desk.channel.sources()
        for descriptor, wake in sources:
            loop.add_reader(descriptor, self._readable, wake)
        is_in_order = is_gone = False
        try:
            is_in_order = await self._race(self._serve())
        finally:
            for descriptor, _ in sources:
                loop.remove_reader(descriptor)
            is_gone = await self._host.disconnect()
            control.install(None)
        if not is_in_order:
            return End.FAILED
        return End.MAY_STAY if self._may_stay and is_gone else End.STOPPED

    async def _race(self, serving: Coroutine[Any, Any, bool]) -> bool:
        """Serve until stopped; a turn that runs by then is cut off."""
        service = asyncio.ensure_future(serving)
        stop = asyncio.ensure_future(self._stopped.wait())
        self._drain()
        await asyncio.wait({service, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not service.done():
            service.cancel()
            await asyncio.wait({service})
            return True
        return service.result()

    async def _serve(self) -> bool:
        try:
            await self._host.connect()
            await self._save(ledger.NO_LEASE)
            self._send(Ready())
            while True:
                await self._turn(await self._next())
                if self._is_session and self._host.is_spoilt:
                    self._desk.flush()
                    return False
                await self._host.renew()
        except SoloistError as error:
            self._desk.announce(Broken(is_loaded=True, error=to_info(error)))
            return False

    async def _next(self) -> Lease:
        while (lease := self._desk.claim()) is None:
            idle = self._idle = _Doorbell()
            self._desk.flush()
            self._adopted.reap()
            self._drain()  # the descriptor is edge-triggered: look again after every send
            await idle
        if self._commands:  # they came first, and what they set holds for this turn
            await asyncio.wait(self._commands)
        assert isinstance(lease, Lease), "chunks are for sync callables"
        return lease

    async def _turn(self, lease: Lease) -> None:
        self._running = self._controls.lease = lease.number
        started = time.monotonic()
        on_message = self._streamer(lease.number) if lease.is_streamed else None
        try:
            if lease.number == self._unwanted:
                raise RequestCancelled("it was cancelled before its turn began", started=False)
            prompt = codec.decode_prompt(lease.prompt)
            answer = await self._host.turn(lease.number, prompt, on_message)
            await self._save(lease.number)
            self._desk.reply(answer)
        except SoloistError as error:
            await self._save(lease.number)
            self._desk.fail(lease.number, time.monotonic() - started, error)
        finally:
            self._running = 0
        self._drain()

    async def _save(self, lease: int) -> None:
        """Before a turn's outcome: what a replacement needs to continue after that turn."""
        if not self._is_session or self._host.is_spoilt:
            return
        snapshot = await self._host.snapshot()
        if len(snapshot) > self._desk.max_bytes:
            _log.warning("a snapshot of %d bytes is over max_payload_bytes", len(snapshot))
            snapshot = b""
        # Before its first turn a client holds what was restored, whether it can say so or not.
        is_news = snapshot != self._snapshot and (snapshot or lease != ledger.NO_LEASE)
        if is_news:
            self._snapshot = snapshot
            self._desk.announce(Snapshot(lease, snapshot))

    async def _command(self, command: Command) -> None:
        try:
            arguments = codec.decode_value(command.arguments)
            await self._host.command(command.name, arguments)
        except SoloistError as error:
            self._send(Refused(command.number, to_info(error)))
        else:
            self._send(Done(command.number))

    def _ask(self, question: Control) -> None:
        """Send a question of the client's; the supervisor's socket would not take a huge one."""
        if len(question.data) > self._desk.max_bytes:
            raise LocalProtocolError(f"a {question.kind} question is over max_payload_bytes")
        self._send(question)

    def _streamer(self, lease: int) -> Callable[[bytes], None]:
        """Send when the client lets go of the loop: what it yields together goes together."""
        loop = asyncio.get_running_loop()

        def send(data: bytes) -> None:
            if len(data) > self._desk.max_bytes:  # the answer is refused as a whole
                return
            self._desk.put(codec.encode(Streamed(lease, data)))
            if not self._is_flush_due:
                self._is_flush_due = True
                loop.call_soon(self._flush)

        return send

    def _flush(self) -> None:
        self._is_flush_due = False
        self._desk.flush()
        self._drain()  # the descriptor is edge-triggered: look again after every send

    def _send(self, message: WireMessage) -> None:
        self._desk.put(codec.encode(message))
        self._flush()

    def _readable(self, wake: Callable[[], None]) -> None:
        """Take one message in; a turn that begins with it need not wait for the second look."""
        wake()
        message = self._desk.channel.receive_nowait()
        if message is not None:
            self._hear(message)
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        while (message := self._desk.channel.receive_nowait()) is not None:
            self._hear(message)

    def _hear(self, message: WireMessage) -> None:
        match message:
            case Run():
                self._desk.claims.add(message)
                if self._idle is not None and not self._idle.done():
                    self._idle.ring()
            case Interrupt(lease):
                self._interrupt(lease)
            case Stop(may_stay):
                self._may_stay = may_stay
                self._stopped.set()
            case ControlReply():
                self._controls.resolve(message)
            case Ping():  # answered here, amid a turn or a connect: what is asked is the loop
                self._send(Pong())
            case Command():
                task = asyncio.ensure_future(self._command(message))
                self._commands.add(task)
                task.add_done_callback(self._commands.discard)
            case _:
                raise LocalProtocolError(f"a worker gets no {type(message).__name__}")

    def _interrupt(self, lease: int) -> None:
        if lease == self._running:
            self._host.interrupt()
        self._unwanted = max(self._unwanted, lease)
