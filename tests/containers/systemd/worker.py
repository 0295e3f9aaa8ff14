"""The program of the units of deploy/systemd: answers as late as it is asked to, and may lack its model."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fleetlm import Call, Node, Process

SLOT = os.environ.get("FLEETLM_NODE_SLOT", "none")
LACKING = Path(f"/opt/fleetlm/no-model-{SLOT}")


async def late(process: Process) -> None:
    """Reply to each call with the node's name, after as many seconds as its message says."""
    async for message in process.mailbox:
        if isinstance(message, Call):
            print(f"a call of {message.message} s", flush=True)
            await asyncio.sleep(float(message.message))
            message.reply(process.node.name)


async def main(node: Node) -> None:
    """Serve until the node stops. It is ready once there is a model."""
    node.add_check("model", lambda: not LACKING.exists())
    node.spawn(late, name="late")
    await node.wait_stopped()
