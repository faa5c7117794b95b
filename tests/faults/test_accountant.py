"""The accountant finds what it should: books that break one promise each."""

from __future__ import annotations

import pytest

from tests.faults.accountant import ANSWER, Books, Cycle, Figures, Settled, Tally, Terms, Ticket

KILL = Cycle(1, "kill at claim in u1", may_lose=1)


def books_of(
    *log: str, terms: Terms | None = None, cycle: Cycle = KILL, **outcomes: Settled
) -> Books:
    """Books with these log lines, and a polite ticket for each outcome."""
    books = Books(terms or Terms())
    books.cycles[cycle.number] = cycle
    for uid, outcome in outcomes.items():
        books.add(Ticket(uid, f"{uid} read", f"{uid} read", cycle.number))
        books.settled[uid].append(outcome)
    for line in log:
        word, uid, pid, turn = line.split()
        books.enter(word, uid, int(pid), int(turn))
    return books


def answer(uid: str, *, num_turns: int = 1, order: int = 0) -> Settled:
    return Settled(ANSWER, None, f"{uid} read", num_turns, order, 1, None)


def error(code: str, *, started: bool | None = None, order: int = 0) -> Settled:
    return Settled(code, started, "", 0, order, 1, None)


def chat(books: Books) -> Books:
    for ticket in books.tickets.values():
        ticket.conversation = "chat"
    return books


def run(uid: str, pid: int = 7, turn: int = 1) -> tuple[str, ...]:
    """The log of a turn that went well."""
    words = ("start", "saved", "finish", "safe")
    return tuple(f"{word} {uid} {pid} {turn}" for word in words)


def violations(books: Books) -> list[str]:
    tally = Tally()
    books.close(tally)
    return tally.violations


class TestRequests:
    def test_good_books_pass(self):
        books = books_of(*run("u1"), "start u2 7 1", u1=answer("u1"), u2=error("worker_lost"))
        books.tickets["u1"].seen, books.tickets["u1"].seen_text = ANSWER, "u1 read"
        assert violations(books) == []

    @pytest.mark.parametrize(
        ("books", "what"),
        [
            (books_of(*run("u1"), *run("u1", 8), u1=answer("u1")), "it ran 2 times"),
            (books_of(*run("u1"), u1=answer("u2")), "the answer is 'u2 read'"),
            (books_of(u1=answer("u1")), "its turn never finished"),
            (books_of("start u1 7 1", u1=answer("u1")), "its turn never finished"),
            (books_of(*run("u1"), u1=error("worker_lost")), "its finished result was lost"),
            (
                books_of("start u1 7 1", u1=error("worker_lost", started=False)),
                "told that it never started",
            ),
            (books_of(*run("u1"), u1=answer("u1", num_turns=2)), "its answer says 2"),
            (books_of(*run("u1"), u1=error("client_error")), "client_error"),
            (books_of(u1=error("session_lost")), "session_lost"),
        ],
    )
    def test_a_broken_promise_to_one_caller_is_found(self, books, what):
        (found,) = violations(books)
        assert what in found
        assert "kill at claim in u1" in found

    def test_two_outcomes_and_none_are_found(self):
        books = books_of(*run("u1"), *run("u2"), u1=answer("u1"), u2=answer("u2"))
        books.settled["u1"] *= 2
        books.settled["u2"].clear()
        found = violations(books)
        assert "2 outcomes" in found[0]
        assert "0 outcomes" in found[1]

    def test_a_caller_that_saw_something_else_is_found(self):
        books = books_of(*run("u1"), u1=answer("u1"))
        books.tickets["u1"].seen = "worker_lost"
        books.tickets["u1"].pieces = "another's"
        assert len(violations(books)) == 2

    def test_a_refused_request_may_have_no_outcome_but_then_never_ran(self):
        books = books_of(u1=answer("u1"))
        books.settled.clear()
        books.tickets["u1"].is_refusable = True
        assert violations(books) == []
        books.enter("start", "u1", 7, 1)
        assert len(violations(books)) == 1

    def test_a_retry_policy_allows_so_many_runs(self):
        log = ["start u1 7 1", "start u1 8 1", *run("u1", 9)]
        assert violations(books_of(*log, terms=Terms(attempts=3), u1=answer("u1"))) == []
        assert len(violations(books_of(*log, terms=Terms(attempts=2), u1=answer("u1")))) == 1

    def test_what_nobody_can_know_is_counted(self):
        books = books_of(
            "start u1 7 1", "finish u1 7 1", u1=error("worker_lost"), u2=error("worker_lost"),
            cycle=Cycle(1, "two kills", may_lose=2),
        )  # fmt: skip
        tally = Tally()
        books.close(tally)
        assert (tally.violations, tally.in_between, tally.unbegun) == ([], 1, 1)


class TestTheWhole:
    def test_two_turns_at_once_in_one_process_are_found(self):
        log = ("start u1 7 1", "start u2 7 1", "finish u1 7 1", "finish u2 7 1")
        (found,) = violations(books_of(*log, u1=answer("u1"), u2=answer("u2")))
        assert "u2 began in process 7 while u1 ran there" in found

    def test_one_death_that_cost_two_requests_is_found(self):
        lost = {"u1": error("worker_lost"), "u2": error("worker_lost")}
        (found,) = violations(books_of("start u1 7 1", "start u2 8 1", **lost))
        assert "2 requests lost, at most 1 could be" in found

    def test_a_conversation_that_was_not_fresh_is_found(self):
        log = (*run("u1"), *run("u2", turn=2))
        answers = {"u1": answer("u1"), "u2": answer("u2", num_turns=2)}
        assert len(violations(books_of(*log, **answers))) == 1
        assert violations(books_of(*log, terms=Terms(is_fresh=False), **answers)) == []


class TestSessions:
    def test_good_ones_pass_over_a_replacement(self):
        log = (*run("u1"), "start u2 7 2", *run("u3", 8, 2))
        outcomes = {
            "u1": answer("u1", num_turns=1, order=1),
            "u2": error("worker_lost", order=2),
            "u3": answer("u3", num_turns=2, order=3),
        }
        assert violations(chat(books_of(*log, terms=Terms(is_resumable=True), **outcomes))) == []

    def test_another_order_than_that_of_arrival_is_found(self):
        log = (*run("u2"), *run("u1", turn=2))
        outcomes = {
            "u1": answer("u1", num_turns=2, order=1),
            "u2": answer("u2", num_turns=1, order=2),
        }
        found = violations(chat(books_of(*log, **outcomes)))
        assert "chat served 1 after 2, in order of arrival" in found
        assert "chat answered its request 2 as turn 1, after turn 2" in found

    @pytest.mark.parametrize("is_resumable", [True, False])
    def test_a_blank_state_is_found(self, is_resumable):
        log = (*run("u1"), *run("u2", 8, 1))
        outcomes = {
            "u1": answer("u1", num_turns=1, order=1),
            "u2": answer("u2", num_turns=1, order=2),
        }
        terms = Terms(is_resumable=is_resumable)
        found = violations(chat(books_of(*log, terms=terms, **outcomes)))
        assert any("u2 was turn 1 after 1 in a replacement" in one for one in found)

    def test_a_replacement_of_what_cannot_be_resumed_is_found(self):
        log = ("start u1 7 1", *run("u2", 8, 1))
        outcomes = {"u1": error("worker_lost", order=1), "u2": answer("u2", order=2)}
        assert len(violations(chat(books_of(*log, **outcomes)))) == 1


def test_growth_is_found_but_not_less():
    before = Figures(descriptors=6, threads=1, children=0, rss_mib=40.0)
    assert before.growth(Figures(5, 1, 0, 50.0), rss_mib=16) == []
    assert len(before.growth(Figures(7, 2, 1, 60.0), rss_mib=16)) == 4
