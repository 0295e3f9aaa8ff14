"""A function with its arguments on the way to a worker process, and what comes back. Bytes and words only.

What a blocking function raises is the outcome of its call and never more. Asyncio lets SystemExit and
KeyboardInterrupt through to the event loop, whose end is the end of the node, and it takes CancelledError
for a cancellation of the caller; so `catch_result` puts a RuntimeError in the place of everything that is
no `Exception`.
"""

from __future__ import annotations

import inspect
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleetlm.blocking import forks
from fleetlm.errors import WorkerDied, WorkerNotStarted
from fleetlm.texts import SHORT, name_of, text_of, traceback_of

FunctionResult = tuple[Any, BaseException | None]
"""What a function returned, or None and what it raised."""


def catch_result(call: Callable[[], Any], name: str = "the function") -> FunctionResult:
    """Call ``call`` and return what it returned or raised. Never raises.

    What is no `Exception`, and StopIteration, which no coroutine can raise, becomes a RuntimeError with
    the original as its cause. A child that ``call`` has forked never returns from here: it ends.
    """
    pid = os.getpid()
    value, error = None, None
    try:
        value = call()
    except BaseException as raised:  # noqa: BLE001  # it is raised again in the caller
        error = raised
    if os.getpid() != pid:
        forks.end_child(error)
    if error is not None and (isinstance(error, StopIteration) or not isinstance(error, Exception)):
        substitute = RuntimeError(f"{name} raised {SHORT.repr(error)}")
        substitute.__cause__ = error
        return None, substitute
    return value, error


class FunctionCall:
    """A function with its arguments, to be run in another process."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.name: str = name_of(function)
        self._parts = (function, args, kwargs)

    def pack(self) -> bytes:
        """Pickle the call.

        Raises:
            TypeError: the function or an argument cannot be pickled.
        """
        try:
            packed = pickle.dumps(self._parts, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise TypeError(
                f"{self.name} cannot be sent to a worker process: {text_of(error)}. "
                f"{_advice(self._parts[0])}, and its arguments must be picklable; or use run_blocking"
            ) from error
        if _is_unknown_elsewhere(self._parts[0]):
            raise TypeError(
                f"{self.name} cannot be sent to a worker process: it is defined in a notebook, a shell or "
                "`python -c`, where no other process can import it. Move it into a module"
            )
        return packed

    def __call__(self) -> Any:
        """Run the call in this process as a worker process would: on copies, returning a copy.

        A simulation runs calls so.

        Raises:
            Exception: what the function raised.
            TypeError: the function, an argument or the result cannot be pickled.
        """
        return unpack_result(run_packed(self.pack()))


class Initializer(FunctionCall):
    """The function that each process of a pool runs first."""

    has_run = False
    """Whether it has run in a simulation, whose worker processes are all this one."""


class InitializedCall(FunctionCall):
    """A function for a pool whose processes run an initializer first; this class does so in a simulation."""

    def __init__(
        self,
        initializer: Initializer | None,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__(function, args, kwargs)
        self._initializer = initializer

    def __call__(self) -> Any:
        """Run as a worker process would, the initializer first. Raises: also WorkerNotStarted."""
        first = self._initializer
        if first is not None and not first.has_run:
            try:
                first()
            except Exception as error:
                raise initializer_failed(self.name, first.name, error) from error
            first.has_run = True
        return super().__call__()


def initializer_failed(function: str, initializer: str, error: Exception) -> WorkerNotStarted:
    """Return the error of a function whose worker process could not be initialized."""
    ended = isinstance(error, WorkerDied | WorkerNotStarted)
    said = f"failed: {error.why}" if ended else f"raised {type(error).__name__}: {text_of(error)}"  # type: ignore[attr-defined]
    return WorkerNotStarted(function, f"its initializer {initializer} {said}")


def _advice(function: object) -> str:
    """Return what to do about a function that cannot be pickled, as the begin of a sentence."""
    if inspect.ismethod(function):
        return (
            "A bound method takes its whole object along: use a static method or a function at the top level "
            "of a module, with the values that it needs as arguments"
        )
    return "The function must stand at the top level of a module"


def _is_unknown_elsewhere(function: object) -> bool:
    """Whether a function belongs to a main module that has no file, so that only this process has it."""
    main = sys.modules.get("__main__")
    return (
        getattr(function, "__module__", None) == "__main__"
        and getattr(main, "__file__", None) is None
        and getattr(main, "__spec__", None) is None
    )


def run_packed(packed: bytes) -> bytes:
    """Run a pickled call, in the worker. Returns what `unpack_result` reads. Never raises."""
    try:
        function, args, kwargs = pickle.loads(packed)  # noqa: S301  # from our own parent
    except BaseException as failed:  # noqa: BLE001  # whatever the import of a module raises
        text = f"{type(failed).__name__}: {text_of(failed)}"
        why = f"the worker process could not load the function or its arguments: {text}"
        return pickle.dumps((None, TypeError(why), format_traceback(failed)))
    name = name_of(function)
    value, error = catch_result(lambda: function(*args, **kwargs), name)
    if error is not None:
        return _pack_error(error)
    try:
        return pickle.dumps((value, None, ""), pickle.HIGHEST_PROTOCOL)
    except Exception as failed:  # noqa: BLE001  # any __reduce__
        text = type(failed).__name__ if isinstance(failed, MemoryError) else text_of(failed)
        why = f"{name} has run, but its result cannot be sent back from the worker process: {text}"
        return pickle.dumps((None, TypeError(why), ""))


def unpack_result(packed: bytes) -> Any:
    """Return the value that a worker sent back, or raise the error.

    Raises:
        Exception: what the function raised, with the worker's traceback as a note.
        TypeError: the bytes cannot be unpickled in this process.
    """
    try:
        value, error, text = pickle.loads(packed)  # noqa: S301  # from our own child
    except Exception as failed:
        why = f"the function has run, but its result cannot be loaded in this process: {text_of(failed)}"
        raise TypeError(why) from failed
    if error is None:
        return value
    if text:
        error.add_note(f"In the worker process:\n{text}")
    raise error


def format_traceback(error: BaseException) -> str:
    """Return a traceback as text."""
    return traceback_of(error).rstrip()


def _pack_error(error: BaseException) -> bytes:
    """Pickle an exception, or a RuntimeError with its text where it cannot be pickled and unpickled.

    Many exceptions with a constructor of their own pickle well and fail when they are unpickled, so
    both directions are tried here.
    """
    text = format_traceback(error)
    try:
        packed = pickle.dumps((None, error, text))
        pickle.loads(packed)  # noqa: S301  # packed in the line above
        return packed
    except Exception:  # noqa: BLE001  # any __reduce__, any __init__
        substitute = RuntimeError(
            f"{type(error).__name__}: {text_of(error)} (the exception itself cannot be pickled)"
        )
        return pickle.dumps((None, substitute, text))
