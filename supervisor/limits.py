"""Checks of numbers that callers pass, and the descriptors that a pool will need."""

from __future__ import annotations

import math
import resource

from soloist.protocol.errors import InvalidOptions, TooManyWorkers

_PER_WORKER = 6  # pidfd, status, both ends of the grants, ledger, its socket connection
_BASE = 64


def check_counts(**values: int) -> None:
    """Refuse what is not a whole number of at least 1.

    Raises:
        InvalidOptions: naming the argument.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidOptions(f"{name} must be a whole number of at least 1, not {value!r}")


def check_seconds(**values: float | None) -> None:
    """Refuse what is neither ``None`` nor a number of seconds of at least 0.

    Raises:
        InvalidOptions: naming the argument.
    """
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise InvalidOptions(f"{name} must be seconds, at least 0, or None, not {value!r}")
        if math.isinf(value):
            raise InvalidOptions(f"{name} must be finite; use None for no limit")


def reserve_descriptors(size: int) -> None:
    """Raise this process's soft limit of descriptors as far as ``size`` workers need it.

    Raises:
        TooManyWorkers: the hard limit is lower than that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = soft if size * _PER_WORKER + _BASE <= soft // 2 else size * _PER_WORKER + soft
    if needed <= soft or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and size * _PER_WORKER + _BASE > hard:
        raise TooManyWorkers(
            f"{size:,} workers need {size * _PER_WORKER + _BASE:,} descriptors, this process may "
            f"have {hard:,}; lower size or raise the hard limit (ulimit -Hn)",
            started=False,
        )
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
