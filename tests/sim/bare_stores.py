"""Bare nodes whose entities have a store, while nodes come, leave and fail, and the store fails, too.

`bare_world` says what nodes do, `store_world` what a store does to them, and what must hold besides: with
``durable="write"`` the append that got the answer ``n`` is the ``n``-th one in the end, and the store takes
nothing under an epoch below one under which a later owner has loaded or written.
"""

from __future__ import annotations

from typing import Any, Literal

from fleetlm import FleetError, MemoryStore
from fleetlm.entities.keeping import OUTBID_S
from tests.sim.bare_node import BareNode
from tests.sim.bare_world import KEYS, BareWorld, Placed, Watched, main
from tests.sim.entity_world import Append
from tests.sim.watched_store import WatchedStore, check_appends


class BareStoreWorld(BareWorld):
    """One run of a seed. Args: as `BareWorld`."""

    def __init__(self, seed: int, safety: Literal["available", "quorum"], *, faults: bool) -> None:
        super().__init__(seed, safety, faults=faults)
        self.has_boss = False
        self.store = WatchedStore(MemoryStore(rng=self.rng), self.rng, self.wrong)
        if faults:
            self.store.share, self.store.late = self.rng.choice([0.0, 0.02, 0.1]), 0.5

    def how(self, node: BareNode) -> dict[str, Any]:
        return super().how(node) | {"store": self.store.open_for(node.name), "durable": "write"}

    def end(self, node: Any) -> None:
        self.store.close_for(node.name)
        super().end(node)

    def disturb(self, what: str, node: Placed) -> None:
        super().disturb(what, node)
        self.store.disturb(node.name)

    def calm_down(self) -> None:
        super().calm_down()
        self.store.calm_down([node.name for node in self.nodes()])

    def settle(self) -> None:
        self.store.mend()
        super().settle()
        first = self.nodes()[0]
        for key in KEYS:
            refs = self.refs(first)
            highest = self.store.highest.get(("sessions", refs.shard(key)), 0)
            if highest <= refs.epoch(key):  # Else its owner cannot know better.
                check_appends(self.ledger.appends, key, self.do(first, refs[key].call(Watched.everything)))
        for key in [*KEYS, *KEYS]:  # A later owner that has gone is known to the store alone: the first one
            self.do(first, self.probe(first, key))  # is not stored, the second one begins the wait for it.
        self.wait(OUTBID_S + 1)

    async def probe(self, node: BareNode, key: str) -> None:
        """Append something, which may fail for the last time."""
        self.count += 1
        entry = self.ledger.appends[f"{self.count}"] = Append(key, is_cast=False)
        try:
            entry.outcome = await self.refs(node)[key].call(Watched.append, f"{self.count}", 0.0)
        except FleetError as error:
            entry.outcome = error

    def check_end(self) -> None:
        super().check_end()
        for key, final in self.final.items():
            check_appends(self.ledger.appends, key, final)


if __name__ == "__main__":
    main(BareStoreWorld)
