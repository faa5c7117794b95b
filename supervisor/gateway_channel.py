"""The sockets of a gateway: ROUTERs on ``ipc://`` and ``tcp://``, with CURVE where it is due.

The only zmq for gateways. Owned by the I/O thread; nothing here is thread-safe, but for zmq's own
thread that answers which keys are let in.

Invariants: those of :mod:`soloist.supervisor.broker_channel`; nothing is bound beyond this machine
without keys, nor in a folder that others may enter; the keys that are allowed are known before the
first socket is bound; a live endpoint is never taken from another process.

Source: SPEC.md, section 2.1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import ipaddress
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from soloist.protocol.errors import InvalidOptions
from soloist.supervisor.broker_channel import PeerContext, Router

_OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_HANDSHAKE_MS = 5_000


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """What TCP sockets are secured by.

    Attributes:
        public_key: the gateway's, 40 characters of Z85.
        secret_key: the same.
        allowed: the clients' public keys.
    """

    public_key: bytes
    secret_key: bytes
    allowed: frozenset[bytes]


def check_endpoint(endpoint: str, *, has_keys: bool) -> None:
    """Refuse what must not be bound.

    Raises:
        InvalidOptions: neither ``ipc://`` nor ``tcp://``; beyond loopback without keys.
    """
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc" and rest.startswith("/"):
        return
    host = rest.rpartition(":")[0]
    if scheme != "tcp" or not host:
        raise InvalidOptions(f"{endpoint!r} is neither ipc:///PATH nor tcp://HOST:PORT")
    if not (has_keys or _is_loopback(host)):
        raise InvalidOptions(
            f"{endpoint} can be reached from elsewhere, so it needs keys: make them with "
            "`soloist keys new`, then say which clients are allowed; see docs/gateway.md"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class GatewayChannel(Router):
    """Receives from and sends to all peers of one endpoint.

    Args:
        context: of all sockets of the gateway.
        endpoint: ``ipc:///PATH`` or ``tcp://HOST:PORT``; port ``*`` for any that is free.
        max_bytes: largest frame that a peer may send; a larger one ends its connection.
        keys: secure it, if it is ``tcp://``.

    Raises:
        InvalidOptions: it must not be bound; see ``check_endpoint``, and the folder of ``ipc://``.
        SoloistError: it cannot be bound.

    Attributes:
        is_local: whether all its peers are one owner: who may enter its folder.
        endpoint: where it is found.
    """

    def __init__(
        self, context: PeerContext, endpoint: str, *, max_bytes: int, keys: Keys | None
    ) -> None:
        check_endpoint(endpoint, has_keys=keys is not None)
        self.is_local = endpoint.startswith("ipc://")
        self._has_keys = keys is not None and not self.is_local
        options: dict[int, int | bytes] = {zmq.HANDSHAKE_IVL: _HANDSHAKE_MS}
        if endpoint.startswith("tcp://["):
            options[zmq.IPV6] = 1
        if keys is not None and self._has_keys:
            options |= {
                zmq.CURVE_SERVER: 1,
                zmq.CURVE_PUBLICKEY: keys.public_key,
                zmq.CURVE_SECRETKEY: keys.secret_key,
                zmq.ZAP_DOMAIN: b"soloist",
            }
        with contextlib.ExitStack() as ends:
            if self.is_local:
                _take_path(Path(endpoint.removeprefix("ipc://")), ends)
            super().__init__(context, endpoint, max_bytes=max_bytes, options=options)
            self._ends = ends.pop_all()
        self.endpoint = bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def receive(self) -> tuple[list[bytes], str] | None:
        """One message: its frames, and the sender's key (may be empty)."""
        received = self.frames()
        if received is None:
            return None
        frames, last = received
        return frames, str(last.get("User-Id")) if self._has_keys else ""

    def close(self) -> None:
        """Close; what was sent just before still reaches its peers."""
        super().close()
        self._ends.close()


class GatewaySockets:
    """All sockets of one gateway, and who is let in.

    Args:
        endpoints: what to bind.
        max_bytes: largest frame that a peer may send.
        keys: secure ``tcp://``.

    Raises:
        InvalidOptions, SoloistError: one of them cannot be bound; then none is.
    """

    def __init__(self, endpoints: Iterable[str], *, max_bytes: int, keys: Keys | None) -> None:
        endpoints = list(endpoints)
        self.channels: list[GatewayChannel] = []
        with contextlib.ExitStack() as ends:
            context = PeerContext(len(endpoints) + 8)
            ends.callback(context.close)
            if keys is not None:
                ends.enter_context(_door(context, keys))
            for endpoint in endpoints:
                channel = GatewayChannel(context, endpoint, max_bytes=max_bytes, keys=keys)
                ends.callback(channel.close)
                self.channels.append(channel)
            self._ends = ends.pop_all()

    def close(self) -> None:
        """Close all; takes up to ``LINGER_MS``."""
        self._ends.close()


@contextlib.contextmanager
def _door(context: PeerContext, keys: Keys) -> Iterator[None]:
    """Let in who has one of the keys, and nobody else."""
    door = ThreadAuthenticator(context.zmq)
    door.configure_curve_callback("soloist", _Allowed(keys.allowed))
    door.start()
    try:
        yield
    finally:
        door.stop()


class _Allowed:
    """Says which keys are let in, as zmq's authenticator asks it."""

    def __init__(self, keys: frozenset[bytes]) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the owner of that key, in Z85, may come in."""
        del domain
        return key in self._keys


def _take_path(path: Path, ends: contextlib.ExitStack) -> None:
    """Make sure that a socket's file is this process's alone, until ``ends``.

    Raises:
        InvalidOptions: its folder is open to others, or another process serves there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.parent.stat()
    if info.st_uid != os.geteuid() or info.st_mode & _OPEN_TO_OTHERS:
        raise InvalidOptions(
            f"the folder {path.parent} must be yours alone, for who can open a socket there is "
            f"trusted: chmod 700 {path.parent}"
        )
    lock = os.open(
        path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
    )
    ends.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InvalidOptions(f"another process serves at ipc://{path}") from error
    path.unlink(missing_ok=True)  # of one that was killed
    ends.callback(path.unlink, missing_ok=True)
