"""What is true in a society, kept beside the cluster: who lives, who is tied to whom, what was told.

The truth is taken where it happens (a process ends, a connection ends, a signal arrives), and what
processes are told is held against it at the moment of its delivery. A breach is noted with its time,
and ends the story at its next step.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fleetlm import Address, Down, Exit, NameLost, Node, Pid, Process, Ref
from fleetlm.messaging.session import Session
from fleetlm.testing.cluster import SimCluster
from tests.sim.invariants import SHOWN, Breach

Target = Pid | Address
SLACK_S = 1.0
"""A failure is told at once, and counted when the supervisor comes to it."""


@dataclass
class Watch:
    """A monitor, from its making to its end."""

    owner: Pid
    target: Target
    losses: int
    """Connections to the target's node that the owner's node had lost when it was made."""
    connected: int | None
    """Incarnation of the target's node to which the owner's node was connected then."""
    arrived: bool = False
    """Whether the target's node knows of it."""
    found: Pid | None = None
    """The process that it met there."""
    state: str = "armed"


@dataclass
class Due:
    """An exit signal that must come when another process ends, or its node is lost."""

    losses: int
    connected: int | None


@dataclass
class Tree:
    """One life of a supervisor."""

    strategy: str
    max_restarts: int
    period_s: float
    pause_s: float
    began_s: float
    starts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[float, Any]] = field(default_factory=list)
    """When a child ended that the supervisor did not end, and why."""

    def storms(self, now_s: float) -> str:
        """Says so where a child was started more often than its failures and pauses allow."""
        counted = sum(not _of_the_cluster(why) for _, why in self.failures)
        most = 2 + counted + len(self.starts) * (1 + (now_s - self.began_s) / self.pause_s)
        return "".join(f"{name}: {count} starts" for name, count in self.starts.items() if count > most)


class Home:
    """One incarnation of a node."""

    def __init__(self, world: World, node: Node) -> None:
        self.world = world
        self.node = node
        self.losses: Counter[str] = Counter()
        """Peer → connections to it that have ended."""
        parts, signals, names = node._parts, node._parts.signals, node._parts.replicated_names
        self._node_down, self._exited, self._told = parts.node_down, signals.exited, signals.told
        self._disclaim = names.asked_to_disclaim
        names.asked_to_disclaim = self._disclaimed
        parts.node_down = self._down  # type: ignore[assignment]
        signals.exited = self._ended  # type: ignore[assignment]
        signals.told = self._signalled

    def connected(self, node: str) -> int | None:
        """The incarnation that a signal to that node would reach."""
        if node == self.node.name:
            return self.node.incarnation
        session = self.node._driver.sessions.get(node)
        return None if session is None else session.incarnation

    def pid(self, number: int) -> Pid:
        return Pid(self.node.name, self.node.incarnation, number)

    def named(self, name: str) -> Pid | None:
        number = self.node._local.table.names.get(name)
        return None if number is None else self.pid(number)

    def _down(self, peer: str) -> None:
        self.losses[peer] += 1
        self._node_down(peer)

    def _ended(self, process: Process, reason: Any) -> None:
        self.world.process_ended(process, reason)
        self._exited(process, reason)

    def _disclaimed(self, name: str, pid: Pid) -> bool:
        self.world.disclaimed(name)
        return self._disclaim(name, pid)

    def _signalled(self, session: Session, signal: Any) -> None:
        match signal:
            case ["monitor", ref, key]:
                found = self.named(key) if isinstance(key, str) else self.pid(key)
                self.world.monitor_arrived(ref, found)
            case ["link", Pid() as other, int(number), *_]:
                self.world.link_arrived(self, other, self.pid(number))
        self._told(session, signal)


class World:
    """The memory of a story."""

    def __init__(self) -> None:
        self.cluster: SimCluster
        self.breaches: list[str] = []
        self.homes: dict[str, Home] = {}
        """Address → what runs there, or ran there last."""
        self.of: dict[tuple[str, int], Home] = {}
        self.acting = True
        """Whether the folk still act, or only live on."""
        self.ending = False
        self.ended: dict[Pid, Any] = {}
        """Process → why it ended."""
        self.folk: dict[Pid, Process] = {}
        """Whom one can be tied to: processes that have their mailbox watched, dead ones included."""
        self.kin: list[Pid] = []
        self.parents: dict[Pid, Pid | None] = {}
        """Of those that have ended."""
        self.citizens: set[Pid] = set()
        self.on_end: dict[Pid, Callable[[Any], None]] = {}
        self.trapping: set[Pid] = set()
        self.watches: dict[Ref, Watch] = {}
        self._early: dict[Ref, tuple[Pid, Any]] = {}
        """What was told of monitors before they were known here."""
        self._found: dict[Ref, Pid] = {}
        """Monitors of spawned processes, until their owners know of them."""
        self._spawning: dict[Pid, list[tuple[Process, Pid, Any]]] = {}
        """Who waits for a linked process on another node → the exits that it was told of meanwhile."""
        self.dues: dict[tuple[Pid, Pid], Due] = {}
        self.blurred: set[frozenset[Pid]] = set()
        """Pairs of which one has unlinked: who is linked depends on what crossed what."""
        self.exit_signals: dict[int, tuple[Pid, Pid]] = {}
        """Number → its sender and its target, until it is delivered."""
        self.came: dict[tuple[Pid, Pid, int], int] = {}
        """Numbered message in a mailbox → connections to its sender's node that had been lost by then."""
        self.trees: dict[Pid, Tree] = {}
        self.lost: set[tuple[str, Pid]] = set()
        """(name, process) that was told that it lost the name."""
        self.claims: set[tuple[str, Pid]] = set()
        """(name, process) that was registered, and not given up since."""
        self.counts: Counter[str] = Counter()

    def breach(self, what: str) -> None:
        if len(self.breaches) < SHOWN:
            self.breaches.append(f"at {self.now_s:.4f} s: {what}")

    def check(self) -> None:
        """Raise the breaches so far."""
        if self.breaches:
            raise Breach("; ".join(self.breaches))

    @property
    def now_s(self) -> float:
        return self.cluster.loop.time()

    def alive(self, pid: Pid) -> bool:
        return pid in self.folk and pid not in self.ended

    def home_of(self, pid: Pid) -> Home:
        return self.of[pid.node, pid.incarnation]

    def settle(self, node: Node) -> Home:
        """A node has started."""
        home = self.homes[self.cluster.ip_of(node)] = Home(self, node)
        self.of[node.name, node.incarnation] = home
        return home

    def meet(self, process: Process) -> None:
        """Look at whatever is put into its mailbox from here on."""
        if process.pid not in self.folk:
            self.folk[process.pid] = process
            process.mailbox.queue = Tap(self, process)

    # What processes do.

    def trap(self, process: Process) -> None:
        process.trap_exit = True
        self.trapping.add(process.pid)

    def monitor(self, process: Process, target: Target) -> Ref:
        home = self.home_of(process.pid)
        watch = Watch(process.pid, target, home.losses[target.node], home.connected(target.node))
        local = target.node == home.node.name
        if local:
            watch.arrived = True
            found = target if isinstance(target, Pid) else home.named(target.name)
            watch.found = found if found is not None and found not in self.ended else None
        ref = process.monitor(target)
        if ref in self.watches:
            self.breach(f"{ref} was given twice")
        self.watches[ref] = watch
        self.counts["monitors"] += 1
        if ref in self._early:
            self._fired(ref, *self._early.pop(ref))
        return ref

    async def spawn_at(self, process: Process, at: str, *args: Any, linked: bool, timeout_s: float) -> Pid:
        """Spawn on another node, linked or monitored. Raises: as `Process.spawn_link_at`."""
        home = self.home_of(process.pid)
        losses, connected = home.losses[at], home.connected(at)
        self._spawning[process.pid] = []
        try:
            if linked:
                pid = await process.spawn_link_at(at, "child", *args, timeout=timeout_s)
                self.dues[process.pid, pid] = Due(losses, connected)
            else:
                pid, ref = await process.spawn_monitor_at(at, "child", *args, timeout=timeout_s)
                found = self._found.pop(ref, None)
                self.watches[ref] = Watch(process.pid, pid, losses, connected, found is not None, found)
                if ref in self._early:
                    self._fired(ref, *self._early.pop(ref))
        except BaseException:
            self._given_up(process, at)
            raise
        for told in self._spawning.pop(process.pid):
            self._exit_told(*told)
        return pid

    def _given_up(self, process: Process, at: str) -> None:
        """What a process was told of one that it has not spawned after all, it will never read."""
        for told in self._spawning.pop(process.pid):
            if told[1].node != at or Exit(*told[1:]) in process.mailbox.queue:
                self._exit_told(*told)
        for ref, (owner, down) in list(self._early.items()):
            if owner == process.pid and down not in process.mailbox.queue:
                del self._early[ref]

    def demonitor(self, process: Process, ref: Ref, *, flush: bool) -> None:
        process.demonitor(ref, flush=flush)
        watch = self.watches[ref]
        if watch.state == "armed":
            watch.state = "given up"

    def link(self, process: Process, other: Pid) -> None:
        home = self.home_of(process.pid)
        pair = (process.pid, other)
        before = self.dues.get(pair)
        self.dues[pair] = Due(home.losses[other.node], home.connected(other.node))
        here = other.node == home.node.name
        if here and self.alive(other) and process.pid not in self.ended:
            self.dues.setdefault((other, process.pid), Due(0, home.node.incarnation))
        elif before is not None:
            self.dues[pair] = before
        self.counts["links"] += 1
        process.link(other)

    def unlink(self, process: Process, other: Pid) -> None:
        self.blurred.add(frozenset((process.pid, other)))
        self.dues.pop((process.pid, other), None)
        self.dues.pop((other, process.pid), None)
        process.unlink(other)

    def exit(self, process: Process, other: Pid) -> None:
        number = self.counts["exit signals"]
        self.counts["exit signals"] += 1
        self.exit_signals[number] = (process.pid, other)
        process.exit(other, ("exit2", number))

    def forgotten(self) -> None:
        """At the end: nobody was told of what it has never asked for."""
        for ref, (owner, down) in self._early.items():
            self.breach(f"{owner} was told {down} of {ref}, which it does not know")

    def claimed(self, name: str, pid: Pid, *, local: bool) -> None:
        """A cluster-wide name was registered; on another node it may be another's again by now."""
        if local:
            self.claims.add((name, pid))
            self.lost.discard((name, pid))
        self.counts["names registered"] += 1

    def disclaimed(self, name: str) -> None:
        """Somebody has given a name up, of whichever process."""
        self.claims = {claim for claim in self.claims if claim[0] != name}
        self.counts["names given up"] += 1

    # What happens.

    def process_ended(self, process: Process, reason: Any) -> None:
        pid = process.pid
        if pid in self.ended:
            self.breach(f"{pid} ended twice: {self.ended[pid]} and {reason}")
        self.ended[pid] = reason
        self.parents[pid] = process.parent
        if pid in self.on_end:
            self.on_end.pop(pid)(reason)
        match reason:
            case ("exit2", int(number)) if number >= self.counts["exit signals"]:
                self.breach(f"{pid} ended by an exit signal that nobody sent, {number}")
            case NameLost(name=name):
                self.lost.add((name, pid))
        tree = self.trees.pop(pid, None)
        if tree is not None and not (self.ending or process._is_ending or process.node._stopping):
            self._tree_ended(pid, tree, reason)

    def _tree_ended(self, pid: Pid, tree: Tree, reason: Any) -> None:
        """A supervisor ends by itself only if it gives up, and the loss of peers is no reason to."""
        self.counts["supervisors that gave up"] += 1
        counted = [at for at, why in tree.failures if not _of_the_cluster(why)]
        recent = [at for at in counted if at >= self.now_s - tree.period_s - SLACK_S]
        if reason != "shutdown" or len(recent) <= tree.max_restarts:
            self.breach(f"supervisor {pid} ended ({reason}) after {tree.failures} of {tree.max_restarts}")

    def monitor_arrived(self, ref: Ref, found: Pid | None) -> None:
        watch = self.watches.get(ref)
        if watch is None and found is not None and ref not in self._found:
            self._found[ref] = found
        elif watch is None or watch.arrived:
            self.breach(f"the monitor {ref} came twice, or from nobody")
        else:
            watch.arrived = True
            watch.found = found if found is not None and found not in self.ended else None

    def link_arrived(self, home: Home, other: Pid, pid: Pid) -> None:
        if pid in self.folk and pid not in self.ended:
            due = Due(home.losses[other.node], home.connected(other.node))
            if frozenset((pid, other)) not in self.blurred:
                self.dues.setdefault((pid, other), due)

    # What processes are told.

    def delivered(self, process: Process, message: Any) -> None:
        """A message is about to be in a mailbox."""
        match message:
            case Down(ref=ref):
                if ref in self.watches:
                    self._fired(ref, process.pid, message)
                elif ref in self._early:
                    self.breach(f"{process.pid} was told twice: {message}")
                else:
                    self._early[ref] = (process.pid, message)
            case Exit(pid=other, reason=reason):
                self._exit_told(process, other, reason)
            case NameLost(name=name):
                self.lost.add((name, process.pid))
            case ("seq", Pid() as sender, int(number), *_):
                home = self.home_of(process.pid)
                self.came[sender, process.pid, number] = home.losses[sender.node]
                if sender.node == home.node.name and len(process.mailbox.queue) >= process.mailbox.limit:
                    self.breach(f"{sender} filled the mailbox of {process.pid} beyond its limit")

    def _fired(self, ref: Ref, owner: Pid, down: Down) -> None:
        watch = self.watches[ref]
        if watch.state != "armed" or watch.owner != owner or watch.target != down.target:
            self.breach(f"{owner} was told {down} of a monitor that is {watch.state}")
        watch.state = "fired"
        right = self._right_reason(watch)
        self.counts[f"down: {right if isinstance(right, str) else 'another'}"] += 1
        if down.reason != right:
            self.breach(f"{owner} was told {down}, and {right!r} is right for {watch}")

    def _right_reason(self, watch: Watch) -> Any:
        """Why this monitor may fire now; `object` where it must not."""
        home, target = self.home_of(watch.owner), watch.target
        if watch.connected is None:
            return "noconnection"
        if isinstance(target, Pid) and watch.connected != target.incarnation:
            return "noproc"
        if home.losses[target.node] != watch.losses:
            return "noconnection"
        if watch.arrived:
            return "noproc" if watch.found is None else self.ended.get(watch.found, object)
        return object

    def _exit_told(self, process: Process, other: Pid, reason: Any) -> None:
        pid = process.pid
        match reason:
            case ("exit2", int(number)) if other not in self.ended or self.ended[other] != reason:
                if self.exit_signals.pop(number, None) != (other, pid):
                    self.breach(f"{pid} was told of exit signal {number} of {other}, twice or never sent")
                return
            case NameLost() if other.number == 0:
                self.lost.add((reason.name, pid))
                return
            case "shutdown" if other.number == 0 and (self.ending or process.node._stopping):
                return
        due = self.dues.pop((pid, other), None)
        if pid in self.trees and self.parents.get(other) == pid:
            self.trees[pid].failures.append((self.now_s, reason))
            return
        if due is None:
            if pid in self._spawning:
                self._spawning[pid].append((process, other, reason))
            elif frozenset((pid, other)) not in self.blurred:
                self.breach(f"{pid} was told {reason} of {other}, which it is not linked with")
            return
        if reason not in self._right_exits(pid, other, due):
            self.breach(f"{pid} was told {reason} of {other}, which ended: {self.ended.get(other)}, {due}")
        self.counts["exits"] += 1

    def _right_exits(self, pid: Pid, other: Pid, due: Due) -> list[Any]:
        if due.connected is None:
            return ["noconnection"]
        if due.connected != other.incarnation:
            return ["noproc"]
        if self.home_of(pid).losses[other.node] != due.losses:
            return ["noconnection"]
        return ["noproc", self.ended[other]] if other in self.ended else []


class Tap(deque[Any]):
    """The queue of a mailbox, seen through."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(process.mailbox.queue)
        self._world = world
        self._process = process
        for message in self:
            world.delivered(process, message)

    def append(self, message: Any, /) -> None:
        self._world.delivered(self._process, message)
        super().append(message)


def _of_the_cluster(reason: Any) -> bool:
    return reason == "noconnection" or isinstance(reason, NameLost)


def open_futures(loop: asyncio.AbstractEventLoop, made: Any) -> list[str]:
    """Futures that the loop was asked for, that somebody still holds, and that never were done."""
    return [repr(future) for future in list(made) if not future.done() and future.get_loop() is loop]
