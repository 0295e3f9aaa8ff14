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
from tests.sim.society_actors import Citizen, outcome
from tests.sim.society_ledger import Ledger
from tests.sim.society_world import Home, Tree, World

GROUPS = ("red", "blue")
NAMES = ("king", "queen", "fool")
STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
KIN = 3
HOWS = ("reply",) * 6 + ("raise", "die", "slow", "slow", "mute")


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
        self.heavy = rng.random() < 0.2
        """Whether some messages count more than one."""

    def settle(self) -> None:
        """Everybody moves in."""
        self.node.factories.register("child", self.child)
        self.node.spawn(self.keeper)
        for _ in range(2):
            self.node.spawn(self.caller)
        self.node.spawn(self.consumer)
        self.node.spawn(self.group_watcher)
        self.node.spawn(self.name_watcher)

    def spawn(self, function: Callable[..., Any], *args: Any, name: str | None = None) -> Pid:
        pid = self.node.spawn(function, *args, name=name)
        process = self.node._local.process(pid)
        assert process is not None
        self.world.meet(process)
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
            await asyncio.sleep(0.5)

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
        actor = (world, self.ledger, self.home, rng, tree)
        children.append(Child("citizen", Citizen, actor, register="citizen"))
        rng.shuffle(children)
        await Supervisor(
            children, strategy=tree.strategy, max_restarts=tree.max_restarts, period_s=tree.period_s,
            backoff_s=(tree.pause_s, 2.0),
        )(process)  # fmt: skip

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
        if others:
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
                if sluggish_s:
                    await asyncio.sleep(sluggish_s * rng.random())
            if world.acting:
                await self.act(process, watched)

    def take(
        self, process: Process, message: Any, watched: dict[Ref, Any], senders: dict[Pid, Ref]
    ) -> None:
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
            case Exit() | NameLost() | ("news", _):
                pass
            case _:
                self.world.breach(f"{process.pid} got {message!r}")

    async def act(self, process: Process, watched: dict[Ref, Any]) -> None:
        rng, world = self.rng, self.world
        other = self.anybody(process)
        match rng.choices(
            ("monitor", "demonitor", "link", "unlink", "exit", "end", "send", "group", "name", "beget"),
            (10, 4, 6, 3, 2, 1, 14, 8, 6, 4),
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
            case "exit":
                world.exit(process, other)
            case "end":
                self.end(process)
            case "send":
                await self.send(process, other)
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
            return "" if box is None or len(box) > box.limit // 2 else f"{len(box)} of {box.limit} wait there"
        link = self.node.links.get(other.node)
        if link is None or link.full or link.crowded or link.windows.full(other.number):
            return ""
        return f"{link.held.get(other.number, 0)} units of {link.window} wait there"

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
                await registry.register(name, pid, rng.randrange(9), on_loss=on_loss, timeout=2.0)
                self.world.claimed(name, pid, local=pid.node == self.node.name)
            else:
                await registry.unregister(name, timeout=2.0)
        except AlreadyRegistered as taken:
            if taken.owner == pid:
                self.world.breach(f"{pid} may not register {name}, since it has it")
        except FleetError:
            pass

    # Who asks.

    async def caller(self, process: Process) -> None:
        while True:
            await asyncio.sleep(self.pause_s(0.2))
            if self.world.acting:
                await self.rng.choice((self.ask, self.ask, self.ask_actor, self.ask_many))()

    def someone(self, name: str) -> Any:
        """A server by its name, mostly where this node is connected, or a relative."""
        if name == "server" and self.rng.random() < 0.2:
            return self.rng.choice(self.world.kin[-20:])
        nodes = [*self.node.list(), self.node.name]
        if self.rng.random() < 0.15:
            nodes = [home.node.name for home in self.world.homes.values()]
        return (name, self.rng.choice(nodes))

    async def ask(self) -> None:
        rng = self.rng
        target, how = self.someone("server"), rng.choice(HOWS)
        if isinstance(target, Pid):
            how = "reply"
        timeout_s = 500.0 if how == "mute" else rng.choice((0.1, 0.5, 2.0))
        asked = self.ledger.asks(self.home, target, how, timeout_s)
        size = 40_000 if self.heavy and rng.random() < 0.1 else 10
        call = self.node.call(target, ("ask", asked.number, how, bytes(size)), timeout_s)
        if how != "mute" and rng.random() < 0.9:
            await outcome(self.ledger, asked, call)
            return
        await self.for_a_while(outcome(self.ledger, asked, call), self.pause_s(0.3))

    async def for_a_while(self, asking: Coroutine[Any, Any, None], timeout_s: float | None) -> None:
        """Ask, and give up after that time."""
        task = asyncio.get_running_loop().create_task(asking)
        try:
            await asyncio.wait([task], timeout=timeout_s)
        finally:
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def ask_actor(self) -> None:
        """Call a handler, and perhaps give up."""
        rng, target = self.rng, self.someone("citizen")
        ref = self.node.ref(Citizen, target[0], at=target[1])
        how = rng.choice(HOWS)
        timeout_s = 500.0 if how == "mute" else rng.choice((0.1, 0.5, 2.0))
        nested = rng.random() < 0.3
        asked = self.ledger.asks(self.home, target, "nested" if nested else how, timeout_s)
        if nested:
            there = rng.choice([*self.node.list(), self.node.name])
            call = ref.within(timeout_s).call(Citizen.nested, asked.number, there)
        else:
            handler = rng.choice((Citizen.serial, Citizen.together))
            call = ref.within(timeout_s).call(handler, asked.number, how)
        patience_s = None if how != "mute" and rng.random() < 0.8 else self.pause_s(0.3)
        await self.for_a_while(outcome(self.ledger, asked, call), patience_s)

    async def ask_many(self) -> None:
        known = self.world.kin[-12:]
        targets = self.rng.sample(known, min(len(known), 5))
        if not targets:
            return
        asked = self.ledger.asks(self.home, targets[0], "many", self.rng.choice((0.1, 1.0)))
        parts = [self.ledger.part(asked, target) for target in targets]
        try:
            results = await self.node.multicall(targets, ("ask", asked.number, "many", b""), asked.timeout_s)
        finally:
            asked.ended = True
        for part, result in zip(parts, results, strict=True):
            part.expected = (asked.number, part.target)
            self.ledger.ended(part, result)

    async def consumer(self, process: Process) -> None:
        rng = self.rng
        while True:
            await asyncio.sleep(self.pause_s(0.4))
            if self.world.acting:
                items, pause_s = rng.choice((0, 3, 30, 100)), rng.choice((0.0, 0.0, 0.05))
                end = rng.choice(("reply", "reply", "raise", "die"))
                patience_s = None if rng.random() < 0.7 else self.pause_s(0.5)
                target = self.someone(rng.choice(("model", "citizen")))
                await self.for_a_while(self.consume(target, items, pause_s, end), patience_s)

    async def consume(self, target: Any, items: int, pause_s: float, end: str) -> None:
        rng = self.rng
        asked = self.ledger.asks(self.home, target, "stream", rng.choice((0.3, 3.0, 20.0)))
        slow_s, stop_at = rng.choice((0.0, 0.0, 0.02)), rng.choice((None, None, 2))
        if target[0] == "citizen":
            ref = self.node.ref(Citizen, "citizen", at=target[1]).within(asked.timeout_s)
            stream = ref.stream(Citizen.count, asked.number, items, pause_s, end)
        else:
            request = ("stream", asked.number, items, pause_s, end)
            stream = self.node.stream(target, request, asked.timeout_s)
        try:
            async for item in stream:
                self.ledger.items(asked, item)
                if slow_s:
                    await asyncio.sleep(slow_s)
                    asked.pauses_s += slow_s
                if asked.consumed == stop_at:
                    break
            outcome: Any = None if asked.consumed != stop_at else asyncio.CancelledError()
        except FleetError as error:
            outcome = error
        except asyncio.CancelledError:
            self.ledger.ended(asked, asyncio.CancelledError())
            raise
        finally:
            await stream.aclose()
        self.ledger.ended(asked, outcome)
