"""Clients that fail in every way that the executor matrix asks for.

A module of its own: workers import it, so it imports little. One callable, ``act``, in the three
shapes that a client may have; a prompt names what it does, and any other prompt is its own answer.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import os
import signal
import sys
import threading
from pathlib import Path

from soloist.protocol.content import AssistantMessage, ResultMessage, TextBlock


def _endless_recursion():
    return _endless_recursion()


DEATHS = {
    "os._exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
}
"""How a process ends that cannot say why, with :data:`EXITCODES`."""
EXITCODES = {
    "os._exit": 7,
    "segfault": -signal.SIGSEGV,
    "sigkill": -signal.SIGKILL,
    "abort": -signal.SIGABRT,
}


def _raise(error: BaseException):
    raise error


ERRORS = {
    "exception": lambda: _raise(ValueError("as asked")),
    "sys.exit": lambda: sys.exit(3),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "CancelledError": lambda: _raise(asyncio.CancelledError()),
    "MemoryError": lambda: bytearray(1 << 62),
    "RecursionError": _endless_recursion,
    "group": lambda: _raise(BaseExceptionGroup("several", [SystemExit(1), ValueError("x")])),
}
"""What can be raised."""
FAULTS = {**ERRORS, **DEATHS}


def _hostile_exception(method: str, fault: str) -> BaseException:
    """An exception one of whose own methods does that."""

    def hostile(*_):
        return FAULTS[fault]()

    value = property(hostile) if method == "__notes__" else hostile
    return type("Hostile", (Exception,), {method: value})("as asked")


def _linked_in_a_ring() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def _leave_a_thread() -> str:
    threading.Thread(target=threading.Event().wait).start()
    return "thread"


def _leave_a_daemon() -> str:
    """A grandchild in a session of its own that holds every descriptor of this process open."""
    readable, writable = os.pipe()
    if not (child := os.fork()):
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(writable, str(os.getpid()).encode())
        while True:
            signal.pause()
    os.waitpid(child, 0)
    pid = os.read(readable, 100).decode()
    os.close(readable)
    os.close(writable)
    return pid


def _return(kind: str) -> object:
    class Text(str):
        __slots__ = ()

        def encode(self, *_):
            os._exit(9)

    values = {"None": None, "bytes": b"x", "surrogate": "\ud800", "subclass": Text("x")}
    return values[kind]


def act(prompt: str) -> object:
    """Do what the prompt says.

    Besides the names in ``FAULTS``: ``return KIND``, ``except METHOD FAULT``, ``ring``,
    ``thread``, ``daemon`` (answers its pid), ``daemon-death`` (and then dies).
    """
    match prompt.split():
        case ["fault", name]:
            FAULTS[name]()
        case ["return", kind]:
            return _return(kind)
        case ["except", method, fault]:
            raise _hostile_exception(method, fault)
        case ["ring"]:
            raise _linked_in_a_ring()
        case ["thread"]:
            return _leave_a_thread()
        case ["daemon"]:
            return _leave_a_daemon()
        case ["daemon-death", path]:
            Path(path).write_text(_leave_a_daemon())
            os._exit(7)
        case ["endless"]:
            while True:
                pass
    return prompt


def sync_client(prompt: str) -> object:
    """``act``, sync."""
    return act(prompt)


async def async_client(prompt: str) -> object:
    """``act``, async; its ``endless`` lets the event loop run."""
    if prompt == "endless":
        await asyncio.Event().wait()
    return act(prompt)


class ClassClient:
    """``act`` in a client; ``at PHASE FAULT`` says when.

    ``at interrupt FAULT PATH`` makes the file when it can be interrupted.

    Phases: ``query``, ``first`` and ``middle`` of the stream, ``encode``, ``interrupt``,
    ``reset``, ``disconnect``. It has a ``reset``, so that ``disconnect`` comes where that fails.
    """

    def __init__(self):
        self._prompt = ""
        self._interrupted = asyncio.Event()

    def _at(self, phase: str) -> None:
        match self._prompt.split():
            case ["at", wanted, fault, *_] if wanted == phase:
                FAULTS[fault]()

    async def connect(self):
        pass

    async def query(self, prompt):
        self._prompt = prompt
        self._interrupted.clear()
        self._at("query")

    async def receive_response(self):
        self._at("first")
        while self._prompt == "endless":  # and nothing else in the loop ever runs
            yield _message("x")
        if self._prompt.startswith("at interrupt"):
            _touch(self._prompt.split()[-1])
            await self._interrupted.wait()
        text = act(self._prompt)
        yield _message("a part")
        self._at("middle")
        if self._prompt.startswith("at encode"):
            yield _hostile_message(lambda: self._at("encode"))
        yield ResultMessage(
            subtype="success",
            duration_ms=0,
            duration_api_ms=0,
            is_error=self._interrupted.is_set(),
            num_turns=1,
            session_id="",
            result=text,
        )

    async def interrupt(self):
        self._interrupted.set()
        self._at("interrupt")

    async def reset(self):
        self._at("reset")
        if self._prompt.startswith("at disconnect"):
            raise RuntimeError("take another")

    async def disconnect(self):
        self._at("disconnect")


def _hostile_message(fault):
    """A message that does something when it is read."""

    @dataclasses.dataclass
    class Hostile:
        value: str = ""

        def __getattribute__(self, name):
            if name == "value":
                fault()
            return super().__getattribute__(name)

    return Hostile()


def _touch(path: str) -> None:
    Path(path).touch()


def _message(text: str) -> AssistantMessage:
    return AssistantMessage(content=[TextBlock(text)], model="")


CLIENTS = {"sync": sync_client, "async": async_client, "class": ClassClient}
