"""The workers as processes: what was decided is done to them, what they say reaches who decides.

Owns each worker's process handle, what came of it before that was known, and the socket to all of
them. Decides nothing: who decides for a worker is its crew, the pool or the broker of a session.
On the I/O thread.

Invariants: a worker is forgotten only after everything it said, on the channel and in its ledger,
has been read; what one fork said is never taken for the word of another.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeAlias

from soloist.protocol.errors import (
    ClientConnectError,
    RemoteProtocolError,
    RequestCancelled,
    SlowReader,
    SoloistError,
    WorkerLost,
    from_info,
)
from soloist.protocol.messages import (
    Answer,
    Answers,
    Broken,
    Chunk,
    Command,
    Control,
    ControlReply,
    Done,
    Failure,
    Loaded,
    Ping,
    Pong,
    Ready,
    Refused,
    Reuse,
    Snapshot,
    Streamed,
    Vacant,
    WireMessage,
)
from soloist.protocol.messages import Interrupt as InterruptMessage
from soloist.protocol.messages import Stop as StopMessage
from soloist.protocol.transitions import WorkerState
from soloist.supervisor import events
from soloist.supervisor.broker import Broker
from soloist.supervisor.brokers import Brokers
from soloist.supervisor.calls import Calls
from soloist.supervisor.channel import Channel, Received
from soloist.supervisor.crew import (
    NOT_YET_READY,
    Action,
    Dispatch,
    Ended,
    Inspect,
    Interrupt,
    Kill,
    Retried,
    Revoke,
    Settle,
    SettleAll,
    SettlePart,
    Spawn,
    Stop,
    Tell,
    Wedged,
    Worker,
    last_words,
)
from soloist.supervisor.health import is_expected
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.output import Outputs
from soloist.supervisor.pool import Pool
from soloist.supervisor.process import Spawner, WorkerProcess
from soloist.supervisor.reports import Reports
from soloist.supervisor.request import Request
from soloist.supervisor.spares import Spares
from soloist.supervisor.wakes import Wakes
from soloist.supervisor.watch import Watch

Crew: TypeAlias = Pool | Broker
"""Who decides for a worker."""
_MAX_TAKEN = 256
"""Messages taken from workers in one turn of the I/O thread; the rest in the next."""
_OUTCOMES = frozenset({Answer, Answers, Failure})


def _is_outcome(message: object) -> bool:
    return type(message) in _OUTCOMES


class Workers:
    """Every worker of one Supervisor, the pool's and the sessions'.

    Args:
        pool: decides for the workers below its size.
        brokers: decide for the others.
        calls: what passes beside the turns.
        report: logs events.
        inbox: has something done on this thread.
        cancel: ends a request early, with an error.
        wedge_after_s: how long a worker's event loop may be blocked; ``None`` for no limit.
        is_measured: whether the memory of workers matters.

    Attributes:
        first: done when the first worker has loaded the user's code, or failed.
        counts: how many requests had which kind of outcome.
        reports: tells what happens.
        watch: sees who makes no progress.
    """

    def __init__(
        self,
        pool: Pool,
        brokers: Brokers,
        *,
        calls: Calls,
        report: Callable[..., None],
        inbox: Inbox,
        cancel: Callable[[Request, SoloistError], None],
        wedge_after_s: float | None,
        is_measured: bool,
    ) -> None:
        self._pool = pool
        self._brokers = brokers
        self._calls = calls
        self.reports = Reports(report, self._worker)
        self._inbox = inbox
        self._cancel = cancel
        self.first: Future[None] = Future()
        self.counts = {"answered": 0, "failed": 0, "cancelled": 0}
        self._processes: dict[int, WorkerProcess] = {}
        self._spares: Spares[WorkerProcess] = Spares()
        self._early: dict[int, list[Received]] = {}
        self._has_settled = False
        self.watch = Watch(
            wedge_after_s,
            expected=self._expected,
            processes=self._processes,
            ping=self._ping,
            wedged=self._wedged,
            measured=self._measured if is_measured else None,
            post=inbox.post,
        )
        self._handlers: dict[type, Callable[[Any], None]] = {
            SettleAll: self._do_settle_all,
            SettlePart: self._do_settle_part,
            Dispatch: self._do_dispatch,
            Spawn: self._do_spawn,
            Revoke: self._do_revoke,
            Inspect: self._do_inspect,
            Interrupt: self._do_interrupt,
            Stop: self._do_stop,
            Kill: self._lose_patience,
            Retried: lambda action: self.reports.retried(action.request),
            Ended: self._session_ended,
            Tell: self._do_tell,
        }
        self._hearers: dict[type, Callable[[Crew, int, Any], None]] = {
            Streamed: self._streamed,
            Loaded: self._loaded,
            Ready: self._ready,
            Vacant: self._vacant,
            Broken: self._broken,
            Snapshot: lambda crew, number, message: crew.snapshot(number, message.data),
            Control: self._question,
            Pong: lambda *_: None,  # that it came was the news
            Done: self._replied,
            Refused: self._replied,
        }

    def open(
        self,
        wakes: Wakes,
        channel: Channel,
        outputs: Outputs,
        spawner: Spawner,
    ) -> None:
        """Begin; nothing else may be called before.

        Args:
            wakes: tells when there is something to read.
            channel: the socket to all workers.
            outputs: what workers print.
            spawner: starts processes.
        """
        self._wakes = wakes
        self._channel = channel
        self._outputs = outputs
        self._spawner = spawner

    def close(self) -> None:
        """Forget every process, whatever has become of it."""
        for process in (*self._processes.values(), *self._spares):
            self._outputs.finish(process.output)
            process.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process."""
        for process in (*self._processes.values(), *self._spares):
            process.signal(number)

    def has_settled(self) -> bool:
        """Whether a request had its outcome since the last time."""
        has_settled, self._has_settled = self._has_settled, False
        return has_settled

    # -- what was decided ------------------------------------------------------------------------

    def execute(self, actions: Iterable[Action]) -> None:
        """Carry out what was decided."""
        for action in actions:
            if type(action) is Settle:  # by far the most frequent
                self._do_settle(action)
            else:
                self._handlers[type(action)](action)

    def execute_all(self, decide: Callable[..., list[Action]], *event: Any) -> None:
        """Carry out what ``decide`` says; after a revocation it decides on what is known then."""
        while actions := decide(*event):
            self.execute(actions)
            if not any(type(action) in {Revoke, Inspect} for action in actions):
                return

    def _do_settle(self, action: Settle) -> None:
        request, outcome = action
        if type(outcome) is Answer:
            self.counts["answered"] += 1
        elif type(outcome) is RequestCancelled:
            self.counts["cancelled"] += 1
        else:
            self.counts["failed"] += 1
            self.reports.failed(request, outcome)
        request.settle(outcome)
        self._has_settled = True

    def _do_settle_all(self, action: SettleAll) -> None:
        self.counts["answered"] += len(action.requests)
        for request, answer in zip(action.requests, action.answers, strict=True):
            request.settle(answer)
        self._has_settled = True

    def _do_settle_part(self, action: SettlePart) -> None:
        self.counts["answered"] += len(action.texts)
        action.chunk.answered(action.start, action.texts, action.durations, action.worker)
        self._has_settled = True

    def _do_dispatch(self, action: Dispatch) -> None:
        process = self._processes[action.number]
        self.watch.expect()
        run = action.run
        if isinstance(run, Chunk):
            process.ledger.grant_chunk(range(run.number, run.number + len(run.prompts)))
        else:
            process.ledger.grant([lease.number for lease in run.leases])
        # If it is gone its exit is about to be seen, and then what it did not claim waits again.
        self._channel.send(process, run)

    def _do_spawn(self, action: Spawn) -> None:
        self.watch.expect()
        self.reports.spawning(action.number)
        process = self._spares.take() if action.is_session else None
        if process is None:
            self._spawner.spawn(action)
        else:
            self._reuse(process, action)

    def _do_revoke(self, action: Revoke) -> None:
        process = self._processes[action.number]
        self._crew(action.number).revoked(action.number, process.ledger.take_back())

    def _do_inspect(self, action: Inspect) -> None:
        crew = self._crew(action.number)
        self._hear(crew, action.number, self._processes[action.number].ledger.read(is_over=False))

    def _do_interrupt(self, action: Interrupt) -> None:
        process = self._processes[action.number]
        message = InterruptMessage(action.lease)
        self.reports.worker(action.number, events.TURN_INTERRUPTED, lease=action.lease)
        self._channel.send(process, message)

    def _do_stop(self, action: Stop) -> None:
        self.watch.expect()
        process = self._processes.get(action.number)
        if process is None:
            return  # it is killed as soon as it is known
        may_stay = action.may_stay and process.may_stay and self._spares.has_room
        self._stop(process, may_stay=may_stay)

    def _stop(self, process: WorkerProcess, *, may_stay: bool = False) -> None:
        if not self._channel.send(process, StopMessage(may_stay)):
            process.signal(signal.SIGKILL)  # it does not listen

    def _lose_patience(self, action: Kill) -> None:
        if not self._worker(action.number).wedged:  # that has been reported
            self.reports.worker(action.number, events.WORKER_KILLED)
        self._do_kill(action)

    def _do_kill(self, action: Kill) -> None:
        process = self._processes.get(action.number)
        if process is not None:  # else it is killed as soon as it is known
            process.signal(signal.SIGKILL)

    def _do_tell(self, action: Tell) -> None:
        self.watch.expect()
        process = self._processes[action.number]
        message = Command(action.call, action.name, action.arguments)
        self._channel.send(process, message)

    def _session_ended(self, action: Ended) -> None:
        self._calls.lost(action.number, None)
        self.reports.forget(action.number)
        self._brokers.ended(action)

    # -- what workers say ------------------------------------------------------------------------

    def take(self) -> None:
        """Take in what has come on the channel, up to a bound: some may never stop."""
        for _ in range(_MAX_TAKEN):
            if (received := self._channel.receive()) is None:
                return
            self._take(received)

    def _take(self, received: Received) -> None:
        number = received.number
        crew = self._owner(number)
        worker = None if crew is None else crew.workers.get(number)
        if crew is None or worker is None:
            return
        process = self._processes.get(number)
        if process is None:
            self._early.setdefault(number, []).append(received)
        elif process.life == received.life:  # else an earlier one's last words
            worker.heard_at = time.monotonic()
            self._hear(crew, number, received.messages)

    def _hear(self, crew: Crew, number: int, messages: Iterable[Any]) -> None:
        """Take in what one worker said, outcomes that follow each other together."""
        for is_outcome, group in itertools.groupby(messages, _is_outcome):
            if is_outcome:
                self.execute(crew.answered(number, group, time.monotonic()))
                self.watch.answered(number, crew.workers[number].incarnation)
            else:
                for message in group:
                    self._hear_one(crew, number, message)

    def _hear_one(
        self, crew: Crew, number: int, message: WireMessage | RemoteProtocolError
    ) -> None:
        hearer = self._hearers.get(type(message))
        if hearer is not None:
            hearer(crew, number, message)
        else:
            self.reports.worker(number, events.WORKER_BROKE_PROTOCOL, error=str(message))
            self._do_kill(Kill(number))

    def _loaded(self, crew: Crew, number: int, message: Loaded) -> None:
        self.reports.loaded(number)
        crew.loaded(number, message.pid, is_interruptible=message.is_interruptible)
        self.first_is(None)

    def _ready(self, crew: Crew, number: int, message: Ready) -> None:
        del message
        self.reports.worker(number, events.WORKER_READY)
        self.execute(crew.ready(number))

    def _broken(self, crew: Crew, number: int, message: Broken) -> None:
        if self._processes[number].is_used:  # it exits, and a new process begins in its place
            return
        error = from_info(message.error)
        self.first_is(None if message.is_loaded else error)
        self.reports.broken(number, error)
        self.execute(crew.broken(number, error))

    def _streamed(self, crew: Crew, number: int, message: Streamed) -> None:
        leases = crew.workers[number].leases
        if not leases or leases[0].lease != message.lease or leases[0].outcome is not None:
            return
        request = leases[0]
        if not request.sink.stream(request, message.message):
            self._cancel(request, SlowReader("the reader of the stream fell too far behind"))

    # -- beside the turns ------------------------------------------------------------------------

    def command(self, number: int, name: str, arguments: bytes, done: Future[None]) -> None:
        """Have a method of a session's client called; ``done`` gets the reply.

        Raises:
            SoloistError: the session is over.
        """
        self.execute(self._calls.command(self._brokers.touch(number), name, arguments, done))

    def _replied(self, crew: Crew, number: int, reply: Done | Refused) -> None:
        del number
        self._calls.done(reply)
        if isinstance(crew, Broker):
            crew.replied(reply.number)

    def _question(self, crew: Crew, number: int, asked: Control) -> None:
        process = self._processes[number]

        def reply(answer: ControlReply) -> None:
            self._inbox.post(lambda: self._do_reply(number, process, answer))

        self._calls.question(crew, number, asked, reply)

    def _do_reply(self, number: int, process: WorkerProcess, answer: ControlReply) -> None:
        """Tell the worker that has asked, not one that is in the same process by now."""
        if self._processes.get(number) is process:
            self._channel.send(process, answer)

    # -- processes come and go -------------------------------------------------------------------

    def spawned(self, process: WorkerProcess) -> None:
        """A process that was ordered lives."""
        number = process.number
        if self._inbox.is_closed.is_set():
            process.signal(signal.SIGKILL)
            process.close()
            return
        self._processes[number] = process
        self._channel.add(process)
        for source, wake in (
            (process.fileno(), lambda: self._exited(process)),
            (process.lane.fileno(), lambda: self._channel.wake_lane(process)),
        ):
            self._wakes.add(source, wake)
        self._outputs.add(process.output)
        self.reports.worker(number, events.WORKER_SPAWNED, pid=process.pid)
        crew = self._crew(number)
        if crew.workers[number].state is WorkerState.STOPPING:  # nobody wants it any more
            process.signal(signal.SIGKILL)
        for received in self._early.pop(number, ()):
            if received.life == process.life:
                process.lane.ways.came_round()
                self._hear(crew, number, received.messages)

    def spawn_failed(self, number: int, error: SoloistError) -> None:
        """The system, or the helper, refused to start a process."""
        self._early.pop(number, None)
        if self._inbox.is_closed.is_set():
            return
        self.reports.not_started(number, error)
        crew = self._crew(number)
        actions = crew.spawn_failed(number, error, time.monotonic())
        self._calls.lost(number, None, untold=crew.untold)
        self.first_is(error)
        self.execute(actions)

    def _exited(self, process: WorkerProcess) -> None:
        """A process has ended: read all it left, then let its crew decide."""
        self._wakes.remove(process.fileno())
        self._wakes.remove(process.lane.fileno())
        self._channel.wake_lane(process)
        while (received := self._channel.receive()) is not None:
            self._take(received)
        number = process.number
        if self._spares.drop(process):
            self._channel.remove(process)
            process.close()
            return
        self._hear(self._crew(number), number, process.ledger.read(is_over=True))
        unclaimed = process.ledger.take_back()
        stderr = self._outputs.finish(process.output)
        exitcode = process.exitcode()
        self.reports.exited(number, process.pid, exitcode)
        del self._processes[number]
        self._channel.remove(process)
        process.close()
        if process.is_used and self._worker(number).state in NOT_YET_READY:
            self._begin_again(process.order)
            return
        self._ended(number, exitcode, unclaimed, stderr)
        if not self.first.done():
            text = f"the first worker died while it loaded the client (code {exitcode})"
            self.first_is(WorkerLost(text + last_words(stderr), exitcode=exitcode, stderr=stderr))

    def _ended(
        self, number: int, exitcode: int | None, unclaimed: Iterable[int], stderr: str
    ) -> None:
        """A worker has ended, and everything that it said has been heard: what now?"""
        crew = self._crew(number)
        actions = crew.exited(number, exitcode, unclaimed, time.monotonic(), stderr)
        self._calls.lost(number, exitcode, stderr, untold=crew.untold)
        self.execute(actions)

    # -- one process, one worker after the other -------------------------------------------------

    @property
    def spare_count(self) -> int:
        """Processes that are no worker just now."""
        return len(self._spares)

    def next_deadline(self) -> float:
        """When ``dismiss_spares`` wants to be called; may be never."""
        return self._spares.next_at()

    def dismiss_spares(self, now: float) -> None:
        """See to it that none stays for longer than it may."""
        for process in self._spares.old(now):
            self._stop(process)
        for process in self._spares.late(now):
            process.signal(signal.SIGKILL)

    def keep_no_spares(self, now: float) -> None:
        """No more conversations will begin."""
        self._spares.close()
        self.dismiss_all_spares(now)

    def dismiss_all_spares(self, now: float) -> None:
        """No process that there is now is another worker later."""
        for process in self._processes.values():
            process.is_last = True
        for process in self._spares.all(now):
            self._stop(process)

    def _vacant(self, crew: Crew, number: int, message: Vacant) -> None:
        """A worker has nothing left of its client: soon, for what came with it is heard first."""
        del crew, message
        process = self._processes[number]
        self._inbox.post(lambda: self._vacated(process))

    def _vacated(self, process: WorkerProcess) -> None:
        number = process.number
        if self._inbox.is_closed.is_set() or self._processes.get(number) is not process:
            return  # all has ended, or it has
        if not (process.may_stay and self._spares.has_room):
            self._stop(process)
            return
        stderr = self._outputs.release(process.output)
        unclaimed = process.ledger.take_back()
        self.reports.worker(number, events.WORKER_VACATED, pid=process.pid)
        del self._processes[number]
        self._spares.keep(process, time.monotonic())
        self._ended(number, 0, unclaimed, stderr)

    def _begin_again(self, order: Spawn) -> None:
        """A process that has held others could not hold this one: that is not this one's failure.

        Nothing has been asked of it yet.
        """
        crew = self._crew(order.number)
        assert isinstance(crew, Broker)
        crew.begin_again(order.number)
        self._spawner.spawn(order)

    def _reuse(self, process: WorkerProcess, order: Spawn) -> None:
        """Let a spare process be the worker that was ordered."""
        process.begin_anew(order)
        self._processes[order.number] = process
        self._outputs.add(process.output)
        self.reports.worker(order.number, events.WORKER_REUSED, pid=process.pid)
        if not self._channel.send(process, Reuse(order.restore)):
            process.signal(signal.SIGKILL)  # it does not listen

    def first_is(self, error: SoloistError | None) -> None:
        """The first worker has loaded the user's code, or it cannot; heard twice is once."""
        if self.first.done():
            return
        if error is None:
            self.first.set_result(None)
        else:
            self.first.set_exception(error)

    # -- who makes no progress, who grows --------------------------------------------------------

    def _expected(self) -> Iterator[Worker]:
        """The workers that have something to do."""
        owers = self._calls.owers()
        for crew in (self._pool, *self._brokers):
            for number, worker in crew.workers.items():
                if is_expected(worker) or number in owers:
                    yield worker

    def _ping(self, number: int) -> None:
        process = self._processes[number]
        self._channel.send(process, Ping())

    def _wedged(self, wedged: Wedged) -> None:
        """End a worker that makes no progress; a client that blocks in connect cannot start."""
        number = wedged.number
        crew = self._owner(number)
        worker = None if crew is None else crew.workers.get(number)
        if crew is None or worker is None or worker.incarnation != wedged.incarnation:
            return  # it has just gone
        self.reports.worker(number, events.WORKER_WEDGED, reason=wedged.reason)
        if wedged.is_blocked and worker.state is WorkerState.CONNECTING:
            error = ClientConnectError(f"the client does not connect: {wedged.reason}")
            self.execute(crew.broken(number, error))
        self.execute(crew.wedged(number, wedged.reason))

    def _measured(self, number: int, tree_rss_bytes: int) -> None:
        crew = self._crew(number)
        self.execute(crew.measured(number, tree_rss_bytes, time.monotonic()))

    # -- who decides -----------------------------------------------------------------------------

    def _owner(self, number: int) -> Crew | None:
        """Who decides for the worker of that number; a broker is asked to decide soon."""
        return self._pool if number < self._pool.size else self._brokers.touch(number)

    def _crew(self, number: int) -> Crew:
        """Who decides for a worker that there is."""
        crew = self._owner(number)
        assert crew is not None
        return crew

    def _worker(self, number: int) -> Worker:
        """The view of a worker that there is."""
        return self._crew(number).workers[number]
