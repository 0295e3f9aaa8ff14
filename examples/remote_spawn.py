"""Spawn on another node: a worker registers a factory, another node spawns and monitors its processes.

``python remote_spawn.py`` runs two nodes on 127.0.0.1 and 127.0.0.2 (on macOS, add an alias first).
"""

from __future__ import annotations

import asyncio
import logging
import os

from fleetlm import Call, Down, Node, NoFactory, Process, ProcessDown, Settings

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24383"))


async def session(process: Process, user: str) -> None:
    """Keep the lines of one user. Other nodes know only the name "session", and need not have the code."""
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
    """Spawn sessions on the worker; exactly one `Down` arrives for the end of each."""
    node = process.node
    ann, _ = await process.spawn_monitor_at(worker, "session", "ann", name="ann")
    print(f"ann runs on {ann.node}: {await node.whereis('ann', at=worker) == ann}")
    print(await node.call(ann, "hello"), await node.call(ann, "again"), await node.call(ann, "end"))
    await next_down(process, "ann")

    bob, _ = await process.spawn_monitor_at(worker, "session", "bob")
    try:
        await node.call(bob, "")
    except ProcessDown:
        await next_down(process, "bob")

    # A process that fails before its first line: the real reason arrives, not "noproc".
    _, watched = await process.spawn_monitor_at(worker, "session", "too", "many", "arguments")
    down = await next_down(process, "wrong arguments")
    assert down.ref == watched

    try:
        await node.spawn_at(worker, "sesion", "eve")
    except NoFactory as error:
        print(f"never ran: {error}")

    await process.spawn_monitor_at(worker, "session", "last")
    ready.set()
    await next_down(process, "last")


async def next_down(process: Process, label: str) -> Down:
    """Wait for a `Down`, and print it."""
    down = await process.receive()
    assert isinstance(down, Down)
    print(f"down: {label} ({down.reason})")
    return down


async def main() -> None:
    """Run a worker node, and spawn on it from another node."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)  # The crashes are intended.
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)
        for ip in ADDRESSES
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
