"""How busy processes are, seen from outside."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm import Actor, Child, Supervisor, handler
from fleetlm.actors.serving import handler_in
from fleetlm.node import parts_of
from fleetlm.process import Process
from fleetlm.processes.loads import (
    busy_s,
    children_of,
    handler_of,
    is_gone,
    select_busy,
    select_supervisors,
)
from fleetlm.processes.running import RunningProcess
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated


class Slow(Actor):
    def __init__(self, init_s: float = 0.0) -> None:
        self.init_s = init_s

    async def init(self) -> None:
        await asyncio.sleep(self.init_s)

    @handler
    async def work(self) -> None:
        await asyncio.sleep(1e6)


def clock(fleet: Fleet) -> SimLoop:
    return fleet.loop


async def idle(process: Process) -> None:
    await process.receive()


async def loops(process: Process) -> None:
    await asyncio.sleep(1e6)


async def keeps_calls(process: Process) -> None:
    calls: dict[int, Any] = {}
    async for message in process.mailbox:
        calls[len(calls)] = message


@simulated
async def test_processes_that_do_something_are_found_among_those_that_wait(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    for function, name in ((idle, "idle"), (loops, "loops"), (keeps_calls, "keeps"), (idle, "gone")):
        node.spawn(function, name=name)
    node.spawn(Supervisor([Child("c", idle)]), name="sup")
    await asyncio.sleep(1)
    call = asyncio.ensure_future(node.call("keeps", 1, 60))
    await asyncio.sleep(10)
    local, now = parts_of(node).local, clock(fleet).time()
    every = local.every()
    gone = next(process for process in every if process.name == "gone")
    node.exit(gone.pid, "kill")
    await asyncio.sleep(0)

    def named(name: str) -> RunningProcess:
        return next(process for process in every if process.name == name)

    assert [process.name for process in select_busy(every)] == ["loops", "keeps"]
    assert [process.name for process in select_supervisors(every)] == ["sup"]
    assert (is_gone(gone), is_gone(named("idle"))) == (True, False)
    children = children_of(named("sup"))
    assert children is not None
    assert (children.count, children.restarts, [info.id for info in children.infos(5)]) == (1, 0, ["c"])
    assert children.infos(0) == []
    assert children_of(named("idle")) is children_of(gone) is children_of(None) is None
    assert busy_s(named("idle"), now, None) == 0.0
    assert busy_s(named("keeps"), now, None) == pytest.approx(10, abs=0.1)
    assert busy_s(named("loops"), now, (0, now - 3)) == 0.0, "nobody knows what it does"
    call.cancel()


@simulated
async def test_a_call_on_behalf_of_work_before_a_drain_has_no_beginning(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    node.spawn(keeps_calls, name="keeps")
    call = asyncio.ensure_future(node.call("keeps", 1, 60))
    await asyncio.sleep(1)
    process = parts_of(node).local.every()[0]
    assert process._calls is not None
    (taken,) = process._calls
    taken.began = -float("inf")
    now = clock(fleet).time()
    assert busy_s(process, now, (process.mailbox.taken, now - 2)) == 2.0
    call.cancel()


@simulated
async def test_the_time_of_a_handler_without_a_call_begins_with_the_first_look(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    ref = await node.start_actor(Slow, name="works")
    await ref.cast(Slow.work)
    await asyncio.sleep(1)
    (process,) = parts_of(node).local.every()
    now, taken = clock(fleet).time(), process.mailbox.taken
    assert busy_s(process, now, None) == 0.0
    assert busy_s(process, now, (taken, now - 3)) == 3.0
    assert busy_s(process, now, (taken - 1, now - 3)) == 0.0, "it has taken another message since"


@simulated
async def test_what_an_actor_does_is_named(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    node.spawn(Slow, 1e6, name="starts")
    ref = await node.start_actor(Slow, name="works")
    await node.start_actor(Slow, name="waits")
    node.spawn(loops, name="plain")
    await ref.cast(Slow.work)
    await asyncio.sleep(1)
    named = {each.name: handler_of(each, handler_in) for each in parts_of(node).local.every()}
    assert named == {"starts": "init", "works": "work", "waits": "", "plain": ""}
