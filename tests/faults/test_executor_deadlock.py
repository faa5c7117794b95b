"""The deadlock matrix: whatever the user's code does, and wherever, one request pays for it.

In the manner of loky's: each cell has work pending before and behind the guilty request. Nothing
hangs, the guilty one alone fails, with the right typed error, the others are answered, the pool
goes on, and nothing is left. The cells of one kind of client share a Supervisor, so that what one
cell leaves behind would be seen in the next.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading

import psutil
import pytest

from soloist import (
    ClientError,
    ClientNotSerializable,
    InvalidPrompt,
    RequestTimeout,
    RestartLimitReached,
    ResultNotSerializable,
    SoloistError,
    Supervisor,
    WorkerLost,
)
from tests.faults.executor_clients import CLIENTS, DEATHS, ERRORS, EXITCODES, FAULTS
from tests.support import (
    LIMIT_S,
    descendants_of_runs,
    eventually,
    run_dirs_of,
)

KINDS = list(CLIENTS)
SIZE = 2
HELPERS = 4  # three guards and the forkserver


class Crew:
    """A Supervisor with a client of one kind, and what a cell of the matrix does with it.

    ``class-late`` is for cells whose worker may die when the outcome has been told already.
    """

    def __init__(self, kind: str) -> None:
        before = run_dirs_of(os.getpid())
        self.sup = Supervisor(
            SIZE, client=CLIENTS[kind.partition("-")[0]], max_restarts=10_000, interrupt_grace_s=0.2
        )
        self.run_dirs = run_dirs_of(os.getpid()) - before
        self.sup.map(["warm"] * 300)  # now prompts go out in batches

    def run(self, guilty: str, timeout_s: float | None = None):
        """Its outcome, result or error, after everybody else's has been found right."""
        future, rest = self.send(guilty, timeout_s)
        self.all_are_answered(rest)
        return future.exception(LIMIT_S) or future.result()

    def send(self, guilty: str, timeout_s: float | None = None):
        self._pids = {worker.pid for worker in self.sup.stats().workers} - {0}
        first = [self.sup.submit(f"before {i}") for i in range(5)]
        future = self.sup.submit(guilty, timeout_s=timeout_s)
        rest = [self.sup.submit(f"behind {i}") for i in range(30)]
        return future, first + rest

    def all_are_answered(self, futures) -> None:
        done, pending = concurrent.futures.wait(futures, LIMIT_S)
        assert not pending
        assert {future.result().text == future.result().prompt for future in done} == {True}

    def goes_on(self, deaths: int = 0) -> None:
        """It answers, and no more workers have died since ``send`` than may."""
        assert self.sup.submit("next").result(LIMIT_S).text == "next"
        # A turn whose request has timed out may still run.
        eventually(lambda: not any(worker.running for worker in self.sup.stats().workers))
        stats = self.sup.stats()
        assert (stats.queued, stats.running) == (0, 0)
        assert len(stats.workers) <= SIZE
        assert sum(not psutil.pid_exists(pid) for pid in self._pids) <= deaths


@pytest.fixture(scope="module")
def crews():
    made: dict[str, Crew] = {}

    def crew(kind: str) -> Crew:
        if kind not in made:
            made[kind] = Crew(kind)
        return made[kind]

    yield crew
    for one in made.values():
        eventually(
            lambda one=one: len(descendants_of_runs(one.run_dirs)) <= HELPERS + SIZE, timeout_s=2
        )
        one.sup.close()
        assert descendants_of_runs(one.run_dirs) == []
        assert not any(map(os.path.exists, one.run_dirs))


def assert_died(error, fault: str) -> None:
    assert type(error) is WorkerLost, error
    assert (error.exitcode, error.started) == (EXITCODES[fault], None)


class TestWhileItRuns:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("fault", ERRORS)
    def test_what_is_raised_costs_the_request_but_not_its_worker(self, crews, kind, fault):
        crew = crews(kind)
        error = crew.run(f"fault {fault}")
        assert (type(error), error.started) == (ClientError, None)
        crew.goes_on()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("fault", DEATHS)
    def test_a_death_costs_the_request_and_one_worker(self, crews, kind, fault):
        crew = crews(kind)
        assert_died(crew.run(f"fault {fault}"), fault)
        crew.goes_on(deaths=1)

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_never_ends_costs_the_request_at_its_timeout(self, crews, kind):
        crew = crews(kind)
        error = crew.run("endless", timeout_s=0.3)
        assert type(error) is RequestTimeout
        crew.goes_on(deaths=int(kind != "async"))  # it alone hears an interrupt

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_thread_of_the_users_goes_on_and_harms_nothing(self, crews, kind):
        crew = crews(kind)
        assert crew.run("thread").text == "thread"
        crew.goes_on()

    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_a_daemon_that_holds_every_descriptor_harms_nothing(self, crews, kind):
        crew = crews(kind)
        daemon = psutil.Process(int(crew.run("daemon").text))
        crew.goes_on()
        os.kill(daemon.ppid(), signal.SIGKILL)  # its worker: whose end is seen all the same
        crew.goes_on(deaths=1)
        eventually(lambda: not daemon.is_running(), timeout_s=2)

    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_a_death_beside_such_a_daemon_is_seen_at_once(self, crews, kind, tmp_path):
        crew = crews(kind)
        assert_died(crew.run(f"daemon-death {tmp_path / 'pid'}"), "os._exit")
        pid = int((tmp_path / "pid").read_text())
        eventually(lambda: not psutil.pid_exists(pid), timeout_s=2)
        crew.goes_on(deaths=1)


class TestInTheResult:
    @pytest.mark.parametrize("kind", ["sync", "async"])
    @pytest.mark.parametrize("value", ["None", "bytes", "surrogate", "subclass"])
    def test_what_cannot_be_encoded_costs_the_request(self, crews, kind, value):
        crew = crews(kind)
        assert type(crew.run(f"return {value}")) is ResultNotSerializable
        crew.goes_on()

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_message_that_fails_while_it_is_encoded_costs_the_request(self, crews, fault):
        crew = crews("class")
        error = crew.run(f"at encode {fault}")
        if fault in DEATHS:
            assert_died(error, fault)
        else:
            assert isinstance(error, ClientError)
        crew.goes_on(deaths=int(fault in DEATHS))


class TestInTheExceptionsOwnMethods:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("method", ["__str__", "__repr__", "__notes__", "__reduce__"])
    @pytest.mark.parametrize("fault", ["exception", "sys.exit", "RecursionError", "MemoryError"])
    def test_what_they_raise_changes_nothing(self, crews, kind, method, fault):
        crew = crews(kind)
        error = crew.run(f"except {method} {fault}")
        assert type(error) is ClientError
        assert error.type_name == "Hostile"
        crew.goes_on()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("fault", DEATHS)
    def test_a_death_in_them_costs_the_request_and_one_worker(self, crews, kind, fault):
        crew = crews(kind)
        assert_died(crew.run(f"except __str__ {fault}"), fault)
        crew.goes_on(deaths=1)

    @pytest.mark.parametrize("kind", KINDS)
    def test_causes_in_a_ring_arrive(self, crews, kind):
        error = crews(kind).run("ring")
        assert (type(error), error.type_name) == (ClientError, "ValueError")


class TestInTheClientsOwnMethods:
    @pytest.mark.parametrize("phase", ["query", "first", "middle"])
    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_turn_that_fails_there_costs_the_request(self, crews, phase, fault):
        crew = crews("class")
        error = crew.run(f"at {phase} {fault}")
        if fault in DEATHS:
            assert_died(error, fault)
        else:
            assert (type(error), error.started) == (ClientError, None)
        crew.goes_on(deaths=int(fault in DEATHS))

    @pytest.mark.parametrize("phase", ["reset", "disconnect"])
    @pytest.mark.parametrize("fault", FAULTS)
    def test_what_fails_between_two_turns_costs_no_request(self, crews, phase, fault):
        crew = crews("class-late")
        assert crew.run(f"at {phase} {fault}").text == f"at {phase} {fault}"
        crew.goes_on(deaths=SIZE)  # one of them from the cell before

    @pytest.mark.parametrize("fault", FAULTS)
    def test_an_interrupt_that_fails_costs_the_cancelled_request_alone(
        self, crews, fault, tmp_path
    ):
        crew = crews("class-late")
        future, rest = crew.send(f"at interrupt {fault} {tmp_path / 'begun'}")
        eventually((tmp_path / "begun").exists)
        future.cancel()
        assert concurrent.futures.wait([future], LIMIT_S).done == {future}
        crew.all_are_answered(rest)
        crew.goes_on(deaths=SIZE)  # one of them from the cell before


class TestInThePrompt:
    @pytest.mark.parametrize("error", [KeyError, TypeError, RecursionError, MemoryError])
    @pytest.mark.parametrize("method", ["get", "values", "__iter__"])
    def test_what_cannot_be_encoded_costs_its_own_place(self, crews, method, error):
        def fail(*_):
            raise error("as asked")

        hostile = type("Hostile", (dict,), {method: fail})(type="text")
        crew = crews("sync")
        with pytest.raises(InvalidPrompt):
            crew.sup.submit([hostile])
        results = crew.sup.map(["a", [hostile], "b"], return_exceptions=True)
        assert (results[0].text, type(results[1]), results[2].text) == ("a", InvalidPrompt, "b")
        assert results[1].started is False


class Travelling:
    """A callable that does something while it is pickled, or loaded again."""

    def __init__(self, *, pickled=lambda: None, loaded=lambda: None):
        self._pickled = pickled
        self._loaded = loaded

    def __reduce__(self):
        self._pickled()
        return _load, (self._loaded,)

    def __call__(self, prompt):
        return prompt


def _load(fault):
    fault()
    return Travelling(loaded=fault)


@pytest.fixture
def nothing_new():
    """Fails if the test leaves a process, a folder or a thread of a Supervisor's own behind."""
    before, threads = run_dirs_of(os.getpid()), set(threading.enumerate())
    yield
    assert run_dirs_of(os.getpid()) == before
    assert {t.name for t in set(threading.enumerate()) - threads} <= {"soloist-callbacks"}


@pytest.mark.usefixtures("nothing_new")
class TestWhileTheClientTravels:
    @pytest.mark.parametrize("fault", ["exception", "RecursionError", "MemoryError"])
    def test_what_fails_while_it_is_pickled_is_told_by_the_constructor(self, fault):
        with pytest.raises(ClientNotSerializable) as caught:
            Supervisor(1, client=Travelling(pickled=FAULTS[fault]))
        assert caught.value.started is False

    def test_an_exit_while_it_is_pickled_is_the_callers_own(self):
        with pytest.raises(SystemExit):
            Supervisor(1, client=Travelling(pickled=FAULTS["sys.exit"]))

    @pytest.mark.parametrize("fault", ["exception", "sys.exit", "os._exit", "segfault"])
    def test_what_fails_while_it_is_loaded_is_told_by_the_constructor(self, fault):
        with pytest.raises(SoloistError) as caught:
            Supervisor(1, client=Travelling(loaded=FAULTS[fault]))
        if fault in DEATHS:
            assert type(caught.value) is WorkerLost
            assert caught.value.exitcode == EXITCODES[fault]
        else:
            assert type(caught.value) is ClientNotSerializable

    @pytest.mark.parametrize("fault", ["exception", "sigkill"])
    def test_what_loads_but_once_fails_those_who_wait_and_hangs_nobody(self, fault, tmp_path):
        """The constructor's proof was good; no replacement will ever load."""
        loaded, act = tmp_path / "loaded", FAULTS[fault]

        def load_once():
            try:
                loaded.touch(exist_ok=False)
            except FileExistsError:
                act()

        client = Travelling(loaded=load_once)
        with Supervisor(1, client=client, max_restarts=2) as sup:
            assert sup.submit("a").result(LIMIT_S).text == "a"
            os.kill(sup.stats().workers[0].pid, signal.SIGKILL)
            futures = [sup.submit(str(i)) for i in range(20)]
            errors = [future.exception(LIMIT_S) for future in futures]
        wanted = RestartLimitReached if fault in DEATHS else ClientNotSerializable
        assert {type(error) for error in errors} <= {wanted, WorkerLost}
        assert type(errors[-1]) is wanted
        assert [error.started for error in errors[1:]] == [False] * 19
