"""``soloist serve`` keeps to the specification, as its vectors say; and a server that does not is
found out."""

import os
import tempfile
import threading
from pathlib import Path

import msgpack
import pytest
import zmq

from tests.conformance import __main__ as program
from tests.conformance import server
from tests.support_gateway import served

WELCOME = {"v": 1, "type": "WELCOME", "version": 1, "endpoint": "", "epoch": os.urandom(16)}
ERROR = {
    "v": 1,
    "type": "ERROR",
    "id": None,
    "code": "protocol_error",
    "message": "",
    "retryable": False,
    "started": False,
    "details": {},
}


@pytest.fixture(scope="module")
def gateway():
    with tempfile.TemporaryDirectory(prefix="soloist-") as folder, served(Path(folder)) as gateway:
        yield gateway


def played(capsys, *arguments):
    """The exit code, and what was printed."""
    code = program.main(["--server", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_a_gateway_and_its_brokers_on_ipc(gateway, capsys):
    code, printed = played(capsys, gateway.ipc)
    assert code == 0, [line for line in printed.splitlines() if line.startswith("FAILED")]
    assert printed.endswith(" 0 FAILED, 0 skipped\n")


def test_a_gateway_on_tcp_with_curve(gateway, capsys):
    # What is refused is the same on every socket; conversations differ by whose they are.
    curve = (
        f"--server-key={gateway.server_key}",
        "--key-file",
        gateway.key_file,
    )  # may begin with -
    code, printed = played(capsys, gateway.tcp, *curve, "--only", "conversation")
    assert code == 0, [line for line in printed.splitlines() if line.startswith("FAILED")]


class TestAServerThatIsWrong:
    """Answers every message with the same."""

    @pytest.fixture
    def wrong(self, tmp_path):
        """Gives the endpoint of a server that answers so."""
        context = zmq.Context()
        threads = []

        def answer(router, reply):
            while True:
                frames = router.recv_multipart()
                if frames[-1] == b"end":
                    router.close()
                    return
                router.send_multipart([*frames[:-1], reply])

        def make(reply):
            router = context.socket(zmq.ROUTER)
            router.bind("inproc://wrong")
            router.bind(f"ipc://{tmp_path}/wrong")
            threads.append(threading.Thread(target=answer, args=(router, msgpack.packb(reply))))
            threads[-1].start()
            return f"ipc://{tmp_path}/wrong"

        yield make
        with context.socket(zmq.DEALER) as dealer:
            dealer.connect("inproc://wrong")
            dealer.send(b"end")
            threads[0].join()
        context.term()

    def test_is_found_out_in_a_dialogue(self, wrong):
        connections = server.Connections(wrong(WELCOME), None, None)
        steps = [
            {"peer": "a", "connect": "dealer"},
            {"peer": "a", "send": {"v": 1, "type": "PING"}},
            {"peer": "a", "expect": {"equal": {"type": "WELCOME"}}},
            {"peer": "a", "send": {"v": 1, "type": "PING"}},
        ]
        last = [
            {"peer": "a", "expect": {"equal": {"type": "PONG"}}},
            {"peer": "a", "expect": {"equal": {"type": "WELCOME", "version": True}}},
            {"peer": "a", "expect": {"equal": {}, "present": ["clients"]}},
            {"peer": "a", "expect": {"equal": {}, "absent": ["epoch"]}},
            {"peer": "a", "expect": {"equal": {}, "keep": {"clients": "x"}}},
            {"peer": "a", "quiet_ms": 10_000},
        ]
        for step in last:
            with pytest.raises(server.Mismatch, match=r"^step 5, "):
                server.Play(connections).run({"steps": [*steps, step]})
        connections.close()

    @pytest.mark.parametrize(
        "change",
        [{"type": "PONG"}, {"id": bytes(16)}, {"code": "x"}, {"retryable": True}, {"details": 1}],
        ids=ascii,
    )
    def test_is_found_out_in_its_errors(self, wrong, change):
        endpoint = wrong(ERROR | change)
        connections = server.Connections(endpoint, None, None)
        invalid = server.Invalid(connections, "broker", endpoint)
        with pytest.raises(server.Mismatch):
            invalid.play({"frames": ["c1"], "envelope": [], "id": None, "code": "protocol_error"})
        connections.close()

    def test_gives_an_exit_code(self, wrong, capsys, monkeypatch):
        monkeypatch.setattr(server, "_broker_of", lambda connections: "")
        code, printed = played(capsys, wrong(WELCOME), "--only", "a prompt with a surrogate")
        assert code == 1
        assert printed.splitlines()[-1] == "0 ok, 1 FAILED, 0 skipped"


def test_the_program_wants_one_of_its_parts(capsys):
    assert program.main([]) == 2
    assert "usage" in capsys.readouterr().err
