"""Turns: what runs on one loop gives way before the loop is late, and each goes on in its order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.turns import FREE, TURN_MESSAGES, TURN_S, CountedTurns, Turns
from fleetlm.testing.loop import SimLoop, run
from tests.support.session_fakes import Taker


class Clock:
    """Stands for ``time.monotonic``: work takes as long as it says, and nothing else takes time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.rounds: list[float] = []

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fleetlm.messaging.turns.monotonic", lambda: clock.now)
    return clock


def rounds(clock: Clock, work: list[Coroutine[Any, Any, None]]) -> list[float]:
    """Run coroutines, and return how long each round of the loop took on the clock."""

    async def main() -> list[float]:
        took: list[float] = []
        tasks = [asyncio.ensure_future(each) for each in work]
        while not all(task.done() for task in tasks):
            before = clock.now
            await asyncio.sleep(0)
            took.append(clock.now - before)
        await asyncio.gather(*tasks)
        return took

    return run(main())


async def look(turns: Turns) -> None:
    if turns.left:
        turns.left -= 1
    elif turns.is_over():
        await turns.next()


LONGEST_S = 2 * TURN_S + 0.001
"""What one round may take when each piece of work takes a millisecond; see the module."""
LONGEST_MIXED_S = 2 * TURN_S + 8 * 0.001
"""The same where such pieces follow quick ones."""


def test_one_task_that_never_waits_lets_the_loop_go_round(clock: Clock) -> None:
    turns = Turns()

    async def work() -> None:
        for _ in range(200):
            clock.work(0.001)
            await look(turns)

    took = rounds(clock, [work()])
    assert sum(took) == pytest.approx(0.2)
    assert max(took) <= LONGEST_S + 1e-9


@pytest.mark.parametrize("messages", [1, 3, 20])
@pytest.mark.parametrize("work_s", [0.000_01, 0.000_3, 0.001])
def test_many_tasks_share_the_turns_and_no_round_is_long(clock: Clock, messages: int, work_s: float) -> None:
    turns = Turns()

    async def work() -> None:
        for _ in range(messages):
            await look(turns)
            clock.work(work_s)

    took = rounds(clock, [work() for _ in range(300)])
    assert sum(took) == pytest.approx(300 * messages * work_s)
    assert max(took) <= LONGEST_S + 1e-9


def test_quick_messages_and_slow_ones_in_any_mix_keep_the_rounds_short(clock: Clock) -> None:
    turns = Turns()

    async def work(number: int) -> None:
        for step in range(40):
            await look(turns)
            clock.work(0.001 if (number * 7 + step * step) % 11 < 3 else 0.000_002)

    took = rounds(clock, [work(number) for number in range(100)])
    assert max(took) <= LONGEST_MIXED_S + 1e-9


def test_everybody_gets_a_turn_beside_one_that_always_has_work(clock: Clock) -> None:
    turns = Turns()
    order: list[str] = []

    async def work(name: str, messages: int) -> None:
        for _ in range(messages):
            await look(turns)
            clock.work(0.001)
            order.append(name)

    rounds(clock, [work("greedy", 400), *(work(f"modest {n}", 1) for n in range(20))])
    last = max(index for index, name in enumerate(order) if name != "greedy")
    assert last < 150, "each modest one ran long before the greedy one was done"
    assert [name for name in order if name != "greedy"] == [f"modest {n}" for n in range(20)]


def test_work_within_a_turn_never_waits(clock: Clock) -> None:
    turns = Turns()

    async def work() -> None:
        for _ in range(1_000):
            await look(turns)

    assert len(rounds(clock, [work()])) <= 2


def test_a_turn_that_was_not_used_up_costs_no_waiting(clock: Clock) -> None:
    turns = Turns()

    async def work() -> None:
        for _ in range(50):
            await look(turns)
            clock.work(0.003)
            await asyncio.sleep(0)

    assert len(rounds(clock, [work()])) <= 52


def test_a_task_that_is_cancelled_while_it_waits_for_its_turn_costs_nobody_else_one(clock: Clock) -> None:
    turns = Turns()
    done: list[int] = []

    async def work(number: int) -> None:
        await look(turns)
        clock.work(0.01)
        done.append(number)

    async def main() -> None:
        tasks = [asyncio.ensure_future(work(number)) for number in range(12)]
        await asyncio.sleep(0)
        assert turns.waiting > 0
        for task in tasks[6:9]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert done == [number for number in range(12) if number not in (6, 7, 8)]
        assert turns.waiting == 0

    run(main())


def test_nodes_on_one_loop_share_its_turns() -> None:
    async def main() -> Turns:
        loop = asyncio.get_running_loop()
        assert Turns.of(loop) is Turns.of(loop)
        return Turns.of(loop)

    assert asyncio.run(main()) is not asyncio.run(main())


def test_free_turns_never_end() -> None:
    assert not any(FREE.left or FREE.is_over() for _ in range(10_000))


# Virtual time.


def test_on_virtual_time_a_turn_is_a_number_of_messages_and_takes_time() -> None:
    async def main() -> None:
        loop = SimLoop.current()
        turns = CountedTurns(loop)
        for _ in range(TURN_MESSAGES):
            await look(turns)
        assert loop.time() == 0
        await look(turns)
        assert loop.time() == TURN_S
        await asyncio.sleep(1)
        for _ in range(TURN_MESSAGES):
            await look(turns)
        assert loop.time() == 1 + TURN_S

    run(main())


def test_two_that_feed_each_other_for_ever_do_not_stop_virtual_time() -> None:
    async def main() -> None:
        turns = CountedTurns(SimLoop.current())
        boxes = [Mailbox(10, Taker(), turns) for _ in range(2)]

        async def serve(mine: Mailbox, other: Mailbox) -> None:
            async for message in mine:
                other.put(message)

        tasks = [asyncio.ensure_future(serve(*boxes)), asyncio.ensure_future(serve(*reversed(boxes)))]
        boxes[0].put("ball")
        await asyncio.sleep(0.1)
        assert boxes[0].taken + boxes[1].taken >= TURN_MESSAGES * 0.1 / TURN_S * 0.9
        for task in tasks:
            task.cancel()

    run(main())


# The mailbox.


def test_a_mailbox_that_is_never_empty_lets_the_loop_go_round(clock: Clock) -> None:
    box = Mailbox(10, Taker(), Turns())

    async def serve() -> None:
        box.put(0)
        async for count in box:
            clock.work(0.001)
            if count == 300:
                return
            box.put(count + 1)

    assert max(rounds(clock, [serve()])) <= LONGEST_S + 1e-9


def test_an_owner_that_is_cancelled_while_it_waits_for_its_turn_has_taken_nothing() -> None:
    async def main() -> None:
        turns = CountedTurns(SimLoop.current())
        box = Mailbox(10, Taker(), turns)
        for _ in range(TURN_MESSAGES):
            turns.is_over()
        box.put("message")
        owner = asyncio.ensure_future(box.get())
        await asyncio.sleep(0)
        assert not owner.done()
        owner.cancel()
        await asyncio.wait({owner})
        assert owner.cancelled()
        assert (box.taken, await box.get()) == (0, "message")

    run(main())


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_a_message_that_is_there_is_taken_though_the_turn_ends_after_the_time_out(timeout: float) -> None:
    async def main() -> None:
        turns = CountedTurns(SimLoop.current())
        box = Mailbox(10, Taker(), turns)
        for _ in range(TURN_MESSAGES):
            turns.is_over()
        with pytest.raises(TimeoutError):
            await box.get(timeout)
        box.put("message")
        assert await box.get(timeout) == "message"

    run(main())


def test_turns_use_the_clock_of_the_system() -> None:
    async def main() -> None:
        turns = Turns()
        assert not turns.is_over()
        before = time.monotonic()
        while not turns.is_over():
            assert time.monotonic() < before + 5
        assert time.monotonic() - before >= TURN_S * 0.9

    asyncio.run(main())


def test_after_a_fork_a_wait_raises_since_no_loop_runs_in_the_child() -> None:
    loop = asyncio.new_event_loop()
    turns = Turns(loop)
    waiter = turns.future()
    assert waiter.get_loop() is loop
    turns.after_fork()
    with pytest.raises(RuntimeError, match="no running event loop"):
        turns.future()
    loop.close()
