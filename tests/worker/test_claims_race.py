"""Chunks in two processes, for real: see ``claims_race``."""

import subprocess
import sys

import pytest

from soloist.supervisor import barrier

pytestmark = pytest.mark.skipif(barrier.find() is None, reason="no barrier on this machine")


def race(rounds):
    return subprocess.run(
        [sys.executable, "-m", "tests.worker.claims_race", str(rounds)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_each_prompt_runs_once_or_is_taken_back():
    done = race(4_000)
    assert done.returncode == 0, done.stderr
    assert "were taken back" in done.stdout


@pytest.mark.soak
def test_each_of_many_runs_once_or_is_taken_back():
    done = race(200_000)
    assert done.returncode == 0, done.stderr
