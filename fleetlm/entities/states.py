"""States of entities as bytes: packed when they are saved, read when they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetlm.errors import MessageTooLarge
from fleetlm.wire.codec import unreadable_in

if TYPE_CHECKING:
    from fleetlm.wire.codec import Codec


class States:
    """Packs and reads the states of one kind.

    Args:
        kind: its name.
        codec: packs values.
        max_bytes: of one state, packed.
    """

    def __init__(self, kind: str, codec: Codec, max_bytes: int) -> None:
        self._kind = kind
        self._codec = codec
        self._max_bytes = max_bytes

    def pack(self, state: Any) -> bytes | None:
        """Return a state as bytes; None for None. Raises: NotSerializable, MessageTooLarge."""
        if state is None:
            return None
        packed = self._codec.pack_value(state)
        if len(packed) > self._max_bytes:
            raise MessageTooLarge(len(packed), self._max_bytes, "half of Settings.max_message_bytes")
        return packed

    def read(self, packed: bytes | None) -> Any:
        """Return a state as a value. Raises: ValueError: this node does not know its type."""
        if packed is None:
            return None
        state = self._codec.unpack(packed)  # Raises a ValueError, too.
        found = unreadable_in(state)
        if found is not None:
            raise ValueError(f"the state of an entity of {self._kind!r} cannot be read here: {found.why}")
        return state
