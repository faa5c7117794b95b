"""The sockets of shared sessions: a report that comes too late, and who is looked at when."""

import contextlib
from pathlib import Path

import pytest
import zmq

from soloist.supervisor.fronts import Fronts
from soloist.supervisor.wakes import Wakes


class FakeBroker:
    def __init__(self, number):
        self.number = number
        self.incarnation = 1


@pytest.fixture
def fronts(tmp_path):
    with contextlib.closing(Wakes()) as wakes:
        made = Fronts(
            wakes,
            lambda number: f"ipc://{tmp_path}/s{number}",
            max_sockets=4,
            max_frame_bytes=10_000,
            max_payload_bytes=1_000,
            stream_buffer_bytes=1_000,
            timeout_s=None,
            submit=lambda request: None,
            cancel=lambda request: None,
        )
        yield made
        made.close()


def test_a_report_about_a_socket_that_was_closed_meanwhile_is_nothing(fronts):
    """A worker's exit in the same round closes the socket whose event comes next."""
    front = fronts.open(FakeBroker(1))
    fronts.shut(front)
    fronts.wake(front)
    assert not fronts.has_input()
    fronts.take()


def test_what_a_peer_sends_is_taken_once(fronts):
    front = fronts.open(FakeBroker(1))
    with zmq.Context() as context, context.socket(zmq.REQ) as peer:
        peer.connect(front.endpoint)
        peer.send(b"garbage")
        while not peer.poll(0):
            fronts.wake(front)
            fronts.take()
        assert b"protocol_error" in peer.recv()
    fronts.take()
    assert not fronts.has_input()


def test_those_that_are_left_at_the_end_are_closed(fronts):
    left = [fronts.open(FakeBroker(number)) for number in range(3)]
    fronts.close()  # would wait for ever for a socket that is open
    assert not any(Path(front.endpoint.removeprefix("ipc://")).exists() for front in left)
