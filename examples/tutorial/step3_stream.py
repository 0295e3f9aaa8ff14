"""Step 3 of the tutorial: answers come token by token.

fleetlm start step3_stream:worker
fleetlm start step3_stream:ask
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

    @handler(concurrent=True)  # many answers at a time
    async def complete(self, prompt: str) -> AsyncIterator[str]:
        try:
            for token in ["You", "said:", *prompt.split()]:
                await asyncio.sleep(0.1)
                yield token
        except (asyncio.CancelledError, GeneratorExit):
            print(f"nobody waits for {prompt[:20]!r} any more", flush=True)
            raise


def worker(node: Node) -> None:
    """Run a model until the node is told to leave; a supervisor starts it again if it crashes."""
    node.spawn(Supervisor([Child("model", Model)]))


async def ask(node: Node) -> None:
    """Read one answer to its end, and stop in the middle of another one."""
    await node.ready(min_nodes=1, timeout=10)
    models = node.groups.ref(Model, "models", by="least_loaded")
    async for token in models.stream(Model.complete, "hello there"):
        print(token, flush=True)
    async with models.stream(Model.complete, "a long story " * 100) as tokens:
        print(await anext(tokens), "... enough")
