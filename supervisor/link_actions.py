"""What is asked of a gateway, and what its :mod:`link <soloist.supervisor.link>` wants done.

Pure data. A call is touched by the thread of its connection alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from soloist.protocol import public
from soloist.protocol.errors import SoloistError

MAX_ANSWERS = 64
"""Answers to an agent's questions that are kept for one request; it rarely has two open ones."""

Asked: TypeAlias = public.Query | public.Open | public.Close | public.Command | public.Status
"""What has one outcome."""
Answered: TypeAlias = public.Result | public.Opened | public.Done | public.Report

_ANSWERED_BY: Final[Mapping[type, type]] = {
    public.Query: public.Result,
    public.Open: public.Opened,
    public.Close: public.Done,
    public.Command: public.Done,
    public.Status: public.Report,
}


class Call:
    """Something that is asked of a gateway.

    Args:
        message: what is said; a QUERY gets its ``timeout_ms`` and ``resent`` when it is sent.
        about: whose it is; nothing to the link.
        deadline: when it is over, ``None`` for never.
        session_epoch: in which the conversation that it names was opened.
        size: bytes of its prompt.

    Attributes:
        id: of the message.
        epoch: in which it was sent first, ``None`` before that.
        heard: messages of its stream that were passed on.
        is_cancelled: whether the gateway was told to end it.
        is_over: whether it has its outcome.
        answers: to the agent's questions, by number; ``None`` while there is none yet.
    """

    __slots__ = (
        "about",
        "answers",
        "deadline",
        "epoch",
        "heard",
        "id",
        "is_cancelled",
        "is_over",
        "message",
        "session_epoch",
        "size",
    )

    def __init__(
        self,
        message: Asked,
        about: Any = None,
        *,
        deadline: float | None = None,
        session_epoch: bytes | None = None,
        size: int = 0,
    ) -> None:
        self.message = message
        self.about = about
        self.deadline = deadline
        self.session_epoch = session_epoch
        self.size = size
        self.id = message.id
        self.epoch: bytes | None = None
        self.heard = 0
        self.is_cancelled = False
        self.is_over = False
        self.answers: dict[int, Mapping[str, Any] | None] = {}

    def __repr__(self) -> str:
        return f"<Call {type(self.message).__name__} {self.id.hex()[:8]}>"

    @property
    def started(self) -> bool | None:
        """What an error that is made here says: ``False`` if it certainly never left."""
        return False if self.epoch is None else None

    def is_answered_by(self, answer: Answered) -> bool:
        """Whether that can be its outcome."""
        return type(answer) is _ANSWERED_BY[type(self.message)]

    def keep_answer(self, number: int, data: Mapping[str, Any]) -> None:
        """Keep an answer until the outcome, as one of the latest."""
        self.answers[number] = data
        if len(self.answers) > MAX_ANSWERS:
            del self.answers[next(iter(self.answers))]


class Renew(NamedTuple):
    """Close the socket, if there is one, and connect a new one."""


class Say(NamedTuple):
    """Send a message."""

    message: public.FromClient


class End(NamedTuple):
    """Hand a call's outcome over."""

    call: Call
    outcome: Answered | SoloistError


class Pass(NamedTuple):
    """Hand a message of a streamed request over; if its reader is too slow, ``drop`` it."""

    call: Call
    message: bytes


class Ask(NamedTuple):
    """Have an agent's question answered, and give the answer to ``Link.answer``."""

    call: Call
    question: public.Control


Action: TypeAlias = Renew | Say | End | Pass | Ask
