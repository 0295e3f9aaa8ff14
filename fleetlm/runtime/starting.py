"""What `Node.start` returns, so that it can be awaited or entered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from fleetlm.runtime.bootstrap import prepare

if TYPE_CHECKING:
    from types import TracebackType

    from fleetlm.discovery.interface import Discovery
    from fleetlm.node import Node
    from fleetlm.settings import Settings
    from fleetlm.transport.interface import Transport


class NodeStarting:
    """What `Node.start` returns: await it, or enter it."""

    def __init__(
        self,
        cls: type[Node],
        settings: Settings | None,
        discovery: Discovery | None,
        transport: Transport | None,
        rng: random.Random | None,
        wall_ms: int | None,
    ) -> None:
        self._cls = cls
        self._args = (settings, discovery, transport)
        self._rng = rng
        self._wall_ms = wall_ms
        self._node: Node | None = None

    def __await__(self) -> Generator[Any, None, Node]:
        return self._start().__await__()

    async def __aenter__(self) -> Node:
        self._node = await self._start()
        return self._node

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._node is not None:
            in_order = error is None or isinstance(error, asyncio.CancelledError)  # Ctrl-C cancels main
            await self._node.stop("shutdown" if in_order else f"crashed: {type(error).__name__}")

    async def _start(self) -> Node:
        settings, discovery, transport = self._args
        wall_ms = int(time.time() * 1000) if self._wall_ms is None else self._wall_ms
        rng = random.Random() if self._rng is None else self._rng
        parts = await prepare(settings, discovery, transport, rng, wall_ms)
        return await self._cls(parts)._begin(parts)  # noqa: SLF001  # this module's own
