"""Messages a second of one streamed answer, as a share of what bare ZeroMQ carries.

The client is ``echo``, which sends an answer in many pieces; they are read as they arrive: by the
owner of a session, and by a peer of a shared session's socket, which knows nothing but ZeroMQ and
msgpack and gives credit as it reads. The floor is a process that sends as many messages of the same
size through a DEALER, one by one, to a ROUTER that decodes each. In turns, the whole answer each;
every piece is counted.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator

import msgpack
import zmq

from benchmarks._suite import Effort, Figure, Outcome, check, ratio, take_turns
from soloist import StreamEvent, Supervisor
from soloist.protocol import codec
from soloist.supervisor.session import Session

PIECES, QUICK = 5_000, 200
PROMPT = "x" * 10_000


def run(effort: Effort) -> Outcome:
    """Read the same answer in each way."""
    pieces = effort.of(PIECES, QUICK)
    with (
        tempfile.TemporaryDirectory() as folder,
        Supervisor(1, options={"chunks": pieces}) as supervisor,
        supervisor.session() as own,
        _peer(supervisor.shared("shared").endpoint, pieces) as peer,
    ):
        size = len(_piece(own, pieces))
        with _sender(f"ipc://{folder}/floor", pieces, size) as floor:
            taken = take_turns(
                {"floor": floor, "owned": functools.partial(_owned, own, pieces), "peer": peer},
                effort.of(9, 2),
            )
    figures = {name: Figure(name, "/s", values) for name, values in taken.items()}
    ratios = [ratio(figures[name], figures["floor"]) for name in ("owned", "peer")]
    return Outcome(list(figures.values()), ratios, [f"a message has {size} bytes"])


def _piece(own: Session, pieces: int) -> bytes:
    """One of them, encoded."""
    found = [m for m in own.query_and_receive(PROMPT) if isinstance(m, StreamEvent)]
    check(len(found) == pieces, f"{len(found)} of {pieces} pieces came")
    return codec.encode_message(found[0])


def _owned(own: Session, pieces: int) -> float:
    started = time.perf_counter()
    count = sum(isinstance(message, StreamEvent) for message in own.query_and_receive(PROMPT))
    elapsed = time.perf_counter() - started
    check(count == pieces, f"{count} of {pieces} pieces came")
    return count / elapsed


@contextlib.contextmanager
def _peer(endpoint: str, pieces: int) -> Iterator[Callable[[], float]]:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)

    def measure() -> float:
        query_id = os.urandom(16)
        query = {"v": 1, "type": "QUERY", "id": query_id, "prompt": PROMPT, "stream": True}
        started = time.perf_counter()
        socket.send(msgpack.packb(query))
        count = 0
        while True:
            frame = socket.recv()
            message = msgpack.unpackb(frame)
            if message["type"] != "MESSAGE":
                break
            count += message["message"]["type"] == "StreamEvent"
            credit = {"v": 1, "type": "CREDIT", "id": query_id, "bytes": len(frame)}
            socket.send(msgpack.packb(credit))
        elapsed = time.perf_counter() - started
        check(message["type"] == "RESULT" and count == pieces, f"not the answer: {message}")
        return count / elapsed

    try:
        yield measure
    finally:
        socket.close(0)
        context.term()


@contextlib.contextmanager
def _sender(endpoint: str, count: int, size: int) -> Iterator[Callable[[], float]]:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(endpoint)
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_send, args=(endpoint, count, size), daemon=True)
    process.start()
    address, _ = router.recv_multipart()

    def measure() -> float:
        started = time.perf_counter()
        router.send_multipart([address, b"go"])
        for _ in range(count):
            msgpack.unpackb(router.recv_multipart()[1])
        return count / (time.perf_counter() - started)

    try:
        yield measure
    finally:
        process.terminate()
        process.join()
        router.close(0)
        context.term()


def _send(endpoint: str, count: int, size: int) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    socket.send(b"ready")
    while socket.recv():
        for _ in range(count):
            socket.send(msgpack.packb(bytes(size)))
