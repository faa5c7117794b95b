"""Every event that the library logs: its name, its level, its words, its fields.

Pure data; ``docs/logging.md`` has the same table for readers, and a test compares the two. Events
go to the logger ``soloist.supervisor``; their fields become attributes of the record, beside
``event``, its name. Levels: DEBUG for the ordinary, INFO for exits and replacements, WARNING for
what costs somebody something, ERROR for defects.
"""

from __future__ import annotations

import logging
import re
from typing import Any, NamedTuple

log = logging.getLogger("soloist.supervisor")

_FIELD = re.compile(r"%\((\w+)\)")


class Event(NamedTuple):
    """One kind of event.

    Attributes:
        name: what its records have as ``event``.
        level: one of the levels of :mod:`logging`.
        message: with a place for every field.
    """

    name: str
    level: int
    message: str

    @property
    def fields(self) -> tuple[str, ...]:
        """What its records have beside ``event``, in the order of the message."""
        return tuple(dict.fromkeys(_FIELD.findall(self.message)))


def failed(event: Event) -> None:
    """Log an event with the exception that is being handled; on any thread but the I/O thread.

    There, too, once nothing depends on that thread any more.
    """
    log.log(event.level, event.message, exc_info=True, extra={"event": event.name})


def ignore(event: Event, **fields: Any) -> None:
    """Take a report for which there is no journal."""
    del event, fields


WORKER_SPAWNED = Event(
    "worker.spawned",
    logging.DEBUG,
    "worker %(worker)d.%(incarnation)d was forked, pid %(pid)d",
)
WORKER_LOADED = Event(
    "worker.loaded",
    logging.DEBUG,
    "worker %(worker)d.%(incarnation)d has loaded the client and connects it",
)
WORKER_READY = Event(
    "worker.ready",
    logging.DEBUG,
    "worker %(worker)d.%(incarnation)d is ready",
)
WORKER_BROKEN = Event(
    "worker.broken",
    logging.WARNING,
    "the client of worker %(worker)d.%(incarnation)d cannot start: %(code)s: %(error)s",
)
WORKER_NOT_STARTED = Event(
    "worker.not_started",
    logging.WARNING,
    "worker %(worker)d.%(incarnation)d could not be started: %(code)s: %(error)s",
)
WORKER_EXITED = Event(
    "worker.exited",
    logging.INFO,
    "worker %(worker)d.%(incarnation)d, pid %(pid)d, ended while %(state)s: "
    "exit code %(exitcode)s, signal %(signal)s",
)
WORKER_VACATED = Event(
    "worker.vacated",
    logging.DEBUG,
    "worker %(worker)d.%(incarnation)d has ended; its process, pid %(pid)d, waits for another",
)
WORKER_REUSED = Event(
    "worker.reused",
    logging.DEBUG,
    "worker %(worker)d.%(incarnation)d begins in the process of one before it, pid %(pid)d",
)
WORKER_REPLACED = Event(
    "worker.replaced",
    logging.INFO,
    "worker %(worker)d.%(incarnation)d is started, %(delay_s).3f s after the one before it ended",
)
WORKER_KILLED = Event(
    "worker.killed",
    logging.WARNING,
    "worker %(worker)d.%(incarnation)d did not end its turn or itself within its grace time and "
    "is killed",
)
WORKER_WEDGED = Event(
    "worker.wedged",
    logging.WARNING,
    "worker %(worker)d.%(incarnation)d is wedged, %(reason)s, and is killed",
)
WORKER_BROKE_PROTOCOL = Event(
    "worker.broke_protocol",
    logging.ERROR,
    "worker %(worker)d.%(incarnation)d broke the protocol and is killed: %(error)s",
)
RESTART_LIMIT_REACHED = Event(
    "restart_limit.reached",
    logging.WARNING,
    "%(requests)d requests fail: %(error)s",
)
TURN_INTERRUPTED = Event(
    "turn.interrupted",
    logging.DEBUG,
    "worker %(worker)d.%(incarnation)d is to end its running turn (lease %(lease)d)",
)
REQUEST_RETRIED = Event(
    "request.retried",
    logging.INFO,
    "request %(index)d runs again after attempt %(attempts)d at worker %(worker)d: "
    "%(code)s: %(error)s",
)
REQUEST_LOST = Event(
    "request.lost",
    logging.WARNING,
    "request %(index)d at worker %(worker)d is lost: %(error)s",
)
SESSION_OPENED = Event(
    "session.opened",
    logging.DEBUG,
    "session %(session)r (worker %(worker)d) is opened",
)
SESSION_RESUMED = Event(
    "session.resumed",
    logging.INFO,
    "session %(session)r (worker %(worker)d) continues as incarnation %(incarnation)d",
)
SESSION_IDLE = Event(
    "session.idle",
    logging.INFO,
    "session %(session)r (worker %(worker)d) was idle for too long and is closed",
)
SESSION_LOST = Event(
    "session.lost",
    logging.WARNING,
    "session %(session)r (worker %(worker)d) is lost: %(code)s: %(error)s",
)
SESSION_CLOSED = Event(
    "session.closed",
    logging.DEBUG,
    "session %(session)r (worker %(worker)d) is closed",
)
CLOSING = Event(
    "supervisor.closing",
    logging.DEBUG,
    "closing: phase %(phase)s with %(busy)d requests and turns, %(alive)d workers",
)
CLOSING_BY_FORCE = Event(
    "supervisor.closing_by_force",
    logging.WARNING,
    "closing: phase %(phase)s for %(alive)d workers that did not exit in time",
)
OUTPUT_DROPPED = Event(
    "output.dropped",
    logging.WARNING,
    "%(lines)d lines of workers' output were left out: the log's handlers are too slow for them",
)

IO_FAILED = Event(
    "io.failed",
    logging.ERROR,
    "the I/O thread failed; everything is being ended",
)
CLEAN_UP_FAILED = Event(
    "io.clean_up_failed",
    logging.ERROR,
    "the I/O thread could not clean up everything",
)
ORDER_FAILED = Event(
    "order.failed",
    logging.ERROR,
    "an order came too late",
)
CALLBACK_FAILED = Event(
    "callback.failed",
    logging.ERROR,
    "a callback of a future ended its thread's turn",
)
CONTROL_FAILED = Event(
    "control.failed",
    logging.ERROR,
    "the on_control handler failed: the answer is no",
)

ALL = tuple(value for value in list(vars().values()) if isinstance(value, Event))
