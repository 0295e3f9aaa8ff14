"""A typed reference to an actor for threads: `ActorRef` with methods that block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from fleetlm.actor import Actor
from fleetlm.actors.handlers import name_of
from fleetlm.actors.ref import Goal, Target
from fleetlm.wire.invocation import Invoke

if TYPE_CHECKING:
    from fleetlm.sync import SyncNode

A_co = TypeVar("A_co", bound=Actor, covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


class SyncRef(Generic[A_co]):
    """Made by `SyncNode.ref`; immutable, for any number of threads.

    ::

        ref = node.sync.ref(Sessions, "sessions", at="fleetlm@10.0.0.7")
        count = ref.within(2).call(Sessions.append, "s1", "hello")
        for token in ref.stream(Model.complete, prompt): ...
    """

    __slots__ = ("_actor", "_goal", "_node", "_timeout_s")

    def __init__(self, node: SyncNode, actor: type[A_co], goal: Goal, timeout_s: float | None = None) -> None:
        self._node = node
        self._actor = actor
        self._goal = goal
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<SyncRef {self._actor.__qualname__} {self._goal}>"

    def within(self, seconds: float) -> SyncRef[A_co]:
        """The same actor, with a deadline for each `call` and `stream` that is made through it."""
        return SyncRef(self._node, self._actor, self._goal, seconds)

    def call(
        self, method: Callable[Concatenate[A_co, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a handler and return its result. Raises: as `ActorRef.call` and `SyncNode`."""
        result: R = self._node.call(self._target(), self._request(method, args, kwargs), self._timeout_s)
        return result

    def cast(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Let a handler run. Raises: as `ActorRef.cast` and `SyncNode`."""
        self._node.send(self._target(), self._request(method, args, kwargs))

    def stream(
        self, method: Callable[Concatenate[A_co, P], AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Iterator[R]:
        """The items that a handler yields. Raises: as `ActorRef.stream` and `SyncNode`."""
        return self._node.stream(self._target(), self._request(method, args, kwargs), self._timeout_s)

    def _target(self) -> Target:
        return self._goal() if callable(self._goal) else self._goal

    def _request(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Invoke:
        return Invoke(name_of(self._actor, self._actor.__fleetlm_handlers__, method), args, kwargs)
