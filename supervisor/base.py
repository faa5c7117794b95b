"""What every Supervisor offers its callers, whatever carries their requests out.

Owns the consumers' side of ``map``; everything else happens in the engine below
(:mod:`soloist.supervisor.engine`).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, ClassVar, Self

from soloist.protocol.codec import Prompt
from soloist.protocol.errors import SoloistError
from soloist.supervisor import at_exit, limits
from soloist.supervisor.brokers import SessionLimits
from soloist.supervisor.chunk_flow import ChunkFlow
from soloist.supervisor.control import Handler
from soloist.supervisor.engine import Engine
from soloist.supervisor.flow import Flow, result_or_error
from soloist.supervisor.futures import Dispatcher, RequestFuture
from soloist.supervisor.intake import Intake
from soloist.supervisor.response import Response
from soloist.supervisor.results import Result, Stats
from soloist.supervisor.session import Session, SharedSession, abandon
from soloist.supervisor.shutdown import Phase
from soloist.supervisor.window import Window


class BaseSupervisor:
    """The calls of a Supervisor, on top of an engine.

    Args:
        engine: carries them out; ``at_exit`` knows it.
        window: see ``Supervisor``, as all of these.
        window_bytes: bound of a window in bytes.
        timeout_s: seconds per request unless its call says otherwise.
        max_pending: most futures without an outcome.
        max_payload_bytes: largest encoded prompt.
        stream_buffer_bytes: how far the reader of a stream may fall behind.
        drain_timeout_s: seconds that leaving the ``with`` block waits.
        may_grow: whether more of quick prompts may be in flight than ``window`` says.
    """

    _made_by: ClassVar = "Supervisor(...)"

    def __init__(
        self,
        engine: Engine,
        *,
        window: int,
        window_bytes: int,
        timeout_s: float | None,
        max_pending: int,
        max_payload_bytes: int,
        stream_buffer_bytes: int,
        drain_timeout_s: float | None,
        may_grow: bool = False,
    ) -> None:
        self._engine = engine
        self._may_grow = may_grow
        self._window = window
        self._window_bytes = window_bytes
        self._drain_timeout_s = drain_timeout_s
        self._dispatcher = Dispatcher()
        at_exit.add_dispatcher(self._dispatcher)
        self._intake = Intake(
            engine,
            self._dispatcher,
            timeout_s=timeout_s,
            max_pending=max_pending,
            max_payload_bytes=max_payload_bytes,
            stream_buffer_bytes=stream_buffer_bytes,
        )
        self._finalizer = weakref.finalize(
            self, at_exit.forgotten, engine, self._dispatcher, self._made_by
        )
        self._finalizer.atexit = False  # at_exit does it

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
        is_timed = timeout_s is not None or self._intake.timeout_s is not None
        if self._engine.takes_parts and isinstance(prompts, list | tuple) and not is_timed:
            chunks = ChunkFlow(
                self._intake,
                max_requests=self._window,
                may_grow=self._may_grow,
                total_timeout_s=total_timeout_s,
                is_fail_fast=not return_exceptions,
            )
            return chunks.run(prompts)
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
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
            SupervisorClosed: closed.

        Reading it raises the request's error, after the messages that came before it.
        """
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
        address = self._engine.open_session("", SessionLimits(1, None), ready).result()
        try:
            ready.result()
        except BaseException:  # also Ctrl-C
            abandon(self._engine, address.number)
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
        address = self._engine.open_session(name, bounds).result()
        return SharedSession(self._intake, name, address, self)

    # -- the whole -------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether everything has ended; also in a fork of the process that made it."""
        return self._engine.is_closed.is_set()

    def stats(self) -> Stats:
        """A consistent, immutable snapshot."""
        return self._engine.stats().result()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more requests and wait for the outcome of all that were accepted.

        Returns:
            Whether all had their outcome within ``timeout_s`` (``None``: no limit).
        """
        limits.check_seconds(timeout_s=timeout_s)
        try:
            self._engine.drain().result(timeout_s)
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
        self._engine.close(timeout_s)
        try:
            self._engine.is_closed.wait()
        except BaseException:
            self._kill()
            raise
        self._engine.join()
        self._dispatcher.close()
        self._dispatcher.join(at_exit.CALLBACKS_S)

    # -- helpers ---------------------------------------------------------------------------------

    def _kill(self) -> None:
        self._finalizer.detach()
        self._engine.close(0.0, at_least=Phase.KILL)
        self._engine.is_closed.wait()
        self._engine.join()
        self._dispatcher.close()

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
