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
pulled = 0


def prompts(count: int | None = None) -> Iterator[str]:
    """Stands for a large file, or for a table that is read row by row."""
    global pulled
    for number in itertools.count() if count is None else range(count):
        pulled += 1
        yield f"prompt {number}"


with Supervisor(size=4, options={"delay_s": 0.005}, window=WINDOW) as sup:
    most, texts = 0, []
    for result in sup.imap(prompts(60)):
        most = max(most, pulled - len(texts))
        texts.append(result.text)
    print(f"answers: {len(texts)}, in order:", texts == list(prompts(60)))
    print(f"never more than {WINDOW} prompts in flight or unread:", most <= WINDOW)

    pulled = 0
    endless = sup.imap(prompts())
    print("out of an endless input:", [result.text for result in itertools.islice(endless, 3)])
    endless.close()  # cancels what is still in flight
    print("pulled from it: at most", max(pulled, 3 + WINDOW))
