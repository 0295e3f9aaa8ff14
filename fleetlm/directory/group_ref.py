"""A typed reference to whichever member of a process group is picked for a request."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from fleetlm.actors.handlers import HasHandlers
from fleetlm.actors.refs import request_for
from fleetlm.core.picking import Wanted

if TYPE_CHECKING:
    from fleetlm.core.picking import Score
    from fleetlm.core.rings import Key
    from fleetlm.directory.group_calls import GroupCalls, GroupRequest
    from fleetlm.stream import Stream

A_co = TypeVar("A_co", bound=HasHandlers, covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


class GroupRef(Generic[A_co]):
    """A typed reference to any member of a process group; made by `Groups.ref`, immutable.

    ::

        models = node.groups.ref(Model, "models", by="least_loaded")
        answer = await models.within(2).call(Model.answer, prompt)
        async for token in models.stream(Model.complete, prompt): ...

    For each request one member is picked. Where a request has not been delivered, it is made at another
    member; where it may have run, only if the reference says that it is idempotent. See `Groups.call`.
    """

    __slots__ = ("_actor", "_calls", "_idle_s", "_request", "_timeout_s")

    def __init__(
        self,
        calls: GroupCalls,
        actor: type[A_co],
        request: GroupRequest,
        timeout_s: float | None = None,
        idle_s: float | None = None,
    ) -> None:
        self._calls = calls
        self._actor = actor
        self._request = request
        self._timeout_s = timeout_s
        self._idle_s = idle_s

    def __repr__(self) -> str:
        within = "" if self._timeout_s is None else f" within {self._timeout_s:g} s"
        request = self._request
        return f"<GroupRef {self._actor.__qualname__} in {request.group!r} by {request.by}{within}>"

    def within(self, seconds: float | None = None, *, idle: float | None = None) -> GroupRef[A_co]:
        """Return a reference to the same group with limits of its own.

        Args:
            seconds: for all attempts of a call together, for a stream as a whole, and for a cast to wait for
                room; None: the default, as in `Node.call`, `Node.stream` and `Node.send`.
            idle: seconds that a stream may pause, as in `Node.stream`; None: the default.
        """
        return GroupRef(self._calls, self._actor, self._request, seconds, idle)

    def keyed(self, key: Key) -> GroupRef[A_co]:
        """Return a reference with another key, for the rules ``"key"`` and ``"sticky"``.

        ::

            sessions = node.groups.ref(Sessions, "sessions", by="sticky", key="")
            await sessions.keyed("s1").call(Sessions.append, "s1", "hello")

        Raises:
            ValueError: this reference has a rule without a key.
        """
        return self._with(key=key)

    def scored(self, score: Score | None) -> GroupRef[A_co]:
        """Return a reference with another score, as in `Groups.pick`, such as one made for a prompt.

        Raises:
            ValueError: this reference has a rule other than ``"random"``.
        """
        return self._with(wanted=Wanted(self._request.wanted.where, score))

    def retrying(self, attempts: int | None = None, *, idempotent: bool | None = None) -> GroupRef[A_co]:
        """Return a reference whose requests are made more or less often.

        Args:
            attempts: how often at most, the first one included; None: as this reference has it.
            idempotent: whether the requests may run twice; None: as this reference has it.

        Raises:
            TypeError, ValueError: ``attempts`` is not a whole number from 1.
        """
        was = self._request
        return self._with(
            attempts=was.attempts if attempts is None else attempts,
            idempotent=was.idempotent if idempotent is None else idempotent,
        )

    def call(
        self, method: Callable[Concatenate[A_co, P], Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run a handler in one member and return its result.

        Args:
            method: a handler, as in `ActorRef.call`.
            *args: arguments of the handler, message values as in `Node.send`.
            **kwargs: named arguments of the handler, likewise.

        Raises:
            TypeError: ``method`` is not a handler of this actor; nothing was sent.
            NotDelivered, OutcomeUnknown, RemoteError: as `Groups.call`.
        """
        message = request_for(self._actor, method, args, kwargs)
        return self._calls.call(self._request, message, self._timeout_s)

    def cast(
        self, method: Callable[Concatenate[A_co, P], Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, None]:
        """Run a handler in one member without waiting for it, as `ActorRef.cast` does.

        A cast that was sent may still be lost with its member: nothing tells, and it is not repeated.

        Raises:
            TypeError: as `call`.
            NoMember, NoConnection, NoProcess, WouldBlock: nothing was sent, at any member that was tried.
            NotSerializable, MessageTooLarge: nothing was sent.
        """
        message = request_for(self._actor, method, args, kwargs)
        return self._calls.cast(self._request, message, self._timeout_s)

    def stream(
        self,
        method: Callable[Concatenate[A_co, P], AsyncIterator[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Stream[R]:
        """Stream the items that a handler of one member yields. Repeated only before the first item.

        Raises:
            TypeError: as `call`.
            NotDelivered, OutcomeUnknown, RemoteError: as `Groups.stream`, when it is iterated.
        """
        message = request_for(self._actor, method, args, kwargs)
        return self._calls.stream(self._request, message, self._timeout_s, self._idle_s)

    def _with(self, **changes: Any) -> GroupRef[A_co]:
        request = dataclasses.replace(self._request, **changes)
        return GroupRef(self._calls, self._actor, request, self._timeout_s, self._idle_s)
