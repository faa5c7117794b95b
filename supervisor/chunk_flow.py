"""The consumer's side of a ``map`` over a list: chunks of text, results by the list.

Works in the consumer's thread, as :mod:`soloist.supervisor.flow` does for everything that has to
be pulled one by one. Whether prompts run in chunks or one by one is for the pool to say.

Invariant: the I/O thread never waits here; it wakes the consumer only if that sleeps on what has
just come.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from soloist.protocol import codec
from soloist.protocol.codec import Prompt
from soloist.protocol.errors import RequestTimeout, SoloistError
from soloist.protocol.ledger import CHUNK_ITEMS
from soloist.supervisor import limits
from soloist.supervisor.chunk import MOST_BYTES, Chunk, Part
from soloist.supervisor.flow import error_of
from soloist.supervisor.intake import Intake
from soloist.supervisor.request import Request
from soloist.supervisor.results import Result

_SHARE = 4
"""So many chunks fill a window, so that some wait while others run."""
_AHEAD_S = 0.02
_MOST_AHEAD = 8192
"""More of quick prompts are in flight than the least: what is answered in this time, up to so
many."""


class ChunkFlow:
    """One ``map`` over a list or tuple, without a time limit for each prompt.

    Args:
        intake: where requests go.
        max_requests: most prompts in flight.
        may_grow: whether there may be more of quick ones.
        total_timeout_s: seconds for the whole.
        is_fail_fast: whether the first error ends it.

    Raises:
        InvalidOptions: the time is no number of seconds.
    """

    def __init__(
        self,
        intake: Intake,
        *,
        max_requests: int,
        may_grow: bool,
        total_timeout_s: float | None,
        is_fail_fast: bool,
    ) -> None:
        limits.check_seconds(total_timeout_s=total_timeout_s)
        self._deadline = None if total_timeout_s is None else time.monotonic() + total_timeout_s
        self._total_timeout_s = total_timeout_s
        self._intake = intake
        self._max_requests = max_requests
        self._most = max(1, min(CHUNK_ITEMS, max_requests // _SHARE))
        self._may_grow = may_grow
        self._began = time.monotonic()
        self._is_fail_fast = is_fail_fast
        self._chunks: deque[Chunk] = deque()
        self._position = 0  # in the input
        self._settled = 0  # prompts; written by the I/O thread alone
        self._is_waiting = False
        self._wake_at = 0  # so many settled make room that is wanted
        self._wakeup = threading.Event()
        self._failed: Request | None = None

    def run(self, prompts: Sequence[Prompt]) -> list[Any]:
        """Give the outcome of every prompt; at the end, however it comes, cancel the rest.

        Raises:
            SoloistError: the first error, if it is fail-fast, or ``RequestTimeout`` for the whole;
                ``completed`` holds the results that there are.
        """
        found: list[Any] = []
        try:
            while True:
                self._fill(prompts)
                if not self._chunks:
                    return found
                self._wait(len(prompts))
                if self._may_grow:
                    self._grow()
                while self._chunks and not self._chunks[0].left:
                    found += self._chunks.popleft().results()
        except SoloistError as error:
            rest = [outcome for chunk in self._chunks for outcome in chunk.results()]
            error.completed = [o for o in (*found, *rest) if isinstance(o, Result)]
            raise
        finally:
            self._intake.engine.cancel([Part(chunk, 0, 0) for chunk in self._chunks if chunk.left])

    def settled(self, chunk: Chunk, count: int, failed: Request | None) -> None:
        """Take note of outcomes, on the I/O thread."""
        self._settled += count
        if failed is not None and self._failed is None:
            self._failed = failed
        if self._is_waiting and (
            not chunk.left
            or self._settled >= self._wake_at
            or (self._is_fail_fast and failed is not None)
        ):
            self._is_waiting = False
            self._wakeup.set()

    def _fill(self, prompts: Sequence[Prompt]) -> None:
        while self._position < len(prompts) and not self._is_late():
            room = self._max_requests - (self._position - self._settled)
            if room < min(self._most, len(prompts) - self._position):
                return
            self._put(prompts[self._position : self._position + self._most])

    def _grow(self) -> None:
        """Have as many in flight as are answered in a short time, if that is more."""
        seconds = time.monotonic() - self._began
        ahead = min(_MOST_AHEAD, int(self._settled * _AHEAD_S / seconds))
        if ahead > self._max_requests:
            self._max_requests = ahead
            self._most = min(CHUNK_ITEMS, ahead // _SHARE)

    def _put(self, prompts: Sequence[Prompt]) -> None:
        """Hand prompts over, as a chunk if they can be one."""
        size = codec.size_of_texts(prompts)
        if size is not None and size <= self._intake.max_payload_bytes:
            most = len(prompts) if size <= MOST_BYTES else max(1, len(prompts) * MOST_BYTES // size)
            texts: list[str] = list(prompts[:most])  # type: ignore[arg-type]
            chunk = self._begin(texts)
            self._submit(Part(chunk, 0, len(texts)))
            return
        for prompt in prompts:
            chunk = self._begin([prompt])  # type: ignore[list-item]
            index = chunk.index
            try:
                request = self._intake.request(prompt, chunk, index)
            except SoloistError as error:
                request = Request(prompt, b"", chunk, index=index)
                chunk.requests[index] = request
                request.settle(error)
                continue
            chunk.requests[index] = request
            self._submit(request)

    def _begin(self, prompts: list[str]) -> Chunk:
        chunk = Chunk(prompts, self._position, self.settled)
        self._chunks.append(chunk)
        self._position += len(prompts)
        return chunk

    def _submit(self, request: Request) -> None:
        try:
            self._intake.submit(request)
        except SoloistError as error:  # closed: it is not among the rest that is cancelled
            request.settle(error)
            raise

    def _wait(self, count: int) -> None:
        """Sleep until the first chunk is done, or more input can be handed over.

        Raises:
            SoloistError: an error that ends the run.
        """
        while True:
            has_more = self._position < count
            wanted = self._position - self._max_requests + min(self._most, count - self._position)
            self._wake_at = wanted if has_more else 1 << 62
            self._wakeup.clear()
            self._is_waiting = True
            if self._is_fail_fast and self._failed is not None:
                raise error_of(self._failed)
            if not self._chunks[0].left or self._settled >= self._wake_at:
                break
            timeout = None if self._deadline is None else self._deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                raise RequestTimeout(f"the call took longer than {self._total_timeout_s:g} s")
            self._wakeup.wait(timeout)
        self._is_waiting = False

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline
