"""What a gateway costs, as multiples of a bare relay over the same transport, all in one run.

Measures the round trip of an echo request of 100 bytes, one at a time:

- F2 ipc, F2 tcp: through a bare ROUTER relay in a process of its own (two hops each way);
- ipc, tcp: through ``soloist serve`` to a worker, against these;
- shared: in a shared conversation, relayed by the gateway on ipc;
- crowded: as ipc, with 1,000 idle peers connected that do nothing but their heartbeats; what they
  cost in memory is printed, too. It is compared with alone, the gateway without them at the same
  time: their heartbeats take this machine's time from everybody, so they come when the others are
  done.

See ``_floors`` for how they are compared. Every answer is checked.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import psutil
import zmq

from benchmarks._floors import PROMPT, floors, round_trips
from benchmarks._machine import MIB
from benchmarks._served import served
from benchmarks._suite import Effort, Figure, Outcome, check, ratio

PEERS = 1_000


class Caller:
    """A peer that knows nothing but ZeroMQ and msgpack."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.connect(endpoint)
        assert self.say({"type": "HELLO", "versions": [1]})["type"] == "WELCOME"
        self._more: dict[str, Any] = {}

    def say(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Say something, and hear the answer."""
        self.socket.send(msgpack.packb({"v": 1, **fields}))
        answer: dict[str, Any] = msgpack.unpackb(self.socket.recv())
        return answer

    def enter(self) -> None:
        """Ask in a shared conversation from here on."""
        opened = self.say({"type": "OPEN", "id": os.urandom(16), "name": "shared"})
        self._more = {"session": opened["session"]}

    def ask(self) -> None:
        """One round trip."""
        query = {"type": "QUERY", "id": os.urandom(16), "prompt": PROMPT, **self._more}
        answer = self.say(query)
        check(answer.get("text") == PROMPT, f"not the answer: {answer}")


def crowd(endpoint: str, count: int, told: Connection) -> None:
    """Connect the idle peers; keep them alive until told to end."""
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, count + 10)
    peers = [Caller(context, endpoint) for _ in range(count)]
    told.send("connected")
    while not told.poll(1.0):
        for peer in peers:
            peer.socket.send(msgpack.packb({"v": 1, "type": "PING"}))
        for peer in peers:
            peer.socket.recv()
    context.destroy(0)


@contextlib.contextmanager
def crowded(endpoint: str, pid: int, count: int) -> Iterator[float]:
    """Have the idle peers connected; gives the MiB that they cost."""
    memory: Callable[[], int] = lambda: psutil.Process(pid).memory_info().rss  # noqa: E731
    before = memory()
    here, there = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=crowd, args=(endpoint, count, there), daemon=True)
    process.start()
    here.recv()
    yield (memory() - before) / MIB
    here.send("end")
    process.join()


def free_port() -> int:
    """A port of loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(effort: Effort) -> Outcome:
    """Measure them all."""
    peers = effort.of(PEERS, 50)
    with contextlib.ExitStack() as ends:
        enter = ends.enter_context
        folder = Path(enter(tempfile.TemporaryDirectory()))
        for name in ("a", "b"):
            (folder / name).mkdir()
        context = zmq.Context()
        ends.callback(context.destroy, 0)
        _, ipc_floor = enter(floors(str(folder / "a")))
        _, tcp_floor = enter(floors(str(folder / "b"), "tcp://127.0.0.1:" + str(free_port())))
        _, (ipc, tcp) = enter(served(folder / "quiet", peers=PEERS + 10))
        pid, (full, _) = enter(served(folder / "full", peers=PEERS + 10))
        callers = {name: Caller(context, at) for name, at in
                   {"ipc": ipc, "tcp": tcp, "shared": ipc, "crowded": full}.items()}  # fmt: skip
        callers["shared"].enter()
        rounds, count = effort.of(15, 2), effort.of(300, 50)
        contestants = {
            "F2 ipc": ipc_floor, "ipc": callers["ipc"].ask, "shared": callers["shared"].ask,
            "F2 tcp": tcp_floor, "tcp": callers["tcp"].ask,
        }  # fmt: skip
        taken = round_trips(contestants, rounds=rounds, count=count)
        mib = enter(crowded(full, pid, peers))
        contestants = {"alone": callers["ipc"].ask, "crowded": callers["crowded"].ask}
        taken |= round_trips(contestants, rounds=rounds, count=count)
    ratios = [
        ratio(taken["ipc"], taken["F2 ipc"], at_most=2.0),
        ratio(taken["shared"], taken["F2 ipc"], at_most=2.0),
        ratio(taken["tcp"], taken["F2 tcp"], at_most=2.0),
        ratio(taken["crowded"], taken["alone"], at_most=1.3),
    ]
    memory = Figure("the idle peers", "MiB", [mib], {"peers": peers})
    return Outcome([*taken.values(), memory], ratios)
