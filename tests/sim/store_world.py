"""Clusters whose entities have a store, while nodes come, leave and fail, and the store fails, too.

The stories are those of `entity_world`. Each node has an access of its own to the store, which is slow,
fails, loses answers, performs late what was given up, and is out of reach now and then: always where the node
crashes, and in half of the partitions. What must hold besides:

1. The store takes nothing under an epoch below one under which a later owner has loaded or written.
2. With ``durable="write"``: the append that got the answer ``n`` is the ``n``-th one in the end, whatever has
   failed. So nothing that was acknowledged is lost, and no owner has written over what another one had.
3. Each state that was stored holds the one before, so no write is lost between two owners (the same).
"""

from __future__ import annotations

import asyncio
from typing import Any

from fleetlm import MemoryStore, Node
from fleetlm.entities.keeping import OUTBID_S
from tests.sim.entity_world import KEYS, SHARDS, Session, World, ignoring
from tests.sim.watched_store import WatchedStore, check_appends


class StoreWorld(World):
    """One run of a seed.

    Args:
        seed: decides everything.
        faults: as in `World`; without them, the store is slow and nothing else.
        durable: as in `Entities.host`; None: the seed decides.
    """

    def __init__(self, seed: int, *, faults: bool, durable: Any = "write") -> None:
        super().__init__(seed, faults=faults)
        self.durable = durable
        self.wrong: list[str] = []
        self.store = WatchedStore(MemoryStore(rng=self.rng), self.rng, self.wrong)
        share = self.rng.choice([0.0, 0.02, 0.1])
        if faults:
            self.store.share, self.store.late = share, 0.5

    async def host(self, node: Node) -> None:
        await node.entities.host(
            Session, "sessions", args=(self.ledger,), shards=SHARDS, idle_s=self.idle_s, handoff_s=5,
            store=self.store.open_for(node.name), durable=self.durable,
        )  # fmt: skip

    async def crash(self, node: Node) -> None:
        """See `World.crash`. Coroutines of a crashed node run on; the store hears nothing of them."""
        self.store.close_for(node.name)
        await super().crash(node)

    def disturb(self, what: str, node: Node) -> None:
        super().disturb(what, node)
        self.store.disturb(node.name)

    def calm_down(self) -> None:
        super().calm_down()
        self.store.calm_down([node.name for node in self.nodes()])

    async def settle(self) -> None:
        self.store.mend()
        await super().settle()
        for key in KEYS:  # A later owner that has gone is known to the store alone, and is waited for.
            await ignoring(self.refs(self.nodes()[0])[key].call(Session.everything))
        await asyncio.sleep(OUTBID_S + 1)

    async def check(self) -> None:
        await super().check()
        assert not self.wrong, self.wrong
        if self.durable != "write":
            return
        for key, final in self.final.items():
            check_appends(self.ledger.appends, key, final)
