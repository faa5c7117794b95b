"""The documentation is true: its snippets run, its lists are whole, its links lead somewhere."""

from __future__ import annotations

import re
import tomllib

import pytest

import soloist
from tests.support import ROOT, run_python

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda page: page.as_posix()
)
SNIPPET = re.compile(
    r"(?P<skip><!-- (?:not run: [^>]+|from examples/\w+\.py) -->\n)?"
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
"""A block of Python, what it prints if that follows, and the mark of one that is not run here:
for a reason, or because it is part of an example (see ``test_examples.py``)."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```\n", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def name_of(page) -> str:
    return page.relative_to(ROOT).as_posix()


def snippets():
    for page in PAGES:
        text = page.read_text()
        for found in SNIPPET.finditer(text):
            line = text.count("\n", 0, found.start("code"))
            if not found["skip"]:
                yield pytest.param(found["code"], found["output"], id=f"{name_of(page)}:{line}")


@pytest.mark.parametrize(("code", "output"), list(snippets()))
def test_a_snippet_runs_and_prints_what_the_page_says(code, output, tmp_path):
    script = tmp_path / "snippet.py"
    script.write_text(code)
    done = run_python(str(script), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert output is None or done.stdout == output


@pytest.mark.parametrize(("page", "least"), [("README.md", 3), ("docs/concurrency.md", 3)])
def test_a_page_has_snippets(page, least):
    """Else the pattern that finds them is broken, and nothing above was tried."""
    found = list(SNIPPET.finditer((ROOT / page).read_text()))
    assert sum(not snippet["skip"] for snippet in found) >= least


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_python_is_found(page):
    """A mark with a typing error must not hide a block from the tests."""
    text = page.read_text()
    found = list(SNIPPET.finditer(text))
    assert len(re.findall(r"^```python\b", text, re.MULTILINE)) == len(found)
    marks = re.findall(r"^<!-- (?:not run|from)\b.*-->$", text, re.MULTILINE)
    assert len(marks) == sum(bool(snippet["skip"]) for snippet in found)


def test_every_error_has_its_row():
    table = (ROOT / "docs" / "errors.md").read_text()
    exported = [getattr(soloist, name) for name in soloist.__all__]
    errors = [e for e in exported if isinstance(e, type) and issubclass(e, soloist.SoloistError)]
    assert len(errors) > 10
    for error in errors:
        row = re.search(rf"^\| `{error.__name__}`.*$", table, re.MULTILINE)
        assert row, f"{error.__name__} has no row"
        assert f"`{error.code}`" in row[0]
        for builtin in {ConnectionError, TypeError, ValueError, TimeoutError} & {*error.__mro__}:
            assert f"also a `{builtin.__name__}`" in row[0]


@pytest.mark.parametrize("command", ["map", "query"])
def test_every_option_of_the_command_line_is_explained(command):
    commands = pytest.importorskip("soloist.supervisor.commands", reason="needs soloist[cli]")
    page = (ROOT / "docs" / "command-line.md").read_text()
    section = page.split(f"\n## soloist {command}\n", 1)[1].split("\n## ", 1)[0]
    for parameter in commands.soloist.commands[command].params:
        for option in parameter.opts if parameter.param_type_name == "option" else ():
            assert f"`{option}" in section, f"{option} is not explained"


def test_every_dependency_is_justified():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    page = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in (*project["dependencies"], *(one for extra in extras for one in extra)):
        name = re.split(r"[<>=\[ ]", requirement)[0]
        assert name == "soloist" or f"`{name}`" in page, f"{name} has no line"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCED.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in map(anchor_of, HEADING.findall(linked.read_text())), target


def anchor_of(heading: str) -> str:
    """The anchor that code hosts give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
