"""What a node tells of kinds of entities, for people: in the remote shell, the doctor, overviews and metrics.

Nothing here looks at shards or entities one by one, so that looking costs the same whatever their number.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING

from fleetlm.core.shard_table import MAX_DIFFERING
from fleetlm.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fleetlm.core.shard_table import Host, ShardTable


class Tally:
    """What has happened to the entities of one kind on this node since it began to host the kind.

    Attributes:
        activated: entities that were made, each time that they were.
        fenced: entities that were ended since another node owns their shard, or no majority was seen.
        handed_over: shards that another host has taken from this one.
        taken: shards that this host has taken from another one.
        stayed: handoffs after which the shard has stayed here.
    """

    __slots__ = ("activated", "fenced", "handed_over", "stayed", "taken")

    def __init__(self) -> None:
        self.activated: int = 0
        self.fenced: int = 0
        self.handed_over: int = 0
        self.taken: int = 0
        self.stayed: int = 0


class QuorumInfo(Record):
    """How a kind with a `Quorum` stands on this node.

    Attributes:
        expected: as the program says.
        seen: members, this node included, that have acknowledged it within a lease.
        holds: whether this node may serve.
    """

    expected: int
    seen: int
    holds: bool


class StoreInfo(Record):
    """The store of a kind, as this node uses it.

    Attributes:
        name: its ``repr``, cut.
        durable: when a change is stored: ``"write"``, ``"within 5 s"``, ``"passivate"``.
        failures: operations that have failed.
        fails: whether none has succeeded since the last of them.
    """

    name: str
    durable: str
    failures: int
    fails: bool


class HostedInfo(Record):
    """A kind as this node hosts it.

    Attributes:
        runs: the name of the class.
        owned: shards that this node owns.
        moving: those of them that are being handed over.
        alive: entities that live here.
        live: how many may; see `Entities.host`.
        kept_bytes: of the states that are kept here.
        max_kept_bytes: how many may be.
        activated, fenced, handed_over, taken, stayed: see `Tally`.
        quorum: None without one.
        store: None without one.
    """

    runs: str
    owned: int
    moving: int
    alive: int
    live: int
    kept_bytes: int
    max_kept_bytes: int
    activated: int = 0
    fenced: int = 0
    handed_over: int = 0
    taken: int = 0
    stayed: int = 0
    quorum: QuorumInfo | None = None
    store: StoreInfo | None = None


class KindInfo(Record):
    """A kind of entities, as one node sees it.

    Attributes:
        kind: its name.
        shards: into how many it is cut.
        unowned: shards that no node owns.
        hosts: how many nodes host it.
        differing: nodes that cut it into another number of shards, with that number; five at most. None of
            their claims count.
        hosted: what this node has of it; None if it does not host it.
        terms: how this node hosts it: its safety and its store.
        disagreeing: nodes that host it otherwise, with what is otherwise there; five at most.
    """

    kind: str
    shards: int
    unowned: int
    hosts: int
    differing: Mapping[str, int] = field(default_factory=dict)
    hosted: HostedInfo | None = None
    terms: tuple[str, ...] = ()
    disagreeing: Mapping[str, str] = field(default_factory=dict)


def differing(table: ShardTable, kind: str) -> dict[str, str]:
    """Return the hosts of a kind whose terms are not those of this node, with those of theirs that differ.

    A host that has told no terms is passed over, and so is everything where this node does not host the kind.
    """
    own = table.own(kind)
    if own is None or not own.terms:
        return {}
    return {
        node: ", ".join(_others(host, own)) for node, host in table.hosts(kind).items() if _others(host, own)
    }


def _others(host: Host, own: Host) -> list[str]:
    return [term for term in host.terms if term not in own.terms] if host.terms != own.terms else []


def kind_info(table: ShardTable, kind: str, hosted: HostedInfo | None) -> KindInfo:
    """Return what is known of a kind.

    Args:
        table: of this node.
        kind: its name.
        hosted: what this node has of it; None if it does not host it.
    """
    shards, hosts = table.shards(kind), table.hosts(kind)
    others, own = differing(table, kind), table.own(kind)
    cut = [node for node, host in hosts.items() if host.shards != shards]
    return KindInfo(
        kind,
        shards,
        table.count_unowned(kind),
        len(hosts),
        {node: hosts[node].shards for node in sorted(cut)[:MAX_DIFFERING]},
        hosted,
        () if own is None else own.terms,
        {node: others[node] for node in sorted(others)[:MAX_DIFFERING]},
    )
