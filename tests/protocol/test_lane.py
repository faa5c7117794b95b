"""Which way a message goes, so that what goes two ways comes in the order of sending."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol.errors import RemoteProtocolError
from soloist.protocol.lane import LANE_BYTES, Ways, parted


def test_a_message_without_a_number_is_the_peers_fault():
    assert bytes(parted(Ways(is_spoken_to=True).stamped(b"payload"))[1]) == b"payload"
    for take in (parted, lambda data: Ways(is_spoken_to=True).hear(data, is_from_lane=True)):
        with pytest.raises(RemoteProtocolError, match="begins with a number"):
            take(b"\0" * 7)


def test_a_long_one_has_no_lane():
    ways = Ways(is_spoken_to=True)
    assert ways.has_lane(b"x" * LANE_BYTES)
    assert not ways.has_lane(b"x" * (LANE_BYTES + 1))


def test_who_has_not_been_spoken_to_has_no_lane():
    worker, supervisor = Ways(is_spoken_to=False), Ways(is_spoken_to=True)
    assert not worker.has_lane(b"")
    worker.went_round()
    supervisor.hear(worker.stamped(b""), is_from_lane=False)
    assert not worker.has_lane(b"")
    worker.hear(supervisor.stamped(b""), is_from_lane=True)
    assert worker.has_lane(b"")
    assert repr(worker) == "<Ways: 1 sent over ZeroMQ, 1 of them heard>"


def test_after_one_that_went_round_all_go_round_until_it_was_heard():
    one, other = Ways(is_spoken_to=True), Ways(is_spoken_to=True)
    before = other.stamped(b"")
    one.went_round()
    one.hear(before, is_from_lane=True)
    assert not one.has_lane(b"")
    other.came_round()
    after = other.stamped(b"")
    one.went_round()
    one.hear(after, is_from_lane=True)
    assert not one.has_lane(b"")  # it has heard the first, not the second
    other.came_round()
    one.hear(other.stamped(b""), is_from_lane=True)
    one.hear(before, is_from_lane=True)  # an older word takes nothing back
    assert one.has_lane(b"")


class Side:
    """One side of a lane that holds few, and of a ZeroMQ that is slow."""

    def __init__(self, is_spoken_to):
        self.ways = Ways(is_spoken_to=is_spoken_to)
        self.lane, self.round = collections.deque(), collections.deque()  # to this side
        self.heard, self.said = [], 0

    def say(self, other, is_long):
        self.said += 1
        data = self.ways.stamped(str(self.said).encode())
        if self.ways.has_lane(data) and not is_long and len(other.lane) < 3:
            other.lane.append(data)
        else:
            self.ways.went_round()
            other.round.append(data)

    def hear_lane(self):
        if self.lane:
            self._hear(self.lane.popleft(), is_from_lane=True)

    def hear_round(self):
        if self.round:
            while self.lane:
                self.hear_lane()
            self._hear(self.round.popleft(), is_from_lane=False)

    def _hear(self, data, is_from_lane):
        self.heard.append(int(bytes(self.ways.hear(data, is_from_lane=is_from_lane))))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["short", "long", "lane", "round"]))))
def test_whatever_comes_when_all_is_heard_in_the_order_of_sending(steps):
    sides = Side(is_spoken_to=True), Side(is_spoken_to=False)
    for which, step in steps:
        side, other = sides[which], sides[not which]
        if step == "lane":
            side.hear_lane()
        elif step == "round":
            side.hear_round()
        else:
            side.say(other, is_long=step == "long")
    for side, other in (sides, sides[::-1]):
        while side.lane or side.round:
            side.hear_round() if side.round else side.hear_lane()
        assert side.heard == list(range(1, other.said + 1))
