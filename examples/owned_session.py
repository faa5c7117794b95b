"""An owned session: one conversation that is all yours, with the methods of ClaudeSDKClient.

Prints::

    echo: My name is Ada.
    another model: What is my name?
    busy: the turn before has not ended
    after interrupt(): error_during_execution
    what it was told: ['My name is Ada.', 'What is my name?', 'a long story']
"""

import threading

from soloist import AssistantMessage, SessionBusy, Supervisor, TextBlock

options = {"delay_s": 0.2, "chunks": 2, "recall_on": "What did I say?"}

with Supervisor(size=1, options=options) as sup, sup.session() as own:
    own.query("My name is Ada.")
    for message in own.receive_response():
        if isinstance(message, AssistantMessage):
            for block in message.content:
                if isinstance(block, TextBlock):
                    print(f"{message.model}: {block.text}")

    own.set_model("another model")
    *_, answer, _ = own.query_and_receive("What is my name?")
    print(f"{answer.model}: {answer.content[0].text}")

    def intrude() -> None:
        try:
            own.query("me, too")
        except SessionBusy as error:
            print("busy:", error)

    own.query("a long story")
    story = own.receive_response()
    next(story)  # it has begun
    intruder = threading.Thread(target=intrude)
    intruder.start()
    intruder.join()

    own.interrupt()
    *_, last = story
    print("after interrupt():", last.subtype)

    *_, last = own.query_and_receive("What did I say?")
    print("what it was told:", last.result.splitlines())
