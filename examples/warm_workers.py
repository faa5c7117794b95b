"""Warm workers: each keeps its one conversation from prompt to prompt.

Prints::

    turns with one worker: [1, 2, 3]
    what it remembers: ['one', 'two', 'three']
    two workers, six prompts, turns taken together: 6
"""

from soloist import Supervisor

options = {"recall_on": "What did I say?"}

with Supervisor(size=1, isolation="worker", options=options) as sup:
    print("turns with one worker:", [r.num_turns for r in sup.map(["one", "two", "three"])])
    [recalled] = sup.map(["What did I say?"])
    print("what it remembers:", recalled.text.splitlines())

# With more workers, nobody says which conversation a prompt goes on with.
with Supervisor(size=2, isolation="worker") as sup:
    turns: dict[int, int] = {}
    for result in sup.imap(["a", "b", "c", "d", "e", "f"]):
        turns[result.worker] = max(turns.get(result.worker, 0), result.num_turns)
    print("two workers, six prompts, turns taken together:", sum(turns.values()))
