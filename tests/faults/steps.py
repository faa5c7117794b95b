"""The named steps of the protocol at which a fault can strike, and the orders for it.

An order for a step in a worker is a file, named after the step and the request: whoever removes
it has it, so that it is carried out exactly once, by exactly the process and at exactly the
moment that was meant. Workers import this module, so it imports little.
"""

from __future__ import annotations

import enum
import os
import signal
import threading
from pathlib import Path
from typing import NamedTuple

DELAY_S = 0.01


class Step(enum.Enum):
    """Where a fault can strike, in the order in which a worker passes."""

    SPAWN = "spawn"
    """Supervisor: the process was forked, the I/O thread does not know it yet."""
    CONNECT = "connect"
    """Worker: before READY."""
    RESTORE = "restore"
    """Worker: a replacement is about to continue its predecessor's conversation."""
    DISPATCH = "dispatch"
    """Supervisor: just after a Run message was sent."""
    CLAIM = "claim"
    """Worker: the prompt has reached the client."""
    STREAM = "stream"
    """Worker: some messages of the turn have been sent."""
    LAST_MESSAGE = "last-message"
    """Worker: all messages but the result have been yielded."""
    SNAPSHOT = "snapshot"
    """Worker of a session: the turn is over, its snapshot is being taken."""
    OUTCOME = "outcome"
    """Worker: the turn's outcome is about to be written to the ledger."""
    LEDGER = "ledger"
    """Worker: the outcome is in the ledger and has not been sent."""
    RECEIVED = "received"
    """Supervisor: the outcome has arrived and has not been handled."""
    INTERRUPT_SENT = "interrupt-sent"
    """Supervisor: just after an Interrupt message was sent."""
    INTERRUPT = "interrupt"
    """Worker: the interrupt has reached the client."""
    DRAIN = "drain"
    """Worker: the interrupted turn is about to end."""
    RESET = "reset"
    """Worker: the client is about to begin a new conversation."""
    RECYCLE = "recycle"
    """Supervisor: just after a worker of the pool was told to exit because of its age."""
    STOP_SENT = "stop-sent"
    """Supervisor: just after a Stop message was sent."""
    DISCONNECT = "disconnect"
    """Worker: the client is about to end its conversation."""
    VACANT = "vacant"
    """Supervisor: a process has said that its client is gone, and that has not been handled."""
    REUSE = "reuse"
    """Supervisor: just after a vacant process was told to hold another conversation's client."""
    HELPER = "helper"
    """The spawning helper is killed, and with it every worker; it strikes at a dispatch."""
    AGENT = "agent"
    """The agent's own program (the CLI) is killed in mid-turn, below a worker that lives."""


IN_SUPERVISOR = frozenset(
    {
        Step.SPAWN, Step.DISPATCH, Step.RECEIVED, Step.INTERRUPT_SENT, Step.RECYCLE,
        Step.STOP_SENT, Step.VACANT, Step.REUSE, Step.HELPER, Step.AGENT,
    }
)  # fmt: skip
"""Steps that :mod:`tests.faults.taps` sees; a worker's client sees the others."""
WITHOUT_REQUEST = frozenset({Step.CONNECT, Step.RESTORE, Step.DISCONNECT})
"""Steps in a worker that belong to no request: the first worker that comes by is struck."""


class Action(enum.Enum):
    """What happens at a step."""

    KILL = "kill"
    STOP = "stop"
    DELAY = "delay"


class Fault(NamedTuple):
    """One fault that is to happen once.

    ``uid`` names the request during which a step in a worker is struck. A step in the supervisor
    is struck for a worker of a session or of the pool (``is_session``), the ``skip``-th time after
    the first.
    """

    step: Step
    action: Action
    uid: str = ""
    is_session: bool = False
    skip: int = 0

    def __str__(self) -> str:
        where = self.uid or ("a session" if self.is_session else "the pool")
        return f"{self.action.value} at {self.step.value} in {where}"


class Orders:
    """The orders for steps in workers, one file each.

    Args:
        folder: where they lie; the same for those who give and those who carry out.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def give(self, fault: Fault) -> None:
        """Have a fault happen; what is in the folder is whole."""
        path = self._path(fault.step, fault.uid)
        fresh = path.with_suffix(".new")
        fresh.write_text(fault.action.value)
        fresh.replace(path)

    def withdraw(self, fault: Fault) -> bool:
        """Have it happen no more; whether it had not."""
        try:
            self._path(fault.step, fault.uid).unlink()
        except FileNotFoundError:
            return False
        return True

    def take(self, step: Step, uid: str) -> Action | None:
        """In a worker: whether something is to happen now."""
        path = f"{self._folder}/{_name(step, uid)}"  # no Path: this is done at every step
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        word = os.read(descriptor, 16).decode()
        os.close(descriptor)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return None  # another process was faster
        return Action(word)

    def _path(self, step: Step, uid: str) -> Path:
        return Path(self._folder, _name(step, uid))


def _name(step: Step, uid: str) -> str:
    return f"order-{step.value}@{'' if step in WITHOUT_REQUEST else uid}"


def delay() -> None:
    """Hold this thread up for a moment: that is the fault, not a wait for something."""
    threading.Event().wait(DELAY_S)


SIGNALS = {Action.KILL: signal.SIGKILL, Action.STOP: signal.SIGSTOP}
