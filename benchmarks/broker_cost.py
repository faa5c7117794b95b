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
import tempfile
from collections.abc import Callable, Iterator

import msgpack
import zmq

from benchmarks._floors import PROMPT, floors, measure, query, show
from soloist import Supervisor

SESSIONS = 500


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
            rounds = measure(contestants, rounds=arguments.rounds, count=arguments.count)
    show(rounds, [("thread", "F1", 3.0), ("socket", "F2", 2.0), ("many", "socket", 1.3)])


if __name__ == "__main__":
    main()
