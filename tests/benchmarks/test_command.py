"""``python -m benchmarks``: what is measured, what is written down, and what is made of it."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import _suite
from benchmarks._suite import Benchmark, CheckFailed, Figure, Outcome, Ratio


def outcome(value):
    figures = [
        Figure("ours", "/s", [value], {"N": 1, "how": "x"}),
        Figure("ours", "/s", [3 * value], {"N": 2, "how": "x"}),
        Figure("memory", "MiB", [5.0]),
    ]
    return Outcome(figures, [Ratio("a / b", "", [value], {"N": 1}, at_most=3.0)], ["a note"])


@pytest.fixture
def suite(monkeypatch):
    """Two benchmarks; the second finds a wrong result."""

    def wrong(effort):
        raise CheckFailed("an answer is another's")

    known = {
        "good": Benchmark("good", "Is right.", "As it should be.", lambda effort: outcome(2.0)),
        "wrong": Benchmark("wrong", "Is wrong.", "As it should not be.", wrong),
    }
    monkeypatch.setattr(_suite, "names", lambda: list(known))
    monkeypatch.setattr(_suite, "load", known.__getitem__)


def invoke(*arguments):
    return CliRunner().invoke(command.main, [*map(str, arguments)])


@pytest.mark.usefixtures("suite")
class TestRun:
    def test_lists_what_there_is(self):
        done = invoke("list")
        assert done.exit_code == 0
        assert "good" in done.output
        assert "Is wrong." in done.output

    def test_knows_a_name_as_a_command(self, tmp_path):
        done = invoke("good", "--quick", "--json", tmp_path / "a.json")
        assert done.exit_code == 0
        found = json.loads((tmp_path / "a.json").read_text())
        assert found["is_quick"] is True
        assert found["benchmarks"]["good"]["ratios"][0]["values"] == [2.0]
        assert {"processors", "python", "libzmq"} <= found["machine"].keys()
        assert "pyzmq" in found["versions"]

    def test_a_wrong_result_is_a_failure_and_has_no_figures(self, tmp_path):
        done = invoke("all", "--json", tmp_path / "a.json")
        assert done.exit_code == 1
        assert "another's" in done.output
        found = json.loads((tmp_path / "a.json").read_text())["benchmarks"]
        assert found["wrong"]["figures"] == []
        assert found["good"]["figures"]

    def test_of_what_is_not_there_says_so(self):
        done = invoke("nonsense")
        assert done.exit_code == 2
        assert "nonsense" in done.output


@pytest.fixture
def written(tmp_path, suite):
    assert invoke("good", "--json", tmp_path / "a.json").exit_code == 0
    return tmp_path / "a.json"


class TestCompare:
    def test_shows_what_has_changed(self, written, tmp_path):
        after = json.loads(written.read_text())
        after["benchmarks"]["good"]["ratios"][0]["values"] = [3.0]
        (tmp_path / "b.json").write_text(json.dumps(after))
        done = invoke("compare", written, tmp_path / "b.json")
        assert done.exit_code == 0
        assert "+50.0%" in done.output

    @pytest.mark.parametrize(
        ("text", "word"), [("{}", "json"), ("[", "json"), ('{"schema": 99}', "99")]
    )
    def test_refuses_what_is_none(self, written, tmp_path, text, word):
        (tmp_path / "b.json").write_text(text)
        done = invoke("compare", written, tmp_path / "b.json")
        assert done.exit_code == 1
        assert word in done.output


class TestReport:
    def test_has_tables_and_plots(self, written, tmp_path):
        pytest.importorskip("matplotlib")
        page = tmp_path / "page" / "REPORT.md"
        page.parent.mkdir()
        done = invoke("report", written, "--to", page)
        assert done.exit_code == 0, done.output
        text = page.read_text()
        assert "| a / b | N 1 | 2 | 2 to 2 | at most 3 |" in text
        assert "- a note" in text
        plots = sorted(path.name for path in (page.parent / "plots").iterdir())
        assert plots == ["good-per-second-x.svg"]  # one point is no plot
        assert all(f"(plots/{plot})" in text for plot in plots)

    def test_of_the_same_run_is_the_same(self, written, tmp_path):
        pytest.importorskip("matplotlib")
        pages = [tmp_path / name / "REPORT.md" for name in "ab"]
        for page in pages:
            page.parent.mkdir()
            assert invoke("report", written, "--to", page).exit_code == 0
        first, second = (
            (page.parent / "plots" / "good-per-second-x.svg").read_bytes() for page in pages
        )
        assert first == second
