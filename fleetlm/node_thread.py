"""A node for programs without an event loop: the node gets a thread with a loop of its own.

The thread that calls `node_in_thread` waits twice. At the start it waits for the node or for the error of
its start (`_NodeThread._started`); at the end it asks the loop to stop the node, and waits for the thread.
A KeyboardInterrupt may come while either thread is anywhere: the reason to stop is stored before the loop is
looked for, and the loop's thread stores its loop before it looks for a reason, so one of them sees the other.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from fleetlm.node import Node
from fleetlm.settings import Settings
from fleetlm.sync import SyncNode

STOP_SLACK_S = 10.0
"""Seconds that a node has to stop, beyond draining. It needs two; a loop that needs more is blocked."""


@contextlib.contextmanager
def node_in_thread(
    settings: Settings | None = None,
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    **options: Any,
) -> Iterator[SyncNode]:
    """Start a node on an event loop in a thread of its own, and stop it at the end of the block.

    ::

        with fleetlm.node_in_thread() as node:
            node.spawn(printer, name="printer")          # a coroutine function: it runs on the node's loop
            node.send(("printer", "fleetlm@10.0.0.7"), "hello")

    Any number of threads may use ``node``. At the end of the block the node stops, and its thread ends.

    Args:
        settings: as `Node.start`.
        loop_factory: makes the loop, such as ``uvloop.new_event_loop``; default asyncio's.
        **options: the further arguments of `Node.start`.

    Yields:
        The node, as any thread may use it.

    Raises:
        SettingsError, StartFailed: as `Node.start`; no thread is left behind.
        TimeoutError: at the end of the block, if something blocks the loop. The thread, a daemon, is left
            behind.
    """
    thread = _NodeThread(settings, loop_factory, options)
    node = thread.begin()
    try:
        yield node.sync
    except BaseException as error:
        in_order = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        try:
            thread.end("shutdown" if in_order else f"crashed: {type(error).__name__}")
        except Exception as besides:  # noqa: BLE001  # the block's own error counts
            error.add_note(f"Besides, stopping the node failed: {besides!r}")
        raise
    thread.end("shutdown")


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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Future[str] | None = None
        self._thread = threading.Thread(target=self._run, name="fleetlm node", daemon=True)

    def begin(self) -> Node:
        """Wait until the node runs. Raises: as `Node.start`; the thread has ended then."""
        self._thread.start()
        try:
            return self._started.result()
        except BaseException:  # KeyboardInterrupt while it starts, or the start itself failed
            self._ask_to_stop("could not start")
            self._thread.join(STOP_SLACK_S)
            raise

    def end(self, reason: str) -> None:
        """Stop the node and wait for the thread. Raises: TimeoutError, or what `Node.stop` raised."""
        node = self._started.result()
        self._ask_to_stop(reason)
        wait_s = node.settings.drain_s + STOP_SLACK_S
        self._thread.join(wait_s)
        if self._thread.is_alive():
            raise TimeoutError(
                f"node {node.name} has not stopped within {wait_s:g} s: something blocks its event loop. "
                "Run blocking functions with run_blocking"
            )
        self._ended.result()

    def _ask_to_stop(self, reason: str) -> None:
        """Ask the node to stop, from any thread; before the loop runs, it is not started at all."""
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
                runner.run(self._live())
        except BaseException as error:  # noqa: BLE001  # it is raised in the waiting thread
            for future in (self._started, self._ended):
                if not future.done():
                    future.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _live(self) -> None:
        """Start the node, wait until it is asked to stop, and stop it."""
        self._loop = asyncio.get_running_loop()
        self._leave = self._loop.create_future()
        if self._reason:  # Asked to stop before it began.
            return
        node = await Node.start(self._settings, **self._options)
        self._started.set_result(node)
        await node.stop(await self._leave)
