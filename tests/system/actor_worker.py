"""A program for ``fleetlm start``: actors and processes that are slow, stuck, quick or busy.

What became of them is asked for with calls, so it prints nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fleetlm import Actor, Call, Node, Process, handler
from tests.system.cluster_worker import echo, resident_kib


class Model(Actor):
    """Streams, works, and counts what runs at the moment."""

    def __init__(self) -> None:
        self.running = 0
        self.begun = 0
        self.made = 0

    @handler(concurrent=True)
    async def tokens(self, most: int, size: int = 0) -> AsyncIterator[bytes | int]:
        """So many items: numbers, or that many bytes."""
        self.running += 1
        self.begun += 1
        try:
            for number in range(most):
                self.made = number + 1
                yield bytes(size) if size else number
        finally:
            self.running -= 1

    @handler(concurrent=True)
    async def work(self, seconds: float) -> float:
        """Takes so long, and cleans up for a moment if it is cancelled."""
        self.running += 1
        self.begun += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            try:
                await asyncio.sleep(0.001)
            finally:
                self.running -= 1
        return seconds

    @handler
    async def one_by_one(self, seconds: float) -> float:
        """As `work`, but alone."""
        async with asyncio.timeout(60):
            return await self.work(seconds)

    @handler
    async def noop(self) -> None:
        """A call that costs nothing."""

    @handler(concurrent=True)
    async def state(self) -> list[int]:
        """Handlers that run, handlers that have begun, and items made."""
        return [self.running, self.begun, self.made]


async def stuck(process: Process) -> None:
    """Takes nothing."""
    await asyncio.Event().wait()
    raise AssertionError(process)


async def slow(process: Process) -> None:
    """Takes a message in a millisecond or more."""
    async for _ in process.mailbox:
        await asyncio.sleep(0.001)


async def memory(process: Process) -> None:
    """Tells how much the program holds, in KiB; and how much it has taken at most."""
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply([resident_kib(), resident_kib("VmHWM")])


async def main(node: Node) -> None:
    """What `fleetlm start` runs."""
    node.spawn(Model, name="model")
    for function in (echo, stuck, slow, memory):
        node.spawn(function, name=function.__name__)
    await asyncio.Event().wait()
