"""The conversations that were opened through the gateway: who may use which, and by which words.

Owns their handles, tickets and names. What happens in a conversation is its broker's, in the pool
that it belongs to. On the gateway's thread; what others answer comes there as futures do, through
the inbox.

Invariants: a conversation is found only by who opened it, by who has shown its ticket, or, if it
is of a local socket, by every peer of one; one without a name ends with the last connection of its
scope; nothing here waits.

Source: SPEC.md, section 2.6.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import secrets
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import NamedTuple, TypeAlias, TypeVar

from soloist.protocol import public
from soloist.protocol.content import Map
from soloist.protocol.errors import InvalidOptions, QueueFull, SessionClosed, SoloistError, to_info
from soloist.supervisor.brokers import Address, SessionLimits
from soloist.supervisor.exchange import Call, Peer
from soloist.supervisor.inbox import Inbox
from soloist.supervisor.reactor import Reactor
from soloist.supervisor.results import SessionStats

_MAX_ADMITTED = 1_000
"""So many owners beside its own may use a conversation; who came before shows the ticket again."""
_SWEEPS = 8
"""After so many all have been looked at,"""
_LEAST_SWEPT = 8
"""and so many at least each time."""
_MARK = "~"
"""What the names in a pool begin with whose owner stands in them."""
_T = TypeVar("_T")
_Name: TypeAlias = tuple[Hashable, str, str]
"""An owner, a pool, and what the owner calls a conversation there."""
LOCAL = "local"
"""The owner of everything that peers of local sockets open."""


class ServedPool(NamedTuple):
    """A pool that peers may use; ``commands`` are the methods of its client that they may call."""

    reactor: Reactor
    max_payload_bytes: int
    credit_bytes: int
    timeout_s: float | None = None
    control_timeout_s: float = 60.0
    commands: frozenset[str] = frozenset()


def _random_id() -> bytes:
    return secrets.token_bytes(public.ID_BYTES)


@dataclasses.dataclass(slots=True, eq=False)
class Conversation:
    """One that is open.

    Attributes:
        pool: the name of its pool.
        name: what its owner calls it, ``None`` for one connection's own.
        owner: who opened it.
        scope: the ids of who opened it.
        limits: its bounds.
        address: where it is.
        handle: what all its peers call it.
        ticket: admits another owner.
        admitted: those who may use it by its ticket, who did so longest ago first.
    """

    pool: str
    name: str | None
    owner: Hashable
    scope: Hashable
    limits: SessionLimits
    address: Address
    handle: bytes = dataclasses.field(default_factory=_random_id)
    ticket: bytes = dataclasses.field(default_factory=_random_id)
    admitted: dict[Hashable, None] = dataclasses.field(default_factory=dict)

    def may_use(self, owner: Hashable) -> bool:
        """Whether it is that owner's, or he has shown its ticket."""
        return owner == self.owner or owner in self.admitted

    def used_by(self, owner: Hashable) -> None:
        """Remember who may use it; who has not for longest gives way."""
        self.admitted.pop(owner, None)
        if owner != self.owner:
            self.admitted[owner] = None
        if len(self.admitted) > _MAX_ADMITTED:
            del self.admitted[next(iter(self.admitted))]


class Conversations:
    """All of them.

    Args:
        pools: by the name that peers use; the first is for those who name none.
        home: the way to this thread.
        max_conversations: most of one owner.
        default: the bounds of one that is opened without.
    """

    def __init__(
        self,
        pools: Mapping[str, ServedPool],
        home: Inbox,
        *,
        max_conversations: int,
        default: SessionLimits,
    ) -> None:
        self._pools = pools
        self._home = home
        self._max_conversations = max_conversations
        self._default = default
        self._open: dict[bytes, Conversation] = {}
        self._names: dict[_Name, Conversation] = {}
        self._opening: dict[_Name, Future[Address]] = {}
        self._tickets: dict[bytes, Conversation] = {}
        self._counts: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def pool_name(self, name: str | None) -> str:
        """Give the pool that a peer means.

        Raises:
            InvalidOptions: there is no such one.
        """
        name = next(iter(self._pools)) if name is None else name
        if name not in self._pools:
            known = ", ".join(self._pools)
            raise InvalidOptions(f"there is no client {name!r} here; there is {known}")
        return name

    def found(self, peer: Peer, handle: bytes) -> Conversation:
        """Give the conversation that a peer may use by that handle.

        Raises:
            SessionClosed: there is none.
        """
        conversation = self._open.get(handle)
        if conversation is None or not conversation.may_use(peer.owner):
            raise SessionClosed("there is no such conversation, or not any more", started=False)
        conversation.used_by(peer.owner)
        return conversation

    # -- what peers ask --------------------------------------------------------------------------

    def open(self, call: Call, peer: Peer, message: public.Open) -> None:
        """Begin a conversation, or join one.

        Raises:
            SessionClosed: nothing belongs to that ticket.
            QueueFull: the owner has too many.
            InvalidOptions: no such client, or a bound that is none.
        """
        if message.ticket is not None:
            conversation = self._tickets.get(message.ticket)
            if conversation is None:
                raise SessionClosed("there is no conversation with that ticket", started=False)
            conversation.used_by(peer.owner)
            self._say_opened(call, peer, conversation)
            return
        pool = self.pool_name(message.client)
        if message.name:
            self._open_named(call, peer, message, (peer.owner, pool, message.name))
        else:
            self._open_own(call, peer, message, pool)

    def close(self, call: Call, peer: Peer, message: public.Close) -> None:
        """End one for everybody.

        Raises:
            SessionClosed: there is no such one.
        """
        conversation = self.found(peer, message.session)

        def closed(_: Future[None]) -> None:
            self._forget(conversation)
            call.answer(public.Done(call.id))

        self._later(self._close(conversation, drain=message.is_drained), closed)

    def command(self, call: Call, peer: Peer, message: public.Command) -> None:
        """Call a method of its client that is no turn.

        Raises:
            SessionClosed: there is no such one.
            InvalidOptions: no such method, or the arguments cannot be sent.
        """
        conversation = self.found(peer, message.session)
        pool = self._pools[conversation.pool]
        if message.name not in pool.commands:
            known = ", ".join(sorted(pool.commands)) or "none"
            raise InvalidOptions(f"{message.name!r} is not among the commands here: {known}")
        number = conversation.address.number

        def answered(done: Future[None]) -> None:
            error = done.exception()
            if error is None:
                call.answer(public.Done(call.id))
            else:
                _refuse(call, error)

        self._later(pool.reactor.command(number, message.name, message.arguments), answered)

    def status(self, peer: Peer, handle: bytes, report: Callable[[Map], None]) -> None:
        """Report on one; of one that is over there is nothing to report.

        Raises:
            SessionClosed: there is no such one.
        """
        conversation = self.found(peer, handle)

        def told(asked: Future[SessionStats | None]) -> None:
            stats = asked.result()
            status = {} if stats is None else dataclasses.asdict(stats)
            if status:
                is_owners = peer.owner == conversation.owner
                status["name"] = conversation.name or "" if is_owners else ""
            if status and not peer.channel.is_local:
                status["endpoint"] = ""
            report(status)

        self._later(self._stats(conversation), told)

    # -- what happens by itself ------------------------------------------------------------------

    def scope_gone(self, scope: Hashable) -> None:
        """The last connection of a scope has gone: end what was its alone."""
        for conversation in tuple(self._open.values()):
            if conversation.scope == scope and conversation.name is None:
                self._close(conversation)
                self._forget(conversation)

    def sweep(self) -> None:
        """Forget those that have ended without a word from here, such as for want of use.

        A part of them each time: nobody is heard meanwhile.
        """
        part = max(_LEAST_SWEPT, len(self._open) // _SWEEPS)
        for handle in tuple(itertools.islice(self._open, part)):
            conversation = self._open[handle] = self._open.pop(handle)  # the last next time
            self._later(
                self._stats(conversation),
                functools.partial(self._forget_if_over, conversation),
            )

    # -- helpers ---------------------------------------------------------------------------------

    def _open_named(self, call: Call, peer: Peer, message: public.Open, key: _Name) -> None:
        """Begin or join one that its owner can find again."""
        owner, pool, name = key
        if (earlier := self._opening.get(key)) is not None:
            # Whether there is one to join, and with which bounds, is known after that.
            self._later(earlier, lambda _: self._open_again(call, peer, message))
            return
        known = self._names.get(key)
        limits = self._limits(message, known)
        if known is None:
            self._take_place(owner)
        reactor = self._pools[pool].reactor
        self._opening[key] = reactor.open_session(_inner_name(peer, name), limits)

        def begun(opening: Future[Address]) -> None:
            del self._opening[key]
            error = opening.exception()
            if error is not None:
                if known is None:
                    self._free_place(owner)
                _refuse(call, error)
                return
            address = opening.result()
            if known is not None and known.address == address:
                self._say_opened(call, peer, known)
                return
            if known is not None:  # it has ended, and its place is its successor's
                self._forget(known)
                self._counts[owner] = self._counts.get(owner, 0) + 1
            new = self._names[key] = Conversation(
                pool, name, owner, peer.scope.name, limits, address
            )
            self._say_opened(call, peer, self._add(new))

        self._later(self._opening[key], begun)

    def _open_again(self, call: Call, peer: Peer, message: public.Open) -> None:
        try:
            self.open(call, peer, message)
        except SoloistError as error:
            _refuse(call, error)

    def _open_own(self, call: Call, peer: Peer, message: public.Open, pool: str) -> None:
        """Begin one that is a connection's own."""
        limits = self._limits(message, None)
        self._take_place(peer.owner)
        ready: Future[None] = Future()

        def begun(opening: Future[Address]) -> None:
            error = opening.exception()
            if error is not None:
                self._free_place(peer.owner)
                _refuse(call, error)
                return
            new = Conversation(pool, None, peer.owner, peer.scope.name, limits, opening.result())
            self._later(ready, functools.partial(self._connected, call, peer, new))

        self._later(self._pools[pool].reactor.open_session("", limits, ready), begun)

    def _connected(self, call: Call, peer: Peer, new: Conversation, ready: Future[None]) -> None:
        """One connection's own is there, unless its client could not start."""
        error = ready.exception()
        if error is None and not peer.scope.peers:
            error = SessionClosed("its peer has gone", started=False)
        if error is not None:
            self._free_place(peer.owner)
            self._close(new)
            _refuse(call, error)
            return
        self._say_opened(call, peer, self._add(new))

    def _add(self, new: Conversation) -> Conversation:
        self._open[new.handle] = self._tickets[new.ticket] = new
        return new

    def _say_opened(self, call: Call, peer: Peer, conversation: Conversation) -> None:
        def told(asked: Future[SessionStats | None]) -> None:
            stats = asked.result()
            if stats is None:
                self._forget(conversation)
                _refuse(call, SessionClosed("the conversation has just ended", started=False))
                return
            endpoint = conversation.address.endpoint if peer.channel.is_local else ""
            opened = public.Opened(
                call.id,
                conversation.handle,
                conversation.ticket,
                endpoint,
                max(1, stats.incarnation),
            )
            call.answer(opened)

        self._later(self._stats(conversation), told)

    def _limits(self, message: public.Open, known: Conversation | None) -> SessionLimits:
        max_queue, idle_ms = message.max_queue, message.idle_timeout_ms
        if known is not None and max_queue is None and idle_ms is None:
            return known.limits
        most = self._default
        limits = SessionLimits(
            most.max_queue if max_queue is None else max_queue,
            most.idle_timeout_s if idle_ms is None else idle_ms / 1000,
        )
        if not 1 <= limits.max_queue <= most.max_queue:
            raise InvalidOptions(f"max_queue is from 1 to {most.max_queue:,} here")
        longest_s = most.idle_timeout_s or math.inf
        if limits.idle_timeout_s is not None and not 0 < limits.idle_timeout_s <= longest_s:
            raise InvalidOptions(f"idle_timeout_ms is from 1 to {longest_s * 1000:,.0f} here")
        return limits

    def _take_place(self, owner: Hashable) -> None:
        count = self._counts.get(owner, 0)
        if count >= self._max_conversations:
            raise QueueFull(f"{count:,} conversations are open already (max_conversations)")
        self._counts[owner] = count + 1

    def _free_place(self, owner: Hashable) -> None:
        self._counts[owner] -= 1
        if not self._counts[owner]:
            del self._counts[owner]

    def _forget(self, conversation: Conversation) -> None:
        if self._open.pop(conversation.handle, None) is None:
            return
        del self._tickets[conversation.ticket]
        key = (conversation.owner, conversation.pool, conversation.name or "")
        if self._names.get(key) is conversation:
            del self._names[key]
        self._free_place(conversation.owner)

    def _forget_if_over(
        self, conversation: Conversation, asked: Future[SessionStats | None]
    ) -> None:
        if asked.result() is None:
            self._forget(conversation)

    def _close(self, conversation: Conversation, *, drain: bool = False) -> Future[None]:
        reactor = self._pools[conversation.pool].reactor
        return reactor.close_session(conversation.address.number, drain=drain)

    def _stats(self, conversation: Conversation) -> Future[SessionStats | None]:
        reactor = self._pools[conversation.pool].reactor
        return reactor.session_stats(conversation.address.number)

    def _later(self, future: Future[_T], then: Callable[[Future[_T]], None]) -> None:
        """Have something done on this thread when the future is done, which it is given.

        Were ``then`` to know the future by itself, only the collector could free the two.
        """
        future.add_done_callback(lambda done: self._home.post(lambda: then(done)))


def _inner_name(peer: Peer, name: str) -> str:
    """What a conversation is called in its pool: one owner's names are not another's."""
    if peer.owner == LOCAL and not name.startswith(_MARK):
        return name
    digest = hashlib.blake2b(repr(peer.owner).encode(), digest_size=16).hexdigest()
    return f"{_MARK}{digest}/{name}"


def _refuse(call: Call, error: BaseException) -> None:
    call.answer(public.Error(call.id, None, to_info(error)))
