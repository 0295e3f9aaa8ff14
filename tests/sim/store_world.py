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

from fleetlm import Fence, MemoryStore, Node, Stored
from fleetlm.entities.keeping import OUTBID_S
from tests.sim.entity_world import KEYS, SHARDS, Session, World, ignoring


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
        self.store = self.make_store()
        self.store.on_effect = self.note
        self.accesses: dict[str, MemoryStore] = {}
        self.highest: dict[tuple[str, int], int] = {}
        """Kind and shard → the highest epoch under which the store took anything."""
        self.wrong: list[str] = []
        self.latency_s = (0.0, self.rng.choice([0.001, 0.02, 0.3]))
        self.share = self.rng.choice([0.0, 0.02, 0.1])

    def make_store(self) -> MemoryStore:
        return MemoryStore(rng=self.rng)

    def note(self, kind: str, key: str, fence: Fence, stored: Stored) -> None:
        """Take down that something took effect."""
        place = (kind, fence.shard)
        highest = self.highest.get(place, 0)
        if fence.epoch < highest:
            self.wrong.append(f"{kind}/{key}: {stored} under {fence}, and {highest} has been there")
        self.highest[place] = max(highest, fence.epoch)

    async def host(self, node: Node) -> None:
        access = self.accesses[node.name] = self.store.another()
        access.latency_s = self.latency_s
        if self.faults:
            access.failures = access.lost_answers = self.share
            access.late = 0.5
        await node.entities.host(
            Session, "sessions", args=(self.ledger,), shards=SHARDS, idle_s=self.idle_s, handoff_s=5,
            store=access, durable=self.durable,
        )  # fmt: skip

    async def crash(self, node: Node) -> None:
        """See `World.crash`. Coroutines of a crashed node run on; the store hears nothing of them."""
        access = self.accesses.get(node.name)
        if access is not None:
            access.is_down = True
        await super().crash(node)

    def disturb(self, what: str, node: Node) -> None:
        super().disturb(what, node)
        access = self.accesses.get(node.name)
        if access is not None and self.rng.random() < 0.5:
            access.is_down = True
            access.is_silent = self.rng.random() < 0.5

    def calm_down(self) -> None:
        super().calm_down()
        for access in self.accesses.values():
            access.is_down = access.is_silent = False

    async def settle(self) -> None:
        for access in self.accesses.values():
            access.failures = access.lost_answers = access.late = 0.0
        await super().settle()
        for key in KEYS:  # A later owner that has gone is known to the store alone, and is waited for.
            await ignoring(self.refs(self.nodes()[0])[key].call(Session.everything))
        await asyncio.sleep(OUTBID_S + 1)

    async def check(self) -> None:
        await super().check()
        assert not self.wrong, self.wrong
        if self.durable != "write":
            return
        for name, entry in self.ledger.appends.items():
            if type(entry.outcome) is int:
                final = self.final[entry.key]
                told = f"append {name} to {entry.key} was number {entry.outcome} of {final}; ran {entry.ran}"
                assert final[entry.outcome - 1 : entry.outcome] == [name], told
