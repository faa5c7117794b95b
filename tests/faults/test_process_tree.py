"""Promise 8, cell by cell: whoever is killed, two seconds later nothing is left that must go.

One trial a cell; ``python -m tests.faults.process_tree`` repeats them and prints a table.
"""

from __future__ import annotations

import sys

import pytest

from tests.faults.process_tree import CELLS, Matrix, name_of

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
