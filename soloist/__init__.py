"""Soloist: a supervisor of worker processes that each hold exactly one stateful client.

``from soloist import Supervisor`` is all that most programs need.
"""

import logging

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
    InvalidOptions,
    InvalidPrompt,
    LocalProtocolError,
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
from soloist.supervisor.aio import AsyncSupervisor
from soloist.supervisor.aio_intake import AsyncRequestFuture, AsyncResponse
from soloist.supervisor.aio_session import AsyncSession, AsyncSharedSession
from soloist.supervisor.api import Supervisor
from soloist.supervisor.control import ControlRequest
from soloist.supervisor.futures import RequestFuture
from soloist.supervisor.oneshot import query
from soloist.supervisor.rate import RateLimit
from soloist.supervisor.response import Response
from soloist.supervisor.results import Result, SessionStats, Stats, WorkerStats
from soloist.supervisor.retry import Retry
from soloist.supervisor.session import Session, SharedSession
from soloist.worker.control import ask_caller, ask_hook, ask_permission

__version__ = "0.1.0"

# What the library and its workers say is for whoever asks logging for it, see docs/logging.md.
logging.getLogger("soloist").addHandler(logging.NullHandler())

__all__ = [
    "AssistantMessage",
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
    "InvalidOptions",
    "InvalidPrompt",
    "LocalProtocolError",
    "Message",
    "PayloadTooLarge",
    "Prompt",
    "ProtocolError",
    "QueueFull",
    "RateLimit",
    "RateLimited",
    "RemoteProtocolError",
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
    "query",
]
