"""Processes: the only place in the supervisor that spawns, signals and reaps.

Owns one forkserver per Supervisor (an instance of ``multiprocess``'s, with guards above it, see
:mod:`soloist.worker.guard`), the run folder, and each worker's process handle. The user's own
process never becomes a subreaper, gets no signal handler and no global state of ``multiprocess``
is touched.

Invariants: starting a worker blocks (a fork, and a helper that may have to be started again), so
it happens on the spawner's thread, never on the I/O thread; liveness is a pidfd, for a fork
server that died also closes its workers' status pipes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import itertools
import json
import os
import queue
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from multiprocess import forkserver as mp_forkserver
from multiprocess.context import reduction

from soloist.protocol.errors import ClientConnectError, SoloistError, SupervisorClosed, WorkerLost
from soloist.supervisor import barrier
from soloist.supervisor.channel import identity
from soloist.supervisor.crew import Spawn, last_words
from soloist.supervisor.lane import Lane
from soloist.supervisor.ledger import Ledger
from soloist.supervisor.output import Output, Pipes
from soloist.worker import main as worker_main

WorkerConfig = worker_main.WorkerConfig
"""What a worker is told; here, because nothing else in the supervisor knows the worker."""
HELPER_STOP_S = 3.0
"""How long the helper may take to end."""
RUN_VARIABLE = "SOLOIST_RUN_DIR"
"""In the environment of everything that a Supervisor starts: tells its processes from others'."""
_PREFIX = "soloist-"
_MAX_IPC_PATH = 107
_START_S = 60.0
"""How long the helper may take to import its preloads."""
_AT_ONCE = 8
"""Forks that are asked for before the first is waited for."""
_FORK_S = 10.0
"""How long the helper may take to fork."""
_HELPER_END_S = 1.0
_RETRY_S = 1.0
"""How long a start is tried again after the helper has died."""
_MOST_USES = 100
"""So many workers one process is, one after the other: what clients leave may add up."""
_EXITCODE_WAIT_MS = 20
_REAPED_WAIT_MS = 200

_CODE = """\
import sys
sys.path[:] = {sys_path!r}
from soloist.worker.main import serve_forks
serve_forks(
    listener={listener}, alive={alive}, report={report}, run_dir={run_dir!r}, parent={parent},
    preload={preload!r},
)
"""


class RunFolder:
    """A folder of mode 0700 for one Supervisor's sockets and client file.

    Its lock file stays locked as long as this process lives; guards, and the next Supervisor,
    remove folders whose lock is free.
    """

    def __init__(self) -> None:
        base = _base_folder()
        _remove_abandoned(base)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        fresh = self.path / "lock.new"
        self._lock = os.open(fresh, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        fresh.rename(self.path / "lock")

    @property
    def endpoint(self) -> str:
        """Where the workers connect."""
        return f"ipc://{self.path}/workers"

    def session_endpoint(self, number: int) -> str:
        """Where the callers of a shared session connect."""
        return f"ipc://{self.path}/s{number}"

    @property
    def client_file(self) -> Path:
        """Where the user's client lies."""
        return self.path / "client"

    def remove(self) -> None:
        """Remove the folder and give up the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.disown()

    def disown(self) -> None:
        """Give up the lock, for this process or, in a forked copy, for the copy alone."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


class Forkserver(mp_forkserver.ForkServer):  # type: ignore[misc] # multiprocess is untyped
    """A fork server of one Supervisor's own: its preloads, its environment, its guards.

    Args:
        run_dir: the run folder.
        preload: modules that it imports once for all workers; one that cannot be imported is an
            error, not skipped.
        environment: what the workers see as ``os.environ``.
    """

    def __init__(
        self, run_dir: Path, preload: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._run_dir = run_dir
        self._preload = list(preload)
        self._environment = {**environment, RUN_VARIABLE: str(run_dir)}
        self._guard: subprocess.Popen[bytes] | None = None
        self._alive_w = -1
        self._starts = 0
        self._changes = threading.RLock()  # stop() may come while ensure_running() is at work
        self._is_stopped = False
        self.pid = 0
        self._output: Output | None = None  # the helper's, until somebody takes it
        self._take_output: Callable[[Output], None] | None = None

    def ensure_running(self) -> None:
        """Start the helper unless it runs.

        Raises:
            SoloistError: a preload cannot be imported; the message names it.
        """
        with self._changes:
            if self._is_stopped:
                raise SupervisorClosed("the Supervisor is closed", started=False)
            if self._guard is not None:
                if self._guard.poll() is None:
                    return
                self._let_go()
            self._start_helper()

    def _start_helper(self) -> None:
        self._starts += 1
        address = str(self._run_dir / f"forks{self._starts}")
        with contextlib.ExitStack() as ends, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(128)
            alive_r, self._alive_w = os.pipe()
            ends.callback(os.close, alive_r)
            report_r, report_w = os.pipe()
            report = ends.enter_context(os.fdopen(report_r, "rb"))
            pipes = Pipes()
            with contextlib.ExitStack() as undo:
                undo.callback(pipes.close)
                with os.fdopen(report_w, "wb") as writer:
                    self._guard = self._start(listener.fileno(), alive_r, writer.fileno(), pipes)
                pipes.close_writers()  # so that its end is the end of file
                output = Output.of_helper(pipes, self._starts)
                self.pid = self._read_report(report, output)
                undo.pop_all()
        self._forkserver_address = address
        self._output = output
        self._hand_output_over()

    def hand_output_to(self, take: Callable[[Output], None]) -> None:
        """Have ``take`` called with what each helper prints, this one's and later ones'."""
        with self._changes:
            self._take_output = take
            self._hand_output_over()

    def _hand_output_over(self) -> None:
        if self._take_output is not None and self._output is not None:
            self._take_output(self._output)
            self._output = None

    def connect_to_new_process(self, fds: list[int]) -> tuple[int, int]:
        """Fork a process that inherits ``fds``: ``(status pipe, data pipe)``.

        The helper must run: see ``ensure_running``. Unlike the stock one it passes on neither the
        pipe that keeps the helper alive, so that the helper's life depends on the supervisor
        alone, nor a resource tracker's.
        """
        parent_r, child_w = os.pipe()
        child_r, parent_w = os.pipe()
        try:
            with socket.socket(socket.AF_UNIX) as client, Path(os.devnull).open("rb") as null:
                client.connect(self._forkserver_address)
                reduction.sendfds(client, [child_r, child_w, null.fileno(), null.fileno(), *fds])
        except BaseException:
            os.close(parent_r)
            os.close(parent_w)
            raise
        finally:
            os.close(child_r)
            os.close(child_w)
        return parent_r, parent_w

    def stop(self, timeout_s: float) -> None:
        """End the helper for good; its guards end whatever is left below it."""
        self._is_stopped = True
        self._end_helper(timeout_s)
        self._close_output()

    def _end_helper(self, timeout_s: float) -> None:
        guard = self._guard
        if guard is None or guard.returncode is not None:
            self._let_go()
            return
        guard.terminate()  # a guard that is told cleans up
        try:
            guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        self._let_go()

    def disown(self) -> None:
        """Forget the helper in a forked copy of this process."""
        self._is_stopped = True
        if self._guard is not None:
            self._guard.returncode = 0  # not this process's child
        self._let_go()
        self._close_output()

    def _close_output(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            output.close()

    def _let_go(self) -> None:
        alive_w, self._alive_w = self._alive_w, -1
        if alive_w >= 0:
            os.close(alive_w)

    def _start(
        self, listener: int, alive: int, report: int, pipes: Pipes
    ) -> subprocess.Popen[bytes]:
        code = _CODE.format(
            sys_path=[path or os.getcwd() for path in sys.path],
            listener=listener,
            alive=alive,
            report=report,
            run_dir=str(self._run_dir),
            parent=os.getpid(),
            preload=self._preload,
        )
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001
        return subprocess.Popen(  # noqa: S603 - our own interpreter and our own code
            [sys.executable, *flags, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=pipes.writers[0],
            stderr=pipes.writers[1],
            pass_fds=(listener, alive, report),
            env=self._environment,
        )

    def _read_report(self, report: io.BufferedReader, output: Output) -> int:
        if self._is_stopped:  # meanwhile, on another thread
            self._end_helper(_HELPER_END_S)
        is_late = not output.wait_beside(report.fileno(), _START_S)
        # One line, not all: a fork of the user's may hold the other end for long.
        data = b"" if is_late else report.readline()
        answer = json.loads(data) if data else {"error": "it ended before it was ready"}
        if is_late:
            answer = {"error": f"it imported its preloads for over {_START_S:g} s"}
        if "error" in answer:
            self._end_helper(_HELPER_END_S)
            reason = f"{answer['error']}{last_words(output.stderr())}"
            raise ClientConnectError(f"the spawning helper cannot start: {reason}")
        return int(answer["pid"])


class WorkerProcess:
    """A process that is a worker, and may be others after it, and what it shares with them.

    Args:
        order: what was ordered, its number and its incarnation; kept as an attribute.
        life: which of all forks it is: a start that was tried again has had more than one, and
            what the others said must not be taken for its word.
        pid: its process id.
        status: descriptor that gives the exit code once the process has been reaped.
        ledger: grants and outcomes.
        lane: the short way to it and back.
        output: what it prints.

    Attributes:
        is_last: whether it is to be no other worker after this one.
    """

    def __init__(
        self,
        order: Spawn,
        life: int,
        pid: int,
        *,
        status: int,
        ledger: Ledger,
        lane: Lane,
        output: Output,
    ) -> None:
        self.order = order
        self.life = life
        self.identity = identity(order.number, life)
        self.pid = pid
        self.ledger = ledger
        self.lane = lane
        self.output = output
        self.is_last = False
        self._uses = 1
        self._status = status
        self._pidfd = _open_pidfd(pid)

    def fileno(self) -> int:
        """Descriptor that becomes readable when the process has ended."""
        return self._status if self._pidfd is None else self._pidfd

    @property
    def number(self) -> int:
        """Of the worker that it is, or was last."""
        return self.order.number

    @property
    def incarnation(self) -> int:
        """Of that worker."""
        return self.order.incarnation

    @property
    def is_used(self) -> bool:
        """Whether it has been another worker before."""
        return self._uses > 1

    @property
    def may_stay(self) -> bool:
        """Whether it can be another worker after this one."""
        return not self.is_last and self._uses < _MOST_USES and not self.output.is_closed

    def begin_anew(self, order: Spawn) -> None:
        """It is another worker from now on; nobody reads what the one before it printed."""
        self.order = order
        self._uses += 1
        self.output = Output.of_worker(
            self.output.pipes, order.number, order.incarnation, is_session=order.is_session
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still lives."""
        self.is_last = True
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd is None:
                os.kill(self.pid, number)  # noqa: TID251 - here alone
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    def exitcode(self) -> int | None:
        """Exit code of the ended process, negative for a signal; ``None`` if nobody knows."""
        code = self._code_of_zombie()  # on a busy machine the helper takes its time to reap it
        if code:
            return code
        # 0 may also mean that we may not know; once it is reaped the helper is about to say it.
        wait_ms = _REAPED_WAIT_MS if code is None else _EXITCODE_WAIT_MS
        if not _is_readable_within(self._status, wait_ms / 1000):
            return None
        with contextlib.suppress(EOFError, OSError):
            return int(mp_forkserver.read_signed(self._status))
        return None

    def _code_of_zombie(self) -> int | None:
        """The exit code, from Linux, as long as nobody has reaped the process."""
        if self._pidfd is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            state, *rest = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            signal.pidfd_send_signal(self._pidfd, 0)  # fails if that may have been another process
            return os.waitstatus_to_exitcode(int(rest[48])) if state == "Z" else None
        return None

    def close(self) -> None:
        """Close every descriptor."""
        os.close(self._status)
        if self._pidfd is not None:
            os.close(self._pidfd)
        self.ledger.close()
        self.lane.close()
        self.output.close()


class _Fork:
    """One fork that was asked for, up to the worker's process handle.

    Args:
        forkserver: the helper, running.
        config: what the worker is told.
        life: which of all forks it is.
        barrier: see :class:`~soloist.supervisor.ledger.Ledger`.
    """

    def __init__(
        self,
        forkserver: Forkserver,
        config: WorkerConfig,
        life: int,
        barrier: Callable[[], None] | None,
    ) -> None:
        self._life = life
        buffer = io.BytesIO()
        # No path to a main module here: a worker never imports the user's.
        reduction.dump({"name": "soloist-worker"}, buffer)
        reduction.dump(config, buffer)
        with contextlib.ExitStack() as undo:
            self._ledger = Ledger(barrier)
            undo.callback(self._ledger.close)
            self._lane: Lane = Lane()
            undo.callback(self._lane.close)
            self._pipes = Pipes()
            undo.callback(self._pipes.close)
            self._status, data = forkserver.connect_to_new_process(
                [
                    self._ledger.grants_r,
                    self._ledger.outcomes,
                    self._lane.theirs,
                    *self._pipes.writers,
                ]
            )
            self._pipes.close_writers()
            undo.callback(os.close, self._status)
            with os.fdopen(data, "wb") as pipe:
                pipe.write(buffer.getbuffer())
            self._undo = undo.pop_all()

    def finish(self, order: Spawn) -> WorkerProcess:
        """Wait for the process."""
        with self._undo as undo:
            if not _is_readable_within(self._status, _FORK_S):
                raise ConnectionError(f"the spawning helper forked nothing for {_FORK_S:g} s")
            pid = mp_forkserver.read_signed(self._status)
            output = Output.of_worker(
                self._pipes, order.number, order.incarnation, is_session=order.is_session
            )
            process = WorkerProcess(
                order,
                self._life,
                pid,
                status=self._status,
                ledger=self._ledger,
                lane=self._lane,
                output=output,
            )
            undo.pop_all()
        return process

    def abandon(self) -> None:
        """Want it no more; the helper's guards end what it forked."""
        self._undo.close()


class Spawner:
    """Starts workers on a thread of its own.

    Args:
        forkserver: where they are forked from.
        template: what every worker of the pool is told, but for its identity.
        on_spawned: gets each started process; called on the spawner's thread.
        on_failed: gets number and error of each start that failed.
    """

    def __init__(
        self,
        forkserver: Forkserver,
        template: WorkerConfig,
        *,
        on_spawned: Callable[[WorkerProcess], None],
        on_failed: Callable[[int, SoloistError], None],
    ) -> None:
        self._forkserver = forkserver
        self._template = template
        self._on_spawned = on_spawned
        self._on_failed = on_failed
        self._barrier = barrier.find()
        self._orders: queue.SimpleQueue[Spawn | None] = queue.SimpleQueue()
        self._lives = itertools.count(1)
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="soloist-spawner", daemon=True)
        self._thread.start()

    def spawn(self, order: Spawn) -> None:
        """Order one worker."""
        self._orders.put(order)

    def close(self) -> None:
        """Start no more; orders that wait fail."""
        self._is_closed = True
        self._orders.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        """Take orders, a few at a time: the helper forks the next while the last one answers."""
        while (order := self._orders.get()) is not None:
            orders = [order]
            with contextlib.suppress(queue.Empty):
                while len(orders) < _AT_ONCE and (more := self._orders.get_nowait()) is not None:
                    orders.append(more)
            begun = [(order, self._begin(order)) for order in orders]
            for order, fork in begun:
                self._deliver(order, fork)

    def _begin(self, order: Spawn) -> _Fork | None:
        """Ask for one fork; ``None`` if that has to be tried again."""
        try:
            self._forkserver.ensure_running()
            return self._fork(order)
        except Exception:  # noqa: BLE001 - it comes again, and is reported then
            return None

    def _deliver(self, order: Spawn, fork: _Fork | None) -> None:
        try:
            process = self._start(order, fork)
        except SoloistError as error:
            self._on_failed(order.number, error)
        except Exception as error:  # noqa: BLE001 - whatever the system refuses
            lost = WorkerLost(f"no worker could be started: {error!r}", started=False)
            self._on_failed(order.number, lost)
        else:
            self._on_spawned(process)

    def _start(self, order: Spawn, fork: _Fork | None) -> WorkerProcess:
        """Finish one start; after the helper's death again until a new one answers."""
        deadline = time.monotonic() + _RETRY_S
        pause = threading.Event()
        while True:
            if self._is_closed:
                if fork is not None:
                    fork.abandon()
                raise SupervisorClosed("the Supervisor is closed", started=False)
            try:
                if fork is None:
                    self._forkserver.ensure_running()
                    fork = self._fork(order)
                return fork.finish(order)
            except (EOFError, BrokenPipeError, ConnectionError, FileNotFoundError):
                fork = None
                if time.monotonic() > deadline:
                    raise
                pause.wait(0.02)  # the dying helper's guard is still there for a moment

    def _fork(self, order: Spawn) -> _Fork:
        life = next(self._lives)
        return _Fork(self._forkserver, self._config(order, life), life, self._barrier)

    def _config(self, order: Spawn, life: int) -> WorkerConfig:
        return dataclasses.replace(
            self._template,
            identity=identity(order.number, life),
            forkserver=self._forkserver.pid,
            claims_in_memory=self._barrier is not None,
            isolation="worker" if order.is_session else self._template.isolation,
            is_session=order.is_session,
            restore=order.restore,
        )


def _is_readable_within(descriptor: int, seconds: float) -> bool:
    poll = select.poll()  # select() knows no descriptor above 1,023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _open_pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None  # it has ended already: the status pipe says so, too


def _base_folder() -> Path:
    """Where run folders lie: short enough for a socket's path."""
    for candidate in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if candidate and os.access(candidate, os.W_OK | os.X_OK):
            longest = Path(candidate) / f"{_PREFIX}12345678" / "workers-and-some-room"
            if len(os.fsencode(longest)) < _MAX_IPC_PATH:
                return Path(candidate)
    raise ClientConnectError("no writable folder with a short path for sockets; set TMPDIR")


def _remove_abandoned(base: Path) -> None:
    """Remove the run folders of supervisors that died together with all their guards."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                worker_main.remove_abandoned(str(folder))
