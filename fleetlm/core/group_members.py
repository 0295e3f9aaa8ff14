"""The members of one process group, in order, kept as they come and go.

A group may have 10,000 members of which some join and leave each second, and a program picks one for each
request. So the order is never made anew: each node's members are a *block*, a list sorted by number, and the
blocks are sorted by the node's name. A join and a leave change one block, and the loss of a node drops one
block, however many members it has. A process that joined several times stands as often in its block.

The rings for picks with a key (`core.rings`) are made at the first of them, and change with the members from
then on. They are dropped if the members have changed more than twice over since the last such pick: to make
them anew costs less than that.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain

from fleetlm.core.rings import Rings
from fleetlm.ids import Pid, pid_order

Block = list[Pid]
"""The members on one node, of one incarnation, sorted by number; never empty."""

_SPARED = 100
"""Changes after which the rings of a small group are kept all the same."""


class Members:
    """The members of one group, in the order of `pid_order`; iterating gives a pid for each join.

    Attributes:
        blocks: by the name of their node; must not be changed by others.
        joins: how many memberships there are.
        processes: how many processes are members.
    """

    __slots__ = ("_ends", "_nodes", "_rings", "_unused", "blocks", "joins", "processes")

    def __init__(self, pids: Iterable[Pid] = ()) -> None:
        self.blocks: list[Block] = []
        self.joins: int = 0
        self.processes: int = 0
        self._nodes: list[str] = []
        """Name of the node of each block, in the same order."""
        self._ends: list[int] = []
        """For each block, how many memberships there are up to its end; empty after a change."""
        self._rings: Rings | None = None
        self._unused = 0
        """Changes of the rings since the last use."""
        for pid in pids:
            self.add(pid)

    @classmethod
    def of(cls, blocks: list[Block]) -> Members:
        """Return some of the members of a group, which are only picked from: nothing is added or removed."""
        members = cls()
        members.blocks = blocks
        members.joins = sum(map(len, blocks))
        return members

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

    def rings(self) -> Rings:
        """Return the rings for picks with a key; there must be a member."""
        if self._rings is None:
            self._rings = Rings(self if self.joins == self.processes else dict.fromkeys(self))
        self._unused = 0
        return self._rings

    def at(self, index: int) -> Pid:
        """Return the member at an index."""
        ends = self._ends
        if not ends:
            ends = self._ends = [*accumulate(map(len, self.blocks))]
        at = bisect_right(ends, index)
        return self.blocks[at][index - ends[at]]

    def add(self, pid: Pid) -> None:
        """Enter a membership."""
        at = bisect_left(self._nodes, pid.node)
        if at == len(self._nodes) or self._nodes[at] != pid.node:
            self._nodes.insert(at, pid.node)
            self.blocks.insert(at, [])
        block = self.blocks[at]
        if not _times(block, pid):
            self.processes += 1
            rings = self._changed_rings()
            if rings is not None:
                rings.add(pid)
        block.insert(bisect_right(block, pid.number, key=_number), pid)
        self.joins += 1
        self._ends = []

    def remove(self, pid: Pid) -> None:
        """Take back one membership, which must exist."""
        block = self.block(pid.node)
        del block[bisect_left(block, pid.number, key=_number)]
        self.joins -= 1
        self._ends = []
        if not _times(block, pid):
            self.processes -= 1
            rings = self._changed_rings()
            if rings is not None:
                rings.remove(pid)
        if not block:
            self._drop(pid.node)

    def remove_node(self, node: str) -> None:
        """Take back all memberships of a node's processes at once."""
        block = self.block(node)
        if block:
            once = self.joins == self.processes  # No process has joined twice: no need to look.
            pids = block if once else [*dict.fromkeys(block)]
            self.processes -= len(pids)
            self.joins -= len(block)
            self._ends = []
            rings = self._changed_rings(len(pids))
            if rings is not None:
                rings.remove_node(pids)
            self._drop(node)

    def _changed_rings(self, changes: int = 1) -> Rings | None:
        """Return the rings, which are about to change, if they are to be kept."""
        self._unused += changes
        if not self.processes or self._unused > 2 * self.processes + _SPARED:
            self._rings = None
        return self._rings

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


def _number(pid: Pid) -> int:
    return pid.number


def _node(block: Block) -> str:
    return block[0].node


def _times(block: Block, pid: Pid) -> int:
    """Return how many times a process is in the block of its node."""
    return bisect_right(block, pid.number, key=_number) - bisect_left(block, pid.number, key=_number)
