"""How long N nodes take until each is connected with every other."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

import zmq

from benchmarks import raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import Crowd
from benchmarks.registry import Benchmark, Metric, Options, Variant

EACH = 8
"""Nodes in one process of the operating system."""


def variants(options: Options) -> list[Variant]:
    """Nodes that start and find each other; sockets that connect and say hello."""
    members = options.size(32, 16)
    config = {"loop": options.loop}
    return [
        Crowd(
            f"fleetlm, {members} nodes ({options.loop})",
            floor=False,
            target="mesh:our_nodes",
            config=config,
            members=members,
            each=EACH,
        ),
        Crowd(
            f"pyzmq, {members} x {members - 1} connections and hellos",
            floor=True,
            target="mesh:raw_nodes",
            config=config,
            members=members,
            each=EACH,
        ),
    ]


BENCHMARK = Benchmark(
    "mesh",
    f"a full mesh forms, {EACH} nodes in each process",
    [Metric("formed_s", "from go to the last connection", "ms", more_is_better=False, scale=1e3)],
    variants,
)


def our_nodes(parent: Parent, config: dict[str, Any]) -> None:
    """Start some of the nodes when told to; say when each of them has all the others."""
    from benchmarks import ours  # noqa: PLC0415  a floor's process must not hold fleetlm
    from fleetlm import Node, StaticDiscovery  # noqa: PLC0415

    async def main() -> None:
        ips, first, count = config["ips"], config["first"], config["count"]
        parent.say(ready=True)
        await parent.command()
        async with AsyncExitStack() as stack:
            nodes = []
            for ip in ips[first : first + count]:
                settings = ours.settings(ips, ip, config["port"])
                starting = Node.start(settings, discovery=StaticDiscovery(ips))
                nodes.append(await stack.enter_async_context(starting))
            await asyncio.gather(*(node.ready(len(ips) - 1, ours.PATIENCE_S) for node in nodes))
            parent.say(done=True)
            await parent.gone()
            os._exit(0)  # how a mesh falls apart is not what is measured

    run_loop(main(), config["loop"])


def raw_nodes(parent: Parent, config: dict[str, Any]) -> None:
    """A ROUTER for each node and a DEALER for each other one; done when all hellos have come."""
    ips, first, count = config["ips"], config["first"], config["count"]
    own = ips[first : first + count]
    commands = parent.commands()
    parent.say(ready=True)
    next(commands)
    poller = zmq.Poller()
    contexts = []
    dialled = []
    for ip in own:
        sock, context = raw.router(config["port"], ip)
        poller.register(sock, zmq.POLLIN)
        contexts.append(context)
        for other in ips:
            if other != ip:
                dialled.append(raw.dealer(context, config["port"], other))
                dialled[-1].send(b"hello")
    missing = len(own) * (len(ips) - 1)
    while missing:
        for sock, _ in poller.poll():
            sock.recv_multipart()
            missing -= 1
    parent.say(done=True)
    for _ in commands:
        pass
    for context in contexts:
        context.destroy(0)
