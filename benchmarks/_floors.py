"""What the cost of a broker or gateway is measured against: bare ZeroMQ, and how it is compared.

F1 is a raw ROUTER/DEALER round trip between two processes; F2 the same through a bare ROUTER relay
in a third, with the message that a caller sends, encoded and decoded by the caller as there. The
contestants take turns, each after its floor.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import msgpack
import zmq

from benchmarks._suite import Figure, take_turns

PROMPT = "x" * 100


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
def floors(
    folder: str, front: str | None = None
) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """The two raw round trips, the second to the address ``front``."""
    spawn = multiprocessing.get_context("spawn")
    one, back = (f"ipc://{folder}/{name}" for name in ("one", "back"))
    front = front or f"ipc://{folder}/front"
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


def median_us(call: Callable[[], None], count: int) -> float:
    """Median time of one call, in microseconds."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def round_trips(
    contestants: Mapping[str, Callable[[], None]], *, rounds: int, count: int
) -> dict[str, Figure]:
    """Median time of one call of each, round by round."""
    turns = {name: functools.partial(median_us, call, count) for name, call in contestants.items()}
    taken = take_turns(turns, rounds)
    return {name: Figure(name, "us", values) for name, values in taken.items()}
