"""README's calls: each outcome once, then many targets at a time."""

from __future__ import annotations

import asyncio

import fleetlm
from fleetlm import Call, Node, Process


async def adder(process: Process) -> None:
    """Add the numbers in a call."""
    async for message in process.mailbox:
        match message:
            case Call(message=("add", int(a), int(b))):
                message.reply(a + b)
            case Call(message="wait"):
                await asyncio.sleep(60)
            case Call():
                message.fail(ValueError("not understood"))
            case other:
                print("received:", other)


async def ask(node: Node, to: str | tuple[str, str], request: object) -> None:
    """Call, and print the outcome."""
    try:
        print("reply:", await node.call(to, request, timeout=0.5))
    except fleetlm.NotDelivered as error:  # It never ran: safe to try again, on another node perhaps.
        print("never ran:", type(error).__name__)
    except fleetlm.OutcomeUnknown as error:  # It may have run: try again only if running twice is harmless.
        print("may have run:", type(error).__name__)
    except fleetlm.RemoteError as error:  # It ran and raised.
        print("raised:", error)


async def main(node: Node) -> None:
    """Call one process, then the processes of that name on all nodes."""
    node.spawn(adder, name="adder")
    await ask(node, "adder", ("add", 1, 2))
    await ask(node, "adder", "nonsense")
    await ask(node, ("adder", "fleetlm@10.0.0.7"), ("add", 1, 2))

    everywhere = [("adder", name) for name in [node.name, *node.list()]]
    print("replies:", await node.multicall(everywhere, ("add", 1, 2)))
    print("sent to", await node.broadcast("adder", {"to": "all nodes"}), "node")

    await ask(node, "adder", "wait")


fleetlm.run(main, log_level="warning")
