"""Tells the other nodes of a cron job which slot begins, and asks them which ones have begun."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fleetlm.core.quorum import Quorum
from fleetlm.core.shard_table import EPOCH_END
from fleetlm.errors import FleetError
from fleetlm.wire.invocation import to_host

if TYPE_CHECKING:
    from fleetlm.core.cron_slots import SlotMemory
    from fleetlm.entities.replicated_shards import ReplicatedShards
    from fleetlm.messaging.outbound import Outbound

ASK_S = 1.0
"""Seconds that another node has to answer. It does nothing but note a number; a slot waits for that."""


class SlotTeller:
    """Asks and tells for the one node that runs the job.

    Args:
        kind: the kind of the singleton.
        memory: what this node knows.
        quorum: of the job; None: available.
        shards: who offers the job.
        outbound: asks.
    """

    def __init__(
        self,
        kind: str,
        memory: SlotMemory,
        quorum: Quorum | None,
        shards: ReplicatedShards,
        outbound: Outbound,
    ) -> None:
        self._kind = kind
        self._memory = memory
        self._majority = 0 if quorum is None else quorum.expected // 2 + 1
        self._shards = shards
        self._outbound = outbound

    async def ask(self, epoch: int) -> bool:
        """Learn which slots are settled. Returns False if too few nodes have answered, or one refuses.

        Args:
            epoch: under which this node runs the job.
        """
        answers = await self._others(epoch, 0, is_reset=False)
        if not self._enough(epoch, [*answers, self._memory.told(epoch, 0, is_reset=False)]):
            return False
        for _, settled_ms, _ in answers:
            self._memory.load(settled_ms)
        return True

    async def tell(self, epoch: int, slot_ms: int, *, is_reset: bool = False) -> bool:
        """Say that a slot begins. Returns whether it may.

        If too few nodes have answered, or one knows of a higher epoch, nothing is settled on this node, and
        the slot may be told again. If another epoch has begun the slot already, it is settled here, too.

        Args:
            epoch: under which this node runs the job.
            slot_ms: up to which all slots are settled now.
            is_reset: see `SlotMemory.told`.
        """
        answers = await self._others(epoch, slot_ms, is_reset=is_reset)
        memory = self._memory
        own = memory.told(epoch, 0, is_reset=False)
        if not self._enough(epoch, [*answers, own]):
            return False
        begun = [settled for _, settled, by in [*answers, own] if settled >= slot_ms and by != epoch]
        if begun and not is_reset:
            memory.load(max(begun))
            return False
        memory.told(epoch, slot_ms, is_reset=is_reset)
        return True

    def _enough(self, epoch: int, answers: list[list[int]]) -> bool:
        refusals = [known for known, *_ in answers if known > epoch]
        for known in refusals:
            self._shards.table.heard_of(self._kind, 0, known)  # So that the owner takes a higher one.
        if not self._majority:
            return not refusals
        return len(answers) - len(refusals) >= self._majority

    async def _others(self, epoch: int, slot_ms: int, *, is_reset: bool) -> list[list[int]]:
        """Return the answers of the other nodes that have answered."""
        hosts, own = self._shards.table.hosts(self._kind), self._shards.context.name
        message = to_host(["slots", epoch, slot_ms, is_reset])
        calls = [self._outbound.call(host.pid, message, ASK_S) for node, host in hosts.items() if node != own]
        answers: list[list[int]] = []
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, FleetError):
                    raise answer
            elif _is_answer(answer):
                answers.append(answer)
        return answers


def _is_answer(answer: Any) -> bool:
    return (
        type(answer) is list
        and len(answer) == 3
        and all(type(each) is int and 0 <= each < EPOCH_END for each in answer)
    )
