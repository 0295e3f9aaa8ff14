"""Requests for handlers on the wire: native, exact, and refused where they are none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm.call import Call
from fleetlm.errors import NotSerializable, Undecodable
from fleetlm.ids import Pid
from fleetlm.messaging.windows import UNIT_BYTES
from fleetlm.testing.loop import run
from fleetlm.wire.frames import BadFrame
from fleetlm.wire.invocation import Invoke
from fleetlm.wire.operations import Op
from tests.support.session_fakes import turns, virtual
from tests.unit.messaging.test_windows import EIGHT, KIB, SLOW, Rig, hostile

REQUEST = Invoke("append", ("s1", (1, 2), {3}, Pid("fleetlm@10.0.0.9", 1, 2)), {"text": b"x"})


@virtual
async def test_a_call_and_a_cast_arrive_as_they_were() -> None:
    rig = Rig()
    calling = asyncio.ensure_future(rig.outbound.call(SLOW, REQUEST, 5.0))
    await turns()
    await rig.outbound.cast(SLOW, REQUEST)
    await rig.settle()
    call, cast = await rig.slow.get(), await rig.slow.get()
    assert isinstance(call, Call)
    assert call.message == cast == REQUEST
    assert type(cast.args) is tuple
    call.reply("done")
    await rig.settle()
    assert await calling == "done"


@pytest.mark.parametrize("size", [UNIT_BYTES, 40 * KIB, 300 * KIB])
@pytest.mark.parametrize("call", [False, True])
def test_large_requests_count_for_what_they_are(size: int, call: bool) -> None:
    async def main() -> None:
        rig = Rig(EIGHT.replace(mailbox_limit=64))
        request = Invoke("append", (b"x" * size,), {})
        if call:
            asking = asyncio.ensure_future(rig.outbound.call(SLOW, request, 5.0))
        else:
            asking = asyncio.ensure_future(rig.outbound.cast(SLOW, request))
        await rig.settle()
        assert rig.session.held == rig.arrivals.held == {"slow": 1 + size // UNIT_BYTES}
        got = await rig.slow.get()
        assert (got.message if call else got) == request
        if call:
            got.reply()
        rig.pair.there.session.sweep()
        await rig.settle()
        assert rig.session.held == rig.arrivals.held == {}
        await asking

    run(main())


@virtual
async def test_a_full_window_makes_a_cast_wait() -> None:
    rig = Rig()
    for _ in range(8):
        await rig.outbound.cast(SLOW, REQUEST)
    waiting = asyncio.ensure_future(rig.outbound.cast(SLOW, Invoke("last", (), {})))
    await rig.settle()
    assert not waiting.done()
    await rig.slow.get()
    await rig.settle()
    await waiting
    await rig.settle()
    assert rig.slow.queue[-1] == Invoke("last", (), {})


@virtual
async def test_what_cannot_travel_is_named_and_nothing_is_sent() -> None:
    rig = Rig()
    odd = Invoke("append", (1, object()), {})
    for ask in (rig.outbound.cast(SLOW, odd), rig.outbound.call(SLOW, odd, 1.0)):
        with pytest.raises(NotSerializable, match="argument 2 of append cannot be sent"):
            await ask
    assert rig.session.held == {}


@virtual
async def test_a_request_that_cannot_be_read_is_told_to_its_caller() -> None:
    rig = Rig()
    rig.pair.there.codec._readers.clear()
    calling = asyncio.ensure_future(rig.outbound.call(SLOW, REQUEST, 5.0))
    await rig.outbound.cast(SLOW, REQUEST)
    await rig.settle()
    with pytest.raises(Undecodable):
        await calling
    rig.pair.there.session.sweep()
    await turns()
    await rig.settle()
    assert (rig.session.held, len(rig.slow)) == ({}, 0)


@pytest.mark.parametrize(
    "parts",
    [
        *(None, 1, "abc", [], {"a": 1}),
        *(["a", {}, []], ["a", [], None], ["a", [], {}, b"", 1], ["", [], {}, b""], ["", [1, 2], {}, b""]),
    ],
)
def test_parts_that_are_no_request_break_the_link(parts: Any) -> None:
    async def main(message: list[Any]) -> None:
        rig = Rig()
        with pytest.raises(BadFrame):
            hostile(rig.pair, message)

    run(main([int(Op.HANDLE), "slow", parts, 1, 1_000, 0]))
    run(main([int(Op.CAST), "slow", parts, 1]))
    run(main([int(Op.YIELD), "slow", parts, 1, 0, 4, 0, 0, 1]))
