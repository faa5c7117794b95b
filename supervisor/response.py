"""``Response``: the messages of one request, as its caller reads them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from soloist.protocol import codec, public_codec
from soloist.protocol.content import Message, is_result
from soloist.protocol.errors import SoloistError
from soloist.protocol.messages import Answer
from soloist.supervisor.request import Request
from soloist.supervisor.results import Result
from soloist.supervisor.stream import Stream


class Response(Iterator[Message]):
    """Iterates over the messages of one answer; the last one is a ``ResultMessage``.

    The prompt was sent when this was made. Closing it, leaving its ``with`` block or dropping it
    before its end interrupts the turn; what is left of that turn reaches nobody. It is read by
    one thread at a time; ``close`` may come from any.

    Raises:
        SoloistError: while it is read: the request's error, after the messages before it.
    """

    def __init__(
        self, request: Request, stream: Stream, cancel: Callable[[Request], None], owner: object
    ) -> None:
        self.request = request
        self._cancel = cancel
        # An iterator that nobody holds any more is read by nobody.
        self._dropped = weakref.finalize(self, _drop, cancel, request)
        self._dropped.atexit = False
        self._stream = stream
        self._owner: object | None = owner
        self._count = 0
        self._rest: Iterator[Message] | None = None
        self._is_closed = False
        self._is_read = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        if self._rest is None:
            data = self._stream.next()
            if data is not None:
                return self.take(data)
            self._rest = self._ended()
        return next(self._rest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_over(self) -> bool:
        """Whether the request has its outcome, read or not."""
        return self.request.outcome is not None

    @property
    def is_closed(self) -> bool:
        """Whether it was closed before its end."""
        return self._is_closed

    def arm(self, notify: Callable[[], None]) -> bool:
        """Have ``notify`` called, once, when ``next`` need not wait; ``False`` if it need not now.

        It is called on the I/O thread.
        """
        return self._rest is None and self._stream.arm(notify)

    @property
    def is_read(self) -> bool:
        """Whether its ``ResultMessage`` was given; its outcome follows soon if it is not there."""
        return self._is_read

    def detach(self) -> None:
        """Let the turn run on when nobody holds this any more."""
        self._dropped.detach()

    def close(self) -> None:
        """End it early: the turn is interrupted, and nothing more is read."""
        self._is_closed = True
        self._rest = iter(())
        self._owner = None
        self._dropped.detach()
        if not self._is_read:
            _drop(self._cancel, self.request)

    def take(self, data: bytes) -> Message:
        """Count and decode one message of the stream."""
        self._count += 1
        message = codec.decode_message(data)
        self._is_read = is_result(message)
        if self._is_read:  # there is nothing left to interrupt
            self._dropped.detach()
        return message

    def _ended(self) -> Iterator[Message]:
        """What comes after the stream: nothing, the error, or what was not streamed."""
        outcome = self.request.outcome
        self._owner = None
        # An error that is raised refers to this reader: held by the finalizer, it would stay.
        self._dropped.detach()
        if self._is_closed:
            return
        if isinstance(outcome, SoloistError):
            raise outcome
        if isinstance(outcome, Answer) and outcome.messages:
            for data in public_codec.split(outcome.messages, self._count):  # most often none
                yield codec.decode_message(data)
        elif isinstance(outcome, Answer):  # of a bare callable, which has none of its own
            yield from Result.of(self.request, outcome).messages[self._count :]


def _drop(cancel: Callable[[Request], None], request: Request) -> None:
    if request.outcome is None:
        cancel(request)
