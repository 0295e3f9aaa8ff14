"""A node that leaves: it tells a load balancer, hands its sessions over, and reports what it finished.

``python leaving.py`` runs two nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).
"""

from __future__ import annotations

import asyncio
import os

from fleetlm import Actor, Node, Settings, handler

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24374"))


class Sessions(Actor):
    """Keep the lines of each session."""

    def __init__(self, lines: dict[str, list[str]] | None = None) -> None:
        self.lines = lines or {}

    async def init(self) -> None:
        """Join the group in which callers look for sessions."""
        self.node.groups.join("sessions", self.pid)

    @handler
    async def append(self, session: str, line: str) -> int:
        """Add a line, and return how many lines the session has now."""
        self.lines.setdefault(session, []).append(line)
        return len(self.lines[session])

    async def on_drain(self, until: float) -> None:
        """Start a successor on another node, with what this actor holds; runs between two requests."""
        others = [name for name in self.node.list() if name not in self.node.list("draining")]
        if not others:
            return
        async with asyncio.timeout_at(until):
            there = await self.node.spawn_at(others[0], "sessions", self.lines)
        self.node.groups.leave("sessions", self.pid)
        print(f"  {len(self.lines)} session(s) live on at {there.node}")


async def start(node: Node, name: str) -> None:
    """Set a worker up: what it serves, when it takes work, and what it does before it leaves."""
    node.factories.register("sessions", Sessions)
    loaded = asyncio.Event()
    node.add_check("model", loaded.is_set)

    @node.on_leaving(phase="before_drain", timeout=5)
    async def leave_the_load_balancer() -> None:
        print(f"  {name} tells the load balancer; it still takes work")

    node.on_leaving(lambda: print(f"  {name} closes its files"), phase="before_stop")
    loaded.set()


async def main() -> None:
    """Let one of two nodes drain, and go on with its sessions on the other one."""
    settings = Settings(dns_query=",".join(ADDRESSES), node_ports=(PORT, PORT), remote=False)
    async with (
        Node.start(settings.replace(node_ip=ADDRESSES[0])) as one,
        Node.start(settings.replace(node_ip=ADDRESSES[1])) as two,
    ):
        await start(one, "one")
        await start(two, "two")
        await one.ready(1)
        await two.start_actor(Sessions)
        sessions = one.groups.ref(Sessions, "sessions")
        await anext(one.groups.watch("sessions"))  # It hears of the member a moment later.
        await sessions.call(Sessions.append, "s1", "hello")
        print("is two ready?", (await two.readiness()).is_ready)

        report = await two.drain(timeout=10, reason="new version")
        print("drained:", report.was_clean, "- is two ready?", (await two.readiness()).is_ready)
        print("lines of s1:", await sessions.call(Sessions.append, "s1", "still here"))


if __name__ == "__main__":
    asyncio.run(main())
