"""Leases by a majority: who may own a shard while nodes may not see each other.

Every host of a kind with a quorum is a *member*. ``expected`` is how many there are at most at a time; a
*majority* is more than half of them. By two rules no two nodes ever serve one shard at an instant:

* **A node serves a shard while a majority has acknowledged it lately.** It sends a *beat* to each member,
  with all its claims, a few times in a lease, and notes when it sent the beat that a member has acknowledged.
  It serves as long as, for a majority, that is less than a lease ago by its own clock, and for those shards
  that these beats already named (`Lease`). So a node that was frozen, or cut off, knows by its own clock that
  it must not serve, before it has heard of anything.
* **A shard is granted by a majority.** A member that has granted a shard to one node, or has acknowledged its
  claim, grants it to another one only if the first has handed it over, does not name it any more, or was
  acknowledged in nothing for a lease and a margin (`Votes`). A member that has just started, and so has
  forgotten what it had granted, grants and acknowledges nothing for that long.

Any two majorities have a member in common, which has either acknowledged the one or granted to the other. The
clocks may differ as they like; only their speed must be the same within the margin.

A claim that a member knows with a higher epoch from another node is answered with a *conflict*: the node that
beats has lost that shard, and gives it up.

Pure: every function is told the time. Source: Gray and Cheriton, "Leases", 1989; Lamport's "Paxos made
simple" for the two majorities; differs: nothing is written down, so a member waits at its start instead.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import NamedTuple

from fleetlm.records import Record

MARGIN = 0.25
"""How much longer than a lease a member waits, as a part of it: covers clocks of different speed, and the
moment between the end of a lease and the end of what was served under it."""

NodeKey = tuple[str, int]
"""The name and the incarnation of a node."""


class Quorum(Record):
    """What ``safety`` is given to `Entities.host`, so that an entity never lives on two nodes at an instant.

    Attributes:
        expected: how many nodes host the kind at most at a time, those that are about to replace others
            included. A node serves while it sees more than half of them.
        lease_s: seconds after which a node that sees too few stops to serve; None: `Settings.node_timeout_s`.
            Others take over a quarter of it later.
    """

    expected: int
    lease_s: float | None = None

    def __post_init__(self) -> None:
        if type(self.expected) is not int or self.expected < 1:
            raise ValueError(f"a quorum expects at least one node, not {self.expected!r}")
        if self.lease_s is not None and not 0 < self.lease_s < math.inf:
            raise ValueError(f"a lease lasts more than 0 seconds, not {self.lease_s!r}")


class Grant(NamedTuple):
    """To whom a member has granted a shard."""

    node: NodeKey
    epoch: int


class Want(NamedTuple):
    """A shard that a node wants.

    Attributes:
        shard: its number.
        epoch: under which it is to be owned.
        passed: the epoch of the owner that has handed it over to this node; 0: nobody has.
    """

    shard: int
    epoch: int
    passed: int


class Votes:
    """What one member has granted and acknowledged.

    Args:
        lease_s: seconds of a lease.
        now: when the member began.
    """

    def __init__(self, lease_s: float, now: float) -> None:
        self._promise_s = lease_s * (1 + MARGIN)
        self._votes_from = now + self._promise_s
        self._granted: dict[int, Grant] = {}
        self._highest: dict[int, int] = {}
        """Shard → the highest epoch under which a node has claimed it, also when nobody does any more."""
        self._acknowledged: dict[NodeKey, float] = {}

    def beat(
        self, now: float, node: NodeKey, claims: dict[int, int], asking: Container[int]
    ) -> dict[int, int] | None:
        """Acknowledge the claims of a node, given by shard with their epochs.

        What was granted to that node and is neither among its claims nor among the shards that it is asking
        for just now is free again: it did not get a majority, or has handed the shard over.

        Returns:
            The shards among them that others have under a higher epoch, each with it: empty if the beat is
            acknowledged. None: this member does not vote yet.
        """
        if now < self._votes_from:
            return None
        granted = self._granted
        for shard in [shard for shard, grant in granted.items() if grant.node == node]:
            if shard not in claims and shard not in asking:
                del granted[shard]
        conflicts: dict[int, int] = {}
        for shard, epoch in claims.items():
            grant = self._granted.get(shard)
            if grant is not None and grant.node != node and grant.epoch >= epoch:
                conflicts[shard] = grant.epoch
        if conflicts:
            return conflicts
        for shard, epoch in claims.items():
            self._granted[shard] = Grant(node, epoch)
            self._highest[shard] = max(epoch, self._highest.get(shard, 0))
        self._acknowledged[node] = now
        return conflicts

    def grant(self, now: float, node: NodeKey, wants: Iterable[Want]) -> dict[int, int] | None:
        """Grant shards to a node.

        Returns:
            Each shard with 0 if it is granted, else with the epoch under which this member knows it. None:
            this member does not vote yet.
        """
        if now < self._votes_from:
            return None
        answer: dict[int, int] = {}
        for want in wants:
            grant, highest = self._granted.get(want.shard), self._highest.get(want.shard, 0)
            if want.epoch <= highest:
                answer[want.shard] = highest
                continue
            if grant is not None and not self._may_pass(now, grant, node, want):
                answer[want.shard] = grant.epoch
                continue
            self._granted[want.shard] = Grant(node, want.epoch)
            answer[want.shard] = 0
        self._acknowledged[node] = now
        self._forget(now)
        return answer

    def _may_pass(self, now: float, grant: Grant, node: NodeKey, want: Want) -> bool:
        if want.epoch <= grant.epoch:
            return False
        if grant.node == node or 0 < grant.epoch <= want.passed:
            return True
        return now - self._acknowledged.get(grant.node, -math.inf) >= self._promise_s

    def _forget(self, now: float) -> None:
        """Forget nodes that were acknowledged so long ago that it does not matter."""
        before = now - self._promise_s
        for node in [node for node, at in self._acknowledged.items() if at < before]:
            del self._acknowledged[node]


class Lease:
    """Until when a node may serve which shards.

    Args:
        expected: members at most.
        lease_s: seconds of a lease.
    """

    def __init__(self, expected: int, lease_s: float) -> None:
        self._majority = expected // 2 + 1
        self._lease_s = lease_s
        self._acknowledged: dict[NodeKey, float] = {}
        """Member, this node included → when the last beat was sent that it has acknowledged."""
        self._since: dict[int, float] = {}
        self._began = -math.inf
        self.until: float = -math.inf
        """When the lease is over, by this node's clock."""

    def acknowledged(self, member: NodeKey, sent_at: float) -> None:
        """A member has acknowledged the beat that was sent at that time."""
        known = self._acknowledged
        known[member] = max(sent_at, known.get(member, -math.inf))
        times = sorted(known.values(), reverse=True)
        if len(times) >= self._majority:
            self._began = times[self._majority - 1]
            self.until = self._began + self._lease_s
        for node in [node for node, at in known.items() if at + self._lease_s < sent_at]:
            del known[node]  # A former start of a node, or one that is gone.

    def claimed(self, shard: int, now: float) -> None:
        """This node has been granted a shard: it serves it once a majority has acknowledged a later beat."""
        self._since[shard] = now

    def dropped(self, shard: int) -> None:
        """This node owns a shard no more."""
        self._since.pop(shard, None)

    def seen(self, now: float) -> int:
        """Return how many members, this node included, have acknowledged it within a lease."""
        return sum(now < at + self._lease_s for at in self._acknowledged.values())

    def holds(self, now: float) -> bool:
        """Whether the lease lasts."""
        return now < self.until

    def serves(self, shard: int, now: float) -> bool:
        """Whether this node may serve a shard."""
        return now < self.until and self._since.get(shard, math.inf) <= self._began
