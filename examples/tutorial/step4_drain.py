"""Step 4 of the tutorial: workers may be replaced.

fleetlm start step4_drain:worker
fleetlm start step4_drain:ask
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fleetlm import Actor, Child, Node, Supervisor, handler


class Model(Actor):
    """A stand-in for a language model."""

    async def init(self) -> None:
        self.node.groups.join("models", self.pid)
        print(f"{self.node.name} has a model", flush=True)

    @handler(concurrent=True)
    async def complete(self, prompt: str) -> AsyncIterator[str]:
        for token in [f"{self.node.name} says:", *prompt.split()]:
            await asyncio.sleep(0.1)
            yield token


def worker(node: Node) -> None:
    """Run a model. When the node is told to leave, it finishes its answers first."""
    node.spawn(Supervisor([Child("model", Model)]))

    @node.on_leaving(phase="after_drain")
    async def report() -> None:
        print(f"{node.name} has finished its answers, and leaves", flush=True)


async def ask(node: Node) -> None:
    """Ask twenty times, five at a time, whatever happens to the workers."""
    await node.ready(min_nodes=1, timeout=10)
    models = node.groups.ref(Model, "models", by="least_loaded").retrying(5)
    slots = asyncio.Semaphore(5)

    async def one(number: int) -> str:
        async with slots:
            tokens = [token async for token in models.stream(Model.complete, f"answer {number} is complete")]
            return " ".join(tokens)

    answers = [asyncio.create_task(one(number)) for number in range(20)]
    for answer in asyncio.as_completed(answers):
        print(await answer, flush=True)
