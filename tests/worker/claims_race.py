"""Two processes at one chunk after the other: one runs its prompts, the other takes them back.

``python -m tests.worker.claims_race ROUNDS`` prints how many prompts ran and how many were taken
back; each must have been one or the other.
"""

import mmap
import os
import random
import struct
import sys
import time

from soloist.protocol.messages import Chunk, Stop
from soloist.supervisor import barrier as supervisor_barrier
from soloist.supervisor import ledger as supervisor_ledger
from soloist.worker import barrier as worker_barrier
from soloist.worker import loop
from soloist.worker.ledger import Claims, Ledger

SIZE = 64
_ORDER = struct.Struct("=2Q")
_DEADLINE_S = 20.0


class Orders:
    """A channel that gives chunks and takes anything."""

    def __init__(self, source):
        self._source = source

    def receive(self):
        data = os.read(self._source, _ORDER.size)
        if not data:
            return Stop()
        number, acked = _ORDER.unpack(data)
        return Chunk(number, tuple(map(str, range(number, number + SIZE))), acked)

    def send(self, message):
        pass

    def send_encoded(self, messages):
        pass


def work(shared, orders, ran):
    """Be the worker."""
    worker_barrier.be_included()
    claims = Claims(shared.grants_r, is_in_memory=True)
    desk = loop.Desk(Orders(orders), claims, Ledger(shared.outcomes), 10**6)

    def call(prompt):
        ran[int(prompt)] += 1
        return prompt

    loop.run_sync(desk, call)


def wait_for(has_come):
    """Spin: what is waited for takes a few microseconds."""
    deadline = time.monotonic() + _DEADLINE_S
    while not has_come():
        if time.monotonic() > deadline:
            raise SystemExit("the worker has stopped")


def main(rounds):
    shared = supervisor_ledger.Ledger(supervisor_barrier.find())
    ran = mmap.mmap(-1, 1 + rounds * SIZE)
    source, orders = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(orders)
        work(shared, source, ran)
        os._exit(0)
    taken = set()
    acked = 0
    chance = random.Random(rounds)
    for number in range(1, rounds * SIZE, SIZE):
        numbers = range(number, number + SIZE)
        shared.grant_chunk(numbers)
        os.write(orders, _ORDER.pack(number, acked))
        target = chance.choice(numbers)
        wait_for(lambda target=target: ran[target])
        back = shared.take_back()
        taken |= set(back)
        acked = numbers[-1] - len(back)
        wait_for(lambda last=acked: ran[last])
    os.close(orders)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    for lease in range(1, 1 + rounds * SIZE):
        assert ran[lease] == (lease not in taken), f"{lease} ran {ran[lease]} times"
    print(f"{rounds * SIZE - len(taken)} ran, {len(taken)} were taken back")


if __name__ == "__main__":
    main(int(sys.argv[1]))
