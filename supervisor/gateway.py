"""The public endpoint: what foreign programs say becomes the same calls as a program's own.

Owns the peers of one process that serves: who they are, and what they have asked. Runs on the I/O
thread of one Supervisor, its *home*; what comes from others is taken there through its inbox.
Decides nothing about the order of service.

Invariants: nothing that a peer does raises here; what a peer asked ends with exactly one reply; no
id of one scope runs twice; a peer that has been silent for three heartbeats has gone; everything
that peers can make grow is bounded.

Source: SPEC.md, chapter 2.
"""

from __future__ import annotations

import functools
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from soloist.protocol import codec, public, public_codec
from soloist.protocol.content import Map
from soloist.protocol.errors import (
    ClientError,
    HelloRequired,
    OutcomeUnknown,
    ProtocolError,
    QueueFull,
    RequestTimeout,
    SoloistError,
    to_info,
)
from soloist.supervisor.arrivals import Arrivals
from soloist.supervisor.brokers import SessionLimits
from soloist.supervisor.control import ControlRequest
from soloist.supervisor.conversations import Conversations, ServedPool
from soloist.supervisor.exchange import Asked, Call, Exchange, FarSink, GatewayChannel, Key, Peer
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.outcomes import Outcomes, Scope, Unknown
from soloist.supervisor.patience import PERIOD_S
from soloist.supervisor.peers import GatewayLimits, Peers
from soloist.supervisor.request import POOL, Request
from soloist.supervisor.results import Stats

MAX_READ = 64
"""Messages read from one socket at once: a peer that never stops must not keep others waiting."""
OBEY_S = 0.001
"""How long messages are obeyed at once, but for the first: conversations go on only between, by
one prompt each time."""
_MAX_ARRIVALS = 2_000
"""Messages that are read before they are obeyed; then they wait at zmq, which cannot tell who has
cost least."""
_MAX_ARRIVED_BYTES = 4 * 1024 * 1024
_EXPIRE_EVERY_S = 0.02
"""How long the gateway is there for its peers between two parts of what it forgets."""
_OWN_FRAMES = 2
"""An address and a message: what a DEALER says for itself."""
_NONSENSE = 10
"""So many times its cost is charged for what is no message at all."""
_PONG = public_codec.encode(public.Pong())


class Home(Protocol):
    """The I/O thread on which a gateway runs, as seen from that thread."""

    inbox: Inbox

    def submit(self, request: Request) -> None:
        """Take a request in."""

    def cancel(self, requests: list[Request], error: SoloistError | None = None) -> None:
        """End these early."""

    def interrupt(self, number: int) -> None:
        """End the running turn of a session early."""


class Sockets(Protocol):
    """See :class:`soloist.supervisor.gateway_channel.GatewaySockets`."""

    @property
    def channels(self) -> Sequence[GatewayChannel]:
        """One for each endpoint."""

    def close(self) -> None:
        """Close them all."""


class Gateway:
    """All peers of one process that serves.

    Args:
        home: where it runs.
        pools: by the name that peers use; the first is for those who name none, and the home's.
        limits: what peers may cost.
        sockets: where peers come from; closed with the gateway.
        clock: tells the time in seconds.
        processor_clock: tells what this thread has cost, in seconds: nobody pays for others.
    """

    def __init__(
        self,
        home: Home,
        pools: Mapping[str, ServedPool],
        limits: GatewayLimits,
        sockets: Sockets,
        *,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._home = home
        self._home_name = next(iter(pools))
        self._pools = pools
        self._limits = limits
        self._sockets = sockets
        self._clock = clock
        self._processor_clock = processor_clock
        self._channels = tuple(sockets.channels)
        self._epoch = secrets.token_bytes(public.ID_BYTES)
        self._outcomes: Outcomes[Asked] = Outcomes(
            limits.max_outcome_bytes, limits.max_ids, limits.retention_s
        )
        self._peers = Peers(self._channels, limits, self._outcomes, self._gone)
        self._arrivals: Arrivals[Key, tuple[list[bytes], str]] = Arrivals(
            _MAX_ARRIVALS, _MAX_ARRIVED_BYTES, self._account
        )
        self._conversations = Conversations(
            pools,
            home.inbox,
            max_conversations=limits.max_conversations,
            default=SessionLimits(limits.max_queue, limits.idle_timeout_s),
        )
        self._waiting: dict[tuple[str, int], int] = {}
        self._beat_at = self._expire_at = math.inf
        self._calls: Mapping[type, Callable[[Call, Peer, Any], None]] = {
            public.Open: self._conversations.open,
            public.Close: self._conversations.close,
            public.Command: self._conversations.command,
        }
        self._words: Mapping[type, Callable[[Peer, Any], None]] = {
            public.Cancel: self._cancel,
            public.Credit: self._credit,
            public.ControlReply: self._control_reply,
            public.Interrupt: self._interrupt,
        }
        self._acts: Mapping[type, Callable[[Peer, public.Envelope, Any], object]] = {
            public.Query: self._query,
            public.Ping: lambda peer, envelope, _: peer.send(envelope, _PONG),
            public.Status: self._status,
            **dict.fromkeys(self._calls, self._call),
            **dict.fromkeys(self._words, self._word),
        }

    # -- on the thread's turns -----------------------------------------------------------------

    def sources(self) -> list[tuple[int, Callable[[], None]]]:
        """The sockets' descriptors, and what to call when one is readable."""
        return [(channel.fileno(), channel.wake) for channel in self._channels]

    def close(self) -> None:
        """Close the sockets."""
        self._sockets.close()

    def has_input(self) -> bool:
        """Whether ``take`` has something to do."""
        return (
            bool(self._arrivals)
            or self._peers.has_lost
            or any(channel.has_input() for channel in self._channels)
        )

    def take(self) -> None:
        """Read what peers say, and do some of it: for ``OBEY_S``, or the first."""
        self._peers.drop_lost()
        now = self._clock()
        # Who comes first need not wait until others have been read.
        if not (self._arrivals or self._serve_first(now)):
            return
        for place, channel in enumerate(self._channels):
            self._read(place, channel, now)
        if not self._arrivals:
            return
        now, spent_s = self._clock(), self._processor_clock()
        until = now + OBEY_S
        while self._arrivals and now < until:
            key, received = self._arrivals.next()
            now, spent_s = self._serve(key, received, now, spent_s)

    def _serve_first(self, now: float) -> bool:
        """Do what one peer says that nobody was before; whether there is one."""
        for place, channel in enumerate(self._channels):
            if (received := channel.receive()) is not None:
                key = (place, received[0][0])
                if self._is_heard(key, received[0], now):
                    self._arrivals.served(key)
                    self._serve(key, received, now, self._processor_clock())
                return True
        return False

    def _serve(
        self, key: Key, received: tuple[list[bytes], str], now: float, spent_s: float
    ) -> tuple[float, float]:
        """Do what a message says; the time then, and what this thread has cost."""
        frames, curve_key = received
        is_sense = self._hear(key, frames, curve_key, now)
        before_s, spent_s = spent_s, self._processor_clock()
        now = self._clock()
        self._arrivals.cost((spent_s - before_s) * (1 if is_sense else _NONSENSE), now)
        return now, spent_s

    def _read(self, place: int, channel: GatewayChannel, now: float) -> None:
        for _ in range(MAX_READ):
            if self._arrivals.is_full or (received := channel.receive()) is None:
                return
            frames = received[0]
            key = (place, frames[0])
            if self._is_heard(key, frames, now):
                self._arrivals.add(key, received, sum(map(len, frames)))

    def _is_heard(self, key: Key, frames: list[bytes], now: float) -> bool:
        # What comes through another socket is not this connection's own.
        return len(frames) > _OWN_FRAMES or self._peers.is_heard(key, now)

    def _account(self, key: Key) -> Key | None:
        """Who has said no hello shares one account with all such: a connection costs nothing."""
        return key if key in self._peers else None

    def next_deadline(self) -> float:
        """When ``go_on`` wants to be called."""
        return min(self._beat_at, self._expire_at)

    def go_on(self, now: float) -> None:
        """See who has gone, and forget what was kept long enough."""
        is_beat = now >= self._beat_at
        if is_beat:
            self._peers.drop_silent(now)
        if is_beat or now >= self._expire_at:
            has_more = self._outcomes.expire(now)
            self._expire_at = now + _EXPIRE_EVERY_S if has_more else math.inf
        if not is_beat:
            return
        self._conversations.sweep()
        is_alive = self._peers or len(self._outcomes) or len(self._conversations)
        self._beat_at = now + self._limits.heartbeat_s if is_alive else math.inf

    # -- who is there --------------------------------------------------------------------------

    def _hear(self, key: Key, frames: list[bytes], curve_key: str, now: float) -> bool:
        channel = self._channels[key[0]]
        envelope, message = public_codec.read(frames, public_codec.GATEWAY)
        self._beat_at = min(self._beat_at, now + self._limits.heartbeat_s)
        peer = self._peers.heard(key, now)
        if isinstance(message, public.Error):
            channel.send(envelope, public_codec.encode(message))
            is_own = len(envelope) == 1 and message.id is None  # else it is about a request
            if is_own and peer is not None and peer.patience.mistake(now):
                self._stop_hearing(peer)
            return False
        if len(envelope) > 1:
            peer = self._peers.passing(key, curve_key, None, now)
            self._obey(peer, envelope, message)
            self._outcomes.tidy(peer.scope)
        elif isinstance(message, public.Hello):
            self._greet(key, curve_key, message, peer)
        elif peer is None:
            about = getattr(message, "id", None)
            _refuse(channel, envelope, about, HelloRequired("HELLO comes first"))
        else:
            self._obey(peer, envelope, message)
        return True

    def _obey(self, peer: Peer, envelope: public.Envelope, message: public.FromClient) -> None:
        """Do what one message says."""
        self._acts[type(message)](peer, envelope, message)

    def _word(self, peer: Peer, envelope: public.Envelope, message: public.FromClient) -> None:
        """Do what has no answer."""
        try:
            self._words[type(message)](peer, message)
        except SoloistError as error:
            _refuse(peer.channel, envelope, None, error)

    def _greet(self, key: Key, curve_key: str, hello: public.Hello, peer: Peer | None) -> None:
        place, address = key
        try:
            if public.VERSION not in hello.versions:
                raise ProtocolError(f"version {public.VERSION} is spoken here", started=False)
            if peer is None:
                peer = self._peers.admit(key, curve_key, hello.secret, self._clock())
        except SoloistError as error:
            _refuse(self._channels[place], (address,), None, error)
            return
        peer.send(peer.envelope, self._welcome())

    def _welcome(self) -> public.Welcome:
        pool = self._pools[self._home_name]
        return public.Welcome(
            public.VERSION,
            self._epoch,
            round(self._limits.heartbeat_s * 1000),
            pool.credit_bytes,
            pool.max_payload_bytes,
            self._limits.max_requests,
            list(self._pools),
        )

    def _stop_hearing(self, peer: Peer) -> None:
        """Tell a connection that what it says is not heard for a while."""
        most = f"{self._limits.max_protocol_errors:,} (max_protocol_errors)"
        text = f"more than {most} in {PERIOD_S:g} s: you are not heard for as long"
        _refuse(peer.channel, peer.envelope, None, ProtocolError(text, started=False))

    def _gone(self, peer: Peer) -> None:
        """A connection has gone: what it asked ends, or runs on for who comes back."""
        for asked in tuple(peer.asked.values()):
            asked.detach()
            if isinstance(asked, Exchange) and not asked.outlives:
                self._end_early(asked)
        if not peer.scope.peers:
            self._conversations.scope_gone(peer.scope.name)

    # -- prompts -------------------------------------------------------------------------------

    def _query(self, peer: Peer, envelope: public.Envelope, query: public.Query) -> None:
        if self._is_known(peer, envelope, query.id, query.resent):
            return
        try:
            position = self._run(peer, envelope, query)
        except SoloistError as error:
            _refuse(peer.channel, envelope, query.id, error)
            return
        if position and query.id in peer.asked and len(envelope) == 1:
            peer.send(envelope, public.Accepted(query.id, position))

    def _is_known(
        self, peer: Peer, envelope: public.Envelope, known_id: bytes, resent: bytes | None
    ) -> bool:
        """Whether that id has come before: then who sends it again waits for it, or has it now."""
        found = self._outcomes.find(peer.scope, known_id)
        if found is Unknown.NEW and resent is None:  # nearly always
            return False
        match found:
            case bytes():
                peer.send(envelope, found)
            case Exchange():
                peer.attach(found, envelope)
                found.asked_again()
            case Call():
                peer.attach(found, envelope)
            case Unknown():
                is_doubtful = found is Unknown.DOUBTFUL or resent != self._epoch
                if found is not Unknown.FORGOTTEN and not (resent and is_doubtful):
                    return False
                _refuse(peer.channel, envelope, known_id, OutcomeUnknown("it may have run"))
        return True

    def _run(self, peer: Peer, envelope: public.Envelope, query: public.Query) -> int:
        """Hand a prompt over; how many for the same worker or pool were before it.

        Raises:
            SoloistError: it is refused; it certainly never ran.
        """
        target = self._target(peer, query)
        pool = self._pools[target[0]]
        payload = codec.encode_prompt(query.prompt, pool.max_payload_bytes)
        self._check_room(peer.scope, len(payload))
        exchange = Exchange(
            peer,
            envelope,
            query,
            target=target,
            size=len(payload),
            credit_bytes=pool.credit_bytes,
            on_over=self._is_over,
        )
        timeout_s = pool.timeout_s if query.timeout_ms is None else query.timeout_ms / 1000
        exchange.request = request = Request(
            "",  # only a Result would show it, and there is none of this request
            payload,
            exchange,
            deadline=None if timeout_s is None else self._clock() + timeout_s,
            is_streamed=query.is_streamed,
        )
        request.session = target[1]
        if query.has_control and len(envelope) == 1:
            request.on_control = functools.partial(self._ask, exchange, pool.control_timeout_s)
        before = self._waiting.get(target, 0)
        self._waiting[target] = before + 1
        self._outcomes.begin(peer.scope, query.id, exchange, len(payload))
        self._submit(exchange, request)
        return before

    def _target(self, peer: Peer, query: public.Query) -> tuple[str, int]:
        """Which pool, and which of its sessions.

        Raises:
            InvalidOptions: there is no such client.
            SessionClosed: there is no such conversation, for this peer.
        """
        if query.session is None:
            return self._conversations.pool_name(query.client), POOL
        conversation = self._conversations.found(peer, query.session)
        return conversation.pool, conversation.address.number

    def _check_room(self, scope: Scope[Asked], size: int) -> None:
        limits = self._limits
        if len(scope.requests) >= limits.max_requests:
            raise QueueFull(f"{limits.max_requests:,} requests have no outcome yet (max_requests)")
        if scope.queued_bytes and scope.queued_bytes + size > limits.max_queued_bytes:
            raise QueueFull(f"over {limits.max_queued_bytes:,} bytes of prompts wait already")

    def _submit(self, exchange: Exchange, request: Request) -> None:
        name, _ = exchange.target
        if name == self._home_name:
            self._home.submit(request)
            return
        pool = self._pools[name]
        request.sink = FarSink(exchange, self._home.inbox, pool.credit_bytes, pool.reactor.cancel)
        try:
            pool.reactor.submit((request,))
        except SoloistError as error:
            request.sink = exchange
            request.settle(error)

    def _end_early(self, exchange: Exchange) -> None:
        name, _ = exchange.target
        if name == self._home_name:
            self._home.cancel([exchange.request])
        else:
            self._pools[name].reactor.cancel((exchange.request,))

    def _is_over(self, asked: Asked, outcome: bytes) -> None:
        """Its outcome has been sent: keep it for who asks again."""
        self._outcomes.end(asked.scope, asked.id, asked.size, outcome, self._clock())
        if isinstance(asked, Exchange):
            self._waiting[asked.target] -= 1
            if not self._waiting[asked.target]:
                del self._waiting[asked.target]

    def _cancel(self, peer: Peer, cancel: public.Cancel) -> None:
        asked = peer.scope.requests.get(cancel.id)
        if isinstance(asked, Exchange):
            self._end_early(asked)

    @staticmethod
    def _credit(peer: Peer, credit: public.Credit) -> None:
        asked = peer.asked.get(credit.id)
        if isinstance(asked, Exchange):
            asked.grant(credit.granted_bytes)

    def _interrupt(self, peer: Peer, interrupt: public.Interrupt) -> None:
        """End the running turn of a conversation early, and not the one of a prompt sent later.

        Raises:
            SessionClosed: there is no such one.
        """
        conversation = self._conversations.found(peer, interrupt.session)
        number = conversation.address.number
        if conversation.pool == self._home_name:  # at once, as prompts are handed over there
            self._home.interrupt(number)
        else:
            self._pools[conversation.pool].reactor.interrupt_session(number)

    # -- what agents ask -------------------------------------------------------------------------

    def _ask(self, exchange: Exchange, timeout_s: float, question: ControlRequest) -> Map:
        """Have a peer answer; on a thread of the question's own.

        Raises:
            RequestTimeout: nobody did.
            ClientError: the peer said that nobody decided.
        """
        answer: Future[Map] = Future()
        self._home.inbox.post(lambda: exchange.ask(question, answer))
        try:
            data = answer.result(timeout_s)
        except (TimeoutError, CancelledError) as error:
            answer.cancel()  # so that it is not asked again
            raise RequestTimeout("no peer has answered the agent's question") from error
        if list(data) == ["error"]:
            raise ClientError("the peer says that nobody has decided")
        return data

    @staticmethod
    def _control_reply(peer: Peer, reply: public.ControlReply) -> None:
        asked = peer.asked.get(reply.id)
        if isinstance(asked, Exchange):
            asked.answered(reply.number, reply.data)

    # -- all else --------------------------------------------------------------------------------

    def _call(
        self,
        peer: Peer,
        envelope: public.Envelope,
        message: public.Open | public.Close | public.Command,
    ) -> None:
        """Have something done that is no prompt."""
        if self._is_known(peer, envelope, message.id, None):
            return
        try:
            self._check_room(peer.scope, 0)
        except SoloistError as error:
            _refuse(peer.channel, envelope, message.id, error)
            return
        call = Call(peer, envelope, message.id, self._is_over)
        self._outcomes.begin(peer.scope, message.id, call, 0)
        try:
            self._calls[type(message)](call, peer, message)
        except SoloistError as error:
            call.answer(public.Error(call.id, None, to_info(error)))

    def _status(self, peer: Peer, envelope: public.Envelope, message: public.Status) -> None:
        """Report on a conversation, or on everything; nothing of it is kept."""

        def report(status: Map) -> None:
            peer.send(envelope, public.Report(message.id, status))

        if message.session is None:
            self._report(peer, report)
            return
        try:
            self._conversations.status(peer, message.session, report)
        except SoloistError as error:
            _refuse(peer.channel, envelope, message.id, error)

    def _report(self, peer: Peer, report: Callable[[Map], None]) -> None:
        # Conversations are shown only where all are one owner's.
        has_sessions = peer.channel.is_local
        told: dict[str, Map] = {}

        def tell(name: str, stats: Future[Stats]) -> None:
            told[name] = _as_map(stats.result())
            if len(told) < len(self._pools):
                return
            clients = {name: told[name] for name in self._pools}
            for client in clients.values():
                for part in ("workers", "sessions"):
                    client[part] = [_as_map(one) for one in client[part]]
                if not has_sessions:
                    del client["sessions"]
            counts = {"peers": len(self._peers), "requests": self._outcomes.requests}
            report({**counts, "kept": self._outcomes.kept, "clients": clients})

        def post(name: str, stats: Future[Stats]) -> None:
            self._home.inbox.post(lambda: tell(name, stats))

        for name, pool in self._pools.items():
            asked = pool.reactor.stats(has_sessions=has_sessions)
            asked.add_done_callback(functools.partial(post, name))


def _as_map(stats: Any) -> Map:
    """Fields by name; ``dataclasses.asdict`` copies each value, and peers may ask often."""
    return {name: getattr(stats, name) for name in stats.__slots__}


def _refuse(
    channel: GatewayChannel, envelope: public.Envelope, about: bytes | None, error: SoloistError
) -> None:
    channel.send(envelope, public_codec.encode(public.Error(about, None, to_info(error))))
