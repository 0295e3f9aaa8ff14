"""A model of a soak run beside the cluster: which processes live, which are linked, what was delivered.

The model is updated where things happen: `NodeRecord` wraps the methods of a node that run when a process
ends, a connection ends or a signal arrives, and `ObservedQueue` stands in a mailbox. At the moment when
a message, a `Down` or an `Exit` is delivered, it is compared with the model. A breach is recorded with
its virtual time and fails the run at its next step (`World.check`).

Whether a signal got through is decided by counting lost connections: a monitor or link remembers how many
connections to the target's node had been lost when it was made. If more have been lost since, the reason
must be "noconnection"; otherwise it must be the true reason. Pairs in which one process has unlinked are
in ``racing_pairs``: what crossed what decides there, so only their tables are compared.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fleetlm import Address, Down, Exit, NameLost, Node, Pid, Process, Ref
from fleetlm.messaging.mailbox import MOST_BEYOND
from fleetlm.messaging.session import Session
from fleetlm.testing.cluster import SimCluster
from tests.sim.invariants import SHOWN, Breach

Target = Pid | Address
SLACK_S = 1.0
"""Virtual seconds between the end of a child and its supervisor counting it."""


@dataclass
class MonitorRecord:
    """A monitor, from its start to its end."""

    owner: Pid
    target: Target
    losses: int
    """How many connections to the target's node the owner's node had lost at the start."""
    connected: int | None
    """Incarnation of the target's node to which the owner's node was connected at the start, if any."""
    arrived: bool = False
    """Whether the request arrived at the target's node."""
    found: Pid | None = None
    """The living process that the request found there."""
    state: str = "armed"


@dataclass
class DueExit:
    """An exit signal that must come when a linked process ends or its node is lost."""

    losses: int
    connected: int | None


@dataclass
class Tree:
    """One run of a supervisor."""

    strategy: str
    max_restarts: int
    period_s: float
    pause_s: float
    began_s: float
    starts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[float, Any]] = field(default_factory=list)
    """(time, reason) of each child that ended and was not ended by the supervisor."""

    def excess_starts(self, now_s: float) -> str:
        """Describe children that were started more often than failures and pauses allow."""
        counted = sum(not _is_of_the_cluster(why) for _, why in self.failures)
        most = 2 + counted + len(self.starts) * (1 + (now_s - self.began_s) / self.pause_s)
        return "".join(f"{name}: {count} starts" for name, count in self.starts.items() if count > most)


class NodeRecord:
    """One incarnation of a node, with its lost connections; observes the node."""

    def __init__(self, world: World, node: Node) -> None:
        self.world = world
        self.node = node
        self.losses: Counter[str] = Counter()
        """Peer → number of lost connections to it."""
        self.lost_at: dict[str, float] = {}
        """Peer → when the last one was lost."""
        parts, signals, names = node._parts, node._parts.signals, node._parts.replicated_names
        self._node_down, self._exited, self._told = parts.node_down, signals.exited, signals.told
        self._disclaim = names.asked_to_disclaim
        names.asked_to_disclaim = self._disclaimed
        parts.node_down = self._down  # type: ignore[assignment]
        signals.exited = self._ended  # type: ignore[assignment]
        signals.told = self._signalled

    def connected(self, node: str) -> int | None:
        """Return the incarnation that a signal to that node would reach, or None without a connection."""
        if node == self.node.name:
            return self.node.incarnation
        session = self.node._driver.sessions.get(node)
        return None if session is None else session.incarnation

    def pid(self, number: int) -> Pid:
        return Pid(self.node.name, self.node.incarnation, number)

    def named(self, name: str) -> Pid | None:
        number = self.node._local.table.names.get(name)
        return None if number is None else self.pid(number)

    def _down(self, peer: str) -> Iterator[None]:
        self.losses[peer] += 1
        self.lost_at[peer] = self.world.now_s
        return self._node_down(peer)

    def _ended(self, process: Process, reason: Any) -> None:
        self.world.process_ended(process, reason)
        self._exited(process, reason)

    def _disclaimed(self, name: str, pid: Pid) -> bool:
        self.world.disclaimed(name)
        return self._disclaim(name, pid)

    def _signalled(self, session: Session, signal: Any, reaches: Callable[[int], bool] | None = None) -> None:
        match signal:
            case ["monitor", ref, key]:
                found = self.named(key) if isinstance(key, str) else self.pid(key)
                self.world.monitor_arrived(ref, found)
            case ["link", Pid() as other, int(number), *_]:
                self.world.link_arrived(self, other, self.pid(number))
        self._told(session, signal, reaches)


class World:
    """The model of one soak run."""

    def __init__(self) -> None:
        self.cluster: SimCluster
        self.breaches: list[str] = []
        self.records: dict[str, NodeRecord] = {}
        """Address → the node that runs there, or ran there last."""
        self.by_incarnation: dict[tuple[str, int], NodeRecord] = {}
        self.is_acting = True
        """Whether processes still start new actions."""
        self.is_ending = False
        self.ended: dict[Pid, Any] = {}
        """Process → the reason of its end."""
        self.observed: dict[Pid, Process] = {}
        """Processes whose mailbox is observed, ended ones included; others link to and monitor them."""
        self.workers: list[Pid] = []
        self.parents: dict[Pid, Pid | None] = {}
        """Ended process → its parent."""
        self.actors: set[Pid] = set()
        self.on_process_end: dict[Pid, Callable[[Any], None]] = {}
        self.trapping: set[Pid] = set()
        self.monitors: dict[Ref, MonitorRecord] = {}
        self._early_downs: dict[Ref, tuple[Pid, Any]] = {}
        """`Down` messages that arrived before the model knew their monitor."""
        self._found: dict[Ref, Pid] = {}
        """Monitors of spawned processes until the spawn has returned to their owners."""
        self._spawning: dict[Pid, list[tuple[Process, Pid, Any]]] = {}
        """Process that waits for a remote spawn → the exits that were delivered to it meanwhile."""
        self.due_exits: dict[tuple[Pid, Pid], DueExit] = {}
        self.racing_pairs: set[frozenset[Pid]] = set()
        """Pairs of which one has unlinked: whether they are linked depends on which signals crossed."""
        self.exit_signals: dict[int, tuple[Pid, Pid]] = {}
        """Number of an exit signal → sender and target, until it is delivered."""
        self.losses_on_arrival: dict[tuple[Pid, Pid, int], int] = {}
        """Numbered message in a mailbox → lost connections to its sender's node when it arrived."""
        self.trees: dict[Pid, Tree] = {}
        self.lost: set[tuple[str, Pid]] = set()
        """(name, process): the process got a `NameLost` of the name."""
        self.claims: set[tuple[str, Pid]] = set()
        """(name, process): registered and not unregistered since."""
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

    def is_alive(self, pid: Pid) -> bool:
        return pid in self.observed and pid not in self.ended

    def record_of(self, pid: Pid) -> NodeRecord:
        return self.by_incarnation[pid.node, pid.incarnation]

    def node_started(self, node: Node) -> NodeRecord:
        """Record a node that has started."""
        record = self.records[self.cluster.address_of(node)] = NodeRecord(self, node)
        self.by_incarnation[node.name, node.incarnation] = record
        return record

    def observe(self, process: Process) -> None:
        """Observe everything that is put into the process's mailbox from now on."""
        if process.pid not in self.observed:
            self.observed[process.pid] = process
            process.mailbox.queue = ObservedQueue(self, process)

    # What processes do.

    def trap_exits(self, process: Process) -> None:
        process.trap_exit = True
        self.trapping.add(process.pid)

    def monitor(self, process: Process, target: Target) -> Ref:
        record = self.record_of(process.pid)
        monitored = MonitorRecord(
            process.pid, target, record.losses[target.node], record.connected(target.node)
        )
        local = target.node == record.node.name
        if local:
            monitored.arrived = True
            found = target if isinstance(target, Pid) else record.named(target.name)
            monitored.found = found if found is not None and found not in self.ended else None
        ref = process.monitor(target)
        if ref in self.monitors:
            self.breach(f"{ref} was given twice")
        self.monitors[ref] = monitored
        self.counts["monitors"] += 1
        if ref in self._early_downs:
            self._monitor_fired(ref, *self._early_downs.pop(ref))
        return ref

    async def spawn_at(self, process: Process, at: str, *args: Any, linked: bool, timeout_s: float) -> Pid:
        """Spawn on another node, linked or monitored. Raises: as `Process.spawn_link_at`."""
        record = self.record_of(process.pid)
        losses, connected = record.losses[at], record.connected(at)
        self._spawning[process.pid] = []
        try:
            if linked:
                pid = await process.spawn_link_at(at, "child", *args, timeout=timeout_s)
                self.due_exits[process.pid, pid] = DueExit(losses, connected)
            else:
                pid, ref = await process.spawn_monitor_at(at, "child", *args, timeout=timeout_s)
                found = self._found.pop(ref, None)
                self.monitors[ref] = MonitorRecord(
                    process.pid, pid, losses, connected, found is not None, found
                )
                if ref in self._early_downs:
                    self._monitor_fired(ref, *self._early_downs.pop(ref))
        except BaseException:
            self._spawn_failed(process, at)
            raise
        for delivered in self._spawning.pop(process.pid):
            self._exit_delivered(*delivered)
        return pid

    def _spawn_failed(self, process: Process, at: str) -> None:
        """Check the exits that came before a spawn failed; those not in the mailbox are never read."""
        for delivered in self._spawning.pop(process.pid):
            if delivered[1].node != at or Exit(*delivered[1:]) in process.mailbox.queue:
                self._exit_delivered(*delivered)
        for ref, (owner, down) in list(self._early_downs.items()):
            if owner == process.pid and down not in process.mailbox.queue:
                del self._early_downs[ref]

    def demonitor(self, process: Process, ref: Ref, *, flush: bool) -> None:
        process.demonitor(ref, flush=flush)
        monitored = self.monitors[ref]
        if monitored.state == "armed":
            monitored.state = "given up"

    def link(self, process: Process, other: Pid) -> None:
        record = self.record_of(process.pid)
        pair = (process.pid, other)
        before = self.due_exits.get(pair)
        self.due_exits[pair] = DueExit(record.losses[other.node], record.connected(other.node))
        here = other.node == record.node.name
        if here and self.is_alive(other) and process.pid not in self.ended:
            self.due_exits.setdefault((other, process.pid), DueExit(0, record.node.incarnation))
        elif before is not None:
            self.due_exits[pair] = before
        self.counts["links"] += 1
        process.link(other)

    def unlink(self, process: Process, other: Pid) -> None:
        self.racing_pairs.add(frozenset((process.pid, other)))
        self.due_exits.pop((process.pid, other), None)
        self.due_exits.pop((other, process.pid), None)
        process.unlink(other)

    def exit(self, process: Process, other: Pid) -> None:
        number = self.counts["exit signals"]
        self.counts["exit signals"] += 1
        self.exit_signals[number] = (process.pid, other)
        process.exit(other, ("exit2", number))

    def check_early_downs(self) -> None:
        """At the end: no process got a `Down` of a monitor that it never started."""
        for ref, (owner, down) in self._early_downs.items():
            self.breach(f"{owner} got {down} of {ref}, a monitor that it never started")

    def claimed(self, name: str, pid: Pid, *, local: bool) -> None:
        """Record a registered name; a name of a process on another node may have changed hands by now."""
        if local:
            self.claims.add((name, pid))
            self.lost.discard((name, pid))
        self.counts["names registered"] += 1

    def disclaimed(self, name: str) -> None:
        """Record that a name was unregistered, for whichever process."""
        self.claims = {claim for claim in self.claims if claim[0] != name}
        self.counts["names given up"] += 1

    # What happens.

    def process_ended(self, process: Process, reason: Any) -> None:
        pid = process.pid
        if pid in self.ended:
            self.breach(f"{pid} ended twice: {self.ended[pid]} and {reason}")
        self.ended[pid] = reason
        self.parents[pid] = process.parent
        if pid in self.on_process_end:
            self.on_process_end.pop(pid)(reason)
        match reason:
            case ("exit2", int(number)) if number >= self.counts["exit signals"]:
                self.breach(f"{pid} ended by exit signal {number}, which was never sent")
            case NameLost(name=name):
                self.lost.add((name, pid))
        tree = self.trees.pop(pid, None)
        if tree is not None and not (self.is_ending or process._is_ending or process.node._stopping):
            self._tree_ended(pid, tree, reason)

    def _tree_ended(self, pid: Pid, tree: Tree, reason: Any) -> None:
        """Check that a supervisor gave up only after enough failures; losing peers does not count."""
        self.counts["supervisors that gave up"] += 1
        counted = [at for at, why in tree.failures if not _is_of_the_cluster(why)]
        recent = [at for at in counted if at >= self.now_s - tree.period_s - SLACK_S]
        if reason != "shutdown" or len(recent) <= tree.max_restarts:
            self.breach(f"supervisor {pid} ended ({reason}) after {tree.failures} of {tree.max_restarts}")

    def monitor_arrived(self, ref: Ref, found: Pid | None) -> None:
        monitored = self.monitors.get(ref)
        if monitored is None and found is not None and ref not in self._found:
            self._found[ref] = found
        elif monitored is None or monitored.arrived:
            self.breach(f"monitor {ref} arrived twice, or was never started")
        else:
            monitored.arrived = True
            monitored.found = found if found is not None and found not in self.ended else None

    def link_arrived(self, record: NodeRecord, other: Pid, pid: Pid) -> None:
        if pid in self.observed and pid not in self.ended:
            due = DueExit(record.losses[other.node], record.connected(other.node))
            if frozenset((pid, other)) not in self.racing_pairs:
                self.due_exits.setdefault((pid, other), due)

    # What is delivered to processes.

    def delivered(self, process: Process, message: Any) -> None:
        """Check a message that is about to be put into a mailbox."""
        match message:
            case Down(ref=ref):
                if ref in self.monitors:
                    self._monitor_fired(ref, process.pid, message)
                elif ref in self._early_downs:
                    self.breach(f"{process.pid} got {message} twice")
                else:
                    self._early_downs[ref] = (process.pid, message)
            case Exit(pid=other, reason=reason):
                self._exit_delivered(process, other, reason)
            case NameLost(name=name):
                self.lost.add((name, process.pid))
            case ("seq", Pid() as sender, int(number), *_):
                record = self.record_of(process.pid)
                self.losses_on_arrival[sender, process.pid, number] = record.losses[sender.node]
                box = process.mailbox
                # A process that waits in a circle of processes may send beyond the limit, up to this bound.
                most = box.limit * (MOST_BEYOND if box._favoured or sender == process.pid else 1)
                if sender.node == record.node.name and len(box.queue) >= most:
                    self.breach(f"{sender} filled the mailbox of {process.pid} beyond its limit")

    def _monitor_fired(self, ref: Ref, owner: Pid, down: Down) -> None:
        monitored = self.monitors[ref]
        if monitored.state != "armed" or monitored.owner != owner or monitored.target != down.target:
            self.breach(f"{owner} got {down} of a monitor that is {monitored.state}")
        monitored.state = "fired"
        expected = self.expected_reason(monitored)
        self.counts[f"down: {expected if isinstance(expected, str) else 'another'}"] += 1
        if down.reason != expected:
            self.breach(f"{owner} got {down}, but {expected!r} is expected for {monitored}")

    def expected_reason(self, monitored: MonitorRecord) -> Any:
        """Return the reason with which this monitor must fire now; `object` if it must not fire."""
        record, target = self.record_of(monitored.owner), monitored.target
        if monitored.connected is None:
            return "noconnection"
        if isinstance(target, Pid) and monitored.connected != target.incarnation:
            return "noproc"
        if record.losses[target.node] != monitored.losses:
            return "noconnection"
        if monitored.arrived:
            return "noproc" if monitored.found is None else self.ended.get(monitored.found, object)
        return object

    def _exit_delivered(self, process: Process, other: Pid, reason: Any) -> None:
        pid = process.pid
        match reason:
            case ("exit2", int(number)) if other not in self.ended or self.ended[other] != reason:
                if self.exit_signals.pop(number, None) != (other, pid):
                    self.breach(f"{pid} got exit signal {number} of {other}, twice or never sent")
                return
            case NameLost() if other.number == 0:
                self.lost.add((reason.name, pid))
                return
            case "shutdown" if other.number == 0 and (self.is_ending or process.node._stopping):
                return
        due = self.due_exits.pop((pid, other), None)
        if pid in self.trees and self.parents.get(other) == pid:
            self.trees[pid].failures.append((self.now_s, reason))
            return
        if due is None:
            if pid in self._spawning:
                self._spawning[pid].append((process, other, reason))
            elif frozenset((pid, other)) not in self.racing_pairs:
                self.breach(f"{pid} got {reason} of {other}, with which it is not linked")
            return
        if reason not in self.expected_exits(pid, other, due):
            self.breach(f"{pid} got {reason} of {other}, which ended: {self.ended.get(other)}, {due}")
        self.counts["exits"] += 1

    def expected_exits(self, pid: Pid, other: Pid, due: DueExit) -> list[Any]:
        if due.connected is None:
            return ["noconnection"]
        if due.connected != other.incarnation:
            return ["noproc"]
        if self.record_of(pid).losses[other.node] != due.losses:
            return ["noconnection"]
        return ["noproc", self.ended[other]] if other in self.ended else []


class ObservedQueue(deque[Any]):
    """The queue of a mailbox; shows each message to the model before it is appended."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(process.mailbox.queue)
        self._world = world
        self._process = process
        for message in self:
            world.delivered(process, message)

    def append(self, message: Any, /) -> None:
        self._world.delivered(self._process, message)
        super().append(message)


def _is_of_the_cluster(reason: Any) -> bool:
    return reason == "noconnection" or isinstance(reason, NameLost)


def open_futures(loop: asyncio.AbstractEventLoop, made: Any) -> list[str]:
    """Describe futures of the loop that are still referenced and were never done."""
    return [repr(future) for future in list(made) if not future.done() and future.get_loop() is loop]
