"""One node for each rank: ``python ranks.py``, or ``torchrun --nproc-per-node 4 ranks.py``.

torchrun gives each process its number on this machine in LOCAL_RANK. FLEETLM_NODE_SLOT takes that place in
the range of ports, so a rank has the same name after a restart: the one with LOCAL_RANK=2 is
``fleetlm@<address>:4372``. ``python ranks.py`` stands in for torchrun: it starts three processes with the
same variables.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import fleetlm
from fleetlm import Actor, Node, Settings, handler

RANKS = 3


class Rank(Actor):
    """Holds a part of the work."""

    def __init__(self, rank: int, done: asyncio.Event) -> None:
        self.rank = rank
        self.done = done

    @handler
    async def part(self) -> int:
        return self.rank * self.rank

    @handler
    async def finish(self) -> None:
        self.done.set()


async def main(node: Node) -> None:
    """Run one rank. Rank 0 asks every rank for its part; the others serve until it has finished."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    done = asyncio.Event()
    pid = node.spawn(Rank, rank, done)
    await node.registry.register(f"rank {rank}", pid)
    if rank != 0:
        await done.wait()
        return
    names = [f"rank {each}" for each in range(world_size)]
    ranks = node.refs(Rank, [await node.registry.wait_for(name, timeout=30) for name in names])
    parts = await ranks.multicall(Rank.part)
    print(f"{node.name} and {', '.join(node.list('host'))}: {sorted(map(str, parts))}")
    await ranks.broadcast(Rank.finish)


def launch() -> None:
    """Start the ranks as torchrun does, and wait for them."""
    env = {"FLEETLM_NODE_IP": "127.0.0.1", "DNS_CLUSTER_QUERY": "127.0.0.1", **os.environ}
    processes = []
    for rank in map(str, range(RANKS)):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(RANKS)}
        command = [sys.executable, __file__]
        processes.append(subprocess.Popen(command, env={**env, **ranks}))  # noqa: S603  # itself
    sys.exit(max(abs(process.wait()) for process in processes))


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        slot = {"FLEETLM_NODE_SLOT": os.environ["LOCAL_RANK"]}
        fleetlm.run(main, Settings.from_env({**os.environ, **slot}), log_level="warning")
    else:
        launch()
