"""The way in: what is handed over is taken in order, or refused, and never lost."""

import os
import select

import pytest

from soloist import SupervisorClosed
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.request import Request


class Sink:
    def __init__(self):
        self.outcomes = []

    def settle(self, request):
        self.outcomes.append(request.outcome)


@pytest.fixture
def inbox():
    made = Inbox()
    yield made
    made.is_closed.set()
    made.close()


def request():
    return Request("a", b"ta", Sink())


def is_readable(inbox):
    return bool(select.select([inbox], [], [], 0)[0])


def test_it_is_taken_in_order(inbox):
    first, second = request(), request()
    inbox.submit([first, second])
    inbox.post(len)
    assert bool(inbox)
    assert [inbox.take(), inbox.take(), inbox.take(), inbox.take()] == [first, second, len, None]


def test_only_who_sleeps_is_woken(inbox):
    inbox.submit([request()])
    assert not is_readable(inbox)
    assert not inbox.may_sleep()  # something has come just before
    inbox.take()
    assert inbox.may_sleep()
    inbox.post(len)
    inbox.post(len)
    assert is_readable(inbox)
    assert os.read(inbox.fileno(), 10) == b"\0"  # once


def test_shut_it_takes_orders_and_no_requests(inbox):
    early = request()
    inbox.submit([early])
    inbox.shut()
    with pytest.raises(SupervisorClosed) as refused:
        inbox.submit([request()])
    assert refused.value.started is False
    answer = inbox.ask(lambda: 5)
    assert inbox.take() is early
    inbox.take()()
    assert answer.result(0) == 5


def test_an_answer_may_be_an_error(inbox):
    answer = inbox.ask(lambda: 1 / 0)
    inbox.take()()
    assert isinstance(answer.exception(0), ZeroDivisionError)


def test_after_the_end_everything_is_refused():
    inbox = Inbox()
    late, answer = request(), inbox.ask(lambda: 5)
    outcomes = late.sink.outcomes
    inbox.submit([late])
    inbox.is_closed.set()
    inbox.close()
    assert [type(outcome) for outcome in outcomes] == [SupervisorClosed]
    assert isinstance(answer.exception(0), SupervisorClosed)
    assert isinstance(inbox.ask(lambda: 5).exception(0), SupervisorClosed)
    with pytest.raises(SupervisorClosed):
        inbox.submit([request()])


def test_a_forks_copy_is_closed_and_wakes_nobody():
    inbox = Inbox()
    assert inbox.may_sleep()
    inbox.disown()
    assert isinstance(inbox.ask(lambda: 5).exception(0), SupervisorClosed)
    with pytest.raises(SupervisorClosed):
        inbox.submit([request()])
    assert not is_readable(inbox)
    inbox.close()
