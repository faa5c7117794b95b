"""Ctrl-C and SIGTERM during one command: the first asks it to end, the second kills.

Owns the two handlers while a command runs and gives them back afterwards. A signal that was
ignored when the command began (``nohup``, a background job of a shell) stays ignored.

Invariants: what to do follows from the phase alone; the handler takes no lock and does no I/O.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopNow(BaseException):
    """Raised in the main thread by a signal that means: stop at once.

    Not a ``KeyboardInterrupt``: frameworks for command lines turn that into an exit code of
    their own.
    """


class KillNow(StopNow):
    """The same, after an earlier signal: stop by SIGKILL."""


class _Phase(enum.Enum):
    ABRUPT = enum.auto()  # nothing that would be worth finishing
    GENTLE = enum.auto()  # the next signal asks to finish
    ENDING = enum.auto()  # the next signal kills
    KILLING = enum.auto()  # it takes moments; further signals change nothing


class StopSignals:
    """Context manager that turns SIGINT and SIGTERM into a request, or :class:`StopNow`.

    Attributes:
        exit_code: 128 + number of the first signal, ``None`` if there was none.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._phase = _Phase.ABRUPT
        self._ask_to_finish: Callable[[], None] = lambda: None
        self._old_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def be_gentle(self, ask_to_finish: Callable[[], None]) -> None:
        """Let the next signal call ``ask_to_finish``, which must only leave a note."""
        self._ask_to_finish = ask_to_finish
        self._phase = _Phase.GENTLE

    def be_abrupt(self) -> None:
        """Let the next signal raise :class:`StopNow`: all that mattered is done."""
        self._phase = _Phase.ABRUPT if self.exit_code is None else _Phase.ENDING

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.exit_code is None:
            self.exit_code = 128 + number
        match self._phase:
            case _Phase.GENTLE:
                self._phase = _Phase.ENDING
                self._ask_to_finish()
            case _Phase.ABRUPT:
                self._phase = _Phase.ENDING
                raise StopNow
            case _Phase.ENDING:
                self._phase = _Phase.KILLING
                raise KillNow
            case _Phase.KILLING:
                pass
