"""What ``soloist serve`` is told: its options, and ``soloist.toml``.

Owns the names and ranges of everything that an operator can set; pydantic checks them. Needs the
extra ``soloist[serve]``.
"""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from soloist.protocol import codec
from soloist.protocol.errors import InvalidOptions
from soloist.supervisor.peers import GatewayLimits
from soloist.supervisor.rate import RateLimit

_MIB = 1024 * 1024
_LIMITS = GatewayLimits()
_Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    """A table of the file: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RateSection(_Section):
    """``rate_limit`` of a client."""

    per_second: PositiveFloat
    burst: PositiveInt = 1


class ClientSection(_Section):
    """``[clients.NAME]``: a pool, by the name that peers use; as ``Supervisor``, and ``commands``.

    ``client`` is a registered name, or ``module:attribute`` of a class, factory or callable.
    """

    client: str
    options: dict[str, Any] = {}
    size: PositiveInt | None = None
    isolation: Literal["prompt", "worker"] = "prompt"
    timeout_s: PositiveFloat | None = None
    max_sessions: _Count = 64
    max_requests_per_worker: PositiveInt | None = None
    max_memory_bytes: PositiveInt | None = None
    max_payload_bytes: PositiveInt = codec.MAX_PAYLOAD_BYTES
    stream_buffer_bytes: PositiveInt = 4 * _MIB
    interrupt_grace_s: PositiveFloat = 5.0
    wedge_after_s: PositiveFloat | None = 30.0
    connect_timeout_s: PositiveFloat | None = 60.0
    control_timeout_s: PositiveFloat = 60.0
    rate_limit: RateSection | None = None
    commands: list[str] = []

    def settings(self) -> dict[str, Any]:
        """The arguments of its ``Supervisor``.

        Raises:
            InvalidOptions: there is no such module or attribute.
        """
        settings = self.model_dump(exclude={"client", "commands", "rate_limit"})
        limit = self.rate_limit
        settings["rate_limit"] = None if limit is None else RateLimit(limit.per_second, limit.burst)
        settings["client"] = _loaded(self.client)
        return settings


class LimitsSection(_Section):
    """``[limits]``: what peers may cost, see docs/gateway.md."""

    heartbeat_s: Annotated[float, Field(ge=0.05, le=3600)] = _LIMITS.heartbeat_s
    max_protocol_errors: PositiveInt = _LIMITS.max_protocol_errors
    max_peers: PositiveInt = _LIMITS.max_peers
    max_connections: PositiveInt = _LIMITS.max_connections
    max_requests: PositiveInt = _LIMITS.max_requests
    max_queued_bytes: PositiveInt = _LIMITS.max_queued_bytes
    max_outcome_bytes: _Count = _LIMITS.max_outcome_bytes
    max_ids: _Count = _LIMITS.max_ids
    retention_s: Annotated[float, Field(ge=0)] = _LIMITS.retention_s
    max_conversations: _Count = _LIMITS.max_conversations
    max_queue: PositiveInt = _LIMITS.max_queue
    idle_timeout_s: PositiveFloat | None = _LIMITS.idle_timeout_s

    def limits(self) -> GatewayLimits:
        """The same, as the gateway takes them."""
        return GatewayLimits(**self.model_dump())


class SecuritySection(_Section):
    """``[security]``: paths, from the folder of the file."""

    key_file: str
    clients: str


class ServeConfig(_Section):
    """All of it."""

    bind: list[str] = Field(min_length=1)
    clients: dict[str, ClientSection] = Field(min_length=1)
    limits: LimitsSection = LimitsSection()
    security: SecuritySection | None = None
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0


def read_file(path: Path) -> dict[str, Any]:
    """Read ``soloist.toml``, unchecked.

    Raises:
        InvalidOptions: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidOptions(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidOptions(f"{path}: {error}") from error


def checked(values: dict[str, Any], source: str) -> ServeConfig:
    """Check everything.

    Args:
        values: as read from the file, with the options of the command line in their places.
        source: where they come from, for messages.

    Raises:
        InvalidOptions: naming each key that is wrong, and what it should be.
    """
    try:
        return ServeConfig.model_validate(values)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        ]
        raise InvalidOptions("\n".join(f"{source}: {line}" for line in wrong)) from error


def _loaded(client: str) -> Any:
    module, is_path, attribute = client.partition(":")
    if not is_path:
        return client
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidOptions(f"there is no client {client!r}: {error}") from error
