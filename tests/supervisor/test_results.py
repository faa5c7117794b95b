"""``Result``: what a ``map`` makes by the hundred thousand."""

import copy
import gc
import pickle

import pytest

from soloist.protocol.messages import Answer
from soloist.supervisor.request import Request
from soloist.supervisor.results import ChunkTurns, Result


@pytest.fixture
def result():
    request = Request("prompt", b"", index=7)
    request.worker, request.attempts = 3, 2
    return Result.of(request, Answer(1, 0.5, "text", 4, b""))


def test_it_has_what_is_known(result):
    assert (result.index, result.prompt, result.text) == (7, "prompt", "text")
    assert (result.num_turns, result.duration_s, result.attempts, result.worker) == (4, 0.5, 2, 3)
    assert repr(result) == "<Result 7 'text'>"


def test_it_is_no_concern_of_the_collector(result):
    """Else a map would have all results looked at again and again while there come more."""
    assert not gc.is_tracked(result)


def test_it_compares_by_identity(result):
    twin = copy.copy(result)
    assert result == result
    assert result != twin
    assert len({result, twin}) == 2


def test_it_stays_as_it_is(result):
    with pytest.raises(AttributeError):
        result.text = "other"


def test_it_can_be_pickled(result):
    other = pickle.loads(pickle.dumps(result))
    assert (other.index, other.text, other.duration_s) == (7, "text", 0.5)
    other = pickle.loads(pickle.dumps(Result(1, "p", "t", ChunkTurns(0, bytes(16), 2))))
    assert (other.duration_s, other.worker) == (0.0, 2)
