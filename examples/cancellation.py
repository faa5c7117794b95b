"""Cancel: whoever gives up, and however, leaves nothing of the answer to the next caller.

Prints::

    a cancelled future: CancelledError, then 'one'
    an iterator closed after 'blah': then 'two'
    interrupt() by somebody else: RequestCancelled, then 'three'
    a thread that died in mid-answer: then 'four'
    cancelled in the queue: started=False
    a closed imap: then 'five'
    all that took less than one long answer: True
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from itertools import repeat

from soloist import (
    AssistantMessage,
    Message,
    RequestCancelled,
    ResultMessage,
    StreamEvent,
    Supervisor,
    TextBlock,
)


class Reader:
    """A client that reads the prompt back, a word every 50 ms, until it is interrupted."""

    async def connect(self) -> None:
        self.interrupted = asyncio.Event()

    async def query(self, prompt: str) -> None:
        self.interrupted.clear()
        self.prompt = prompt

    async def receive_response(self) -> AsyncIterator[Message]:
        for word in self.prompt.split():
            if self.interrupted.is_set():
                break
            yield StreamEvent(uuid="", session_id="", event={"text": word})
            await asyncio.sleep(0.05)
        yield AssistantMessage(content=[TextBlock(self.prompt)], model="reader")
        yield ResultMessage(
            "success", 0, 0, is_error=False, num_turns=1, session_id="", result=self.prompt
        )

    async def interrupt(self) -> None:
        self.interrupted.set()

    async def disconnect(self) -> None:
        pass


WORDS = 100
LONG = "blah " * WORDS
began = time.monotonic()

with Supervisor(size=1, client=Reader) as sup:
    chat = sup.shared("support-42")

    def ask(prompt: str) -> str:
        *_, last = chat.query_and_receive(prompt)
        return last.result

    future = chat.query(LONG)
    future.cancel()  # also if it runs, unlike the standard executors'
    try:
        future.result()
    except CancelledError:
        print(f"a cancelled future: CancelledError, then {ask('one')!r}")

    response = chat.query_and_receive(LONG)
    word = next(response).event["text"]
    response.close()  # as leaving its `with` block does, or dropping it
    print(f"an iterator closed after {word!r}: then {ask('two')!r}")

    response = chat.query_and_receive(LONG)
    next(response)
    chat.interrupt()
    try:
        list(response)
    except RequestCancelled:
        print(f"interrupt() by somebody else: RequestCancelled, then {ask('three')!r}")

    def read_a_little() -> None:
        for _ in chat.query_and_receive(LONG):
            return  # and with the thread goes the iterator

    thread = threading.Thread(target=read_a_little)
    thread.start()
    thread.join()
    print(f"a thread that died in mid-answer: then {ask('four')!r}")

    with chat.query_and_receive(LONG) as running:
        next(running)
        waiting = chat.query_and_receive("not yet sent")
        sup.cancel_pending()
        try:
            list(waiting)
        except RequestCancelled as error:
            print(f"cancelled in the queue: started={error.started}")

    results = sup.imap(repeat("five"))
    next(results)
    results.close()  # cancels what is in flight, and pulls no more
    print(f"a closed imap: then {sup.map(['five'])[0].text!r}")

print("all that took less than one long answer:", time.monotonic() - began < WORDS * 0.05)
