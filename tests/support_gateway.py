"""``soloist serve`` in a process of its own, as the vectors' dialogues need it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zmq.auth

from tests.support import LIMIT_S, ROOT, environment

ECHO = 'delay_s = 0.5, chunks = 4, fail_on = "fail", exit_on = "exit", ask_on = "ask"'
"""See ``protocol/vectors/README.md``."""
_CONFIGURATION = """
bind = ["ipc://{folder}/gateway", "tcp://127.0.0.1:*"]
drain_timeout_s = 5.0

[clients.echo]
client = "echo"
options = {{{options}}}
size = 2
control_timeout_s = 2.0

[limits]
{limits}
"""
_SECURITY = """
[security]
key_file = "server.key_secret"
clients = "clients"
"""


@dataclass(frozen=True)
class Served:
    """A gateway that runs: where it is found, and what a peer needs to get in.

    Attributes:
        pid: of its process.
        ipc: an endpoint without keys.
        tcp: an endpoint, with CURVE if there are keys.
        log: what it says on standard error.
        server_key: its public key, Z85.
        key_file: with the key pair of a peer that is let in.
    """

    pid: int
    ipc: str
    tcp: str
    log: Path
    server_key: str
    key_file: Path


@contextlib.contextmanager
def served(
    folder: Path, *, options: str = ECHO, limits: str = "", has_keys: bool = True
) -> Iterator[Served]:
    """Serve ``echo`` until the block ends, which fails if the gateway did not end well.

    Args:
        folder: for its socket, keys and configuration; short, for the socket's sake.
        options: of the client, as TOML writes them between braces.
        limits: lines of TOML.
        has_keys: whether TCP needs them.
    """
    server_key, key_file = _make_keys(folder)
    configuration = folder / "soloist.toml"
    text = _CONFIGURATION.format(folder=folder, options=options, limits=limits)
    configuration.write_text(text + _SECURITY * has_keys)
    log = folder / "log"
    command = [sys.executable, "-m", "soloist.supervisor.cli", "serve"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--config", str(configuration)],
            stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment(),
        )  # fmt: skip
    try:
        assert process.stdout is not None
        ipc, tcp = (process.stdout.readline().split()[-1] for _ in range(2))
        yield Served(process.pid, ipc, tcp, log, server_key, key_file)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    assert process.returncode == 0, log.read_text()


def _make_keys(folder: Path) -> tuple[str, Path]:
    """Make the server's key pair and a peer's; give the server's key and the peer's file."""
    folder.chmod(0o700)
    allowed = folder / "clients"
    allowed.mkdir()
    server = Path(zmq.auth.create_certificates(folder, "server")[1])
    public, peer = map(Path, zmq.auth.create_certificates(folder, "peer"))
    public.rename(allowed / public.name)
    for secret in (server, peer):
        secret.chmod(0o600)
    return zmq.auth.load_certificate(server)[0].decode(), peer
