"""What all hosts of a kind must have alike, and which ones differ.

Each host tells its *terms* with its row in the table of shards: the safety, and the store. They are texts for
people, which nobody acts on; a node only compares them with its own. Two deployments that disagree, such as
an old one that is "available" beside a new one with a quorum, would else be noticed by what they do to the
data.

What names the place of a store (a path, a host) may differ and mean the same data, so it is a matter for
`fleetlm doctor` and the log, and refuses nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fleetlm.core.shard_table import MAX_DIFFERING, MAX_TERM_CHARS
from fleetlm.entities.info import differing
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fleetlm.core.shard_table import ShardTable
    from fleetlm.entities.host_parts import HostOptions
    from fleetlm.entities.keeping import StoreOptions
    from fleetlm.stores.interface import Store

log: logging.Logger = logging.getLogger("fleetlm")


def terms_of(options: HostOptions, node_timeout_s: float) -> tuple[str, ...]:
    """Return the terms of a host.

    Args:
        options: of the program.
        node_timeout_s: the lease of a quorum that names none.
    """
    quorum = options.quorum
    safety = "available"
    if quorum is not None:
        lease_s = node_timeout_s if quorum.lease_s is None else quorum.lease_s
        safety = f"Quorum(expected={quorum.expected}, lease_s={lease_s:g})"
    texts = (f"safety {safety}", *_store_terms(options.stored))
    return tuple(text[:MAX_TERM_CHARS] for text in texts)


def _store_terms(stored: StoreOptions | None) -> tuple[str, ...]:
    if stored is None:
        return ("no store",)
    durable = stored.durable if isinstance(stored.durable, str) else f"{stored.durable:g} s"
    return f"store {name_of(stored.store)}", f"durable {durable}"


def name_of(store: Store) -> str:
    """Return a name that stores of the same data have in common, as far as they say where it is."""
    place = getattr(store, "place", None)
    name = type(store).__qualname__
    return f"{name} {SHORT.repr(place)}" if isinstance(place, str) else name


class Agreement:
    """Says in the log which hosts of one kind differ, once for each.

    Args:
        table: of this node.
        kind: its name.
    """

    def __init__(self, table: ShardTable, kind: str) -> None:
        self._table = table
        self._kind = kind
        self._known: Mapping[str, str] = {}

    def look(self) -> None:
        """Compare, since other nodes host the kind than before."""
        found = differing(self._table, self._kind)
        news = {node: terms for node, terms in found.items() if self._known.get(node) != terms}
        self._known = found
        if news:
            own = self._table.own(self._kind)
            shown = "; ".join(f"{node}: {terms}" for node, terms in sorted(news.items())[:MAX_DIFFERING])
            more = len(news) - MAX_DIFFERING
            log.error(
                "%s is not hosted alike on all nodes, so it has not the safety of either: here %s; %s%s",
                self._kind, ", ".join(() if own is None else own.terms), shown,
                f" and {more} more" if more > 0 else "",
            )  # fmt: skip
