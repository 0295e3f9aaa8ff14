"""Ray: an actor is a process. Its own processes are started by the driver, and the servers do nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from benchmarks.helper import Parent
from benchmarks.peers.asyncio_client import serve_commands
from benchmarks.peers.counter import Counter


class Echo:
    """Echoes, measures and counts."""

    def __init__(self) -> None:
        self._counter = Counter()

    def echo(self, payload: bytes) -> bytes:
        """Reply with the payload."""
        return payload

    def length(self, payload: bytes) -> int:
        """Reply with the length."""
        return len(payload)

    def count(self, _payload: bytes) -> None:
        """Count a message."""
        self._counter.add()

    def counted(self, expected: int) -> int:
        """Reply with the count, and start anew when all have come."""
        return self._counter.counted(expected)


class Remote:
    """A handle of one of them."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def echo(self, payload: bytes) -> Any:
        """Call it."""
        return await self._actor.echo.remote(payload)

    async def length(self, payload: bytes) -> Any:
        """Call it."""
        return await self._actor.length.remote(payload)

    async def cast(self, payload: bytes) -> None:
        """Call it and drop the reference: Ray has no message without a result."""
        self._actor.count.remote(payload)

    async def counted(self, expected: int) -> Any:
        """Ask for the count."""
        return await self._actor.counted.remote(expected)


def server(parent: Parent, _config: dict[str, Any]) -> None:
    """Do nothing until the parent ends."""
    parent.report(ready=True)
    for _ in parent.read_commands():
        pass


def client(parent: Parent, config: dict[str, Any]) -> None:
    """Start Ray with as many actors as the work needs, and call them."""
    count = (len(config["ips"]) - 1) * config.get("each", 1)
    ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, logging_level="error")
    make = ray.remote(Echo).options(num_cpus=0)
    targets = [Remote(make.remote()) for _ in range(count)]

    async def main() -> None:
        await asyncio.gather(*(target.echo(b"") for target in targets))
        await serve_commands(parent, config, [*targets])

    try:
        asyncio.run(main())
    finally:
        ray.shutdown()
