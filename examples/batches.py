"""No batches: the window is bounded already, and no prompt waits for the slowest of its batch.

Prints::

    answers: 60, in order: True
    never more than 8 prompts in flight or unread: True
    out of an endless input: ['prompt 0', 'prompt 1', 'prompt 2']
    pulled from it: at most 11
"""

import itertools
from collections.abc import Iterator

from soloist import Supervisor

WINDOW = 8


class Prompts:
    """Stands for a large file, or for a table that is read row by row."""

    def __init__(self, count: int | None = None) -> None:
        self.numbers = itertools.count() if count is None else range(count)
        self.pulled = 0

    def __iter__(self) -> Iterator[str]:
        for number in self.numbers:
            self.pulled += 1
            yield f"prompt {number}"


with Supervisor(size=4, options={"delay_s": 0.005}, window=WINDOW) as sup:
    prompts, texts, most = Prompts(60), [], 0
    for result in sup.imap(prompts):
        most = max(most, prompts.pulled - len(texts))
        texts.append(result.text)
    print(f"answers: {len(texts)}, in order:", texts == list(Prompts(60)))
    print(f"never more than {WINDOW} prompts in flight or unread:", most <= WINDOW)

    endless = Prompts()
    results = sup.imap(endless)
    print("out of an endless input:", [result.text for result in itertools.islice(results, 3)])
    results.close()  # cancels what is still in flight
    print("pulled from it: at most", max(endless.pulled, 3 + WINDOW))
