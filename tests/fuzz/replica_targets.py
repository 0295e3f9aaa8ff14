"""Targets for what nodes tell of themselves to all others: rows, metas and gauges, and shards."""

from __future__ import annotations

import contextlib
from typing import Any

from fleetlm.core.member_facts import MemberFacts
from fleetlm.core.row_table import RowTable, size_of
from fleetlm.core.shard_table import MAX_KINDS, Claim, Lost, ShardTable, Tell
from fleetlm.ids import Pid
from fleetlm.settings import Settings
from fleetlm.wire.codec import BadData
from fleetlm.wire.operations import NONSENSE
from tests.fuzz.state_targets import HERE, THERE
from tests.fuzz.wire_targets import CODEC, in_time

FEW = Settings(
    max_rows=20, max_row_bytes=100, max_rows_bytes=1_000, max_memberships=20, max_meta_bytes=100,
    max_metas_bytes=1_000,
)  # fmt: skip
THIRD = "fleetlm@10.0.0.3"
SHARDS = 16


def _facts(data: bytes) -> list[Any]:
    """What an input says, as facts one after the other; none if it is no value."""
    try:
        facts = CODEC.unpack(data)
    except BadData:
        return []
    return facts if isinstance(facts, list) else [facts]


def fuzz_rows(data: bytes) -> None:
    """Rows of a peer: a fact is taken whole or not at all, limits hold, and the end takes them all."""
    table = RowTable(HERE, 1, FEW, CODEC.unpack)
    table.put("mine", "key", b"\x01")
    said: dict[tuple[str, str], bytes] = {}
    for fact in _facts(data):
        try:
            in_time(table.told, THERE, 2, fact)
        except NONSENSE:
            assert _said(table) == said
        said = _said(table)
        assert len(said) <= FEW.max_rows
        assert sum(size_of(*row) for row in said.items()) <= FEW.max_rows_bytes
        assert all(table.value(*place, THERE, table) is not table for place in said)
    assert len(list(table.node_down(THERE))) == len(said)
    assert (table.tables(), table.get("mine", "key")) == (["mine"], {HERE: 1})


def _said(table: RowTable) -> dict[tuple[str, str], bytes]:
    return {} if THERE not in table._said else dict(table._said[THERE].packed)


def fuzz_members(data: bytes) -> None:
    """What a peer tells of its members: limits hold, sums are of what it told, and the end takes all."""
    facts = MemberFacts(HERE, 1, FEW, CODEC.unpack)
    facts.described("mine", 1, b"\x01")
    facts.reported("mine", 1, {"free": 2.5}, 0.0)
    facts.told(THIRD, 3, ["loads", {HERE: [1, {1: 5}]}], 0.0)
    mine = Pid(HERE, 1, 1)
    for fact in _facts(data):
        with contextlib.suppress(*NONSENSE):
            in_time(facts.told, THERE, 2, fact, 10.0)
        told = facts._told.get(THERE)
        if told is not None:
            assert max(len(told.packed), len(told.reports)) <= FEW.max_memberships
            assert told.metas_bytes <= FEW.max_metas_bytes
            assert facts.outstanding(mine) == 5 + told.loads.get(mine, 0)
    facts.node_down(THERE)
    assert facts.outstanding(mine) == 5
    facts.node_down(THIRD)
    assert facts._outstanding == {}
    assert (facts.meta("mine", mine), facts.has_told("mine")) == (1, True)
    assert list(facts._told) == [HERE]


def fuzz_shards(data: bytes) -> None:
    """What a peer hosts and claims: what this node has to tell of it is what peers accept, and the end
    leaves its own claims."""
    table, other = ShardTable(HERE, 1), ShardTable(THIRD, 3)
    _pass_on(table.host("mine", 1, SHARDS), other)
    _pass_on(table.claim("mine", {shard: Claim(5, 5) for shard in range(4)}), other)
    lost: set[int] = set()
    for fact in _facts(data):
        with contextlib.suppress(*NONSENSE):
            effects = in_time(table.told, THERE, 2, fact)
            _pass_on(effects, other)
            lost |= {effect.shard for effect in effects if isinstance(effect, Lost)}
        assert len(table.kinds()) <= MAX_KINDS + 1
    _pass_on(table.node_down(THERE), other)
    own = table.own("mine")
    assert own is not None
    assert set(own.claims) == set(range(4)) - lost
    assert set(table.kind("mine").owners) == set(own.claims)
    epochs = {shard: Claim(table.next_epoch("mine", shard), 1) for shard in range(SHARDS)}
    _pass_on(table.claim("mine", epochs), other)
    assert set(table.kind("mine").owners) == set(range(SHARDS)) == set(other.kind("mine").owners)


def _pass_on(effects: list[Any], other: ShardTable) -> None:
    """Let a third node take what this one tells: it accepts all of it."""
    for effect in effects:
        if isinstance(effect, Tell):
            other.told(HERE, 1, CODEC.unpack(CODEC.pack_value(effect.fact)))
