"""``connect``: a Supervisor whose workers are those of a gateway.

Owns argument checking and how a connection is made; see :mod:`soloist.supervisor.link` for what
is said.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from soloist.protocol import public
from soloist.protocol.content import Map
from soloist.protocol.errors import InvalidOptions
from soloist.supervisor import at_exit, limits
from soloist.supervisor.base import BaseSupervisor
from soloist.supervisor.control import ControlDesk, Handler
from soloist.supervisor.link import Link
from soloist.supervisor.remote import Joining, Remote
from soloist.supervisor.remote_channel import Curve, RemoteChannel, curve_of
from soloist.supervisor.remote_thread import RemoteThread
from soloist.supervisor.session import SharedSession

OnDisconnect: TypeAlias = Literal["cancel", "finish"]

_SECRET_BYTES = 32


class RemoteSupervisor(BaseSupervisor):
    """A Supervisor's calls, answered by the workers of a gateway; made by ``connect``.

    Any thread may call any method. Use it as a context manager, or call ``close``: leaving the
    block normally waits for what was accepted, up to ``drain_timeout_s``; leaving it by an
    exception ends everything that was asked.

    Args:
        endpoint: of the gateway, ``ipc://`` or ``tcp://``.
        client: which of the gateway's clients answers; its first unless given.
        server_key: the gateway's public CURVE key, 40 characters of Z85; ``None`` for no
            encryption.
        key_file: the client's own key pair, as ``zmq.auth`` writes it; a new pair unless given.
        secret: 16 to 64 random bytes that stand for this client at a gateway without encryption;
            new ones unless given.
        connect_timeout_s: seconds for the gateway to say welcome.
        reconnect_timeout_s: seconds for it to do so again after a failure; then what has no
            outcome fails with ``GatewayLost``.
        timeout_s: seconds that a request may take unless its call says otherwise, all waits
            included; ``None`` for no limit but the gateway's.
        window: most prompts of one ``map`` in flight or read ahead.
        window_bytes: most bytes of prompts and unread answers in one ``map``'s window.
        max_pending: most requests of ``submit`` without an outcome; then ``QueueFull``.
        stream_buffer_bytes: how far the reader of ``query`` may fall behind.
        drain_timeout_s: seconds that leaving the ``with`` block waits for what is outstanding.
        on_control: answers what agents ask their caller where a call has no handler of its own;
            runs on a thread of its own.
        on_disconnect: what the gateway does with requests when this client has gone:
            ``"cancel"`` or ``"finish"``.

    Raises:
        GatewayLost: it cannot be reached in ``connect_timeout_s``, or refuses.
        InvalidOptions: an argument is wrong; the caller's.
        ClientNotFound: the gateway has no such client.
    """

    _made_by: ClassVar = "soloist.connect(...)"

    def __init__(
        self,
        endpoint: str,
        *,
        client: str | None = None,
        server_key: str | bytes | None = None,
        key_file: str | Path | None = None,
        secret: bytes | None = None,
        connect_timeout_s: float = 10.0,
        reconnect_timeout_s: float = 30.0,
        timeout_s: float | None = None,
        window: int = 1024,
        window_bytes: int = 256 * 1024 * 1024,
        max_pending: int = 100_000,
        stream_buffer_bytes: int = 4 * 1024 * 1024,
        drain_timeout_s: float | None = 30.0,
        on_control: Handler | None = None,
        on_disconnect: OnDisconnect = "cancel",
    ) -> None:
        limits.check_text(endpoint=endpoint)
        limits.check_counts(
            window=window,
            window_bytes=window_bytes,
            max_pending=max_pending,
            stream_buffer_bytes=stream_buffer_bytes,
        )
        limits.check_seconds(timeout_s=timeout_s, drain_timeout_s=drain_timeout_s)
        limits.check_limited_seconds(
            connect_timeout_s=connect_timeout_s, reconnect_timeout_s=reconnect_timeout_s
        )
        if on_disconnect not in {"cancel", "finish"}:
            raise InvalidOptions(f'on_disconnect is "cancel" or "finish", not {on_disconnect!r}')
        link = Link(
            public.Hello([public.VERSION], _checked_secret(secret)),
            connect_timeout_s=connect_timeout_s,
            reconnect_timeout_s=reconnect_timeout_s,
        )
        channel = RemoteChannel(endpoint, _keys(server_key, key_file))
        thread = RemoteThread(channel, link, ControlDesk(on_control), client, on_disconnect)
        self._remote = Remote(thread, client)
        at_exit.add(self._remote)
        welcome = self._remote.start()
        super().__init__(
            self._remote,
            window=window,
            window_bytes=window_bytes,
            timeout_s=timeout_s,
            max_pending=max_pending,
            max_payload_bytes=welcome.max_prompt_bytes,
            stream_buffer_bytes=stream_buffer_bytes,
            drain_timeout_s=drain_timeout_s,
        )

    def shared(
        self,
        name: str,
        *,
        max_queue: int | None = None,
        idle_timeout_s: float | None = None,
        ticket: bytes | None = None,
    ) -> SharedSession:
        """Give the conversation of that name; the first call begins it, in a worker of its own.

        Any thread may call it, any number of times. A conversation that was lost stays lost
        under its name until somebody closes it.

        Args:
            name: any text; names are the gateway's, each owner has its own.
            max_queue: most requests that wait for their turn, then ``QueueFull``; the operator's
                unless given.
            idle_timeout_s: seconds without a request after which it is closed by itself; the
                operator's unless given.
            ticket: joins another owner's conversation, whatever the other arguments say.

        Raises:
            QueueFull: too many conversations are open.
            InvalidOptions: it is open with other bounds, or an argument is wrong.
            SessionClosed: there is none with that ticket.
            GatewayLost: the gateway cannot be reached.
            SupervisorClosed: closed.
        """
        joining = joining_of(name, max_queue, idle_timeout_s, ticket)
        address = self._remote.join_session(name, joining).result()
        return SharedSession(self._intake, name, address, self)

    def status(self) -> Map:
        """What the gateway reports of itself and all its clients, as SPEC.md, section 2.11, says.

        Raises:
            GatewayLost: it cannot be reached.
            SupervisorClosed: closed.
        """
        return self._remote.status().result()


connect = RemoteSupervisor
"""Connect to a gateway; see :class:`RemoteSupervisor`."""


def joining_of(
    name: str, max_queue: int | None, idle_timeout_s: float | None, ticket: bytes | None
) -> Joining:
    """Check the arguments of ``shared``.

    Raises:
        InvalidOptions: one of them is wrong.
    """
    limits.check_text(name=name)
    limits.check_optional_counts(max_queue=max_queue)
    limits.check_positive_seconds(idle_timeout_s=idle_timeout_s)
    if ticket is not None and len(ticket) != public.ID_BYTES:
        raise InvalidOptions(f"a ticket is {public.ID_BYTES} bytes, not {ticket!r}")
    return Joining(ticket, max_queue, idle_timeout_s)


def _checked_secret(secret: bytes | None) -> bytes:
    if secret is None:
        return os.urandom(_SECRET_BYTES)
    least, most = public.MIN_SECRET_BYTES, public.MAX_SECRET_BYTES
    if not least <= len(secret) <= most:
        raise InvalidOptions(f"secret is {least} to {most} bytes")
    return secret


def _keys(server_key: str | bytes | None, key_file: str | Path | None) -> Curve | None:
    if server_key is not None:
        return curve_of(server_key, key_file)
    if key_file is not None:
        raise InvalidOptions("key_file is of use only with server_key")
    return None
