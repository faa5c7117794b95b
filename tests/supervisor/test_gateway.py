"""A gateway as a whole: its turns, its report, and peers that say anything in any order."""

import pytest

from soloist.protocol import public, public_codec
from soloist.supervisor.gateway import MAX_TAKEN
from tests.fake_gateway import (
    FAR,
    HOME,
    IPC,
    TCP,
    Harness,
    answer,
    new_id,
)


@pytest.fixture
def harness():
    return Harness()


class TestTurns:
    def test_take_so_many_messages_of_each_socket_at_once(self, harness):
        local, remote = harness.peer(IPC), harness.peer(TCP)
        ping = public_codec.encode(public.Ping())
        for client in (local, remote):
            client.channel.arrived.extend([([client.address, ping], "")] * (MAX_TAKEN + 1))
        harness.gateway.take()
        assert (len(local.heard()), len(remote.heard())) == (MAX_TAKEN, MAX_TAKEN)
        assert harness.gateway.has_input()
        harness.gateway.take()
        assert (len(local.heard()), len(remote.heard())) == (1, 1)
        assert not harness.gateway.has_input()

    def test_look_at_every_socket(self, harness):
        sources = harness.gateway.sources()
        assert [source for source, _ in sources] == [c.fileno() for c in harness.channels]
        for _, wake in sources:
            wake()
        assert [channel.wakes for channel in harness.channels] == [1, 1]

    def test_end_with_the_sockets(self, harness):
        harness.gateway.close()
        assert harness.is_closed


class TestReport:
    def test_tells_of_all_pools(self, harness):
        client = harness.peer(TCP)
        client.ask()
        client.ask(client=FAR).settle(answer())
        harness.settle()
        client.heard()
        message = public.Status(new_id(), None)
        client.say(message)
        assert client.heard() == [], "the far pool has not answered yet"
        harness.settle()
        report = client.one()
        assert (report["type"], report["id"]) == ("REPORT", message.id)
        status = report["status"]
        assert (status["peers"], status["requests"], status["kept"]) == (1, 1, 1)
        assert list(status["clients"]) == [HOME, FAR]
        for pool in status["clients"].values():
            assert (pool["size"], pool["queued"], pool["running"]) == (2, 1, 2)
            assert (pool["answered"], pool["failed"], pool["cancelled"]) == (3, 4, 5)
            assert (pool["restarts"], pool["workers"]) == (6, [])

    def test_waits_for_the_last_pool_whichever_it_is(self, harness):
        for first, second in ((HOME, FAR), (FAR, HOME)):
            client = harness.peer()
            client.say(public.Status(new_id(), None))
            for name in (first, second):
                harness.reactors[name].orders.popleft()()
                while harness.home.inbox.calls:
                    harness.home.inbox.calls.popleft()()
                assert len(client.heard()) == (name == second)

    def test_tells_names_to_local_peers_alone(self, harness):
        local, remote = harness.peer(IPC), harness.peer(TCP, key="K")
        local.open("a")
        remote.open("b", client=FAR)
        for client in (local, remote):
            client.say(public.Status(new_id(), None))
            harness.settle()
            for pool in client.one()["status"]["clients"].values():
                assert len(pool.get("sessions", ())) == (client is local)

    def test_is_answered_anew_each_time(self, harness):
        client, message = harness.peer(), public.Status(new_id(), None)
        for peers in (1, 2):
            client.say(message)
            harness.settle()
            assert client.one()["status"]["peers"] == peers
            harness.peer()

    def test_of_a_peer_that_has_gone_is_lost(self, harness):
        client = harness.peer()
        client.say(public.Status(new_id(), None))
        client.leave()
        harness.settle()
        assert harness.status()["peers"] == 0
