"""Identities that differ at every start: incarnations, pids, refs.

An IP address is not an identity: container platforms give it to the next container within a second.
So every pid and ref carries the incarnation of the node that made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

_RANDOM_BITS = 22


def new_incarnation(wall_ms: int, rng: random.Random) -> int:
    """A 64-bit number for one start of a node: 42 bits of wall-clock milliseconds, 22 random bits.

    Roughly ordered by time, for people; nothing compares two of them by size.
    Source: OTP's creation (32 bits, erl_dist_protocol); differs: wide enough never to come twice.
    """
    return ((wall_ms & ((1 << 42) - 1)) << _RANDOM_BITS) | rng.getrandbits(_RANDOM_BITS)


@dataclass(frozen=True, slots=True)
class Pid:
    """The address of one process: valid for the incarnation of the node that spawned it."""

    node: str
    incarnation: int
    number: int

    def __str__(self) -> str:
        return f"<{self.node} {self.incarnation:x} {self.number}>"


@dataclass(frozen=True, slots=True)
class Ref:
    """A value that is unique in the cluster, for telling one request or subscription from another."""

    node: str
    incarnation: int
    number: int

    def __str__(self) -> str:
        return f"#Ref<{self.node} {self.incarnation:x} {self.number}>"
