"""Sessions that live on one node at a time: found by key, moved with their state when a node leaves.

``python entities.py`` runs three nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

from fleetlm import Entity, Node, Settings, handler

ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24392"))
KEYS = [f"s-{number}" for number in range(30)]


class Session(Entity):
    """One chat: its lines move with it."""

    async def load(self, state: Any) -> None:
        """Begin from what was saved, or empty."""
        self.lines: list[str] = list(state or ())

    async def save(self) -> Any:
        """Return what another node needs to go on."""
        return self.lines

    @handler
    async def append(self, line: str) -> int:
        """Add a line, and return how many there are."""
        self.lines.append(line)
        return len(self.lines)


async def main() -> None:
    """Host sessions on two nodes, ask from a third one, and let one of the hosts leave."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for ip in ADDRESSES:
            settings = Settings(
                dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False
            )
            nodes.append(await stack.enter_async_context(Node.start(settings)))
        front, *hosts = nodes
        for node in nodes:
            await node.ready(2, timeout=20)
        for host in hosts:
            await host.entities.host(Session, "sessions", shards=64)

        sessions = front.entities.ref(Session, "sessions")
        counts = await asyncio.gather(*(sessions[key].within(10).call(Session.append, "hi") for key in KEYS))
        print(f"{len(KEYS)} sessions have {sum(counts)} lines")
        print("both hosts have some:", {sessions.where(key) for key in KEYS} == {host.name for host in hosts})

        leaving, stays = hosts
        report = await leaving.drain(10)
        print(f"left behind: {list(report.unmoved)}")
        print("all are on the other host:", {sessions.where(key) for key in KEYS} == {stays.name})
        counts = await asyncio.gather(*(sessions[key].call(Session.append, "again") for key in KEYS))
        print(f"each has {min(counts)} lines")


if __name__ == "__main__":
    asyncio.run(main())
