"""A singleton and a cron job: one process in the cluster, which moves when its node leaves.

``python leaders.py`` runs three nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

from fleetlm import CronSlot, Node, Process, Settings

ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24393"))
SETTLE_S = 0.5
"""Shorter than the default, since this program has all its nodes from the start."""


async def scheduler(process: Process) -> None:
    """Say for each job where it was planned, and under which epoch."""
    async for call in process.mailbox:
        call.reply((process.node.name, process.epoch))


async def main() -> None:
    """Offer the scheduler on three nodes, and let the one leave that runs it."""
    slots: list[CronSlot] = []
    enough = asyncio.Event()

    async def clean(slot: CronSlot) -> None:
        slots.append(slot)
        if len(slots) == 2:
            enough.set()

    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for ip in ADDRESSES:
            settings = Settings(
                dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False
            )
            nodes.append(await stack.enter_async_context(Node.start(settings)))
        for node in nodes:
            await node.ready(2, timeout=20)
        for node in nodes:
            node.singleton("scheduler", scheduler, settle_s=SETTLE_S)
            node.cron("clean", 1.0, clean, settle_s=SETTLE_S)

        where, epoch = await nodes[0].singletons.call("scheduler", "a job", 20)
        print("it runs on one of the nodes:", where in {node.name for node in nodes})
        print("all nodes know where:", {node.singletons.where("scheduler") for node in nodes} == {where})

        leaving = next(node for node in nodes if node.name == where)
        report = await leaving.drain(10)
        print(f"left behind: {list(report.unmoved)}")
        moved_to, later = await leaving.singletons.call("scheduler", "another job", 20)
        print("it has moved, and its epoch has grown:", moved_to != where and later > epoch)

        await asyncio.wait_for(enough.wait(), 20)
        print("slots of the cron job, each once:", len({slot.at for slot in slots}) == len(slots))


if __name__ == "__main__":
    asyncio.run(main())
