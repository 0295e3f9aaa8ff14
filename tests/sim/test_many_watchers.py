"""The end of a process that many others watch: all are told, and no turn of the loop tells too many."""

from __future__ import annotations

import asyncio
from typing import Any

from fleetlm import Down, Exit, Process
from fleetlm.processes.signals import STEPS_PER_TURN
from fleetlm.testing import SimCluster, run

WATCHERS = 3 * STEPS_PER_TURN + 1


async def idle(process: Process) -> None:
    async for _ in process.mailbox:
        pass


class Watchers:
    """Processes that watch another one, and what they were told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def watch(self, process: Process, target: Any) -> None:
        process.monitor(target)
        async for message in process.mailbox:
            self.told.append(message)

    async def link(self, process: Process, target: Any) -> None:
        process.trap_exit = True
        process.link(target)
        async for message in process.mailbox:
            self.told.append(message)


def test_watchers_are_told_in_slices_and_each_of_them_once() -> None:
    async def main() -> None:
        async with SimCluster() as cluster:
            (node,) = await cluster.start(1)
            watchers, target = Watchers(), node.spawn(idle)
            pids = [node.spawn(watchers.watch, target) for _ in range(WATCHERS)]
            linked = [node.spawn(watchers.link, target) for _ in range(10)]
            await asyncio.sleep(0.1)
            node.exit(target, "kill")
            boxes = [node._local.boxes[pid.number] for pid in (*pids, *linked)]
            waiting = [sum(map(len, boxes))]
            while sum(map(len, boxes)) + len(watchers.told) < len(boxes):
                before = sum(map(len, boxes)) + len(watchers.told)
                await asyncio.sleep(0)
                waiting.append(sum(map(len, boxes)) + len(watchers.told) - before)
            assert max(waiting) <= 2 * STEPS_PER_TURN
            await asyncio.sleep(0.1)
            assert {type(message) for message in watchers.told} == {Down, Exit}
            assert {message.reason for message in watchers.told} == {"killed"}
            assert len(watchers.told) == WATCHERS + 10
            assert node._parts.signals.links.counts() == (0, 0)

    run(main())


def test_watchers_on_another_node_hear_the_reason_though_the_node_stops_at_once() -> None:
    async def main() -> None:
        async with SimCluster() as cluster:
            one, two = await cluster.start(2)
            await cluster.mesh()
            watchers, target = Watchers(), two.spawn(idle)
            for _ in range(WATCHERS):
                one.spawn(watchers.watch, target)
            await asyncio.sleep(1)
            two.exit(target, "kill")
            await cluster.stop(two)
            await asyncio.sleep(1)
            assert [message.reason for message in watchers.told] == ["killed"] * WATCHERS
            assert one._parts.signals.links.counts() == (0, 0)

    run(main())


def test_a_process_that_goes_on_watching_another_one_misses_nothing_meanwhile() -> None:
    async def main() -> None:
        async with SimCluster() as cluster:
            (node,) = await cluster.start(1)
            watchers, first, second = Watchers(), node.spawn(idle), node.spawn(idle)
            for _ in range(WATCHERS):
                node.spawn(watchers.watch, first)
                node.spawn(watchers.watch, second)
            await asyncio.sleep(0.1)
            node.exit(first, "kill")
            node.exit(second, "kill")
            await asyncio.sleep(0.1)
            assert sorted(message.target.number for message in watchers.told) == sorted(
                [first.number] * WATCHERS + [second.number] * WATCHERS
            )

    run(main())


def test_a_node_that_leaves_tells_at_once_whatever_is_left_to_be_told() -> None:
    async def main() -> None:
        async with SimCluster() as cluster:
            (node,) = await cluster.start(1)
            watchers, first, second = Watchers(), node.spawn(idle), node.spawn(idle)
            for target in (first, second):
                for _ in range(WATCHERS):
                    node.spawn(watchers.watch, target)
            await asyncio.sleep(0.1)
            boxes = list(node._local.boxes.values())
            node.exit(first, "kill")
            node.exit(second, "kill")
            assert sum(map(len, boxes)) == 2 * STEPS_PER_TURN
            node._parts.signals.finish()
            assert sum(map(len, boxes)) == 2 * WATCHERS
            await asyncio.sleep(0.1)
            assert len(watchers.told) == 2 * WATCHERS

    run(main())
