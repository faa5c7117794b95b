"""How much nonsense one connection may say."""

from soloist.supervisor.patience import PERIOD_S, Patience


def said(patience, count, now):
    return [patience.mistake(now) for _ in range(count)]


def test_a_few_mistakes_are_put_up_with():
    patience = Patience(3)
    assert said(patience, 3, 0.0) == [False] * 3
    assert not patience.is_over(0.0)


def test_one_too_many_is_told_once_and_then_nothing_is_heard():
    patience = Patience(3)
    assert said(patience, 4, 5.0) == [False, False, False, True]
    assert patience.is_over(5.0)
    assert patience.is_over(5.0 + PERIOD_S - 0.1)


def test_afterwards_all_is_forgotten():
    patience = Patience(3)
    said(patience, 4, 0.0)
    assert not patience.is_over(PERIOD_S)
    assert said(patience, 4, PERIOD_S) == [False, False, False, True]


def test_mistakes_are_counted_for_a_while_only():
    patience = Patience(3)
    for period in range(5):
        now = period * PERIOD_S
        assert said(patience, 3, now) == [False] * 3
        assert not patience.is_over(now)


def test_what_was_read_before_counts_no_more():
    """It waits in line when the one too many is heard: nobody is told twice."""
    patience = Patience(1)
    assert said(patience, 5, 0.0) == [False, True, False, False, False]
    assert patience.is_over(PERIOD_S - 0.1)
