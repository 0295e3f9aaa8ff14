"""Step 2 of the tutorial: several workers are a group.

fleetlm start step2_group:worker
fleetlm start step2_group:ask
"""

from __future__ import annotations

import asyncio

from fleetlm import Actor, Child, Node, Supervisor, handler


class Model(Actor):
    """A stand-in for a language model."""

    async def init(self) -> None:
        self.node.groups.join("models", self.pid)
        print(f"{self.node.name} has a model", flush=True)

    @handler
    async def answer(self, prompt: str) -> str:
        await asyncio.sleep(0.1)
        return f"{self.node.name} says: {prompt}"


def worker(node: Node) -> None:
    """Run a model until the node is told to leave; a supervisor starts it again if it crashes."""
    node.spawn(Supervisor([Child("model", Model)]))


async def ask(node: Node) -> None:
    """Ask the group, which may be anywhere."""
    await node.ready(min_nodes=1, timeout=10)
    models = node.groups.ref(Model, "models", by="round_robin")
    for prompt in ("one", "two", "three", "four"):
        print(await models.call(Model.answer, prompt))
