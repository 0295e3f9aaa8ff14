"""How much each shard prefers each node: the same on every node, and cheap for thousands of shards.

A node has a number of 64 bits, its *seed*, hashed from its name. A shard has an odd one, its *factor*, hashed
from its kind and number. The shard prefers the node for which ``seed * factor`` is the largest, in the lower
64 bits of the product. So how a shard ranks the nodes depends on nothing but the shard and each node by
itself.

A kind has up to 4,096 shards, and there may be 64 hosts, so a hash for each pair would take a third of a
second. Here each node is hashed once, eight shards at a time, and `Preferences` ranks all hosts for one shard
with one multiplication of a large integer: the seeds stand in lanes of 128 bits, so that no product reaches
into the next lane.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (HRW); differs: a
multiplication in place of a hash of shard and node, since both factors are random already.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

from fleetlm.core.rings import hash_of

LANE_BYTES = 16
_MASK = (1 << 64) - 1
_FACTORS = 8
"""Factors in one hash of 64 bytes."""


@lru_cache(maxsize=1_024)
def seed_of(node: str) -> int:
    """Return the seed of a node."""
    return int.from_bytes(hash_of(node.encode(), 8), "little")


def factor_of(kind: str, shard: int) -> int:
    """Return the factor of a shard."""
    return _block(kind, shard // _FACTORS)[shard % _FACTORS] | 1


@lru_cache(maxsize=64)
def factors_of(kind: str, shards: int) -> tuple[int, ...]:
    """Return the factors of all shards of a kind. Takes about a millisecond for 4,096, once."""
    blocks = (_block(kind, number) for number in range(-(-shards // _FACTORS)))
    return tuple(factor | 1 for block in blocks for factor in block)[:shards]


def _block(kind: str, number: int) -> tuple[int, ...]:
    """Return what makes the factors of eight shards in a row: one hash has room for them."""
    return struct.unpack(f"<{_FACTORS}Q", hash_of(f"{kind}\0{number}".encode(), 8 * _FACTORS))


def score(factor: int, node: str) -> int:
    """Return how much the shard with this factor prefers a node."""
    return factor * seed_of(node) & _MASK


class Preferences:
    """Some hosts, to be ranked for one shard after the other.

    Args:
        hosts: their names, at least one. Equal scores go to the name that sorts first.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = sorted(hosts)
        lanes = b"".join(seed_of(host).to_bytes(LANE_BYTES, "little") for host in self._hosts)
        self._lanes = int.from_bytes(lanes, "little")
        self._size = len(lanes)
        self._scores = struct.Struct("<" + "Q8x" * len(self._hosts))

    def best(self, factor: int) -> str:
        """Return the host that the shard with this factor prefers. Takes a few microseconds for 64 hosts."""
        scores = self._scores.unpack((self._lanes * factor).to_bytes(self._size, "little"))
        return self._hosts[scores.index(max(scores))]
