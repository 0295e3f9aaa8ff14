"""One of many: the rules by which a member of a group is chosen.

Every rule prefers members on nodes that stay: one on a node that is draining is chosen only where
there is nobody else.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from fleetlm.core.group_table import pid_order
from fleetlm.errors import NoMember
from fleetlm.ids import Pid

if TYPE_CHECKING:
    import random

By = Literal["random", "round_robin", "key", "least_loaded"]
Key = str | bytes | int

_RULES = get_args(By)


class Picker:
    """Chooses, and remembers whose turn it was in each group.

    Args:
        rng: for chance, and for ties.
        load: requests of a member that are outstanding, as this node knows it.
        draining: whether a node, by name, is leaving.
    """

    def __init__(
        self, rng: random.Random, load: Callable[[Pid], int], draining: Callable[[str], bool]
    ) -> None:
        self._rng = rng
        self._load = load
        self._draining = draining
        self._last: dict[str, Pid] = {}

    def pick(self, group: str, members: Sequence[Pid], by: By, key: Key | None) -> Pid:
        """One of ``members``, which are in the order of `pid_order`.

        Raises:
            NoMember: there is none.
            ValueError: no such rule, or a key without the rule "key" or the other way round.
            TypeError: a key of another type.
        """
        if by not in _RULES:
            raise ValueError(f"there is no rule {by!r}; there are {', '.join(_RULES)}")
        if (by == "key") != (key is not None):
            raise ValueError("a key is for by='key', and by='key' needs one")
        if not members:
            raise NoMember(group)
        rule = self._rule(group, by, key)
        chosen = rule(members)
        if self._draining(chosen.node):
            staying = [pid for pid in members if not self._draining(pid.node)]
            chosen = rule(staying or members)
        if by == "round_robin":
            self._last[group] = chosen
        return chosen

    def forget(self, group: str) -> None:
        """The group has no member any more."""
        self._last.pop(group, None)

    def _rule(self, group: str, by: By, key: Key | None) -> Callable[[Sequence[Pid]], Pid]:
        if key is not None:
            return partial(rendezvous, digest_of(key))
        if by == "least_loaded":
            return self._least_loaded
        last = self._last.get(group) if by == "round_robin" else None
        return self._rng.choice if last is None else partial(after, last)

    def _least_loaded(self, members: Sequence[Pid]) -> Pid:
        loads = [self._load(pid) for pid in members]
        least = min(loads)
        return self._rng.choice([pid for pid, load in zip(members, loads, strict=True) if load == least])


def after(last: Pid, members: Sequence[Pid]) -> Pid:
    """The next one in order, so that members that come and go change nobody else's turn."""
    return members[bisect_right(members, pid_order(last), key=pid_order) % len(members)]


def digest_of(key: Key) -> bytes:
    """A key as 32 bytes. Equal keys of two types are two keys. Raises: TypeError."""
    match key:
        case bytes():
            data = b"b" + key
        case str():
            data = b"s" + key.encode("utf-8", "surrogatepass")
        case int() if type(key) is int:
            data = b"i%x" % key
        case _:
            raise TypeError(f"a key is str, bytes or int, not {type(key).__name__}")
    return hashlib.blake2b(data, digest_size=32).digest()


def rendezvous(digest: bytes, members: Sequence[Pid]) -> Pid:
    """The member with the largest hash of key and member: of each key's members, one is always first.

    One that goes gives away its own keys alone, one that comes takes only those that it gets.
    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (HRW).
    """
    # The text of a pid holds all of it: two members never tie, one that joined twice is one.
    return max(members, key=lambda pid: hashlib.blake2b(digest + str(pid).encode(), digest_size=16).digest())
