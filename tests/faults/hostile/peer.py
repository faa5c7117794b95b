"""A well-behaved peer, in a process of its own: it asks at a steady rate and takes the time.

``python -m tests.faults.hostile.peer ENDPOINT PER_SECOND``. A line on standard input makes it print
what it has seen since the last one, as JSON; the end of the input ends it. An answer's time counts
from the moment at which its question was due, so a delay is not hidden by asking later.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import msgpack
import zmq

LIMIT_S = 30.0
"""A question without an answer for so long has failed."""


class Asker:
    """One conversation; every answer must be its own, in order, with no turn left out.

    Args:
        socket: connected to the gateway.
        per_second: questions.
    """

    def __init__(self, socket: zmq.Socket[bytes], per_second: float) -> None:
        self._socket = socket
        self._pause_s = 1 / per_second
        self._due_at: dict[bytes, float] = {}
        self._count = self._turns = 0
        self._times_s: list[float] = []
        self._failures: list[str] = []
        self._say("HELLO", versions=[1], secret=os.urandom(16))
        self._hear("WELCOME")
        self._say("OPEN", id=os.urandom(16))
        self._session = self._hear("OPENED")["session"]
        self._next_at = time.monotonic()

    def wait_ms(self) -> int:
        """How long there is nothing to ask."""
        return max(0, int((self._next_at - time.monotonic()) * 1000))

    def ask(self) -> None:
        """Ask what is due."""
        while self._next_at <= time.monotonic():
            query_id = os.urandom(16)
            self._due_at[query_id] = self._next_at
            self._next_at += self._pause_s
            self._count += 1
            prompt = f"question {self._count}"
            self._say("QUERY", id=query_id, prompt=prompt, session=self._session)
        oldest = next(iter(self._due_at.items()), None)
        if oldest and time.monotonic() - oldest[1] > LIMIT_S:
            del self._due_at[oldest[0]]
            self._failures.append(f"no answer in {LIMIT_S} s")

    def hear(self) -> None:
        """Take in what has come."""
        while self._socket.poll(0):
            reply = msgpack.unpackb(self._socket.recv())
            if reply["type"] != "ACCEPTED":
                self._judge(reply)

    def report(self) -> dict[str, Any]:
        """Give what was seen since the last report."""
        report = {"times_s": self._times_s, "failures": self._failures}
        self._times_s, self._failures = [], []
        return report

    def _judge(self, reply: dict[str, Any]) -> None:
        due_at = self._due_at.pop(reply.get("id"), None)
        self._turns += 1
        right = (self._turns, f"question {self._turns}")
        if due_at is None or (reply.get("num_turns"), reply.get("text")) != right:
            self._failures.append(f"{right} was due, not {reply}"[:300])
        else:
            self._times_s.append(time.monotonic() - due_at)

    def _say(self, kind: str, **fields: Any) -> None:
        self._socket.send(msgpack.packb({"v": 1, "type": kind, **fields}))

    def _hear(self, kind: str) -> dict[str, Any]:
        assert self._socket.poll(LIMIT_S * 1000), f"no {kind}"
        reply = msgpack.unpackb(self._socket.recv())
        assert reply["type"] == kind, reply
        return reply


def main(endpoint: str, per_second: str) -> None:
    """Ask until the input ends."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        asker = Asker(socket, float(per_second))
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(sys.stdin.fileno(), zmq.POLLIN)
        print("ready", flush=True)
        while True:
            ready = dict(poller.poll(asker.wait_ms()))
            asker.hear()
            asker.ask()
            if sys.stdin.fileno() in ready:
                if not os.read(sys.stdin.fileno(), 100):
                    return
                print(json.dumps(asker.report()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
