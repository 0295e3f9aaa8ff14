"""One process that runs functions for this one, and what is said to it through a pipe.

Not `concurrent.futures.ProcessPoolExecutor`: there one process that dies fails the calls of all
others, an exception that cannot be unpickled does the same, and a stuck one keeps the program from
ending. Here each process has a pipe of its own, and the thread that waits at it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util  # Its exit handler must be registered before ours.
import os
import pickle
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fleetlm.errors import WorkerDied

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

Outcome = tuple[Any, BaseException | None]
"""What a function returned, or what it raised."""

EXIT_CODE_S = 1.0
"""For a process whose pipe has closed to be reaped."""

_READY = b"ready"
_starting = threading.Lock()
"""multiprocessing looks after all children whenever it starts one, without a lock of its own."""
_children: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


def outcome_of(call: Callable[[], Any]) -> Outcome:
    """Call, and never raise."""
    try:
        return call(), None
    except StopIteration as stop:
        # No future takes it and no coroutine can raise it: it would end a loop far from here.
        error = RuntimeError(f"the function raised StopIteration({stop.value!r})")
        error.__cause__ = stop
        return None, error
    except BaseException as error:  # noqa: BLE001  # it is the caller's
        return None, error


class Order:
    """A function with its arguments, for another process."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.name = getattr(function, "__qualname__", None) or repr(function)
        self._parts = (function, args, kwargs)

    def packed(self) -> bytes:
        """The order as bytes. Raises: TypeError."""
        try:
            return pickle.dumps(self._parts, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise TypeError(
                f"{self.name} cannot be given to another process: {error}. The function must stand at the "
                "top level of a module and its arguments must be picklable; or use run_blocking"
            ) from error

    def __call__(self) -> Any:
        """Run it here, as another process would: with copies, and with a copy of the result.

        Raises: what the function raised, or `TypeError` for what cannot be pickled.
        """
        return taken(performed(self.packed()))


def performed(packed: bytes) -> bytes:
    """Run an order where it arrived. Returns what `taken` understands; never raises."""
    try:
        function, args, kwargs = pickle.loads(packed)  # noqa: S301  # from our own parent
    except BaseException as failed:  # noqa: BLE001  # whatever the import of a module raises
        text = f"{type(failed).__name__}: {failed}"
        why = f"the worker process could not load the function or its arguments: {text}"
        return pickle.dumps((None, TypeError(why), _traceback(failed)))
    value, error = outcome_of(lambda: function(*args, **kwargs))
    if error is not None:
        return _packed_error(error)
    try:
        return pickle.dumps((value, None, ""), pickle.HIGHEST_PROTOCOL)
    except Exception as failed:  # noqa: BLE001  # any __reduce__
        name = getattr(function, "__qualname__", repr(function))
        why = f"{name} has run, but what it returned cannot be given back to this process: {failed}"
        return pickle.dumps((None, TypeError(why), ""))


def taken(packed: bytes) -> Any:
    """The value of an outcome. Raises: what the function raised."""
    try:
        value, error, text = pickle.loads(packed)  # noqa: S301  # from our own child
    except Exception as failed:
        raise TypeError(f"what the worker process returned cannot be loaded here: {failed}") from failed
    if error is None:
        return value
    if text:
        error.add_note(f"In the worker process:\n{text}")
    raise error


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _packed_error(error: BaseException) -> bytes:
    """An exception, as itself if it survives the journey: many with arguments of their own do not."""
    text = _traceback(error)
    try:
        packed = pickle.dumps((None, error, text))
        pickle.loads(packed)  # noqa: S301  # what this very line packed
        return packed
    except Exception:  # noqa: BLE001  # any __reduce__, any __init__
        told = RuntimeError(f"{type(error).__name__}: {error} (the exception itself cannot be pickled)")
        return pickle.dumps((None, told, text))


class WorkerProcess:
    """A process that is started when it is needed, and again when it has died. For one thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._killed = False
        self._owner = os.getpid()
        _children.add(self)

    def perform(self, order: Order) -> Outcome:
        """Let it run one order, and wait for the outcome. Never raises."""
        return outcome_of(lambda: taken(self._asked(order)))

    def end(self, timeout_s: float) -> None:
        """Let it end, as it has nothing to do; kill it if it does not."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is not None:
            process.join(timeout_s)
            if process.is_alive():
                process.kill()
                process.join(timeout_s)

    def kill(self) -> None:
        """End it whatever it does, from any thread; it is not started again."""
        self._killed = True
        process = self._process
        if process is not None and os.getpid() == self._owner:
            process.kill()

    def _asked(self, order: Order) -> bytes:
        packed = order.packed()
        pipe = self._pipe_for(order)
        try:
            pipe.send_bytes(packed)
            return pipe.recv_bytes()
        except (EOFError, OSError):
            raise WorkerDied(order.name, f"it ended ({self._last_words()})") from None

    def _pipe_for(self, order: Order) -> Connection:
        """The pipe to a living process: one that died with nothing to do is replaced without a word."""
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self._last_words()
        if self._killed:
            raise WorkerDied(order.name, "its node has stopped")
        try:
            return self._start()
        except (EOFError, OSError, RuntimeError, AssertionError) as error:
            # An AssertionError is how multiprocessing refuses children to its daemons.
            why = f"it did not start ({self._last_words() or error})"
            hint = "what a program does when it starts must stand under if __name__ == '__main__':"
            raise WorkerDied(order.name, f"{why}; {hint}") from None

    def _start(self) -> Connection:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs,), name=self._name, daemon=False)
        try:
            with _starting:
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process, self._pipe = process, ours
        if self._killed:
            process.kill()
        ours.recv_bytes(len(_READY))
        return ours

    def _last_words(self) -> str:
        """Bury a process that has died; how it ended, as people say it, or empty if there was none."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is None:
            return ""
        process.join(EXIT_CODE_S)
        code = process.exitcode
        if code is None:
            process.kill()
            return "it had closed its pipe"
        if code >= 0:
            return f"exit code {code}"
        if -code == signal.SIGKILL:
            return "killed by SIGKILL: is memory short?"
        names = {each.value: each.name for each in signal.Signals}
        return f"killed by {names.get(-code, f'signal {-code}')}"


@atexit.register  # Registered last, it runs first: multiprocessing's own waits for every child.
def _kill_children() -> None:
    for worker in list(_children):
        worker.kill()


def _serve(pipe: Connection) -> None:
    """What the process does: orders in, outcomes out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; who ends when is the parent's to say.
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    pipe.send_bytes(_READY)
    while True:
        try:
            packed = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        answer = performed(packed)
        try:
            pipe.send_bytes(answer)
        except OSError:
            return


def _end_with_parent() -> None:
    """A function that never returns must not outlive a parent that was killed, with what it holds."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
