"""Process groups: which processes are members of which group, as each node tells about its own processes.

A group exists while it has a member, and a process may join a group several times. Each node speaks only
for its own processes. It tells every node that connects all its memberships first, then every change, and
what a node has told is dropped when the connection to it ends. So nothing is ever merged, there is no lock
and no tombstone, and two connected nodes see the same members once what they sent has arrived.

Facts come in: a process of this node joined, left or ended; a connected node told a fact of its own; a
connection ended. Effects come out: what to tell every connected node (`Tell`), and what changed here
(`Joined`, `Left`). `directory.groups` performs them.

Facts on the wire (topic ``groups`` of `wire.operations.table`):

- ``["join", {group: [number, ...]}]``, at most `MAX_PIECE_MEMBERSHIPS` memberships
- ``["leave", {group: [number, ...]}]``, likewise
- ``["exit", number]``: the process left all its groups because it ended

They have numbers instead of pids, so that a node cannot speak of another node's processes.

**What a membership costs.** Python's garbage collector visits every object that may refer to others, and the
loop stands still meanwhile: for a tenth of a second, if each membership that one peer may have were nine such
objects. Even the entries of a dict are visited, unless all of its keys and values are texts and numbers. So a
group with one membership, of which nobody has asked, is a number in a dict of such groups (`_lone`), and a
process with one membership is in a dict of such processes (`_Memberships`). `Members` are made when there is
a second one, or when somebody asks for them.

**The loss of a node.** Its memberships are hidden at once and taken out in small steps, since 100,000 of them
take half a second. Whoever asks for a group in between gets it without them (`_purged`).

Source: OTP pg.erl; differs: one scope, groups are named by text, and the reason of a `Left` tells leaving
from ending and from the loss of the node.
"""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat
from typing import Any

from fleetlm.core.group_members import Members
from fleetlm.core.one_by_one import one_by_one
from fleetlm.core.speakers import check_speaker
from fleetlm.errors import NoProcess, TooManyMemberships
from fleetlm.ids import Pid
from fleetlm.messages import Joined, Left
from fleetlm.names import check_process_name
from fleetlm.records import Record
from fleetlm.texts import SHORT

MAX_PIECE_MEMBERSHIPS = 200
"""Memberships in one fact, of this node and of peers: it stays below 256 KiB even if each is of a group with
the longest name. A peer may choose numbers that collide in tables, so that each membership takes 0.2 ms."""
MAX_ENDED_MEMBERSHIPS = 64
"""Memberships of a process of a peer that has ended which one step takes away."""

_NUMBER_BITS = 64
_NUMBER_END = 1 << _NUMBER_BITS
"""Numbers of processes are below this."""
_NUMBER_MASK = _NUMBER_END - 1


class Tell(Record):
    """Send this fact to every connected node."""

    fact: list[Any]


Effect = Tell | Joined | Left

Numbers = dict[str, list[int]]
"""Group → numbers of one node's processes; a process that joined twice is there twice."""
_Lone = tuple[str, int, int]
"""The node, incarnation and number of the one member of a group."""
_NOWHERE: dict[str, int] = {}
"""The groups of a process that has not joined any; never changed."""
_NOBODY = Members()
"""The members of a group that does not exist; never changed."""


class _Memberships:
    """The memberships of one node's processes, as that node has told them.

    Args:
        node: its name.
        incarnation: likewise.
        slot: a number that no other one has, by which `GroupTable` refers to this.
    """

    __slots__ = ("_more", "_only", "count", "incarnation", "node", "slot")

    def __init__(self, node: str, incarnation: int, slot: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.slot = slot
        self.count = 0
        """How many memberships there are in all."""
        self._only: dict[int, str] = {}
        """Number of a process with one membership → its group."""
        self._more: dict[int, dict[str, int]] = {}
        """Number of any other process → group → how many times it has joined."""

    def __contains__(self, number: int) -> bool:
        """Whether a process is a member of a group."""
        return number in self._only or number in self._more

    def __iter__(self) -> Iterator[int]:
        """Iterate over the numbers of the processes that are members of a group."""
        return chain(self._only, self._more)

    def of(self, number: int) -> dict[str, int]:
        """Return the groups of a process, with how many times it has joined; not to be changed."""
        group = self._only.get(number)
        return self._more.get(number, _NOWHERE) if group is None else {group: 1}

    def add(self, number: int, group: str) -> int:
        """Enter a membership. Returns how many times the process is a member now."""
        self.count += 1
        only = self._only.pop(number, None)
        if only is None and number not in self._more:
            self._only[number] = group
            return 1
        mine = self._more.setdefault(number, {}) if only is None else self._more.setdefault(number, {only: 1})
        mine[group] = mine.get(group, 0) + 1
        return mine[group]

    def remove(self, number: int, group: str) -> None:
        """Take a membership away, which exists."""
        self.count -= 1
        if self._only.pop(number, None) is not None:
            return
        mine = self._more[number]
        mine[group] -= 1
        if not mine[group]:
            del mine[group]
        if not mine:
            del self._more[number]

    def take(self, number: int) -> dict[str, int]:
        """Take all memberships of a process away, and return them. They are still counted."""
        group = self._only.pop(number, None)
        return self._more.pop(number, _NOWHERE) if group is None else {group: 1}

    def pid(self, number: int) -> Pid:
        return Pid(self.node, self.incarnation, number)

    def pairs(self, numbers: Iterable[int]) -> Iterator[tuple[str, int]]:
        for number in numbers:
            for group, times in self.of(number).items():
                yield from repeat((group, number), times)


class GroupTable:
    """All groups, as this node knows them.

    Args:
        node: this node's name.
        incarnation: of this start of the node.
        max_memberships: how many one node may have; see `Settings.max_memberships`.
        alive: returns whether a pid is a living process of this node.
        before_change: called with the number of a process of this node before its memberships change.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        max_memberships: int,
        alive: Callable[[Pid], bool],
        before_change: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._max = max_memberships
        self._alive = alive
        self._before_change = before_change
        self._own = _Memberships(node, incarnation, 0)
        self._said = {node: self._own}
        """Node → its memberships; this node's are among them."""
        self._slots = {0: self._own}
        """Slot → memberships: those in `_said` and in `_leaving`."""
        self._last_slot = 0
        self._groups: dict[str, Members] = {}
        """The members of each group, but for those in `_lone`."""
        self._lone: dict[str, int] = {}
        """Group with one membership → the slot of its node and the number of the process; see `_purged`."""
        self._leaving: dict[str, _Memberships] = {}
        """Nodes that were lost → their memberships, not all of which have been taken out of the groups."""
        self._new: list[tuple[str, Pid]] = []

    # Queries.

    def members(self, group: str) -> Members:
        """Return all members in the order of `pid_order`; the caller must not keep or change the object."""
        known = self._groups.get(group)
        if known is not None and not self._leaving:
            return known
        found = self._purged(group)
        if isinstance(found, tuple):
            del self._lone[group]
            found = self._groups[group] = Members((Pid(*found),))
        return found or _NOBODY

    def local_members(self, group: str) -> list[Pid]:
        """Return the members on this node, in the same order."""
        return [*self.members(group).block(self._own.node)]

    def groups(self) -> list[str]:
        """Return the names of all groups, sorted."""
        if self._leaving:
            return sorted(group for group in [*self._groups, *self._lone] if self.has(group))
        return sorted(chain(self._groups, self._lone))

    @property
    def count(self) -> int:
        """How many groups there are; those that a node had which was just lost may be among them."""
        return len(self._groups) + len(self._lone)

    def first(self, most: int, looked_at: int) -> list[tuple[str, Members]]:
        """Return the first ``most`` groups by name, of ``looked_at`` old ones, those in use before others."""
        some = list(islice(chain(self._groups, self._lone), looked_at))
        oldest = [group for group in some if self.has(group)]
        return [(group, self.members(group)) for group in heapq.nsmallest(most, oldest)]

    @property
    def memberships(self) -> int:
        """How many memberships there are on all nodes."""
        return sum(said.count for said in self._said.values())

    def has(self, group: str) -> bool:
        """Return whether a group has a member."""
        return bool(self._purged(group))

    def has_member(self, group: str, pid: Pid) -> bool:
        """Return whether a process is a member of a group."""
        found = self._purged(group)
        if isinstance(found, tuple):
            return found == (pid.node, pid.incarnation, pid.number)
        return found is not None and found.has(pid)

    def take_new(self) -> list[tuple[str, Pid]]:
        """Return groups and processes that have become members since the last call: not those that were."""
        new, self._new = self._new, []
        return new

    def own_keys(self) -> Iterable[int]:
        """Return the numbers of the processes of this node that are members of a group."""
        return self._own

    def own_facts(self, numbers: Iterable[int]) -> Iterator[list[Any]]:
        """Return all memberships of these processes of this node as facts, for a node that has connected."""
        return (["join", piece] for piece in _split(self._own.pairs(numbers)))

    # Facts about this node.

    def joined(self, group: str, pids: Iterable[Pid]) -> list[Effect]:
        """Processes of this node join a group; one that is a member already joins once more.

        Raises:
            InvalidName: ``group`` is not a name.
            NoProcess: one of them is not a living process of this node.
            TooManyMemberships: this node would have more than it may. In all cases nothing changed.
        """
        check_process_name(group)
        pids = list(pids)
        for pid in pids:
            if not self._alive(pid):
                raise NoProcess(pid)
        if self._own.count + len(pids) > self._max:
            raise TooManyMemberships(self._own.count, len(pids), self._max)
        numbers = [pid.number for pid in pids]
        for number in numbers:
            self._before_change(number)
        told = [Tell(["join", piece]) for piece in _split((group, number) for number in numbers)]
        return [*told, *self._join(self._own, {group: numbers})]

    def left(self, group: str, pids: Iterable[Pid]) -> list[Effect]:
        """Processes of this node leave a group, each once; those that are not members are passed over."""
        own, leaving = self._own, Counter[int]()
        for pid in pids:
            here = pid == own.pid(pid.number)
            if here and own.of(pid.number).get(group, 0) > leaving[pid.number]:
                leaving[pid.number] += 1
                self._before_change(pid.number)
        told = [Tell(["leave", piece]) for piece in _split((group, n) for n in leaving.elements())]
        return [*told, *self._leave(own, {group: list(leaving.elements())}, "left")]

    def exited(self, pid: Pid) -> list[Effect]:
        """A process of this node has ended."""
        if pid.number not in self._own:
            return []
        self._before_change(pid.number)
        return [Tell(["exit", pid.number]), *self._exit(self._own, pid.number, "exited")]

    # Facts about other nodes.

    def told(self, node: str, incarnation: int, fact: Any) -> list[Effect]:
        """A connected node told a fact about its own processes; it is to be told again unless `is_told`.

        Raises:
            ValueError: the fact is malformed, contradicts what the node told before, or exceeds a limit;
                nothing changed.
        """
        if node in self._leaving:
            self._forget_leaving(node)
        said = self._said.get(node) or _Memberships(node, incarnation, self._last_slot + 1)
        check_speaker(said, self._own, incarnation, "the groups")
        match fact:
            case ["join", dict() as members]:
                count = sum(len(numbers) for _, numbers in _check_members(members))
                if said.count + count > self._max:
                    raise ValueError(
                        f"more than {self._max:,} memberships in process groups, which is "
                        "Settings.max_memberships here; set it alike on all nodes"
                    )
                self._said[node] = self._slots[said.slot] = said
                self._last_slot = max(self._last_slot, said.slot)
                return self._join(said, members)
            case ["leave", dict() as members]:
                for group, numbers in _check_members(members):
                    for number, times in Counter(numbers).items():
                        if said.of(number).get(group, 0) < times:
                            raise ValueError(f"process {number} leaves a group that it has not joined")
                return self._leave(said, members, "left")
            case ["exit", number] if type(number) is int and number in said:
                return self._exit(said, number, "exited", MAX_ENDED_MEMBERSHIPS)
        raise ValueError(f"{SHORT.repr(fact)} is not a fact about process groups")

    def is_told(self, node: str, fact: Any) -> bool:
        """Whether a fact that was just taken has been taken entirely.

        A process that has ended may have been in 100,000 groups, which take half a second. So `told` takes
        away some, and the same fact must come again until nothing is left.
        """
        return fact[0] != "exit" or fact[1] not in self._said[node]

    def node_down(self, node: str) -> Iterator[Left]:
        """The connection is over: hide all that the node told, at once, and take it out step by step.

        There may be `Settings.max_memberships` of them, so the caller takes the steps in slices. Each yields
        what has left.
        """
        said = self._said.get(node)
        if said is None or said is self._own:
            return iter(())
        del self._said[node]
        self._leaving[node] = said
        return self._take_out(said)

    # Internals.

    def _take_out(self, said: _Memberships) -> Iterator[Left]:
        """Take the memberships of a lost node out of the groups, and yield what has left one by one."""
        node = said.node
        for number in one_by_one(said):
            for group, times in said.take(number).items():
                self._purged(group)
                for _ in range(times):
                    yield Left(group, said.pid(number), "noconnection")
        if self._leaving.get(node) is said:
            del self._leaving[node]
            del self._slots[said.slot]

    def _forget_leaving(self, node: str) -> None:
        """Take what is left of a lost node out of the groups at once: it tells something new."""
        said = self._leaving[node]
        for number in said:
            for group in said.of(number):
                self._purged(group)
        del self._leaving[node]
        del self._slots[said.slot]

    def _purged(self, group: str) -> Members | _Lone | None:
        """Return the members of a group, without those on nodes that were lost; None if it has none."""
        lone = self._lone.get(group)
        if lone is not None:
            said = self._slots[lone >> _NUMBER_BITS]
            if said.node not in self._leaving:
                return said.node, said.incarnation, lone & _NUMBER_MASK
            del self._lone[group]
            return None
        found = self._groups.get(group)
        if not self._leaving or found is None:
            return found
        for node in self._leaving:
            found.remove_node(node)
        if found:
            return found
        del self._groups[group]
        return None

    def _join(self, said: _Memberships, members: Numbers) -> list[Effect]:
        """Enter memberships of one node, and return an event for each."""
        events: list[Effect] = []
        for group, numbers in members.items():
            for number in numbers:
                pid = said.pid(number)
                if said.add(number, group) == 1:
                    self._new.append((group, pid))
                if self._purged(group) is None:
                    self._lone[group] = said.slot << _NUMBER_BITS | number
                else:
                    self.members(group).add(pid)
                events.append(Joined(group, pid))
        return events

    def _leave(self, said: _Memberships, members: Numbers, reason: str) -> list[Effect]:
        """Take memberships of one node away, which must exist, and return an event for each."""
        events: list[Effect] = []
        for group, numbers in members.items():
            for number in numbers:
                pid = said.pid(number)
                said.remove(number, group)
                if self._lone.pop(group, None) is None:
                    known = self._groups[group]
                    known.remove(pid)
                    if not known:
                        del self._groups[group]
                events.append(Left(group, pid, reason))
        return events

    def _exit(
        self, said: _Memberships, number: int, reason: str, most: int = sys.maxsize
    ) -> list[Effect]:  # fmt: skip
        """Take all memberships of one process away, or so many of them."""
        gone: Numbers = {}
        for group, times in said.of(number).items():
            gone[group] = [number] * min(times, most)
            most -= times
            if most <= 0:
                break
        return self._leave(said, gone, reason)


def _split(pairs: Iterable[tuple[str, int]]) -> Iterator[Numbers]:
    """Cut pairs of group and number into pieces of at most `MAX_PIECE_MEMBERSHIPS` memberships."""
    pairs = iter(pairs)
    for first in pairs:
        piece: Numbers = {}
        for group, number in chain([first], islice(pairs, MAX_PIECE_MEMBERSHIPS - 1)):
            piece.setdefault(group, []).append(number)
        yield piece


def _check_members(members: dict[Any, Any]) -> Iterable[tuple[str, list[int]]]:
    """Check what a peer sent, and return its items.

    Raises:
        ValueError: it is not a mapping of groups to numbers of processes, or it is empty, or has too many.
    """
    if not members:
        raise ValueError("a change of process groups that changes nothing")
    count = 0
    for group, numbers in members.items():
        if type(group) is not str:
            raise ValueError(f"{SHORT.repr(group)} is not a name of a process group")
        check_process_name(group)
        if type(numbers) is not list or not numbers:
            raise ValueError(f"{SHORT.repr(numbers)} is not a list of members")
        count += len(numbers)
        if count > MAX_PIECE_MEMBERSHIPS:
            raise ValueError(f"more than {MAX_PIECE_MEMBERSHIPS:,} memberships in one fact")
        for number in numbers:
            if type(number) is not int or not 0 < number < _NUMBER_END:
                raise ValueError(f"{SHORT.repr(number)} is not the number of a process")
    return members.items()
