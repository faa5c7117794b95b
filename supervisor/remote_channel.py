"""The socket of a connection to a gateway: one DEALER, replaced as often as need be.

The only zmq of clients. Owned by the connection's thread; nothing here is thread-safe.

Invariants: nothing here waits; a new socket is a new peer, and nothing of the one before it is
heard any more. ``fileno`` is edge-triggered, and another one after each ``renew``: ``wake`` when
it was readable, and after any send or receive look at ``has_input`` before waiting on it.

Source: SPEC.md, section 2.1.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import zmq

from soloist.protocol import public_codec
from soloist.protocol.errors import InvalidOptions
from soloist.protocol.public import FromClient
from soloist.supervisor import keys

LINGER_MS = 500
"""How long the last words may take to reach the gateway after the close."""
MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Largest message that is taken from a gateway; a larger one ends the connection."""
_MAX_UNSENT = 50_000
"""Messages that may wait for a connection: several times what a link has out."""
_RECONNECT_MS, _MAX_RECONNECT_MS = 100, 2_000
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """What encrypts a connection; all keys in Z85.

    Attributes:
        server_key: the gateway's public key.
        public_key: the client's own.
        secret_key: the same.
    """

    server_key: bytes
    public_key: bytes
    secret_key: bytes


def curve_of(server_key: str | bytes, key_file: str | Path | None) -> Curve:
    """Put the keys of a connection together.

    Args:
        server_key: the gateway's public key, 40 characters of Z85.
        key_file: the client's own pair, as ``zmq.auth`` writes it; ``None`` for a new one.

    Raises:
        InvalidOptions: one of them is none.
    """
    key = server_key.encode() if isinstance(server_key, str) else server_key
    if len(key) != keys.KEY_CHARS:
        raise InvalidOptions(f"server_key has {keys.KEY_CHARS} characters, not {len(key)}")
    if key_file is None:
        return Curve(key, *zmq.curve_keypair())
    return Curve(key, *keys.load(Path(key_file), is_secret=True))


class RemoteChannel:
    """One connection after another to the same gateway.

    Args:
        endpoint: of the gateway.
        curve: its keys; ``None`` for no encryption.
    """

    def __init__(self, endpoint: str, curve: Curve | None) -> None:
        self._endpoint = endpoint
        self._curve = curve
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None

    def renew(self) -> None:
        """Let go of the socket, if there is one, and connect a new one.

        Raises:
            InvalidOptions: the endpoint is none, or a key is none.
        """
        if self._socket is not None:
            self._socket.close(0)
        self._socket = socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.SNDHWM, _MAX_UNSENT)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _MAX_RECONNECT_MS)
        try:
            if self._curve is not None:
                socket.setsockopt(zmq.CURVE_SERVERKEY, self._curve.server_key)
                socket.setsockopt(zmq.CURVE_PUBLICKEY, self._curve.public_key)
                socket.setsockopt(zmq.CURVE_SECRETKEY, self._curve.secret_key)
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            raise InvalidOptions(f"cannot connect to {self._endpoint!r}: {error}") from error

    def fileno(self) -> int:
        """Descriptor that becomes readable when ``receive`` may have something."""
        assert self._socket is not None
        return int(self._socket.getsockopt(zmq.FD))

    def has_input(self) -> bool:
        """Whether ``receive`` would give something."""
        return self._socket is not None and bool(int(self._socket.getsockopt(_EVENTS)) & _POLLIN)

    def receive(self) -> bytes | None:
        """Take one message; ``None`` if nothing is there."""
        if self._socket is None or not self.has_input():
            return None
        *_, payload = self._socket.recv_multipart(_NOBLOCK)
        return payload

    def send(self, message: FromClient) -> bool:
        """Queue a message, to go out when there is a connection; ``False`` if too many wait."""
        assert self._socket is not None
        try:
            self._socket.send(public_codec.encode(message), _NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close the socket; what was said just before still reaches a gateway that is there."""
        if self._socket is not None:
            self._socket.close(LINGER_MS)
        self._context.term()
