"""Promise 8, cell by cell: whoever is killed, two seconds later nothing is left that must go.

One trial a cell; ``python -m tests.faults.process_tree`` repeats them and prints a table.
"""

from __future__ import annotations

import json
import sys

import pytest

from tests.faults.process_tree import CELLS, Matrix, name_of
from tests.support_netns import output_of

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="without subreapers a daemon that leaves its parent escapes"
)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    matrix = Matrix(tmp_path_factory.mktemp("trees"))
    yield matrix
    matrix.close()


@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_two_seconds_after(matrix, cell):
    matrix.run(cell)


def test_a_guard_whose_neighbour_is_dead_is_told_and_not_killed(matrix):
    """Else the death of two guards would be that of all three, and the tree's escape."""
    matrix.run_with_a_stopped_guard()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    pytest.importorskip("claude_agent_sdk", reason="the Agent SDK is not installed")
    folder = tmp_path_factory.mktemp("agent")
    return json.loads(output_of(["-m", "tests.faults.real_cli_tree"], folder, timeout_s=120))


@pytest.mark.parametrize("cell", ["supervisor + worker", "worker"])
def test_two_seconds_after_with_the_real_cli_in_mid_turn(real, cell):
    seen = real["cells"][cell]
    assert seen["had_cli"]
    assert seen["answer"] == ([] if "supervisor" in cell else ["worker_lost", "next"])
    assert real["left"] == []
