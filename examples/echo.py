"""A worker that answers: the program of the Docker image, and the shortest one that makes sense.

    fleetlm start echo:main                                       # in the folder of this file
    fleetlm remote "await node.call('echo', 'hello')"             # from another terminal

Run by itself, as ``python echo.py``, it shows two nodes of one cluster.
"""

from __future__ import annotations

import asyncio
import logging
import os

import fleetlm
from fleetlm import Call

log = logging.getLogger("echo")
PORT = int(os.environ.get("EXAMPLE_PORT", "24370"))


async def echo(process: fleetlm.Process) -> None:
    """Reply to every call with what it said; other messages are only counted."""
    others = 0
    async for message in process.mailbox:
        if not isinstance(message, Call):
            others += 1
            log.info("%d messages that wait for no answer so far", others)
            continue
        try:
            message.reply(message.message)
        except fleetlm.FleetError as error:
            # Its caller has been told; one answer that cannot travel must not end the process.
            log.warning("no reply: %s", error)


async def main(node: fleetlm.Node) -> None:
    """What `fleetlm start echo:main` runs: serve until the node is told to stop."""
    node.spawn(echo, name="echo")
    await node.wait_stopped()


async def two_nodes() -> None:
    """One machine is enough: on Linux every 127.0.0.N is an address of its own."""
    first, second = (
        fleetlm.Settings(dns_query="127.0.0.1,127.0.0.2", node_ip=ip, node_port=PORT, remote=False)
        for ip in ("127.0.0.1", "127.0.0.2")
    )
    async with fleetlm.Node.start(first) as here, fleetlm.Node.start(second) as there:
        serving = asyncio.create_task(main(there))
        await here.ready(1, timeout=5)
        print(f"{here.name} is connected with {here.list()}")
        print("reply:", await here.call(("echo", there.name), {"prompt": "hello", "tokens": (1, 2)}))
        await there.stop()
        await serving


if __name__ == "__main__":
    asyncio.run(two_nodes())
