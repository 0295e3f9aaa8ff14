"""One message to all nodes: broadcast, and multicall, which returns the replies.

``python fanout.py`` runs four nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack

import fleetlm
from fleetlm import Call, FleetError, Node, Process, Settings

ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24372"))


async def cache(process: Process) -> None:
    """Keep values; each node has one process of the name "cache". ``("put", key, value)`` gets no reply."""
    held: dict[str, str] = {}
    async for message in process.mailbox:
        match message:
            case ("put", str(key), str(value)):
                held[key] = value
            case Call(message=("get", str(key))):
                message.reply(held.get(key))
            case Call():
                message.fail(ValueError(f"not understood: {message.message!r}"))


async def main() -> None:
    """Start four nodes, broadcast, call all, stop one node, call all again."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for ip in ADDRESSES:
            # In production the list comes from DNS: DNS_CLUSTER_QUERY=my-service.
            settings = Settings(
                dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False
            )
            node = await stack.enter_async_context(fleetlm.Node.start(settings))
            node.spawn(cache, name="cache")
            nodes.append(node)
        first, *others = nodes
        await first.ready(len(others), timeout=5)

        started = time.perf_counter()
        reached = await first.broadcast("cache", ("put", "model", "llama-3"))  # encoded once for all nodes
        print(f"broadcast to {reached} nodes in {(time.perf_counter() - started) * 1e3:.1f} ms")

        # Messages from one sender to one receiver keep their order: each "get" arrives after "put".
        await ask_all(first, [node.name for node in nodes])

        gone = others[-1]
        await gone.stop()
        # A target that fails does not affect the others: its place in the result holds the error.
        await ask_all(first, [node.name for node in nodes])


async def ask_all(node: Node, names: list[str]) -> None:
    """Print the reply of each node's cache, or the error."""
    started = time.perf_counter()
    targets = [("cache", name) for name in names]
    replies = await node.multicall(targets, ("get", "model"), timeout=2)
    print(f"multicall to {len(targets)} nodes in {(time.perf_counter() - started) * 1e3:.1f} ms:")
    for name, reply in zip(names, replies, strict=True):
        shown = f"{type(reply).__name__}: {reply}" if isinstance(reply, FleetError) else repr(reply)
        print(f"  {name}: {shown}")


if __name__ == "__main__":
    asyncio.run(main())
