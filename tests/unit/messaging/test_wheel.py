"""The deadlines of requests end in slots of one timer: never early, at most one slot late."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

import pytest

from fleetlm.errors import CallTimeout
from fleetlm.messaging.wheel import SLOTS_PER_S, SWEPT_SLOTS, Slot, Wheel
from fleetlm.testing.loop import SimLoop
from tests.support.session_fakes import virtual

SLOT_S = 1 / SLOTS_PER_S


class Timers:
    """Counts the timers that the wheel sets on the loop."""

    def __init__(self) -> None:
        self._loop = SimLoop.current()
        self.set_at: list[float] = []

    def time(self) -> float:
        return self._loop.time()

    def call_at(self, when: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        self.set_at.append(when)
        return self._loop.call_at(when, callback, *args)


def future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def wheel_of(loop: Any = None) -> Wheel:
    return Wheel(loop or asyncio.get_running_loop())


@virtual
async def test_a_request_ends_at_its_deadline_or_within_a_slot_after_it() -> None:
    loop, wheel, rng = SimLoop.current(), wheel_of(), random.Random(1)
    ended: dict[int, float] = {}

    def note(number: int, waiting: asyncio.Future[Any]) -> None:
        assert isinstance(waiting.exception(), CallTimeout)
        ended[number] = loop.time()

    deadlines = [loop.time() + rng.uniform(0, 3) for _ in range(200)] + [loop.time() + 1.5]
    for number, deadline in enumerate(deadlines):
        waiting = future()
        waiting.add_done_callback(partial(note, number))
        wheel.enter(waiting, deadline, "slow", 3.0)
    await asyncio.sleep(4)
    assert len(ended) == len(deadlines)
    for number, deadline in enumerate(deadlines):
        assert deadline <= ended[number] < deadline + SLOT_S
    assert ended[200] == deadlines[200], "a deadline on the edge of a slot is kept exactly"


@virtual
async def test_the_error_names_the_target_and_the_time_out() -> None:
    waiting = future()
    wheel_of().enter(waiting, SimLoop.current().time() + 0.5, "slow", 0.5)
    with pytest.raises(CallTimeout, match=r"'slow' within 0\.5 s"):
        await waiting


@virtual
async def test_what_has_left_its_slot_or_has_an_outcome_gets_no_error() -> None:
    wheel, now = wheel_of(), SimLoop.current().time()
    gone, done = future(), future()
    slot = wheel.enter(gone, now + 1, "a", 1.0)
    assert wheel.enter(done, now + 1, "b", 1.0) is slot
    slot.pop(gone, None)
    done.set_result("reply")
    await asyncio.sleep(2)
    assert not gone.done()
    assert done.result() == "reply"


@virtual
async def test_an_earlier_deadline_moves_the_timer_forward() -> None:
    wheel, now = wheel_of(), SimLoop.current().time()
    late, early = future(), future()
    wheel.enter(late, now + 5, "late", 5.0)
    wheel.enter(early, now + 1, "early", 1.0)
    await asyncio.sleep(2)
    assert isinstance(early.exception(), CallTimeout)
    assert not late.done()
    await asyncio.sleep(4)
    assert isinstance(late.exception(), CallTimeout)


@virtual
async def test_many_short_requests_set_the_timer_once_in_a_time_out() -> None:
    timers = Timers()
    wheel = wheel_of(timers)
    for _ in range(1_000):
        waiting = future()
        slot: Slot = wheel.enter(waiting, timers.time() + 5, "echo", 5.0)
        await asyncio.sleep(0.01)
        slot.pop(waiting, None)
    assert len(timers.set_at) <= 3, "10 s of calls with a time-out of 5 s"
    await asyncio.sleep(20)
    assert len(timers.set_at) <= 4
    assert not wheel._slots
    assert not wheel._numbers


@virtual
async def test_a_deadline_in_the_past_ends_with_the_next_turn() -> None:
    waiting = future()
    wheel_of().enter(waiting, SimLoop.current().time() - 3, "late", 0.0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert isinstance(waiting.exception(), CallTimeout)


@virtual
async def test_a_loop_that_stood_still_ends_all_that_is_due_at_once() -> None:
    loop, wheel = SimLoop.current(), wheel_of()
    waiting = [future() for _ in range(50)]
    for number, each in enumerate(waiting):
        wheel.enter(each, loop.time() + number / 10, "busy", 1.0)
    await asyncio.sleep(3)
    assert [each.done() for each in waiting] == [number <= 30 for number in range(50)]
    for each in waiting[:31]:
        assert isinstance(each.exception(), CallTimeout)


@virtual
async def test_answered_calls_with_long_time_outs_leave_few_slots() -> None:
    loop, wheel = SimLoop.current(), wheel_of()
    open_ones = [future() for _ in range(1_000)]
    for number, each in enumerate(open_ones):
        wheel.enter(each, loop.time() + 86_400 + number, "slow", 86_400.0)
    soon = future()
    wheel.enter(soon, loop.time() + 400, "soon", 400.0)
    most = 0
    for _ in range(20_000):
        waiting = future()
        slot = wheel.enter(waiting, loop.time() + 3_600, "quick", 3_600.0)
        slot.pop(waiting)
        await asyncio.sleep(1 / 64)
        most = max(most, len(wheel._slots))
    assert most <= SWEPT_SLOTS
    assert sorted(wheel._slots) == sorted(wheel._numbers)
    assert not soon.done()
    await asyncio.sleep(100)
    assert isinstance(soon.exception(), CallTimeout)
    assert not any(each.done() for each in open_ones)
    await asyncio.sleep(90_000)
    assert all(isinstance(each.exception(), CallTimeout) for each in open_ones)
    assert not wheel._slots


@virtual
async def test_the_timer_for_a_slot_that_was_swept_finds_the_next_one() -> None:
    loop, wheel = SimLoop.current(), wheel_of()
    gone, waiting = future(), future()
    wheel.enter(gone, loop.time() + 1, "gone", 1.0).pop(gone)
    wheel.enter(waiting, loop.time() + 3, "waits", 3.0)
    wheel._sweep()
    await asyncio.sleep(2)
    assert not waiting.done()
    await asyncio.sleep(2)
    assert isinstance(waiting.exception(), CallTimeout)


@virtual
async def test_a_wheel_that_was_closed_ends_nothing() -> None:
    wheel = wheel_of()
    wheel.close()
    waiting = future()
    slot = wheel.enter(waiting, SimLoop.current().time() + 1, "a", 1.0)
    wheel.close()
    await asyncio.sleep(2)
    assert not waiting.done()
    assert slot == {waiting: ("a", 1.0)}
