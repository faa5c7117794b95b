"""The client's side of a gateway's protocol: what to say, what to say again, what has no outcome.

Owns the state of one connection and everything that was asked over it. Events change these and
*return* what is to be done, as in :mod:`soloist.supervisor.broker`. Pure: the clock comes in with
every call.

Invariants: each call has exactly one outcome, whatever the network loses, repeats or delays; a
QUERY is sent a second time only with ``resent``, the epoch in which it was sent first; one that
was cancelled or whose time is over is not sent again; no more requests are out than the gateway
takes, and those of the pool leave some of these places to conversations.

Source: SPEC.md, chapter 2.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import Any, TypeAlias

from soloist.protocol import public
from soloist.protocol.errors import (
    GatewayLost,
    HelloRequired,
    PayloadTooLarge,
    RemoteProtocolError,
    RequestCancelled,
    RequestTimeout,
    SessionLost,
    SoloistError,
    from_info,
)
from soloist.protocol.transitions import LINK, LinkEvent, LinkState, advance
from soloist.supervisor.link_actions import Action, Answered, Ask, Call, End, Pass, Renew, Say

LATE_S = 2.0
"""How long after a request's deadline the gateway's own word on it is waited for."""
GREET_S = 2.0
"""How long the first HELLO may go without an answer; each further one twice as long."""
MAX_GREET_S = 16.0
_MIN_HEARTBEAT_S = 0.05
_SLACK = 64
"""So many times of calls that are over are not worth a sweep."""
MAX_OUT = 5_000
"""Most calls that are out, however many the gateway would take."""
_KEPT_SHARE = 8
"""One place in so many is kept for conversations; a map would take them all."""

_Calls: TypeAlias = OrderedDict[bytes, Call]


class Link:
    """One connection to a gateway, through all its sockets.

    Args:
        hello: what each socket begins with.
        connect_timeout_s: time for the first WELCOME.
        reconnect_timeout_s: time for each later one; then what has no outcome is given up.

    Attributes:
        state: where it is.
        welcome: the last one, ``None`` before the first.
        failure: why it cannot be used, while that is so.
    """

    def __init__(
        self, hello: public.Hello, *, connect_timeout_s: float, reconnect_timeout_s: float
    ) -> None:
        self.state = LinkState.NEW
        self.welcome: public.Welcome | None = None
        self.failure: GatewayLost | None = None
        self._hello = hello
        self._reconnect_timeout_s = reconnect_timeout_s
        self._patience_s = connect_timeout_s
        self._sent: _Calls = OrderedDict()  # without outcome, in the order of their first sending
        self._orders: _Calls = OrderedDict()  # not sent yet: all but requests
        self._turns: _Calls = OrderedDict()  # not sent yet: requests of conversations
        self._prompts: _Calls = OrderedDict()  # not sent yet: requests of the pool
        self._unwanted: dict[bytes, None] = {}  # to be cancelled when it is possible again
        self._owed: dict[bytes, int] = {}  # bytes of credit to be returned
        self._times: list[tuple[float, int, Call]] = []
        self._count = itertools.count()
        self._greet_s = GREET_S
        self._greet_by = self._give_up_at = math.inf
        self._heartbeat_s = math.inf
        self._said_at = self._heard_at = self._pinged_at = -math.inf

    def __repr__(self) -> str:
        return f"<Link {self.state.value} {len(self._sent)} of {self.outstanding} sent>"

    @property
    def epoch(self) -> bytes | None:
        """Of the gateway's life that was last heard of."""
        return None if self.welcome is None else self.welcome.epoch

    @property
    def outstanding(self) -> int:
        """Calls without outcome."""
        return sum(map(len, self._queues()))

    # -- events from callers -----------------------------------------------------------------

    def connect(self, now: float) -> list[Action]:
        """Begin."""
        self._give_up_at = now + self._patience_s
        self._patience_s = self._reconnect_timeout_s
        return self._renew(now)

    def add(self, call: Call, now: float) -> list[Action]:
        """Take in something to be asked; it is sent when there is a connection and a place."""
        if self.failure is not None:
            return [self._end(call, GatewayLost(str(self.failure), started=False))]
        if call.session_epoch not in {None, self.epoch}:
            return [self._end(call, _session_lost(call))]
        self._queue_of(call)[call.id] = call
        if call.deadline is not None:
            self._remind(call.deadline, call)
        return self._send_waiting(now)

    def cancel(self, call: Call, now: float) -> list[Action]:
        """End a request early; its outcome follows, at once if nothing of it is out."""
        if call.is_over or call.is_cancelled:
            return []
        if self.state is not LinkState.OPEN or call.epoch is None:
            return self.drop(call, RequestCancelled("it was cancelled", started=call.started), now)
        call.is_cancelled = True
        return [self._say(public.Cancel(call.id), now)]

    def drop(self, call: Call, error: SoloistError, now: float) -> list[Action]:
        """End a request with this error, here and now, and have the gateway end it, too."""
        if call.is_over:
            return []
        ended = self._end(call, error)
        if call.epoch is None:
            return [ended]
        if self.state is not LinkState.OPEN:
            self._unwanted[call.id] = None
            return [ended]
        return [ended, self._say(public.Cancel(call.id), now), *self._send_waiting(now)]

    def answer(self, call: Call, number: int, data: Mapping[str, Any], now: float) -> list[Action]:
        """Take the answer to an ``Ask``; it is kept, for the gateway may ask again."""
        if call.is_over:
            return []
        call.keep_answer(number, data)
        return self.tell(public.ControlReply(call.id, number, dict(data)), now)

    def tell(self, message: public.FromClient, now: float) -> list[Action]:
        """Say what has no answer; without a connection it is nobody's to hear."""
        return [self._say(message, now)] if self.state is LinkState.OPEN else []

    def credits(self, now: float) -> list[Action]:
        """Return the credit of all messages that were passed on since the last time."""
        owed, self._owed = self._owed, {}
        if self.state is not LinkState.OPEN:
            return []
        return [
            self._say(public.Credit(call_id, count), now)
            for call_id, count in owed.items()
            if call_id in self._sent
        ]

    def give_up(self, error: type[SoloistError], reason: str, now: float) -> list[Action]:
        """End everything that has no outcome; what may not run alone is cancelled."""
        actions: list[Action] = []
        for call in self._calls():
            query = call.message
            if isinstance(query, public.Query) and query.on_disconnect == "cancel" and call.epoch:
                actions += self.tell(public.Cancel(call.id), now)
            actions.append(self._end(call, error(reason, started=call.started)))
        return actions

    def break_off(self, now: float) -> list[Action]:
        """Give up the socket, which does not work, and take a new one."""
        lost = self._disconnected(now) if self.state is LinkState.OPEN else []
        return [*lost, *self._renew(now)]

    def end(self) -> None:
        """Be over."""
        if self.state is not LinkState.OVER:
            self._advance(LinkEvent.END)
        self._greet_by = self._give_up_at = math.inf

    # -- events from the gateway -------------------------------------------------------------

    def hear(self, message: public.ToClient, size: int, now: float) -> list[Action]:
        """Take in a message of ``size`` bytes."""
        self._heard_at = now
        match message:
            case public.Welcome():
                return self._welcome(message, now)
            case public.Error():
                return self._error(message, now)
            case public.Message():
                return self._message(message, size, now)
            case public.Control():
                return self._control(message, now)
            case public.Result() | public.Opened() | public.Done() | public.Report():
                return self._outcome(message.id, message, now)
            case public.Accepted() | public.Pong():
                return []

    def misheard(
        self, call_id: bytes | None, error: RemoteProtocolError, now: float
    ) -> list[Action]:
        """Take in what is no message, and seems to be about this call."""
        self._heard_at = now
        call = None if call_id is None else self._sent.get(call_id)
        return [] if call is None else self.drop(call, error, now)

    def _welcome(self, welcome: public.Welcome, now: float) -> list[Action]:
        is_new = self.epoch != welcome.epoch
        if self.state is LinkState.OVER or (self.state is LinkState.OPEN and not is_new):
            return []
        if welcome.version != public.VERSION:
            return self._refused(f"it speaks version {welcome.version}", now)
        lost = self._disconnected(now) if self.state is LinkState.OPEN else []
        self._advance(LinkEvent.WELCOME)
        self.welcome, self.failure = welcome, None
        self._heartbeat_s = max(_MIN_HEARTBEAT_S, welcome.heartbeat_ms / 1000)
        self._greet_s = GREET_S
        self._greet_by = self._give_up_at = math.inf
        self._pinged_at = now
        unwanted, self._unwanted = self._unwanted, {}
        if is_new:
            return [*lost, *self._lose_sessions(), *self._send_again(now)]
        cancels: list[Action] = [self._say(public.Cancel(call_id), now) for call_id in unwanted]
        return [*cancels, *self._send_again(now)]

    def _lose_sessions(self) -> list[Action]:
        """The gateway is another one: conversations of the one before are no more."""
        return [
            self._end(call, _session_lost(call))
            for call in self._calls()
            if call.session_epoch not in {None, self.epoch}
        ]

    def _send_again(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for call in list(self._sent.values()):
            actions += self._send(call, now)
        return [*actions, *self._send_waiting(now)]

    def _error(self, message: public.Error, now: float) -> list[Action]:
        error = from_info(message.info)
        if isinstance(error, HelloRequired):
            return self._unknown(now)
        if message.id is None:
            # In OPEN it is about something that has no outcome; one that may pass is asked again.
            is_refusal = self.state is LinkState.GREETING and not error.retryable
            return self._refused(str(error), now) if is_refusal else []
        return self._outcome(message.id, error, now)

    def _unknown(self, now: float) -> list[Action]:
        """The connection is another one than it was."""
        if self.state is not LinkState.OPEN:
            return []
        self._advance(LinkEvent.UNKNOWN)
        return [*self._disconnected(now), *self._greet(now)]

    def _refused(self, reason: str, now: float) -> list[Action]:
        self.failure = GatewayLost(f"the gateway refuses this client: {reason}", started=False)
        self.end()
        return self.give_up(GatewayLost, str(self.failure), now)

    def _message(self, message: public.Message, size: int, now: float) -> list[Action]:
        call = self._sent.get(message.id)
        if call is None or message.seq <= call.heard:
            return []
        if message.seq != call.heard + 1:
            return self.drop(call, RemoteProtocolError("the stream has a gap"), now)
        call.heard += 1
        self._owed[call.id] = self._owed.get(call.id, 0) + size
        return [Pass(call, message.message)]

    def _control(self, message: public.Control, now: float) -> list[Action]:
        call = self._sent.get(message.id)
        if call is None:
            return []
        if message.number not in call.answers:
            call.answers[message.number] = None
            return [Ask(call, message)]
        known = call.answers[message.number]
        if known is None:  # whoever was asked still thinks
            return []
        return self.tell(public.ControlReply(call.id, message.number, dict(known)), now)

    def _outcome(
        self, call_id: bytes, outcome: Answered | SoloistError, now: float
    ) -> list[Action]:
        call = self._sent.get(call_id)
        if call is None:
            return []  # it had one
        if not isinstance(outcome, SoloistError) and not call.is_answered_by(outcome):
            outcome = RemoteProtocolError(f"{type(outcome).__name__} is no answer to this")
        return [self._end(call, outcome), *self._send_waiting(now)]

    # -- the clock ---------------------------------------------------------------------------

    def next_due(self) -> float:
        """When ``tick`` has something to do; infinite for never."""
        due = min(self._greet_by, self._give_up_at, self._times[0][0] if self._times else math.inf)
        if self.state is LinkState.OPEN:
            due = min(due, self._silent_at(), self._ping_at())
        return due

    def tick(self, now: float) -> list[Action]:
        """Do what is due."""
        actions = self._expire(now)
        if now >= self._give_up_at:
            self._give_up_at = math.inf
            self.failure = GatewayLost("the gateway cannot be reached", started=False)
            actions += self.give_up(GatewayLost, str(self.failure), now)
        if self.state is LinkState.OPEN and now >= self._silent_at():
            actions += self.break_off(now)
        elif self.state is LinkState.OPEN and now >= self._ping_at():
            self._pinged_at = now
            actions.append(self._say(public.Ping(), now))
        elif now >= self._greet_by:
            self._greet_s = min(MAX_GREET_S, 2 * self._greet_s)
            actions += self.break_off(now)
        return actions

    def _silent_at(self) -> float:
        return self._heard_at + public.SILENT_HEARTBEATS * self._heartbeat_s

    def _ping_at(self) -> float:
        """Also when nothing but the other side has been silent, for it says nothing unasked."""
        return min(self._said_at, max(self._heard_at, self._pinged_at)) + self._heartbeat_s

    def _expire(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while self._times and self._times[0][0] <= now:
            when, _, call = heappop(self._times)
            if call.is_over:
                continue
            if self.state is LinkState.OPEN and call.epoch and when == call.deadline:
                self._remind(when + LATE_S, call)
                continue
            reason = "the deadline passed without a word from the gateway"
            actions += self.drop(call, RequestTimeout(reason, started=call.started), now)
        return actions

    def _remind(self, when: float, call: Call) -> None:
        heappush(self._times, (when, next(self._count), call))
        if len(self._times) > 2 * self.outstanding + _SLACK:
            self._times = [entry for entry in self._times if not entry[2].is_over]
            heapify(self._times)

    # -- helpers -----------------------------------------------------------------------------

    def _advance(self, event: LinkEvent) -> None:
        self.state = advance(LINK, self.state, event)

    def _renew(self, now: float) -> list[Action]:
        if self.state is not LinkState.NEW:
            self._advance(LinkEvent.SILENCE)
        self._advance(LinkEvent.CONNECT)
        return [Renew(), *self._greet(now)]

    def _greet(self, now: float) -> list[Action]:
        self._greet_by = now + self._greet_s
        return [self._say(self._hello, now)]

    def _disconnected(self, now: float) -> list[Action]:
        """What was cancelled is not sent again, so nothing more will be heard of it."""
        self._give_up_at = now + self._patience_s
        self._owed.clear()
        cancelled = [call for call in self._sent.values() if call.is_cancelled]
        self._unwanted |= dict.fromkeys(call.id for call in cancelled)
        return [self._end(call, RequestCancelled("it was cancelled")) for call in cancelled]

    def _say(self, message: public.FromClient, now: float) -> Say:
        self._said_at = now
        return Say(message)

    def _queues(self) -> tuple[_Calls, ...]:
        return self._sent, self._orders, self._turns, self._prompts

    def _calls(self) -> list[Call]:
        """All that have no outcome."""
        return [call for queue in self._queues() for call in queue.values()]

    def _queue_of(self, call: Call) -> _Calls:
        """Where it waits until it is sent."""
        if not isinstance(call.message, public.Query):
            return self._orders
        return self._prompts if call.message.session is None else self._turns

    def _send_waiting(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if self.state is not LinkState.OPEN or self.welcome is None:
            return actions
        most = min(MAX_OUT, max(1, self.welcome.max_requests))
        for queue, places in (
            (self._orders, math.inf),
            (self._turns, most),
            (self._prompts, most - most // _KEPT_SHARE),
        ):
            while queue and len(self._sent) < places:
                _, call = queue.popitem(last=False)
                self._sent[call.id] = call
                actions += self._send(call, now)
        return actions

    def _send(self, call: Call, now: float) -> list[Action]:
        """Send it, for the first time or again."""
        welcome, message = self.welcome, call.message
        assert welcome is not None
        if call.size > welcome.max_prompt_bytes:  # it would cost the connection, over and over
            reason = f"{call.size:,} bytes, and the gateway takes {welcome.max_prompt_bytes:,}"
            return [self._end(call, PayloadTooLarge(reason, started=call.started))]
        if isinstance(message, public.Query):
            left = None if call.deadline is None else max(0, round(1000 * (call.deadline - now)))
            message = message._replace(timeout_ms=left, resent=call.epoch)
        call.epoch = call.epoch or welcome.epoch
        return [self._say(message, now)]

    def _end(self, call: Call, outcome: Answered | SoloistError) -> End:
        call.is_over = True
        self._owed.pop(call.id, None)
        self._sent.pop(call.id, None)
        self._queue_of(call).pop(call.id, None)
        return End(call, outcome)


def _session_lost(call: Call) -> SessionLost:
    reason = "the gateway that had the conversation is no more"
    return SessionLost(reason, started=call.started)
