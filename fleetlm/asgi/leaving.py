"""How the node of a web worker leaves, beside a server that leaves too.

Theory of operation. A server that gets SIGTERM takes no new connections, waits for the responses that it
sends, and only then ends the lifespan. A node that began to drain only then would be picked by its peers
meanwhile, and both waits would add up. So the drain begins with the signal: `Leaving` puts its own handler
before that of the server and calls the latter. It does so only if the server has a handler: where SIGTERM
still ends the process, `runtime.termination` is in charge.

The drain waits for what this node has asked of others, so the handlers of the last HTTP requests get their
answers. Responses that go on when its time is over (`Settings.drain_s`) are ended with an event that says so.
A server waits for them without a limit by default, and would be killed with all of them.

A node that stops by itself, because an essential process failed, leaves a worker without a node: it sends
SIGTERM to its own process, so that whatever starts the workers starts another one.

Source: the same chain of handlers is what uvicorn documents for programs that need to know of the signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.asgi.disconnect import settle
from fleetlm.errors import Draining, FleetError, NodeStopped

if TYPE_CHECKING:
    from starlette.types import Scope

    from fleetlm.node import Node
    from fleetlm.runtime.draining import DrainSource

log: logging.Logger = logging.getLogger("fleetlm.asgi")

STATE_KEY = "fleetlm.leaving"
"""In the state of the lifespan, where each request finds it."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Response(Protocol):
    """What is ended when the time is over."""

    def cut(self, error: FleetError) -> None:
        """End it with an error, soon."""


class Leaving:
    """Drains the node of one worker when the worker is told to leave.

    Args:
        node: the node.

    Attributes:
        responses: those on their way.
        is_over: whether the time of the drain is over, so that responses are ended.
    """

    def __init__(self, node: Node) -> None:
        self.responses: set[Response] = set()
        self.is_over: bool = False
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._drain: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_ended = False

    @staticmethod
    def of(scope: Scope) -> Leaving | None:
        """Return that of the worker that serves a request, if the lifespan of `asgi.lifespan` runs."""
        found = scope.get("state", {}).get(STATE_KEY)
        return found if isinstance(found, Leaving) else None

    def enter(self, response: Response) -> None:
        """A response begins. One that begins when the time is over is ended in the next turn of the loop."""
        self.responses.add(response)
        if self.is_over:
            self._loop.call_soon(response.cut, Draining(self._node.name))

    def begin(self) -> None:
        """Watch the signals and the node."""
        self._watch = self._loop.create_task(self._watch_node(), name="fleetlm.asgi watches its node")
        if threading.current_thread() is not threading.main_thread():
            return
        if not callable(signal.getsignal(signal.SIGTERM)):
            return  # No server handles it.
        for number in SIGNALS:
            before = signal.getsignal(number)
            if callable(before):
                self._before[number] = before
                signal.signal(number, self._handle)

    async def drain(self) -> None:
        """Drain the node, or wait for the drain that the signal began."""
        self._start_drain("api")
        assert self._drain is not None
        await asyncio.shield(self._drain)

    async def end(self) -> None:
        """Watch nothing any more, and stop the node; it has been drained, if there was time."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)
        self._has_ended = True  # A server may keep our handler for later, so it goes on handing signals over.
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            await settle([self._watch])
        has_drained = self._drain is not None and self._drain.done()
        # Supervision trees and hooks have that long to end; the work of the node is done already.
        await self._node.stop(drain_s=self._node.settings.terminate_s if has_drained else None)
        if self._drain is not None:
            await settle([self._drain])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Let the drain begin, and let the server do what it does."""
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            source: DrainSource = "signal"
            self._loop.call_soon_threadsafe(self._start_drain, source)
        self._before[number](number, frame)

    def _start_drain(self, source: DrainSource) -> None:
        if self._drain is not None or self._has_ended:
            return
        drain_s = self._node.settings.drain_s
        self._timer = self._loop.call_later(drain_s, self._end_responses)
        self._drain = self._loop.create_task(self._drain_node(source), name="fleetlm.asgi drains its node")

    async def _drain_node(self, source: DrainSource) -> None:
        with contextlib.suppress(NodeStopped):  # It has ended by itself, and has drained then.
            await self._node.drain(source=source, reason="the worker stops")

    def _end_responses(self) -> None:
        self.is_over = True
        if self.responses:
            log.warning("%d response(s) are ended, since the worker leaves", len(self.responses))
        for response in [*self.responses]:
            response.cut(Draining(self._node.name, has_begun=True))

    async def _watch_node(self) -> None:
        await self._node.wait_stopped()
        if self._drain is None:
            why = self._node.failure or "it was stopped"
            log.error("the node of this worker has ended (%s), so the worker leaves", why)
            if self._before:
                signal.raise_signal(signal.SIGTERM)
