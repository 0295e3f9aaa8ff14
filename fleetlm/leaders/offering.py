"""A singleton on a node that offers it: the host of its kind, with what differs from other kinds.

* Nobody claims it before it has been free for ``settle_s``, and no connection has come up for as long: nodes
  that replace each other, or meet again after a short cut, do not elect.
* It never moves for balance: a kind with one shard has no owner with more than its share.
* When the shard is lost or fenced, the run and all that it has spawned are killed at once, before the entity.
* Each run has a higher epoch than the one before, also where it is restarted on the same node.
* A node on which the run ends again and again gives it to another one, if one takes it (`run_restarts`).
* A host process that dies is started anew (`entities.kinds`), and knows the family and the restarts of the
  former one.
* The host processes answer each other which slots of a cron job have begun (`slots`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

from fleetlm.core.shard_table import Lost
from fleetlm.entities.handoff import Handoff
from fleetlm.entities.host_parts import HostOptions, Moves
from fleetlm.entities.hosting import Hosting
from fleetlm.entities.majority import Majority
from fleetlm.errors import FleetError, NotOwner
from fleetlm.leaders.leader import FENCED, KILL_S, Leader
from fleetlm.leaders.plan import KEY, SHARD, Plan
from fleetlm.wire.invocation import to_host

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.entities.replicated_shards import ReplicatedShards
    from fleetlm.entities.seat import Seat
    from fleetlm.ids import Pid
    from fleetlm.leaders.family import Family
    from fleetlm.leaders.run_restarts import RunRestarts
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.wire.codec import Codec

log: logging.Logger = logging.getLogger("fleetlm")

HANDOFF_SLACK_S = 1.0
"""Seconds that a handover has beyond what the run has to end: for the entity around it."""
ASK_S = 1.0
"""Seconds that another node has to say whether it takes a singleton that has failed here."""
STAYS_LOG_S = 60.0
"""Seconds between two log lines about a singleton that fails and that no other node takes."""


class Offering(Hosting):
    """A singleton that this node offers.

    Args:
        plan: of the program.
        family: what runs, or has run, of it here.
        restarts: counts the ends of its runs here.
        shards: the table.
        local: spawns.
        outbound: asks the hosts of other nodes.
        codec: packs states.
    """

    def __init__(
        self,
        plan: Plan,
        family: Family,
        restarts: RunRestarts,
        shards: ReplicatedShards,
        local: LocalProcesses,
        outbound: Outbound,
        codec: Codec,
    ) -> None:
        options = HostOptions(
            args=(self,),
            shards=1,
            idle_s=math.inf,
            handoff_s=plan.end_s + KILL_S + HANDOFF_SLACK_S,
            settle_s=plan.settle_s,
            rebalance_s=math.inf,
            live=1,
            kept_bytes=1024 * 1024,
            remember=frozenset([KEY]),
            quorum=plan.quorum,
        )
        super().__init__(plan.kind, Leader, options, shards, local, outbound, codec)
        self.__qualname__ = f"host of the singleton {plan.name}"
        self.plan: Plan = plan
        self.family: Family = family
        self.restarts: RunRestarts = restarts
        self.is_withdrawn: bool = False
        """Whether this node hands the singleton over, and takes it no more."""
        self._last_epoch = 0
        """Under which a run has begun here last."""
        self.singleton: SingletonHandoff = SingletonHandoff(self)
        self.handoff: Moves = self.singleton
        if plan.quorum is not None:
            self.guard_with(Majority(self, plan.quorum, shards, outbound))

    def counts(self) -> dict[str, int]:
        """See `Hosting`; without this node where it has withdrawn the singleton."""
        counts = super().counts()
        if self.is_withdrawn:
            counts.pop(self.context.name, None)
        return counts

    def lost(self, lost: Lost) -> None:
        """See `Hosting`; the run ends at once."""
        if not self.handoff.is_done_by(lost):
            self.family.kill(FENCED)
        super().lost(lost)

    def _kill(self, seats: list[Seat]) -> None:
        """See `Hosting`; the run ends at once, whatever it does."""
        self.family.kill(FENCED)
        super()._kill(seats)

    def gone(self) -> None:
        """See `Hosting`; nothing of it goes on without its host."""
        self.family.kill("killed")

    def began(self, pid: Pid, epoch: int) -> None:
        """Note that a run has begun."""
        self._last_epoch = epoch
        self.family.started(pid)

    async def raise_epoch(self) -> bool:
        """Have an epoch under which nothing has run. Returns False if the shard is not this node's now."""
        own = self.table.own(self.kind)
        claim = None if own is None else own.claims.get(SHARD)
        if own is None or claim is None or not self.serves(SHARD, is_inner=False):
            return False
        if claim.epoch <= self._last_epoch:
            await self.singleton.renew(claim)
            claim = own.claims.get(SHARD)
        return claim is not None and claim.epoch > self._last_epoch and self.serves(SHARD, is_inner=False)

    def epoch(self) -> int:
        """Return the epoch of the run on this node. Raises: NotOwner: it may not act any more."""
        own = self.table.own(self.kind)
        claim = None if own is None else own.claims.get(SHARD)
        if claim is None or (self.majority is not None and not self.majority.serves(SHARD)):
            owner = self.table.owner(self.kind, SHARD)
            name = "" if owner is None or owner.pid.node == self.context.name else owner.pid.node
            raise NotOwner(f"{self.kind}/{KEY}", name, self.table.seen(self.kind, SHARD))
        return claim.epoch

    def give_up(self) -> None:
        """Hand the singleton to a node on which it has not failed lately, if there is one."""
        self.singleton.give_up()

    async def withdraw(self, until: float) -> bool:
        """Hand the singleton over, and take it no more. Returns False if it was not handed over in time."""
        self.is_withdrawn = True
        self.review_soon()
        while self.table.own(self.kind) is not None and self.singleton.is_here():
            if self._loop.time() >= until or not self.counts():
                return False
            await asyncio.sleep(min(0.02, max(0.0, until - self._loop.time())))
        return True


class SingletonHandoff(Handoff):
    """How the one shard of a singleton changes hands."""

    def __init__(self, offering: Offering) -> None:
        super().__init__(offering)
        self._offering = offering
        self._free_since: float | None = None
        self._is_giving_up = False
        self._said_at = -math.inf
        """When the log has said last that no other node takes it."""

    def sweep(self) -> None:
        """See `Handoff`; note since when nobody has the singleton."""
        super().sweep()
        if not self._table.unowned(self._offering.kind):
            self._free_since = None
        elif self._free_since is None:
            self._free_since = self._loop.time()

    def claim_free(self, counts: dict[str, int]) -> None:
        """See `Handoff`; not before the singleton has been free for a while."""
        since = self._free_since
        if since is not None and self._loop.time() - since >= self._offering.plan.settle_s:
            super().claim_free(counts)

    def asked(self, call: Call) -> None:
        """See `Handoff`; answer also which slots of a cron job have begun, and whether the run may come."""
        offering, memory = self._offering, self._offering.plan.memory
        match call.message:
            case ["is fit"]:
                may_come = not offering.is_closed and offering.context.name in offering.counts()
                call.reply(may_come and not offering.restarts.stands_back(self._loop.time()))
            case ["slots", int(epoch), int(slot_ms), bool(is_reset)] if memory is not None:
                try:
                    call.reply(memory.told(epoch, slot_ms, is_reset=is_reset))
                except ValueError as error:
                    call.fail(error)
            case _:
                super().asked(call)

    def is_here(self) -> bool:
        """Whether this node owns the shard."""
        own = self._table.own(self._offering.kind)
        return own is not None and SHARD in own.claims

    def give_up(self) -> None:
        """See `Offering.give_up`."""
        if not self._is_giving_up:
            self._is_giving_up = True
            self._start(self._give_up())

    async def _give_up(self) -> None:
        plan, now = self._offering.plan, self._loop.time()
        why = f"it has ended more than {plan.max_restarts} times within {plan.period_s:g} s"
        try:
            for node in await self._fit():
                if not await self.move(SHARD, node, is_forced=True):
                    log.error("the singleton %s is given to %s: here %s", plan.name, node, why)
                    return
        finally:
            self._is_giving_up = False
        if self.is_here() and now - self._said_at >= STAYS_LOG_S:
            self._said_at = now
            log.error(
                "the singleton %s fails here, and no other node takes it: %s. It begins anew, after at most "
                "%g s", plan.name, why, plan.backoff_s[1],
            )  # fmt: skip

    async def _fit(self) -> list[str]:
        """Return the other nodes that offer the singleton, and on which it has not failed lately."""
        own = self._offering.context.name
        hosts = {node: host for node, host in self._table.hosts(self._offering.kind).items() if node != own}
        calls = [
            self._offering.outbound.call(host.pid, to_host(["is fit"]), ASK_S) for host in hosts.values()
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, FleetError):
                raise answer
        return sorted(node for node, answer in zip(hosts, answers, strict=True) if answer is True)

    async def renew(self, claim: Any) -> None:
        """Own the shard under a higher epoch than that of this claim of this node, if that can be."""
        offering = self._offering
        if offering.majority is None:
            offering.renew(SHARD)
        else:
            await self._take_back(SHARD, claim)
