"""A worker that replies to every call: the program of the Docker image.

    fleetlm start echo:main                                       # in the folder of this file
    fleetlm remote "await node.call('echo', 'hello')"             # from another terminal

``python echo.py`` shows two nodes of one cluster in one program.
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
    """Reply to every call with its own message; count the other messages."""
    others = 0
    async for message in process.mailbox:
        if not isinstance(message, Call):
            others += 1
            log.info("%d messages that are not calls so far", others)
            continue
        try:
            message.reply(message.message)
        except fleetlm.FleetError as error:
            # The caller has got the error; a reply that cannot be sent must not end the process.
            log.warning("no reply: %s", error)


async def main(node: fleetlm.Node) -> None:
    """Serve until the node stops; ``fleetlm start echo:main`` runs this."""
    node.spawn(echo, name="echo")
    await node.wait_stopped()


async def two_nodes() -> None:
    """Run two nodes on this machine, on addresses 127.0.0.N (on macOS, add aliases first)."""
    first, second = (
        fleetlm.Settings(dns_query="127.0.0.1,127.0.0.2", node_ip=ip, node_ports=(PORT, PORT), remote=False)
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
