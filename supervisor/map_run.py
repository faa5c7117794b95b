"""One run of ``soloist map``: records in, result lines out in the same order.

Owns the prompts that are on their way: when the next is read and handed to the Supervisor, and
when an outcome is written. Knows no file format, no option and no terminal. An error that every
further prompt would meet too (the client is not installed) ends the run and is reported once.

It stands on ``submit`` rather than ``imap``, because ``imap`` pulls its input in the thread that
takes the results: an input that pauses (a pipe, a terminal) would withhold finished answers.

Invariants: lines are written in input order, each as soon as those before it are; at most
``window`` prompts and about ``WINDOW_BYTES`` are read ahead or wait to be written; everything but
the blocking read of the input runs in the thread that called :meth:`MapRun.run`.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from soloist.protocol.codec import Prompt
from soloist.protocol.errors import (
    ClientNotFound,
    ClientNotSerializable,
    InvalidOptions,
    RequestCancelled,
    RestartLimitReached,
    SoloistError,
    SupervisorClosed,
)
from soloist.supervisor import prompts_file
from soloist.supervisor.prompts_file import PromptParser, Record

WINDOW_BYTES = 64 * 1024 * 1024
"""Bytes of prompts and of unwritten lines above which no further prompt is read."""

_HOPELESS = (
    ClientNotFound,
    ClientNotSerializable,
    InvalidOptions,
    RestartLimitReached,
    SupervisorClosed,
)
"""Errors that every further prompt would meet too: they end the run."""
_NOT_BEGUN = (RequestCancelled, *_HOPELESS)
"""Errors that, at the run's early end, say of a prompt only that it never began."""


class Runner(Protocol):
    """What a run needs of a Supervisor."""

    def submit(self, prompt: Prompt, *, timeout_s: float | None = None) -> Future[Any]:
        """Begin to answer a prompt."""

    def cancel_pending(self) -> None:
        """End every request that has not started with ``RequestCancelled(started=False)``."""


@dataclasses.dataclass(slots=True)
class Tally:
    """How far a run has come.

    Attributes:
        answered: lines written with an answer.
        failed: lines written with an error.
        dropped: prompts that were read but, at the run's early end, not begun.
        cost_usd: what the answers cost, as far as the client said.
        failure: why the run ended early, if not because of its caller.
    """

    answered: int = 0
    failed: int = 0
    dropped: int = 0
    cost_usd: float = 0.0
    failure: Exception | None = None


class _Input(enum.Enum):
    IDLE = enum.auto()
    READING = enum.auto()
    ENDED = enum.auto()


@dataclasses.dataclass(slots=True)
class _Slot:
    """A place in the output: ``line`` is ``None`` until its outcome is known."""

    record: Record
    line: bytes | None = None
    is_answer: bool = False


class MapRun:
    """Maps the prompts of one input onto a Supervisor.

    Args:
        supervisor: answers the prompts.
        parser: turns the input's bytes into records.
        source: descriptor of the input.
        target: descriptor of the results.
        window: prompts that may be read but not yet written.
        in_flight: prompts that the Supervisor may hold at once, queued or running.
        timeout_s: seconds from handing a prompt over to its outcome.
        with_prompt: whether result lines repeat the prompt.
        on_stopping: called when the run follows :meth:`stop`.

    Attributes:
        tally: how far the run has come; any thread may look.
    """

    def __init__(
        self,
        supervisor: Runner,
        parser: PromptParser,
        *,
        source: int,
        target: int,
        window: int,
        in_flight: int,
        timeout_s: float | None = None,
        with_prompt: bool = True,
        on_stopping: Callable[[], None] = lambda: None,
    ) -> None:
        self.tally = Tally()
        self._supervisor = supervisor
        self._parser = parser
        self._source = source
        self._target = target
        self._window = window
        self._in_flight_limit = in_flight
        self._timeout_s = timeout_s
        self._with_prompt = with_prompt
        self._on_stopping = on_stopping
        self._input = _Input.IDLE
        self._is_stopping = False
        self._slots: collections.deque[_Slot] = collections.deque()
        self._held_bytes = 0
        self._in_flight = 0
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._read_orders: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self) -> Tally:
        """Map until the input has ended, or :meth:`stop`, and every outcome is written.

        Raises:
            OutputError: the results cannot be written; what runs is left to the caller.
        """
        # A daemon: nothing can end a read of a terminal that nobody types at.
        threading.Thread(target=self._read, name="soloist-input", daemon=True).start()
        try:
            self._fill()
            while self._slots or self._input is not _Input.ENDED:
                self._events.get()()
                self._fill()
        finally:
            self._read_orders.put(0)
        return self.tally

    def stop(self) -> None:
        """Ask the run to begin nothing more; safe in a signal handler and in any thread."""
        self._events.put(self._on_stop_asked)

    # The input.

    def _read(self) -> None:
        while size := self._read_orders.get():
            try:
                chunk = prompts_file.read_some(self._source, size)
            except OSError as error:
                self._events.put(functools.partial(self._on_broken_input, error))
                return
            self._events.put(functools.partial(self._on_chunk, chunk))

    def _on_chunk(self, chunk: bytes) -> None:
        if self._input is not _Input.READING:
            return
        if chunk:
            self._input = _Input.IDLE
            self._parser.feed(chunk)
        else:
            self._end_input()

    def _on_broken_input(self, error: OSError) -> None:
        if self._input is _Input.READING:
            self._end_input()
            self.tally.failure = error

    def _end_input(self) -> None:
        self._input = _Input.ENDED
        self._parser.end()

    def _on_stop_asked(self) -> None:
        self._stop()
        self._on_stopping()

    def _stop(self) -> None:
        self._input = _Input.ENDED
        if not self._is_stopping:
            self._is_stopping = True
            self._supervisor.cancel_pending()

    # The prompts on their way.

    def _fill(self) -> None:
        """Begin as many prompts as there is room for, and write what can be written."""
        self._write_finished()
        while self._has_room():
            record = self._parser.take()
            if record is None:
                self._order_read()
                return
            self._begin(record)
            self._write_finished()

    def _has_room(self) -> bool:
        if not self._slots:
            return not self._is_stopping
        return (
            not self._is_stopping
            and len(self._slots) < self._window
            and self._in_flight < self._in_flight_limit
            and self._held_bytes < WINDOW_BYTES
        )

    def _order_read(self) -> None:
        if self._input is _Input.IDLE:
            self._input = _Input.READING
            self._read_orders.put(prompts_file.READ_BYTES)

    def _begin(self, record: Record) -> None:
        slot = _Slot(record)
        self._slots.append(slot)
        self._held_bytes += record.size_bytes
        try:
            future = self._submit(record)
        except SoloistError as error:
            self._fail(slot, error)
            return
        self._in_flight += 1
        finished = functools.partial(self._on_finished, slot)
        future.add_done_callback(lambda done: self._events.put(functools.partial(finished, done)))

    def _submit(self, record: Record) -> Future[Any]:
        if record.error is not None:
            raise record.error
        assert record.prompt is not None
        return self._supervisor.submit(record.prompt, timeout_s=self._timeout_s)

    def _on_finished(self, slot: _Slot, future: Future[Any]) -> None:
        self._in_flight -= 1
        try:
            answer = future.result(timeout=0)
        except CancelledError:
            self._fail(slot, RequestCancelled("cancelled before it began", started=False))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this prompt's outcome
            self._fail(slot, error)
        else:
            slot.is_answer = True
            self.tally.cost_usd += answer.cost_usd or 0.0
            self._settle(
                slot,
                prompts_file.answer_line(slot.record, answer, with_prompt=self._with_prompt),
            )

    def _fail(self, slot: _Slot, error: BaseException) -> None:
        if isinstance(error, _HOPELESS) and self.tally.failure is None:
            self.tally.failure = error
            self._stop()
        if self._is_stopping and isinstance(error, _NOT_BEGUN) and error.started is False:
            self._settle(slot, b"")
            return
        line = prompts_file.error_line(slot.record, error, with_prompt=self._with_prompt)
        self._settle(slot, line)

    # The output.

    def _settle(self, slot: _Slot, line: bytes) -> None:
        slot.line = line
        self._held_bytes += len(line)

    def _write_finished(self) -> None:
        while self._slots and (line := self._slots[0].line) is not None:
            slot = self._slots.popleft()
            self._held_bytes -= slot.record.size_bytes + len(line)
            self._write(slot, line)

    def _write(self, slot: _Slot, line: bytes) -> None:
        if not line:
            self.tally.dropped += 1
            return
        prompts_file.write_all(self._target, line)
        if slot.is_answer:
            self.tally.answered += 1
        else:
            self.tally.failed += 1
