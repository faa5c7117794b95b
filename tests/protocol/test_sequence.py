"""Messages that go two ways come out in the order in which they were sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol.errors import RemoteProtocolError
from soloist.protocol.sequence import InOrder, numbered, parted


def test_a_number_is_put_before_a_message_and_found_again():
    number, payload = parted(numbered(2**40, b"payload"))
    assert (number, bytes(payload)) == (2**40, b"payload")


def test_a_message_without_a_number_is_the_peers_fault():
    assert parted(numbered(1, b""))[0] == 1
    with pytest.raises(RemoteProtocolError, match="begins with its number"):
        parted(b"\0" * 7)


def test_what_comes_in_order_goes_on_at_once():
    in_order = InOrder()
    assert [list(in_order.take(n, n)) for n in (1, 2, 3)] == [[1], [2], [3]]


def test_what_comes_early_waits_for_what_was_sent_before_it():
    in_order = InOrder()
    assert list(in_order.take(3, "c")) == []
    assert list(in_order.take(2, "b")) == []
    assert repr(in_order) == "<InOrder before 1, 2 early>"
    assert list(in_order.take(1, "a")) == ["a", "b", "c"]
    assert list(in_order.take(4, "d")) == ["d"]


def test_what_was_there_before_is_dropped():
    in_order = InOrder()
    assert list(in_order.take(1, "a")) == ["a"]
    assert list(in_order.take(1, "again")) == []
    assert list(in_order.take(3, "c")) == []
    assert list(in_order.take(1, "once more")) == []
    assert list(in_order.take(2, "b")) == ["b", "c"]


@given(st.permutations(range(1, 12)))
def test_whatever_the_order_of_arrival(numbers):
    in_order = InOrder()
    given_out = [item for number in numbers for item in in_order.take(number, number)]
    assert given_out == list(range(1, 12))
