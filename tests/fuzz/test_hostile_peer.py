"""A peer that joins as an honest node does and then breaks the protocol costs its own connection only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

import pytest

from fleetlm import FleetError, Node, NodeDown
from fleetlm.testing import SimCluster
from fleetlm.testing.cluster import SETTINGS
from tests.fuzz.hostile_peer import Box, Mutator, furnish, host, talk
from tests.sim.seeded import run_stories

ROUNDS = 4
ROUND_S = 1.5
"""Virtual seconds that one incarnation of the hostile node lives."""
QUICK = SETTINGS.replace(debug=False, backoff_min_s=0.02, backoff_max_s=0.05)
"""The hostile node is connected again soon."""


async def story(seed: int) -> None:
    """Let a hostile node talk to another one, which an honest node calls all the time."""
    async with SimCluster(seed=seed, settings=QUICK) as cluster:
        victim, honest, hostile = await cluster.start(3)
        for node in (victim, honest):
            furnish(node)
            await host(node)
        await cluster.mesh(timeout=10)
        is_over, rng = asyncio.Event(), cluster.rng_of("hostile peer")
        reasons: list[str] = []

        async def watch(node: Node) -> None:
            async for event in node.events():
                match event:
                    case NodeDown(node=(victim.name | honest.name), reason=reason):
                        reasons.append(reason)

        watching = [asyncio.create_task(watch(node)) for node in (victim, honest)]
        calling = asyncio.create_task(call(honest, victim.name, is_over))
        changed = 0
        for _ in range(ROUNDS):
            changed += await hostile_round(hostile, victim.name, rng)
            hostile = await cluster.restart(hostile)
        await cluster.crash(hostile)
        while hostile.name in honest.list():  # what it has been asked until then is in doubt
            await asyncio.sleep(0.1)
        boxes = honest.entities.ref(Box, "boxes")
        for key in map(str, range(20)):
            assert await boxes[key].within(10.0).call(Box.keep, key) == key, "each shard has an owner again"
        is_over.set()
        await calling
        await cluster.stop(victim)
        await cluster.stop(honest)
        await asyncio.gather(*watching)
    assert changed > 10
    assert [reason for reason in reasons if "shutdown" not in reason] == []


async def hostile_round(node: Node, to: str, rng: random.Random) -> int:
    """Let a node talk to another one for a while, with changed frames. Returns how many were changed."""
    loop = asyncio.get_running_loop()
    ends_at, mutator = loop.time() + ROUND_S, Mutator(node, rng, rng.choice((0.01, 0.05, 0.2, 0.5)))
    with contextlib.suppress(FleetError):
        await host(node)
    await talk(node, to, rng, lambda: loop.time() > ends_at)
    return mutator.changed


async def call(node: Node, to: str, is_over: asyncio.Event) -> None:
    """Call a node again and again: every call is answered, with what was sent."""
    number = 0
    while not is_over.is_set():
        number += 1
        assert await node.call(("honest", to), [number, "x"]) == [number, "x"]
        await asyncio.sleep(0.02)


def play(seeds: range, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    run_stories(story, seeds)
    unexpected = [record for record in caplog.records if "cannot handle a frame" in record.getMessage()]
    assert unexpected == [], unexpected[0].exc_text


def test_changed_frames_cost_only_the_connection_of_their_sender(caplog: pytest.LogCaptureFixture) -> None:
    play(range(1), caplog)


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 100, 5))
def test_changed_frames_of_many_courses(first: int, caplog: pytest.LogCaptureFixture) -> None:
    play(range(first, first + 5), caplog)
