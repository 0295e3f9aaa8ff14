"""The store of a world: it is slow, fails and loses answers, and what it takes is looked at."""

from __future__ import annotations

import random

from fleetlm import Fence, MemoryStore, Stored
from tests.sim.entity_world import Append


class WatchedStore:
    """A store with an access of its own for each node.

    Args:
        store: keeps the states.
        rng: decides what happens to it.
        wrong: gets a line for each thing that the store takes under an epoch below one under which a later
            owner has loaded or written.

    Attributes:
        share: of the requests that fail, and of those whose answers are lost.
        late: share of the failed writes that are performed later.
        highest: kind and shard → the highest epoch under which the store took anything.
    """

    def __init__(self, store: MemoryStore, rng: random.Random, wrong: list[str]) -> None:
        self._store = store
        self._rng = rng
        self._wrong = wrong
        self._accesses: dict[str, MemoryStore] = {}
        self._latency_s = (0.0, rng.choice([0.001, 0.02, 0.3]))
        self.share = 0.0
        self.late = 0.0
        self.highest: dict[tuple[str, int], int] = {}
        store.on_effect = self._note

    def _note(self, kind: str, key: str, fence: Fence, stored: Stored) -> None:
        place = (kind, fence.shard)
        highest = self.highest.get(place, 0)
        if fence.epoch < highest:
            self._wrong.append(f"{kind}/{key}: {stored} under {fence}, and {highest} has been there")
        self.highest[place] = max(highest, fence.epoch)

    def open_for(self, node: str) -> MemoryStore:
        """Return a new access for a node."""
        access = self._accesses[node] = self._store.another()
        access.latency_s = self._latency_s
        access.failures = access.lost_answers = self.share
        access.late = self.late
        return access

    def close_for(self, node: str) -> None:
        """Let the store hear nothing of a node that ends, while its coroutines run on."""
        access = self._accesses.get(node)
        if access is not None:
            access.is_down = True

    def disturb(self, node: str) -> None:
        """Put the store out of a node's reach, in half of the cases."""
        access = self._accesses.get(node)
        if access is not None and self._rng.random() < 0.5:
            access.is_down = True
            access.is_silent = self._rng.random() < 0.5

    def calm_down(self, nodes: list[str]) -> None:
        """Let these nodes reach the store."""
        for node in nodes:
            access = self._accesses.get(node)
            if access is not None:
                access.is_down = access.is_silent = False

    def mend(self) -> None:
        """Let nothing fail any more, by itself."""
        self.share = self.late = 0.0
        for access in self._accesses.values():
            access.failures = access.lost_answers = access.late = 0.0


def check_appends(appends: dict[str, Append], key: str, names: list[str]) -> None:
    """Look whether a session has every append that was acknowledged, in its place."""
    for name, entry in appends.items():
        if entry.key == key and type(entry.outcome) is int:
            told = f"append {name} to {key} was number {entry.outcome} of {names}; ran {entry.ran}"
            assert names[entry.outcome - 1 : entry.outcome] == [name], told
