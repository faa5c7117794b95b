"""The clients in other languages keep to the protocol, each alone and all together.

A client whose tools are not installed is skipped, but fails where CI is set: ``.ci/run`` installs
them.
"""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance.client import CHECKS, judge, opened
from tests.conformance.languages import LANGUAGES
from tests.conformance.program import Program
from tests.conformance.serving import serving

WITH_ALL_SCENARIOS = ("node", "c", "ruby")
ON_EVERY_TRANSPORT = ("map", "shared", "stream")


@pytest.fixture(scope="module")
def gateway():
    with serving() as gateway:
        yield gateway


@pytest.fixture(scope="module")
def command_of():
    """Gives the command of a language's program, built; or skips, or fails."""
    commands = {}

    def command(name):
        language = LANGUAGES[name]
        if name not in commands:
            why = language.missing()
            if why and os.environ.get("CI"):
                pytest.fail(f"CI is set, and the {name} client cannot be tried: {why}")
            if why:
                pytest.skip(f"the {name} client needs more (see .ci/run): {why}")
            language.build()
            commands[name] = language.command
        return commands[name]

    return command


@pytest.mark.parametrize(
    ("transport", "checks"),
    [("tcp", tuple(CHECKS)), ("ipc", ON_EVERY_TRANSPORT)],
    ids=["tcp", "ipc"],
)
@pytest.mark.parametrize("language", WITH_ALL_SCENARIOS)
def test_a_client_plays_the_scenarios(language, transport, checks, gateway, command_of):
    """Every one on tcp with keys; on ipc, what opens each kind of connection there is."""
    keys = gateway.keys["alice" if transport == "tcp" else "nobody"]
    program = Program(command_of(language), getattr(gateway, transport), keys)
    verdicts = judge(program, gateway, checks)
    assert [verdict.check for verdict in verdicts] == list(checks)
    assert [verdict for verdict in verdicts if verdict.fault] == []


@pytest.mark.soak
@pytest.mark.parametrize("language", WITH_ALL_SCENARIOS)
def test_a_client_plays_every_scenario_on_ipc_too(language, gateway, command_of):
    program = Program(command_of(language), gateway.ipc, gateway.keys["nobody"])
    assert [verdict for verdict in judge(program, gateway) if verdict.fault] == []


class TestTheJudge:
    """What it says of programs that are at fault."""

    def fault(self, gateway, script, check="map"):
        program = Program(("sh", "-c", script, "sh"), gateway.ipc)
        [verdict] = judge(program, gateway, [check])
        return verdict.fault

    def test_names_the_exit_code_and_what_was_said_to_people(self, gateway):
        fault = self.fault(gateway, "echo a reason >&2; exit 3")
        assert "exit code 3" in fault
        assert "a reason" in fault

    def test_wants_lines_of_json_alone(self, gateway):
        assert "hello" in self.fault(gateway, "cat > /dev/null; echo hello")

    def test_wants_every_outcome(self, gateway):
        assert "wrong answers" in self.fault(gateway, "cat > /dev/null")

    def test_wants_one_outcome_of_each(self, gateway):
        line = """'{"index": 0, "text": ""}'"""
        fault = self.fault(gateway, f"cat > /dev/null; echo {line}; echo {line}")
        assert "two outcomes" in fault


def share(gateway, command_of, *, victim, count):
    """Four programs ask in one conversation, behind one that is killed amid its answer.

    Gives what each of the four printed after ``opened``.
    """
    everybody = {
        name: Program(command_of(name), gateway.ipc, gateway.keys["nobody"]) for name in LANGUAGES
    }
    name = f"shared after {victim} x {count}"
    with contextlib.ExitStack() as ends:
        dying = ends.enter_context(
            everybody[victim].start("stream", name=name, prompt="slow", client="patient")
        )
        assert dying.line() == {"seq": 1, "type": "StreamEvent"}
        runs = {
            label: ends.enter_context(
                program.start(
                    "shared",
                    name=name,
                    count=count,
                    label=label,
                    stream=label in {"node", "c"},
                    client="patient",
                )
            )
            for label, program in everybody.items()
        }
        sessions = {opened(run.line())["session"] for run in runs.values()}
        assert len(sessions) == 1
        dying.kill()
        with ThreadPoolExecutor(len(runs)) as threads:
            return dict(zip(runs, threads.map(lambda run: run.rest(), runs.values()), strict=True))


def assert_shared(lines, count):
    """Each got its own answers, in the order of arrival, in one conversation without a gap."""
    for label, own in lines.items():
        assert [(line["index"], line["text"]) for line in own] == [
            (index, f"{label}-{index}") for index in range(count)
        ]
        assert {line["pieces"] for line in own} == {7 if label in {"node", "c"} else 0}
        assert [line["sequence"] for line in own] == sorted(line["sequence"] for line in own)
    turns = sorted((line["sequence"], line["num_turns"]) for own in lines.values() for line in own)
    # The first turn was of the one that was killed.
    assert turns == [(i, i) for i in range(2, 2 + len(lines) * count)]
    last_to_begin = max(own[0]["sequence"] for own in lines.values())
    first_to_end = min(own[-1]["sequence"] for own in lines.values())
    assert last_to_begin < first_to_end, "they were not there at the same time"


@pytest.mark.parametrize("victim", LANGUAGES)
def test_four_languages_share_a_conversation_and_one_that_is_killed_costs_only_its_own(
    victim, gateway, command_of
):
    assert_shared(share(gateway, command_of, victim=victim, count=100), 100)


@pytest.mark.soak
@pytest.mark.parametrize("victim", LANGUAGES)
def test_four_languages_share_a_conversation_for_10_000_turns(victim, gateway, command_of):
    assert_shared(share(gateway, command_of, victim=victim, count=2_500), 2_500)
