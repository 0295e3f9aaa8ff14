"""A leader by name: one process in the cluster has it, the others stand by and take over.

``python names.py`` runs two nodes in one program; on Linux every 127.0.0.N is an address of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from fleetlm import (
    AlreadyRegistered,
    Call,
    Child,
    Node,
    NotDelivered,
    Process,
    Registered,
    Settings,
    Supervisor,
    Unregistered,
)

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24390"))


async def leader(process: Process, zone: str) -> None:
    """Stands by until the name is free, then leads until it ends.

    If it turns out that another one has led for longer, on the other side of a partition, say, this
    process gets an exit signal (`NameLost`), and its supervisor lets the next one stand by.
    """
    registry = process.node.registry
    with contextlib.closing(registry.watch("leader")) as changes:
        while registry.whereis("leader") != process.pid:
            try:
                await registry.register("leader", process.pid, {"zone": zone})
            except AlreadyRegistered:
                await anext(changes)  # The name has come or gone: look again.
    async for message in process.mailbox:
        match message:
            case Call(message=work):
                message.reply(f"{work}, done in zone {zone}")


async def ask(node: Node, work: str) -> str:
    """Call whoever leads, and the next one if that one has just gone: it never ran, so that is safe."""
    while True:
        pid = await node.registry.wait_for("leader", timeout=5)
        try:
            return str(await node.call(pid, work))
        except NotDelivered:
            await asyncio.sleep(0.05)


async def watch(node: Node) -> None:
    """Prints who leads: first who does now, then every change."""
    async for event in node.registry.watch("leader"):
        match event:
            case Registered(pid=pid, meta={"zone": zone}):
                print(f"{pid.node} in zone {zone} leads")
            case Unregistered(pid=pid, reason=reason):
                print(f"{pid.node} leads no more: {reason}")


async def main() -> None:
    """Two nodes with one candidate each; the one that leads goes away."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_port=PORT, remote=False) for ip in ADDRESSES
    )
    async with Node.start(first) as here:
        watching = asyncio.create_task(watch(here))
        there = await Node.start(second)
        await here.ready(1, timeout=5)
        there.spawn(Supervisor([Child("leader", leader, ("b",))]))

        print(await ask(here, "first job"))
        here.spawn(Supervisor([Child("leader", leader, ("a",))]))
        await asyncio.sleep(0.1)  # It stands by.

        await there.stop()
        print(await ask(here, "second job"))
    await watching


if __name__ == "__main__":
    asyncio.run(main())
