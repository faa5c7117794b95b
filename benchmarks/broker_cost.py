"""What a shared session's broker costs, as multiples of bare ZeroMQ, all in one run.

Measures the round trip of an echo request of 100 bytes, one at a time:

- F1: a raw ROUTER/DEALER round trip between two processes (one hop each way);
- F2: the same through a bare ROUTER relay in a third process (two hops each way), with the
  message that a caller of a session sends, encoded and decoded by the caller as there;
- thread: ``SharedSession.query(...).result()`` from a thread of the process, against F1;
- owned: ``Session.query_and_receive``, read to its end, from a thread of the process, against F1;
- socket: a raw DEALER on the session's endpoint, against F2;
- many: the same as socket with 500 shared sessions open, against one open.

See ``_floors`` for how they are compared. Every answer is checked.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator

import msgpack
import zmq

from benchmarks._floors import PROMPT, floors, query, round_trips
from benchmarks._suite import Effort, Outcome, check, ratio
from soloist import ResultMessage, Supervisor

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
        check(answer.get("text") == PROMPT, f"not the answer: {answer}")

    try:
        yield ask
    finally:
        socket.close(0)
        context.term()


def run(effort: Effort) -> Outcome:
    """Measure them all."""
    sessions = effort.of(SESSIONS, 20)
    with (
        tempfile.TemporaryDirectory() as folder,
        floors(folder) as (one_hop, two_hops),
        Supervisor(1, max_sessions=sessions + 1) as few,
        Supervisor(1, max_sessions=sessions + 1) as many,
        few.session() as own,
    ):
        alone = few.shared("only")
        among = [many.shared(f"session {i}") for i in range(sessions)]
        for session in among:
            check(session.query(PROMPT).result().text == PROMPT, "an answer is another's")

        def thread() -> None:
            check(alone.query(PROMPT).result().text == PROMPT, "an answer is another's")

        def owned() -> None:
            *_, result = own.query_and_receive(PROMPT)
            check(isinstance(result, ResultMessage) and result.result == PROMPT, "not the answer")

        with peer(alone.endpoint) as socket, peer(among[sessions // 2].endpoint) as crowded:
            contestants = {
                "F1": one_hop, "thread": thread, "owned": owned,
                "F2": two_hops, "socket": socket, "many": crowded,
            }  # fmt: skip
            taken = round_trips(contestants, rounds=effort.of(15, 2), count=effort.of(300, 50))
    ratios = [
        ratio(taken["thread"], taken["F1"], at_most=3.0),
        ratio(taken["owned"], taken["F1"], at_most=3.0),
        ratio(taken["socket"], taken["F2"], at_most=2.0),
        ratio(taken["many"], taken["socket"], at_most=1.3),
    ]
    return Outcome(list(taken.values()), ratios)
