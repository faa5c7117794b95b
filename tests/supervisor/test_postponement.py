"""Decisions that may wait until whoever has an answer has gone on."""

import pytest

from soloist.supervisor.postponement import Postponement


@pytest.mark.parametrize("has_settled", [False, True])
@pytest.mark.parametrize("is_waited_for", [False, True])
def test_is_on_after_an_answer_if_nobody_waits(has_settled, is_waited_for):
    postponement = Postponement()
    is_on = postponement.begin_turn(has_settled=has_settled, is_waited_for=is_waited_for)
    assert is_on == postponement.is_on == (has_settled and not is_waited_for)


def test_never_lasts_two_turns_however_many_answers_come():
    postponement = Postponement()
    turns = [postponement.begin_turn(has_settled=True, is_waited_for=False) for _ in range(5)]
    assert turns == [True, False, True, False, True]
