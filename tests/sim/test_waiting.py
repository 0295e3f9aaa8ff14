"""Processes that wait for each other: what is in a circle is opened or refused; nothing waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm import (
    Actor,
    ActorRef,
    CallTimeout,
    NoConnection,
    Node,
    NoProcess,
    Process,
    RemoteError,
    WouldBlock,
    handler,
)
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated

SMALL = {"mailbox_limit": 16}


class Member(Actor):
    """An actor that calls, casts to or feeds others, itself included."""

    def __init__(self) -> None:
        self.done = 0

    def of(self, name: str, at: str) -> ActorRef[Member]:
        return self.node.ref(Member, name, at=at).within(60)

    @handler
    async def leaf(self) -> int:
        self.done += 1
        return self.done

    @handler
    async def hold(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @handler
    async def relay(self, way: list[tuple[str, str]]) -> int:
        """Call the first of these, which calls the next one, and so on."""
        if not way:
            return await self.leaf()
        return await self.of(*way[0]).call(Member.relay, way[1:])

    @handler(concurrent=True)
    async def relay_beside(self, way: list[tuple[str, str]]) -> int:
        return await self.of(*way[0]).call(Member.relay, way[1:])

    @handler
    async def call_itself(self) -> int:
        return await self.node.ref(Member, self.pid).call(Member.leaf)

    @handler(concurrent=True)
    async def call_itself_beside(self) -> int:
        return await self.node.ref(Member, self.pid).call(Member.leaf)

    @handler
    async def pass_on(self, name: str, at: str, left: int) -> None:
        self.done += 1
        if left:
            await self.of(name, at).cast(Member.pass_on, self.process.name or "", self.node.name, left - 1)

    @handler
    async def feed(self, copies: int, left: int) -> None:
        self.done += 1
        for _ in range(copies if left else 0):
            await self.node.ref(Member, self.pid).cast(Member.feed, copies, left - 1)

    @handler(concurrent=True)
    async def feed_beside(self, left: int) -> None:
        self.done += 1
        if left:
            await self.node.ref(Member, self.pid).cast(Member.feed_beside, left - 1)


async def idle(process: Process) -> None:
    await asyncio.sleep(1_000)


def now() -> float:
    return SimLoop.current().time()


# Calls.


@simulated
async def test_a_call_to_oneself_is_refused_at_once_and_says_why(fleet: Fleet) -> None:
    [node] = await fleet.mesh(1)
    ref = node.ref(Member, node.spawn(Member))
    with pytest.raises(RemoteError, match="it is the caller itself"):
        await ref.call(Member.call_itself)
    assert now() < 1
    assert await ref.call(Member.call_itself_beside) == 1


@simulated
async def test_a_process_that_calls_itself_is_refused_unless_another_task_receives(
    fleet: Fleet,
) -> None:
    [node] = await fleet.mesh(1)
    outcomes: list[Any] = []

    async def lonely(process: Process) -> None:
        try:
            await node.call(process.pid, "hello")
        except WouldBlock as error:
            outcomes.append(error)

    async def with_a_receiver(process: Process) -> None:
        async def receive() -> None:
            (await process.receive()).reply("answer")

        receiver = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        outcomes.append(await node.call(process.pid, "hello"))
        await receiver

    node.spawn(lonely)
    node.spawn(with_a_receiver)
    await asyncio.sleep(0.1)
    assert outcomes[0].target
    assert outcomes[1:] == ["answer"]


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("members", [2, 3, 5])
@simulated
async def test_calls_in_a_circle_are_refused_soon_and_name_it(fleet: Fleet, nodes: int, members: int) -> None:
    mesh = await fleet.mesh(nodes)
    places = [mesh[number % nodes] for number in range(members)]
    for number, node in enumerate(places):
        node.spawn(Member, name=f"m{number}")
    way = [(f"m{number}", node.name) for number, node in enumerate(places)]
    first = mesh[-1].ref(Member, "m0", at=places[0].name).within(60)
    began = now()
    with pytest.raises(RemoteError, match="part of a circle") as caught:
        await first.call(Member.relay, [*way[1:], way[0]])
    assert now() - began < 1
    for name, at in way:
        assert f"'{name}' on {at}" in str(caught.value)
    for name, at in way:  # All of them go on.
        assert await mesh[0].ref(Member, name, at=at).call(Member.leaf) == 1


@simulated
async def test_two_that_call_each_other_at_the_same_time_do_not_wait_for_the_deadline(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    a.spawn(Member, name="a")
    b.spawn(Member, name="b")
    began = now()
    outcomes = await asyncio.gather(
        a.ref(Member, "a").within(60).call(Member.relay, [("b", b.name)]),
        b.ref(Member, "b").within(60).call(Member.relay, [("a", a.name)]),
        return_exceptions=True,
    )
    assert now() - began < 1
    assert any(isinstance(outcome, RemoteError) for outcome in outcomes)


@simulated
async def test_a_circle_through_a_concurrent_handler_is_none(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    a.spawn(Member, name="a")
    b.spawn(Member, name="b")
    way = [("b", b.name), ("a", a.name)]
    assert await a.ref(Member, "a").call(Member.relay_beside, way) == 1


@simulated
async def test_a_chain_of_slow_calls_is_no_circle(fleet: Fleet) -> None:
    a, b, c = await fleet.mesh(3)
    for name, node in (("a", a), ("b", b), ("c", c)):
        node.spawn(Member, name=name)
    busy = asyncio.ensure_future(c.ref(Member, "c").within(60).call(Member.hold, 8))
    waiting = [
        asyncio.ensure_future(a.ref(Member, name, at=at).within(60).call(Member.relay, [("c", c.name)]))
        for name, at in (("a", a.name), ("a", a.name), ("b", b.name), ("b", b.name))
    ]
    outcomes = await asyncio.gather(*waiting)
    assert sorted(outcomes) == [1, 2, 3, 4]
    await busy


@simulated
async def test_processes_show_what_they_wait_for(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    pid = a.spawn(Member, name="a")
    b.spawn(Member, name="b")
    busy = asyncio.ensure_future(b.ref(Member, "b").within(60).call(Member.hold, 3))
    await asyncio.sleep(0.5)
    asked = asyncio.ensure_future(a.ref(Member, "a").call(Member.relay, [("b", b.name)]))
    await asyncio.sleep(2)
    info = a.process_info(pid)
    assert info is not None
    assert info.waits_for == f"reply from 'b' on {b.name} for 2.0 s"
    await asked
    await busy
    info = a.process_info(pid)
    assert info is not None
    assert info.waits_for == ""


# Messages to oneself.


@simulated
async def test_an_actor_with_a_full_mailbox_casts_to_itself_without_waiting(fleet: Fleet) -> None:
    [node] = await fleet.mesh(1, **SMALL)
    actor = Member()
    ref = node.ref(Member, node.spawn(actor))
    for _ in range(30):
        await ref.cast(Member.feed, 1, 5)
    await asyncio.sleep(1)
    assert actor.done == 30 * 6
    assert now() < 10


@simulated
async def test_concurrent_handlers_that_cast_to_their_own_actor_do_not_wait_either(fleet: Fleet) -> None:
    [node] = await fleet.mesh(1, mailbox_limit=16, concurrent_handlers=2)
    actor = Member()
    ref = node.ref(Member, node.spawn(actor))
    for _ in range(30):
        await ref.cast(Member.feed_beside, 5)
    await asyncio.sleep(1)
    assert actor.done == 30 * 6


@simulated
async def test_an_actor_that_feeds_itself_more_and_more_gets_an_error_not_the_memory(fleet: Fleet) -> None:
    [node] = await fleet.mesh(1, **SMALL)
    errors: list[str] = []

    async def greedy(process: Process) -> None:
        for number in range(1_000):
            try:
                await node.send(process.pid, number)
            except WouldBlock as error:
                errors.append(str(error))
                return

    pid = node.spawn(greedy)
    assert await node.join(pid)
    [error] = errors
    assert "it is the sender itself, and 128 messages wait for it already" in error
    assert now() == 0 or now() < 1


@simulated
async def test_one_that_feeds_itself_for_ever_stops_neither_time_nor_its_node(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)

    async def feeding(process: Process) -> None:
        await process.node.send(process.pid, 0)
        async for count in process.mailbox:
            process.node.send_nowait(process.pid, count + 1)

    a.spawn(feeding)
    b.spawn(Member, name="other")
    began = now()
    assert await a.ref(Member, "other", at=b.name).call(Member.leaf) == 1
    await asyncio.sleep(0.2)  # A hundred thousand messages to itself.
    assert now() - began < 1
    assert a.list() == [b.name]
    assert a.list("busy") == []


@pytest.mark.parametrize("what", ["send", "cast", "call", "ping", "send here", "call here"])
@simulated
async def test_one_that_tries_again_at_once_for_ever_stops_neither_time_nor_its_node(
    fleet: Fleet, what: str
) -> None:
    a, b = await fleet.mesh(2)
    nowhere, absent = ("nobody", "fleetlm@10.9.9.9"), "nobody"
    tries = {
        "send": lambda: a.send(nowhere, 1),
        "cast": lambda: a.ref(Member, "nobody", at=nowhere[1]).cast(Member.leaf),
        "call": lambda: a.call(nowhere, 1),
        "ping": lambda: a.ping(nowhere[1]),
        "send here": lambda: a.send(absent, 1),
        "call here": lambda: a.call(absent, 1),
    }

    async def trying(_process: Process) -> None:
        while True:
            try:
                await tries[what]()
            except (NoConnection, NoProcess):
                continue

    a.spawn(trying)
    b.spawn(Member, name="other")
    began = now()
    assert await a.ref(Member, "other", at=b.name).call(Member.leaf) == 1
    await asyncio.sleep(0.02)
    assert now() - began < 1
    assert a.list("busy") == []


# Waiting for room.


@pytest.mark.parametrize("local", [True, False])
@simulated
async def test_a_send_waits_for_room_only_until_its_deadline(fleet: Fleet, local: bool) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=4, send_timeout_s=10.0)
    at = a if local else b
    at.spawn(idle, name="idle")
    to = ("idle", at.name)
    for number in range(4):
        await a.send(to, number)
    for timeout, expected in ((None, 10.0), (2.0, 2.0)):
        began = now()
        with pytest.raises(WouldBlock, match=f"stayed full for the {expected:g} s"):
            await a.send(to, "late", timeout)
        assert now() - began == pytest.approx(expected)
    began = now()
    ref = a.ref(Member, "idle", at=at.name)
    with pytest.raises(WouldBlock):
        await ref.within(3).cast(Member.leaf)
    assert now() - began == pytest.approx(3)
    with pytest.raises(WouldBlock):
        ref.cast_nowait(Member.leaf)
    assert now() - began == pytest.approx(3)


@simulated
async def test_waiting_for_room_is_logged_once_with_both_ends(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=4)
    b.spawn(idle, name="idle")

    async def sender(process: Process) -> None:
        for number in range(6):
            await process.node.send(("idle", b.name), number)

    a.spawn(sender, name="sender")
    await asyncio.sleep(20)
    lines = [record.getMessage() for record in caplog.records if "waits for room" in record.getMessage()]
    [line] = lines
    assert line.startswith(f"'sender' on {a.name} waits for room at 'idle' on {b.name} for ")
    assert "4 messages of this node wait there" in line


@pytest.mark.parametrize("local", [True, False])
@simulated
async def test_two_that_cast_to_each_other_over_full_mailboxes_go_on(fleet: Fleet, local: bool) -> None:
    mesh = await fleet.mesh(2, **SMALL)
    a, b = (mesh[0], mesh[0]) if local else mesh
    members = Member(), Member()
    a.spawn(members[0], name="a")
    b.spawn(members[1], name="b")

    async def flood(node: Node, name: str, at: Node, other: str, other_at: Node) -> None:
        ref = node.ref(Member, name, at=at.name)
        for _ in range(6 * 16):
            await ref.cast(Member.pass_on, other, other_at.name, 3)

    await asyncio.gather(
        *(flood(node, "a", a, "b", b) for node in mesh), *(flood(node, "b", b, "a", a) for node in mesh)
    )
    await asyncio.sleep(30)
    assert members[0].done + members[1].done == 4 * 6 * 16 * 4


@simulated
async def test_a_circle_that_only_grows_ends_with_errors_and_is_named(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=8, send_timeout_s=15.0)
    outcomes: list[str] = []

    async def doubling(process: Process, name: str, at: str) -> None:
        async for _ in process.mailbox:
            try:
                await process.node.send((name, at), 1)
                await process.node.send((name, at), 2)
            except WouldBlock as error:
                outcomes.append(str(error))

    a.spawn(doubling, "b", b.name, name="a")
    b.spawn(doubling, "a", a.name, name="b")
    await a.send("a", 0)
    await asyncio.sleep(60)
    assert outcomes
    assert any("they wait in a circle: 'a' on" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) < 20


@simulated
async def test_a_call_that_times_out_still_says_so(fleet: Fleet) -> None:
    [node] = await fleet.mesh(1)
    node.spawn(idle, name="idle")
    with pytest.raises(CallTimeout):
        await node.call("idle", 1, timeout=2)
