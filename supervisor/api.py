"""``Supervisor``: the interface that callers use.

Owns argument checking and the consumers' side of ``map``; everything else happens on the I/O
thread (:mod:`soloist.supervisor.reactor`).
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self

from soloist.protocol import codec
from soloist.protocol.codec import Prompt
from soloist.protocol.errors import InvalidOptions, SoloistError
from soloist.supervisor import limits, usercode
from soloist.supervisor.brokers import SessionLimits, SessionPolicy
from soloist.supervisor.control import ControlDesk, Handler
from soloist.supervisor.flow import Flow, result_or_error
from soloist.supervisor.futures import Dispatcher, RequestFuture
from soloist.supervisor.intake import Intake
from soloist.supervisor.io_thread import IOThread
from soloist.supervisor.pool import Pool
from soloist.supervisor.process import HELPER_STOP_S, Forkserver, RunFolder, WorkerConfig
from soloist.supervisor.rate import Limiter, RateLimit
from soloist.supervisor.reactor import Reactor
from soloist.supervisor.recycle import RecyclePolicy
from soloist.supervisor.response import Response
from soloist.supervisor.restart import RestartPolicy, longest_delay_s
from soloist.supervisor.results import Result, Stats
from soloist.supervisor.retry import Retry
from soloist.supervisor.session import Session, SharedSession, abandon
from soloist.supervisor.shutdown import Phase
from soloist.supervisor.window import Window

ClientLike = str | type | Callable[..., Any]
Isolation = Literal["prompt", "worker"]

_EXIT_WAIT_S = 15.0
_CALLBACKS_S = 5.0
"""How long ``close`` waits for callbacks of futures; the interpreter's exit waits for them, too."""

_open_reactors: weakref.WeakSet[Reactor] = weakref.WeakSet()
_dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()


class Supervisor:
    """Worker processes that each hold exactly one client, and the queue before them.

    Any thread may call any method; several Supervisors may live in one process. Use it as a
    context manager, or call ``close``: leaving the block normally waits for what was accepted,
    up to ``drain_timeout_s``; leaving it by an exception ends everything.

    Args:
        size: most worker processes, started on demand; the number of processors unless given.
        client: a registered name (``"echo"``, ``"claude"``, ...), a class or factory of the
            client contract, or any callable ``prompt -> str``, sync or async. It travels by
            value: lambdas, closures and classes of the main module work.
        options: keyword arguments of the client, checked before anything is spawned.
        isolation: ``"prompt"``: every prompt is a new conversation; ``"worker"``: each worker
            keeps its one conversation from prompt to prompt.
        timeout_s: seconds that a request may take unless its call says otherwise, the wait in
            the queue included; ``None`` for no limit.
        window: most prompts of one ``map`` in flight or read ahead; ``max(4 * size, 1024)``
            unless given.
        window_bytes: most bytes of prompts and unread answers in one ``map``'s window.
        max_pending: most requests of ``submit`` without an outcome; then ``QueueFull``.
        max_payload_bytes: largest encoded prompt or answer.
        stream_buffer_bytes: how far the reader of ``query`` may fall behind.
        interrupt_grace_s: seconds that an interrupted turn may take to end before its worker is
            replaced.
        wedge_after_s: seconds for which a client may block its worker's event loop before the
            worker counts as wedged and is replaced: its request fails with ``WorkerLost``. A sync
            callable blocks nothing and may take as long as ``timeout_s`` allows. ``None`` for no
            limit. A worker whose process is stopped is found within 4 s, whatever this says.
        drain_timeout_s: seconds that leaving the ``with`` block waits for what is outstanding.
        max_restarts: workers that may fail to start, or die before their first answer, within
            ``restart_period_s``; ``max(20, 2 * size)`` unless given.
        restart_period_s: see ``max_restarts``.
        max_requests_per_worker: requests after which a worker is replaced by a new one, between
            two of them; each draws a limit of its own between 80 and 100 % of it. A conversation
            is only moved to another worker if its client can be continued there.
        max_memory_bytes: resident memory of a worker and all its descendants above which it is
            replaced in the same way. It is looked at about once a second, after an answer.
        max_sessions: most conversations of ``session`` and ``shared`` that are open at a time;
            each has a worker of its own beside the ``size``.
        rate_limit: most requests per second over all workers; ``None`` for no limit.
        retry: which errors are worth another attempt, and when; ``None`` for none.
        on_control: answers what clients ask their caller (``can_use_tool``, hooks) where a call
            has no handler of its own; runs on a thread of its own.
        control_timeout_s: how long an answer to that may take; then it is no.
        connect_timeout_s: seconds that a client may take to connect; ``None`` for no limit.
        preload: further modules to import once, before workers are forked.

    Raises:
        InvalidOptions: an argument or an option of the client is wrong; the caller's.
        ClientNotFound: no such client, or what it needs is not installed.
        ClientNotSerializable: the client cannot travel to a worker, or not be loaded there; the
            message names the culprit.
        TooManyWorkers: ``size`` needs more descriptors than this process may have.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        client: ClientLike = "echo",
        options: Mapping[str, Any] | None = None,
        isolation: Isolation = "prompt",
        timeout_s: float | None = None,
        window: int | None = None,
        window_bytes: int = 256 * 1024 * 1024,
        max_pending: int = 100_000,
        max_payload_bytes: int = codec.MAX_PAYLOAD_BYTES,
        stream_buffer_bytes: int = 4 * 1024 * 1024,
        interrupt_grace_s: float = 5.0,
        wedge_after_s: float | None = 30.0,
        drain_timeout_s: float | None = 30.0,
        max_restarts: int | None = None,
        restart_period_s: float = 30.0,
        max_requests_per_worker: int | None = None,
        max_memory_bytes: int | None = None,
        max_sessions: int = 64,
        rate_limit: RateLimit | None = None,
        retry: Retry | None = None,
        on_control: Handler | None = None,
        control_timeout_s: float = 60.0,
        connect_timeout_s: float | None = 60.0,
        preload: Sequence[str] = (),
    ) -> None:
        size = (os.cpu_count() or 1) if size is None else size
        if isolation not in {"prompt", "worker"}:
            raise InvalidOptions(f'isolation is "prompt" or "worker", not {isolation!r}')
        limits.check_counts(size=size, max_pending=max_pending, max_payload_bytes=max_payload_bytes)
        limits.check_counts(0, max_sessions=max_sessions)
        limits.check_optional_counts(0, max_restarts=max_restarts)
        limits.check_optional_counts(
            max_requests_per_worker=max_requests_per_worker, max_memory_bytes=max_memory_bytes
        )
        limits.check_seconds(timeout_s=timeout_s, drain_timeout_s=drain_timeout_s)
        limits.check_positive_seconds(wedge_after_s=wedge_after_s)
        limits.check_limited_seconds(
            interrupt_grace_s=interrupt_grace_s,
            restart_period_s=restart_period_s,
            control_timeout_s=control_timeout_s,
        )
        limits.check_positive_seconds(connect_timeout_s=connect_timeout_s)
        self._window = max(4 * size, 1024) if window is None else window
        limits.check_counts(
            window=self._window, window_bytes=window_bytes, stream_buffer_bytes=stream_buffer_bytes
        )
        self._window_bytes = window_bytes
        self._isolation = isolation
        self._drain_timeout_s = drain_timeout_s
        prepared = usercode.prepare(client, options or {})
        limits.reserve_descriptors(size + max_sessions)
        self._dispatcher = Dispatcher()
        _dispatchers.add(self._dispatcher)
        limiter = Limiter(rate_limit)
        most = max(20, 2 * size) if max_restarts is None else max_restarts
        restart = RestartPolicy(
            max_restarts=most,
            period_s=restart_period_s,
            max_delay_s=longest_delay_s(most, restart_period_s),
        )
        recycle = RecyclePolicy(
            max_requests=max_requests_per_worker, max_memory_bytes=max_memory_bytes
        )
        pool = Pool(
            size=size,
            restart=restart,
            interrupt_grace_s=interrupt_grace_s,
            limiter=limiter,
            retry=retry,
            recycle=recycle,
        )
        sessions = SessionPolicy(
            max_sessions=max_sessions,
            max_restarts=5 if max_restarts is None else max_restarts,
            restart_period_s=restart_period_s,
            interrupt_grace_s=interrupt_grace_s,
            timeout_s=timeout_s,
            limiter=limiter,
            max_payload_bytes=max_payload_bytes,
            stream_buffer_bytes=stream_buffer_bytes,
            recycle=recycle,
        )
        template = WorkerConfig(
            isolation=isolation,
            max_payload_bytes=max_payload_bytes,
            has_control=on_control is not None,
            control_timeout_s=control_timeout_s,
            connect_timeout_s=connect_timeout_s,
        )
        reactor = _start(
            pool,
            prepared,
            preload,
            template=template,
            sessions=sessions,
            desk=ControlDesk(on_control),
            interrupt_grace_s=interrupt_grace_s,
            wedge_after_s=wedge_after_s,
        )
        self._reactor = reactor
        self._intake = Intake(
            reactor,
            self._dispatcher,
            timeout_s=timeout_s,
            max_pending=max_pending,
            max_payload_bytes=max_payload_bytes,
            stream_buffer_bytes=stream_buffer_bytes,
        )
        self._finalizer = weakref.finalize(self, _forgotten, reactor, self._dispatcher)
        self._finalizer.atexit = False  # _close_all does it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(self._drain_timeout_s if kind is None else 0.0)

    # -- many prompts ----------------------------------------------------------------------------

    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        timeout_s: float | None = None,
        total_timeout_s: float | None = None,
        return_exceptions: bool = False,
    ) -> list[Result]:
        """Answer every prompt; results in input order.

        Args:
            prompts: any iterable of ``str`` or lists of content blocks; pulled in this thread.
            timeout_s: seconds per request from its entry into the window.
            total_timeout_s: seconds for the whole call.
            return_exceptions: put errors in the place of their results instead of raising.

        Raises:
            SoloistError: the first error, as soon as it happens; the rest has been cancelled.
                Its ``completed`` holds the results that were there, in input order.
        """
        outcomes: list[Any] = []
        window = self._new_window(is_ordered=True, is_fail_fast=not return_exceptions)
        flow = Flow(self._intake, window, timeout_s, total_timeout_s)
        with contextlib.closing(flow.run(prompts)) as run:
            try:
                outcomes.extend(result_or_error(request) for request in run)
            except SoloistError as error:
                outcomes.extend(result_or_error(request) for request in window.finished())
                error.completed = [o for o in outcomes if isinstance(o, Result)]
                raise
        return outcomes

    def imap(
        self,
        prompts: Iterable[Prompt],
        *,
        timeout_s: float | None = None,
        total_timeout_s: float | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[Result]:
        """As ``map``, lazy in and out: works over an endless generator in constant memory.

        An error is raised in its place; that, or closing the iterator, cancels the rest.
        """
        return self._iterate(
            prompts, timeout_s, total_timeout_s, return_exceptions, is_ordered=True
        )

    def imap_unordered(
        self,
        prompts: Iterable[Prompt],
        *,
        timeout_s: float | None = None,
        total_timeout_s: float | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[Result]:
        """As ``imap``, results in the order in which they come; ``index`` says which."""
        return self._iterate(
            prompts, timeout_s, total_timeout_s, return_exceptions, is_ordered=False
        )

    # -- one prompt ------------------------------------------------------------------------------

    def submit(self, prompt: Prompt, *, timeout_s: float | None = None) -> RequestFuture:
        """Send one prompt; returns at once.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now, the wait in the queue included.

        Returns:
            A ``concurrent.futures.Future`` of a :class:`Result`. Unlike the standard executors'
            it can be cancelled while it runs.

        Raises:
            QueueFull: ``max_pending`` requests have no outcome yet.
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent.
            InvalidOptions: ``timeout_s`` is no number of seconds.
            SupervisorClosed: closed, or closing. After ``drain`` it is the future that fails so.
        """
        return self._intake.future(prompt, timeout_s, self)

    def query(
        self, prompt: Prompt, *, timeout_s: float | None = None, on_control: Handler | None = None
    ) -> Response:
        """Stream the messages of one prompt, as they arrive, in a new conversation.

        The prompt is sent by this call. The last message is a ``ResultMessage``. Closing or
        dropping the iterator interrupts the turn.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now, the wait in the queue included.
            on_control: answers what the client asks its caller meanwhile, in place of the
                Supervisor's.

        Raises:
            InvalidOptions: the Supervisor keeps its conversations (``isolation="worker"``).
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
            SupervisorClosed: closed.

        Reading it raises the request's error, after the messages that came before it.
        """
        if self._isolation != "prompt":
            raise InvalidOptions('query begins a new conversation: it needs isolation="prompt"')
        return self._intake.response(prompt, timeout_s, self, on_control=on_control)

    # -- conversations ---------------------------------------------------------------------------

    def session(self) -> Session:
        """Begin a conversation of the caller's own, in a worker of its own.

        Use it in a ``with`` block. Returns when its client is connected.

        Raises:
            QueueFull: ``max_sessions`` conversations are open.
            ClientNotFound, ClientConnectError: its client cannot start.
            SupervisorClosed: closed.
        """
        ready: Future[None] = Future()
        address = self._reactor.open_session("", SessionLimits(1, None), ready).result()
        try:
            ready.result()
        except BaseException:  # also Ctrl-C
            abandon(self._reactor, address.number)
            raise
        return Session(self._intake, address, self)

    def shared(
        self, name: str, *, max_queue: int = 1_000, idle_timeout_s: float | None = None
    ) -> SharedSession:
        """Give the conversation of that name; the first call begins it, in a worker of its own.

        Any thread may call it, any number of times. A conversation that was lost stays lost
        under its name until somebody closes it.

        Args:
            name: any text.
            max_queue: most requests that wait for their turn; then ``QueueFull``.
            idle_timeout_s: seconds without a request after which it is closed by itself.

        Raises:
            QueueFull: ``max_sessions`` conversations are open.
            InvalidOptions: it is open with other bounds, or an argument is wrong.
            SupervisorClosed: closed.
        """
        limits.check_text(name=name)
        limits.check_counts(max_queue=max_queue)
        limits.check_positive_seconds(idle_timeout_s=idle_timeout_s)
        bounds = SessionLimits(max_queue, idle_timeout_s)
        address = self._reactor.open_session(name, bounds).result()
        return SharedSession(self._intake, name, address, self)

    # -- the whole -------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether everything has ended; also in a fork of the process that made it."""
        return self._reactor.is_closed.is_set()

    def stats(self) -> Stats:
        """A consistent, immutable snapshot."""
        return self._reactor.stats().result()

    def cancel_pending(self) -> None:
        """End every request that has not started with ``RequestCancelled``; what runs goes on."""
        self._reactor.cancel_pending()

    def restart(self, timeout_s: float | None = None) -> bool:
        """Replace every worker that there is by a new one, without losing a request.

        A few at a time, at most half of the pool, and one stays in service if ``size`` is above
        1: each ends what it runs and exits. Requests that come meanwhile are served. A
        conversation whose client can be continued moves to another worker between two turns;
        any other keeps the one it has. Called amid another restart, it waits for that one.

        Returns:
            Whether all have gone within ``timeout_s`` (``None``: no limit); if not, it goes on.

        Raises:
            RestartLimitReached: the new workers cannot start; those that are left stay.
            SupervisorClosed: closed.
        """
        limits.check_seconds(timeout_s=timeout_s)
        try:
            self._reactor.restart().result(timeout_s)
        except TimeoutError:
            return False
        return True

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more requests and wait for the outcome of all that were accepted.

        Returns:
            Whether all had their outcome within ``timeout_s`` (``None``: no limit).
        """
        limits.check_seconds(timeout_s=timeout_s)
        try:
            self._reactor.drain().result(timeout_s)
        except TimeoutError:
            return False
        return True

    def close(self, timeout_s: float | None = 0.0) -> None:
        """End everything, in bounded time, and leave nothing behind; may be called again.

        Drains for up to ``timeout_s``, then interrupts what runs, asks the workers to exit, and
        goes on to SIGTERM and SIGKILL, each with a deadline of its own. What has no outcome by
        then gets ``SupervisorClosed``. A KeyboardInterrupt while it waits skips to SIGKILL.
        The callbacks of futures have run when it returns, unless they take over five seconds.
        """
        limits.check_seconds(timeout_s=timeout_s)
        self._finalizer.detach()
        self._reactor.close(timeout_s)
        try:
            self._reactor.is_closed.wait()
        except BaseException:
            self.kill()
            raise
        self._reactor.join()
        self._dispatcher.close()
        self._dispatcher.join(_CALLBACKS_S)

    def kill(self) -> None:
        """End everything at once by SIGKILL; what has no outcome gets ``SupervisorClosed``."""
        self._finalizer.detach()
        self._reactor.close(0.0, at_least=Phase.KILL)
        self._reactor.is_closed.wait()
        self._reactor.join()
        self._dispatcher.close()

    # -- helpers ---------------------------------------------------------------------------------

    def _new_window(self, *, is_ordered: bool, is_fail_fast: bool = False) -> Window:
        return Window(
            max_requests=self._window,
            max_bytes=self._window_bytes,
            is_ordered=is_ordered,
            is_fail_fast=is_fail_fast,
        )

    def _iterate(
        self,
        prompts: Iterable[Prompt],
        timeout_s: float | None,
        total_timeout_s: float | None,
        return_exceptions: bool,  # noqa: FBT001 - private
        *,
        is_ordered: bool,
    ) -> Iterator[Any]:
        flow = Flow(
            self._intake, self._new_window(is_ordered=is_ordered), timeout_s, total_timeout_s
        )
        with contextlib.closing(flow.run(prompts)) as run:
            for request in run:
                outcome = result_or_error(request)
                if isinstance(outcome, SoloistError) and not return_exceptions:
                    raise outcome
                yield outcome


def _start(
    pool: Pool,
    client: usercode.Client,
    preload: Sequence[str],
    *,
    template: WorkerConfig,
    sessions: SessionPolicy,
    desk: ControlDesk,
    interrupt_grace_s: float,
    wedge_after_s: float | None,
) -> Reactor:
    folder = RunFolder()
    try:
        folder.client_file.write_bytes(client.data)
        forkserver = Forkserver(
            folder.path, ["soloist.worker.main", *client.preload, *preload], os.environ
        )
    except BaseException:
        folder.remove()
        raise
    template = dataclasses.replace(
        template, endpoint=folder.endpoint, client_file=str(folder.client_file)
    )
    try:
        forkserver.ensure_running()
        thread = IOThread(
            pool,
            folder,
            forkserver,
            template=template,
            sessions=sessions,
            desk=desk,
            interrupt_grace_s=interrupt_grace_s,
            wedge_after_s=wedge_after_s,
        )
    except BaseException:
        forkserver.stop(HELPER_STOP_S)
        folder.remove()
        raise
    reactor = Reactor(thread)
    _open_reactors.add(reactor)
    reactor.start()
    return reactor


def _forgotten(reactor: Reactor, dispatcher: Dispatcher) -> None:
    """A Supervisor was collected without ``close``: clean up without waiting for it."""
    was_closed = reactor.is_closed.is_set()
    reactor.close(0.0)
    dispatcher.close()
    if not was_closed:  # last, because a warning may be turned into an error
        warnings.warn(
            "a Supervisor was not closed; use `with Supervisor(...)` or call close()",
            ResourceWarning,
            stacklevel=2,
        )


@atexit.register
def _close_all() -> None:
    reactors = [reactor for reactor in _open_reactors if not reactor.is_closed.is_set()]
    for reactor in reactors:
        reactor.close(0.0)
    deadline = time.monotonic() + _EXIT_WAIT_S
    for reactor in reactors:
        reactor.is_closed.wait(max(0.0, deadline - time.monotonic()))
    deadline = time.monotonic() + _CALLBACKS_S
    for dispatcher in list(_dispatchers):
        dispatcher.join(max(0.0, deadline - time.monotonic()))


def _disown_all() -> None:
    for reactor in list(_open_reactors):
        if not reactor.is_closed.is_set():
            reactor.disown()
    _open_reactors.clear()
    for dispatcher in list(_dispatchers):
        dispatcher.forget()


os.register_at_fork(after_in_child=_disown_all)
