"""What checking every byte costs, as a multiple of bare msgpack.

Measures one call on what most traffic is made of, an answer of 100 bytes and its two messages:

- run, answer: what passes between a supervisor and its workers, encoded and decoded; decoding
  checks every field;
- query: a foreign caller's, decoded and checked; result: its answer, encoded from parts that stay
  encoded;
- messages: an agent's two message objects turned into bytes, and back.

Against the same bytes through ``msgpack.packb`` and ``unpackb`` of plain tuples and maps. In turns,
thousands of calls each; what is decoded is compared with what was encoded.
"""

from __future__ import annotations

import functools
import timeit
from collections.abc import Callable
from typing import Any

import msgpack

from benchmarks._floors import PROMPT, query
from benchmarks._suite import Effort, Figure, Outcome, check, ratio, take_turns
from soloist.protocol import codec, public, public_codec
from soloist.protocol.content import AssistantMessage, Message, ResultMessage, TextBlock
from soloist.protocol.messages import Answer, Lease, Run

_ROUTING_ID = b"\0\0\0\0\1"
_MESSAGES: tuple[Message, ...] = (
    AssistantMessage(content=[TextBlock(PROMPT)], model="echo"),
    ResultMessage("success", 0, 0, is_error=False, num_turns=1, session_id="echo", result=PROMPT),
)


def run(effort: Effort) -> Outcome:
    """Measure each kind, and msgpack on the same bytes."""
    pairs = _pairs()
    turns: dict[str, Callable[[], float]] = {}
    for name, (ours, floor) in pairs.items():
        for contestant, call in ((name, ours), (f"{name}, msgpack", floor)):
            turns[contestant] = functools.partial(_us, call, effort.of(20_000, 200))
    taken = take_turns(turns, effort.of(9, 2))
    figures = {name: Figure(name, "us", values) for name, values in taken.items()}
    ratios = [ratio(figures[name], figures[f"{name}, msgpack"]) for name in pairs]
    return Outcome(list(figures.values()), ratios)


def _pairs() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is measured: ours, and msgpack's."""
    encoded = [codec.encode_message(message) for message in _MESSAGES]
    check([codec.decode_message(data) for data in encoded] == [*_MESSAGES], "messages differ")
    order = Run((Lease(1, codec.encode_prompt(PROMPT), False),), 0)  # noqa: FBT003 - a wire record
    answer = Answer(1, 0.001, PROMPT, 1, codec.join(encoded))
    sent = {name: codec.encode(message) for name, message in (("run", order), ("answer", answer))}
    check(codec.decode(sent["run"]) == order, "a run differs")
    check(codec.decode(sent["answer"]) == answer, "an answer differs")
    frames = [_ROUTING_ID, query()]
    _, asked = public_codec.read(frames, public_codec.GATEWAY)
    check(isinstance(asked, public.Query) and asked.prompt == PROMPT, "a query differs")
    result = public.Result(b"i" * 16, 1, 1, PROMPT, 1, 1, None, None, answer.messages)
    said = public_codec.encode(result)
    check(public_codec.decode_reply(said) == result, "a result differs")
    maps = [msgpack.unpackb(data) for data in encoded]
    plain = {name: msgpack.unpackb(data, use_list=False) for name, data in sent.items()}
    plain_result = msgpack.unpackb(said)
    pack, unpack = msgpack.packb, msgpack.unpackb
    return {
        "run encoded": (lambda: codec.encode(order), lambda: pack(plain["run"])),
        "run decoded": (lambda: codec.decode(sent["run"]), lambda: unpack(sent["run"])),
        "answer encoded": (lambda: codec.encode(answer), lambda: pack(plain["answer"])),
        "answer decoded": (lambda: codec.decode(sent["answer"]), lambda: unpack(sent["answer"])),
        "query decoded": (
            lambda: public_codec.read(frames, public_codec.GATEWAY),
            lambda: unpack(frames[1]),
        ),
        "result encoded": (lambda: public_codec.encode(result), lambda: pack(plain_result)),
        "messages encoded": (
            lambda: [codec.encode_message(message) for message in _MESSAGES],
            lambda: [pack(value) for value in maps],
        ),
        "messages decoded": (
            lambda: [codec.decode_message(data) for data in encoded],
            lambda: [unpack(data) for data in encoded],
        ),
    }


def _us(call: Callable[[], Any], count: int) -> float:
    return timeit.timeit(call, number=count) / count * 1e6
