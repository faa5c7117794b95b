"""Soloist: a supervisor of worker processes that each hold exactly one stateful client.

``from soloist import Supervisor`` is all that most programs need.
"""

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
    SlowReader,
    SoloistError,
    SupervisorClosed,
    TooManyWorkers,
    WorkerLost,
)
from soloist.supervisor.api import Supervisor
from soloist.supervisor.futures import RequestFuture
from soloist.supervisor.results import Result, Stats, WorkerStats

__version__ = "0.1.0"

__all__ = [
    "AssistantMessage",
    "ClientConnectError",
    "ClientError",
    "ClientNotFound",
    "ClientNotSerializable",
    "ContentBlock",
    "InvalidOptions",
    "InvalidPrompt",
    "LocalProtocolError",
    "Message",
    "PayloadTooLarge",
    "Prompt",
    "ProtocolError",
    "QueueFull",
    "RateLimited",
    "RemoteProtocolError",
    "RequestCancelled",
    "RequestFuture",
    "RequestTimeout",
    "RestartLimitReached",
    "Result",
    "ResultMessage",
    "ResultNotSerializable",
    "ServerToolResultBlock",
    "ServerToolUseBlock",
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
]
