"""A file that tells when each turn of a conversation began and ended.

Any number of processes may write to it: every line is one ``O_APPEND`` write, which nothing
breaks up, and the times are of the one monotonic clock of the machine. So it proves, from
outside, whether turns ever overlapped.
"""

from __future__ import annotations

import os
import time


class TurnLog:
    """Writes ``begin N SECONDS`` and ``end N SECONDS``, each once a turn.

    Args:
        path: the file, made at the first line; ``None`` writes nothing.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._running: int | None = None

    def begin(self, number: int) -> None:
        """A turn begins."""
        self._running = number
        self._write("begin", number)

    def end(self) -> None:
        """The turn that began last ends; without effect if it has ended."""
        number, self._running = self._running, None
        if number is not None:
            self._write("end", number)

    def _write(self, word: str, number: int) -> None:
        if self._path is None:
            return
        line = f"{word} {number} {time.monotonic():.9f}\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
