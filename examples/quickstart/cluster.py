"""README's cluster: run it in two terminals, and each node greets the other."""

from __future__ import annotations

from fleetlm import Call, Node, NodeDown, NodeUp, Process


async def greeter(process: Process) -> None:
    """Reply to every call."""
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply(f"hello {message.message}, this is {process.node.name}")


async def main(node: Node) -> None:
    """Call the greeter of every node that is connected, now or later."""
    node.spawn(greeter, name="greeter")
    print(node.name, "is running")
    async for event in node.events():
        match event:
            case NodeUp(node=peer):
                print(await node.call(("greeter", peer), node.name))
            case NodeDown(node=peer, reason=reason):
                print(f"{peer} is down: {reason}")
