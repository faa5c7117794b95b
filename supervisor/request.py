"""A request as the supervisor's side sees it, and the slot that its outcome goes to.

Pure data. A request is touched by the caller's thread until it is handed over, and by the I/O
thread alone from then on; ``outcome`` is written once, by the I/O thread, just before the sink
is told.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from soloist.protocol.codec import Prompt
from soloist.protocol.errors import SoloistError
from soloist.protocol.messages import Answer
from soloist.protocol.transitions import REQUEST, RequestEvent, RequestState, advance

POOL = -1
"""In the place of a session's number: any worker of the pool."""

Outcome: TypeAlias = Answer | SoloistError
"""How a request ended: the worker's answer, or the error that its caller gets."""


class Sink(Protocol):
    """Where a request's outcome goes. Called on the I/O thread: never blocks, never raises."""

    def settle(self, request: Request) -> None:
        """Take the one terminal outcome, which stands in ``request.outcome``."""

    def stream(self, request: Request, message: bytes) -> bool:
        """Take one encoded message as it arrives; ``False`` if the reader is too slow for it."""


class Request:
    """One prompt, its deadline and its reply slot.

    Args:
        prompt: the prompt as the caller gave it.
        payload: the prompt encoded.
        sink: where the outcome goes.
        index: position in the caller's input.
        deadline: ``time.monotonic()`` at which it times out, ``None`` for never.
        is_streamed: whether the caller wants every message as it arrives.
    """

    # Defaults on the class: one of these is made per prompt, and most fields stay as they are.
    state = RequestState.QUEUED
    outcome: Outcome | None = None
    error: SoloistError | None = None  # what its caller hears once it is drained
    order = 0  # position, from 1, among all that its pool or session has taken in
    worker = -1
    lease = 0
    attempts = 0
    incarnation = 1  # of the session, when it was given to its worker
    failure: SoloistError | None = None  # what its last attempt ended with, if it was retried
    may_have_run = False  # in an attempt that was retried
    has_killed = False  # a worker died while it ran this
    began = 0.0  # when its first attempt did, if that was retried
    session = POOL
    count = 1  # of prompts; more only in a part of a chunk
    on_control: Any = None  # answers what the client asks its caller meanwhile

    def __init__(
        self,
        prompt: Prompt,
        payload: bytes,
        sink: Sink | None = None,
        *,
        index: int = 0,
        deadline: float | None = None,
        is_streamed: bool = False,
    ) -> None:
        self.prompt = prompt
        self.payload = payload
        self.sink: Any = sink
        self.index = index
        self.deadline = deadline
        self.is_streamed = is_streamed

    def __repr__(self) -> str:
        where = f" worker {self.worker}" if self.state is RequestState.LEASED else ""
        return f"<Request {self.index} {self.state.value}{where}>"

    def advance(self, event: RequestEvent) -> None:
        """Change state by the table; an impossible event is a defect and raises."""
        try:  # in the place of a call: this is done at every step of every request
            self.state = REQUEST[self.state][event]
        except KeyError:
            self.state = advance(REQUEST, self.state, event)

    def settle(self, outcome: Outcome) -> None:
        """Record the one terminal outcome and hand it to the sink, then let go of that.

        Most sinks hold their request: both would stay until the garbage collector comes, and it
        would come more often.
        """
        self.outcome = outcome
        sink, self.sink = self.sink, None
        sink.settle(self)
