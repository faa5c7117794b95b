"""``soloist serve``: a real server, and peers that know nothing but ZeroMQ and msgpack."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys

import pytest
import zmq
import zmq.auth

from soloist.supervisor import command_line, serve_commands  # noqa: F401 - registered
from tests.support import LIMIT_S, ROOT, descendants_of_runs, eventually, run_dirs_of, run_python
from tests.wire_peer import Server, WirePeer

SECRET = bytes(range(32))
CONFIG = """
bind = ["ipc://{folder}/gateway", "tcp://127.0.0.1:*"]

[clients.echo]
client = "echo"
size = 2

[clients.slow]
client = "echo"
size = 1
options = {{ delay_s = 30.0, chunks = 3 }}

[clients.logged]
client = "tests.support_serve:logged"
size = 2

[clients.asks]
client = "tests.support_serve:asks"
size = 1
control_timeout_s = 0.3

[limits]
heartbeat_s = 0.2
max_queue = 50
"""

HOLES = """
import psutil
from soloist.supervisor.serve import Server

blocks = [b"x" * 60_000 + bytes([i % 256]) for i in range(2_000)]
kept = blocks[::20]
del blocks
before = psutil.Process().memory_info().rss
Server.give_back_memory()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    folder.chmod(0o700)
    (folder / "soloist.toml").write_text(CONFIG.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with Server(
        "--config", str(folder / "soloist.toml"), cwd=ROOT, SOLOIST_TEST_FOLDER=str(folder)
    ) as server:
        server.endpoints.append(server._endpoint())
        yield server


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(server, request):
    return next(e for e in server.endpoints if e.startswith(request.param))


@pytest.fixture
def ipc(server):
    return server.endpoints[0]


@pytest.fixture
def tcp(server):
    return server.endpoints[1]


@pytest.fixture
def peers():
    with contextlib.ExitStack() as ends:
        yield lambda *args, **more: ends.enter_context(WirePeer(*args, **more)).hello()


def is_over(peer, opened):
    """Whether a conversation has ended."""
    return peer.call("STATUS", session=opened["session"]).get("code") == "session_closed"


class TestPatterns:
    def test_a_prompt_alone(self, peers, endpoint):
        reply = peers(endpoint).ask("hello")
        assert (reply["type"], reply["text"], reply["num_turns"]) == ("RESULT", "hello", 1)
        assert [message["type"] for message in reply["messages"]][-1] == "ResultMessage"
        assert reply["attempts"] == 1

    @pytest.mark.parametrize("client", ["echo", "slow"])
    def test_a_stream_and_its_cancellation(self, peers, endpoint, client):
        peer = peers(endpoint)
        request_id = peer.query("a b c", client=client, stream=True)
        if client == "slow":
            peer.say("CANCEL", id=request_id)
            assert peer.outcome(request_id)["code"] == "request_cancelled"
            return
        reply = peer.outcome(request_id)
        assert reply["messages"] == []
        assert [m["seq"] for m in peer.seen] == list(range(1, len(peer.seen) + 1))
        assert peer.seen[-1]["message"]["type"] == "ResultMessage"

    def test_a_pool_that_is_not_the_first_answers_too(self, peers, endpoint, folder):
        (folder / "go").touch()
        peer = peers(endpoint)
        assert peer.ask("far", client="logged")["text"] == "FAR"
        assert peer.ask("far", client="logged", stream=True)["messages"] == []
        assert peer.seen[-1]["message"]["result"] == "FAR"

    def test_a_shared_conversation(self, peers, endpoint):
        first, second = peers(endpoint), peers(endpoint)
        opened = first.call("OPEN", name="support", max_queue=5)
        assert (opened["type"], opened["incarnation"]) == ("OPENED", 1)
        joined = second.call("OPEN", ticket=opened["ticket"])
        assert joined["session"] == opened["session"]
        turns = [p.ask("x", session=opened["session"]) for p in (first, second, first)]
        assert [turn["num_turns"] for turn in turns] == [1, 2, 3]
        assert [turn["sequence"] for turn in turns] == [1, 2, 3]
        assert first.call("CLOSE", session=opened["session"])["type"] == "DONE"
        assert second.ask("x", session=opened["session"])["code"] == "session_closed"

    def test_its_own_socket_leads_into_the_same_queue(self, peers, ipc, tcp):
        peer = peers(ipc)
        opened = peer.call("OPEN", name="both ways")
        with WirePeer(opened["endpoint"]) as near:
            assert near.ask("x")["num_turns"] == 1
            assert peer.ask("x", session=opened["session"])["num_turns"] == 2
        assert peers(tcp).call("OPEN", name="both ways")["endpoint"] == ""

    def test_an_owned_conversation_ends_with_its_peer(self, peers, endpoint, server):
        peer, witness = peers(endpoint), peers(server.endpoints[0])
        opened = peer.call("OPEN")
        assert peer.ask("x", session=opened["session"])["num_turns"] == 1
        witness.call("OPEN", ticket=opened["ticket"])
        peer.close()
        eventually(lambda: is_over(witness, opened))

    def test_a_req_socket_has_one_answer_to_everything(self, endpoint):
        with WirePeer(endpoint, kind=zmq.REQ) as req:
            reply = req.call("QUERY", prompt="hello")
            assert reply["text"] == "hello"
            opened = req.call("OPEN", name="by req")
            # To a tcp:// gateway each connection without a secret is an owner of its own.
            assert req.call("QUERY", prompt="x", session=opened["session"])["num_turns"] == 1
            assert req.call("STATUS")["status"]["clients"].keys() >= {"echo", "slow"}
            req.say("PING")
            assert req.hear()["type"] == "PONG"
            for garbage in (b"", b"garbage"):
                req.socket.send(garbage)
                assert req.hear()["code"] == "protocol_error"
            assert req.call("CLOSE", session=opened["session"])["type"] == "DONE"

    def test_what_an_agent_asks(self, peers, endpoint):
        peer = peers(endpoint)
        request_id = peer.query("bread", client="asks", control=True)
        while (question := peer.hear())["type"] != "CONTROL":
            pass
        assert (question["kind"], question["data"]) == ("riddle", {"about": "bread"})
        peer.say("CONTROL_REPLY", id=request_id, number=question["number"], data={"word": "yes"})
        assert peer.outcome(request_id)["text"] == "yes"

    def test_who_does_not_answer_an_agent_says_no(self, peers, endpoint):
        peer = peers(endpoint)
        assert peer.ask("bread", client="asks")["type"] == "ERROR"
        assert peer.ask("bread", client="asks", control=True)["type"] == "ERROR"

    def test_status(self, peers, ipc, tcp):
        near, far = peers(ipc), peers(tcp)
        near.call("OPEN", name="seen")
        status = near.call("STATUS")["status"]
        assert status["peers"] >= 2
        assert "seen" in {s["name"] for s in status["clients"]["echo"]["sessions"]}
        assert "sessions" not in far.call("STATUS")["status"]["clients"]["echo"]

    def test_wrong_words_have_an_answer(self, peers, endpoint):
        peer = peers(endpoint)
        assert peer.ask("x", client="nobody")["code"] == "invalid_options"
        assert peer.ask("x", session=bytes(16))["code"] == "session_closed"
        assert peer.call("OPEN", ticket=bytes(16))["code"] == "session_closed"
        assert peer.call("OPEN", name="n", max_queue=51)["code"] == "invalid_options"
        opened = peer.call("OPEN", name="n")
        reply = peer.call("COMMAND", session=opened["session"], name="kill", arguments=[])
        assert reply["code"] == "invalid_options"


class TestComingBack:
    def test_nothing_runs_twice_after_a_kill(self, endpoint, folder):
        """A client is killed in the middle of 100 requests; another process has their outcomes."""
        log, go = folder / "log", folder / "go"
        log.unlink(missing_ok=True)
        go.unlink(missing_ok=True)
        ids = [os.urandom(16) for _ in range(100)]
        script = (
            "import sys, threading\n"
            "from tests.wire_peer import WirePeer\n"
            "endpoint, secret, *ids = sys.argv[1:]\n"
            "peer = WirePeer(endpoint, secret=bytes.fromhex(secret)).hello()\n"
            "for i in ids:\n"
            "    peer.query(i, id=bytes.fromhex(i), client='logged', on_disconnect='finish')\n"
            "peer.call('STATUS')\n"
            "print('sent', flush=True)\n"
            "threading.Event().wait()\n"
        )
        words = [endpoint, SECRET.hex(), *(i.hex() for i in ids)]
        client = subprocess.Popen(
            [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, cwd=ROOT
        )
        with client:
            assert client.stdout.readline() == b"sent\n"
            client.send_signal(signal.SIGKILL)
        with WirePeer(endpoint, secret=SECRET) as again:
            again.hello()
            epoch = again.welcome["epoch"]
            for i in ids:
                again.query(i.hex(), id=i, client="logged", resent=epoch)
            go.touch()
            outcomes = {}
            while len(outcomes) < len(ids):
                reply = again.hear()
                if reply["type"] in {"RESULT", "ERROR"}:
                    assert reply["id"] not in outcomes
                    outcomes[reply["id"]] = reply
            assert all(outcomes[i]["text"] == i.hex().upper() for i in ids)
            assert sorted(log.read_text().split()) == sorted(i.hex() for i in ids)
            # And once more, when all is over.
            for i in ids[:5]:
                assert again.ask(i.hex(), id=i, client="logged", resent=epoch) == outcomes[i]

    def test_what_was_to_be_cancelled_is(self, endpoint, peers):
        peer = peers(endpoint)
        request_id = peer.query("x", client="slow")
        peer.close()
        watch = peers(endpoint)
        eventually(
            lambda: (
                watch.call("STATUS")["status"]["clients"]["slow"]["running"] == 0
                and watch.call("STATUS")["status"]["requests"] == 0
            )
        )
        assert request_id

    def test_a_stream_goes_on_as_a_whole(self, endpoint, folder):
        (folder / "go").unlink(missing_ok=True)
        with WirePeer(endpoint, secret=b"s" * 16) as peer:
            peer.hello()
            i = peer.query("x", client="logged", stream=True, on_disconnect="finish")
            peer.call("STATUS")
        with WirePeer(endpoint, secret=b"s" * 16) as again:
            again.hello()
            again.query("x", id=i, client="logged", stream=True, resent=again.welcome["epoch"])
            (folder / "go").touch()
            reply = again.outcome(i)
            assert [m["seq"] for m in again.seen if m["type"] == "MESSAGE"] == []
            assert reply["messages"][-1]["result"] == "X"

    def test_another_life_of_the_gateway_knows_nothing(self, endpoint, peers):
        reply = peers(endpoint, secret=b"t" * 16).ask("x", resent=bytes(16))
        assert (reply["code"], reply["started"]) == ("outcome_unknown", None)

    def test_a_new_connection_has_to_say_hello(self, endpoint):
        with WirePeer(endpoint) as peer:
            reply = peer.ask("x")
            assert (reply["code"], reply["retryable"], reply["started"]) == (
                "hello_required",
                True,
                False,
            )

    def test_who_is_silent_has_gone(self, endpoint, peers):
        watch, silent = peers(endpoint), peers(endpoint)
        opened = silent.call("OPEN")
        watch.call("OPEN", ticket=opened["ticket"])
        eventually(lambda: is_over(watch, opened))
        silent.say("PING")
        assert silent.hear()["code"] == "hello_required"


class TestStatusCommand:
    def status(self, *arguments):
        return run_python("-m", "soloist.supervisor.cli", "status", *arguments)

    def test_is_for_people(self, peers, ipc):
        peers(ipc).call("OPEN", name="[red]seen[/red]")
        done = self.status(ipc)
        lines = [line.split() for line in done.stdout.splitlines()]
        assert (done.returncode, done.stderr) == (0, "")
        assert [line[0] for line in lines[:4]] == ["peers", "requests", "kept", "client"]
        assert {"echo", "slow", "logged", "asks"} <= {line[0] for line in lines[4:8]}
        assert ["[red]seen[/red]", "idle", "0", "0", "1"] in lines

    def test_is_for_programs(self, endpoint):
        done = self.status("--json", endpoint)
        status = json.loads(done.stdout)
        assert status["clients"]["echo"]["size"] == 2

    def test_says_when_nobody_is_there(self, tmp_path):
        (tmp_path / "x.key").write_text("none")
        assert self.status("nonsense").returncode == 2
        assert self.status(f"ipc://{tmp_path}/g", "--server-key", "x.key").returncode == 2


class TestEnd:
    @pytest.fixture
    def own(self, tmp_path):
        tmp_path.chmod(0o700)
        with Server(
            *("--bind", f"ipc://{tmp_path}/g", "--client", "echo", "--set", "delay_s=0.5"),
            *("--size", "1"),
        ) as server:
            yield server

    def test_sigterm_finishes_what_was_accepted(self, own, tmp_path):
        run_dirs = run_dirs_of(own.process.pid)
        assert run_dirs
        with WirePeer(own.endpoint) as peer:
            peer.hello()
            ids = [peer.query("x") for _ in range(2)]
            peer.call("STATUS")
            own.process.send_signal(signal.SIGTERM)
            late = None
            while late is None or late.get("code") != "supervisor_closed":
                late = peer.call("QUERY", prompt="late", timeout_ms=1)
            kept = {i: peer.ask("x", id=i, resent=peer.welcome["epoch"]) for i in ids}
            assert {reply["text"] for reply in kept.values()} == {"x"}
        assert own.process.wait(LIMIT_S) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["g.lock"]
        eventually(lambda: not descendants_of_runs(run_dirs))

    def test_a_second_signal_ends_it_at_once(self, own):
        with WirePeer(own.endpoint) as peer:
            peer.hello()
            for _ in range(100):
                peer.query("x")
            peer.call("STATUS")
            own.process.send_signal(signal.SIGINT)
            while peer.call("QUERY", prompt="late", timeout_ms=1)["code"] != "supervisor_closed":
                pass
            own.process.send_signal(signal.SIGINT)
            assert own.process.wait(LIMIT_S) == 130

    def test_sigkill_leaves_nothing_that_is_in_the_way(self, own, tmp_path):
        run_dirs = run_dirs_of(own.process.pid)
        own.process.kill()
        eventually(lambda: not descendants_of_runs(run_dirs))
        with Server("--bind", own.endpoint) as again, WirePeer(again.endpoint) as peer:
            assert peer.hello().ask("x")["text"] == "x"

    def test_a_live_endpoint_is_not_taken_away(self, own):
        other = run_python("-m", "soloist.supervisor.cli", "serve", "--bind", own.endpoint)
        assert other.returncode == 2
        assert "another process serves" in other.stderr
        with WirePeer(own.endpoint) as peer:
            assert peer.hello().ask("x")["text"] == "x"


class TestRefusals:
    @pytest.fixture
    def refused(self, monkeypatch, capfd, tmp_path):
        """Run the command; what it said."""
        monkeypatch.chdir(tmp_path)

        def run(*arguments):
            assert command_line.run(["serve", *arguments]) == 2
            output = capfd.readouterr()
            assert output.out == ""
            return output.err

        return run

    @pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.0.2.1", "example.org", "[::]", "eth0"])
    def test_beyond_this_machine_without_keys(self, refused, host):
        words = refused("--bind", f"tcp://{host}:5555")
        assert "needs keys" in words
        assert "soloist keys" in words

    @pytest.mark.parametrize("endpoint", ["inproc://x", "ipc://relative", "tcp://5555", "x"])
    def test_what_is_no_endpoint(self, refused, endpoint):
        assert "neither ipc:///PATH nor tcp://HOST:PORT" in refused("--bind", endpoint)

    def test_a_folder_that_others_may_enter(self, refused, tmp_path):
        tmp_path.chmod(0o755)
        assert "chmod 700" in refused("--bind", f"ipc://{tmp_path}/g")

    def test_a_wrong_configuration_names_its_keys(self, refused, tmp_path):
        (tmp_path / "soloist.toml").write_text(
            'bind = []\nport = 5\n[clients.a]\nclient = "echo"\nsize = 0\n'
            '[limits]\nmax_peers = "x"\n'
        )
        words = refused("--config", "soloist.toml")
        for key in ("bind", "port", "clients.a.size", "limits.max_peers"):
            assert f"soloist.toml: {key}: " in words

    @pytest.mark.parametrize(
        ("text", "words"), [("bind = [", "soloist.toml: "), ("", "bind: Field required")]
    )
    def test_an_unreadable_configuration(self, refused, tmp_path, text, words):
        (tmp_path / "soloist.toml").write_text(text)
        assert words in refused("--config", "soloist.toml")

    @pytest.mark.parametrize("client", ["nobody", "no.such.module:x", "soloist:nothing"])
    def test_a_client_that_is_not_there(self, refused, tmp_path, client):
        tmp_path.chmod(0o700)
        assert client in refused("--bind", f"ipc://{tmp_path}/g", "--client", client)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "clients").mkdir(mode=0o700)
    pairs = {}
    for name in ("server", "ann", "bob", "eve"):
        zmq.auth.create_certificates(folder, name)
        pairs[name] = zmq.auth.load_certificate(folder / f"{name}.key_secret")
        (folder / f"{name}.key_secret").chmod(0o600)
    for name in ("ann", "bob"):
        (folder / f"{name}.key").rename(folder / "clients" / f"{name}.key")
    (folder / "soloist.toml").write_text(
        'bind = ["tcp://127.0.0.1:*"]\n[clients.echo]\nclient = "echo"\nsize = 1\n'
        '[security]\nkey_file = "server.key_secret"\nclients = "clients"\n'
    )
    return folder, pairs


@pytest.fixture(scope="module")
def secured(keys):
    folder, _ = keys
    with Server("--config", str(folder / "soloist.toml")) as server:
        yield server


class TestKeys:
    @pytest.fixture
    def enter(self, secured, keys):
        _, pairs = keys
        with contextlib.ExitStack() as ends:
            yield lambda name, server="server": ends.enter_context(
                WirePeer(secured.endpoint, curve=(pairs[server][0], pairs[name]))
            )

    def test_a_right_key_is_let_in(self, enter):
        assert enter("ann").hello().ask("x")["text"] == "x"

    @pytest.mark.parametrize(("name", "server"), [("eve", "server"), ("ann", "eve")])
    def test_a_wrong_one_hears_nothing(self, enter, name, server):
        stranger, friend = enter(name, server), enter("bob").hello()
        stranger.try_to_say("HELLO", versions=[1])
        for _ in range(20):
            assert friend.ask("x")["text"] == "x"
        assert stranger.hears_nothing(100)

    def test_no_key_hears_nothing(self, secured, enter):
        with WirePeer(secured.endpoint) as stranger:
            stranger.try_to_say("HELLO", versions=[1])
            assert enter("ann").hello().ask("x")["text"] == "x"
            assert stranger.hears_nothing(100)

    def test_one_keys_conversations_and_ids_are_not_anothers(self, enter):
        ann, bob = enter("ann").hello(), enter("bob").hello()
        i = os.urandom(16)
        assert ann.ask("ann's", id=i)["text"] == "ann's"
        assert bob.ask("bob's", id=i)["text"] == "bob's"
        mine, other = (peer.call("OPEN", name="plan") for peer in (ann, bob))
        assert mine["session"] != other["session"]
        assert bob.ask("x", session=mine["session"])["code"] == "session_closed"
        assert bob.call("OPEN", ticket=mine["ticket"])["session"] == mine["session"]
        assert bob.ask("x", session=mine["session"])["num_turns"] == 1

    def test_let_the_command_line_in(self, secured, keys):
        folder, _ = keys
        own = ("--key-file", str(folder / "ann.key_secret"))
        done = run_python(
            *("-m", "soloist.supervisor.cli", "status", secured.endpoint, *own),
            *("--server-key", str(folder / "server.key")),
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "echo" in done.stdout

    def test_a_key_is_known_on_every_connection(self, enter):
        i = os.urandom(16)
        first = enter("ann").hello().ask("x", id=i)
        assert enter("ann").hello().ask("y", id=i) == first

    def test_a_secret_that_others_can_read_is_refused(self, keys):
        folder, _ = keys
        (folder / "server.key_secret").chmod(0o644)
        try:
            done = run_python(
                "-m", "soloist.supervisor.cli", "serve", "--config", str(folder / "soloist.toml")
            )
        finally:
            (folder / "server.key_secret").chmod(0o600)
        assert done.returncode == 2
        assert "chmod 600" in done.stderr


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the GNU C library")
def test_memory_that_was_freed_is_given_back_although_some_is_in_use():
    done = run_python("-c", HOLES)
    assert int(done.stdout) > 50_000_000, done.stderr
