"""Callers of every kind, each with its tickets; each runs on a thread of its own.

A ticket's *manner* says how its caller behaves: ``read`` to the end, ``cancel`` at once, ``close``
or ``vanish`` in mid-stream, a ``timeout`` that is too short, ``stall`` until the buffer is full,
``wait`` for an answer that only the Supervisor's end brings;
``fail`` and ``opaque`` are the client's own errors, ``unsendable`` is no prompt at all. Tickets are
made before anything runs, so that a fault can be placed at one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from soloist import Supervisor
from soloist.protocol.content import ResultMessage, StreamEvent
from soloist.protocol.errors import SoloistError, SupervisorClosed
from tests.faults.accountant import Books, Ticket
from tests.support import LIMIT_S

BUFFER_BYTES = 32 * 1024
"""``stream_buffer_bytes`` of the Supervisors under load."""
PIECES = 2
"""Streamed pieces of an answer."""
_LONG = frozenset({"close", "vanish", "timeout", "cancel", "agent", "wait"})
"""Manners whose turns last until they are interrupted: nobody races against a turn's end."""


def echo_prompt(uid: str, manner: str) -> tuple[Any, str]:
    """What ``FaultyEcho`` is asked, and the only right answer."""
    if manner == "unsendable":
        return [uid, "is no block"], ""
    word = "long" if manner in _LONG else manner
    prompt = f"{uid} {word} " + "x" * (4 * BUFFER_BYTES if manner == "stall" else 0)
    return prompt, prompt


def claude_prompt(uid: str, manner: str) -> tuple[Any, str]:
    """What the scripted CLI is asked, and the only right answer."""
    if manner == "unsendable":
        return [uid, "is no block"], ""
    words = f"/delay 600 /parts {60_000}" if manner in _LONG else f"/parts {PIECES}"
    return f"{words} {uid}", uid


class Writer:
    """Writes the tickets of one cycle into the books.

    Args:
        books: where they go.
        cycle: the cycle's number.
        new_prompt: makes the prompt and the answer of a request.
    """

    def __init__(
        self, books: Books, cycle: int, new_prompt: Callable[[str, str], tuple[Any, str]]
    ) -> None:
        self.books = books
        self._cycle = cycle
        self._new_prompt = new_prompt
        self._count = 0

    def tickets(
        self, manners: list[str], *, conversation: str = "", timeout_s: float = 0.01
    ) -> list[Ticket]:
        return [self._ticket(manner, conversation, timeout_s) for manner in manners]

    def _ticket(self, manner: str, conversation: str, timeout_s: float) -> Ticket:
        self._count += 1
        uid = f"c{self._cycle}.{self._count}"
        prompt, text = self._new_prompt(uid, manner)
        ticket = Ticket(uid, prompt, text, self._cycle, manner, conversation)
        ticket.timeout_s = timeout_s if manner == "timeout" else None
        return self.books.add(ticket)


class Caller:
    """One caller: its tickets, and what it does with them."""

    has_session = False

    def __init__(self, tickets: list[Ticket]) -> None:
        self.tickets = tickets
        self.failure: BaseException | None = None
        self.has_begun = threading.Event()
        """Set when a turn of it certainly runs, or when it has ended."""

    def run(self) -> None:
        """Do it all; for a thread."""
        try:
            self.call()
        except SupervisorClosed:  # the call itself was refused: what was not sent has no outcome
            for ticket in self.tickets:
                ticket.is_refusable = not ticket.seen
        except BaseException as error:
            self.failure = error
        finally:
            self.has_begun.set()

    def call(self) -> None:
        raise NotImplementedError


class PoolCaller(Caller):
    """A caller of the pool.

    Args:
        sup: the Supervisor.
        books: tell whose an outcome is.
        tickets: what it asks.
    """

    def __init__(self, sup: Supervisor, books: Books, tickets: list[Ticket]) -> None:
        super().__init__(tickets)
        self.sup = sup
        self.books = books


class Mapper(PoolCaller):
    """``map``: everything is answered in order."""

    def call(self) -> None:
        prompts = [ticket.prompt for ticket in self.tickets]
        outcomes = self.sup.map(prompts, return_exceptions=True)
        assert len(outcomes) == len(prompts)
        for ticket, outcome in zip(self.tickets, outcomes, strict=True):
            ticket.see(outcome)


class Unordered(PoolCaller):
    """``imap_unordered``: an error says by its identity whose it is."""

    def call(self) -> None:
        prompts = (ticket.prompt for ticket in self.tickets)
        for outcome in self.sup.imap_unordered(prompts, return_exceptions=True):
            if isinstance(outcome, SoloistError):
                self.books.owner_of(outcome).see(outcome)
            else:
                self.tickets[outcome.index].see(outcome)


class Submitter(PoolCaller):
    """``submit``, with cancels and timeouts."""

    def call(self) -> None:
        futures = []
        for ticket in self.tickets:
            try:
                future = self.sup.submit(ticket.prompt, timeout_s=ticket.timeout_s)
            except SupervisorClosed:
                ticket.is_refusable = True
                continue
            futures.append((ticket, future))
            if ticket.manner == "cancel":
                future.cancel()
        for ticket, future in futures:
            if future.cancelled():
                continue
            try:
                ticket.see(future.result(LIMIT_S))
            except SoloistError as error:
                ticket.see(error)


class Reader(PoolCaller):
    """``query``: streams, read by all manners."""

    def call(self) -> None:
        for ticket in self.tickets:
            read(self, self.sup.query, ticket)


class AgentKiller(PoolCaller):
    """The agent's program is killed in mid-turn.

    Args:
        ask: a one-shot query, or a conversation's; set by its maker.
        kill_agent: kills the program that runs this ticket's turn; set by its maker.
    """

    ask: Callable[..., Any]
    kill_agent: Callable[[Ticket], None]

    def call(self) -> None:
        for ticket in self.tickets:
            response = self.ask(ticket.prompt)
            try:
                for message in response:
                    if isinstance(message, StreamEvent) and not ticket.pieces:
                        take(ticket, message)
                        self.kill_agent(ticket)
            except SoloistError as error:
                ticket.see(error)


class Owner(PoolCaller):
    """An owned conversation, from its beginning to its end."""

    has_session = True

    def call(self) -> None:
        with self.sup.session() as session:
            for ticket in self.tickets:
                read(self, session.query_and_receive, ticket)


class Sharer(PoolCaller):
    """One of the callers of a shared conversation.

    Args:
        chat: the conversation; set by its maker.
    """

    has_session = True
    chat: Any = None

    def call(self) -> None:
        for ticket in self.tickets:
            read(self, self.chat.query_and_receive, ticket)


def read(caller: Caller, ask: Callable[..., Any], ticket: Ticket) -> None:
    """Ask, and read the answer in the ticket's manner."""
    try:
        response = ask(ticket.prompt, timeout_s=ticket.timeout_s)
    except SoloistError as error:
        if not isinstance(error, SupervisorClosed):
            raise
        ticket.is_refusable = True
        return
    try:
        for message in response:
            take(ticket, message)
            caller.has_begun.set()
            if ticket.manner in {"close", "vanish"}:
                break
            if ticket.manner == "stall":
                caller.books.wait_settled([ticket])
    except SoloistError as error:
        ticket.see(error)
    if ticket.manner == "close":
        response.close()


def take(ticket: Ticket, message: object) -> None:
    """Note what its caller got so far."""
    if isinstance(message, StreamEvent):
        ticket.pieces += message.event["delta"]["text"]
    elif isinstance(message, ResultMessage):
        ticket.see(message)


def start(callers: list[Caller]) -> list[threading.Thread]:
    """Let all of them call at once."""
    threads = [threading.Thread(target=caller.run, daemon=True) for caller in callers]
    for thread in threads:
        thread.start()
    return threads


def finish(callers: list[Caller], threads: list[threading.Thread]) -> Iterator[str]:
    """Wait for all of them; give what kept them from it."""
    for caller, thread in zip(callers, threads, strict=True):
        thread.join(LIMIT_S)
        name = type(caller).__name__
        if thread.is_alive():
            yield f"{name} hangs with {[t.uid for t in caller.tickets if not t.seen]}"
        elif caller.failure is not None:
            yield f"{name} failed: {caller.failure!r}"


def manners(chance: Random, count: int, rude: list[str]) -> list[str]:
    """Mostly polite ones."""
    return [chance.choice(rude) if rude and chance.random() < 0.2 else "read" for _ in range(count)]
