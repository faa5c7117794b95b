"""Everything of this process that is open: ended with it, let go of in its forks."""

from __future__ import annotations

import atexit
import os
import time
import warnings
import weakref

from soloist.supervisor.engine import Engine
from soloist.supervisor.futures import Dispatcher

CALLBACKS_S = 5.0
"""How long ``close`` waits for callbacks of futures; the interpreter's exit waits for them, too."""
_EXIT_WAIT_S = 15.0

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()


def add(engine: Engine) -> None:
    """Take note of an engine that is about to start."""
    _engines.add(engine)


def add_dispatcher(dispatcher: Dispatcher) -> None:
    """Take note of who runs the callbacks of futures."""
    _dispatchers.add(dispatcher)


def forgotten(engine: Engine, dispatcher: Dispatcher, made_by: str) -> None:
    """A Supervisor was collected without ``close``: clean up without waiting for it."""
    was_closed = engine.is_closed.is_set()
    engine.close(0.0)
    dispatcher.close()
    if not was_closed:  # last, because a warning may be turned into an error
        warnings.warn(
            f"a Supervisor was not closed; use `with {made_by}` or call close()",
            ResourceWarning,
            stacklevel=2,
        )


@atexit.register
def _close_all() -> None:
    engines = [engine for engine in _engines if not engine.is_closed.is_set()]
    for engine in engines:
        engine.close(0.0)
    deadline = time.monotonic() + _EXIT_WAIT_S
    for engine in engines:
        engine.is_closed.wait(max(0.0, deadline - time.monotonic()))
    deadline = time.monotonic() + CALLBACKS_S
    for dispatcher in list(_dispatchers):
        dispatcher.join(max(0.0, deadline - time.monotonic()))


def _disown_all() -> None:
    for engine in list(_engines):
        if not engine.is_closed.is_set():
            engine.disown()
    _engines.clear()
    for dispatcher in list(_dispatchers):
        dispatcher.forget()


os.register_at_fork(after_in_child=_disown_all)
