"""Links and monitors of the processes of one node: exits go in, signals come out.

*Links* are bidirectional: when one end exits, the other gets an exit signal, which ends it too unless it
traps exits or the reason is ``"normal"``. *Monitors* go one way and fire once: the watcher gets exactly one
`Down`. Both work the same between nodes, and a lost connection is an exit with ``"noconnection"`` for every
link and monitor that crossed it.

Facts go in, effects come out, as in the kernel; `processes.signals` performs them. A table holds only the
ends of processes of its own node (`_Ends`); the other node holds its own ends. The signals between the two
(`wire.operations.signal`) are ordered behind the messages that the same process sent before (`Tell.after`),
so that an exit never overtakes a message. The races, and where each is settled:

- *An exit crosses an unlink.* The exit finds no link any more and does nothing (`_take_link_signal`). So
  Erlang's acknowledgement of an unlink is not needed: after `unlinked` no exit reaches this process.
- *An unlink crosses a new link.* Each act of linking has a number. A link remembers the acts that made it,
  its own node's as positive numbers and the other's as negative ones, and an unlink names the acts that it
  knows of. The receiver drops those acts only (`_end_acts`), so a link made meanwhile lives on at both ends.
- *Both processes link at the same time.* Each side records its own act and then the other's. A process
  that knows only the other's act still sends its own link, since the other's unlink may be on the way
  (`linked`).
- *A down crosses a demonitor.* It finds no monitor and does nothing (`_take_monitor_signal`).
- *The target is gone before the signal arrives.* The receiver answers "noproc", and the sender treats it as
  an exit or a down. A pid of a former incarnation is answered here at once (`_why_absent`).
- *The connection ends.* `node_down` fires every link and monitor across it once. Signals still on the way
  belong to the ended session and are never delivered.

What one peer may make this node keep is bounded: a link or a monitor of its processes beyond ``max_ends``
ends at once with ``"system_limit"``, as one of a process that is gone does with ``"noproc"``. Those that
processes of this node make are not counted against the peer.

A node speaks for its own processes alone: a signal that names another node's process, or another
incarnation, is refused, and the session ends.

Source: OTP erts link and monitor signals (erl_proc_sig_queue.c); differs: no unlink acknowledgement, since
unlinks name the acts that they end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from fleetlm.core.identity_map import MANY, ActsMap, IdentityMap, keys_one_by_one
from fleetlm.core.one_by_one import one_by_one
from fleetlm.ids import Pid, Ref
from fleetlm.messages import Down, Exit
from fleetlm.names import Address
from fleetlm.records import Record
from fleetlm.texts import SHORT

MAX_ACTS_PER_LINK = 8
"""Acts of linking kept for one link. A correct node makes one; this bounds what another may pile up."""
MAX_ACTS_ENDED = 1_024
"""Acts that one unlink of a peer may name: it takes 0.2 ms then."""

LOOKED_AT_PER_STEP = 4
"""Links or monitors that a step looks at whose other end need not be told: as long as telling one takes."""

_NUMBER_END = 1 << 64
"""Numbers of processes and acts are below this. Those of a peer are kept, so they have no million digits."""

Target = Pid | Address


class Deliver(Record):
    """Put a message of the runtime into a mailbox; it waits for no window."""

    number: int
    message: Down | Exit


class Stop(Record):
    """End a process with this reason. With ``at_once`` it cannot trap the exit or clean up first."""

    number: int
    reason: Any
    at_once: bool = False


class Tell(Record):
    """Send a signal to another node, behind what process ``after`` has sent there (0: behind nothing)."""

    node: str
    signal: list[Any]
    after: int = 0


Effect = Deliver | Stop | Tell


@dataclass(slots=True)
class _Ends:
    """The ends of links and monitors that one process of this node has."""

    trap_exit: bool = False
    links: MutableMapping[Pid, tuple[int, ...]] = field(default_factory=dict)
    """Linked process → the acts that made the link: positive ones of this node, negative of the other."""
    monitors: dict[Ref, Target] = field(default_factory=dict)
    """Monitors that this process holds → their targets."""
    watchers: MutableMapping[Ref, Target | None] = field(default_factory=dict)
    """Monitors on this process → the target that the watcher named, a pid or an address; None for a watcher
    on another node, which knows it itself: a peer may have 262,144 of them."""

    def link(self, other: Pid, acts: tuple[int, ...]) -> None:
        links = self.links
        links[other] = acts
        if type(links) is dict and len(links) > MANY:
            self.links = ActsMap()
            self.links.update(links)

    def watch(self, ref: Ref, target: Target | None) -> None:
        watchers = self.watchers
        watchers[ref] = target
        if type(watchers) is dict and len(watchers) > MANY:
            self.watchers = IdentityMap(Ref)
            self.watchers.update(watchers)


class Links:
    """The links and monitors of one node.

    Args:
        node: this node's name.
        incarnation: of this start of the node.
        alive: returns whether a number is a living process of this node.
        connected: returns the incarnation of a connected node, or None.
        max_ends: links and monitors that processes of one peer may hold on processes here.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        alive: Callable[[int], bool],
        connected: Callable[[str], int | None],
        max_ends: int = 262_144,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self._alive = alive
        self._connected = connected
        self._max_ends = max_ends
        self._ends_of_node: dict[str, int] = {}
        """Other node → links that its processes have made, and monitors of them, on processes here."""
        self._ends: dict[int, _Ends] = {}
        self._acts = 0
        self._watchers_of: IdentityMap[Ref, int] = IdentityMap(Ref)
        """Monitor on a process of this node, held here or elsewhere → the number of that process."""
        self._owner_of: dict[Ref, int] = {}
        """Monitor held by a process of this node → the number of that process."""

    # Facts about processes of this node.

    def trapped(self, number: int, on: bool) -> None:
        """A process starts or stops trapping exits: exit signals become `Exit` messages, or end it."""
        if self._alive(number):
            self._ends_of(number).trap_exit = on

    def traps(self, number: int) -> bool:
        """Return whether exit signals to this process become messages."""
        ends = self._ends.get(number)
        return ends is not None and ends.trap_exit

    def linked(self, number: int, other: Pid) -> list[Effect]:
        """Link a process of this node with another; a second link between the two changes nothing.

        A link that the other node's process made does not count as the first one: its unlink may be on
        the way.
        """
        me = self._pid(number)
        absent = self._why_absent(other)
        if not self._alive(number):  # Killed, and still cleaning up.
            return (
                self._signal_exit(other.number, me, "noproc") if self._is_here(other) and not absent else []
            )
        acts = self._ends_of(number).links.get(other)
        if other == me or (acts is not None and max(acts, default=1) > 0):
            return []
        if absent:
            return self._signal_exit(number, other, absent)
        if self._is_here(other):
            self._ends_of(other.number).link(me, ())
            self._ends_of(number).link(other, ())
            return []
        act = self.new_act()
        self._ends_of(number).link(other, (*(acts or ()), act))
        return [Tell(other.node, ["link", me, other.number, act], number)]

    def unlinked(self, number: int, other: Pid) -> list[Effect]:
        """End a link: from now on no exit signal of the other process reaches this one."""
        me = self._pid(number)
        acts = self._drop_link(number, other)
        if acts is None:
            return []
        if self._is_here(other):
            self._drop_link(other.number, me)
            return []
        return [Tell(other.node, ["unlink", me, other.number, list(acts)], number)]

    def new_act(self) -> int:
        """Return a new number for an act of linking."""
        self._acts += 1
        return self._acts

    def spawned(self, number: int, other: Pid, act: int | None, ref: Ref | None) -> None:
        """Record this node's ends for a process that another node spawned; that node has recorded its own.

        Args:
            number: the process here that asked.
            other: the new process.
            act: the act of linking the two, or None.
            ref: the monitor on the new process, or None.
        """
        if act is not None:
            self._ends_of(number).link(other, (act,))
        if ref is not None:
            self._hold_monitor(number, ref, other)

    def ended_before(self, number: int, other: Pid, reason: Any) -> list[Effect]:
        """Send the exit of a process that ended before its linked child was spawned on another node."""
        return [Tell(other.node, ["exit", self._pid(number), other.number, reason])]

    def monitored(self, number: int, ref: Ref, target: Target, owner: int | None) -> list[Effect]:
        """Monitor a process.

        Args:
            number: the process here that watches.
            ref: of the monitor; new.
            target: a pid, or a name at a node.
            owner: the number of the process with that name, if the name is one of this node and taken.
        """
        if not self._alive(number):
            return []  # Killed, and still cleaning up: it will not read a `Down`.
        if isinstance(target, Pid):
            owner = target.number
        absent = self._why_absent(target)
        if not absent and target.node == self.node and (owner is None or not self._alive(owner)):
            absent = "noproc"
        if absent:
            return [Deliver(number, Down(ref, target, absent))]
        self._hold_monitor(number, ref, target)
        if target.node == self.node and owner is not None:
            self._add_watcher(ref, owner, target)
            return []
        key: int | str = target.number if isinstance(target, Pid) else target.name
        return [Tell(target.node, ["monitor", ref, key], number)]

    def holds_monitor(self, ref: Ref) -> bool:
        """Return whether a process of this node holds this monitor, which so has not fired."""
        return ref in self._owner_of

    def demonitored(self, number: int, ref: Ref) -> list[Effect]:
        """End a monitor: from now on it delivers no `Down`."""
        ends = self._ends.get(number)
        target = None if ends is None else ends.monitors.pop(ref, None)
        if target is None:
            return []
        self._owner_of.pop(ref, None)
        if target.node == self.node:
            self._remove_watcher(ref)
            return []
        return [Tell(target.node, ["demonitor", ref, None], number)]

    def asked_to_exit(self, sender: Pid, other: Pid, reason: Any) -> list[Effect]:
        """Send an exit signal to a process, as Erlang's exit/2 does; ``"kill"`` cannot be trapped."""
        if self._why_absent(other):
            return []  # Another incarnation may have given its number to another process.
        if not self._is_here(other):
            after = sender.number if self._is_here(sender) else 0
            return [Tell(other.node, ["exit2", sender, other.number, reason], after)]
        if reason == "kill":
            return [Stop(other.number, "killed", at_once=True)]
        if self.traps(other.number):
            return [Deliver(other.number, Exit(sender, reason))]
        if reason == "normal" and sender != other:
            return []
        return [Stop(other.number, reason)]

    def exited(self, number: int, reason: Any) -> Iterator[list[Effect]]:
        """A process of this node has ended: fire its links and the monitors on it, and end those it holds.

        It has no ends any more when this returns. There may be 100,000 that lead to it, so each step fires
        one of them, and the caller takes the steps in slices. What its other end takes back between two steps
        (an unlink, a demonitor, an end of its own) is passed over.
        """
        ends = self._ends.pop(number, None)
        return iter(()) if ends is None else self._fire(ends, number, reason)

    def _fire(self, ends: _Ends, number: int, reason: Any) -> Iterator[list[Effect]]:
        me = self._pid(number)
        for other in keys_one_by_one(ends.links):  # Without the acts: 100,000 pairs would cost 10 ms.
            acts = ends.links[other]  # Nothing else takes links out of ends that are in no table any more.
            if not self._is_here(other):
                self._uncount_link(other, acts)
                yield [Tell(other.node, ["exit", me, other.number, reason], number)]
            elif self._drop_link(other.number, me) is not None:
                yield self._signal_exit(other.number, me, reason)
        for ref, target in ends.watchers.items():
            if self._watchers_of.pop(ref, None) is None:
                continue
            self._uncount(ref.node)
            if target is not None:
                yield self._deliver_down(ref, target, reason)
            else:
                yield [Tell(ref.node, ["down", ref, reason], number)]
        for ref, target in ends.monitors.items():
            self._owner_of.pop(ref, None)
            if target.node == self.node:
                self._remove_watcher(ref)
                yield []
            else:
                yield [Tell(target.node, ["demonitor", ref, None], number)]

    # Facts about other nodes.

    def told(
        self, node: str, incarnation: int, signal: list[Any], owner: Callable[[str], int | None],
        reaches: Callable[[int], bool] | None = None,
    ) -> list[Effect]:  # fmt: skip
        """Take a signal that came over a session.

        Args:
            node: name of the peer.
            incarnation: of the peer.
            signal: the list that came.
            owner: returns the number of the process that has a name here.
            reaches: whether the process with that number lives, and the peer may link, monitor or end it: for
                the peer there is no other one. Default: every process that lives.

        Raises:
            ValueError: the signal is malformed, or speaks for a process of another node.
        """
        reaches = reaches or self._alive
        about_links = signal[:1] and signal[0] in ("link", "unlink", "exit", "exit2")
        effects = (
            self._take_link_signal(node, incarnation, signal, reaches)
            if about_links
            else self._take_monitor_signal(node, incarnation, signal, owner, reaches)
        )
        if effects is None:
            raise ValueError(f"signal {SHORT.repr(signal[:1])} is not known to this version")
        return effects

    def node_down(self, node: str) -> Iterator[list[Effect]]:
        """The connection is over: fire all links and monitors that crossed it with ``"noconnection"``.

        There may be 100,000 of them, so each step fires one at most, and the caller takes the steps in
        slices. Whatever ends between two steps (a process, a link, a monitor) is passed over. No new end that
        crosses this connection can be made meanwhile, since the caller has removed the node's session.
        """
        self._ends_of_node.pop(node, None)
        for number in list(self._ends):
            ends = self._ends.get(number)
            if ends is None:
                continue
            for nth, ref in enumerate(keys_one_by_one(ends.watchers), 1):
                if ref.node == node:
                    self._remove_watcher(ref)
                if nth % LOOKED_AT_PER_STEP == 0:
                    yield []
            for ref in one_by_one(ends.monitors):  # Without the targets: 100,000 pairs would cost 50 ms.
                target = ends.monitors.get(ref)
                if target is not None and target.node == node and ref in self._owner_of:
                    yield self._deliver_down(ref, target, "noconnection")
            for nth, other in enumerate(keys_one_by_one(ends.links), 1):
                if other.node == node and number in self._ends and ends.links.pop(other, None) is not None:
                    yield self._signal_exit(number, other, "noconnection")
                elif nth % LOOKED_AT_PER_STEP == 0:
                    yield []
            yield []

    def has_room(self, node: str, count: int) -> bool:
        """Return whether a peer may make so many further links and monitors."""
        return self._ends_of_node.get(node, 0) + count <= self._max_ends

    def counts(self) -> tuple[int, int]:
        """Return the numbers of link ends and monitors here; for `Node.info` and checks for leaks."""
        links = sum(len(ends.links) for ends in self._ends.values())
        return links, len(self._owner_of) + len(self._watchers_of)

    def count_links(self, at_a_time: int) -> Iterator[int]:
        """Yield the numbers of link ends of so many processes at a time: a node may have 100,000 of them."""
        every = list(self._ends.values())
        for at in range(0, len(every), at_a_time):
            yield sum(len(ends.links) for ends in every[at : at + at_a_time])

    def count_monitors(self) -> int:
        """Return the number of monitors here."""
        return len(self._owner_of) + len(self._watchers_of)

    # Internals.

    def _take_link_signal(
        self, node: str, incarnation: int, signal: list[Any], reaches: Callable[[int], bool]
    ) -> list[Effect] | None:
        """Take a link, unlink or exit signal of a peer. Returns None if it is malformed."""
        match signal:
            case [_, _, number, *_] if type(number) is not int or not 0 <= number < _NUMBER_END:
                return None
            case ["link", Pid(), _, act] if type(act) is not int or not 0 < act < _NUMBER_END:
                return None
            case ["link", Pid() as other, int(number), int(act)] if _is_of(other, node, incarnation):
                if not reaches(number):
                    return [Tell(node, ["exit", self._pid(number), other.number, "noproc"], number)]
                ends = self._ends_of(number)
                acts = ends.links.get(other, ())
                if not any(known < 0 for known in acts) and not self._count(node):
                    return [Tell(node, ["exit", self._pid(number), other.number, "system_limit"], number)]
                ends.link(other, (*acts, -act)[-MAX_ACTS_PER_LINK:])
                return []
            case ["unlink", Pid() as other, int(number), [*acts]] if (
                _is_of(other, node, incarnation) and len(acts) <= MAX_ACTS_ENDED
            ):
                self._end_acts(number, other, acts)
                return []
            case ["exit", Pid() as other, int(number), reason] if _is_of(other, node, incarnation):
                if self._drop_link(number, other) is None:
                    return []  # It crossed our unlink.
                return self._signal_exit(number, other, reason)
            case ["exit2", Pid() as other, int(number), reason] if _is_of(other, node, incarnation):
                return self.asked_to_exit(other, self._pid(number), reason) if reaches(number) else []
        return None

    def _take_monitor_signal(
        self, node: str, incarnation: int, signal: list[Any], owner: Callable[[str], int | None],
        reaches: Callable[[int], bool],
    ) -> list[Effect] | None:  # fmt: skip
        """Take a monitor, demonitor or down signal of a peer. Returns None if it is malformed or unknown."""
        match signal:
            case ["monitor", Ref() as ref, int() | str() as key] if _is_of(ref, node, incarnation):
                found = owner(key) if isinstance(key, str) else key
                if found is None or not reaches(found):
                    return [Tell(node, ["down", ref, "noproc"], found or 0)]
                if ref not in self._watchers_of:
                    if not self._count(node):
                        return [Tell(node, ["down", ref, "system_limit"], found)]
                    self._add_watcher(ref, found, None)
                return []
            case ["demonitor", Ref() as ref, None] if _is_of(ref, node, incarnation):
                self._remove_watcher(ref)
                return []
            case ["down", Ref() as ref, reason] if _is_of(ref, self.node, self.incarnation):
                ends = self._ends.get(self._owner_of.get(ref, 0))
                watched = None if ends is None else ends.monitors.get(ref)
                if watched is None or watched.node != node:
                    return []  # It crossed our demonitor.
                return self._deliver_down(ref, watched, reason)
        return None

    def _why_absent(self, target: Target) -> str:
        """Return the exit reason for a target that this node knows to be absent, "" where it may exist."""
        if target.node == self.node:
            gone = isinstance(target, Pid) and not (self._is_here(target) and self._alive(target.number))
            return "noproc" if gone else ""
        incarnation = self._connected(target.node)
        if incarnation is None:
            return "noconnection"
        return "noproc" if isinstance(target, Pid) and target.incarnation != incarnation else ""

    def _signal_exit(self, number: int, sender: Pid, reason: Any) -> list[Effect]:
        """Give a process of this node an exit signal through a link."""
        if self.traps(number):
            return [Deliver(number, Exit(sender, reason))]
        return [] if reason == "normal" else [Stop(number, reason)]

    def _deliver_down(self, ref: Ref, target: Target, reason: Any) -> list[Effect]:
        """Fire a monitor that a process of this node holds, and forget it."""
        number = self._owner_of.pop(ref)
        ends = self._ends.get(number)
        if ends is None:
            return []  # It has ended as well, perhaps since it monitored itself.
        del ends.monitors[ref]
        return [Deliver(number, Down(ref, target, reason))]

    def _hold_monitor(self, number: int, ref: Ref, target: Target) -> None:
        """Record the watching end of a monitor."""
        self._ends_of(number).monitors[ref] = target
        self._owner_of[ref] = number

    def _add_watcher(self, ref: Ref, number: int, target: Target | None) -> None:
        """Record the watched end of a monitor."""
        self._ends_of(number).watch(ref, target)
        self._watchers_of[ref] = number

    def _remove_watcher(self, ref: Ref) -> None:
        """Forget the watched end of a monitor, if it is here."""
        number = self._watchers_of.pop(ref, None)
        if number is None:
            return
        self._uncount(ref.node)
        ends = self._ends.get(number)
        if ends is not None:
            ends.watchers.pop(ref, None)

    def _end_acts(self, number: int, other: Pid, acts: list[Any]) -> None:
        """The other node unlinks; drop the acts it names. A link made here meanwhile stays."""
        ends = self._ends.get(number)
        if ends is None or other not in ends.links:
            return
        before = ends.links[other]
        left = tuple(act for act in before if -act not in acts)
        if not any(act < 0 for act in left):
            self._uncount_link(other, before)
        if left:
            ends.links[other] = left
        else:
            del ends.links[other]

    def _drop_link(self, number: int, other: Pid) -> tuple[int, ...] | None:
        """Forget an end of a link. Return the acts that made it, or None if there is no link."""
        ends = self._ends.get(number)
        acts = None if ends is None else ends.links.pop(other, None)
        if acts is not None:
            self._uncount_link(other, acts)
        return acts

    def _count(self, node: str) -> bool:
        """Count one more link or monitor of a peer. Returns False if that would be too many."""
        if not self.has_room(node, 1):
            return False
        self._ends_of_node[node] = self._ends_of_node.get(node, 0) + 1
        return True

    def _uncount(self, node: str) -> None:
        """Count one link or monitor of a peer less; those of this node are not counted."""
        left = self._ends_of_node.get(node, 0) - 1
        if left > 0:
            self._ends_of_node[node] = left
        else:
            self._ends_of_node.pop(node, None)

    def _uncount_link(self, other: Pid, acts: tuple[int, ...]) -> None:
        """Do as `_uncount` for a link, if the other node's process has made it."""
        if any(act < 0 for act in acts):
            self._uncount(other.node)

    def _ends_of(self, number: int) -> _Ends:
        """Return the ends of a process, and make the entry if it has none."""
        ends = self._ends.get(number)
        if ends is None:
            ends = self._ends[number] = _Ends()
        return ends

    def _pid(self, number: int) -> Pid:
        return Pid(self.node, self.incarnation, number)

    def _is_here(self, pid: Pid) -> bool:
        return pid.node == self.node and pid.incarnation == self.incarnation


def _is_of(identity: Pid | Ref, node: str, incarnation: int) -> bool:
    """Return whether a pid or ref belongs to this incarnation of that node."""
    return identity.node == node and identity.incarnation == incarnation
