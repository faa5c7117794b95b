"""Who is connected to the gateway: admitted, heard of, gone.

Owns the connections and their bounds. Runs on the gateway's thread; the clock comes in.

Invariants: at most ``max_peers`` connections are admitted, ``max_connections`` with one scope of
ids; a connection that is not there any more, or has been silent for three heartbeats, is told of
once.

Source: SPEC.md, sections 2.2 and 2.3.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence

from soloist.protocol import public_codec
from soloist.protocol.errors import QueueFull
from soloist.protocol.public import SILENT_HEARTBEATS, Pong
from soloist.supervisor.conversations import LOCAL
from soloist.supervisor.exchange import Asked, GatewayChannel, Key, Peer
from soloist.supervisor.outcomes import Outcomes
from soloist.supervisor.patience import Patience

_MAX_PROBES = 8
"""So many of those who have been silent longest are looked at to find a place for a new one."""
_PONG = public_codec.encode(Pong())


@dataclasses.dataclass(frozen=True, slots=True)
class GatewayLimits:
    """What peers may cost.

    Attributes:
        heartbeat_s: how often a peer says something.
        max_protocol_errors: most in ``patience.PERIOD_S`` of one connection that is heard.
        max_peers: most connections.
        max_connections: most of them with one scope of ids.
        max_requests: most requests of one scope without an outcome.
        max_queued_bytes: most bytes of their prompts.
        max_outcome_bytes: most bytes of outcomes that are kept for who asks again, of all scopes.
        max_ids: most ids that are known without their outcomes, of all scopes.
        retention_s: how long an outcome is kept.
        max_conversations: most conversations of one owner.
        max_queue: most requests that may wait in one of them.
        idle_timeout_s: when one that nobody uses is closed; ``None``: never.
    """

    heartbeat_s: float = 5.0
    max_protocol_errors: int = 100
    max_peers: int = 1_000
    max_connections: int = 100
    max_requests: int = 1_000
    max_queued_bytes: int = 256 * 1024 * 1024
    max_outcome_bytes: int = 16 * 1024 * 1024
    max_ids: int = 5_000
    retention_s: float = 300.0
    max_conversations: int = 64
    max_queue: int = 1_000
    idle_timeout_s: float | None = 3600.0


class Peers:
    """All connections.

    Args:
        channels: the sockets.
        limits: their bounds.
        outcomes: knows the scopes of their ids.
        on_gone: told of each that has gone.
    """

    def __init__(
        self,
        channels: Sequence[GatewayChannel],
        limits: GatewayLimits,
        outcomes: Outcomes[Asked],
        on_gone: Callable[[Peer], None],
    ) -> None:
        self._channels = channels
        self._limits = limits
        self._outcomes = outcomes
        self._on_gone = on_gone
        self._peers: dict[Key, Peer] = {}  # who has been silent longest comes first
        self._lost: list[Peer] = []

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, key: object) -> bool:
        return key in self._peers

    @property
    def has_lost(self) -> bool:
        """Whether ``drop_lost`` has something to do."""
        return bool(self._lost)

    def is_heard(self, key: Key, now: float) -> bool:
        """Whether what a connection says is taken in; who has said no hello always is."""
        peer = self._peers.get(key)
        if peer is None or not peer.patience.is_over(now):
            return True
        self.heard(key, now)  # it is there all the same
        return False

    def heard(self, key: Key, now: float) -> Peer | None:
        """Give the peer that has just said something; ``None`` if it has never said hello."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            self._peers[key] = peer
            peer.heard_at = now
        return peer

    def passing(self, key: Key, curve_key: str, secret: bytes | None, now: float) -> Peer:
        """Make a peer that is not admitted: who asks once, by a REQ socket."""
        place, address = key
        channel = self._channels[place]
        name: Hashable = ("connection", place, address)
        if curve_key or secret:
            name = ("key", curve_key) if curve_key else ("secret", secret)
        owner = LOCAL if channel.is_local and not curve_key else name
        scope = self._outcomes.scope(name, is_lasting=bool(curve_key or secret))
        patience = Patience(self._limits.max_protocol_errors)
        return Peer(key, channel, scope, owner, self._lost.append, now, patience)

    def admit(self, key: Key, curve_key: str, secret: bytes | None, now: float) -> Peer:
        """Give a new connection its place.

        Raises:
            QueueFull: there are too many.
        """
        limits = self._limits
        if len(self._peers) >= limits.max_peers:
            self._probe(self._peers.values())
        if len(self._peers) >= limits.max_peers:
            most = f"{limits.max_peers:,} connections are open already (max_peers)"
            raise QueueFull(most)
        peer = self.passing(key, curve_key, secret, now)
        scope = peer.scope
        self._outcomes.join(scope)  # first of all: it must not vanish with those who have gone
        if scope.peers > limits.max_connections:
            self._probe(p for p in self._peers.values() if p.scope is scope)
        if scope.peers > limits.max_connections:
            self._outcomes.leave(scope)
            raise QueueFull(f"{limits.max_connections:,} of them are yours (max_connections)")
        self._peers[key] = peer
        return peer

    def drop_lost(self) -> None:
        """See to those who could not be reached."""
        while self._lost:
            self._gone(self._lost.pop())

    def drop_silent(self, now: float) -> None:
        """See to those who have said nothing for too long."""
        latest = now - SILENT_HEARTBEATS * self._limits.heartbeat_s
        for peer in tuple(
            itertools.takewhile(lambda p: p.heard_at <= latest, self._peers.values())
        ):
            self._gone(peer)

    def _probe(self, peers: Iterable[Peer]) -> None:
        """See whether those who have been silent longest are still there."""
        for peer in tuple(itertools.islice(peers, _MAX_PROBES)):
            peer.send(peer.envelope, _PONG)
        self.drop_lost()

    def _gone(self, peer: Peer) -> None:
        if peer.is_gone:  # something else for it was on its way
            return
        peer.is_gone = True
        is_admitted = self._peers.get(peer.key) is peer
        if is_admitted:
            del self._peers[peer.key]
            self._outcomes.leave(peer.scope)
        self._on_gone(peer)
