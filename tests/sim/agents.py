"""The processes that a scenario runs on each node: sinks, servers, senders, callers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from fleetlm import Call, CallTimeout, NoConnection, NodeStopped, NoProcess, NotDelivered, WouldBlock
from fleetlm.errors import FleetError
from fleetlm.messaging.session import Session
from fleetlm.process import Process
from tests.sim.invariants import LATE_S, View, World

STABLE = ("quick", "slow")
"""Names of the sinks that live as long as their node."""
KEEPER_S = 0.2
SERVERS = ("echo", "echo", "echo", "big", "tardy", "raises", "dies", "mute", "nobody")


class CrashOnPurpose(Exception):
    """The exception with which a server crashes."""


class Agents:
    """The processes of one incarnation of a node."""

    def __init__(
        self, world: World, view: View, rng: random.Random, chunk_bytes: int, slowness: float = 1.0
    ) -> None:
        self.world = world
        self.view = view
        self.node = view.node
        self.rng = rng
        self.chunk_bytes = chunk_bytes
        self.slowness = slowness
        """Factor of every pause between two actions."""
        self.traffic = True
        self.busy = 0
        """Number of senders and callers in the middle of an action."""

    def spawn(self) -> None:
        node, view = self.node, self.view
        node.spawn(self.watcher, 0.0)
        node.spawn(self.watcher, self.rng.expovariate(0.2))
        view.stable["quick"] = node.spawn(self.sink, 0.0, True, name="quick")
        view.stable["slow"] = node.spawn(self.sink, 0.02, True, name="slow")
        node.spawn(self.echo, name="echo")
        node.spawn(self.big, name="big")
        node.spawn(self.tardy, name="tardy")
        node.spawn(self.raises, name="raises")
        node.spawn(self.mute, name="mute")
        node.spawn(self.tells, name="tells")
        node.spawn(self.keeper)
        for _ in range(2):
            node.spawn(self.sender)
            node.spawn(self.caller)
        node.spawn(self.multicaller)
        node.spawn(self.broadcaster)

    # Receivers.

    async def watcher(self, process: Process, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self.world.watch(process.node, dawdles=self.rng if after_s else None)

    async def sink(self, process: Process, pause_s: float, stable: bool) -> None:
        self.world.tap(process)
        async for message in process.mailbox:
            self.world.got(process, message, stable=stable)
            if pause_s and self.rng.random() < 0.2:
                await asyncio.sleep(pause_s)

    async def frail(self, process: Process) -> None:
        """A sink that ends sometimes; messages to its name are lost until it starts again."""
        self.world.tap(process)
        while self.rng.random() > 0.02:
            self.world.got(process, await process.receive(), stable=False)

    async def keeper(self, process: Process) -> None:
        while True:
            names = process.node.registered()
            if "frail" not in names:
                process.node.spawn(self.frail, name="frail")
            if "dies" not in names:
                process.node.spawn(self.dies, name="dies")
            await asyncio.sleep(KEEPER_S)

    # Servers.

    async def echo(self, process: Process) -> None:
        async for call in process.mailbox:
            number = self.world.ran(call)
            call.reply(("echo", number, call.message[2]))

    async def big(self, process: Process) -> None:
        async for call in process.mailbox:
            number = self.world.ran(call)
            call.reply(bytes([number & 255]) * (self.chunk_bytes * 3))

    async def tardy(self, process: Process) -> None:
        async for call in process.mailbox:
            number = self.world.ran(call)
            await asyncio.sleep(self.rng.uniform(0.0, 0.3))
            call.reply(("tardy", number))

    async def raises(self, process: Process) -> None:
        async for call in process.mailbox:
            call.fail(ValueError(str(self.world.ran(call))))

    async def dies(self, process: Process) -> None:
        async for call in process.mailbox:
            raise CrashOnPurpose(self.world.ran(call))

    async def tells(self, process: Process) -> None:
        async for call in process.mailbox:
            call.reply(process.node.name)

    async def mute(self, process: Process) -> None:
        held: list[Call] = []
        async for call in process.mailbox:
            self.world.ran(call)
            held.append(call)

    # Senders.

    async def sender(self, process: Process) -> None:
        sender = (self.node.name, self.node.incarnation, process.pid.number)
        while await self.pause(0.3):
            for _ in range(self.rng.choice((1, 1, 3, 12))):
                self.busy += 1
                try:
                    await self.send_one(sender)
                    if self.world.former and self.rng.random() < 0.1:
                        await self.send_former()
                finally:
                    self.busy -= 1

    async def send_former(self) -> None:
        """Send to a process of a former incarnation; a sink that receives it reports a breach."""
        with contextlib.suppress(NotDelivered, NodeStopped):
            await self.node.send(self.rng.choice(self.world.former), "for a former incarnation")

    async def send_one(self, sender: tuple[str, int, int]) -> None:
        node, world, rng = self.node, self.world, self.rng
        target = self.target()
        session = node._driver.sessions.get(target)
        if session is None and target != node.name:
            return
        view = world.views[world.cluster.address_of(target)]
        connection = 0 if session is None else self.view.numbers.get(session.outgoing.epoch, -1)
        epoch = 0 if session is None else session.outgoing.epoch
        incarnation = node.incarnation if session is None else session.incarnation
        sink = rng.choice((*STABLE, *STABLE, "frail"))
        to: Any = sink if session is None else (sink, target)
        if sink != "frail" and rng.random() < 0.3 and view.node.incarnation == incarnation:
            to = view.stable[sink]
        key = (sender, target, sink, connection)
        number = world.sent.get(key, 0)
        size = rng.randrange(100)
        if rng.random() < 0.1:
            size = rng.randrange(self.chunk_bytes * 6)
        message = ("m", sender, connection, epoch, incarnation, number, size, bytes([number & 255]) * size)
        try:
            if rng.random() < 0.3:
                node.send_nowait(to, message)
            else:
                await node.send(to, message)
        except (NoConnection, WouldBlock, NodeStopped):
            return
        except NoProcess:
            if session is not None or sink != "frail":
                world.breach(f"{node.name}: no process {to} for a message")
            return
        world.sent[key] = number + 1

    async def broadcaster(self, process: Process) -> None:
        sender = (self.node.name, self.node.incarnation, process.pid.number)
        number = 0
        while await self.pause(1.5):
            self.busy += 1
            try:
                await self.node.broadcast("quick", ("b", sender, number))
            finally:
                self.busy -= 1
            number += 1

    # Callers.

    async def caller(self, process: Process) -> None:
        while await self.pause(0.3):
            self.busy += 1
            try:
                await self.call_one(self.target(), self.rng.choice(SERVERS), self.rng.uniform(0.02, 2.0))
            finally:
                self.busy -= 1

    def has_ended_before(self, session: Session) -> bool:
        """Whether a session was over before this moment, at which a deadline and its end may meet."""
        ended_at = self.view.ended_at.get(session.outgoing.epoch)
        return bool(session.closed) and (ended_at is None or ended_at < self.world.cluster.loop.time())

    async def call_one(self, target: str, server: str, timeout_s: float) -> Any:
        size = self.rng.randrange(self.chunk_bytes * 4) if self.rng.random() < 0.1 else 10
        asked = self.world.asks(self.node, server, target, timeout_s, None)
        payload = bytes([asked.number & 255]) * size
        asked.expected = self.expected(server, asked.number, payload)
        session = self.node._driver.sessions.get(target)
        outcome: Any
        try:
            outcome = await self.node.call((server, target), ("c", asked.number, payload), timeout_s)
        except FleetError as error:
            outcome = error
        except asyncio.CancelledError:
            asked.timeout_s = float("inf")
            self.world.ended(asked, asyncio.CancelledError())
            raise
        self.world.ended(asked, outcome)
        if isinstance(outcome, CallTimeout) and session is not None and self.has_ended_before(session):
            self.world.breach(f"{asked} waited for its deadline, though: {session.closed}")
        return outcome

    async def multicaller(self, process: Process) -> None:
        """Make a multicall; each reply must be in its place."""
        while await self.pause(2.0):
            self.busy += 1
            try:
                await self.ask_many()
            finally:
                self.busy -= 1

    async def ask_many(self) -> None:
        targets = [("tells", name) for name in [*self.node.list(), self.node.name, "fleetlm@10.7.7.7"]]
        timeout_s = self.rng.uniform(0.1, 1.0)
        began_s = self.world.cluster.loop.time()
        results = await self.node.multicall(targets, "who?", timeout_s)
        if self.world.cluster.loop.time() - began_s > timeout_s + LATE_S:
            self.world.breach(f"{self.node.name}: a multicall took longer than {timeout_s} s")
        if len(results) != len(targets):
            self.world.breach(f"{self.node.name}: {len(results)} results of {len(targets)} calls")
        for (_, name), result in zip(targets, results, strict=True):
            if result != name and not isinstance(result, FleetError) and self.world.strict:
                self.world.breach(f"{self.node.name}: {result!r} instead of {name}")
        if not isinstance(results[-1], NotDelivered):
            self.world.breach(f"{self.node.name}: {results[-1]!r} from a node that never was")

    # Internals.

    async def pause(self, mean_s: float) -> bool:
        await asyncio.sleep(self.rng.expovariate(1 / (mean_s * self.slowness)))
        return self.traffic

    def target(self) -> str:
        """Draw a node of any time, mostly a connected one."""
        up = self.node.list()
        if up and self.rng.random() < 0.8:
            return self.rng.choice(up)
        return self.rng.choice(list(self.world.started))

    def expected(self, server: str, number: int, payload: bytes) -> Any:
        """Return the expected reply of a call; `object` if it must not reply."""
        match server:
            case "echo":
                return ("echo", number, payload)
            case "big":
                return bytes([number & 255]) * (self.chunk_bytes * 3)
            case "tardy":
                return ("tardy", number)
        return object()
