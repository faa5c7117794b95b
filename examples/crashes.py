"""Crashes: one costs at most the request that ran; a conversation goes on, or says that it is lost.

Prints::

    20 prompts, lost: ['crash']
    the running request: WorkerLost, started=None
    the one behind it: still here, in turn 2
    incarnation 2 remembers: ['hello', 'still here']
    not resumable: SessionLost, started=False
    after close(), a new one: turn 1
"""

from soloist import SessionLost, SoloistError, Supervisor, WorkerLost

options = {"exit_on": "crash", "recall_on": "What did I say?"}

# The client gives a snapshot after each turn. That of `claude` is the id of the conversation.
with Supervisor(size=2, options={**options, "resumable": True}) as sup:
    prompts = [*map(str, range(10)), "crash", *map(str, range(9))]
    results = sup.map(prompts, return_exceptions=True)
    lost = [p for p, r in zip(prompts, results, strict=True) if isinstance(r, SoloistError)]
    print(len(prompts), "prompts, lost:", lost)

    chat = sup.shared("support-42")
    _, crash, behind = [chat.query(prompt) for prompt in ("hello", "crash", "still here")]
    try:
        crash.result()
    except WorkerLost as error:
        print(f"the running request: WorkerLost, started={error.started}")
    print(f"the one behind it: {behind.result().text}, in turn {behind.result().num_turns}")
    said = chat.query("What did I say?").result().text.splitlines()
    print(f"incarnation {chat.incarnation} remembers:", said)

with Supervisor(size=1, options=options) as sup:
    chat = sup.shared("support-42")
    _, crash, behind = [chat.query(prompt) for prompt in ("hello", "crash", "still here")]
    try:
        behind.result()
    except SessionLost as error:
        print(f"not resumable: SessionLost, started={error.started}")
    chat.close()
    again = sup.shared("support-42").query("hello again").result()
    print("after close(), a new one: turn", again.num_turns)
