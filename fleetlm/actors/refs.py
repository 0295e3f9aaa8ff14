"""Typed references to many actors: one request for all of them, encoded once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from fleetlm.actors.handlers import HasHandlers, name_of
from fleetlm.errors import FleetError
from fleetlm.ids import Pid
from fleetlm.messaging.targets import Target
from fleetlm.texts import SHORT
from fleetlm.wire.invocation import Invoke

A_co = TypeVar("A_co", bound=HasHandlers, covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


class HasTarget(Protocol):
    """An `ActorRef`, or what threads have in its place."""

    @property
    def target(self) -> Target:
        """Where a request would go now."""
        raise NotImplementedError


Goals = Callable[[], Iterable[Target]] | Iterable[Target | HasTarget]
"""The actors to which references lead. A function is called at each use."""


class ManySender(Protocol):
    """The functions of its node that references to many actors use."""

    def multicall(
        self, targets: list[Target], request: Invoke, timeout: float | None = None
    ) -> Coroutine[Any, Any, list[Any]]:
        """See `Node.multicall`."""

    def fan_out(
        self, targets: list[Target], request: Invoke, timeout: float | None = None
    ) -> Coroutine[Any, Any, int]:
        """Send a request that gets no reply to many actors; see `ActorRefs.broadcast`."""


class ActorRefs(Generic[A_co]):
    """Typed references to many actors; made by `Node.refs` and `Groups.refs`, immutable.

    ::

        everywhere = node.refs(Sessions, "sessions")          # the actor of that name on each node
        counts = await everywhere.within(2).multicall(Sessions.size)
        await everywhere.broadcast(Sessions.forget, "s1")

    A type checker knows what each handler takes and returns, as with `ActorRef`.
    """

    __slots__ = ("_actor", "_goals", "_node", "_timeout_s")

    def __init__(
        self, node: ManySender, actor: type[A_co], goals: Goals, timeout_s: float | None = None
    ) -> None:
        self._node = node
        self._actor = actor
        self._goals = goals
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        within = "" if self._timeout_s is None else f" within {self._timeout_s:g} s"
        return f"<ActorRefs {self._actor.__qualname__}{within}>"

    @property
    def targets(self) -> list[Target]:
        """Where a request would go now, without references whose names no process holds now."""
        return reachable(find(self._goals))

    def within(self, seconds: float | None = None) -> ActorRefs[A_co]:
        """Return references to the same actors with a limit of their own.

        Args:
            seconds: for a multicall as a whole, and for a broadcast to wait for room; None: the default, as
                in `Node.multicall` and `Node.send`.
        """
        return ActorRefs(self._node, self._actor, self._goals, seconds)

    async def multicall(
        self,
        method: Callable[Concatenate[A_co, P], Awaitable[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[R | FleetError]:
        """Run a handler in each actor and return all results: ``await refs.multicall(Sessions.size)``.

        Args:
            method: a handler, as in `ActorRef.call`.
            *args: arguments of the handler, message values as in `Node.send`.
            **kwargs: named arguments of the handler, likewise.

        Returns:
            For each target, in the order of the targets, the handler's result or the `FleetError` that
            `ActorRef.call` would have raised.

        Raises:
            TypeError: ``method`` is not a handler of this actor; nothing was sent.
            NotSerializable, MessageTooLarge: nothing was sent.
        """
        request = request_for(self._actor, method, args, kwargs)
        found = find(self._goals)
        return in_order(found, await self._node.multicall(reachable(found), request, self._timeout_s))

    async def broadcast(
        self,
        method: Callable[Concatenate[A_co, P], Awaitable[object]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> int:
        """Run a handler in each of the actors without waiting for it, as `ActorRef.cast` does.

        Waits for actors whose windows are full, after it has sent to all others. Those that have no room in
        time, or cannot be reached, are passed over.

        Returns:
            The number of actors to which it was sent.

        Raises:
            TypeError: as `multicall`.
            NotSerializable, NodeStopped: nothing was sent.
            MessageTooLarge: larger than this node sends. A node that takes less is passed over.
            InvalidName: for one of the targets; others may have got it.
        """
        request = request_for(self._actor, method, args, kwargs)
        return await self._node.fan_out(self.targets, request, self._timeout_s)


def request_for(
    actor: type[HasHandlers], method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Invoke:
    """Make the request for a handler. Raises: TypeError if ``method`` is not one of this actor."""
    return Invoke(name_of(actor, actor.__fleetlm_handlers__, method), args, kwargs, actor)


def goals_of(targets: Goals) -> Goals:
    """Check the argument ``targets`` of `Node.refs`. Raises: TypeError: it is one target, not many."""
    if callable(targets):
        return targets
    if isinstance(targets, str | tuple | Pid):
        raise TypeError(f"{SHORT.repr(targets)} is one target: give a list, or use ref() for one actor")
    return [*targets]


def find(goals: Goals) -> list[Target | FleetError]:
    """Return where a request would go now; in the place of a reference that leads nowhere, its error."""
    return [_target_of(each) for each in (goals() if callable(goals) else goals)]


def reachable(found: list[Target | FleetError]) -> list[Target]:
    """Return what `find` has found without the errors."""
    return [to for to in found if not isinstance(to, FleetError)]


def in_order(found: list[Target | FleetError], results: Iterable[Any]) -> list[Any]:
    """Put the results for what is `reachable`, and the errors of `find`, in the order of the targets."""
    rest = iter(results)
    return [to if isinstance(to, FleetError) else next(rest) for to in found]


def _target_of(goal: Target | HasTarget) -> Target | FleetError:
    if isinstance(goal, str | tuple | Pid):
        return goal
    try:
        return goal.target
    except FleetError as error:
        return error
