"""A typed reference to an actor, wherever it lives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from fleetlm.actors.handlers import HasHandlers, name_of
from fleetlm.ids import Pid
from fleetlm.messaging.targets import Target
from fleetlm.names import Address, canonical_node
from fleetlm.stream import Stream
from fleetlm.wire.invocation import Invoke

A_co = TypeVar("A_co", bound=HasHandlers, covariant=True)
P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")

Goal = Target | Callable[[], Pid]
"""The actor that a reference leads to. A function is called at each use."""


class Sender(Protocol):
    """The functions of its node that a reference uses."""

    def send(self, to: Target, message: Any, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """See `Node.send`."""

    def cast(self, to: Target, request: Invoke, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Send a request that gets no reply; see `ActorRef.cast`."""

    def cast_nowait(self, to: Target, request: Invoke) -> None:
        """As `cast`, but raise `WouldBlock` where that would wait; see `ActorRef.cast_nowait`."""

    def call(self, to: Target, message: Any, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        """See `Node.call`."""

    def stream(
        self, to: Target, message: Any, timeout: float | None = None, idle: float | None = None
    ) -> Stream[Any]:
        """See `Node.stream`."""


class Reference(Generic[S, A_co]):
    """An actor, a node that asks it, and the limits of what is asked; for coroutines and for threads."""

    __slots__ = ("_actor", "_goal", "_idle_s", "_node", "_timeout_s")

    _ask = "node.whereis(name, at=node)"
    """What a program asks for the pid behind a name."""

    def __init__(
        self,
        node: S,
        actor: type[A_co],
        goal: Goal,
        timeout_s: float | None = None,
        idle_s: float | None = None,
    ) -> None:
        self._node = node
        self._actor = actor
        self._goal = goal
        self._timeout_s = timeout_s
        self._idle_s = idle_s

    def __repr__(self) -> str:
        within = "" if self._timeout_s is None else f" within {self._timeout_s:g} s"
        goal = self._goal
        shown = f"{goal[0]!r} on {goal[1]}" if isinstance(goal, tuple) else str(goal)
        return f"<{type(self).__name__} {self._actor.__qualname__} {shown}{within}>"

    @property
    def target(self) -> Target:
        """Where a request would go now. Raises: whatever the function raises, if the reference has one."""
        goal = self._goal
        return goal() if callable(goal) else goal

    @property
    def pid(self) -> Pid:
        """The actor's pid.

        Raises:
            TypeError: the reference has a name only; ask `whereis(name, at=node)` of the node.
        """
        target = self.target
        if not isinstance(target, Pid):
            raise TypeError(f"{self!r} has a name, not a pid: ask `{self._ask}`")
        return target


class ActorRef(Reference[Sender, A_co]):
    """A typed reference to an actor; made by `Node.ref` and `Node.start_actor`, immutable.

    ::

        ref = node.ref(Sessions, "sessions", at="fleetlm@10.0.0.7")
        count = await ref.within(2).call(Sessions.append, "s1", "hello")
        async for token in ref.stream(Model.complete, prompt): ...

    A type checker knows what each handler takes and returns. A reference cannot be sent in a message; send
    its `pid` instead.
    """

    __slots__ = ()

    _ask = "await node.whereis(name, at=node)"

    def within(self, seconds: float | None = None, *, idle: float | None = None) -> ActorRef[A_co]:
        """Return a reference to the same actor with limits of its own.

        Args:
            seconds: for each call, for each stream as a whole, and for a cast or a message to wait for room;
                None: the default, as in `Node.call`, `Node.stream` and `Node.send`.
            idle: seconds that a stream may pause, as in `Node.stream`; None: the default.
        """
        return ActorRef(self._node, self._actor, self._goal, seconds, idle)

    def call(
        self,
        method: Callable[Concatenate[A_co, P], Awaitable[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, R]:
        """Run a handler and return its result: ``await ref.call(Sessions.append, "s1", "hello")``.

        Args:
            method: a handler, as an attribute of the actor's class, or of ``Cache[int]`` for a generic one; a
                subclass may override it.
            *args: arguments of the handler, message values as in `Node.send`.
            **kwargs: named arguments of the handler, likewise.

        Raises:
            TypeError: ``method`` is not a handler of this actor; nothing was sent.
            NotDelivered, OutcomeUnknown, RemoteError: as `Node.call`.
        """
        actor = self._actor
        request = Invoke(name_of(actor, actor.__fleetlm_handlers__, method), args, kwargs, actor)
        return self._node.call(self.target, request, self._timeout_s)

    def cast(
        self,
        method: Callable[Concatenate[A_co, P], Awaitable[object]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, None]:
        """Run a handler without waiting for it; waits only while a window is full. Its result is dropped.

        It waits for up to `Settings.send_timeout_s`, or what `within` says. An actor that casts to itself
        does not wait. An exception in the handler ends the actor. Arguments that do not fit, and handlers
        that the actor does not have, are logged on its node.

        Raises:
            TypeError: as `call`.
            NotSerializable, MessageTooLarge, NoConnection, NoProcess, WouldBlock: as `Node.send`.
        """
        actor = self._actor
        request = Invoke(name_of(actor, actor.__fleetlm_handlers__, method), args, kwargs, actor)
        return self._node.cast(self.target, request, self._timeout_s)

    def cast_nowait(
        self,
        method: Callable[Concatenate[A_co, P], Awaitable[object]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """As `cast`, but raise `WouldBlock` where that would wait."""
        actor = self._actor
        request = Invoke(name_of(actor, actor.__fleetlm_handlers__, method), args, kwargs, actor)
        self._node.cast_nowait(self.target, request)

    def stream(
        self,
        method: Callable[Concatenate[A_co, P], AsyncIterator[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Stream[R]:
        """Stream results: the items that a handler yields, one after the other. See `Stream`.

        ::

            async for token in ref.stream(Model.complete, prompt): ...
            async for token in ref.within(idle=300).stream(Model.complete, prompt): ...

        Raises:
            TypeError: as `call`.
            NotDelivered, OutcomeUnknown, RemoteError: as `Node.stream`, after the items that came before.
        """
        actor = self._actor
        request = Invoke(name_of(actor, actor.__fleetlm_handlers__, method), args, kwargs, actor)
        return self._node.stream(self.target, request, self._timeout_s, self._idle_s)

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        """Send any message; the actor gets it in `Actor.handle_info`. Raises: as `Node.send`."""
        return self._node.send(self.target, message, self._timeout_s)


def goal_of(target: Goal, at: str | None, base_port: int) -> Goal:
    """Combine the arguments ``target`` and ``at`` of `Node.ref`. Raises: TypeError, InvalidName.

    ``base_port`` is that of the cluster; see `NodeName.parse`.
    """
    if at is None:
        return target
    if not isinstance(target, str):
        raise TypeError("at= goes with a name only: a pid, an address or a function already leads to a node")
    return Address(target, canonical_node(at, base_port))
