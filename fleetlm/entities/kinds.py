"""What a program asks of its node about keyed entities."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fleetlm.core.quorum import Quorum
from fleetlm.core.shard_table import MAX_KINDS, MAX_SHARDS
from fleetlm.entities.entity_calls import EntityCalls, check_key
from fleetlm.entities.entity_ref import EntityRefs
from fleetlm.entities.handoff import Handoff
from fleetlm.entities.host_parts import HostOptions
from fleetlm.entities.hosting import Hosting
from fleetlm.entities.info import KindInfo, kind_info
from fleetlm.entities.keeping import StoreOptions
from fleetlm.entities.majority import Majority
from fleetlm.entities.seat import EntityObject, close_all
from fleetlm.errors import NodeStopped
from fleetlm.names import check_process_name
from fleetlm.processes.functions import check_concrete
from fleetlm.processes.running import exit_reason, plain_class
from fleetlm.seconds import check_seconds
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.actors.sender import ActorSender
    from fleetlm.entities.replicated_shards import ReplicatedShards
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.stores.interface import Store
    from fleetlm.wire.codec import Codec

E = TypeVar("E", bound=EntityObject)

log: logging.Logger = logging.getLogger("fleetlm")

MAX_RESTARTS, RESTARTS_S = 3, 60.0
"""Restarts of a host process within so many seconds. Nothing ends one but an exit signal, or a fault."""
DEFAULT_SHARDS = 256
"""Enough to spread a kind over some dozens of nodes."""


class Entities:
    """Keyed entities of the cluster: each key lives on one node at a time. Held as `Node.entities`.

    ::

        sessions = await node.entities.host(Session, "sessions")        # on nodes that host the kind
        sessions = node.entities.ref(Session, "sessions")               # anywhere
        count = await sessions["s-42"].within(2).call(Session.append, "hi")

    Args:
        shards: the replicated table.
        local: spawns what runs here.
        outbound: asks other nodes.
        sender: sends the requests of references.
        codec: packs states.
    """

    def __init__(
        self,
        shards: ReplicatedShards,
        local: LocalProcesses,
        outbound: Outbound,
        sender: ActorSender,
        codec: Codec,
    ) -> None:
        self._shards = shards
        self._local = local
        self._outbound = outbound
        self._codec = codec
        self._calls = EntityCalls(shards, outbound, sender)
        self._hosted: dict[str, Hosting] = {}

    async def host(  # noqa: PLR0913  # most programs name none of the limits
        self,
        actor: Callable[..., E],
        kind: str,
        *,
        args: tuple[Any, ...] = (),
        shards: int = DEFAULT_SHARDS,
        idle_s: float = 600.0,
        handoff_s: float = 5.0,
        settle_s: float = 2.0,
        rebalance_s: float = 2.0,
        live: int = 100_000,
        kept_bytes: int = 256 * 1024 * 1024,
        remember: Iterable[str] = (),
        safety: Literal["available"] | Quorum = "available",
        store: Store | None = None,
        durable: Literal["write", "passivate"] | float | None = None,
        store_s: float = 2.0,
    ) -> EntityRefs[E]:
        """Host entities of a kind on this node, which gets its share of the shards.

        All nodes that host a kind do so with the same class and the same number of shards. The kind is
        hosted until `unhost`, or until the node stops. Without a store, what an entity has saved is kept in
        the memory of its node: it survives passivation, handoffs and the drain of its node, but not a crash
        of it.

        Args:
            actor: a subclass of `Entity`.
            kind: the name of the kind in the cluster, 1 to 255 printable characters.
            args: arguments of the constructor of each entity on this node.
            shards: into how many the kind is cut, 1 to 4,096.
            idle_s: seconds without a request after which an entity is saved and ended, until its next one.
            handoff_s: seconds that the entities of a shard have to finish and to be saved when it is handed
                over. Then it stays for the time being. One `Entity.save` has as long, at least a second;
                beyond that it counts as failed.
            settle_s: seconds before this node claims shards that look free. They begin when the kind is
                hosted, discovery has answered, and each node that it knows is connected or cannot be reached.
                Each connected one must have told of its shards, too. A node without discovery that
                knows no other one claims at once.
            rebalance_s: seconds without a change among the hosts before this node hands over what is beyond
                its share.
            live: how many entities may live on this node. Beyond that, those that had no request for the
                longest time are saved and ended; if all are at work, requests to further ones are refused
                with `WouldBlock`.
            kept_bytes: bytes of saved states that this node keeps. Beyond that, requests to new entities are
                refused with `WouldBlock`.
            safety: ``"available"``: in a partition both sides serve, and one wins when they meet again. A
                `Quorum`: only a side that sees more than half of the expected hosts serves. Alike on all
                nodes that host the kind.
            remember: keys of entities that live as soon as their shard has an owner, and never passivate.
            store: where the states outlive their nodes, such as a `SQLiteStore` or a `PostgresStore`; the
                same data on all nodes that host the kind. It is not closed with the node. See
                `docs/stores.md`.
            durable: when a change is stored. ``"write"``, the default with a store: a result leaves a handler
                only after what `Entity.save` then returns has been stored, so that nothing that was
                acknowledged is lost with a node. A number: at most so many seconds after the change, and
                when the entity is passivated or moves. ``"passivate"``: only then.
            store_s: seconds that the store may take for one operation. Then it counts as failed.

        Returns:
            References to the entities of the kind, as `ref`.

        Raises:
            TypeError: ``actor`` is no class of entities, or has a concurrent handler.
            ValueError: this node hosts the kind already, others have cut it into another number of shards,
                an argument is out of its range, or `Settings.peers_may` does not allow ``call`` and
                ``register``, which hosts need from each other. Nothing changed.
            InvalidName: ``kind``, or a key to remember.
            NodeStopped: this node has been stopped.
        """
        self._shards.context.check_loop("Entities.host")
        if self._outbound.stopped:
            raise NodeStopped(self._shards.context.name, self._outbound.stopped)
        cls = check_entity(actor)
        check_process_name(kind)
        times = {"idle_s": idle_s, "handoff_s": handoff_s, "settle_s": settle_s, "rebalance_s": rebalance_s}
        for argument, value in times.items():
            check_seconds(value, argument, least=0)
        if live < 1 or kept_bytes < 0:
            raise ValueError("at least one entity must be able to live, and kept_bytes is not negative")
        known = self._shards.table.shards(kind)
        if not 1 <= shards <= MAX_SHARDS or (known and known != shards):
            cut = (
                f"other nodes have cut {kind!r} into {known:,}" if known else f"there are 1 to {MAX_SHARDS:,}"
            )
            raise ValueError(f"{shards:,} shards: {cut}")
        stored = _check_store(store, durable, store_s)
        if safety != "available" and not isinstance(safety, Quorum):
            raise TypeError(f"safety is 'available' or a Quorum, not {SHORT.repr(safety)}")
        remembered = frozenset(check_key(key) for key in remember)
        options = HostOptions(
            args,
            shards,
            idle_s,
            handoff_s,
            settle_s,
            rebalance_s,
            live,
            kept_bytes,
            remembered,
            None if safety == "available" else safety,
            stored,
        )

        def make() -> Hosting:
            return self._complete(
                Hosting(kind, cls, options, self._shards, self._local, self._outbound, self._codec)
            )

        hosting, task = self._add(kind, make)
        while hosting.process is None and not task.done():  # noqa: ASYNC110  # it runs in the next turn
            await asyncio.sleep(0)
        return self.ref(cls, kind)

    def _add(
        self, kind: str, make: Callable[[], Hosting], restarts: tuple[float, ...] = ()
    ) -> tuple[Hosting, asyncio.Task[Any]]:
        """Host a kind that the runtime has put together. Returns its host, and the task of that.

        Args:
            kind: its name.
            make: puts its host together; once more when a host process has died.
            restarts: when it was started anew lately.

        Raises:
            ValueError: this node hosts the kind already, or as many as it may, or other nodes may not do what
                hosts must. Nothing changed.
        """
        denied = {"call", "register"} - self._shards.context.settings.peers_may
        if denied:
            raise ValueError(
                f"a node that hosts {kind!r} lets other nodes ask it and take over from it, but its "
                f"Settings.peers_may has no {' and no '.join(map(repr, sorted(denied)))}"
            )
        if kind in self._hosted:
            raise ValueError(f"this node hosts {kind!r} already")
        if len(self._hosted) >= MAX_KINDS:
            raise ValueError(f"a node hosts at most {MAX_KINDS} kinds")
        hosting = self._hosted[kind] = make()
        task = self._local.task_of(self._local.spawn(hosting, (), None))
        assert task is not None
        task.add_done_callback(lambda done: self._ended(hosting, done, make, restarts))
        return hosting, task

    async def unhost(self, kind: str) -> bool:
        """Host a kind no more. Its entities here end with ``"shutdown"``, and what they have saved is lost.

        To hand them over first, drain the node. With a store they are stored first, for which they have
        ``handoff_s`` seconds.

        Returns:
            False if this node does not host it.
        """
        hosting = self._hosted.get(kind)
        if hosting is None or hosting.process is None:
            return False
        task = self._local.task_of(hosting.process.pid)
        if hosting.keeps is not None:
            await close_all(list(hosting.seats.values()), hosting.options.handoff_s)
            own = self._shards.table.own(kind)
            if own is not None and not hosting.seats:
                await hosting.keeps.release(list(own.claims), hosting.options.handoff_s)
        self._local.stop_process(hosting.process.pid.number, "shutdown")
        if task is not None:
            await asyncio.wait({task})
        return True

    def ref(self, actor: Callable[..., E], kind: str) -> EntityRefs[E]:
        """Return references to the entities of a kind, whether this node hosts it or not.

        Args:
            actor: the class of the entities, or a base class of it that has the handlers.
            kind: its name.

        Raises:
            TypeError, InvalidName: not such a class, or not such a name.
        """
        return EntityRefs(self._calls, check_entity(actor), check_process_name(kind))

    def kinds(self) -> list[str]:
        """Return the kinds that a connected node or this one hosts, sorted."""
        return self._shards.table.kinds()

    def info(self, most: int | None = None) -> list[KindInfo]:
        """Return what this node knows of each kind, sorted by name; it looks at no shard and no entity.

        Args:
            most: how many kinds at most; those that this node hosts go first. None: all.
        """
        table, hosted = self._shards.table, self._hosted
        kinds = sorted(table.kinds(), key=lambda kind: kind not in hosted)[:most]
        return [
            kind_info(table, kind, hosted[kind].info() if kind in hosted else None) for kind in sorted(kinds)
        ]

    def _hostings(self) -> list[Hosting]:
        return list(self._hosted.values())

    def _complete(self, hosting: Hosting) -> Hosting:
        """Give the host of a kind its parts."""
        hosting.handoff = Handoff(hosting)
        if hosting.options.quorum is not None:
            hosting.guard_with(Majority(hosting, hosting.options.quorum, self._shards, self._outbound))
        return hosting

    def _ended(
        self,
        hosting: Hosting,
        task: asyncio.Task[None],
        make: Callable[[], Hosting],
        restarts: tuple[float, ...],
    ) -> None:
        """Supervise a host process: one that was not told to end is started anew, a few times."""
        kind, now = hosting.kind, self._shards.context.loop.time()
        hosting.gone()
        if self._hosted.get(kind) is not hosting:
            return
        del self._hosted[kind]
        process = hosting.process
        if process is None or self._outbound.stopped:
            return
        error = None if task.cancelled() else task.exception()
        reason = exit_reason(process, error)
        if reason == "shutdown" or (task.cancelled() and not process._is_ending):  # noqa: SLF001  # the runtime's
            return  # The node stops, or its loop ends.
        lately = tuple(at for at in restarts if now - at < RESTARTS_S)
        may_restart = len(lately) < MAX_RESTARTS
        what = "it is started anew"
        if not may_restart:
            others = self._shards.table.hosts(kind).keys() - {self._shards.context.name}
            take = "others take it over" if others else "no other node has it, so start this one anew"
            what = f"as {MAX_RESTARTS} times before in {RESTARTS_S:g} s. It is hosted here no more: {take}"
        log.error("the host of %s has ended (%s), with what lived here: %s", kind, SHORT.repr(reason), what)
        if may_restart:
            self._add(kind, make, (*lately, now))

    async def _evacuate(self, until: float, still_served: set[int | str]) -> tuple[str, ...]:
        """Hand everything over until that time of the loop. Returns the entities that are still here.

        Those that are still here are served, though the node refuses other new work.

        Args:
            until: on the loop's clock.
            still_served: see `Inbound`.
        """
        hostings = self._hostings()
        # For good: hosts ask each other until the node stops, and requests learn where an entity has gone.
        still_served |= {hosting.process.pid.number for hosting in hostings if hosting.process is not None}
        left = await asyncio.gather(*(hosting.handoff.drained(until) for hosting in hostings))
        return tuple(
            f"{hosting.kind}/{key}" for hosting, keys in zip(hostings, left, strict=True) for key in keys
        )


def _check_store(
    store: Store | None, durable: Literal["write", "passivate"] | float | None, store_s: float
) -> StoreOptions | None:
    """Return what is to be done with a store. Raises: TypeError, ValueError."""
    check_seconds(store_s, "store_s", above=0, finite=True)
    if store is None:
        if durable is not None:
            raise ValueError("durable says when the store gets a change, and there is no store")
        return None
    missing = [name for name in ("load", "save", "drop") if not callable(getattr(store, name, None))]
    if missing:
        raise TypeError(f"{SHORT.repr(store)} is not a Store: it lacks {', '.join(missing)}")
    durable = "write" if durable is None else durable
    if durable not in {"write", "passivate"} and not (
        isinstance(durable, int | float) and 0 < durable < math.inf
    ):
        raise ValueError(
            f"durable is 'write', 'passivate' or a number of seconds above 0, not {SHORT.repr(durable)}"
        )
    return StoreOptions(store, durable, store_s)


def check_entity(actor: Callable[..., E]) -> type[E]:
    """Return a class of entities. Raises: TypeError."""
    cls = plain_class(actor)
    if not (isinstance(cls, type) and getattr(cls, "__fleetlm_entity__", False)):
        raise TypeError(f"{SHORT.repr(actor)} is not a subclass of Entity")
    check_concrete(cls)
    found: type[Any] = cls
    for name, each in found.__fleetlm_handlers__.by_name.items():
        if each.concurrent:
            raise TypeError(
                f"{cls.__qualname__}.{name} is concurrent, and an entity runs one handler at a time, so that "
                "it can be saved between two of them"
            )
    return found
