"""Clusters whose entities have a quorum, while everything fails: none lives on two nodes at an instant.

The stories are those of `entity_world`, with faults. All nodes run on one loop, so an instant is an instant.
An entity lives from the begin of its `load` until its process is gone; on one node the host sees to it that
there is one at a time. What must hold besides:

1. No entity begins to live while another one with its key lives anywhere, in whatever part of the cluster.
2. Epochs grow from one life to the next.
"""

from __future__ import annotations

import itertools
from typing import Any

from fleetlm import Node, Quorum
from fleetlm.testing import SimCluster
from tests.sim.entity_world import SHARDS, Ledger, Session, World

EXPECTED = 5


class Watched(Session):
    """Looks whether another one lives."""

    cluster: SimCluster
    living: dict[str, list[tuple[Node, Any]]] = {}  # noqa: RUF012  # of one story; see `QuorumWorld.play`

    async def load(self, state: Any) -> None:
        before = self.living.setdefault(self.key, [])
        running = self.cluster.nodes.values()
        here = self.node.name
        alive = [
            (node, pid)
            for node, pid in before
            if node in running and node.name != here and node.process_info(pid) is not None
        ]
        if alive:
            self.ledger.twice.append(f"{self.key} lives on {alive[0][0].name} and begins on {here}")
        self.living[self.key] = [*alive, (self.node, self.pid)]
        self.ledger.alive.setdefault(self.key, []).append(here)
        self.ledger.lives.setdefault(self.key, []).append((self.pid, self.epoch))
        self.names = list(state or ())

    async def terminate(self, reason: Any) -> None:
        """Nothing: a killed entity has no such call."""


class QuorumWorld(World):
    """One run of a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, faults=True)
        self.lease_s = self.rng.choice([2.0, 8.0])

    async def play(self, steps: int = 25) -> None:
        Watched.living, Watched.cluster = {}, self.cluster
        await super().play(steps)

    async def host(self, node: Node) -> None:
        quorum = Quorum(EXPECTED, self.lease_s)
        await node.entities.host(
            Watched, "sessions", args=(self.ledger,), shards=SHARDS, idle_s=self.idle_s, handoff_s=5,
            safety=quorum,
        )  # fmt: skip

    def first_hosts(self) -> tuple[int, int]:
        return 3, 5

    async def settle(self) -> None:
        await super().settle()
        while len(self.nodes()) < EXPECTED // 2 + 1 or len(self.hosts()) < EXPECTED // 2 + 1:
            (fresh,) = await self.cluster.start()
            await self.host(fresh)
        await self.cluster.mesh(timeout=300)
        await self.wait(60)

    async def check(self) -> None:
        await super().check()
        ledger: Ledger = self.ledger
        assert not ledger.twice, ledger.twice
        for key, lives in ledger.lives.items():
            for (_, epoch), (_, later) in itertools.pairwise(lives):
                assert later >= epoch, f"{key}: {lives}"
