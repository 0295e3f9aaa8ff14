"""Typed references to keyed entities, wherever they live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from fleetlm.actors.handlers import HasHandlers, name_of
from fleetlm.core.shard_table import MAX_SHARDS, shard_of
from fleetlm.entities.entity_calls import EntityRequest, check_key
from fleetlm.entities.hosting import CAST
from fleetlm.errors import Draining, NotOwner
from fleetlm.seconds import check_seconds

if TYPE_CHECKING:
    from fleetlm.core.shard_table import Owner
    from fleetlm.entities.entity_calls import EntityCalls
    from fleetlm.stream import Stream

A_co = TypeVar("A_co", bound=HasHandlers, covariant=True)
P = ParamSpec("P")
R = TypeVar("R")

ASK_S = 5.0
"""Seconds that another host has to list its keys."""
MOVE_S = 60.0
"""Seconds for a shard that an operator moves."""


class EntityRefs(Generic[A_co]):
    """References to all entities of a kind; made by `Entities.ref` and `Entities.host`, immutable.

    ::

        sessions = node.entities.ref(Session, "sessions")
        count = await sessions["s-42"].within(2).call(Session.append, "hi")

    Attributes:
        kind: the name of the kind.
    """

    __slots__ = ("_actor", "_calls", "kind")

    def __init__(self, calls: EntityCalls, actor: type[A_co], kind: str) -> None:
        self._calls = calls
        self._actor = actor
        self.kind: str = kind

    def __repr__(self) -> str:
        return f"<EntityRefs {self._actor.__qualname__} of {self.kind!r}>"

    def __getitem__(self, key: str) -> EntityRef[A_co]:
        """Return a reference to the entity with a key, which need not live yet.

        Raises:
            TypeError, InvalidName: not a text of 1 to 255 characters.
        """
        return EntityRef(self._calls, self._actor, self.kind, check_key(key))

    def shard(self, key: str) -> int:
        """Return the shard of a key. Raises: NotOwner: no connected node hosts the kind."""
        count = self._calls.shards.table.shards(self.kind)
        if not count:
            raise NotOwner(f"{self.kind}/{key}", "", 0)
        return shard_of(check_key(key), count)

    def where(self, key: str) -> str | None:
        """Return the node that owns a key, as this node sees it, or None. The entity need not live there."""
        owner = self._owner_of(key)
        return None if owner is None else owner.pid.node

    def epoch(self, key: str) -> int:
        """Return the epoch under which a key is owned, as this node sees it; 0 if nobody owns it."""
        owner = self._owner_of(key)
        return 0 if owner is None else owner.epoch

    def shards(self) -> dict[int, str]:
        """Return the shards that have an owner, each with its node, as this node sees it."""
        table = self._calls.shards.table
        owners = {shard: table.owner(self.kind, shard) for shard in range(table.shards(self.kind))}
        return {shard: owner.pid.node for shard, owner in owners.items() if owner is not None}

    async def list(self, *, local: bool = False) -> list[str]:
        """Return the keys of the entities that live, or whose states are kept, sorted.

        Args:
            local: only those on this node; else each host is asked that does not drain, and names 10,000 of
                its keys at most.

        Raises:
            NotDelivered, OutcomeUnknown: a host could not be asked.
        """
        calls = self._calls
        hosts = calls.shards.table.hosts(self.kind)
        own = calls.shards.context.name
        pids = [host.pid for node, host in hosts.items() if node == own or not local]
        found: set[str] = set()
        for pid in pids:
            try:
                found.update(await calls.sender.call(pid, ["list"], ASK_S))
            except Draining:
                continue
        return sorted(found)

    async def move(self, shard: int, to: str, timeout: float = MOVE_S) -> None:
        """Have the owner of a shard hand it over to another host; for operators.

        A host with more than its share hands shards over by itself, this one perhaps, too.

        Args:
            shard: its number; see `shard`.
            to: the name of a node that hosts the kind.
            timeout: seconds.

        Raises:
            NotOwner: nobody owns the shard.
            ValueError: it stays where it is; the text says why.
            NotDelivered, OutcomeUnknown: the owner could not be asked, or did not answer.
        """
        check_seconds(timeout)
        table = self._calls.shards.table
        count = table.shards(self.kind) or MAX_SHARDS
        if type(shard) is not int or not 0 <= shard < count:
            raise ValueError(f"a shard of {self.kind!r} is a number from 0 to {count - 1:,}")
        owner = table.owner(self.kind, shard)
        if owner is None:
            raise NotOwner(f"{self.kind}/(shard {shard})", "", table.seen(self.kind, shard))
        if owner.pid.node == to:
            return
        why = await self._calls.sender.call(owner.pid, ["move", shard, to], timeout)
        if why:
            raise ValueError(f"the shard {shard} of {self.kind!r} stays on {owner.pid.node}: {why}")

    def _owner_of(self, key: str) -> Owner | None:
        table = self._calls.shards.table
        count = table.shards(self.kind)
        return table.owner(self.kind, shard_of(check_key(key), count)) if count else None


class EntityRef(Generic[A_co]):
    """A typed reference to one entity, wherever it lives; made by ``EntityRefs[key]``, immutable.

    Requests that a caller makes one after another are served in that order. Those that it makes at the same
    time may change places while the shard moves.

    Attributes:
        kind: of the entity.
        key: of the entity.
    """

    __slots__ = ("_actor", "_calls", "_idle_s", "_known", "_shard", "_shards", "_timeout_s", "key", "kind")

    def __init__(
        self, calls: EntityCalls, actor: type[A_co], kind: str, key: str, timeout_s: float | None = None,
        idle_s: float | None = None,
    ) -> None:  # fmt: skip
        self._calls = calls
        self._actor = actor
        self._known = calls.shards.table.kind(kind)
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._shards = 0
        self._shard = -1
        self.kind: str = kind
        self.key: str = key

    def __repr__(self) -> str:
        within = "" if self._timeout_s is None else f" within {self._timeout_s:g} s"
        return f"<EntityRef {self._actor.__qualname__} {self.kind}/{self.key}{within}>"

    def within(self, seconds: float | None = None, *, idle: float | None = None) -> EntityRef[A_co]:
        """Return a reference to the same entity with limits of its own.

        Args:
            seconds: for each call and cast, looking for the owner included, and for each stream as a whole;
                None: the default, as in `Node.call` and `Node.stream`.
            idle: seconds that a stream may pause, as in `Node.stream`; None: the default.
        """
        found = EntityRef(self._calls, self._actor, self.kind, self.key, seconds, idle)
        found._shards, found._shard = self._shards, self._shard
        return found

    def call(
        self, method: Callable[Concatenate[A_co, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run a handler in the entity and return its result.

        It begins to live on its owner if it does not yet. While its shard moves, the call waits.

        Args:
            method: a handler, as in `ActorRef.call`.
            *args: arguments of the handler, message values as in `Node.send`.
            **kwargs: named arguments of the handler, likewise.

        Raises:
            TypeError: ``method`` is not a handler of this class; nothing was sent.
            NotOwner: there was no owner that took the request in time; it has not run.
            NotDelivered, OutcomeUnknown, RemoteError: as `Node.call`.
        """
        return self._calls.call(self._request(method, args, kwargs), self._timeout_s)

    async def cast(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Run a handler in the entity without waiting for it.

        Returns when the owner has put the request into the mailbox of the entity: one round trip. From then
        on it is lost only if that node, or the entity, ends without a handoff.

        Raises: as `call`, but for what the handler raises.
        """
        await self._calls.call(self._request(method, args, kwargs), self._timeout_s, CAST)

    def stream(
        self,
        method: Callable[Concatenate[A_co, P], AsyncIterator[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Stream[R]:
        """Stream the items that a handler of the entity yields. See `Stream`.

        The entity serves nothing else meanwhile, and its shard cannot move before the stream has ended.

        Raises:
            TypeError: as `call`.
            NotDelivered, OutcomeUnknown, RemoteError: as `Node.stream`, when it is iterated.
        """
        return self._calls.stream(self._request(method, args, kwargs), self._timeout_s, self._idle_s)

    def _request(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> EntityRequest:
        actor, known = self._actor, self._known
        name = name_of(actor, actor.__fleetlm_handlers__, method)
        if known.shards != self._shards:  # A program keeps a reference and asks often: it is hashed once.
            self._shards = known.shards
            self._shard = shard_of(self.key, known.shards) if known.shards else -1
        return EntityRequest(known, self.kind, self.key, self._shard, name, args, kwargs, actor)
