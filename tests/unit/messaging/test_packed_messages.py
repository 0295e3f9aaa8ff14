"""Messages whose payload is packed already: those of a group, sent by tasks that help a sender."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm.errors import NoConnection, NoProcess
from fleetlm.ids import Pid
from fleetlm.messaging.targets import Payload
from fleetlm.messaging.windows import Obstacle
from fleetlm.settings import Settings
from fleetlm.wire.invocation import Invoke
from tests.support.session_fakes import turns, virtual
from tests.unit.messaging.test_outbound import Rig as Sending


@virtual
async def test_whoever_waits_for_a_sender_waits_behind_its_large_messages() -> None:
    """Small messages of a sender queue behind its large ones: how many is bounded for its helpers too."""
    rig = Sending()
    outbound, me = rig.outbound, asyncio.current_task()
    to, payload = Pid(rig.session.name, 2, 5), outbound.pack_payload("small")
    large = outbound.pack_payload(b"x" * 2 * rig.session.byte_window.limit_bytes)

    async def somebody_else() -> bool:
        return outbound.put_packed(to, payload, "small", asyncio.current_task())

    assert outbound.put_packed(to, large, None, me)
    assert rig.session.obstacle(to.number, 0, me) is Obstacle.LANES
    assert not outbound.put_packed(to, payload, "small", me)
    assert await rig.start(somebody_else())
    later = rig.start(outbound.send_packed(to, payload, "small", me))
    await turns()
    assert not later.done()
    await rig.settle()
    await later
    rig.session.close("gone")
    with pytest.raises(NoConnection):
        outbound.put_packed(to, payload, "small", me)


@virtual
async def test_a_packed_message_for_another_incarnation_reaches_nobody() -> None:
    rig = Sending()
    for stranger in (Pid(rig.session.name, 3, 5), Pid(rig.outbound._name, 1, 99)):
        with pytest.raises(NoProcess):
            rig.outbound.put_packed(stranger, Payload(b"\xc0", 0), None, None)


class Pieces:
    """A transport that keeps what is sent as it is."""

    def __init__(self) -> None:
        self.tails: list[memoryview] = []

    def send(self, _channel: int, _frame: bytes, tail: memoryview | None = None) -> bool:
        if tail is not None:
            self.tails.append(tail)
        return True


@virtual
async def test_all_messages_of_a_broadcast_lend_the_same_large_bytes() -> None:
    large = bytes(300_000)
    requests: list[Any] = [[large, "small"], Invoke("put", (large, "small"), {})]
    for message in requests:
        rig, pieces = Sending(Settings()), Pieces()
        rig.session._transport = pieces  # type: ignore[assignment]
        payload = rig.outbound.pack_payload(message)
        assert payload.blobs[0] is large
        assert len(payload.packed) < 100
        for number in (5, 6, 7):
            assert rig.outbound.put_packed(Pid(rig.session.name, 2, number), payload, message, number)
        rig.session.flush()
        assert len(pieces.tails) >= 3, "each has a lane of its own, and they take turns"
        assert {id(tail.obj) for tail in pieces.tails} == {id(large)}


@virtual
async def test_what_can_change_is_copied_once_for_all_receivers() -> None:
    changing = bytearray(300_000)
    payload = Sending().outbound.pack_payload({"data": changing})
    changing[0] = 1
    (blob,) = payload.blobs
    assert blob == bytes(300_000)
