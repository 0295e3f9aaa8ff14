"""A supervision tree: a failed child is restarted, and monitors report its end and the loss of its node.

``python supervised.py`` runs two nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).
"""

from __future__ import annotations

import asyncio
import logging
import os

from fleetlm import Address, Call, Child, Down, Node, OutcomeUnknown, Process, Settings, Supervisor

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24382"))


async def model(process: Process, name: str) -> None:
    """A worker that crashes on some requests."""
    async for message in process.mailbox:
        match message:
            case Call(message="poison"):
                raise ValueError(f"{name} cannot take that")
            case Call(message=text):
                message.reply(f"{name}: {text}")


async def watcher(process: Process, node_name: str) -> None:
    """Monitor a name on another node, again and again: each monitor fires exactly once."""
    while True:
        process.monitor(("model", node_name))
        match await process.receive():
            case Down(target=Address(name=name), reason=reason):
                print(f"down: {name} ({reason})")
                if reason == "noconnection":
                    return
        await asyncio.sleep(0.1)  # By then the supervisor has restarted it.


async def main() -> None:
    """Supervise on one node; call and monitor from the other."""
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)  # The crash below is intended.
    first, second = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)
        for ip in ADDRESSES
    )
    async with Node.start(first) as here:
        there = await Node.start(second)
        tree = Supervisor([Child("model", model, ("llama",), register="model")], strategy="one_for_one")
        there.spawn(tree, name="tree")
        await here.ready(1, timeout=5)

        watching = here.spawn(watcher, there.name)
        print(await here.call(("model", there.name), "hello"))
        try:
            await here.call(("model", there.name), "poison")
        except OutcomeUnknown as error:
            print(f"{type(error).__name__}: it may have run, and did")
        await asyncio.sleep(0.3)
        print(await here.call(("model", there.name), "hello again"))
        print(await here.call(("tree", there.name), "count_children"))

        await there.stop()
        await here.join(watching, timeout=5)


if __name__ == "__main__":
    asyncio.run(main())
