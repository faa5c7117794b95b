"""What decisions are made of: the view of one worker, and the actions that are to be done.

Pure data, used by the pool and by every broker; ``workers.py`` carries the actions out. The state
of a worker changes by the table of :mod:`soloist.protocol.transitions`.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple, TypeAlias

from soloist.protocol.errors import RequestCancelled, SoloistError, WorkerLost, from_info
from soloist.protocol.ledger import PAGES
from soloist.protocol.messages import Answer, Chunk, Failure, Run
from soloist.protocol.transitions import WORKER, RequestState, WorkerEvent, WorkerState, advance
from soloist.supervisor.chunk import Chunk as PromptChunk
from soloist.supervisor.request import Outcome, Request

_MAX_WORDS = 300
SYNC_GRACE_S = 0.05
"""A sync callable cannot be interrupted: this long it may end by itself, then its worker is
replaced."""
NOT_YET_READY = frozenset({WorkerState.STARTING, WorkerState.CONNECTING})
"""A worker in one of these has never served anybody."""
STOP_S = 5.0
"""How long a worker that was asked to exit may take to disconnect its client and go."""


class Spawn(NamedTuple):
    """Start a worker process; a session's with the state of its predecessor, if it had one."""

    number: int
    incarnation: int
    is_session: bool = False
    restore: bytes = b""


class Dispatch(NamedTuple):
    """Grant these leases, then send them."""

    number: int
    run: Run | Chunk


class Interrupt(NamedTuple):
    """Ask the worker to end this lease's turn early."""

    number: int
    lease: int


class Revoke(NamedTuple):
    """Take back every lease that the worker has not claimed; report with ``Pool.revoked``."""

    number: int


class Inspect(NamedTuple):
    """Read the worker's ledger: it may hold outcomes whose messages are still to come."""

    number: int


class Stop(NamedTuple):
    """Ask the worker to disconnect its client and exit, or to stay for another if it can."""

    number: int
    may_stay: bool = False


class Kill(NamedTuple):
    """End the worker's process at once."""

    number: int


class Settle(NamedTuple):
    """Hand the request its outcome."""

    request: Request
    outcome: Outcome


class SettleAll(NamedTuple):
    """Hand each of these requests its answer: what a worker sent together."""

    requests: list[Request]
    answers: list[Answer]


class SettlePart(NamedTuple):
    """Hand prompts of a chunk that follow each other their answers."""

    chunk: PromptChunk
    start: int
    texts: tuple[str, ...]
    durations: bytes
    worker: int


class Retried(NamedTuple):
    """Note that the request waits for another attempt, after ``request.failure``."""

    request: Request


class Tell(NamedTuple):
    """Have a method of the client called that is no turn; ``call`` tells the replies apart."""

    number: int
    call: int
    name: str
    arguments: bytes


class Ended(NamedTuple):
    """The session of this number is over; its name and its socket are free."""

    number: int


class Ping(NamedTuple):
    """Ask the worker's event loop for a sign of life."""

    number: int


class Look(NamedTuple):
    """Find out whether the worker's process is stopped; report with ``Health.seen``."""

    number: int
    incarnation: int


class Wedged(NamedTuple):
    """This worker makes no progress any more: end it, and say why.

    ``is_blocked`` says that its event loop is, by the client that it runs.
    """

    number: int
    incarnation: int
    reason: str
    is_blocked: bool = False


Action: TypeAlias = (
    Spawn
    | Dispatch
    | Interrupt
    | Revoke
    | Inspect
    | Stop
    | Kill
    | Settle
    | SettleAll
    | SettlePart
    | Retried
    | Tell
    | Ended
)


class Worker:
    """The pool's view of one incarnation of one worker."""

    __slots__ = (
        "acked",
        "answered",
        "broken",
        "busy_since",
        "claimed",
        "given",
        "head_since",
        "heard_at",
        "incarnation",
        "inspected",
        "interrupt_by",
        "interrupted",
        "is_interruptible",
        "leases",
        "next_lease",
        "number",
        "pages",
        "pid",
        "quota",
        "state",
        "wedged",
    )

    def __init__(self, number: int, incarnation: int, quota: float = math.inf) -> None:
        self.number = number
        self.incarnation = incarnation
        self.quota = quota  # most leases that it may be given
        self.given = 0  # leases, without those that were taken back
        self.state = WorkerState.STARTING
        self.leases: deque[Request] = deque()
        self.next_lease = 1
        self.claimed = 0  # highest lease known to be claimed
        self.acked = 0  # highest lease whose outcome arrived
        self.answered = 0
        self.head_since = 0.0
        self.inspected = 0  # the first lease when its ledger was last read
        self.pages: list[int] = []  # last lease of each chunk whose answers may need their room
        self.interrupted = 0  # highest lease whose turn was asked to end
        self.interrupt_by: float | None = None  # when that turn, or its exit, must have ended
        self.is_interruptible = True
        self.pid = 0
        self.broken: SoloistError | None = None
        self.wedged = ""  # why it had to be ended, if it made no progress any more
        self.busy_since = 0.0  # when it got what it runs, or came to it
        self.heard_at = 0.0  # when its last message came; 0 before the first

    def __repr__(self) -> str:
        return f"<Worker {self.number}.{self.incarnation} {self.state.value} {len(self.leases)}>"

    def advance(self, event: WorkerEvent) -> None:
        """Change state by the table; an impossible event is a defect and raises."""
        self.state = advance(WORKER, self.state, event)

    @property
    def is_open(self) -> bool:
        """Whether it may be given requests."""
        return self.state is WorkerState.READY and self.interrupt_by is None

    @property
    def is_spent(self) -> bool:
        """Whether it is to be replaced as soon as it holds nothing."""
        if self.state is WorkerState.READY:
            return self.given >= self.quota
        return self.state is WorkerState.RETIRING

    @property
    def is_ended_by_us(self) -> bool:
        """Whether it was told to exit or killed, so that its end says nothing against it."""
        return self.state is WorkerState.STOPPING and self.broken is None and not self.wedged

    @property
    def has_tail(self) -> bool:
        """Whether something may wait behind the first lease."""
        return len(self.leases) > 1 or (bool(self.leases) and self.leases[0].count > 1)

    @property
    def has_free_page(self) -> bool:
        """Whether its ledger has room for the answers of another chunk."""
        return sum(last > self.acked for last in self.pages) < PAGES

    def take_page(self, last: int) -> None:
        """A chunk is sent to it whose last lease this is; ``has_free_page`` was asked before."""
        self.pages = [page for page in self.pages if page > self.acked]
        self.pages.append(last)

    def cut_pages(self) -> None:
        """Leases were taken back: their answers need no room."""
        last = self.leases[-1].lease + self.leases[-1].count - 1 if self.leases else self.acked
        self.pages = [min(page, last) for page in self.pages]

    def busy_s(self, now: float) -> float:
        """How long it has had the request that it runs; 0 without one."""
        return now - self.busy_since if self.leases else 0.0

    def silent_s(self, now: float) -> float:
        """How long it has said nothing; 0 before its first message."""
        return now - self.heard_at if self.heard_at else 0.0

    def grace_s(self, most_s: float) -> float:
        """How long an interrupted turn may take to end; a sync callable cannot be interrupted."""
        return most_s if self.is_interruptible else min(most_s, SYNC_GRACE_S)


def outcome_of(outcome: Answer | Failure) -> Outcome:
    """What the caller gets for a worker's reply."""
    return outcome if type(outcome) is Answer else from_info(outcome.error)  # type: ignore[union-attr]


def drained(request: Request, outcome: Outcome | None = None) -> SoloistError:
    """What the caller of an interrupted request gets once its turn has ended.

    If the interrupt came before the turn, the worker's outcome says that it never began.
    """
    assert request.error is not None
    if isinstance(outcome, RequestCancelled) and outcome.started is False:
        request.error.started = False
    return request.error


def lost_with(
    worker: Worker, request: Request, exitcode: int | None, stderr: str = ""
) -> SoloistError:
    """What the caller gets whose request was running when the worker died."""
    if request.state is RequestState.DRAINING:
        return drained(request)
    return WorkerLost(
        f"worker {worker.number} (pid {worker.pid}) {end_text(worker, exitcode)} "
        f"while it ran the request; it may have run in part{last_words(stderr)}",
        exitcode=exitcode,
        stderr=stderr,
    )


def end_text(worker: Worker, exitcode: int | None) -> str:
    """How a worker ended, in words."""
    if not worker.wedged:
        return exit_text(exitcode)
    return f"was wedged, {worker.wedged}, and {exit_text(exitcode)}"


def exit_text(exitcode: int | None) -> str:
    """An exit code in words."""
    if exitcode is None:
        return "died"
    return f"was killed by signal {-exitcode}" if exitcode < 0 else f"exited with code {exitcode}"


def last_words(stderr: str) -> str:
    """The last line of a dead worker's standard error, as the end of a message."""
    line = next((line for line in reversed(stderr.split("\n")) if line.strip()), "").strip()
    if not line:
        return ""
    return f". Its last words: {line if len(line) <= _MAX_WORDS else line[:_MAX_WORDS] + ' ...'}"
