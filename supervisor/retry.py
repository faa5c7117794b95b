"""Whether and when a request that failed is tried again.

Owns the policy and the requests that wait for their next attempt. Pure: the clock comes in with
every call, chance through ``jitter``. Only requests of the pool that are not streamed are tried
again: a session's would run in a conversation that has changed, a streamed one's reader has seen
the beginning of the first answer.

Invariants: an error that may have run is retried only if the policy says ``may_have_run``; no
wait goes past the request's deadline or the policy's ``total_s``; once an attempt that was
retried may have run, no error of that request says ``started=False`` any more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from soloist.protocol.errors import InvalidOptions, RateLimited, SoloistError
from soloist.protocol.transitions import RequestEvent, RequestState
from soloist.supervisor.deadlines import Deadlines
from soloist.supervisor.request import Request

_MOST_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class Retry:
    """Which requests of the pool run again after an error, how often and when.

    The wait doubles with each attempt and is shortened by up to half of it at random. What the
    caller gets in the end is the last attempt's answer or error; ``Result.attempts`` counts.

    Most errors of a client leave open whether the prompt has run in part (``started=None``), and
    running it again may do twice what it does. Say ``may_have_run=True`` if that is harmless.

    Attributes:
        attempts: most times that a request runs, the first included.
        total_s: seconds after the beginning of the first attempt in which another may become
            due; ``None`` for no limit. A request's own deadline holds in any case.
        on: classes of errors to retry; ``None`` for every error that is ``retryable``.
        first_delay_s: wait after the first attempt.
        max_delay_s: longest wait, unless a service asks for more (``retry_after_s``).
        may_have_run: whether a request is retried that may have run, as when its worker died.

    Raises:
        InvalidOptions: a value cannot be used; the caller's.
    """

    attempts: int = 3
    total_s: float | None = 60.0
    on: tuple[type[SoloistError], ...] | None = None
    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    may_have_run: bool = False

    def __post_init__(self) -> None:
        attempts: object = self.attempts
        if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
            raise InvalidOptions(f"attempts must be a whole number of at least 1, not {attempts!r}")
        for name in ("first_delay_s", "max_delay_s"):
            _check_seconds(name, getattr(self, name))
        if self.total_s is not None:
            _check_seconds("total_s", self.total_s)
        if self.on is not None and not _are_errors(self.on):
            raise InvalidOptions(f"on must be a tuple of classes of SoloistError, not {self.on!r}")
        if not isinstance(self.may_have_run, bool):
            raise InvalidOptions(f"may_have_run must be True or False, not {self.may_have_run!r}")

    def delay_s(
        self, error: SoloistError, attempts_so_far: int, elapsed_s: float, jitter: float
    ) -> float | None:
        """Seconds to wait before the next attempt; ``None`` if ``error`` is final.

        Args:
            error: what the last attempt ended with.
            attempts_so_far: how often the request has run, at least 1.
            elapsed_s: seconds since its first attempt began.
            jitter: chance, in [0, 1].
        """
        if attempts_so_far >= self.attempts or not self._is_for(error):
            return None
        doublings = min(attempts_so_far - 1, _MOST_DOUBLINGS)
        delay_s = min(self.first_delay_s * 2.0**doublings, self.max_delay_s)
        delay_s *= 0.5 + 0.5 * jitter
        if isinstance(error, RateLimited) and error.retry_after_s is not None:
            delay_s = max(delay_s, error.retry_after_s)
        if self.total_s is not None and elapsed_s + delay_s > self.total_s:
            return None
        return delay_s

    def _is_for(self, error: SoloistError) -> bool:
        if error.started is not False and not self.may_have_run:
            return False
        return error.retryable if self.on is None else isinstance(error, self.on)


class Retries:
    """The requests that wait for their next attempt.

    Args:
        policy: ``None`` for no second attempt of anything.
        jitter: gives a factor in [0, 1].

    Attributes:
        count: requests that wait here.
        next_at: when ``due`` wants to be called; infinite for never.
    """

    def __init__(self, policy: Retry | None, jitter: Callable[[], float] = random.random) -> None:
        self.count = 0
        self.next_at = math.inf
        self._policy = policy
        self._jitter = jitter
        self._delayed = Deadlines()

    def postpone(self, request: Request, error: SoloistError, began: float, now: float) -> bool:
        """Keep a leased request for another attempt; ``False`` if the error is final.

        Args:
            request: it has just failed.
            error: how.
            began: when the attempt began.
            now: the clock.
        """
        if self._policy is None or request.is_streamed:
            return False
        if request.failure is None:
            request.began = began
        elapsed_s = now - request.began
        delay_s = self._policy.delay_s(error, request.attempts, elapsed_s, self._jitter())
        if delay_s is None or (request.deadline is not None and now + delay_s >= request.deadline):
            return False
        request.advance(RequestEvent.RETRY)
        request.failure = error
        request.may_have_run |= error.started is not False
        self.count += 1
        self._delayed.push(now + delay_s, request)
        self._delayed.sweep(self.count)
        self.next_at = self._delayed.next()
        return True

    def due(self, now: float) -> list[Request]:
        """Give those back whose time has come."""
        due: list[Request] = []
        while (request := self._delayed.due(now)) is not None:
            self._delayed.pop()
            request.advance(RequestEvent.DUE)
            due.append(request)
        self.count -= len(due)
        self.next_at = self._delayed.next()
        return due

    def waiting(self) -> list[Request]:
        """All that wait here, in the order in which the pool took them in."""
        return sorted(self._delayed.requests(), key=lambda request: request.order)

    def ending(self, request: Request, error: SoloistError) -> SoloistError:
        """What its caller gets instead of another attempt; to be called just before settling."""
        self.count -= request.state is RequestState.DELAYED
        return with_history(request, error)


def with_history(request: Request, error: SoloistError) -> SoloistError:
    """Make an error true of the request as a whole, earlier attempts included."""
    if request.failure is not None:
        if request.may_have_run:
            error.started = None
        if error.__cause__ is None:
            error.__cause__ = request.failure
    return error


def _check_seconds(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Not-a-number is not below anything.
    if not is_number or not 0 <= value < math.inf:  # type: ignore[operator]
        raise InvalidOptions(f"{name} must be seconds, at least 0, not {value!r}")


def _are_errors(classes: object) -> bool:
    return (
        isinstance(classes, tuple)
        and bool(classes)
        and all(isinstance(cls, type) and issubclass(cls, SoloistError) for cls in classes)
    )
