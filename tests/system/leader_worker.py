"""The nodes of the leader tests: each offers a singleton that writes to a database with its epoch.

``fleetlm start leader_worker:main``. `leader_ledger` has the database, and says what must hold.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

from fleetlm import Node, NotOwner, Process, Quorum
from tests.system.entity_ledger import READY_SUFFIX
from tests.system.leader_ledger import FencedDatabase

FOLDER = Path(os.environ["LEADER_FOLDER"])
DATABASE = os.environ["LEADER_DATABASE"]
NODES = int(os.environ["LEADER_NODES"])
LEASE_S = float(os.environ.get("LEADER_LEASE_S", "0"))
"""Seconds of the lease of a quorum of all nodes; 0: available."""
SETTLE_S = float(os.environ["LEADER_SETTLE_S"])
PAUSE_S = 0.01
"""Seconds between two writes."""
START_S = 90.0


async def main(node: Node) -> None:
    database, numbers = FencedDatabase(DATABASE), itertools.count(1)
    safety: Any = Quorum(NODES, LEASE_S) if LEASE_S else "available"

    @node.singleton("boss", safety=safety, settle_s=SETTLE_S)
    async def boss(process: Process) -> None:
        run = f"{node.incarnation}-{next(numbers)}"
        try:
            while True:
                database.write(process.epoch, run, node.name)  # A bad program: it goes on after a refusal.
                await asyncio.sleep(PAUSE_S)
        except NotOwner:
            database.note("not owner", run, node.name)
            raise
        finally:
            database.note("ended", run, node.name)

    await node.ready(NODES - 1, START_S)
    (FOLDER / f"{node.incarnation}{READY_SUFFIX}").touch()
    await asyncio.Event().wait()  # until the node is told to leave
