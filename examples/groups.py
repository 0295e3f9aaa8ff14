"""A process group: workers on many nodes, a broadcast to all, and one worker for each session.

``python groups.py`` runs three nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

from fleetlm import Call, Joined, Left, Node, Process, Settings

ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24386"))
SESSIONS = [f"session {number}" for number in range(12)]


async def worker(process: Process) -> None:
    """Join the group, and leave it by ending; keep the model and the sessions that are sent here."""
    process.node.groups.join("workers", process.pid)
    model = "none"
    lines: dict[str, list[str]] = {}
    async for message in process.mailbox:
        match message:
            case ("load", str(name)):
                model = name
            case Call(message=(str(session), str(text))):
                lines.setdefault(session, []).append(text)
                message.reply(f"{model}: line {len(lines[session])} of {session}")
            case Call():
                message.fail(ValueError(f"not understood: {message.message!r}"))


async def ask(node: Node, session: str, text: str) -> str:
    """Call the member that has this session. Every node picks the same one, without a shared table.

    If that member has just gone, the call has not run, and is made at the next one.
    """
    reply: str = await node.groups.call("workers", (session, text), by="key", key=session, timeout=2)
    return reply


async def main() -> None:
    """Start, watch members join, broadcast, call by session, lose a node, call again."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for ip in ADDRESSES:
            settings = Settings(
                dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False
            )
            nodes.append(await stack.enter_async_context(Node.start(settings)))
        first, *others = nodes
        for node in nodes:
            node.spawn(worker)
            node.spawn(worker)

        changes = first.groups.watch("workers")  # The present members, then every change.
        members = 0
        while members < 2 * len(nodes):
            members += 1 if isinstance(await anext(changes), Joined) else -1
        print(f"{members} workers on {len({pid.node for pid in first.groups.members('workers')})} nodes")

        reached = await first.groups.broadcast("workers", ("load", "llama-3"))
        print(f"sent the model to {reached} workers")

        print(await ask(first, "session 7", "hello"))
        print(await ask(first, "session 7", "again"))
        homes = {session: first.groups.pick("workers", by="key", key=session) for session in SESSIONS}

        gone = others[-1]
        await gone.stop()
        match await anext(changes):
            case Left(pid=pid, reason=reason):
                print(f"{pid.node} has lost a worker: {reason}")
        moved = [s for s in SESSIONS if first.groups.pick("workers", by="key", key=s) != homes[s]]
        only = all(homes[session].node == gone.name for session in moved)
        print(f"{len(moved)} of {len(SESSIONS)} sessions moved, only those of that node: {only}")
        turns = [first.groups.pick("workers", by="round_robin") for _ in range(8)]
        print(f"{len(set(turns))} workers left, each had {len(turns) // len(set(turns))} turns")


if __name__ == "__main__":
    asyncio.run(main())
