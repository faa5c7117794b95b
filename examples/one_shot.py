"""One-shot queries: a new conversation for one prompt, streamed, with no set-up.

Prints::

    What is a lock?
    StreamEvent, StreamEvent, AssistantMessage, ResultMessage
    five threads, turns of their conversations: [1, 1, 1, 1, 1]
"""

from concurrent.futures import ThreadPoolExecutor

import soloist

# With no Supervisor of one's own. The first call starts a worker, the next ones find it ready.
*_, last = soloist.query("What is a lock?")
print(last.result)

# With one: the next free worker of the pool answers.
with soloist.Supervisor(size=2, options={"chunks": 2}) as sup:
    kinds = [type(message).__name__ for message in sup.query("What is a queue?")]
    print(", ".join(kinds))

    def turns_of(prompt: str) -> int:
        *_, last = sup.query(prompt)
        return last.num_turns

    with ThreadPoolExecutor(5) as threads:
        print("five threads, turns of their conversations:", list(threads.map(turns_of, "abcde")))
