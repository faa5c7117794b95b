"""``RequestFuture``: a real ``concurrent.futures.Future`` for one request.

It differs from the standard executors' in one point: what runs can be cancelled. It therefore
stays PENDING until its outcome, so that the standard ``cancel`` applies, and the I/O thread
announces the outcome (``set_running_or_notify_cancel``) when the turn has been drained.

Callbacks run on a dispatcher thread, never on the I/O thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import PENDING
from typing import Any

from soloist.protocol.messages import Answer
from soloist.protocol.transitions import RequestState
from soloist.supervisor import events
from soloist.supervisor.request import Request
from soloist.supervisor.results import Result


class Dispatcher:
    """Runs callbacks one after another on one thread, started when first needed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked copy of this process: begin anew, for the thread is not in the copy."""
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # May be taken twice: amid ``call`` the collector may find a Supervisor that is forgotten.
        self._lock = threading.Condition(threading.RLock())
        self._left = 0  # calls that have not returned
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def call(self, function: Callable[[], None]) -> None:
        """Have ``function`` called soon; after ``close``, too, so that none is lost."""
        with self._lock:
            self._left += 1
            self._calls.put(function)
            if self._is_closed:
                self._calls.put(None)
            if self._thread is None or self._is_closed:
                self._thread = threading.Thread(
                    target=self._run, name="soloist-callbacks", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """End the thread once everything handed in so far has run."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._calls.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait until everything handed in has run; one of those that are run need not wait."""
        if threading.current_thread() is self._thread:
            return
        with self._lock:
            self._lock.wait_for(lambda: not self._left, timeout_s)

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                function()
            except BaseException:  # noqa: BLE001 - it is reported
                # Future swallows an Exception itself; sys.exit() must not end all callbacks.
                events.failed(events.CALLBACK_FAILED)
            del function  # it holds the future, and so whatever its callbacks hold
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._lock.notify_all()


class _Condition(threading.Condition):
    """What a future is waited for on; most of its parts are made when somebody waits.

    A ``threading.Condition`` takes as long to make as all else about a request on its caller's
    side, and most futures are done when their result is asked for.
    """

    _is_whole = False
    _waiters = ()

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined] # noqa: SLF001

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        """Take the lock; this and the next are replaced when all parts are made."""
        return self._lock.acquire(*args, **kwargs)

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until notified; the lock is held."""
        if not self._is_whole:
            super().__init__(self._lock)
            self._is_whole = True
        return super().wait(timeout)

    def notify_all(self) -> None:
        """Wake all; the lock is held."""
        if self._is_whole:
            super().notify_all()


class RequestFuture(Future[Result]):
    """The future result of one request.

    Args:
        on_cancel: told, once, that the caller wants no answer any more.
        dispatcher: runs the callbacks.
        pending: holds the future until its outcome.
        owner: kept alive until the outcome; a Supervisor is not collected while it is awaited.
    """

    def __init__(
        self,
        on_cancel: Callable[[Request], None],
        dispatcher: Dispatcher,
        pending: set[RequestFuture],
        owner: object,
    ) -> None:
        # In the place of Future's own constructor, whose attributes these are.
        self._condition = _Condition()
        self._state = PENDING
        self._result = self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._on_cancel = on_cancel
        self._dispatcher = dispatcher
        self._pending = pending
        self._owner: object | None = owner
        self.request: Request | None = None

    def cancel(self) -> bool:
        """Cancel the request, also if it runs: its turn is interrupted and drained.

        Returns:
            ``False`` if the outcome is already there. ``result()`` raises ``CancelledError`` at
            once; ``wait`` and ``as_completed`` return when the worker is free again.
        """
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        if self.request is not None:
            self._on_cancel(self.request)
        return True

    def running(self) -> bool:
        """Whether a worker holds the request."""
        return (
            not self.done()
            and self.request is not None
            and self.request.state is RequestState.LEASED
        )

    def settle(self, request: Request) -> None:
        """Take the outcome; called by the I/O thread."""
        outcome = request.outcome
        self._owner = None
        self._pending.discard(self)
        try:
            if isinstance(outcome, Answer):
                self.set_result(Result.of(request, outcome))
            else:
                self.set_exception(outcome)
        except InvalidStateError:
            if self.cancelled():  # and now the worker is free
                self.set_running_or_notify_cancel()

    def stream(self, request: Request, message: bytes) -> bool:
        """A future takes no parts."""
        del request, message
        return True

    def _invoke_callbacks(self) -> None:
        if self._done_callbacks:  # the one hook that Future offers
            self._dispatcher.call(super()._invoke_callbacks)  # type: ignore[misc]
