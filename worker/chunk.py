"""A chunk of prompts through a sync callable, at a few hundred nanoseconds each.

Each prompt is claimed by itself and its answer is safe before the next is claimed, as with single
leases: that is why the rest of a chunk can be taken back at any time, and why a crash costs the
prompt that was running and no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgpack

from soloist.protocol import codec
from soloist.protocol.errors import to_info
from soloist.protocol.ledger import REVISION
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
    For the same reason an answer is put into the page right here.
    """
    page, claims = desk.page(chunk), desk.claims
    memory, head, durations, control = page.memory, page.head, page.durations, page.control
    pack, clock, max_bytes = msgpack.Packer().pack, time.monotonic, desk.max_bytes
    number, count, position = chunk.number, page.count, page.position
    before = clock()
    send_at = before + SEND_S
    prompts = iter(chunk.prompts)
    for prompt in prompts:
        text = aside = None
        try:
            text = call(prompt)
            data = pack(text if type(text) is str else function.text_of(text))
        except BaseException as error:  # noqa: BLE001 - sys.exit() in user code is its failure
            now = clock()
            aside = _outcome(number + count, now - before, text, error)
        else:
            now = clock()
            end = position + len(data)
            if end <= page.end and len(data) <= max_bytes:
                memory[position:end] = data
                durations[count] = now - before
                position = end
                count += 1
                head[1] = count  # now it is safe, and the next one is claimed
            else:
                aside = Answer(number + count, now - before, text, 1, b"")
        before = now
        if aside is not None or now >= send_at or control[REVISION] != claims.revision:
            page.count, page.position = count, position
            _pause(desk, page, number, aside, is_due=now >= send_at)
            if now >= send_at:
                send_at = now + SEND_S
            if not _go_on(desk, page, chunk, prompts):
                break
            count, position = page.count, page.position
    else:
        page.count, page.position = count, position
    _send(desk, page, number)
    desk.flush()


def _pause(
    desk: Desk, page: Page, number: int, aside: Answer | Failure | None, *, is_due: bool
) -> None:
    """Send what there is: it is due, or before one that failed or has no place in the page."""
    if aside is not None or is_due:
        _send(desk, page, number)
    if aside is not None:
        desk.reply(aside)
        page.skip()
    if is_due:
        desk.flush()


def _go_on(desk: Desk, page: Page, chunk: Chunk, prompts: Iterator[str]) -> bool:
    """Claim the next prompt, or one further on; whether there is one."""
    lease = chunk.number + page.count
    last = chunk.number + len(chunk.prompts) - 1
    if page.control[REVISION] == desk.claims.revision or lease > last:
        return True
    claimed = desk.claims.claim_next(lease, last, page.control)
    if claimed > lease:  # those between were taken back just now
        _send(desk, page, chunk.number)
        page.skip(claimed - lease)
        for _ in range(claimed - lease):
            next(prompts)
    return claimed > 0


def _outcome(lease: int, duration_s: float, text: object, error: BaseException) -> Answer | Failure:
    """What came of a prompt that has no encoded answer."""
    if type(text) is str:  # no UTF-8; when it is sent it is refused
        return Answer(lease, duration_s, text, 1, b"")
    return Failure(lease, duration_s, to_info(error))


def _send(desk: Desk, page: Page, number: int) -> None:
    first, durations, texts = page.take()
    if durations:
        desk.put(codec.encode_answers(number + first, durations, texts))
