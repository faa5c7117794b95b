"""A gateway for the scenarios: ``soloist serve`` in a process of its own, in a folder of its own.

It listens on an ipc endpoint, and on tcp loopback with CURVE.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zmq.auth

from tests.support import LIMIT_S, ROOT, environment

HEARTBEAT_S = 1.0
NARROW_CHARS = 10_000
"""An answer of this size is larger than the credit of the agent ``narrow``, but only in all: a
reader that returns it may be a second late."""
_CONFIGURATION = """
bind = ["ipc://{folder}/gateway", "tcp://127.0.0.1:*"]

[clients.echo]
client = "echo"
size = 2

[clients.patient]
client = "tests.conformance.agents:PatientEcho"
size = 2

[clients.narrow]
client = "echo"
options = {{chunks = 10, delay_s = 1.0}}
size = 2
stream_buffer_bytes = 28000

[clients.logged]
client = "echo"
options = {{log = "{folder}/turns"}}
size = 1

[limits]
heartbeat_s = {heartbeat_s}

[security]
key_file = "{folder}/server.key_secret"
clients = "{folder}/clients"
"""


@dataclass(frozen=True)
class Serving:
    """Where it is found, and what a program needs to get in.

    Attributes:
        folder: of this gateway alone.
        ipc: an endpoint.
        tcp: an endpoint, with CURVE.
        keys: by the name of a key pair, a program's environment variables; those of nobody are
            empty.
    """

    folder: Path
    ipc: str
    tcp: str
    keys: dict[str, dict[str, str]]

    def turns(self) -> int:
        """How many turns the agent ``logged`` has begun."""
        log = self.folder / "turns"
        return log.read_text().count("begin") if log.exists() else 0


@contextlib.contextmanager
def serving() -> Iterator[Serving]:
    """Serve until the block ends."""
    with tempfile.TemporaryDirectory(prefix="soloist-") as name:
        folder = Path(name)
        keys = _make_keys(folder, "alice", "bob")
        configuration = folder / "soloist.toml"
        configuration.write_text(_CONFIGURATION.format(folder=folder, heartbeat_s=HEARTBEAT_S))
        process = subprocess.Popen(
            [sys.executable, "-m", "soloist.supervisor.cli", "serve", "--config", configuration],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        try:
            assert process.stdout is not None
            said = process.stdout.readline() + process.stdout.readline()
            [port] = re.findall(r"tcp://\S+:(\d+)$", said, re.M)
            yield Serving(folder, f"ipc://{folder}/gateway", f"tcp://127.0.0.1:{port}", keys)
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT_S)


def _make_keys(folder: Path, *names: str) -> dict[str, dict[str, str]]:
    """Make the server's key pair, and others that it lets in."""
    allowed = folder / "clients"
    allowed.mkdir()
    server = Path(zmq.auth.create_certificates(folder, "server")[1])
    server.chmod(0o600)
    server_key, _ = zmq.auth.load_certificate(server)
    keys: dict[str, dict[str, str]] = {"nobody": {}}
    for name in names:
        public, secret = map(Path, zmq.auth.create_certificates(folder, name))
        public.rename(allowed / public.name)
        key, secret_key = zmq.auth.load_certificate(secret)
        assert secret_key is not None
        keys[name] = {
            "SOLOIST_SERVER_KEY": server_key.decode(),
            "SOLOIST_PUBLIC_KEY": key.decode(),
            "SOLOIST_SECRET_KEY": secret_key.decode(),
        }
    return keys
