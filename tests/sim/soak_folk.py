"""Who lives in a society: kin that tie themselves to each other, servers under supervisors, those who ask.

Each does something at random moments until the world stops acting; then it only lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine
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
from tests.sim.soak_actors import Citizen, outcome
from tests.sim.soak_askers import Askers
from tests.sim.soak_ledger import Ledger
from tests.sim.soak_world import Home, Tree, World

GROUPS = ("red", "blue")
NAMES = ("king", "queen", "fool")
STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
KIN = 3
KEEPER_S = 0.5


class Folk:
    """Those of one incarnation of a node."""

    def __init__(self, world: World, ledger: Ledger, home: Home, rng: random.Random) -> None:
        self.world = world
        self.ledger = ledger
        self.home = home
        self.node = home.node
        self.rng = rng
        self.kin: list[Pid] = []
        self.joined: dict[Pid, list[str]] = {}
        """Process → groups as often as it has joined them."""
        self.changes: Counter[tuple[str, Pid]] = Counter()
        """Memberships, as a subscriber sees them."""
        self.holders: dict[str, tuple[Pid, Any]] = {}
        """Names, as a subscriber sees them."""
        self.quarrels: dict[Pid, Pid] = {}
        """Process → with whom it is to link and unlink at the same time as the other does."""
        self.friends: dict[Pid, Pid] = {}
        """Process → whom it has sent to last."""
        self.busy = 0
        """Kin in the middle of something."""
        self.heavy = rng.random() < 0.2
        """Whether some messages count more than one."""
        self.askers = Askers(world, ledger, home, rng, heavy=self.heavy)

    def settle(self) -> None:
        """Everybody moves in."""
        self.node.factories.register("child", self.child)
        self.node.spawn(self.keeper)
        self.askers.settle()
        self.node.spawn(self.group_watcher)
        self.node.spawn(self.name_watcher)

    def spawn(self, function: Callable[..., Any], *args: Any, name: str | None = None) -> Pid:
        pid = self.node.spawn(function, *args, name=name)
        process = self.node._local.process(pid)
        assert process is not None
        self.world.meet(process)  # type: ignore[arg-type]
        return pid

    def pause_s(self, mean_s: float) -> float:
        return self.rng.expovariate(1 / mean_s)

    # Who must be there.

    async def keeper(self, process: Process) -> None:
        """Sees to it that there are always kin and a tree."""
        while not self.world.ending:
            self.kin = [pid for pid in self.kin if self.world.alive(pid)]
            while len(self.kin) < KIN:
                name = f"kin{self.rng.randrange(3)}"
                taken = name in self.node.registered()
                self.kin.append(self.spawn(self.relative, name=None if taken else name))
                self.world.kin.append(self.kin[-1])
            if "tree" not in self.node.registered():
                self.spawn(self.tree, name="tree")
            await asyncio.sleep(KEEPER_S)

    async def tree(self, process: Process) -> None:
        """A supervisor with servers, one of them tied to processes elsewhere."""
        rng, world = self.rng, self.world
        tree = Tree(rng.choice(STRATEGIES), rng.randint(2, 5), 3.0, 0.25, world.now_s)
        world.trees[process.pid] = tree
        children = [
            Child("server", self.server, (tree,), register="server"),
            Child("model", self.model, (tree,), register="model"),
            Child("bound", self.bound, (tree,), restart=rng.choice(("permanent", "transient"))),
        ]
        children.append(Child("citizen", Citizen, self.citizen(tree), register="citizen"))
        rng.shuffle(children)
        await Supervisor(
            children, strategy=tree.strategy, max_restarts=tree.max_restarts, period_s=tree.period_s,  # type: ignore[arg-type]
            backoff_s=(tree.pause_s, 2.0),
        )(process)  # fmt: skip

    def judge(self) -> Pid:
        """A fresh actor, for what must succeed in quiet."""
        return self.spawn(Citizen, *self.citizen(Tree("", 0, 0.0, 1.0, 0.0)))

    def citizen(self, tree: Tree) -> tuple[Any, ...]:
        """The arguments of an actor."""
        return (self.world, self.ledger, self.home, self.rng, tree)

    # Who watches.

    async def group_watcher(self, process: Process) -> None:
        with contextlib.closing(self.node.groups.watch()) as changes:
            async for change in changes:
                key = (change.group, change.pid)
                self.changes[key] += 1 if isinstance(change, Joined) else -1
                if self.changes[key] < 0:
                    self.world.breach(f"{self.node.name}: {change}, and nobody has joined")
                await self.dawdle()

    async def name_watcher(self, process: Process) -> None:
        with contextlib.closing(self.node.registry.watch()) as changes:
            async for change in changes:
                if isinstance(change, Registered) == (change.name in self.holders):
                    self.world.breach(f"{self.node.name}: {change} after {self.holders}")
                if isinstance(change, Registered):
                    self.holders[change.name] = (change.pid, change.meta)
                elif self.holders.pop(change.name)[0] != change.pid:
                    self.world.breach(f"{self.node.name}: {change}, and another one has it")
                await self.dawdle()

    async def dawdle(self) -> None:
        if self.world.acting and self.rng.random() < 0.1:
            await asyncio.sleep(self.pause_s(1.0))

    # Servers.

    async def server(self, process: Process, tree: Tree) -> None:
        tree.starts["server"] += 1
        self.world.meet(process)
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
        """Serves streams: each in a process of its own, or itself."""
        tree.starts["model"] += 1
        self.world.meet(process)
        async for message in process.mailbox:
            if not isinstance(message, Call):
                continue
            self.ledger.asked[message.message[1]].takers.append(process.pid)
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
        asked = ledger.ran(process, number)
        ledger.serving[number] = asked
        try:
            for item in range(items):
                if pause_s:
                    await asyncio.sleep(pause_s)
                if not await call.put((number, item)):
                    asked.end = "unwanted"
                    return
                asked.produced += 1
            asked.end = end
            if end == "raise":
                call.fail(ValueError("raise"))
            elif end == "die":
                raise ProcessExit(("died of a stream", number))
            else:
                call.reply()
        finally:
            del ledger.serving[number]

    async def bound(self, process: Process, tree: Tree) -> None:
        """A child that is tied to somebody elsewhere, and falls with him or with his node."""
        tree.starts["bound"] += 1
        self.world.meet(process)
        others = [pid for pid in self.world.folk if pid.node != self.node.name and self.world.alive(pid)]
        if others and self.world.acting:
            self.world.link(process, self.rng.choice(others[-6:]))
        async for _ in process.mailbox:
            pass

    # Kin.

    async def relative(self, process: Process) -> None:
        """Ties itself to others, sends, joins, claims, and ends one day."""
        world, rng = self.world, self.rng
        if rng.random() < 0.6:
            world.trap(process)
        sluggish_s = rng.choice((0.0, 0.0, 0.02, 0.2))
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
                if process.pid in self.quarrels:
                    await self.busily(self.quarrel(process, self.quarrels.pop(process.pid)))
                if sluggish_s:
                    await asyncio.sleep(sluggish_s * rng.random())
            if world.acting:
                await self.busily(self.act(process, watched))

    def take(self, process: Process, message: Any, watched: dict[Ref, Any], senders: dict[Pid, Ref]) -> None:
        match message:
            case ("seq", Pid() as sender, int(number), _):
                self.ledger.got(process, sender, number)
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
            case ("quarrel", Pid() as other):
                self.quarrels.setdefault(process.pid, other)
            case Exit() | NameLost() | ("news", _):
                pass
            case _:
                self.world.breach(f"{process.pid} got {message!r}")

    async def busily(self, act: Coroutine[Any, Any, None]) -> None:
        self.busy += 1
        try:
            await act
        finally:
            self.busy -= 1

    async def act(self, process: Process, watched: dict[Ref, Any]) -> None:
        rng, world = self.rng, self.world
        other = self.anybody(process)
        match rng.choices(
            (
                "monitor",
                "demonitor",
                "link",
                "unlink",
                "quarrel",
                "exit",
                "end",
                "send",
                "group",
                "name",
                "beget",
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
            case "quarrel" if other in world.kin:
                await self.provoke(process, other)
            case "exit":
                world.exit(process, other)
            case "end":
                self.end(process)
            case "send":
                other = self.friends.setdefault(process.pid, other) if rng.random() < 0.5 else other
                await self.send(process, other)
                if rng.random() < (0.25 if self.heavy else 0.08):
                    process.exit(process.pid, "kill")
            case "group":
                await self.group(process)
            case "name":
                await self.claim(process)
            case "beget":
                await self.beget(process)

    async def beget(self, process: Process) -> None:
        """Spawn a child on another node, linked or monitored; who stops waiting has none."""
        rng, world = self.rng, self.world
        at = rng.choice([home.node.name for home in world.homes.values() if home is not self.home])
        asked = self.ledger.asks(self.home, ("child", at), "spawn", rng.choice((0.01, 0.5, 2.0)))
        linked, life_s = rng.random() < 0.5, rng.choice((0.0, 0.3, 1e6))
        asking = world.spawn_at(
            process, at, asked.number, life_s, linked=linked, timeout_s=asked.timeout_s
        )  # fmt: skip
        await outcome(self.ledger, asked, asking)

    async def child(self, process: Process, number: int, life_s: float) -> None:
        """What other nodes spawn here."""
        self.world.meet(process)
        self.ledger.ran(process, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(life_s):
                async for _ in process.mailbox:
                    pass
        raise ProcessExit(("grown up", number))

    async def provoke(self, process: Process, other: Pid) -> None:
        with contextlib.suppress(NotDelivered):
            self.node.send_nowait(other, ("quarrel", process.pid))
        await self.quarrel(process, other)

    async def quarrel(self, process: Process, other: Pid) -> None:
        """Link and unlink, while the other does: what they do crosses."""
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

    def anybody(self, process: Process) -> Pid:
        """Mostly somebody alive; sometimes one of the dead, of any incarnation."""
        everybody = [pid for pid in self.world.folk if pid != process.pid]
        recent = [pid for pid in everybody[-40:] if self.world.alive(pid)]
        if recent and self.rng.random() < 0.85:
            return self.rng.choice(recent)
        return self.rng.choice(everybody) if everybody else Pid("fleetlm@10.0.0.9", 1, 1)

    def address(self) -> Address:
        home = self.rng.choice(list(self.world.homes.values()))
        return Address(self.rng.choice(("kin0", "kin1", "server", "nobody")), home.node.name)

    async def send(self, process: Process, other: Pid) -> None:
        """A burst of numbered messages, to somebody who may be slow."""
        rng, ledger = self.rng, self.ledger
        size = rng.choice((0, 50, 3_000, 40_000)) if self.heavy else rng.choice((0, 50, 500))
        for _ in range(rng.choice((1, 2, 12, 40))):
            number = ledger.number(process.pid, other)
            message = ("seq", process.pid, number, bytes(size))
            try:
                if other in self.world.citizens and rng.random() < 0.5:
                    await self.node.ref(Citizen, other).cast(Citizen.note, process.pid, number, bytes(size))
                elif rng.random() < 0.3:
                    self.node.send_nowait(other, message)
                else:
                    async with asyncio.timeout(0.3):
                        await self.node.send(other, message)
            except NotDelivered:
                return
            except TimeoutError:
                if why := self.in_vain(other):
                    self.world.breach(f"{process.pid} waited to send to {other}, though {why}")
                ledger.sending(process.pid, other, doubtful=True)
                return
            ledger.sending(process.pid, other)

    def in_vain(self, other: Pid) -> str:
        """Why nobody needs to wait there, if that is so."""
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
                    self.world.breach(f"{process.pid} left {group} otherwise than it has joined: {mine}")
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
        """Register or give up a cluster-wide name, for itself or for somebody elsewhere."""
        rng, registry = self.rng, self.node.registry
        name = rng.choice(NAMES)
        pid = process.pid if rng.random() < 0.7 else rng.choice(self.world.kin[-20:])
        try:
            if rng.random() < 0.75:
                on_loss = rng.choice(("exit", "message"))
                await registry.register(name, pid, rng.randrange(9), on_loss=on_loss, timeout=2.0)  # type: ignore[arg-type]
                self.world.claimed(name, pid, local=pid.node == self.node.name)
            else:
                await registry.unregister(name, timeout=2.0)
        except AlreadyRegistered as taken:
            if taken.owner == pid:
                self.world.breach(f"{pid} may not register {name}, since it has it")
        except FleetError:
            pass
