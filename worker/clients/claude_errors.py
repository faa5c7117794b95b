"""The words of the claude CLI and of the Agent SDK as Soloist's errors. Pure, no I/O.

Owns the reading of both: what a failed result says, why a CLI did not start, why one was lost.
"""

from __future__ import annotations

import errno
from types import ModuleType
from typing import Any

from soloist.protocol.errors import (
    ClientConnectError,
    ClientError,
    ClientNotFound,
    InvalidOptions,
    RateLimited,
    SoloistError,
)
from soloist.worker.clients.claude_resume import UnknownConversation, is_not_found, is_taken

_NOT_EXECUTABLE = frozenset({errno.EACCES, errno.ENOEXEC, errno.ENOTDIR})
_RETRYABLE_STATUS = 408
_SERVER_FAULTS = frozenset({"server_error", "overloaded"})


def is_aborted(result: Any) -> bool:
    """Whether a result is that of an interrupted turn; older CLIs give no reason."""
    reason = result.terminal_reason
    return reason.startswith("aborted") if reason else result.api_error_status is None


def error_of(result: Any, api_error: str | None, retry_after_s: float | None) -> ClientError:
    """The error of a turn that the agent ended with one.

    Args:
        result: its ``ResultMessage``.
        api_error: the kind of error that an ``AssistantMessage`` of the turn named.
        retry_after_s: seconds until the rate limit resets, if that is known.
    """
    status = result.api_error_status
    text = _error_text(result)
    if status == 429 or api_error == "rate_limit":  # noqa: PLR2004
        return RateLimited(text, retry_after_s=retry_after_s, api_status=status)
    error = ClientError(text, api_status=status)
    is_server_fault = status is not None and (status >= 500 or status == _RETRYABLE_STATUS)  # noqa: PLR2004
    error.retryable = is_server_fault or (status is None and api_error in _SERVER_FAULTS)
    return error


def refused(error: Exception) -> InvalidOptions:
    """The error of options that the Agent SDK does not take."""
    return InvalidOptions(f"the Agent SDK refused the options: {error}")


def unstarted(sdk: ModuleType, error: Exception, last_words: str) -> SoloistError:
    """The error of a CLI that did not start, from the SDK's and what it wrote by then."""
    reason = getattr(error.__cause__, "errno", None)
    if isinstance(error, sdk.CLINotFoundError) or reason in _NOT_EXECUTABLE:
        return ClientNotFound(
            f"the claude CLI cannot be started: {error}. The package claude-agent-sdk carries "
            "it; otherwise set the option cli_path"
        )
    if isinstance(error, ValueError | TypeError):
        return refused(error)
    return ended_at_start(_words_of(error), last_words)


def ended_at_start(words: str, last_words: str) -> ClientConnectError:
    """The error of a CLI that began and ended; retryable unless the session id is to blame."""
    message = words + last_words
    if is_not_found(message):
        return UnknownConversation(message)
    error = ClientConnectError(message)
    error.retryable = not is_taken(message)
    return error


def lost(error: Exception | None, last_words: str) -> ClientError:
    """The error of a CLI that is gone."""
    words = "it ended by itself" if error is None else _words_of(error)
    gone = ClientError(f"the claude CLI was lost: {words}{last_words}")
    gone.retryable = True
    return gone


def _error_text(result: Any) -> str:
    """The most telling text of a failed result; an API error's subtype says "success"."""
    if result.errors:
        return "; ".join(result.errors)
    if result.result:
        return str(result.result)
    return result.subtype if result.subtype != "success" else "the agent reported an error"


def _words_of(error: Exception) -> str:
    exit_code = getattr(error, "exit_code", None)
    has_own_words = type(error).__name__ == "ResultError"
    if exit_code is not None and not has_own_words:
        return f"it ended with exit code {exit_code}"
    return str(error) or type(error).__name__
