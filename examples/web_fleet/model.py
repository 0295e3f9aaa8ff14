"""A worker of a web application: it has no HTTP port, and is found through its process group.

    DNS_CLUSTER_QUERY=worker,web fleetlm start model:main

It stands in for a model. The deployment kits in deploy/ run it beside `web.py`.
"""

from __future__ import annotations

import asyncio

from fleetlm import Actor, Node, handler

MODELS = "models"
"""The group of all models."""

Turn = dict[str, str]
"""One turn of a conversation: ``{"role": "user", "content": "hello"}``."""


class Model(Actor):
    """Stand in for what a worker has loaded."""

    async def init(self) -> None:
        self.node.groups.join(MODELS, self.pid)

    @handler(concurrent=True)
    async def title(self, turns: list[Turn]) -> str:
        """Return a title for a conversation."""
        await asyncio.sleep(0)  # the model
        return turns[-1]["content"].title()

    @handler
    async def state(self) -> dict[str, str]:
        """Return which worker this is."""
        return {"worker": self.node.name}


async def main(node: Node) -> None:
    """Serve until the node stops."""
    node.add_check("model", lambda: bool(node.groups.local_members(MODELS)))
    node.spawn(Model)
    await node.wait_stopped()
