"""The rules by which one member of a process group is picked.

Every rule prefers members on nodes that stay: a member on a draining node is picked only if there is no
other. The rules: ``random``; ``round_robin``, in the order of `pid_order`, remembered for each group;
``key``, rendezvous hashing, so that equal keys go to the same member on every node; ``least_loaded``, the
fewest outstanding requests of this node, ties by chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Literal, get_args

from fleetlm.core.group_members import Block, Members, after, at_index
from fleetlm.errors import NoMember
from fleetlm.ids import Pid

if TYPE_CHECKING:
    import random

By = Literal["random", "round_robin", "key", "least_loaded"]
Key = str | bytes | int

_RULES = get_args(By)
IDLE_TRIES = 8
"""Members that ``least_loaded`` looks at by chance before it looks at all: enough where a third is idle."""


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

    def pick(self, group: str, members: Members, by: By, key: Key | None) -> Pid:
        """Pick one of ``members``.

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
        rule = self._make_rule(group, members, by, key)
        chosen = rule(members.blocks)
        if self._draining(chosen.node):
            staying = [block for block in members.blocks if not self._draining(block[0].node)]
            chosen = rule(staying or members.blocks)
        if by == "round_robin":
            self._last[group] = chosen
        return chosen

    def forget(self, group: str) -> None:
        """The group has lost its last member."""
        self._last.pop(group, None)

    def _make_rule(
        self, group: str, members: Members, by: By, key: Key | None
    ) -> Callable[[list[Block]], Pid]:
        if key is not None:
            return partial(rendezvous, digest_of(key))
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
        if is_once:
            for _ in range(IDLE_TRIES):
                pid = self._any(blocks)
                if self._load(pid) == 0:
                    return pid
        members = dict.fromkeys(chain.from_iterable(blocks))
        loads = [self._load(pid) for pid in members]
        least = min(loads)
        return self._rng.choice([pid for pid, load in zip(members, loads, strict=True) if load == least])


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


def rendezvous(digest: bytes, blocks: list[Block]) -> Pid:
    """Return the member with the largest hash of key and member. Takes about 1 µs for each member.

    A member that leaves gives away only its own keys, and a member that joins takes over only the keys that
    it will keep; no other key moves.
    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (HRW).
    """
    best, chosen = b"", blocks[0][0]
    for block in blocks:
        # The text of a pid has all its fields, so two members never tie. Members of one block differ in
        # its last part only, so the rest is hashed once.
        shared = hashlib.blake2b(digest + str(block[0]).rpartition(" ")[0].encode(), digest_size=16)
        for pid in block:
            mixed = shared.copy()
            mixed.update(b" %d>" % pid.number)
            score = mixed.digest()
            if score > best:
                best, chosen = score, pid
    return chosen
