"""The rules by which one member of a process group is picked.

Every rule prefers members on nodes that stay: a member on a draining node is picked only if there is no
other, and then one whose node still serves everything before one whose node refuses new work. There is
always one, since messages are delivered all the same, and a call learns for how long it is refused. A
request that is repeated passes over the members at which it has failed, and before that all members on
their nodes, as long as there are others (`Tried`).

The rules: ``random``; ``round_robin``, in the order of `pid_order`, remembered for each group; ``key``,
rendezvous hashing, so that equal keys go to the same member on every node; ``sticky``, the member that the
key went to last, as this node remembers it, and for a new key the one that ``key`` picks; ``least_loaded``,
the fewest outstanding requests of this node, ties by chance; in a group of more than `MOST_COMPARED` members,
the fewest among `CHOSEN` of them by chance.

Source: M. Mitzenmacher, "The power of two choices in randomized load balancing", 1996: the least loaded of a
few that were chosen by chance is nearly the least loaded of all; differs: more than two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Literal, get_args

from fleetlm.core.draining import Step
from fleetlm.core.group_members import Block, Members, after, at_index
from fleetlm.core.rendezvous import Key, digest_of, rendezvous
from fleetlm.errors import NoMember

if TYPE_CHECKING:
    import random

    from fleetlm.core.sticky_keys import StickyKeys
    from fleetlm.ids import Pid

By = Literal["random", "round_robin", "key", "sticky", "least_loaded"]

_RULES = get_args(By)
_KEY_RULES = ("key", "sticky")
IDLE_TRIES = 8
"""Members that ``least_loaded`` looks at by chance before it looks at all: enough where a third is idle."""

MOST_COMPARED = 128
"""In larger groups ``least_loaded`` does not compare all members, which takes half a microsecond for each."""
CHOSEN = 32
"""Members that ``least_loaded`` compares in larger groups."""

_Rule = Callable[[list[Block]], "Pid"]


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

    def leaves_another(self, members: Members) -> bool:
        """Return whether there is a member at which the request has not failed."""
        return any(pid not in self.pids for pid in members)


_NOTHING_TRIED = Tried()
"""Never changed."""


class Picker:
    """Picks members, and remembers for each group whose turn it was last, and where keys went.

    Args:
        rng: for the rule ``random``, and for ties.
        load: returns the requests to a member that are outstanding, as this node knows them.
        drain_step: returns how far the node of that name is with draining (`core.draining.Step`).
        sticky: the memory of ``sticky``.
        clock: returns the time, in seconds, for that memory.
    """

    def __init__(
        self,
        rng: random.Random,
        load: Callable[[Pid], int],
        drain_step: Callable[[str], int],
        sticky: StickyKeys,
        clock: Callable[[], float],
    ) -> None:
        self._rng = rng
        self._load = load
        self._drain_step = drain_step
        self._sticky = sticky
        self._clock = clock
        self._last: dict[str, Pid] = {}

    def pick(self, group: str, members: Members, by: By, key: Key | None, tried: Tried | None = None) -> Pid:
        """Pick one of ``members``.

        Args:
            group: its name.
            members: of the group.
            by: the rule.
            key: for the rules with a key.
            tried: the members at which the request has failed already.

        Raises:
            NoMember: ``members`` is empty.
            ValueError: an unknown rule; a key without a rule that takes one, or such a rule without a key.
            TypeError: the key is not a str, bytes or int.
        """
        check_rule(by, key)
        if not members:
            raise NoMember(group)
        if key is None:
            chosen = self._choose(self._make_rule(group, members, by), members, tried)
            if by == "round_robin":
                self._last[group] = chosen
            return chosen
        digest = digest_of(key)
        rule = partial(rendezvous, digest)
        if by == "key":
            return self._choose(rule, members, tried)
        now = self._clock()
        kept = self._sticky.find(group, digest, now)
        if kept is None or not members.has(kept) or self._is_passed_over(kept, tried):
            kept = self._choose(rule, members, tried)
        self._sticky.keep(group, digest, kept, now)
        return kept

    def forget(self, group: str) -> None:
        """The group has lost its last member."""
        self._last.pop(group, None)

    def _choose(self, rule: _Rule, members: Members, tried: Tried | None) -> Pid:
        """Apply a rule to all members, and again to those that are left if it has found one to pass over."""
        chosen = rule(members.blocks)
        if not self._is_passed_over(chosen, tried):
            return chosen
        return rule(next(filter(None, self._preferred(members.blocks, tried)), members.blocks))

    def _is_passed_over(self, pid: Pid, tried: Tried | None) -> bool:
        return bool(self._drain_step(pid.node)) or (tried is not None and pid.node in tried.nodes)

    def _preferred(self, blocks: list[Block], tried: Tried | None) -> Iterator[list[Block]]:
        """Yield the members to prefer, the best ones first; some of these lists may be empty."""
        tried = tried or _NOTHING_TRIED
        fresh = [block for block in blocks if block[0].node not in tried.nodes]
        yield from self._by_step(fresh)
        left = [Block(pid for pid in block if pid not in tried.pids) for block in blocks]
        yield from self._by_step([block for block in left if block])

    def _by_step(self, blocks: list[Block]) -> Iterator[list[Block]]:
        """Yield the members whose nodes do not drain, then all whose nodes refuse nothing, then all."""
        for step in (Step.NONE, Step.ANNOUNCED):
            yield [block for block in blocks if self._drain_step(block[0].node) <= step]
        yield blocks

    def _make_rule(self, group: str, members: Members, by: By) -> _Rule:
        if by == "least_loaded":
            return partial(self._least_loaded, members.joins == members.processes)
        last = self._last.get(group) if by == "round_robin" else None
        return self._any if last is None else partial(after, last)

    def _any(self, blocks: list[Block]) -> Pid:
        return at_index(self._rng.randrange(sum(map(len, blocks))), blocks)

    def _least_loaded(self, is_once: bool, blocks: list[Block]) -> Pid:
        """Return one of the members with the smallest load, each with the same chance.

        No load is below 0. So a member without any, found by chance, is one of them, and where many are
        idle there is no need to look at all. ``is_once`` says that no process is there twice, which would
        double its chance.
        """
        joins = sum(map(len, blocks))
        if is_once:
            for _ in range(IDLE_TRIES):
                pid = self._any(blocks)
                if self._load(pid) == 0:
                    return pid
        if joins <= MOST_COMPARED:
            members = dict.fromkeys(chain.from_iterable(blocks))
        else:
            chosen = self._rng.sample(range(joins), CHOSEN)
            members = dict.fromkeys(at_index(index, blocks) for index in chosen)
        loads = [self._load(pid) for pid in members]
        least = min(loads)
        return self._rng.choice([pid for pid, load in zip(members, loads, strict=True) if load == least])


def check_rule(by: By, key: Key | None) -> None:
    """Raise ValueError unless ``by`` is a rule, and ``key`` is given exactly if the rule takes one."""
    if by not in _RULES:
        raise ValueError(f"unknown rule {by!r}; use one of {', '.join(_RULES)}")
    if (by in _KEY_RULES) != (key is not None):
        raise ValueError("by='key' and by='sticky' need a key, and a key needs one of them")
