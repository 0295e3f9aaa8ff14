"""Asks the node for what the ops listener tells.

The listener runs on a thread of its own. The node's tables belong to the node's event loop, so each question
travels there and is waited for with a limit. A loop that stands still, or many askers, must not pile up
questions: `Shared` lets one question of a kind be on its way, and one wait for it. All who ask meanwhile
share the second one, so that no answer is older than the request for it. A pause between two questions
bounds what the node spends on them, however many requests come.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from fleetlm.errors import FleetError, NodeStopped
from fleetlm.messaging.own_loop import check_loop
from fleetlm.metrics import NodeMetrics
from fleetlm.node import parts_of

if TYPE_CHECKING:
    from fleetlm.node import Node
    from fleetlm.runtime.readiness import Readiness

T = TypeVar("T")

LIMIT_S = 5.0
"""Seconds that a request waits for the node's event loop. Checks of readiness have 3 of them."""
PAUSE_S = 0.25
"""Seconds between the beginnings of two questions of a kind: four answers a second are enough for all."""


class NoAnswer(Exception):
    """The node has not answered: its event loop is blocked, or it has stopped. Its text says which."""


class NodeGone(NoAnswer):
    """The node has stopped, so that there will be no answer any more."""


class Questions(Protocol):
    """What the application asks. Each raises `NoAnswer`."""

    @property
    def name(self) -> str:
        """The name of the node."""

    async def readiness(self) -> Readiness:
        """Whether the node is ready, with however many others."""

    async def overview(self) -> Mapping[str, Any]:
        """What the node knows of the whole cluster: `Node.overview`."""

    async def metrics(self) -> bytes:
        """The metrics of the node, in the text format of Prometheus."""


class Shared(Generic[T]):
    """One kind of question, shared by all who ask at the same time.

    Args:
        ask: asks the node.
        pause_s: seconds between the beginnings of two questions.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], pause_s: float = PAUSE_S) -> None:
        self._ask = ask
        self._pause_s = pause_s
        self._last: asyncio.Task[T] | None = None
        """The question that is on its way."""
        self._next: asyncio.Task[T] | None = None
        """The question that will follow it, which everybody who comes now waits for."""
        self._not_before = 0.0

    async def get(self, limit_s: float = LIMIT_S) -> T:
        """Return an answer to a question that is asked after this call.

        Raises:
            TimeoutError: it has not come in time.
            Exception: whatever the question raises.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._follow(self._last))
            self._next.add_done_callback(self._end)
        return await asyncio.wait_for(asyncio.shield(self._next), limit_s)

    def close(self) -> None:
        """Cancel what is on its way."""
        for task in (self._last, self._next):
            if task is not None:
                task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        """Forget a question: its answer may be large. Read its error, so that asyncio does not log it."""
        if self._last is task:
            self._last = None
        if not task.cancelled():
            task.exception()

    async def _follow(self, before: asyncio.Task[T] | None) -> T:
        loop = asyncio.get_running_loop()
        if before is not None:
            await asyncio.wait({before})
        await asyncio.sleep(max(0.0, self._not_before - loop.time()))
        self._not_before = loop.time() + self._pause_s
        self._last, self._next = self._next, None
        return await self._ask()


class NodeQuestions:
    """Implements `Questions` for a node, from any event loop.

    Args:
        node: the node. This is made on its event loop; it may ask from another one.

    Raises:
        RuntimeError: this is not the node's event loop.
    """

    def __init__(self, node: Node) -> None:
        self.name: str = node.name
        self._node = node
        self._loop = parts_of(node).context.loop
        check_loop(self._loop, "fleetlm.ops.app")
        self._metrics = NodeMetrics(node)
        self._kinds: dict[str, Shared[Any]] = {
            "readiness": Shared(lambda: self._on_loop(node.readiness)),
            "overview": Shared(lambda: self._on_loop(node.overview)),
            "metrics": Shared(self._render),
        }

    async def readiness(self) -> Readiness:
        """See `Questions.readiness`."""
        found: Readiness = await self._get("readiness")
        return found

    async def overview(self) -> Mapping[str, Any]:
        """See `Questions.overview`."""
        found: Mapping[str, Any] = await self._get("overview")
        return found

    async def metrics(self) -> bytes:
        """See `Questions.metrics`."""
        found: bytes = await self._get("metrics")
        return found

    def close(self) -> None:
        """Cancel all questions."""
        for kind in self._kinds.values():
            kind.close()
        with contextlib.suppress(RuntimeError):  # The loop is closed, and nothing is counted any more.
            self._loop.call_soon_threadsafe(self._metrics.close)

    async def _get(self, kind: str) -> Any:
        try:
            return await self._kinds[kind].get()
        except TimeoutError:
            raise NoAnswer(f"the event loop of {self.name} has not answered for {LIMIT_S:g} s") from None
        except NodeStopped as error:
            raise NodeGone(f"{self.name} does not answer: {error}") from error
        except FleetError as error:
            raise NoAnswer(f"{self.name} does not answer: {error}") from error

    async def _on_loop(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the node's event loop and return its result."""
        if self._loop is asyncio.get_running_loop():
            return await make()

        async def run() -> T:
            return await make()

        coroutine = run()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise NodeGone(f"{self.name} does not answer: its event loop is closed") from None
        return await asyncio.wrap_future(future)

    async def _render(self) -> bytes:
        """Render the metrics.

        The collector asks the node's loop itself, and gives its last reading where that stands still. From
        another loop it therefore blocks, so that a thread of that loop's executor waits for it.
        """
        if self._loop is asyncio.get_running_loop():
            return self._metrics.render()
        return await asyncio.to_thread(self._metrics.render)
