"""A gateway's sockets: what may be bound, who is let in, whose a path is."""

import contextlib
import re
import select

import msgpack
import pytest
import zmq

from soloist.protocol.errors import InvalidOptions, SoloistError
from soloist.supervisor.gateway_channel import GatewaySockets, Keys, check_endpoint
from tests.support import LIMIT_S, eventually, run_python

MAX_BYTES = 100_000
PING = msgpack.packb({"v": 1, "type": "PING"})
SERVER, ANN, EVE = (zmq.curve_keypair() for _ in range(3))
KEYS = Keys(*SERVER, frozenset({ANN[0]}))


@pytest.fixture
def folder(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def bound():
    """Bind endpoints; give the channels."""
    opened = []

    def bind(*endpoints, keys=None):
        opened.append(GatewaySockets(endpoints, max_bytes=MAX_BYTES, keys=keys))
        return opened[-1].channels

    yield bind
    for sockets in opened:
        sockets.close()


@pytest.fixture
def connected():
    """Connect a DEALER, perhaps with keys."""
    with zmq.Context() as context:
        context.linger = 0
        sockets = []

        def connect(endpoint, pair=None, server=SERVER[0]):
            sockets.append(socket := context.socket(zmq.DEALER))
            if pair is not None:
                socket.curve_publickey, socket.curve_secretkey = pair
                socket.curve_serverkey = server
            socket.connect(endpoint)
            return socket

        yield connect
        for socket in sockets:
            socket.close(0)


def received(channel):
    """Wait for a message as the I/O thread does."""
    while (message := channel.receive()) is None:
        assert select.select([channel.fileno()], [], [], LIMIT_S)[0], "nothing came"
        channel.wake()
    return message


class TestEndpoints:
    @pytest.mark.parametrize(
        "endpoint",
        [
            "ipc:///run/x",
            "tcp://127.0.0.1:5555",
            "tcp://127.8.8.8:*",
            "tcp://localhost:1",
            "tcp://[::1]:5",
        ],
    )
    def test_of_this_machine_need_no_keys(self, endpoint):
        check_endpoint(endpoint, has_keys=False)

    @pytest.mark.parametrize(
        "endpoint",
        [
            "tcp://*:5555",
            "tcp://0.0.0.0:5555",
            "tcp://10.0.0.1:5555",
            "tcp://[::]:5555",
            "tcp://eth0:5555",
            "tcp://localhost.example.org:5555",
            "tcp://127.0.0.1.example.org:5555",
            "tcp://2130706433:5555",
            "tcp://lo;10.0.0.1:5555",
        ],
    )
    def test_beyond_it_do(self, endpoint):
        with pytest.raises(InvalidOptions, match="needs keys"):
            check_endpoint(endpoint, has_keys=False)
        check_endpoint(endpoint, has_keys=True)

    @pytest.mark.parametrize(
        "endpoint", ["", "ipc://", "ipc://x", "ipc://@x", "tcp://", "tcp://5555", "udp://x:1", "x"]
    )
    def test_are_ipc_or_tcp(self, endpoint):
        with pytest.raises(InvalidOptions, match="neither"):
            check_endpoint(endpoint, has_keys=True)

    def test_are_refused_by_the_sockets_themselves(self, bound):
        with pytest.raises(InvalidOptions, match="needs keys"):
            bound("tcp://0.0.0.0:*")

    def test_that_cannot_be_bound_leave_nothing(self, bound, folder):
        (taken,) = bound("tcp://127.0.0.1:*")
        with pytest.raises(SoloistError, match="cannot be bound"):
            bound(f"ipc://{folder}/g", taken.endpoint)
        assert {path.name for path in folder.iterdir()} == {"g.lock"}
        (again,) = bound(f"ipc://{folder}/g")
        assert again.is_local

    def test_say_their_ports(self, bound):
        local, other = bound("tcp://127.0.0.1:*", "tcp://[::1]:*")
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", local.endpoint)
        assert re.fullmatch(r"tcp://\[::1\]:\d+", other.endpoint)


class TestPaths:
    @pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
    def test_lie_in_a_folder_of_the_owners_alone(self, bound, folder, mode):
        folder.chmod(mode)
        with pytest.raises(InvalidOptions, match=f"chmod 700 {folder}"):
            bound(f"ipc://{folder}/g")

    def test_have_their_folder_made(self, bound, folder):
        bound(f"ipc://{folder}/new/g")
        assert (folder / "new").stat().st_mode & 0o777 == 0o700

    def test_are_not_taken_from_who_lives(self, bound, folder, connected):
        (channel,) = bound(f"ipc://{folder}/g")
        with pytest.raises(InvalidOptions, match="another process serves"):
            bound(f"ipc://{folder}/g")
        connected(channel.endpoint).send(PING)
        assert received(channel)[0][-1] == PING

    def test_are_taken_over_from_who_was_killed(self, bound, folder, connected):
        run_python(
            "-c",
            "import os, sys\n"
            "from soloist.supervisor.gateway_channel import GatewaySockets\n"
            "sockets = GatewaySockets(sys.argv[1:], max_bytes=1, keys=None)\n"
            "os._exit(0)",
            f"ipc://{folder}/g",
        )
        assert (folder / "g").exists()
        (channel,) = bound(f"ipc://{folder}/g")
        connected(channel.endpoint).send(PING)
        assert received(channel)[0][-1] == PING

    def test_vanish_at_the_end(self, folder):
        sockets = GatewaySockets([f"ipc://{folder}/g"], max_bytes=1, keys=None)
        assert (folder / "g").exists()
        sockets.close()
        assert not (folder / "g").exists()


class TestKeys:
    def test_who_has_one_is_known_by_it(self, bound, connected):
        (channel,) = bound("tcp://127.0.0.1:*", keys=KEYS)
        assert not channel.is_local
        socket = connected(channel.endpoint, ANN)
        socket.send(PING)
        (address, payload), key = received(channel)
        assert (key, payload) == (ANN[0].decode(), PING)
        assert channel.send((address,), b"x")
        assert socket.poll(LIMIT_S * 1000)
        assert socket.recv() == b"x"

    @pytest.mark.parametrize(
        ("pair", "server"),
        [(EVE, SERVER[0]), (ANN, EVE[0]), (None, None)],
        ids=["a wrong key", "a wrong server", "no key"],
    )
    def test_nobody_else_is_heard(self, bound, connected, pair, server):
        (channel,) = bound("tcp://127.0.0.1:*", keys=KEYS)
        stranger = connected(channel.endpoint, pair, server)
        with contextlib.suppress(zmq.Again):  # refused already, and without a place to send to
            stranger.send(b"\x81\xa1v\x01", zmq.NOBLOCK)
        connected(channel.endpoint, ANN).send(PING)
        assert received(channel)[0][-1] == PING
        assert channel.receive() is None

    def test_are_for_tcp_alone(self, bound, connected, folder):
        near, far = bound(f"ipc://{folder}/g", "tcp://127.0.0.1:*", keys=KEYS)
        connected(near.endpoint).send(PING)
        (_, payload), key = received(near)
        assert (key, payload) == ("", PING)
        connected(far.endpoint, ANN).send(PING)
        assert received(far)[1] == ANN[0].decode()


def test_a_frame_over_the_limit_ends_the_connection(bound, connected):
    (channel,) = bound("tcp://127.0.0.1:*")
    socket = connected(channel.endpoint)
    socket.send(b"x" * (MAX_BYTES + 1))
    other = connected(channel.endpoint)
    other.send(PING)
    assert received(channel)[0][-1] == PING
    assert channel.receive() is None


def test_a_peer_that_has_gone_is_reported(bound, connected):
    (channel,) = bound("tcp://127.0.0.1:*")
    socket = connected(channel.endpoint)
    socket.send(PING)
    (address, _), _ = received(channel)
    assert channel.send((address,), b"x")
    socket.close(0)
    eventually(lambda: not channel.send((address,), b"x"))
