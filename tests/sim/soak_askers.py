"""Those in a society who ask: calls, calls to many, streams, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from typing import Any

from fleetlm import FleetError, Pid, Process
from tests.sim.soak_actors import Citizen, outcome
from tests.sim.soak_ledger import Asked, Ledger
from tests.sim.soak_world import Home, World

HOWS = ("reply",) * 6 + ("raise", "die", "slow", "slow", "mute")
"""What a server does with a call."""


class Askers:
    """Those of one incarnation of a node."""

    def __init__(self, world: World, ledger: Ledger, home: Home, rng: random.Random, *, heavy: bool) -> None:
        self.world = world
        self.ledger = ledger
        self.home = home
        self.node = home.node
        self.rng = rng
        self.heavy = heavy

    def settle(self) -> None:
        for _ in range(2):
            self.node.spawn(self.caller)
        self.node.spawn(self.consumer)

    def pause_s(self, mean_s: float) -> float:
        return self.rng.expovariate(1 / mean_s)

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
        """Read a stream, fast or slowly, to its end or a part of it."""
        rng = self.rng
        asked = self.ledger.asks(self.home, target, "stream", rng.choice((0.3, 3.0, 20.0)))
        slow_s, stop_at = rng.choice((0.0, 0.0, 0.02)), rng.choice((None, None, 2))
        if target[0] == "citizen":
            ref = self.node.ref(Citizen, "citizen", at=target[1]).within(asked.timeout_s)
            stream = ref.stream(Citizen.count, asked.number, items, pause_s, end)
        else:
            request = ("stream", asked.number, items, pause_s, end)
            stream = self.node.stream(target, request, asked.timeout_s)
        await self.read(asked, stream, slow_s, stop_at)

    async def read(self, asked: Asked, stream: Any, slow_s: float = 0.0, stop_at: int | None = None) -> None:
        result: Any = None
        try:
            async with contextlib.aclosing(stream):
                async for item in stream:
                    self.ledger.items(asked, item)
                    if slow_s:
                        await asyncio.sleep(slow_s)
                        asked.pauses_s += slow_s
                    if asked.consumed == stop_at:
                        result = asyncio.CancelledError()
                        break
        except FleetError as error:
            result = error
        except asyncio.CancelledError:
            self.ledger.ended(asked, asyncio.CancelledError())
            raise
        self.ledger.ended(asked, result)

    async def prove(self, there: Pid) -> None:
        """In quiet: whatever is asked of this actor succeeds."""
        ref = self.node.ref(Citizen, there).within(2.0)
        asked = self.ledger.asks(self.home, there, "reply", 2.0)
        await outcome(self.ledger, asked, ref.call(Citizen.serial, asked.number, "reply"))
        streamed = self.ledger.asks(self.home, there, "stream", 2.0)
        await self.read(streamed, ref.stream(Citizen.count, streamed.number, 5, 0.0, "reply"))
        for each in (asked, streamed):
            if isinstance(each.outcome, BaseException):
                self.world.breach(f"in quiet {each} failed: {each.outcome!r}")
