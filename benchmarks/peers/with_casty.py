"""casty: an actor system in each process, and actors that are pinned to the servers. Source: its README."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from casty import ActorSystem, Askable, Cluster, Compression, Context, Limits, actor

from benchmarks.helper import Parent, run_loop
from benchmarks.peers.asyncio_client import serve_commands
from benchmarks.peers.counter import Counter

MAX_MESSAGE_BYTES = 300 * 1024 * 1024


@dataclass(frozen=True)
class Echo(Askable[bytes]):  # type: ignore[misc,type-arg]  # the package is not installed where types are checked
    """Reply with the payload."""

    payload: bytes


@dataclass(frozen=True)
class Length(Askable[int]):  # type: ignore[misc,type-arg]
    """Reply with the length."""

    payload: bytes


@dataclass(frozen=True)
class Count:
    """Count this message."""

    payload: bytes


@dataclass(frozen=True)
class Counted(Askable[int]):  # type: ignore[misc,type-arg]
    """Reply with the count, and start anew when all have come."""

    expected: int


@actor(initial=None, pinned=True)  # type: ignore[untyped-decorator]
async def echo(ctx: Context[None, Echo | Length | Count | Counted]) -> None:
    """Echo, measure and count."""
    counter = Counter()
    async for message in ctx.inbox:
        match message:
            case Echo(payload):
                message.reply_to.tell(payload)
            case Count():
                counter.add()
            case Length(payload):
                message.reply_to.tell(len(payload))
            case Counted(expected):
                message.reply_to.tell(counter.counted(expected))


class Remote:
    """A reference to one of them."""

    def __init__(self, ref: Any) -> None:
        self._ref = ref

    async def echo(self, payload: bytes) -> Any:
        """Ask it."""
        return await self._ref.ask(Echo(payload))

    async def length(self, payload: bytes) -> Any:
        """Ask it."""
        return await self._ref.ask(Length(payload))

    async def cast(self, payload: bytes) -> None:
        """Tell it."""
        self._ref.tell(Count(payload))

    async def counted(self, expected: int) -> Any:
        """Ask for the count."""
        return await self._ref.ask(Counted(expected))


def _cluster(config: dict[str, Any], index: int) -> Any:
    address, first = (f"{ip}:{config['port']}" for ip in (config["ips"][index], config["ips"][1]))
    return Cluster(
        bind=address,
        seeds=(first,),
        compression=Compression(codecs=()),
        limits=Limits(message=MAX_MESSAGE_BYTES),
    )


def server(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node."""

    async def main() -> None:
        async with ActorSystem(cluster=_cluster(config, config["index"])):
            parent.report(ready=True)
            await parent.wait_until_closed()

    run_loop(main(), config["loop"])


def client(parent: Parent, config: dict[str, Any]) -> None:
    """Run a node, and ask the actors of the servers."""

    async def main() -> None:
        async with ActorSystem(cluster=_cluster(config, 0)) as system:
            while len(system.members) < len(config["ips"]):
                await asyncio.sleep(0.05)
            targets = [
                Remote(system.ref(echo, f"echo{number}", at=f"{ip}:{config['port']}"))
                for ip in config["ips"][1:]
                for number in range(config.get("each", 1))
            ]
            await asyncio.gather(*(target.echo(b"") for target in targets))
            await serve_commands(parent, config, [*targets])

    run_loop(main(), config["loop"])
