"""An actor with typed requests, and how to handle each kind of failure.

``python sessions.py`` runs two nodes in one program, on addresses 127.0.0.N (on macOS, add aliases first).
"""

from __future__ import annotations

import asyncio
import os

import fleetlm
from fleetlm import Actor, ActorRef, NotDelivered, OutcomeUnknown, RemoteError, Settings, handler

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24374"))


class Sessions(Actor):
    """Keep sessions. One handler runs at a time, so no lock is needed."""

    async def init(self) -> None:
        """Run in the new process, before the first request is taken."""
        self.lines: dict[str, list[str]] = {}

    @handler
    async def append(self, session: str, line: str) -> int:
        """Add a line, and return how many lines the session has now."""
        if not line:
            raise ValueError(f"an empty line for {session}")
        self.lines.setdefault(session, []).append(line)
        return len(self.lines[session])

    @handler
    async def read(self, session: str) -> list[str]:
        """Return the lines of a session."""
        return self.lines.get(session, [])

    @handler(concurrent=True)
    async def archive(self, session: str) -> None:
        """Stand in for a slow database. Other requests run meanwhile; a caller that gives up cancels it."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print(f"  archive({session!r}) was cancelled: its caller has given up")
            raise

    async def terminate(self, reason: object) -> None:
        """Run when the actor ends, for whatever reason."""
        print(f"  sessions end ({reason}) with {len(self.lines)} session")


async def append(ref: ActorRef[Sessions], session: str, line: str, tries: int = 3) -> int:
    """Append a line, and try again only if the request never ran.

    Raises:
        NotDelivered: the request never ran, in ``tries`` attempts.
        OutcomeUnknown: the request may have run; whether to repeat it is the caller's decision.
        RemoteError: the request ran and raised.
    """
    for left in reversed(range(tries)):
        try:
            return await ref.within(2).call(Sessions.append, session, line)
        except NotDelivered as error:
            print(f"  never ran ({type(error).__name__}), {left} tries left")
            if not left:
                raise
            await asyncio.sleep(0.2)
    raise ValueError("tries must be positive")


async def main() -> None:
    """Show each outcome once."""
    one, two = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_ports=(PORT, PORT), remote=False)
        for ip in ADDRESSES
    )
    async with fleetlm.Node.start(one) as node, fleetlm.Node.start(two) as other:
        await node.ready(1, timeout=5)
        sessions = node.ref(Sessions, "sessions", at=other.name)

        print("too early, no process has that name yet:")
        asking = asyncio.create_task(append(sessions, "s1", "hello"))
        await asyncio.sleep(0.1)
        await other.start_actor(Sessions, name="sessions")
        print(f"  then it ran, once: {await asking} line")

        await sessions.cast(Sessions.append, "s1", "again")  # Waits for no result.
        print("the session:", await sessions.call(Sessions.read, "s1"))

        try:
            await append(sessions, "s1", "")
        except RemoteError as error:
            print(f"it ran and raised {error.type_name}: {error.text}")

        try:
            await sessions.within(0.5).call(Sessions.archive, "s1")
        except OutcomeUnknown as error:
            print(f"it may have run: {type(error).__name__}")
        await asyncio.sleep(0.1)

        await other.stop()
        try:
            await append(sessions, "s1", "too late")
        except NotDelivered as error:
            print(f"given up: {error}")


if __name__ == "__main__":
    asyncio.run(main())
