"""Retry: another attempt only if you say so, and only for errors that you say it for.

Prints::

    without a policy: ClientError, after 1 call
    with one: the answer, after 3 attempts
    not for this error: ClientError, after 1 call
    it may have run: WorkerLost, started=None, after 1 call
"""

import os
import tempfile
from pathlib import Path

from soloist import ClientError, RateLimited, Retry, SoloistError, Supervisor

folder = tempfile.TemporaryDirectory()
calls = Path(folder.name, "calls")


def flaky(prompt: str) -> str:
    """Fails twice, then works. Counts its calls in a file: workers share no memory."""
    with calls.open("a") as file:
        file.write("x")
    if prompt == "die":
        os._exit(1)
    if calls.stat().st_size <= 2:
        raise ConnectionResetError("by peer")
    return "the answer"


def ask(prompt: str, retry: Retry | None) -> str:
    calls.unlink(missing_ok=True)
    with Supervisor(size=1, client=flaky, retry=retry) as sup:
        try:
            result = sup.submit(prompt).result()
        except SoloistError as error:
            started = ", started=None" if prompt == "die" and error.started is None else ""
            return f"{type(error).__name__}{started}, after {calls.stat().st_size} call"
        return f"{result.text}, after {result.attempts} attempts"


# A callable that raised may have done half of its work: whether that may be done twice, only
# you know.
policy = Retry(attempts=4, first_delay_s=0.02, on=(ClientError,), may_have_run=True)
print("without a policy:", ask("hello", None))
print("with one:", ask("hello", policy))
print("not for this error:", ask("hello", Retry(on=(RateLimited,), may_have_run=True)))
print("it may have run:", ask("die", Retry(first_delay_s=0.02)))
folder.cleanup()
