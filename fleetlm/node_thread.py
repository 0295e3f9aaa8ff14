"""A node for programs without an event loop: the node gets a thread with a loop of its own.

The thread that calls `node_in_thread` waits twice. At the start it waits for the node or for the error of
its start (`_NodeThread._started`); at the end it asks the loop to stop the node, and waits for the thread.
A KeyboardInterrupt may come while either thread is anywhere: the reason to stop is stored before the loop is
looked for, and the loop's thread stores its loop before it looks for a reason, so one of them sees the other.

A node lives until it is stopped, not until its last reference goes: ``_running`` holds it, since the cells of
a notebook may keep nothing else. What is left there when the program ends is stopped by `_stop_all`.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fleetlm.blocking.patched import patched_by, why_no_threads
from fleetlm.errors import StartFailed
from fleetlm.node import Node
from fleetlm.runtime.leftovers import run_to_end
from fleetlm.settings import Settings
from fleetlm.sync import STOP_SLACK_S, SyncNode

if TYPE_CHECKING:
    from fleetlm.runtime.draining import DrainSource

EXIT_DRAIN_S = 1.0
"""Seconds that calls in flight have when the program ends without having stopped its node."""

log: logging.Logger = logging.getLogger("fleetlm")


def node_in_thread(
    settings: Settings | None = None,
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    **options: Any,
) -> SyncNode:
    """Start a node on an event loop in a thread of its own.

    ::

        with fleetlm.node_in_thread() as node:
            node.spawn(printer, name="printer")          # a coroutine function: it runs on the node's loop
            node.send(("printer", "fleetlm@10.0.0.7"), "hello")

    At the end of the block the node stops, and its thread ends. In a notebook, where cells are no blocks::

        node = fleetlm.node_in_thread()
        ...
        node.stop()

    Any number of threads may use ``node``. It runs until it is stopped, whether the program keeps a reference
    or not; a node that still runs when the program ends is stopped then.

    Args:
        settings: as `Node.start`.
        loop_factory: makes the loop, such as ``uvloop.new_event_loop``; default asyncio's.
        **options: the further arguments of `Node.start`.

    Returns:
        The node, as any thread may use it.

    Raises:
        SettingsError, StartFailed: as `Node.start`; no thread is left behind.
        RuntimeError: gevent or eventlet has replaced the program's threads; the text says what to do.
        TimeoutError: from `SyncNode.stop` and the end of the block, if something blocks the loop. The thread,
            a daemon, is left behind.
    """
    patch = patched_by()
    if patch:
        raise RuntimeError(why_no_threads(patch))
    thread = _NodeThread(settings, loop_factory, options)
    node = thread.begin().sync
    node._end_thread = thread.end  # noqa: SLF001  # the other half of this module
    return node


class _NodeThread:
    """A thread, the event loop in it, and the node on that loop."""

    def __init__(
        self,
        settings: Settings | None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
        options: dict[str, Any],
    ) -> None:
        self._settings = settings
        self._loop_factory = loop_factory
        self._options = options
        self._started: concurrent.futures.Future[Node] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._reason = ""
        self._drain_s: float | None = None
        self._source: DrainSource = "api"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Future[str] | None = None
        self._pid = os.getpid()
        self.name = ""
        """The node's; empty until it runs."""
        self._thread = threading.Thread(target=self._run, name="fleetlm node", daemon=True)

    def begin(self) -> Node:
        """Wait until the node runs. Raises: as `Node.start`; the thread has ended then."""
        self._thread.start()
        try:
            return self._started.result()
        except BaseException as error:  # KeyboardInterrupt while it starts, or the start itself failed
            self._ask_to_stop("could not start", None)
            self._thread.join(STOP_SLACK_S)
            if isinstance(error, StartFailed) and _running:
                others = ", ".join(thread.name for thread in _running)
                why = (
                    f"{error.why}. This program runs {others} in a thread already: use it, or node.stop() it"
                )
                raise StartFailed(error.endpoint, why) from None
            raise

    def end(self, reason: str, drain_s: float | None, source: DrainSource) -> None:
        """Stop the node and wait for the thread. Raises: TimeoutError, or what `Node.stop` raised."""
        node = self._started.result()
        if os.getpid() != self._pid:
            return  # The node belongs to the process that this one was forked from.
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "node.stop() of a node in a thread is for other threads: this one runs the node's event loop "
                "and would wait for itself"
            )
        self._source = source
        self._ask_to_stop(reason, drain_s)
        wait_s = 2 * (node.settings.drain_s if drain_s is None else drain_s) + STOP_SLACK_S
        self._thread.join(wait_s)
        if self._thread.is_alive():
            raise TimeoutError(
                f"node {node.name} has not stopped within {wait_s:g} s: something blocks its event loop. "
                "Run blocking functions with run_blocking"
            )
        self._ended.result()

    def _ask_to_stop(self, reason: str, drain_s: float | None) -> None:
        """Ask the node to stop, from any thread; before the loop runs, it is not started at all."""
        self._drain_s = drain_s
        self._reason = reason  # Before the loop is looked for: `_live` does the reverse.
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop has been closed.
                loop.call_soon_threadsafe(self._set_reason, reason)

    def _set_reason(self, reason: str) -> None:
        if self._leave is not None and not self._leave.done():
            self._leave.set_result(reason)

    def _run(self) -> None:
        """Run the loop. What it raises is raised in the thread that waits in `begin` or `end`."""
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                run_to_end(runner, self._live())
        except BaseException as error:  # noqa: BLE001  # it is raised in the waiting thread
            for future in (self._started, self._ended):
                if not future.done():
                    future.set_exception(error)
        else:
            self._ended.set_result(None)
        finally:
            _running.discard(self)

    async def _live(self) -> None:
        """Start the node, wait until it is asked to stop, and stop it."""
        self._loop = asyncio.get_running_loop()
        self._leave = self._loop.create_future()
        if self._reason:  # Asked to stop before it began.
            return
        node = await Node.start(self._settings, **self._options)
        self.name = node.name
        _running.add(self)
        self._started.set_result(node)
        stopped = asyncio.ensure_future(node.wait_stopped())  # By a process of the node, say.
        either: set[asyncio.Future[Any]] = {self._leave, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        await node.stop(self._reason, self._drain_s, source=self._source)


_running: set[_NodeThread] = set()
"""The nodes that have been started here and not stopped: nothing else has to hold them."""


@atexit.register
def _stop_all() -> None:
    """Stop the nodes that the program has left running; their peers get a goodbye."""
    for thread in list(_running):
        try:
            thread.end("shutdown", EXIT_DRAIN_S, "api")
        except Exception as error:  # noqa: BLE001  # the program ends in any case
            log.warning("node %s was not stopped in order at the end of the program: %s", thread.name, error)


os.register_at_fork(after_in_child=_running.clear)
