"""What a benchmark is and what it gives: figures, and ratios of figures of the same round.

The contestants take turns (A B C A B C ...), so that what the machine does besides hits all of
them; a ratio is taken within a round, and its median counts. A contestant checks every result that
it counts; if one is wrong, the benchmark has no figures at all.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")

SCHEMA = 1
"""Of the JSON that ``Run.as_map`` gives."""


class CheckFailed(Exception):
    """A contestant gave a wrong result: there is no figure."""


def check(is_right: object, what: str) -> None:
    """Let nothing be measured that is wrong.

    Raises:
        CheckFailed: it is.
    """
    if not is_right:
        raise CheckFailed(what)


class Effort(NamedTuple):
    """How much a benchmark is to do."""

    is_quick: bool = False

    def of(self, full: _T, quick: _T) -> _T:
        """The first, or the second if it has to be quick."""
        return quick if self.is_quick else full


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """What one contestant reached, a value for each round.

    Attributes:
        name: the contestant.
        unit: of the values; ``/s`` is better when larger, everything else when smaller.
        values: one for each round.
        setting: what was varied, by name.
    """

    name: str
    unit: str
    values: Sequence[float]
    setting: Mapping[str, float | str] = dataclasses.field(default_factory=dict)

    @property
    def median(self) -> float:
        """The value that counts."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the values are below the first, a quarter above the second."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio(Figure):
    """How one figure compares to another, round by round.

    Attributes:
        at_most: what is promised, if that is a bound from above.
        at_least: the same from below.
    """

    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether its median is what is promised; nothing promised is met."""
        return (self.at_most is None or self.median <= self.at_most) and (
            self.at_least is None or self.median >= self.at_least
        )


def ratio(
    of: Figure,
    to: Figure,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Ratio:
    """Compare two figures of the same rounds."""
    values = [a / b for a, b in zip(of.values, to.values, strict=True)]
    name = f"{of.name} / {to.name}"
    return Ratio(name, "", values, of.setting, at_most=at_most, at_least=at_least)


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a benchmark gives.

    Attributes:
        figures: what was measured.
        ratios: what it comes to.
        notes: what has to be known to read them, such as who did not take part.
    """

    figures: Sequence[Figure] = ()
    ratios: Sequence[Ratio] = ()
    notes: Sequence[str] = ()


def take_turns(
    contestants: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Have each give a value, round by round; those of the first rounds are forgotten."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-warm_up, rounds):
        for name, contestant in contestants.items():
            value = contestant()
            if number >= 0:
                values[name].append(value)
    return values


class Benchmark(NamedTuple):
    """A module of this folder with a function ``run``.

    Attributes:
        name: of the module.
        title: what it measures.
        method: how, and what makes it fair.
        run: does it.
    """

    name: str
    title: str
    method: str
    run: Callable[[Effort], Outcome]


def names() -> list[str]:
    """All benchmarks."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if not name.startswith("_"))


def load(name: str) -> Benchmark:
    """Give the benchmark of that name."""
    module = importlib.import_module(f"benchmarks.{name}")
    title, _, method = (module.__doc__ or "").strip().partition("\n")
    return Benchmark(name, title, method.strip(), module.run)


class Run(NamedTuple):
    """One benchmark, run.

    Attributes:
        benchmark: which.
        outcome: what it gave; nothing if a check failed.
        seconds: how long it took.
        failure: the check that failed, or empty.
    """

    benchmark: Benchmark
    outcome: Outcome
    seconds: float
    failure: str = ""

    def as_map(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "title": self.benchmark.title,
            "method": self.benchmark.method,
            "seconds": round(self.seconds, 1),
            "failure": self.failure,
            **dataclasses.asdict(self.outcome),
        }


def execute(benchmark: Benchmark, effort: Effort) -> Run:
    """Run one; a check that fails leaves no figure."""
    started = time.perf_counter()
    outcome, failure = Outcome(), ""
    try:
        outcome = benchmark.run(effort)
    except CheckFailed as error:
        failure = str(error)
    return Run(benchmark, outcome, time.perf_counter() - started, failure)


def outcome_of(value: Mapping[str, Any]) -> Outcome:
    """Rebuild the outcome of what ``Run.as_map`` gave."""
    return Outcome(
        [Figure(**figure) for figure in value["figures"]],
        [Ratio(**found) for found in value["ratios"]],
        value["notes"],
    )
