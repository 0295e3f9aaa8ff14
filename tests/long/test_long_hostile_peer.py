"""A hostile peer on real sockets: an honest conversation, of which frames are changed, for a minute."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from functools import partial

import pytest

from fleetlm import FleetError, Node, PeerInfo, Settings
from tests.fuzz.hostile_peer import Box, Mutator, furnish, host, talk
from tests.system.cluster_tools import Fleet, quantile, until
from tests.system.cluster_worker import open_files, resident_kib

pytestmark = pytest.mark.long
SECONDS = 60.0
LIFE_S = 2.0
"""Seconds that one incarnation of the hostile node lives: the next one is dialled at once."""
COOKIE = "correct horse battery staple"
MAX_CALL_S = 5.0
MAX_GROWTH_KIB = 150 * 1024


@pytest.mark.deadline(240)
@pytest.mark.parametrize("cookie", [None, COOKIE], ids=["plain", "cookie"])
async def test_changed_frames_cost_only_the_connection_of_their_sender(
    cookie: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    env = {} if cookie is None else {"FLEETLM_COOKIE": cookie}
    async with Fleet(static=(2, 3, 4), **env) as fleet:  # type: ignore[arg-type]
        victim, honest = await fleet.node(2, quick(fleet, 2)), await fleet.node(3)
        furnish(victim)
        for node in (victim, honest):
            await host(node)
        await honest.ready(1, 10.0)
        for one, other in ((victim, honest), (honest, victim)):
            await until(partial(has_local_road, one, other.name))  # It has descriptors.
        before, is_over = (open_files(), resident_kib()), asyncio.Event()
        calling = asyncio.create_task(call(honest, victim.name, is_over))
        rng, changed, ends_at = random.Random(7), 0, time.monotonic() + SECONDS / 2
        while time.monotonic() < ends_at or changed <= 50:  # More of them on a fast machine.
            changed += await live(fleet, 4, victim.name, rng)
        boxes = honest.entities.ref(Box, "boxes")
        for key in map(str, range(20)):
            assert await boxes[key].within(10.0).call(Box.keep, key) == key, "each shard has an owner again"
        is_over.set()
        taken = await calling
        print(f"{changed} frames changed; {len(taken)} calls, p99 {quantile(taken, 0.99) * 1000:.1f} ms")
        assert [event for event in fleet.downs if fleet.name(4) not in (event.on, event.node)] == []
        async with asyncio.timeout(20.0):
            while open_files() > before[0] + 8:
                await asyncio.sleep(0.2)
        assert resident_kib() - before[1] < MAX_GROWTH_KIB
    unexpected = [record for record in caplog.records if "cannot handle a frame" in record.getMessage()]
    assert unexpected == [], unexpected[0].exc_text


def has_local_road(node: Node, to: str) -> bool:
    """Whether frames travel to a peer over a local road."""
    row = node.info(to)
    assert isinstance(row, PeerInfo)
    return row.road == "local"


def quick(fleet: Fleet, number: int) -> Settings:
    """Settings of a node that dials again soon after a connection has ended."""
    return fleet.settings(number).replace(backoff_min_s=0.02, backoff_max_s=0.05)


async def live(fleet: Fleet, number: int, to: str, rng: random.Random) -> int:
    """Start the hostile node, let it talk for a while, and stop it. Returns how many frames it changed."""
    node = await Node.start(quick(fleet, number))
    ends_at = time.monotonic() + LIFE_S
    mutator = Mutator(node, rng, rng.choice((0.01, 0.05, 0.2, 0.5)))
    try:
        with contextlib.suppress(FleetError):
            await host(node)
        await talk(node, to, rng, lambda: time.monotonic() > ends_at)
    finally:
        await node.stop(drain_s=0)
    return mutator.changed


async def call(node: Node, to: str, is_over: asyncio.Event) -> list[float]:
    """Call a node all the time: each call is answered, with what was sent. Returns the seconds of each."""
    taken = []
    while not is_over.is_set():
        began = time.perf_counter()
        assert await node.call(("honest", to), [len(taken), "x"], MAX_CALL_S) == [len(taken), "x"]
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return taken
