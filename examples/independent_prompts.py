"""Independent prompts: each begins a conversation of its own, on whichever worker is free.

Prints::

    1 of 8: Say 1.
    8 of 8: Say 8.
    turns of each conversation: {1}
    what the ninth one remembers: ''
    faster than one after another: True
"""

import time

from soloist import Supervisor

DELAY_S = 0.2
prompts = [f"Say {number}." for number in range(1, 9)]
options = {"delay_s": DELAY_S, "recall_on": "What did I say before?"}

with Supervisor(size=4, options=options) as sup:
    began = time.monotonic()
    results = sup.map(prompts)
    took_s = time.monotonic() - began

    for result in (results[0], results[-1]):
        print(f"{result.index + 1} of {len(results)}: {result.text}")
    print("turns of each conversation:", {result.num_turns for result in results})

    # The worker is an old one, the conversation is not.
    [ninth] = sup.map(["What did I say before?"])
    print(f"what the ninth one remembers: {ninth.text!r}")

print("faster than one after another:", took_s < len(prompts) * DELAY_S)
