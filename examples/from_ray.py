"""Remote actors, placement, streams and a pool, as a Ray programmer would look for them.

``python from_ray.py`` runs two nodes in one program; docs/from-ray-celery.md explains each part.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator

from fleetlm import Actor, Node, Settings, handler

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24386"))


def heavy(prompt: str) -> list[str]:
    """Blocking work: a model's forward pass, say."""
    return prompt.split()


# @ray.remote class Model
class Model(Actor):
    """Runs where it was spawned; every worker of the fleet has one."""

    async def init(self) -> None:
        self.node.groups.join("models", self.pid)

    @handler
    async def generate(self, prompt: str) -> list[str]:
        return await self.run_blocking(heavy, prompt)

    @handler
    async def tokens(self, prompt: str) -> AsyncIterator[str]:
        for token in heavy(prompt):
            yield token


async def members(node: Node, group: str, count: int) -> None:
    """Wait until so many are known here: a join is seen on other nodes one hop later."""
    changes = node.groups.watch(group)
    while len(node.groups.members(group)) < count:
        await anext(changes)
    changes.close()


async def main() -> None:
    """Two workers that are the same program, as in a Deployment."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_port=PORT, remote=False) for ip in ADDRESSES
    )
    async with Node.start(first) as here, Node.start(second) as there:
        for node in (here, there):
            node.factories.register("model", Model)
        await here.ready(1, timeout=5)

        # As Model.options(scheduling_strategy=...).remote() does.
        for name in (here.name, there.name):
            await here.spawn_at(name, "model")
        await members(here, "models", 2)

        # As ray.get(model.generate.remote(prompt)) does.
        model = here.ref(Model, here.groups.pick("models", by="least_loaded"))
        print(await model.within(30.0).call(Model.generate, "a b c"))

        # The same session on the same worker, as long as it lives
        sticky = here.ref(Model, here.groups.pick("models", by="key", key="session-7"))
        async for token in sticky.stream(Model.tokens, "d e f"):
            print(token)

        # Many at a time.
        refs = [here.ref(Model, pid) for pid in here.groups.members("models")]
        print(await asyncio.gather(*(ref.call(Model.generate, "g h") for ref in refs)))


if __name__ == "__main__":
    asyncio.run(main())
