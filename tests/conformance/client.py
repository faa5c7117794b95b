"""What is asked of a client program, and judged: SPEC.md, section 3.3.

A check is a function of the program and the gateway that it is played before; it raises
AssertionError if the program is at fault.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from soloist.protocol import public
from tests.conformance.agents import LONG_S
from tests.conformance.program import Line, Program
from tests.conformance.scripted import MESSAGES, ScriptedGateway
from tests.conformance.serving import HEARTBEAT_S, NARROW_CHARS, Serving

HARD_PROMPTS = [
    "",
    "plain",
    'quote " and \\ and / and\nnew line\tand \x01',
    "é ∀ \u2028 😀",
    "x" * 70_000,
]
_AT_ONCE = 4
"""Scenarios that are played at the same time; most of them wait most of the time."""

Check: TypeAlias = Callable[[Program, Serving], None]


class Verdict(NamedTuple):
    """What came of one check; ``fault`` is empty if it holds."""

    check: str
    fault: str


def judge(program: Program, gateway: Serving, names: Iterable[str] = ()) -> list[Verdict]:
    """Do the checks of these names, or all; in their order."""
    chosen = list(names) or list(CHECKS)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        faults = threads.map(partial(_fault, program, gateway), chosen)
        return [Verdict(name, fault) for name, fault in zip(chosen, faults, strict=True)]


def _fault(program: Program, gateway: Serving, name: str) -> str:
    try:
        CHECKS[name](program, gateway)
    except AssertionError as error:
        return str(error) or repr(error)
    return ""


def answers(lines: list[Line]) -> dict[int, str]:
    """The texts of a ``map`` by their index.

    Raises:
        AssertionError: an index came twice, or with an error.
    """
    assert all(line.keys() == {"index", "text"} for line in lines), lines[:3]
    found = {line["index"]: line["text"] for line in lines}
    assert len(found) == len(lines), "an index has two outcomes"
    return found


def opened(line: Line) -> Line:
    """The ``opened`` of a line, checked."""
    [(key, fields)] = line.items()
    assert key == "opened", line
    assert fields.keys() == {"session", "ticket", "endpoint", "incarnation"}, line
    assert all(len(bytes.fromhex(fields[key])) == public.ID_BYTES for key in ("session", "ticket"))
    return dict(fields)


def _name() -> str:
    return f"conversation-{uuid.uuid4()}"


# -- before a gateway ------------------------------------------------------------------------------


def _map(program: Program, _: Serving) -> None:
    prompts = [*HARD_PROMPTS, *(f"prompt {i}" for i in range(200))]
    for window in (1, 8):
        found = answers(program.play("map", prompts=prompts, window=window))
        assert found == dict(enumerate(prompts)), f"wrong answers at window {window}"
    assert program.play("map", prompts=[], window=1) == []


def _map_with_errors(program: Program, _: Serving) -> None:
    [line] = program.play("map", prompts=["hello"], window=1, client="nobody")
    assert line["index"] == 0, line
    assert line["error"].keys() == {"code", "retryable", "started"}, line
    assert line["error"]["retryable"] is False, line
    assert line["error"]["started"] is False, line


def _heartbeats(program: Program, _: Serving) -> None:
    assert LONG_S > 3 * HEARTBEAT_S
    lines = program.play("map", prompts=["long wait"], window=1, client="patient")
    assert answers(lines) == {0: "long wait"}, "without a PING the connection counts as gone"


def _shared(program: Program, gateway: Serving) -> None:
    name, count = _name(), 20
    tickets = {_conversation(program, count, is_streamed=False, name=name)["ticket"]}
    first = _conversation(program, count, is_streamed=True, name=name, before=count)
    tickets.add(first["ticket"])
    assert (first["endpoint"] == "") == (program.endpoint == gateway.tcp)
    # By the ticket another owner gets into the same conversation.
    is_secured = bool(program.keys)
    other = Program(
        program.command, program.endpoint, gateway.keys["bob" if is_secured else "nobody"]
    )
    _conversation(other, count, is_streamed=True, ticket=tickets.pop(), before=2 * count)


def _conversation(
    program: Program, count: int, *, is_streamed: bool, before: int = 0, **where: str
) -> Line:
    """Have ``count`` turns after ``before`` others, with nobody else there."""
    first, *lines = program.play(
        "shared", count=count, label="x", stream=is_streamed, client="patient", **where
    )
    pieces = 7 if is_streamed else 0
    assert lines == [
        {
            "index": index,
            "text": f"x-{index}",
            "sequence": before + index + 1,
            "num_turns": before + index + 1,
            "pieces": pieces,
        }
        for index in range(count)
    ], lines
    return opened(first)


def _closed_ticket(program: Program, _: Serving) -> None:
    [line] = program.play("shared", ticket=uuid.uuid4().hex, count=1, label="x", stream=False)
    assert line.keys() == {"error"}, line
    assert line["error"]["code"] == "session_closed", line


def _cancel(program: Program, _: Serving) -> None:
    first, second = program.play(
        "cancel", name=_name(), prompt="slow answer", then="and now?", client="patient"
    )
    assert first["error"]["code"] == "request_cancelled", first
    assert second == {"text": "and now?"}, second


def _stream(program: Program, _: Serving) -> None:
    prompt = "x" * NARROW_CHARS
    for client in ("patient", "narrow"):
        *messages, outcome = program.play("stream", prompt=prompt, client=client)
        assert outcome == {"text": prompt}, outcome
        assert [line["seq"] for line in messages] == list(range(1, len(messages) + 1)), messages
        assert [line["type"] for line in messages[-2:]] == ["AssistantMessage", "ResultMessage"]
        assert {line["type"] for line in messages[:-2]} == {"StreamEvent"}, messages


def _slow(program: Program, _: Serving) -> None:
    [outcome] = program.play("slow", prompt="x" * NARROW_CHARS, client="narrow")
    assert outcome == {"error": {"code": "slow_reader", "retryable": False, "started": None}}
    assert program.play("slow", prompt="short", client="narrow") == [{"text": "short"}]


def _status(program: Program, _: Serving) -> None:
    [line] = program.play("status")
    assert line["status"].keys() >= {"peers", "requests", "kept", "clients"}, line
    assert line["status"]["clients"].keys() == {"echo", "patient", "narrow", "logged"}, line
    assert line["status"]["peers"] >= 1, line


def _resend(program: Program, gateway: Serving) -> None:
    before = gateway.turns()
    *outcomes, last = program.play("resend", prompt="once", copies=200, client="logged")
    assert last == {"outcomes": len(outcomes)}, last
    assert 1 <= len(outcomes) <= 200, last
    assert all(outcome == {"text": "once"} for outcome in outcomes), outcomes
    assert gateway.turns() == before + 1, "it ran twice"


# -- before a gateway that fails -------------------------------------------------------------------


def _forgotten(program: Program, _: Serving) -> None:
    with _scripted(forget_at=(5, 9, 60)) as gateway:
        _map_whole(program, gateway)
    _assert_sent_again_right(gateway)
    assert len(gateway.of_type(public.Hello)) >= 3, "HELLO is said again after hello_required"


def _silence(program: Program, _: Serving) -> None:
    with _scripted(silent_at=(7,)) as gateway:
        _map_whole(program, gateway)
    _assert_sent_again_right(gateway)
    assert len(gateway.peers_that_said(public.Hello)) >= 2, "a new socket is a new connection"
    assert len({hello.secret for hello in gateway.of_type(public.Hello)}) == 1
    assert gateway.of_type(public.Ping), "it has to ask before it gives a connection up"


def _forgotten_stream(program: Program, _: Serving) -> None:
    with _scripted() as gateway:
        lines = Program(program.command, gateway.endpoint).play("stream", prompt="hello")
    _assert_sent_again_right(gateway)
    messages = [{"seq": i, "type": "SystemMessage"} for i in range(1, len(MESSAGES) + 1)]
    assert lines == [*messages, {"text": "hello"}], lines


@contextlib.contextmanager
def _scripted(**faults: tuple[int, ...]) -> Iterator[ScriptedGateway]:
    with (
        tempfile.TemporaryDirectory(prefix="soloist-") as folder,
        ScriptedGateway(f"ipc://{folder}/gateway", **faults) as gateway,
    ):
        yield gateway
        assert set(gateway.ran.values()) == {1}, "a prompt ran twice"


def _map_whole(program: Program, gateway: ScriptedGateway) -> None:
    prompts = [f"prompt {i}" for i in range(100)]
    lines = Program(program.command, gateway.endpoint).play("map", prompts=prompts, window=8)
    assert answers(lines) == dict(enumerate(prompts)), "something was lost"


def _assert_sent_again_right(gateway: ScriptedGateway) -> None:
    seen: set[bytes] = set()
    again = 0
    for query in gateway.of_type(public.Query):
        expected = gateway.epoch if query.id in seen else None
        assert query.resent == expected, f"resent is {query.resent!r}, not {expected!r}"
        again += query.id in seen
        seen.add(query.id)
    assert again >= 1, "what had no outcome is sent again"


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "map": _map,
        "map, with errors": _map_with_errors,
        "map, with heartbeats": _heartbeats,
        "shared": _shared,
        "shared, with a ticket of nothing": _closed_ticket,
        "cancel": _cancel,
        "stream": _stream,
        "slow": _slow,
        "status": _status,
        "resend": _resend,
        "map, when the gateway forgets the connection": _forgotten,
        "map, when the connection falls silent": _silence,
        "stream, when the gateway forgets the connection": _forgotten_stream,
    }
)
