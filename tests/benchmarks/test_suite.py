"""What benchmarks are made of: figures, ratios, turns, and checks without which they are none."""

import json

import pytest

from benchmarks import _drivers, _suite
from benchmarks._peers import Calls
from benchmarks._suite import Benchmark, CheckFailed, Effort, Figure, Outcome, Ratio, ratio
from tests.support import ROOT


def figure(*values, name="a", **setting):
    return Figure(name, "us", values, setting)


class TestFigure:
    def test_counts_its_median(self):
        assert figure(5.0, 1.0, 9.0).median == 5.0

    def test_tells_its_spread(self):
        assert figure(1.0, 2.0, 3.0, 4.0, 5.0).quartiles == (2.0, 4.0)
        assert figure(7.0).quartiles == (7.0, 7.0)


class TestRatio:
    def test_is_taken_round_by_round(self):
        found = ratio(figure(2.0, 30.0, 4.0, name="a"), figure(1.0, 10.0, 1.0, name="b"))
        assert found.values == [2.0, 3.0, 4.0]
        assert (found.name, found.median) == ("a / b", 3.0)

    def test_of_another_number_of_rounds_is_none(self):
        with pytest.raises(ValueError, match="shorter"):
            ratio(figure(1.0, 2.0), figure(1.0))

    @pytest.mark.parametrize(
        ("bounds", "is_met"),
        [
            ({}, True),
            ({"at_most": 2.0}, True),
            ({"at_most": 1.9}, False),
            ({"at_least": 2.0}, True),
            ({"at_least": 2.1}, False),
            ({"at_least": 1.0, "at_most": 1.5}, False),
        ],
    )
    def test_meets_its_promise_or_not(self, bounds, is_met):
        assert Ratio("a / b", "", [2.0], {}, **bounds).is_met is is_met


class TestTurns:
    def test_go_round_and_the_first_is_forgotten(self):
        log = []

        def contestant(name):
            def measure():
                log.append(name)
                return float(len(log))

            return measure

        taken = _suite.take_turns({"a": contestant("a"), "b": contestant("b")}, 2)
        assert log == ["a", "b"] * 3
        assert taken == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


class TestExecute:
    def run(self, run):
        return _suite.execute(Benchmark("name", "title", "method", run), Effort(is_quick=True))

    def test_gives_what_it_measured(self):
        outcome = Outcome([figure(1.0)], [], ["note"])
        done = self.run(lambda effort: outcome)
        assert (done.outcome, done.failure) == (outcome, "")

    def test_gives_no_figure_if_a_result_was_wrong(self):
        def run(effort):
            _suite.check(effort.of(full=False, quick=False), "wrong")
            return Outcome([figure(1.0)])

        done = self.run(run)
        assert (done.outcome, done.failure) == (Outcome(), "wrong")

    def test_what_it_gave_comes_back_from_json(self):
        given = Outcome(
            [figure(1.0, N=4, how="x")], [Ratio("r", "", [2.0], {}, at_most=3.0)], ["n"]
        )
        done = self.run(lambda effort: given)
        back = _suite.outcome_of(json.loads(json.dumps(done.as_map())))
        assert next(iter(back.figures)).median == 1.0
        assert next(iter(back.figures)).setting == {"N": 4, "how": "x"}
        assert next(iter(back.ratios)).at_most == 3.0
        assert back.notes == ["n"]


class TestAll:
    @pytest.mark.parametrize("name", _suite.names())
    def test_say_what_they_measure_and_how(self, name):
        benchmark = _suite.load(name)
        assert benchmark.title.endswith(".")
        assert len(benchmark.method) > 100
        assert callable(benchmark.run)

    @pytest.mark.parametrize("name", _suite.names())
    def test_are_in_the_documentation(self, name):
        assert f"| `{name}` |" in (ROOT / "docs" / "benchmarks.md").read_text()


def calls(give):
    """A pool that does nothing but ``give``."""
    return Calls(lambda item: lambda: give(item), lambda items: [give(item) for item in items])


class TestMeasures:
    @pytest.mark.parametrize(
        ("measure", "arguments"),
        [
            (_drivers.one_by_one, (0.001, "x")),
            (_drivers.all_at_once, (10, 100)),
            (_drivers.round_trip, (10, "x")),
        ],
    )
    def test_check_every_result(self, measure, arguments):
        assert measure(calls(lambda item: item), *arguments) > 0
        with pytest.raises(CheckFailed):
            measure(calls(lambda item: item + "!"), *arguments)

    def test_results_in_another_order_are_wrong(self):
        pool = Calls(lambda item: lambda: item, lambda items: items[::-1])
        with pytest.raises(CheckFailed, match="in order"):
            _drivers.all_at_once(pool, 10, 100)
