"""A peer of a gateway or broker made of pyzmq and msgpack alone, and a server to talk to."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import msgpack
import zmq

from tests.support import LIMIT_S, environment

LIMIT_MS = int(LIMIT_S * 1000)
_BEAT_MS = 100


class WirePeer:
    """One DEALER; say hello with ``hello``."""

    def __init__(self, endpoint, *, secret=None, curve=None, kind=zmq.DEALER, routing_id=None):
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.linger = 0
        self.socket.sndtimeo = LIMIT_MS
        if curve is not None:
            server_key, (public, secret_key) = curve
            self.socket.curve_serverkey = server_key
            self.socket.curve_publickey, self.socket.curve_secretkey = public, secret_key
        if routing_id is not None:
            self.socket.routing_id = routing_id
        self.socket.connect(endpoint)
        self.secret = secret
        self.welcome = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close(0)
        self.context.term()

    def hello(self):
        fields = {} if self.secret is None else {"secret": self.secret}
        self.say("HELLO", versions=[1], **fields)
        self.welcome = self.hear()
        assert self.welcome["type"] == "WELCOME", self.welcome
        return self

    def say(self, kind, **fields):
        self._send(kind, fields)

    def try_to_say(self, kind, **fields):
        """As ``say``; where nobody lets this peer in, libzmq may have no place for it any more."""
        with contextlib.suppress(zmq.Again):
            self._send(kind, fields, zmq.NOBLOCK)

    def _send(self, kind, fields, flags=0):
        self.socket.send(msgpack.packb({"v": 1, "type": kind, **fields}), flags)

    def hear(self, limit_ms=LIMIT_MS):
        """Wait for what is said, and show that this peer lives meanwhile."""
        deadline = time.monotonic() + limit_ms / 1000
        while time.monotonic() < deadline:
            if not self.socket.poll(_BEAT_MS):
                if self.welcome is not None:
                    self.say("PING")
                continue
            reply = msgpack.unpackb(self.socket.recv())
            if reply["type"] != "PONG" or self.welcome is None:
                return reply
        raise AssertionError("nothing came")

    def hears_nothing(self, for_ms):
        return not self.socket.poll(for_ms)

    def query(self, prompt, **fields):
        """Send a prompt; its id."""
        request_id = fields.pop("id", None) or os.urandom(16)
        self.say("QUERY", id=request_id, prompt=prompt, **fields)
        return request_id

    def outcome(self, request_id):
        """Read up to the outcome of a request; what was said before it stands in ``seen``."""
        self.seen = []
        while True:
            reply = self.hear()
            if reply.get("id") == request_id and reply["type"] in {"RESULT", "ERROR"}:
                return reply
            self.seen.append(reply)

    def ask(self, prompt, **fields):
        return self.outcome(self.query(prompt, **fields))

    def call(self, kind, **fields):
        """Say something that has one answer, and read that."""
        call_id = os.urandom(16)
        self.say(kind, id=call_id, **fields)
        while (reply := self.hear()).get("id") != call_id or reply["type"] == "ACCEPTED":
            pass
        return reply


class Server:
    """``soloist serve`` in a process of its own, up and serving."""

    def __init__(self, *arguments, cwd=None, **more):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "soloist.supervisor.cli", "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment(**more),
        )
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        binds = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--bind"]
        self.endpoints = [self._endpoint() for _ in binds or [None]]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(LIMIT_S)
        self.process.stdout.close()
        self.process.stderr.close()

    @property
    def endpoint(self):
        return self.endpoints[0]

    def stop(self):
        """End it by SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)

    def _read(self):
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self.process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def _endpoint(self):
        line = self._lines.get(timeout=LIMIT_S)
        assert line.startswith("Serving "), line or self.process.stderr.read()
        return line.split(" at ")[1].strip()
