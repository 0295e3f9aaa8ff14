"""Tells before a process is started that what it would run cannot be run.

A process runs something that is called with its `Process` and returns an awaitable: a coroutine function, or
an object or a class whose ``__call__`` is one. The code of most callables says what they return, so a mistake
is a TypeError where the program makes it (`Node.spawn`, `Child`, ``factories.register``), and not the crash
of a process, which a supervisor would repeat. Nothing is called for this.

The code of some says nothing: a plain function that returns the result of another call, built-in and compiled
functions, a class that makes its objects in a way of its own. They are taken, and `check_awaitable` looks at
what they returned.
"""

from __future__ import annotations

import dis
import functools
import inspect
from types import CodeType, FunctionType, MethodType
from typing import Any

from fleetlm.processes.running import ProcessFunction, plain_class
from fleetlm.texts import SHORT

_WANTED = "what a process runs is a coroutine function (`async def` without `yield`), or an Actor class"
_CONSTANTS = frozenset({"LOAD_CONST", "LOAD_SMALL_INT"})
"""Instructions before a ``return`` that return a constant; the second one is of Python 3.14."""

_RETURNS = frozenset({"RETURN_VALUE", "RETURN_CONST"})
"""Instructions that return; the second one, of a constant, is of Python 3.12 and 3.13."""


def process_function(function: Any) -> ProcessFunction:
    """Return what a process runs for this function: the class below a generic alias, all else as it is.

    Raises:
        TypeError: no process can run it, as far as that can be told without a call. A coroutine object that
            has not begun was closed, so that Python does not warn that it was never awaited.
    """
    if type(function) is FunctionType and function.__code__.co_flags & inspect.CO_COROUTINE:
        return function
    checked: ProcessFunction = plain_class(function)
    check_concrete(checked)
    problem = describe_unfit(checked)
    if problem:
        if inspect.iscoroutine(function) and inspect.getcoroutinestate(function) == inspect.CORO_CREATED:
            function.close()
        raise TypeError(f"{problem}; {_WANTED}")
    return checked


def check_concrete(function: object) -> None:
    """Raise TypeError for an abstract class, of which no process can make an object."""
    missing = getattr(function, "__abstractmethods__", None) if isinstance(function, type) else None
    if missing:
        name = getattr(function, "__qualname__", "it")
        raise TypeError(
            f"{name} is abstract, since it only declares {', '.join(sorted(missing))}; spawn a subclass that "
            "defines what is missing"
        )


def check_awaitable(made: Any, function: Any) -> None:
    """Raise TypeError if what a process function has returned cannot be awaited."""
    if not hasattr(made, "__await__") and not inspect.isawaitable(made):
        name = getattr(function, "__qualname__", None) or SHORT.repr(function)
        raise TypeError(f"{name} returned {type(made).__name__}, which cannot be awaited; {_WANTED}")


def describe_unfit(function: Any) -> str:
    """Return why no process can run this, in a part of a sentence; empty if that cannot be told."""
    if isinstance(function, type):
        return _describe_class(function)
    while isinstance(function, functools.partial | MethodType | staticmethod):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if isinstance(function, type):
        return _describe_partial_class(function)
    if isinstance(function, FunctionType):
        return _describe_code(function.__code__, function.__qualname__)
    if inspect.isawaitable(function):
        kind = type(function).__name__
        return f"{SHORT.repr(function)} is a {kind}: give the function itself, without calling it"
    if not callable(function):
        return f"{SHORT.repr(function)} is not a function"
    call = type(function).__call__
    if isinstance(call, FunctionType):
        return _describe_code(call.__code__, call.__qualname__)
    return ""


def _describe_class(cls: type) -> str:
    """Return why no process can run objects of this class."""
    call = cls.__call__  # That of the class `type` where the class has none.
    if isinstance(call, FunctionType):
        return _describe_code(call.__code__, call.__qualname__)
    makes_others = isinstance(cls.__new__, FunctionType) or type(cls).__call__ is not type.__call__
    if makes_others or any("__call__" in vars(base) for base in cls.__mro__):
        return ""
    return f"{cls.__qualname__} is a class that is no Actor, and its objects cannot be called"


def _describe_partial_class(cls: type) -> str:
    """Return why a partial of this class returns nothing that a process can await."""
    if hasattr(cls, "__fleetlm_handlers__"):
        name = cls.__qualname__
        return f"a partial of {name} makes an actor and does not run it: give {name} and its arguments"
    return ""


def _describe_code(code: CodeType, name: str) -> str:
    """Return why a function with this code returns nothing that can be awaited."""
    flags = code.co_flags
    if flags & (inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE):
        return ""
    if flags & inspect.CO_ASYNC_GENERATOR:
        return f"{name} is an async generator function"
    if flags & inspect.CO_GENERATOR:
        return f"{name} is a generator function"
    if _returns_constants(code):
        return f"{name} is a plain function, not `async def`, and returns nothing that can be awaited"
    return ""


def _returns_constants(code: CodeType) -> bool:
    """Whether each ``return`` of a plain function returns a constant, such as None, and there is one.

    False also for such a function where several branches share one ``return``: that is not looked into.
    """
    before, returns = "", False
    for each in dis.get_instructions(code):
        if each.opname in _RETURNS:
            returns = True
            if each.opname != "RETURN_CONST" and (before not in _CONSTANTS or each.is_jump_target):
                return False
        before = each.opname
    return returns
