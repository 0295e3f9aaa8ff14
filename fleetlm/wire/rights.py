"""What a node lets the others do (`Settings.peers_may`), and which right each operation needs.

A right is about the node that is asked, and about the others: what its own program does is never limited. By
default the others may do everything, as in Erlang. The rights, and what needs them:

============  ======================================================================================
right         a node without it refuses
============  ======================================================================================
``call``      messages to its processes: sends, casts, calls, streams, from whatever API they come
``spawn``     spawns of its factories, with or without a link or a monitor
``exit``      exit signals to its processes, and links that another node makes with them
``register``  `Node.register` and `unregister` for its processes, claims of cluster-wide names for
              them; it takes no cluster-wide names of others, since a claim that is older, or says
              that it is, ends the process with the other claim; it hosts no entities for that reason
============  ======================================================================================

Nothing needs a right that only answers what this node itself has asked or sent (replies, items, credit), that
keeps the connection alive or tells how the *sender* is (ticks, drains, the nodes that it knows, its process
groups and their members, its rows of tables, the entities that it hosts), that looks (``ping``, ``whereis``,
``registered``, ``waits``, ``overview``, monitors), or that takes something back (cancel, unlink, demonitor).
A node that may spawn may also end what it has spawned by the link that the spawn made, and when it gives the
spawn up.

`OPERATIONS`, `VERBS`, `SIGNALS` and `TABLES` are that table, complete. Where a node denies something it says
so in its HELLO (`features_of`), so that a program on another node gets `NotAllowed` before anything is sent.
The node that denies does not rely on that: what is sent to it nevertheless is refused or dropped there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fleetlm.errors import NotAllowed
from fleetlm.setting_parsers import RIGHTS, Right
from fleetlm.wire.operations import Op

OPERATIONS: Final[dict[int | None, Right | None]] = {
    None: "call",  # A one-way message, which has no number.
    Op.HEAVY: "call",
    Op.CAST: "call",
    Op.CALL: "call",
    Op.HANDLE: "call",
    Op.STREAM: "call",
    Op.YIELD: "call",
    Op.REPLY: None,
    Op.ITEM: None,
    Op.FAILURE: None,
    Op.CANCEL: None,
    Op.MORE: None,
    Op.TAKEN: None,
    Op.CREDIT: None,
    Op.MARK: None,
    Op.TICK: None,
    Op.DRAIN: None,
    Op.HEARD: None,
    Op.SETTLED: None,
    Op.PEERS: None,
    Op.REQUEST: None,  # See `VERBS`.
    Op.SIGNAL: None,  # See `SIGNALS`.
    Op.TABLE: None,  # See `TABLES`.
}
VERBS: Final[dict[str, Right | None]] = {
    "ping": None,
    "whereis": None,
    "registered": None,
    "waits": None,
    "overview": None,
    "register": "register",
    "unregister": "register",
    "claim": "register",
    "disclaim": "register",
    "spawn": "spawn",
}
SIGNALS: Final[dict[str, Right | None]] = {
    "link": "exit",  # The end of the other process would be an exit signal to the one here.
    "unlink": None,
    "exit": None,  # It only ends what a link ties, and the link needed the right.
    "exit2": "exit",
    "monitor": None,
    "demonitor": None,
    "down": None,
}
TABLES: Final[dict[str, Right | None]] = {
    "groups": None,
    "names": "register",
    "members": None,
    "rows": None,
    # The claim of another node may end entities here. But only a node that allows ``call`` and ``register``
    # hosts any (`entities.kinds`), and every other one has to know where entities live.
    "shards": None,
}

_WHAT: Final[dict[Right, str]] = {
    "call": "send messages to processes there or call them",
    "spawn": "spawn processes there",
    "exit": "end processes there or link with them",
    "register": "register names there",
}
_FEATURE: Final = "denies "
"""How the feature in a HELLO begins that names a right which the sender denies to others."""


def features_of(peers_may: frozenset[Right]) -> tuple[str, ...]:
    """Return the features of a HELLO that say what its sender denies to others: none if it allows all."""
    return tuple(f"{_FEATURE}{right}" for right in RIGHTS if right not in peers_may)


def denied_in(features: Iterable[str]) -> frozenset[Right]:
    """Return the rights that the sender of a HELLO denies to others."""
    given = frozenset(features)
    return frozenset(right for right in RIGHTS if f"{_FEATURE}{right}" in given)


def denial(node: str, right: Right) -> NotAllowed:
    """Return the error for what a node refuses for want of a right."""
    return NotAllowed(node, f"other nodes may not {_WHAT[right]} (its Settings.peers_may has no {right!r})")


def check_right(node: str, denied: frozenset[Right], right: Right) -> None:
    """Raise NotAllowed if a node denies a right."""
    if right in denied:
        raise denial(node, right)
