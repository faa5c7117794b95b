"""Receive, call the client, reply: the loop of one worker.

Two loops with one contract: :func:`run_sync` for a sync callable, with no event loop in the
process, and :func:`run_async` for a client. Both claim each lease before they run it, and put
each outcome into the ledger before they send it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from soloist.protocol import codec
from soloist.protocol.errors import (
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
    Failure,
    Interrupt,
    Lease,
    Loaded,
    Ready,
    Run,
    Stop,
    Streamed,
    WireMessage,
)
from soloist.worker.channel import Channel
from soloist.worker.clients import function
from soloist.worker.host import Host
from soloist.worker.ledger import Claims, Ledger

FLUSH_S = 0.001
"""How long finished outcomes may be held back to go out together."""
FLUSH_BYTES = 64 * 1024
"""Bytes of finished outcomes that go out at once."""


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

    def claim(self) -> Lease | None:
        """The next lease to run, if there is one.

        A ledger that has grown large is not let grow further while more than one lease waits:
        what waits is then taken back or followed by more, and either way the supervisor says
        which outcomes it has, so that the ledger may be forgotten.
        """
        if self._ledger.is_full(acked=self.claims.acked) and len(self.claims) > 1:
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

    def flush(self) -> None:
        """Send what is held back."""
        if self._outbox:
            self.channel.send_encoded(self._outbox)
            self._outbox = []
            self._outbox_bytes = 0

    def fail(self, lease: int, duration_s: float, error: BaseException) -> None:
        """Reply with an error."""
        self.reply(Failure(lease, duration_s, to_info(error)))

    def announce(self, message: Loaded | Broken) -> None:
        """Say, in a way that survives this process, how far the client has come."""
        payload = codec.encode(message)
        self._ledger.append(0, payload, acked=self.claims.acked)
        self._outbox.append(payload)
        self.flush()

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


def run_sync(desk: Desk, call: Callable[[Any], Any]) -> None:
    """Serve a sync callable until told to stop."""
    desk.channel.send(Ready())
    while True:
        lease = desk.claim()
        if lease is not None:
            _run_one(desk, lease, call)
            continue
        desk.flush()
        message = desk.channel.receive()
        if isinstance(message, Run):
            desk.claims.add(message)
        elif isinstance(message, Stop):
            return


def _run_one(desk: Desk, lease: Lease, call: Callable[[Any], Any]) -> None:
    started = time.monotonic()
    try:
        text = function.text_of(call(codec.decode_prompt(lease.prompt)))
    except BaseException as error:  # noqa: BLE001 - sys.exit() in user code is its failure
        desk.fail(lease.number, time.monotonic() - started, error)
    else:
        desk.reply(Answer(lease.number, time.monotonic() - started, text, 1, b""))


async def run_async(desk: Desk, host: Host) -> bool:
    """Serve a client until told to stop; whether its end was in order."""
    return await _AsyncLoop(desk, host).run()


class _AsyncLoop:
    def __init__(self, desk: Desk, host: Host) -> None:
        self._desk = desk
        self._host = host
        self._running = 0  # lease of the turn in flight
        self._unwanted = 0  # highest lease whose interrupt came before its turn
        self._news = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self) -> bool:
        loop = asyncio.get_running_loop()
        descriptor = self._desk.channel.fileno()
        loop.add_reader(descriptor, self._drain)
        try:
            return await self._race(self._serve())
        finally:
            loop.remove_reader(descriptor)
            await self._host.disconnect()

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
            self._send(Ready())
            while True:
                await self._turn(await self._next())
                await self._host.renew()
        except SoloistError as error:
            self._desk.announce(Broken(is_loaded=True, error=to_info(error)))
            return False

    async def _next(self) -> Lease:
        while (lease := self._desk.claim()) is None:
            self._news.clear()
            self._desk.flush()
            self._drain()  # the descriptor is edge-triggered: look again after every send
            await self._news.wait()
        return lease

    async def _turn(self, lease: Lease) -> None:
        self._running = lease.number
        started = time.monotonic()
        on_message = self._streamer(lease.number) if lease.is_streamed else None
        try:
            if lease.number == self._unwanted:
                raise RequestCancelled("it was cancelled before its turn began")
            prompt = codec.decode_prompt(lease.prompt)
            self._desk.reply(await self._host.turn(lease.number, prompt, on_message))
        except SoloistError as error:
            self._desk.fail(lease.number, time.monotonic() - started, error)
        finally:
            self._running = 0
        self._drain()

    def _streamer(self, lease: int) -> Callable[[bytes], None]:
        def send(data: bytes) -> None:
            if len(data) <= self._desk.max_bytes:  # else the answer is refused as a whole
                self._send(Streamed(lease, data))

        return send

    def _send(self, message: WireMessage) -> None:
        self._desk.flush()
        self._desk.channel.send(message)
        self._drain()  # the descriptor is edge-triggered: look again after every send

    def _drain(self) -> None:
        while (message := self._desk.channel.receive_nowait()) is not None:
            match message:
                case Run():
                    self._desk.claims.add(message)
                    self._news.set()
                case Interrupt(lease):
                    if lease == self._running:
                        self._host.interrupt()
                    self._unwanted = max(self._unwanted, lease)
                case Stop():
                    self._stopped.set()
                case _:
                    raise LocalProtocolError(f"a worker gets no {type(message).__name__}")
