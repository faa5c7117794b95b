"""Bad peers of a gateway, one kind at a time: each costs a bound, and nobody else notices."""

import contextlib
import os
import socket

import psutil
import pytest
import zmq

from tests.faults.hostile.raw import HANDSHAKE
from tests.wire_peer import LIMIT_MS, Server, WirePeer

MOST_BYTES = 20_000_000
"""What they may cost all together."""
HALVES = {
    "of a greeting": HANDSHAKE[:40],
    "of a handshake": HANDSHAKE[:-10],
    "of a frame": HANDSHAKE + b"\x00\xff" + bytes(100),
    "of a frame that is said to be large": HANDSHAKE + b"\x02" + (2**26).to_bytes(8) + bytes(100),
    "of a message": HANDSHAKE + b"\x01\x00" * 3,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One that keeps few outcomes, so that what is measured is what bad peers cost."""
    config = tmp_path_factory.mktemp("served") / "soloist.toml"
    config.write_text(
        'bind = ["tcp://127.0.0.1:*"]\n'
        '[clients.echo]\nclient = "echo"\nsize = 2\n'
        "[limits]\nheartbeat_s = 0.5\nmax_outcome_bytes = 1000000\n"
    )
    with Server("--config", str(config)) as server:
        yield server


@pytest.fixture
def good(server):
    """A peer that is there all the time, and whose conversation has no gap."""
    with WirePeer(server.endpoint).hello() as peer:
        session = peer.call("OPEN")["session"]
        turns = 0

        def ask():
            nonlocal turns
            turns += 1
            reply = peer.ask(f"turn {turns}", session=session, timeout_ms=LIMIT_MS)
            assert (reply["text"], reply["num_turns"]) == (f"turn {turns}", turns)

        ask()
        peer.ask_on = ask
        yield peer
        ask()


@pytest.fixture
def memory(server, good):
    """Fails if the server has grown by more than it may."""
    read = psutil.Process(server.process.pid).memory_info
    before = read().rss
    yield
    good.ask_on()
    assert read().rss - before < MOST_BYTES


def connected(endpoint):
    host, port = endpoint.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT_MS / 1000)


@pytest.mark.usefixtures("memory")
class TestBadPeers:
    def test_who_reads_nothing(self, server, good):
        with WirePeer(server.endpoint).hello() as deaf:
            for _ in range(500):
                deaf.query("x" * 1000, stream=True)
            for _ in range(20):
                good.ask_on()

    @pytest.mark.parametrize("half", HALVES)
    def test_who_sends_half(self, server, good, half):
        with contextlib.ExitStack() as ends:
            for _ in range(100):
                ends.enter_context(connected(server.endpoint)).sendall(HALVES[half])
            for _ in range(20):
                good.ask_on()
        for _ in range(20):  # and when they have gone
            good.ask_on()

    @pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.soak)])
    def test_who_comes_and_goes(self, server, good, count):
        with zmq.Context() as context:
            for i in range(count):
                with context.socket(zmq.DEALER) as passing:
                    passing.linger = 0
                    passing.connect(server.endpoint)
                    passing.send(b"garbage" if i % 2 else b"")
                if not i % 25:
                    good.ask_on()

    @pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.soak)])
    def test_who_is_let_in_again_and_again(self, server, good, count):
        """Each time as somebody else, with a request that runs and is left."""
        for i in range(count):
            with WirePeer(server.endpoint, secret=os.urandom(16)).hello() as passing:
                passing.query("x")
            if not i % 25:
                good.ask_on()

    def test_who_claims_the_routing_id_of_another(self, server, good):
        """Nobody chooses one, and what a connection sends is about its own requests alone."""
        asked = [good.query(f"prompt {i}") for i in range(20)]
        with WirePeer(server.endpoint, routing_id=b"mine") as first:
            first.say("HELLO", versions=[1])
            assert first.hear()["code"] == "protocol_error"
            with WirePeer(server.endpoint, routing_id=b"mine") as second:
                for thief in (first, second):
                    for request_id in asked:
                        thief.try_to_say("CANCEL", id=request_id)
                assert second.hears_nothing(100)  # libzmq lets only one of them in
        texts = {}
        while len(texts) < len(asked):
            reply = good.hear()
            if reply["type"] != "ACCEPTED":
                texts[reply["id"]] = reply["text"]
        assert [texts[request_id] for request_id in asked] == [f"prompt {i}" for i in range(20)]
