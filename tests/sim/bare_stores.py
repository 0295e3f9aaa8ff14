"""Bare nodes whose entities have a store, while nodes come, leave and fail, and the store fails, too.

`bare_world` says what nodes do, `store_world` what a store does to them, and what must hold besides: with
``durable="write"`` the append that got the answer ``n`` is the ``n``-th one in the end, and the store takes
nothing under an epoch below one under which a later owner has loaded or written.
"""

from __future__ import annotations

from typing import Any, Literal

from fleetlm import Fence, FleetError, MemoryStore, Stored
from fleetlm.entities.keeping import OUTBID_S
from tests.sim.bare_node import BareNode
from tests.sim.bare_world import KEYS, BareWorld, Placed, Watched, main
from tests.sim.entity_world import Append


class BareStoreWorld(BareWorld):
    """One run of a seed. Args: as `BareWorld`."""

    def __init__(self, seed: int, safety: Literal["available", "quorum"], *, faults: bool) -> None:
        super().__init__(seed, safety, faults=faults)
        self.has_boss = False
        self.store = MemoryStore(rng=self.rng)
        self.store.on_effect = self.note
        self.accesses: dict[str, MemoryStore] = {}
        self.highest: dict[int, int] = {}
        """Shard → the highest epoch under which the store took anything."""
        self.latency_s = (0.0, self.rng.choice([0.001, 0.02, 0.3]))
        self.share = self.rng.choice([0.0, 0.02, 0.1]) if faults else 0.0

    def note(self, kind: str, key: str, fence: Fence, stored: Stored) -> None:
        """Take down that something took effect."""
        highest = self.highest.get(fence.shard, 0)
        if fence.epoch < highest:
            self.wrong.append(f"{kind}/{key}: {stored} under {fence}, and {highest} has been there")
        self.highest[fence.shard] = max(highest, fence.epoch)

    def how(self, node: BareNode) -> dict[str, Any]:
        access = self.accesses[node.name] = self.store.another()
        access.latency_s = self.latency_s
        access.failures = access.lost_answers = self.share
        access.late = 0.5 if self.faults else 0.0
        return super().how(node) | {"store": access, "durable": "write"}

    def end(self, node: Any) -> None:
        access = self.accesses.get(node.name)
        if access is not None:
            access.is_down = True  # It hears nothing of what a node does that ends.
        super().end(node)

    def disturb(self, what: str, node: Placed) -> None:
        super().disturb(what, node)
        access = self.accesses.get(node.name)
        if access is not None and self.rng.random() < 0.5:
            access.is_down = True
            access.is_silent = self.rng.random() < 0.5

    def calm_down(self) -> None:
        super().calm_down()
        for node in self.nodes():
            access = self.accesses.get(node.name)
            if access is not None:
                access.is_down = access.is_silent = False

    def settle(self) -> None:
        for access in self.accesses.values():
            access.failures = access.lost_answers = access.late = 0.0
        self.share = 0.0
        super().settle()
        first = self.nodes()[0]
        for key in KEYS:
            refs = self.refs(first)
            if self.highest.get(refs.shard(key), 0) <= refs.epoch(key):  # Else its owner cannot know better.
                self.check_appends(key, self.do(first, refs[key].call(Watched.everything)))
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
            self.check_appends(key, final)

    def check_appends(self, key: str, names: list[str]) -> None:
        """Look whether a session has every append that was acknowledged, in its place."""
        for name, entry in self.ledger.appends.items():
            if entry.key == key and type(entry.outcome) is int:
                told = f"append {name} to {key} was number {entry.outcome} of {names}; ran {entry.ran}"
                assert names[entry.outcome - 1 : entry.outcome] == [name], told


if __name__ == "__main__":
    main(BareStoreWorld)
