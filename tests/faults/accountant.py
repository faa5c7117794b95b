"""The accountant: what every caller was promised, checked against what really happened.

Three books are compared: the tickets (what was asked, and what the caller saw), the outcomes (each
``Request.settle`` in the supervisor) and the executions (the log that the clients wrote). A rule
is a function that yields what is wrong; each is tested on books that break it.

What nobody can know is counted, not judged: a request whose worker was killed between its
``finish`` line and the ledger (``in_between``), or after it had claimed the prompt and before the
client had it (``unbegun``).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from soloist.protocol.errors import SoloistError
from soloist.protocol.messages import Answer
from soloist.supervisor.request import POOL
from tests.support import LIMIT_S

ANSWER = "answer"
LOST = frozenset({"worker_lost"})
ALLOWED = {
    "read": LOST,
    "wait": LOST,
    "cancel": LOST | {"request_cancelled"},
    "close": LOST | {"request_cancelled"},
    "vanish": LOST | {"request_cancelled"},
    "timeout": LOST | {"request_timeout"},
    "stall": LOST | {"slow_reader"},
    "unsendable": frozenset({"invalid_prompt"}),
    "fail": LOST | {"client_error"},
    "opaque": LOST | {"result_not_serializable"},
    "agent": LOST | {"client_error"},
}
"""The errors that a request may get, by the manner of its caller, beside those of its cycle."""
NEVER_ANSWERED = frozenset({"unsendable", "fail", "opaque", "agent", "wait"})


@dataclass
class Ticket:
    """One request of one caller.

    ``prompt`` is unique and ``uid`` a part of it; ``text`` is the only right answer.
    ``conversation`` names the session, if it is one's. ``seen`` is what the caller got: ``answer``
    or an error's code; empty if it did not look. ``is_refusable``: the call itself raised, so that
    there may be no outcome.
    """

    uid: str
    prompt: Any
    text: str
    cycle: int
    manner: str = "read"
    conversation: str = ""
    timeout_s: float | None = None
    seen: str = ""
    seen_text: str = ""
    pieces: str = ""
    num_turns: int = 0
    is_refusable: bool = False

    def see(self, outcome: Any) -> None:
        """Note what its caller got: a ``Result``, a ``ResultMessage`` or an error."""
        if isinstance(outcome, SoloistError):
            self.seen = outcome.code
            return
        self.seen, self.num_turns = ANSWER, outcome.num_turns
        self.seen_text = outcome.text if hasattr(outcome, "text") else outcome.result


class Settled(NamedTuple):
    """One terminal outcome, as the I/O thread gave it."""

    code: str
    started: bool | None
    text: str
    num_turns: int
    order: int
    attempts: int
    outcome: object


@dataclass
class Execution:
    """One time that a client really ran a prompt."""

    pid: int
    place: int
    turn: int
    is_saved: bool = False
    is_finished: bool = False
    is_safe: bool = False


@dataclass
class Cycle:
    """What a cycle's faults may cost: so many requests lost, and these errors besides."""

    number: int
    description: str
    may_lose: int
    also_allowed: frozenset[str] = frozenset()


@dataclass
class Terms:
    """What a Supervisor promised beyond the ordinary.

    ``attempts`` is most times that a prompt of the pool may run. ``is_fresh``: every prompt of the
    pool begins a conversation. ``is_resumable``: a session's replacement continues it.
    ``has_exact_log``: the clients write ``saved`` and ``safe`` lines, and number their turns.
    """

    attempts: int = 1
    is_fresh: bool = True
    is_resumable: bool = False
    has_exact_log: bool = True


@dataclass
class Tally:
    """What is summed up over all rounds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    in_between: int = 0
    unbegun: int = 0
    violations: list[str] = field(default_factory=list)


class Books:
    """The books of one Supervisor's life. Tickets and outcomes come in from any thread."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.tickets: dict[str, Ticket] = {}
        self.cycles: dict[int, Cycle] = {}
        self.settled: dict[str, list[Settled]] = defaultdict(list)
        self.executions: dict[str, list[Execution]] = defaultdict(list)
        self.log: list[tuple[str, str, int]] = []  # word, uid, pid
        self._by_prompt: dict[str, str] = {}
        self._news = threading.Condition()

    def add(self, ticket: Ticket) -> Ticket:
        self.tickets[ticket.uid] = ticket
        self._by_prompt[str(ticket.prompt)] = ticket.uid
        return ticket

    def settle(self, request: Any, outcome: Any) -> None:
        """A request got a terminal outcome."""
        uid = self._by_prompt[str(request.prompt)]
        entry = _settled(request, outcome)
        with self._news:
            self.settled[uid].append(entry)
            self._news.notify_all()

    def owner_of(self, outcome: object) -> Ticket:
        """Whose outcome object this is."""
        with self._news:
            for uid, entries in self.settled.items():
                if entries[0].outcome is outcome:
                    return self.tickets[uid]
        raise AssertionError(f"nobody's outcome: {outcome!r}")

    def wait_settled(self, tickets: Iterable[Ticket], timeout_s: float = LIMIT_S) -> list[Ticket]:
        """Wait until every ticket that can have one has an outcome; give those without."""
        tickets = list(tickets)

        def missing() -> list[Ticket]:
            return [t for t in tickets if t.uid not in self.settled and not t.is_refusable]

        with self._news:
            self._news.wait_for(lambda: not missing(), timeout_s)
            return missing()

    def uid_of(self, prompt: str) -> str:
        return self._by_prompt[prompt]

    def read_log(self, path: Path) -> None:
        """Take in the log of ``client.ExecutionLog``."""
        with contextlib.suppress(FileNotFoundError), path.open() as file:
            for line in file:
                word, uid, pid, turn, _ = line.split()
                self.enter(word, uid, int(pid), int(turn))

    def enter(self, word: str, uid: str, pid: int, turn: int) -> None:
        """Take in one line of a log."""
        runs = self.executions[uid]
        if word == "start":
            runs.append(Execution(pid, len(self.log), turn))
        else:
            run = next(run for run in reversed(runs) if run.pid == pid)
            run.is_saved |= word == "saved"
            run.is_finished |= word == "finish"
            run.is_safe |= word == "safe"
        self.log.append((word, uid, pid))

    def close(self, tally: Tally) -> None:
        """Check everything against everything, once nothing runs any more."""
        for ticket in self.tickets.values():
            entries = self.settled.get(ticket.uid, [])
            tally.outcomes[entries[0].code if entries else "refused"] += 1
            tally.in_between += self._is_in_between(ticket)
            tally.unbegun += self._is_unbegun(ticket)
            for rule in RULES:
                for problem in rule(self, ticket):
                    tally.violations.append(self._about(ticket, problem))
        for whole in WHOLE_RULES:
            tally.violations += whole(self)

    def outcome(self, ticket: Ticket) -> Settled | None:
        entries = self.settled.get(ticket.uid)
        return entries[0] if entries else None

    def cycle_of(self, ticket: Ticket) -> Cycle:
        return self.cycles.get(ticket.cycle) or Cycle(ticket.cycle, "it did not begin", 0)

    def _is_in_between(self, ticket: Ticket) -> bool:
        runs = self.executions.get(ticket.uid, [])
        return self.terms.has_exact_log and any(r.is_finished and not r.is_safe for r in runs)

    def _is_unbegun(self, ticket: Ticket) -> bool:
        entry = self.outcome(ticket)
        return entry is not None and entry.code in LOST and not self.executions.get(ticket.uid)

    def _about(self, ticket: Ticket, problem: str) -> str:
        cycle = self.cycle_of(ticket)
        where = f" in {ticket.conversation}" if ticket.conversation else ""
        return (
            f"cycle {ticket.cycle} ({cycle.description}): {ticket.uid} ({ticket.manner}{where}): "
            f"{problem}"
        )


def _settled(request: Any, outcome: Any) -> Settled:
    order = request.order if request.session != POOL else 0
    if isinstance(outcome, Answer):
        return Settled(
            ANSWER, None, outcome.text, outcome.num_turns, order, request.attempts, outcome
        )
    return Settled(outcome.code, outcome.started, "", 0, order, request.attempts, outcome)


# -- rules for one request -------------------------------------------------------------------------


def exactly_one_outcome(books: Books, ticket: Ticket) -> Iterator[str]:
    """Promise 2."""
    count = len(books.settled.get(ticket.uid, []))
    if count != 1 and not (count == 0 and ticket.is_refusable):
        yield f"{count} outcomes"


def its_own_answer(books: Books, ticket: Ticket) -> Iterator[str]:
    """Promises 2 and 4: nobody gets another's, and the caller sees what was settled."""
    entry = books.outcome(ticket)
    if entry is None:
        return
    if entry.code == ANSWER and entry.text != ticket.text:
        yield f"the answer is {entry.text!r:.60}"
    if ticket.seen and ticket.seen != entry.code:
        yield f"the caller saw {ticket.seen}, the outcome was {entry.code}"
    if ticket.seen == ANSWER and ticket.seen_text != ticket.text:
        yield f"the caller saw {ticket.seen_text!r:.60}"
    if not ticket.text.startswith(ticket.pieces):
        yield f"pieces of another's answer: {ticket.pieces!r:.60}"


def an_outcome_that_fits(books: Books, ticket: Ticket) -> Iterator[str]:
    """Promise 6: a fault costs what it hits; whoever asked politely gets an answer."""
    entry = books.outcome(ticket)
    if entry is None:
        return
    allowed = ALLOWED[ticket.manner] | books.cycle_of(ticket).also_allowed
    if ticket.conversation and not books.terms.is_resumable:
        allowed |= {"session_lost"}
    if entry.code == ANSWER and ticket.manner in NEVER_ANSWERED:
        yield "it was answered"
    if entry.code not in allowed | {ANSWER}:
        yield f"{entry.code}: {entry.outcome}"


def at_most_once(books: Books, ticket: Ticket) -> Iterator[str]:
    """Promise 3: only a policy of the caller's runs a prompt twice."""
    runs = books.executions.get(ticket.uid, [])
    allowed = 1 if ticket.conversation else books.terms.attempts
    if len(runs) > allowed:
        yield f"it ran {len(runs)} times"


def not_started_is_true(books: Books, ticket: Ticket) -> Iterator[str]:
    """Promise 3: ``started=False`` means that it certainly never ran."""
    entry = books.outcome(ticket)
    if books.executions.get(ticket.uid) and (entry is None or entry.started is False):
        yield "it ran, and its caller was told that it never started"


def finished_means_delivered(books: Books, ticket: Ticket) -> Iterator[str]:
    """Promise 6: what is in the ledger reaches its caller; an answer was really given."""
    entry = books.outcome(ticket)
    if entry is None:
        return
    runs = books.executions.get(ticket.uid, [])
    has_finished = bool(runs) and (runs[-1].is_finished or not books.terms.has_exact_log)
    if entry.code == ANSWER and not has_finished:
        yield "it was answered, and its turn never finished"
    if not (books.terms.has_exact_log and runs):
        return
    if entry.code in LOST and runs[-1].is_safe:
        yield "its finished result was lost"
    if entry.code == ANSWER and entry.num_turns != runs[-1].turn:
        yield f"it was turn {runs[-1].turn}, and its answer says {entry.num_turns}"


RULES = (
    exactly_one_outcome, its_own_answer, an_outcome_that_fits, at_most_once, not_started_is_true,
    finished_means_delivered,
)  # fmt: skip


# -- rules for the whole ---------------------------------------------------------------------------


def one_turn_at_a_time(books: Books) -> Iterator[str]:
    """Promise 1: in no process does a turn begin before the one before has ended."""
    running: dict[int, str] = {}
    for word, uid, pid in books.log:
        if word == "start":
            if pid in running:
                yield f"{uid} began in process {pid} while {running[pid]} ran there"
            running[pid] = uid
        elif word == "finish":
            running.pop(pid, None)


def no_more_lost_than_killed(books: Books) -> Iterator[str]:
    """Promise 6: a death costs at most the one request that ran there."""
    lost: Counter[int] = Counter()
    for ticket in books.tickets.values():
        entry = books.outcome(ticket)
        lost[ticket.cycle] += entry is not None and entry.code in LOST
    for cycle in books.cycles.values():
        if lost[cycle.number] > cycle.may_lose:
            yield (
                f"cycle {cycle.number} ({cycle.description}): {lost[cycle.number]} requests lost, "
                f"at most {cycle.may_lose} could be"
            )


def pool_conversations(books: Books) -> Iterator[str]:
    """Fresh for each prompt, or kept by each worker, as the isolation says."""
    if not books.terms.has_exact_log:
        return
    last: Counter[int] = Counter()
    for ticket, run in _runs(books):
        if ticket.conversation:
            continue
        expected = 1 if books.terms.is_fresh else last[run.pid] + 1
        if run.turn != expected and not _is_anew(books, run):
            yield f"{ticket.uid} was turn {run.turn} of its conversation, not {expected}"
        last[run.pid] = run.turn


def _is_anew(books: Books, run: Execution) -> bool:
    """A client that raised is replaced: its worker's conversation begins anew."""
    return not books.terms.is_fresh and run.turn == 1


def sessions_in_order(books: Books) -> Iterator[str]:
    """Promise 4: served in the order of arrival, over all incarnations."""
    for name, runs in _by_conversation(books).items():
        orders = [entry.order for ticket, _ in runs if (entry := books.outcome(ticket))]
        for before, after in itertools.pairwise(orders):
            if after < before:
                yield f"{name} served {after} after {before}, in order of arrival"


def sessions_never_blank(books: Books) -> Iterator[str]:
    """Promise 7: a turn follows the turn before, also in a replacement, or there is none."""
    if not books.terms.has_exact_log:
        return
    for name, runs in _by_conversation(books).items():
        if runs and runs[0][1].turn != 1:
            yield f"{name} began with turn {runs[0][1].turn}"
        for (_, before), (ticket, run) in itertools.pairwise(runs):
            if run.turn not in _may_follow(books, before, run):
                how = "the same worker" if run.pid == before.pid else "a replacement"
                yield f"{name}: {ticket.uid} was turn {run.turn} after {before.turn} in {how}"


def _may_follow(books: Books, before: Execution, run: Execution) -> set[int]:
    """Which turns may come next: a lost one may have been saved, or not."""
    if run.pid == before.pid or before.is_saved:
        return {before.turn + 1}
    if not books.terms.is_resumable:
        return set()
    return {before.turn, before.turn + 1}


def session_turns_count_up(books: Books) -> Iterator[str]:
    """As the callers see it: later answers have higher numbers."""
    by_name: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for ticket in books.tickets.values():
        entry = books.outcome(ticket)
        if ticket.conversation and entry is not None and entry.code == ANSWER:
            by_name[ticket.conversation].append((entry.order, entry.num_turns))
    for name, answers in by_name.items():
        for (_, before), (order, after) in itertools.pairwise(sorted(answers)):
            if after <= before:
                yield f"{name} answered its request {order} as turn {after}, after turn {before}"


WHOLE_RULES = (
    one_turn_at_a_time, no_more_lost_than_killed, pool_conversations, sessions_in_order,
    sessions_never_blank, session_turns_count_up,
)  # fmt: skip


def _runs(books: Books) -> Iterator[tuple[Ticket, Execution]]:
    """Every execution, in the order in which they began."""
    runs = [
        (run.place, books.tickets[uid], run)
        for uid, executions in books.executions.items()
        for run in executions
    ]
    for _, ticket, run in sorted(runs, key=lambda item: item[0]):
        yield ticket, run


def _by_conversation(books: Books) -> dict[str, list[tuple[Ticket, Execution]]]:
    found: dict[str, list[tuple[Ticket, Execution]]] = defaultdict(list)
    for ticket, run in _runs(books):
        if ticket.conversation:
            found[ticket.conversation].append((ticket, run))
    return found


# -- what must not grow ----------------------------------------------------------------------------


class Figures(NamedTuple):
    """What this process holds; what it has freed does not count."""

    descriptors: int
    threads: int
    children: int
    rss_mib: float

    @classmethod
    def now(cls) -> Figures:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU allocator keeps much
        if trim is not None:
            trim(0)
        me = psutil.Process()
        return cls(
            me.num_fds(),
            threading.active_count(),
            len(me.children(recursive=True)),
            round(me.memory_info().rss / 2**20, 1),
        )

    def growth(self, after: Figures, *, rss_mib: float) -> list[str]:
        """What has grown since then: processes, threads and descriptors not at all."""
        found = [
            f"{name}: {before} before, {now} after"
            for name, before, now in zip(self._fields[:3], self[:3], after[:3], strict=True)
            if now > before
        ]
        if after.rss_mib > self.rss_mib + rss_mib:
            found.append(f"rss_mib: {self.rss_mib} before, {after.rss_mib} after")
        return found


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def s(self) -> float:
        return time.monotonic() - self._began

    @staticmethod
    def ns() -> int:
        """Now, by the clock of the execution log."""
        return time.monotonic_ns()
