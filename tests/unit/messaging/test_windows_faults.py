"""Windows where something goes wrong between the count of one side and that of the other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from fleetlm import InvalidName, NotSerializable, Process
from fleetlm.messages import MessageTypes
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.windows import UNIT_BYTES
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.codec import Codec
from fleetlm.wire.invocation import Invoke
from fleetlm.wire.operations import Op
from tests.sim.fleet import Fleet, simulated
from tests.support.session_fakes import Taker, turns, virtual
from tests.unit.messaging.test_windows import EIGHT, KIB, SLOW, Rig


@dataclass
class Newer:
    """A type of message that only the sender's version knows."""

    data: bytes


@pytest.mark.parametrize("operation", ["send", "call"])
def test_a_large_unreadable_message_leaves_the_window_with_all_its_units(operation: str) -> None:
    @virtual
    async def main() -> None:
        rig = Rig(Settings(mailbox_limit=64, chunk_bytes=64 * KIB))
        types = MessageTypes()
        types.register("newer", Newer)
        rig.outbound._codec = Codec(types)
        large = Newer(b"x" * (200 * KIB))
        if operation == "send":
            asking: asyncio.Future[Any] = asyncio.ensure_future(rig.outbound.send(SLOW, large))
        else:
            asking = asyncio.ensure_future(rig.outbound.call(SLOW, large, 5.0))
        for _ in range(5):
            await rig.settle()
            rig.pair.there.session.sweep()
            rig.pair.credit()
        await rig.settle()
        await asyncio.wait([asking])
        asking.exception()
        assert rig.pair.there.inbound.unreadable == 1
        assert rig.session.windows.held == {} == rig.arrivals.held

    main()


@virtual
async def test_both_sides_count_a_large_cast_alike() -> None:
    """What it counts is written into it afterwards, and makes it longer."""
    rig = Rig(Settings(mailbox_limit=4_096, chunk_bytes=64 * KIB))
    handler = "take"
    head = (
        len(rig.pair.here.codec.pack_whole([int(Op.CAST), "slow", [handler, [b"x" * 70_000], {}], 1], None))
        - 70_000
    )
    for size in range(200 * UNIT_BYTES - head - 3, 200 * UNIT_BYTES - head + 2):
        await rig.outbound.cast(SLOW, Invoke(handler, (b"x" * size,), {}))
        for _ in range(100):
            await rig.settle()
            rig.pair.credit()
        assert rig.session.windows.held == rig.arrivals.held
    assert len(rig.slow) == 5


@virtual
async def test_a_woken_sender_that_does_not_send_keeps_no_other_waiting() -> None:
    rig = Rig(EIGHT.replace(mailbox_limit=1))
    await rig.outbound.send(SLOW, 1)
    await rig.settle()
    wrong = asyncio.ensure_future(rig.outbound.call(SLOW, object(), 5.0))
    await turns()
    right = asyncio.ensure_future(rig.outbound.send(SLOW, 2))
    await turns()
    assert await rig.slow.get() == 1
    await rig.settle()
    with pytest.raises(NotSerializable):
        await wrong
    await rig.settle()
    assert right.done()
    assert list(rig.slow.queue) == [2]


@virtual
async def test_what_is_taken_out_unread_makes_room_too() -> None:
    box = Mailbox(2, Taker())
    box.put("down")
    box.put("down")
    sending = asyncio.ensure_future(box.room())
    await turns()
    assert not sending.done()
    box.discard(lambda message: message == "down")
    await turns()
    assert sending.done()


@simulated
async def test_a_broadcast_to_an_invalid_name_is_refused_and_costs_no_connection(fleet: Fleet) -> None:
    here, there = await fleet.mesh(2)
    pid = there.spawn(_idle)
    for wrong in (pid, None, 1):
        with pytest.raises(InvalidName):
            await here.broadcast(wrong, "hello")  # type: ignore[arg-type]
    await asyncio.sleep(5)
    assert here.list() == [there.name]
    assert not there.process_info(pid).mailbox  # type: ignore[union-attr]


@simulated
async def test_a_full_process_does_not_keep_a_broadcast_from_others(fleet: Fleet) -> None:
    nodes = await fleet.mesh(3, mailbox_limit=4)
    here, *others = nodes
    got: list[str] = []

    async def take(process: Process) -> None:
        async for _ in process.mailbox:
            got.append(process.node.name)  # noqa: PERF401  # it never ends

    async def later(process: Process) -> None:
        await asyncio.sleep(5)
        await take(process)

    here.spawn(take, name="x")
    stuck, behind = others if here.list()[0] == others[0].name else reversed(others)
    stuck.spawn(_idle, name="x")
    behind.spawn(later, name="x")
    for other in others:
        for _ in range(4):
            await here.send(("x", other.name), "fill")
    sending = asyncio.ensure_future(here.broadcast("x", "hello"))
    await turns()
    assert got == [here.name]
    await asyncio.sleep(10)
    assert got.count(behind.name) == 5
    assert not sending.done()
    sending.cancel()
    await asyncio.wait([sending])
    assert SimLoop.current().time() < 60


async def _idle(process: Process) -> None:
    await asyncio.sleep(1_000)
