"""A scripted program that stands in for the claude CLI: stream-json on stdio, no network.

The real Agent SDK runs on top of it when it is given as ``cli_path``. The prompt's own text says
what it does: words such as ``/delay 1`` in front of it, in any number and order, or a JSON object
with the same names (``{"delay": 1, "text": "hello"}``; a word without argument takes ``true``).
What follows the words is the text, and the answer unless a word says otherwise.

=====================  ========================================================================
``/delay S``           the turn takes S seconds, spread over its parts; it can be interrupted
``/slow-start S``      S seconds before the turn begins; an interrupt in that time is acknowledged
                       and lost, as the real CLI does in a turn's first millisecond
``/parts N``           N ``stream_event`` pieces before the answer
``/bytes N``           the answer is N times the letter ``x``
``/history``           answer: JSON list of what the user said before in this conversation
``/argv``              answer: JSON list of the command line
``/env NAME``          answer: the value of that environment variable
``/pid``               answer: the process id
``/model``             answer: the model (``set_model``) and the permission mode, as JSON list
``/clear``             forget the conversation and go on under a new session id, before the turn
``/tool NAME``         ask for permission to use that tool; answer: ``allow`` and the input as JSON,
                       or ``deny`` and the reason; an interrupt takes the question back
``/hook NAME``         call every ``PreToolUse`` hook for that tool; answer: JSON list of what they
                       said
``/spawn``             start a process that calls setsid and ignores SIGTERM; answer: its id
``/stderr LINE``       write a word to standard error
``/fail STATUS``       end with an API error of that HTTP status; 429 sends a rate_limit_event
                       first, whose limit resets in 2 s
``/crash CODE``        send the parts, then exit with that code
``/stop``              stop itself with SIGSTOP before answering
``/silent``            never answer; interrupts are acknowledged and ignored
``/ignore-interrupt``  acknowledge interrupts, answer all the same
``/deaf``              from now on ignore the end of standard input and SIGTERM
``/garbage``           send a line that is broken JSON before the answer
``/unparsable``        send a message that the SDK cannot parse before the answer
``/no-uuid``           echo no uuid in this turn, as older CLIs do
``/inject WORD``       run a turn of its own that says WORD first, as for a background task
=====================  ========================================================================

Command line (through ``extra_args``): ``--stand-in-start crash:3``, ``exit:0``, ``hang`` or
``slow:0.5`` says what becomes of the start. With a folder ``$SOLOIST_STAND_IN_SESSIONS`` a
conversation is saved there as soon as a turn begins; ``--resume ID`` goes on with it, under a new
session id with ``--fork-session`` or ``--stand-in-resume renamed``; ``--session-id ID`` refuses one
that is there.

``num_turns`` counts the turns of the conversation. If ``SOLOIST_STAND_IN_LOG`` names a file,
``start``, ``begin``, ``interrupt``, ``end`` and ``exit`` are appended to it, see ``read_log``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

PROGRAM = Path(__file__).with_name("claude_stand_in.py")
"""The program itself; its first line finds Python through ``PATH``."""
LOG_VARIABLE = "SOLOIST_STAND_IN_LOG"
SESSIONS_VARIABLE = "SOLOIST_STAND_IN_SESSIONS"


class LogEntry(NamedTuple):
    """One event of one stand-in; ``end`` has the turn's outcome behind a colon."""

    monotonic_ns: int
    pid: int
    event: str
    prompt: str


def install(folder: str | os.PathLike[str]) -> str:
    """Write the program into ``folder``, run by this very Python, and return its path.

    It starts in a third of the time that a version manager's ``python3`` in ``PATH`` may take.
    """
    path = Path(folder) / "claude"
    source = PROGRAM.read_text().split("\n", 1)[1]
    path.write_text(f"#!{sys.executable} -IS\n{source}")
    path.chmod(0o755)
    return str(path)


def read_log(path: str | os.PathLike[str]) -> list[LogEntry]:
    """The events of every stand-in that wrote to ``path``, in the order of writing."""
    rows = [line.split("\t") for line in Path(path).read_text().splitlines()]
    return [LogEntry(int(ns), int(pid), event, json.loads(said)) for ns, pid, event, said in rows]
