"""The echo client with the protocol's steps in it, and the log of what it really ran.

A prompt is ``UID WORD REST``: the request's id, what the turn does, anything. ``long`` lasts until
it is interrupted, ``fail`` raises an error of the client's own, ``opaque`` answers with what cannot
be sent; everything is echoed otherwise. Workers import this module, so it imports little.

Invariant of the log: every line is one ``O_APPEND`` write, made before what follows it, so that it
survives a SIGKILL and the file's order is the order in which things happened:

=========  ================================================================================
``start``  the client has the prompt
``saved``  the session's snapshot after that turn is in the worker's ledger
``finish`` the turn is over; its outcome goes into the ledger with the next instruction
``safe``   its outcome is in the ledger
=========  ================================================================================
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from soloist.protocol import codec
from soloist.protocol.content import Map, Message, ResultMessage, StreamEvent
from soloist.protocol.messages import Answer, Failure, Snapshot
from soloist.worker.clients.echo import EchoClient
from soloist.worker.ledger import Ledger
from tests.faults.steps import SIGNALS, Action, Orders, Step, delay

LOG_NAME = "log"


class ExecutionLog:
    """Writes ``WORD UID PID TURN NANOSECONDS``; the time is the machine's one monotonic clock.

    Args:
        folder: where the file is.
    """

    def __init__(self, folder: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(f"{folder}/{LOG_NAME}", flags, 0o600)

    def write(self, word: str, uid: str, turn: int) -> None:
        line = f"{word} {uid} {os.getpid()} {turn} {time.monotonic_ns()}\n"
        os.write(self._file, line.encode())


class Steps:
    """This process's steps: which request it is at, and whether a fault is ordered there.

    Args:
        folder: of the orders and of the log.
    """

    def __init__(self, folder: str) -> None:
        self.uid = ""
        self._turn = 0
        self._is_open = False
        self._orders = Orders(folder)
        self._log = ExecutionLog(folder)

    def begin(self, uid: str, turn: int) -> None:
        """The client has taken a prompt."""
        self.uid, self._turn, self._is_open = uid, turn, True
        self._log.write("start", uid, turn)

    def reach(self, step: Step) -> None:
        """Pass a step, or not."""
        action = self._orders.take(step, self.uid)
        if action is Action.DELAY:
            delay()
        elif action is not None:
            os.kill(os.getpid(), SIGNALS[action])

    def tap_ledger(self) -> None:
        """Pass by here whenever this process writes to its ledger."""
        append = Ledger.append

        def tapped(ledger: Ledger, lease: int, payload: bytes, *, acked: int) -> None:
            message = codec.decode(payload)
            is_outcome = isinstance(message, Answer | Failure) and self._is_open
            if is_outcome:
                self.reach(Step.OUTCOME)
                self._log.write("finish", self.uid, self._turn)
            append(ledger, lease, payload, acked=acked)
            if is_outcome:
                self._is_open = False
                self._log.write("safe", self.uid, self._turn)
                self.reach(Step.LEDGER)
            elif isinstance(message, Snapshot) and self._is_open:
                self._log.write("saved", self.uid, self._turn)

        Ledger.append = tapped  # type: ignore[method-assign]


_steps: Steps | None = None


def steps_of(folder: str) -> Steps:
    """The steps of this worker, however many clients it has one after the other."""
    global _steps
    if _steps is None:
        _steps = Steps(folder)
        _steps.tap_ledger()
    return _steps


class FaultyEcho(EchoClient):
    """An echo that passes every step that a client can see.

    Args:
        folder: of the orders and of the log.
        options: the echo's.
    """

    preload = (__name__,)

    def __init__(self, *, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self._steps = steps_of(folder)

    async def connect(self) -> None:
        self._steps.reach(Step.CONNECT)
        await super().connect()

    def restore(self, value: object) -> None:
        self._steps.reach(Step.RESTORE)
        super().restore(value)

    def snapshot(self) -> Map | None:
        self._steps.reach(Step.SNAPSHOT)
        return super().snapshot()

    async def query(self, prompt: Any) -> None:
        await super().query(prompt)
        self._steps.begin(self._prompt.split()[0], self._conversation.num_turns)
        self._steps.reach(Step.CLAIM)

    async def receive_response(self) -> AsyncIterator[Message]:
        turn = super().receive_response()
        async for message in turn:
            if isinstance(message, ResultMessage):
                await self._before_result()
            yield await self._ended(turn) if self._is_to_wait(message) else message
            if isinstance(message, StreamEvent):
                await asyncio.sleep(0)  # what was yielded is on its way now
                self._steps.reach(Step.STREAM)

    async def interrupt(self) -> None:
        self._steps.reach(Step.INTERRUPT)
        await super().interrupt()

    async def reset(self) -> None:
        self._steps.reach(Step.RESET)
        await super().reset()

    async def disconnect(self) -> None:
        self._steps.reach(Step.DISCONNECT)
        await super().disconnect()

    @property
    def _word(self) -> str:
        return self._prompt.split()[1]

    async def _before_result(self) -> None:
        if self._word == "fail":
            raise LookupError(f"told to fail on {self._prompt!r:.40}")
        self._steps.reach(Step.LAST_MESSAGE)

    def _is_to_wait(self, message: Message) -> bool:
        return self._word == "long" and not isinstance(message, StreamEvent)

    async def _ended(self, turn: Any) -> Message:
        """A long turn's end: only an interrupt brings it."""
        await self._interrupted.wait()
        await turn.aclose()
        self._steps.reach(Step.DRAIN)
        return self._result("", subtype="error_during_execution", is_error=True)

    def _result(self, text: str, **fields: Any) -> ResultMessage:
        result = super()._result(text, **fields)
        return replace(result, usage={"": object()}) if self._word == "opaque" else result
