"""Shards change hands: claims of free ones, handoffs, and what is offered to a winner after a partition.

Theory of operation. A handoff has these steps, and each request of it names the epoch that the new owner is
to have, one above the highest that the former owner has heard of:

1. The owner *closes* the shard: requests get `NotOwner` without an owner, and their callers wait for another
   epoch. Each entity finishes the handler that runs, and the casts that it has acknowledged, and is saved.
   Until the last one has ended (the shard is *sealed* then), requests of entities of this very shard are
   served, since a handler may wait for them.
2. It sends the states in parts (``state``), and asks the other host to ``take`` the shard with the last part.
3. The other host claims the shard, which it tells every node, and answers. With its claim the former one is
   outdone; the former owner drops it and what it kept. Callers see the new epoch and go there.

Up to step 3 the owner may give up the handoff: it takes a higher epoch itself, which wakes the callers, and
makes the entities again from what they have saved. The races:

* *The other host refuses*, since it drains, has its share, or has heard of a higher epoch: the handoff is
  given up. The answer names the highest epoch that the other host has heard of, above which the next attempt
  goes.
* *The connection is lost* after the ``take`` was sent: the owner cannot know whether the other host has
  claimed. It goes on; if both own the shard when they meet again, `shard_table.rank` decides, and the higher
  epoch wins.
* *The owner dies in between*: parts that are not followed by a ``take`` are dropped (`sweep`).
* *A claim of a third node outdoes the owner's meanwhile*: the handoff ends, and `Hosting.lost` acts.

A call that waits for a handler has no part in this: its caller gets an error that says that it has not run,
and its node repeats it at the new owner. So nothing passes through the former owner, which may leave.

Source: Akka's shard handoff (BeginHandOff, HandOff) for the steps; differs: the state moves along, and
callers wait at their own nodes, so no buffer of the owner can overflow or be lost with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from fleetlm.core.quorum import MemberKey, Want
from fleetlm.core.shard_plan import assign, excess, share
from fleetlm.core.shard_table import EPOCH_END, Claim, Host, Lost
from fleetlm.entities.seat import Kept, Seat, close_all, size_of
from fleetlm.errors import FleetError, NodeLost, NotDelivered
from fleetlm.records import Row
from fleetlm.texts import SHORT
from fleetlm.wire.invocation import to_host

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.entities.hosting import Hosting
    from fleetlm.ids import Pid

log: logging.Logger = logging.getLogger("fleetlm")

MOVES_AT_ONCE = 8
"""Shards that a host hands over at a time. Each makes both nodes work, at the expense of requests."""
PART_BYTES = 64 * 1024
"""States in one message, as long as no single one is larger."""
LOOK_S = 0.02
"""Seconds between two looks whether a node that drains has handed over everything."""
ASK_S = 10.0
"""Seconds for the answer to a part. It does nothing but copy."""
PAUSE_S = 0.5
"""Seconds before a shard is handed over again after that has failed."""
PAUSE_RATIO, PAUSE_MAX_S = 10, 60.0
"""A shard that is only balanced is served for so many times as long as the attempt has closed it, so that one
long handler does not keep the other entities of its shard from being served; at most for so many seconds."""
_PART_COST_BYTES = 1_024
"""What a part costs beside its states."""
OFFERS = 4
"""How often a state is offered to a winner that refuses it."""
STAGED_S = 60.0
"""Seconds after which parts are dropped that no ``take`` has followed."""
LISTED_KEYS = 10_000
"""Keys that a host tells of itself at once."""


class _Take(Row):
    """What a host asks that hands a shard over.

    Attributes:
        shard: its number.
        claim: that the new owner is to have.
        passed: the epoch of the claim of the former owner.
        by: the former owner, where the kind has a quorum.
        lossy: whether what its entities had is not known.
        is_forced: whether the new owner takes it even beyond its share.
        rows: the last part of the states.
    """

    shard: int
    claim: Claim
    passed: int
    by: MemberKey | None
    lossy: bool
    is_forced: bool
    rows: list[Any]


class _Move(Row):
    """A handoff that is under way.

    Attributes:
        epoch: that the new owner is to have.
        to: the name of that node.
    """

    epoch: int
    to: str


class _Staged:
    """Parts of a shard that have come, and the ``take`` has not."""

    def __init__(self, now: float) -> None:
        self.at = now
        self.size_bytes = 0
        self.rows: list[tuple[str, Kept]] = []


class Handoff:
    """Moves the shards of one kind; implements `hosting.Moves`."""

    def __init__(self, hosting: Hosting) -> None:
        self._hosting = hosting
        self._table = hosting.table
        self._loop = hosting.context.loop
        self._moving: dict[int, _Move] = {}
        """Shard that is being handed over → to whom."""
        self._sealed: set[int] = set()
        """Those of them of which no entity lives any more."""
        self._stayed: dict[int, tuple[float, float]] = {}
        """Shard that has stayed → when, on the loop's clock, and the seconds until it is balanced again."""
        self._staged: dict[tuple[int, int], _Staged] = {}
        """Shard and epoch → what has come of it."""
        self._offered: set[int] = set()
        """Shards of which the states are being offered to the winner."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_acquiring = False
        """Whether a majority is being asked for free shards."""
        self._outbidding: set[int] = set()
        """Shards of this node for which a majority is being asked for a higher epoch."""
        self._until = math.inf
        """When the time for handing over is over, for a node that drains."""

    # What `Hosting` asks.

    @property
    def moving(self) -> int:
        """How many shards are being handed over now."""
        return len(self._moving)

    def serves(self, shard: int, *, is_inner: bool) -> bool:
        """Whether a shard of this node takes requests; ``is_inner``: from one of its own entities."""
        return shard not in self._moving or (is_inner and shard not in self._sealed)

    def is_sealed(self, shard: int) -> bool:
        """Whether a shard is being handed over, and no entity of it lives any more."""
        return shard in self._sealed

    def is_done_by(self, lost: Lost) -> bool:
        """Whether a claim that has outdone this node's is the one that its own handoff has led to."""
        move = self._moving.get(lost.shard)
        return move is not None and move.epoch == lost.winner.epoch

    def claim_free(self, counts: dict[str, int]) -> None:
        """Claim the shards without an owner that fall to this node."""
        hosting, table, own = self._hosting, self._table, self._hosting.context.name
        kind, shards = hosting.kind, hosting.options.shards
        free = table.unowned(kind)
        if not free or self._is_acquiring:
            return
        mine = [shard for shard, node in assign(kind, shards, free, counts).items() if node == own]
        if not mine:
            return
        wall_ms, epochs = hosting.shards.wall_ms(), {}
        for shard in mine:  # Above epochs that all nodes have forgotten, too: see `shard_table`.
            epochs[shard] = max(table.next_epoch(kind, shard), wall_ms)
        if hosting.majority is None:
            self._claim({shard: Claim(epoch, epoch) for shard, epoch in epochs.items()})
        else:
            self._is_acquiring = True
            self._start(self._acquire_free(epochs))

    def _claim(self, claims: dict[int, Claim]) -> None:
        """Claim shards that nobody has handed over."""
        hosting = self._hosting
        hosting.lossy.update(shard for shard in claims if self._table.seen(hosting.kind, shard))
        hosting.shards.perform(self._table.claim(hosting.kind, claims))

    async def _acquire_free(self, epochs: dict[int, int]) -> None:
        """Get free shards from a majority, and claim them."""
        hosting = self._hosting
        assert hosting.majority is not None
        try:
            wants = [Want(shard, epoch) for shard, epoch in epochs.items()]
            got = await hosting.majority.acquire(wants)
            own = self._table.own(hosting.kind)
            claims = {shard: Claim(epoch, 1) for shard, epoch in got.items()}
            if own is not None and not hosting.is_closed and claims:
                self._claim(claims)
            if len(claims) < len(wants):
                await asyncio.sleep(PAUSE_S)
        finally:
            self._is_acquiring = False

    def balance(self, counts: dict[str, int]) -> None:
        """Hand over what this node has beyond its share."""
        hosting, own = self._hosting, self._table.own(self._hosting.kind)
        assert own is not None
        for shard, move in self._moving.items():  # What is on its way counts where it is to be.
            if shard in own.claims:
                counts[hosting.context.name] -= 1
                if move.to in counts:
                    counts[move.to] += 1
        room, ready = MOVES_AT_ONCE - len(self._moving), self._ready(own, is_forced=False)
        moves = excess(hosting.kind, hosting.options.shards, ready, hosting.context.name, counts, room)
        for shard, to in moves.items():
            self._start(self.move(shard, to, is_forced=False))

    def leave(self, counts: dict[str, int]) -> None:
        """Hand over everything, since this node drains."""
        hosting, own = self._hosting, self._table.own(self._hosting.kind)
        if counts and own is not None and self._loop.time() < self._until:
            room, ready = MOVES_AT_ONCE - len(self._moving), self._ready(own, is_forced=True)
            moves = assign(hosting.kind, hosting.options.shards, ready[: max(0, room)], counts)
            for shard, to in moves.items():
                self._start(self.move(shard, to, is_forced=True))

    async def drained(self, until: float) -> list[str]:
        """Return when this node owns no shard any more, at ``until``, or when the drain is undone.

        Also where no other node hosts the kind that does not drain itself: a program that runs alone, or a
        cluster that leaves as a whole, must not wait in vain.

        Returns:
            The keys of the entities that are still here.
        """
        hosting = self._hosting
        self._until = until
        hosting.review_soon()
        while (own := self._table.own(hosting.kind)) is not None and own.claims:
            now = self._loop.time()
            is_draining = hosting.context.drain_step(hosting.context.name)
            if now >= until or hosting.is_closed or not (is_draining and hosting.counts()):
                break
            await asyncio.sleep(min(LOOK_S, until - now))
        self._until = math.inf
        if hosting.keeps is not None and hosting.context.drain_step(hosting.context.name):
            # What could not move is stored where the next owner finds it.
            await close_all(list(hosting.seats.values()), until - self._loop.time())
            own = self._table.own(hosting.kind)
            if own is not None and not hosting.seats:
                await hosting.keeps.release(list(own.claims), until - self._loop.time())
        return hosting.keys()

    def offer(self, lost: Lost, seats: Iterable[Seat]) -> None:
        """Give the winner of a shard the states of the entities that have lived here beside its own."""
        self._start(self._offer(lost, list(seats)))

    def offers(self, shard: int) -> bool:
        """Whether `offer` still needs what is kept of a shard."""
        return shard in self._offered

    def sweep(self) -> None:
        """Drop parts that no ``take`` has followed."""
        now = self._loop.time()
        before = now - STAGED_S
        self._stayed = {shard: (at, for_s) for shard, (at, for_s) in self._stayed.items() if at + for_s > now}
        for place, staged in list(self._staged.items()):
            if staged.at < before or place[1] <= self._table.seen(self._hosting.kind, place[0]):
                del self._staged[place]

    def close(self) -> None:
        """End every handoff."""
        for task in self._tasks:
            task.cancel()

    # Handing over.

    def _ready(self, own: Host, *, is_forced: bool) -> list[int]:
        """Return the shards of this node that may be handed over now, without those that have just stayed."""
        now, ready = self._loop.time(), []
        for shard in sorted(own.claims.keys() - self._moving.keys()):
            stayed_at, for_s = self._stayed.get(shard, (-math.inf, 0.0))
            if now >= stayed_at + (PAUSE_S if is_forced else for_s):
                ready.append(shard)
        return ready

    async def move(self, shard: int, to: str, *, is_forced: bool) -> str:
        """Hand a shard over to another host. Returns why it has stayed; empty if it went."""
        hosting, kind = self._hosting, self._hosting.kind
        own, target = self._table.own(kind), self._table.hosts(kind).get(to)
        claim = None if own is None else own.claims.get(shard)
        if own is None or claim is None or shard in self._moving:
            return "this node does not own it, or hands it over already"
        if target is None or target.shards != own.shards or to == hosting.context.name:
            return f"{to} does not host {kind!r}, or is this node"
        epoch = self._table.next_epoch(kind, shard)
        self._moving[shard] = _Move(epoch, to)
        began = self._loop.time()
        why = "it was cancelled"
        try:
            why = await self._end_entities(shard)
            if not why and own.claims.get(shard) != claim:
                why = "another node owns it"
            if not why:
                self._sealed.add(shard)
                why = await self._send(shard, target.pid, epoch, claim, is_forced=is_forced)
            if why and hosting.majority is not None:
                await self._take_back(shard, claim)
        finally:
            del self._moving[shard]
            self._sealed.discard(shard)
            self._settle(shard, why, self._loop.time() - began)
        return why

    def _settle(self, shard: int, why: str, took_s: float) -> None:
        """A handoff has ended: go on with the shard, or drop what was kept of it."""
        hosting, own = self._hosting, self._table.own(self._hosting.kind)
        if own is None or hosting.is_closed:
            return
        claim = own.claims.get(shard)
        if claim is None:
            if not why:
                hosting.tally.handed_over += 1
            hosting.forget_shard(shard)
            self._stayed.pop(shard, None)
            hosting.review_soon()
            return
        self._stayed[shard] = self._loop.time(), min(max(PAUSE_S, PAUSE_RATIO * took_s), PAUSE_MAX_S)
        hosting.tally.stayed += 1
        log.info("the shard %d of %s stays here: %s", shard, hosting.kind, why)
        if hosting.majority is None:
            hosting.renew(shard)

    def outbid(self, shards: Iterable[int]) -> None:
        """Have a majority give this node higher epochs for shards of which others have heard a higher one."""
        own = self._table.own(self._hosting.kind)
        for shard in shards:
            if own is not None and shard in own.claims and shard not in self._outbidding:
                self._outbidding.add(shard)
                self._start(self._outbid(shard, own.claims[shard]))

    async def _outbid(self, shard: int, claim: Claim) -> None:
        try:
            await self._take_back(shard, claim)
        finally:
            self._outbidding.discard(shard)

    async def _take_back(self, shard: int, claim: Claim) -> None:
        """Have a majority give a shard to this node under a higher epoch, until another node has it.

        Meanwhile nothing of it is served here.
        """
        hosting, kind = self._hosting, self._hosting.kind
        assert hosting.majority is not None
        while (own := self._table.own(kind)) is not None and own.claims.get(shard) == claim:
            want = Want(shard, self._table.next_epoch(kind, shard))
            got = await hosting.majority.acquire([want])
            if shard in got and own.claims.get(shard) == claim:
                hosting.adopt(shard, Claim(got[shard], claim.term))
                return
            await asyncio.sleep(PAUSE_S)

    async def _end_entities(self, shard: int) -> str:
        """Save and end the entities of a shard. Returns why that was not possible; empty if it was."""
        hosting = self._hosting
        until = self._loop.time() + hosting.options.handoff_s
        for seat in hosting.in_shard.get(shard, {}).values():
            seat.epoch = -1
        while seats := list(hosting.in_shard.get(shard, {}).values()):
            left_s = min(until, self._until) - self._loop.time()
            outcomes = [seat.close() for seat in seats]
            for seat in seats:
                hosting.refuse_waiting(seat)
            done, _ = await asyncio.wait(outcomes, timeout=max(0.0, left_s))
            if any(not each.result() for each in done):
                return "one of its entities cannot be saved"
            if left_s <= 0 and hosting.in_shard.get(shard):
                return f"{len(seats)} of its entities were not done in time"
        return ""

    async def _send(self, shard: int, to: Pid, epoch: int, claim: Claim, *, is_forced: bool) -> str:
        """Send what is kept of a shard, and have the other host claim it. Returns why it did not."""
        hosting = self._hosting
        parts = list(_parts(hosting.kept.get(shard, {})))
        last = parts.pop() if parts else []
        try:
            for rows in parts:
                if not await self._ask(to, ["state", shard, epoch, rows], ASK_S):
                    return f"{to.node} does not take its states"
            left_s = max(ASK_S, self._until - self._loop.time())
            is_lossy = shard in hosting.lossy
            by = None if hosting.majority is None else hosting.majority.me
            take = ["take", shard, epoch, claim.term, claim.epoch, by, is_lossy, is_forced, last]
            seen = await hosting.outbound.call(to, to_host(take), left_s)
            if type(seen) is not int or not 0 <= seen < EPOCH_END:
                return f"{to.node} answered {SHORT.repr(seen)}"
            if seen:
                self._table.heard_of(hosting.kind, shard, seen)
                return f"{to.node} does not take it now"
        except FleetError as error:
            return f"{to.node} could not be asked: {error}"
        until = self._loop.time() + ASK_S
        while (own := self._table.own(hosting.kind)) is not None and shard in own.claims:
            # Its claim was told before its answer, but a full window may delay it.
            now = self._loop.time()
            if now >= until or to.node not in self._table.hosts(hosting.kind):
                return f"{to.node} has taken it, and its claim did not come"
            await hosting.shards.changed(hosting.kind, shard, min(until, now + 0.1))
        return ""

    async def _ask(self, to: Pid, message: list[Any], timeout_s: float) -> bool:
        return bool(await self._hosting.outbound.call(to, to_host(message), timeout_s))

    async def _offer(self, lost: Lost, seats: list[Seat]) -> None:
        """See `offer`."""
        self._offered.add(lost.shard)
        try:
            await self._offer_all(lost, seats)
        finally:
            self._offered.discard(lost.shard)

    async def _offer_all(self, lost: Lost, seats: list[Seat]) -> None:
        hosting = self._hosting
        if seats:
            await asyncio.wait([seat.close() for seat in seats], timeout=hosting.options.handoff_s)
        for key, kept in list(hosting.kept.get(lost.shard, {}).items()):
            if kept.packed is None:
                continue
            try:
                for _ in range(OFFERS):  # It refuses while it saves that entity, or hands the shard over.
                    owner = self._table.owner(hosting.kind, lost.shard) or lost.winner
                    if await self._ask(owner.pid, ["offer", key, kept.packed], ASK_S):
                        break
                    await asyncio.sleep(PAUSE_S)
                else:
                    log.warning("the state of %s/%s was not merged: it was refused", hosting.kind, key)
            except FleetError as error:
                log.warning("the state of %s/%s was not merged: %s", hosting.kind, key, error)
                if isinstance(error, NotDelivered | NodeLost):
                    break
        for seat in seats:
            seat.end("fenced")
        own = self._table.own(hosting.kind)
        if own is None or lost.shard not in own.claims:
            hosting.forget_shard(lost.shard)

    # Taking over.

    def asked(self, call: Call) -> None:
        """Answer a request of another host, or of an operator."""
        match call.message:
            case [
                "take", int(shard), int(epoch), int(term), int(passed), by, bool(lossy), bool(is_forced),
                [*rows],
            ]:  # fmt: skip
                take = _Take(shard, Claim(epoch, term), passed, _member(by), lossy, is_forced, rows)
                if self._hosting.majority is None:
                    call.reply(0 if self._take(take) else max(1, self._table.seen(self._hosting.kind, shard)))
                else:
                    self._start(self._answer_take(call, take))
            case ["beat" | "grant", *_] if self._hosting.majority is not None:
                try:
                    call.reply(self._hosting.majority.asked(call.message, call.origin))
                except (TypeError, ValueError) as error:
                    call.fail(error)
            case ["state", int(shard), int(epoch), [*rows]]:
                call.reply(self._stage(shard, epoch, rows))
            case ["offer", str(key), bytes(packed)]:
                call.reply(self._hosting.merge_into(key, packed))
            case ["list"]:
                call.reply(self._hosting.keys()[:LISTED_KEYS])
            case ["move", int(shard), str(to)]:
                self._start(self._answer_move(call, shard, to))
            case message:
                call.no_handler(self._hosting.kind, f"{SHORT.repr(message)} is not a request for a host")

    async def _answer_take(self, call: Call, take: _Take) -> None:
        """Take a shard that another host hands over, if a majority grants it."""
        guard = self._hosting.majority
        assert guard is not None
        got: dict[int, int] = {}
        if self._may_take(take) is not None:
            got = await guard.acquire([Want(take.shard, take.claim.epoch, take.passed, take.by)])
        if take.shard in got and self._take(take):
            call.reply(0)
            return
        if take.shard in got:  # It began to drain meanwhile, for example.
            guard.dropped(take.shard)
        call.reply(max(1, self._table.seen(self._hosting.kind, take.shard)))

    async def _answer_move(self, call: Call, shard: int, to: str) -> None:
        call.reply(await self.move(shard, to, is_forced=True))

    def _stage(self, shard: int, epoch: int, rows: list[Any]) -> bool:
        """Take a part of a shard. Returns False if it cannot be kept."""
        hosting = self._hosting
        found = _checked(rows)
        if found is None or not (
            0 <= shard < hosting.options.shards and self._table.seen(hosting.kind, shard) < epoch < EPOCH_END
        ):
            return False
        staged = self._staged.setdefault((shard, epoch), _Staged(self._loop.time()))
        staged.rows += found
        staged.size_bytes += _PART_COST_BYTES + sum(size_of(key, kept) for key, kept in found)
        if sum(each.size_bytes for each in self._staged.values()) > hosting.options.kept_bytes:
            del self._staged[shard, epoch]
            return False
        return True

    def _may_take(self, take: _Take) -> list[tuple[str, Kept]] | None:
        """Return the states that come with a shard; None if this node must not take it."""
        hosting, kind, claim = self._hosting, self._hosting.kind, take.claim
        own, counts, found = self._table.own(kind), hosting.counts(), _checked(take.rows)
        if own is None or hosting.is_closed or found is None or hosting.context.name not in counts:
            return None
        if not (0 <= take.shard < own.shards and 0 < claim.term < claim.epoch < EPOCH_END):
            return None
        if claim.epoch <= self._table.seen(kind, take.shard) or take.shard in own.claims:
            return None
        if (
            take.shard in hosting.in_shard or take.shard in self._offered
        ):  # Of a former life, which would mix in.
            return None
        if not take.is_forced and len(own.claims) >= share(own.shards, len(counts)):
            return None
        return found

    def _take(self, take: _Take) -> bool:
        """Become the owner of a shard that another host hands over. Returns False if this node does not."""
        hosting, shard = self._hosting, take.shard
        found = self._may_take(take)
        staged = self._staged.pop((shard, take.claim.epoch), None)
        if found is None:
            return False
        hosting.forget_shard(shard)
        for key, kept in [*(staged.rows if staged is not None else ()), *found]:
            hosting.put_kept(shard, key, kept)
        hosting.tally.taken += 1
        if take.lossy:
            hosting.lossy.add(shard)
        hosting.shards.perform(self._table.claim(hosting.kind, {shard: take.claim}))
        return True

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work, name=f"handoff of {self._hosting.kind}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a handoff of %s failed", self._hosting.kind, exc_info=task.exception())


def _member(by: Any) -> MemberKey | None:
    """Return the member that hands a shard over, if it says which one it is."""
    match by:
        case (str(node), int(incarnation), int(process)):
            return (node, incarnation, process)
    return None


def _parts(kept: dict[str, Kept]) -> Iterable[list[list[Any]]]:
    """Cut what is kept of a shard into parts of about `PART_BYTES`."""
    part: list[list[Any]] = []
    size = 0
    for key, each in kept.items():
        part.append([key, each.packed, each.was_lost])
        size += len(key) + len(each.packed or b"")
        if size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _checked(rows: list[Any]) -> list[tuple[str, Kept]] | None:
    """Return the states in a part; None if it is malformed."""
    found: list[tuple[str, Kept]] = []
    for row in rows:
        match row:
            case [str(key), bytes() | None as packed, bool(was_lost)] if 0 < len(key) <= 255:
                found.append((key, Kept(packed, was_lost)))
            case _:
                return None
    return found
