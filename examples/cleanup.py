"""Clean-up: leave the block, and everything has ended.

Prints::

    at work: 3 processes
    a session that was closed: SessionClosed
    after the block: 0 processes
    what was accepted had its answer: last words
    after an exception: SupervisorClosed, 0 processes
"""

import psutil

from soloist import SessionClosed, Supervisor, SupervisorClosed


def pids_of(sup: Supervisor) -> list[int]:
    stats = sup.stats()
    return [worker.pid for worker in stats.workers] + [session.pid for session in stats.sessions]


def alive(pids: list[int]) -> int:
    return sum(psutil.pid_exists(pid) for pid in pids)


# The end of the block waits for what was accepted, up to drain_timeout_s.
with Supervisor(size=1, options={"delay_s": 0.05}) as sup:
    chat = sup.shared("support-42")
    chat.query("hello").result()
    with sup.session() as own:
        list(own.query_and_receive("hello"))
        sup.submit("hello").result()
        pids = pids_of(sup)
        print("at work:", alive(pids), "processes")
    try:
        own.query("too late")
        list(own.receive_response())
    except SessionClosed:
        print("a session that was closed: SessionClosed")
    last = sup.submit("last words")
print("after the block:", alive(pids), "processes")
print("what was accepted had its answer:", last.result().text)

# An exception ends everything at once.
try:
    with Supervisor(size=1, options={"delay_s": 60}) as sup:
        endless = sup.submit("endless")
        pids = pids_of(sup)
        int("not a number")
except ValueError:
    assert isinstance(endless.exception(), SupervisorClosed)
    print(f"after an exception: SupervisorClosed, {alive(pids)} processes")
