"""The consumer's side of ``map``: pulls the input, hands it over, gives finished requests back.

Works in the consumer's thread, so that the I/O thread never runs the input's code.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable

from soloist.protocol.codec import Prompt
from soloist.protocol.errors import RequestTimeout, SoloistError
from soloist.protocol.messages import Answer
from soloist.supervisor import limits
from soloist.supervisor.intake import Intake
from soloist.supervisor.request import Request
from soloist.supervisor.results import Result
from soloist.supervisor.window import Window

_PULL_S = 0.001
"""How long input is pulled while a finished result waits to be yielded."""


class Flow:
    """One ``map``, ``imap`` or ``imap_unordered``.

    Args:
        intake: where requests go.
        window: bounds what is in flight.
        timeout_s: seconds per request from its entry into the window.
        total_timeout_s: seconds for the whole.

    Raises:
        InvalidOptions: a time is no number of seconds.
    """

    def __init__(
        self,
        intake: Intake,
        window: Window,
        timeout_s: float | None,
        total_timeout_s: float | None,
    ) -> None:
        limits.check_seconds(timeout_s=timeout_s, total_timeout_s=total_timeout_s)
        self.window = window
        self.deadline = None if total_timeout_s is None else time.monotonic() + total_timeout_s
        self._total_timeout_s = total_timeout_s
        self._timeout_s = timeout_s
        self._intake = intake
        self._count = 0

    def run(self, prompts: Iterable[Prompt]) -> Generator[Request]:
        """Yield finished requests; at the end, however it comes, cancel the rest.

        Raises:
            RequestTimeout: the whole took too long.
            SoloistError: the first error, if the window is fail-fast.
        """
        source = iter(prompts)
        is_exhausted = False
        try:
            while True:
                if not (is_exhausted or self.is_late()) and self.window.has_room():
                    is_exhausted = self.fill(source)
                if is_exhausted and not len(self.window):
                    return
                if self.is_late() or not self.window.wait(self.deadline):
                    raise self.timeout()
                yield self.take()
        finally:
            self.cancel_rest()

    def put(self, prompt: Prompt) -> None:
        """Take one prompt in and hand it over; one that cannot be sent fails in its place."""
        index = self._count
        self._count += 1
        try:
            request = self._intake.request(prompt, self.window, index, self._timeout_s)
        except SoloistError as error:
            request = Request(prompt, b"", self.window, index=index)
            self.window.put(request)
            request.settle(error)
            return
        self.window.put(request)
        try:
            self._intake.submit(request)
        except SoloistError as error:  # closed: it is not among the rest that is cancelled
            request.settle(error)
            raise

    def fill(self, source: Iterable[Prompt], *, is_brief: bool = False) -> bool:
        """Fill the window, which has room, from ``source``; was that the end of it?

        Args:
            source: an iterator.
            is_brief: not for long, whatever happens; else only if a finished result waits.
        """
        until = time.monotonic() + _PULL_S
        for prompt in source:
            self.put(prompt)
            if not self.window.has_room() or self.is_late():
                return False
            if (is_brief or self.window.is_ready()) and time.monotonic() > until:
                return False
        return True

    def take(self) -> Request:
        """Take a finished request out; the window is ready or has failed.

        Raises:
            SoloistError: the first error, if the window is fail-fast.
        """
        if self.window.has_failed() and self.window.first_error is not None:
            raise error_of(self.window.first_error)
        return self.window.take()

    def is_late(self) -> bool:
        """Whether the whole has taken too long."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def timeout(self) -> RequestTimeout:
        """What the caller gets then."""
        return RequestTimeout(f"the call took longer than {self._total_timeout_s:g} s")

    def cancel_rest(self) -> None:
        """Cancel what has no outcome."""
        self._intake.engine.cancel(self.window.unsettled())


def result_or_error(request: Request) -> Result | SoloistError:
    """What a settled request gave."""
    outcome = request.outcome
    return Result.of(request, outcome) if isinstance(outcome, Answer) else error_of(request)


def error_of(request: Request) -> SoloistError:
    """The error of a request that failed."""
    assert isinstance(request.outcome, SoloistError)
    return request.outcome
