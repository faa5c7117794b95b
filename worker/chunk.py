"""A chunk of prompts through a sync callable, at a few hundred nanoseconds each.

Each prompt is claimed by itself and its answer is safe before the next is claimed, as with single
leases: that is why the rest of a chunk can be taken back at any time, and why a crash costs the
prompt that was running and no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import msgpack

from soloist.protocol import codec
from soloist.protocol.errors import to_info
from soloist.protocol.messages import Answer, Chunk, Failure
from soloist.worker.clients import function
from soloist.worker.ledger import Claims, Page

SEND_S = 0.002
"""How long answers of a chunk that goes on may be held back."""


class Desk(Protocol):
    """What a chunk needs of its worker."""

    claims: Claims
    max_bytes: int

    def page(self, chunk: Chunk) -> Page:
        """Where a chunk's answers are made safe."""

    def put(self, payload: bytes) -> None:
        """Hold an encoded message back, but not for long."""

    def flush(self) -> None:
        """Send what is held back."""

    def reply(self, outcome: Answer | Failure) -> None:
        """Make one outcome safe, then send it."""


def run(desk: Desk, chunk: Chunk, call: Callable[[Any], Any]) -> None:
    """Run what is not taken back of a chunk, whose first lease has been claimed.

    A duration counts from the answer before: to look at the clock twice costs as much as a call.
    """
    page = desk.page(chunk)
    pack = msgpack.Packer().pack
    clock, claim_up_to, put = time.monotonic, desk.claims.claim_up_to, page.put
    max_bytes = desk.max_bytes
    number = lease = chunk.number
    last = number + len(chunk.prompts) - 1
    sent = before = clock()
    while lease:
        text = None
        try:
            text = call(chunk.prompts[lease - number])
            data = pack(text if type(text) is str else function.text_of(text))
        except BaseException as error:  # noqa: BLE001 - sys.exit() in user code is its failure
            now = clock()
            _set_aside(desk, page, number, _outcome(lease, now - before, text, error))
        else:
            now = clock()
            if len(data) > max_bytes or not put(data, now - before):
                _set_aside(desk, page, number, Answer(lease, now - before, text, 1, b""))
        if now - sent >= SEND_S:
            _send(desk, page, number)
            desk.flush()
            sent = now
        before = now
        claimed = claim_up_to(last)
        if claimed > lease + 1:  # those between were taken back just now
            _send(desk, page, number)
            page.skip(claimed - lease - 1)
        lease = claimed
    _send(desk, page, number)
    desk.flush()


def _outcome(lease: int, duration_s: float, text: object, error: BaseException) -> Answer | Failure:
    """What came of a prompt that has no encoded answer."""
    if type(text) is str:  # no UTF-8; when it is sent it is refused
        return Answer(lease, duration_s, text, 1, b"")
    return Failure(lease, duration_s, to_info(error))


def _set_aside(desk: Desk, page: Page, number: int, outcome: Answer | Failure) -> None:
    """Reply to one lease by itself: it failed, or its answer has no place in the page."""
    _send(desk, page, number)
    desk.reply(outcome)
    page.skip()


def _send(desk: Desk, page: Page, number: int) -> None:
    first, durations, texts = page.take()
    if durations:
        desk.put(codec.encode_answers(number + first, durations, texts))
