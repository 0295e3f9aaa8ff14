"""Which replicated tables a node knows, as its HELLO says.

Every version knows the tables of groups and names. A node of a version without one of the later tables would
end the session at the first fact of it, as at any nonsense. So a node names the later tables that it knows in
its HELLO, and is told no facts of the others (`directory.replication`): the members, rows and entities of
this version do not exist for it, and everything else works as before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LATER_TOPICS: Final = ("members", "rows", "shards")
"""The tables that not every version knows."""
FEATURES: Final = tuple(f"table {topic}" for topic in LATER_TOPICS)
"""What the HELLO of a node says that knows all of them."""


def unknown_in(features: Iterable[str]) -> frozenset[str]:
    """Return the tables that the node with these features in its HELLO does not know."""
    given = frozenset(features)
    return frozenset(topic for topic in LATER_TOPICS if f"table {topic}" not in given)
