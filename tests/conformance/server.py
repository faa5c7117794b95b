"""Plays ``protocol/vectors`` against a gateway that runs; needs pyzmq and msgpack alone.

``python -m tests.conformance --server ENDPOINT``: first ``invalid.json`` to the gateway and, where
it tells a broker's endpoint, to that broker; then every dialogue. The gateway has to run the
client and the options that ``protocol/vectors/README.md`` names.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import zmq
import zmq.auth

from tests import vectors
from tests.vectors import Values

LIMIT_MS = 15_000
"""No answer takes so long."""
_MISTAKES = 50
"""So many are made on one connection: a gateway need not hear more than 100 in 10 s."""
CORRELATED = {zmq.REQ_CORRELATE: 1, zmq.REQ_RELAXED: 1}
SOCKETS: dict[str, tuple[int, dict[int, int]]] = {
    "dealer": (zmq.DEALER, {}),
    "req": (zmq.REQ, {}),
    "req_correlate": (zmq.REQ, CORRELATED),
}
PING = msgpack.packb({"v": 1, "type": "PING"})


class Mismatch(Exception):
    """The server did not say what it must."""


class Connections:
    """Opens connections to one server.

    Args:
        endpoint: of the gateway.
        server_key: its public CURVE key, Z85, or ``None``.
        key_pair: the client's own, public and secret.
    """

    def __init__(
        self, endpoint: str, server_key: bytes | None, key_pair: tuple[bytes, bytes] | None
    ) -> None:
        self.endpoint = endpoint
        self.has_keys = server_key is not None
        self._server_key = server_key
        self._key_pair = key_pair
        self._context = zmq.Context()

    def close(self) -> None:
        """Close all of them."""
        self._context.destroy(linger=0)

    def open(
        self, kind: str = "dealer", endpoint: str | None = None, routing_id: bytes | None = None
    ) -> zmq.Socket[bytes]:
        """Connect a socket of one of ``SOCKETS``, to the gateway unless told otherwise."""
        socket_type, options = SOCKETS[kind]
        socket = self._context.socket(socket_type)
        socket.linger = 0
        for option, value in options.items():
            socket.setsockopt(option, value)
        if routing_id is not None:
            socket.routing_id = routing_id
        if self._server_key and endpoint is None:
            public_key, secret_key = self._key_pair or zmq.curve_keypair()
            socket.curve_serverkey = self._server_key
            socket.curve_publickey, socket.curve_secretkey = public_key, secret_key
        socket.connect(endpoint or self.endpoint)
        return socket

    def greeted(self) -> zmq.Socket[bytes]:
        """Give a DEALER that has had its WELCOME."""
        socket = self.open()
        _say(socket, {"v": 1, "type": "HELLO", "versions": [1]})
        welcome = message_of(receive(socket))
        if welcome["type"] != "WELCOME":
            socket.close()
            raise Mismatch(f"HELLO was answered with {shown(welcome)}")
        return socket


def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    """Wait for the next message's frames."""
    if not socket.poll(LIMIT_MS):
        raise Mismatch(f"nothing came in {LIMIT_MS:,} ms")
    return socket.recv_multipart()


def message_of(frames: list[bytes]) -> dict[str, Any]:
    """Give the message that came as one frame."""
    if len(frames) != 1:
        raise Mismatch(f"{len(frames)} frames came, not one")
    try:
        message = msgpack.unpackb(frames[0])
    except (ValueError, msgpack.UnpackException) as error:
        raise Mismatch(f"no msgpack came: {frames[0][:60].hex(' ')}") from error
    if not isinstance(message, dict) or message.get("v") != 1 or "type" not in message:
        raise Mismatch(f"no message of version 1 came: {shown(message)}")
    return message


def shown(value: Any) -> str:
    """The value, short enough for a line."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _say(socket: zmq.Socket[bytes], message: dict[str, Any]) -> None:
    socket.send(msgpack.packb(message))


# -- invalid.json ----------------------------------------------------------------------------------


class Invalid:
    """What is wrong, said to the gateway or to a broker, each time on a connection that goes on.

    Args:
        connections: to the server.
        to: ``gateway`` or ``broker``.
        endpoint: of the broker.
    """

    def __init__(self, connections: Connections, to: str, endpoint: str | None = None) -> None:
        self._connections = connections
        self._endpoint = endpoint
        self._said = 0
        self.cases = [case for case in vectors.load("cases") if to in case["to"]]
        self._socket: zmq.Socket[bytes] | None = None

    def play(self, case: dict[str, Any]) -> None:
        """Say it; raise ``Mismatch`` unless exactly one ERROR comes, and the right one."""
        if "routing_id" in case:
            routing_id = bytes.fromhex(case["routing_id"])
            with self._connections.open("dealer", self._endpoint, routing_id) as socket:
                self._check(socket, case)
            return
        if self._said % _MISTAKES == 0:
            self.close()
        if self._socket is None:
            self._socket = self._new()
        self._said += 1
        try:
            self._check(self._socket, case)
            self._is_quiet(self._socket)
        except Mismatch:
            self.close()
            raise

    def close(self) -> None:
        """Close its connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _new(self) -> zmq.Socket[bytes]:
        if self._endpoint is None:
            return self._connections.greeted()
        return self._connections.open("dealer", self._endpoint)

    def _check(self, socket: zmq.Socket[bytes], case: dict[str, Any]) -> None:
        socket.send_multipart([bytes.fromhex(frame) for frame in case["frames"]])
        frames = receive(socket)
        envelope = [bytes.fromhex(frame) for frame in case["envelope"]]
        if frames[:-1] != envelope:
            raise Mismatch(f"the envelope came back as {shown(frames[:-1])}")
        error = message_of(frames[-1:])
        expected = {
            "type": "ERROR",
            "id": vectors.value_of(case["id"]),
            "code": case["code"],
            "retryable": False,
            "started": False,
        }
        found = {key: error.get(key, "nothing") for key in expected}
        if found != expected:
            raise Mismatch(f"{shown(error)} came, not {shown(expected)}")
        if not isinstance(error.get("message"), str) or not isinstance(error.get("details"), dict):
            raise Mismatch(f"{shown(error)} has no message or no details")

    def _is_quiet(self, socket: zmq.Socket[bytes]) -> None:
        """See that no second answer is there: the next one is that of a PING."""
        socket.send(PING)
        answer = message_of(receive(socket))
        wanted = "PONG" if self._endpoint is None else "ERROR"  # a broker knows no PING
        if answer["type"] != wanted or (wanted == "ERROR" and "PING" not in answer["message"]):
            raise Mismatch(f"{shown(answer)} came as well")


# -- dialogues.json --------------------------------------------------------------------------------


class Play:
    """One play of one dialogue.

    Args:
        connections: to the server.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._values = Values()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def run(self, dialogue: dict[str, Any]) -> None:
        """Take its steps; raise ``Mismatch`` at the first that goes wrong."""
        try:
            for number, step in enumerate(dialogue["steps"], 1):
                try:
                    self._take(step)
                except Mismatch as mismatch:
                    raise Mismatch(f"step {number}, {shown(step)}: {mismatch}") from mismatch
        finally:
            for socket in self._sockets.values():
                socket.close()

    def _take(self, step: dict[str, Any]) -> None:
        peer = step["peer"]
        match step:
            case {"connect": kind}:
                endpoint = self._values.of(step.get("endpoint"))
                self._sockets[peer] = self._connections.open(kind, endpoint)
            case {"close": True}:
                self._sockets.pop(peer).close()
            case {"send": message}:
                _say(self._sockets[peer], self._values.of(message))
            case {"send_frames": frames}:
                self._sockets[peer].send_multipart(self._values.of(frames))
            case {"quiet_ms": wait_ms}:
                if self._sockets[peer].poll(wait_ms):
                    raise Mismatch(f"{shown(message_of(receive(self._sockets[peer])))} came")
            case {"expect": pattern}:
                self._expect(self._sockets[peer], pattern, step.get("skip", ()))

    def _expect(
        self, socket: zmq.Socket[bytes], pattern: dict[str, Any], skipped: tuple[str, ...]
    ) -> None:
        while (message := message_of(receive(socket)))["type"] in skipped:
            pass
        for path, value in pattern["equal"].items():
            there, found = vectors.find(message, path)
            if not there or not _is_same(found, self._values.of(value)):
                raise Mismatch(f"{path} of {shown(message)}")
        for path in pattern.get("present", ()):
            if not vectors.find(message, path)[0]:
                raise Mismatch(f"{path} is missing in {shown(message)}")
        for path in pattern.get("absent", ()):
            if vectors.find(message, path)[0]:
                raise Mismatch(f"{path} is there in {shown(message)}")
        for path, name in pattern.get("keep", {}).items():
            there, self._values.kept[name] = vectors.find(message, path)
            if not there:
                raise Mismatch(f"{path} is missing in {shown(message)}")


def _is_same(found: Any, value: Any) -> bool:
    """Equal, and no number passes for a boolean."""
    return found == value and isinstance(found, bool) == isinstance(value, bool)


# -- the program -----------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Play everything; print a line per case and a summary; 0 if all went as it must, else 1."""
    options = _parser().parse_args(arguments)
    server_key = options.server_key.encode() if options.server_key else None
    key_pair = zmq.auth.load_certificate(options.key_file) if options.key_file else None
    if key_pair and key_pair[1] is None:
        raise SystemExit(f"{options.key_file} holds no secret key")
    connections = Connections(options.server, server_key, key_pair)
    counts = {"ok": 0, "FAILED": 0, "skipped": 0}
    try:
        for kind, name, outcome, why in _played(connections, options.only):
            counts[outcome] += 1
            print(f"{outcome:8}{kind}: {name}" + (f": {why}" if why else ""), flush=True)
    finally:
        connections.close()
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return int(counts["FAILED"] > 0 or not counts["ok"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--server", required=True, metavar="ENDPOINT", help="of the gateway")
    parser.add_argument(
        "--server-key",
        metavar="Z85",
        help="the gateway's public CURVE key; --server-key=Z85 if it begins with -",
    )
    parser.add_argument("--key-file", help="the client's own key pair, as zmq.auth writes it")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    return parser


def _played(connections: Connections, only: str) -> Iterator[tuple[str, str, str, str]]:
    """Kind, name, outcome and reason of each case, as they are played."""
    yield from _refused(Invalid(connections, "gateway"), "invalid, to the gateway", only)
    endpoint = _broker_of(connections)
    if endpoint:
        invalid = Invalid(connections, "broker", endpoint)
        yield from _refused(invalid, "invalid, to a broker", only)
    for dialogue in vectors.load("dialogues"):
        name, needs = dialogue["name"], dialogue.get("needs", ())
        if only not in name:
            continue
        if ("a broker" in needs and not endpoint) or ("no keys" in needs and connections.has_keys):
            yield "dialogue", name, "skipped", f"it needs {needs[0]}"
            continue
        outcome, why = _outcome(lambda dialogue=dialogue: Play(connections).run(dialogue))
        yield "dialogue", name, outcome, why


def _refused(invalid: Invalid, kind: str, only: str) -> Iterator[tuple[str, str, str, str]]:
    with contextlib.closing(invalid):
        for case in invalid.cases:
            if only in case["name"]:
                outcome, why = _outcome(lambda case=case: invalid.play(case))
                yield kind, case["name"], outcome, why


def _outcome(play: Any) -> tuple[str, str]:
    began_at = time.monotonic()
    try:
        play()
    except Mismatch as mismatch:
        return "FAILED", str(mismatch)
    took_s = time.monotonic() - began_at
    return "ok", f"{took_s:.1f} s" if took_s > 5 else ""


def _broker_of(connections: Connections) -> str:
    """The endpoint of a conversation's own socket; empty if the gateway tells none."""
    with connections.greeted() as socket:
        name = os.urandom(16).hex()
        _say(socket, {"v": 1, "type": "OPEN", "id": os.urandom(16), "name": name})
        opened = message_of(receive(socket))
    if opened["type"] != "OPENED":
        raise Mismatch(f"OPEN was answered with {shown(opened)}")
    return opened["endpoint"]
