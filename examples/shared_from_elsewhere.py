"""A shared session from another process, which has nothing but pyzmq and msgpack.

Prints::

    here: turn 1
    there, one reply: hello from elsewhere (turn 2)
    there, a stream: hello -> again -> RESULT (turn 3)
    there, no time at all: request_timeout, started=False
    here again, the same conversation: ['hello', 'hello from elsewhere', 'hello again']
"""

import subprocess
import sys

from soloist import Supervisor

CALLER = """
import os
import sys

import msgpack
import zmq

endpoint = sys.argv[1]


def query(prompt, **more):
    message = {"v": 1, "type": "QUERY", "id": os.urandom(16), "prompt": prompt, **more}
    return msgpack.packb(message)


def receive(socket):
    if not socket.poll(10_000):  # ROUTER tells nobody that it has gone
        raise TimeoutError("the session is gone")
    return msgpack.unpackb(socket.recv())


with zmq.Context() as context, context.socket(zmq.REQ) as req, context.socket(zmq.DEALER) as dealer:
    req.linger = dealer.linger = 0

    # A REQ socket: one request, one reply, which has the whole answer.
    req.connect(endpoint)
    req.send(query("hello from elsewhere"))
    reply = receive(req)
    print(f"there, one reply: {reply['text']} (turn {reply['num_turns']})")

    # A DEALER: messages as they arrive, then RESULT or ERROR.
    dealer.connect(endpoint)
    dealer.send(query("hello again", stream=True, timeout_ms=10_000))
    pieces = []
    while (reply := receive(dealer))["type"] == "MESSAGE":
        event = reply["message"].get("event")
        pieces += [event["delta"]["text"].strip()] if event else []
    print(f"there, a stream: {' -> '.join(pieces)} -> {reply['type']} (turn {reply['num_turns']})")

    # Errors are data, with the fields of Soloist's exceptions.
    req.send(query("too late", timeout_ms=0))
    reply = receive(req)
    print(f"there, no time at all: {reply['code']}, started={reply['started']}")
"""

options = {"chunks": 2, "recall_on": "What did I say?"}

with Supervisor(size=1, options=options) as sup:
    chat = sup.shared("support-42")
    print("here: turn", chat.query("hello").result().num_turns, flush=True)
    command = [sys.executable, "-c", CALLER, chat.endpoint]
    subprocess.run(command, check=True)  # noqa: S603 - the program is the one above
    said = chat.query("What did I say?").result().text.splitlines()
    print("here again, the same conversation:", said)
