"""The package's names, and what they cost those who need none of them."""

from __future__ import annotations

import pytest

import soloist
from tests.support import run_python


def test_every_name_is_there_and_listed():
    assert set(soloist._HOMES) <= set(soloist.__all__) <= set(dir(soloist))
    for name in soloist.__all__:
        assert getattr(soloist, name) is not None
    assert soloist.Supervisor.__module__ == "soloist.supervisor.api"


def test_all_of_them_can_be_imported_at_once():
    names = {}
    exec("from soloist import *", names)
    assert set(soloist.__all__) <= set(names)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'soloist' has no attribute 'Supervisr'"):
        soloist.Supervisr  # noqa: B018


def test_workers_and_their_helper_load_nothing_of_the_supervisor():
    loaded = run_python(
        "-c",
        "import sys, soloist.worker.main\n"
        "print([name for name in sys.modules if name.startswith('soloist.supervisor')])",
    )
    assert (loaded.stdout, loaded.stderr) == ("[]\n", "")
