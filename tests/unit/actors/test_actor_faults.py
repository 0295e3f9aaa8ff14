"""Ends and errors that come at the wrong moment, and leave an actor no less whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm import Actor, ActorRef, CallTimeout, Crash, Down, Node, Process, RemoteError, handler
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated


class Mute(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise AttributeError("no text")


class Careful(Actor):
    """Cleans up, and notes whether it could."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def terminate(self, reason: Any) -> None:
        await asyncio.sleep(1)
        self.log.append(f"terminated: {reason}")

    @handler
    async def end_itself(self) -> str:
        self.process.exit(self.pid, "enough")
        return "last words"

    @handler
    async def end_itself_and_raise(self) -> None:
        self.process.exit(self.pid, "enough")
        raise ValueError

    @handler
    async def clean_up(self, seconds: float) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(seconds)
            self.log.append("clean")

    @handler
    async def mumble(self) -> None:
        raise Mute

    @handler
    async def work(self) -> str:
        return "done"


async def started(fleet: Fleet) -> tuple[Node, ActorRef[Careful], list[str]]:
    (node,) = await fleet.mesh(1)
    log: list[str] = []
    return node, await node.start_actor(Careful, log), log


@simulated
async def test_an_actor_that_ends_itself_cleans_up_whole(fleet: Fleet) -> None:
    node, ref, log = await started(fleet)
    assert await ref.call(Careful.end_itself) == "last words"
    await node.join(ref.pid)
    assert log == ["terminated: enough"]
    log.clear()
    ref = await node.start_actor(Careful, log)
    with pytest.raises(RemoteError, match="ValueError"):
        await ref.call(Careful.end_itself_and_raise)
    await node.join(ref.pid)
    ref = await node.start_actor(Careful, log)
    await ref.cast(Careful.end_itself_and_raise)
    await node.join(ref.pid)
    assert log == ["terminated: enough"] * 2


@simulated
async def test_a_caller_that_gives_up_does_not_cut_short_what_an_end_has_begun(fleet: Fleet) -> None:
    node, ref, log = await started(fleet)
    asking = asyncio.ensure_future(ref.within(2).call(Careful.clean_up, 5.0))
    await asyncio.sleep(1)
    node.exit(ref.pid, "enough")  # It cleans up, and one second later its caller gives up.
    with pytest.raises(CallTimeout):
        await asking
    await node.join(ref.pid)
    assert log == ["clean", "terminated: enough"]


@simulated
async def test_the_clean_up_of_a_killed_handler_is_cancelled_once(fleet: Fleet) -> None:
    node, ref, log = await started(fleet)
    asking = asyncio.ensure_future(ref.call(Careful.clean_up, 1.0))
    await asyncio.sleep(1)
    killed_at = SimLoop.current().time()
    node.exit(ref.pid, "kill")
    await asyncio.wait([asking])
    assert await node.join(ref.pid, 3.0)
    assert SimLoop.current().time() - killed_at == 1.0
    assert log == ["clean"]
    asking.exception()


@simulated
async def test_an_exception_without_words_is_an_answer_all_the_same(fleet: Fleet) -> None:
    _, ref, _ = await started(fleet)
    with pytest.raises(RemoteError, match="Mute"):
        await ref.call(Careful.mumble)
    assert await ref.call(Careful.work) == "done"


@simulated
async def test_a_crash_without_words_is_told_to_who_watches(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)

    async def crash(process: Process) -> None:
        await process.receive()
        raise Mute

    downs: list[Any] = []

    async def watch(process: Process) -> None:
        process.monitor("crash")
        downs.append(await process.receive())

    node.spawn(crash, name="crash")
    node.spawn(watch)
    await asyncio.sleep(0.1)
    await node.send("crash", "now")
    await asyncio.sleep(0.1)
    assert isinstance(downs[0], Down)
    assert isinstance(downs[0].reason, Crash)
    assert downs[0].reason.type_name == "Mute"
    assert node.processes() == []
