"""Retry: another attempt only if you say so, and only for errors that you say it for.

Prints::

    the answer, after 3 attempts
    not for this error: WorkerLost
    not if it may have run: ClientError, after 1 attempt
"""

import os
import tempfile
from pathlib import Path

from soloist import ClientError, Retry, SoloistError, Supervisor, WorkerLost

FAILURES = 2


def flaky(prompt: str, *, log: str) -> str:
    """Fails FAILURES times, then works. Counts in a file: workers share no memory."""
    if prompt == "crash":
        os._exit(1)
    with Path(log).open("a") as file:
        file.write("x")
    if Path(log).stat().st_size <= FAILURES:
        raise ConnectionResetError("by peer")
    return prompt


with tempfile.TemporaryDirectory() as folder:
    log = Path(folder, "attempts")
    options = {"log": str(log)}

    # A callable that raised may have done half of its work: only you know whether that may be
    # done again.
    policy = Retry(attempts=4, first_delay_s=0.02, on=(ClientError,), may_have_run=True)
    with Supervisor(size=1, client=flaky, options=options, retry=policy) as sup:
        result = sup.submit("the answer").result()
        print(f"{result.text}, after {result.attempts} attempts")
        try:
            sup.submit("crash").result()
        except WorkerLost as error:
            print("not for this error:", type(error).__name__)

    log.unlink()
    cautious = Retry(on=(ClientError,))
    with Supervisor(size=1, client=flaky, options=options, retry=cautious) as sup:
        try:
            sup.submit("the answer").result()
        except SoloistError as error:
            attempts = log.stat().st_size
            print(f"not if it may have run: {type(error).__name__}, after {attempts} attempt")
