"""What a shared session's broker costs, as multiples of bare ZeroMQ, all in one run.

Measures the round trip of an echo request of 100 bytes, one at a time:

- F1: a raw ROUTER/DEALER round trip between two processes (one hop each way);
- F2: the same through a bare ROUTER relay in a third process (two hops each way), with the
  message that a caller of a session sends, encoded and decoded by the caller as there;
- thread: ``SharedSession.query(...).result()`` from a thread of the process, against F1;
- socket: a raw DEALER on the session's endpoint, against F2;
- many: the same as socket with 500 shared sessions open, against one open.

The contestants take turns (A B C A B C ...), each after its floor, a few hundred requests each,
and what counts is the median of each round's ratio. Every answer is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import msgpack
import zmq

from soloist import Supervisor

PROMPT = "x" * 100
SESSIONS = 500


def echo_server(endpoint: str) -> None:
    """Connect a DEALER and send everything back."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, b"worker")
    socket.connect(endpoint)
    socket.send(b"ready")
    while True:
        socket.send(socket.recv())


def relay(front: str, back: str) -> None:
    """Pass requests from a ROUTER to the one worker behind another, and answers back."""
    context = zmq.Context()
    callers, workers = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    workers.bind(back)
    workers.recv_multipart()
    callers.bind(front)
    poller = zmq.Poller()
    poller.register(callers, zmq.POLLIN)
    poller.register(workers, zmq.POLLIN)
    caller = b""
    while True:
        for socket, _ in poller.poll():
            if socket is callers:
                caller, payload = callers.recv_multipart()
                workers.send_multipart([b"worker", payload])
            else:
                _, payload = workers.recv_multipart()
                callers.send_multipart([caller, payload])


def query() -> bytes:
    """What a caller sends; it encodes and decodes the same way whatever carries it."""
    fields = {"v": 1, "type": "QUERY", "id": os.urandom(16), "prompt": PROMPT}
    data: bytes = msgpack.packb(fields)
    return data


@contextlib.contextmanager
def floors(folder: str) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """The two raw round trips."""
    spawn = multiprocessing.get_context("spawn")
    one, front, back = (f"ipc://{folder}/{name}" for name in ("one", "front", "back"))
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(one)
    processes = [
        spawn.Process(target=echo_server, args=(one,), daemon=True),
        spawn.Process(target=echo_server, args=(back,), daemon=True),
        spawn.Process(target=relay, args=(front, back), daemon=True),
    ]
    for process in processes:
        process.start()
    router.recv_multipart()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(front)
    payload = PROMPT.encode()

    def one_hop() -> None:
        router.send_multipart([b"worker", payload])
        assert router.recv_multipart()[1] == payload

    def two_hops() -> None:
        dealer.send(query())
        assert msgpack.unpackb(dealer.recv())["prompt"] == PROMPT

    try:
        two_hops()
        yield one_hop, two_hops
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for socket in (router, dealer):
            socket.close(0)
        context.term()


@contextlib.contextmanager
def peer(endpoint: str) -> Iterator[Callable[[], None]]:
    """A caller that knows nothing but ZeroMQ and msgpack."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)

    def ask() -> None:
        socket.send(query())
        answer = msgpack.unpackb(socket.recv())
        assert answer["type"] == "RESULT", answer
        assert answer["text"] == PROMPT

    try:
        yield ask
    finally:
        socket.close(0)
        context.term()


def seconds(call: Callable[[], None], count: int) -> float:
    """Median time of one call."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=300, help="requests a round")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        floors(folder) as (one_hop, two_hops),
        Supervisor(1, max_sessions=SESSIONS + 1) as few,
        Supervisor(1, max_sessions=SESSIONS + 1) as many,
    ):
        alone = few.shared("only")
        among = [many.shared(f"session {i}") for i in range(SESSIONS)]
        for session in among:
            assert session.query(PROMPT).result().text == PROMPT

        def thread() -> None:
            assert alone.query(PROMPT).result().text == PROMPT

        with peer(alone.endpoint) as socket, peer(among[SESSIONS // 2].endpoint) as crowded:
            contestants = {
                "F1": one_hop, "thread": thread, "F2": two_hops, "socket": socket, "many": crowded,
            }  # fmt: skip
            for call in contestants.values():
                seconds(call, 200)
            rounds = [
                {name: seconds(call, arguments.count) for name, call in contestants.items()}
                for _ in range(arguments.rounds)
            ]
    for name in contestants:
        print(f"{name:8} {statistics.median(r[name] for r in rounds) * 1e6:8.0f} us")
    for name, floor, limit in (
        ("thread", "F1", 3.0),
        ("socket", "F2", 2.0),
        ("many", "socket", 1.3),
    ):
        ratios = sorted(r[name] / r[floor] for r in rounds)
        spread = f"{ratios[len(ratios) // 4]:.2f} to {ratios[-len(ratios) // 4]:.2f}"
        median = statistics.median(ratios)
        print(f"{name} / {floor}: {median:.2f} (quartiles {spread}; at most {limit})")


if __name__ == "__main__":
    main()
