"""The two ways between a supervisor and a worker, with both real ends in this process."""

import contextlib
import os
import select
import socket
import time

import pytest
import zmq

from soloist.protocol import codec
from soloist.protocol.errors import RemoteProtocolError
from soloist.protocol.lane import LANE_BYTES, Ways
from soloist.protocol.messages import Command, Interrupt, Ping, Pong, Ready, Stop, Streamed
from soloist.supervisor.channel import Channel, identity
from soloist.supervisor.lane import Lane
from soloist.worker.channel import Channel as WorkerChannel
from tests.support import eventually

LONG = b"x" * LANE_BYTES
MAX_BYTES = 10_000_000
LIMIT_S = 10.0


class Peer:
    """A worker as the supervisor knows it, and the worker's own channel."""

    def __init__(self, endpoint, number=1, life=1):
        self.number, self.life, self.identity = number, life, identity(number, life)
        self.lane = Lane()
        self.channel = WorkerChannel(endpoint, self.identity, os.dup(self.lane.theirs))

    def listen(self, count):
        """The next so many messages that the worker hears, each as soon as it is told of it."""
        wakes = dict(self.channel.sources())
        poll = select.poll()
        for descriptor in wakes:
            poll.register(descriptor, select.POLLIN)
        heard = []
        while len(heard) < count:
            if (message := self.channel.receive_nowait()) is not None:
                heard.append(message)
                continue
            ready = poll.poll(LIMIT_S * 1000)
            assert ready, "nothing comes"
            for descriptor, _ in ready:
                wakes[descriptor]()
        return heard

    def close(self):
        self.channel.__exit__(None, None, None)
        self.lane.close()


class Office:
    """The supervisor's channel, and what its I/O thread does with it."""

    def __init__(self, tmp_path):
        self.endpoint = f"ipc://{tmp_path}/workers"
        self.channel = Channel(self.endpoint, max_bytes=MAX_BYTES)
        self.peers = {}

    def hire(self, number=1, endpoint=None):
        peer = self.peers[number] = Peer(endpoint or self.endpoint, number)
        self.channel.add(peer)
        return peer

    def speak_to(self, peer):
        """So that it may use its lane: it has been heard, and hears so."""
        peer.channel.send(Ready())
        assert self.hear(1) == [(peer.number, Ready())]
        assert self.channel.send(peer, Ping())
        assert peer.listen(1) == [Ping()]

    def hear(self, count):
        """So many messages, in order: who, what."""
        heard = []
        while len(heard) < count:
            heard += self.look()
            if len(heard) < count:
                self.wait()
        return heard

    def look(self):
        heard = []
        while (received := self.channel.receive()) is not None:
            heard += [(received.number, message) for message in received.messages]
        return heard

    def has_frames(self):
        """Whether something has come over ZeroMQ, whatever the descriptor says."""
        self.channel.wake()
        return self.channel._has_frames()

    def wait(self):
        """As the I/O thread does, for what is edge-triggered has been looked at."""
        assert not self.channel.has_input()
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLIN)
        lanes = {peer.lane.fileno(): peer for peer in self.peers.values()}
        for descriptor in lanes:
            poll.register(descriptor, select.POLLIN)
        ready = poll.poll(LIMIT_S * 1000)
        assert ready, "nothing comes"
        for descriptor, _ in ready:
            if descriptor in lanes:
                self.channel.wake_lane(lanes[descriptor])
            else:
                self.channel.wake()


@pytest.fixture
def office(tmp_path):
    office = Office(tmp_path)
    yield office
    for peer in office.peers.values():
        peer.close()
    office.channel.close()


@pytest.fixture
def worker(office):
    """One that has said its first word and has been spoken to."""
    peer = office.hire()
    office.speak_to(peer)
    return peer


def long(number):
    return Streamed(number, LONG)


def short(number):
    return Streamed(number, b"short")


def is_on_lane(peer):
    return bool(select.select([peer.lane.fileno()], [], [], 0)[0])


class TestFromTheWorker:
    def test_the_first_word_goes_over_zeromq_so_that_an_answer_finds_its_way(self, office):
        peer = office.hire()
        peer.channel.send(Ready())
        assert not is_on_lane(peer)
        assert office.hear(1) == [(1, Ready())]
        command = Command(1, "set_model", LONG)
        assert office.channel.send(peer, command)
        assert peer.listen(1) == [command]

    def test_short_messages_are_there_at_once(self, office, worker):
        worker.channel.send(Pong())
        assert is_on_lane(worker)
        assert office.hear(1) == [(1, Pong())]

    def test_long_and_short_ones_come_in_the_order_of_sending(self, office, worker):
        sent = [long(n) if n % 3 else short(n) for n in range(30)]
        for message in sent:
            worker.channel.send(message)
        assert [message for _, message in office.hear(30)] == sent

    def test_a_full_lane_holds_nobody_up_and_loses_nothing(self, office, worker):
        sent = [short(n) for n in range(3_000)]
        for message in sent[:900]:  # ZeroMQ alone takes a thousand
            worker.channel.send(message)
        heard = office.hear(900)
        for message in sent[900:]:
            worker.channel.send(message)
            heard += office.hear(1)
        assert [message for _, message in heard] == sent

    def test_what_was_sent_together_comes_together(self, office, worker):
        worker.channel.send_encoded([codec.encode(short(n)) for n in range(3)])
        office.wait()
        assert office.channel.receive().messages == [short(0), short(1), short(2)]

    def test_what_it_has_sent_can_be_read_after_its_death(self, office, worker):
        worker.channel.send(short(1))
        worker.channel.__exit__(None, None, None)
        office.channel.wake_lane(worker)
        assert office.look() == [(1, short(1))]
        office.channel.wake_lane(worker)
        worker.lane.close()
        assert office.look() == []
        office.channel.remove(worker)
        del office.peers[1]

    def test_no_worker_waits_for_another_that_says_much(self, office):
        peers = [office.hire(number) for number in (1, 2, 3)]
        for peer in peers:
            office.speak_to(peer)
        for peer in peers:
            for n in range(5):
                peer.channel.send(short(n))
            office.channel.wake_lane(peer)
            office.channel.wake_lane(peer)
        assert [number for number, _ in office.look()] == [1, 2, 3] * 5

    def test_neither_way_keeps_the_other_waiting(self, office):
        """One worker never stops on its lane, the other on its ZeroMQ."""
        on_lane, on_zeromq = office.hire(1), office.hire(2)
        office.speak_to(on_lane)
        on_zeromq.channel.send(Ready())
        assert office.hear(1) == [(2, Ready())]
        for n in range(10):
            on_lane.channel.send(short(n))
            on_zeromq.channel.send(short(n))
        office.channel.wake_lane(on_lane)
        for _ in range(4):
            eventually(lambda: office.has_frames(), timeout_s=LIMIT_S)
            assert {office.channel.receive().number for _ in "12"} == {1, 2}

    def test_what_overflows_the_lane_is_heard_as_it_comes(self, office, worker):
        """Nothing is kept back for long, however much there is and whoever is looked at first."""
        for n in range(900):
            worker.channel.send(short(n))
        office.wait()
        office.channel.wake()
        for n in range(900):
            while (received := office.channel.receive()) is None:
                office.wait()
            assert received.messages == [short(n)]

    def test_a_message_that_waits_for_the_lane_is_not_slept_over(self, office, worker):
        worker.channel.send(short(1))
        worker.channel.send(long(2))
        eventually(office.has_frames, timeout_s=LIMIT_S)
        assert office.channel.receive().messages == [short(1)]
        assert office.channel.has_input()
        assert office.channel.receive().messages == [long(2)]

    def test_a_worker_uses_its_lane_again_when_what_went_round_was_heard(self, office, worker):
        worker.channel.send(long(1))
        worker.channel.send(short(2))
        assert not is_on_lane(worker)
        office.hear(2)
        assert office.channel.send(worker, Ping())
        assert worker.listen(1) == [Ping()]
        worker.channel.send(short(3))
        assert is_on_lane(worker)

    def test_a_default_timeout_of_the_programs_sockets_makes_nobody_wait(self, office):
        socket.setdefaulttimeout(LIMIT_S)
        try:
            worker = office.hire()
            office.speak_to(worker)
            began = time.monotonic()
            assert worker.channel.receive_nowait() is None
            office.channel.wake_lane(worker)
            assert office.look() == []
            while worker.channel._ways.has_lane(b""):
                worker.channel.send(short(1))
            while worker.lane.send(b"x"):
                pass
            assert time.monotonic() - began < LIMIT_S / 2
        finally:
            socket.setdefaulttimeout(None)


class TestToTheWorker:
    def test_long_and_short_ones_come_in_the_order_of_sending(self, office, worker):
        sent = [Command(n, "x", LONG) if n % 3 else Interrupt(n) for n in range(30)]
        assert all(office.channel.send(worker, message) for message in sent)
        assert worker.listen(len(sent)) == sent

    def test_a_full_lane_holds_nobody_up_and_loses_nothing(self, office, worker):
        sent = [Interrupt(n) for n in range(900)]
        assert all(office.channel.send(worker, message) for message in sent)
        assert worker.listen(len(sent)) == sent

    def test_what_cannot_be_sent_is_said_and_leaves_no_gap(self, office, tmp_path):
        peer = office.hire(endpoint=f"ipc://{tmp_path}/nobody")  # it never connects here
        assert not office.channel.send(peer, Command(1, "x", LONG))
        assert office.channel.send(peer, Ping())
        assert peer.listen(1) == [Ping()]

    def test_who_looks_without_waiting_is_told_by_the_descriptors(self, office, worker):
        for message in (Ping(), Command(1, "x", LONG), Stop()):
            assert worker.channel.receive_nowait() is None
            assert office.channel.send(worker, message)
            assert worker.channel.receive_nowait() is None  # nobody has told it yet
            assert worker.listen(1) == [message]

    def test_a_send_that_robs_the_descriptor_of_its_edge_lets_look_again(self, office, worker):
        command = Command(1, "x", LONG)
        assert worker.channel.receive_nowait() is None
        assert office.channel.send(worker, command)
        (_, _), (edge_triggered, _) = worker.channel.sources()
        assert select.select([edge_triggered], [], [], LIMIT_S)[0]
        worker.channel.send(long(1))
        assert worker.channel.receive_nowait() == command

    def test_who_waits_hears_what_comes_either_way(self, office, worker):
        for message in (Ping(), Command(1, "x", LONG), Stop()):
            assert office.channel.send(worker, message)
            assert worker.channel.receive() == message


class TestForeign:
    @pytest.fixture
    def foreign(self, office):
        with contextlib.ExitStack() as ends:
            context = zmq.Context()
            ends.callback(context.term)

            def connect(routing_id):
                socket = context.socket(zmq.DEALER)
                ends.callback(socket.close, 0)
                socket.setsockopt(zmq.IDENTITY, routing_id)
                socket.connect(office.endpoint)
                return socket

            yield connect

    def heard(self, office):
        while (received := office.channel.receive()) is None:
            office.wait()
        return received

    def test_what_no_worker_sends_is_from_nobody(self, office, foreign):
        foreign(b"somebody").send(b"")
        assert self.heard(office) == (0, -1, ())
        foreign(identity(1, 1)).send_multipart([b"", b"more"])
        assert self.heard(office) == (0, -1, ())

    def test_what_is_no_message_is_the_error_that_says_so(self, office, foreign):
        socket = foreign(identity(1, 1))
        for data in (b"", b"\0" * 7, Ways(is_spoken_to=True).stamped(b"\xc1")):
            socket.send(data)
            number, life, (error,) = self.heard(office)
            assert (number, life) == (1, 1)
            assert isinstance(error, RemoteProtocolError)

    def test_who_is_not_known_yet_is_heard(self, office):
        peer = Peer(office.endpoint, 3)
        peer.channel.send(Ready())
        assert self.heard(office) == (3, 1, [Ready()])
        peer.close()
