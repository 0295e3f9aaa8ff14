"""xoscar: an actor pool in each process. Source: the examples of its README."""

from __future__ import annotations

from typing import Any

import xoscar

from benchmarks.helper import Parent, run_loop
from benchmarks.peers.asyncio_client import serve_commands
from benchmarks.peers.counter import Counter


class Echo(xoscar.Actor):  # type: ignore[misc]  # the package has no types
    """Echoes, measures and counts."""

    def __init__(self) -> None:
        super().__init__()
        self._counter = Counter()

    async def echo(self, payload: bytes) -> bytes:
        """Reply with the payload."""
        return payload

    async def length(self, payload: bytes) -> int:
        """Reply with the length."""
        return len(payload)

    async def count(self, _payload: bytes) -> None:
        """Count a message."""
        self._counter.add()

    async def counted(self, expected: int) -> int:
        """Reply with the count, and start anew when all have come."""
        return self._counter.counted(expected)


class Remote:
    """A reference to one of them."""

    def __init__(self, ref: Any) -> None:
        self.echo = ref.echo
        self.length = ref.length
        self.cast = ref.count.tell
        self.counted = ref.counted


def _address(config: dict[str, Any], index: int) -> str:
    return f"{config['ips'][index]}:{config['port']}"


def server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a pool with the actors."""

    async def main() -> None:
        address = _address(config, config["index"])
        pool = await xoscar.create_actor_pool(address, n_process=0)
        async with pool:
            for number in range(config.get("each", 1)):
                await xoscar.create_actor(Echo, uid=f"echo{number}", address=address)
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def client(parent: Parent, config: dict[str, Any]) -> None:
    """Run a pool of its own, and call."""

    async def main() -> None:
        pool = await xoscar.create_actor_pool(_address(config, 0), n_process=0)
        async with pool:
            targets = [
                Remote(await xoscar.actor_ref(address=_address(config, index), uid=f"echo{number}"))
                for index in range(1, len(config["ips"]))
                for number in range(config.get("each", 1))
            ]
            await serve_commands(parent, config, [*targets])

    run_loop(main(), config["loop"])
