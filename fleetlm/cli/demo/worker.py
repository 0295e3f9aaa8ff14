"""The program of each replica of `fleetlm demo`: ``fleetlm start fleetlm.cli.demo.worker:main``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from fleetlm.call import Call
from fleetlm.errors import NotDelivered
from fleetlm.ids import Pid
from fleetlm.messages import NodeDown

if TYPE_CHECKING:
    from fleetlm.node import Node
    from fleetlm.process import Process

WORKER = "worker"
"""Name of the process that answers, the same on every node."""
WHO = "who are you?"
"""Call: the reply has the node's name and the operating system's process id."""
HISTORY = "which nodes do you see, and which have you lost?"
"""Call: the reply has the names of connected nodes, and of those that went down since the start."""


async def main(node: Node) -> None:
    """Serve until stdin is closed, which the operating system does when the demo ends for whatever reason."""
    serve_on(node)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def serve_on(node: Node) -> None:
    """Spawn the process named `WORKER`, and one that records which nodes went down."""
    lost: list[str] = []
    node.spawn(worker, lost, name=WORKER)
    node.spawn(record_losses, lost)


async def worker(process: Process, lost: list[str]) -> None:
    """Reply to calls, and answer each message ``("hello", pid of the sender)`` with a message."""
    node = process.node
    async for message in process.mailbox:
        match message:
            case Call(message=question) if question == WHO:
                message.reply({"node": node.name, "os pid": os.getpid()})
            case Call(message=question) if question == HISTORY:
                message.reply((node.list(), list(lost)))
            case Call(message=other):
                message.reply(other)
            case ("hello", Pid() as sender):
                # The sender may have ended in the meantime; then no answer is needed.
                with contextlib.suppress(NotDelivered):
                    await node.send(sender, ("hello back", node.name, os.getpid()))


async def record_losses(process: Process, lost: list[str]) -> None:
    """Append the name of every node that goes down to ``lost``."""
    async for event in process.node.events():
        match event:
            case NodeDown(node=name):
                lost.append(name)
