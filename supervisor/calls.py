"""What passes between callers and clients beside the turns: commands one way, questions the other.

Owns the commands that have no reply yet. On the I/O thread.

Invariant: the future of a command ends with the reply, the death of the worker that was told or
the end of its session, whatever comes first; a reply to a question goes to the process that asked,
or nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future

from soloist.protocol.errors import SessionClosed, SoloistError, WorkerLost, from_info
from soloist.protocol.messages import Control, ControlReply, Done, Refused
from soloist.supervisor.broker import Broker
from soloist.supervisor.control import ControlDesk
from soloist.supervisor.crew import Action
from soloist.supervisor.pool import Pool


class Calls:
    """Commands under way, and the desk for questions.

    Args:
        desk: has questions answered.
    """

    def __init__(self, desk: ControlDesk) -> None:
        self._desk = desk
        self._numbers = itertools.count(1)
        self._commands: dict[int, tuple[int, Future[None]]] = {}

    def command(
        self, broker: Broker | None, name: str, arguments: bytes, done: Future[None]
    ) -> list[Action]:
        """Have a method of a session's client called; ``done`` gets the reply.

        Raises:
            SoloistError: the session is over.
        """
        if broker is None:
            raise SessionClosed("the session is closed", started=False)
        call = next(self._numbers)
        actions = broker.command(call, name, arguments)
        self._commands[call] = (broker.number, done)
        return actions

    def owers(self) -> set[int]:
        """The numbers of the workers that owe a reply."""
        return {number for number, _ in self._commands.values()}

    def done(self, reply: Done | Refused) -> None:
        """Take in the reply to a command."""
        error = None if isinstance(reply, Done) else from_info(reply.error)
        self._end(reply.number, error)

    def lost(
        self,
        number: int,
        exitcode: int | None,
        stderr: str = "",
        *,
        untold: frozenset[int] = frozenset(),
    ) -> None:
        """The worker of that number has died before it heard of ``untold``, or all is over."""
        for call, (owner, _) in list(self._commands.items()):
            if owner == number and call not in untold:
                error = WorkerLost("the worker died meanwhile", exitcode=exitcode, stderr=stderr)
                self._end(call, error)

    def give_up(self, error: SoloistError) -> None:
        """Tell everybody who may still wait."""
        for call in list(self._commands):
            self._end(call, error)

    def question(
        self,
        crew: Pool | Broker,
        number: int,
        asked: Control,
        reply: Callable[[ControlReply], None],
    ) -> None:
        """A client asks its caller; ``reply`` gets the answer, on any thread."""
        leases = crew.workers[number].leases
        request = leases[0] if leases and leases[0].lease == asked.lease else None
        self._desk.ask(
            asked,
            "" if request is None else request.prompt,
            crew.name,
            None if request is None else request.on_control,
            reply,
        )

    def _end(self, call: int, error: SoloistError | None) -> None:
        _, done = self._commands.pop(call, (0, None))
        if done is None:
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
