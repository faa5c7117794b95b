"""The examples do what their docstrings say, and the guide shows them as they are."""

from __future__ import annotations

import ast
import re
import textwrap

import pytest

from tests.integration.test_docs import LINK, SNIPPET
from tests.support import ROOT, run_python

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
GUIDE = ROOT / "docs" / "concurrency.md"
EXCERPT = re.compile(
    r"^<!-- from examples/(?P<name>\w+\.py) -->\n"
    r"```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
"""Lines of an example, and lines of what it prints if they follow; ``...`` leaves lines out."""
LEFT_OUT = re.compile(r"^ *\.\.\.\n", re.MULTILINE)


def excerpts():
    for found in EXCERPT.finditer(GUIDE.read_text()):
        yield pytest.param(*found.groups(), id=found["name"])


def promised_output(example) -> str:
    """What stands below ``Prints::`` in the docstring of an example."""
    text = ast.get_docstring(ast.parse(example.read_text()))
    _, _, output = text.partition("\nPrints::\n\n")
    return textwrap.dedent(output) + "\n"


def assert_contains(whole: str, part: str) -> None:
    """Each piece of ``part`` stands in ``whole``, in this order, however far it is indented."""
    lines, at = whole.splitlines(), 0
    for piece in filter(str.strip, LEFT_OUT.split(part)):
        wanted = textwrap.dedent(piece).strip("\n").splitlines()
        places = (
            start
            for start in range(at, len(lines))
            if dedented(lines[start : start + len(wanted)]) == wanted
        )
        start = next(places, None)
        assert start is not None, "these lines stand nowhere:\n" + "\n".join(wanted)
        at = start + len(wanted)


def dedented(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_prints_what_it_says(example, tmp_path):
    done = run_python(str(example), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == promised_output(example)


@pytest.mark.parametrize(("name", "code", "output"), list(excerpts()))
def test_the_guide_shows_an_example_as_it_is(name, code, output):
    example = ROOT / "examples" / name
    assert_contains(example.read_text(), code)
    assert_contains(promised_output(example), output or "")


def test_the_guide_has_excerpts():
    """Else the pattern that finds them is broken, and nothing above was compared."""
    assert len(EXCERPT.findall(GUIDE.read_text())) >= 10


def test_the_guide_names_every_example_and_all_that_it_names_exist():
    page = GUIDE.read_text()
    named = {target for target in LINK.findall(page) if "/examples/" in target}
    assert named == {f"../examples/{example.name}" for example in EXAMPLES}
    assert page.count("<!-- from ") == len(EXCERPT.findall(page))


def test_every_output_in_the_guide_follows_what_prints_it():
    page = GUIDE.read_text()
    followed = sum(bool(found["output"]) for found in SNIPPET.finditer(page))
    assert len(re.findall(r"^```text$", page, re.MULTILINE)) == followed


@pytest.mark.parametrize(
    ("part", "is_there"),
    [
        ("b\nc\n", True),
        ("b\nd\n", False),
        ("a\n...\nd\n", True),
        ("    a\n    ...\n    c\n", True),
        ("d\n...\na\n", False),
        ("c\n    d\n", False),
    ],
)
def test_lines_are_found_only_as_they_stand(part, is_there):
    whole = "a\nb\nc\nd\n"
    if is_there:
        assert_contains(whole, part)
    else:
        with pytest.raises(AssertionError, match="stand nowhere"):
            assert_contains(whole, part)
