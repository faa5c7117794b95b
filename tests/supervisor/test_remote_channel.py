"""A client's socket: a real one, before a ROUTER of the test's own."""

import select

import msgpack
import pytest
import zmq

from soloist.protocol import public
from soloist.protocol.errors import InvalidOptions
from soloist.supervisor import keys, remote_channel
from soloist.supervisor.remote_channel import RemoteChannel, curve_of
from tests.support import LIMIT_S

LIMIT_MS = int(LIMIT_S * 1000)
KEY = "a" * 40


@pytest.fixture
def router(tmp_path):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.bind(f"ipc://{tmp_path}/gateway")
        yield socket


@pytest.fixture
def channel(tmp_path, router):
    made = RemoteChannel(f"ipc://{tmp_path}/gateway", None)
    yield made
    made.close()


def heard(router):
    assert router.poll(LIMIT_MS)
    peer, payload = router.recv_multipart()
    return peer, msgpack.unpackb(payload)


def receive(channel):
    while (data := channel.receive()) is None:
        assert select.select([channel.fileno()], [], [], LIMIT_S)[0]
    return data


def test_before_the_first_connection_nothing_comes(channel):
    assert not channel.has_input()
    assert channel.receive() is None


def test_says_and_hears(channel, router):
    channel.renew()
    assert channel.send(public.Ping())
    peer, said = heard(router)
    assert said == {"v": 1, "type": "PING"}
    router.send_multipart([peer, b"one"])
    router.send_multipart([peer, b"two"])
    assert receive(channel) == b"one"
    assert receive(channel) == b"two"
    assert channel.receive() is None


def test_a_new_socket_is_a_new_peer_and_hears_nothing_of_the_old_one(channel, router):
    channel.renew()
    channel.send(public.Ping())
    first, _ = heard(router)
    router.send_multipart([first, b"old"])
    channel.renew()
    channel.send(public.Ping())
    second, _ = heard(router)
    assert second != first
    router.send_multipart([second, b"new"])
    assert receive(channel) == b"new"


def test_what_was_said_last_arrives_after_the_close(tmp_path, router):
    channel = RemoteChannel(f"ipc://{tmp_path}/gateway", None)
    channel.renew()
    for _ in range(100):
        channel.send(public.Ping())
    channel.close()
    for _ in range(100):
        heard(router)


def test_what_nobody_takes_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_channel, "_MAX_UNSENT", 10)
    channel = RemoteChannel(f"ipc://{tmp_path}/nobody", None)
    channel.renew()
    sent = [channel.send(public.Ping()) for _ in range(100)]
    assert sent == [True] * sum(sent) + [False] * (100 - sum(sent))
    assert 0 < sum(sent) < 100
    channel.renew()
    assert channel.send(public.Ping())
    channel.close()


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://", "ftp://x:1"])
def test_an_endpoint_that_is_none(endpoint):
    channel = RemoteChannel(endpoint, None)
    with pytest.raises(InvalidOptions, match="cannot connect"):
        channel.renew()
    channel.close()


def test_keys(tmp_path):
    public_file, secret_file = keys.new_pair(tmp_path, "own")
    curve = curve_of(KEY, secret_file)
    assert curve == (curve_of(KEY.encode(), str(secret_file)))
    assert (curve.server_key, len(curve.public_key), len(curve.secret_key)) == (
        KEY.encode(),
        40,
        40,
    )
    assert curve_of(KEY, None).public_key != curve_of(KEY, None).public_key
    for key, file in (("short", None), (KEY, public_file), (KEY, tmp_path / "none")):
        with pytest.raises(InvalidOptions):
            curve_of(key, file)


def test_a_key_that_is_none_is_refused_when_it_connects(tmp_path):
    channel = RemoteChannel(f"ipc://{tmp_path}/x", curve_of("~" * 40, None))
    with pytest.raises(InvalidOptions):
        channel.renew()
    channel.close()
