"""The program that each replica of `fleetlm demo` runs: ``fleetlm start fleetlm.cli.demo.worker:main``."""

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
"""The name of the process, the same on every node."""


async def main(node: Node) -> None:
    """Serve until the demo ends, however it ends: then its end of our stdin is closed."""
    serve_on(node)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def serve_on(node: Node) -> None:
    """Spawn the process `WORKER`, and another one that notes which nodes went down."""
    lost: list[str] = []
    node.spawn(worker, lost, name=WORKER)
    node.spawn(historian, lost)


async def worker(process: Process, lost: list[str]) -> None:
    """Answer calls, and letters (``("hello", pid of the sender)``) with a letter."""
    node = process.node
    async for message in process.mailbox:
        match message:
            case Call(message="who are you?"):
                message.reply({"node": node.name, "os pid": os.getpid()})
            case Call(message="whom did you see, and whom did you lose?"):
                message.reply((node.list(), list(lost)))
            case Call(message=other):
                message.reply(other)
            case ("hello", Pid() as sender):
                # A sender that has gone meanwhile needs no answer.
                with contextlib.suppress(NotDelivered):
                    await node.send(sender, ("hello back", node.name, os.getpid()))


async def historian(process: Process, lost: list[str]) -> None:
    """Note every node that goes down."""
    async for event in process.node.events():
        match event:
            case NodeDown(node=name):
                lost.append(name)
