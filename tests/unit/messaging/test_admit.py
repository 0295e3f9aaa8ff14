"""The admission of a message: which window keeps it back, what it counts, and the copies on the hot path."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings as effort, strategies as st

from fleetlm.errors import InvalidName, MessageTooLarge, NoConnection, WouldBlock
from fleetlm.messaging.streams import Streams
from fleetlm.messaging.windows import NODE, UNIT_BYTES, Obstacle, units
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.wire import operations
from fleetlm.wire.invocation import Invoke
from fleetlm.wire.operations import Op
from tests.support.session_fakes import HERE, THERE, Side, turns, virtual
from tests.unit.messaging.test_windows import KIB, SLOW, Rig

LIMIT = 16
WINDOW_BYTES = 64 * KIB
SETTINGS = Settings(
    mailbox_limit=LIMIT,
    window_bytes=WINDOW_BYTES,
    chunk_bytes=32 * KIB,
    bulk_window_bytes=32 * KIB,
    max_message_bytes=256 * KIB,
)


def fill_process(rig: Rig, left: int = 0) -> None:
    rig.session.held["slow"] = LIMIT - left


def fill_connection(rig: Rig) -> None:
    while rig.session.byte_window.in_flight_bytes < WINDOW_BYTES:
        rig.session.append(b"\xc4\xff" + b"x" * 255, "filler")
        rig.session.flush()


def fill_lanes(rig: Rig, sender: Any) -> None:
    while rig.session.lanes.waiting_bytes < WINDOW_BYTES:
        rig.session.lanes.add(sender, b"x" * 40 * KIB)
    rig.session._update_is_slow()


# One order.


@virtual
async def test_windows_are_asked_in_one_order() -> None:
    rig = Rig(SETTINGS)
    me = asyncio.current_task()
    fill_process(rig)
    fill_connection(rig)
    fill_lanes(rig, me)
    session = rig.session
    assert session.obstacle("slow") is Obstacle.PROCESS
    assert session.obstacle("quick") is Obstacle.CONNECTION
    assert session.obstacle(NODE) is Obstacle.CONNECTION
    rig.session.byte_window.in_flight_bytes = 0
    assert session.obstacle("slow") is Obstacle.PROCESS
    assert session.obstacle("quick") is Obstacle.LANES
    assert session.obstacle("quick", 0, "another") is None
    assert session.obstacle("quick", 33 * KIB, "another") is Obstacle.LANES
    session.lanes.clear()
    assert session.obstacle("quick") is None
    assert session.obstacle("quick", 33 * KIB) is None


@virtual
async def test_what_is_kept_back_is_neither_sent_nor_counted() -> None:
    rig = Rig(SETTINGS)
    fill_process(rig)
    before = dict(rig.session.held)
    assert rig.session.admit("slow", b"\x92\xa4slow\x01", is_call=True) is Obstacle.PROCESS
    rig.session.flush()
    assert (rig.session.held, rig.session.open_calls) == (before, {})
    assert rig.pair.here.transport.frames == []


@virtual
async def test_each_obstacle_has_its_reason() -> None:
    rig = Rig(SETTINGS)
    fill_lanes(rig, "another")
    with pytest.raises(WouldBlock, match="large messages of 81,920 bytes wait for fleetlm@"):
        rig.outbound.send_nowait(SLOW, b"x" * 40 * KIB)
    fill_connection(rig)
    with pytest.raises(WouldBlock, match="bytes are in flight to fleetlm@"):
        rig.outbound.send_nowait(SLOW, 1)
    fill_process(rig)
    with pytest.raises(WouldBlock, match="16 messages of this node wait there"):
        rig.outbound.send_nowait(SLOW, 1)


@pytest.mark.parametrize("key", [None, 2.5, b"slow", True])
def test_only_a_text_or_a_number_is_the_key_of_a_process(key: Any) -> None:
    async def main() -> None:
        rig = Rig(SETTINGS)
        with pytest.raises(InvalidName):
            rig.session.obstacle(key)
        with pytest.raises(InvalidName):
            rig.session.admit(key, b"\x92\xc0\xc0")
        assert not rig.session.held

    run(main())


# What a message counts.


@pytest.mark.parametrize("chunk_bytes", [16 * KIB, 64 * KIB, 8 * 1024 * KIB])
@pytest.mark.parametrize("kind", ["send", "call", "handle", "cast", "stream", "yield"])
@effort(max_examples=12)
@given(around=st.sampled_from([1, 4, 128, 256]), more=st.integers(-60, 20))
def test_both_sides_count_the_same_at_every_edge(chunk_bytes: int, kind: str, around: int, more: int) -> None:
    async def main() -> None:
        settings = Settings(mailbox_limit=4_096, chunk_bytes=chunk_bytes)
        rig = Rig(settings)
        streams = Streams(rig.outbound, settings, rig.pair.here.codec, SimLoop.current())
        payload = b"x" * (around * UNIT_BYTES + more)
        request = Invoke("take", (payload,), {})
        asking: Any = {
            "send": lambda: rig.outbound.send(SLOW, payload),
            "call": lambda: rig.outbound.call(SLOW, payload, 9.0),
            "handle": lambda: rig.outbound.call(SLOW, request, 9.0),
            "cast": lambda: rig.outbound.cast(SLOW, request),
            "stream": lambda: anext(streams.open(SLOW, payload, 9.0)),
            "yield": lambda: anext(streams.open(SLOW, request, 9.0)),
        }[kind]()
        task = asyncio.ensure_future(asking)
        await turns()
        for _ in range(400):
            rig.pair.settle()
            rig.pair.credit()
            if rig.slow.queue:
                break
        assert len(rig.slow) == 1
        assert rig.session.held == rig.arrivals.held
        assert rig.session.held["slow"] in {units(len(payload) + n, 4_096) for n in (0, 60)}
        task.cancel()
        await asyncio.wait([task])

    run(main())


# The copies on the hot path.


STATES: dict[str, Any] = {
    "free": lambda rig: None,
    "one unit left": lambda rig: fill_process(rig, 1),
    "process full": fill_process,
    "connection full": fill_connection,
    "lanes of another": lambda rig: fill_lanes(rig, "another"),
    "lanes of the sender": lambda rig: fill_lanes(rig, asyncio.current_task()),
    "a lane of the sender": lambda rig: rig.session.append(b"x" * 40 * KIB),
    "closed": lambda rig: rig.session.close("over"),
}
SIZES = [1, UNIT_BYTES - 10, UNIT_BYTES - 9, UNIT_BYTES - 8, UNIT_BYTES, 32 * KIB, 40 * KIB, 300 * KIB]
Outcome = tuple[Any, ...]


def seen(rig: Rig, outcome: Any) -> Outcome:
    """What an admission did: its outcome, what was counted, what the connection carries."""
    rig.session.flush()
    frames = rig.pair.here.transport.take()
    return outcome, dict(rig.session.held), rig.session.in_flight, frames


async def by_send(rig: Rig, key: Any, message: Any) -> Outcome:
    sending = rig.outbound.send((key, THERE), message)
    try:
        waited_for = sending.send(None)
    except StopIteration:
        return seen(rig, "sent")
    except (InvalidName, NoConnection, MessageTooLarge) as error:
        return seen(rig, type(error))
    # A bare turn of the loop comes after sending; a future is what it waits for.
    outcome = seen(rig, "sent" if waited_for is None else "waits")
    sending.close()
    return outcome


async def by_admit(rig: Rig, key: Any, message: Any) -> Outcome:
    try:
        packed = rig.pair.here.codec.pack_whole([key, message], message)
        obstacle = rig.session.admit(key, packed)
    except (InvalidName, NoConnection, MessageTooLarge) as error:
        return seen(rig, type(error))
    return seen(rig, "sent" if obstacle is None else "waits")


async def by_call(rig: Rig, key: Any, message: Any) -> Outcome:
    calling = rig.outbound.call((key, THERE), message, 9.0)
    try:
        calling.send(None)
    except (InvalidName, NoConnection, MessageTooLarge) as error:
        return seen(rig, type(error))
    outcome = seen(rig, "sent" if rig.session.calls else "waits"), dict(rig.session.open_calls)
    calling.close()
    assert not rig.session.open_calls
    return outcome


async def by_admit_of_call(rig: Rig, key: Any, message: Any) -> Outcome:
    try:
        packed = rig.pair.here.codec.pack(operations.call(key, message, 1, 9_000), message)
        obstacle = rig.session.admit(key, packed, is_call=True)
    except (InvalidName, NoConnection, MessageTooLarge) as error:
        return seen(rig, type(error))
    return seen(rig, "sent" if obstacle is None else "waits"), dict(rig.session.open_calls)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("state", STATES)
def test_call_does_what_admit_does(state: str, size: int) -> None:
    async def main() -> None:
        outcomes = []
        for attempt in (by_call, by_admit_of_call):
            rig = Rig(SETTINGS)
            STATES[state](rig)
            outcomes.append(await attempt(rig, "slow", b"x" * size))
        assert outcomes[0] == outcomes[1]

    run(main())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("state", STATES)
def test_send_does_what_admit_does(state: str, size: int) -> None:
    async def main() -> None:
        outcomes = []
        for attempt in (by_send, by_admit):
            rig = Rig(SETTINGS)
            STATES[state](rig)
            outcomes.append(await attempt(rig, "slow", b"x" * size))
        assert outcomes[0] == outcomes[1]

    run(main())


@pytest.mark.parametrize("key", ["slow", "new", 5, None, 2.5, b"slow", True])
def test_send_takes_the_keys_that_admit_takes(key: Any) -> None:
    async def main() -> None:
        outcomes = [await attempt(Rig(SETTINGS), key, "hi") for attempt in (by_send, by_admit)]
        assert outcomes[0] == outcomes[1]

    run(main())


@given(
    st.lists(st.one_of(st.integers(2, 400), st.sampled_from([2_000, 2_048, 2_100])), max_size=60),
    st.integers(1, 9),
)
def test_append_does_what_to_batch_does(sizes: list[int], most: int) -> None:
    async def main() -> None:
        settings = Settings(batch_bytes=2 * KIB, batch_messages=most)
        sides = [Side(HERE, THERE, settings) for _ in range(2)]
        for size in sizes:
            packed = b"\xc4\xff" + b"x" * (size - 2)
            assert sides[0].session.append(packed) == sides[1].session._to_batch(packed, size)
            assert len(sides[0].dirty) == len(sides[1].dirty)
        for side in sides:
            side.flush()
        assert sides[0].transport.frames == sides[1].transport.frames

    run(main())


def test_a_call_is_open_from_its_admission_to_its_end() -> None:
    async def main() -> None:
        rig = Rig(SETTINGS)
        packed = rig.pair.here.codec.pack_value([int(Op.CALL), "slow", 1, 1, 1000, 0])
        for _ in range(2):
            assert rig.session.admit("slow", packed, is_call=True) is None
        assert (rig.session.open_calls, rig.session.load("slow")) == ({"slow": 2}, 4)
        for _ in range(3):
            rig.session.call_ended("slow")
        assert (rig.session.open_calls, rig.session.load("slow")) == ({}, 2)

    run(main())


@virtual
async def test_a_text_that_is_too_long_for_a_name_is_refused_before_anything_is_sent() -> None:
    rig = Rig(SETTINGS)
    long = ("n" * 256, THERE)
    with pytest.raises(InvalidName, match="1 to 255 characters"):
        rig.outbound.send_nowait(long, 1)
    with pytest.raises(InvalidName, match="1 to 255 characters"):
        await rig.outbound.send(long, 1)
    with pytest.raises(InvalidName, match="1 to 255 characters"):
        await rig.outbound.call(long, 1, 5.0)
    assert rig.session.held == {}
