"""What members of groups tell of themselves, told to all nodes, and read by the rules that pick.

Theory of operation. `core.member_facts` keeps what is told; `ReplicatedMembers` carries it. A meta is told at
once, before the membership that it belongs to, so that whoever sees the member sees its meta. Gauges and
loads are told in *frames*: a timer runs while there is something to tell or while this node picks by load,
and each time it sends at most one frame of each kind, whatever has changed meanwhile. Receivers keep the
latest.

A node tells its load only on members of groups from which it has picked by load within `INTEREST_S`, so that
groups which nobody balances cost nothing.

What is outstanding at a member of *this* node is known here: its mailbox and open calls, or what others told
if that is more, since requests are on the way and `Groups.chosen` counts what is no request. For a member
elsewhere it is the sum of what this node has outstanding there and of what the other nodes told. The share of
a node in its own members is what is left when the loads of the others are taken away.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fleetlm.core.group_members import Members
from fleetlm.core.member_facts import Gauges, MemberFacts, Place
from fleetlm.core.member_loads import LOAD_GAUGE, MOST_COMPARED, MemberInfo, weigh
from fleetlm.directory.replication import MAX_FACT_BYTES, read_value
from fleetlm.errors import MessageTooLarge

if TYPE_CHECKING:
    import asyncio

    from fleetlm.directory.replication import Replication
    from fleetlm.ids import Pid
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.wire.codec import Codec


INTEREST_S = 10.0
"""Seconds after its last pick by load for which a node goes on telling its load on the members of a group."""
NOTED_S = 0.5
"""Seconds for which a pick by load from the same group is not noted again."""
MAX_META_BYTES = MAX_FACT_BYTES // 4
"""The highest `Settings.max_meta_bytes` that takes effect: such a meta fits into a fact, with others."""
MAX_BALANCED = 256
"""Groups whose loads a node tells. Beyond that, those that it picked from longest ago are left out."""
MAX_NEWCOMERS = 4_096
"""Members whose joining is remembered. Of more, which join within seconds, the oldest count as known."""


class ReplicatedMembers:
    """Implements `replication.Table` for what members tell, and `picking.Known`.

    Args:
        context: of this node.
        codec: packs and reads metas.
        local: this node's processes.
        replication: carries the facts; this table adds itself to it.
        members: returns the members of a group.
    """

    topic = "members"

    def __init__(
        self,
        context: NodeContext,
        codec: Codec,
        local: LocalProcesses,
        replication: Replication,
        members: Callable[[str], Members],
    ) -> None:
        settings = context.settings
        self._context = context
        self._codec = codec
        self._local = local
        self._replication = replication
        self._members = members
        self._max_meta_bytes = min(settings.max_meta_bytes, MAX_META_BYTES)
        self._frame_s = settings.gauge_s
        self._stale_s = settings.gauge_stale_s
        self._newcomer_s = settings.newcomer_s
        self._began_at = context.loop.time()
        self.facts: MemberFacts = MemberFacts(
            context.name,
            context.incarnation,
            settings,
            functools.partial(read_value, codec, "the meta of a member of a process group"),
            functools.partial(replication.before_change, self.topic),
            context.loop.time,
        )
        self._joined: OrderedDict[tuple[str, str, int, int], float] = OrderedDict()
        """Members that have joined lately → when; the oldest first. See `membership_key`."""
        self._newcomers: dict[str, int] = {}
        """Group → how many of its members are in there."""
        self._chosen: dict[Pid, int] = {}
        """Members that `Groups.chosen` has given to callers which are not done."""
        self._balanced: OrderedDict[str, float] = OrderedDict()
        """Groups from which this node picks by load → when it did last; the one longest ago first."""
        self._timer: asyncio.TimerHandle | None = None
        replication.add(self)

    # `replication.Table`.

    def own_keys(self) -> Iterable[Place]:
        """Return the members of this node that tell something."""
        return self.facts.own_keys()

    def own_facts(self, keys: Iterable[Place]) -> Iterator[Any]:
        """Return what they tell."""
        return self.facts.own_facts(keys)

    def node_down(self, node: str) -> Iterator[None]:
        """Drop what a node told, at once, and what is left of it in small steps."""
        return self.facts.node_down(node)

    def told(self, node: str, incarnation: int, fact: Any) -> None:
        """Take what a connected node tells. Raises: ValueError, TypeError for nonsense."""
        self.facts.told(node, incarnation, fact, self._context.loop.time())

    def exited(self, pid: Pid) -> None:
        """Do nothing: what a process tells goes with its memberships."""

    def close(self) -> None:
        """Tell nothing any more. Called when the node stops."""
        if self._timer is not None:
            self._timer.cancel()
        self._frame_s = math.inf

    # `picking.Known`.

    def is_plain(self, group: str) -> bool:
        """Return whether the load of each member is what is outstanding at it."""
        now = self._note_interest(group)
        return not (self.facts.has_told(group) or self._has_newcomer(group, now))

    def is_busy(self, node: str) -> bool:
        """Return whether a connected node's event loop stands still."""
        session = self._context.sessions.get(node)
        return session is not None and session.peer.is_busy

    def meta(self, group: str, pid: Pid) -> Any:
        """Return the meta of a member, or None."""
        return self.facts.meta(group, pid)

    def loads(self, group: str, pids: Sequence[Pid]) -> list[float]:
        """Return the loads of these members, which can be compared."""
        now = self._note_interest(group)
        outstanding = self._outstanding_at(pids)
        has_told, has_newcomer = self.facts.has_told(group), self._has_newcomer(group, now)
        if not (has_told or has_newcomer):
            return outstanding
        reported = self.facts.gauges(group, pids, LOAD_GAUGE, now) if has_told else ()
        known = [self._known_s(group, pid, now) for pid in pids] if has_newcomer else ()
        return weigh(outstanding, reported, known, self._stale_s, self._newcomer_s)

    def describe(self, group: str, pids: Sequence[Pid]) -> list[MemberInfo]:
        """Return what is known of these members, with loads that can be compared."""
        facts, now = self.facts, self._context.loop.time()
        loads = self.loads(group, pids)
        reports = [facts.report(group, pid) for pid in pids]
        mean = sum(loads) / len(loads) if loads else 0.0
        return [
            MemberInfo(
                pid=pid,
                meta=facts.meta(group, pid),
                gauges={} if report is None else report.gauges,
                age_s=None if report is None else now - report.at_s,
                outstanding=self.outstanding(pid),
                load=load,
                mean_load=mean,
                is_passed_over=bool(self._context.drain_step(pid.node)) or self.is_busy(pid.node),
            )
            for pid, report, load in zip(pids, reports, loads, strict=True)
        ]

    # What groups ask.

    def outstanding(self, pid: Pid) -> int:
        """Return how many requests all nodes together have outstanding at a member, as far as is known."""
        if pid.node == self._context.name:
            held = self._chosen.get(pid, 0) if self._chosen else 0
            return max(self._local.load_of(pid), self.facts.outstanding(pid)) + held
        return self._own_share(pid) + self.facts.outstanding(pid)

    def joined(self, group: str, pid: Pid) -> None:
        """Note that a process has joined a group."""
        joined, now, key = self._joined, self._context.loop.time(), membership_key(group, pid)
        if key not in joined:
            self._newcomers[group] = self._newcomers.get(group, 0) + 1
        joined[key] = now
        joined.move_to_end(key)
        if len(joined) > MAX_NEWCOMERS:
            self._forget_newcomer(next(iter(joined)))
        self._forget_newcomers(now)

    def left(self, group: str, pid: Pid) -> None:
        """Forget what a process told as a member of a group that it has left."""
        self._forget_newcomer(membership_key(group, pid))
        self.facts.left(group, pid)

    def packed(self, meta: Any) -> bytes | None:
        """Pack a meta; None stays None. Raises: NotSerializable, MessageTooLarge."""
        if meta is None:
            return None
        packed = self._codec.pack_value(meta)
        if len(packed) > self._max_meta_bytes:
            raise MessageTooLarge(len(packed), self._max_meta_bytes, "Settings.max_meta_bytes")
        return packed

    def check_room(self, group: str, pid: Pid, packed: bytes | None) -> None:
        """Raise TooManyMemberships or MessageTooLarge if a member of this node may not have this meta."""
        self.facts.check_room(group, pid.number, packed)

    def describe_member(self, group: str, pid: Pid, packed: bytes | None) -> None:
        """Tell the meta of a member of this node. Raises: as `check_room`; nothing changed."""
        self._replication.tell(self.topic, self.facts.described(group, pid.number, packed))

    def report(self, group: str, pid: Pid, gauges: Gauges) -> None:
        """Tell the gauges of a member of this node with the next frame. Raises: TypeError, ValueError."""
        if self.facts.reported(group, pid.number, gauges, self._context.loop.time()):
            self._set_timer()

    def hold(self, pid: Pid, by: int) -> None:
        """Count one request more, or one less, at a member that a caller has chosen."""
        count = self._chosen.get(pid, 0) + by
        if count:
            self._chosen[pid] = count
        else:
            self._chosen.pop(pid, None)

    # Internals.

    def _outstanding_at(self, pids: Iterable[Pid]) -> list[float]:
        """Return `outstanding` of each of these, with what it looks up once for all."""
        own, sessions, chosen, told = self._context.name, self._context.sessions, self._chosen, self.facts
        counts: list[float] = []
        for pid in pids:
            if pid.node == own:
                counts.append(self.outstanding(pid))
                continue
            session = sessions.get(pid.node)
            count = told.outstanding(pid)
            if session is not None:
                count += session.load(pid.number)
            if chosen:
                count += chosen.get(pid, 0)
            counts.append(count)
        return counts

    def _own_share(self, pid: Pid) -> int:
        """Return how many requests this node itself has outstanding at a member."""
        held = self._chosen.get(pid, 0) if self._chosen else 0
        if pid.node == self._context.name:
            return held + max(0, self._local.load_of(pid) - self.facts.outstanding(pid))
        session = self._context.sessions.get(pid.node)
        return held if session is None else held + session.load(pid.number)

    def _known_s(self, group: str, pid: Pid, now: float) -> float:
        """Return for how long a process has been a member, where that matters; else infinite.

        To a node that has just started every member is new, so none is.
        """
        at = self._joined.get(membership_key(group, pid))
        if at is None or at - self._began_at < self._newcomer_s:
            return math.inf
        return now - at

    def _has_newcomer(self, group: str, now: float) -> bool:
        self._forget_newcomers(now)
        return group in self._newcomers and now - self._began_at >= self._newcomer_s

    def _forget_newcomers(self, now: float) -> None:
        """Forget the members that have joined long enough ago."""
        joined = self._joined
        while joined and now - next(iter(joined.values())) > self._newcomer_s:
            self._forget_newcomer(next(iter(joined)))

    def _forget_newcomer(self, key: tuple[str, str, int, int]) -> None:
        if self._joined.pop(key, None) is not None:
            group = key[0]
            self._newcomers[group] -= 1
            if not self._newcomers[group]:
                del self._newcomers[group]

    def _note_interest(self, group: str) -> float:
        """Note that this node picks from a group by load. Returns the time on the loop's clock."""
        now, balanced = self._context.loop.time(), self._balanced
        if now - balanced.get(group, -math.inf) >= NOTED_S:  # While it is in there, the timer runs.
            balanced[group] = now
            balanced.move_to_end(group)
            if len(balanced) > MAX_BALANCED:
                balanced.popitem(last=False)
            self._set_timer()
        return now

    def _set_timer(self) -> None:
        if self._timer is None and self._frame_s != math.inf:
            self._timer = self._context.loop.call_later(self._frame_s, self._send_frames)

    def _send_frames(self) -> None:
        """Send what has changed since the last frame, and go on while this node picks by load."""
        self._timer = None
        for fact in self.facts.due():
            self._replication.tell(self.topic, fact)
        now, balanced = self._context.loop.time(), self._balanced
        while balanced and now - next(iter(balanced.values())) > INTEREST_S:
            balanced.popitem(last=False)
        loads = dict(self._shares())
        news = self.facts.loaded(loads)
        if news is not None:
            self._replication.tell(self.topic, news)
        if balanced:
            self._set_timer()

    def _shares(self) -> Iterator[tuple[Pid, int]]:
        """Yield the members from which this node picks by load, with what it has outstanding there."""
        sessions, chosen = self._context.sessions, self._chosen
        for group in self._balanced:
            members = self._members(group)
            if len(members) > MOST_COMPARED:
                continue
            for block in members.blocks:
                session = sessions.get(block[0].node)
                if session is not None and not (chosen or session.held or session.open_calls):
                    continue  # Nothing is outstanding on that node.
                for pid in block:
                    share = self._own_share(pid)
                    if share:
                        yield pid, share


class Member:
    """One membership of a process of this node, to tell of it; made by `Groups.join`.

    ::

        member = node.groups.join("models", self.pid, meta={"model": "llama-70b"})
        member.report(load=0.7, queue=12)

    Attributes:
        group: its name.
        pid: of the member.
    """

    __slots__ = ("_check", "_replicated", "group", "pid")

    def __init__(
        self, replicated: ReplicatedMembers, check: Callable[[str, Pid], None], group: str, pid: Pid
    ) -> None:
        self._replicated = replicated
        self._check = check
        self.group: str = group
        self.pid: Pid = pid

    def __repr__(self) -> str:
        return f"<Member {self.pid} of {self.group!r}>"

    def describe(self, meta: Any) -> None:
        """Replace the meta of the member on every node; None: it has none any more.

        Raises:
            NotSerializable, MessageTooLarge: it cannot be told; the former one stays.
            NoProcess: the process has ended, or is no member any more.
        """
        self._check(self.group, self.pid)
        self._replicated.describe_member(self.group, self.pid, self._replicated.packed(meta))

    def report(self, gauges: Mapping[str, float] | None = None, /, **named: float) -> None:
        """Report gauges, which take the place of all former ones of this member.

        ``load`` is added to the requests that wait at the member when members are compared
        (``by="least_loaded"``, ``"two_choices"``); give it in requests. The others are for the program's own
        score. A report counts for `Settings.gauge_stale_s`; report at least twice in that time. One with the
        numbers of the former one costs nearly nothing: it is told to others only four times in that time.

        Args:
            gauges: names of 1 to 32 characters and finite numbers, at most 16 of them.
            **named: the same.

        Raises:
            TypeError, ValueError: they are not; the former ones stay.
            NoProcess: the process has ended, or is no member any more.
        """
        self._check(self.group, self.pid)
        self._replicated.report(self.group, self.pid, {**(gauges or {}), **named})


def membership_key(group: str, pid: Pid) -> tuple[str, str, int, int]:
    """Return a membership as a tuple of texts and numbers, which Python's collector leaves out."""
    return group, pid.node, pid.incarnation, pid.number
