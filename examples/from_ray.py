"""Remote actors, placement, streams and a pool, for programmers who know Ray.

``python from_ray.py`` runs two nodes in one program; docs/from-ray-celery.md explains each part.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator

from fleetlm import Actor, Node, Settings, handler

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24386"))


def heavy(prompt: str) -> Iterator[str]:
    """Blocking work that yields a token at a time, such as a model's forward pass."""
    for token in prompt.split():
        time.sleep(0.01)
        yield token


# @ray.remote class Model
class Model(Actor):
    """Runs on the node that it was spawned on; each worker has one."""

    async def init(self) -> None:
        self.node.groups.join("models", self.pid)

    @handler
    async def generate(self, prompt: str) -> list[str]:
        return await self.run_blocking(list, heavy(prompt))

    @handler
    async def tokens(self, prompt: str) -> AsyncIterator[str]:
        async with self.stream_blocking(heavy, prompt) as tokens:
            async for token in tokens:
                yield token  # It runs in a thread, and only as fast as the consumer takes tokens.


async def members(node: Node, group: str, count: int) -> None:
    """Wait until ``node`` sees this many members: other nodes see a join one hop later."""
    changes = node.groups.watch(group)
    while len(node.groups.members(group)) < count:
        await anext(changes)
    changes.close()


async def main() -> None:
    """Run two workers with the same program, as in a Deployment."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)
        for ip in ADDRESSES
    )
    async with Node.start(first) as here, Node.start(second) as there:
        for node in (here, there):
            node.factories.register("model", Model)
        await here.ready(1, timeout=5)

        # In Ray: Model.options(scheduling_strategy=...).remote().
        for name in (here.name, there.name):
            await here.spawn_at(name, "model")
        await members(here, "models", 2)

        # In Ray: ray.get(model.generate.remote(prompt)).
        model = here.groups.ref(Model, "models", by="least_loaded")
        print(await model.within(30.0).call(Model.generate, "a b c"))

        # A session stays on the same worker as long as that worker lives.
        sticky = here.groups.ref(Model, "models", by="sticky", key="session-7")
        async for token in sticky.stream(Model.tokens, "d e f"):
            print(token)

        # Call several actors at the same time.
        refs = [here.ref(Model, pid) for pid in here.groups.members("models")]
        print(await asyncio.gather(*(ref.call(Model.generate, "g h") for ref in refs)))


if __name__ == "__main__":
    asyncio.run(main())
