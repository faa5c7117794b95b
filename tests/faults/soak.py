"""Cycles of one fault with its load around, in rounds of one Supervisor each.

A cycle picks a step (they take turns), callers that lead there, and company for them; it ends when
every request has its outcome. A round ends with a fault while its Supervisor is closed under load;
then its books are checked. All choices come from the seed and the number of the cycle or round, so
that a round can be run again; only the operating system's timing differs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from soloist import Supervisor
from soloist.supervisor.retry import Retry
from tests import stand_in
from tests.faults import load
from tests.faults.accountant import Books, Cycle, Figures, Stopwatch, Tally, Terms
from tests.faults.client import LOG_NAME, FaultyEcho
from tests.faults.steps import IN_SUPERVISOR, WITHOUT_REQUEST, Action, Fault, Orders, Step
from tests.faults.taps import Taps

CYCLES_PER_ROUND = 40
POOL_SIZE = 2
CLOSING_STEPS = (Step.STOP_SENT, Step.DISCONNECT, Step.INTERRUPT_SENT, Step.INTERRUPT, Step.DRAIN,
                 Step.HELPER)  # fmt: skip
"""Where the last fault of a round strikes, while the Supervisor closes."""
HARMLESS = frozenset(
    {
        Step.SPAWN, Step.CONNECT, Step.RESTORE, Step.LEDGER, Step.RESET, Step.RECYCLE,
        Step.STOP_SENT, Step.DISCONNECT, Step.VACANT, Step.REUSE, Step.INTERRUPT, Step.DRAIN,
        Step.AGENT,
    }
)  # fmt: skip
"""A worker that dies here runs nobody's request, or one whose outcome is settled otherwise."""
HELPER_EVERY = 3
"""The helper's death costs a second, so it comes at every so many turns of its own."""
_INTERRUPTED = frozenset({Step.INTERRUPT_SENT, Step.INTERRUPT, Step.DRAIN})
_OF_UNLIMITED = frozenset({Step.VACANT, Step.REUSE})
"""Steps of workers whose life is not limited: others have a process each."""
_AFTER_A_DEATH = frozenset({Step.SPAWN, Step.CONNECT, Step.RESTORE})
_RSS_MIB = 24.0
_ROUND_LIMIT_S = 120.0


@dataclass(frozen=True)
class Setup:
    """One kind of Supervisor, and the steps that its workers can reach."""

    name: str
    terms: Terms
    isolation: str = "prompt"
    options: dict[str, Any] = field(default_factory=dict)
    retry: Retry | None = None
    without: frozenset[Step] = frozenset()
    max_requests: int | None = None
    """``max_requests_per_worker``."""
    shorter: int = 1
    """Its rounds have this many times fewer cycles than others."""

    @property
    def is_claude(self) -> bool:
        return self.name == "claude"

    @property
    def steps(self) -> list[Step]:
        """Every step that can be reached with it."""
        unreached = self.without | (_OF_UNLIMITED if self.max_requests else {Step.RECYCLE})
        return [step for step in Step if step not in unreached]


_NO_RESET = frozenset({Step.RESET, Step.AGENT})
_NO_RESUME = frozenset({Step.RESTORE, Step.AGENT})
SETUPS = (
    Setup("fresh", Terms(is_resumable=True), options={"resumable": True},
          without=frozenset({Step.AGENT}), max_requests=7),
    Setup("anew", Terms(), options={"resettable": False}, without=_NO_RESET | _NO_RESUME,
          max_requests=3),
    Setup("warm", Terms(is_fresh=False, is_resumable=True), isolation="worker",
          options={"resumable": True}, without=_NO_RESET),
    Setup("retried", Terms(attempts=3), without=_NO_RESUME,
          retry=Retry(attempts=3, first_delay_s=0.002, max_delay_s=0.01, may_have_run=True)),
    Setup("claude", Terms(is_resumable=True, has_exact_log=False), shorter=5,
          without=frozenset(Step) - IN_SUPERVISOR),
)  # fmt: skip


@dataclass
class Summary:
    """What a soak has seen."""

    seed: int
    tally: Tally = field(default_factory=Tally)
    cycles: int = 0
    seconds: float = 0.0
    struck: Counter[tuple[Step, Action]] = field(default_factory=Counter)
    missed: Counter[Step] = field(default_factory=Counter)
    figures: list[Figures] = field(default_factory=list)
    replay: str = ""

    @property
    def violations(self) -> list[str]:
        return self.tally.violations

    @property
    def reached(self) -> set[Step]:
        return {step for step, _ in self.struck}

    def unreached(self) -> list[str]:
        """Steps that nothing has reached."""
        return [step.value for step in Step if step not in self.reached]

    def lines(self) -> Iterator[str]:
        """For people."""
        total = sum(self.tally.outcomes.values())
        each_ms = 1000 * self.seconds / max(self.cycles, 1)
        yield f"seed {self.seed}: {self.cycles} cycles, {each_ms:.0f} ms each, {total:,} requests"
        yield "requests by outcome: " + _counts(self.tally.outcomes)
        yield (
            f"nobody can know: {self.tally.in_between} killed between finish and ledger, "
            f"{self.tally.unbegun} lost between claim and client"
        )
        for action in Action:
            hits = Counter({s.value: n for (s, a), n in self.struck.items() if a is action})
            if hits:
                yield f"{action.value} by step: {_counts(hits)}"
        misses = Counter({step.value: n for step, n in self.missed.items()})
        yield "faults that found no occasion: " + (_counts(misses) or "none")
        yield "unreached steps: " + (", ".join(self.unreached()) or "none")
        if self.figures:
            yield f"before {self.figures[0]}"
            yield f"after  {self.figures[-1]}"
        yield f"violations: {len(self.violations)}"
        yield from (f"  {violation}" for violation in self.violations)
        if self.replay:
            yield f"again: python -m tests.faults --seed {self.seed} {self.replay}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counter.items()))


class Round:
    """One Supervisor's life under fire.

    Args:
        setup: its kind.
        seed: of all choices.
        taps: entered already; cleared of the Supervisor before.
        folder: for the log, the orders and the agents.
        may_stop: whether workers may be stopped (SIGSTOP), too.
    """

    def __init__(
        self, setup: Setup, seed: int, taps: Taps, folder: Path, *, may_stop: bool = False
    ) -> None:
        self._setup = setup
        self._seed = seed
        self._taps = taps
        self._folder = folder
        self._actions = [Action.KILL] * 6 + [Action.DELAY] + [Action.STOP] * may_stop
        self._chats = 1  # how many shared conversations there have been
        self.books = Books(setup.terms)
        self.missed: Counter[Step] = Counter()
        self.violations: list[str] = []

    def run(self, numbers: range) -> None:
        """Run the cycles of these numbers, the last of them while the Supervisor closes."""
        self._taps.pool_size = POOL_SIZE
        self._taps.orders = Orders(str(self._folder))
        with self._supervisor() as sup:
            self._sup = sup
            for number in numbers[:-1]:
                self._cycle(number)
            self._closing_cycle(numbers[-1])
        self._taps.forget_workers()
        self._read_logs()

    # -- one cycle -----------------------------------------------------------------------------

    def _cycle(self, number: int) -> None:
        chance = Random(f"{self._seed} {number}")
        step = self._step(number)
        callers, victim = self._callers(number, step, chance)
        faults = self._faults(step, victim, callers, chance)
        self._enter(number, faults)
        self._strike(faults, callers)
        tickets = [ticket for caller in callers for ticket in caller.tickets]
        for ticket in self.books.wait_settled(tickets):
            self.violations.append(f"cycle {number}: {ticket.uid} has no outcome")
        self._withdraw(faults)
        self._bury_lost_chat()

    def _closing_cycle(self, number: int) -> None:
        """Close while callers of all kinds have turns that run and wait."""
        chance = Random(f"{self._seed} {number}")
        write = self._writer(number)
        steps = [s for s in CLOSING_STEPS if s in self._setup.steps]
        step = chance.choice(steps)
        long = (self._reader if self._can_query else self._owner)(write, ["wait"])
        callers = [long, *self._company(write, chance), self._sharer(write, ["read", "read"])]
        fault = self._fault(step, long.tickets[0].uid, chance, is_session=chance.random() < 0.5)
        self._enter(number, [fault], frozenset({"supervisor_closed"}))
        threads = load.start(callers)
        long.has_begun.wait(load.LIMIT_S)
        self._taps.arm(fault)
        self._sup.close(chance.choice([0.0, 0.02]))
        self.violations += [f"cycle {number}: {v}" for v in load.finish(callers, threads)]
        self._withdraw([fault])

    def _strike(self, faults: list[Fault], callers: list[load.Caller]) -> None:
        for fault in faults:
            self._taps.arm(fault)
        threads = load.start(callers)
        self.violations += [f"{faults[-1]}: {v}" for v in load.finish(callers, threads)]

    def _withdraw(self, faults: list[Fault]) -> None:
        for fault in faults:
            if not self._taps.disarm(fault):
                self.missed[fault.step] += 1

    def _enter(
        self, number: int, faults: list[Fault], also_allowed: frozenset[str] = frozenset()
    ) -> None:
        """Write down what this cycle may cost."""
        kills = [f for f in faults if f.action is not Action.DELAY]
        may_lose = sum(f.step not in HARMLESS for f in kills)
        if any(f.step is Step.HELPER for f in kills):
            may_lose = POOL_SIZE + 8  # every worker's
        what = f"{self._setup.name}, {' and '.join(map(str, faults))}"
        self.books.cycles[number] = Cycle(number, what, may_lose, also_allowed)

    # -- which fault ---------------------------------------------------------------------------

    def _step(self, number: int) -> Step:
        """The steps take turns, in an order that differs from round to round."""
        steps = self._setup.steps
        Random(f"{self._seed} {number // len(steps)} {self._setup.name}").shuffle(steps)
        step = steps[number % len(steps)]
        is_its_turn = number // len(steps) % HELPER_EVERY == 0
        return step if step is not Step.HELPER or is_its_turn else Step.DISPATCH

    def _fault(self, step: Step, uid: str, chance: Random, *, is_session: bool = False) -> Fault:
        is_killed = step in {Step.HELPER, Step.AGENT}
        action = Action.KILL if is_killed else chance.choice(self._actions)
        if step not in IN_SUPERVISOR:
            return Fault(step, action, "" if step in WITHOUT_REQUEST else uid)
        skip = chance.randrange(3) if step in {Step.DISPATCH, Step.HELPER} else 0
        return Fault(step, action, is_session=is_session and step is not Step.HELPER, skip=skip)

    def _faults(
        self, step: Step, victim: load.Caller, callers: list[load.Caller], chance: Random
    ) -> list[Fault]:
        """The fault, after the death that leads to it if only a replacement gets there."""
        ticket = chance.choice(self._candidates(step, victim))
        fault = self._fault(step, ticket.uid, chance, is_session=victim.has_session)
        if step not in _AFTER_A_DEATH or isinstance(victim, load.Owner):
            return [fault]
        first = victim.tickets[0]
        if self._setup.is_claude:
            cause = Fault(Step.DISPATCH, Action.KILL, is_session=victim.has_session)
        else:
            cause = Fault(Step.CLAIM, Action.KILL, first.uid)
        return [cause, fault]

    @staticmethod
    def _candidates(step: Step, victim: load.Caller) -> list[Any]:
        """The victim's tickets that get to that step."""
        manner = "close" if step in _INTERRUPTED else "read"
        return [t for t in victim.tickets if t.manner == manner] or victim.tickets

    # -- which callers -------------------------------------------------------------------------

    def _callers(
        self, number: int, step: Step, chance: Random
    ) -> tuple[list[load.Caller], load.Caller]:
        write = self._writer(number)
        victim = self._victim(step, write, chance)
        callers = [victim, *self._company(write, chance)]
        chance.shuffle(callers)
        return callers, victim

    def _victim(self, step: Step, write: load.Writer, chance: Random) -> load.Caller:
        """A caller that leads to the step."""
        if step is Step.AGENT:
            return self._agent_killer(write, chance)
        if step in _INTERRUPTED:
            kinds = [self._reader, self._owner, self._sharer] if self._can_query else [
                self._owner, self._sharer]  # fmt: skip
            return chance.choice(kinds)(write, ["read", "close", "read"])
        polite = ["read"] * (3 if self._setup.is_claude else 6)
        return chance.choice(self._kinds_for(step))(write, polite)

    def _kinds_for(self, step: Step) -> list[Callable[..., load.Caller]]:
        pool = [self._mapper, self._unordered, self._submitter]
        sessions = [self._owner, self._sharer]
        if self._can_query:
            pool.append(self._reader)
        if step in {Step.RESTORE, Step.SNAPSHOT}:
            return [self._sharer]
        if step in {Step.STOP_SENT, Step.DISCONNECT, Step.VACANT, Step.REUSE}:
            return [self._owner]
        if step in {Step.RESET, Step.RECYCLE, Step.HELPER}:
            return pool
        if step is Step.STREAM:
            return [*sessions, *pool]
        return [*pool, *sessions]

    def _company(self, write: load.Writer, chance: Random) -> list[load.Caller]:
        """One or two other callers, some of them rude."""
        if self._setup.is_claude:
            return [self._submitter(write, load.manners(chance, 2, ["cancel", "timeout"]))]
        rude = ["close", "vanish", "timeout", "stall"]
        makers: list[Callable[[], load.Caller]] = [
            lambda: self._mapper(write, load.manners(chance, 20, ["unsendable", "fail", "opaque"])),
            lambda: self._unordered(write, load.manners(chance, 20, ["unsendable"])),
            lambda: self._submitter(write, load.manners(chance, 10, ["cancel", "timeout"])),
            lambda: self._owner(write, load.manners(chance, 3, rude)),
            lambda: self._sharer(write, load.manners(chance, 4, rude)),
        ]
        if self._can_query:
            makers.append(lambda: self._reader(write, load.manners(chance, 4, rude)))
        return [make() for make in chance.sample(makers, chance.choice([1, 2]))]

    def _writer(self, number: int) -> load.Writer:
        new_prompt = load.claude_prompt if self._setup.is_claude else load.echo_prompt
        return load.Writer(self.books, number, new_prompt)

    @property
    def _can_query(self) -> bool:
        return self._setup.isolation == "prompt"

    @property
    def _timeout_s(self) -> float:
        return 0.15 if self._setup.is_claude else 0.01

    def _mapper(self, write: load.Writer, manners: list[str]) -> load.Caller:
        return load.Mapper(self._sup, self.books, write.tickets(manners))

    def _unordered(self, write: load.Writer, manners: list[str]) -> load.Caller:
        return load.Unordered(self._sup, self.books, write.tickets(manners))

    def _submitter(self, write: load.Writer, manners: list[str]) -> load.Caller:
        tickets = write.tickets(manners, timeout_s=self._timeout_s)
        return load.Submitter(self._sup, self.books, tickets)

    def _reader(self, write: load.Writer, manners: list[str]) -> load.Caller:
        tickets = write.tickets(manners, timeout_s=self._timeout_s)
        return load.Reader(self._sup, self.books, tickets)

    def _owner(self, write: load.Writer, manners: list[str]) -> load.Caller:
        tickets = write.tickets(manners, timeout_s=self._timeout_s)
        for ticket in tickets:
            ticket.conversation = f"owned {tickets[0].uid}"
        return load.Owner(self._sup, self.books, tickets)

    def _sharer(self, write: load.Writer, manners: list[str]) -> load.Caller:
        name = self._chat_name
        tickets = write.tickets(manners, conversation=name, timeout_s=self._timeout_s)
        caller = load.Sharer(self._sup, self.books, tickets)
        caller.chat = self._sup.shared(name)
        return caller

    def _agent_killer(self, write: load.Writer, chance: Random) -> load.Caller:
        name = chance.choice(["", self._chat_name])
        tickets = write.tickets(["agent"], conversation=name)
        caller = load.AgentKiller(self._sup, self.books, tickets)
        caller.ask = self._sup.shared(name).query_and_receive if name else self._sup.query
        caller.kill_agent = self._kill_agent
        return caller

    # -- what is particular ----------------------------------------------------------------------

    @property
    def _chat_name(self) -> str:
        return f"chat {self._chats}"

    def _bury_lost_chat(self) -> None:
        """A conversation that was lost stays lost: the next cycle begins another."""
        lost = [s for s in self._sup.stats().sessions if s.name and s.state == "lost"]
        if lost:
            self._sup.shared(lost[0].name).close()
            self._chats += 1

    def _kill_agent(self, ticket: Any) -> None:
        """The CLI that runs this prompt: its turn ends only by an interrupt, so it lives."""
        if self._taps.take(Step.AGENT) is None:
            return
        log = stand_in.read_log(self._folder / stand_in.LOG_VARIABLE)
        (entry,) = [e for e in log if e.event == "begin" and e.prompt == ticket.prompt]
        os.kill(entry.pid, signal.SIGKILL)

    @contextlib.contextmanager
    def _supervisor(self) -> Iterator[Supervisor]:
        client, options = self._client()
        with Supervisor(
            POOL_SIZE,
            client=client,
            options=options,
            isolation=self._setup.isolation,  # type: ignore[arg-type]
            retry=self._setup.retry,
            stream_buffer_bytes=load.BUFFER_BYTES,
            max_requests_per_worker=self._setup.max_requests,
            max_restarts=1_000_000,  # the limit has tests of its own
        ) as sup:
            yield sup

    def _client(self) -> tuple[Any, dict[str, Any]]:
        folder = str(self._folder)
        if not self._setup.is_claude:
            return FaultyEcho, {"folder": folder, "chunks": load.PIECES, **self._setup.options}
        sessions = self._folder / "sessions"
        sessions.mkdir()
        env = {
            stand_in.LOG_VARIABLE: str(self._folder / stand_in.LOG_VARIABLE),
            stand_in.SESSIONS_VARIABLE: str(sessions),
        }
        cli = stand_in.install(self._folder)
        options = {"cli_path": cli, "cwd": folder, "env": env, "include_partial_messages": True}
        return "claude", options

    def _read_logs(self) -> None:
        self.books.read_log(self._folder / LOG_NAME)
        path = self._folder / stand_in.LOG_VARIABLE
        for entry in stand_in.read_log(path) if path.exists() else ():
            if entry.event == "begin":
                self.books.enter("start", self.books.uid_of(entry.prompt), entry.pid, 0)
            elif entry.event.startswith("end"):
                self.books.enter("finish", self.books.uid_of(entry.prompt), entry.pid, 0)


def run(
    cycles: int,
    seed: int,
    *,
    per_round: int = CYCLES_PER_ROUND,
    first_round: int = 0,
    setups: tuple[Setup, ...] = SETUPS,
    may_stop: bool = False,
    progress: Callable[[Summary], None] = lambda _: None,
) -> Summary:
    """Run so many cycles, in rounds; stops at the end of a round in which a promise was broken."""
    summary, watch = Summary(seed), Stopwatch()
    books: list[Books] = []
    with Taps(lambda request, outcome: books[-1].settle(request, outcome)) as taps:
        summary.struck = taps.struck
        for number in itertools.count(first_round):
            setup = setups[number % len(setups)]
            count = max(2, min(per_round // setup.shorter, cycles - summary.cycles))
            numbers = range(number * per_round, number * per_round + count)
            with tempfile.TemporaryDirectory(prefix="faults-") as folder:
                one = Round(setup, seed, taps, Path(folder), may_stop=may_stop)
                books.append(one.books)
                _run_round(one, numbers, summary)
                books.clear()
            summary.cycles += count
            summary.seconds = watch.s()
            summary.figures.append(Figures.now())
            if summary.violations:
                summary.replay = f"--first-round {number} --cycles {count} --per-round {per_round}"
            progress(summary)
            if summary.violations or summary.cycles >= cycles:
                break
    warm = min(len(setups), len(summary.figures)) - 1  # by then every kind has had its memory
    before = summary.figures[0]._replace(rss_mib=summary.figures[warm].rss_mib)
    summary.figures = [before, summary.figures[-1]]
    summary.violations.extend(before.growth(summary.figures[-1], rss_mib=_RSS_MIB))
    return summary


def _run_round(one: Round, numbers: range, summary: Summary) -> None:
    """Run a round and check its books, whatever has happened to it."""
    faulthandler.dump_traceback_later(_ROUND_LIMIT_S, exit=False, file=sys.__stderr__)
    errors = _Errors()
    try:
        with errors:
            one.run(numbers)
    except Exception:
        summary.violations.append(f"the round ended with {traceback.format_exc()}")
    finally:
        faulthandler.cancel_dump_traceback_later()
    one.books.close(summary.tally)
    summary.violations.extend([*one.violations, *errors.texts])
    summary.missed += one.missed


class _Errors(logging.Handler):
    """What the supervisor logs as an error is a defect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))

    def __enter__(self) -> None:
        logging.getLogger("soloist").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("soloist").removeHandler(self)
