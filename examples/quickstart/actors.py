"""README's actor: typed handlers, a stream, blocking work, and a supervisor that starts it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fleetlm
from fleetlm import Actor, Child, Node, Supervisor, handler


class Sessions(Actor):
    """Keeps the lines of each session."""

    async def init(self) -> None:  # runs in the new process, before the first message
        self.lines: dict[str, list[str]] = {}
        self.node.groups.join("sessions", self.pid)

    @handler
    async def append(self, session: str, line: str) -> int:  # one handler runs at a time
        self.lines.setdefault(session, []).append(line)
        return len(self.lines[session])

    @handler
    async def replay(self, session: str) -> AsyncIterator[str]:  # a stream, with back-pressure
        for line in self.lines[session]:
            yield line

    @handler(concurrent=True)  # beside other handlers, at most Settings.concurrent_handlers at a time
    async def summary(self, session: str) -> str:
        return await self.run_blocking(" / ".join, self.lines[session])  # in a thread


async def main(node: Node) -> None:
    """Start the actor under a supervisor and use it through a typed reference."""
    node.spawn(Supervisor([Child("sessions", Sessions, register="sessions")]), name="tree")
    print(await node.call("tree", "count_children"))

    sessions = node.ref(Sessions, "sessions")  # at="fleetlm@10.0.0.7": on another node
    await sessions.cast(Sessions.append, "s1", "hello")  # waits for no result
    count = await sessions.within(2.0).call(Sessions.append, "s1", "again")
    print("lines:", count)
    async for line in sessions.stream(Sessions.replay, "s1"):
        print("line:", line)
    print(await sessions.call(Sessions.summary, "s1"))

    everywhere = node.refs(Sessions, "sessions")  # the actors of that name on all nodes
    print("counts:", await everywhere.multicall(Sessions.append, "s1", "to all"))  # results and errors


fleetlm.run(main, log_level="warning")
