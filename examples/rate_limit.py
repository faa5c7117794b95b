"""Rate limits: how fast requests begin, and a pause for all when the service asks for one.

Prints::

    20 prompts at 50 a second, 5 at once, took at least 0.3 s: True
    refused: 429, retry after 0.3 s
    the next one began 0.3 s later, on whichever worker: True
"""

import time

from soloist import RateLimit, RateLimited, Supervisor

PAUSE_S = 0.3

with Supervisor(size=4, rate_limit=RateLimit(per_second=50, burst=5)) as sup:
    began = time.monotonic()
    sup.map(["hello"] * 20)
    took_s = time.monotonic() - began
    print("20 prompts at 50 a second, 5 at once, took at least 0.3 s:", took_s >= (20 - 5) / 50)


def service(prompt: str) -> str:
    """Stands for an agent whose account is over its limit; answers with the time."""
    if prompt == "too much":
        raise RateLimited("429", retry_after_s=PAUSE_S)
    return str(time.monotonic())


with Supervisor(size=4, client=service) as sup:
    began = time.monotonic()
    try:
        sup.submit("too much").result()
    except RateLimited as error:
        print(f"refused: {error}, retry after {error.retry_after_s:g} s")
    starts = [float(result.text) for result in sup.map(["a", "b", "c", "d"])]
    is_late = min(starts) - began >= PAUSE_S
    print(f"the next one began {PAUSE_S} s later, on whichever worker:", is_late)
