"""A worker pool: hand prompts in one by one, from anywhere, and take the answers as they come.

Prints::

    in the order of their ends: quick, slow
    told of the end: another
    too fast: 4 requests wait already (max_pending)
"""

import asyncio
import threading
from concurrent.futures import Future, as_completed

from soloist import QueueFull, Result, Supervisor


async def work(prompt: str) -> str:
    await asyncio.sleep(0.5 if prompt == "slow" else 0.0)
    return prompt


with Supervisor(size=2, client=work, max_pending=4) as sup:
    futures = [sup.submit(prompt) for prompt in ("slow", "quick")]
    answers = [future.result() for future in as_completed(futures)]
    print("in the order of their ends:", ", ".join(result.text for result in answers))

    told = threading.Event()

    def tell(future: Future[Result]) -> None:
        print("told of the end:", future.result().text)
        told.set()

    sup.submit("another").add_done_callback(tell)
    told.wait()

    # No queue is endless: beyond max_pending, whoever is too fast is told so.
    try:
        futures = []
        while True:
            futures.append(sup.submit("slow"))
    except QueueFull as error:
        print("too fast:", error)
    for future in futures:
        future.cancel()
