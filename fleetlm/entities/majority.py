"""The quorum of one kind on this node: beats, votes, and what this node may serve.

Performs what `core.quorum` decides. Each host beats to all others, a few times in a lease, with all shards
that it owns or is about to own. `acquire` gets shards: a majority grants them, and then a majority
acknowledges a beat that names them. Only after that the node claims them in the table of shards, so that an
owner in the table is one that serves. At the end of a lease `Hosting.fence` ends everything here that the
lease covered. A shard that is being handed over, and of which nothing lives any more, is not named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.core.quorum import Lease, NodeKey, Quorum, Votes, Want
from fleetlm.entities.info import QuorumInfo
from fleetlm.errors import FleetError
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.entities.replicated_shards import ReplicatedShards
    from fleetlm.ids import Pid
    from fleetlm.messaging.outbound import Outbound

log: logging.Logger = logging.getLogger("fleetlm")

BEATS = 4
"""Beats in a lease."""
Conflicts = dict[int, int]


class Fenced(Protocol):
    """What is told that it may not serve."""

    kind: str

    @property
    def handoff(self) -> Any:
        """Knows which shards are being handed over."""

    def fence(self, shards: Iterable[int], why: str) -> None:
        """Give up these shards of this node at once."""


class Majority:
    """Implements what a `Hosting` with a quorum asks before it serves.

    Args:
        hosting: the kind.
        quorum: of the program.
        shards: the table.
        outbound: asks the other members.
    """

    def __init__(self, hosting: Fenced, quorum: Quorum, shards: ReplicatedShards, outbound: Outbound) -> None:
        context = shards.context
        self._hosting = hosting
        self._shards = shards
        self._outbound = outbound
        self._loop = context.loop
        self._me: NodeKey = (context.name, context.incarnation)
        self._lease_s = context.settings.node_timeout_s if quorum.lease_s is None else quorum.lease_s
        self._expected = quorum.expected
        self._votes = Votes(self._lease_s, self._loop.time())
        self._lease = Lease(quorum.expected, self._lease_s)
        self._pending: dict[int, int] = {}
        """Shards that were granted and are not claimed yet, with their epochs."""
        self._asking: set[int] = set()
        """Shards for which the members are being asked."""
        self._asked: set[NodeKey] = set()
        """Members that have not answered the last beat."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._fence: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._is_warned = False

    # What `Hosting` asks.

    def start(self) -> None:
        """Begin to beat."""
        self._beat_on()

    def close(self) -> None:
        """End every beat."""
        self._is_closed = True
        for timer in (self._timer, self._fence):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()

    def serves(self, shard: int) -> bool:
        """Whether this node may serve a shard now."""
        return self._lease.serves(shard, self._loop.time())

    def info(self) -> QuorumInfo:
        """Return how this node stands, for people."""
        now = self._loop.time()
        return QuorumInfo(self._expected, self._lease.seen(now), self._lease.holds(now))

    def dropped(self, shard: int) -> None:
        """This node owns a shard no more."""
        self._lease.dropped(shard)

    async def acquire(self, wants: list[Want]) -> dict[int, int]:
        """Get shards. Returns those that this node may claim, with their epochs."""
        wants = [want for want in wants if want.shard not in self._asking]
        self._asking.update(want.shard for want in wants)
        try:
            granted = await self._ask_for(wants)
            now = self._loop.time()
            for shard in granted:
                self._lease.claimed(shard, now)
            self._pending.update(granted)
        finally:
            self._asking.difference_update(want.shard for want in wants)
        try:
            until = now + self._lease_s
            while granted and not self._is_closed and self._loop.time() < until:
                self._beat()
                if all(self.serves(shard) for shard in granted):
                    break
                await asyncio.sleep(self._lease_s / BEATS / 8)
            return {shard: epoch for shard, epoch in granted.items() if self.serves(shard)}
        finally:
            for shard in granted:
                self._pending.pop(shard, None)
                if not self.serves(shard):
                    self._lease.dropped(shard)

    def asked(self, message: list[Any]) -> Any:
        """Answer a beat or a wish of another member. Raises: ValueError, TypeError for nonsense."""
        match message:
            case ["beat", str(node), int(incarnation), [*rows], [*asking]]:
                claims = {int(shard): int(epoch) for shard, epoch in rows}
                answer = self._votes.beat(self._loop.time(), (node, incarnation), claims, asking)
            case ["grant", str(node), int(incarnation), [*rows]]:
                wants = [Want(*map(int, row)) for row in rows]
                answer = self._votes.grant(self._loop.time(), (node, incarnation), wants)
            case _:
                raise ValueError(f"{SHORT.repr(message)} is not for a member of a quorum")
        return None if answer is None else list(answer.items())

    # Internals.

    def _members(self) -> list[Pid]:
        hosts = self._shards.table.hosts(self._hosting.kind)
        if len(hosts) > self._expected and not self._is_warned:
            self._is_warned = True
            log.error(
                "%d nodes host %s, and its quorum expects %d: two sides of a partition may both serve. Set "
                "Quorum(expected=...) alike on all nodes, to the most that are up at a time",
                len(hosts), self._hosting.kind, self._expected,
            )  # fmt: skip
        return [host.pid for node, host in hosts.items() if node != self._me[0]]

    def _claims(self) -> dict[int, int]:
        own = self._shards.table.own(self._hosting.kind)
        owned = {} if own is None else own.claims
        sealed = self._hosting.handoff.is_sealed
        claims = {shard: claim.epoch for shard, claim in owned.items() if not sealed(shard)}
        for shard, epoch in self._pending.items():
            claims[shard] = max(epoch, claims.get(shard, 0))
        return claims

    def _beat_on(self) -> None:
        self._timer = self._loop.call_later(self._lease_s / BEATS, self._beat_on)
        self._beat()

    def _beat(self) -> None:
        """Send a beat to each member that has answered the last one."""
        now, claims = self._loop.time(), self._claims()
        own = self._votes.beat(now, self._me, claims, self._asking)
        self._answered(self._me, now, None if own is None else list(own.items()))
        beat = ["beat", *self._me, [[shard, epoch] for shard, epoch in claims.items()], list(self._asking)]
        for pid in self._members():
            member: NodeKey = (pid.node, pid.incarnation)
            if member not in self._asked:
                self._asked.add(member)
                self._start(self._send_beat(member, pid, beat, now))

    async def _send_beat(self, member: NodeKey, pid: Pid, beat: list[Any], sent_at: float) -> None:
        try:
            answer = await self._outbound.call(pid, beat, self._lease_s)
        except FleetError:
            return
        finally:
            self._asked.discard(member)
        self._answered(member, sent_at, answer)

    def _answered(self, member: NodeKey, sent_at: float, answer: Any) -> None:
        """Take the answer to a beat: None if the member does not vote, else the conflicts."""
        if type(answer) is not list or self._is_closed:
            return
        table, kind = self._shards.table, self._hosting.kind
        lost = []
        for shard, epoch in answer:
            table.heard_of(kind, shard, epoch)
            if self._claims().get(shard, epoch + 1) <= epoch:
                lost.append(shard)
        if answer:
            for shard in lost:
                self._pending.pop(shard, None)
            self._hosting.fence(lost, f"{member[0]} knows another owner")
            return
        self._lease.acknowledged(member, sent_at)
        if self._fence is not None:
            self._fence.cancel()
        self._fence = self._loop.call_at(max(self._lease.until, self._loop.time()), self._end_of_lease)

    def _end_of_lease(self) -> None:
        if not self._lease.holds(self._loop.time()):
            self._hosting.fence(list(self._claims()), "too few nodes are seen")

    async def _ask_for(self, wants: list[Want]) -> dict[int, int]:
        """Ask all members for shards. Returns those that a majority has granted, with their epochs."""
        table, kind = self._shards.table, self._hosting.kind
        counts = dict.fromkeys((want.shard for want in wants), 0)
        rows = [list(want) for want in wants]
        own = self._votes.grant(self._loop.time(), self._me, wants)
        answers: list[Any] = [None if own is None else list(own.items())]
        asking = [
            self._outbound.call(pid, ["grant", *self._me, rows], self._lease_s / 2) for pid in self._members()
        ]
        answers += await asyncio.gather(*asking, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, FleetError):
                raise answer
            for shard, epoch in answer if type(answer) is list else ():
                if epoch == 0:
                    counts[shard] += 1
                else:
                    table.heard_of(kind, shard, epoch)
        majority = self._expected // 2 + 1
        return {want.shard: want.epoch for want in wants if counts[want.shard] >= majority}

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, name=f"beat of {self._hosting.kind}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
