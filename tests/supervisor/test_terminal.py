"""What a person at a terminal sees."""

import io

import pytest
from rich.console import Console

from soloist.protocol.content import (
    AssistantMessage,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    UserMessage,
)
from soloist.supervisor import terminal
from soloist.supervisor.map_run import Tally
from soloist.supervisor.terminal import AnswerPrinter, AnswerText, MapReport


def piece(text, parent=None):
    event = {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": text},
    }
    return StreamEvent(uuid="", session_id="", event=event, parent_tool_use_id=parent)


def start():
    return StreamEvent(uuid="", session_id="", event={"type": "message_start"})


def said(*blocks, parent=None, error=None):
    content = [TextBlock(block) if isinstance(block, str) else block for block in blocks]
    return AssistantMessage(content=content, model="m", parent_tool_use_id=parent, error=error)


def result(text, *, error=False):
    return ResultMessage(
        subtype="success",
        duration_ms=0,
        duration_api_ms=0,
        is_error=error,
        num_turns=1,
        session_id="",
        result=text,
    )


TOOL = ToolUseBlock(id="t", name="Bash", input={"command": "ls"})


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        ([said("hello"), result("hello")], "hello"),
        ([piece("he"), piece("llo"), said("hello"), result("hello")], "hello"),
        ([piece("he"), said("hello"), result("hello")], "hello"),
        ([result("only the result has it")], "only the result has it"),
        ([SystemMessage("init", {}), said(""), result("")], ""),
        ([said("one "), said("piece")], "one piece"),
        ([said("look:", TOOL), UserMessage("out"), said("done")], "look:\ndone"),
        ([said("look:\n", TOOL), UserMessage("out"), said("done")], "look:\ndone"),
        (
            [
                start(),
                piece("a"),
                said("a"),
                said(TOOL),
                UserMessage(""),
                start(),
                piece("b"),
                said("b"),
            ],
            "a\nb",
        ),
        ([piece("a"), piece("b"), said("a"), said("b"), result("b")], "ab"),
        ([piece("broken str"), said("another answer")], "broken str\nanother answer"),
        ([piece("broken str"), start(), piece("whole"), said("whole")], "broken str\nwhole"),
        ([piece("sub", "t"), said("sub", parent="t"), said("main")], "main"),
        ([said(ThinkingBlock("hm", "s")), said("x")], "x"),
        (
            [said("API Error: overloaded", error="server_error"), result("API Error", error=True)],
            "",
        ),
        ([StreamEvent("", "", {"type": "content_block_delta", "delta": None}), said("x")], "x"),
    ],
)
def test_text_is_shown_once_however_it_arrives(messages, shown):
    pieces = []
    text = AnswerText(pieces.append)
    for message in messages:
        text.take(message)

    assert "".join(pieces) == shown


def test_pieces_are_shown_as_they_arrive():
    pieces = []
    text = AnswerText(pieces.append)

    text.take(piece("he"))
    assert pieces == ["he"]
    text.take(piece("llo"))
    assert pieces == ["he", "llo"]


def test_an_answer_ends_with_one_newline():
    for content in ("x", "x\n"):
        pieces = []
        printer = AnswerPrinter(pieces.append)
        printer.show(said(content))
        printer.end()

        assert "".join(pieces) == "x\n"


def test_tool_calls_are_shown_in_one_line_to_a_terminal_only(monkeypatch, capsys):
    pieces = []
    AnswerPrinter(pieces.append).show(said(TOOL))
    assert capsys.readouterr().err == ""

    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(terminal, "error_console", lambda: Console(file=screen, width=20))
    AnswerPrinter(pieces.append).show(said(TOOL))

    assert screen.getvalue() == '[Bash] {"command": …\n'
    assert pieces == []


def test_a_report_without_words_is_silent(capsys):
    with MapReport(has_bar=False, has_words=False, total=None) as report:
        report.follow(Tally(answered=3))
        report.say("nobody hears")
        report.summarize(Tally(answered=3), "-")

    assert capsys.readouterr() == ("", "")


def test_the_summary_counts_answers_errors_and_money(capsys):
    with MapReport(has_bar=False, has_words=True, total=None) as report:
        report.summarize(Tally(answered=1200, failed=2, dropped=5, cost_usd=1.5), "out.jsonl")

    summary = capsys.readouterr().err
    assert summary.startswith("1,202 prompts: 1,200 answered, 2 failed, 5 not begun, ")
    assert summary.endswith(", $1.5000 -> out.jsonl\n")
