"""What a client asks its caller while it works (permissions, hooks), and who answers.

Runs the caller's handlers, each question on a thread of its own, for a handler may wait for a
person. The worker waits with a deadline and takes silence for no; here nobody waits.

Invariant: a question gets at most one reply; a handler that is missing, raises or gives nonsense
denies.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from soloist.protocol import codec
from soloist.protocol.content import Map
from soloist.protocol.errors import RemoteProtocolError
from soloist.protocol.messages import Control, ControlReply
from soloist.supervisor import events

MAX_QUESTIONS = 256
"""Most handlers at work; what is asked beyond is denied."""


@dataclasses.dataclass(frozen=True, slots=True)
class ControlRequest:
    """A question of a client to the caller whose prompt it works on.

    Attributes:
        kind: ``"permission"``, ``"hook"``, or what a client of your own calls it.
        data: the question. For ``permission``: ``tool_name``, ``input``, perhaps ``suggestions``;
            for ``hook``: ``input`` as the Agent SDK gives it, and ``tool_use_id``.
        prompt: the prompt that the client works on.
        session: name of its session; empty for the pool and for owned sessions.
    """

    kind: str
    data: Map
    prompt: codec.Prompt
    session: str


Handler: TypeAlias = Callable[[ControlRequest], Any]
"""Answers a question; sync or async. For ``permission``: a bool, or a map or SDK object with
``behavior`` (``"allow"`` or ``"deny"``), ``updated_input``, ``message``, ``interrupt``; for
``hook``: the hook's output; otherwise any map."""


class ControlDesk:
    """Has questions answered.

    Args:
        handler: answers what no request's own handler does; ``None`` denies.
    """

    def __init__(self, handler: Handler | None) -> None:
        self.handler = handler
        self._places = threading.BoundedSemaphore(MAX_QUESTIONS)

    def ask(
        self,
        question: Control,
        prompt: codec.Prompt,
        session: str,
        own: Handler | None,
        reply: Callable[[ControlReply], None],
    ) -> None:
        """Have one question answered; returns at once.

        Args:
            question: what the worker sent.
            prompt: the prompt that runs there.
            session: its session's name.
            own: the request's own handler.
            reply: gets the answer, on any thread.
        """

        def answer(data: Map) -> None:
            reply(ControlReply(question.number, _encoded(data)))

        handler = own or self.handler
        if handler is None:
            answer({"error": "there is no on_control handler"})
            return
        try:
            request = ControlRequest(
                question.kind, codec.decode_value(question.data), prompt, session
            )
        except RemoteProtocolError as error:
            answer({"error": str(error)})
            return
        if not self._places.acquire(blocking=False):
            answer({"error": f"{MAX_QUESTIONS} questions wait for an answer already"})
            return
        thread = threading.Thread(
            target=self._run, args=(handler, request, answer), name="soloist-control", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads
            self._places.release()
            answer({"error": f"the on_control handler cannot run: {error}"})

    def _run(
        self, handler: Handler, request: ControlRequest, answer: Callable[[Map], None]
    ) -> None:
        try:
            value = handler(request)
            if inspect.iscoroutine(value):
                value = asyncio.run(_whole(value))
            answer(_as_map(request.kind, value))
        except BaseException as error:  # noqa: BLE001 - sys.exit() is no answer, either
            events.failed(events.CONTROL_FAILED)
            answer({"error": f"the on_control handler raised {type(error).__name__}"})
        finally:
            self._places.release()


async def _whole(value: Coroutine[Any, Any, Any]) -> Any:
    return await value


def _as_map(kind: str, value: Any) -> Map:
    """The reply as a plain map; what says nothing denies."""
    if kind == "permission" and (value is None or isinstance(value, bool)):
        return {"behavior": "allow" if value else "deny"}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        value = {name: _as_plain(item) for name, item in fields.items() if item is not None}
    if kind == "hook":
        value = {"output": {} if value is None else value}
    if not isinstance(value, dict):
        raise TypeError(f"a {kind} is answered with a map, not {type(value).__name__}")
    return value


def _as_plain(value: Any) -> Any:
    """A field of an SDK object; what knows its own wire form (permission updates) is put so."""
    if isinstance(value, list):
        return [item.to_dict() if hasattr(item, "to_dict") else item for item in value]
    return value


def _plain(value: Any) -> Any:
    """The Agent SDK's objects as the maps that they stand for."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def _encoded(data: Map) -> bytes:
    try:
        return codec.encode_value(data)
    except (TypeError, ValueError, OverflowError) as error:
        return codec.encode_value({"error": f"the answer cannot be sent: {error}"})
