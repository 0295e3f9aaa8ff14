"""Leases by a majority: who may own a shard while nodes may not see each other.

Every host of a kind with a quorum is a *member*. ``expected`` is how many there are at most at a time; a
*majority* is more than half of them. Each member *supports* at most one node for each shard. Two messages ask
for support: a *grant* is asked for before a node claims a shard; and each node sends a *beat* to every
member, a few times in a lease, with all shards that it owns or is about to own.

* **A member changes whom it supports** only if the node that it supports for a shard has handed it over to
  the other one, has sent a beat that does not name it any more, or was acknowledged in nothing for a lease
  and a margin (`Votes`). A beat that names a shard for which the member supports another node is not
  acknowledged: it is answered with the *conflicts*. A member that has just started has forgotten whom it
  supports, and acknowledges nothing for that long.
* **A node serves a shard** while a majority has acknowledged beats that name it, which were sent less than a
  lease ago by the node's own clock (`Lease`). So a node that was frozen, or cut off, knows by its own clock
  that it must not serve, before it has heard of anything. If its lease was over for a moment, it gives up
  everything that it owned, and has to be granted it anew: another one may have owned it meanwhile.

Why no two nodes serve a shard at an instant: each of them has acknowledgements of a majority from within the
last lease, and two majorities have a member in common. That member has given both in one life, since after a
start it waits for longer than a lease. The second one it has given although it supported the other node, and
had acknowledged it less than a lease before; so that node had handed the shard over, or did not name it any
more, and then does not serve it. Requests of one node are numbered, and a member passes over those that a
later one has overtaken: an old beat cannot take back what was asked for since.

The clocks may differ as they like. Only their speed must be the same but for the margin: two nodes may differ
by a tenth. Time during which a clock stands still, as in a virtual machine that is paused, does not count for
the node that it belongs to, and is not covered.

Epochs are not needed for any of this. They tell requests, states and databases which owner is the later one,
and a claim whose epoch is not above the one that a member supports is a conflict in any case. A node that
learns so from a conflict has lost that shard, and gives it up.

Pure: every function is told the time. Source: Gray and Cheriton, "Leases", 1989; Lamport's "Paxos made
simple" for the two majorities; differs: nothing is written down, so a member waits at its start instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable

from fleetlm.records import Record, Row

MARGIN = 0.25
"""How much longer than a lease a member waits, as a part of it: covers clocks of different speed, and the
moment between the end of a lease and the end of what was served under it."""

MemberKey = tuple[str, int, int]
"""A node with its incarnation and the number of its host process: one life of a member."""


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


class Support(Row):
    """Whom a member supports for a shard."""

    node: MemberKey
    epoch: int


class Want(Row):
    """A shard that a node wants.

    Attributes:
        shard: its number.
        epoch: under which it is to be owned.
        passed: the epoch of the owner that has handed it over to this node; 0: nobody has.
        by: that owner.
    """

    shard: int
    epoch: int
    passed: int = 0
    by: MemberKey | None = None


class _Heard(Row):
    """What a member has heard of a node.

    Attributes:
        at: when it acknowledged something last.
        number: of the last request.
    """

    at: float
    number: int


class Votes:
    """Whom one member supports.

    Args:
        lease_s: seconds of a lease.
        now: when the member began.
    """

    def __init__(self, lease_s: float, now: float) -> None:
        self._promise_s = lease_s * (1 + MARGIN)
        self._votes_from = now + self._promise_s
        self._supported: dict[int, Support] = {}
        self._highest: dict[int, int] = {}
        """Shard → the highest epoch under which a node has claimed it, also when nobody does any more."""
        self._heard: dict[MemberKey, _Heard] = {}

    def beat(
        self, now: float, node: MemberKey, number: int, claims: dict[int, int], asking: Container[int]
    ) -> dict[int, int] | None:
        """Acknowledge the claims of a node, given by shard with their epochs.

        Of a shard that is neither among them nor among those that the node is asking for just now, this node
        is supported no more: it did not get a majority, or has handed the shard over.

        Returns: The shards among them for which this member supports others, each with the epoch: empty if
        the beat is acknowledged. None: this member does not vote yet, or a later request has come before.
        """
        if not self._takes(now, node, number):
            return None
        supported = self._supported
        for shard in [shard for shard, each in supported.items() if each.node == node]:
            if shard not in claims and shard not in asking:
                del supported[shard]
        conflicts: dict[int, int] = {}
        for shard, epoch in claims.items():
            other = supported.get(shard)
            if other is None or other.node == node:
                continue
            if other.epoch >= epoch or not self._is_silent(now, other.node):
                conflicts[shard] = other.epoch
        if conflicts:
            return conflicts
        for shard, epoch in claims.items():
            supported[shard] = Support(node, epoch)
            self._highest[shard] = max(epoch, self._highest.get(shard, 0))
        self._heard[node] = _Heard(now, number)
        return conflicts

    def grant(
        self,
        now: float,
        node: MemberKey,
        number: int,
        wants: Iterable[Want],
        heard_of: Callable[[int], int] = lambda _: 0,
    ) -> dict[int, int] | None:
        """Support a node for shards that it is about to claim.

        Args:
            now: on this node's clock.
            node: the one that asks.
            number: of its request.
            wants: what it wants.
            heard_of: returns the highest epoch of a shard of which this node has heard otherwise. A lower one
                is not granted, so that epochs grow also where members have forgotten what they supported.

        Returns:
            Each shard with 0 if it is granted, else with the epoch under which this member knows it. None:
            this member does not vote yet, or a later request has come before.
        """
        if not self._takes(now, node, number):
            return None
        answer: dict[int, int] = {}
        for want in wants:
            other, highest = self._supported.get(want.shard), self._highest.get(want.shard, 0)
            heard = heard_of(want.shard)
            if want.epoch <= highest or want.epoch < heard:
                answer[want.shard] = max(highest, heard)
            elif other is not None and not self._may_pass(now, other, node, want):
                answer[want.shard] = other.epoch
            else:
                self._supported[want.shard] = Support(node, want.epoch)
                answer[want.shard] = 0
        self._heard[node] = _Heard(now, number)
        self._forget(now)
        return answer

    def _takes(self, now: float, node: MemberKey, number: int) -> bool:
        """Whether this member votes, and on this request, which is the latest one of its node."""
        heard = self._heard.get(node)
        if now < self._votes_from or (heard is not None and number <= heard.number):
            return False
        self._heard[node] = _Heard(-math.inf if heard is None else heard.at, number)
        return True

    def _may_pass(self, now: float, other: Support, node: MemberKey, want: Want) -> bool:
        """Whether a shard for which another claim is supported may go to the node that wants it."""
        if want.epoch <= other.epoch:
            return False
        if other.node == node or (other.node == want.by and other.epoch <= want.passed):
            return True
        return self._is_silent(now, other.node)

    def _is_silent(self, now: float, node: MemberKey) -> bool:
        """Whether a node has been acknowledged in nothing for so long that it serves nothing any more."""
        heard = self._heard.get(node)
        return heard is None or now - heard.at >= self._promise_s

    def _forget(self, now: float) -> None:
        """Forget nodes that were acknowledged so long ago that it does not matter."""
        for node in [node for node in self._heard if self._is_silent(now, node)]:
            del self._heard[node]


class Beat(Row):
    """A beat that this node has sent.

    Attributes:
        sent_at: on this node's clock.
        number: grows from request to request, also where the clock shows the same.
    """

    sent_at: float
    number: int


class Lease:
    """Until when a node may serve which shards.

    Args:
        expected: members at most.
        lease_s: seconds of a lease.
    """

    def __init__(self, expected: int, lease_s: float) -> None:
        self.majority: int = expected // 2 + 1
        """Members that must agree."""
        self._lease_s = lease_s
        self._sent = 0
        self._acknowledged: dict[MemberKey, Beat] = {}
        """Member, this node included → the last beat that it has acknowledged."""
        self._since: dict[int, int] = {}
        """Shard → the number of the first beat that names it."""
        self._began = Beat(-math.inf, 0)
        """The last beat that a majority has acknowledged, or a later one."""
        self.until: float = -math.inf
        """When the lease is over, by this node's clock."""

    def next(self, now: float) -> Beat:
        """Number a request that is sent now; a beat names all that was claimed before."""
        self._sent += 1
        return Beat(now, self._sent)

    def acknowledged(self, member: MemberKey, beat: Beat) -> None:
        """A member has acknowledged a beat. Look before whether the lease is over: see `lapsed`."""
        known = self._acknowledged
        known[member] = max(beat, known.get(member, beat))
        for node in [node for node, each in known.items() if each.sent_at + self._lease_s <= beat.sent_at]:
            del known[node]  # A former life of a member, or one that is gone.
        beats = sorted(known.values(), reverse=True)
        if len(beats) >= self.majority:
            self._began = beats[self.majority - 1]
            self.until = self._began.sent_at + self._lease_s

    def claimed(self, shard: int) -> None:
        """This node has been granted a shard: it serves it once a majority has acknowledged a later beat."""
        self._since[shard] = self._sent + 1

    def dropped(self, shard: int) -> None:
        """This node owns a shard no more."""
        self._since.pop(shard, None)

    def lapsed(self, now: float) -> bool:
        """Whether a lease has ended since the last look. Then no shard is served that was claimed before."""
        if self.until == -math.inf or now < self.until:
            return False
        self.until = -math.inf
        self._since.clear()
        return True

    def seen(self, now: float) -> int:
        """Return how many members, this node included, have acknowledged it within a lease."""
        return sum(now < beat.sent_at + self._lease_s for beat in self._acknowledged.values())

    def holds(self, now: float) -> bool:
        """Whether the lease lasts."""
        return now < self.until

    def serves(self, shard: int, now: float) -> bool:
        """Whether this node may serve a shard."""
        since = self._since.get(shard)
        return now < self.until and since is not None and since <= self._began.number
