"""The way from callers' threads to the I/O thread: a queue and one wake-up.

Owns what was handed over and not yet taken, the pipe that wakes the thread, and the word that it
has ended. Callers share nothing else with the I/O thread.

Invariants: what is put in is taken by the I/O thread, or refused by whoever sees first that the
thread has ended; the pipe is written to only while the thread sleeps.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeAlias, TypeVar

from soloist.protocol.errors import SupervisorClosed
from soloist.supervisor import events
from soloist.supervisor.request import Request

_T = TypeVar("_T")
Item: TypeAlias = Request | Callable[[], None]
"""A request, or something to be done on the I/O thread."""


class Inbox:
    """What callers hand over.

    Attributes:
        is_closed: set when the I/O thread has ended, or in a fork of its process.
    """

    def __init__(self) -> None:
        self.is_closed = threading.Event()
        self._items: deque[Item] = deque()
        self._is_asleep = False
        self._is_shut = False
        self._is_forked = False
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)

    def __bool__(self) -> bool:
        return bool(self._items)

    # -- called from any thread ------------------------------------------------------------------

    def submit(self, requests: Iterable[Request]) -> None:
        """Hand requests over.

        Raises:
            SupervisorClosed: ``shut``, the thread has ended, or this process is a fork of its
                owner.
        """
        if self._is_shut or self.is_closed.is_set():
            raise SupervisorClosed("the Supervisor is closed", started=False)
        self._items.extend(requests)
        self._wake()
        if self.is_closed.is_set():  # it ended just now: nobody will look again
            self.refuse_rest()

    def shut(self) -> None:
        """Take no more requests: threads that never stop would hold the end up."""
        self._is_shut = True

    def post(self, call: Callable[[], None]) -> None:
        """Have something done on the I/O thread, soon."""
        self._items.append(call)
        self._wake()

    def ask(self, call: Callable[[], _T]) -> Future[_T]:
        """Have something done on the I/O thread; fails with ``SupervisorClosed`` after its end.

        The future cannot be cancelled.
        """
        answer: Future[_T] = Future()
        answer.set_running_or_notify_cancel()

        def run() -> None:
            if self.is_closed.is_set():
                answer.set_exception(SupervisorClosed("the Supervisor is closed", started=False))
                return
            try:
                answer.set_result(call())
            except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for it
                answer.set_exception(error)

        self.post(run)
        if self.is_closed.is_set():
            if self._is_forked:
                run()
            else:
                self.refuse_rest()
        return answer

    def refuse_rest(self) -> None:
        """After the end: settle what was handed over too late."""
        while self._items:
            try:
                item = self._items.popleft()
            except IndexError:  # another thread does the same
                return
            if isinstance(item, Request):
                item.settle(SupervisorClosed("the Supervisor is closed", started=False))
                continue
            try:
                item()
            except Exception:  # noqa: BLE001 - whatever it is, it is reported
                events.failed(events.ORDER_FAILED)

    def disown(self) -> None:
        """In a forked copy of the process: be closed, and wake nobody."""
        self._is_forked = True
        self.is_closed.set()

    def _wake(self) -> None:
        if self._is_asleep and not self._is_forked:
            self._is_asleep = False
            with contextlib.suppress(OSError):  # the I/O thread has just ended
                os.write(self._wake_w, b"\0")

    # -- the I/O thread's side -------------------------------------------------------------------

    def fileno(self) -> int:
        """Descriptor that becomes readable when something comes during sleep."""
        return self._wake_r

    def take(self) -> Item | None:
        """The next one, if there is one."""
        return self._items.popleft() if self._items else None

    def may_sleep(self) -> bool:
        """From now on be woken; ``False`` if something has come just before."""
        self._is_asleep = True
        if self._items:
            self._is_asleep = False
        return self._is_asleep

    def has_woken(self) -> None:
        """No longer be woken."""
        self._is_asleep = False

    def clear(self) -> None:
        """Take back the wake-up that made the descriptor readable."""
        os.read(self._wake_r, 4096)

    def close(self) -> None:
        """The thread has ended: from now on everything is refused."""
        self.refuse_rest()
        self._wake_w, wake_w = -1, self._wake_w
        os.close(self._wake_r)
        os.close(wake_w)
