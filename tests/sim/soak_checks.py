"""What must hold in a soak run: after every fact, when all requests have ended, and at the end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from fleetlm import Node, Pid
from fleetlm.settings import Settings
from tests.sim.invariants import held, left_timers
from tests.sim.soak_ledger import Ledger
from tests.sim.soak_processes import Processes
from tests.sim.soak_world import NodeRecord, World

HEAVY_UNITS = 4
"""The most units that one message of a run counts in a window."""


class Checks:
    """The checks of one run."""

    def __init__(
        self, world: World, ledger: Ledger, processes: dict[str, Processes], settings: Settings
    ) -> None:
        self.world = world
        self.ledger = ledger
        self.processes = processes
        self.max_units = settings.mailbox_limit + HEAVY_UNITS - 1
        self._facts = 0

    # After every fact.

    def on_fact(self, ip: str) -> None:
        """Check after each fact that was reported to a node that no window exceeds its limit."""
        record = self.world.records.get(ip)
        if record is None:
            return
        self._facts += 1
        for name, session in record.node._driver.sessions.items():
            for what, units in (("sent", session.held), ("got", session.arrivals.held)):
                if units and max(units.values()) > self.max_units:
                    self.world.breach(f"{record.node.name} has {what} {units} to or of {name}")
        if self._facts % 16 == 0:
            self._mailboxes(record.node)

    def _mailboxes(self, node: Node) -> None:
        for box in dict.fromkeys(node._local.boxes.values()):
            waiting: Counter[Any] = Counter()
            for origin in box._origins or ():
                count = max(0, origin.end - max(origin.start, box.taken))
                waiting[id(origin.window), origin.key] += count * origin.weight
            if waiting and max(waiting.values()) > self.max_units:
                self.world.breach(f"{node.name}: {max(waiting.values())} units of one peer in a mailbox")

    # When all requests have ended.

    def busy(self) -> list[str]:
        """Describe what has not ended."""
        found = [f"{request} waits" for request in self.ledger.request if not request.ended]
        found += [f"{request} is being served" for request in self.ledger.serving.values()]
        for ip, record in self._running():
            found += held(self.world.cluster, record.node)
            processes = self.processes[ip]
            if processes.busy or processes.crossings.keys() - self.world.ended.keys():
                found.append(f"{processes.node.name}: {processes.busy} workers are busy")
            for subscription in (*self._subscriptions(record.node),):
                if subscription._queue:
                    found.append(f"{processes.node.name}: a subscriber that has not read")
        return found

    def quiet(self) -> None:
        """Check that everything arrived and that all nodes agree."""
        for request in self.ledger.request:
            if not request.ended:
                self.world.breach(f"{request} has no outcome")
        self.ledger.check_settled()
        self._check_spawned()
        self._check_monitors()
        self._check_due_exits()
        self._check_tables()
        self._check_groups()
        self._check_names()
        for pid, tree in self.world.trees.items():
            if storm := tree.excess_starts(self.world.now_s):
                self.world.breach(f"supervisor {pid} on {pid.node}: {storm}; {tree.failures}")

    def _running(self) -> list[tuple[str, NodeRecord]]:
        return [(ip, record) for ip, record in self.world.records.items() if ip in self.world.cluster.nodes]

    def _running_record(self, pid: Pid) -> NodeRecord | None:
        """Return the node of a process if that node still runs."""
        record = self.world.by_incarnation.get((pid.node, pid.incarnation))
        return record if record is not None and record.node in self.world.cluster.nodes.values() else None

    def is_running(self, pid: Pid) -> bool:
        """Whether a process and its node still run."""
        return pid not in self.world.ended and self._running_record(pid) is not None

    def _check_spawned(self) -> None:
        """A spawn that did not return a pid leaves no process, unless a connection was lost."""
        for request in self.ledger.request:
            if request.how == "spawn" and request.record.losses[request.target[1]] == request.losses:
                orphans = [
                    pid for pid in request.ran if pid not in self.world.ended and self._running_record(pid)
                ]
                if orphans and not isinstance(request.outcome, Pid):
                    self.world.breach(f"{orphans} live, and {request} ended: {request.outcome!r}")

    def _check_monitors(self) -> None:
        world = self.world
        for ref, monitored in world.monitors.items():
            record = self._running_record(monitored.owner)
            if monitored.state != "armed" or record is None or monitored.owner in world.ended:
                continue
            expected = world.expected_reason(monitored)
            if expected is not object:
                world.breach(f"{ref} of {monitored.owner} never fired: {expected!r}, {monitored}")
                continue
            if not monitored.arrived or monitored.found is None:
                world.breach(f"{ref} of {monitored.owner} is unknown to {monitored.target}")
                continue
            there = self._running_record(monitored.found)
            mine = record.node._parts.signals.links._ends[monitored.owner.number].monitors
            if there is None or ref not in mine or ref not in there.node._parts.signals.links._watchers_of:
                world.breach(f"{ref} of {monitored.owner} to {monitored.target} is not held on both sides")

    def _check_due_exits(self) -> None:
        """A process that was linked with an ended process has ended too, or got its exit."""
        world = self.world
        for (pid, other), due in world.due_exits.items():
            if (
                pid in world.ended
                or self._running_record(pid) is None
                or frozenset((pid, other)) in world.racing_pairs
            ):
                continue
            if pid not in world.trapping and world.ended.get(other) == "normal":
                continue  # A normal exit is not delivered to a process that does not trap exits.
            expected = world.expected_exits(pid, other, due)
            if expected:
                world.breach(f"{pid} did not get the exit of {other}: {expected}")
            elif other not in self._links(pid):
                world.breach(f"{pid} is not linked with {other} any more")

    def _links(self, pid: Pid) -> Iterable[Pid]:
        record = self._running_record(pid)
        ends = None if record is None else record.node._parts.signals.links._ends.get(pid.number)
        return () if ends is None else ends.links

    def _check_tables(self) -> None:
        """Each end of a link or monitor has its other end, in a living process."""
        for _, record in self._running():
            links = record.node._parts.signals.links
            owners, watched = {}, {}
            for number, ends in links._ends.items():
                pid = record.pid(number)
                if not record.node._local.is_alive(number):
                    self.world.breach(f"{pid} has ended, and is in the links of its node")
                for other in ends.links:
                    if pid not in self._links(other):
                        self.world.breach(f"{pid} is linked with {other}, which is not with it")
                owners |= dict.fromkeys(ends.monitors, number)
                watched |= dict.fromkeys(ends.watchers, number)
                for ref, target in ends.monitors.items():
                    there = self.world.records[self.world.cluster.address_of(target.node)]
                    if ref not in there.node._parts.signals.links._watchers_of:
                        self.world.breach(f"{pid} watches {target} by {ref}, which does not know")
                for ref in ends.watchers:
                    owner = self.world.records[self.world.cluster.address_of(ref.node)]
                    if ref not in owner.node._parts.signals.links._owner_of:
                        self.world.breach(f"{pid} is watched by {ref}, which does not know")
            if owners != links._owner_of or watched != links._watchers_of:
                self.world.breach(f"{record.node.name}: the tables of monitors contradict each other")

    def _check_groups(self) -> None:
        own = {ip: self._own_groups(ip) for ip, _ in self._running()}
        union: Counter[tuple[str, Pid]] = Counter()
        for memberships in own.values():
            union += memberships
        for ip, record in self._running():
            groups = record.node.groups
            seen = Counter((group, pid) for group in groups.list() for pid in groups.members(group))
            if seen != union:
                self.world.breach(f"{record.node.name} sees the groups {seen}, and they are {union}")
            if +self.processes[ip].changes != union:
                self.world.breach(
                    f"{record.node.name}: a subscriber sees {+self.processes[ip].changes}: {union}"
                )

    def _own_groups(self, ip: str) -> Counter[tuple[str, Pid]]:
        joined = self.processes[ip].joined.items()
        return Counter((group, pid) for pid, mine in joined if self.world.is_alive(pid) for group in mine)

    def _check_names(self) -> None:
        world, seen = self.world, {}
        for ip, record in self._running():
            registry = record.node.registry
            seen[ip] = {name: (pid, registry.lookup(name).meta) for name, pid in registry.list().items()}  # type: ignore[union-attr]
            if registry._table._several:
                world.breach(f"{record.node.name} knows competing claims: {registry._table._several}")
            if self.processes[ip].holders != seen[ip]:
                world.breach(
                    f"{record.node.name}: a subscriber sees {self.processes[ip].holders}: {seen[ip]}"
                )
        holders = next(iter(seen.values()))
        if any(others != holders for others in seen.values()):
            world.breach(f"the nodes see other owners: {seen}")
        for name, (pid, _) in holders.items():
            if pid in world.ended:
                world.breach(f"{name} belongs to {pid}, which has ended")
        for name, pid in world.claims:
            is_known = pid in world.ended or (name, pid) in world.lost
            if (
                not is_known
                and self._running_record(pid) is not None
                and holders.get(name, (None,))[0] != pid
            ):
                world.breach(f"{pid} lost {name} to {holders.get(name)}, but got no message")

    # At the end.

    def ended(self) -> None:
        """All processes have ended and the nodes still run: no table has anything left."""
        for _, record in self._running():
            node = record.node
            links, local, registry = node._parts.signals.links, node._local, node.registry
            left = {
                "processes": node.processes(), "tasks": local._tasks, "mailboxes": local.boxes,
                "local names": local.table.names, "links": links._ends,
                "monitors held": links._owner_of, "monitors here": links._watchers_of,
                "groups": node.groups.list(), "memberships": [*node.groups._table._own],
                "names": registry.list(), "claims": registry._table._several,
                "claims by process": registry._table._names_of,
                "waiters for names": registry._replicated._waiters,
                "calls": node._outbound.local_calls, "subscriptions": self._subscriptions(node),
                "round robins": node.groups._replicated.picker._last,
            }  # fmt: skip
            for session in node._driver.sessions.values():
                left |= {
                    f"origins of {session.name}": session.arrivals._boxes,
                    f"untold of {session.name}": session.arrivals._untold,
                    f"lanes to {session.name}": session.lanes._lanes,
                }
            for what, some in left.items():
                if some:
                    self.world.breach(f"{node.name} still has {what}: {str(some)[:300]}")
            for what in held(self.world.cluster, node):
                self.world.breach(f"everything has ended: {what}")

    def _subscriptions(self, node: Node) -> list[Any]:
        return [*node.groups._replicated.feed._subscriptions, *node.registry._replicated.feed._subscriptions]


class Futures:
    """Every future that the loop makes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._made: list[weakref.ref[Any]] = []  # a WeakSet costs a story 2 % of its time
        self._create: Callable[[], Any] = loop.create_future
        loop.create_future = self._created

    def _created(self) -> Any:
        future = self._create()
        self._made.append(weakref.ref(future))
        return future

    def pending(self) -> list[str]:
        """Describe the futures that are still referenced and were never done."""
        if not self._undone():
            return []
        gc.collect()  # a SimLoop collects garbage at fixed turns only
        return [repr(future) for future in self._undone()]

    def _undone(self) -> list[Any]:
        made = (reference() for reference in self._made)
        return [future for future in made if future is not None and not future.done()]


def left_in_loop(loop: Any, futures: Futures) -> list[str]:
    """Describe what a loop still has when every node has stopped."""
    me = asyncio.current_task()
    found = [f"task {task.get_name()}" for task in loop.pending_tasks() if task is not me]
    found += [f"timer {timer}" for timer in left_timers(loop)]
    return found + [f"future {future}" for future in futures.pending()]
