"""Every session of one Supervisor: its broker, its name, its timer, its socket. On the I/O thread.

Owns the numbers of session workers, which begin where the pool's end and are never used twice,
and the bound on open sessions. Decides nothing about a session: :mod:`soloist.supervisor.broker`
does.

Invariants: a broker is asked to ``decide`` after each event and when its time has come, and not
otherwise, so that an idle session costs nothing; a name stands for one session until that is
over; a lost session keeps its name until somebody closes it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

from soloist.protocol.errors import (
    InvalidOptions,
    QueueFull,
    RestartLimitReached,
    SessionClosed,
    SessionLost,
    SupervisorClosed,
)
from soloist.protocol.transitions import SessionState
from soloist.supervisor import events
from soloist.supervisor.broker import Broker, again
from soloist.supervisor.crew import Action, Ended
from soloist.supervisor.front import Front
from soloist.supervisor.rate import Limiter
from soloist.supervisor.recycle import Gate, RecyclePolicy
from soloist.supervisor.request import Request
from soloist.supervisor.restart import RestartPolicy
from soloist.supervisor.results import SessionStats


class SessionLimits(NamedTuple):
    """The bounds of one session; see ``Supervisor.shared``."""

    max_queue: int
    idle_timeout_s: float | None


class SessionPolicy(NamedTuple):
    """What all sessions of a Supervisor have in common; see its arguments."""

    max_sessions: int
    max_restarts: int
    restart_period_s: float
    interrupt_grace_s: float
    limiter: Limiter
    max_payload_bytes: int
    stream_buffer_bytes: int
    timeout_s: float | None = None
    recycle: RecyclePolicy = RecyclePolicy()


class Address(NamedTuple):
    """Where a session is found: by its number here, by its endpoint elsewhere.

    ``ticket`` admits others, if it is a gateway's.
    """

    number: int
    endpoint: str
    ticket: bytes = b""


class Brokers:
    """All sessions.

    Args:
        first_number: lowest number of a session's worker.
        policy: what all sessions have in common.
        new_front: binds the socket of a shared session; called with its broker.
        close_front: closes that socket.
        execute: carries out actions.
        report: logs events.
    """

    def __init__(
        self,
        first_number: int,
        policy: SessionPolicy,
        new_front: Callable[[Broker], Front],
        close_front: Callable[[Front], None],
        execute: Callable[[Iterable[Action]], None],
        *,
        report: Callable[..., None] = events.ignore,
    ) -> None:
        self._next_number = first_number
        self._policy = policy
        self._new_front = new_front
        self._close_front = close_front
        self._execute = execute
        self._report = report
        self._seen: dict[int, _Seen] = {}
        self._brokers: dict[int, Broker] = {}
        self._names: dict[str, int] = {}
        self._limits: dict[int, SessionLimits] = {}
        self._fronts: dict[int, Front] = {}
        self._touched: dict[int, Broker] = {}
        self._due: dict[int, float] = {}
        self._timers: list[tuple[float, int, int]] = []
        self._count = itertools.count()  # equal times come in turn: none starves for a token
        self._starting: dict[int, Future[None]] = {}
        self._closing: dict[int, list[Future[None]]] = {}
        self._gate = Gate()
        self._refusal: str | None = None

    def __iter__(self) -> Iterator[Broker]:
        return iter(tuple(self._brokers.values()))

    @property
    def outstanding(self) -> int:
        """Requests without outcome."""
        return sum(broker.outstanding for broker in self._brokers.values())

    @property
    def busy(self) -> int:
        """What closing waits for."""
        return sum(broker.busy for broker in self._brokers.values())

    @property
    def has_queue(self) -> bool:
        """Whether a request waits at a session to which something has just happened."""
        return any(broker.queued for broker in self._touched.values())

    @property
    def alive(self) -> int:
        """Workers that live."""
        return sum(len(broker.workers) for broker in self._brokers.values())

    @property
    def is_rolling(self) -> bool:
        """Whether a worker that is to be replaced by ``restart`` lives."""
        return any(broker.is_rolling for broker in self._brokers.values())

    # -- sessions --------------------------------------------------------------------------------

    def open(self, name: str, limits: SessionLimits, ready: Future[None] | None) -> Address:
        """Give the session of that name, a new one if there is none; unnamed ones are owned.

        Args:
            name: empty for an owned session.
            limits: its bounds; of no effect on a session that is open already.
            ready: done when its client is connected, or failed when that cannot be.

        Raises:
            QueueFull: ``max_sessions`` are open.
            InvalidOptions: the session is open with other bounds.
            SupervisorClosed: no more are opened.
        """
        number = self._names.get(name)
        if number is not None and self._brokers[number].state not in _ENDING:
            if limits != self._limits[number]:
                raise InvalidOptions(f"the session {name!r} is open with {self._limits[number]}")
            return self._address(number)
        if self._refusal is not None:
            raise SupervisorClosed(self._refusal, started=False)
        if len(self._brokers) >= self._policy.max_sessions:
            most = self._policy.max_sessions
            raise QueueFull(f"{most:,} sessions are open already (max_sessions)")
        return self._open_new(name, limits, ready)

    def _open_new(self, name: str, limits: SessionLimits, ready: Future[None] | None) -> Address:
        number = self._next_number
        broker = self._new_broker(name, number, limits)
        if name:
            self._fronts[number] = self._new_front(broker)
            self._names[name] = number
        self._next_number += 1
        self._brokers[number] = broker
        self._limits[number] = limits
        self._seen[number] = _Seen()
        self._report(events.SESSION_OPENED, session=name, worker=number)
        if ready is not None:
            self._starting[number] = ready
        self.touch(number)
        return self._address(number)

    def submit(self, request: Request, now: float) -> None:
        """Take a request of a session in."""
        broker = self.touch(request.session)
        if broker is not None:
            self._execute(broker.submit(request))
            if broker.state is SessionState.IDLE and self._policy.limiter.is_free:
                # Its turn has come: it need not wait for the rest of the thread's.
                self._execute(broker.decide(now))
        elif self._refusal is not None:
            request.settle(SupervisorClosed(self._refusal, started=False))
        else:
            request.settle(SessionClosed("the session is closed", started=False))

    def interrupt(self, number: int, now: float) -> None:
        """End the running turn early."""
        if (broker := self.touch(number)) is not None:
            self._execute(broker.interrupt(now))

    def close(self, number: int, now: float, *, drain: bool, closed: Future[None]) -> None:
        """Close a session; the future is done when its worker has gone."""
        broker = self.touch(number)
        if broker is None:
            closed.set_result(None)
            return
        self._closing.setdefault(number, []).append(closed)
        self._execute(broker.close(now, drain=drain))

    def restart(self) -> None:
        """Replace the worker of every conversation that goes on in another, a few at a time."""
        for broker in self._brokers.values():
            broker.restart()
            self.touch(broker.number)

    def touch(self, number: int) -> Broker | None:
        """Give a broker to which something happens, if that session is open."""
        broker = self._brokers.get(number)
        if broker is not None:
            self._touched[number] = broker
        return broker

    def ended(self, action: Ended) -> None:
        """Forget a session that is over."""
        number = action.number
        broker = self._brokers.pop(number)
        self._notice(number, broker)
        del self._seen[number]
        self._report(events.SESSION_CLOSED, session=broker.name, worker=number)
        del self._limits[number]
        self._touched.pop(number, None)
        self._due.pop(number, None)
        if self._names.get(broker.name) == number:
            del self._names[broker.name]
        if (front := self._fronts.pop(number, None)) is not None:
            self._close_front(front)
        self._tell_starting(number, broker)
        for closed in self._closing.pop(number, ()):
            closed.set_result(None)

    def stats_of(self, number: int, now: float) -> SessionStats | None:
        """A snapshot of one session; ``None`` if it is over."""
        broker = self._brokers.get(number)
        return None if broker is None else self._stats(broker, now)

    def stats(self, now: float) -> tuple[SessionStats, ...]:
        """A snapshot of all."""
        return tuple(self._stats(broker, now) for broker in self._brokers.values())

    # -- time ------------------------------------------------------------------------------------

    def decide(self, now: float) -> None:
        """Let those decide to whom something happened or whose time has come."""
        self._touch_due(now)
        while self._touched:
            number = next(iter(self._touched))
            broker = self._touched.pop(number)
            while actions := broker.decide(now):
                self._execute(actions)
            self._touched.pop(number, None)
            if number in self._brokers:
                self._notice(number, broker)
            if number in self._brokers:
                self._set_timer(number, broker)
                is_unwanted = not self._tell_starting(number, broker)
                if is_unwanted and broker.state is SessionState.LOST:
                    self._execute(broker.close(now, drain=False))
            for waiting in self._gate.called():
                self.touch(waiting)

    def next_deadline(self) -> float:
        """When ``decide`` wants to be called if nothing happens; may be never."""
        if self._touched:  # since the last time
            return -math.inf
        while self._timers:
            due, _, number = self._timers[0]
            if self._due.get(number) == due:
                return due
            heapq.heappop(self._timers)
        return math.inf

    # -- the end of the Supervisor ---------------------------------------------------------------

    def close_intake(self, reason: str) -> None:
        """Open no more sessions, take no more requests."""
        self._refusal = reason
        for broker in self._brokers.values():
            broker.close_intake(reason)

    def cancel_pending(self) -> None:
        """End every request that waits."""
        for broker in self._brokers.values():
            self._execute(broker.cancel_pending())
            self.touch(broker.number)

    def abort(self, now: float) -> None:
        """Fail what waits and interrupt what runs."""
        for broker in tuple(self._brokers.values()):
            self._execute(broker.abort(now))
            self.touch(broker.number)

    def stop_workers(self, now: float) -> None:
        """Ask every worker to exit."""
        for broker in tuple(self._brokers.values()):
            self._execute(broker.stop_workers(now))
            self.touch(broker.number)

    def give_up(self) -> None:
        """Tell everybody who may still wait for a session to open or to close."""
        for ready in self._starting.values():
            ready.set_exception(SupervisorClosed("the Supervisor is closed", started=False))
        for waiting in self._closing.values():
            for closed in waiting:
                closed.set_result(None)
        self._starting.clear()
        self._closing.clear()

    # -- helpers ---------------------------------------------------------------------------------

    def _new_broker(self, name: str, number: int, limits: SessionLimits) -> Broker:
        policy = self._policy
        restart = RestartPolicy(max_restarts=policy.max_restarts, period_s=policy.restart_period_s)
        return Broker(
            name,
            number,
            max_queue=limits.max_queue,
            max_queue_bytes=4 * policy.max_payload_bytes,
            restart=restart,
            interrupt_grace_s=policy.interrupt_grace_s,
            idle_timeout_s=limits.idle_timeout_s,
            limiter=policy.limiter,
            recycle=policy.recycle,
            gate=self._gate,
        )

    def _notice(self, number: int, broker: Broker) -> None:
        """Report what has become of a session, each thing once."""
        seen, incarnation, error = self._seen[number], broker.incarnation, broker.refusal
        if incarnation == seen.incarnation and error is None:  # by far the most frequent
            return
        fields = {"session": broker.name, "worker": number}
        if broker.state in _CONNECTED and incarnation > seen.incarnation:
            seen.incarnation = incarnation
            if broker.has_history:
                self._report(events.SESSION_RESUMED, **fields, incarnation=incarnation)
        if broker.was_idle and not seen.was_idle:
            seen.was_idle = True
            self._report(events.SESSION_IDLE, **fields)
        if isinstance(error, SessionLost | RestartLimitReached) and not seen.was_lost:
            seen.was_lost = True
            self._report(events.SESSION_LOST, **fields, code=error.code, error=str(error))

    def _address(self, number: int) -> Address:
        front = self._fronts.get(number)
        return Address(number, "" if front is None else front.endpoint)

    def _touch_due(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            due, _, number = heapq.heappop(self._timers)
            if self._due.get(number) == due:
                del self._due[number]
                self.touch(number)

    def _set_timer(self, number: int, broker: Broker) -> None:
        due = broker.next_deadline()
        if due != self._due.get(number, math.inf):
            self._due[number] = due
            if due < math.inf:
                heapq.heappush(self._timers, (due, next(self._count), number))
        if len(self._timers) > 2 * len(self._due) + _SLACK:
            live = ((due, number) for number, due in self._due.items() if due < math.inf)
            self._timers = [(due, next(self._count), number) for due, number in live]
            heapq.heapify(self._timers)

    def _tell_starting(self, number: int, broker: Broker) -> bool:
        """Tell who opened it how that went; ``False`` if it went wrong, so that he has no use."""
        ready = self._starting.get(number)
        if ready is None or (broker.refusal is None and broker.state is SessionState.STARTING):
            return True
        del self._starting[number]
        if broker.refusal is None:
            ready.set_result(None)
            return True
        ready.set_exception(again(broker.refusal))
        return False

    def _stats(self, broker: Broker, now: float) -> SessionStats:
        worker = next(iter(broker.workers.values()), None)
        return SessionStats(
            name=broker.name,
            state=broker.state.value,
            incarnation=broker.incarnation,
            endpoint=self._address(broker.number).endpoint,
            queued=broker.queued,
            answered=broker.answered_count,
            pid=0 if worker is None else worker.pid,
            busy_s=0.0 if worker is None else worker.busy_s(now),
            silent_s=0.0 if worker is None else worker.silent_s(now),
        )


class _Seen:
    """What has been reported of a session."""

    def __init__(self) -> None:
        self.incarnation = 1
        self.was_idle = False
        self.was_lost = False


_CONNECTED = frozenset({SessionState.IDLE, SessionState.RUNNING, SessionState.DRAINING})
_ENDING = frozenset({SessionState.CLOSING, SessionState.CLOSED})
_SLACK = 64
"""So many timers that were set anew are not worth a sweep."""
