"""The rules by which one member of a process group is picked.

Every rule prefers members on nodes that stay: a member on a draining node is picked only if there is no
other, and then one whose node still serves everything before one whose node refuses new work. There is
always one, since messages are delivered all the same, and a call learns for how long it is refused. Members
on a node whose event loop stands still (it is *busy*) are passed over likewise, but not by the rules with a
key: a session must not move for a moment's pause. A request that is repeated passes over the members at which
it has failed, and before that all members on their nodes, as long as there are others (`Tried`).

The rules: ``random``; ``round_robin``, in the order of `pid_order`, remembered for each group; ``key``,
consistent hashing (`core.rings`), so that equal keys go to the same member on every node; ``sticky``, the
member that the key went to last, as this node remembers it, and for a new key the one that ``key`` picks;
``least_loaded``, the fewest outstanding requests of this node, ties by chance; in a group of more than
`MOST_COMPARED` members, the fewest among `CHOSEN` of them by chance; ``two_choices``, the less loaded of two
that chance has chosen; and a function of the program that scores them (`Wanted`).

Source: M. Mitzenmacher, "The power of two choices in randomized load balancing", 1996: the least loaded of a
few that were chosen by chance is nearly the least loaded of all; differs: more than two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from fleetlm.core.draining import Step
from fleetlm.core.group_members import Block, Members, after
from fleetlm.core.member_loads import MOST_COMPARED, MemberInfo
from fleetlm.core.rings import Key, Probes, digest_of, probes_of
from fleetlm.errors import NoMember
from fleetlm.records import Record
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    import random

    from fleetlm.core.sticky_keys import StickyKeys
    from fleetlm.ids import Pid

By = Literal["random", "round_robin", "key", "sticky", "least_loaded", "two_choices"]
Score = Callable[[MemberInfo], float]
"""Returns how well a member suits; the one with the highest score is picked. If it has a method ``picked``,
that is called with the pid of the member."""

_RULES = get_args(By)
_KEY_RULES = ("key", "sticky")
IDLE_TRIES = 8
"""Members that ``least_loaded`` looks at by chance before it looks at all: enough where a third is idle."""

CHOSEN = 32
"""Members that ``least_loaded`` compares in larger groups."""
MANY = 1_280
"""In groups of so many members chance looks for some that are wanted (``where``) before all are looked at."""
MOST_DRAWN = 640
"""Members that are drawn for that: enough where a tenth is wanted."""

STICKY_BYTES = 16
"""Of the digest of a key are remembered: enough to tell keys apart."""

_Rule = Callable[[Members], "Pid"]


class Wanted(Record):
    """Which members a program wants, beside the rule.

    Attributes:
        where: names and values that the meta of a member must have, being a dict; None: any member.
        score: picks the member with the highest score, in place of a rule; None: the rule decides.
    """

    where: Mapping[str, Any] | None = None
    score: Score | None = None

    def fits(self, meta: Any) -> bool:
        """Return whether a member with this meta is wanted. A value that cannot be compared does not fit."""
        where = self.where
        if where is None:
            return True
        if type(meta) is not dict:
            return False
        try:
            return all(name in meta and meta[name] == value for name, value in where.items())
        except Exception:  # noqa: BLE001  # one member's value must not end the picks of all, such as an array
            return False


ANY = Wanted()
"""Every member is wanted, and the rule decides."""


class Known(Protocol):
    """What this node knows of members beside their pids."""

    def is_plain(self, group: str) -> bool:
        """Return whether the load of each member of a group is what is outstanding at it."""

    def loads(self, group: str, pids: Sequence[Pid]) -> list[float]:
        """Return the loads of these members, which can be compared."""

    def is_busy(self, node: str) -> bool:
        """Return whether the event loop of a connected node stands still."""

    def meta(self, group: str, pid: Pid) -> Any:
        """Return the meta of a member, or None."""

    def describe(self, group: str, pids: Sequence[Pid]) -> list[MemberInfo]:
        """Return what is known of these members, with loads that can be compared."""


class Tried:
    """The members at which a request has failed.

    Attributes:
        pids: the members.
        nodes: the names of their nodes.
    """

    __slots__ = ("nodes", "pids")

    def __init__(self) -> None:
        self.pids: set[Pid] = set()
        self.nodes: set[str] = set()

    def add(self, pid: Pid) -> None:
        """Pass over a member and its node from now on."""
        self.pids.add(pid)
        self.nodes.add(pid.node)

    def leaves_another(self, members: Iterable[Pid]) -> bool:
        """Return whether there is a member at which the request has not failed."""
        return any(pid not in self.pids for pid in members)


_NOTHING_TRIED = Tried()
"""Never changed."""


class Picker:
    """Picks members, and remembers for each group whose turn it was last, and where keys went.

    Args:
        rng: for the rule ``random``, and for ties.
        load: returns the requests to a member that are outstanding, as this node knows them.
        known: what is known of members beside that.
        drain_step: returns how far the node of that name is with draining (`core.draining.Step`).
        sticky: the memory of ``sticky``.
        clock: returns the time, in seconds, for that memory.
    """

    def __init__(
        self,
        rng: random.Random,
        load: Callable[[Pid], int],
        known: Known,
        drain_step: Callable[[str], int],
        sticky: StickyKeys,
        clock: Callable[[], float],
    ) -> None:
        self._rng = rng
        self._load = load
        self._known = known
        self._drain_step = drain_step
        self._sticky = sticky
        self._clock = clock
        self._last: dict[str, Pid] = {}

    def pick(
        self,
        group: str,
        members: Members,
        by: By,
        key: Key | None,
        tried: Tried | None = None,
        wanted: Wanted = ANY,
    ) -> Pid:
        """Pick one of ``members``.

        Args:
            group: its name.
            members: of the group.
            by: the rule.
            key: for the rules with a key.
            tried: the members at which the request has failed already.
            wanted: which members are wanted, and a score in place of the rule.

        Raises:
            NoMember: ``members`` is empty, or none of them is wanted.
            ValueError: an unknown rule; a key without a rule that takes one, or such a rule without a key; a
                score beside a rule.
            TypeError: the key is not a str, bytes or int.
        """
        check_rule(by, key, wanted)
        if key is not None:
            return self._pick_by_key(group, members, key, tried, wanted, is_sticky=by == "sticky")
        rule = self._make_rule(group, members, by, wanted)
        chosen = None
        if wanted.where is not None and by != "round_robin" and members.joins >= MANY:
            enough = 1 if by == "random" and wanted.score is None else CHOSEN
            chosen = self._choose_of_some(rule, members, tried, group, wanted, enough)
        if chosen is None:
            if wanted.where is not None:
                members = self._only(group, wanted, members)
            if not members:
                raise _no_member(group, wanted)
            chosen = self._choose(rule, members, tried)
        if by == "round_robin":
            self._last[group] = chosen
        told = getattr(wanted.score, "picked", None)
        if told is not None:
            told(chosen)
        return chosen

    def _pick_by_key(
        self, group: str, members: Members, key: Key, tried: Tried | None, wanted: Wanted, *, is_sticky: bool
    ) -> Pid:
        """Apply ``key``, or ``sticky``."""
        if not members:
            raise _no_member(group, wanted)
        digest = digest_of(key)
        if not is_sticky:
            return self._owner(group, members, probes_of(digest), tried, wanted)
        now, kept_digest = self._clock(), digest[:STICKY_BYTES]
        kept = self._sticky.find(group, kept_digest, now)
        is_lost = kept is None or not members.has(kept) or not self._is_wanted(group, kept, wanted)
        if kept is None or is_lost or self._is_passed_over(kept, tried, keeps_busy=True):
            kept = self._owner(group, members, probes_of(digest), tried, wanted)
        self._sticky.keep(group, kept_digest, kept, now)
        return kept

    def _owner(
        self, group: str, members: Members, probes: Probes, tried: Tried | None, wanted: Wanted
    ) -> Pid:
        """Return the member to which a key belongs, of those to prefer. Raises: NoMember: none is wanted."""
        rings = members.rings()
        owner = rings.nearest(probes)
        if self._is_wanted(group, owner, wanted) and not self._is_passed_over(owner, tried, keeps_busy=True):
            return owner
        for may in self._suitable(group, tried, wanted):
            found = rings.nearest_of(probes, may)
            if found is not None:
                return found
        raise _no_member(group, wanted)

    def _suitable(self, group: str, tried: Tried | None, wanted: Wanted) -> Iterator[Callable[[Pid], bool]]:
        """Yield which members to prefer, the best ones first, in the order of `_preferred`."""
        fresh: list[Callable[[Pid], bool]] = [lambda _: True]
        if tried is not None:
            nodes, pids = tried.nodes, tried.pids
            fresh = [lambda pid: pid.node not in nodes, lambda pid: pid not in pids, *fresh]
        for is_fresh in fresh:
            for step in Step:
                yield partial(self._suits, group, wanted, is_fresh, step)

    def _suits(
        self, group: str, wanted: Wanted, is_fresh: Callable[[Pid], bool], most: Step, pid: Pid
    ) -> bool:
        return is_fresh(pid) and self._drain_step(pid.node) <= most and self._is_wanted(group, pid, wanted)

    def candidates(self, group: str, members: Members, wanted: Wanted) -> Iterator[Pid]:
        """Return the members that are wanted."""
        return (pid for pid in members if self._is_wanted(group, pid, wanted))

    def forget(self, group: str) -> None:
        """The group has lost its last member."""
        self._last.pop(group, None)

    def _is_wanted(self, group: str, pid: Pid, wanted: Wanted) -> bool:
        return wanted.where is None or wanted.fits(self._known.meta(group, pid))

    def _only(self, group: str, wanted: Wanted, members: Members) -> Members:
        """Return the members that are wanted."""
        meta = self._known.meta
        found = [[pid for pid in block if wanted.fits(meta(group, pid))] for block in members.blocks]
        return Members.of([block for block in found if block])

    def _choose_of_some(
        self, rule: _Rule, members: Members, tried: Tried | None, group: str, wanted: Wanted, count: int
    ) -> Pid | None:
        """Apply a rule to so many members of a large group that chance has found and that are wanted.

        Returns:
            None if chance has not found so many soon, or the rule has found one to pass over.
        """
        found: dict[Pid, None] = {}
        for _ in range(MOST_DRAWN):
            pid = self._any(members)
            if pid not in found and self._is_wanted(group, pid, wanted):
                found[pid] = None
                if len(found) == count:
                    chosen = rule(Members(found))
                    return None if self._is_passed_over(chosen, tried) else chosen
        return None

    def _choose(self, rule: _Rule, members: Members, tried: Tried | None) -> Pid:
        """Apply a rule to all members, and again to those that are left if it has found one to pass over."""
        chosen = rule(members)
        if not self._is_passed_over(chosen, tried):
            return chosen
        blocks = members.blocks
        return rule(Members.of(next(filter(None, self._preferred(blocks, tried)), blocks)))

    def _is_passed_over(self, pid: Pid, tried: Tried | None, *, keeps_busy: bool = False) -> bool:
        if self._drain_step(pid.node) or (tried is not None and pid.node in tried.nodes):
            return True
        return not keeps_busy and self._known.is_busy(pid.node)

    def _preferred(self, blocks: list[Block], tried: Tried | None) -> Iterator[list[Block]]:
        """Yield the members to prefer, the best ones first; some of these lists may be empty."""
        tried = tried or _NOTHING_TRIED
        fresh = [block for block in blocks if block[0].node not in tried.nodes]
        is_busy = self._known.is_busy
        yield next(self._by_step([block for block in fresh if not is_busy(block[0].node)]))
        yield from self._by_step(fresh)
        left = [[pid for pid in block if pid not in tried.pids] for block in blocks]
        yield from self._by_step([block for block in left if block])

    def _by_step(self, blocks: list[Block]) -> Iterator[list[Block]]:
        """Yield the members whose nodes do not drain, then all whose nodes refuse nothing, then all."""
        for step in (Step.NONE, Step.ANNOUNCED):
            yield [block for block in blocks if self._drain_step(block[0].node) <= step]
        yield blocks

    def _make_rule(self, group: str, members: Members, by: By, wanted: Wanted) -> _Rule:
        if wanted.score is not None:
            return partial(self._best, group, wanted.score)
        if by == "two_choices":
            return partial(self._two_choices, group)
        if by == "least_loaded" and not self._known.is_plain(group):
            return partial(self._lightest, group)
        if by == "least_loaded":
            return partial(self._least_loaded, members.joins == members.processes)
        last = self._last.get(group) if by == "round_robin" else None
        return self._any if last is None else partial(self._after, last)

    def _any(self, members: Members) -> Pid:
        return members.at(self._rng.randrange(members.joins))

    def _after(self, last: Pid, members: Members) -> Pid:
        return after(last, members.blocks)

    def _least_loaded(self, is_once: bool, members: Members) -> Pid:
        """Return one of the members with the smallest load, each with the same chance.

        No load is below 0. So a member without any, found by chance, is one of them, and where many are
        idle there is no need to look at all. ``is_once`` says that no process is there twice, which would
        double its chance.
        """
        if is_once:
            for _ in range(IDLE_TRIES):
                pid = self._any(members)
                if self._load(pid) == 0:
                    return pid
        compared = self._compared(members)
        loads = [self._load(pid) for pid in compared]
        least = min(loads)
        return self._rng.choice([pid for pid, load in zip(compared, loads, strict=True) if load == least])

    def _compared(self, members: Members) -> list[Pid]:
        """Return the members that are compared: all, or of many some that chance has chosen; each once."""
        joins = members.joins
        if joins <= MOST_COMPARED:
            return [*members] if joins == members.processes else [*dict.fromkeys(members)]
        return [*dict.fromkeys(map(members.at, self._rng.sample(range(joins), CHOSEN)))]

    def _lightest(self, group: str, members: Members) -> Pid:
        """Return one of the members with the smallest load, by what they report and what waits at them."""
        return self._least_of(group, self._compared(members))

    def _two_choices(self, group: str, members: Members) -> Pid:
        """Return the less loaded of two members that chance has chosen, in an order of chance."""
        joins, draw = members.joins, self._rng.random  # `sample` and `randrange` take ten times as long.
        first, second = int(draw() * joins), int(draw() * (joins - 1))
        if second >= first:
            second = (second + 1) % joins
        pids = members.at(first), members.at(second)
        one, other = self._known.loads(group, pids)
        return pids[0] if one <= other else pids[1]

    def _least_of(self, group: str, pids: list[Pid]) -> Pid:
        loads = self._known.loads(group, pids)
        least = min(loads)
        if loads.count(least) == 1:
            return pids[loads.index(least)]
        return self._rng.choice([pid for pid, load in zip(pids, loads, strict=True) if load == least])

    def _best(self, group: str, score: Score, members: Members) -> Pid:
        """Return one of the members with the highest score, each with the same chance; NaN is below all."""
        infos = self._known.describe(group, self._compared(members))
        scores = [score(info) for info in infos]
        highest = max((each for each in scores if each == each), default=None)  # noqa: PLR0124  # not NaN
        best = [info.pid for info, each in zip(infos, scores, strict=True) if each == highest]
        return self._rng.choice(best or [info.pid for info in infos])


def _no_member(group: str, wanted: Wanted) -> NoMember:
    return NoMember(group, "" if wanted.where is None else f"with {SHORT.repr(dict(wanted.where))}")


def check_rule(by: By, key: Key | None, wanted: Wanted = ANY) -> None:
    """Raise ValueError unless ``by`` is a rule, and ``key`` is given exactly if the rule takes one."""
    if by not in _RULES:
        raise ValueError(f"unknown rule {by!r}; use one of {', '.join(_RULES)}")
    if wanted.score is not None and by != "random":
        raise ValueError(f"score= picks by itself: it does not go with by={by!r}")
    if (by in _KEY_RULES) != (key is not None):
        raise ValueError("by='key' and by='sticky' need a key, and a key needs one of them")
