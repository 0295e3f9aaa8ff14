"""How large the frames to a peer are, by the settings of both nodes."""

from __future__ import annotations

import random

import pytest

from fleetlm import Call, Node, Process, Settings, StaticDiscovery
from fleetlm.messaging.frame_sizes import LEAST_FRAME_BYTES, FrameSizes, frame_sizes
from fleetlm.testing.network import SimTransport
from tests.sim.fleet import A, B, Fleet, simulated

KIB, MIB = 1024, 1024 * 1024
DEFAULT = Settings()


@pytest.mark.parametrize(
    ("settings", "told", "sizes"),
    [
        (DEFAULT, 2 * MIB, FrameSizes(64 * KIB, 128 * KIB, 256 * KIB, MIB)),
        (DEFAULT, 64 * MIB, FrameSizes(64 * KIB, 128 * KIB, 256 * KIB, MIB)),
        (DEFAULT, 0, FrameSizes(64 * KIB, 128 * KIB, 256 * KIB, 256 * KIB)),
        (DEFAULT, MIB, FrameSizes(64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB)),
        (DEFAULT, 100 * KIB, FrameSizes(25 * KIB, 25 * KIB, 50 * KIB, 50 * KIB)),
        (Settings(max_frame_bytes=MIB), 2 * MIB, FrameSizes(64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB)),
        (Settings(chunk_bytes=KIB), 2 * MIB, FrameSizes(64 * KIB, KIB, KIB, 4 * KIB)),
        (Settings(bulk_window_bytes=MIB), 2 * MIB, FrameSizes(64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB)),
    ],
)  # fmt: skip
def test_frames_keep_to_what_both_nodes_allow(settings: Settings, told: int, sizes: FrameSizes) -> None:
    assert frame_sizes(settings, told) == sizes


@pytest.mark.parametrize("told", [1, 1_000, LEAST_FRAME_BYTES])
def test_a_peer_cannot_ask_for_frames_of_a_few_bytes(told: int) -> None:
    sizes = frame_sizes(DEFAULT, told)
    assert sizes == FrameSizes(4 * KIB, 4 * KIB, 8 * KIB, 8 * KIB)


class Measuring(SimTransport):
    """Keeps the size of the largest frame that was sent."""

    largest_bytes = 0

    def send(self, channel: int, frame: bytes, tail: memoryview | None = None) -> bool:
        self.largest_bytes = max(self.largest_bytes, len(frame), len(tail or b""))
        return super().send(channel, frame, tail)


async def start(fleet: Fleet, ip: str, settings: Settings) -> tuple[Node, Measuring]:
    transport = Measuring(fleet.net, settings)
    node = await Node.start(
        settings,
        discovery=StaticDiscovery([A, B]),
        transport=transport,
        rng=random.Random(fleet.loop.rng.random()),
        wall_ms=1_000,
    )
    fleet.nodes.append(node)
    return node, transport


async def take(process: Process) -> None:
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply(message.message)


@simulated
async def test_a_node_that_takes_small_frames_gets_small_ones_and_sends_them(fleet: Fleet) -> None:
    base = Settings(dns_query="fleet.test")
    small, of_small = await start(fleet, A, base.replace(node_ip=A, max_frame_bytes=100 * KIB))
    large, of_large = await start(fleet, B, base.replace(node_ip=B))
    for node in (small, large):
        await node.ready(1, timeout=30)
        node.spawn(take, name="echo")
    echo = ("echo", small.name)
    for value in (b"x" * 3 * MIB, "y" * 3 * MIB, b"z" * 90 * KIB):
        assert await large.call(echo, value, 30) == value
    for _ in range(300):  # They share batches.
        large.send_nowait(echo, "w" * KIB)
    assert await large.call(echo, "and then", 30) == "and then"
    assert 25 * KIB < of_large.largest_bytes < 100 * KIB
    assert 25 * KIB < of_small.largest_bytes < 100 * KIB
