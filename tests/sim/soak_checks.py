"""What must hold in a society: at every moment, when it is quiet, and when everything has ended."""

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
from tests.sim.soak_folk import Folk
from tests.sim.soak_ledger import Ledger
from tests.sim.soak_world import Home, World

HEAVY_UNITS = 4
"""What the largest message of a story counts, at most."""


class Checks:
    """Of one story."""

    def __init__(self, world: World, ledger: Ledger, folk: dict[str, Folk], settings: Settings) -> None:
        self.world = world
        self.ledger = ledger
        self.folk = folk
        self.most = settings.mailbox_limit + HEAVY_UNITS - 1
        self._facts = 0

    # At every moment.

    def on_fact(self, ip: str) -> None:
        """After each fact that a node was told: no window is beyond its bound."""
        home = self.world.homes.get(ip)
        if home is None:
            return
        self._facts += 1
        for name, link in home.node._driver.sessions.items():
            for what, units in (("sent", link.held), ("got", link.arrivals.held)):
                if units and max(units.values()) > self.most:
                    self.world.breach(f"{home.node.name} has {what} {units} to or of {name}")
        if self._facts % 16 == 0:
            self._mailboxes(home.node)

    def _mailboxes(self, node: Node) -> None:
        for box in dict.fromkeys(node._local.boxes.values()):
            waiting: Counter[Any] = Counter()
            for origin in box._origins or ():
                count = max(0, origin.end - max(origin.start, box.taken))
                waiting[id(origin.window), origin.key] += count * origin.weight
            if waiting and max(waiting.values()) > self.most:
                self.world.breach(f"{node.name}: {max(waiting.values())} units of one peer in a mailbox")

    # In quiet.

    def busy(self) -> list[str]:
        """What is still under way."""
        found = [f"{asked} waits" for asked in self.ledger.asked if not asked.ended]
        found += [f"{asked} is being served" for asked in self.ledger.serving.values()]
        for ip, home in self._running():
            found += held(self.world.cluster, home.node)
            folk = self.folk[ip]
            if folk.busy or folk.quarrels.keys() - self.world.ended.keys():
                found.append(f"{folk.node.name}: {folk.busy} kin that act")
            for subscription in (*self._subscriptions(home.node),):
                if subscription._queue:
                    found.append(f"{folk.node.name}: a subscriber that has not read")
        return found

    def quiet(self) -> None:
        """Everything that was under way has arrived."""
        for asked in self.ledger.asked:
            if not asked.ended:
                self.world.breach(f"{asked} has no outcome")
        self.ledger.settled()
        self._spawned()
        self._watches()
        self._dues()
        self._tables()
        self._groups()
        self._names()
        for pid, tree in self.world.trees.items():
            if storm := tree.storms(self.world.now_s):
                self.world.breach(f"supervisor {pid} on {pid.node}: {storm}; {tree.failures}")

    def _running(self) -> list[tuple[str, Home]]:
        return [(ip, home) for ip, home in self.world.homes.items() if ip in self.world.cluster.nodes]

    def _home(self, pid: Pid) -> Home | None:
        """Where it lives, if its node runs."""
        home = self.world.of.get((pid.node, pid.incarnation))
        return home if home is not None and home.node in self.world.cluster.nodes.values() else None

    def lives(self, pid: Pid) -> bool:
        """Whether it, and its node, still run."""
        return pid not in self.world.ended and self._home(pid) is not None

    def _spawned(self) -> None:
        """Who has stopped waiting for a process has spawned none, unless a connection was lost."""
        for asked in self.ledger.asked:
            if asked.how == "spawn" and asked.home.losses[asked.target[1]] == asked.losses:
                orphans = [pid for pid in asked.ran if pid not in self.world.ended and self._home(pid)]
                if orphans and not isinstance(asked.outcome, Pid):
                    self.world.breach(f"{orphans} live, and {asked} ended: {asked.outcome!r}")

    def _watches(self) -> None:
        world = self.world
        for ref, watch in world.watches.items():
            home = self._home(watch.owner)
            if watch.state != "armed" or home is None or watch.owner in world.ended:
                continue
            right = world._right_reason(watch)
            if right is not object:
                world.breach(f"{ref} of {watch.owner} never fired: {right!r}, {watch}")
                continue
            if not watch.arrived or watch.found is None:
                world.breach(f"{ref} of {watch.owner} is unknown to {watch.target}")
                continue
            there = self._home(watch.found)
            mine = home.node._parts.signals.links._ends[watch.owner.number].monitors
            if there is None or ref not in mine or ref not in there.node._parts.signals.links._watchers_of:
                world.breach(f"{ref} of {watch.owner} to {watch.target} is not held on both sides")

    def _dues(self) -> None:
        """Who is linked with somebody that ended has ended as well, or was told."""
        world = self.world
        for (pid, other), due in world.dues.items():
            if pid in world.ended or self._home(pid) is None or frozenset((pid, other)) in world.blurred:
                continue
            if pid not in world.trapping and world.ended.get(other) == "normal":
                continue  # Nobody hears of that, and of nothing later.
            right = world._right_exits(pid, other, due)
            if right:
                world.breach(f"{pid} was not told of {other}, which ended: {right}")
            elif other not in self._links(pid):
                world.breach(f"{pid} is not linked with {other} any more")

    def _links(self, pid: Pid) -> Iterable[Pid]:
        home = self._home(pid)
        ends = None if home is None else home.node._parts.signals.links._ends.get(pid.number)
        return () if ends is None else ends.links

    def _tables(self) -> None:
        """Each end of a link and of a monitor has another end, which lives."""
        for _, home in self._running():
            relations = home.node._parts.signals.links
            owners, watched = {}, {}
            for number, ends in relations._ends.items():
                pid = home.pid(number)
                if not home.node._local.is_alive(number):
                    self.world.breach(f"{pid} has ended, and is in the relations of its node")
                for other in ends.links:
                    if pid not in self._links(other):
                        self.world.breach(f"{pid} is linked with {other}, which is not with it")
                owners |= dict.fromkeys(ends.monitors, number)
                watched |= dict.fromkeys(ends.watchers, number)
                for ref, target in ends.monitors.items():
                    there = self.world.homes[self.world.cluster.ip_of(target.node)]
                    if ref not in there.node._parts.signals.links._watchers_of:
                        self.world.breach(f"{pid} watches {target} by {ref}, which does not know")
                for ref in ends.watchers:
                    owner = self.world.homes[self.world.cluster.ip_of(ref.node)]
                    if ref not in owner.node._parts.signals.links._owner_of:
                        self.world.breach(f"{pid} is watched by {ref}, which does not know")
            if owners != relations._owner_of or watched != relations._watchers_of:
                self.world.breach(f"{home.node.name}: the tables of monitors contradict each other")

    def _groups(self) -> None:
        own = {ip: self._own_groups(ip) for ip, _ in self._running()}
        union: Counter[tuple[str, Pid]] = Counter()
        for memberships in own.values():
            union += memberships
        for ip, home in self._running():
            groups = home.node.groups
            seen = Counter((group, pid) for group in groups.list() for pid in groups.members(group))
            if seen != union:
                self.world.breach(f"{home.node.name} sees the groups {seen}, and they are {union}")
            if +self.folk[ip].changes != union:
                self.world.breach(f"{home.node.name}: a subscriber sees {+self.folk[ip].changes}: {union}")

    def _own_groups(self, ip: str) -> Counter[tuple[str, Pid]]:
        joined = self.folk[ip].joined.items()
        return Counter((group, pid) for pid, mine in joined if self.world.alive(pid) for group in mine)

    def _names(self) -> None:
        world, seen = self.world, {}
        for ip, home in self._running():
            registry = home.node.registry
            seen[ip] = {name: (pid, registry.lookup(name).meta) for name, pid in registry.list().items()}  # type: ignore[union-attr]
            if any(len(claims) != 1 for claims in registry._table._claims.values()):
                world.breach(f"{home.node.name} knows competing claims: {registry._table._claims}")
            if self.folk[ip].holders != seen[ip]:
                world.breach(f"{home.node.name}: a subscriber sees {self.folk[ip].holders}: {seen[ip]}")
        holders = next(iter(seen.values()))
        if any(others != holders for others in seen.values()):
            world.breach(f"the nodes see other owners: {seen}")
        for name, (pid, _) in holders.items():
            if pid in world.ended:
                world.breach(f"{name} belongs to {pid}, which has ended")
        for name, pid in world.claims:
            told = pid in world.ended or (name, pid) in world.lost
            if not told and self._home(pid) is not None and holders.get(name, (None,))[0] != pid:
                world.breach(f"{pid} has lost {name} to {holders.get(name)}, and was not told")

    # When everything has ended.

    def ended(self) -> None:
        """The nodes still run, their processes have ended: nothing of them is left in any table."""
        for _, home in self._running():
            node = home.node
            relations, local, registry = node._parts.signals.links, node._local, node.registry
            left = {
                "processes": node.processes(), "tasks": local._tasks, "mailboxes": local.boxes,
                "local names": local.table.names, "relations": relations._ends,
                "monitors held": relations._owner_of, "monitors here": relations._watchers_of,
                "groups": node.groups.list(), "memberships": node.groups._table._own.groups_of,
                "names": registry.list(), "claims": registry._table._claims,
                "claims by process": registry._table._names_of,
                "waiters for names": registry._replicated._waiters,
                "calls": node._outbound.local_calls, "subscriptions": self._subscriptions(node),
                "round robins": node.groups._replicated.picker._last,
            }  # fmt: skip
            for link in node._driver.sessions.values():
                left |= {
                    f"origins of {link.name}": link.arrivals._boxes,
                    f"untold of {link.name}": link.arrivals._untold,
                    f"lanes to {link.name}": link.lanes._lanes,
                }
            for what, some in left.items():
                if some:
                    self.world.breach(f"{node.name} still has {what}: {str(some)[:300]}")
            for what in held(self.world.cluster, node):
                self.world.breach(f"everything has ended: {what}")

    def _subscriptions(self, node: Node) -> list[Any]:
        return [*node.groups._replicated.feed._subscriptions, *node.registry._replicated.feed._subscriptions]


class Futures:
    """Every future that the loop is asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()
        self._create: Callable[[], Any] = loop.create_future
        loop.create_future = self._created

    def _created(self) -> Any:
        future = self._create()
        self._made.add(future)
        return future

    def pending(self) -> list[str]:
        """Those that somebody still holds, and that never were done."""
        if not any(not future.done() for future in self._made):
            return []
        gc.collect()  # the loop of a simulation collects at fixed turns only
        return [repr(future) for future in self._made if not future.done()]


def left_in_loop(loop: Any, futures: Futures) -> list[str]:
    """What a loop still has when every node has stopped."""
    me = asyncio.current_task()
    found = [f"task {task.get_name()}" for task in loop.pending_tasks() if task is not me]
    found += [f"timer {timer}" for timer in left_timers(loop)]
    return found + [f"future {future}" for future in futures.pending()]
