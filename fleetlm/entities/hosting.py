"""The entities of one kind on this node: takes requests, makes entities, and passivates them.

Theory of operation. A node that hosts a kind runs one *host process* for it, whose pid is in the table of
shards. Requests for all entities of the kind go to that process. It looks whether this node owns the shard of
the key *under the epoch that the request believes in*, and puts the request into the mailbox of the entity, a
process of this node only, which is made at its first request. Everything else answers `NotOwner`, and nothing
has run. So a request runs only where its caller and its owner agree on the epoch, and at most once.

What an entity has saved is kept here, packed (`Hosting.kept`), and goes along with its shard. It is kept
while the entity lives, too: after a crash of the entity the next one gets it, and knows that something is
missing. With a store (`Hosting.keeps`) the states are there instead, and nothing but what is to be
remembered of crashes is kept here or goes along.

The host process answers for a call only while it looks at it. From then on the mailbox of the entity does
(`Seat`), so that a call that waits there counts as not taken.

`entities.handoff` moves shards away, and takes those that others hand over; `review` decides when.

Source: Akka's ShardRegion and Orleans' activations; differs: a request carries an epoch, so that nobody who
is not the owner any more can run it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fleetlm.call import Call
from fleetlm.core.shard_table import Claim, Lost, Owner, shard_of
from fleetlm.entities.agreement import Agreement, terms_of
from fleetlm.entities.host_parts import Guard, HostOptions, Moves
from fleetlm.entities.info import HostedInfo, Tally
from fleetlm.entities.keeping import PAUSE_S, KindStore
from fleetlm.entities.kept_states import KeptStates
from fleetlm.entities.seat import EntityObject, Kept, Merge, Seat, base_merge, refuse_all
from fleetlm.entities.states import States
from fleetlm.entities.storing import Storing, stored_handlers
from fleetlm.errors import NotOwner
from fleetlm.texts import SHORT
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.actors.handlers import Handlers
    from fleetlm.core.shard_table import ShardTable
    from fleetlm.entities.replicated_shards import ReplicatedShards
    from fleetlm.ids import Pid
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.running import RunningProcess
    from fleetlm.wire.codec import Codec

log: logging.Logger = logging.getLogger("fleetlm")

MAX_KEY_CHARS = 255
"""Characters of a key."""
CAST, INNER = 1, 2
"""Bits of a request: it gets no result; it comes from an entity of the same shard on the same node, which
must not wait for itself while the shard is being handed over."""
REVIEW_S = 0.25
"""Seconds between two looks at what is to be claimed, handed over or passivated, if nothing happens."""
SAVE_MIN_S = 1.0
"""Seconds that an entity has to be saved, where `HostOptions.handoff_s` is less."""
_EVICTED_AT_ONCE = 8
"""Entities that begin to passivate where one more is to be made beyond the limit."""
_SWEPT_AT_ONCE = 1_024
"""Entities that begin to passivate in one look."""


class Hosting(KeptStates):
    """One kind on this node; also the function of its host process.

    Args:
        kind: its name.
        actor: the class of its entities.
        options: of the program.
        shards: the table.
        local: spawns entities.
        outbound: asks the hosts of other nodes.
        codec: packs states.
    """

    def __init__(
        self,
        kind: str,
        actor: type[EntityObject],
        options: HostOptions,
        shards: ReplicatedShards,
        local: LocalProcesses,
        outbound: Outbound,
        codec: Codec,
    ) -> None:
        super().__init__()
        self.kind: str = kind
        self.__qualname__ = f"host of {actor.__qualname__}"
        self.actor: type[EntityObject] = actor
        self.options: HostOptions = options
        self.shards: ReplicatedShards = shards
        self.outbound: Outbound = outbound
        self.context: NodeContext = shards.context
        self.table: ShardTable = shards.table
        self.states: States = States(kind, codec, self.context.settings.max_message_bytes // 2)
        self.seats: OrderedDict[str, Seat] = OrderedDict()
        """Key → the live entity; the one without a request for the longest time is first."""
        self.in_shard: dict[int, dict[str, Seat]] = {}
        """Shard → key → the same."""
        self.tally: Tally = Tally()
        self.process: RunningProcess | None = None
        self.handoff: Moves
        self.majority: Guard | None = None
        self.keeps: KindStore | None = None
        self._own_handlers: Handlers | None = None
        """What entities here have in place of the handlers of their class."""
        if options.stored is not None:
            self.keeps = KindStore(options.stored, self, self.context.loop)
            self._own_handlers = stored_handlers(actor.__fleetlm_handlers__, self.keeps)
        self._handlers = actor.__fleetlm_handlers__.by_name
        self._local = local
        self._loop = self.context.loop
        self._time = self._loop.time
        self._began_at: float = self._time()
        self._agreement = Agreement(self.table, kind)
        self._hosts_seen: tuple[str, ...] = ()
        self._hosts_since = self._time()
        self._timer: asyncio.TimerHandle | None = None
        self._is_reviewing = False

    def guard_with(self, guard: Guard) -> None:
        """Serve what this guard allows. Call it before the host process runs."""
        self.majority = guard
        self._own_handlers = guard.fenced(self._own_handlers or self.actor.__fleetlm_handlers__)

    async def __call__(self, process: RunningProcess) -> None:
        """Run as the host process, until it is ended."""
        self.process = process
        self.shards.hosted[self.kind] = self
        terms = terms_of(self.options, self.context.settings.node_timeout_s)
        self.shards.perform(self.table.host(self.kind, process.pid.number, self.options.shards, terms))
        if self.majority is not None:
            self.majority.start(process.pid.number)
        take = process.mailbox.get_any
        try:
            while True:
                message = await take()
                if type(message) is Call:
                    self._serve(process, message)
                message = None
        finally:
            self._close()

    def _serve(self, process: RunningProcess, call: Call) -> None:
        """Take a call. An error of its own costs that call alone, and no entity."""
        request = call.message
        try:
            if type(request) is Invoke:
                if request.handler:
                    self._take(call, request)
                    return
                (call.message,) = request.args  # See `to_host`.
            if process._accept_call(call):  # noqa: SLF001  # which answers it, should it end now
                self.handoff.asked(call)
        except Exception as error:
            log.exception("the host of %s could not serve a request, and goes on", self.kind)
            if call.open:
                call.fail(error)

    @property
    def is_closed(self) -> bool:
        """Whether this node hosts the kind no more, or is about to stop."""
        process = self.process
        return process is None or process._is_ending or process._is_gone or bool(self.outbound.stopped)  # noqa: SLF001

    # Requests.

    def _take(self, call: Call, request: Invoke) -> None:
        """Give a request to its entity, or refuse it."""
        route: Any = request.handler
        try:
            key, epoch, mode, name = route
            seat = self.seats.get(key)
        except (TypeError, ValueError):
            key = epoch = mode = name = seat = None
        if type(mode) is not int or type(name) is not str:
            call.no_handler(self.kind, f"{SHORT.repr(route)} does not name an entity")
            return
        guard = self.majority
        is_fenced = guard is not None and seat is not None and not guard.serves(seat.shard)
        if seat is None or seat.epoch != epoch or not seat.takes or is_fenced:
            seat = self._find(call, request, key, epoch, mode)
            if seat is None:
                return
        request.handler = name
        box = seat.box
        if box.full:
            call.would_block(f"{self.kind}/{key}", "as many requests as its mailbox takes wait for it there")
            return
        if mode & CAST:
            self._cast(call, request, seat)
        else:
            box.put(call)
        seat.used_at = self._time()
        self.seats.move_to_end(key)

    def entity_for(self, key: str, epoch: int) -> Pid | None:
        """Return the process of a live entity that takes a call now; the caller puts it there at once.

        A call of this node needs no way through the host process, which costs as much as the call itself.

        Args:
            key: of the entity.
            epoch: under which the caller believes that this node owns it.

        Returns:
            None: the host process must decide, since the entity does not live, or does not take the call.
        """
        seat, guard = self.seats.get(key), self.majority
        if seat is None or seat.epoch != epoch or not seat.takes or seat.box.full or self.is_closed:
            return None
        if guard is not None and not guard.serves(seat.shard):
            return None
        seat.used_at = self._time()
        self.seats.move_to_end(key)
        return seat.process.pid

    def _cast(self, call: Call, request: Invoke, seat: Seat) -> None:
        """Give a request to its entity that gets no result, and acknowledge it."""
        found = self._handlers.get(request.handler)
        if found is None or found.streams:
            call.no_handler(self.kind, f"{SHORT.repr(request.handler)} is not a handler that returns")
            return
        seat.box.put(request)
        seat.acknowledge(call)

    def _find(self, call: Call, request: Invoke, key: Any, epoch: Any, mode: Any) -> Seat | None:
        """Return the entity for a request, made for it if need be. None: it was refused, or it waits."""
        if type(key) is not str or not 0 < len(key) <= MAX_KEY_CHARS:
            call.no_handler(self.kind, f"{SHORT.repr(request.handler)} does not name an entity")
            return None
        if not call.wanted:
            call.abandon()
            return None
        shard = shard_of(key, self.options.shards)
        host = self.table.own(self.kind)
        claim = None if host is None else host.claims.get(shard)
        if claim is None or claim.epoch != epoch or not self.serves(shard, is_inner=bool(mode & INNER)):
            self.refuse(call, key, shard)
            return None
        seat = self.seats.get(key)
        if seat is None or seat.process._is_gone:  # noqa: SLF001
            seat = self._activate(call, key, shard)
        elif not seat.takes:
            if len(seat.waiting) >= seat.box.limit:
                call.would_block(f"{self.kind}/{key}", "it is being saved, and many requests wait for that")
            else:
                seat.waiting.append(call)
            return None
        return seat

    def serves(self, shard: int, *, is_inner: bool) -> bool:
        """Whether a shard of this node takes requests; ``is_inner``: from one of its own entities."""
        guard = self.majority
        return self.handoff.serves(shard, is_inner=is_inner) and (guard is None or guard.serves(shard))

    def refuse(self, call: Call, key: str, shard: int) -> None:
        """Answer that this node is not the owner, as the request believes, and who is."""
        owner = self.table.owner(self.kind, shard)
        target = f"{self.kind}/{key}"
        if owner is None or not self.serves(shard, is_inner=False):
            call.refuse(NotOwner(target, "", self.table.seen(self.kind, shard)))
        else:
            call.refuse(NotOwner(target, owner.pid.node, owner.epoch))

    def refuse_waiting(self, seat: Seat) -> None:
        """Refuse the calls that wait until an entity has been saved, since its shard is handed over."""
        waiting, seat.waiting = seat.waiting, []
        for call in waiting:
            self.refuse(call, seat.key, seat.shard)

    # Entities.

    def _activate(self, call: Call | None, key: str, shard: int) -> Seat | None:
        """Make an entity. None: there is no room for one more, and the call was refused."""
        if len(self.seats) >= self.options.live and not self._evict() and call is not None:
            why = f"{len(self.seats):,} of them live on that node, and all are at work"
            call.would_block(f"{self.kind}/{key}", why)
            return None
        kept = self.kept.get(shard, {}).get(key)
        if kept is None:
            if self.kept_bytes >= self.options.kept_bytes and call is not None:
                why = f"that node keeps {self.kept_bytes:,} bytes of states, as many as it may"
                call.would_block(f"{self.kind}/{key}", why)
                return None
            kept = Kept(None, shard in self.lossy)
        host = self.table.own(self.kind)
        assert host is not None
        epoch = host.claims[shard].epoch if self.serves(shard, is_inner=False) else -1
        seat = Seat(self, key, shard, epoch, kept, self.actor.__qualname__)
        if self.keeps is not None:
            seat.storing = Storing(seat, self.keeps)
        pid = self._local.spawn(seat, (), None, is_local=True)
        process = self._local.process(pid)
        assert process is not None
        seat.process, seat.box = process, process.mailbox
        seat.used_at = self._time()
        self.seats[key] = seat
        self.in_shard.setdefault(shard, {})[key] = seat
        self.tally.activated += 1
        return seat

    def make(self, seat: Seat) -> EntityObject:
        """Implement `seat.Host`."""
        entity = self.actor(*self.options.args)
        object.__setattr__(entity, "_Entity__seat", seat)
        if self._own_handlers is not None:
            object.__setattr__(entity, "__fleetlm_handlers__", self._own_handlers)
        return entity

    def epoch_of(self, seat: Seat) -> int:
        """Implement `seat.Host`."""
        host = self.table.own(self.kind)
        claim = None if host is None else host.claims.get(seat.shard)
        return self.table.seen(self.kind, seat.shard) if claim is None else claim.epoch

    def keep(self, seat: Seat, packed: bytes | None) -> None:
        """Implement `seat.Host`."""
        if packed is None:
            self.forget(seat.shard, seat.key)
        else:
            self.put_kept(seat.shard, seat.key, Kept(packed, False))

    def ended(self, seat: Seat, rest: list[Any]) -> None:
        """Implement `seat.Host`: serve again what the entity leaves behind, or refuse it."""
        self._vacate(seat)
        host = self.table.own(self.kind)
        claim = None if host is None else host.claims.get(seat.shard)
        if claim is not None and seat.has_lost and not self.is_closed:
            self.put_kept(seat.shard, seat.key, Kept(seat.kept.packed, True))
        elif claim is None and not self.handoff.offers(seat.shard):
            self.forget(seat.shard, seat.key)  # Saved after the shard was lost.
        if not rest:
            return
        if self.is_closed or not (seat.is_ready or seat.is_saved):
            refuse_all(rest, f"{self.kind}/{seat.key}", seat.storing)
            return
        for message in rest:
            self._give_back(seat, message, claim is not None)

    def _vacate(self, seat: Seat) -> None:
        """Know an entity no more."""
        if self.seats.get(seat.key) is seat:
            del self.seats[seat.key]
            in_shard = self.in_shard[seat.shard]
            del in_shard[seat.key]
            if not in_shard:
                del self.in_shard[seat.shard]

    def _give_back(self, seat: Seat, message: Any, is_owner: bool) -> None:
        """Serve a request again that an entity has left behind."""
        key, shard = seat.key, seat.shard
        is_cast = type(message) is Invoke
        if not is_cast and type(message.message.handler) is not str:
            self._take(message, message.message)  # It came when the entity was being saved.
        elif not is_cast and not message.wanted:
            message.abandon()
        elif not is_owner or not self._may_go_on(shard, is_cast=is_cast):
            if is_cast:
                log.warning("a cast to the entity %s/%s is lost: its shard has gone", self.kind, key)
            else:
                self.refuse(message, key, shard)
        else:
            again = self.seats.get(key) or self._activate(None if is_cast else message, key, shard)
            if again is not None:
                again.box.put(message)

    def _may_go_on(self, shard: int, *, is_cast: bool) -> bool:
        """Whether a request that an entity has left behind may be served here; a cast even in a handoff."""
        if is_cast:
            return self.majority is None or self.majority.serves(shard)
        return self.serves(shard, is_inner=False)

    def again(self, message: Any) -> None:
        """Implement `seat.Host`."""
        self._take(message, message.message)

    @property
    def save_s(self) -> float:
        """Implement `seat.Host`: seconds that an entity has to be saved."""
        return max(SAVE_MIN_S, self.options.handoff_s)

    def stays(self, seat: Seat) -> None:
        """Implement `seat.Host`: an entity could not be saved, and is not saved again at once.

        One whose shard has gone must not stay: it would serve what it has in memory if the shard came back.
        """
        if self.seats.get(seat.key) is not seat:
            return
        seat.used_at = self._time()
        self.seats.move_to_end(seat.key)
        host = self.table.own(self.kind)
        if self.keeps is None or (host is not None and seat.shard in host.claims):
            return
        if self.keeps.is_write:
            seat.end("fenced")
        else:  # What it has may still be stored, as long as the later owner has not loaded.
            self._loop.call_later(PAUSE_S, self._fence_again, seat)

    def _fence_again(self, seat: Seat) -> None:
        if self.seats.get(seat.key) is seat and not self.is_closed:
            _ = seat.close("fenced")

    # Passivation.

    def _evict(self) -> bool:
        """Begin to passivate the entities that had no request for the longest time. False: none is idle."""
        found = 0
        if self.keeps is not None and self.keeps.is_in_trouble:
            return False
        for key, seat in self.seats.items():
            if seat.is_idle and key not in self.options.remember:
                _ = seat.close()
                found += 1
                if found == _EVICTED_AT_ONCE:
                    break
        beyond = len(self.seats) - self.options.live
        return found > 0 and beyond < self.options.live // 8 + _EVICTED_AT_ONCE

    def _sweep(self) -> None:
        """Begin to passivate what has had no request for `HostOptions.idle_s`."""
        before = self._time() - self.options.idle_s
        found = 0
        if self.keeps is not None and self.keeps.is_in_trouble:
            return
        for key, seat in self.seats.items():
            if seat.used_at > before or found == _SWEPT_AT_ONCE:
                break
            if seat.is_idle and key not in self.options.remember:
                _ = seat.close()
                found += 1

    # Shards.

    def lost(self, lost: Lost) -> None:
        """Implement `replicated_shards.Hosted`: another claim has outdone that of this node."""
        if self.majority is not None:
            self.majority.dropped(lost.shard)
        if self.handoff.is_done_by(lost):
            return
        seats = list(self.in_shard.get(lost.shard, {}).values())
        kept = self.kept.get(lost.shard, {})
        if seats or kept:
            log.warning(
                "the shard %d of %s belongs to %s (epoch %d): %d entities here are fenced", lost.shard,
                self.kind, lost.winner.pid.node, lost.winner.epoch, len(seats),
            )  # fmt: skip
        self.tally.fenced += len(seats)
        for seat in seats:
            seat.epoch = -1
        if self.majority is not None:
            self._kill(seats)
            self.forget_shard(lost.shard)
            return
        if self.keeps is not None:
            for seat in seats:  # It may still be stored, as long as the winner has not loaded.
                _ = seat.close("fenced")
            self.forget_shard(lost.shard)
            return
        if self.actor.merge is not base_merge(self.actor) and not self.is_closed:
            self.handoff.offer(lost, seats)
            return
        for seat in seats:
            seat.end("fenced")
        self.forget_shard(lost.shard)

    def fence(self, shards: Iterable[int], why: str) -> None:
        """Implement `majority.Fenced`: give up shards at once, and what lives there."""
        host = self.table.own(self.kind)
        if host is None or self.majority is None:
            return
        gone = [shard for shard in shards if shard in host.claims and not self.handoff.is_sealed(shard)]
        seats = [seat for shard in gone for seat in self.in_shard.get(shard, {}).values()]
        if gone:
            what = f"{len(gone)} shard(s) of {self.kind} are given up, and {len(seats)} entities end"
            log.warning("%s: %s", what, why)
        self.tally.fenced += len(seats)
        self.shards.perform(self.table.drop(self.kind, gone))
        self._kill(seats)
        for shard in gone:
            self.majority.dropped(shard)
            self.forget_shard(shard)

    def _kill(self, seats: list[Seat]) -> None:
        """End entities at once, whatever they do; what they have not begun is refused."""
        for seat in seats:
            seat.epoch = -1
            for call in [*seat.take_waiting(), *seat.waiting]:
                self.refuse(call, seat.key, seat.shard)
            seat.waiting = []
            seat.is_saved = True  # What it had belongs to nobody any more.
            self._vacate(seat)  # A process that is killed in its first turn does not do so itself.
            self._local.stop_process(seat.process.pid.number, "fenced", at_once=True)

    def gone(self) -> None:
        """The host process has ended, whatever the reason."""

    def review_soon(self) -> None:
        """Implement `replicated_shards.Hosted`."""
        if not self._is_reviewing:
            self._is_reviewing = True
            self._loop.call_soon(self._review)

    def counts(self) -> dict[str, int]:
        """Return the nodes that may have shards of this kind, each with how many it has."""
        hosts, step = self.table.hosts(self.kind), self.context.drain_step
        return {
            node: len(host.claims)
            for node, host in hosts.items()
            if host.shards == self.options.shards and not step(node)
        }

    def _review(self) -> None:
        """Claim what is free, hand over what is too much, and passivate what is idle."""
        self._is_reviewing = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        host = self.table.own(self.kind)
        if self.is_closed or host is None:
            return
        self._timer = self._loop.call_later(REVIEW_S, self._review)
        self._sweep()
        self.handoff.sweep()
        counts, now = self.counts(), self._time()
        if tuple(sorted(counts)) != self._hosts_seen:
            self._hosts_seen, self._hosts_since = tuple(sorted(counts)), now
            self._agreement.look()
        self._outbid()
        if self.context.name not in counts:
            self.handoff.leave(counts)
        else:
            settling = self.shards.settling
            if settling.is_over(self._began_at, self.options.settle_s):
                self.handoff.claim_free(counts)
            if now - max(self._hosts_since, self._began_at, settling.last_up) >= self.options.rebalance_s:
                self.handoff.balance(counts)
        for key in self.options.remember:
            shard = shard_of(key, self.options.shards)
            if key not in self.seats and shard in host.claims and self.serves(shard, is_inner=False):
                self._activate(None, key, shard)

    def _outbid(self) -> None:
        """Take a higher epoch for shards of which others have heard one that is higher than this node's."""
        host = self.table.own(self.kind)
        assert host is not None
        seen = self.table.seen
        higher = [
            shard
            for shard, claim in host.claims.items()
            if seen(self.kind, shard) > claim.epoch and self.serves(shard, is_inner=False)
        ]
        if self.majority is not None:
            self.handoff.outbid(higher)
            return
        next_epoch = self.table.next_epoch
        claims = host.claims
        self._claim_again(
            {shard: claims[shard]._replace(epoch=next_epoch(self.kind, shard)) for shard in higher}
        )
        for shard in higher:
            self.load_anew(shard)

    def load_anew(self, shard: int) -> None:
        """Implement `keeping.OwnShards`: end what was loaded before another owner may have stored.

        Else it would answer from what it has in memory until it is to be stored itself.
        """
        for seat in list(self.in_shard.get(shard, {}).values()) if self.keeps is not None else ():
            if seat.is_ready:
                _ = seat.close()

    def adopt(self, shard: int, claim: Claim) -> None:
        """Own a shard under another claim from now on."""
        self._claim_again({shard: claim})

    def renew(self, shard: int) -> None:
        """Take a higher epoch for a shard that was not handed over after all, and serve it again."""
        host = self.table.own(self.kind)
        assert host is not None
        epoch = self.table.next_epoch(self.kind, shard)
        self._claim_again({shard: host.claims[shard]._replace(epoch=epoch)})

    def _claim_again(self, claims: dict[int, Claim]) -> None:
        """Claim shards of this node under higher epochs."""
        if not claims:
            return
        for shard, claim in claims.items():
            for seat in self.in_shard.get(shard, {}).values():
                seat.epoch = claim.epoch
        self.shards.perform(self.table.claim(self.kind, claims))

    def owner(self, key: str) -> Owner | None:
        """Return who owns a key, as this node sees it."""
        return self.table.owner(self.kind, shard_of(key, self.options.shards))

    def info(self) -> HostedInfo:
        """Return what this node has of the kind, for people."""
        host, tally, guard = self.table.own(self.kind), self.tally, self.majority
        return HostedInfo(
            self.actor.__qualname__, 0 if host is None else len(host.claims), self.handoff.moving,
            len(self.seats), self.options.live, self.kept_bytes, self.options.kept_bytes, tally.activated,
            tally.fenced, tally.handed_over, tally.taken, tally.stayed,
            None if guard is None else guard.info(),
            None if self.keeps is None else self.keeps.info(),
        )  # fmt: skip

    def keys(self) -> list[str]:
        """Return the keys of the entities that live here, or whose states are kept here, sorted."""
        if self.keeps is not None:
            return sorted(self.seats)
        return sorted(self.seats.keys() | {key for kept in self.kept.values() for key in kept})

    def merge_into(self, key: str, packed: bytes) -> bool:
        """Give an entity of this node the state of another one; False: this node does not own it."""
        shard = shard_of(key, self.options.shards)
        host = self.table.own(self.kind)
        if host is None or shard not in host.claims or not self.serves(shard, is_inner=False):
            return False
        try:
            state = self.states.read(packed)
        except ValueError as error:  # For example a type that only newer versions of the program know.
            log.warning("what %s/%s was to merge is lost: %s", self.kind, key, error)
            return False
        seat = self.seats.get(key)
        if seat is None:
            seat = self._activate(None, key, shard)
        if seat is None or not seat.takes:
            return False
        seat.run_between(Merge(seat, state))
        return True

    def _close(self) -> None:
        """Host the kind no more: end its entities, and tell the other nodes."""
        if self._timer is not None:
            self._timer.cancel()
        self.handoff.close()
        if self.majority is not None:
            self.majority.close()
        if self.keeps is not None:
            self.keeps.close()
        for seat in list(self.seats.values()):
            self._local.stop_process(seat.process.pid.number, "shutdown")
        self.shards.hosted.pop(self.kind, None)
        self.shards.perform(self.table.unhost(self.kind))
