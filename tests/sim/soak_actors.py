"""The actors of a society: handlers that must not overlap, that are cancelled, that ask further."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from fleetlm import Actor, FleetError, Pid, ProcessExit, handler
from fleetlm.messaging.deadline import SERVING
from tests.sim.invariants import LATE_S
from tests.sim.soak_ledger import Asked, Ledger
from tests.sim.soak_world import Home, Tree, World

TERMINATE_S = 0.05
LONG_S = 500.0
"""Nobody waits for so long: who asks gives up before."""


class Citizen(Actor):
    """One actor of a node, under its tree."""

    def __init__(self, world: World, ledger: Ledger, home: Home, rng: random.Random, tree: Tree) -> None:
        tree.starts["citizen"] += 1
        self.world = world
        self.ledger = ledger
        self.home = home
        self.rng = rng
        self.most = home.node.settings.concurrent_handlers
        self.inside = self.beside = 0
        self.terminated = 0

    async def init(self) -> None:
        self.world.meet(self.process)
        self.world.citizens.add(self.pid)
        self.world.on_end[self.pid] = self.judge_end

    async def terminate(self, reason: Any) -> None:
        self.terminated += 1
        if self.inside or self.beside:
            self.world.breach(f"{self.pid} terminates in the middle of {self.inside}, {self.beside} handlers")
        if self.rng.random() < 0.2:
            await asyncio.sleep(TERMINATE_S)

    def judge_end(self, reason: Any) -> None:
        if self.terminated != 1 and reason != "killed":
            self.world.breach(f"{self.pid} ended ({reason}) and was terminated {self.terminated} times")

    async def handle_info(self, message: Any) -> None:
        with self.alone():
            match message:
                case ("seq", Pid() as sender, int(number), _):
                    self.ledger.got(self.process, sender, number)

    # Handlers.

    @handler
    async def note(self, sender: Pid, number: int, filler: bytes) -> None:
        with self.alone():
            self.ledger.got(self.process, sender, number)

    @handler
    async def serial(self, number: int, how: str) -> tuple[int, Pid]:
        with self.alone(), self.served(number):
            return await self.work(number, how)

    @handler(concurrent=True)
    async def together(self, number: int, how: str) -> tuple[int, Pid]:
        self.beside += 1
        if self.beside > self.most:
            self.world.breach(f"{self.pid} runs {self.beside} handlers beside one another, of {self.most}")
        try:
            with self.served(number):
                return await self.work(number, how)
        finally:
            self.beside -= 1

    @handler
    async def nested(self, number: int, there: str) -> tuple[int, Pid]:
        """Asks another one for longer than its own caller waits."""
        with self.alone(), self.served(number) as asked:
            call = SERVING.get()
            assert call is not None
            now_s = self.world.now_s
            if call.deadline - now_s > asked.timeout_s + LATE_S:
                self.world.breach(f"{asked} has {call.deadline - now_s} s on its way")
            inner = self.ledger.asks(self.home, ("citizen", there), "nested", call.deadline - now_s)
            asking = self.node.ref(Citizen, "citizen", at=there).within(LONG_S)
            await outcome(self.ledger, inner, asking.call(Citizen.together, inner.number, "mute"))
            return number, self.pid

    @handler
    async def count(
        self, number: int, items: int, pause_s: float, end: str
    ) -> AsyncGenerator[tuple[int, int], None]:
        with self.alone(), self.served(number) as asked:
            for item in range(items):
                if pause_s:
                    await asyncio.sleep(pause_s)
                asked.produced += 1
                yield (number, item)
            asked.end = end
            if end == "raise":
                raise ValueError("raise")
            if end == "die":
                raise ProcessExit(("died of a stream", number))

    async def work(self, number: int, how: str) -> tuple[int, Pid]:
        match how:
            case "raise":
                raise ValueError(str(number))
            case "die":
                raise ProcessExit(("died of a call", number))
            case "slow":
                await asyncio.sleep(self.rng.uniform(0.05, 0.4))
            case "mute":
                await asyncio.sleep(LONG_S)
        return number, self.pid

    # What is checked.

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other handler but concurrent ones."""
        if self.inside:
            self.world.breach(f"two handlers of {self.pid} run at a time")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @contextmanager
    def served(self, number: int) -> Iterator[Asked]:
        asked = self.ledger.serving[number] = self.ledger.ran(self.process, number)
        try:
            yield asked
        finally:
            del self.ledger.serving[number]


async def outcome(ledger: Ledger, asked: Asked, asking: Coroutine[Any, Any, Any]) -> None:
    """Wait for the outcome of a call, and hand it in."""
    result: Any
    try:
        result = await asking
    except FleetError as error:
        result = error
    except asyncio.CancelledError:
        ledger.ended(asked, asyncio.CancelledError())
        raise
    if not isinstance(result, FleetError):
        asked.expected = (asked.number, next(iter(asked.ran), None))
    ledger.ended(asked, result)
