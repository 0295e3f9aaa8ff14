"""Where shards go: who takes one that nobody owns, and which ones an owner hands to whom.

Pure functions of what every node knows, so that nodes which know the same decide the same, and no coordinator
is needed. Each host is to have its *share*, the number of shards by the number of hosts: rounded down, or up
for as many hosts as the remainder says.

* A shard without an owner goes to the first host in its ranking that has not its share yet (`assign`). If one
  host acts on this before another one, what is left over is still assigned in the same way.
* A shard stays with its owner, whatever its ranking says, until the owner drains or has more than its share
  (`excess`): a host that joins takes at most its share, and a host that leaves moves nothing but its own.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998, for the ranking;
Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", for the share; differs: what has
an owner stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fleetlm.core.shard_table import score


def share(shards: int, hosts: int) -> int:
    """Return how many shards a host has at most, in the end."""
    return -(-shards // hosts)


def assign(kind: str, shards: int, free: Iterable[int], counts: Mapping[str, int]) -> dict[int, str]:
    """Return a host for each of these shards.

    Args:
        kind: of the entities.
        shards: how many there are in all.
        free: those to be assigned.
        counts: each host that may take some, with how many it has.
    """
    if not counts:
        return {}
    least, remainder = divmod(shards, len(counts))
    have = dict(counts)
    chosen: dict[int, str] = {}
    for shard in sorted(free):
        more = sum(count > least for count in have.values())
        most = least + (more < remainder)
        open_hosts = [host for host, count in have.items() if count < most] or list(have)
        best = max(open_hosts, key=lambda host: (score(kind, shard, host), host))
        chosen[shard] = best
        have[best] += 1
    return chosen


def excess(
    kind: str, shards: int, owned: Iterable[int], own: str, counts: Mapping[str, int]
) -> dict[int, str]:
    """Return the shards that a host hands over since it has more than its share, each with whom it goes to.

    Args:
        kind: of the entities.
        shards: how many there are in all.
        owned: those of this host.
        own: this host, which is among ``counts``.
        counts: each host that may have some, with how many it has.
    """
    most, have = share(shards, len(counts)), dict(counts)
    moves: dict[int, str] = {}
    left = set(owned)
    while have[own] > most and left:
        to = min(have, key=lambda host: (have[host], host))
        if have[to] >= most:
            break
        shard = max(left, key=lambda one: (score(kind, one, to), one))
        left.discard(shard)
        moves[shard] = to
        have[to] += 1
        have[own] -= 1
    return moves
