"""The I/O thread: owns every socket, descriptor and timer, and runs the decisions' actions.

Callers hand over through a queue and one wake-up; nothing else is shared with them. No user code
runs here, and nothing here waits except for events.

Invariants: the channel is touched by this thread alone; before it sleeps it has looked at the
channel's edge-triggered state and at the queue; a worker is forgotten only after everything it
said, on the channel and in its ledger, has been read.

Longer than a module should be: it has a short method for each action, each message and each order,
and they share one thread's state. What could be had apart is: the decisions, the sockets of
sessions (``fronts``), the way in (``inbox``), the calls beside the turns (``calls``).
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from soloist.protocol import codec
from soloist.protocol.errors import (
    ClientConnectError,
    InvalidOptions,
    RemoteProtocolError,
    RequestCancelled,
    SlowReader,
    SoloistError,
    SupervisorClosed,
    WorkerLost,
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
    Loaded,
    Ping,
    Pong,
    Ready,
    Refused,
    Snapshot,
    Streamed,
    WireMessage,
)
from soloist.protocol.messages import Interrupt as InterruptMessage
from soloist.protocol.messages import Stop as StopMessage
from soloist.protocol.transitions import WorkerState
from soloist.supervisor import events
from soloist.supervisor.broker import Broker, again
from soloist.supervisor.brokers import Address, Brokers, SessionLimits, SessionPolicy
from soloist.supervisor.calls import Calls
from soloist.supervisor.channel import Channel
from soloist.supervisor.control import ControlDesk
from soloist.supervisor.crew import (
    Action,
    Dispatch,
    Ended,
    Inspect,
    Interrupt,
    Kill,
    Retried,
    Revoke,
    Settle,
    Spawn,
    Stop,
    Tell,
    Wedged,
    Worker,
    last_words,
)
from soloist.supervisor.fronts import Fronts
from soloist.supervisor.health import is_expected
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.journal import Journal
from soloist.supervisor.output import Output, Outputs
from soloist.supervisor.pool import Pool
from soloist.supervisor.process import (
    HELPER_STOP_S,
    Forkserver,
    RunFolder,
    Spawner,
    WorkerConfig,
    WorkerProcess,
)
from soloist.supervisor.reports import Reports
from soloist.supervisor.request import POOL, Request
from soloist.supervisor.results import SessionStats, Stats, WorkerStats
from soloist.supervisor.shutdown import Phase, Shutdown
from soloist.supervisor.watch import Watch

_LONGEST_SLEEP_S = 3600.0  # epoll counts in milliseconds, in 32 bits
_FRAME_ROOM_BYTES = 1024 * 1024
"""What may stand in one frame beside an answer of the largest size: smaller ones, envelopes."""


def _is_outcome(message: object) -> bool:
    return type(message) is Answer or type(message) is Failure


class Reactor:
    """Runs one pool, and a broker for every session.

    Args:
        pool: its decisions.
        folder: the run folder; removed at the end.
        forkserver: where workers come from; stopped at the end.
        template: what every worker is told.
        sessions: how sessions are made.
        desk: answers what clients ask.
        interrupt_grace_s: time for interrupted turns to end.
        wedge_after_s: how long a worker's event loop may be blocked; ``None`` for no limit.
    """

    def __init__(
        self,
        pool: Pool,
        folder: RunFolder,
        forkserver: Forkserver,
        *,
        template: WorkerConfig,
        sessions: SessionPolicy,
        desk: ControlDesk,
        interrupt_grace_s: float,
        wedge_after_s: float | None,
    ) -> None:
        self._pool = pool
        self._folder = folder
        self._forkserver = forkserver
        self._template = template
        self._sessions = sessions
        self._calls = Calls(desk)
        self._interrupt_grace_s = interrupt_grace_s
        self._journal = Journal()
        self._reports = Reports(
            self._journal.report, lambda number: self._crew(number).workers[number]
        )
        self._brokers = Brokers(
            pool.size,
            sessions,
            new_front=lambda broker: self._fronts.open(broker),  # noqa: PLW0108 - made later
            close_front=lambda front: self._fronts.shut(front),  # noqa: PLW0108
            execute=self._execute,
            report=self._journal.report,
        )
        self.inbox = Inbox()
        self.is_closed = self.inbox.is_closed
        self._processes: dict[int, WorkerProcess] = {}
        is_memory_limited = sessions.recycle.max_memory_bytes is not None
        self._watch = Watch(
            wedge_after_s,
            expected=self._expected,
            processes=self._processes,
            ping=self._ping,
            wedged=self._wedged,
            measured=self._measured if is_memory_limited else None,
            post=self.inbox.post,
        )
        self._early: dict[int, list[tuple[int, Sequence[WireMessage | RemoteProtocolError]]]] = {}
        self._shutdown: Shutdown | None = None
        self._idle_waiters: list[Future[None]] = []
        self._roll_waiters: list[Future[None]] = []
        self._counts = {"answered": 0, "failed": 0, "cancelled": 0}
        self._first_worker: Future[None] = Future()
        self._ends = contextlib.ExitStack()
        self._handlers: dict[type, Callable[[Any], None]] = {
            Dispatch: self._do_dispatch,
            Spawn: self._do_spawn,
            Revoke: self._do_revoke,
            Inspect: self._do_inspect,
            Interrupt: self._do_interrupt,
            Stop: self._do_stop,
            Kill: self._lose_patience,
            Retried: lambda action: self._reports.retried(action.request),
            Ended: self._session_ended,
            Tell: self._do_tell,
        }
        self._hearers: dict[type, Callable[[int, Any], None]] = {
            Streamed: self._streamed,
            Loaded: self._loaded,
            Ready: self._ready,
            Broken: self._broken,
            Snapshot: self._snapshot,
            Control: self._question,
            Pong: lambda *_: None,  # that it came was the news
            Done: self._replied,
            Refused: self._replied,
        }
        self._thread = threading.Thread(target=self._run, name="soloist-io", daemon=True)

    # -- called from any thread ------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread and the first worker; return when that has loaded the user's code.

        Raises:
            SoloistError: it could not; everything has been cleaned up again.
        """
        self._thread.start()
        self.inbox.post(lambda: self._execute([self._pool.start_worker()]))
        try:
            self._first_worker.result()
        except BaseException:
            self.close(0.0, at_least=Phase.KILL)
            self.is_closed.wait()
            raise

    def submit(self, requests: Iterable[Request]) -> None:
        """Hand requests over.

        Raises:
            SupervisorClosed: the thread has ended, or this process is a fork of its owner.
        """
        self.inbox.submit(requests)

    def cancel(self, requests: Iterable[Request]) -> None:
        """End these requests early."""
        rest = list(requests)
        self.inbox.post(lambda: self._cancel(rest))

    def cancel_pending(self) -> None:
        """End every request that has not started."""
        self.inbox.post(self._cancel_pending)

    def drain(self) -> Future[None]:
        """Take no more requests; the future is done when all have their outcome."""
        idle: Future[None] = Future()

        def drained(asked: Future[None]) -> None:
            if asked.exception() is not None:  # everything has ended
                idle.set_result(None)

        self.inbox.ask(lambda: self._drain(idle)).add_done_callback(drained)
        return idle

    def restart(self) -> Future[None]:
        """Replace all workers that there are; the future is done when they have gone."""
        rolled: Future[None] = Future()

        def asked(answer: Future[None]) -> None:
            if (error := answer.exception()) is not None:
                rolled.set_exception(error)

        self.inbox.ask(lambda: self._restart(rolled)).add_done_callback(asked)
        return rolled

    def close(self, drain_s: float | None, *, at_least: Phase = Phase.DRAIN) -> None:
        """Begin to close, or close faster; ``is_closed`` is set at the end."""
        self.inbox.post(lambda: self._close(drain_s, at_least))

    def join(self) -> None:
        """Wait for the thread's last steps after ``is_closed``, so that nothing of it is left."""
        self._thread.join(HELPER_STOP_S)

    def stats(self) -> Stats:
        """A snapshot taken on the I/O thread."""
        try:
            return self.inbox.ask(self._stats).result()
        except SupervisorClosed:
            return self._stats()

    def open_session(
        self, name: str, limits: SessionLimits, ready: Future[None] | None = None
    ) -> Address:
        """Give the session of that name, a new one if there is none or the name is empty.

        Raises:
            QueueFull, InvalidOptions, SupervisorClosed: see ``Brokers.open``.
        """
        return self.inbox.ask(lambda: self._brokers.open(name, limits, ready)).result()

    def interrupt_session(self, number: int) -> None:
        """End the running turn of a session early."""
        self.inbox.post(lambda: self._brokers.interrupt(number, time.monotonic()))

    def close_session(self, number: int, *, drain: bool) -> Future[None]:
        """Close a session; the future is done when its worker has gone."""
        closed: Future[None] = Future()

        def close() -> None:
            self._brokers.close(number, time.monotonic(), drain=drain, closed=closed)

        def asked(answer: Future[None]) -> None:
            if answer.exception() is not None:  # the Supervisor is closed
                closed.set_result(None)

        self.inbox.ask(close).add_done_callback(asked)
        return closed

    def session_stats(self, number: int) -> SessionStats | None:
        """A snapshot of one session; ``None`` if it is over."""
        try:
            return self.inbox.ask(lambda: self._session_stats(number)).result()
        except SupervisorClosed:
            return None

    def command(self, number: int, name: str, arguments: list[Any]) -> Future[None]:
        """Call a method of a session's client that is no turn."""
        done: Future[None] = Future()
        try:
            data = codec.encode_value(arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidOptions(f"{name}() cannot be sent this: {error}") from error
        self.inbox.ask(lambda: self._command(number, name, data, done)).result()
        return done

    def disown(self) -> None:
        """In a forked copy of the process: be closed, and touch nothing of the owner's."""
        self.inbox.disown()
        self._folder.disown()
        self._forkserver.disown()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._ends:
                try:
                    self._open()
                    while not self._is_over():
                        self._turn()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
                    events.failed(events.IO_FAILED)
                    self._give_up(error)
        except Exception:  # noqa: BLE001 - whatever it is, it is reported
            events.failed(events.CLEAN_UP_FAILED)
        finally:
            self._after_the_end()

    def _open(self) -> None:
        """Open what the thread owns; what is opened first is closed last, also after a failure."""
        ends = self._ends
        ends.callback(self._journal.close)
        ends.callback(self._folder.remove)
        ends.callback(self._forkserver.stop, HELPER_STOP_S)
        self._channel = Channel(
            self._folder.endpoint, max_bytes=self._template.max_payload_bytes + _FRAME_ROOM_BYTES
        )
        ends.callback(self._channel.close)
        self._selector = ends.enter_context(selectors.DefaultSelector())
        self._selector.register(self.inbox, selectors.EVENT_READ, self.inbox)
        self._selector.register(self._channel.fileno(), selectors.EVENT_READ, self._channel)
        self._outputs = Outputs(self._journal)
        ends.callback(self._outputs.close)
        self._selector.register(self._outputs, selectors.EVENT_READ, self._outputs)
        self._forkserver.hand_output_to(self._has_new_output)
        self._fronts = Fronts(
            self._selector,
            self._folder.session_endpoint,
            max_sockets=self._sessions.max_sessions,
            max_frame_bytes=self._template.max_payload_bytes + _FRAME_ROOM_BYTES,
            max_payload_bytes=self._template.max_payload_bytes,
            stream_buffer_bytes=self._sessions.stream_buffer_bytes,
            timeout_s=self._sessions.timeout_s,
            submit=lambda request: self._brokers.submit(request, time.monotonic()),
            cancel=lambda request: self._cancel([request]),
        )
        ends.callback(self._fronts.close)
        ends.callback(self._brokers.close_fronts)
        ends.callback(self._close_processes)
        ends.callback(self._watch.close)
        self._spawner = Spawner(
            self._forkserver,
            self._template,
            on_spawned=lambda process: self.inbox.post(lambda: self._spawned(process)),
            on_failed=lambda *failure: self.inbox.post(lambda: self._spawn_failed(*failure)),
        )
        ends.callback(self._spawner.join, HELPER_STOP_S)
        ends.callback(self._forkserver.stop, HELPER_STOP_S)
        ends.callback(self._spawner.close)

    def _turn(self) -> None:
        """One turn: take in what there is, decide, then sleep until there is more."""
        self._take_inbox()
        self._take_messages()
        self._fronts.take()
        self._decide(time.monotonic())
        if self._has_input() or self._is_over():
            return
        if not self.inbox.may_sleep():
            return
        events = self._selector.select(self._timeout())
        self.inbox.has_woken()
        for key, _ in events:
            self._wake(key.data)

    def _wake(self, source: Any) -> None:
        """Something that was registered has something to read."""
        if source is self.inbox:
            self.inbox.clear()
        elif source is self._channel:
            self._channel.wake()
        elif source is self._outputs:
            self._outputs.read()
        elif isinstance(source, WorkerProcess):
            self._exited(source)
        elif source is not None:
            self._fronts.wake(source)

    def _has_input(self) -> bool:
        """Whether something has come that no descriptor will report."""
        return bool(self.inbox) or self._fronts.has_input() or self._channel.has_input()

    def _is_over(self) -> bool:
        return self._shutdown is not None and self._shutdown.phase is Phase.DONE

    def _timeout(self) -> float:
        due = min(self._pool.next_deadline(), self._brokers.next_deadline())
        due = min(due, self._watch.next_round())
        if self._shutdown is not None:
            due = min(due, self._shutdown.deadline())
        return min(_LONGEST_SLEEP_S, max(0.0, due - time.monotonic()))

    def _take_inbox(self) -> None:
        while (item := self.inbox.take()) is not None:
            if type(item) is not Request:
                item()  # type: ignore[operator]
            elif item.session == POOL:
                self._execute(self._pool.submit(item))
            else:
                self._brokers.submit(item, time.monotonic())

    def _take_messages(self) -> None:
        while (received := self._channel.receive()) is not None:
            number, life, messages = received
            owner = self._owner(number)
            worker = None if owner is None else owner.workers.get(number)
            if worker is None:
                continue
            process = self._processes.get(number)
            if process is None:
                self._early.setdefault(number, []).append((life, messages))
            elif process.life == life:  # else an earlier one's last words
                worker.heard_at = time.monotonic()
                self._handle_all(number, messages)

    def _handle_all(self, number: int, messages: Iterable[Any]) -> None:
        """Take in what one worker said, outcomes that follow each other together."""
        for is_outcome, group in itertools.groupby(messages, _is_outcome):
            if is_outcome:
                crew = self._crew(number)
                self._execute(crew.answered(number, group, time.monotonic()))
                self._watch.answered(number, crew.workers[number].incarnation)
            else:
                for message in group:
                    self._handle(number, message)

    def _handle(self, number: int, message: WireMessage | RemoteProtocolError) -> None:
        handler = self._hearers.get(type(message))
        if handler is not None:
            handler(number, message)
        else:
            self._reports.worker(number, events.WORKER_BROKE_PROTOCOL, error=str(message))
            self._do_kill(Kill(number))

    def _loaded(self, number: int, message: Loaded) -> None:
        self._reports.loaded(number)
        self._crew(number).loaded(number, message.pid, is_interruptible=message.is_interruptible)
        self._first_worker_is(None)

    def _ready(self, number: int, message: Ready) -> None:
        del message
        self._reports.worker(number, events.WORKER_READY)
        self._execute(self._crew(number).ready(number))

    def _broken(self, number: int, message: Broken) -> None:
        error = from_info(message.error)
        self._first_worker_is(None if message.is_loaded else error)
        self._reports.broken(number, error)
        self._execute(self._crew(number).broken(number, error))

    def _snapshot(self, number: int, message: Snapshot) -> None:
        self._crew(number).snapshot(number, message.data)

    def _decide(self, now: float) -> None:
        self._watch.go_round(now)
        # Sessions first: under a rate limit they would starve behind a map. They cannot starve it,
        # for each has one request in flight at most.
        self._brokers.decide(now)
        self._run_to_end(self._pool.expire, now)
        self._run_to_end(self._pool.assign, now)
        if self._roll_waiters and not (self._pool.is_rolling or self._brokers.is_rolling):
            self._end_roll(self._pool.roll_failure)
        if self._idle_waiters and not (self._pool.outstanding or self._brokers.outstanding):
            for waiter in self._idle_waiters:
                waiter.set_result(None)
            self._idle_waiters.clear()
        if self._shutdown is not None:
            self._advance_shutdown(self._shutdown, now)
        self._reports.decided()

    def _run_to_end(self, decide: Callable[..., list[Action]], *event: Any) -> None:
        """Execute decisions; after a revocation, decide again on what is known then."""
        while actions := decide(*event):
            self._execute(actions)
            if not any(type(action) in {Revoke, Inspect} for action in actions):
                return

    # -- actions ---------------------------------------------------------------------------------

    def _execute(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if type(action) is Settle:  # by far the most frequent
                self._do_settle(action)
            else:
                self._handlers[type(action)](action)

    def _do_settle(self, action: Settle) -> None:
        request, outcome = action
        if type(outcome) is Answer:
            self._counts["answered"] += 1
        elif type(outcome) is RequestCancelled:
            self._counts["cancelled"] += 1
        else:
            self._counts["failed"] += 1
            self._reports.failed(request, outcome)
        request.settle(outcome)

    def _do_dispatch(self, action: Dispatch) -> None:
        process = self._processes[action.number]
        self._watch.expect()
        process.ledger.grant(action.run.leases)
        # If it is gone its exit is about to be seen, and then what it did not claim waits again.
        self._channel.send(process.number, process.life, action.run)

    def _do_spawn(self, action: Spawn) -> None:
        self._watch.expect()
        self._reports.spawning(action.number)
        self._spawner.spawn(action)

    def _do_revoke(self, action: Revoke) -> None:
        process = self._processes[action.number]
        self._crew(action.number).revoked(action.number, process.ledger.take_back())

    def _do_inspect(self, action: Inspect) -> None:
        self._handle_all(action.number, self._processes[action.number].ledger.read())

    def _do_interrupt(self, action: Interrupt) -> None:
        process = self._processes[action.number]
        message = InterruptMessage(action.lease)
        self._reports.worker(action.number, events.TURN_INTERRUPTED, lease=action.lease)
        self._channel.send(process.number, process.life, message)

    def _do_stop(self, action: Stop) -> None:
        self._watch.expect()
        process = self._processes.get(action.number)
        if process is None:
            return  # it is killed as soon as it is known
        if not self._channel.send(process.number, process.life, StopMessage()):
            process.signal(signal.SIGKILL)  # it has not even connected

    def _lose_patience(self, action: Kill) -> None:
        if not self._crew(action.number).workers[action.number].wedged:  # that has been reported
            self._reports.worker(action.number, events.WORKER_KILLED)
        self._do_kill(action)

    def _do_kill(self, action: Kill) -> None:
        process = self._processes.get(action.number)
        if process is not None:  # else it is killed as soon as it is known
            process.signal(signal.SIGKILL)

    def _do_tell(self, action: Tell) -> None:
        self._watch.expect()
        process = self._processes[action.number]
        message = Command(action.call, action.name, action.arguments)
        self._channel.send(process.number, process.life, message)

    # -- events ----------------------------------------------------------------------------------

    def _spawned(self, process: WorkerProcess) -> None:
        number = process.number
        if self.is_closed.is_set():
            process.signal(signal.SIGKILL)
            process.close()
            return
        self._processes[number] = process
        self._selector.register(process.fileno(), selectors.EVENT_READ, process)
        self._outputs.add(process.output)
        self._reports.worker(number, events.WORKER_SPAWNED, pid=process.pid)
        worker = self._crew(number).workers[number]
        if worker.state is WorkerState.STOPPING:  # nobody wants it any more
            process.signal(signal.SIGKILL)
        early = self._early.pop(number, [])
        said = [messages for life, messages in early if life == process.life]
        self._handle_all(number, itertools.chain.from_iterable(said))

    def _has_new_output(self, output: Output) -> None:
        """A helper has started; called on its starter's thread."""
        self.inbox.post(lambda: self._take_output(output))

    def _take_output(self, output: Output) -> None:
        if self.is_closed.is_set():
            output.close()
        else:
            self._outputs.add(output)

    def _spawn_failed(self, number: int, incarnation: int, error: SoloistError) -> None:
        del incarnation
        self._early.pop(number, None)
        if self.is_closed.is_set():
            return
        self._reports.not_started(number, error)
        crew = self._crew(number)
        actions = crew.spawn_failed(number, error, time.monotonic())
        self._calls.lost(number, None, untold=crew.untold)
        self._first_worker_is(error)
        self._execute(actions)

    def _exited(self, process: WorkerProcess) -> None:
        """A worker's process has ended: read all it left, then let the pool decide."""
        self._selector.unregister(process.fileno())
        self._take_messages()
        number = process.number
        self._handle_all(number, process.ledger.read())
        unclaimed = process.ledger.take_back()
        stderr = self._outputs.finish(process.output)
        exitcode = process.exitcode()
        crew = self._crew(number)
        self._reports.exited(number, process.pid, exitcode)
        del self._processes[number]
        process.close()
        actions = crew.exited(number, exitcode, unclaimed, time.monotonic(), stderr)
        self._calls.lost(number, exitcode, stderr, untold=crew.untold)
        self._execute(actions)
        self._first_worker_is(
            WorkerLost(
                f"the first worker died while it loaded the client (code {exitcode})"
                f"{last_words(stderr)}",
                exitcode=exitcode,
                stderr=stderr,
            )
        )

    def _streamed(self, number: int, message: Streamed) -> None:
        leases = self._crew(number).workers[number].leases
        if not leases or leases[0].lease != message.lease or leases[0].outcome is not None:
            return
        request = leases[0]
        if not request.sink.stream(request, message.message):
            error = SlowReader("the reader of the stream fell too far behind")
            self._cancel([request], error)

    def _owner(self, number: int) -> Pool | Broker | None:
        """Who decides for the worker of that number; a broker is asked to decide soon."""
        return self._pool if number < self._pool.size else self._brokers.touch(number)

    def _crew(self, number: int) -> Pool | Broker:
        """Who decides for a worker that there is."""
        owner = self._owner(number)
        assert owner is not None
        return owner

    def _first_worker_is(self, error: SoloistError | None) -> None:
        if self._first_worker.done():
            return
        if error is None:
            self._first_worker.set_result(None)
        else:
            self._first_worker.set_exception(error)

    # -- wedged workers --------------------------------------------------------------------------

    def _expected(self) -> Iterator[Worker]:
        """The workers that have something to do."""
        owers = self._calls.owers()
        for crew in (self._pool, *self._brokers):
            for number, worker in crew.workers.items():
                if is_expected(worker) or number in owers:
                    yield worker

    def _ping(self, number: int) -> None:
        process = self._processes[number]
        self._channel.send(process.number, process.life, Ping())

    def _wedged(self, wedged: Wedged) -> None:
        """End a worker that makes no progress; a client that blocks in connect cannot start."""
        number = wedged.number
        owner = self._owner(number)
        worker = None if owner is None else owner.workers.get(number)
        if owner is None or worker is None or worker.incarnation != wedged.incarnation:
            return  # it has just gone
        self._reports.worker(number, events.WORKER_WEDGED, reason=wedged.reason)
        if wedged.is_blocked and worker.state is WorkerState.CONNECTING:
            error = ClientConnectError(f"the client does not connect: {wedged.reason}")
            self._execute(owner.broken(number, error))
        self._execute(owner.wedged(number, wedged.reason))

    # -- recycling -------------------------------------------------------------------------------

    def _measured(self, number: int, tree_rss_bytes: int) -> None:
        owner = self._owner(number)
        assert owner is not None
        self._execute(owner.measured(number, tree_rss_bytes, time.monotonic()))

    def _restart(self, rolled: Future[None]) -> None:
        if self._shutdown is not None:
            raise SupervisorClosed("the Supervisor is closed", started=False)
        self._pool.restart()
        self._brokers.restart()
        self._roll_waiters.append(rolled)

    def _end_roll(self, failure: SoloistError | None) -> None:
        waiters, self._roll_waiters = self._roll_waiters, []
        for waiter in waiters:
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(again(failure))

    # -- beside the turns ------------------------------------------------------------------------

    def _question(self, number: int, asked: Control) -> None:
        process = self._processes[number]

        def reply(answer: ControlReply) -> None:
            self.inbox.post(lambda: self._do_reply(process, answer))

        self._calls.question(self._crew(number), number, asked, reply)

    def _do_reply(self, process: WorkerProcess, answer: ControlReply) -> None:
        if self._processes.get(process.number) is process:
            self._channel.send(process.number, process.life, answer)

    def _command(self, number: int, name: str, arguments: bytes, done: Future[None]) -> None:
        broker = self._brokers.touch(number)
        self._execute(self._calls.command(broker, name, arguments, done))

    def _replied(self, number: int, reply: Done | Refused) -> None:
        self._calls.done(reply)
        if (broker := self._brokers.touch(number)) is not None:
            broker.replied(reply.number)

    def _session_ended(self, action: Ended) -> None:
        self._calls.lost(action.number, None)
        self._reports.forget(action.number)
        self._brokers.ended(action)

    # -- orders from callers ---------------------------------------------------------------------

    def _cancel(self, requests: list[Request], error: SoloistError | None = None) -> None:
        for request in requests:
            now = time.monotonic()
            owner = self._pool if request.session == POOL else self._brokers.touch(request.session)
            if owner is not None:
                self._run_to_end(owner.cancel, request, now, error)

    def _cancel_pending(self) -> None:
        self._execute(self._pool.revoke_all())
        self._execute(self._pool.cancel_pending())
        self._brokers.cancel_pending()

    def _drain(self, idle: Future[None]) -> None:
        self._close_intake("the Supervisor is draining and takes no more requests")
        if self.is_closed.is_set():
            idle.set_result(None)
        else:
            self._idle_waiters.append(idle)

    def _close(self, drain_s: float | None, at_least: Phase) -> None:
        now = time.monotonic()
        self._watch.stop_measuring()
        self._close_intake("the Supervisor is closed")
        if self._shutdown is None:
            self._shutdown = Shutdown(now, drain_s=drain_s, interrupt_s=self._interrupt_grace_s)
            self._next_phase(None, now)
        self._shutdown.hurry(now, drain_s=drain_s, to=at_least)

    def _close_intake(self, reason: str) -> None:
        self._pool.close_intake(reason)
        self._brokers.close_intake(reason)

    def _next_phase(self, shutdown: Shutdown | None, now: float) -> Phase | None:
        """The phase to enter now, if there is one; without a shutdown yet, its first."""
        busy = self._pool.busy + self._brokers.busy
        alive = len(self._pool.workers) + self._brokers.alive
        phase = Phase.DRAIN if shutdown is None else shutdown.advance(now, busy=busy, alive=alive)
        return self._reports.closing(phase, busy=busy, alive=alive)

    def _advance_shutdown(self, shutdown: Shutdown, now: float) -> None:
        while True:
            phase = self._next_phase(shutdown, now)
            match phase:
                case None | Phase.DONE:
                    return
                case Phase.INTERRUPT:
                    self._execute(self._pool.revoke_all())
                    self._execute(self._pool.abort(now))
                    self._brokers.abort(now)
                case Phase.STOP:
                    self._execute(self._pool.stop_workers())
                    self._brokers.stop_workers(now)
                case Phase.TERM | Phase.KILL:
                    number = signal.SIGTERM if phase is Phase.TERM else signal.SIGKILL
                    for process in self._processes.values():
                        process.signal(number)
                case Phase.DRAIN:
                    raise AssertionError("closing never goes back")

    def _stats(self) -> Stats:
        pool = self._pool
        now = time.monotonic()
        return Stats(
            size=pool.size,
            workers=tuple(
                WorkerStats(
                    w.number,
                    w.incarnation,
                    w.pid,
                    w.state.value,
                    len(w.leases),
                    w.answered,
                    busy_s=w.busy_s(now),
                    silent_s=w.silent_s(now),
                )
                for w in sorted(pool.workers.values(), key=lambda w: w.number)
            ),
            queued=pool.queued + pool.delayed,
            running=pool.running,
            restarts=pool.restarts,
            is_closed=self._shutdown is not None,
            sessions=self._brokers.stats(now),
            oldest_running_s=self._oldest_running_s(now),
            **self._counts,
        )

    def _session_stats(self, number: int) -> SessionStats | None:
        return self._brokers.stats_of(number, time.monotonic())

    def _oldest_running_s(self, now: float) -> float:
        crews = (self._pool, *self._brokers)
        busy = (worker.busy_s(now) for crew in crews for worker in crew.workers.values())
        return max(busy, default=0.0)

    # -- the end ---------------------------------------------------------------------------------

    def _give_up(self, error: Exception) -> None:
        """After a defect of this thread: everybody is told."""
        reason = f"the I/O thread failed: {type(error).__name__}: {error}"
        self._first_worker_is(SupervisorClosed(reason))
        self._close_intake(reason)
        now = time.monotonic()
        for crew in (self._pool, *self._brokers):
            for action in crew.abort(now):
                if isinstance(action, Settle):
                    self._do_settle(action)

    def _close_processes(self) -> None:
        for process in self._processes.values():
            self._outputs.finish(process.output)
            process.close()

    def _after_the_end(self) -> None:
        """Tell everybody who may still wait."""
        self.is_closed.set()
        self._first_worker_is(SupervisorClosed("the Supervisor is closed", started=False))
        for waiter in self._idle_waiters:
            waiter.set_result(None)
        self._idle_waiters.clear()
        self._end_roll(None)
        self._brokers.give_up()
        self._calls.give_up(SupervisorClosed("the Supervisor is closed"))
        self.inbox.close()
