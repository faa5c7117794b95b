"""Prompts of one ``map`` that travel together: the chunk, and the parts that the pool makes of it.

Pure data. A *chunk* is what the consumer hands over and gets back whole. A *part* is a range of it
in one place: in the queue, or at a worker. It stands where requests stand and counts for as many as
it has prompts; in any trouble (a prompt that turns out slow, fails, is cancelled, a worker that
dies) it is taken apart into requests, and what was decided for requests holds for its prompts.

Invariant: each prompt of a chunk is in exactly one part, or one request, until it has its outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

from soloist.protocol import codec
from soloist.protocol.messages import Answer
from soloist.protocol.transitions import RequestState
from soloist.supervisor.request import Outcome, Request
from soloist.supervisor.results import ChunkTurns, Result

MOST_BYTES = 256 * 1024
"""Of the texts of a chunk that has more than one."""


class Chunk:
    """Prompts that follow each other in one input; their sink.

    Args:
        prompts: text that can be sent.
        index: position of the first one in the input.
        on_settled: called on the I/O thread when so many of them have their outcome; with the
            request, if it is one that failed.

    Attributes:
        left: how many have no outcome.
        parts: ranges that are not settled.
        requests: those that are requests of their own and not settled, by position.
    """

    def __init__(
        self,
        prompts: list[str],
        index: int,
        on_settled: Callable[[Chunk, int, Request | None], None],
    ) -> None:
        self.prompts = prompts
        self.index = index
        self.left = len(prompts)
        self.parts: set[Part] = set()
        self.requests: dict[int, Request] = {}
        self._on_settled = on_settled
        self._answers: list[tuple[int, tuple[str, ...], ChunkTurns]] = []
        self._settled: list[Request] = []

    def __repr__(self) -> str:
        return f"<Chunk {self.index} of {len(self.prompts)}, {self.left} left>"

    # -- the I/O thread's side -------------------------------------------------------------------

    def settle(self, request: Request) -> None:
        """Take the outcome of one of its requests."""
        del self.requests[request.index]
        self._settled.append(request)
        self.left -= 1
        self._on_settled(self, 1, None if type(request.outcome) is Answer else request)

    def answered(self, start: int, texts: tuple[str, ...], durations: bytes, worker: int) -> None:
        """Take the answers from ``start`` on."""
        turns = ChunkTurns(self.index + start, durations, worker)
        self._answers.append((start, texts, turns))
        self.left -= len(texts)
        self._on_settled(self, len(texts), None)

    def stream(self, request: Request, message: bytes) -> bool:
        """Nothing of it is streamed."""
        del request, message
        return True

    # -- the consumer's side ---------------------------------------------------------------------

    def results(self) -> list[Result | Outcome]:
        """What there is, in order: results and errors; all of them if none is left."""
        found: list[tuple[int, list[Result | Outcome]]] = [
            (
                start,
                list(
                    map(
                        Result,
                        range(self.index + start, self.index + start + len(texts)),
                        self.prompts[start : start + len(texts)],
                        texts,
                        repeat(turns),
                    )
                ),
            )
            for start, texts, turns in tuple(self._answers)
        ]
        if len(found) == 1 and not self._settled:
            return found[0][1]
        found += [(r.index - self.index, [_outcome(r)]) for r in tuple(self._settled)]
        found.sort(key=lambda entry: entry[0])
        return [outcome for _, outcomes in found for outcome in outcomes]


def _outcome(request: Request) -> Result | Outcome:
    outcome = request.outcome
    assert outcome is not None
    return Result.of(request, outcome) if isinstance(outcome, Answer) else outcome


class Part(Request):
    """Prompts of a chunk that follow each other and are in one place.

    Its ``lease`` is the first one's, the others have those that follow. So it is with ``order``,
    and with ``index``.

    Args:
        chunk: whose.
        start: the first one's place in the chunk.
        count: how many.
    """

    def __init__(self, chunk: Chunk, start: int, count: int) -> None:
        super().__init__("", b"", chunk, index=chunk.index + start)
        self.chunk = chunk
        self.start = start
        self.count = count
        if count:
            chunk.parts.add(self)

    @property
    def prompts(self) -> list[str]:
        """What it holds."""
        return self.chunk.prompts[self.start : self.start + self.count]

    def split(self, count: int) -> Part:
        """Give its first ``count`` prompts, not all, to a part that is in the same place."""
        first = Part(self.chunk, self.start, count)
        first.order, first.worker, first.lease = self.order, self.worker, self.lease
        first.state = self.state
        self.drop(count)
        return first

    def first(self) -> Request:
        """Make its first prompt a request of its own, in the same place; then it may be empty."""
        prompt = self.chunk.prompts[self.start]
        request = Request(prompt, codec.encode_prompt(prompt), self.chunk, index=self.index)
        request.order, request.worker, request.lease = self.order, self.worker, self.lease
        request.state = self.state
        request.attempts = int(self.state is RequestState.LEASED)
        self.chunk.requests[request.index] = request
        self.drop(1)
        return request

    def requests(self) -> list[Request]:
        """Make each of its prompts a request of its own; then it is empty."""
        return [self.first() for _ in range(self.count)]

    def settle(self, outcome: Outcome) -> None:
        """Give all of them the same outcome."""
        for request in self.requests():
            request.settle(outcome)

    def drop(self, count: int) -> None:
        """Its first ``count`` prompts are elsewhere, or have their outcome."""
        self.start += count
        self.index += count
        self.order += count
        self.lease += count
        self.count -= count
        if not self.count:
            self.state = RequestState.SETTLED
            self.chunk.parts.discard(self)
