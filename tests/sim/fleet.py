"""Whole nodes on a simulated network, for the tests of the node's API."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec

from fleetlm import Call, Down, Node, Pid, Process, Settings, StaticDiscovery
from fleetlm.testing.loop import SimLoop, run
from fleetlm.testing.network import SimNetwork, SimTransport

P = ParamSpec("P")

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Fleet:
    """A simulated network and the nodes on it."""

    def __init__(self) -> None:
        self.loop = SimLoop.current()
        self.net = SimNetwork(self.loop, self.loop.rng)
        self.nodes: list[Node] = []

    async def start(self, ip: str, *peers: str, **changes: Any) -> Node:
        """Start a node whose discovery knows only these peers."""
        settings = Settings(node_ip=ip, node_ports=(4370, 4370), dns_query="fleet.test").replace(**changes)
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
        """Start nodes that are all connected with each other."""
        ips = [A, B, C][:count]
        nodes = [await self.start(ip, *ips, **changes) for ip in ips]
        for node in nodes:
            await node.ready(count - 1, timeout=30)
        return nodes

    async def crash(self, node: Node) -> None:
        """Crash a node."""
        self.net.crash(node.own_address.ip)
        self.nodes.remove(node)
        await node.stop(drain_s=0)


def simulated(test: Callable[Concatenate[Fleet, P], Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on its own fleet, and stop the nodes that still run at its end."""

    async def main(*args: P.args, **kwargs: P.kwargs) -> None:
        fleet = Fleet()
        try:
            await test(fleet, *args, **kwargs)
        finally:
            for node in fleet.nodes:
                await node.stop(drain_s=0)

    @functools.wraps(test)
    def start(*args: P.args, **kwargs: P.kwargs) -> None:
        run(main(*args, **kwargs))

    signature = inspect.signature(test)  # pytest must not ask for the fleet
    start.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])  # type: ignore[attr-defined]
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


async def reason_of(node: Node, pid: Pid) -> Any:
    """Wait for the end of a process, and return its reason."""
    reasons: list[Any] = []

    async def watch(process: Process) -> None:
        process.monitor(pid)
        message = await process.receive()
        assert isinstance(message, Down)
        reasons.append(message.reason)

    await node.join(node.spawn(watch), 60)
    return reasons[0]


def collector(into: list[Any]) -> Callable[[Process], Coroutine[Any, Any, None]]:
    """A process that appends each message to a list."""

    async def collect(process: Process) -> None:
        async for message in process.mailbox:
            into.append(message)  # noqa: PERF401  # the loop never ends, and tests read the list meanwhile

    return collect
