"""Spawning where the work is: a worker registers a factory, another node spawns it there and watches it.

``python remote_spawn.py`` runs two nodes in one program; on Linux every 127.0.0.N is an address of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os

from fleetlm import Call, Down, Node, NoFactory, Process, ProcessDown, Settings

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24383"))


async def session(process: Process, user: str) -> None:
    """Keeps the lines of one user. Other nodes know it as "session", and need no more of its code."""
    lines: list[str] = []
    async for message in process.mailbox:
        match message:
            case Call(message="end"):
                message.reply(lines)
                return
            case Call(message=""):
                raise ValueError(f"an empty line from {user}")
            case Call(message=line):
                lines.append(line)
                message.reply(len(lines))


async def front(process: Process, worker: str, ready: asyncio.Event) -> None:
    """Spawns sessions on the worker; how each one ends comes as exactly one `Down`."""
    node = process.node
    ann, _ = await process.spawn_monitor_at(worker, "session", "ann", name="ann")
    print(f"ann runs on {ann.node}: {await node.whereis('ann', at=worker) == ann}")
    print(await node.call(ann, "hello"), await node.call(ann, "again"), await node.call(ann, "end"))
    await told(process, "ann")

    bob, _ = await process.spawn_monitor_at(worker, "session", "bob")
    try:
        await node.call(bob, "")
    except ProcessDown:
        await told(process, "bob")

    # One that fails before its first line: the real reason arrives, not "noproc".
    _, watched = await process.spawn_monitor_at(worker, "session", "too", "many", "arguments")
    down = await told(process, "nobody")
    assert down.ref == watched

    try:
        await node.spawn_at(worker, "sesion", "eve")
    except NoFactory as error:
        print(f"never ran: {error}")

    await process.spawn_monitor_at(worker, "session", "last")
    ready.set()
    await told(process, "last")


async def told(process: Process, who: str) -> Down:
    """Wait for a `Down`, and show it."""
    down = await process.receive()
    assert isinstance(down, Down)
    print(f"down: {who} ({down.reason})")
    return down


async def main() -> None:
    """One node works, the other one spawns."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)  # The crashes are meant.
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_port=PORT, remote=False) for ip in ADDRESSES
    )
    async with Node.start(first) as here:
        worker = await Node.start(second)
        worker.factories.register("session", session)
        await here.ready(1, timeout=5)

        ready = asyncio.Event()
        spawning = here.spawn(front, worker.name, ready)
        await ready.wait()
        await worker.stop()
        await here.join(spawning, timeout=5)


if __name__ == "__main__":
    asyncio.run(main())
