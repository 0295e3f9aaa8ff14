"""What must happen in a forked child of a program with a node.

``os.fork()`` copies a running node into the child, but not the threads behind it: no event loop runs
there and ZeroMQ's sockets are shared with the parent. Every copy is told at once (`guard`), so that it raises
instead of hanging or writing into the parent's sockets.

A child that was forked on the event loop, in a coroutine, also has a copy of the loop, in the middle of a
turn. Where the child leaves by ``sys.exit``, `asyncio.run` cancels all tasks and runs that loop until they
have ended: the parent's processes would clean up a second time, in the child, and everything that reads
would read the parent's descriptors. The selector is worse than a copy: an epoll instance is shared, so a
child that removes a reader removes it for the parent. `leave_loop` therefore takes the parent's work out of
the copy: only the coroutine that forked goes on.

uvloop keeps what it is about to run out of reach, and its libuv ends the whole process, the parent, when a
child has removed something from the shared epoll instance. So a child gets an epoll instance of its own
(``uv_loop_fork``), and it ends in the step in which the coroutine that forked has left: nothing of the
parent's runs in it afterwards, and nothing of its own after ``uvloop.run``. Where that coroutine awaits
something, the copied loop would go on with what the parent has scheduled. So all of that is cancelled in the
child, and the child ends in that turn with an error that says why.

Source: CPython's asyncio since 3.12, which resets the running loop and the wake-up descriptor of signals in
a forked child (gh-66285); differs: it leaves the loop itself as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import selectors
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, Protocol

FORKED = (
    "belongs to the process that this one was forked from, and cannot be used here. Start a node of this "
    "process, after the fork: in gunicorn's post_fork, in the lifespan of a web application, in the function "
    "that the process runs (docs/several-nodes-on-one-host.md). Or start processes with 'spawn', not 'fork'"
)
"""The reason given to `NodeStopped` in a child, as the rest of a sentence."""


_AWAITED = (
    "this process was forked in a coroutine that has awaited something: the event loop of its parent does "
    "not run here. Leave with os._exit or sys.exit before the next await, or fork in a function that a "
    "thread runs"
)


class Guarded(Protocol):
    """An object that must know that it has been copied into a forked child."""

    def after_fork(self) -> None:
        """Refuse every later request with `FORKED` as the reason. Called in the child."""


_UV_POLL = 8
"""The type of a handle of libuv that watches a descriptor for `loop.add_reader` and `loop.add_writer`."""

_guarded: weakref.WeakSet[Guarded] = weakref.WeakSet()
_pid = os.getpid()
"""The process that has imported this module."""


def guard(something: Guarded) -> None:
    """Call ``something.after_fork()`` in every child that is forked while ``something`` lives."""
    _guarded.add(something)


def end_child(error: BaseException | None) -> NoReturn:
    """End a forked child that came back from the function which forked it.

    It is a copy of a thread in which the parent runs functions for others; there is nothing for it to go on
    with.

    Args:
        error: what the function raised, such as SystemExit; None: it returned.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(f"{error.code}\n")
    elif error is not None:
        traceback.print_exception(error)
        if isinstance(error, RuntimeError) and "no running event loop" in str(error):
            sys.stderr.write(f"{_AWAITED}\n")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # It may be None, or closed.
            stream.flush()
    os._exit(code)


def on_copied_loop() -> bool:
    """Whether this coroutine runs in a forked child, on the copy of its parent's event loop.

    There SystemExit is the end of the child, whatever it would be in the parent. Asyncio knows no running
    loop in a child until the child starts one of its own.
    """
    return os.getpid() != _pid and asyncio._get_running_loop() is None  # noqa: SLF001  # documented for event loops


def leave_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Take everything of the parent out of an event loop, in the child.

    It uses parts of asyncio's own loops that are not public, and passes over loops that do not have them.
    """
    if isinstance(loop.run_until_complete, functools.partial):
        return  # Another node of the same loop was here.
    with contextlib.suppress(ValueError):  # Not the main thread: then signals do not concern the loop.
        signal.set_wakeup_fd(-1)  # Else a signal to the child would be handled by the parent.
    tasks = asyncio.all_tasks(loop)
    if not tasks and loop.is_running():  # Python 3.14 does not find them in a child.
        every = (each for each in gc.get_objects() if isinstance(each, asyncio.Task))
        tasks = {task for task in every if task.get_loop() is loop and not task.done()}
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
        asyncio._unregister_task(task)  # noqa: SLF001  # documented: "Extending asyncio"
        task.add_done_callback(_end_after)
    for handle in [*getattr(loop, "_ready", ()), *getattr(loop, "_scheduled", ())]:
        handle.cancel()
    getattr(loop, "_asyncgens", set()).clear()
    # What `asyncio.run` still awaits on this loop when the coroutine has left it is the parent's, too.
    loop.run_until_complete = functools.partial(_await_nothing, tasks)  # type: ignore[method-assign,assignment]
    shared = getattr(loop, "_selector", None)
    if isinstance(shared, selectors.BaseSelector) and isinstance(loop, asyncio.SelectorEventLoop):
        shared.close()  # The descriptor of the child only; nothing is removed from the parent's.
        loop._selector = _ChildSelector()  # type: ignore[attr-defined]  # noqa: SLF001
    loop.call_exception_handler = functools.partial(_handle_exception, loop)  # type: ignore[method-assign]
    if type(loop).__module__.partition(".")[0] == "uvloop":
        call_soon = loop.call_soon
        loop.call_soon = functools.partial(_end_or_call_soon, call_soon)  # type: ignore[method-assign,assignment]
        _cancel_handles()
        call_soon(end_child, RuntimeError(_AWAITED))
        _leave_epoll(loop)


class _ChildSelector(selectors.DefaultSelector):
    """The selector of a loop that a forked child has left."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Select as always; where nothing can ever happen, the child ends instead of waiting for ever."""
        if timeout is None and not self.get_map():
            end_child(RuntimeError(_AWAITED))
        return super().select(timeout)


def _cancel_handles() -> None:
    """Cancel what the parent has scheduled on its loop of uvloop, except for what uvloop does itself."""
    for each in gc.get_objects():
        kind = type(each)
        if kind.__name__ in ("Handle", "TimerHandle") and str(kind.__module__).startswith("uvloop"):
            with contextlib.suppress(RuntimeError):  # Its timer has ended.
                if "oop._" not in repr(each):  # Such as <Handle loop._on_idle>.
                    each.cancel()


def _leave_epoll(loop: asyncio.AbstractEventLoop) -> None:
    """Give a copied loop of uvloop an epoll instance of its own, if this build of uvloop shows how.

    No descriptor that a Python function watches is in it: libuv aborts the process where one has been closed.

    Source: libuv, ``uv_loop_fork`` and ``UV_HANDLE_FIELDS``, which do not change within libuv 1.
    """
    with contextlib.suppress(ImportError, AttributeError, TypeError, OSError, ValueError):
        import ctypes  # noqa: PLC0415  # for a child only

        from uvloop import loop as extension  # noqa: PLC0415  # it is loaded already

        find_pointer = ctypes.pythonapi.PyCapsule_GetPointer
        find_pointer.restype, find_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        pointer = find_pointer(extension.libuv_get_loop_t_ptr(loop), None)  # type: ignore[attr-defined]
        libuv = ctypes.CDLL(extension.__file__)
        libuv.uv_loop_fork(ctypes.c_void_p(pointer))

        type_at = 2 * ctypes.sizeof(ctypes.c_void_p)  # Behind the public members ``data`` and ``loop``.

        def stop(handle: int, _: object) -> None:
            if ctypes.c_int.from_address(handle + type_at).value == _UV_POLL:
                libuv.uv_poll_stop(ctypes.c_void_p(handle))

        visitor = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
        libuv.uv_walk(ctypes.c_void_p(pointer), visitor(stop), None)


def _end_or_call_soon(
    call_soon: Callable[..., asyncio.Handle], callback: Callable[..., object], *arguments: Any, **more: Any
) -> asyncio.Handle:
    """Stand in for ``call_soon`` of a loop whose turns cannot be stopped: the child ends at once."""
    if callback is _end_after:
        end_child(_find_error(*arguments))
    return call_soon(callback, *arguments, **more)


def _end_after(task: asyncio.Task[object]) -> None:
    """End the child after the task that forked, as nothing else is left on this loop that could go on.

    Where `asyncio.run` waits for that task, the loop stops now, and the next turn never comes.
    """
    task.get_loop().call_soon(end_child, _find_error(task))


def _find_error(task: asyncio.Task[object]) -> BaseException | None:
    """Return what the task that forked has raised."""
    error = None if task.cancelled() else task.exception()
    return error.__cause__ if error is not None and isinstance(error.__cause__, SystemExit) else error


def _handle_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Stand in for ``call_exception_handler`` of a loop that a forked child has left.

    Since Python 3.14 the task that forked raises a RuntimeError at the end of its step, as its loop does
    not run in the child any more. It hides the SystemExit that the coroutine raised, so the child would
    stay for ever.
    """
    error = context.get("exception")
    if isinstance(error, RuntimeError) and "is not the running loop" in str(error):
        if isinstance(error.__context__, SystemExit):
            end_child(error.__context__)
        return
    loop.default_exception_handler(context)


def _await_nothing(tasks: set[asyncio.Task[object]], awaitable: object) -> None:
    """Stand in for ``run_until_complete`` of a loop that a forked child has left."""
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # Not to be logged as one that nobody has seen: it is what ends the child.
    if isinstance(awaitable, Coroutine):
        awaitable.close()


def _notify_guarded() -> None:
    for something in list(_guarded):
        something.after_fork()


os.register_at_fork(after_in_child=_notify_guarded)
