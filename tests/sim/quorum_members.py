"""Members of a quorum in true time: votes and leases alone, under everything that clocks and networks do.

Each member has a clock of its own, with its own offset and speed. Messages take up to half a lease, get lost,
and overtake each other. Members are cut off, also in one direction; they freeze, and find all timers and
messages of that time when they thaw, in any order; they end and come back having forgotten everything. And
they ask for shards at random, whether these have an owner or not: no table keeps them from it.

After every event each shard is served by one member at most, each judged by its own clock, and by none that
had it before another one (`check`).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial

from fleetlm.core.quorum import Beat, Lease, MemberKey, Votes, Want

LEASE_S = 8.0
SHARDS = 3
SPEED = (0.96, 1.04)
BEATS = 3
"""Beats in a lease."""
PLAYED_S = 10 * LEASE_S


class Member:
    """One place in the quorum, and the life that has it now."""

    def __init__(self, rng: random.Random, place: int) -> None:
        self.place = place
        self.life = 0
        self.offset_s, self.speed = rng.uniform(-1e6, 1e6), rng.uniform(*SPEED)
        self.is_frozen = False
        self.missed: list[Callable[[], None]] = []
        """What was to happen while it was frozen."""

    def begin(self, expected: int, now: float) -> None:
        """Begin a new life, which knows nothing of the former one."""
        self.life += 1
        self.key: MemberKey = (f"m{self.place}", self.life, 1)
        self.votes, self.lease = Votes(LEASE_S, self.clock(now)), Lease(expected, LEASE_S)
        self.claims: dict[int, int] = {}
        self.since: dict[int, int] = {}
        """Shard → the number of its acquisition."""
        self.pending: dict[int, int] = {}
        self.sealed: dict[int, int] = {}
        self.asking: dict[int, set[int]] = {}
        """Number of a request → shards that it asks for, until it is over."""
        self.grants: dict[int, dict[int, int]] = {}
        """Number of a request → shard → members that have granted it."""

    def clock(self, now: float) -> float:
        return self.offset_s + now * self.speed

    def serves(self, shard: int, now: float) -> bool:
        owned = shard in self.claims and shard not in self.sealed
        return owned and self.lease.serves(shard, self.clock(now))

    def named(self) -> dict[int, int]:
        """The claims that a beat names."""
        owned = {shard: epoch for shard, epoch in self.claims.items() if shard not in self.sealed}
        return owned | self.pending

    def wanted(self) -> set[int]:
        return set().union(*self.asking.values())

    def drop(self, shard: int) -> None:
        for known in (self.claims, self.pending, self.sealed):
            known.pop(shard, None)
        self.lease.dropped(shard)


class Members:
    """One run of a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(f"quorum members {seed}")
        self.expected = rng.choice([2, 3, 3, 3, 4, 5])
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.made = 0
        self.epoch = 0
        self.cuts: set[tuple[int, int]] = set()
        self.slow_s = rng.choice([0.01, 0.5, LEASE_S / 2])
        self.members = [Member(rng, place) for place in range(self.expected)]
        self.acquired = 0
        self.latest: dict[int, int] = {}
        """Shard → the number of the last acquisition of those that were served."""
        for member in self.members:
            self.start(member)

    # Time.

    def at(self, delay_s: float, what: Callable[[], None]) -> None:
        self.made += 1
        heapq.heappush(self.events, (self.now + delay_s, self.made, what))

    def for_member(self, member: Member, delay_s: float, what: Callable[[], None]) -> None:
        """Let something happen to this life of a member, when it is not frozen."""
        life = member.life

        def happen() -> None:
            if member.life == life:
                if member.is_frozen:
                    member.missed.append(happen)
                else:
                    what()

        self.at(delay_s, happen)

    def play(self) -> None:
        self.at(0, self.disturb_on)
        while self.now < PLAYED_S:
            self.now, _, what = heapq.heappop(self.events)
            what()
            self.check()

    def check(self) -> None:
        for shard in range(SHARDS):
            serving = [each for each in self.members if each.claims and each.serves(shard, self.now)]
            if not serving:
                continue
            keys = [member.key for member in serving]
            assert len(serving) <= 1, f"at {self.now:.3f} s the shard {shard} is served by {keys}"
            for member in serving:
                since, latest = member.since[shard], self.latest.get(shard, 0)
                assert since >= latest, f"at {self.now:.3f} s {member.key} serves a former life of {shard}"
                self.latest[shard] = since

    # What members do.

    def start(self, member: Member) -> None:
        member.begin(self.expected, self.now)
        self.for_member(member, self.rng.uniform(0, 2), lambda: self.beat_on(member))
        self.for_member(member, self.rng.uniform(0, 2), lambda: self.ask_on(member))

    def beat_on(self, member: Member) -> None:
        self.for_member(member, LEASE_S / BEATS / member.speed, lambda: self.beat_on(member))
        self.beat(member)

    def ask_on(self, member: Member) -> None:
        self.for_member(member, self.rng.uniform(0.5, LEASE_S), lambda: self.ask_on(member))
        free = [shard for shard in range(SHARDS) if shard not in member.named() | member.sealed]
        if free:
            self.epoch += 1
            self.acquire(member, Want(self.rng.choice(free), self.epoch + self.rng.choice([0, 0, -3, 3])))

    def look(self, member: Member) -> None:
        """Give everything up if the lease is over."""
        if member.lease.lapsed(member.clock(self.now)):
            for shard in list(member.named()):
                member.drop(shard)

    def beat(self, member: Member) -> None:
        self.look(member)
        beat = member.lease.next(member.clock(self.now))
        named, wanted = member.named(), member.wanted()
        for other in self.members:
            self.send(member, other, partial(self.answer, member, other, beat, named, wanted))

    def answer(
        self, member: Member, other: Member, beat: Beat, named: dict[int, int], wanted: set[int]
    ) -> None:
        key = other.key
        found = other.votes.beat(other.clock(self.now), member.key, beat.number, named, wanted)
        self.send(other, member, lambda: self.answered(member, key, beat, found))

    def answered(self, member: Member, key: MemberKey, beat: Beat, found: dict[int, int] | None) -> None:
        if found is None:
            return
        for shard, epoch in found.items():
            if member.named().get(shard, epoch + 1) <= epoch:
                member.drop(shard)
        if found:
            return
        self.look(member)
        member.lease.acknowledged(key, beat)
        now = member.clock(self.now)
        self.for_member(member, max(0.0, member.lease.until - now) / member.speed, lambda: self.look(member))
        for shard, epoch in list(member.pending.items()):
            if member.lease.serves(shard, now):
                del member.pending[shard]
                member.claims[shard] = epoch
                self.acquired += 1
                member.since[shard] = self.acquired

    def acquire(self, member: Member, want: Want) -> None:
        if want.shard in member.wanted() or want.shard in member.pending or want.epoch < 1:
            return
        request = member.lease.next(member.clock(self.now))
        member.asking[request.number] = {want.shard}
        member.grants[request.number] = {}
        for other in self.members:
            self.send(member, other, partial(self.grant, member, other, request, want))
        self.for_member(member, LEASE_S / 2 / member.speed, lambda: self.counted(member, request, want))

    def grant(self, member: Member, other: Member, request: Beat, want: Want) -> None:
        found = other.votes.grant(other.clock(self.now), member.key, request.number, [want])
        if found is not None and found[want.shard] == 0:
            self.send(other, member, lambda: self.granted(member, request, want))

    def granted(self, member: Member, request: Beat, want: Want) -> None:
        grants = member.grants.get(request.number)
        if grants is not None:
            grants[want.shard] = grants.get(want.shard, 0) + 1
            if grants[want.shard] >= member.lease.majority:
                self.counted(member, request, want)

    def counted(self, member: Member, request: Beat, want: Want) -> None:
        """A wish is over: it was granted by a majority, or there was no answer in time."""
        grants = member.grants.pop(request.number, None)
        if grants is None:
            return
        del member.asking[request.number]
        if grants.get(want.shard, 0) < member.lease.majority or want.shard in member.claims:
            return
        member.lease.claimed(want.shard)
        member.pending[want.shard] = want.epoch
        self.beat(member)
        self.for_member(member, LEASE_S / member.speed, lambda: self.given_up(member, want))

    def given_up(self, member: Member, want: Want) -> None:
        if member.pending.get(want.shard) == want.epoch:
            member.drop(want.shard)

    def hand_over(self, member: Member, to: Member) -> None:
        """Serve a shard no more, and let another member have it; take it back if that comes to nothing."""
        shard = next((each for each in member.claims if member.serves(each, self.now)), None)
        if shard is None or member is to:
            return
        self.epoch += 1
        passed = member.sealed[shard] = member.claims[shard]
        want = Want(shard, self.epoch, passed, member.key)
        self.send(member, to, lambda: self.acquire(to, want))
        self.for_member(member, LEASE_S, lambda: self.ended(member, shard))

    def ended(self, member: Member, shard: int) -> None:
        if shard in member.sealed:
            member.drop(shard)
            self.epoch += 1
            self.acquire(member, Want(shard, self.epoch))

    def send(self, member: Member, to: Member, what: Callable[[], None]) -> None:
        """Send a message from this life of a member to whatever life another one has when it comes."""
        if member is to:
            what()
        elif (member.place, to.place) not in self.cuts and self.rng.random() > 0.03:
            self.for_member(to, self.rng.uniform(0, self.slow_s), what)

    # What happens to them.

    def disturb_on(self) -> None:
        self.disturb()
        self.at(self.rng.uniform(0, LEASE_S), self.disturb_on)

    def disturb(self) -> None:
        rng, member = self.rng, self.rng.choice(self.members)
        what = ["cut", "heal", "heal", "freeze", "thaw", "restart", "hand over", "hand over", "ambush"]
        match rng.choice(what):
            case "cut":
                others = [each for each in self.members if each is not member]
                for other in rng.sample(others, rng.randint(1, len(others))):
                    ways = [(member.place, other.place), (other.place, member.place)]
                    self.cuts.update(ways if rng.random() < 0.6 else ways[:1])
            case "heal":
                self.cuts.clear()
            case "freeze":
                member.is_frozen = True
                self.at(rng.uniform(0, 2 * LEASE_S), partial(self.thaw, member))
            case "thaw":
                self.thaw(member)
            case "restart":
                member.is_frozen, member.missed = False, []
                self.start(member)
            case "ambush" if member.claims:  # An owner is alone, and the others have forgotten it.
                for other in self.members:
                    if other is not member:
                        self.cuts |= {(member.place, other.place), (other.place, member.place)}
                        if rng.random() < 0.7:
                            other.is_frozen, other.missed = False, []
                            self.start(other)
            case "hand over" if not member.is_frozen:
                self.hand_over(member, rng.choice(self.members))
            case _:
                return

    def thaw(self, member: Member) -> None:
        """Let all happen that has waited for a frozen member, in any order."""
        member.is_frozen = False
        self.rng.shuffle(member.missed)
        missed, member.missed = member.missed, []
        for what in missed:
            what()
            self.check()


def play(seed: int) -> int:
    """Play one seed. Returns how often a shard was acquired. Raises: AssertionError: two have served one."""
    story = Members(seed)
    try:
        story.play()
    except AssertionError as error:
        error.add_note(f"replay: quorum_members.play({seed})")
        raise
    return story.acquired
