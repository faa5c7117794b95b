"""``soloist serve`` without its command line: pools, and a gateway before them.

Owns their beginning and end: all are started or none, and the end drains first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soloist.protocol.errors import SoloistError
from soloist.supervisor import keys, limits
from soloist.supervisor.api import Supervisor
from soloist.supervisor.control import ControlRequest
from soloist.supervisor.conversations import ServedPool
from soloist.supervisor.gateway import Gateway
from soloist.supervisor.gateway_channel import GatewaySockets, Keys, check_endpoint
from soloist.supervisor.io_thread import FRAME_ROOM_BYTES
from soloist.supervisor.serve_config import ClientSection, SecuritySection, ServeConfig


class _Served(Supervisor):
    """A Supervisor that a gateway stands before."""

    def __init__(self, section: ClientSection) -> None:
        super().__init__(**section.settings(), on_control=_nobody)
        self._section = section

    def as_pool(self) -> ServedPool:
        """What the gateway has to know of it."""
        section = self._section
        return ServedPool(
            self._reactor,
            section.max_payload_bytes,
            section.stream_buffer_bytes,
            timeout_s=section.timeout_s,
            control_timeout_s=section.control_timeout_s,
            commands=frozenset(section.commands),
        )


class Server:
    """Serves from its construction until it is closed.

    Args:
        config: what to serve, and where.
        folder: what relative paths of the configuration are relative to.

    Raises:
        SoloistError: it cannot be served; nothing is left.

    Attributes:
        endpoints: where it is found, with the ports that the system chose.
    """

    def __init__(self, config: ServeConfig, folder: Path) -> None:
        self._drain_s = config.drain_timeout_s
        secured = None if config.security is None else _keys(config.security, folder)
        for endpoint in config.bind:
            check_endpoint(endpoint, has_keys=secured is not None)
        sizes = ((s.size or os.cpu_count() or 1) + s.max_sessions for s in config.clients.values())
        limits.reserve_descriptors(sum(sizes), config.limits.max_peers)
        with contextlib.ExitStack() as ends:
            self._supervisors = {}
            for name, section in config.clients.items():
                supervisor = self._supervisors[name] = _Served(section)
                ends.callback(supervisor.close)
            self.endpoints = self._begin(config, secured)
            self._ends = ends.pop_all()

    @property
    def is_whole(self) -> bool:
        """Whether everything still works."""
        return not any(supervisor.is_closed for supervisor in self._supervisors.values())

    def close(self, *, is_drained: bool = True) -> None:
        """End; those who wait are served first, if so asked, for up to ``drain_timeout_s``."""
        if is_drained:
            threads = [
                threading.Thread(target=supervisor.drain, args=(self._drain_s,), daemon=True)
                for supervisor in self._supervisors.values()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self._ends.close()

    def kill(self) -> None:
        """End at once."""
        for supervisor in self._supervisors.values():
            supervisor.kill()

    @staticmethod
    def give_back_memory() -> None:
        """Give the system what is free between what is not: peers say much of every size.

        Only the C library of Linux distributions can be told to (glibc's ``malloc_trim``).
        """
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def _begin(self, config: ServeConfig, secured: Keys | None) -> list[str]:
        """Open the gateway on the first pool's thread; where it is found."""
        pools: Mapping[str, ServedPool] = {
            name: supervisor.as_pool() for name, supervisor in self._supervisors.items()
        }
        endpoints: list[str] = []
        max_bytes = max(pool.max_payload_bytes for pool in pools.values()) + FRAME_ROOM_BYTES

        def gateway(home: Any) -> Gateway:
            sockets = GatewaySockets(config.bind, max_bytes=max_bytes, keys=secured)
            endpoints.extend(channel.endpoint for channel in sockets.channels)
            return Gateway(home, pools, config.limits.limits(), sockets)

        first = next(iter(pools.values()))
        first.reactor.attach(gateway).result()
        return endpoints


def _keys(section: SecuritySection, folder: Path) -> Keys:
    public, secret = keys.load(folder / section.key_file, is_secret=True)
    return Keys(public, secret, keys.load_allowed(folder / section.clients))


def _nobody(question: ControlRequest) -> Any:
    """Answer for a peer that answers nothing: no."""
    if question.kind in {"permission", "hook"}:
        return None
    raise SoloistError("no peer answers what the client asks")
