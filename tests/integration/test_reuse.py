"""One process, one conversation after the other: what the next one may find there, and what not."""

import contextlib
import logging
import os
import signal
import threading

import psutil
import pytest

from soloist import Supervisor, WorkerLost
from soloist.supervisor import spares
from tests.support import LIMIT_S, eventually
from tests.support_clients import UntidyEcho

ECHO = {"recall_on": "recall", "exit_on": "exit", "resumable": True}


@pytest.fixture
def sup():
    with Supervisor(1, client=UntidyEcho, options=ECHO) as supervisor:
        yield supervisor


def pid_after(sup, *prompts):
    """Have a conversation; the process that held it."""
    with sup.session() as own:
        for prompt in prompts:
            text_of(own, prompt)
        return own.stats().pid


def text_of(session, prompt):
    *_, result = session.query_and_receive(prompt)
    return result.result


def printed(caplog):
    """What workers have printed, and under which name."""
    records = [r for r in caplog.records if r.name.startswith("soloist.worker")]
    return {record.getMessage(): record.name for record in records}


class TestNextOne:
    def test_is_held_by_the_process_of_the_one_before(self, sup):
        pids = {pid_after(sup, "hello") for _ in range(5)}
        assert len(pids) == 1
        chat = sup.shared("named")
        text_of(chat, "hello")
        assert {chat.stats().pid} == pids

    def test_begins_anew(self, sup):
        before = pid_after(sup, "secret")
        with sup.session() as own:
            *_, result = own.query_and_receive("recall")
            assert (result.result, result.num_turns) == ("", 1)
            assert own.stats().pid == before
            assert own.stats().incarnation == 1

    def test_gets_another_process_while_the_one_before_is_open(self, sup):
        with sup.session() as first, sup.session() as second:
            assert first.stats().pid != second.stats().pid

    def test_does_not_continue_the_one_before_if_its_process_dies_first(self, sup):
        """What that one left in the ledger must not be taken for its own."""
        pid = pid_after(sup, "secret")
        with sup.session() as own:
            assert own.stats().pid == pid
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: own.stats().pid not in {0, pid})
            assert text_of(own, "recall") == ""

    def test_may_be_one_that_goes_on_after_a_crash(self, sup):
        with sup.session() as own:
            text_of(own, "first")
            spare = pid_after(sup, "another")
            os.kill(own.stats().pid, signal.SIGKILL)
            eventually(lambda: own.stats().incarnation == 2 and own.stats().pid)
            assert text_of(own, "recall") == "first"
            assert own.stats().pid == spare

    def test_prints_under_its_own_number(self, sup, caplog):
        with caplog.at_level(logging.INFO, "soloist.worker"):
            assert pid_after(sup, "say one") == pid_after(sup, "say two")
            said = eventually(lambda: len(found := printed(caplog)) == 2 and found)
        assert said.keys() == {"one", "two"}
        assert said["one"] != said["two"]

    def test_is_not_blamed_for_the_last_words_of_the_one_before(self, sup):
        pid = pid_after(sup, "say ouch")
        with sup.session() as own:
            assert own.stats().pid == pid
            with pytest.raises(WorkerLost) as caught:
                text_of(own, "exit")
        assert caught.value.stderr == ""


class TestAnotherProcess:
    @pytest.mark.parametrize(
        "trace",
        ["folder", "environment", "umask", "thread", "process", "refusal", "timer", "handler",
         "output"],
    )  # fmt: skip
    def test_follows_a_client_that_leaves_something(self, sup, trace):
        before = pid_after(sup, trace)
        eventually(lambda: not psutil.pid_exists(before))
        assert pid_after(sup, "hello") != before

    def test_follows_a_client_whose_constructor_leaves_something(self):
        with Supervisor(1, client=UntidyEcho, options={"variable": "SOLOIST_TEST_TRACE"}) as sup:
            before = pid_after(sup, "hello")
            eventually(lambda: not psutil.pid_exists(before))

    def test_takes_over_where_the_next_client_cannot_start(self, sup):
        """That is the doing of the one before, and no failure of the next one."""
        before = pid_after(sup, "poison")
        with sup.session() as own:
            assert text_of(own, "hello") == "hello"
            assert own.stats().pid != before

    def test_does_not_follow_one_whose_tasks_end_with_it(self, sup):
        assert pid_after(sup, "tasks") == pid_after(sup, "hello")

    def test_follows_one_that_has_died(self, sup):
        with sup.session() as own:
            text_of(own, "hello")
            pid = own.stats().pid
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: own.stats().incarnation == 2)
        assert pid_after(sup, "hello") != pid

    def test_follows_a_restart(self, sup):
        before = pid_after(sup, "hello")
        with sup.session() as own:
            assert own.stats().pid == before
            assert sup.restart(30.0)
            eventually(lambda: own.stats().pid not in {0, before})
        idle = pid_after(sup, "hello")
        assert sup.restart(30.0)
        eventually(lambda: not psutil.pid_exists(idle))
        assert pid_after(sup, "hello") != idle

    def test_follows_one_that_a_restart_has_left_alone(self):
        """Its conversation could not be continued; it is older than the restart all the same."""
        with Supervisor(1, client=UntidyEcho) as sup:
            with sup.session() as own:
                text_of(own, "hello")
                before = own.stats().pid
                assert sup.restart(30.0)
                assert own.stats().pid == before
            eventually(lambda: not psutil.pid_exists(before))
            assert pid_after(sup, "hello") != before

    @pytest.mark.parametrize(
        "limit", [{"max_requests_per_worker": 100}, {"max_memory_bytes": 2**34}], ids=str
    )
    def test_follows_where_workers_have_a_limited_life(self, limit):
        with Supervisor(1, client=UntidyEcho, **limit) as sup:
            before = pid_after(sup, "hello")
            eventually(lambda: not psutil.pid_exists(before))

    def test_follows_one_that_has_held_as_many_as_it_may(self, sup, monkeypatch):
        monkeypatch.setattr("soloist.supervisor.process._MOST_USES", 3)
        pids = [pid_after(sup, "hello") for _ in range(6)]
        assert pids == [pids[0]] * 3 + [pids[3]] * 3
        assert pids[0] != pids[3]


class TestQuestions:
    @pytest.mark.parametrize("when", ["before the next one asks", "after it has asked"])
    def test_a_late_answer_does_not_reach_the_next_conversation(self, when):
        asked, may_answer = threading.Event(), threading.Event()
        handlers = []

        def late(question):
            handlers.append(threading.current_thread())
            asked.set()
            may_answer.wait(LIMIT_S)
            return {"text": "the first one's"}

        def in_time(question):
            may_answer.set()
            handlers[0].join(LIMIT_S)  # then its answer is on its way
            return {"text": "the second one's"}

        with Supervisor(1, client=UntidyEcho, options={**ECHO, "ask_on": "ask"}) as sup:
            with sup.session() as first:
                first.query("ask", on_control=late)
                assert asked.wait(LIMIT_S)
                first.interrupt()
                list(first.receive_response())
                pid = first.stats().pid
            if when == "before the next one asks":
                may_answer.set()
                handlers[0].join(LIMIT_S)
            with sup.session() as second:
                assert second.stats().pid == pid
                second.query("ask", on_control=in_time)
                *_, result = second.receive_response()
        assert result.result == "the second one's"


class TestEnd:
    def test_one_that_dies_while_it_waits_costs_nobody_anything(self, sup):
        before = pid_after(sup, "hello")
        os.kill(before, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(before))
        assert pid_after(sup, "hello") != before

    def test_one_that_dies_as_it_is_given_costs_nobody_anything(self, sup):
        for _ in range(20):
            before = pid_after(sup, "hello")
            os.kill(before, signal.SIGKILL)  # nobody may have noticed when the next one begins
            with sup.session() as own:
                assert text_of(own, "hello") == "hello"

    def test_one_that_dies_as_it_is_given_is_no_failed_start(self):
        with Supervisor(1, client=UntidyEcho, max_restarts=0) as sup:
            for _ in range(10):
                before = pid_after(sup, "hello")
                os.kill(before, signal.SIGKILL)
                with sup.session() as own:
                    assert text_of(own, "hello") == "hello"

    def test_one_that_nobody_wants_goes(self, monkeypatch):
        monkeypatch.setattr(spares, "KEPT_S", 0.05)
        with Supervisor(1, client=UntidyEcho) as sup:
            before = pid_after(sup, "hello")
            eventually(lambda: not psutil.pid_exists(before))
            assert pid_after(sup, "hello") != before

    def test_one_that_does_not_go_is_killed(self, monkeypatch):
        monkeypatch.setattr(spares, "KEPT_S", 0.05)
        monkeypatch.setattr(spares, "STOP_S", 0.05)
        with Supervisor(1, client=UntidyEcho) as sup:
            before = pid_after(sup, "hello")
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                os.kill(before, signal.SIGSTOP)
            eventually(lambda: not psutil.pid_exists(before))

    def test_no_more_wait_than_there_is_room_for(self, monkeypatch):
        monkeypatch.setattr(spares, "MOST", 1)
        with Supervisor(1, client=UntidyEcho) as sup:
            with sup.session() as first, sup.session() as second:
                pids = [first.stats().pid, second.stats().pid]
            eventually(lambda: sum(map(psutil.pid_exists, pids)) == 1)

    def test_one_for_which_there_is_no_room_by_then_is_told_to_exit(self, monkeypatch, caplog):
        """Others came between the word that it may stay and its word that it can."""
        room = iter([True])
        monkeypatch.setattr(spares.Spares, "has_room", property(lambda _: next(room, False)))
        with caplog.at_level(logging.INFO), Supervisor(1, client=UntidyEcho) as sup:
            before = pid_after(sup, "hello")
            eventually(lambda: not psutil.pid_exists(before))
        exits = [r for r in caplog.records if getattr(r, "event", "") == "worker.exited"]
        assert [r.exitcode for r in exits if r.pid == before] == [0], "it was not killed"

    @pytest.mark.parametrize("is_stopped", [False, True], ids=["well", "hung"])
    def test_none_is_left_when_the_supervisor_closes(self, is_stopped):
        with Supervisor(1, client=UntidyEcho) as sup:
            pid = pid_after(sup, "hello")
            assert psutil.pid_exists(pid)
            if is_stopped:
                os.kill(pid, signal.SIGSTOP)
        assert not psutil.pid_exists(pid)
