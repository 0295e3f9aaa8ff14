"""One worker process, and the pipe through which it is asked to run functions.

The protocol is strictly alternating: one pickled `FunctionCall` goes in, one pickled result comes
out. The worker starts when it is first needed, is kept, and is started anew after it has died.

Who owns what:

* A `WorkerProcess` belongs to one thread of `fleetlm.blocking.pools`, which waits at the pipe.
* Only `WorkerProcess.kill` may be called from other threads. It sets a flag before it looks for a
  process, and a start looks at the flag after it has stored the process, so a kill during a start
  is never lost.
* The worker exits when its pipe closes, and also when its parent dies without closing it: a thread
  watches the parent, since a function that never returns must not outlive a parent that was killed.
* Worker processes ignore SIGINT. Ctrl-C reaches the whole process group, and the parent decides when
  a worker ends.

Source: `concurrent.futures.ProcessPoolExecutor`; differs: there one process that dies fails the calls
of all others, an exception that cannot be unpickled does the same, and a stuck process keeps the
program from ending. Here each process has a pipe and a thread of its own.
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
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

FunctionResult = tuple[Any, BaseException | None]
"""What a function returned, or None and what it raised."""

REAP_TIMEOUT_S = 1.0
"""Seconds to wait for the exit code of a process whose pipe has closed: it needs milliseconds."""

_READY = b"ready"
_start_lock = threading.Lock()
"""Held while a process starts: multiprocessing then looks at all children, without a lock of its own."""
_workers: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


def catch_result(call: Callable[[], Any]) -> FunctionResult:
    """Call ``call`` and return what it returned or raised. Never raises.

    A StopIteration becomes a RuntimeError: no future accepts a StopIteration and no coroutine can
    raise one, so it would fail far from the function that raised it.
    """
    try:
        return call(), None
    except StopIteration as stop:
        error = RuntimeError(f"the function raised StopIteration({SHORT.repr(stop.value)})")
        error.__cause__ = stop
        return None, error
    except BaseException as error:  # noqa: BLE001  # it is raised again in the caller
        return None, error


class FunctionCall:
    """A function with its arguments, to be run in another process."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.name: str = getattr(function, "__qualname__", None) or repr(function)
        self._parts = (function, args, kwargs)

    def pack(self) -> bytes:
        """Pickle the call.

        Raises:
            TypeError: the function or an argument cannot be pickled.
        """
        try:
            return pickle.dumps(self._parts, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise TypeError(
                f"{self.name} cannot be sent to a worker process: {error}. The function must stand at the "
                "top level of a module and its arguments must be picklable; or use run_blocking"
            ) from error

    def __call__(self) -> Any:
        """Run the call in this process as a worker process would: on copies, returning a copy.

        A simulation runs calls so.

        Raises:
            BaseException: what the function raised.
            TypeError: the function, an argument or the result cannot be pickled.
        """
        return unpack_result(run_packed(self.pack()))


def run_packed(packed: bytes) -> bytes:
    """Run a pickled call, in the worker. Returns what `unpack_result` reads. Never raises."""
    try:
        function, args, kwargs = pickle.loads(packed)  # noqa: S301  # from our own parent
    except BaseException as failed:  # noqa: BLE001  # whatever the import of a module raises
        text = f"{type(failed).__name__}: {failed}"
        why = f"the worker process could not load the function or its arguments: {text}"
        return pickle.dumps((None, TypeError(why), _format_traceback(failed)))
    value, error = catch_result(lambda: function(*args, **kwargs))
    if error is not None:
        return _pack_error(error)
    try:
        return pickle.dumps((value, None, ""), pickle.HIGHEST_PROTOCOL)
    except Exception as failed:  # noqa: BLE001  # any __reduce__
        name = getattr(function, "__qualname__", repr(function))
        why = f"{name} has run, but its result cannot be sent back from the worker process: {failed}"
        return pickle.dumps((None, TypeError(why), ""))


def unpack_result(packed: bytes) -> Any:
    """Return the value that a worker sent back, or raise the error.

    Raises:
        BaseException: what the function raised, with the worker's traceback as a note.
        TypeError: the bytes cannot be unpickled in this process.
    """
    try:
        value, error, text = pickle.loads(packed)  # noqa: S301  # from our own child
    except Exception as failed:
        raise TypeError(f"the worker process's result cannot be loaded in this process: {failed}") from failed
    if error is None:
        return value
    if text:
        error.add_note(f"In the worker process:\n{text}")
    raise error


def _format_traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _pack_error(error: BaseException) -> bytes:
    """Pickle an exception, or a RuntimeError with its text where it cannot be pickled and unpickled.

    Many exceptions with a constructor of their own pickle well and fail when they are unpickled, so
    both directions are tried here.
    """
    text = _format_traceback(error)
    try:
        packed = pickle.dumps((None, error, text))
        pickle.loads(packed)  # noqa: S301  # packed in the line above
        return packed
    except Exception:  # noqa: BLE001  # any __reduce__, any __init__
        substitute = RuntimeError(f"{type(error).__name__}: {error} (the exception itself cannot be pickled)")
        return pickle.dumps((None, substitute, text))


class WorkerProcess:
    """A process that runs one function at a time. Used by one thread; only `kill` is thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._is_killed = False
        self._owner_pid = os.getpid()
        _workers.add(self)

    def perform(self, call: FunctionCall) -> FunctionResult:
        """Run a call in the process, starting it if need be, and wait for the result. Never raises."""
        return catch_result(lambda: unpack_result(self._request(call)))

    def end(self, timeout_s: float) -> None:
        """End an idle process by closing its pipe; kill it if it is still there after ``timeout_s``."""
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
        """Kill the process, whatever it runs, and never start it again. May be called from any thread."""
        self._is_killed = True
        process = self._process
        if process is not None and os.getpid() == self._owner_pid:
            process.kill()

    def _request(self, call: FunctionCall) -> bytes:
        """Send a call and wait for its packed result. Raises: WorkerDied, TypeError."""
        packed = call.pack()
        pipe = self._connect(call)
        try:
            pipe.send_bytes(packed)
            return pipe.recv_bytes()
        except (EOFError, OSError):
            raise WorkerDied(call.name, f"it ended ({self._reap()})") from None

    def _connect(self, call: FunctionCall) -> Connection:
        """Return the pipe to a living process. A process that died while it was idle is replaced silently."""
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self._reap()
        if self._is_killed:
            raise WorkerDied(call.name, "its node has stopped")
        try:
            return self._start()
        except (EOFError, OSError, RuntimeError, AssertionError) as error:
            # multiprocessing raises AssertionError when a daemonic process starts a child.
            why = f"it did not start ({self._reap() or error})"
            hint = "code that runs when the program starts must stand under if __name__ == '__main__':"
            raise WorkerDied(call.name, f"{why}; {hint}") from None

    def _start(self) -> Connection:
        """Start a process and wait until it is ready; its imports may take seconds."""
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs,), name=self._name, daemon=False)
        try:
            with _start_lock:
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process, self._pipe = process, ours
        if self._is_killed:
            process.kill()
        ours.recv_bytes(len(_READY))
        return ours

    def _reap(self) -> str:
        """Forget a process that has ended, and describe its end; empty if there was no process."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is None:
            return ""
        process.join(REAP_TIMEOUT_S)
        code = process.exitcode
        if code is None:
            process.kill()
            return "it had closed its pipe"
        if code >= 0:
            return f"exit code {code}"
        if -code == signal.SIGKILL:
            return "killed by SIGKILL, perhaps because memory ran out"
        names = {each.value: each.name for each in signal.Signals}
        return f"killed by {names.get(-code, f'signal {-code}')}"


@atexit.register  # Handlers run in reverse order: before that of multiprocessing, which waits for children.
def _kill_workers() -> None:
    for worker in list(_workers):
        worker.kill()


def _serve(pipe: Connection) -> None:
    """The main function of a worker: run calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too; the parent ends them.
    threading.Thread(target=_exit_with_parent, name="parent watch", daemon=True).start()
    pipe.send_bytes(_READY)
    while True:
        try:
            packed = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        answer = run_packed(packed)
        try:
            pipe.send_bytes(answer)
        except OSError:
            return


def _exit_with_parent() -> None:
    """Wait for the parent to end, then exit at once, even while a function runs."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
