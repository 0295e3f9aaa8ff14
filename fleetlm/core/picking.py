"""The rules by which one member of a process group is picked.

Every rule prefers members on nodes that stay: a member on a draining node is picked only if there is no
other. The rules: ``random``; ``round_robin``, in the order of `pid_order`, remembered for each group;
``key``, rendezvous hashing, so that equal keys go to the same member on every node; ``least_loaded``, the
fewest outstanding requests of this node, ties by chance.
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
    """Picks members, and remembers for each group whose turn it was last.

    Args:
        rng: for the rule ``random``, and for ties.
        load: returns the requests to a member that are outstanding, as this node knows them.
        draining: returns whether the node of that name is draining.
    """

    def __init__(
        self, rng: random.Random, load: Callable[[Pid], int], draining: Callable[[str], bool]
    ) -> None:
        self._rng = rng
        self._load = load
        self._draining = draining
        self._last: dict[str, Pid] = {}

    def pick(self, group: str, members: Sequence[Pid], by: By, key: Key | None) -> Pid:
        """Pick one of ``members``, which must be in the order of `pid_order`.

        Raises:
            NoMember: ``members`` is empty.
            ValueError: an unknown rule; a key without the rule "key", or that rule without a key.
            TypeError: the key is not a str, bytes or int.
        """
        if by not in _RULES:
            raise ValueError(f"unknown rule {by!r}; use one of {', '.join(_RULES)}")
        if (by == "key") != (key is not None):
            raise ValueError("a key needs by='key', and by='key' needs a key")
        if not members:
            raise NoMember(group)
        rule = self._make_rule(group, by, key)
        chosen = rule(members)
        if self._draining(chosen.node):
            staying = [pid for pid in members if not self._draining(pid.node)]
            chosen = rule(staying or members)
        if by == "round_robin":
            self._last[group] = chosen
        return chosen

    def forget(self, group: str) -> None:
        """The group has lost its last member."""
        self._last.pop(group, None)

    def _make_rule(self, group: str, by: By, key: Key | None) -> Callable[[Sequence[Pid]], Pid]:
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
    """Return the member that follows ``last`` in order, whether or not ``last`` is still a member."""
    return members[bisect_right(members, pid_order(last), key=pid_order) % len(members)]


def digest_of(key: Key) -> bytes:
    """Hash a key to 32 bytes; ``1``, ``"1"`` and ``b"1"`` are three keys. Raises: TypeError."""
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
    """Return the member with the largest hash of key and member.

    A member that leaves gives away only its own keys, and a member that joins takes over only the keys that
    it will keep; no other key moves.
    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (HRW).
    """
    # The text of a pid has all its fields, so two members never tie.
    return max(members, key=lambda pid: hashlib.blake2b(digest + str(pid).encode(), digest_size=16).digest())
