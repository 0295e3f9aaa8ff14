"""A node that leaves under load leaves no request in doubt, whether it drains or not."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from fleetlm import Process
from fleetlm.testing import SimCluster, run
from fleetlm.wire.operations import MAX_UNANSWERED
from tests.sim.goodbye_ledger import story

SEEDS = 3
MANY = 203
"""Each seed is played twice; a run takes a third of a second."""


def play(seed: int, *, cuts: bool) -> None:
    ledger = run(story(seed, cuts=cuts))
    breaches = ledger.breaches()
    assert not breaches, (seed, cuts, len(ledger.outcomes), breaches[:5])
    assert len(ledger.outcomes) > 100


@pytest.mark.parametrize("cuts", [False, True], ids=["drained", "cut"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_request_is_in_doubt_when_nodes_leave(seed: int, cuts: bool) -> None:
    play(seed, cuts=cuts)


@pytest.mark.long
@pytest.mark.parametrize("cuts", [False, True], ids=["drained", "cut"])
@pytest.mark.parametrize("first", range(SEEDS, MANY, 10))
def test_no_request_is_in_doubt_in_many_more_runs(first: int, cuts: bool) -> None:
    for seed in range(first, first + 10):
        play(seed, cuts=cuts)


@pytest.mark.parametrize("ends", ["disconnect", "stop"])
def test_of_more_requests_than_one_message_names_none_is_in_doubt_that_was_not_taken(ends: str) -> None:
    """Three processes take all of their calls, and a fourth one takes none."""
    each = MAX_UNANSWERED // 2

    async def taker(process: Process) -> None:
        _ = [call async for call in process.mailbox]

    async def deaf(process: Process) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with SimCluster(seed=5) as cluster:
            caller, leaver = await cluster.start(2)
            await cluster.mesh(timeout=10)
            takers = [leaver.spawn(taker, name=f"taker {number}") for number in range(3)]
            leaver.spawn(deaf, name="deaf")
            names = [*(f"taker {number}" for number in range(3)), "deaf"]
            calls = [
                asyncio.ensure_future(caller.call((name, leaver.name), None, timeout=100))
                for name in names
                for _ in range(each)
            ]
            infos = (leaver.process_info(taken) for taken in takers)
            await asyncio.sleep(1.0)
            assert [info and info.open_calls for info in infos] == [each] * 3
            if ends == "stop":
                await leaver.stop(drain_s=0)
            else:
                leaver.disconnect(caller.name)
            done = await asyncio.gather(*calls, return_exceptions=True)
            taken, untaken = (
                Counter(type(error).__name__ for error in some) for some in (done[:-each], done[-each:])
            )
            assert set(taken) <= {"NodeLost", "ProcessDown"}
            assert set(untaken) <= {"NoConnection", "NoProcess", "Draining"}

    run(main())
