"""Two measurements with a promise each: throughput under kills, and how soon a worker is replaced.

Both use the client of the suite, whose log says what really ran and when.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from soloist import ResultMessage, Supervisor, WorkerLost
from soloist.protocol.errors import SoloistError
from tests.faults.accountant import Books, Stopwatch, Terms
from tests.faults.client import LOG_NAME, FaultyEcho
from tests.faults.taps import Taps

WARM_UP = 200


# -- a map under kills -----------------------------------------------------------------------------


@dataclass
class KillReport:
    """A map while its workers were killed, beside the same map in peace."""

    prompts: int
    kills: int
    lost: int
    in_between: int
    unbegun: int
    per_s: float
    clean_per_s: float
    violations: list[str]

    def lines(self) -> Iterator[str]:
        """For people."""
        yield (
            f"{self.prompts:,} prompts, {self.kills} workers killed, {self.lost} prompts lost: "
            "those that had started and not finished"
        )
        yield (
            f"{self.per_s:,.0f} prompts/s under kills, {self.clean_per_s:,.0f} in peace "
            f"({self.per_s / self.clean_per_s:.2f})"
        )
        yield (
            f"nobody can know: {self.in_between} killed between finish and ledger, "
            f"{self.unbegun} lost between claim and client"
        )
        yield f"violations: {len(self.violations)}"
        yield from (f"  {violation}" for violation in self.violations)


def map_under_kills(
    *, prompts: int, workers: int, every_s: float, turn_s: float, seed: int
) -> KillReport:
    """Map over ``prompts`` while a worker is killed every ``every_s``; check the books.

    Args:
        prompts: how many.
        workers: the pool's size.
        every_s: seconds between two kills.
        turn_s: seconds that a turn takes.
        seed: which worker each kill hits.
    """
    clean = _Mapping(prompts, workers, turn_s)
    clean.run(None)
    mapping = _Mapping(prompts, workers, turn_s)
    killer = _Killer(workers, every_s, seed)
    with Taps(lambda *_: None) as taps:
        mapping.run(killer, taps)
    books = mapping.books
    starts = {f"p{i}": books.executions.get(f"p{i}", []) for i in range(prompts)}
    return KillReport(
        prompts,
        killer.kills,
        len(mapping.failed),
        sum(_is_in_between(runs) for runs in starts.values()),
        mapping.lost - sum(bool(starts[f"p{i}"]) for i in mapping.failed),
        prompts / mapping.seconds,
        prompts / clean.seconds,
        [
            *_wrongs(mapping.outcomes, starts),
            *([f"{mapping.lost} lost"] if mapping.lost > killer.kills else []),
        ],
    )


class _Mapping:
    """One ``map``, its outcomes and its log."""

    def __init__(self, prompts: int, workers: int, turn_s: float) -> None:
        self.books = Books(Terms())
        self.outcomes: list[Any] = []
        self.seconds = 0.0
        self._prompts = [f"p{i} read" for i in range(prompts)]
        self._workers = workers
        self._turn_s = turn_s

    @property
    def failed(self) -> list[int]:
        """Which prompts got an error."""
        return [i for i, o in enumerate(self.outcomes) if isinstance(o, SoloistError)]

    @property
    def lost(self) -> int:
        return sum(isinstance(outcome, WorkerLost) for outcome in self.outcomes)

    def run(self, killer: _Killer | None, taps: Taps | None = None) -> None:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            options = {"folder": folder, "delay_s": self._turn_s}
            with Supervisor(
                self._workers, client=FaultyEcho, options=options, max_restarts=1_000_000
            ) as sup:
                sup.map([f"w{i} read" for i in range(WARM_UP)])
                if killer is not None and taps is not None:
                    killer.start(taps)
                watch = Stopwatch()
                self.outcomes = sup.map(self._prompts, return_exceptions=True)  # type: ignore[assignment]
                self.seconds = watch.s()
                if killer is not None:
                    killer.stop()
            self.books.read_log(Path(folder) / LOG_NAME)


class _Killer:
    """Kills a worker, chosen by chance, every so often, on a thread of its own."""

    def __init__(self, workers: int, every_s: float, seed: int) -> None:
        self.kills = 0
        self._workers = workers
        self._every_s = every_s
        self._chance = Random(seed)
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, taps: Taps) -> None:
        self._thread = threading.Thread(target=self._run, args=(taps,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, taps: Taps) -> None:
        killed: set[int] = set()
        while not self._is_over.wait(self._every_s):
            pid = taps.kill_worker(self._chance.randrange(self._workers))
            self.kills += pid not in killed
            killed.add(pid)


def _is_in_between(runs: list[Any]) -> bool:
    return any(run.is_finished and not run.is_safe for run in runs)


def _wrongs(outcomes: list[Any], starts: dict[str, list[Any]]) -> Iterator[str]:
    """Failed are exactly those that the log shows started and not finished; none ran twice."""
    for (uid, runs), outcome in zip(starts.items(), outcomes, strict=True):
        if len(runs) > 1:
            yield f"{uid} ran {len(runs)} times"
        if isinstance(outcome, SoloistError):
            if not isinstance(outcome, WorkerLost):
                yield f"{uid}: {outcome!r}"
            if any(run.is_safe for run in runs):
                yield f"{uid} was finished and lost"
        elif outcome.text.split()[0] != uid or not any(run.is_finished for run in runs):
            yield f"{uid} was answered {outcome.text!r:.40}, its turn: {runs}"


# -- how soon a worker is replaced -----------------------------------------------------------------


@dataclass
class ReplacementReport:
    """Milliseconds from SIGKILL of a worker that has worked to its replacement's first prompt."""

    samples_ms: list[float]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    def lines(self) -> Iterator[str]:
        """For people."""
        first, median, third = statistics.quantiles(self.samples_ms, n=4)
        yield (
            f"{len(self.samples_ms)} kills: a replacement took its first prompt after "
            f"{median:.1f} ms (quartiles {first:.1f} and {third:.1f}, "
            f"most {max(self.samples_ms):.1f})"
        )


def replacement(kills: int) -> ReplacementReport:
    """Kill a worker in mid-turn, a prompt waiting behind it, so many times."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, Taps(lambda *_: None) as taps:
        options = {"folder": folder, "chunks": 1}
        with Supervisor(1, client=FaultyEcho, options=options) as sup:
            killed_at = [_kill_in_mid_turn(sup, taps, i) for i in range(kills)]
        began_at = _starts(Path(folder) / LOG_NAME)
    return ReplacementReport([(began_at[f"n{i}"] - killed_at[i]) / 1e6 for i in range(kills)])


def _kill_in_mid_turn(sup: Supervisor, taps: Taps, i: int) -> int:
    """Kill the worker; the time of it, in nanoseconds."""
    sup.map([f"w{i} read"])  # it has worked
    running = sup.query(f"l{i} long")
    next(running)
    waiting = sup.submit(f"n{i} read")
    now = Stopwatch.ns()
    taps.kill_worker(0)
    assert isinstance(waiting.result().messages[-1], ResultMessage)
    assert [type(error) for error in _errors_of(running)] == [WorkerLost]
    return now


def _errors_of(response: Any) -> Iterator[SoloistError]:
    try:
        list(response)
    except SoloistError as error:
        yield error


def _starts(log: Path) -> dict[str, int]:
    rows = [line.split() for line in log.read_text().splitlines()]
    return {uid: int(ns) for word, uid, _, _, ns in rows if word == "start"}
