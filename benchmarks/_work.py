"""The callables that pools are given. A module of its own, so that every pool can import it."""

from __future__ import annotations

import signal
import threading

MILLISECOND = 0.001


def nothing(item: str) -> str:
    """Give the item back."""
    return item


def wait_1_ms(item: str) -> str:
    """Give it back a millisecond later, taking none of the processor."""
    threading.Event().wait(MILLISECOND)
    return item


KILL = "kill"


def die_on_kill(item: str) -> str:
    """Give it back a millisecond later; one item ends the process instead."""
    if item == KILL:
        signal.raise_signal(signal.SIGKILL)
    return wait_1_ms(item)


def wait_as_told(item: str) -> str:
    """Give it back after as many milliseconds as it begins with."""
    threading.Event().wait(int(item.split(maxsplit=1)[0]) / 1000)
    return item
