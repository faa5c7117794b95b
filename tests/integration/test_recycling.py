"""Workers that are replaced while nothing is wrong with them: by age, by memory, and on request."""

import asyncio
import collections
import itertools
import os
import subprocess
import sys
import threading

import psutil
import pytest

from soloist import (
    AsyncSupervisor,
    InvalidOptions,
    RestartLimitReached,
    Supervisor,
    SupervisorClosed,
)
from tests import stand_in
from tests.support import LIMIT_S, descendants_of_runs, eventually, is_running, run_dirs_of
from tests.support_clients import PatientEcho, pid_of

MIB = 1024 * 1024


def pids(sup):
    return {worker.pid for worker in sup.stats().workers if worker.state == "ready"}


class TestAge:
    def test_no_process_answers_more_than_its_limit_and_no_prompt_is_lost(self):
        with Supervisor(
            2, client=lambda p: f"{p} {os.getpid()}", max_requests_per_worker=40
        ) as sup:
            results = sup.map(map(str, range(2000)))
            stats = sup.stats()
        said = [result.text.split() for result in results]
        assert [int(prompt) for prompt, _ in said] == list(range(2000))
        counts = collections.Counter(pid for _, pid in said)
        assert max(counts.values()) <= 40
        assert len(counts) >= 50
        assert (stats.answered, stats.failed, stats.cancelled) == (2000, 0, 0)
        assert {result.attempts for result in results} == {1}

    def test_with_a_limit_of_one_every_prompt_gets_a_process_of_its_own(self):
        with Supervisor(2, client=pid_of, max_requests_per_worker=1) as sup:
            assert len({result.text for result in sup.map(["p"] * 20)}) == 20

    def test_a_kept_conversation_is_as_long_as_its_worker_lives(self):
        with Supervisor(1, isolation="worker", max_requests_per_worker=4) as sup:
            turns = [result.num_turns for result in sup.map(["p"] * 50)]
        assert turns[0] == 1
        assert all(b in {1, a + 1} for a, b in itertools.pairwise(turns))
        assert max(turns) <= 4

    def test_the_restart_limit_is_not_touched(self):
        with Supervisor(2, client=pid_of, max_requests_per_worker=1, max_restarts=0) as sup:
            assert len(sup.map(["p"] * 30)) == 30

    def test_a_successor_waits_for_the_next_prompt(self):
        with Supervisor(1, client=pid_of, max_requests_per_worker=1) as sup:
            first = int(sup.map(["p"])[0].text)
            (second,) = eventually(lambda: pids(sup) - {first})
            assert int(sup.map(["p"])[0].text) == second

    def test_an_agents_cli_ends_with_its_worker(self, tmp_path):
        options = {"cli_path": stand_in.install(tmp_path)}
        with Supervisor(1, client="claude", options=options, max_requests_per_worker=1) as sup:
            clis = [int(result.text) for result in sup.map(["/pid"] * 4)]
            assert len(set(clis)) == 4
            eventually(lambda: not any(map(psutil.pid_exists, clis)))
            assert sup.stats().failed == 0

    @pytest.mark.parametrize("value", [0, -1, 1.5, True])
    @pytest.mark.parametrize("name", ["max_requests_per_worker", "max_memory_bytes"])
    def test_a_limit_that_is_none_is_refused(self, name, value):
        with pytest.raises(InvalidOptions, match=name):
            Supervisor(1, **{name: value})


KEPT = []
"""What clients of these tests keep: it travels by value, so each worker has one of its own."""


def hoarder():
    def hoard(prompt):
        KEPT.append(b"x" * (40 * MIB))
        return str(os.getpid())

    return hoard


def parent_of_a_hoarder():
    code = f"kept = b'x' * {150 * MIB}\nprint('up', flush=True)\nimport sys\nsys.stdin.read()"

    def hoard_below(prompt):
        child = subprocess.Popen(
            ["/bin/sh", "-c", '"$0" -c "$1"; true', sys.executable, code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        child.stdout.readline()
        KEPT.append(child)
        return str(os.getpid())

    return hoard_below


class TestMemory:
    @pytest.mark.parametrize("make", [hoarder, parent_of_a_hoarder])
    def test_a_process_tree_that_has_grown_is_replaced(self, make):
        with Supervisor(1, client=make(), max_memory_bytes=140 * MIB) as sup:
            first = sup.map(["p"])[0].text
            for _ in range(3):
                sup.map(["p"])
            eventually(lambda: pids(sup) - {int(first)})
            assert not psutil.pid_exists(int(first))
            assert sup.stats().failed == 0

    def test_one_that_has_not_grown_stays(self):
        with Supervisor(1, client=pid_of, max_memory_bytes=10_000 * MIB) as sup:
            looks = []
            pool = sup._reactor._thread._pool
            measured = pool.measured
            pool.measured = lambda *report: looks.append(report) or measured(*report)
            sup.map(["p"])
            eventually(lambda: looks)
            assert looks[0][1] > MIB
            assert sup.stats().restarts == 0

    def test_without_a_limit_nobody_looks(self):
        with Supervisor(1, client=pid_of) as sup:
            sup.map(["p"] * 10)
            assert "soloist-monitor" not in {t.name for t in threading.enumerate()}

    def test_an_idle_pool_is_not_looked_at(self):
        with Supervisor(1, client=pid_of, max_memory_bytes=10_000 * MIB) as sup:
            sup.map(["p"])
            eventually(lambda: sup._reactor._thread.workers.watch.next_round() == float("inf"))


ECHO = {"recall_on": "recall", "resumable": True}


class TestSessions:
    def test_a_conversation_goes_on_in_other_workers_and_its_callers_notice_nothing(self):
        with Supervisor(1, options=ECHO, max_requests_per_worker=3) as sup:
            chat = sup.shared("chat")
            futures = [chat.query(str(i)) for i in range(20)]
            results = [future.result(LIMIT_S) for future in futures]
            assert [result.text for result in results] == [str(i) for i in range(20)]
            assert [result.num_turns for result in results] == list(range(1, 21))
            assert chat.query("recall").result(LIMIT_S).text == "\n".join(map(str, range(20)))
            assert chat.incarnation >= 7
            assert sup.stats().failed == 0

    def test_an_owned_one_too_with_its_settings(self):
        with (
            Supervisor(1, client=PatientEcho, options=ECHO, max_requests_per_worker=1) as sup,
            sup.session() as own,
        ):
            own.set_model("other")
            for turn in range(1, 6):
                own.query("p")
                *_, answer, result = own.receive_response()
                assert (answer.model, result.num_turns) == ("other", turn)
            assert own.incarnation >= 5

    def test_commands_amid_it_reach_the_next_worker(self):
        with Supervisor(1, options=ECHO, max_requests_per_worker=1) as sup, sup.session() as own:
            for turn in range(12):
                own.query("p")
                *_, result = own.receive_response()
                own.set_model(f"model {turn}")
                own.query("p")
                *_, answer, result = own.receive_response()
                assert answer.model == f"model {turn}"
            assert result.num_turns == 24

    def test_one_that_cannot_be_continued_keeps_its_worker(self):
        with Supervisor(1, max_requests_per_worker=1, max_memory_bytes=1) as sup:
            chat = sup.shared("chat")
            results = [chat.query("p").result(LIMIT_S) for _ in range(5)]
            assert [result.num_turns for result in results] == [1, 2, 3, 4, 5]
            assert sup.restart(LIMIT_S)
            assert chat.query("p").result(LIMIT_S).num_turns == 6
            assert chat.incarnation == 1

    def test_one_that_has_grown_is_moved(self):
        with Supervisor(1, options=ECHO, max_memory_bytes=1) as sup:
            chat = sup.shared("chat")
            assert chat.query("p").result(LIMIT_S).num_turns == 1
            eventually(lambda: chat.incarnation == 2 and chat.is_connected)
            assert chat.query("p").result(LIMIT_S).num_turns == 2


class TestRestart:
    def test_under_load_nothing_is_lost_and_every_process_is_another(self):
        """A map, a shared conversation, and everything is replaced twice meanwhile."""
        with Supervisor(3, client=PatientEcho, options=ECHO) as sup:
            chat = sup.shared("chat")
            sup.map(["p"] * 50)
            eventually(lambda: len(pids(sup)) == 3 and chat.is_connected)
            is_over, said, results = threading.Event(), [], []

            def talk():
                while not is_over.is_set():
                    said.append(chat.query(str(len(said))).result(LIMIT_S))

            def prompts():
                number = 0
                while not is_over.is_set():
                    yield str(number)
                    number += 1

            def read():
                results.extend(sup.imap(prompts()))

            threads = [threading.Thread(target=work) for work in (talk, read)]
            for thread in threads:
                thread.start()
            seen = [pids(sup) | {chat.stats().pid}]
            assert len(seen[0]) == 4
            for _ in range(2):
                assert sup.restart(LIMIT_S)
                eventually(lambda: len(pids(sup)) == 3 and chat.is_connected)
                seen.append(pids(sup) | {chat.stats().pid})
                assert not set.union(*seen[:-1]) & seen[-1]
            is_over.set()
            for thread in threads:
                thread.join(LIMIT_S)
            assert [result.text for result in results] == [str(i) for i in range(len(results))]
            assert [result.num_turns for result in said] == list(range(1, len(said) + 1))
            assert len(results) > 100
            assert len(said) > 2
            assert (sup.stats().failed, sup.stats().cancelled) == (0, 0)
            assert chat.incarnation == 3

    def test_who_runs_is_waited_for_and_then_it_goes_on_by_itself(self, tmp_path):
        gate = tmp_path / "gate"
        os.mkfifo(gate)

        def wait(prompt):
            if prompt == "wait":
                gate.read_bytes()
            return str(os.getpid())

        with Supervisor(1, client=wait) as sup:
            running = sup.submit("wait")
            is_running(running)
            assert not sup.restart(0.05)
            gate.write_bytes(b"x")
            old = int(running.result(LIMIT_S).text)
            assert sup.restart(LIMIT_S)
            assert pids(sup) == set() or old not in pids(sup)
            assert int(sup.map(["p"])[0].text) != old

    def test_several_callers_at_once_wait_for_the_same_one(self):
        with Supervisor(2, client=pid_of) as sup:
            sup.map(["p"] * 10)
            eventually(lambda: len(pids(sup)) == 2)
            done = []
            threads = [
                threading.Thread(target=lambda: done.append(sup.restart(LIMIT_S))) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert done == [True] * 4
            assert 2 <= sup.stats().restarts <= 8

    def test_new_workers_that_cannot_start_leave_the_old_ones_in_service(self, tmp_path):
        class Client(PatientEcho):
            async def connect(self):
                if (tmp_path / "broken").exists():
                    raise RuntimeError("bad key")
                await super().connect()

        with Supervisor(2, client=Client, max_restarts=2) as sup:
            sup.map(["p"] * 10)
            eventually(lambda: len(pids(sup)) == 2)
            before = pids(sup)
            (tmp_path / "broken").touch()
            with pytest.raises(RestartLimitReached, match="bad key"):
                sup.restart(LIMIT_S)
            assert pids(sup) < before
            assert sup.map(["p"])[0].text == "p"

    def test_many_conversations_move_a_few_at_a_time(self):
        with Supervisor(1, options=ECHO) as sup:
            chats = [sup.shared(str(i)) for i in range(10)]
            futures = [chat.query("p") for chat in chats]
            assert [future.result(LIMIT_S).num_turns for future in futures] == [1] * 10
            assert sup.restart(LIMIT_S)
            futures = [chat.query("p") for chat in chats]
            assert [future.result(LIMIT_S).num_turns for future in futures] == [2] * 10
            assert [chat.incarnation for chat in chats] == [2] * 10

    def test_of_a_closed_supervisor_is_refused(self):
        sup = Supervisor(1)
        sup.close()
        with pytest.raises(SupervisorClosed):
            sup.restart()
        with pytest.raises(InvalidOptions):
            sup.restart(-1)

    def test_in_asyncio_it_is_the_same(self):
        async def main():
            async with AsyncSupervisor(2, client=pid_of) as sup:
                (before,) = await sup.map(["p"])
                assert await sup.restart(LIMIT_S)
                (after,) = await sup.map(["p"])
                assert before.text != after.text
                long = asyncio.ensure_future(sup.restart())
                long.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await long
                assert await sup.restart(LIMIT_S)
                with pytest.raises(InvalidOptions):
                    await sup.restart(-1)
            with pytest.raises(SupervisorClosed):
                await sup.restart()

        asyncio.run(main())

    def test_in_asyncio_a_limit_gives_false(self):
        async def main():
            async with AsyncSupervisor(1, client=PatientEcho, options={"chunks": 2}) as sup:
                running = sup.query("long")
                await anext(running)
                assert not await sup.restart(0.05)
                await running.aclose()

        asyncio.run(main())


def test_nothing_is_left_of_those_that_were_replaced():
    before = set(os.listdir("/proc/self/fd"))
    with Supervisor(2, client=pid_of, max_requests_per_worker=5, max_memory_bytes=1) as sup:
        sup.map(["p"] * 100)
        sup.restart(LIMIT_S)
        run_dirs = run_dirs_of(os.getpid())
    assert descendants_of_runs(run_dirs) == []
    assert set(os.listdir("/proc/self/fd")) <= before
    assert not {t.name for t in threading.enumerate() if t.name.startswith("soloist")}
