"""The steps on the supervisor's side, and the one place where every request gets its outcome.

While a :class:`Taps` is entered, the I/O thread's ``Channel`` and ``Spawner`` are subclasses that
pass the steps, and ``Request.settle`` reports. Everything is in this process; only processes that
a Supervisor under test has started are signalled, by descriptors or ids that are certainly theirs.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self
from unittest import mock

from soloist.protocol.messages import Answer, Failure, Interrupt, Reuse, Run, Stop, Vacant
from soloist.supervisor import channel, io_thread, process, request
from tests.faults.steps import IN_SUPERVISOR, SIGNALS, Action, Fault, Orders, Step, delay

_DEATH_MS = 5_000
_SENT = {
    Run: Step.DISPATCH, Interrupt: Step.INTERRUPT_SENT, Stop: Step.STOP_SENT, Reuse: Step.REUSE,
}  # fmt: skip


class _Victim:
    """A worker that can be signalled without a doubt: by a descriptor of our own."""

    def __init__(self, worker: process.WorkerProcess) -> None:
        self.pid = worker.pid
        self._pidfd = os.dup(worker.fileno())

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        assert poll.poll(_DEATH_MS), f"{self.pid} does not die of SIGKILL"

    def close(self) -> None:
        os.close(self._pidfd)


class Taps:
    """Strikes at steps in the supervisor's process, and hands orders for those in workers on.

    Args:
        settled: gets each request with its outcome, on the I/O thread, each time.
    """

    def __init__(self, settled: Callable[[Any, Any], None]) -> None:
        self.struck: Counter[tuple[Step, Action]] = Counter()
        self.orders: Orders | None = None
        self.pool_size = 0
        self._settled = settled
        self._lock = threading.Lock()
        self._armed: dict[Step, Fault] = {}
        self._victims: dict[int, _Victim] = {}
        self._helper: process.Forkserver | None = None
        self._dead_helper = 0
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            patch = mock.patch.object
            ends.enter_context(patch(io_thread, "Channel", self._channel_class()))
            ends.enter_context(patch(io_thread, "Spawner", self._spawner_class()))
            ends.enter_context(patch(request.Request, "settle", self._settle_method()))
            ends.callback(self.forget_workers)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    # -- faults --------------------------------------------------------------------------------

    def arm(self, fault: Fault) -> None:
        """Have a fault happen, once."""
        if fault.step in IN_SUPERVISOR:
            with self._lock:
                self._armed[fault.step] = fault
        else:
            assert self.orders is not None
            self.orders.give(fault)

    def disarm(self, fault: Fault) -> bool:
        """Have it happen no more; whether it has happened."""
        if fault.step in IN_SUPERVISOR:
            with self._lock:
                return self._armed.pop(fault.step, None) is None
        assert self.orders is not None
        has_happened = not self.orders.withdraw(fault)
        if has_happened:
            self.struck[fault.step, fault.action] += 1
        return has_happened

    def forget_workers(self) -> None:
        """The Supervisor has closed: its numbers will be used by another."""
        for victim in self._victims.values():
            victim.close()
        self._victims.clear()

    def kill_worker(self, number: int) -> int:
        """Kill a worker by its number; its pid, 0 if there never was one."""
        with self._lock:
            victim = self._victims.get(number)
            if victim is None:
                return 0
            victim.signal(signal.SIGKILL)
            return victim.pid

    def take(self, step: Step, *, is_session: bool = False) -> Action | None:
        """Whether something is to happen now; then it is done with."""
        with self._lock:
            fault = self._armed.get(step)
            if fault is None or fault.is_session != is_session:
                return None
            if fault.skip:
                self._armed[step] = fault._replace(skip=fault.skip - 1)
                return None
            del self._armed[step]
            self.struck[step, fault.action] += 1
            return fault.action

    # -- where the supervisor passes -----------------------------------------------------------

    def spawned(self, worker: process.WorkerProcess) -> None:
        self._know(worker)
        self._strike(Step.SPAWN, worker.number)

    def _know(self, worker: process.WorkerProcess) -> None:
        victim = _Victim(worker)
        with self._lock:
            before = self._victims.get(worker.number)
            self._victims[worker.number] = victim
        if before is not None:
            before.close()

    def sent(self, peer: Any, message: object) -> None:
        number = peer.number
        if type(message) is Reuse:  # another worker, in a process that is known by another number
            self._know(peer)
        step = _SENT.get(type(message))
        if step is not None:
            self._strike(step, number)
        if step is Step.STOP_SENT and number < self.pool_size:  # armed only amid a round
            self._strike(Step.RECYCLE, number)
        if step is Step.DISPATCH and self.take(Step.HELPER) is not None:
            self._kill_helper()

    def received(self, number: int, messages: Sequence[object]) -> None:
        """A killed worker is dead before what it said is handled."""
        if any(isinstance(message, Answer | Failure) for message in messages):
            action = self._strike(Step.RECEIVED, number)
            if action is Action.KILL:
                self._victims[number].wait()
        if any(isinstance(message, Vacant) for message in messages):
            self._strike(Step.VACANT, number)

    def use_helper(self, helper: process.Forkserver) -> None:
        self._helper = helper

    def _strike(self, step: Step, number: int) -> Action | None:
        action = self.take(step, is_session=number >= self.pool_size)
        if action is Action.DELAY:
            delay()
        elif action is not None:
            self._victims[number].signal(SIGNALS[action])
        return action

    def _kill_helper(self) -> None:
        assert self._helper is not None
        pid = self._helper.pid
        if pid != self._dead_helper:  # its id may be another's once it has been reaped
            self._dead_helper = pid
            os.kill(pid, signal.SIGKILL)

    # -- subclasses ----------------------------------------------------------------------------

    def _channel_class(self) -> type[channel.Channel]:
        taps = self

        class TappedChannel(channel.Channel):
            def send(self, peer: channel.Peer, message: Any) -> bool:
                is_sent = super().send(peer, message)
                taps.sent(peer, message)
                return is_sent

            def receive(self) -> Any:
                received = super().receive()
                if received is not None:
                    taps.received(received.number, received.messages)
                return received

        return TappedChannel

    def _spawner_class(self) -> type[process.Spawner]:
        taps = self

        class TappedSpawner(process.Spawner):
            def __init__(self, forkserver: Any, template: Any, **handlers: Any) -> None:
                taps.use_helper(forkserver)
                on_spawned = handlers["on_spawned"]

                def spawned(worker: process.WorkerProcess) -> None:
                    taps.spawned(worker)
                    on_spawned(worker)

                super().__init__(forkserver, template, **{**handlers, "on_spawned": spawned})

        return TappedSpawner

    def _settle_method(self) -> Callable[..., None]:
        settle, taps = request.Request.settle, self

        def tapped(self: request.Request, outcome: Any) -> None:
            taps._settled(self, outcome)
            settle(self, outcome)

        return tapped
