"""What becomes of one foreign request's messages and outcome: the words that its peer hears.

Owns the flow control of one request. Who sends, and what has to be known of the request when it is
over, is its subclass's: a session's own socket (``front``) or the gateway (``exchange``).

Invariants: exactly one RESULT or ERROR, after all MESSAGEs; a reader whose credit does not suffice
is cut off, and never heard of as having the whole answer.

Source: SPEC.md, sections 1.5 to 1.7.
"""

from __future__ import annotations

import abc

from soloist.protocol import codec, public, public_codec
from soloist.protocol.content import function_messages
from soloist.protocol.errors import RemoteProtocolError, SlowReader, SoloistError, to_info
from soloist.protocol.messages import Answer
from soloist.supervisor.request import Request

_NO_MESSAGES = codec.join([])
_LONGEST_S = 1e15  # whatever a worker says, its milliseconds fit into 64 bits


class ReplySink(abc.ABC):
    """Where the messages and the outcome of one foreign request go.

    Args:
        envelope: where to.
        request_id: what its peer calls the request.
        credit_bytes: the credit that it begins with.
    """

    __slots__ = ("_credit", "_is_cut", "_max_credit", "_seq", "envelope", "id", "request")

    request: Request

    def __init__(self, envelope: public.Envelope, request_id: bytes, credit_bytes: int) -> None:
        self.envelope = envelope
        self.id = request_id
        self._credit = self._max_credit = credit_bytes
        self._seq = 0
        self._is_cut = False

    @abc.abstractmethod
    def send(self, data: bytes) -> bool:
        """Send a reply; ``False`` if the peer is gone."""

    @abc.abstractmethod
    def over(self, said: bytes, whole: public.Result | None) -> None:
        """The request is over.

        Args:
            said: what has been said of it.
            whole: the same with all messages, if ``said`` is without those that were streamed.
        """

    def grant(self, count_bytes: int) -> None:
        """The peer has read so much; there is never more credit than at the beginning."""
        self._credit = min(self._max_credit, self._credit + count_bytes)

    def stream(self, request: Request, message: bytes) -> bool:
        """Send one message; ``False`` if the peer is gone or has no credit for it.

        A message larger than the whole credit goes out if nothing else is unread.
        """
        del request
        data = public_codec.encode(public.Message(self.id, self._seq + 1, message))
        is_fitting = len(data) <= self._credit or self._credit == self._max_credit
        if self._is_cut or not is_fitting or not self.send(data):
            self._is_cut = True
            return False
        self._seq += 1
        self._credit -= len(data)
        return True

    def settle(self, request: Request) -> None:
        """Send the outcome."""
        whole: public.Result | None = None
        outcome = self._outcome(request)
        if isinstance(outcome, public.Result) and not self.is_whole(request):
            whole = outcome
            outcome = self._streamed(request, whole)
        data = public_codec.encode(outcome)
        self.send(data)  # first of all: somebody waits
        self.over(data, whole if isinstance(outcome, public.Result) else None)

    def is_whole(self, request: Request) -> bool:
        """Whether the outcome is to hold the messages."""
        return not request.is_streamed

    def _outcome(self, request: Request) -> public.Result | public.Error:
        """Give the outcome with all its messages."""
        outcome = request.outcome
        if isinstance(outcome, Answer):
            duration_s = min(outcome.duration_s, _LONGEST_S)
            messages = outcome.messages or _messages_of_callable(outcome, duration_s)
            return self._result(request, outcome, round(duration_s * 1000), messages)
        assert outcome is not None
        return self._error(request, outcome)

    def _streamed(self, request: Request, whole: public.Result) -> public.Result | public.Error:
        """Send what of the messages has not been sent yet; give what is left to be said."""
        try:
            rest = public_codec.split(whole.messages, self._seq)
        except RemoteProtocolError as error:  # the worker's
            return self._error(request, error)
        if self._is_cut or not all(self.stream(request, message) for message in rest):
            return self._error(request, SlowReader("the reader fell too far behind"))
        return whole._replace(messages=_NO_MESSAGES)

    def _result(
        self, request: Request, answer: Answer, duration_ms: int, messages: bytes
    ) -> public.Result:
        return public.Result(
            self.id,
            request.order,
            request.incarnation,
            answer.text,
            answer.num_turns,
            duration_ms,
            *self._attempts(request),
            messages,
        )

    def _attempts(self, request: Request) -> tuple[int | None, int | None]:
        """How often it was tried, and by which worker; nothing that a session's peers are told."""
        del request
        return None, None

    def _error(self, request: Request, error: SoloistError) -> public.Error:
        return public.Error(self.id, request.order or None, to_info(error))


def _messages_of_callable(answer: Answer, duration_s: float) -> bytes:
    """A bare callable has none of its own."""
    messages = function_messages(answer.text, num_turns=answer.num_turns, duration_s=duration_s)
    return codec.join([codec.encode_message(message) for message in messages])
