"""Soloist: a supervisor of worker processes that each hold exactly one stateful client.

``from soloist import Supervisor`` is all that most programs need.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from soloist.protocol.codec import Prompt
from soloist.protocol.content import (
    AssistantMessage,
    ContentBlock,
    Message,
    ResultMessage,
    ServerToolResultBlock,
    ServerToolUseBlock,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    ClientNotFound,
    ClientNotSerializable,
    GatewayLost,
    HelloRequired,
    InvalidOptions,
    InvalidPrompt,
    LocalProtocolError,
    OutcomeUnknown,
    PayloadTooLarge,
    ProtocolError,
    QueueFull,
    RateLimited,
    RemoteProtocolError,
    RequestCancelled,
    RequestTimeout,
    RestartLimitReached,
    ResultNotSerializable,
    SessionBusy,
    SessionClosed,
    SessionLost,
    SlowReader,
    SoloistError,
    SupervisorClosed,
    TooManyWorkers,
    WorkerLost,
)
from soloist.worker.control import ask_caller, ask_hook, ask_permission

if TYPE_CHECKING:
    from soloist.supervisor.aio import AsyncSupervisor
    from soloist.supervisor.aio_connect import AsyncRemoteSupervisor, connect_async
    from soloist.supervisor.aio_intake import AsyncRequestFuture, AsyncResponse
    from soloist.supervisor.aio_session import AsyncSession, AsyncSharedSession
    from soloist.supervisor.api import Supervisor
    from soloist.supervisor.connect import RemoteSupervisor, connect
    from soloist.supervisor.control import ControlRequest
    from soloist.supervisor.futures import RequestFuture
    from soloist.supervisor.oneshot import query
    from soloist.supervisor.rate import RateLimit
    from soloist.supervisor.response import Response
    from soloist.supervisor.results import Result, SessionStats, Stats, WorkerStats
    from soloist.supervisor.retry import Retry
    from soloist.supervisor.session import Session, SharedSession

__version__ = "0.1.0"

# What the library and its workers say is for whoever asks logging for it, see docs/logging.md.
logging.getLogger("soloist").addHandler(logging.NullHandler())

__all__ = [
    "AssistantMessage",
    "AsyncRemoteSupervisor",
    "AsyncRequestFuture",
    "AsyncResponse",
    "AsyncSession",
    "AsyncSharedSession",
    "AsyncSupervisor",
    "ClientConnectError",
    "ClientError",
    "ClientNotFound",
    "ClientNotSerializable",
    "ContentBlock",
    "ControlRequest",
    "GatewayLost",
    "HelloRequired",
    "InvalidOptions",
    "InvalidPrompt",
    "LocalProtocolError",
    "Message",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "Prompt",
    "ProtocolError",
    "QueueFull",
    "RateLimit",
    "RateLimited",
    "RemoteProtocolError",
    "RemoteSupervisor",
    "RequestCancelled",
    "RequestFuture",
    "RequestTimeout",
    "Response",
    "RestartLimitReached",
    "Result",
    "ResultMessage",
    "ResultNotSerializable",
    "Retry",
    "ServerToolResultBlock",
    "ServerToolUseBlock",
    "Session",
    "SessionBusy",
    "SessionClosed",
    "SessionLost",
    "SessionStats",
    "SharedSession",
    "SlowReader",
    "SoloistError",
    "Stats",
    "StreamEvent",
    "Supervisor",
    "SupervisorClosed",
    "SystemMessage",
    "TextBlock",
    "ThinkingBlock",
    "TooManyWorkers",
    "ToolResultBlock",
    "ToolUseBlock",
    "UserMessage",
    "WorkerLost",
    "WorkerStats",
    "ask_caller",
    "ask_hook",
    "ask_permission",
    "connect",
    "connect_async",
    "query",
]

_HOMES = {
    "AsyncSupervisor": "aio",
    "AsyncRemoteSupervisor": "aio_connect",
    "connect_async": "aio_connect",
    "AsyncRequestFuture": "aio_intake",
    "AsyncResponse": "aio_intake",
    "AsyncSession": "aio_session",
    "AsyncSharedSession": "aio_session",
    "Supervisor": "api",
    "RemoteSupervisor": "connect",
    "connect": "connect",
    "ControlRequest": "control",
    "RequestFuture": "futures",
    "query": "oneshot",
    "RateLimit": "rate",
    "Response": "response",
    "Result": "results",
    "SessionStats": "results",
    "Stats": "results",
    "WorkerStats": "results",
    "Retry": "retry",
    "Session": "session",
    "SharedSession": "session",
}
"""Names of the supervisor's side and their modules, imported when they are first asked for: workers
import this package, too, and need none of it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(
        importlib.import_module(f"soloist.supervisor.{_HOMES[name]}"), name
    )
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
