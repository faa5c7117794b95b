"""What workers and their helper print: read on the I/O thread, split into lines, logged.

Owns the two pipes of each process, the limits of what is read and kept, and which logger a line
goes to: ``soloist.worker.<number>`` or ``soloist.helper``, standard output as INFO, standard error
as WARNING.

Invariants: reading never stops while a process lives, for its ``print`` would block; one call of
``read`` takes a bounded number of bytes, shared among all that have something; a line is cut at
``MAX_LINE_BYTES``; what a process wrote before its end is read before anybody is told of the end,
without waiting for the end of file, for its children may hold the other end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
import time
from collections import deque
from typing import Any

from soloist.supervisor.journal import Journal

MAX_LINE_BYTES = 8192
"""A longer line is cut."""
TAIL_LINES = 20
"""So many of the last lines on standard error are kept for errors."""
MAX_TAIL_CHARS = 8192
"""And no more than this."""
_TURN_BYTES = 64 * 1024
_LEAST_BYTES = 4096
"""What one pipe is read at least, however many are readable."""
_MAX_EARLY = 200
"""Lines that are kept before there is somebody who logs them."""
_AT_EXIT_BYTES = 1024 * 1024
"""More than the largest pipe holds; a child that prints for ever must not keep the I/O thread."""


class Pipes:
    """Standard output and standard error of a process that is to be started.

    Attributes:
        writers: the ends that the process gets; this side's copies are closed when it has them.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            pairs = []
            for _ in range(2):
                pair = os.pipe()
                for end in pair:
                    undo.callback(os.close, end)
                os.set_blocking(pair[0], False)
                pairs.append(pair)
            undo.pop_all()
        self.readers = [reader for reader, _ in pairs]
        self.writers = [writer for _, writer in pairs]

    def close_writers(self) -> None:
        """Close the process's ends."""
        while self.writers:
            os.close(self.writers.pop())

    def close(self) -> None:
        """Close what is left."""
        self.close_writers()
        while self.readers:
            os.close(self.readers.pop())


class Lines:
    """Splits bytes into lines of text, none longer than ``MAX_LINE_BYTES`` and a few words."""

    def __init__(self) -> None:
        self._rest = b""
        self._cut = 0

    def feed(self, data: bytes) -> list[str]:
        """Give the lines that ``data`` completes."""
        *ends, rest = data.split(b"\n")
        lines = [self._end(part) for part in ends]
        self._keep(rest)
        return lines

    def end(self) -> list[str]:
        """Give the last line, if it had no end."""
        return [self._end(b"")] if self._rest else []

    def clear(self) -> None:
        """Forget the line that has begun."""
        self._rest, self._cut = b"", 0

    def _keep(self, part: bytes) -> None:
        room = MAX_LINE_BYTES - len(self._rest)
        self._rest += part[:room]
        self._cut += max(0, len(part) - room)

    def _end(self, part: bytes) -> str:
        self._keep(part)
        line, cut = self._rest.removesuffix(b"\r"), self._cut
        self.clear()
        text = line.decode("utf-8", "backslashreplace")
        return f"{text} ... {cut} bytes cut" if cut else text


class _Stream:
    """One of the two, as far as it has been read."""

    def __init__(self, descriptor: int, name: str, level: int, output: Output) -> None:
        self.descriptor = descriptor
        self.level = level
        self.output = output
        self.fields = {**output.fields, "stream": name}
        self.lines = Lines()
        self.early: deque[str] = deque(maxlen=_MAX_EARLY)
        self.is_ended = False

    def read(self, most: int) -> bytes | None:
        """Read what there is; ``None`` if there is nothing now, ``b""`` at the end of file."""
        try:
            return os.read(self.descriptor, most)
        except BlockingIOError:
            return None

    def read_early(self, most: int) -> bytes | None:
        """As ``read``; the lines are kept for later."""
        data = self.read(most)
        if data:
            self.early.extend(self.lines.feed(data))
        return data


class Output:
    """What one incarnation of a process prints.

    Args:
        pipes: read from here on by this object.
        logger: gets the lines.
        fields: attributes of their records.
    """

    def __init__(self, pipes: Pipes, logger: logging.Logger, **fields: Any) -> None:
        self.pipes = pipes
        self.logger = logger
        self.fields = fields
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        stdout, stderr = pipes.readers
        self.streams: tuple[_Stream, ...] = (
            _Stream(stdout, "stdout", logging.INFO, self),
            _Stream(stderr, "stderr", logging.WARNING, self),
        )

    @classmethod
    def of_worker(cls, pipes: Pipes, number: int, incarnation: int, *, is_session: bool) -> Output:
        """A worker's output."""
        logger = _worker_logger(number, is_session=is_session)
        return cls(pipes, logger, worker=number, incarnation=incarnation)

    @classmethod
    def of_helper(cls, pipes: Pipes, incarnation: int) -> Output:
        """The spawning helper's output."""
        return cls(pipes, logging.getLogger("soloist.helper"), incarnation=incarnation)

    def stderr(self) -> str:
        """The last lines on standard error."""
        return "\n".join(self.tail)[-MAX_TAIL_CHARS:]

    def wait_beside(self, descriptor: int, timeout_s: float) -> bool:
        """Wait until ``descriptor`` is readable, reading meanwhile what is printed.

        Before it has been added anywhere: nobody else reads it yet.
        """
        poll = select.poll()  # select() knows no descriptor above 1,023
        streams = {stream.descriptor: stream for stream in self.streams}
        for readable in (descriptor, *streams):
            poll.register(readable, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            for readable, _ in poll.poll(left * 1000):
                if readable == descriptor:
                    self._read_early()
                    return True
                if streams[readable].read_early(_TURN_BYTES) == b"":
                    poll.unregister(readable)
        return False

    def _read_early(self) -> None:
        for stream in self.streams:
            stream.read_early(_AT_EXIT_BYTES)
        self.tail.extend(self.streams[1].early)

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be read any more."""
        return not self.pipes.readers

    def close(self) -> None:
        """Close the pipes; may be called again."""
        self.pipes.close()
        self.streams = ()  # they know this object


class Outputs:
    """The output of everything that lives. On the I/O thread.

    A selector of its own keeps these descriptors apart: the I/O thread watches one.

    Args:
        journal: gets the lines.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._selector = selectors.DefaultSelector()
        self._all: set[Output] = set()

    def fileno(self) -> int:
        """Descriptor that is readable when something has been printed."""
        return self._selector.fileno()

    def add(self, output: Output) -> None:
        """Read this one, too, from now on."""
        self._all.add(output)
        for stream in output.streams:
            self._selector.register(stream.descriptor, selectors.EVENT_READ, stream)
            self._say(stream, list(stream.early))
            stream.early.clear()

    def read(self) -> None:
        """Read a bounded part of what has been printed; the rest comes with the next call."""
        ready = self._selector.select(0)
        share = max(_LEAST_BYTES, _TURN_BYTES // max(1, len(ready)))
        for key, _ in ready:
            stream: _Stream = key.data
            data = stream.read(share)
            if data == b"":
                self._ended(stream)
            elif data:
                self._take(stream, data)

    def finish(self, output: Output) -> str:
        """Read what an ended process has left; give its last lines on standard error."""
        stderr = self.release(output)
        output.close()
        return stderr

    def release(self, output: Output) -> str:
        """As ``finish``, for a process that lives on: its pipes stay open, and are not read."""
        if output in self._all:
            self._all.remove(output)
            for stream in output.streams:
                self._read_rest(stream)
                self._forget(stream)
        return output.stderr()

    def close(self) -> None:
        """Close everything."""
        for output in list(self._all):
            self.finish(output)
        self._selector.close()

    def _read_rest(self, stream: _Stream) -> None:
        left = 0 if stream.output.is_closed else _AT_EXIT_BYTES
        while left > 0 and (data := stream.read(left)):
            left -= len(data)
            self._take(stream, data)

    def _ended(self, stream: _Stream) -> None:
        self._forget(stream)
        stream.is_ended = True
        if all(other.is_ended for other in stream.output.streams):
            self.finish(stream.output)

    def _forget(self, stream: _Stream) -> None:
        with contextlib.suppress(KeyError):  # at the end of file it was
            self._selector.unregister(stream.descriptor)
        self._say(stream, stream.lines.end())

    def _take(self, stream: _Stream, data: bytes) -> None:
        is_kept = stream.level == logging.WARNING
        if is_kept or stream.output.logger.isEnabledFor(stream.level):
            self._say(stream, stream.lines.feed(data))
        else:
            stream.lines.clear()  # nobody wants it

    def _say(self, stream: _Stream, lines: list[str]) -> None:
        output = stream.output
        if stream.level == logging.WARNING:
            output.tail.extend(lines[-TAIL_LINES:])
        self._journal.write(output.logger, stream.level, lines, stream.fields)


class _UnlistedLogger(logging.Logger):
    """A logger that :mod:`logging` does not remember: its number never comes again.

    It has no level of its own, and asks its parent each time: only listed loggers are told when
    a level changes.
    """

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        assert self.parent is not None
        return self.parent.isEnabledFor(level)


def _worker_logger(number: int, *, is_session: bool) -> logging.Logger:
    name = f"soloist.worker.{number}"
    if not is_session:
        return logging.getLogger(name)
    logger = _UnlistedLogger(name)
    logger.parent = logging.getLogger("soloist.worker")
    return logger
