"""A target for what a peer says to a member of a quorum: beats, wishes, and answers to its own beats."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace
from typing import Any

from fleetlm.core.quorum import MARGIN, Quorum
from fleetlm.core.shard_table import EPOCH_END, MAX_SHARDS, Claim, ShardTable
from fleetlm.entities.majority import Majority, _rows
from fleetlm.settings import Settings
from fleetlm.wire.codec import BadData
from fleetlm.wire.operations import NONSENSE
from tests.fuzz.state_targets import HERE, THERE
from tests.fuzz.wire_targets import CODEC, in_time

THIRD = "fleetlm@10.0.0.3"
KIND, SHARDS, LEASE_S = "mine", 4, 8.0
ME, PEER, OTHER = (HERE, 1, 1), (THERE, 2, 9), (THIRD, 3, 7)
OWN_EPOCH = 5
_SILENT = logging.getLogger("fleetlm")


class _Ended:
    """A timer or a task that does nothing."""

    def cancel(self) -> None:
        """See `asyncio.Handle`."""

    def add_done_callback(self, _: object) -> None:
        """See `asyncio.Task`."""


class _Clock:
    """A loop whose time is set, and on which nothing runs."""

    now = 1_000.0

    def time(self) -> float:
        return self.now

    def call_at(self, *_: object) -> _Ended:
        return _Ended()

    call_later = call_at

    def create_task(self, work: Any, **_: object) -> _Ended:
        work.close()
        return _Ended()


class _Member:
    """This node, one of three members, which owns two shards and has been acknowledged."""

    kind = KIND

    def __init__(self) -> None:
        self.table = ShardTable(HERE, 1)
        self.table.host(KIND, 1, SHARDS)
        for node, incarnation, number in (PEER, OTHER):
            self.table.told(node, incarnation, ["hosts", [[KIND, number, SHARDS, []]]])
        self.handoff = SimpleNamespace(is_sealed=lambda _: False)
        self.clock = _Clock()
        context = SimpleNamespace(name=HERE, incarnation=1, settings=Settings(), loop=self.clock)
        shards: Any = SimpleNamespace(table=self.table, context=context)
        loop: Any = self.clock
        self.guard = Majority(self, Quorum(3, LEASE_S), shards, SimpleNamespace(), loop)  # type: ignore[arg-type]
        self.guard.me = ME
        self.clock.now += LEASE_S * (1 + MARGIN)
        self.table.claim(KIND, {shard: Claim(OWN_EPOCH, 1) for shard in range(2)})
        for shard in range(2):
            self.guard._lease.claimed(shard)
        self.guard.asked(["grant", *OTHER, 1, [[2, OWN_EPOCH, 0, None]]], OTHER[:2])
        self.guard._beat()

    def fence(self, shards: Any, why: str) -> None:
        """See `majority.Fenced`."""
        del why
        self.table.drop(KIND, shards)


def fuzz_votes(data: bytes) -> None:
    """What a peer says to a member, in any order and at any time: it is refused or taken; it speaks for
    nobody else, and what it is told is what members read."""
    try:
        steps = CODEC.unpack(data)
    except BadData:
        return
    level = _SILENT.level
    _SILENT.setLevel(logging.CRITICAL)
    try:
        _play(steps if isinstance(steps, list) else [steps])
    finally:
        _SILENT.setLevel(level)


def _play(steps: list[Any]) -> None:
    member = _Member()
    guard, votes = member.guard, member.guard._votes
    for step in steps:
        match step:
            case int(wait_ms) if 0 <= wait_ms <= 60_000:
                member.clock.now += wait_ms / 1000
            case ["answer", answer]:
                beat = guard._lease.next(member.clock.now)
                in_time(guard._answered, PEER, beat, answer)
            case [*_]:
                with contextlib.suppress(*NONSENSE):
                    told = in_time(guard.asked, step, PEER[:2])
                    assert told is None or _rows(CODEC.unpack(CODEC.pack_value(told))) is not None
        assert votes._heard.keys() <= {ME, PEER, OTHER}
        assert {support.node for support in votes._supported.values()} <= {ME, PEER, OTHER}
        assert votes._supported.keys() | votes._highest.keys() <= set(range(SHARDS))
        assert all(0 <= epoch < EPOCH_END for epoch in votes._highest.values())
        assert len(member.table.kind(KIND).seen) <= MAX_SHARDS
        other = votes._supported.get(2)
        assert other is None or other.node != OTHER or other.epoch == OWN_EPOCH  # It has said nothing more.
        own = member.table.own(KIND)
        assert own is not None
        assert own.claims.keys() <= {0, 1}
