"""What is kept of the entities of one kind on this node: their states, packed, by shard."""

from __future__ import annotations

from fleetlm.entities.seat import Kept, size_of


class KeptStates:
    """The states of entities that do not live now, and those that live ones were made from.

    Attributes:
        kept: shard → key → the state.
        kept_bytes: about how many bytes that takes.
        lossy: shards that were taken over from a node that is lost: what their entities had is not known.
    """

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, Kept]] = {}
        self.kept_bytes: int = 0
        self.lossy: set[int] = set()

    def put_kept(self, shard: int, key: str, kept: Kept) -> None:
        """Keep the state of an entity in place of what was kept."""
        self.forget(shard, key)
        self.kept.setdefault(shard, {})[key] = kept
        self.kept_bytes += size_of(key, kept)

    def forget(self, shard: int, key: str) -> None:
        """Drop what is kept of an entity."""
        kept = self.kept.get(shard)
        if kept is not None and key in kept:
            self.kept_bytes -= size_of(key, kept.pop(key))
            if not kept:
                del self.kept[shard]

    def forget_shard(self, shard: int) -> None:
        """Drop what is kept of all entities of a shard."""
        for key in list(self.kept.get(shard, ())):
            self.forget(shard, key)
        self.lossy.discard(shard)
