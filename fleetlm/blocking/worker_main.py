"""The main function of a worker process. `worker_process` starts it and speaks with it through a pipe.

* It ignores SIGINT: Ctrl-C reaches the whole process group, and the parent decides when a worker ends.
* It ends when the pipe closes or when it is told to, and also when its parent dies without doing either: a
  thread watches the parent, since a function that never returns must not outlive a parent that was killed.
* It imports the program's main module under another name, as `multiprocessing` does, so that functions of
  that module can be unpickled.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import select
import signal
import threading
from multiprocessing import spawn
from typing import TYPE_CHECKING

from fleetlm.blocking.function_call import run_packed

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

READY = b"ready"
LOOK_S = 1.0
"""Seconds between two looks at the parent: forked children of the parent may keep the watched pipe open."""


def main(pipe: Connection, watched: int, parent: int) -> None:
    """Run calls until the pipe closes.

    Args:
        pipe: to the parent. A pickled preparation comes in, as `multiprocessing.spawn` makes it, and `READY`
            goes out, or a text that says what the program's main module raised. Then each call that comes in
            is answered by its result; an empty one ends the worker.
        watched: a descriptor that reaches its end when the parent dies.
        parent: its process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with, args=(watched, parent), name="parent watch", daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(_prepare(pipe.recv_bytes()))
        while packed := pipe.recv_bytes():
            pipe.send_bytes(run_packed(packed))


def _prepare(packed: bytes) -> bytes:
    """Import the program's main module, and return `READY` or what it raised."""
    this = multiprocessing.current_process()
    # Starting a process now is an error: the program's main module has no guard.
    this._inheriting = True  # type: ignore[attr-defined]  # noqa: SLF001
    try:
        spawn.prepare(pickle.loads(packed))  # noqa: S301  # from our own parent
    except BaseException as error:  # noqa: BLE001  # whatever the program's main module raises
        return f"{type(error).__name__}: {error}".encode()
    finally:
        del this._inheriting  # type: ignore[attr-defined]  # noqa: SLF001
    return READY


def _end_with(watched: int, parent: int) -> None:
    """Wait for the parent to end, then exit at once, even while a function runs."""
    while os.getppid() == parent and not select.select([watched], [], [], LOOK_S)[0]:
        pass
    os._exit(1)
