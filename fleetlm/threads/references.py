"""Typed references to actors, for threads."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from fleetlm.actors.handlers import HasHandlers
from fleetlm.actors.ref import Reference
from fleetlm.actors.refs import find, in_order, reachable, request_for
from fleetlm.threads.arrivals import SyncStream

if TYPE_CHECKING:
    from fleetlm.actors.refs import ActorRefs, Goals
    from fleetlm.core.picking import Score
    from fleetlm.core.rings import Key
    from fleetlm.directory.group_ref import GroupRef
    from fleetlm.errors import FleetError
    from fleetlm.messaging.targets import Target
    from fleetlm.runtime.thread_requests import ThreadRequests
    from fleetlm.wire.invocation import Invoke

A_co = TypeVar("A_co", bound=HasHandlers, covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


class ThreadSender(Protocol):
    """The methods of its `SyncNode` that a reference uses."""

    name: str

    def send(self, to: Target, message: Any, timeout: float | None = None) -> None:
        """See `SyncNode.send`."""

    def send_nowait(self, to: Target, message: Any) -> None:
        """See `SyncNode.send_nowait`."""

    def call(self, to: Target, message: Any, timeout: float | None = None) -> Any:
        """See `SyncNode.call`."""

    def stream(
        self, to: Target, message: Any, timeout: float | None = None, idle: float | None = None
    ) -> SyncStream[Any]:
        """See `SyncNode.stream`."""

    def multicall(
        self, targets: Sequence[Target], message: Any, timeout: float | None = None
    ) -> Sequence[Any]:
        """See `SyncNode.multicall`."""


class SyncRef(Reference[ThreadSender, A_co]):
    """A typed reference to an actor for threads: `ActorRef` with methods that block.

    Made by `SyncNode.ref`; immutable, for any number of threads.

    ::

        ref = node.sync.ref(Sessions, "sessions", at="fleetlm@10.0.0.7")
        count = ref.within(2).call(Sessions.append, "s1", "hello")
        for token in ref.stream(Model.complete, prompt): ...
    """

    __slots__ = ()

    def within(self, seconds: float | None = None, *, idle: float | None = None) -> SyncRef[A_co]:
        """Return a reference to the same actor with limits of its own; see `ActorRef.within`."""
        return SyncRef(self._node, self._actor, self._goal, seconds, idle)

    def call(
        self, method: Callable[Concatenate[A_co, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a handler and return its result. Raises: as `ActorRef.call` and `SyncNode`."""
        result: R = self._node.call(self.target, self._request(method, args, kwargs), self._timeout_s)
        return result

    def cast(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Let a handler run, without waiting for it. Raises: as `ActorRef.cast` and `SyncNode`."""
        self._node.send(self.target, self._request(method, args, kwargs), self._timeout_s)

    def cast_nowait(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """As `cast`, but raise `WouldBlock` where that would wait for room."""
        self._node.send_nowait(self.target, self._request(method, args, kwargs))

    def stream(
        self, method: Callable[Concatenate[A_co, P], AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncStream[R]:
        """Iterate over the items that a handler yields. Raises: as `ActorRef.stream` and `SyncNode`."""
        request = self._request(method, args, kwargs)
        return self._node.stream(self.target, request, self._timeout_s, self._idle_s)

    def send(self, message: Any) -> None:
        """See `ActorRef.send`."""
        self._node.send(self.target, message, self._timeout_s)

    def _request(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Invoke:
        return request_for(self._actor, method, args, kwargs)


class SyncRefs(Generic[A_co]):
    """Typed references to many actors for threads: `ActorRefs` with methods that block.

    Made by `SyncNode.refs` and `SyncGroups.refs`; immutable, for any number of threads.

    ::

        counts = node.sync.refs(Sessions, "sessions").within(2).multicall(Sessions.size)
    """

    __slots__ = ("_actor", "_goals", "_make", "_node", "_requests", "_timeout_s")

    def __init__(
        self,
        node: ThreadSender,
        requests: ThreadRequests,
        actor: type[A_co],
        goals: Goals,
        make: Callable[[Iterable[Target]], ActorRefs[A_co]],
        timeout_s: float | None = None,
    ) -> None:
        self._node = node
        self._requests = requests
        self._actor = actor
        self._goals = goals
        self._make = make
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<SyncRefs {self._actor.__qualname__}>"

    @property
    def targets(self) -> list[Target]:
        """See `ActorRefs.targets`."""
        return reachable(find(self._goals))

    def within(self, seconds: float | None = None) -> SyncRefs[A_co]:
        """Return references to the same actors with a limit of their own; see `ActorRefs.within`."""
        return SyncRefs(self._node, self._requests, self._actor, self._goals, self._make, seconds)

    def multicall(
        self, method: Callable[Concatenate[A_co, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[R | FleetError]:
        """Run a handler in each of the actors. Returns, raises: as `ActorRefs.multicall` and `SyncNode`."""
        request = request_for(self._actor, method, args, kwargs)
        found = find(self._goals)
        return in_order(found, self._node.multicall(reachable(found), request, self._timeout_s))

    def broadcast(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> int:
        """Run a handler in each, without waiting for it. As `ActorRefs.broadcast` and `SyncNode`."""
        refs = self._make(self.targets).within(self._timeout_s)
        send = functools.partial(refs.broadcast, method, *args, **kwargs)
        return self._requests.run("refs.broadcast", self._node.name, send, self._timeout_s)


class SyncGroupRef(Generic[A_co]):
    """A typed reference to any member of a process group, for threads: `GroupRef` with methods that block.

    Made by `SyncGroups.ref`; immutable, for any number of threads.

    ::

        models = node.sync.groups.ref(Model, "models", by="least_loaded")
        answer = models.within(2).call(Model.answer, prompt)
    """

    __slots__ = ("_group", "_ref", "_requests", "_timeout_s")

    def __init__(
        self, ref: GroupRef[A_co], group: str, requests: ThreadRequests, timeout_s: float | None
    ) -> None:
        self._ref = ref
        self._group = group
        self._requests = requests
        self._timeout_s = timeout_s
        """Of a call, for the wait of the thread; None: without limit."""

    def __repr__(self) -> str:
        return f"<Sync{repr(self._ref)[1:]}"

    def within(self, seconds: float | None = None, *, idle: float | None = None) -> SyncGroupRef[A_co]:
        """Return a reference to the same group with limits of its own; see `GroupRef.within`."""
        timeout_s = self._timeout_s if seconds is None else seconds
        return SyncGroupRef(self._ref.within(seconds, idle=idle), self._group, self._requests, timeout_s)

    def keyed(self, key: Key) -> SyncGroupRef[A_co]:
        """Return a reference with another key; see `GroupRef.keyed`."""
        return SyncGroupRef(self._ref.keyed(key), self._group, self._requests, self._timeout_s)

    def scored(self, score: Score | None) -> SyncGroupRef[A_co]:
        """Return a reference with another score; see `GroupRef.scored`."""
        return SyncGroupRef(self._ref.scored(score), self._group, self._requests, self._timeout_s)

    def retrying(self, attempts: int | None = None, *, idempotent: bool | None = None) -> SyncGroupRef[A_co]:
        """Return a reference whose requests are made more or less often; see `GroupRef.retrying`."""
        ref = self._ref.retrying(attempts, idempotent=idempotent)
        return SyncGroupRef(ref, self._group, self._requests, self._timeout_s)

    def call(
        self, method: Callable[Concatenate[A_co, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a handler in one member and return its result. Raises: as `GroupRef.call` and `SyncNode`."""
        call = functools.partial(self._ref.call, method, *args, **kwargs)
        return self._requests.run("groups.call", self._group, call, self._timeout_s)

    def cast(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Let a handler run in one member. Raises: as `GroupRef.cast` and `SyncNode`."""
        cast = functools.partial(self._ref.cast, method, *args, **kwargs)
        self._requests.run("groups.cast", self._group, cast)

    def stream(
        self, method: Callable[Concatenate[A_co, P], AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncStream[R]:
        """Iterate over the items that a handler of one member yields. Raises: as `GroupRef.stream`."""
        stream = functools.partial(self._ref.stream, method, *args, **kwargs)
        return SyncStream(stream, self._group, self._requests)
