"""Links and monitors of the processes of one node: an exit goes in, signals come out.

*Links* are bidirectional: when one end exits, the other gets an exit signal, which ends it too unless
it traps exits or the reason is ``"normal"``. *Monitors* are one way and one time: the watcher gets
exactly one `Down`. Both work the same between nodes, and a lost connection is an exit with
``"noconnection"`` for everything that crossed it.

Facts in, effects out, as in the kernel. Only the ends on this node are kept here; the other node keeps
its own. Source: OTP erts link and monitor signals (erl_proc_sig_queue.c); differs: no unlink
acknowledgement. An exit that crosses an unlink finds no link and does nothing, and an unlink says which
acts of linking it ends, so that one that crosses a new link leaves it alone at both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fleetlm.ids import Pid, Ref
from fleetlm.messages import Down, Exit
from fleetlm.names import Address
from fleetlm.texts import SHORT

MAX_ACTS = 8
"""Acts of linking kept for one link; each side makes one at most, as long as it keeps to the rules."""

Target = Pid | Address


@dataclass(frozen=True, slots=True)
class Deliver:
    """Put a message of the runtime's own into a mailbox; it waits for nothing."""

    number: int
    message: Down | Exit


@dataclass(frozen=True, slots=True)
class Stop:
    """End a process with this reason; ``at_once`` means that it may not clean up first."""

    number: int
    reason: Any
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a signal to another node, behind what process ``after`` (0: nobody) has sent there."""

    node: str
    signal: list[Any]
    after: int = 0


Effect = Deliver | Stop | Tell


@dataclass(slots=True)
class _Ends:
    """What one process of this node takes part in."""

    trap_exit: bool = False
    links: dict[Pid, tuple[int, ...]] = field(default_factory=dict)
    """Whom it is linked with, and by which acts: numbers of ours, negative ones of the other node's."""
    monitors: dict[Ref, Target] = field(default_factory=dict)
    """What it watches."""
    watchers: dict[Ref, Target] = field(default_factory=dict)
    """Who watches it, and under which target."""


class Links:
    """The table of one node.

    Args:
        node: its name.
        incarnation: of this start of it.
        alive: whether a number is a process of this node.
        connected: the incarnation of a node to which a signal would leave, or None.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        alive: Callable[[int], bool],
        connected: Callable[[str], int | None],
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self._alive = alive
        self._connected = connected
        self._ends: dict[int, _Ends] = {}
        self._acts = 0
        self._watchers_of: dict[Ref, int] = {}
        """A monitor that a process of this node, or of another, holds here → the watched number."""
        self._owner_of: dict[Ref, int] = {}
        """A monitor of a process of this node → that process."""

    # What a process of this node does.

    def trapped(self, number: int, on: bool) -> None:
        """Exit signals become messages, or do not."""
        if self._alive(number):
            self._ends_of(number).trap_exit = on

    def traps(self, number: int) -> bool:
        """Whether exit signals become messages."""
        ends = self._ends.get(number)
        return ends is not None and ends.trap_exit

    def linked(self, number: int, other: Pid) -> list[Effect]:
        """Link a process of this node with another. A second link to the same is the first.

        One that the other made does not count for that: its unlink may be under way.
        """
        me = self._pid(number)
        absent = self._why_absent(other)
        if not self._alive(number):  # Killed, and still cleaning up: it is the other that finds nobody.
            return (
                self._signal_exit(other.number, me, "noproc") if self._is_here(other) and not absent else []
            )
        acts = self._ends_of(number).links.get(other)
        if other == me or (acts is not None and max(acts, default=1) > 0):
            return []
        if absent:
            return self._signal_exit(number, other, absent)
        if self._is_here(other):
            self._ends_of(other.number).links[me] = ()
            self._ends_of(number).links[other] = ()
            return []
        act = self.new_act()
        self._ends_of(number).links[other] = (*(acts or ()), act)
        return [Tell(other.node, ["link", me, other.number, act], number)]

    def unlinked(self, number: int, other: Pid) -> list[Effect]:
        """End a link; no exit of the other reaches this process any more."""
        me = self._pid(number)
        acts = self._drop_link(number, other)
        if acts is None:
            return []
        if self._is_here(other):
            self._drop_link(other.number, me)
            return []
        return [Tell(other.node, ["unlink", me, other.number, list(acts)], number)]

    def new_act(self) -> int:
        """A number for an act of linking."""
        self._acts += 1
        return self._acts

    def spawned(self, number: int, other: Pid, act: int | None, ref: Ref | None) -> None:
        """Another node spawned ``other`` for a process of this one; its own ends are there already.

        ``act`` is that of linking, if it is linked, and ``ref`` the monitor, if it is watched.
        """
        if act is not None:
            self._ends_of(number).links[other] = (act,)
        if ref is not None:
            self._hold_monitor(number, ref, other)

    def ended_before(self, number: int, other: Pid, reason: Any) -> list[Effect]:
        """As `spawned` and linked, for a process that has ended meanwhile: its exit goes there now."""
        return [Tell(other.node, ["exit", self._pid(number), other.number, reason])]

    def monitored(self, number: int, ref: Ref, target: Target, owner: int | None) -> list[Effect]:
        """Watch a process. ``owner`` is the number that a name of this node belongs to, if it does."""
        if not self._alive(number):
            return []  # Killed, and still cleaning up: nobody will read the `Down`.
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

    def demonitored(self, number: int, ref: Ref) -> list[Effect]:
        """Watch no more: no `Down` is delivered from here on."""
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
        """Somebody sends an exit signal, as Erlang's exit/2: ``"kill"`` cannot be trapped."""
        if self._why_absent(other):
            return []  # Its number may be another's by now.
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

    def exited(self, number: int, reason: Any) -> list[Effect]:
        """A process of this node is no more: tell everybody who is concerned, once."""
        ends = self._ends.pop(number, None)
        if ends is None:
            return []
        me = self._pid(number)
        effects: list[Effect] = []
        for other in ends.links:
            if self._is_here(other):
                self._drop_link(other.number, me)
                effects += self._signal_exit(other.number, me, reason)
            else:
                effects.append(Tell(other.node, ["exit", me, other.number, reason], number))
        for ref, target in ends.watchers.items():
            del self._watchers_of[ref]
            if ref.node == self.node:
                effects += self._deliver_down(ref, target, reason)
            else:
                effects.append(Tell(ref.node, ["down", ref, reason], number))
        for ref, target in ends.monitors.items():
            self._owner_of.pop(ref, None)
            if target.node == self.node:
                self._remove_watcher(ref)
            else:
                effects.append(Tell(target.node, ["demonitor", ref, None], number))
        return effects

    # What another node tells, and its end.

    def told(
        self, node: str, incarnation: int, signal: list[Any], owner: Callable[[str], int | None]
    ) -> list[Effect]:
        """A signal came over a connection. Raises: ValueError, for one that is none."""
        about_links = signal[:1] and signal[0] in ("link", "unlink", "exit", "exit2")
        effects = (
            self._take_link_signal(node, incarnation, signal)
            if about_links
            else self._take_monitor_signal(node, incarnation, signal, owner)
        )
        if effects is None:
            raise ValueError(f"signal {SHORT.repr(signal[:1])} is not known to this version")
        return effects

    def node_down(self, node: str) -> list[Effect]:
        """The connection is over: everything that crossed it hears ``"noconnection"``, once."""
        effects: list[Effect] = []
        for number, ends in list(self._ends.items()):
            for ref in [ref for ref in ends.watchers if ref.node == node]:
                self._remove_watcher(ref)
            for ref, target in list(ends.monitors.items()):
                if target.node == node:
                    effects += self._deliver_down(ref, target, "noconnection")
            for other in [other for other in ends.links if other.node == node]:
                del ends.links[other]
                effects += self._signal_exit(number, other, "noconnection")
        return effects

    def counts(self) -> tuple[int, int]:
        """Links and monitors of this node's processes, for people and leak checks."""
        links = sum(len(ends.links) for ends in self._ends.values())
        return links, len(self._owner_of) + len(self._watchers_of)

    # How.

    def _take_link_signal(self, node: str, incarnation: int, signal: list[Any]) -> list[Effect] | None:
        match signal:
            case ["link", Pid() as other, int(number), int(act)] if _is_of(other, node, incarnation):
                if not self._alive(number):
                    return [Tell(node, ["exit", self._pid(number), other.number, "noproc"], number)]
                links = self._ends_of(number).links
                links[other] = (*links.get(other, ()), -act)[-MAX_ACTS:]
                return []
            case ["unlink", Pid() as other, int(number), [*acts]] if _is_of(other, node, incarnation):
                self._end_acts(number, other, acts)
                return []
            case ["exit", Pid() as other, int(number), reason] if _is_of(other, node, incarnation):
                if self._drop_link(number, other) is None:
                    return []  # It crossed our unlink.
                return self._signal_exit(number, other, reason)
            case ["exit2", Pid() as other, int(number), reason] if _is_of(other, node, incarnation):
                return self.asked_to_exit(other, self._pid(number), reason)
        return None

    def _take_monitor_signal(
        self, node: str, incarnation: int, signal: list[Any], owner: Callable[[str], int | None]
    ) -> list[Effect] | None:
        match signal:
            case ["monitor", Ref() as ref, int() | str() as key] if _is_of(ref, node, incarnation):
                found = owner(key) if isinstance(key, str) else key
                if found is None or not self._alive(found):
                    return [Tell(node, ["down", ref, "noproc"], found or 0)]
                if ref not in self._watchers_of:
                    target = Address(key, self.node) if isinstance(key, str) else self._pid(found)
                    self._add_watcher(ref, found, target)
                return []
            case ["demonitor", Ref() as ref, None] if _is_of(ref, node, incarnation):
                self._remove_watcher(ref)
                return []
            case ["down", Ref() as ref, reason] if _is_of(ref, self.node, self.incarnation):
                number = self._owner_of.get(ref, 0)
                watched = self._ends[number].monitors.get(ref) if number else None
                if watched is None or watched.node != node:
                    return []  # It crossed our demonitor.
                return self._deliver_down(ref, watched, reason)
        return None

    def _why_absent(self, target: Target) -> str:
        """Why a signal would not arrive, as far as this node knows; empty where it may."""
        if target.node == self.node:
            gone = isinstance(target, Pid) and not (self._is_here(target) and self._alive(target.number))
            return "noproc" if gone else ""
        incarnation = self._connected(target.node)
        if incarnation is None:
            return "noconnection"
        return "noproc" if isinstance(target, Pid) and target.incarnation != incarnation else ""

    def _signal_exit(self, number: int, sender: Pid, reason: Any) -> list[Effect]:
        if self.traps(number):
            return [Deliver(number, Exit(sender, reason))]
        return [] if reason == "normal" else [Stop(number, reason)]

    def _deliver_down(self, ref: Ref, target: Target, reason: Any) -> list[Effect]:
        number = self._owner_of.pop(ref)
        ends = self._ends.get(number)
        if ends is None:
            return []  # It watched itself, and has ended.
        del ends.monitors[ref]
        return [Deliver(number, Down(ref, target, reason))]

    def _hold_monitor(self, number: int, ref: Ref, target: Target) -> None:
        self._ends_of(number).monitors[ref] = target
        self._owner_of[ref] = number

    def _add_watcher(self, ref: Ref, number: int, target: Target) -> None:
        self._ends_of(number).watchers[ref] = target
        self._watchers_of[ref] = number

    def _remove_watcher(self, ref: Ref) -> None:
        number = self._watchers_of.pop(ref, None)
        if number is not None:
            self._ends[number].watchers.pop(ref, None)

    def _end_acts(self, number: int, other: Pid, acts: list[Any]) -> None:
        """The other side ends what it knows of. A link made here meanwhile lives on, at both ends."""
        ends = self._ends.get(number)
        if ends is None or other not in ends.links:
            return
        left = tuple(act for act in ends.links[other] if -act not in acts)
        if left:
            ends.links[other] = left
        else:
            del ends.links[other]

    def _drop_link(self, number: int, other: Pid) -> tuple[int, ...] | None:
        ends = self._ends.get(number)
        return None if ends is None else ends.links.pop(other, None)

    def _ends_of(self, number: int) -> _Ends:
        ends = self._ends.get(number)
        if ends is None:
            ends = self._ends[number] = _Ends()
        return ends

    def _pid(self, number: int) -> Pid:
        return Pid(self.node, self.incarnation, number)

    def _is_here(self, pid: Pid) -> bool:
        return pid.node == self.node and pid.incarnation == self.incarnation


def _is_of(identity: Pid | Ref, node: str, incarnation: int) -> bool:
    """A node speaks for its own processes alone."""
    return identity.node == node and identity.incarnation == incarnation
