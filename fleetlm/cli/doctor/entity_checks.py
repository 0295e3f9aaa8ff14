"""The checks of `fleetlm doctor` about keyed entities: functions from a node's facts to `Finding` objects.

The facts are those of one node (`fleetlm.entities.info.KindInfo` in JSON types). It knows all claims of the
nodes that it is connected with, and of lives and bytes only its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fleetlm.cli.doctor.findings import FAIL, OK, WARN, Finding

NEAR = 0.9
"""The part of a limit from which on it is reported: there is still time to do something."""
MAX_KINDS_SHOWN = 8
"""Kinds that are named in the finding that all is well."""
TOPIC = "entities"
SAFETY = "safety "
"""What the term begins with that tells of the safety; see `entities.agreement`."""

Kind = Mapping[str, Any]


def judge_kinds(kinds: Sequence[Kind]) -> list[Finding]:
    """Check each kind of entities. Without any, there is nothing to say."""
    found = [(kind, list(judge_kind(kind))) for kind in kinds]
    findings = [finding for _, several in found for finding in several]
    well = [kind for kind, several in found if not several]
    if well:
        shown = ", ".join(map(_describe, well[:MAX_KINDS_SHOWN]))
        more = len(well) - MAX_KINDS_SHOWN
        text = f"every shard has an owner: {shown}" + (f" and {more} more kinds" if more > 0 else "")
        findings.insert(0, Finding(OK, TOPIC, text))
    return findings


def judge_kind(kind: Kind) -> Iterator[Finding]:
    """Check one kind."""
    name, own = kind["kind"], kind["hosted"]
    quorum = None if own is None else own["quorum"]
    if kind["differing"]:
        others = ", ".join(f"{node} into {shards:,}" for node, shards in kind["differing"].items())
        yield Finding(
            FAIL,
            TOPIC,
            f"{name!r}: this node takes it as cut into {kind['shards']:,} shards, {others}: the shards of "
            "those nodes do not count",
            "Host a kind with the same `shards=` on all nodes. To change it, stop all its hosts first",
        )
    yield from _judge_terms(kind)
    if quorum is not None and not quorum["holds"]:
        yield Finding(
            FAIL,
            TOPIC,
            f"{name!r}: this node sees {quorum['seen']} of the {quorum['expected']} hosts that its quorum "
            "expects, fewer than a majority, so it serves none of them",
            "Start the missing hosts, or look at the checks named peer and connection. A node that has just "
            "started serves after a lease and a quarter. Quorum(expected=...) is the most hosts that are up "
            "at a time",
        )
    elif quorum is not None and kind["hosts"] > quorum["expected"]:
        yield Finding(
            FAIL,
            TOPIC,
            f"{name!r}: {kind['hosts']} nodes host it, and its quorum expects {quorum['expected']}: two "
            "sides of a partition may both serve",
            "Set Quorum(expected=...) alike on all nodes, to the most that are up at a time",
        )
    if kind["unowned"]:
        yield Finding(
            WARN,
            TOPIC,
            f"{name!r}: {kind['unowned']:,} of {kind['shards']:,} shards have no owner, as this node sees "
            "it; requests to their entities wait",
            "Hosts claim what is free within about a second, or with a quorum after a lease and a quarter. "
            "If it stays, see whether each host is connected to all others, and does not drain",
        )
    if own is not None:
        yield from _judge_store(name, own["store"])
        yield from _judge_limits(name, own)


def _judge_terms(kind: Kind) -> Iterator[Finding]:
    """Check whether all hosts do it alike."""
    others = kind.get("disagreeing", {})  # A node of an older version tells nothing of it.
    if others:
        shown = "; ".join(f"{node}: {terms}" for node, terms in others.items())
        is_safety = any(SAFETY in terms for terms in others.values())
        yield Finding(
            FAIL if is_safety else WARN,
            TOPIC,
            f"{kind['kind']!r} is not hosted alike on all nodes: here {', '.join(kind['terms'])}; {shown}. "
            + (
                "Two of them may serve one key at a time"
                if is_safety
                else "What one of them stores may be missing where another one loads"
            ),
            "Two deployments disagree: give `safety=`, `store=` and `durable=` alike on all nodes. To change "
            "the safety, stop all hosts first; a rolling restart has both for a while",
        )


def _judge_store(name: str, store: Kind | None) -> Iterator[Finding]:
    """Check whether the store of a kind answers."""
    if store is not None and store["fails"]:
        yield Finding(
            FAIL,
            TOPIC,
            f"{name!r}: its store {store['name']} fails, {store['failures']:,} operations up to now: "
            "requests whose changes cannot be stored get NotStored",
            "The log says why: look for *cannot be stored or loaded*. Check the database, and `store_s=`",
        )


def _judge_limits(name: str, own: Kind) -> Iterator[Finding]:
    """Check how near the limits of this node are."""
    for now, most, what, option in (
        (own["alive"], own["live"], "entities live here", "live"),
        (own["kept_bytes"], own["max_kept_bytes"], "bytes of saved states are kept here", "kept_bytes"),
    ):
        if most != 1 and now >= NEAR * most:  # A singleton is a kind with one entity, and at no limit.
            yield Finding(
                WARN,
                TOPIC,
                f"{name!r}: {now:,} of at most {most:,} {what}; beyond that, requests to further ones get "
                "WouldBlock",
                f"Add hosts, make `idle_s=` shorter, or raise `{option}=` where the kind is hosted",
            )


def _describe(kind: Kind) -> str:
    hosts = "1 node" if kind["hosts"] == 1 else f"{kind['hosts']} nodes"
    shards = "1 shard" if kind["shards"] == 1 else f"{kind['shards']:,} shards"
    return f"{kind['kind']!r} ({shards} on {hosts})"
