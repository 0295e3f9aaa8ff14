"""Requests to entities: finds the owner of a key, and follows it where it goes.

Theory of operation. The table of shards says who owns a key and under which epoch. The request goes to the
host process there and carries that epoch. If it is refused, nothing has run, and this node waits until its
table says something else, then asks again; so a request costs one message as long as nothing moves. What is
waited for:

* `NotOwner`: the shard is being handed over, or the table here is older than the owner's;
* `Draining`, `NoConnection`, and `NoProcess` for the host process: the owner leaves, or is lost;
* no owner at all: no host has come up yet, or one is about to claim.

Everything else is the outcome of the request. Requests that wait for one shard go on in the order in which
they came, and a new one goes behind them. The deadline of the request bounds the wait; then the last refusal
is raised, since the request has not run.

A call to an entity that lives on this node already goes straight to it (`Hosting.entity_for`).

A cast is a request, too, which the owner acknowledges when it lies in the mailbox of the entity.

Source: Orleans' and Akka's clients, which cache where an entity lives and forward what went astray;
differs: nobody forwards. The refusal goes back to the caller's node, which knows the deadline.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from fleetlm.core.shard_table import Kind, Owner, shard_of
from fleetlm.entities.hosting import CAST, INNER, MAX_KEY_CHARS
from fleetlm.entities.seat import CURRENT
from fleetlm.errors import (
    Draining,
    InvalidName,
    NoConnection,
    NodeStopped,
    NoProcess,
    NotDelivered,
    NotOwner,
    OutcomeUnknown,
    WouldBlock,
)
from fleetlm.messaging.deadline import within_deadline
from fleetlm.messaging.repeated_source import RepeatedSource
from fleetlm.seconds import check_timeout
from fleetlm.texts import SHORT
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.actors.sender import ActorSender
    from fleetlm.entities.replicated_shards import ReplicatedShards
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.stream import Source, Stream

PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 1.0
"""Seconds after which the same owner is asked again, if nothing has changed: it may have refused for a reason
that no table tells of, such as a drain that is undone. The pause doubles. After `NotOwner` it is the longest
one from the start, since the table tells of what follows, and those that wait keep their order."""


class EntityRequest:
    """What is asked of an entity.

    Args:
        known: what is known of the kind.
        kind: of the entity.
        key: of the entity.
        shard: of the key, when the request was made; -1: no host was known.
        handler: its name.
        args: of the handler.
        kwargs: of the handler.
        actor: the class, for errors.
    """

    __slots__ = ("actor", "args", "handler", "key", "kind", "known", "kwargs", "shard")

    def __init__(
        self, known: Kind, kind: str, key: str, shard: int, handler: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], actor: type,
    ) -> None:  # fmt: skip
        self.known: Kind = known
        self.kind: str = kind
        self.key: str = key
        self.shard: int = shard
        self.handler: str = handler
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.actor: type = actor

    def message(self, owner: Owner, mode: int) -> Invoke:
        """Return the request as it goes to an owner."""
        route: Any = [self.key, owner.epoch, mode, self.handler]
        return Invoke(route, self.args, self.kwargs, self.actor)


class EntityCalls:
    """Makes the requests of one node to entities.

    Args:
        shards: the table.
        outbound: calls.
        sender: makes streams.
    """

    def __init__(self, shards: ReplicatedShards, outbound: Outbound, sender: ActorSender) -> None:
        self.shards: ReplicatedShards = shards
        self.sender: ActorSender = sender
        self._outbound = outbound
        self._settings = shards.context.settings
        self._loop = shards.context.loop
        self._name = shards.context.name

    async def call(
        self,
        request: EntityRequest,
        timeout_s: float | None,
        mode: int = 0,
    ) -> Any:
        """Run a handler of an entity. Raises: as `EntityRef.call`."""
        key, shard, refusal, began = request.key, request.shard, None, self._loop.time()
        owner = request.known.owners.get(shard)
        if owner is not None and self.shards.is_waited_for(request.kind, shard):
            owner = None  # It goes behind those that wait.
        if owner is not None:
            if CURRENT.get() is not None:
                mode |= mode_of(request.kind, key, shard)
            to, message = owner.pid, None
            if to.node == self._name and not mode & CAST:
                hosted = self.shards.hosted.get(request.kind)
                entity = None if hosted is None else hosted.entity_for(key, owner.epoch)
                if entity is not None:
                    to, message = entity, Invoke(request.handler, request.args, request.kwargs, request.actor)
            try:
                return await self.sender.call(to, message or request.message(owner, mode), timeout_s)
            except NotDelivered as error:
                if not is_astray(error, owner):
                    raise
                refusal = error
        check_timeout(timeout_s)
        within_s = within_deadline(self._settings.call_timeout_s if timeout_s is None else timeout_s)
        search = Search(self, request, began + within_s, owner, refusal)
        while True:
            owner = await search.next()
            mode = (mode & CAST) | mode_of(request.kind, key, search.shard)
            try:
                return await self.sender.call(owner.pid, request.message(owner, mode), search.left_s)
            except NotDelivered as error:
                if not is_astray(error, owner):
                    raise
                search.refused(error)

    def stream(self, request: EntityRequest, timeout_s: float | None, idle_s: float | None) -> Stream[Any]:
        """See `EntityRef.stream`."""
        check_timeout(timeout_s)
        check_timeout(idle_s, "idle")
        return self.sender.held(EntitySource(self, request, timeout_s, idle_s))

    def check_running(self) -> None:
        """Raise NodeStopped if this node has stopped."""
        if self._outbound.stopped:
            raise NodeStopped(self.shards.context.name, self._outbound.stopped)


def mode_of(kind: str, key: str, shard: int) -> int:
    """Return the bits of a request that this code makes. Raises: WouldBlock: it would wait for itself."""
    current = CURRENT.get()
    if current is None or current.shard != shard or current.host.kind != kind:
        return 0
    if current.key == key and asyncio.current_task() is current.process._task:  # noqa: SLF001
        raise WouldBlock(
            f"{kind}/{key}",
            "it is the caller itself, which takes no request while it waits for the result: call the method "
            "directly",
        )
    return INNER


class Search:
    """The owners that one request has been refused by, and the next one.

    Attributes:
        shard: of the key, as far as is known.
        left_s: seconds until the deadline.
    """

    __slots__ = ("_calls", "_pause_s", "_refusal", "_request", "_until", "_was", "shard")

    def __init__(
        self,
        calls: EntityCalls,
        request: EntityRequest,
        until: float,
        was: Owner | None,
        refusal: NotDelivered | None,
    ) -> None:
        self._calls = calls
        self._request = request
        self._until = until
        self._was = was
        self._refusal = refusal
        self._pause_s = PAUSE_MAX_S if isinstance(refusal, NotOwner) else PAUSE_MIN_S
        self.shard: int = -1

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._until - self._calls.shards.context.loop.time())

    def refused(self, error: NotDelivered) -> None:
        """Note that the owner that `next` has returned has refused the request."""
        self._refusal = error
        if isinstance(error, NotOwner):
            self._pause_s = PAUSE_MAX_S

    async def next(self) -> Owner:
        """Return whom to ask next; wait for it if need be. Raises: NotDelivered: there was none in time."""
        shards, loop = self._calls.shards, self._calls.shards.context.loop
        known, kind, key = self._request.known, self._request.kind, self._request.key
        is_late = waited = False
        while True:
            self._calls.check_running()
            count = known.shards
            self.shard = shard_of(key, count) if count else 0
            owner = known.owners.get(self.shard) if count else None
            is_free = waited or not shards.is_waited_for(kind, self.shard)
            if owner is not None and is_free and (owner != self._was or is_late):
                self._was = owner
                return owner
            now = loop.time()
            if now >= self._until:
                raise self._refusal or NotOwner(f"{kind}/{key}", "", known.seen.get(self.shard, 0))
            await shards.changed(kind, self.shard, min(self._until, now + self._pause_s))
            waited = True
            if loop.time() >= now + self._pause_s:
                is_late = True
                self._pause_s = min(PAUSE_MAX_S, self._pause_s * 2)


class EntitySource(RepeatedSource):
    """A stream from an entity. It looks for another owner before its first item.

    Args:
        calls: find the owner.
        request: what is asked.
        timeout_s: seconds for the whole stream, from its begin; None: without limit.
        idle_s: seconds that it may pause; see `Node.stream`.
    """

    __slots__ = ("_calls", "_idle_s", "_owner", "_request", "_search", "_timeout_s")

    def __init__(
        self, calls: EntityCalls, request: EntityRequest, timeout_s: float | None, idle_s: float | None
    ) -> None:
        super().__init__()
        self._calls = calls
        self._request = request
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._search: Search | None = None
        self._owner: Owner | None = None
        """Who was asked last; None while the next one is looked for."""

    async def open(self) -> Source:
        """Wait for an owner."""
        calls, request = self._calls, self._request
        if self._search is None:
            default_s = calls.shards.context.settings.call_timeout_s
            within_s = within_deadline(math.inf if self._timeout_s is None else self._timeout_s)
            until = calls.shards.context.loop.time() + (default_s if within_s == math.inf else within_s)
            self._search = Search(calls, request, until, None, None)
        self._owner = None
        owner = await self._search.next()
        self._owner = owner
        message = request.message(owner, mode_of(request.kind, request.key, self._search.shard))
        timeout_s = None if self._timeout_s is None else self._search.left_s
        return calls.sender.source(owner.pid, message, timeout_s, self._idle_s)

    async def goes_on(self, error: NotDelivered | OutcomeUnknown) -> bool:
        """Whether the stream went to a node that is not the owner, so that nothing has run."""
        search, owner = self._search, self._owner
        if search is None or owner is None or not isinstance(error, NotDelivered):
            return False
        if not is_astray(error, owner):
            return False
        search.refused(error)
        return True


def is_astray(error: NotDelivered, owner: Owner) -> bool:
    """Whether a request was refused since it went to a node that is not the owner, or not any more."""
    if isinstance(error, NotOwner | NoConnection):
        return True
    if isinstance(error, Draining):
        return not error.has_begun
    return isinstance(error, NoProcess) and str(error.target) == str(owner.pid)


def check_key(key: object) -> str:
    """Return a key. Raises: TypeError, InvalidName."""
    if not isinstance(key, str):
        raise TypeError(f"the key of an entity is a str, not {type(key).__name__}")
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise InvalidName(SHORT.repr(key), f"the key of an entity has 1 to {MAX_KEY_CHARS} characters")
    return key
