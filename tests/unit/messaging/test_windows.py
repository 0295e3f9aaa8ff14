"""The window of a destination process, on two sessions back to back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fleetlm.core.topology import Topology
from fleetlm.errors import CallTimeout, InvalidName, NoConnection, NotSerializable, WouldBlock
from fleetlm.messaging.fan_out import FanOut
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.multicall import Multicall
from fleetlm.messaging.outbound import Outbound
from fleetlm.messaging.windows import UNIT_BYTES, ReceiveWindows, SendWindows, units
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.wire.frames import BadFrame
from fleetlm.wire.operations import Op
from tests.support.session_fakes import (
    HERE,
    THERE,
    Pair,
    Taker,
    identity,
    local_processes,
    turns,
    virtual,
    waits_of,
)  # fmt: skip

KIB = 1024
EIGHT = Settings(mailbox_limit=8, chunk_bytes=64 * KIB)
SLOW, QUICK = ("slow", THERE), ("quick", THERE)


class Rig:
    """The sending side of a node here, two mailboxes there."""

    def __init__(self, settings: Settings = EIGHT) -> None:
        self.pair = Pair(settings)
        self.session = self.pair.here.session
        self.arrivals = self.pair.there.session.arrivals
        self.slow, self.quick = self.pair.there.box("slow"), self.pair.there.box("quick")
        loop = SimLoop.current()
        topology = Topology(identity(HERE, 1, settings), settings, loop.rng)
        local = local_processes(self, settings.mailbox_limit)
        codec, sessions = self.pair.here.codec, {THERE: self.session}
        self.outbound = Outbound(HERE, 1, settings, codec, local.boxes, sessions, topology, waits_of())
        self.multicall = Multicall(codec, self.outbound)
        self.fan_out = FanOut(HERE, sessions, self.outbound)

    async def settle(self) -> None:
        for _ in range(3):
            await turns()
            self.pair.settle()

    async def sends(self, to: tuple[str, str], messages: list[Any]) -> asyncio.Task[None]:
        async def send() -> None:
            for message in messages:
                await self.outbound.send(to, message)

        sending = asyncio.ensure_future(send())
        await self.settle()
        return sending


def hostile(pair: Pair, *messages: list[Any]) -> None:
    """Messages that no window of the sender has counted."""
    for message in messages:
        pair.here.session.append(pair.here.codec.pack_value(message))
    pair.settle()


# The sender.


@virtual
async def test_a_full_process_makes_its_senders_wait_and_no_others() -> None:
    rig = Rig()
    sending = await rig.sends(SLOW, list(range(20)))
    assert list(rig.slow.queue) == list(range(8))
    other = await rig.sends(QUICK, list(range(8)))
    assert other.done()
    assert list(rig.quick.queue) == list(range(8))
    got = []
    while not sending.done():
        got.append(await rig.slow.get())
        await rig.settle()
        assert len(rig.slow) <= 8
    assert got + list(rig.slow.queue) == list(range(20))


@virtual
async def test_send_nowait_raises_where_send_waits() -> None:
    rig = Rig()
    for number in range(8):
        rig.outbound.send_nowait(SLOW, number)
    with pytest.raises(WouldBlock, match="8 messages of this node wait there"):
        rig.outbound.send_nowait(SLOW, 8)
    rig.outbound.send_nowait(QUICK, 0)


@virtual
async def test_a_call_to_a_full_process_was_not_delivered_when_its_deadline_comes() -> None:
    rig = Rig()
    for number in range(8):
        rig.outbound.send_nowait(SLOW, number)
    with pytest.raises(WouldBlock, match="stayed full"):
        await rig.outbound.call(SLOW, "hi", 2.0)
    result: Any
    (result,) = await rig.multicall([SLOW], "hi", 2.0)
    assert isinstance(result, WouldBlock)
    await rig.settle()
    assert list(rig.slow.queue) == list(range(8))


@virtual
async def test_calls_fill_the_window_until_they_are_taken_and_are_open_until_they_are_answered() -> None:
    rig = Rig()
    calling = asyncio.ensure_future(rig.outbound.call(SLOW, "hi", 5.0))
    await rig.settle()
    assert (rig.session.held, rig.session.load("slow")) == ({"slow": 1}, 2)
    call = await rig.slow.get()
    await rig.settle()
    assert (rig.session.held, rig.session.load("slow")) == ({}, 1)
    call.reply("ho")
    await rig.settle()
    assert await calling == "ho"
    assert rig.session.load("slow") == 0


@virtual
async def test_broadcast_serves_the_others_first_and_then_waits_for_a_full_process() -> None:
    rig = Rig()
    await rig.sends(SLOW, list(range(8)))
    sending = asyncio.ensure_future(rig.fan_out.broadcast("slow", "all", [THERE]))
    await rig.settle()
    assert not sending.done()
    await rig.slow.get()
    await rig.settle()
    assert await sending == 1


@virtual
async def test_waiting_senders_go_in_their_order_and_leave_nothing_when_they_give_up() -> None:
    rig = Rig()
    await rig.sends(SLOW, list(range(8)))
    waiting = [await rig.sends(SLOW, [name]) for name in "abc"]
    waiting[1].cancel()
    for _ in range(8):
        await rig.slow.get()
        await rig.settle()
    assert list(rig.slow.queue) == ["a", "c"]
    assert not rig.session.windows._waiters


@virtual
async def test_senders_that_fail_when_there_is_room_again_do_not_keep_others_waiting() -> None:
    rig = Rig()
    await rig.sends(SLOW, list(range(8)))
    failing = [await rig.sends(SLOW, [object()]) for _ in range(8)]
    waiting = await rig.sends(SLOW, ["last"])
    for _ in range(8):
        await rig.slow.get()
    await rig.settle()
    assert all(isinstance(each.exception(), NotSerializable) for each in failing)
    assert waiting.done()


@virtual
async def test_waiting_senders_are_told_that_the_connection_has_ended() -> None:
    rig = Rig()
    sending = await rig.sends(SLOW, list(range(9)))
    rig.session.close("gone")
    with pytest.raises(NoConnection, match="gone"):
        await sending
    assert not rig.session.held


@virtual
async def test_a_key_that_names_no_process_is_refused_by_the_sender() -> None:
    rig = Rig()
    for name in (None, 2.5, b"slow", True):
        with pytest.raises(InvalidName, match="addressed by its name, a text"):
            await rig.outbound.send((name, THERE), 1)  # type: ignore[arg-type]
    assert not rig.session.held


@pytest.mark.parametrize("count", [0, 2, 9])
def test_more_than_was_sent_cannot_have_been_taken(count: int) -> None:
    windows = SendWindows(8)
    windows.held["slow"] = 1
    with pytest.raises(ValueError, match="that were not sent"):
        windows.taken("slow", count)
    assert windows.held == {"slow": 1}


# The receiver.


@virtual
async def test_what_was_taken_is_told_for_every_eighth_and_the_rest_with_a_tick() -> None:
    rig = Rig(EIGHT.replace(mailbox_limit=64))
    await rig.sends(SLOW, list(range(40)))
    for _ in range(12):
        await rig.slow.get()
    await rig.settle()
    assert rig.session.held == {"slow": 32}
    rig.pair.there.session.sweep()
    await rig.settle()
    assert rig.session.held == {"slow": 28}
    while rig.slow.queue:
        await rig.slow.get()
    rig.pair.there.session.sweep()
    await rig.settle()
    assert rig.session.held == {}
    assert rig.arrivals.held == {}
    assert not rig.arrivals._boxes


@virtual
async def test_a_process_that_ends_has_taken_all_and_a_missing_one_takes_at_once() -> None:
    rig = Rig()
    sending = await rig.sends(SLOW, list(range(12)))
    rig.slow.close()
    del rig.pair.there.boxes["slow"]
    await rig.settle()
    assert sending.done()
    rig.pair.there.session.sweep()
    await rig.settle()
    assert rig.session.held == {}
    assert rig.pair.there.inbound.undelivered == 4


@virtual
async def test_many_destinations_are_told_before_they_fill_the_tables() -> None:
    told: list[tuple[Any, int]] = []
    windows = ReceiveWindows(4_096, lambda key, count: told.append((key, count)))
    for number in range(5_000):
        windows.received(number, 1, None)
    assert len(told) > 4_000
    windows.tell_all()
    assert told == [(number, 1) for number in range(5_000)]
    assert windows.held == {}


@virtual
async def test_a_peer_that_ignores_its_window_is_cut_and_one_that_replies_meanwhile_is_not() -> None:
    rig = Rig()
    await rig.sends(SLOW, list(range(8)))
    for ref in range(100):
        future = rig.pair.there.session.calls[ref] = asyncio.get_running_loop().create_future()
        rig.session.replied(ref, b"r" * 40 * KIB)
        rig.pair.settle()
        assert future.result() == b"r" * 40 * KIB
    with pytest.raises(BadFrame, match="more than 8 messages"):
        hostile(rig.pair, ["slow", "one more"])


@pytest.mark.parametrize(
    "message",
    [
        [1.5, "slow"],
        [None, 1],
        [True, 1],
        [int(Op.HEAVY), "slow", b"", 0],
        [int(Op.HEAVY), "slow", b"", 9],
        [int(Op.HEAVY), "slow", b"", -1],
        [int(Op.HEAVY), "slow", b"", "1"],
        [int(Op.TAKEN), "slow", 1],
        [int(Op.TAKEN), ["slow"], 1],
        [int(Op.CALL), "slow", b"", 1, 100, 0, 0],
        [int(Op.CALL), "slow", b"", 1, 100, 0, 1, 1],
        [int(Op.MORE), 1, -1],
    ],
)
def test_nonsense_about_windows_is_a_bad_frame(message: list[Any]) -> None:
    async def main() -> None:
        rig = Rig()
        with pytest.raises(BadFrame):
            hostile(rig.pair, message)

    run(main())


@virtual
async def test_unreadable_messages_leave_the_window() -> None:
    rig = Rig()
    rig.pair.there.codec._readers.clear()
    await rig.sends(SLOW, [(1, {2})] * 12)
    rig.pair.there.session.sweep()
    await rig.settle()
    assert rig.session.held == {}


# What a message counts.


def test_a_message_counts_one_and_one_more_for_each_unit_of_its_size() -> None:
    assert [units(size, 100) for size in (1, UNIT_BYTES - 1, UNIT_BYTES, 5 * UNIT_BYTES)] == [1, 1, 2, 6]
    assert units(1 << 30, 100) == 100


@pytest.mark.parametrize("size", [20 * KIB, 60 * KIB, 200 * KIB, 4_000 * KIB])
@pytest.mark.parametrize("call", [False, True])
def test_large_messages_fill_a_window_sooner(size: int, call: bool) -> None:
    async def main() -> None:
        rig = Rig(EIGHT.replace(mailbox_limit=16))
        message, weight = b"x" * size, units(size + 20, 16)
        if call:
            waiting = [asyncio.ensure_future(rig.outbound.call(SLOW, message, 5.0)) for _ in range(20)]
        else:
            waiting = [await rig.sends(SLOW, [message]) for _ in range(20)]
        await rig.settle()
        fits = -(-16 // weight)
        assert len(rig.slow) == fits
        assert rig.session.held == rig.arrivals.held == {"slow": fits * weight}
        for _ in range(20):
            got = await rig.slow.get()
            assert (got.message if call else got) == message
            await rig.settle()
            if call:
                got.reply()
        await rig.settle()
        rig.pair.there.session.sweep()
        await rig.settle()
        assert rig.session.held == rig.arrivals.held == {}
        await asyncio.gather(*waiting)

    run(main())


@virtual
async def test_a_caller_that_gives_up_does_not_free_the_window() -> None:
    rig = Rig()
    with pytest.raises(CallTimeout):
        await rig.outbound.call(SLOW, "hi", 1.0)
    await rig.settle()
    assert rig.session.held == {"slow": 1}
    waiting = asyncio.ensure_future(rig.slow.get())
    await rig.settle()
    rig.pair.there.session.sweep()
    await rig.settle()
    assert rig.session.held == {}
    waiting.cancel()


# Whatever happens.


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["slow", "quick"]), st.integers(1, 5), st.sampled_from([1, 40_000])),
            st.sampled_from(["take slow", "take quick", "settle", "sweep", "end slow"]),
        ),
        max_size=50,
    ),
    st.integers(1, 12),
)
def test_both_sides_count_the_same_and_nothing_is_lost_or_held_for_ever(steps: list[Any], limit: int) -> None:
    async def main() -> None:
        rig = Rig(EIGHT.replace(mailbox_limit=limit, chunk_bytes=32 * KIB))
        boxes = {"slow": rig.slow, "quick": rig.quick}
        sent: dict[str, list[int]] = {"slow": [], "quick": []}
        got: dict[str, list[int]] = {"slow": [], "quick": []}
        tasks = []
        serial = 0
        for step in steps:
            match step:
                case (str(name), count, size):
                    batch = [[serial + n, b"x" * size] for n in range(count)]
                    serial += count
                    sent[name] += [number for number, _ in batch]
                    if tasks:
                        await asyncio.wait(tasks[-1:], timeout=0)
                    tasks.append(await rig.sends((name, THERE), batch))
                case "settle":
                    await rig.settle()
                case "sweep":
                    rig.pair.there.session.sweep()
                case "end slow":
                    got["slow"] += [number for number, _ in boxes["slow"].close()]
                case _:
                    box = boxes[step.removeprefix("take ")]
                    if box.queue:
                        got[step.removeprefix("take ")].append((await box.get())[0])
            for box in boxes.values():
                assert len(box) <= limit
        quiet = 0
        for _ in range(400):
            await rig.settle()
            before = sum(map(len, got.values()))
            for name, box in boxes.items():
                while box.queue:
                    got[name].append((await box.get())[0])
            rig.pair.there.session.sweep()
            waits = not all(task.done() for task in tasks)
            quiet = 0 if waits or sum(map(len, got.values())) > before else quiet + 1
            if quiet == 10:  # Nothing has waited or arrived for ten rounds, so more of them change nothing.
                break
        assert all(task.done() for task in tasks)
        assert {name: sorted(numbers) for name, numbers in got.items()} == sent
        assert rig.session.held == rig.arrivals.held == {}
        assert not rig.session.windows._waiters
        assert rig.slow._origins in (None, [])

    run(main())


@virtual
async def test_a_multicall_is_open_until_it_is_answered() -> None:
    rig = Rig()
    asking = asyncio.ensure_future(rig.multicall([SLOW, SLOW, QUICK], "hi", 5.0))
    await rig.settle()
    assert (rig.session.open_calls, rig.session.load("slow")) == ({"slow": 2, "quick": 1}, 4)
    for box in (rig.slow, rig.slow, rig.quick):
        (await box.get()).reply()
    await rig.settle()
    assert await asking == [None] * 3
    assert rig.session.open_calls == {}


def test_a_tick_looks_at_some_of_many_mailboxes_and_all_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleetlm.messaging.windows.MAX_SWEPT_MAILBOXES", 2)
    run(swept_in_turns())


async def swept_in_turns() -> None:
    told: list[Any] = []
    windows = ReceiveWindows(1_000, lambda key, count: told.append((key, count)))
    boxes = [Mailbox(1_000, Taker()) for _ in range(5)]
    for number, box in enumerate(boxes):
        box.put("a")
        box.put("b")
        windows.received(number, 2, box)
    for box in boxes:
        await box.get()
    for _ in range(3):
        windows.sweep()
    assert sorted(told) == [(number, 1) for number in range(5)]
    for box in boxes:
        await box.get()
    for _ in range(3):
        windows.sweep()
    assert len(told) == 10
    assert not windows._boxes


@virtual
async def test_a_sender_that_is_favoured_gets_what_is_taken_before_those_that_wait_longer() -> None:
    windows = SendWindows(2)
    windows.held["x"] = 2
    order: list[str] = []

    async def send(name: str, count: int) -> None:
        for _ in range(count):
            while windows.held.get("x", 0) >= 2 and not windows.draw("x"):
                await windows.wait("x")
            windows.held["x"] = windows.held.get("x", 0) + 1
            order.append(name)

    first = asyncio.ensure_future(send("first", 3))
    await turns()
    favoured = asyncio.ensure_future(send("favoured", 3))
    await turns()
    windows.favour("x", favoured)
    windows.taken("x", 2)
    await turns()
    windows.taken("x", 2)
    await turns()
    assert order == ["favoured"] * 3
    windows.unfavour("x", favoured)
    await turns()
    assert order == ["favoured"] * 3 + ["first"]
    windows.taken("x", 2)
    await turns()
    assert order[3:] == ["first"] * 3
    assert windows.held == {"x": 2}
    with pytest.raises(ValueError, match="3 messages taken that were not sent"):
        windows.taken("x", 3)
    await asyncio.gather(first, favoured)


@virtual
async def test_a_sender_that_never_waits_takes_no_unit_of_those_that_do() -> None:
    windows = SendWindows(2)
    windows.held["x"] = 2
    waiting = [asyncio.ensure_future(windows.wait("x")) for _ in range(3)]
    await turns()
    windows.taken("x", 1)
    assert windows.held == {"x": 2}, "the unit is kept for the first one"
    await turns()
    assert [each.done() for each in waiting] == [True, True, True], "none of them has sent: each gives up"
    assert windows.held == {"x": 1}
