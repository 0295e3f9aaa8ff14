"""What is kept of the entities of one kind on this node: their states, packed, by shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetlm.entities.seat import Kept, size_of
from fleetlm.errors import MessageTooLarge
from fleetlm.wire.codec import unreadable_in

if TYPE_CHECKING:
    from fleetlm.wire.codec import Codec


class KeptStates:
    """The states of entities that do not live now, and those that live ones were made from.

    Args:
        kind: its name.
        codec: packs states.
        max_bytes: of one state.

    Attributes:
        kept: shard → key → the state.
        kept_bytes: about how many bytes that takes.
        lossy: shards that were taken over from a node that is lost: what their entities had is not known.
        since: shard of `lossy` → the epoch of this node, where a term does not tell it.
    """

    def __init__(self, kind: str, codec: Codec, max_bytes: int) -> None:
        self.kind: str = kind
        self.codec: Codec = codec
        self.kept: dict[int, dict[str, Kept]] = {}
        self.kept_bytes: int = 0
        self.lossy: set[int] = set()
        self.since: dict[int, int] = {}
        self._max_bytes = max_bytes

    def state_of(self, kept: Kept) -> Any:
        """Return the state of an entity as a value. Raises: ValueError: this node does not know its type."""
        if kept.packed is None:
            return None
        state = self.codec.unpack(kept.packed)  # Raises a ValueError, too.
        found = unreadable_in(state)
        if found is not None:
            raise ValueError(f"the state of an entity of {self.kind!r} cannot be read here: {found.why}")
        return state

    def pack(self, state: Any) -> bytes | None:
        """Implement `seat.Host`."""
        if state is None:
            return None
        packed = self.codec.pack_value(state)
        if len(packed) > self._max_bytes:
            raise MessageTooLarge(len(packed), self._max_bytes, "half of Settings.max_message_bytes")
        return packed

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
        self.since.pop(shard, None)
