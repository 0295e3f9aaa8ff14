"""Who is told that its node drains."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from fleetlm import NodeDraining, NodeUndrained
from fleetlm.processes import drain_listeners
from fleetlm.processes.drain_listeners import DrainListeners, DrainNotice

DRAINS, GOES_ON = NodeDraining("fleetlm@10.0.0.1", 7.0, "api"), NodeUndrained("fleetlm@10.0.0.1")


def process(number: int) -> Any:
    box: list[Any] = []
    pid, mailbox = SimpleNamespace(number=number), SimpleNamespace(put=box.append)
    return SimpleNamespace(pid=pid, mailbox=mailbox, box=box, _is_gone=False)


def heard(actor: Any) -> list[float | None]:
    assert all(type(each) is DrainNotice for each in actor.box)
    return [each.until for each in actor.box]


async def test_actors_get_notices_and_plain_processes_the_event() -> None:
    listeners, actor, plain, other = DrainListeners(), process(1), process(2), process(3)
    listeners.add_actor(actor)
    listeners.set_trap(plain, on=True)
    listeners.set_trap(other, on=True)
    listeners.set_trap(other, on=False)
    listeners.set_trap(other, on=False)
    assert (listeners.traps(plain), listeners.traps(other)) == (True, False)
    await listeners.tell(DRAINS)
    await listeners.tell(GOES_ON)
    assert heard(actor) == [7.0, None]
    assert plain.box == [DRAINS, GOES_ON]
    assert other.box == []


async def test_who_has_ended_is_forgotten() -> None:
    listeners, actor, plain = DrainListeners(), process(1), process(2)
    listeners.add_actor(actor)
    listeners.set_trap(plain, on=True)
    for each in (actor, plain, process(3)):
        listeners.exited(each)
    await listeners.tell(DRAINS)
    assert (actor.box, plain.box, listeners.traps(plain)) == ([], [], False)


async def test_many_actors_are_told_over_several_turns_and_hear_events_in_order(
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(drain_listeners, "_PER_TURN", 10)
    listeners, actors = DrainListeners(), [process(number) for number in range(25)]
    for actor in actors:
        listeners.add_actor(actor)
    drains = asyncio.create_task(listeners.tell(DRAINS))
    goes_on = asyncio.create_task(listeners.tell(GOES_ON))
    await asyncio.sleep(0)
    assert [bool(actor.box) for actor in actors].count(True) == 10
    actors[24]._is_gone = True
    await asyncio.gather(drains, goes_on)
    assert [heard(actor) for actor in actors] == [[7.0, None]] * 24 + [[]]
