"""How prompts become requests: checked, encoded in the caller's thread, handed to the I/O thread.

What ``Supervisor`` and its sessions share. Any thread may call anything here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from soloist.protocol import codec
from soloist.protocol.codec import Prompt
from soloist.protocol.errors import QueueFull, SoloistError
from soloist.supervisor import limits
from soloist.supervisor.engine import Engine
from soloist.supervisor.futures import Dispatcher, RequestFuture
from soloist.supervisor.request import POOL, Request
from soloist.supervisor.response import Response
from soloist.supervisor.stream import Stream


class Intake:
    """Makes requests and hands them over.

    Args:
        engine: carries them out.
        dispatcher: runs the callbacks of futures.
        timeout_s: seconds per request unless its call says otherwise.
        max_pending: most futures without an outcome.
        max_payload_bytes: largest encoded prompt.
        stream_buffer_bytes: how far the reader of a stream may fall behind.

    Attributes:
        timeout_s: as given, as is ``max_payload_bytes``.
    """

    def __init__(
        self,
        engine: Engine,
        dispatcher: Dispatcher,
        *,
        timeout_s: float | None,
        max_pending: int,
        max_payload_bytes: int,
        stream_buffer_bytes: int,
    ) -> None:
        self.engine = engine
        self.dispatcher = dispatcher
        self.timeout_s = timeout_s
        self._max_pending = max_pending
        self.max_payload_bytes = max_payload_bytes
        self._stream_buffer_bytes = stream_buffer_bytes
        self._pending: set[RequestFuture] = set()

    def request(
        self,
        prompt: Prompt,
        sink: Any,
        index: int = 0,
        timeout_s: float | None = None,
        *,
        is_streamed: bool = False,
        session: int = POOL,
    ) -> Request:
        """Make a request; its time runs from now.

        Raises:
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        request = Request(
            prompt,
            codec.encode_prompt(prompt, self.max_payload_bytes),
            sink,
            index=index,
            deadline=None if timeout_s is None else time.monotonic() + timeout_s,
            is_streamed=is_streamed,
        )
        if session != POOL:
            request.session = session
        return request

    def submit(self, request: Request) -> None:
        """Hand a request over.

        Raises:
            SupervisorClosed: the I/O thread has ended.
        """
        self.engine.submit((request,))

    def cancel(self, request: Request) -> None:
        """End a request early."""
        self.engine.cancel((request,))

    def future(
        self, prompt: Prompt, timeout_s: float | None, owner: object, session: int = POOL
    ) -> RequestFuture:
        """Send a prompt whose answer is wanted as a whole, later.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now, the wait in the queue included.
            owner: kept alive until the outcome.
            session: whose worker answers.

        Raises:
            QueueFull: too many futures have no outcome yet.
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent.
            InvalidOptions: ``timeout_s`` is no number of seconds.
            SupervisorClosed: closed.
        """
        if timeout_s is not None:  # it is on the way of every request
            limits.check_seconds(timeout_s=timeout_s)
        if len(self._pending) >= self._max_pending:
            raise QueueFull(f"{self._max_pending:,} requests wait already (max_pending)")
        future = RequestFuture(self.cancel, self.dispatcher, self._pending, owner)
        future.request = self.request(prompt, future, 0, timeout_s, session=session)
        self._pending.add(future)
        try:
            self.submit(future.request)
        except SoloistError:
            self._pending.discard(future)
            raise
        return future

    def response(
        self,
        prompt: Prompt,
        timeout_s: float | None,
        owner: object,
        session: int = POOL,
        on_control: Callable[..., Any] | None = None,
    ) -> Response:
        """Send a prompt whose messages are wanted as they arrive.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now, the wait in the queue included.
            owner: kept alive until the outcome.
            session: whose worker answers.
            on_control: answers what the client asks its caller meanwhile.

        Raises:
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent.
            InvalidOptions: ``timeout_s`` is no number of seconds.
            SupervisorClosed: closed.
        """
        if timeout_s is not None:
            limits.check_seconds(timeout_s=timeout_s)
        stream = Stream(self._stream_buffer_bytes)
        request = self.request(prompt, stream, 0, timeout_s, is_streamed=True, session=session)
        if on_control is not None:
            request.on_control = on_control
        self.submit(request)
        return Response(request, stream, self.cancel, owner)
