"""Every error of Soloist, and error codes <-> exceptions.

Owns the hierarchy below the one root :class:`SoloistError` and the conversion to and from
:class:`ErrorInfo`, the form in which an error crosses a process boundary. Exceptions cross as
data, never as pickles: an exception of a user's own class arrives as :class:`ClientError` with
the class's name, its message and its traceback as text.

Invariants: each leaf has a unique ``code``; ``from_info(to_info(error))`` gives an error of the
same class with the same message, ``retryable``, ``started`` and details; ``to_info`` never
raises, and what it gives can always be encoded. A subclass of a user's own crosses as the
nearest class of this module.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from types import NoneType
from typing import Any, ClassVar, NamedTuple, TypeAlias

MAX_TEXT_CHARS = 16_384
"""Longest message or traceback that crosses a process boundary; the middle is cut out."""

_CODES: dict[str, type[SoloistError]] = {}

_Kinds: TypeAlias = tuple[type, ...]
_WHOLE: _Kinds = (int, NoneType)
_CLIENT_DETAILS: Mapping[str, _Kinds] = {
    "type_name": (str,),
    "traceback_text": (str,),
    "api_status": _WHOLE,
}
_MAX_NUMBER = 2**63


class SoloistError(Exception):
    """The root of every error that Soloist raises.

    Attributes:
        code: the error's name on the wire.
        retryable: whether sending the same prompt again may well succeed.
        started: ``False`` if the prompt certainly never ran, so that sending it again cannot run
            it twice; ``None`` if it may have run. The one source of truth on this question.
        completed: answers that a ``map`` had already received when it failed, in input order.
    """

    code: ClassVar[str] = "error"
    retryable: bool = False
    started: bool | None = None
    completed: list[Any]
    _details: ClassVar[Mapping[str, _Kinds]] = {}

    def __init__(self, message: str = "", *, started: bool | None = None) -> None:
        super().__init__(message)
        self.started = started
        self.completed = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A user's subclass with a code of its own must not take the place of one of ours.
        if "code" in cls.__dict__ and cls.__module__ == __name__:
            _CODES[cls.code] = cls

    def details(self) -> dict[str, Any]:
        """The fields beyond the message that cross the wire, by name; plain msgpack values.

        One that is not of its type is left out.
        """
        return _checked(self._details, self.__dict__)


class ClientNotFound(SoloistError):
    """The client, or the program that it needs (an agent's CLI), is not installed."""

    code = "client_not_found"


class ClientConnectError(SoloistError, ConnectionError):
    """The client could not start its conversation."""

    code = "client_connect_error"
    retryable = True


class ClientNotSerializable(SoloistError, TypeError):
    """The user's client cannot travel to a worker; the message names the culprit."""

    code = "client_not_serializable"


class InvalidOptions(SoloistError, ValueError):
    """An option is unknown or has a value that cannot be used. Nothing was spawned."""

    code = "invalid_options"

    def __init__(self, message: str = "", *, started: bool | None = False) -> None:
        super().__init__(message, started=started)


class InvalidPrompt(SoloistError, TypeError):
    """A prompt is neither a ``str`` nor a list of content blocks, or cannot be encoded."""

    code = "invalid_prompt"

    def __init__(self, message: str = "", *, started: bool | None = False) -> None:
        super().__init__(message, started=started)


class ClientError(SoloistError):
    """The agent, or the user's own callable, answered with an error.

    Attributes:
        type_name: class of the original exception, ``""`` if the agent reported the error itself.
        traceback_text: the original traceback as text, ``""`` if there is none.
        api_status: HTTP status of the failed call if the client reported one.
    """

    code = "client_error"
    _details = _CLIENT_DETAILS

    def __init__(
        self,
        message: str = "",
        *,
        type_name: str = "",
        traceback_text: str = "",
        api_status: int | None = None,
        started: bool | None = None,
    ) -> None:
        super().__init__(message, started=started)
        self.type_name = type_name
        self.traceback_text = traceback_text
        self.api_status = api_status


class ResultNotSerializable(ClientError):
    """The callable or client returned what cannot be sent back; return a ``str``."""

    code = "result_not_serializable"


class RateLimited(ClientError):
    """The agent's service refused the request because of its rate limit.

    Attributes:
        retry_after_s: seconds to wait before the next request, ``None`` if not reported.
    """

    code = "rate_limited"
    retryable = True
    _details: ClassVar = {**_CLIENT_DETAILS, "retry_after_s": (float, int, NoneType)}

    def __init__(
        self,
        message: str = "",
        *,
        retry_after_s: float | None = None,
        type_name: str = "",
        traceback_text: str = "",
        api_status: int | None = None,
        started: bool | None = None,
    ) -> None:
        super().__init__(
            message,
            type_name=type_name,
            traceback_text=traceback_text,
            api_status=api_status,
            started=started,
        )
        self.retry_after_s = retry_after_s


class RequestTimeout(SoloistError, TimeoutError):
    """The request's deadline passed; ``started`` says whether it may have run."""

    code = "request_timeout"
    retryable = True


class RequestCancelled(SoloistError):
    """The request was cancelled by its caller, or by a ``map`` that failed elsewhere."""

    code = "request_cancelled"


class WorkerLost(SoloistError):
    """The worker died while it held the request.

    Attributes:
        exitcode: exit code of the process, negative for a signal, ``None`` if unknown.
        stderr: the last lines that it wrote to standard error, ``""`` if there are none.
    """

    code = "worker_lost"
    retryable = True
    _details: ClassVar = {"exitcode": _WHOLE, "stderr": (str,)}

    def __init__(
        self,
        message: str = "",
        *,
        exitcode: int | None = None,
        stderr: str = "",
        started: bool | None = None,
    ) -> None:
        super().__init__(message, started=started)
        self.exitcode = exitcode
        self.stderr = stderr


class RestartLimitReached(SoloistError):
    """Workers died too often before their first answer; the pool stopped replacing them.

    Attributes:
        causes: why the last few did, newest last: ``WorkerLost``, or the error of a failed start.
            They stay where the Supervisor is: elsewhere it is empty, and the message names the
            last.
    """

    code = "restart_limit_reached"

    def __init__(
        self,
        message: str = "",
        *,
        causes: tuple[SoloistError, ...] = (),
        started: bool | None = False,
    ) -> None:
        super().__init__(message, started=started)
        self.causes = causes


class QueueFull(SoloistError):
    """A bound on waiting requests is reached; wait for answers, then send again."""

    code = "queue_full"
    retryable = True

    def __init__(self, message: str = "", *, started: bool | None = False) -> None:
        super().__init__(message, started=started)


class SessionBusy(SoloistError):
    """An owned session was used by a second caller, or before its turn was read to the end."""

    code = "session_busy"
    retryable = True

    def __init__(self, message: str = "", *, started: bool | None = False) -> None:
        super().__init__(message, started=started)


class OutcomeUnknown(SoloistError):
    """A request was sent again whose outcome the gateway has forgotten; it may have run."""

    code = "outcome_unknown"


class GatewayLost(SoloistError, ConnectionError):
    """A gateway cannot be reached, or not any more; made by its client, never sent."""

    code = "gateway_lost"
    retryable = True


class SessionLost(SoloistError):
    """The conversation died with its worker and cannot be resumed; close it to begin another."""

    code = "session_lost"


class SessionClosed(SoloistError):
    """The session was closed on this side, or before the request was answered."""

    code = "session_closed"


class PayloadTooLarge(SoloistError, ValueError):
    """A prompt or a result is over the size or nesting limit."""

    code = "payload_too_large"


class SlowReader(SoloistError):
    """The reader of a stream fell too far behind; its request was ended to bound memory."""

    code = "slow_reader"


class SupervisorClosed(SoloistError):
    """The Supervisor is closed, or was closed before the request was answered."""

    code = "supervisor_closed"


class TooManyWorkers(SoloistError, ValueError):
    """``size`` needs more descriptors or sockets than this machine grants."""

    code = "too_many_workers"


class ProtocolError(SoloistError):
    """The wire protocol was broken."""

    code = "protocol_error"


class HelloRequired(ProtocolError):
    """A gateway does not know the connection, or no longer; say hello, then send again."""

    code = "hello_required"
    retryable = True

    def __init__(self, message: str = "", *, started: bool | None = False) -> None:
        super().__init__(message, started=started)


class LocalProtocolError(ProtocolError):
    """This side broke the protocol: a defect in Soloist or in its caller."""

    code = "local_protocol_error"


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol: what arrived is not a valid message."""

    code = "remote_protocol_error"


class ErrorInfo(NamedTuple):
    """An error as it crosses a process boundary."""

    code: str
    message: str
    retryable: bool
    started: bool | None
    details: dict[str, Any]


def shorten(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """Cut the middle out of ``text`` so that at most about ``limit`` characters remain."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters cut ...\n{text[-half:]}"


def to_info(error: BaseException) -> ErrorInfo:
    """Turn any exception into data; never raises, whatever the exception's own methods do."""
    if not isinstance(error, SoloistError):
        error = client_error(error)
    cls = _own_class(type(error))
    return ErrorInfo(
        code=cls.code,
        message=_text_of(error),
        retryable=error.retryable is True,
        started=None if error.started is None else error.started is True,
        details=_checked(cls._details, error.__dict__),
    )


def client_error(error: BaseException) -> ClientError:
    """Turn an exception of the client's own into a :class:`ClientError` that describes it."""
    name = type(error).__qualname__
    message = _text_of(error)
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - it calls methods of the user's, which may even exit
        trace = "".join(traceback.format_tb(error.__traceback__))
    return ClientError(
        f"{name}: {message}" if message else name,
        type_name=name,
        traceback_text=_sendable(trace),
    )


def from_info(info: ErrorInfo) -> SoloistError:
    """Turn data back into the exception of the same class.

    An unknown code gives a plain :class:`SoloistError`; details that are unknown or not of their
    type are ignored, so that a newer peer can be understood.
    """
    cls = _CODES.get(info.code, SoloistError)
    error = cls(info.message, started=info.started)
    error.retryable = info.retryable
    for name, value in _checked(cls._details, info.details).items():
        setattr(error, name, value)
    return error


def _own_class(cls: type[SoloistError]) -> type[SoloistError]:
    """The class itself, or the nearest base that the other side knows."""
    if _CODES.get(cls.code) is cls:  # it nearly always is
        return cls
    known = (own for base in cls.__mro__ for own in _CODES.values() if own is base)
    return next(known, SoloistError)


def _checked(kinds: Mapping[str, _Kinds], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that have the type they should have, fit to be sent."""
    details = {}
    for name, allowed in kinds.items():
        value = values.get(name, ...)
        if isinstance(value, str):
            value = _sendable(value)
        # Neither not-a-number nor the infinities are less than anything.
        is_in_range = not isinstance(value, float | int) or abs(value) < _MAX_NUMBER
        if is_in_range and isinstance(value, allowed):
            details[name] = value
    return details


def _text_of(error: BaseException) -> str:
    try:
        return _sendable(str(error))
    except BaseException as broken:  # noqa: BLE001 - a user's __str__ may raise anything
        return f"(its message could not be read: {type(broken).__name__})"


def _sendable(text: str) -> str:
    """Shorten, and replace what UTF-8 cannot carry (lone surrogates)."""
    return shorten(text).encode("utf-8", "backslashreplace").decode("utf-8")
