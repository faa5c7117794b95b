"""The journal: never waits, keeps the order, forgets no number."""

from __future__ import annotations

import logging
import threading

import pytest

from soloist.supervisor import events
from soloist.supervisor.journal import Journal
from tests.support import LIMIT_S, eventually


class Handler(logging.Handler):
    """Keeps records; ``gate`` holds it up."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.threads = set()
        self.gate = threading.Event()
        self.gate.set()
        self.is_held = threading.Event()

    def emit(self, record):
        if not self.gate.is_set():
            self.is_held.set()
            assert self.gate.wait(LIMIT_S)
        self.threads.add(threading.current_thread().name)
        self.records.append(record)

    def texts(self):
        return [record.getMessage() for record in self.records]


@pytest.fixture
def heard():
    """What arrives below the logger ``soloist``."""
    logger, handler = logging.getLogger("soloist"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    handler.gate.set()
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def journal():
    journal = Journal(max_waiting_chars=10_000)
    yield journal
    journal.close(LIMIT_S)


WORKER = logging.getLogger("soloist.worker.0")


def names():
    return [thread.name for thread in threading.enumerate()]


class TestRecords:
    def test_events_and_lines_come_in_order_on_a_thread_of_their_own(self, heard, journal):
        journal.write(WORKER, logging.INFO, ["one", "two %s"], {"worker": 0, "stream": "stdout"})
        journal.report(events.SESSION_OPENED, session="a", worker=3)
        journal.write(WORKER, logging.WARNING, ["three"], {"worker": 0, "stream": "stderr"})
        journal.close()
        assert heard.texts() == ["one", "two %s", "session 'a' (worker 3) is opened", "three"]
        assert heard.threads == {"soloist-log"}
        first, _, event, last = heard.records
        assert (first.name, first.levelname, first.stream) == (WORKER.name, "INFO", "stdout")
        assert (last.levelname, last.worker, last.stream) == ("WARNING", 0, "stderr")
        assert (event.name, event.levelname) == ("soloist.supervisor", "DEBUG")
        assert (event.event, event.session, event.worker) == ("session.opened", "a", 3)

    def test_what_nobody_wants_starts_no_thread(self, heard, journal):
        logging.getLogger("soloist").setLevel(logging.ERROR)
        journal.write(WORKER, logging.INFO, ["one"], {})
        journal.report(events.SESSION_CLOSED, session="a", worker=3)
        assert "soloist-log" not in names()

    def test_an_event_without_fields_has_its_words(self, heard, journal):
        journal.report(events.IO_FAILED)
        journal.close()
        assert heard.texts() == [events.IO_FAILED.message]

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.parametrize("error", [ValueError, SystemExit])
    def test_a_handler_that_fails_does_not_end_it(self, heard, journal, error, capfd):
        class Bad(logging.Handler):
            def emit(self, record):
                if record.getMessage() == "bad":
                    raise error("no")

        bad = Bad()
        WORKER.addHandler(bad)
        journal.write(WORKER, logging.INFO, ["bad"], {})
        journal.write(WORKER, logging.INFO, ["good"], {})
        journal.close()
        WORKER.removeHandler(bad)
        assert heard.texts() == ["good"]


class TestBounds:
    def test_lines_beyond_the_bound_are_left_out_and_counted(self, heard, journal):
        heard.gate.clear()
        journal.write(WORKER, logging.INFO, ["first"], {})
        assert heard.is_held.wait(LIMIT_S)
        for _ in range(100):
            journal.write(WORKER, logging.INFO, ["x" * 500] * 2, {})
        heard.gate.set()
        eventually(lambda: any(hasattr(record, "lines") for record in heard.records))
        journal.write(WORKER, logging.INFO, ["room again"], {})
        journal.close()
        lines = [text for text in heard.texts() if text == "x" * 500]
        (dropped,) = [record for record in heard.records if hasattr(record, "event")]
        assert dropped.event == "output.dropped"
        assert len(lines) + dropped.lines == 200
        assert 2 <= len(lines) <= 20
        assert heard.texts()[-1] == "room again"

    def test_many_short_lines_at_once_are_no_reason_to_leave_out_all(self, heard):
        journal = Journal()
        heard.gate.clear()
        journal.write(WORKER, logging.INFO, ["x"] * 65_536, {})
        assert heard.is_held.wait(LIMIT_S)
        heard.gate.set()
        journal.close(LIMIT_S)
        (dropped,) = [record for record in heard.records if hasattr(record, "event")]
        assert len(heard.records) - 1 + dropped.lines == 65_536
        assert len(heard.records) > 10_000

    def test_one_that_is_larger_than_the_bound_comes_if_nothing_waits(self, heard, journal):
        journal.write(WORKER, logging.INFO, ["x" * 20_000], {})
        journal.close()
        assert len(heard.records) == 1

    def test_events_still_come_when_lines_do_not(self, heard, journal):
        heard.gate.clear()
        journal.write(WORKER, logging.INFO, ["first"], {})
        assert heard.is_held.wait(LIMIT_S)
        for _ in range(100):
            journal.write(WORKER, logging.INFO, ["x" * 500], {})
        journal.report(events.SESSION_CLOSED, session="a", worker=3)
        heard.gate.set()
        journal.close()
        assert "session.closed" in [getattr(record, "event", "") for record in heard.records]

    def test_handing_over_never_waits_for_a_handler(self, heard, journal):
        heard.gate.clear()
        for _ in range(1000):
            journal.write(WORKER, logging.INFO, ["x" * 500], {})
            journal.report(events.SESSION_CLOSED, session="a", worker=3)
        assert heard.is_held.wait(LIMIT_S)
        assert not heard.records
        heard.gate.set()


class TestClose:
    def test_it_says_the_rest_and_ends_the_thread(self, heard, journal):
        for number in range(40):
            journal.write(WORKER, logging.INFO, [str(number)], {})
        journal.close()
        assert heard.texts() == [str(number) for number in range(40)]
        assert "soloist-log" not in names()

    def test_it_does_not_wait_for_ever_and_the_thread_ends_with_its_handler(self, heard, journal):
        heard.gate.clear()
        journal.write(WORKER, logging.INFO, ["a"], {})
        journal.write(WORKER, logging.INFO, ["b"], {})
        assert heard.is_held.wait(LIMIT_S)
        journal.close(0.01)
        assert "soloist-log" in names()
        heard.gate.set()
        eventually(lambda: "soloist-log" not in names())
        assert heard.texts() == ["a"]
