"""README's first program: a process, a message and a call on one node."""

from __future__ import annotations

import fleetlm
from fleetlm import Call, Node, Process


async def greeter(process: Process) -> None:
    """A process: a coroutine with a mailbox."""
    async for message in process.mailbox:
        match message:
            case Call(message=name):  # a call: the caller waits for the reply
                message.reply(f"hello {name}, this is {process.node.name}")
            case other:  # any other message
                print("received:", other)


async def main(node: Node) -> None:
    """Spawn the process, send to it and call it. The node stops when this returns."""
    node.spawn(greeter, name="greeter")
    await node.send("greeter", {"any": "value"})
    print(await node.call("greeter", "Ada"))


fleetlm.run(main, log_level="warning")
