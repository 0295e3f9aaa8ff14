"""README's cluster: run it in two terminals, and each node greets the other."""

from __future__ import annotations

import asyncio

from fleetlm import Call, Node, NodeDown, NodeUp, NotDelivered, Process


async def greeter(process: Process) -> None:
    """Reply to every call."""
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply(f"hello {message.message}, this is {process.node.name}")


async def greet(node: Node, peer: str) -> None:
    """Call the greeter of another node, which may be connected before it has spawned the greeter."""
    while peer in node.list():
        try:
            print(await node.call(("greeter", peer), node.name))
            return
        except NotDelivered:  # the call never ran, so it is safe to repeat it
            await asyncio.sleep(0.1)


async def main(node: Node) -> None:
    """Call the greeter of every node that is connected, now or later."""
    node.spawn(greeter, name="greeter")
    print(node.name, "is running")
    async for event in node.events():
        match event:
            case NodeUp(node=peer):
                await greet(node, peer)
            case NodeDown(node=peer, reason=reason):
                print(f"{peer} is down: {reason}")
