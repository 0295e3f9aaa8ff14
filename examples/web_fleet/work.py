"""A worker of a web application: it has no HTTP port, and is found through its process group.

    DNS_CLUSTER_QUERY=worker,web fleetlm start work:main

It stands in for a model: replace `Model.answer`. The deployment kits in deploy/ run it beside `front.py`.
"""

from __future__ import annotations

import asyncio

from fleetlm import Actor, Node, handler

GROUP = "models"


class Model(Actor):
    """Stand in for what a worker has loaded."""

    async def init(self) -> None:
        """Join the group in which front ends look for workers, once the model is loaded."""
        self.node.groups.join(GROUP, self.pid)

    @handler(concurrent=True)
    async def answer(self, prompt: str) -> dict[str, str]:
        """Answer one prompt."""
        await asyncio.sleep(0)  # the model
        return {"text": prompt.upper(), "node": self.node.name}


async def main(node: Node) -> None:
    """Serve until the node stops."""
    node.add_check("model", lambda: bool(node.groups.local_members(GROUP)))
    node.spawn(Model)
    await node.wait_stopped()
