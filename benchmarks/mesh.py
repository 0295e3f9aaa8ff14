"""The time until N nodes are all connected with each other."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

import zmq

from benchmarks import peers, raw
from benchmarks.helper import Parent, run_loop
from benchmarks.helpers import ProcessGroup, formed_key
from benchmarks.registry import Benchmark, Metric, Options, Variant

EACH = 8
"""Nodes of fleetlm in one operating system process."""
MEMBERS = (8, 16, 32, 64)


def variants(options: Options) -> list[Variant]:
    """Nodes that start and find each other; sockets that connect and send a hello; the peers."""
    config = {"loop": options.loop}
    return [
        ProcessGroup(
            f"fleetlm, {EACH} nodes a process ({options.loop})",
            floor=False,
            target="mesh:fleetlm_nodes",
            config=config,
            members=MEMBERS,
            each=EACH,
        ),
        ProcessGroup(
            "pyzmq, connections and hellos",
            floor=True,
            target="mesh:raw_nodes",
            config=config,
            members=MEMBERS,
            each=EACH,
        ),
        *(
            ProcessGroup(
                f"{label}, one node a process",
                floor=True,
                target="mesh_node",
                config=config,
                members=MEMBERS,
                each=1,
                command=peer.command,
            )
            for peer, label in peers.able(options, "mesh")
        ),
    ]


BENCHMARK = Benchmark(
    "mesh",
    "a full mesh forms, from the start of the nodes to the last connection",
    [
        Metric(formed_key(members), f"{members} nodes", "ms", more_is_better=False, scale=1e3)
        for members in MEMBERS
    ],
    variants,
    share=4,
)


def fleetlm_nodes(parent: Parent, config: dict[str, Any]) -> None:
    """Start this process's nodes on command, and report when each is connected with all others."""
    from benchmarks import fleetlm_node  # noqa: PLC0415  a floor's process must not import fleetlm
    from fleetlm import Node, StaticDiscovery  # noqa: PLC0415

    async def main() -> None:
        ips, first, count = config["ips"], config["first"], config["count"]
        parent.report(ready=True)
        await parent.read_command()
        async with AsyncExitStack() as stack:
            nodes = []
            for ip in ips[first : first + count]:
                settings = fleetlm_node.settings(ips, ip, config["port"])
                starting = Node.start(settings, discovery=StaticDiscovery(ips))
                nodes.append(await stack.enter_async_context(starting))
            await asyncio.gather(*(node.ready(len(ips) - 1, fleetlm_node.READY_TIMEOUT_S) for node in nodes))
            parent.report(done=True)
            await parent.wait_until_closed()
            os._exit(0)  # the end of a mesh is not measured

    run_loop(main(), config["loop"])


def raw_nodes(parent: Parent, config: dict[str, Any]) -> None:
    """Use a ROUTER for each node and a DEALER for each pair; done when all hellos have arrived."""
    ips, first, count = config["ips"], config["first"], config["count"]
    own = ips[first : first + count]
    commands = parent.read_commands()
    parent.report(ready=True)
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
    parent.report(done=True)
    for _ in commands:
        pass
    for context in contexts:
        context.destroy(0)
