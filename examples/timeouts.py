"""Timeouts: a deadline counts from the call, the wait in the queue included.

Prints::

    while it ran: RequestTimeout, started=None
    in the queue: RequestTimeout, started=False
    the whole map: RequestTimeout, and 1 answer that was there already
    shared, behind a slow turn: RequestTimeout, started=False, in time: True
    shared, afterwards: the right answer
"""

import asyncio
import time

from soloist import RequestTimeout, Supervisor

SLOW_S = 5.0


async def agent(prompt: str) -> str:
    await asyncio.sleep(SLOW_S if prompt.startswith("slow") else 0.0)
    return prompt


with Supervisor(size=1, client=agent) as sup:
    for where, future in [
        ("while it ran", sup.submit("slow 1", timeout_s=0.3)),
        ("in the queue", sup.submit("slow 2", timeout_s=0.2)),
    ]:
        try:
            future.result()
        except RequestTimeout as error:
            print(f"{where}: RequestTimeout, started={error.started}")

    try:
        sup.map(["quick", "slow", "slow"], total_timeout_s=0.4)
    except RequestTimeout as error:
        print(f"the whole map: RequestTimeout, and {len(error.completed)} answer", end=" ")
        print("that was there already")

    chat = sup.shared("support-42")
    slow = chat.query("slow")
    began = time.monotonic()
    try:
        list(chat.query_and_receive("me, too", timeout_s=0.2))
    except RequestTimeout as error:
        is_in_time = time.monotonic() - began < SLOW_S / 2
        print(f"shared, behind a slow turn: RequestTimeout, started={error.started}", end=", ")
        print("in time:", is_in_time)

    slow.cancel()
    *_, last = chat.query_and_receive("the right answer", timeout_s=10)
    print("shared, afterwards:", last.result)
