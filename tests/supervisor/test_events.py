"""The events: documented, used, and complete."""

from __future__ import annotations

import ast
import logging
import re

import pytest

from soloist.supervisor import events
from tests.support import ROOT

ROW = re.compile(
    r"^\| `(?P<name>[\w.]+)` \| (?P<level>[A-Z]+) \| `(?P<message>[^`]+)` \| (?P<fields>[^|]*) \|",
    re.MULTILINE,
)
MODULES = sorted((ROOT / "supervisor").glob("*.py"))


def documented():
    for row in ROW.finditer((ROOT / "docs" / "logging.md").read_text()):
        fields = tuple(re.findall(r"`(\w+)`", row["fields"]))
        yield row["name"], row["level"], row["message"], fields


def in_code():
    for event in events.ALL:
        yield event.name, logging.getLevelName(event.level), event.message, event.fields


def uses():
    """Every place where an event is reported: its constant, and the names of its fields."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call):
                yield from uses_in(module.name, node)


def uses_in(module, call):
    for argument in call.args:
        if isinstance(argument, ast.Attribute) and getattr(argument.value, "id", "") == "events":
            names = {keyword.arg for keyword in call.keywords}
            yield argument.attr, names, f"{module}:{call.lineno}"


def test_the_documentation_has_the_events_of_the_code_and_no_others():
    assert list(documented()) == list(in_code())


def test_their_names_are_their_own():
    names = [event.name for event in events.ALL]
    assert len(set(names)) == len(names) > 20


def test_none_has_a_field_that_logging_has_itself():
    record = logging.makeLogRecord({})
    taken = {*vars(record), "message", "asctime", "event"}
    for event in events.ALL:
        assert not taken & {*event.fields}


def test_every_event_is_reported_somewhere():
    constants = {name for name, value in vars(events).items() if isinstance(value, events.Event)}
    used = {name for name, _, _ in uses()} | {"OUTPUT_DROPPED"}  # the journal's own
    assert used == constants


@pytest.mark.parametrize(("name", "given", "place"), list(uses()))
def test_each_report_gives_the_fields_of_its_event(name, given, place):
    fields = set(getattr(events, name).fields)
    # ``worker`` and ``incarnation`` are added, others stand in a shared dict (``None`` here).
    assert given - {None} <= fields, place
    if None not in given:
        assert fields - given <= {"worker", "incarnation"}, place


def test_nothing_else_in_the_supervisor_logs():
    """So that the table is whole."""
    for module in MODULES:
        if module.name not in {"events.py", "journal.py", "output.py"}:
            found = re.findall(r"\blog\.\w+\(|getLogger\([^)]*supervisor", module.read_text())
            assert not found, f"{module.name}: {found}"
