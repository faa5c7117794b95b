"""Conversations that a caller can name or own: ``SharedSession`` and ``Session``.

Both are handles: the conversation itself lives in a worker behind a broker. A shared session's
handle may be used from any thread; an owned one belongs to one caller at a time and says so.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from soloist.protocol.codec import Prompt
from soloist.protocol.content import Message, is_result
from soloist.protocol.errors import LocalProtocolError, RequestCancelled, SessionBusy, SoloistError
from soloist.supervisor import limits
from soloist.supervisor.brokers import Address
from soloist.supervisor.control import Handler
from soloist.supervisor.engine import Engine
from soloist.supervisor.futures import RequestFuture
from soloist.supervisor.intake import Intake
from soloist.supervisor.response import Response
from soloist.supervisor.results import SessionStats

_CONNECTED = frozenset({"idle", "running", "draining"})

_User = TypeVar("_User")


def incarnation_of(stats: SessionStats | None) -> int:
    """The number of a conversation's worker, from 1; 0 once the session is over."""
    return 0 if stats is None else stats.incarnation


def is_connected(stats: SessionStats | None) -> bool:
    """Whether a session's client can take a prompt."""
    return stats is not None and stats.state in _CONNECTED


class Turns(Generic[_User]):
    """Whose turn it is in an owned session, which takes one prompt at a time, from one user.

    Invariants: a prompt follows another only when that one's turn is over, read to its result,
    closed or interrupted, or its user has died; nobody reads the answer to another living user's
    prompt.

    Args:
        me: who calls.
        is_alive: whether a user may still come back.
    """

    def __init__(self, me: Callable[[], _User], is_alive: Callable[[_User], bool]) -> None:
        self._me = me
        self._is_alive = is_alive
        self._lock = threading.Lock()
        self._response: Response | None = None
        self._interrupted: Response | None = None
        self._user: _User | None = None

    def begin(self, send: Callable[[], Response]) -> None:
        """Send a prompt.

        Raises:
            SessionBusy: the turn before has not ended.
        """
        with self._lock:
            before = self._response
            if before is not None and not self._may_follow(before):
                raise SessionBusy("the turn before has not ended")
            if before is not None and not self._is_ending(before):
                before.close()  # its user has died; first, for the queue has one place
            response = send()
            response.detach()  # what nobody reads runs on, as with ClaudeSDKClient
            self._response, self._user = response, self._me()

    def read(self) -> Response:
        """Give the answer to the prompt that was sent last; who reads it is its user.

        Raises:
            SessionBusy: it is another's.
            LocalProtocolError: nothing was sent.
        """
        with self._lock:
            if self._response is None:
                raise LocalProtocolError("receive_response() comes after query()")
            me = self._me()
            if self._user is not me and self._has_user():
                raise SessionBusy("another caller is using this session")
            self._user = me
            return self._response

    def interrupt(self) -> Response | None:
        """Take note that the running turn is ended early; give it, if there is one."""
        with self._lock:
            self._interrupted = self._response
        return self._interrupted

    def is_ended(self, response: Response, last: Message | None) -> bool:
        """Whether a cancelled turn has ended as an interrupted one should: with its result."""
        return response is self._interrupted and is_result(last)

    def _may_follow(self, before: Response) -> bool:
        return self._is_ending(before) or before.is_closed or not self._has_user()

    def _is_ending(self, response: Response) -> bool:
        """Whether its turn ends by itself, and soon."""
        return response.is_over or response.is_read or response is self._interrupted

    def _has_user(self) -> bool:
        return self._user is not None and self._is_alive(self._user)


class TurnReader(Iterator[Message]):
    """Iterates over the messages of one turn of an owned session; the last is a ``ResultMessage``.

    Closing it, leaving its ``with`` block or dropping it before its end interrupts the turn.
    """

    def __init__(self, turns: Turns[Any], response: Response) -> None:
        self._turns = turns
        self._response = response
        self._last: Message | None = None
        self._dropped = weakref.finalize(self, response.close)
        self._dropped.atexit = False

    def __next__(self) -> Message:
        try:
            self._last = next(self._response)
        except BaseException as error:
            self.close()
            if isinstance(error, RequestCancelled) and self._is_ended():
                raise StopIteration from None
            raise
        return self._last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it early: the turn is interrupted, and nothing more is read."""
        self._dropped()

    def _is_ended(self) -> bool:
        return self._turns.is_ended(self._response, self._last)


class _Handle:
    """What both kinds of session have."""

    def __init__(self, intake: Intake, address: Address, owner: object) -> None:
        self._intake = intake
        self._number = address.number
        self._owner = owner

    def stats(self) -> SessionStats | None:
        """A consistent, immutable snapshot; ``None`` once the session is over."""
        return self._intake.engine.session_stats(self._number).result()

    @property
    def incarnation(self) -> int:
        """The number of the conversation's worker, from 1; 0 once the session is over."""
        return incarnation_of(self.stats())

    @property
    def is_connected(self) -> bool:
        """Whether its client can take a prompt now."""
        return is_connected(self.stats())


class SharedSession(_Handle):
    """One conversation for many callers: they are served in the order in which they come.

    Any thread may call any method, and callers in other processes and languages use the socket at
    ``endpoint`` (see ``protocol/SPEC.md``); all stand in one queue. Made by ``Supervisor.shared``.

    Attributes:
        name: what its callers call it.
        endpoint: ``ipc://`` address of its broker's socket.
        ticket: admits others through the same gateway; empty if there is none between.
    """

    def __init__(self, intake: Intake, name: str, address: Address, owner: object) -> None:
        super().__init__(intake, address, owner)
        self.name = name
        self.endpoint = address.endpoint
        self.ticket = address.ticket

    def __repr__(self) -> str:
        return f"<SharedSession {self.name!r} {self.endpoint}>"

    def query_and_receive(
        self, prompt: Prompt, *, timeout_s: float | None = None, on_control: Handler | None = None
    ) -> Response:
        """Send a prompt, at the end of the queue, and read the messages of its own answer.

        The prompt is sent by this call, not by the first ``next``. Closing or dropping the
        iterator takes the prompt out of the queue or interrupts its turn; nobody else gets what
        is left of its answer.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now, the wait in the queue included.
            on_control: answers what the client asks its caller meanwhile, in place of the
                Supervisor's.

        Raises:
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
            InvalidOptions: ``timeout_s`` is no number of seconds.

        Reading it raises the request's error: ``QueueFull``, ``RequestTimeout``,
        ``RequestCancelled``, ``SlowReader``, ``WorkerLost``, ``SessionLost``, ``SessionClosed``
        or the client's own.
        """
        return self._intake.response(prompt, timeout_s, self, self._number, on_control)

    def query(self, prompt: Prompt, *, timeout_s: float | None = None) -> RequestFuture:
        """Send a prompt, for instance to add to the context; nobody has to wait for its answer.

        Returns:
            A ``concurrent.futures.Future`` of a ``Result``, as ``Supervisor.submit`` gives it.

        Raises:
            QueueFull: ``max_pending`` futures have no outcome yet.
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
        """
        return self._intake.future(prompt, timeout_s, self, self._number)

    def interrupt(self) -> None:
        """End the running turn early, whoever asked for it; without one, do nothing.

        Its caller gets ``RequestCancelled``; the next in the queue follows.
        """
        self._intake.engine.interrupt_session(self._number)

    def close(self, *, drain: bool = False, timeout_s: float | None = None) -> None:
        """End the conversation for everybody; returns when its worker has gone.

        Args:
            drain: whether those who wait are still served, in up to ``timeout_s``; else they get
                ``SessionClosed``, and the running turn is interrupted.
            timeout_s: ``None`` for no limit.

        Raises:
            InvalidOptions: ``timeout_s`` is no number of seconds.
        """
        _close(self._intake.engine, self._number, drain=drain, timeout_s=timeout_s)


class Session(_Handle):
    """A conversation of one caller's own, with the methods of ``ClaudeSDKClient``.

    Made by ``Supervisor.session``. It takes one prompt at a time, from one thread at a time:
    whoever comes in between gets ``SessionBusy`` at once. ``interrupt`` may come from any thread.
    Leaving the ``with`` block ends the conversation and its worker.
    """

    def __init__(self, intake: Intake, address: Address, owner: object) -> None:
        super().__init__(intake, address, owner)
        self._turns = Turns(threading.current_thread, threading.Thread.is_alive)
        self._forgotten = weakref.finalize(self, forgotten, intake.engine, self._number)
        self._forgotten.atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def query(
        self, prompt: Prompt, *, timeout_s: float | None = None, on_control: Handler | None = None
    ) -> None:
        """Send a prompt; its answer is read with ``receive_response``.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now to the end of the answer.
            on_control: answers what the client asks its caller meanwhile, in place of the
                Supervisor's.

        Raises:
            SessionBusy: the turn before has not ended; read it to its end, close its iterator, or
                call ``interrupt``.
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
        """
        self._turns.begin(
            lambda: self._intake.response(prompt, timeout_s, self, self._number, on_control)
        )

    def receive_response(self) -> TurnReader:
        """Read the messages of the prompt that was sent last, as they arrive.

        Closing or dropping the iterator before its end interrupts the turn. After ``interrupt``
        it ends with the turn's ``ResultMessage``, as ``ClaudeSDKClient``'s does.

        Raises:
            SessionBusy: another thread, which is still alive, sent the prompt.
            LocalProtocolError: nothing was sent.
            SoloistError: while it is read: the request's error, after the messages before it.
        """
        return TurnReader(self._turns, self._turns.read())

    def query_and_receive(
        self, prompt: Prompt, *, timeout_s: float | None = None, on_control: Handler | None = None
    ) -> TurnReader:
        """``query``, then ``receive_response``; the prompt is sent by this call."""
        self.query(prompt, timeout_s=timeout_s, on_control=on_control)
        return self.receive_response()

    def interrupt(self) -> None:
        """End the running turn early; without one, do nothing. Returns at once."""
        if (response := self._turns.interrupt()) is not None:
            self._intake.cancel(response.request)

    def set_model(self, model: str | None = None) -> None:
        """Go on with another model, where the client has ``set_model``.

        Raises:
            InvalidOptions: it has not.
            SoloistError: what it raised; ``WorkerLost`` if it died meanwhile.
        """
        self._command("set_model", model)

    def set_permission_mode(self, mode: str) -> None:
        """Go on with another permission mode, where the client has ``set_permission_mode``.

        Raises:
            InvalidOptions: it has not.
            SoloistError: what it raised; ``WorkerLost`` if it died meanwhile.
        """
        self._command("set_permission_mode", mode)

    def close(self) -> None:
        """End the conversation; returns when its worker has gone. May be called again."""
        self._forgotten.detach()
        _close(self._intake.engine, self._number, drain=False, timeout_s=None)

    def _command(self, name: str, *arguments: Any) -> None:
        self._intake.engine.command(self._number, name, list(arguments)).result()


def _close(engine: Engine, number: int, *, drain: bool, timeout_s: float | None) -> None:
    limits.check_seconds(timeout_s=timeout_s)
    closed: Future[None] = engine.close_session(number, drain=drain)
    try:
        closed.result(timeout_s if drain else None)
    except TimeoutError:
        engine.close_session(number, drain=False).result()


def abandon(engine: Engine, number: int) -> None:
    """Close a session that nobody will use; waits for nothing."""
    with contextlib.suppress(SoloistError):  # everything is closed
        engine.close_session(number, drain=False)


def forgotten(engine: Engine, number: int) -> None:
    """A session was collected without ``close``: clean up without waiting for it."""
    if engine.is_closed.is_set():
        return
    abandon(engine, number)
    # Last, because a warning may be turned into an error.
    warnings.warn(
        "a Session was not closed; use `with supervisor.session()` or call close()",
        ResourceWarning,
        stacklevel=2,
    )
