"""Messages whose payload is packed already: those of a group, sent by tasks that help a sender."""

from __future__ import annotations

import asyncio

import pytest

from fleetlm.errors import NoConnection, NoProcess
from fleetlm.ids import Pid
from fleetlm.messaging.targets import Payload
from fleetlm.messaging.windows import Obstacle
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
