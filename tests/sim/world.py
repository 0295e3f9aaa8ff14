"""Listeners that only record facts, on a simulated network, for the tests of the network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.testing.network import SimNetwork, SimTransport
from fleetlm.transport.interface import Listener

PORT = 4370
A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
CHANNEL = 1
SETTINGS = Settings()
EARLIEST_S = SETTINGS.node_timeout_s
LATEST_S = SETTINGS.longest_silence_s


class Peer:
    """A listener that records each fact with its time."""

    def __init__(self, network: SimNetwork, ip: str, settings: Settings = SETTINGS) -> None:
        self.ip = ip
        self.loop = network.loop
        self.inside = False
        self.facts: list[tuple[Any, ...]] = []
        self.times: list[float] = []
        self.transport = SimTransport(network, settings)

    def __getattr__(self, fact: str) -> Callable[..., None]:
        if fact.startswith("_"):
            raise AttributeError(fact)

        def note(*args: Any) -> None:
            assert not self.inside, f"{fact} was told from inside a method of the transport"
            self.facts.append((fact, *args))
            self.times.append(self.loop.time())

        return note

    async def start(self) -> Peer:
        listener: Listener = self
        await self.transport.bind(self.ip, [PORT])
        await self.transport.start(listener)
        return self

    def use(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the transport, and check that it does not call back."""
        self.inside = True
        try:
            return method(*args)
        finally:
            self.inside = False

    def dial(self, other: str, channel: int = CHANNEL) -> None:
        self.use(self.transport.dial, channel, other, PORT)

    def send(self, frame: bytes, channel: int = CHANNEL) -> bool:
        sent = self.use(self.transport.send, channel, frame)
        assert isinstance(sent, bool)
        return sent

    def send_numbers(self, numbers: range, channel: int = CHANNEL) -> None:
        assert all(self.send(b"%d" % number, channel=channel) for number in numbers)

    def told(self, fact: str) -> list[tuple[Any, ...]]:
        return [each[1:] for each in self.facts if each[0] == fact]

    def at(self, fact: str) -> float:
        """Return when this fact was last reported."""
        return max(t for each, t in zip(self.facts, self.times, strict=True) if each[0] == fact)

    @property
    def numbers(self) -> list[int]:
        return [int(frame) for _, frame in self.told("frame_arrived")]


class World:
    def __init__(self, **options: Any) -> None:
        self.loop = SimLoop.current()
        self.network = SimNetwork(self.loop, self.loop.rng, **options)
        self.peers: list[Peer] = []

    async def peer(self, ip: str, settings: Settings = SETTINGS) -> Peer:
        peer = await Peer(self.network, ip, settings).start()
        self.peers.append(peer)
        return peer

    async def pair(self, ip: str = A, other_ip: str = B) -> tuple[Peer, Peer]:
        """Start two peers; the first has an open channel to the second, which knows its source."""
        first, second = await self.peer(ip), await self.peer(other_ip)
        first.dial(other_ip)
        await asyncio.sleep(1)
        assert first.facts == [("channel_opened", CHANNEL)]
        assert first.send(b"-1")
        await asyncio.sleep(1)
        return first, second

    async def close(self) -> None:
        for peer in self.peers:
            await peer.transport.close()
            await peer.transport.close()


def simulated(test: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test on its own network with several seeds."""

    def scenarios() -> None:
        for seed in range(10):

            async def main() -> None:
                world = World()
                await test(world)
                await world.close()

            run(main(), seed=seed, limit_s=1000)

    scenarios.__name__ = test.__name__
    return scenarios
