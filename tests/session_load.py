"""Many callers on one shared session, some of them rude: the load, and what must hold afterwards.

Callers are threads of the supervisor's process and, with nothing but pyzmq and msgpack, threads
of another. A rude caller times out, closes its iterator early or stops reading in mid-answer, at
random from a seed. Run as a program it is the other process.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass

import msgpack
import zmq

from soloist.protocol.content import ResultMessage, StreamEvent
from soloist.protocol.errors import SoloistError
from tests.support import ROOT, environment

PATIENCE_MS = 60_000
SHOWN = 80
"""Characters of a prompt that are kept, so that the load's own memory does not grow with it."""
BUFFER_BYTES = 4096
"""What a rude load's Supervisor should hold back for a reader (``stream_buffer_bytes``)."""


@dataclass
class Outcome:
    """How one request of one caller ended; ``foreign`` lists what was not its own."""

    caller: int
    prompt: str
    kind: str = "answer"
    text: str = ""
    order: int = 0
    num_turns: int = 0
    foreign: str = ""


def run(session, *, threads: int, peers: int, requests: int, seed: int | None = None):
    """Have all callers ask; give every outcome. With a seed a third of the requests are rude."""
    outcomes: list[Outcome] = []
    callers = [
        threading.Thread(target=_ask, args=(session, number, requests, seed, outcomes))
        for number in range(threads)
    ]
    other = None
    if peers:
        other = subprocess.Popen(
            [sys.executable, "-m", "tests.session_load", session.endpoint,
             str(threads), str(peers), str(requests), str(seed)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
        )  # fmt: skip
    for caller in callers:
        caller.start()
    if other is not None:
        for line in other.communicate()[0].splitlines():
            outcomes.append(Outcome(**json.loads(line)))
        assert other.returncode == 0
    for caller in callers:
        caller.join()
    return outcomes


def _ask(session, number, requests, seed, outcomes):
    chance = random.Random(f"{seed} {number}")
    kept = []
    for i in range(requests):
        manner = _manner(chance, seed)
        timeout_s = chance.random() * 0.05 if manner == "timeout" else None
        prompt = _prompt(chance, number, i, manner)
        outcome = Outcome(number, prompt[:SHOWN])
        outcomes.append(outcome)
        response = session.query_and_receive(prompt, timeout_s=timeout_s)
        pieces = ""
        try:
            for count, message in enumerate(response):
                if isinstance(message, StreamEvent):
                    pieces += message.event["delta"]["text"]
                if isinstance(message, ResultMessage):
                    outcome.text, outcome.num_turns = message.result[:SHOWN], message.num_turns
                if manner in {"close", "stop"} and count == 1:
                    break
        except SoloistError as error:
            outcome.kind = error.code
        else:
            outcome.kind = manner if outcome.num_turns == 0 else "answer"
        if manner == "close":
            response.close()
        elif manner == "stop":
            kept = [*kept[-2:], response]  # nobody reads it, and nobody closes it yet
        outcome.order = response.request.order
        if not prompt.startswith(pieces):
            outcome.foreign = pieces


def _prompt(chance, number, i, manner):
    """Short, unless its reader stops: then the answer is more than the buffer holds."""
    length = 8 * BUFFER_BYTES if manner == "stop" else chance.randrange(40)
    return f"caller {number} request {i} " + "x" * length


def _manner(chance, seed):
    if seed is None or chance.random() > 1 / 3:
        return "answer"
    return chance.choice(["timeout", "close", "stop"])


# -- the other process ---------------------------------------------------------------------------


def _peer(endpoint, number, requests, seed, outcomes):
    chance = random.Random(f"{seed} {number}")
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(endpoint)
    for i in range(requests):
        manner = _manner(chance, seed)
        prompt = _prompt(chance, number, i, manner)
        outcome = Outcome(number, prompt[:SHOWN])
        outcomes.append(outcome)
        query = {"v": 1, "type": "QUERY", "id": uuid.uuid4().bytes, "prompt": prompt}
        query["stream"] = True
        if manner == "timeout":
            query["timeout_ms"] = chance.randrange(50)
        socket.send(msgpack.packb(query))
        _read(socket, query, manner, outcome)
    socket.close(0)


def _read(socket, query, manner, outcome):
    own, pieces = query["id"], ""
    while True:
        assert socket.poll(PATIENCE_MS), f"no answer to {outcome.prompt}"
        message = msgpack.unpackb(socket.recv())
        if message["id"] != own:
            outcome.foreign = str(message)
            continue
        match message["type"]:
            case "MESSAGE":
                event = message["message"]
                if event["type"] == "StreamEvent":
                    pieces += event["event"]["delta"]["text"]
                if manner in {"close", "stop"} and message["seq"] == 2:
                    socket.send(msgpack.packb({"v": 1, "type": "CANCEL", "id": own}))
            case "RESULT":
                outcome.text, outcome.num_turns = message["text"][:SHOWN], message["num_turns"]
                outcome.order = message["sequence"]
                break
            case "ERROR":
                outcome.kind = message["code"]
                outcome.order = message.get("sequence") or 0
                break
    if not query["prompt"].startswith(pieces):
        outcome.foreign = pieces


def main(endpoint, first, peers, requests, seed):
    outcomes: list[Outcome] = []
    callers = [
        threading.Thread(target=_peer, args=(endpoint, first + i, requests, seed, outcomes))
        for i in range(peers)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for outcome in outcomes:
        print(json.dumps(asdict(outcome)))


# -- what must hold ------------------------------------------------------------------------------


def check_own_answers(outcomes):
    """Everybody got its own answer, whole, or an error."""
    for outcome in outcomes:
        assert not outcome.foreign, outcome
        if outcome.kind == "answer":
            assert outcome.text == outcome.prompt, outcome


def check_in_order(outcomes):
    """The conversation's turns are counted in the order of arrival."""
    answered = sorted((o for o in outcomes if o.kind == "answer"), key=lambda o: o.order)
    turns = [o.num_turns for o in answered]
    assert turns == sorted(set(turns))
    return turns


def check_no_overlap(log):
    """The client's own log: one turn at a time."""
    running = None
    count = 0
    for line in log.read_text().splitlines():
        what, turn = line.split()[:2]
        if what == "begin":
            assert running is None, f"turn {turn} began during turn {running}"
            running = turn
            count += 1
        else:
            assert running == turn, line
            running = None
    return count


if __name__ == "__main__":
    _, endpoint_, *numbers = sys.argv
    *counts, seed_ = numbers
    started = time.monotonic()
    main(endpoint_, *map(int, counts), None if seed_ == "None" else int(seed_))
