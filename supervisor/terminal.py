"""What a person at a terminal sees: the progress of a map, and one answer as it comes.

Owns the words and colours on standard error, and the order of an answer's text on standard
output. Decides nothing about the run. Without a terminal it is silent unless told otherwise.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from soloist.protocol.content import (
    AssistantMessage,
    Map,
    Message,
    ResultMessage,
    StreamEvent,
    TextBlock,
    ToolUseBlock,
    UserMessage,
)
from soloist.supervisor.map_run import Tally

_RATE_OVER_S = 300.0
_UNSEEN = re.compile(r"[^\n\t -\x7e\xa0-\U0010ffff]")
"""Control characters: what a worker prints must not steer the terminal."""
_STYLES = {logging.INFO: "dim", logging.WARNING: "yellow"}


def error_console() -> Console:
    """Return the console on standard error."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def log_shown(console: Console, *, is_wanted: bool) -> Iterator[None]:
    """Show the library's log meanwhile, with what workers print, unless nobody wants it."""
    if not is_wanted:
        yield
        return
    logger = logging.getLogger("soloist")
    handler, level = _ConsoleHandler(console), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def show_status(status: Map) -> None:
    """Print a gateway's status, as SPEC.md, section 2.11, has it, on standard output."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for name in ("peers", "requests", "kept"):
        console.print(f"{name} {status[name]:,}")
    columns = ("size", "queued", "running", "answered", "failed", "cancelled", "restarts")
    clients = Table(box=None, pad_edge=False)
    clients.add_column("client")
    for column in columns:
        clients.add_column(column, justify="right")
    for name, stats in status["clients"].items():
        clients.add_row(Text(name), *(f"{stats[column]:,}" for column in columns))
    console.print(clients)
    found = [s for stats in status["clients"].values() for s in stats.get("sessions", ())]
    if not found:
        return
    sessions = Table("conversation", "state", box=None, pad_edge=False)
    for column in ("queued", "answered", "incarnation"):
        sessions.add_column(column, justify="right")
    for session in found:
        numbers = (f"{session[name]:,}" for name in ("queued", "answered", "incarnation"))
        sessions.add_row(Text(session["name"] or "(one peer's)"), session["state"], *numbers)
    console.print(sessions)


class _ConsoleHandler(logging.Handler):
    """Writes each record as a line, above the bar if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            words = _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], self.format(record))
            self._console.print(Text(words, style=_STYLES.get(record.levelno, "red")))
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)


class MapReport:
    """Progress bar while a map runs, one line at its end.

    Args:
        has_bar: whether to draw the bar.
        has_words: whether to say anything else.
        total: expected number of prompts, ``None`` if unknown.
    """

    def __init__(self, *, has_bar: bool, has_words: bool, total: int | None) -> None:
        self._console = error_console()
        self._has_words = has_words
        self._began = time.monotonic()
        self._progress = _TallyProgress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _RateColumn(),
            _ErrorsColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            disable=not has_bar,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            speed_estimate_period=_RATE_OVER_S,
        )
        self._progress.add_task("", total=total, failed=0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def log_shown(self, *, is_wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Show the library's log meanwhile, if it is wanted."""
        return log_shown(self._console, is_wanted=is_wanted)

    def follow(self, tally: Tally) -> None:
        """Show how far the run with this tally is, from now on."""
        self._progress.tally = tally

    def say(self, words: str) -> None:
        """Tell the person something, above the bar."""
        if self._has_words:
            self._console.print(words)

    def summarize(self, tally: Tally, target: str) -> None:
        """Say in one line how the run went."""
        seconds = time.monotonic() - self._began
        done = tally.answered + tally.failed
        parts = [f"{done:,} prompts: {tally.answered:,} answered, {tally.failed:,} failed"]
        if tally.dropped:
            parts.append(f"{tally.dropped:,} not begun")
        parts.append(f"{seconds:.1f} s ({done / max(seconds, 1e-9):,.1f}/s)")
        if tally.cost_usd:
            parts.append(f"${tally.cost_usd:,.4f}")
        self.say(", ".join(parts) + (f" -> {target}" if target != "-" else ""))


class _TallyProgress(Progress):
    """Looks at the run's tally whenever it is drawn, so that the run need not report a line."""

    tally: Tally | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.tally is not None:
            done = self.tally.answered + self.tally.failed
            self.update(self.task_ids[0], completed=done, failed=self.tally.failed)
        yield from super().get_renderables()


class _RateColumn(ProgressColumn):
    """Prompts per second, over the last minutes."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("-/s" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class _ErrorsColumn(ProgressColumn):
    """Failed prompts; red as soon as there is one."""

    def render(self, task: Task) -> Text:
        failed = task.fields["failed"]
        return Text(f"{failed:,} failed", style="bold red" if failed else "dim")


class AnswerText:
    """Puts an answer's text together from its messages, each part once.

    With streaming on, an agent sends its text twice: in pieces and then whole. What the pieces
    have shown already is left out of the whole. What sub-agents say is not the answer, nor is the
    text of an error, which is reported as such.

    Args:
        write: takes the next piece of text.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._unconfirmed = ""  # shown from pieces, not yet seen in a whole message
        self._last = ""
        self._is_apart = False  # a tool call or another message lies in between

    def take(self, message: Message) -> None:
        """Write what is new in ``message``."""
        match message:
            case StreamEvent(parent_tool_use_id=None, event=event):
                self._take_event(event)
            case AssistantMessage(parent_tool_use_id=None, error=None, content=blocks):
                text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
                self._take_whole(text)
                self._is_apart |= any(isinstance(block, ToolUseBlock) for block in blocks)
            case UserMessage():
                self._is_apart = True
            case ResultMessage(is_error=False, result=str(text)) if not self._last:
                self._put(text)
            case _:
                pass

    def end_line(self) -> None:
        """Write a newline, unless the last thing written was one."""
        if self._last not in {"", "\n"}:
            self._last = "\n"
            self._write("\n")

    def _take_event(self, event: dict[str, Any]) -> None:
        if event.get("type") == "message_start":
            self._is_apart = True
            self._unconfirmed = ""
            return
        delta = event.get("delta")
        if event.get("type") != "content_block_delta" or not isinstance(delta, dict):
            return
        if delta.get("type") == "text_delta" and isinstance(delta.get("text"), str):
            self._put(delta["text"])
            self._unconfirmed += delta["text"]

    def _take_whole(self, text: str) -> None:
        if self._unconfirmed.startswith(text):
            self._unconfirmed = self._unconfirmed.removeprefix(text)
        elif text.startswith(self._unconfirmed):
            self._put(text.removeprefix(self._unconfirmed))
            self._unconfirmed = ""
        else:  # the agent began anew after a broken stream
            self._is_apart = True
            self._unconfirmed = ""
            self._put(text)

    def _put(self, text: str) -> None:
        if not text:
            return
        if self._is_apart:
            self.end_line()
        self._is_apart = False
        self._last = text[-1]
        self._write(text)


class AnswerPrinter:
    """Shows one answer: its text through ``write``, its tool calls to the person.

    Args:
        write: takes the next piece of text.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._text = AnswerText(write)
        self._console = error_console() if sys.stderr.isatty() else None

    def show(self, message: Message) -> None:
        """Show what is new in ``message``."""
        self._text.take(message)
        if self._console is not None and isinstance(message, AssistantMessage):
            for block in message.content:
                if isinstance(block, ToolUseBlock):
                    self._show_tool(self._console, block)

    def end(self) -> None:
        """End the last line."""
        self._text.end_line()

    def _show_tool(self, console: Console, block: ToolUseBlock) -> None:
        call = Text(f"[{block.name}] {json.dumps(block.input, ensure_ascii=False)}", style="dim")
        call.truncate(console.width, overflow="ellipsis")
        if sys.stdout.isatty():
            self._text.end_line()
        console.print(call)
