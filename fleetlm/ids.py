"""Identities that differ at every start of a node: incarnations, pids and refs.

An IP address does not identify a node, since container platforms give it to the next container within a
second. So every pid and ref contains the incarnation of the node that made it, and a message for another
incarnation is never delivered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetlm.records import Record

if TYPE_CHECKING:
    import random

_RANDOM_BITS = 22
"""Random bits of an incarnation: two starts in one millisecond coincide once in 4 million times."""


def new_incarnation(wall_ms: int, rng: random.Random) -> int:
    """Make the 64-bit number of one start of a node: 42 bits of milliseconds and 22 random bits.

    Incarnations are roughly ordered by time, to help people read logs. No code compares them by size, so
    a clock that goes back does no harm.

    Source: OTP's creation (32 bits, erl_dist_protocol); differs: wide enough not to repeat.

    Args:
        wall_ms: the wall clock, in milliseconds since 1970.
        rng: the source of the random bits.
    """
    return ((wall_ms & ((1 << 42) - 1)) << _RANDOM_BITS) | rng.getrandbits(_RANDOM_BITS)


class Pid(Record):
    """The address of one process. It never addresses another one, even after its node has restarted."""

    node: str
    incarnation: int
    number: int

    def __str__(self) -> str:
        return f"<{self.node} {self.incarnation:x} {self.number}>"


def pid_order(pid: Pid) -> tuple[str, int, int]:
    """The sort key of pids: node name, incarnation, number; the same order on every node."""
    return (pid.node, pid.incarnation, pid.number)


class Ref(Record):
    """A value that is unique in the cluster. Identifies a request, a monitor or a subscription."""

    node: str
    incarnation: int
    number: int

    def __str__(self) -> str:
        return f"#Ref<{self.node} {self.incarnation:x} {self.number}>"
