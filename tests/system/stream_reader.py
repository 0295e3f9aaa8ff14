"""A program for ``fleetlm start`` that reads twenty endless streams of the actor at ``MODEL_AT``, slowly."""

from __future__ import annotations

import asyncio
import os

from fleetlm import Node
from tests.system.actor_worker import Model


async def main(node: Node) -> None:
    """What `fleetlm start` runs."""
    there = os.environ["MODEL_AT"]
    await node.connect(there, 20.0)
    ref = node.ref(Model, "model", at=there)

    async def read() -> None:
        async for _ in ref.stream(Model.tokens, 10_000_000):
            await asyncio.sleep(0.01)

    await asyncio.gather(*(read() for _ in range(20)))
