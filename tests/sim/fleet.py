"""Whole nodes in a simulated world, for the tests of the node's API."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Coroutine
from typing import Any

from fleetlm import Call, Node, Process, Settings, StaticDiscovery
from fleetlm.testing.loop import SimLoop, run
from fleetlm.testing.network import SimNetwork, SimTransport

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Fleet:
    """A network, and the nodes that were started on it."""

    def __init__(self) -> None:
        self.loop = SimLoop.current()
        self.net = SimNetwork(self.loop, self.loop.rng)
        self.nodes: list[Node] = []

    async def start(self, ip: str, *peers: str, **changes: Any) -> Node:
        """A node that is told of these peers, and of nobody else."""
        settings = Settings(node_ip=ip, dns_query="fleet.test").replace(**changes)
        node = await Node.start(
            settings,
            discovery=StaticDiscovery([ip, *peers]),
            transport=SimTransport(self.net, settings),
            rng=random.Random(self.loop.rng.random()),
            wall_ms=1_000,
        )
        self.nodes.append(node)
        return node

    async def mesh(self, count: int, **changes: Any) -> list[Node]:
        """So many nodes, each connected to each."""
        ips = [A, B, C][:count]
        nodes = [await self.start(ip, *ips, **changes) for ip in ips]
        for node in nodes:
            await node.ready(count - 1, timeout=30)
        return nodes

    async def crash(self, node: Node) -> None:
        """Let a node vanish, as its peers see it."""
        self.net.crash(node.own_address.ip)
        self.nodes.remove(node)
        await node.stop(drain_s=0)


def simulated(
    test: Callable[[Fleet], Coroutine[Any, Any, None]],
) -> Callable[[], None]:
    """Run a test on a fleet of its own, and stop the nodes that it leaves running."""

    async def main() -> None:
        fleet = Fleet()
        try:
            await test(fleet)
        finally:
            for node in fleet.nodes:
                await node.stop(drain_s=0)

    @functools.wraps(test)
    def start() -> None:
        run(main())

    del start.__wrapped__  # pytest would ask for the argument
    return start


async def echo(process: Process) -> None:
    """Answer calls with their message; `stop` ends it."""
    async for message in process.mailbox:
        match message:
            case Call(message="stop"):
                return
            case Call(message="raise"):
                message.fail(ValueError("as asked"))
            case Call(message=value):
                message.reply(value)


def collector(into: list[Any]) -> Callable[[Process], Coroutine[Any, Any, None]]:
    """A process that puts what it gets into a list."""

    async def collect(process: Process) -> None:
        async for message in process.mailbox:
            into.append(message)  # noqa: PERF401  # it never ends, and is looked at meanwhile

    return collect
