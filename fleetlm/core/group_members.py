"""The members of one process group, in order, kept as they come and go.

A group may have 10,000 members of which some join and leave each second, and a program picks one for each
request. So the order is never made anew: each node's members are a *block*, a list sorted by number, and the
blocks are sorted by the node's name. A join and a leave change one block, and the loss of a node drops one
block, however many members it has. A process that joined several times stands as often in its block.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain

from fleetlm.ids import Pid

LANE_BYTES = 16
"""Twice the size of a seed; see `rendezvous`."""


class Block(list[Pid]):
    """The members on one node, of one incarnation, sorted by number; never empty.

    Attributes:
        lanes: the seeds of the members for `rendezvous`, in 16 bytes each; empty until they are needed.
    """

    __slots__ = ("lanes",)

    def __init__(self, pids: Iterable[Pid] = ()) -> None:
        super().__init__(pids)
        self.lanes: bytes = b""


def hash_of(data: bytes, size_bytes: int) -> bytes:
    """Hash bytes to so many bytes, the same on every node."""
    import hashlib  # noqa: PLC0415  # it loads OpenSSL, and most programs pick without a key

    return hashlib.blake2b(data, digest_size=size_bytes).digest()


def lane_of(pid: Pid) -> bytes:
    """Return the seed of a member, with room for the upper half of a product."""
    return hash_of(str(pid).encode(), LANE_BYTES // 2) + bytes(LANE_BYTES // 2)


def pid_order(pid: Pid) -> tuple[str, int, int]:
    """The sort key of members: node name, incarnation, number; the same order on every node."""
    return (pid.node, pid.incarnation, pid.number)


class Members:
    """The members of one group, in the order of `pid_order`; iterating gives a pid for each join.

    Attributes:
        blocks: by the name of their node; must not be changed by others.
        joins: how many memberships there are.
        processes: how many processes are members.
    """

    __slots__ = ("_nodes", "blocks", "joins", "processes")

    def __init__(self, pids: Iterable[Pid] = ()) -> None:
        self.blocks: list[Block] = []
        self.joins: int = 0
        self.processes: int = 0
        self._nodes: list[str] = []
        """Name of the node of each block, in the same order."""
        for pid in pids:
            self.add(pid)

    def __iter__(self) -> Iterator[Pid]:
        return chain.from_iterable(self.blocks)

    def __len__(self) -> int:
        return self.joins

    def block(self, node: str) -> Block:
        """Return the members on a node; an empty list if there is none."""
        at = bisect_left(self._nodes, node)
        return self.blocks[at] if at < len(self._nodes) and self._nodes[at] == node else Block()

    def has(self, pid: Pid) -> bool:
        """Return whether a process is a member."""
        block = self.block(pid.node)
        at = bisect_left(block, pid.number, key=_number)
        return at < len(block) and block[at] == pid

    def add(self, pid: Pid) -> None:
        """Enter a membership."""
        at = bisect_left(self._nodes, pid.node)
        if at == len(self._nodes) or self._nodes[at] != pid.node:
            self._nodes.insert(at, pid.node)
            self.blocks.insert(at, Block())
        block = self.blocks[at]
        self.processes += not _times(block, pid)
        at = bisect_right(block, pid.number, key=_number)
        block.insert(at, pid)
        if block.lanes:
            at *= LANE_BYTES
            block.lanes = b"".join((block.lanes[:at], lane_of(pid), block.lanes[at:]))
        self.joins += 1

    def remove(self, pid: Pid) -> None:
        """Take back one membership, which must exist."""
        block = self.block(pid.node)
        at = bisect_left(block, pid.number, key=_number)
        del block[at]
        at *= LANE_BYTES
        block.lanes = block.lanes[:at] + block.lanes[at + LANE_BYTES :]
        self.joins -= 1
        self.processes -= not _times(block, pid)
        if not block:
            self._drop(pid.node)

    def remove_node(self, node: str) -> None:
        """Take back all memberships of a node's processes at once."""
        block = self.block(node)
        if block:
            once = self.joins == self.processes  # No process has joined twice: no need to look.
            self.processes -= len(block) if once else len({pid.number for pid in block})
            self.joins -= len(block)
            self._drop(node)

    def _drop(self, node: str) -> None:
        at = bisect_left(self._nodes, node)
        del self._nodes[at], self.blocks[at]


def after(last: Pid, blocks: list[Block]) -> Pid:
    """Return the member that follows ``last`` in order, whether or not ``last`` is still a member."""
    at = bisect_left(blocks, last.node, key=_node)
    if at < len(blocks) and _node(blocks[at]) == last.node:
        block = blocks[at]
        within = bisect_right(block, pid_order(last), key=pid_order)
        if within < len(block):
            return block[within]
        at += 1
    return blocks[at % len(blocks)][0]


def at_index(index: int, blocks: list[Block]) -> Pid:
    """Return the member at an index of all blocks together."""
    for block in blocks:
        if index < len(block):
            return block[index]
        index -= len(block)
    raise IndexError(index)


def _number(pid: Pid) -> int:
    return pid.number


def _node(block: Block) -> str:
    return block[0].node


def _times(block: Block, pid: Pid) -> int:
    """Return how many times a process is in the block of its node."""
    low = bisect_left(block, pid.number, key=_number)
    high = low
    while high < len(block) and block[high].number == pid.number:
        high += 1
    return high - low
