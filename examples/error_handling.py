"""Errors: each says whether to send again may help, and whether the prompt may have run.

Prints::

    ClientError     retryable=False started=None
    InvalidPrompt   retryable=False started=False
    RateLimited     retryable=True  started=None
    WorkerLost      retryable=True  started=None
    RequestTimeout  retryable=True  started=None
    and the answers of the others: ['good', 'fine']
    map raises the first: ClientError, and hands over what was there, from 'good' on
"""

import asyncio
import os

from soloist import RateLimited, RequestTimeout, SoloistError, Supervisor


async def agent(prompt: str) -> str:
    match prompt:
        case "wrong":
            raise ValueError(prompt)
        case "too much":
            raise RateLimited("429")
        case "crash":
            os._exit(1)
        case "too slow":
            await asyncio.sleep(10)
    return prompt


with Supervisor(size=1, client=agent) as sup:
    prompts = ["good", "wrong", 42, "too much", "crash", "fine"]
    results = sup.map(prompts, return_exceptions=True)
    errors = [result for result in results if isinstance(result, SoloistError)]
    answers = [result for result in results if result not in errors]

    try:
        sup.submit("too slow", timeout_s=0.3).result()
    except RequestTimeout as error:
        errors.append(error)

    for error in errors:
        print(f"{type(error).__name__:15} retryable={error.retryable!s:5} started={error.started}")
    print("and the answers of the others:", [result.text for result in answers])

    try:
        sup.map(["good", "wrong", "fine"])
    except SoloistError as error:
        print(f"map raises the first: {type(error).__name__},", end=" ")
        print(f"and hands over what was there, from {error.completed[0].text!r} on")
