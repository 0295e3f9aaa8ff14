"""Messages with types, and what to do with each kind of failure.

``python sessions.py`` runs two nodes in one program; on Linux every 127.0.0.N is an address of its own.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

import fleetlm
from fleetlm import Call, Node, NotDelivered, Process, RemoteError, Settings, Unknown

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
PORT = int(os.environ.get("EXAMPLE_PORT", "24374"))


@fleetlm.message("session.append")  # The tag is what travels; the class may move and be renamed.
@dataclass(frozen=True)
class Append:
    """Add a line to a session; the reply is how many it has then."""

    session: str
    line: str


@fleetlm.message("session.read")
@dataclass(frozen=True)
class Read:
    """The reply is the session's lines."""

    session: str


async def sessions(process: Process) -> None:
    """Holds sessions. One message at a time, so no lock is needed."""
    held: dict[str, list[str]] = {}
    async for message in process.mailbox:
        match message:
            case Call(message=Append(session=session, line="")):
                message.fail(ValueError(f"an empty line for {session}"))
            case Call(message=Append(session=session, line=line)):
                held.setdefault(session, []).append(line)
                message.reply(len(held[session]))
            case Call(message=Read(session=session)):
                message.reply(held.get(session, []))
            case Call():
                pass  # Not understood, not answered: its caller hears CallTimeout.


async def ask(node: Node, at: str, request: Any, tries: int = 3) -> Any:
    """Call, and try again where that is safe: only what never ran.

    Raises:
        NotDelivered: nobody took it, ``tries`` times.
        Unknown: it may have run, so whether to send it again is the caller's decision.
        RemoteError: it ran, and raised.
    """
    for left in reversed(range(tries)):
        try:
            return await node.call(("sessions", at), request, timeout=0.5)
        except NotDelivered as error:
            print(f"  never ran ({type(error).__name__}), {left} tries left")
            if not left:
                raise
            await asyncio.sleep(0.2)
    raise ValueError("tries must be positive")


async def main() -> None:
    """Each outcome once."""
    one, two = (
        Settings(dns_query=",".join(ADDRESSES), node_ip=ip, node_port=PORT, remote=False) for ip in ADDRESSES
    )
    async with fleetlm.Node.start(one) as node, fleetlm.Node.start(two) as other:
        await node.ready(1, timeout=5)

        print("too early, nobody has that name yet:")
        asking = asyncio.create_task(ask(node, other.name, Append("s1", "hello")))
        await asyncio.sleep(0.1)
        other.spawn(sessions, name="sessions")
        print(f"  then it ran, once: {await asking} line")

        await ask(node, other.name, Append("s1", "again"))
        print("the session:", await ask(node, other.name, Read("s1")))

        try:
            await ask(node, other.name, Append("s1", ""))
        except RemoteError as error:
            print(f"it ran and raised {error.type_name}: {error.text}")

        try:
            await ask(node, other.name, "no such request")
        except Unknown as error:
            print(f"it may have run: {type(error).__name__}")

        await other.stop()
        try:
            await ask(node, other.name, Read("s1"))
        except NotDelivered as error:
            print(f"given up: {error}")


if __name__ == "__main__":
    asyncio.run(main())
