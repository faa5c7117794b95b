"""What the I/O thread reports of its workers and requests. On the I/O thread.

Owns what has to be remembered for that: when a worker ended, whom the restart limit refused.
Decides nothing and changes nothing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from soloist.protocol.errors import RestartLimitReached, SoloistError, WorkerLost
from soloist.supervisor import events
from soloist.supervisor.crew import Worker
from soloist.supervisor.events import Event
from soloist.supervisor.request import Outcome, Request
from soloist.supervisor.shutdown import Phase


class Reports:
    """Turns what happens into events.

    Args:
        report: logs an event.
        worker_of: the view of the worker of that number, which there is.
    """

    def __init__(self, report: Callable[..., None], worker_of: Callable[[int], Worker]) -> None:
        self._report = report
        self._worker_of = worker_of
        self._ended_at: dict[int, float] = {}
        self._refused: list[SoloistError] = []

    def worker(self, number: int, event: Event, **fields: Any) -> None:
        """Something happened to a worker."""
        incarnation = self._worker_of(number).incarnation
        self._report(event, worker=number, incarnation=incarnation, **fields)

    def spawning(self, number: int) -> None:
        """A worker is about to be started."""
        ended_at = self._ended_at.pop(number, None)
        if ended_at is not None:
            delay_s = time.monotonic() - ended_at
            self.worker(number, events.WORKER_REPLACED, delay_s=delay_s)

    def loaded(self, number: int) -> None:
        """A worker has loaded its client; heard twice is once."""
        if not self._worker_of(number).pid:
            self.worker(number, events.WORKER_LOADED)

    def broken(self, number: int, error: SoloistError) -> None:
        """A worker's client cannot start; heard twice is once."""
        if self._worker_of(number).broken is None:
            self.worker(number, events.WORKER_BROKEN, code=error.code, error=str(error))

    def not_started(self, number: int, error: SoloistError) -> None:
        """A worker's process could not be started."""
        self._ended_at[number] = time.monotonic()
        self.worker(number, events.WORKER_NOT_STARTED, code=error.code, error=str(error))

    def exited(self, number: int, pid: int, exitcode: int | None) -> None:
        """A worker's process has ended; nobody has decided yet what follows."""
        self._ended_at[number] = time.monotonic()
        self.worker(
            number,
            events.WORKER_EXITED,
            pid=pid,
            state=self._worker_of(number).state.value,
            exitcode=exitcode,
            signal=_signal_name(exitcode),
        )

    def forget(self, number: int) -> None:
        """There will be no worker of that number again."""
        self._ended_at.pop(number, None)

    def failed(self, request: Request, outcome: Outcome) -> None:
        """A request ended with an error."""
        if isinstance(outcome, RestartLimitReached):
            self._refused.append(outcome)
        elif isinstance(outcome, WorkerLost) and outcome.started is not False:
            fields = {"index": request.index, "worker": request.worker}
            self._report(events.REQUEST_LOST, **fields, error=str(outcome))

    def retried(self, request: Request) -> None:
        """A request waits for another attempt."""
        failure = request.failure
        assert failure is not None
        self._report(
            events.REQUEST_RETRIED,
            index=request.index,
            attempts=request.attempts,
            worker=request.worker,
            code=failure.code,
            error=str(failure),
        )

    def decided(self) -> None:
        """Everything has been decided for now: those refused meanwhile are reported together."""
        if self._refused:
            count, error = len(self._refused), str(self._refused[-1])
            self._refused.clear()
            self._report(events.RESTART_LIMIT_REACHED, requests=count, error=error)

    def closing(self, phase: Phase | None, *, busy: int, alive: int) -> Phase | None:
        """Closing has come to this phase, if it has come to any; give it back."""
        if phase in {Phase.TERM, Phase.KILL}:
            self._report(events.CLOSING_BY_FORCE, phase=phase.name.lower(), alive=alive)
        elif phase is not None:
            self._report(events.CLOSING, phase=phase.name.lower(), busy=busy, alive=alive)
        return phase


def _signal_name(exitcode: int | None) -> str | None:
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode).name
    except ValueError:  # a real-time signal has no name
        return str(-exitcode)
