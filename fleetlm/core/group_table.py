"""Process groups: who is a member of what, as each node says of its own processes.

Facts come in: a process of this node joined, left or ended; a connected node told something of its
own; a connection is over. Effects come out: what to tell every connected node, and what changed. A
node tells all its memberships when a connection comes up, then every change; since it speaks for its
own processes alone and what it told is dropped when the connection ends, nothing is ever merged.

On the wire a fact is ``["join", {group: [number, ...]}]``, ``["leave", {group: [number, ...]}]`` or
``["exit", number]``: with numbers instead of pids no node can speak of another's processes.

Source: OTP pg.erl; differs: one scope, groups are named by text, and leaving is told apart from
ending and from the loss of the node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from fleetlm.errors import NoProcess, TooManyMemberships
from fleetlm.ids import Pid
from fleetlm.messages import Joined, Left
from fleetlm.names import check_process_name
from fleetlm.texts import SHORT

PIECE = 200
"""Memberships in one fact: below 256 KiB even where every group has the longest name there is."""

_NUMBER_END = 1 << 64


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell every connected node this fact."""

    fact: list[Any]


Effect = Tell | Joined | Left

Members = dict[str, list[int]]
"""Group → numbers of one node's processes; one that joined twice is there twice."""


class _Memberships:
    """What one node says of its processes."""

    __slots__ = ("count", "incarnation", "node", "of")

    def __init__(self, node: str, incarnation: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.count = 0
        """Memberships."""
        self.of: dict[int, dict[str, int]] = {}
        """Number → group → how many times it has joined it."""

    def pid(self, number: int) -> Pid:
        return Pid(self.node, self.incarnation, number)

    def pairs(self) -> Iterator[tuple[str, int]]:
        for number, groups in self.of.items():
            for group, times in groups.items():
                yield from ((group, number) for _ in range(times))


class GroupTable:
    """Every group that has a member, as this node knows it.

    Args:
        node: this node.
        incarnation: its own.
        max_memberships: of one node; see `Settings.max_memberships`.
        alive: whether a pid is a living process of this node.
    """

    def __init__(
        self, node: str, incarnation: int, max_memberships: int, alive: Callable[[Pid], bool]
    ) -> None:
        self._max = max_memberships
        self._alive = alive
        self._own = _Memberships(node, incarnation)
        self._said = {node: self._own}
        self._groups: dict[str, dict[Pid, int]] = {}
        self._in_order: dict[str, list[Pid]] = {}
        """Of groups that were asked for since they changed last: sorting them is what asking costs."""

    # What is asked.

    def members(self, group: str) -> list[Pid]:
        """All members in the order of `pid_order`; not to be changed."""
        known = self._in_order.get(group)
        if known is None:
            times = self._groups.get(group)
            if times is None:
                return []
            known = [pid for pid in sorted(times, key=pid_order) for _ in range(times[pid])]
            self._in_order[group] = known
        return known

    def local_members(self, group: str) -> list[Pid]:
        """Those of this node, in the same order."""
        return [pid for pid in self.members(group) if pid.node == self._own.node]

    def groups(self) -> list[str]:
        """Groups with a member anywhere, sorted."""
        return sorted(self._groups)

    def has(self, group: str) -> bool:
        """Whether it has a member."""
        return group in self._groups

    def own_facts(self) -> Iterator[list[Any]]:
        """All that this node says of itself, in pieces."""
        return (["join", piece] for piece in _split(self._own.pairs()))

    # Facts of this node.

    def joined(self, group: str, pids: Iterable[Pid]) -> list[Effect]:
        """Processes of this node join, each once more if it is a member already.

        Raises:
            InvalidName, NoProcess, TooManyMemberships: nobody joined.
        """
        check_process_name(group)
        pids = list(pids)
        for pid in pids:
            if not self._alive(pid):
                raise NoProcess(pid)
        if self._own.count + len(pids) > self._max:
            raise TooManyMemberships(self._own.count, len(pids), self._max)
        numbers = [pid.number for pid in pids]
        told = [Tell(["join", piece]) for piece in _split((group, number) for number in numbers)]
        return [*told, *self._join(self._own, {group: numbers})]

    def left(self, group: str, pids: Iterable[Pid]) -> list[Effect]:
        """Processes of this node leave, each once; those that are no members are passed over."""
        own, leaving = self._own, Counter[int]()
        for pid in pids:
            here = pid == own.pid(pid.number)
            if here and own.of.get(pid.number, {}).get(group, 0) > leaving[pid.number]:
                leaving[pid.number] += 1
        told = [Tell(["leave", piece]) for piece in _split((group, n) for n in leaving.elements())]
        return [*told, *self._leave(own, {group: list(leaving.elements())}, "left")]

    def exited(self, pid: Pid) -> list[Effect]:
        """A process of this node has ended."""
        if pid.number not in self._own.of:
            return []
        return [Tell(["exit", pid.number]), *self._exit(self._own, pid.number, "exited")]

    # Facts of others.

    def told(self, node: str, incarnation: int, fact: Any) -> list[Effect]:
        """A connected node said something of itself.

        Raises:
            ValueError: nonsense, something that cannot be, or too much; nothing changed.
        """
        said = self._said.get(node) or _Memberships(node, incarnation)
        if said is self._own or said.incarnation != incarnation:
            raise ValueError(f"groups of {node}, which is somebody else here")
        match fact:
            case ["join", dict() as members]:
                count = sum(len(numbers) for _, numbers in _check_members(members))
                if said.count + count > self._max:
                    raise ValueError(
                        f"more than {self._max:,} memberships in process groups, which is "
                        "Settings.max_memberships here; set it alike on all nodes"
                    )
                self._said[node] = said
                return self._join(said, members)
            case ["leave", dict() as members]:
                for group, numbers in _check_members(members):
                    for number, times in Counter(numbers).items():
                        if said.of.get(number, {}).get(group, 0) < times:
                            raise ValueError(f"process {number} leaves a group that it has not joined")
                return self._leave(said, members, "left")
            case ["exit", number] if type(number) is int and number in said.of:
                return self._exit(said, number, "exited")
        raise ValueError(f"{SHORT.repr(fact)} says nothing of process groups")

    def node_down(self, node: str) -> list[Effect]:
        """What that node told is void."""
        said = self._said.get(node)
        if said is None or said is self._own:
            return []
        del self._said[node]
        return [left for number in list(said.of) for left in self._exit(said, number, "noconnection")]

    # How.

    def _join(self, said: _Memberships, members: Members) -> list[Effect]:
        events: list[Effect] = []
        for group, numbers in members.items():
            for number in numbers:
                pid = said.pid(number)
                mine = said.of.setdefault(number, {})
                mine[group] = mine.get(group, 0) + 1
                self._groups.setdefault(group, {})[pid] = mine[group]
                events.append(Joined(group, pid))
            said.count += len(numbers)
            self._in_order.pop(group, None)
        return events

    def _leave(self, said: _Memberships, members: Members, reason: str) -> list[Effect]:
        events: list[Effect] = []
        for group, numbers in members.items():
            for number in numbers:
                mine, pid = said.of[number], said.pid(number)
                mine[group] -= 1
                self._groups[group][pid] = mine[group]
                if not mine[group]:
                    self._forget(said, group, number)
                events.append(Left(group, pid, reason))
            said.count -= len(numbers)
            self._in_order.pop(group, None)
        return events

    def _exit(self, said: _Memberships, number: int, reason: str) -> list[Effect]:
        gone = {group: [number] * times for group, times in said.of[number].items()}
        return self._leave(said, gone, reason)

    def _forget(self, said: _Memberships, group: str, number: int) -> None:
        del said.of[number][group]
        if not said.of[number]:
            del said.of[number]
        members = self._groups[group]
        del members[said.pid(number)]
        if not members:
            del self._groups[group]


def pid_order(pid: Pid) -> tuple[str, int, int]:
    """Effects members: by node name, incarnation and number, so alike on every node."""
    return (pid.node, pid.incarnation, pid.number)


def _split(pairs: Iterable[tuple[str, int]]) -> Iterator[Members]:
    pairs = iter(pairs)
    for first in pairs:
        piece: Members = {}
        for group, number in chain([first], islice(pairs, PIECE - 1)):
            piece.setdefault(group, []).append(number)
        yield piece


def _check_members(members: dict[Any, Any]) -> Iterable[tuple[str, list[int]]]:
    """The items of what a peer sent. Raises: ValueError for anything but groups and their numbers."""
    if not members:
        raise ValueError("a change of process groups that changes nothing")
    for group, numbers in members.items():
        if type(group) is not str:
            raise ValueError(f"{SHORT.repr(group)} is no name of a process group")
        check_process_name(group)
        if type(numbers) is not list or not numbers:
            raise ValueError(f"{SHORT.repr(numbers)} are no members")
        for number in numbers:
            if type(number) is not int or not 0 < number < _NUMBER_END:
                raise ValueError(f"{SHORT.repr(number)} is no number of a process")
    return members.items()
