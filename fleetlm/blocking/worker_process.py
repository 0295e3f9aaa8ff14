"""One worker process, and the pipe through which it is asked to run functions.

The protocol is strictly alternating: one pickled `FunctionCall` goes in, one pickled result comes
out. The worker starts when it is first needed, is kept, and is started anew after it has died. Where its pool
has an initializer, a process runs that before anything else.

Who owns what:

* A `WorkerProcess` belongs to one thread of `fleetlm.blocking.pools`, which waits at the pipe.
* Only `WorkerProcess.kill` may be called from other threads. It sets a flag before it looks for a
  process, and a start looks at the flag after it has stored the process, so a kill during a start
  is never lost.
* `worker_main` is the other end. A copy of a `WorkerProcess` in a forked child owns nothing: it closes its
  copies of the descriptors, so that they do not keep the worker alive.

What a caller may conclude: until the whole call has been written, it has not run (`WorkerNotStarted`); after
that it may have run (`WorkerDied`).

Source: `concurrent.futures.ProcessPoolExecutor`; differs: there one process that dies fails the calls
of all others, an exception that cannot be unpickled does the same, and a stuck process keeps the
program from ending. Here each process has a pipe and a thread of its own. And `multiprocessing` refuses to
start processes from a daemonic one (a worker of a pool, say), since they would outlive it; these watch
their parent.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import weakref
from multiprocessing import spawn, util
from typing import TYPE_CHECKING

from fleetlm.blocking import forks
from fleetlm.blocking.function_call import (
    FunctionCall,
    FunctionResult,
    catch_result,
    initializer_failed,
    unpack_result,
)
from fleetlm.blocking.worker_main import READY
from fleetlm.errors import WorkerDied, WorkerNotStarted

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

REAP_TIMEOUT_S = 1.0
"""Seconds to wait for the exit code of a process whose pipe has closed: it needs milliseconds."""

_BOOT = """\
import sys
from multiprocessing.connection import Connection
pipe = Connection({pipe})
sys.path[:] = pipe.recv()
from fleetlm.blocking.worker_main import main
main(pipe, {watched}, {parent})
"""
"""What a worker runs. It knows nothing of the parent's paths, so the first message brings them."""
_workers: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerProcess:
    """A process that runs one function at a time. Used by one thread; only `kill` is thread-safe.

    Args:
        name: shown in the list of processes.
        initializer: run by each process before its first function.
    """

    def __init__(self, name: str, initializer: FunctionCall | None = None) -> None:
        self._name = name
        self._initializer = initializer
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._watched = -1
        """The end of the pipe that the worker watches: it is closed with this process, at the latest."""
        self._is_killed = False
        _workers.add(self)
        forks.guard(self)

    def perform(self, call: FunctionCall) -> FunctionResult:
        """Run a call in the process, starting it if need be, and wait for the result. Never raises."""
        return catch_result(lambda: self._request(call))

    def end(self, timeout_s: float) -> None:
        """End an idle process; kill it if it is still there after ``timeout_s``."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.send_bytes(b"")
        self._reap(timeout_s)

    def kill(self) -> subprocess.Popen[bytes] | None:
        """Kill the process, whatever it runs, and never start it again. May be called from any thread.

        Returns:
            The process, if there was one.
        """
        self._is_killed = True
        process = self._process
        if process is not None:
            process.kill()
        return process

    def after_fork(self) -> None:
        """Implement `forks.Guarded`: forget the process, which is the parent's."""
        self._is_killed = True
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # It is no child of this process, so there is nothing to wait for.
        self._close()

    def _request(self, call: FunctionCall) -> object:
        """Send a call; return its result or raise its error, or WorkerDied, WorkerNotStarted, TypeError."""
        packed = call.pack()
        return unpack_result(self._exchange(self._connect(call.name), packed, call.name))

    def _exchange(self, pipe: Connection, packed: bytes, name: str) -> bytes:
        """Send one packed call and wait for its packed result."""
        is_sent = False
        try:
            pipe.send_bytes(packed)
            is_sent = True
            return pipe.recv_bytes()
        except (EOFError, OSError):
            why = f"it ended ({self._reap()})"
            if is_sent:
                raise WorkerDied(name, why) from None
            raise WorkerNotStarted(name, why) from None
        except BaseException:  # No memory for the result: what is left in the pipe belongs to no call.
            self._reap(0.0)
            raise

    def _connect(self, name: str) -> Connection:
        """Return the pipe to a living process. A process that died while it was idle is replaced silently."""
        if self._pipe is not None and self._process is not None and self._process.poll() is None:
            return self._pipe
        self._reap()
        if self._is_killed:
            raise WorkerNotStarted(name, "its node has stopped")
        try:
            pipe = self._start(name)
        except (EOFError, OSError, RuntimeError) as error:
            raise WorkerNotStarted(name, f"it did not start ({self._reap() or error})") from None
        if self._initializer is not None:
            self._initialize(pipe, name, self._initializer)
        return pipe

    def _start(self, name: str) -> Connection:
        """Start a process and wait until it is ready; its imports may take seconds."""
        if getattr(sys, "frozen", False):
            raise RuntimeError("a frozen program has no interpreter that could run a worker process")
        preparation = spawn.get_preparation_data(self._name)
        preparation["authkey"] = bytes(preparation["authkey"])
        ours, theirs = multiprocessing.Pipe()
        watched, self._watched = os.pipe()
        self._pipe = ours
        boot = _BOOT.format(pipe=theirs.fileno(), watched=watched, parent=os.getpid())
        command = [os.fsdecode(spawn.get_executable()), *util._args_from_interpreter_flags()]  # type: ignore[attr-defined]  # noqa: SLF001
        # SIGINT stays blocked until the worker ignores it: Ctrl-C must not end it while it starts.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter
                [*command, "-c", boot, self._name],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), watched),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
            os.close(watched)
        if self._is_killed:
            self._process.kill()
        ours.send(sys.path)
        ours.send_bytes(pickle.dumps(preparation))
        said = ours.recv_bytes()
        if said != READY:
            self._reap(0.0)
            hint = "Code that runs when the program starts must stand under if __name__ == '__main__':"
            why = f"the program's main module raised {said.decode(errors='replace')}"
            raise WorkerNotStarted(name, f"it did not start ({why}). {hint}")
        return ours

    def _initialize(self, pipe: Connection, name: str, initializer: FunctionCall) -> None:
        """Let a new process run the initializer. Raises: WorkerNotStarted; the process has ended."""
        try:
            unpack_result(self._exchange(pipe, initializer.pack(), initializer.name))
        except Exception as error:
            self._reap(0.0)
            raise initializer_failed(name, initializer.name, error) from error

    def _reap(self, timeout_s: float = REAP_TIMEOUT_S) -> str:
        """Forget a process that has ended, and describe its end; empty if there was no process."""
        process, self._process = self._process, None
        self._close()
        if process is None:
            return ""
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return "it had closed its pipe"
        if code >= 0:
            return f"exit code {code}"
        if -code == signal.SIGKILL:
            return "killed by SIGKILL, perhaps because memory ran out"
        names = {each.value: each.name for each in signal.Signals}
        return f"killed by {names.get(-code, f'signal {-code}')}"

    def _close(self) -> None:
        """Close the descriptors."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._watched >= 0:
            os.close(self._watched)
            self._watched = -1


@atexit.register
def _kill_workers() -> None:
    for worker in list(_workers):
        process = worker.kill()
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REAP_TIMEOUT_S)
