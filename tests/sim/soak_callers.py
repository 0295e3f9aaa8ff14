"""Processes of a soak run that make requests: calls, multicalls and streams."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from typing import Any

from fleetlm import FleetError, Pid, Process
from tests.sim.soak_actors import SoakActor, outcome
from tests.sim.soak_ledger import Ledger, Request
from tests.sim.soak_world import NodeRecord, World

HOWS = ("reply",) * 6 + ("raise", "die", "slow", "slow", "mute")
"""How a server treats a call; drawn at random."""


class Callers:
    """The calling processes of one incarnation of a node."""

    def __init__(
        self, world: World, ledger: Ledger, record: NodeRecord, rng: random.Random, *, heavy: bool
    ) -> None:
        self.world = world
        self.ledger = ledger
        self.record = record
        self.node = record.node
        self.rng = rng
        self.heavy = heavy

    def start(self) -> None:
        for _ in range(2):
            self.node.spawn(self.caller)
        self.node.spawn(self.consumer)

    def pause_s(self, mean_s: float) -> float:
        return self.rng.expovariate(1 / mean_s)

    async def caller(self, process: Process) -> None:
        while True:
            await asyncio.sleep(self.pause_s(0.2))
            if self.world.is_acting:
                await self.rng.choice((self.ask, self.ask, self.ask_actor, self.ask_many))()

    def random_target(self, name: str) -> Any:
        """Draw a server by name, mostly on a connected node, or the pid of a worker."""
        if name == "server" and self.rng.random() < 0.2:
            return self.rng.choice(self.world.workers[-20:])
        nodes = [*self.node.list(), self.node.name]
        if self.rng.random() < 0.15:
            nodes = [record.node.name for record in self.world.records.values()]
        return (name, self.rng.choice(nodes))

    async def ask(self) -> None:
        rng = self.rng
        target, how = self.random_target("server"), rng.choice(HOWS)
        if isinstance(target, Pid):
            how = "reply"
        timeout_s = 500.0 if how == "mute" else rng.choice((0.1, 0.5, 2.0))
        request = self.ledger.begin(self.record, target, how, timeout_s)
        size = 40_000 if self.heavy and rng.random() < 0.1 else 10
        call = self.node.call(target, ("ask", request.number, how, bytes(size)), timeout_s)
        if how != "mute" and rng.random() < 0.9:
            await outcome(self.ledger, request, call)
            return
        await self.run_for(outcome(self.ledger, request, call), self.pause_s(0.3))

    async def run_for(self, operation: Coroutine[Any, Any, None], timeout_s: float | None) -> None:
        """Run a request, and cancel it after that time."""
        task = asyncio.get_running_loop().create_task(operation)
        try:
            await asyncio.wait([task], timeout=timeout_s)
        finally:
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def ask_actor(self) -> None:
        """Call a handler, and sometimes cancel the call."""
        rng, target = self.rng, self.random_target("counter")
        ref = self.node.ref(SoakActor, target[0], at=target[1])
        how = rng.choice(HOWS)
        timeout_s = 500.0 if how == "mute" else rng.choice((0.1, 0.5, 2.0))
        nested = rng.random() < 0.3
        request = self.ledger.begin(self.record, target, "nested" if nested else how, timeout_s)
        if nested:
            there = rng.choice([*self.node.list(), self.node.name])
            call = ref.within(timeout_s).call(SoakActor.nested, request.number, there)
        else:
            handler = rng.choice((SoakActor.serial, SoakActor.together))
            call = ref.within(timeout_s).call(handler, request.number, how)
        give_up_s = None if how != "mute" and rng.random() < 0.8 else self.pause_s(0.3)
        await self.run_for(outcome(self.ledger, request, call), give_up_s)

    async def ask_many(self) -> None:
        known = self.world.workers[-12:]
        targets = self.rng.sample(known, min(len(known), 5))
        if not targets:
            return
        request = self.ledger.begin(self.record, targets[0], "many", self.rng.choice((0.1, 1.0)))
        parts = [self.ledger.part(request, target) for target in targets]
        try:
            results = await self.node.multicall(
                targets, ("ask", request.number, "many", b""), request.timeout_s
            )
        finally:
            request.ended = True
        for part, result in zip(parts, results, strict=True):
            part.expected = (request.number, part.target)
            self.ledger.ended(part, result)

    async def consumer(self, process: Process) -> None:
        rng = self.rng
        while True:
            await asyncio.sleep(self.pause_s(0.4))
            if self.world.is_acting:
                items, pause_s = rng.choice((0, 3, 30, 100)), rng.choice((0.0, 0.0, 0.05))
                end = rng.choice(("reply", "reply", "raise", "die"))
                give_up_s = None if rng.random() < 0.7 else self.pause_s(0.5)
                target = self.random_target(rng.choice(("model", "counter")))
                await self.run_for(self.consume(target, items, pause_s, end), give_up_s)

    async def consume(self, target: Any, items: int, pause_s: float, end: str) -> None:
        """Read a stream, fast or slowly, to its end or only a part of it."""
        rng = self.rng
        request = self.ledger.begin(self.record, target, "stream", rng.choice((0.3, 3.0, 20.0)))
        slow_s, stop_at = rng.choice((0.0, 0.0, 0.02)), rng.choice((None, None, 2))
        if target[0] == "counter":
            ref = self.node.ref(SoakActor, "counter", at=target[1]).within(request.timeout_s)
            stream = ref.stream(SoakActor.count, request.number, items, pause_s, end)
        else:
            message = ("stream", request.number, items, pause_s, end)
            stream = self.node.stream(target, message, request.timeout_s)
        await self.read(request, stream, slow_s, stop_at)

    async def read(
        self, request: Request, stream: Any, slow_s: float = 0.0, stop_at: int | None = None
    ) -> None:
        result: Any = None
        try:
            async with contextlib.aclosing(stream):
                async for item in stream:
                    self.ledger.items(request, item)
                    if slow_s:
                        await asyncio.sleep(slow_s)
                        request.pauses_s += slow_s
                    if request.consumed == stop_at:
                        result = asyncio.CancelledError()
                        break
        except FleetError as error:
            result = error
        except asyncio.CancelledError:
            self.ledger.ended(request, asyncio.CancelledError())
            raise
        self.ledger.ended(request, result)

    async def check_actor(self, there: Pid) -> None:
        """After all faults have ended: a call and a stream of this actor must succeed."""
        ref = self.node.ref(SoakActor, there).within(2.0)
        request = self.ledger.begin(self.record, there, "reply", 2.0)
        await outcome(self.ledger, request, ref.call(SoakActor.serial, request.number, "reply"))
        streamed = self.ledger.begin(self.record, there, "stream", 2.0)
        await self.read(streamed, ref.stream(SoakActor.count, streamed.number, 5, 0.0, "reply"))
        for each in (request, streamed):
            if isinstance(each.outcome, BaseException):
                self.world.breach(f"{each} failed after all faults had ended: {each.outcome!r}")
