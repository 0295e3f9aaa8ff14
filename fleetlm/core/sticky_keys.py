"""Which member of a group each key of ``by="sticky"`` went to last, as this node remembers it.

The memory is bounded twice: it holds so many keys of all groups together, and a key that was not used for
a while is forgotten. A group that ends needs no clean-up, since a member that is gone is noticed when its key
is used. Keys are kept as digests, so that long ones take no more room.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetlm.ids import Pid


class StickyKeys:
    """The memory of one node.

    Args:
        limit: keys that are kept; see `Settings.max_sticky_keys`.
        idle_s: seconds after which an unused key is forgotten; see `Settings.sticky_idle_s`.
    """

    __slots__ = ("_idle_s", "_kept", "_limit")

    def __init__(self, limit: int, idle_s: float) -> None:
        self._limit = limit
        self._idle_s = idle_s
        self._kept: OrderedDict[tuple[str, bytes], tuple[Pid, float]] = OrderedDict()
        """Group and digest of a key → its member, and when it was used; the one used longest ago first."""

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, group: str, digest: bytes, now: float) -> Pid | None:
        """Return the member that a key went to, whether or not it still is one; None if that is forgotten."""
        found = self._kept.get((group, digest))
        if found is None or now - found[1] > self._idle_s:
            return None
        return found[0]

    def keep(self, group: str, digest: bytes, pid: Pid, now: float) -> None:
        """Remember that a key goes to a member now, and forget what is too old or too much."""
        kept, place = self._kept, (group, digest)
        kept[place] = (pid, now)
        kept.move_to_end(place)
        for _ in range(2):  # Two for each that comes: the memory of a busy hour shrinks in the quiet one.
            oldest = next(iter(kept))
            if len(kept) <= self._limit and now - kept[oldest][1] <= self._idle_s:
                break
            del kept[oldest]
