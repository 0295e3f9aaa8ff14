"""How fast strangers and hearsay may bring unknown nodes into the table, and have them dialled.

Everybody who can connect may introduce himself in any name, and every peer may tell of any name. Each name
costs a row of the connection table and a dial to the address in it, which may be a third party's. So unknown
nodes draw on budgets:

- each *address that dials this node* on one for the names that it introduces, and for the dials to them.
  Honest nodes introduce one name each; many of them behind one gateway come up within some seconds, since a
  node that found no budget dials again soon.
- each *peer that tells of others* on one for the names that nobody has told before, and on one for the time
  that it takes to look at its names.
- all *dials to nodes that were never up and that DNS does not name* on one together. A dial that finds no
  budget is delayed and not dropped. Each such node that comes up allows `DIALS_PER_PROOF` more: so a real
  cluster forms as fast as its nodes answer, and false names get the rate alone.

A node that DNS names, that was up before, or that the program asks for draws on none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fleetlm.core.buckets import Bucket

if TYPE_CHECKING:
    from fleetlm.settings import Settings

INTRODUCTIONS_AT_ONCE: Final = 128
"""Introductions of unknown names by one address, and dials to them, at once: four hosts full of nodes behind
one gateway need two each."""
INTRODUCTIONS_PER_S: Final = 32.0
"""The same a second from then on: a thousand nodes behind one gateway take a minute."""
TOLD_AT_ONCE: Final = 512
"""Unknown names of which one peer may tell at once: as many as one message of a large cluster names."""
TOLD_PER_S: Final = 32.0
"""Unknown names of which it may tell a second from then on. What was passed over is told again later."""
LOOKS_AT_ONCE: Final = 1_024
"""Names told by one peer that are looked at to find out whether they are unknown nodes: 50 ms of work. A
large cluster is told in one message."""
LOOKS_PER_S: Final = 64.0
"""The same a second from then on: 3 ms of work. Nodes that are known by their names need no look."""
MAX_UNLIKELY: Final = 2_048
"""Texts that are remembered so that they need not be looked at again: peers repeat them each second."""
MAX_BUDGETS: Final = 1_024
"""Addresses and peers whose budget is remembered. A flood from more of them starts some of these anew; the
budget of all dials together still holds."""
BURST_S: Final = 20.0
"""Dials to unproven nodes at once: as many as `Settings.unproven_dials_per_s` allows in this time."""

DIALS_PER_PROOF: Final = 2.0
"""Dials that a node allows that came up: its own, and another one."""


class Newcomers:
    """The budgets of one node."""

    def __init__(self, settings: Settings, now: float = 0.0) -> None:
        rate = settings.unproven_dials_per_s
        self._dials = Bucket(rate, max(1.0, rate * BURST_S), now)
        self._introduced: dict[str, Bucket] = {}
        self._told: dict[str, Bucket] = {}
        self._looks: dict[str, Bucket] = {}
        self.unlikely: dict[str, None] = {}
        """The latest texts of peers that name no node, or one where no peer can be."""

    def may_introduce(self, now: float, ip: str) -> bool:
        """Whether the address ``ip`` may introduce an unknown node, or have it dialled. Counts it."""
        return _take(self._introduced, ip, now, INTRODUCTIONS_PER_S, INTRODUCTIONS_AT_ONCE)

    def may_be_looked_at(self, now: float, text: str, teller: str) -> bool:
        """Whether a name may be looked at of which the peer ``teller`` tells. Counts it."""
        return text not in self.unlikely and _take(self._looks, teller, now, LOOKS_PER_S, LOOKS_AT_ONCE)

    def pass_over(self, text: str) -> None:
        """Remember that a text is no name of a node, or of one that cannot be a peer."""
        self.unlikely[text] = None
        if len(self.unlikely) > MAX_UNLIKELY:
            del self.unlikely[next(iter(self.unlikely))]

    def may_tell(self, now: float, teller: str) -> bool:
        """Whether the peer ``teller`` may tell of another unknown node. Counts it."""
        return _take(self._told, teller, now, TOLD_PER_S, TOLD_AT_ONCE)

    def dial_at(self, now: float, introduced_by: str) -> float:
        """Return when an unproven node may be dialled. If that is ``now``, the dial is counted.

        Args:
            now: the loop's time.
            introduced_by: the address that introduced it; "" for hearsay.
        """
        if introduced_by and not self.may_introduce(now, introduced_by):
            return now + 1 / INTRODUCTIONS_PER_S
        return now if self._dials.take(now) else self._dials.ready_at(now)

    def proved(self, now: float) -> None:
        """Note that a node has come up for which nothing but the word of others spoke."""
        self._dials.give(now, DIALS_PER_PROOF)


def _take(budgets: dict[str, Bucket], who: str, now: float, rate: float, burst: float) -> bool:
    """Take a token of this one's bucket, which becomes the latest; forget the oldest one beyond the limit."""
    bucket = budgets.pop(who, None) or Bucket(rate, burst, now)
    budgets[who] = bucket
    if len(budgets) > MAX_BUDGETS:
        del budgets[next(iter(budgets))]
    return bucket.take(now)
