"""Handlers: the methods of an actor that others may call, and the name under which each is called.

`collect` makes the table of a class when the class is defined. A request names a handler; no code travels.
A reference is given the function itself (``Sessions.append``), so that a type checker knows its type, and
`name_of` finds the name for it. Overriding keeps the name: the table knows the functions of all base
classes, and the actor runs its own override.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from types import FunctionType
from typing import Any, ClassVar, Protocol, TypeVar, overload

from fleetlm.processes.running import plain_class
from fleetlm.records import Record
from fleetlm.texts import SHORT

F = TypeVar("F", bound=Callable[..., Awaitable[Any]] | Callable[..., AsyncIterator[Any]])

_MARK = "__fleetlm_handler__"
"""Attribute that `handler` sets on a function; the value is its `Options`."""


class Options(Record):
    """What `handler` was told about a function; see there."""

    concurrent: bool = False
    cancel: bool = True
    local: bool = False


class Handler(Record):
    """One handler of a class.

    Attributes:
        function: the class's own, overriding one.
        streams: whether it yields items, being an async generator function.
        concurrent: whether it runs in a task of its own.
        cancel: whether it is cancelled when its caller gives up.
        local: whether only processes of its own node may call it.
    """

    function: Callable[..., Any]
    streams: bool
    concurrent: bool
    cancel: bool = True
    local: bool = False


class Handlers(Record):
    """The handlers of a class, those of its base classes included."""

    by_name: dict[str, Handler]
    names: dict[Callable[..., Any], str]
    """Function → name of the handler; functions of base classes that are overridden are keys too."""


NO_HANDLERS = Handlers({}, {})


class HasHandlers(Protocol):
    """An actor as a typed reference sees it: an object of a class with handlers, which `Actor` collects.

    A bound for type variables, so that references and processes need not know `Actor`.
    """

    __fleetlm_handlers__: ClassVar[Handlers]


class ActorObject(HasHandlers, Protocol):
    """An `Actor` as the runtime sees it: what runs in a process of its own."""

    async def init(self) -> None:
        """See `Actor.init`."""

    async def terminate(self, reason: Any) -> None:
        """See `Actor.terminate`."""

    async def handle_info(self, message: Any) -> None:
        """See `Actor.handle_info`."""

    async def on_drain(self, until: float) -> None:
        """See `Actor.on_drain`."""

    async def on_undrain(self) -> None:
        """See `Actor.on_undrain`."""

    async def __call__(self, process: Any, ready: asyncio.Future[bool] | None = None) -> None:
        """Run as this `Process`, and set ``ready`` when `init` is done."""


def check_unused(function: object) -> None:
    """Refuse an actor object that runs already, or has run. Raises: RuntimeError."""
    if type(function) is FunctionType or isinstance(function, type):
        return
    # Its run is an attribute of its own, so `Actor` need not be imported in programs that have none.
    if getattr(function, "__dict__", {}).get("_Actor__run") is not None:
        name = type(function).__qualname__
        raise RuntimeError(
            f"this {name} object has been run, and an actor object runs once: spawn the class, "
            f"node.spawn({name}, *args), or make another object"
        )


def check_actor(actor: object) -> None:
    """Raise TypeError unless ``actor`` is a subclass of `Actor`, or an alias such as ``Cache[int]``."""
    cls = plain_class(actor)
    if not (isinstance(cls, type) and hasattr(cls, "__fleetlm_handlers__")):
        raise TypeError(f"{SHORT.repr(actor)} is not an Actor class")


@overload
def handler(function: F, /) -> F: ...
@overload
def handler(*, concurrent: bool = False, cancel: bool = True, local: bool = False) -> Callable[[F], F]: ...
def handler(
    function: F | None = None, /, *, concurrent: bool = False, cancel: bool = True, local: bool = False
) -> F | Callable[[F], F]:
    """Let a method of an `Actor` be called from any node. The type of the method stays as it is.

    ::

        @handler
        async def append(self, session: str, line: str) -> int: ...

        @handler(concurrent=True)
        async def fetch(self, url: str) -> bytes: ...

        @handler(cancel=False)
        async def transfer(self, amount: int) -> None: ...

        @handler(local=True)
        async def reset(self) -> None: ...

    Handlers run one at a time, in the order in which their requests came. An async generator function is
    for `ActorRef.stream`. A method that overrides a handler is a handler, decorated or not.

    Args:
        function: an async function or an async generator function.
        concurrent: run in a task of its own beside the other handlers, up to `Settings.concurrent_handlers`
            of one actor. It suits handlers that mostly wait and use no state that other handlers change.
        cancel: True, the default: when the caller gives up (time-out, cancellation, loss of its node), the
            handler is cancelled where it waits, and the next one runs. False: the handler keeps its turn
            until it is done, for work that must not stop half-way, such as two writes. The caller gets its
            `CallTimeout` as before and cannot know the result. Requests that such a handler makes have
            deadlines of their own, and an exit signal takes effect when it is done; only ``"kill"``, and the
            end of the node after `Settings.terminate_s`, interrupt it. Do not use ``asyncio.shield`` for
            this: the handler would end, and what it shields would go on beside the next handlers.
        local: only from the actor's own node. A call from another node is refused with `NotAllowed` before
            anything of the handler runs; a cast is dropped and logged.

    Raises:
        TypeError: ``function`` is neither of the two, or it yields and has ``cancel=False``: a stream ends
            when its consumer leaves.
    """

    def mark(function: F) -> F:
        if _check_kind(function) and not cancel:
            raise TypeError(
                f"{function.__qualname__} yields, so it cannot have cancel=False: a stream ends when its "
                "consumer leaves. Put what must finish into a handler that returns"
            )
        setattr(function, _MARK, Options(concurrent, cancel, local))
        return function

    return mark if function is None else mark(function)


def collect(cls: type, reserved: frozenset[str]) -> Handlers:
    """Return the handlers of a class; ``reserved`` are names that no handler may have.

    Raises:
        TypeError: a method is marked as a handler and cannot be one.
    """
    by_name: dict[str, Handler] = {}
    names: dict[Callable[..., Any], str] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            former = by_name.get(name)
            options = _get_mark(value)
            if options is None and former is None:
                continue
            where = f"{base.__qualname__}.{name}"
            if name in reserved or name.startswith("__"):
                raise TypeError(f"{where} cannot be a handler: `Actor` has a method of that name")
            if not isinstance(value, FunctionType):
                raise TypeError(f"{where} is a handler, so it must be a plain async method")
            streams = _check_kind(value)
            if former is not None and former.streams != streams:
                raise TypeError(f"{where} must yield if, and only if, the handler that it overrides does")
            if options is None and former is not None:
                options = Options(former.concurrent, former.cancel, former.local)
            assert options is not None
            by_name[name] = Handler(value, streams, options.concurrent, options.cancel, options.local)
            names[value] = name
    return Handlers(by_name, names)


def name_of(actor: type, handlers: Handlers, method: Any) -> str:
    """Return the name of a handler of this class. Raises: TypeError if ``method`` is not one."""
    try:
        return handlers.names[method]
    except (KeyError, TypeError):
        pass
    shown = getattr(method, "__qualname__", None) or SHORT.repr(method)
    if inspect.ismethod(method):
        raise TypeError(f"pass the function of the class, {shown}, not a bound method")
    if shown.startswith(f"{actor.__qualname__}."):
        if _get_mark(method) is None:
            raise TypeError(f"{shown} is not a handler: put @handler above it")
        name = _find_redefined(handlers, method)
        if name is not None:
            return name
        raise TypeError(
            f"{shown} is not a handler of the {actor.__qualname__} with which this reference was made; the "
            "class has been defined again since. Start the actor and make the reference with the new class"
        )
    raise TypeError(f"{shown} is not a handler of {actor.__qualname__}")


def name_of_marked(function: Any) -> str:
    """Return the name of a handler whose class is not known. Raises: TypeError if it has no mark."""
    shown = getattr(function, "__qualname__", None) or SHORT.repr(function)
    if inspect.ismethod(function):
        raise TypeError(f"pass the function of the class, {shown}, not a bound method")
    if _get_mark(function) is None:
        raise TypeError(
            f"{shown} is not marked as a handler: put @handler above it; for one that overrides a handler "
            "give the function of the base class, or make a reference of its class"
        )
    name: str = function.__name__
    return name


def _find_redefined(handlers: Handlers, method: Any) -> str | None:
    """Return the handler of which ``method`` is a later definition, such as a notebook cell that ran again.

    The name is all that travels. The running actor keeps the code with which it was started.
    """
    for known, name in handlers.names.items():
        if (known.__qualname__, known.__module__) == (method.__qualname__, method.__module__):
            return name
    return None


def _get_mark(value: Any) -> Options | None:
    """Return the options of an attribute of a class; None if it is not a handler.

    What wraps a marked function without being one, such as a property, counts as marked, so that `collect`
    refuses it. Otherwise a handler would be missing without a word.
    """
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.partial | functools.partialmethod):
        value = value.func
    mark: Options | None = getattr(value, "__dict__", {}).get(_MARK)
    return mark


def _check_kind(function: Any) -> bool:
    """Return whether a handler streams. Raises: TypeError if it is not an async function."""
    if inspect.isasyncgenfunction(function):
        return True
    if inspect.iscoroutinefunction(function):
        return False
    shown = getattr(function, "__qualname__", None) or SHORT.repr(function)
    raise TypeError(f"{shown} cannot be a handler: it must be `async def` (blocking code: run_blocking)")
