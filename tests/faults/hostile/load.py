"""Many hostile connections to one gateway, at a steady rate, and what it costs a good peer.

PINGs from the same peers at the same rate, before and after, are the reference; the good peer asks
all the time.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import zmq

from tests.faults.hostile.messages import SESSION, Messages
from tests.faults.hostile.raw import RawPeers
from tests.support import LIMIT_S, ROOT, environment
from tests.support_gateway import Served, served

PEERS = 30
DEAF = 3
"""So many of them never read what they are told."""
TICK_S = 0.005
RAW_EVERY = 400
"""One raw connection after so many messages."""
ROUNDS = (100, 2_000)
"""A connection lives for a number of messages in this range."""
REMEMBERED = 5_000
"""Messages that are kept to be saved, should the gateway die."""
REFERENCE_S = 10.0
QUESTIONS_PER_S = 50
PING = msgpack.packb({"v": 1, "type": "PING"})
_OPTIONS = 'fail_on = "fail", ask_on = "ask", chunks = 2'
_LIMITS = "retention_s = 5.0\nmax_conversations = 8\nheartbeat_s = 2.0"


@dataclasses.dataclass
class Report:
    """What a run saw; times of the good peer in seconds, memory of the gateway's process in MiB.

    Attributes:
        unsent: those among ``sent`` that no socket took, for the gateway reads no faster.
        before_s: the good peer's times among PINGs, before the hostile messages.
        after_s: the same, after them: what the machine does besides has changed.
        processor_us: the gateway's own time for each hostile message.
    """

    sent: int = 0
    unsent: int = 0
    well_formed: int = 0
    raw: int = 0
    took_s: float = 0.0
    failures: list[str] = dataclasses.field(default_factory=list)
    times_s: list[float] = dataclasses.field(default_factory=list)
    before_s: list[float] = dataclasses.field(default_factory=list)
    after_s: list[float] = dataclasses.field(default_factory=list)
    processor_us: float = 0.0
    before_mib: float = 0.0
    most_mib: float = 0.0
    after_mib: float = 0.0
    tracebacks: int = 0
    heard: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def lines(self) -> Iterator[str]:
        """Tell it."""
        yield (
            f"{self.sent:,} messages in {self.took_s:.0f} s ({self.sent / self.took_s:,.0f}/s), "
            f"{self.well_formed / self.sent:.0%} well-formed, {self.unsent:,} of them not taken; "
            f"{self.raw:,} raw connections"
        )
        yield "heard: " + ", ".join(f"{n:,} {kind}" for kind, n in self.heard.most_common())
        yield f"the good peer: {len(self.times_s):,} answers, {len(self.failures)} failures"
        yield from (f"  {failure}" for failure in self.failures[:10])
        for name, times_s in (
            ("as many PINGs, before", self.before_s),
            ("hostile messages", self.times_s),
            ("as many PINGs, afterwards", self.after_s),
        ):
            p50, p99 = percentiles_ms(times_s)
            yield f"  among {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        yield f"the gateway took {self.processor_us:.0f} us of its processor for a message"
        yield (
            f"memory: {self.before_mib:.1f} MiB before, {self.most_mib:.1f} at most, "
            f"{self.after_mib:.1f} afterwards; {self.tracebacks} tracebacks in the log"
        )


def percentiles_ms(times_s: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile, in ms."""
    cuts = statistics.quantiles(times_s, n=100, method="inclusive")
    return cuts[49] * 1000, cuts[98] * 1000


def run(
    messages: int,
    *,
    rate: float,
    seed: int,
    reference_s: float = REFERENCE_S,
    rest_s: float = 10.0,
    max_errors: int | None = None,
    saved_to: Path | None = None,
    progress: Callable[[int, float], None] = lambda sent, mib: None,
) -> Report:
    """Start a gateway, be hostile to it, and see what became of it.

    Args:
        messages: how many hostile ones.
        rate: of them in a second.
        seed: of all choices.
        reference_s: how long the PINGs last, each time.
        rest_s: how long there is nothing before memory is looked at again.
        max_errors: the gateway's ``max_protocol_errors``, for one that hears all of them.
        saved_to: where the last messages go if the gateway dies.
        progress: told how many were sent, and the gateway's memory, now and then.
    """
    report = Report()
    limits = _LIMITS if max_errors is None else f"{_LIMITS}\nmax_protocol_errors = {max_errors}"
    with tempfile.TemporaryDirectory(prefix="soloist-") as folder, contextlib.ExitStack() as ends:
        gateway = ends.enter_context(
            served(Path(folder), options=_OPTIONS, limits=limits, has_keys=False)
        )
        good = ends.enter_context(_good_peer(gateway.tcp))
        crowd = ends.enter_context(contextlib.closing(Crowd(gateway, seed, messages)))
        process = psutil.Process(gateway.pid)
        good.report()
        _paced(reference_s, rate, crowd.ping, crowd.listen)
        report.before_s = good.report()["times_s"]
        try:
            _be_hostile(report, crowd, process, messages, rate, progress)
        except psutil.Error:
            crowd.save(saved_to or Path("hostile.jsonl"))
            raise
        seen = good.report()
        report.times_s, report.failures = seen["times_s"], seen["failures"]
        _paced(rest_s, 0, lambda: None, crowd.listen)
        report.after_mib = _mib(process)
        report.failures += good.report()["failures"]
        _paced(reference_s, rate, crowd.ping, crowd.listen)
        report.after_s = good.report()["times_s"]
        report.tracebacks = gateway.log.read_text(errors="replace").count("Traceback")
    return report


def _be_hostile(
    report: Report,
    crowd: Crowd,
    process: psutil.Process,
    messages: int,
    rate: float,
    progress: Callable[[int, float], None],
) -> None:
    """Send them all; fill in what they were and what they cost the gateway."""
    report.before_mib = report.most_mib = _mib(process)
    processor_s = sum(process.cpu_times()[:2])
    began_at = next_at = time.monotonic()

    def watch() -> None:
        nonlocal next_at
        crowd.listen()
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + 0.25
            report.most_mib = max(report.most_mib, _mib(process))
            progress(crowd.sent, _mib(process))

    _paced(messages / rate, rate, crowd.strike, watch, messages)
    report.took_s = time.monotonic() - began_at
    report.processor_us = (sum(process.cpu_times()[:2]) - processor_s) * 1e6 / messages
    report.sent, report.unsent = crowd.sent, crowd.unsent
    report.well_formed, report.raw = crowd.messages.well_formed, crowd.raw.opened
    report.heard = crowd.heard


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def _paced(
    seconds: float,
    rate: float,
    act: Callable[[], None],
    meanwhile: Callable[[], None],
    count: int | None = None,
) -> None:
    """Act ``rate`` times a second, ``count`` times or for ``seconds``; late ones are made up."""
    total = round(seconds * rate) if count is None else count
    began_at, done = time.monotonic(), 0
    never = threading.Event()
    while done < total or (not total and time.monotonic() < began_at + seconds):
        due = min(total, int((time.monotonic() - began_at) * rate) + 1)
        for _ in range(due - done):
            act()
        done = max(done, due)
        meanwhile()
        never.wait(TICK_S)


class Crowd:
    """The hostile peers. What they will say is made beforehand: it is not their time that is taken.

    Args:
        gateway: whom they are hostile to.
        seed: of all choices.
        count: how many messages they will say.

    Attributes:
        sent: messages that were sent, without PINGs of the reference.
        unsent: what no socket took.
        heard: what they were told, by type and code.
        messages: where they have them from.
        raw: those that do not even speak ZeroMQ.
    """

    def __init__(self, gateway: Served, seed: int, count: int) -> None:
        self.sent = self.unsent = 0
        self.heard: collections.Counter[str] = collections.Counter()
        self._chance = random.Random(seed)
        self.messages = Messages(self._chance)
        # Tuples: the collector has nothing to do with them.
        self._unsaid = collections.deque(tuple(self.messages.next()) for _ in range(count))
        self._sessions = [SESSION]
        self.raw = RawPeers(int(gateway.tcp.rpartition(":")[2]), self._chance)
        self._gateway = gateway
        self._context = zmq.Context()
        self._places = [self._new() for _ in range(PEERS)]
        self._left = [self._chance.randint(*ROUNDS) for _ in range(PEERS)]
        self._last: collections.deque[tuple[int, list[bytes]]] = collections.deque(
            maxlen=REMEMBERED
        )

    def ping(self) -> None:
        """Have one of them send a PING."""
        self._send(self._chance.randrange(PEERS), [PING])

    def strike(self) -> None:
        """Have one of them say something; now and then it connects anew."""
        self.sent += 1
        place = self._chance.randrange(PEERS)
        self._left[place] -= 1
        if not self._left[place]:
            self._places[place].close()
            self._places[place] = self._new()
            self._left[place] = self._chance.randint(*ROUNDS)
        session = self._chance.choice(self._sessions)
        frames = [frame.replace(SESSION, session) for frame in self._unsaid.popleft()]
        self._last.append((place, frames))
        self._send(place, frames)
        if not self.sent % RAW_EVERY:
            self.raw.strike(frames[-1])

    def listen(self) -> None:
        """Hear what those that are not deaf are told."""
        for socket in self._places[DEAF:]:
            with contextlib.suppress(zmq.Again):  # to ask first would take most of a processor
                while True:
                    self._hear(socket.recv_multipart(zmq.NOBLOCK)[-1])

    def save(self, path: Path) -> None:
        """Write down what was said last, as the corpus has it."""
        lines = [
            json.dumps({"connection": place, "frames": [frame.hex() for frame in frames]})
            for place, frames in self._last
        ]
        path.write_text("\n".join(lines) + "\n")

    def close(self) -> None:
        """Go away."""
        self.raw.close()
        self._context.destroy(linger=0)

    def _new(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.rcvhwm = 100
        if self._chance.random() < 0.02:
            socket.routing_id = self._chance.randbytes(5).replace(b"\0", b"x")
        socket.connect(self._gateway.tcp if self._chance.random() < 0.7 else self._gateway.ipc)
        if self._chance.random() < 0.9:
            socket.send(self.messages.hello())
        return socket

    def _send(self, place: int, frames: list[bytes]) -> None:
        try:
            self._places[place].send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            self.unsent += 1

    def _hear(self, payload: bytes) -> None:
        reply = msgpack.unpackb(payload)
        self.heard[reply.get("code", reply["type"])] += 1
        if reply["type"] == "OPENED":
            self._sessions = [*self._sessions[-20:], reply["session"], reply["ticket"]]


class _Good:
    """The well-behaved peer's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def report(self) -> dict[str, Any]:
        """Give what it has seen since the last time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("report\n")
        self._process.stdin.flush()
        report: dict[str, Any] = json.loads(self._process.stdout.readline())
        return report


@contextlib.contextmanager
def _good_peer(endpoint: str) -> Iterator[_Good]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.hostile.peer", endpoint, str(QUESTIONS_PER_S)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield _Good(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(LIMIT_S)


def replay(path: Path, gateway: Served) -> None:
    """Say to a gateway what a file of the corpus holds, each connection greeted first."""
    sockets: dict[int, zmq.Socket[bytes]] = {}
    with zmq.Context() as context, contextlib.ExitStack() as ends:
        for line in path.read_text().splitlines():
            said = json.loads(line)
            if said["connection"] not in sockets:
                socket = ends.enter_context(context.socket(zmq.DEALER))
                socket.linger = 1000
                socket.connect(gateway.ipc)
                socket.send(msgpack.packb({"v": 1, "type": "HELLO", "versions": [1]}))
                sockets[said["connection"]] = socket
            frames = [bytes.fromhex(frame) for frame in said["frames"]]
            sockets[said["connection"]].send_multipart(frames)
        for socket in sockets.values():
            _sees_pong(socket)


def _sees_pong(socket: zmq.Socket[bytes]) -> None:
    socket.send(PING)
    heard = ""
    while heard != "PONG":
        assert socket.poll(LIMIT_S * 1000), "the gateway is silent"
        heard = msgpack.unpackb(socket.recv_multipart()[-1])["type"]
