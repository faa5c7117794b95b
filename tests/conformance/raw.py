"""The scenarios ``shared`` and ``stream`` with nothing but pyzmq and msgpack.

``python tests/conformance/raw.py ENDPOINT``; see SPEC.md, chapter 3.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import msgpack
import zmq

Reply = dict[str, Any]
_LIMIT_MS = 30_000


class Connection:
    """One connection to a gateway."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(endpoint)
        self._heartbeat_ms = _LIMIT_MS
        self._say(type="HELLO", versions=[1], secret=os.urandom(32))
        self._heartbeat_ms = next(self._hear("WELCOME"))["heartbeat_ms"]

    def ask(self, kind: str, **fields: Any) -> Iterator[Reply]:
        """Say something; give its messages and its outcome as they come."""
        request_id = os.urandom(16)
        self._say(type=kind, id=request_id, **fields)
        for reply in self._hear("MESSAGE", "RESULT", "ERROR", "OPENED"):
            if reply["id"] != request_id:
                raise RuntimeError(f"unasked: {reply}")
            yield reply
            if reply["type"] != "MESSAGE":
                return
            self._say(type="CREDIT", id=request_id, bytes=reply["bytes"])

    def _say(self, **fields: Any) -> None:
        self._socket.send(msgpack.packb({"v": 1, **fields}))

    def _hear(self, *kinds: str) -> Iterator[Reply]:
        waited_ms = 0
        while True:
            if not self._socket.poll(self._heartbeat_ms):
                waited_ms += self._heartbeat_ms
                if waited_ms >= _LIMIT_MS:
                    raise TimeoutError("the gateway is gone")
                self._say(type="PING")
                continue
            waited_ms = 0
            payload = self._socket.recv()
            reply = msgpack.unpackb(payload)
            if reply["type"] in kinds:
                yield {"bytes": len(payload), **reply}


def shared(connection: Connection, told: Reply) -> None:
    """Ask one after another."""
    opened = _open(connection, told)
    ids = {"session": opened["session"].hex(), "ticket": opened["ticket"].hex()}
    _show(opened=ids | {key: opened[key] for key in ("endpoint", "incarnation")})
    for index in range(told["count"]):
        *messages, outcome = connection.ask(
            "QUERY",
            prompt=f"{told['label']}-{index}",
            session=opened["session"],
            stream=told["stream"],
        )
        more = {}
        if outcome["type"] == "RESULT":
            more = {key: outcome[key] for key in ("sequence", "num_turns")}
            more["pieces"] = len(messages)
        _show(index=index, **_outcome(outcome), **more)


def stream(connection: Connection, told: Reply) -> None:
    """Show a streamed answer as it comes."""
    session = _open(connection, told)["session"]
    for reply in connection.ask("QUERY", prompt=told["prompt"], session=session, stream=True):
        if reply["type"] == "MESSAGE":
            _show(seq=reply["seq"], type=reply["message"]["type"])
        else:
            _show(**_outcome(reply))


def _open(connection: Connection, told: Reply) -> Reply:
    [opened] = connection.ask("OPEN", name=told["name"], client=told.get("client"))
    if opened["type"] != "OPENED":
        raise RuntimeError(f"not opened: {opened}")
    return opened


def _outcome(reply: Reply) -> Reply:
    if reply["type"] == "RESULT":
        return {"text": reply["text"]}
    return {"error": {key: reply[key] for key in ("code", "retryable", "started")}}


def _show(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    """Play what standard input says."""
    told = json.load(sys.stdin)
    with zmq.Context() as context:
        try:
            play = {"shared": shared, "stream": stream}[told["scenario"]]
            play(Connection(context, sys.argv[1]), told)
        finally:
            context.destroy(linger=0)


if __name__ == "__main__":
    main()
