"""The quorum of one kind on this node: beats, votes, and what this node may serve.

Performs what `core.quorum` decides. Each host beats to all others, a few times in a lease, with all shards
that it owns or is about to own. `acquire` gets shards: a majority grants them, and then a majority
acknowledges a beat that names them. Only after that the node claims them in the table of shards, so that an
owner in the table is one that serves. At the end of a lease `Hosting.fence` ends everything here that the
lease covered. A shard that is being handed over, and of which nothing lives any more, is not named.

Between the end of a lease and the moment in which this node notices it, after it was frozen, say, nothing is
served either: `serves` looks at the clock for each request that comes, and once more when an entity is about
to run it (`fenced`).

A member speaks for itself alone: a request in the name of another node than the one that it came from, or of
one that does not host the kind, is refused.

Requests between members: ``["beat", node, incarnation, process, number, claims, asking]`` and
``["grant", node, incarnation, process, number, wants]``. The answer is None, or the rows of what `Votes`
returns.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.actors.handlers import Handler, Handlers
from fleetlm.core.quorum import Beat, Lease, MemberKey, Quorum, Votes, Want
from fleetlm.core.shard_table import EPOCH_END, MAX_SHARDS
from fleetlm.entities.info import QuorumInfo
from fleetlm.errors import FleetError, ProcessExit
from fleetlm.texts import SHORT
from fleetlm.wire.invocation import to_host

if TYPE_CHECKING:
    from fleetlm.entities.replicated_shards import ReplicatedShards
    from fleetlm.ids import Pid
    from fleetlm.messaging.outbound import Outbound

log: logging.Logger = logging.getLogger("fleetlm")

BEATS = 4
"""Beats in a lease."""


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
        loop: whose clock and timers count; None: those of the node.
    """

    def __init__(
        self,
        hosting: Fenced,
        quorum: Quorum,
        shards: ReplicatedShards,
        outbound: Outbound,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        context = shards.context
        self._hosting = hosting
        self._shards = shards
        self._outbound = outbound
        self._loop = context.loop if loop is None else loop
        self.me: MemberKey = (context.name, context.incarnation, 0)
        self._lease_s = context.settings.node_timeout_s if quorum.lease_s is None else quorum.lease_s
        self._expected = quorum.expected
        self._votes = Votes(self._lease_s, self._loop.time())
        self._lease = Lease(quorum.expected, self._lease_s)
        self._pending: dict[int, int] = {}
        """Shards that were granted and are not claimed yet, with their epochs."""
        self._asking: set[int] = set()
        """Shards for which the members are being asked."""
        self._asked: set[MemberKey] = set()
        """Members that have not answered the last beat."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._fence: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._is_warned = False
        self._is_foreign_logged = False
        """Whether the log has a line of a request in another node's name."""

    # What `Hosting` asks.

    def start(self, number: int) -> None:
        """Begin to beat, with the number of the host process."""
        self.me = (*self.me[:2], number)
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

    def fenced(self, handlers: Handlers) -> Handlers:
        """Return handlers that do not begin where this node may not serve the entity any more."""
        return fenced(handlers, lambda entity: self.serves(entity._Entity__seat.shard))  # noqa: SLF001

    async def acquire(self, wants: list[Want]) -> dict[int, int]:
        """Get shards. Returns those that this node may claim, with their epochs."""
        busy = self._asking | self._pending.keys()
        wants = [want for want in wants if want.shard not in busy]
        self._asking.update(want.shard for want in wants)
        try:
            granted = await self._ask_for(wants)
            for shard in granted:
                self._lease.claimed(shard)
            self._pending.update(granted)
        finally:
            self._asking.difference_update(want.shard for want in wants)
        until = self._loop.time() + self._lease_s
        try:
            while not self._is_closed and self._loop.time() < until:
                self._beat()
                if all(self.serves(shard) for shard in granted if shard in self._pending):
                    break  # The others have met a conflict.
                await asyncio.sleep(self._lease_s / BEATS / 8)
            return {shard: epoch for shard, epoch in granted.items() if self.serves(shard)}
        finally:
            for shard in granted:
                self._pending.pop(shard, None)
                if not self.serves(shard):
                    self._lease.dropped(shard)

    def asked(self, message: list[Any], origin: tuple[str, int] | None) -> Any:
        """Answer a beat or a wish of another member.

        Args:
            message: what it says.
            origin: the node that it came from, with its incarnation; None: this node.

        Raises:
            ValueError, TypeError: it is nonsense, or in another node's name.
        """
        now = self._loop.time()
        match message:
            case ["beat", str(node), int(incarnation), int(process), int(number), [*rows], [*asking]]:
                claims = {self._shard(shard): _epoch(epoch) for shard, epoch in rows}
                member = self._member(node, incarnation, process, origin)
                answer = self._votes.beat(now, member, number, claims, set(map(self._shard, asking)))
            case ["grant", str(node), int(incarnation), int(process), int(number), [*rows]]:
                wants = [self._want(row) for row in rows]
                member = self._member(node, incarnation, process, origin)
                answer = self._votes.grant(now, member, number, wants, self._heard_of)
            case _:
                raise ValueError(f"{SHORT.repr(message)} is not for a member of a quorum")
        return None if answer is None else list(answer.items())

    # Internals.

    def _member(self, node: str, incarnation: int, process: int, origin: tuple[str, int] | None) -> MemberKey:
        """Return the member that a request is of. Raises: ValueError: it does not come from that one."""
        member: MemberKey = (node, incarnation, process)
        host = self._shards.table.hosts(self._hosting.kind).get(node)
        known = None if host is None else (node, host.pid.incarnation, host.pid.number)
        sender = self.me[:2] if origin is None else origin
        if member[:2] == sender and member == known:
            return member
        if member[:2] != sender and not self._is_foreign_logged:
            self._is_foreign_logged = True
            log.warning(
                "%s sends requests of a member of the quorum of %s in the name of %s: they are refused",
                sender[0], self._hosting.kind, SHORT.repr(node),
            )  # fmt: skip
        raise ValueError(f"{SHORT.repr(member)} is not the host of {self._hosting.kind!r} on {sender[0]}")

    def _members(self) -> list[Pid]:
        hosts = self._shards.table.hosts(self._hosting.kind)
        if len(hosts) > self._expected and not self._is_warned:
            self._is_warned = True
            log.error(
                "%d nodes host %s, and its quorum expects %d: two sides of a partition may both serve. Set "
                "Quorum(expected=...) alike on all nodes, to the most that are up at a time",
                len(hosts), self._hosting.kind, self._expected,
            )  # fmt: skip
        return [host.pid for node, host in hosts.items() if node != self.me[0]]

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
        self._end_of_lease()
        beat, claims = self._lease.next(self._loop.time()), self._claims()
        own = self._votes.beat(beat.sent_at, self.me, beat.number, claims, self._asking)
        self._answered(self.me, beat, None if own is None else list(own.items()))
        message = ["beat", *self.me, beat.number, list(map(list, claims.items())), list(self._asking)]
        for pid in self._members():
            member: MemberKey = (pid.node, pid.incarnation, pid.number)
            if member not in self._asked:
                self._asked.add(member)
                self._start(self._send_beat(member, pid, message, beat))

    async def _send_beat(self, member: MemberKey, pid: Pid, message: list[Any], beat: Beat) -> None:
        try:
            answer = await self._outbound.call(pid, to_host(message), self._lease_s)
        except FleetError:
            return
        finally:
            self._asked.discard(member)
        self._answered(member, beat, answer)

    def _answered(self, member: MemberKey, beat: Beat, answer: Any) -> None:
        """Take the answer to a beat: None if the member does not acknowledge it, else the conflicts."""
        rows = _rows(answer)
        if rows is None or self._is_closed:
            return
        table, kind, claims = self._shards.table, self._hosting.kind, self._claims()
        lost = []
        for shard, epoch in rows:
            table.heard_of(kind, shard, epoch)
            if claims.get(shard, epoch + 1) <= epoch:
                lost.append(shard)
        if rows:
            for shard in lost:
                self._pending.pop(shard, None)
            if lost:
                self._hosting.fence(lost, f"{member[0]} knows another owner")
            return
        self._end_of_lease()
        self._lease.acknowledged(member, beat)
        if self._fence is not None:
            self._fence.cancel()
        self._fence = self._loop.call_at(max(self._lease.until, self._loop.time()), self._end_of_lease)

    def _end_of_lease(self) -> None:
        """Give everything up if the lease is over."""
        if self._lease.lapsed(self._loop.time()):
            owned = self._claims()
            self._pending.clear()
            self._hosting.fence(list(owned), "too few nodes are seen")

    async def _ask_for(self, wants: list[Want]) -> dict[int, int]:
        """Ask all members for shards. Returns those that a majority has granted, with their epochs."""
        table, kind = self._shards.table, self._hosting.kind
        counts = dict.fromkeys((want.shard for want in wants), 0)
        asked = self._lease.next(self._loop.time())
        own = self._votes.grant(asked.sent_at, self.me, asked.number, wants, self._heard_of)
        answers: list[Any] = [None if own is None else list(own.items())]
        message = ["grant", *self.me, asked.number, [[*want[:3], want.by] for want in wants]]
        asking = [self._outbound.call(pid, to_host(message), self._lease_s / 2) for pid in self._members()]
        answers += await asyncio.gather(*asking, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, FleetError):
                raise answer
            for shard, epoch in _rows(answer) or ():
                if epoch:
                    table.heard_of(kind, shard, epoch)
                elif shard in counts:
                    counts[shard] += 1
        return {want.shard: want.epoch for want in wants if counts[want.shard] >= self._lease.majority}

    def _heard_of(self, shard: int) -> int:
        return self._shards.table.seen(self._hosting.kind, shard)

    def _shard(self, value: Any) -> int:
        """Return a shard that a member names. Raises: ValueError."""
        if type(value) is not int or not 0 <= value < self._shards.table.shards(self._hosting.kind):
            raise ValueError(f"{SHORT.repr(value)} is not a shard of {self._hosting.kind!r}")
        return value

    def _want(self, row: Any) -> Want:
        """Return what a member wants. Raises: ValueError."""
        match row:
            case [shard, epoch, passed, None]:
                return Want(self._shard(shard), _epoch(epoch), _epoch(passed))
            case [shard, epoch, passed, [str(node), int(incarnation), int(process)]]:
                by = (node, incarnation, process)
                return Want(self._shard(shard), _epoch(epoch), _epoch(passed), by)
        raise ValueError(f"{SHORT.repr(row)} is not a shard that a member wants")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, name=f"beat of {self._hosting.kind}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def fenced(handlers: Handlers, may_serve: Callable[[Any], bool]) -> Handlers:
    """Return handlers that end their entity instead of running, where it may not be served any more.

    A node that was frozen finds requests in the mailbox of an entity that came before. They must not begin.

    Args:
        handlers: of the class.
        may_serve: whether this node may serve an entity now.
    """

    def fence(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def begin(entity: Any, *args: Any, **kwargs: Any) -> Any:
            if not may_serve(entity):
                raise ProcessExit("fenced")
            return function(entity, *args, **kwargs)

        return begin

    by_name = {
        name: Handler(fence(each.function), each.streams, each.concurrent, each.cancel, each.local)
        for name, each in handlers.by_name.items()
    }
    return Handlers(by_name, handlers.names)


def _epoch(value: Any) -> int:
    """Return an epoch that a member names; 0: none. Raises: ValueError."""
    if type(value) is not int or not 0 <= value < EPOCH_END:
        raise ValueError(f"{SHORT.repr(value)} is not an epoch")
    return value


def _rows(answer: Any) -> list[tuple[int, int]] | None:
    """Return the rows of an answer: shards with epochs, each shard once. None if that is not what it has."""
    if type(answer) is not list:
        return None
    rows: dict[int, int] = {}
    for row in answer:
        match row:
            case (int(shard), int(epoch)) if (
                0 <= shard < MAX_SHARDS and 0 <= epoch < EPOCH_END and shard not in rows
            ):
                rows[shard] = epoch
            case _:
                return None
    return list(rows.items())
