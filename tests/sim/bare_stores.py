"""Bare nodes whose entities have a store, while nodes come, leave and fail, and the store fails, too.

`bare_world` says what nodes do, `store_world` what a store does to them, and what must hold besides: with
``durable="write"`` the append that got the answer ``n`` is the ``n``-th one in the end, and the store takes
nothing under an epoch below one under which a later owner has loaded or written.
"""

from __future__ import annotations

from typing import Any, Literal

from fleetlm import Fence, MemoryStore, Stored
from fleetlm.entities.keeping import OUTBID_S
from tests.sim.bare_node import BareNode
from tests.sim.bare_world import KEYS, BareWorld, Placed, Watched, ignoring, main


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
        for key in KEYS:  # A later owner that has gone is known to the store alone, and is waited for.
            self.do(first, ignoring(self.refs(first)[key].call(Watched.everything)))
        self.wait(OUTBID_S + 1)

    def check_end(self) -> None:
        super().check_end()
        for name, entry in self.ledger.appends.items():
            if type(entry.outcome) is int:
                final = self.final[entry.key]
                told = f"append {name} to {entry.key} was number {entry.outcome} of {final}; ran {entry.ran}"
                assert final[entry.outcome - 1 : entry.outcome] == [name], told


if __name__ == "__main__":
    main(BareStoreWorld)
