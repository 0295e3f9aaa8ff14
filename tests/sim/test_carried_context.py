"""Context variables that a program names travel with its requests, on one node and between nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import fleetlm
from fleetlm import Actor, ActorRef, Call, Node, Process, handler
from fleetlm.messaging.carrying import CARRYING
from fleetlm.node import parts_of
from fleetlm.wire.carriers import FEATURE
from tests.sim.fleet import Fleet, simulated

REQUEST_ID: ContextVar[Any] = ContextVar("request-id")
TENANT: ContextVar[Any] = ContextVar("tenant", default="nobody")


@pytest.fixture(autouse=True)
def named() -> Iterator[None]:
    fleetlm.carry(REQUEST_ID)
    fleetlm.carry(TENANT, "tenant-id")
    yield
    CARRYING.remove("request-id")
    CARRYING.remove("tenant-id")


class Seen(Actor):
    """Tells which variables its handlers see."""

    async def init(self) -> None:
        self.casts: list[Any] = []
        self.next: ActorRef[Seen] | None = None

    def _now(self) -> list[Any]:
        return [REQUEST_ID.get("unset"), TENANT.get()]

    @handler
    async def see(self) -> list[Any]:
        return self._now()

    @handler
    async def go_on_with(self, target: tuple[str, str]) -> None:
        self.next = self.process.node.ref(Seen, target[0], at=target[1])

    @handler
    async def see_on(self) -> list[Any]:
        assert self.next is not None
        return await self.next.call(Seen.see)

    @handler(concurrent=True)
    async def see_beside(self) -> list[Any]:
        task = asyncio.create_task(self.see())
        return [self._now(), await task]

    @handler
    async def note(self) -> None:
        self.casts.append(self._now())

    @handler
    async def noted(self) -> list[Any]:
        return self.casts

    @handler
    async def stream(self, count: int) -> AsyncIterator[Any]:
        for _ in range(count):
            yield self._now()

    async def handle_info(self, message: Any) -> None:
        if isinstance(message, Call):
            message.reply([message.message, *self._now()])


async def serve(process: Process) -> None:
    """A process that is no actor, and takes calls and requests for streams itself."""
    async for message in process.mailbox:
        assert isinstance(message, Call)
        with fleetlm.carried(message):
            now = [message.message, REQUEST_ID.get("unset"), TENANT.get()]
        assert REQUEST_ID.get("unset") == "unset"
        if message.streaming:
            await message.put(now)
            message.reply()
        else:
            message.reply(now)


async def places(fleet: Fleet, **changes: Any) -> tuple[Node, list[str]]:
    """Start two nodes with both processes; return the first and the nodes' names."""
    one, two = await fleet.mesh(2, **changes)
    for node in (one, two):
        await node.start_actor(Seen(), name="seen")
        node.spawn(serve, name="serve")
    return one, [one.name, two.name]


@pytest.mark.parametrize("debug", [False, True])
def test_a_handler_sees_what_its_caller_has_set_on_this_node_and_on_another(debug: bool) -> None:
    @simulated
    async def play(fleet: Fleet) -> None:
        node, names = await places(fleet, debug=debug)
        for name in names:
            seen = node.ref(Seen, "seen", at=name)
            assert await seen.call(Seen.see) == ["unset", "nobody"]
            REQUEST_ID.set("r-1")
            assert await seen.call(Seen.see) == ["r-1", "nobody"]
            TENANT.set(7)
            REQUEST_ID.set(b"r-2")
            assert await seen.call(Seen.see) == [b"r-2", 7]
            assert await seen.call(Seen.see_beside) == [[b"r-2", 7]] * 2
            REQUEST_ID.set(None)
            TENANT.set(None)
            assert await seen.call(Seen.see) == ["unset", "nobody"]  # Nothing is left of the calls before.

    play()


@simulated
async def test_casts_streams_and_messages_carry_them_too(fleet: Fleet) -> None:
    node, names = await places(fleet)
    for name in names:
        seen = node.ref(Seen, "seen", at=name)
        REQUEST_ID.set(f"for {name}")
        await seen.cast(Seen.note)
        seen.cast_nowait(Seen.note)
        await node.refs(Seen, [seen]).broadcast(Seen.note)
        here = [f"for {name}", "nobody"]
        assert await seen.call(Seen.noted) == [here] * 3
        assert [now async for now in seen.stream(Seen.stream, 2)] == [here] * 2
        assert await node.call(seen.target, "x") == ["x", *here]  # In `handle_info`.
        assert await node.call(("serve", name), "x") == ["x", *here]
        assert [now async for now in node.stream(("serve", name), "y")] == [["y", *here]]


@simulated
async def test_multicalls_and_requests_to_groups_carry_them_too(fleet: Fleet) -> None:
    node, names = await places(fleet)
    everywhere = node.refs(Seen, "seen")
    REQUEST_ID.set("r-1")
    assert await everywhere.multicall(Seen.see) == [["r-1", "nobody"]] * 2
    assert await node.multicall([("serve", name) for name in names], 1) == [[1, "r-1", "nobody"]] * 2
    assert await everywhere.broadcast(Seen.note) == 2
    assert await everywhere.multicall(Seen.noted) == [[["r-1", "nobody"]]] * 2
    for other in fleet.nodes:
        pid = await other.whereis("seen", at=other.name)
        assert pid is not None
        other.groups.join("seers", pid)
    group = node.groups.ref(Seen, "seers")
    assert await group.call(Seen.see) == ["r-1", "nobody"]
    assert [now async for now in group.stream(Seen.stream, 1)] == [["r-1", "nobody"]]
    await group.cast(Seen.note)
    notes = [each for each in await everywhere.multicall(Seen.noted) if isinstance(each, list)]
    assert sorted(map(len, notes)) == [1, 2]
    assert await fleetlm.retry(lambda: group.call(Seen.see)) == ["r-1", "nobody"]
    one, *_ = [other for other in fleet.nodes if other is not node]
    first = node.ref(Seen, "seen", at=one.name)
    await first.call(Seen.go_on_with, ("seen", node.name))
    assert await first.call(Seen.see_on) == ["r-1", "nobody"]  # Over two nodes.


@simulated
async def test_a_node_that_does_not_know_carriers_gets_requests_without(fleet: Fleet) -> None:
    node, other, old = await fleet.mesh(3)
    for each in (node, other, old):
        await each.start_actor(Seen(), name="seen")
        each.spawn(serve, name="serve")
    for session in parts_of(node).context.sessions.values():
        session.carries = session.name != old.name
    REQUEST_ID.set("r-1")
    seen, unset = ["r-1", "nobody"], ["unset", "nobody"]
    targets = [("seen", name) for name in (old.name, node.name, other.name)]
    assert await node.ref(Seen, "seen", at=old.name).call(Seen.see) == unset
    refs = node.refs(Seen, targets)
    assert await refs.multicall(Seen.see) == [unset, seen, seen]
    assert await node.multicall([("serve", old.name), ("serve", other.name)], 1) == [[1, *unset], [1, *seen]]
    assert await refs.broadcast(Seen.note) == 3
    assert await refs.multicall(Seen.noted) == [[unset], [seen], [seen]]
    stream = node.ref(Seen, "seen", at=old.name).stream(Seen.stream, 1)
    assert [now async for now in stream] == [unset]
    assert await node.call(("serve", old.name), 2) == [2, *unset]


@simulated
async def test_the_hello_says_that_a_node_takes_carriers(fleet: Fleet) -> None:
    node, other = await fleet.mesh(2)
    session = parts_of(node).context.sessions[other.name]
    assert session.carries
    assert FEATURE in session.incoming.hello.features
