"""Step 1 of the tutorial: a worker, and a call to it.

python step1_worker.py
"""

from __future__ import annotations

import asyncio

import fleetlm
from fleetlm import Actor, Node, handler


class Model(Actor):
    """A stand-in for a language model."""

    @handler
    async def answer(self, prompt: str) -> str:
        await asyncio.sleep(0.1)  # what the GPU would take
        return f"You said: {prompt}"


async def main(node: Node) -> None:
    """Start a model, and ask it."""
    model = await node.start_actor(Model)
    print(await model.call(Model.answer, "hello"))


if __name__ == "__main__":
    fleetlm.run(main, log_level="warning")
