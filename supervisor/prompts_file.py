"""Files of prompts and files of results: bytes in, records out; outcomes in, lines out.

Owns the form of both files. Knows no Supervisor, no thread and no terminal.

Prompts are text (one a line) or JSONL (objects that hold the prompt in one field). Results are
JSONL: the fields that came with the prompt, then ours (:data:`OURS`). An input field that has the
name of one of ours is kept under that name with ``input_`` before it (again, until it is free).

Invariants: every line that is not blank gives exactly one record, in order, whatever it holds; a
line that cannot be read gives a record with an error. Memory is bounded by ``MAX_LINE_BYTES``.
"""

from __future__ import annotations

import codecs
import collections
import dataclasses
import enum
import json
import os
import select
import stat
from pathlib import Path
from typing import Any, NoReturn, Protocol

from soloist.protocol.codec import Prompt
from soloist.protocol.content import Map
from soloist.protocol.errors import InvalidPrompt, PayloadTooLarge, SoloistError, to_info

MAX_LINE_BYTES = 256 * 1024 * 1024
"""Longest input line that is read as a whole; a longer one is a failed line."""
READ_BYTES = 256 * 1024
"""Bytes asked of the input at once."""
OURS = (
    "index",
    "prompt",
    "text",
    "num_turns",
    "duration_s",
    "usage",
    "cost_usd",
    "worker",
    "error",
)
"""Names of the fields that a result line adds to those it carries through."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, default=repr)


class Format(enum.Enum):
    """How a file holds its prompts."""

    AUTO = "auto"
    TEXT = "text"
    JSONL = "jsonl"


class Answer(Protocol):
    """What a result line is made of; ``soloist.Result`` has it."""

    @property
    def text(self) -> str:
        """The answer's text."""

    @property
    def num_turns(self) -> int:
        """Turns of the conversation so far."""

    @property
    def duration_s(self) -> float:
        """Seconds that the turn took."""

    @property
    def usage(self) -> Map | None:
        """What the agent says it used up."""

    @property
    def cost_usd(self) -> float | None:
        """What the agent says it cost."""

    @property
    def worker(self) -> int:
        """Number of the worker that answered."""


class OutputError(Exception):
    """The results cannot be written any more.

    Attributes:
        is_closed: the reader at the other end of the pipe has gone.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason.strerror or str(reason))
        self.is_closed = isinstance(reason, BrokenPipeError)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One line of input: a prompt, or the reason why there is none.

    Attributes:
        index: the line's position among those that are not blank, from 0.
        carried: fields of the line besides the prompt.
        size_bytes: length of the line.
    """

    index: int
    prompt: Prompt | None
    carried: Map
    size_bytes: int
    error: SoloistError | None = None


class PromptParser:
    """Cuts the bytes of a file into records; each line is parsed when it is taken.

    Args:
        form: ``AUTO`` takes JSONL if the first line that is not blank is a JSON object.
        field: where a line of JSONL holds its prompt.
        max_line_bytes: longest line that is read as a whole.
    """

    def __init__(
        self, form: Format, *, field: str = "prompt", max_line_bytes: int = MAX_LINE_BYTES
    ) -> None:
        self._form = form
        self._field = field
        self._max_line_bytes = max_line_bytes
        self._lines: collections.deque[bytes] = collections.deque()
        self._open_line = bytearray()
        self._line_number = 0
        self._index = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._extend(end)
            self._close_line()
        self._extend(rest)

    def end(self) -> None:
        """Take the end of the file: what came after its last newline is a line too."""
        self._close_line()

    def take(self) -> Record | None:
        """Return the next record, ``None`` if there is no whole line any more."""
        while self._lines:
            line = self._lines.popleft()
            self._line_number += 1
            if self._line_number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                record = self._parse(line.removesuffix(b"\r"))
                self._index += 1
                return record
        return None

    def _extend(self, piece: bytes) -> None:
        # One byte over the limit is kept: it tells that the line is too long.
        room = self._max_line_bytes + 1 - len(self._open_line)
        self._open_line += piece[:room]

    def _close_line(self) -> None:
        self._lines.append(bytes(self._open_line))
        self._open_line.clear()

    def _parse(self, line: bytes) -> Record:
        if len(line) > self._max_line_bytes:
            message = f"line {self._line_number} is longer than {self._max_line_bytes} bytes"
            return self._failed(line, PayloadTooLarge(message, started=False))
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            return self._malformed(line, f"is not UTF-8 (byte {error.start})")
        if self._form is Format.AUTO:
            self._form = Format.JSONL if _is_json_object(text) else Format.TEXT
        if self._form is Format.TEXT:
            return Record(self._index, text, {}, len(line))
        return self._parse_json(line, text)

    def _parse_json(self, line: bytes, text: str) -> Record:
        try:
            fields = strict_json(text)
        except (ValueError, RecursionError) as error:
            return self._malformed(line, f"is not JSON: {error}")
        if not isinstance(fields, dict):
            return self._malformed(line, f"is not a JSON object with a field {self._field!r}")
        if self._field not in fields:
            return self._malformed(line, f"has no field {self._field!r}", fields)
        prompt = fields.pop(self._field)
        if not _is_prompt(prompt):
            message = f"has a {self._field!r} that is neither text nor a list of content blocks"
            return self._malformed(line, message, fields)
        return Record(self._index, prompt, fields, len(line))

    def _malformed(self, line: bytes, what: str, carried: Map | None = None) -> Record:
        return self._failed(line, InvalidPrompt(f"line {self._line_number} {what}"), carried)

    def _failed(self, line: bytes, error: SoloistError, carried: Map | None = None) -> Record:
        return Record(self._index, None, carried or {}, len(line), error)


def strict_json(text: str) -> Any:
    """Parse JSON as its standard has it, without ``NaN`` and ``Infinity``.

    Raises:
        ValueError: ``text`` is not JSON.
    """
    return json.loads(text, parse_constant=_refuse_constant)


def answer_line(record: Record, answer: Answer, *, with_prompt: bool) -> bytes:
    """Encode the line of a prompt that was answered."""
    row = _row(record, with_prompt=with_prompt)
    row["text"] = answer.text
    row["num_turns"] = answer.num_turns
    row["duration_s"] = round(answer.duration_s, 6)
    row["usage"] = answer.usage
    row["cost_usd"] = answer.cost_usd
    row["worker"] = answer.worker
    return _encode(row)


def error_line(record: Record, error: BaseException, *, with_prompt: bool) -> bytes:
    """Encode the line of a prompt that failed, or that could not be read at all."""
    info = to_info(error)
    row = _row(record, with_prompt=with_prompt)
    row["error"] = {
        "code": info.code,
        "message": info.message,
        "retryable": info.retryable,
        "started": info.started,
    }
    return _encode(row)


def json_line(value: Map) -> bytes:
    """Encode one line of JSONL."""
    return _encode(value)


def read_some(descriptor: int, size: int = READ_BYTES) -> bytes:
    """Return the next bytes of the input, ``b""`` at its end; waits until there are some."""
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:  # somebody we share the descriptor with made it non-blocking
            select.select([descriptor], [], [])


def write_all(descriptor: int, line: bytes) -> None:
    """Write ``line``: in one call, so that a killed run leaves whole lines.

    Raises:
        OutputError: the disk is full, the reader has gone, ...
    """
    rest = memoryview(line)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError as error:
            raise OutputError(error) from error


def count_lines(descriptor: int) -> int | None:
    """Count the lines that are left in a regular file, without moving in it.

    Returns:
        Blank lines count too; ``None`` if ``descriptor`` is no regular file.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    offset = os.lseek(descriptor, 0, os.SEEK_CUR)
    count, last = 0, b"\n"
    while chunk := os.pread(descriptor, READ_BYTES, offset):
        count += chunk.count(b"\n")
        offset += len(chunk)
        last = chunk
    return count if last.endswith(b"\n") else count + 1


def open_results(path: Path, *, force: bool) -> int:
    """Open the file for results without touching what it holds.

    Raises:
        FileExistsError: it holds something already, and ``force`` is not set.
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size and not force:
        os.close(descriptor)
        raise FileExistsError(f"{path} holds results already")
    return descriptor


def close_results(descriptor: int) -> None:
    """Close the file for results.

    Raises:
        OutputError: what was written did not reach it (a quota, a network file system).
    """
    try:
        os.close(descriptor)
    except OSError as error:
        raise OutputError(error) from error


def empty_results(descriptor: int) -> None:
    """Throw away what a regular file for results held before."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.ftruncate(descriptor, 0)


def _row(record: Record, *, with_prompt: bool) -> Map:
    row = _without_clashes(record.carried)
    row["index"] = record.index
    if with_prompt and record.prompt is not None:
        row["prompt"] = record.prompt
    return row


def _without_clashes(fields: Map) -> Map:
    row = {}
    for name, value in fields.items():
        free = name
        while free in OURS or (free != name and free in fields):
            free = f"input_{free}"
        row[free] = value
    return row


def _encode(row: Map) -> bytes:
    try:
        return _ENCODER.encode(row).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        return json.dumps(row, default=repr).encode() + b"\n"


def _is_prompt(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(block, dict) for block in value)
    return isinstance(value, str)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(strict_json(text), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
