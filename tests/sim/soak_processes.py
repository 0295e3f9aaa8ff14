"""The processes of a soak run: workers, servers under a supervisor, and subscribers.

Workers act at random times (`Processes.act`) until `World.is_acting` is false; then they only handle
messages. `soak_callers` has the processes that make requests, `soak_actors` the actor.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any

from fleetlm import (
    Address,
    AlreadyRegistered,
    Call,
    Child,
    Down,
    Exit,
    FleetError,
    Joined,
    NameLost,
    NoMember,
    NotDelivered,
    Pid,
    Process,
    ProcessExit,
    Ref,
    Registered,
    Supervisor,
)
from tests.sim.soak_actors import SoakActor, outcome
from tests.sim.soak_callers import Callers
from tests.sim.soak_ledger import Ledger
from tests.sim.soak_world import NodeRecord, Tree, World

GROUPS = ("red", "blue")
NAMES = ("king", "queen", "fool")
STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
WORKERS = 3
KEEP_WORKERS_S = 0.5
RECENT = 40
"""Of so many processes, the latest, a living one is mostly drawn."""


class Processes:
    """The processes of one incarnation of a node."""

    def __init__(self, world: World, ledger: Ledger, record: NodeRecord, rng: random.Random) -> None:
        self.world = world
        self.ledger = ledger
        self.record = record
        self.node = record.node
        self.rng = rng
        self.workers: list[Pid] = []
        self.joined: dict[Pid, list[str]] = {}
        """Process → its groups, each as often as it has joined."""
        self.changes: Counter[tuple[str, Pid]] = Counter()
        """Memberships as a subscriber of this node sees them."""
        self.holders: dict[str, tuple[Pid, Any]] = {}
        """Registered names as a subscriber of this node sees them."""
        self.crossings: dict[Pid, Pid] = {}
        """Worker → the worker that links and unlinks with it at the same time."""
        self.last_receivers: dict[Pid, Pid] = {}
        """Worker → the process to which it keeps sending."""
        self.busy = 0
        """Workers in the middle of an action."""
        self.heavy = rng.random() < 0.2
        """Whether some messages count more than one unit in a window."""
        self.callers = Callers(world, ledger, record, rng, heavy=self.heavy)

    def start(self) -> None:
        """Spawn every process of the node."""
        self.node.factories.register("child", self.child)
        self.node.spawn(self.keep_workers)
        self.callers.start()
        self.node.spawn(self.group_watcher)
        self.node.spawn(self.name_watcher)

    def spawn(self, function: Callable[..., Any], *args: Any, name: str | None = None) -> Pid:
        pid = self.node.spawn(function, *args, name=name)
        process = self.node._local.process(pid)
        assert process is not None
        self.world.observe(process)  # type: ignore[arg-type]
        return pid

    def pause_s(self, mean_s: float) -> float:
        return self.rng.expovariate(1 / mean_s)

    # Processes that must always run.

    async def keep_workers(self, process: Process) -> None:
        """Spawn workers and a supervisor again when they have ended."""
        while not self.world.is_ending:
            self.workers = [pid for pid in self.workers if self.world.is_alive(pid)]
            while len(self.workers) < WORKERS:
                name = f"job{self.rng.randrange(3)}"
                taken = name in self.node.registered()
                self.workers.append(self.spawn(self.worker, name=None if taken else name))
                self.world.workers.append(self.workers[-1])
            if "tree" not in self.node.registered():
                self.spawn(self.tree, name="tree")
            await asyncio.sleep(KEEP_WORKERS_S)

    async def tree(self, process: Process) -> None:
        """Run a supervisor with servers, one of them linked with processes on other nodes."""
        rng, world = self.rng, self.world
        tree = Tree(rng.choice(STRATEGIES), rng.randint(2, 5), 3.0, 0.25, world.now_s)
        world.trees[process.pid] = tree
        children = [
            Child("server", self.server, (tree,), register="server"),
            Child("model", self.model, (tree,), register="model"),
            Child("bound", self.linked_child, (tree,), restart=rng.choice(("permanent", "transient"))),
        ]
        children.append(Child("counter", SoakActor, self.actor_arguments(tree), register="counter"))
        rng.shuffle(children)
        await Supervisor(
            children, strategy=tree.strategy, max_restarts=tree.max_restarts, period_s=tree.period_s,  # type: ignore[arg-type]
            backoff_s=(tree.pause_s, 2.0),
        )(process)  # fmt: skip

    def spawn_actor(self) -> Pid:
        """Spawn a new actor that must answer after all faults have ended."""
        return self.spawn(SoakActor, *self.actor_arguments(Tree("", 0, 0.0, 1.0, 0.0)))

    def actor_arguments(self, tree: Tree) -> tuple[Any, ...]:
        """Return the arguments of an actor."""
        return (self.world, self.ledger, self.record, self.rng, tree)

    # Subscribers.

    async def group_watcher(self, process: Process) -> None:
        with contextlib.closing(self.node.groups.watch()) as changes:
            async for change in changes:
                key = (change.group, change.pid)
                self.changes[key] += 1 if isinstance(change, Joined) else -1
                if self.changes[key] < 0:
                    self.world.breach(f"{self.node.name}: {change} without a member that joined")
                await self.pause_sometimes()

    async def name_watcher(self, process: Process) -> None:
        with contextlib.closing(self.node.registry.watch()) as changes:
            async for change in changes:
                if isinstance(change, Registered) == (change.name in self.holders):
                    self.world.breach(f"{self.node.name}: {change} after {self.holders}")
                if isinstance(change, Registered):
                    self.holders[change.name] = (change.pid, change.meta)
                elif self.holders.pop(change.name)[0] != change.pid:
                    self.world.breach(f"{self.node.name}: {change}, but another process has the name")
                await self.pause_sometimes()

    async def pause_sometimes(self) -> None:
        if self.world.is_acting and self.rng.random() < 0.1:
            await asyncio.sleep(self.pause_s(1.0))

    # Servers.

    async def server(self, process: Process, tree: Tree) -> None:
        tree.starts["server"] += 1
        self.world.observe(process)
        held = []
        async for message in process.mailbox:
            match message:
                case Call(message=("ask", int(number), str(how), _)):
                    self.ledger.ran(process, number)
                    held.append(message)
                    await self.serve(process, message, number, how)

    async def serve(self, process: Process, call: Call, number: int, how: str) -> None:
        match how:
            case "raise":
                call.fail(ValueError(str(number)))
            case "die":
                raise ValueError("died of a call")
            case "slow":
                await asyncio.sleep(self.rng.uniform(0.05, 0.4))
                call.reply((number, process.pid))
            case "reply" | "many":
                call.reply((number, process.pid))

    async def model(self, process: Process, tree: Tree) -> None:
        """Serve streams, each in a process of its own or in this one."""
        tree.starts["model"] += 1
        self.world.observe(process)
        async for message in process.mailbox:
            if not isinstance(message, Call):
                continue
            self.ledger.request[message.message[1]].servers.append(process.pid)
            if self.node.settings.debug or self.rng.random() < 0.3:
                await self.produce(process, message)
            else:
                self.node.send_nowait(self.spawn(self.producer), message)

    async def producer(self, process: Process) -> None:
        async for message in process.mailbox:
            if isinstance(message, Call):
                await self.produce(process, message)
                return

    async def produce(self, process: Process, call: Call) -> None:
        ledger = self.ledger
        _, number, items, pause_s, end = call.message
        request = ledger.ran(process, number)
        ledger.serving[number] = request
        try:
            for item in range(items):
                if pause_s:
                    await asyncio.sleep(pause_s)
                if not await call.put((number, item)):
                    request.end = "unwanted"
                    return
                request.produced += 1
            request.end = end
            if end == "raise":
                call.fail(ValueError("raise"))
            elif end == "die":
                raise ProcessExit(("died of a stream", number))
            else:
                call.reply()
        finally:
            del ledger.serving[number]

    async def linked_child(self, process: Process, tree: Tree) -> None:
        """A child that links with a process on another node, and ends with it or with the connection."""
        tree.starts["bound"] += 1
        self.world.observe(process)
        others = [
            pid for pid in self.world.observed if pid.node != self.node.name and self.world.is_alive(pid)
        ]
        if others and self.world.is_acting:
            self.world.link(process, self.rng.choice(others[-6:]))
        async for _ in process.mailbox:
            pass

    # Workers.

    async def worker(self, process: Process) -> None:
        """Monitor, link, send, join groups and register names at random times, and end at some time."""
        world, rng = self.world, self.rng
        if rng.random() < 0.6:
            world.trap_exits(process)
        slow_s = rng.choice((0.0, 0.0, 0.02, 0.2))
        watched: dict[Ref, Any] = {}
        senders: dict[Pid, Ref] = {}
        while True:
            act_s = world.now_s + self.pause_s(0.25)
            while (left_s := act_s - world.now_s) > 0:
                try:
                    message = await process.receive(timeout=left_s)
                except TimeoutError:
                    break
                self.take(process, message, watched, senders)
                if process.pid in self.crossings:
                    await self.count_busy(self.cross_links(process, self.crossings.pop(process.pid)))
                if slow_s:
                    await asyncio.sleep(slow_s * rng.random())
            if world.is_acting:
                await self.count_busy(self.act(process, watched))

    def take(self, process: Process, message: Any, watched: dict[Ref, Any], senders: dict[Pid, Ref]) -> None:
        match message:
            case ("seq", Pid() as sender, int(number), _):
                self.ledger.take_number(process, sender, number)
                if sender not in senders:
                    senders[sender] = self.world.monitor(process, sender)
            case Down(ref=ref, target=target, reason=reason):
                watched.pop(ref, None)
                if isinstance(target, Pid) and senders.get(target) == ref:
                    self.ledger.down(process, target, reason)
            case Call(message=("ask", int(number), _, _)):
                self.ledger.ran(process, number)
                message.reply((number, process.pid))
            case Exit(pid=Pid(number=0), reason="shutdown"):
                raise ProcessExit("shutdown")
            case ("linking", Pid() as other):
                self.crossings.setdefault(process.pid, other)
            case Exit() | NameLost() | ("news", _):
                pass
            case _:
                self.world.breach(f"{process.pid} got {message!r}")

    async def count_busy(self, act: Coroutine[Any, Any, None]) -> None:
        self.busy += 1
        try:
            await act
        finally:
            self.busy -= 1

    async def act(self, process: Process, watched: dict[Ref, Any]) -> None:
        rng, world = self.rng, self.world
        other = self.random_pid(process)
        match rng.choices(
            (
                "monitor",
                "demonitor",
                "link",
                "unlink",
                "linking",
                "exit",
                "end",
                "send",
                "group",
                "name",
                "spawn",
            ),
            (10, 4, 6, 2, 3, 2, 1, 14, 8, 6, 4),
        )[0]:
            case "monitor":
                ref = world.monitor(process, other if rng.random() < 0.7 else self.address())
                watched[ref] = None
            case "demonitor" if watched:
                ref = rng.choice(list(watched))
                del watched[ref]
                world.demonitor(process, ref, flush=rng.random() < 0.7)
            case "link":
                world.link(process, other)
            case "unlink":
                world.unlink(process, other)
            case "linking" if other in world.workers:
                await self.start_crossing(process, other)
            case "exit":
                world.exit(process, other)
            case "end":
                self.end(process)
            case "send":
                other = self.last_receivers.setdefault(process.pid, other) if rng.random() < 0.5 else other
                await self.send(process, other)
                if rng.random() < (0.25 if self.heavy else 0.08):
                    process.exit(process.pid, "kill")
            case "group":
                await self.group(process)
            case "name":
                await self.claim(process)
            case "spawn":
                await self.spawn_remotely(process)

    async def spawn_remotely(self, process: Process) -> None:
        """Spawn a child on another node, linked or monitored; a timeout means that none was spawned."""
        rng, world = self.rng, self.world
        at = rng.choice([record.node.name for record in world.records.values() if record is not self.record])
        timeout_s = rng.choice((0.002, 0.5, 2.0))  # The first often ends between the spawn and its answer.
        request = self.ledger.begin(self.record, ("child", at), "spawn", timeout_s)
        linked, life_s = rng.random() < 0.5, rng.choice((0.0, 0.3, 1e6))
        operation = world.spawn_at(
            process, at, request.number, life_s, linked=linked, timeout_s=timeout_s
        )  # fmt: skip
        await outcome(self.ledger, request, operation)

    async def child(self, process: Process, number: int, life_s: float) -> None:
        """A process that other nodes spawn here."""
        self.world.observe(process)
        self.ledger.ran(process, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(life_s):
                async for _ in process.mailbox:
                    pass
        raise ProcessExit(("lived on", number))

    async def start_crossing(self, process: Process, other: Pid) -> None:
        with contextlib.suppress(NotDelivered):
            self.node.send_nowait(other, ("linking", process.pid))
        await self.cross_links(process, other)

    async def cross_links(self, process: Process, other: Pid) -> None:
        """Link and unlink while the other process does the same, so that their signals cross."""
        for _ in range(4):
            await asyncio.sleep(self.rng.random() * 0.003)
            self.rng.choice((self.world.link, self.world.unlink))(process, other)

    def end(self, process: Process) -> None:
        match self.rng.randrange(4):
            case 0:
                raise ProcessExit(("why", process.pid.number))
            case 1:
                raise ProcessExit("normal")
            case 2:
                raise ValueError("a life cut short")
            case _:
                process.exit(process.pid, "kill")

    def random_pid(self, process: Process) -> Pid:
        """Draw mostly a living process, sometimes an ended one of any incarnation."""
        me, observed = process.pid, self.world.observed
        latest = [pid for pid in islice(reversed(observed), RECENT + 1) if pid != me][:RECENT]
        recent = [pid for pid in reversed(latest) if self.world.is_alive(pid)]
        if recent and self.rng.random() < 0.85:
            return self.rng.choice(recent)
        known = [pid for pid in observed if pid != me]
        return self.rng.choice(known) if known else Pid("fleetlm@10.0.0.9", 1, 1)

    def address(self) -> Address:
        record = self.rng.choice(list(self.world.records.values()))
        return Address(self.rng.choice(("job0", "job1", "server", "nobody")), record.node.name)

    async def send(self, process: Process, other: Pid) -> None:
        """Send a burst of numbered messages to a process that may be slow."""
        rng, ledger = self.rng, self.ledger
        size = rng.choice((0, 50, 3_000, 40_000)) if self.heavy else rng.choice((0, 50, 500))
        for _ in range(rng.choice((1, 2, 12, 40))):
            number = ledger.number(process.pid, other)
            message = ("seq", process.pid, number, bytes(size))
            try:
                if other in self.world.actors and rng.random() < 0.5:
                    await self.node.ref(SoakActor, other).cast(
                        SoakActor.note, process.pid, number, bytes(size)
                    )
                elif rng.random() < 0.3:
                    self.node.send_nowait(other, message)
                else:
                    async with asyncio.timeout(0.3):
                        await self.node.send(other, message)
            except NotDelivered:
                return
            except TimeoutError:
                if why := self.why_not_full(other):
                    self.world.breach(f"{process.pid} waited to send to {other}, though {why}")
                ledger.count_sent(process.pid, other, is_doubtful=True)
                return
            ledger.count_sent(process.pid, other)

    def why_not_full(self, other: Pid) -> str:
        """Say why a send need not wait there; empty if it must."""
        if other.node == self.node.name:
            box = self.node._local.boxes.get(other.number)
            if box is None:
                return "it has ended"
            return "" if len(box) > box.limit // 2 else f"{len(box)} of {box.limit} wait there"
        link = self.node._driver.sessions.get(other.node)
        if link is None or link.obstacle(other.number, link.small_bytes + 1) is not None:
            return ""
        return f"{link.held.get(other.number, 0)} units of {link.held_limit} wait there"

    async def group(self, process: Process) -> None:
        rng, groups, mine = self.rng, self.node.groups, self.joined.setdefault(process.pid, [])
        group = rng.choice(GROUPS)
        match rng.randrange(5):
            case 0 | 1:
                groups.join(group, process.pid)
                mine.append(group)
            case 2:
                if groups.leave(group, process.pid) != (group in mine):
                    self.world.breach(f"{process.pid} left {group}, but had joined {mine}")
                if group in mine:
                    mine.remove(group)
            case 3:
                try:
                    picked = groups.pick(group, rng.choice(("random", "round_robin", "least_loaded")))
                except NoMember:
                    picked = None
                if (picked is None) == bool(groups.members(group)) or (
                    picked is not None and picked not in groups.members(group)
                ):
                    self.world.breach(f"{picked} was picked of {groups.members(group)}")
            case _:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await groups.broadcast(group, ("news", rng.random()))

    async def claim(self, process: Process) -> None:
        """Register or unregister a cluster-wide name, for itself or for another process."""
        rng, registry = self.rng, self.node.registry
        name = rng.choice(NAMES)
        pid = process.pid if rng.random() < 0.7 else rng.choice(self.world.workers[-20:])
        try:
            if rng.random() < 0.75:
                on_loss = rng.choice(("exit", "message"))
                await registry.register(name, pid, rng.randrange(9), on_loss=on_loss, timeout=2.0)  # type: ignore[arg-type]
                self.world.claimed(name, pid, local=pid.node == self.node.name)
            else:
                await registry.unregister(name, timeout=2.0)
        except AlreadyRegistered as taken:
            if taken.owner == pid:
                self.world.breach(f"{pid} was refused {name}, which it has")
        except FleetError:
            pass
