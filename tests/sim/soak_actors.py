"""The actor of a soak run: handlers that must not overlap, get cancelled, and call other actors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from fleetlm import Actor, FleetError, Pid, ProcessExit, handler
from fleetlm.messaging.deadline import SERVING
from tests.sim.invariants import LATE_S
from tests.sim.soak_ledger import Ledger, Request
from tests.sim.soak_world import NodeRecord, Tree, World

TERMINATE_S = 0.05
NEVER_S = 500.0
"""Virtual seconds: longer than any caller waits."""


class SoakActor(Actor):
    """One actor of a node, under the node's supervisor."""

    def __init__(
        self, world: World, ledger: Ledger, record: NodeRecord, rng: random.Random, tree: Tree
    ) -> None:
        tree.starts["counter"] += 1
        self.world = world
        self.ledger = ledger
        self.record = record
        self.rng = rng
        self.max_concurrent = record.node.settings.concurrent_handlers
        self.running_alone = self.running_concurrently = 0
        self.terminated = 0

    async def init(self) -> None:
        self.world.observe(self.process)
        self.world.actors.add(self.pid)
        self.world.on_process_end[self.pid] = self.check_end

    async def terminate(self, reason: Any) -> None:
        self.terminated += 1
        if self.running_alone or self.running_concurrently:
            self.world.breach(
                f"{self.pid} terminates while {self.running_alone} + {self.running_concurrently} handlers run"
            )
        if self.rng.random() < 0.2:
            await asyncio.sleep(TERMINATE_S)

    def check_end(self, reason: Any) -> None:
        if self.terminated != 1 and reason != "killed":
            self.world.breach(f"{self.pid} ended ({reason}) and was terminated {self.terminated} times")

    async def handle_info(self, message: Any) -> None:
        with self.checked_alone():
            match message:
                case ("seq", Pid() as sender, int(number), _):
                    self.ledger.take_number(self.process, sender, number)

    # Handlers.

    @handler
    async def note(self, sender: Pid, number: int, filler: bytes) -> None:
        with self.checked_alone():
            self.ledger.take_number(self.process, sender, number)

    @handler
    async def serial(self, number: int, how: str) -> tuple[int, Pid]:
        with self.checked_alone(), self.checked_serving(number):
            return await self.work(number, how)

    @handler(concurrent=True)
    async def together(self, number: int, how: str) -> tuple[int, Pid]:
        self.running_concurrently += 1
        if self.running_concurrently > self.max_concurrent:
            self.world.breach(
                f"{self.pid} runs {self.running_concurrently} handlers at a time, not {self.max_concurrent}"
            )
        try:
            with self.checked_serving(number):
                return await self.work(number, how)
        finally:
            self.running_concurrently -= 1

    @handler
    async def nested(self, number: int, there: str) -> tuple[int, Pid]:
        """Call another actor with a longer timeout than this call's own deadline."""
        with self.checked_alone(), self.checked_serving(number) as request:
            call = SERVING.get()
            assert call is not None
            now_s = self.world.now_s
            if call.deadline - now_s > request.timeout_s + LATE_S:
                self.world.breach(f"{request} has {call.deadline - now_s} s on its way")
            inner = self.ledger.begin(self.record, ("counter", there), "nested", call.deadline - now_s)
            operation = self.node.ref(SoakActor, "counter", at=there).within(NEVER_S)
            await outcome(self.ledger, inner, operation.call(SoakActor.together, inner.number, "mute"))
            return number, self.pid

    @handler
    async def count(
        self, number: int, items: int, pause_s: float, end: str
    ) -> AsyncGenerator[tuple[int, int], None]:
        with self.checked_alone(), self.checked_serving(number) as request:
            for item in range(items):
                if pause_s:
                    await asyncio.sleep(pause_s)
                request.produced += 1
                yield (number, item)
            request.end = end
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
                await asyncio.sleep(NEVER_S)
        return number, self.pid

    # Checks.

    @contextmanager
    def checked_alone(self) -> Iterator[None]:
        """Check that no other handler runs, except concurrent ones."""
        if self.running_alone:
            self.world.breach(f"two handlers of {self.pid} run at a time")
        self.running_alone += 1
        try:
            yield
        finally:
            self.running_alone -= 1

    @contextmanager
    def checked_serving(self, number: int) -> Iterator[Request]:
        request = self.ledger.serving[number] = self.ledger.ran(self.process, number)
        try:
            yield request
        finally:
            del self.ledger.serving[number]


async def outcome(ledger: Ledger, request: Request, operation: Coroutine[Any, Any, Any]) -> None:
    """Wait for the outcome of a call and report it to the ledger."""
    result: Any
    try:
        result = await operation
    except FleetError as error:
        result = error
    except asyncio.CancelledError:
        ledger.ended(request, asyncio.CancelledError())
        raise
    if not isinstance(result, FleetError):
        request.expected = (request.number, next(iter(request.ran), None))
    ledger.ended(request, result)
