"""What may leave a process as an exception, and what it means for the process.

asyncio treats two exceptions of a task as orders to the whole program: SystemExit and KeyboardInterrupt are
raised again out of the event loop, which ends. Inside a process they are usually neither: ``sys.exit`` in a
library (argparse, click) means that *this* work failed. So the task of a process never raises them. They end
the process, as any other exception does, and reach the loop as `Contained`, which asyncio does not know.

The operator's own interrupt is the exception to this. Python runs signal handlers in the main thread, between
two instructions of whatever runs there, so Ctrl-C and a handler that calls ``sys.exit`` may raise inside a
process although they are meant for the program. `is_from_signal` tells them apart by the traceback, and they
go on to the loop unchanged.

Exception groups are looked into (`exit_in`): a group that holds nothing but `ProcessExit`, at any depth, is
that exit. In a mixed group the other exceptions count, and the group is a crash.

A `CancelledError` that fleetlm did not cause is a crash too (`crash_of`). Two things lead to it: other code
cancelled the task of the process, or something that the process awaited was cancelled.

Source: CPython Lib/asyncio/tasks.py, `Task.__step`, and trio, whose KI protection also asks which code was
interrupted; differs: trio decides before the exception is raised, by marked frames.
"""

from __future__ import annotations

import asyncio
import dis
import functools
import signal
import threading
from collections.abc import Iterator
from types import CodeType, TracebackType

from fleetlm.blocking import forks
from fleetlm.errors import ProcessExit
from fleetlm.messages import Crash
from fleetlm.texts import text_of, traceback_of

MAX_TRACEBACK_CHARS = 16_384
"""Longer tracebacks of a crash lose their beginning: the text travels to every linked and monitoring
process."""
ORDERS = (SystemExit, KeyboardInterrupt)
"""What asyncio takes for an order to the whole program."""
_RAISE = dis.opmap["RAISE_VARARGS"]


class Contained(Exception):
    """Carries a SystemExit or KeyboardInterrupt, its ``__cause__``, out of a task past the event loop."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {text_of(error)}")


def is_from_signal(error: BaseException) -> bool:
    """Whether a signal handler raised this exception, so that it is meant for the program as a whole."""
    if not isinstance(error, ORDERS) or error.__traceback__ is None:
        return False
    if forks.on_copied_loop():
        return True  # A forked child ends, whatever this would be in its parent.
    if threading.current_thread() is not threading.main_thread():
        return False  # Python runs signal handlers in the main thread only.
    codes = set(_signal_handlers())
    last = error.__traceback__
    while last.tb_next is not None:
        if last.tb_frame.f_code in codes:
            return True
        last = last.tb_next
    if last.tb_frame.f_code in codes:
        return True
    # Python's own handler of SIGINT is written in C and leaves no frame. It interrupts any instruction but a
    # `raise` statement, which is how code raises KeyboardInterrupt itself.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return (
        is_default
        and isinstance(error, KeyboardInterrupt)
        and last.tb_frame.f_code.co_code[last.tb_lasti] != _RAISE
    )


def _signal_handlers() -> Iterator[CodeType]:
    """Yield the code of each Python function that is installed as a signal handler."""
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        while isinstance(handler, functools.partial):  # asyncio.Runner installs one.
            handler = handler.func
        code = getattr(getattr(handler, "__func__", handler), "__code__", None)
        if isinstance(code, CodeType):
            yield code


def exit_in(error: BaseException) -> ProcessExit | None:
    """Return the `ProcessExit` that an exception is, or None if it is anything else.

    Of several exits in one group the first counts whose reason is not ``"normal"``, so that a task that ends
    well does not hide one that does not.
    """
    if isinstance(error, ProcessExit):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    leaves = list(_leaves(error))
    exits = [leaf for leaf in leaves if isinstance(leaf, ProcessExit)]
    if len(exits) != len(leaves):
        return None
    return next((each for each in exits if not _is_normal(each.reason)), exits[0])


def _is_normal(reason: object) -> bool:
    return isinstance(reason, str) and reason == "normal"


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the exceptions in a group and in the groups inside it, in their order."""
    waiting: list[BaseException] = [group]  # No recursion: groups may be nested more deeply than calls.
    while waiting:
        error = waiting.pop()
        if isinstance(error, BaseExceptionGroup):
            waiting += reversed(error.exceptions)
        else:
            yield error


def original(error: BaseException) -> BaseException:
    """Return the exception that code raised, without the `Contained` around it."""
    return error.__cause__ if isinstance(error, Contained) and error.__cause__ is not None else error


def error_of(task: asyncio.Task[object]) -> BaseException | None:
    """Return what a task that has ended has raised, a `CancelledError` included; None if it returned."""
    try:
        return task.exception()
    except asyncio.CancelledError as cancelled:
        return cancelled.with_traceback(_without_this(cancelled))


def _without_this(error: BaseException) -> TracebackType | None:
    """Return the traceback of an error without the frame that has caught it, which holds the error itself."""
    trace = error.__traceback__
    return trace if trace is None else trace.tb_next


def crash_of(error: BaseException, task: asyncio.Task[object] | None = None) -> Crash:
    """Return the exit reason of a process that this exception ends.

    Args:
        error: what its task raised.
        task: the task, which says of a `CancelledError` whether the task itself was cancelled.
    """
    error = original(error)
    text = text_of(error)
    if isinstance(error, asyncio.CancelledError):
        why = (
            "its task was cancelled by code that is not part of fleetlm"
            if task is not None and task.cancelling()
            else "what it awaited was cancelled"
        )
        text = f"{why}: {text}" if text else why
    return Crash(type(error).__name__, text, traceback_of(error)[-MAX_TRACEBACK_CHARS:])
