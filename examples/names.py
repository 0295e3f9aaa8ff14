"""A leader by name: one process in the cluster has the name, the others stand by and take over.

``python names.py`` runs two nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).
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
    """Stand by until the name is free, then lead until this process ends.

    If another process has led for longer on the other side of a partition, this process gets an exit
    signal (`NameLost`) after the partition heals, and its supervisor starts another one, which stands by.
    """
    registry = process.node.registry
    with contextlib.closing(registry.watch("leader")) as changes:
        while registry.whereis("leader") != process.pid:
            try:
                await registry.register("leader", process.pid, {"zone": zone})
            except AlreadyRegistered:
                await anext(changes)  # The name was registered or became free: look again.
    async for message in process.mailbox:
        match message:
            case Call(message=work):
                message.reply(f"{work}, done in zone {zone}")


async def ask(node: Node, work: str) -> str:
    """Call the leader. If it has just ended, the call never ran, so it is safe to call the next one."""
    while True:
        pid = await node.registry.wait_for("leader", timeout=5)
        try:
            return str(await node.call(pid, work))
        except NotDelivered:
            await asyncio.sleep(0.05)


async def watch(node: Node) -> None:
    """Print the present leader, then every change."""
    async for event in node.registry.watch("leader"):
        match event:
            case Registered(pid=pid, meta={"zone": zone}):
                print(f"{pid.node} in zone {zone} leads")
            case Unregistered(pid=pid, reason=reason):
                print(f"{pid.node} leads no more: {reason}")


async def main() -> None:
    """Run two nodes with one candidate each, and stop the node that leads."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)
        for ip in ADDRESSES
    )
    async with Node.start(first) as here:
        watching = asyncio.create_task(watch(here))
        there = await Node.start(second)
        await here.ready(1, timeout=5)
        there.spawn(Supervisor([Child("leader", leader, ("b",))]))

        print(await ask(here, "first job"))
        here.spawn(Supervisor([Child("leader", leader, ("a",))]))
        await asyncio.sleep(0.1)  # The second candidate stands by.

        await there.stop()
        print(await ask(here, "second job"))
    await watching


if __name__ == "__main__":
    asyncio.run(main())
