"""``Supervisor``: the interface that callers use.

Owns argument checking and the consumers' side of ``map``; everything else happens on the I/O
thread (:mod:`soloist.supervisor.reactor`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from soloist.protocol import codec
from soloist.protocol.codec import Prompt
from soloist.protocol.content import Message
from soloist.protocol.errors import (
    InvalidOptions,
    QueueFull,
    RequestTimeout,
    SoloistError,
)
from soloist.protocol.messages import Answer
from soloist.supervisor import limits, usercode
from soloist.supervisor.futures import Dispatcher, RequestFuture
from soloist.supervisor.pool import Pool
from soloist.supervisor.process import Forkserver, RunFolder
from soloist.supervisor.reactor import Reactor
from soloist.supervisor.request import Request
from soloist.supervisor.restart import RestartPolicy
from soloist.supervisor.results import Result, Stats
from soloist.supervisor.shutdown import Phase
from soloist.supervisor.stream import Stream
from soloist.supervisor.window import Window

ClientLike = str | type | Callable[..., Any]
Isolation = Literal["prompt", "worker"]

_PULL_S = 0.001
"""How long input is pulled while a finished result waits to be yielded."""
_EXIT_WAIT_S = 15.0
_HELPER_STOP_S = 3.0

_open_reactors: weakref.WeakSet[Reactor] = weakref.WeakSet()


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
        drain_timeout_s: seconds that leaving the ``with`` block waits for what is outstanding.
        max_restarts: workers that may fail to start, or die before their first answer, within
            ``restart_period_s``; ``max(20, 2 * size)`` unless given.
        restart_period_s: see ``max_restarts``.
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
        drain_timeout_s: float | None = 30.0,
        max_restarts: int | None = None,
        restart_period_s: float = 30.0,
        preload: Sequence[str] = (),
    ) -> None:
        size = (os.cpu_count() or 1) if size is None else size
        if isolation not in {"prompt", "worker"}:
            raise InvalidOptions(f'isolation is "prompt" or "worker", not {isolation!r}')
        limits.check_counts(size=size, max_pending=max_pending, max_payload_bytes=max_payload_bytes)
        if max_restarts is not None:
            limits.check_counts(0, max_restarts=max_restarts)
        limits.check_seconds(timeout_s=timeout_s, drain_timeout_s=drain_timeout_s)
        limits.check_limited_seconds(
            interrupt_grace_s=interrupt_grace_s, restart_period_s=restart_period_s
        )
        self._window = max(4 * size, 1024) if window is None else window
        limits.check_counts(
            window=self._window, window_bytes=window_bytes, stream_buffer_bytes=stream_buffer_bytes
        )
        self._window_bytes = window_bytes
        self._timeout_s = timeout_s
        self._isolation = isolation
        self._max_pending = max_pending
        self._max_payload_bytes = max_payload_bytes
        self._stream_buffer_bytes = stream_buffer_bytes
        self._drain_timeout_s = drain_timeout_s
        prepared = usercode.prepare(client, options or {})
        limits.reserve_descriptors(size)
        self._dispatcher = Dispatcher()
        self._pending: set[RequestFuture] = set()
        restart = RestartPolicy(
            max_restarts=max(20, 2 * size) if max_restarts is None else max_restarts,
            period_s=restart_period_s,
        )
        pool = Pool(size=size, restart=restart, interrupt_grace_s=interrupt_grace_s)
        self._reactor = _start(
            pool,
            prepared,
            preload,
            isolation=isolation,
            max_payload_bytes=max_payload_bytes,
            interrupt_grace_s=interrupt_grace_s,
        )
        self._finalizer = weakref.finalize(self, _forgotten, self._reactor, self._dispatcher)
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
        with contextlib.closing(self._run(window, prompts, timeout_s, total_timeout_s)) as run:
            try:
                outcomes.extend(_result_or_error(request) for request in run)
            except SoloistError as error:
                outcomes.extend(_result_or_error(request) for request in window.finished())
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
            SupervisorClosed: closed. While draining it is the future that fails so.
        """
        if timeout_s is not None:
            limits.check_seconds(timeout_s=timeout_s)
        if len(self._pending) >= self._max_pending:
            raise QueueFull(f"{self._max_pending:,} requests wait already (max_pending)")
        future = RequestFuture(self._cancel, self._dispatcher, self._pending, self)
        future.request = self._request(prompt, future, 0, timeout_s)
        self._pending.add(future)
        try:
            self._reactor.submit((future.request,))
        except SoloistError:
            self._pending.discard(future)
            raise
        return future

    def query(self, prompt: Prompt, *, timeout_s: float | None = None) -> Iterator[Message]:
        """Stream the messages of one prompt, as they arrive, in a new conversation.

        Lazy, as every iterator here: the prompt is sent when the first message is asked for. The
        last message is a ``ResultMessage``. Closing the iterator interrupts the turn.

        Raises:
            InvalidOptions: the Supervisor keeps its conversations (``isolation="worker"``).
            SoloistError: the request's error, after the messages that came before it.
        """
        if self._isolation != "prompt":
            raise InvalidOptions('query begins a new conversation: it needs isolation="prompt"')
        limits.check_seconds(timeout_s=timeout_s)
        codec.encode_prompt(prompt, self._max_payload_bytes)
        return self._read(prompt, timeout_s)

    # -- the whole -------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """A consistent, immutable snapshot."""
        return self._reactor.stats()

    def cancel_pending(self) -> None:
        """End every request that has not started with ``RequestCancelled``; what runs goes on."""
        self._reactor.cancel_pending()

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
        """
        limits.check_seconds(timeout_s=timeout_s)
        self._finalizer.detach()
        self._reactor.close(timeout_s)
        try:
            self._reactor.is_closed.wait()
        except BaseException:
            self.kill()
            raise
        self._dispatcher.close()

    def kill(self) -> None:
        """End everything at once by SIGKILL; what has no outcome gets ``SupervisorClosed``."""
        self._finalizer.detach()
        self._reactor.close(0.0, at_least=Phase.KILL)
        self._reactor.is_closed.wait()
        self._dispatcher.close()

    # -- helpers ---------------------------------------------------------------------------------

    def _cancel(self, request: Request) -> None:
        self._reactor.cancel((request,))

    def _request(
        self,
        prompt: Prompt,
        sink: Any,
        index: int,
        timeout_s: float | None,
        *,
        is_streamed: bool = False,
    ) -> Request:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return Request(
            prompt,
            codec.encode_prompt(prompt, self._max_payload_bytes),
            sink,
            index=index,
            deadline=None if timeout_s is None else time.monotonic() + timeout_s,
            is_streamed=is_streamed,
        )

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
        window = self._new_window(is_ordered=is_ordered)
        run = self._run(window, prompts, timeout_s, total_timeout_s)
        with contextlib.closing(run):
            for request in run:
                outcome = _result_or_error(request)
                if isinstance(outcome, SoloistError) and not return_exceptions:
                    raise outcome
                yield outcome

    def _run(
        self,
        window: Window,
        prompts: Iterable[Prompt],
        timeout_s: float | None,
        total_timeout_s: float | None,
    ) -> Generator[Request]:
        """Pull prompts, hand them over, yield finished requests; cancel the rest at the end."""
        limits.check_seconds(timeout_s=timeout_s, total_timeout_s=total_timeout_s)
        deadline = None if total_timeout_s is None else time.monotonic() + total_timeout_s
        pull = _Puller(self, window, prompts, timeout_s, deadline)
        try:
            while True:
                pull.fill()
                if not len(window):
                    return
                if _is_over(deadline) or not window.wait(deadline):
                    raise RequestTimeout(f"the call took longer than {total_timeout_s:g} s")
                if window.has_failed() and window.first_error is not None:
                    raise _error_of(window.first_error)
                yield window.take()
        finally:
            self._reactor.cancel(window.unsettled())

    def _read(self, prompt: Prompt, timeout_s: float | None) -> Iterator[Message]:
        stream = Stream(self._stream_buffer_bytes)
        request = self._request(prompt, stream, 0, timeout_s, is_streamed=True)
        self._reactor.submit((request,))
        count = 0
        try:
            while (data := stream.next()) is not None:
                count += 1
                yield codec.decode_message(data)
        finally:
            if request.outcome is None:
                self._cancel(request)
        if isinstance(request.outcome, SoloistError):
            raise request.outcome
        if isinstance(request.outcome, Answer):
            yield from Result(request, request.outcome).messages[count:]


class _Puller:
    """Pulls a ``map``'s input in the consumer's thread; each prompt is handed over at once."""

    def __init__(
        self,
        supervisor: Supervisor,
        window: Window,
        prompts: Iterable[Prompt],
        timeout_s: float | None,
        deadline: float | None,
    ) -> None:
        self._deadline = deadline
        self._supervisor = supervisor
        self._window = window
        self._prompts = enumerate(prompts)
        self._timeout_s = timeout_s
        self._is_exhausted = False

    def fill(self) -> None:
        """Fill the window; but when a finished result waits, not for long."""
        if self._is_exhausted or not self._window.has_room():
            return
        until = time.monotonic() + _PULL_S
        while self._window.has_room() and not _is_over(self._deadline):
            entry = next(self._prompts, None)
            if entry is None:
                self._is_exhausted = True
                return
            self._put(*entry)
            if self._window.is_ready() and time.monotonic() > until:
                return

    def _put(self, index: int, prompt: Prompt) -> None:
        window = self._window
        try:
            request = self._supervisor._request(prompt, window, index, self._timeout_s)  # noqa: SLF001
        except SoloistError as error:  # a prompt that cannot be sent fails in its place
            request = Request(prompt, b"", window, index=index)
            window.put(request)
            request.settle(error)
            return
        window.put(request)
        self._supervisor._reactor.submit((request,))  # noqa: SLF001


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _result_or_error(request: Request) -> Result | SoloistError:
    outcome = request.outcome
    return Result(request, outcome) if isinstance(outcome, Answer) else _error_of(request)


def _error_of(request: Request) -> SoloistError:
    assert isinstance(request.outcome, SoloistError)
    return request.outcome


def _start(
    pool: Pool,
    client: usercode.Client,
    preload: Sequence[str],
    *,
    isolation: str,
    max_payload_bytes: int,
    interrupt_grace_s: float,
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
    try:
        forkserver.ensure_running()
        reactor = Reactor(
            pool,
            folder,
            forkserver,
            isolation=isolation,
            max_payload_bytes=max_payload_bytes,
            interrupt_grace_s=interrupt_grace_s,
        )
    except BaseException:
        forkserver.stop(_HELPER_STOP_S)
        folder.remove()
        raise
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


def _disown_all() -> None:
    for reactor in list(_open_reactors):
        if not reactor.is_closed.is_set():
            reactor.disown()
    _open_reactors.clear()


os.register_at_fork(after_in_child=_disown_all)
