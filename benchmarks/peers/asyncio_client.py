"""What the peers that run on asyncio have in common: a client that measures the work it is asked for."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from benchmarks import measures
from benchmarks.helper import Parent
from benchmarks.registry import Metrics


class Target(Protocol):
    """A process, actor or service of the peer, on one of its servers."""

    async def echo(self, payload: bytes) -> bytes:
        """Call it; it replies with the payload."""

    async def length(self, payload: bytes) -> int:
        """Call it; it replies with the length of the payload."""

    async def cast(self, payload: bytes) -> object:
        """Send a message without a reply, which it counts."""

    async def counted(self, expected: int) -> int:
        """Return what it has counted; it starts anew when that is as much as expected."""


async def serve_commands(parent: Parent, config: dict[str, Any], targets: list[Target]) -> None:
    """Measure at each command of the parent, and report."""
    parent.report(ready=True)
    while await parent.read_command():
        parent.report(**await _measure(config, targets))


async def _measure(config: dict[str, Any], targets: list[Target]) -> Metrics:
    first = targets[0]
    match config["work"]:
        case "calls" | "actors":
            return await measures.calls(lambda: first.echo(measures.PAYLOAD), config)
        case "fan-out":
            return await measures.fan_outs(
                lambda: asyncio.gather(*(target.echo(measures.PAYLOAD) for target in targets)), config
            )
        case "bulk":
            return await measures.bulk(first.length, config)
        case "beside":
            return await measures.beside(first.length, config)
        case "one-way":

            async def send_all(count: int) -> None:
                for _ in range(count):
                    await first.cast(measures.PAYLOAD)

            count = config["count"]
            return await measures.one_way(send_all, lambda: first.counted(count), count)
        case other:
            raise ValueError(f"no work is called {other!r}")
