"""Checks of numbers that callers pass, and the descriptors that a pool will need."""

from __future__ import annotations

import resource
import threading

from soloist.protocol.errors import InvalidOptions, TooManyWorkers

_PER_WORKER = 10
"""Pidfd, status, both ends of the grants and the lane, ledger, its socket connection, its two
outputs."""
_BASE = 64


def check_counts(least: int = 1, /, **values: object) -> None:
    """Refuse what is not a whole number of at least ``least``.

    Raises:
        InvalidOptions: naming the argument.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidOptions(
                f"{name} must be a whole number of at least {least}, not {value!r}"
            )


def check_optional_counts(least: int = 1, /, **values: object) -> None:
    """Refuse what is neither ``None`` nor a whole number of at least ``least``.

    Raises:
        InvalidOptions: naming the argument.
    """
    check_counts(least, **{name: value for name, value in values.items() if value is not None})


def check_text(**values: object) -> None:
    """Refuse what is not a text, or empty.

    Raises:
        InvalidOptions: naming the argument.
    """
    for name, value in values.items():
        if not isinstance(value, str) or not value:
            raise InvalidOptions(f"{name} must be a text, not {value!r}")


def check_seconds(**values: object) -> None:
    """Refuse what is neither ``None`` nor a number of seconds of at least 0.

    Raises:
        InvalidOptions: naming the argument.
    """
    check_limited_seconds(**{name: value for name, value in values.items() if value is not None})


def check_limited_seconds(**values: object) -> None:
    """Refuse what is not a number of seconds of at least 0; ``None``, no limit, included.

    Raises:
        InvalidOptions: naming the argument.
    """
    for name, value in values.items():
        # Not-a-number is not at least anything.
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise InvalidOptions(f"{name} must be seconds, at least 0, not {value!r}")
        if value > threading.TIMEOUT_MAX:
            raise InvalidOptions(f"{name} must be below {threading.TIMEOUT_MAX:.0e} s: {value!r}")


def check_positive_seconds(**values: object) -> None:
    """Refuse what is neither ``None`` nor a number of seconds above 0.

    Raises:
        InvalidOptions: naming the argument.
    """
    check_seconds(**values)
    for name, value in values.items():
        if value is not None and not value:
            raise InvalidOptions(f"{name} must be above 0 s, or None for no limit")


def reserve_descriptors(size: int, connections: int = 0) -> None:
    """Raise this process's soft limit of descriptors as far as it needs them.

    Args:
        size: workers.
        connections: of foreign peers.

    Raises:
        TooManyWorkers: the hard limit is lower than that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = size * _PER_WORKER + connections
    needed = soft if most + _BASE <= soft // 2 else most + soft
    if needed <= soft or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and most + _BASE > hard:
        peers = f" and {connections:,} connections" if connections else ""
        raise TooManyWorkers(
            f"{size:,} workers{peers} need {most + _BASE:,} descriptors, this process may "
            f"have {hard:,}; lower size or raise the hard limit (ulimit -Hn)",
            started=False,
        )
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
