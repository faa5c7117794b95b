"""What the library says to :mod:`logging`, said on a thread of its own.

The I/O thread and the spawner hand records over and go on: a handler is user code, it may block,
and one that called the Supervisor from the I/O thread would wait for itself.

Owns the queue between them and the thread, which is started by the first record.

Invariants: handing over never waits; what waits is bounded in characters; once that bound is
reached, lines are left out until half of it is free again, and then their number is logged. Events
have twice that room. Nothing is left out while nothing waits, so that somebody is there to say it.
"""

from __future__ import annotations

import functools
import logging
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from soloist.supervisor.events import OUTPUT_DROPPED, Event, log

MAX_WAITING_CHARS = 4 * 1024 * 1024
"""What may wait for slow handlers."""
CLOSE_S = 1.0
"""How long handlers may take for what waits at the end."""
_RECORD_CHARS = 200
"""What a record costs beside its text."""
_LINES_AT_ONCE = 500


class Journal:
    """Hands events and lines to their loggers, in the order in which they came.

    Args:
        max_waiting_chars: bound on what waits.
    """

    def __init__(self, max_waiting_chars: int = MAX_WAITING_CHARS) -> None:
        self._max = max_waiting_chars
        self._items: queue.SimpleQueue[tuple[int, Callable[[], None]] | None] = queue.SimpleQueue()
        # Each of these is written by one side alone, under the lock or on the thread.
        self._put = 0
        self._done = 0
        self._dropped = 0
        self._reported = 0
        self._is_full = False
        self._is_abandoned = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def report(self, event: Event, **fields: Any) -> None:
        """Log an event; ``fields`` become attributes of the record and fill in its message."""
        if not log.isEnabledFor(event.level):
            return
        with self._lock:
            self._hand_over(_RECORD_CHARS, _emission(event, fields), most=2 * self._max)

    def write(
        self, logger: logging.Logger, level: int, lines: Sequence[str], fields: Mapping[str, Any]
    ) -> None:
        """Log each of some lines."""
        if not lines or not logger.isEnabledFor(level):
            return
        with self._lock:
            for begin in range(0, len(lines), _LINES_AT_ONCE):
                self._write(logger, level, lines[begin : begin + _LINES_AT_ONCE], fields)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """End the thread when it has said everything, or after this long without the rest."""
        if self._thread is None:
            return
        self._items.put(None)
        self._thread.join(timeout_s)
        self._is_abandoned = True  # it ends when its handler returns

    def _write(
        self, logger: logging.Logger, level: int, lines: Sequence[str], fields: Mapping[str, Any]
    ) -> None:
        cost = sum(map(len, lines)) + _RECORD_CHARS * len(lines)
        emit = functools.partial(_emit, logger, level, lines, fields)
        if self._is_full and self._waiting <= self._max // 2:
            self._is_full = False
        if self._is_full or not self._hand_over(cost, emit, most=self._max):
            self._is_full = True
            self._dropped += len(lines)

    @property
    def _waiting(self) -> int:
        return self._put - self._done

    def _hand_over(self, cost: int, emit: Callable[[], None], *, most: int) -> bool:
        if self._waiting and self._waiting + cost > most:
            return False
        self._put += cost
        self._items.put((cost, emit))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="soloist-log", daemon=True)
            self._thread.start()
        return True

    def _run(self) -> None:
        while (item := self._items.get()) is not None and not self._is_abandoned:
            cost, emit = item
            _call(emit)
            self._done += cost
            if self._dropped != self._reported and self._waiting <= self._max // 2:
                self._report_dropped()

    def _report_dropped(self) -> None:
        dropped = self._dropped  # read once: more may be dropped meanwhile
        lines, self._reported = dropped - self._reported, dropped
        _call(_emission(OUTPUT_DROPPED, {"lines": lines}))


def _emission(event: Event, fields: Mapping[str, Any]) -> Callable[[], None]:
    record = _record(log, event.level, event.message, fields, {"event": event.name, **fields})
    return functools.partial(log.handle, record)


def _emit(
    logger: logging.Logger, level: int, lines: Sequence[str], fields: Mapping[str, Any]
) -> None:
    for line in lines:
        logger.handle(_record(logger, level, line, {}, fields))


def _record(
    logger: logging.Logger,
    level: int,
    message: str,
    arguments: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> logging.LogRecord:
    args = (arguments,) if arguments else ()
    return logger.makeRecord(
        logger.name, level, __file__, 0, message, args, None, extra=dict(extra)
    )


def _call(emit: Callable[[], None]) -> None:
    """Have records handled; what a handler or filter raises ends nothing but that."""
    try:
        emit()
    except BaseException:  # noqa: BLE001 - sys.exit() in a handler must not end all logging
        failure = threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
        threading.excepthook(failure)
