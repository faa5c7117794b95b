"""A gateway that goes wrong as a real one may: it forgets its peers, or falls silent.

Speaks as much of chapter 2 as the scenarios ``map`` and ``stream`` need, in a thread of its own,
and remembers all that it heard. Every prompt is answered with itself at once, and runs once. Of a
streamed answer it sends the first half, forgets its peer, and has the rest when it is asked again.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any, Self

import zmq

from soloist.protocol import codec, public, public_codec
from soloist.protocol.content import SystemMessage
from soloist.protocol.errors import HelloRequired, to_info

HEARTBEAT_MS = 300
MESSAGES = tuple(codec.encode_message(SystemMessage("said", {"x": i})) for i in range(4))
"""Of a streamed answer."""


class ScriptedGateway:
    """Use as a context manager.

    Args:
        endpoint: where it binds.
        forget_at: at these counts of QUERYs it knows none of its peers any more, as if the
            connection had been another one for a moment.
        silent_at: at these counts it stops hearing the peer that sent the QUERY, for ever.
    """

    def __init__(
        self, endpoint: str, *, forget_at: tuple[int, ...] = (), silent_at: tuple[int, ...] = ()
    ) -> None:
        self.heard: list[tuple[bytes, public.FromClient]] = []
        self.ran: Counter[str] = Counter()
        self.epoch = os.urandom(public.ID_BYTES)
        self.endpoint = endpoint
        self._forget_at = forget_at
        self._silent_at = silent_at
        self._queries = 0
        self._peers: set[bytes] = set()
        self._silent: set[bytes] = set()
        self._outcomes: dict[bytes, public.Result] = {}
        self._context = zmq.Context()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(self.endpoint)
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.bind("inproc://stop")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.send(b"")
        self._thread.join()
        for socket in (self._stop, self._socket):
            socket.close(linger=0)
        self._context.term()

    def of_type(self, cls: type) -> list[Any]:
        """All that was heard of one type, in order."""
        return [message for _, message in self.heard if type(message) is cls]

    def peers_that_said(self, cls: type) -> set[bytes]:
        """The connections that sent a message of this type."""
        return {peer for peer, message in self.heard if type(message) is cls}

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        with self._context.socket(zmq.PAIR) as stopped:
            stopped.connect("inproc://stop")
            poller.register(stopped, zmq.POLLIN)
            while stopped not in (ready := dict(poller.poll())):
                if self._socket in ready:
                    self._hear(self._socket.recv_multipart())

    def _hear(self, frames: list[bytes]) -> None:
        envelope, message = public_codec.read(frames, public_codec.GATEWAY)
        if isinstance(message, public.Error):
            self._say(envelope[0], message)
            return
        self.heard.append((envelope[0], message))
        self._count(envelope[0], message)
        if envelope[0] not in self._silent:
            self._answer(envelope[0], message)

    def _count(self, peer: bytes, message: public.FromClient) -> None:
        if not isinstance(message, public.Query):
            return
        self._queries += 1
        if self._queries in self._forget_at:
            self._peers.clear()
        if self._queries in self._silent_at:
            self._silent.add(peer)

    def _answer(self, peer: bytes, message: public.FromClient) -> None:
        if isinstance(message, public.Hello):
            self._peers.add(peer)
            limits = (public.CREDIT_BYTES, codec.MAX_PAYLOAD_BYTES, 1000)
            self._say(peer, public.Welcome(1, self.epoch, HEARTBEAT_MS, *limits, ["echo"]))
        elif peer not in self._peers:
            request_id = getattr(message, "id", None)
            self._say(peer, public.Error(request_id, None, to_info(HelloRequired("who is there?"))))
        elif isinstance(message, public.Query):
            self._run(peer, message)
        elif isinstance(message, public.Ping):
            self._say(peer, public.Pong())

    def _run(self, peer: bytes, query: public.Query) -> None:
        is_new = query.id not in self._outcomes
        if is_new:
            self._outcomes[query.id] = self._result(query)
        if is_new and query.is_streamed:
            for seq, message in enumerate(MESSAGES[: len(MESSAGES) // 2], start=1):
                self._say(peer, public.Message(query.id, seq, message))
            self._peers.clear()
        else:
            self._say(peer, self._outcomes[query.id])

    def _result(self, query: public.Query) -> public.Result:
        text = str(query.prompt)
        self.ran[text] += 1
        messages = codec.join(list(MESSAGES) if query.is_streamed else [])
        return public.Result(query.id, self._queries, 1, text, 1, 0, 1, 1, messages)

    def _say(self, peer: bytes, message: public.ToClient) -> None:
        self._socket.send_multipart([peer, public_codec.encode(message)])
