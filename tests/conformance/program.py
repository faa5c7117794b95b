"""A client program, run as SPEC.md, section 3.1, says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from tests.support import LIMIT_S

Line = dict[str, Any]
_LIMIT_S = 4 * LIMIT_S


@dataclass(frozen=True)
class Program:
    """A client program, before a gateway.

    Attributes:
        command: what runs it, before the endpoint.
        endpoint: the gateway's.
        keys: the environment variables with its CURVE keys.
    """

    command: tuple[str, ...]
    endpoint: str
    keys: Mapping[str, str] = field(default_factory=dict)

    def play(self, scenario: str, **parameters: Any) -> list[Line]:
        """Play a scenario to its end; give what was printed.

        Raises:
            AssertionError: the program failed, took too long, or printed anything else.
        """
        with self.start(scenario, **parameters) as run:
            return run.rest()

    def start(self, scenario: str, **parameters: Any) -> Run:
        """Begin to play a scenario."""
        return Run(self, {"scenario": scenario, **parameters})


class Run:
    """A program that is playing. Use as a context manager: it is killed at the end of the block.

    Args:
        program: what is run.
        told: its standard input.
    """

    def __init__(self, program: Program, told: Line) -> None:
        self.told = {key: value for key, value in told.items() if key != "prompts"}
        self.process = subprocess.Popen(
            [*program.command, program.endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, **program.keys},
        )
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors)
        self._reader.start()
        # A run that hangs is killed, which ends its output, so that nothing here waits for ever.
        self._limit = threading.Timer(_LIMIT_S, self.process.kill)
        self._limit.start()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as standard_input:
            standard_input.write(json.dumps(told))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        self.kill()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """SIGKILL; it has gone when this returns."""
        self.process.kill()
        self.process.wait()

    def line(self) -> Line:
        """The next line.

        Raises:
            AssertionError: there is none, or it is not a JSON object.
        """
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, self._failure("there was no further line")
        return self._parsed(text)

    def rest(self) -> list[Line]:
        """All further lines.

        Raises:
            AssertionError: the program failed, or one of them is not a JSON object.
        """
        assert self.process.stdout is not None
        lines = [self._parsed(text) for text in self.process.stdout]
        code = self.process.wait()
        assert code != -signal.SIGKILL, self._failure(f"it did not end within {_LIMIT_S:.0f} s")
        assert code == 0, self._failure(f"exit code {code}")
        return lines

    def _parsed(self, text: str) -> Line:
        try:
            line = json.loads(text)
        except ValueError as error:
            raise AssertionError(self._failure(f"{error} in {text!r}")) from error
        assert isinstance(line, dict), self._failure(f"{text!r} is no object")
        return line

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as errors:
            self._errors.extend(errors)

    def _failure(self, what: str) -> str:
        self.kill()
        self._reader.join()
        return f"{what}; told {self.told}; standard error: {''.join(self._errors[-20:])}"
