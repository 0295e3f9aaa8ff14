"""Rendezvous hashing: which member a key belongs to, the same on every node that knows the same members.

Each member has a number of 64 bits, its *seed*, hashed from its pid. Each key has one, too, which is made
odd. The key belongs to the member for which ``seed * key`` is the largest, in the lower 64 bits of the
product. So how a key ranks the members depends on nothing but the key and each member by itself. From that
follows what moves: where members leave, only their own keys, each to the next in its ranking; where one
joins n others, only the keys that rank it first, one in ``n + 1`` of all, and they move to it.

A group may have thousands of members, and a program may pick one for each request, so all products are made
with one multiplication of a large integer: the seeds stand in *lanes* of 128 bits, so that no product reaches
into the next lane. A block of members keeps its lanes (`Block.lanes`); a join or a leave changes one of them.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (HRW); differs: a
multiplication in place of a hash of key and member, since both factors are random already.
"""

from __future__ import annotations

import struct

from fleetlm.core.group_members import LANE_BYTES, Block, at_index, hash_of, lane_of
from fleetlm.ids import Pid

Key = str | bytes | int


def digest_of(key: Key) -> bytes:
    """Hash a key to 16 bytes; ``1``, ``"1"`` and ``b"1"`` are three keys. Raises: TypeError."""
    match key:
        case bytes():
            data = b"b" + key
        case str():
            data = b"s" + key.encode("utf-8", "surrogatepass")
        case int() if type(key) is int:
            data = b"i%x" % key
        case _:
            raise TypeError(f"a key is str, bytes or int, not {type(key).__name__}")
    return hash_of(data, 16)


def rendezvous(digest: bytes, blocks: list[Block]) -> Pid:
    """Return the member to which the key with this digest belongs. Takes about 0.2 µs for each member."""
    for block in blocks:
        if not block.lanes:
            block.lanes = b"".join(map(lane_of, block))
    lanes = b"".join([block.lanes for block in blocks])
    factor = int.from_bytes(digest[:8], "little") | 1
    products = int.from_bytes(lanes, "little") * factor
    scores = struct.unpack("<" + "Q8x" * (len(lanes) // LANE_BYTES), products.to_bytes(len(lanes), "little"))
    return at_index(scores.index(max(scores)), blocks)
