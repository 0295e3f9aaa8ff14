from __future__ import annotations

import asyncio
import inspect
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetlm.call import Call
from fleetlm.messaging.mailbox import LONG_WAIT_S, MOST_BEYOND, Mailbox
from fleetlm.messaging.turns import TURN_MESSAGES, CountedTurns
from fleetlm.testing.loop import SimLoop
from tests.support.session_fakes import Taker, turns, virtual


class Nobody:
    """A caller that notes what becomes of its calls."""

    def __init__(self) -> None:
        self.forgotten: list[int] = []

    def replied(self, ref: int, value: Any) -> None:
        raise AssertionError(value)

    def failed(self, ref: int, kind: Any, details: list[str]) -> None:
        raise AssertionError(details)

    def forget(self, ref: int) -> None:
        self.forgotten.append(ref)

    is_behind = False

    async def caught_up(self) -> None:
        while self.is_behind:
            await asyncio.sleep(1)


def mailbox(limit: int = 4, taken: list[Call] | None = None) -> Mailbox:
    return Mailbox(limit, Taker(taken))


def call(caller: Nobody, ref: int = 1, deadline: float = 5.0) -> Call:
    return Call("work", caller, ref, deadline, SimLoop.current().time)  # type: ignore[arg-type]


@virtual
async def test_messages_come_in_the_order_in_which_they_were_put() -> None:
    box = mailbox()
    for number in range(3):
        box.put(number)
    assert len(box) == 3
    assert [await box.get() for _ in range(3)] == [0, 1, 2]
    assert (len(box), box.taken) == (0, 3)


def test_a_mailbox_takes_memory_for_messages_with_its_first_one() -> None:
    first, second = mailbox(), mailbox()
    assert first.queue is second.queue
    assert (len(first), list(first.queue), first.discard(lambda _: True), first.close()) == (0, [], [], [])
    first.put("a")
    assert (list(first.queue), len(second)) == (["a"], 0)
    assert first.close() == ["a"]
    first.put("too late")
    assert list(first.queue) == ["too late"]


@virtual
async def test_what_is_taken_out_while_the_owner_waits_for_its_turn_does_not_come() -> None:
    counted = CountedTurns(SimLoop.current())
    box = Mailbox(4, Taker(), counted)
    for _ in range(TURN_MESSAGES):
        counted.is_over()
    box.put("unwanted")
    owner = asyncio.ensure_future(box.get())
    await turns()
    assert not owner.done()
    assert box.discard(lambda message: message == "unwanted") == ["unwanted"]
    box.put("wanted")
    assert await owner == "wanted"


@virtual
async def test_a_waiting_owner_is_woken_once_for_many_messages() -> None:
    box = mailbox()
    waiting = asyncio.ensure_future(box.get())
    await turns()
    box.put("a")
    box.put("b")
    assert await waiting == "a"
    assert await box.get() == "b"


@virtual
async def test_it_is_waited_for_while_its_owner_waits() -> None:
    box = mailbox()
    assert not box.waited_for
    for end in (lambda _: box.put("x"), lambda owner: owner.cancel()):
        owner = asyncio.ensure_future(box.get())
        await turns()
        assert box.waited_for
        end(owner)
        assert not box.waited_for
        await asyncio.wait({owner})
        assert not box.waited_for


@virtual
async def test_it_can_be_iterated() -> None:
    box = mailbox()
    box.put(1)
    box.put(2)
    seen = []
    async for message in box:
        seen.append(message)
        if len(seen) == 2:
            break
    assert seen == [1, 2]


@virtual
async def test_a_time_out_takes_nothing() -> None:
    box = mailbox()
    with pytest.raises(TimeoutError):
        await box.get(timeout=2.0)
    assert SimLoop.current().time() == 2.0
    box.put("late")
    assert await box.get(timeout=0) == "late"


@virtual
async def test_a_cancelled_wait_takes_nothing_even_when_the_message_is_there_already() -> None:
    box = mailbox()
    waiting = asyncio.ensure_future(box.get())
    await turns()
    box.put("kept")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await box.get() == "kept"


@virtual
async def test_only_one_task_may_wait() -> None:
    box = mailbox()
    waiting = asyncio.ensure_future(box.get())
    await turns()
    with pytest.raises(RuntimeError, match="only the process itself"):
        await box.get()
    box.put("for the first")
    assert await waiting == "for the first"


@virtual
async def test_a_full_mailbox_still_takes_what_comes_but_makes_senders_wait() -> None:
    box = mailbox(4)
    for number in range(6):
        box.put(number)
    assert box.full
    assert len(box) == 6
    waiting = asyncio.ensure_future(box.room())
    for _ in range(3):
        await box.get()
        await turns()
        assert not waiting.done()
    await box.get()
    await turns()
    assert waiting.done()
    assert len(box) == 2


@virtual
async def test_room_is_there_at_once_below_the_limit() -> None:
    await mailbox(1).room()


@virtual
async def test_senders_that_gave_up_leave_nothing_behind() -> None:
    box = mailbox(1)
    box.put(1)
    for _ in range(100):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await box.room()
    assert not box._rooms


@virtual
async def test_waiting_senders_pass_one_by_one_and_never_beyond_the_limit() -> None:
    box = mailbox(4)
    most = 0

    async def send(number: int) -> None:
        nonlocal most
        await box.room()
        box.put(number)
        most = max(most, len(box))

    senders = [asyncio.ensure_future(send(number)) for number in range(50)]
    got = [await box.get() for _ in range(50)]
    await asyncio.gather(*senders)
    assert sorted(got) == list(range(50))
    assert most == 4


@virtual
async def test_closing_returns_the_rest_and_lets_senders_go_on() -> None:
    box = mailbox(2)
    box.put(1)
    box.put(2)
    waiting = asyncio.ensure_future(box.room())
    await turns()
    assert box.close() == [1, 2]
    await waiting
    assert len(box) == 0


@virtual
async def test_a_sender_that_never_waits_takes_no_place_of_those_that_do() -> None:
    box = mailbox(4)
    for number in range(4):
        box.put(number)
    order: list[str] = []

    async def send(name: str, count: int) -> None:
        for _ in range(count):
            if box.full:
                await box.room()
            box.put(name)
            order.append(name)

    senders = [asyncio.ensure_future(send(*each)) for each in (("greedy", 6), ("b", 2), ("c", 1))]
    await turns()
    for _ in range(13):
        await box.get()
        await turns()
    await asyncio.gather(*senders)
    assert order[:3] == ["greedy", "b", "c"]
    assert len(order) == 9


@virtual
async def test_a_sender_that_is_woken_and_gives_up_leaves_its_place_to_the_next() -> None:
    box = mailbox(1)
    box.put(0)
    first, second = (asyncio.ensure_future(box.room()) for _ in range(2))
    await turns()
    taken = await box.get()
    first.cancel()
    await turns()
    assert (taken, first.cancelled(), second.done()) == (0, True, True)
    assert not box.full


@virtual
async def test_a_mailbox_that_is_relieved_counts_what_waits_as_taken_up_to_a_bound() -> None:
    box = mailbox(4)
    window = Told()
    for round_ in range(MOST_BEYOND):
        for number in range(4):
            box.put(number)
        box.arrived(window, "x", 4, 1)
        assert box.relieve() == (round_ < MOST_BEYOND - 1)
    told = 4 * (MOST_BEYOND - 1)
    assert window.units == told
    for _ in range(told):
        await box.get()
    assert window.units == told, "each message is told once"
    for _ in range(4):
        await box.get()
    assert window.units == told + 4


@virtual
async def test_a_sender_that_is_favoured_goes_on_at_once_and_beyond_the_limit() -> None:
    box = mailbox(1)
    box.put(0)
    first, second = (asyncio.ensure_future(box.room()) for _ in range(2))
    await turns()
    box.favour(second)
    await turns()
    assert (first.done(), second.done()) == (False, True)
    assert box.may_exceed(second)
    box.unfavour(second)
    assert not box.may_exceed(second)
    first.cancel()


class Told:
    """A window that counts what it is told."""

    step = 1

    def __init__(self) -> None:
        self.units = 0

    def took(self, key: int | str, count: int) -> None:
        self.units += count


@virtual
async def test_a_taken_call_is_told_to_the_process() -> None:
    taken: list[Call] = []
    box = mailbox(taken=taken)
    box.put(wanted := call(Nobody()))
    assert await box.get() is wanted
    assert taken == [wanted]


@virtual
async def test_a_call_that_the_process_refuses_never_comes() -> None:
    refused: list[Call] = []

    class Refusing:
        def _note_wait(self, call: Call, now: float) -> None: ...

        def _accept_call(self, taken: Call) -> bool:
            refused.append(taken)
            return len(refused) != 1

        def _has_task(self, task: asyncio.Task[Any] | None) -> bool:
            return False

    box = Mailbox(4, Refusing())
    calls = [call(Nobody(), 1), call(Nobody(), 2)]
    for each in calls:
        box.put(each)
    assert await box.get() is calls[1]
    assert refused == calls


@virtual
async def test_calls_that_expired_or_were_given_up_are_passed_over() -> None:
    taken: list[Call] = []
    caller = Nobody()
    box = mailbox(taken=taken)
    box.put(call(caller, ref=1, deadline=1.0))
    given_up = call(caller, ref=2)
    given_up.abandon()
    box.put(given_up)
    box.put("message")
    await asyncio.sleep(1.0)
    assert await box.get() == "message"
    assert taken == []
    assert sorted(caller.forgotten) == [1, 2]


@virtual
async def test_a_mailbox_of_nothing_but_dead_calls_goes_on_waiting() -> None:
    box = mailbox()
    box.put(call(Nobody(), deadline=0.0))
    waiting = asyncio.ensure_future(box.get())
    await turns()
    assert not waiting.done()
    box.put("alive")
    assert await waiting == "alive"


@given(st.lists(st.one_of(st.just("take"), st.integers())), st.integers(1, 5))
def test_it_is_a_queue_whatever_the_interleaving(steps: list[Any], limit: int) -> None:
    async def main() -> None:
        box = mailbox(limit)
        put: list[int] = []
        got: list[int] = []
        for step in steps:
            if step != "take":
                box.put(step)
                put.append(step)
            elif len(box):
                got.append(await box.get())
            assert box.full == (len(put) - len(got) >= limit)
        assert got + box.close() == put

    asyncio.run(main())


@virtual
async def test_what_is_not_wanted_any_more_is_taken_out() -> None:
    box = Mailbox(10, Taker())
    for number in range(6):
        box.put(number)
    box.discard(lambda message: message % 2 == 1)
    assert [await box.get(), await box.get(), await box.get(), len(box)] == [0, 2, 4, 0]


@virtual
async def test_senders_that_wait_go_on_when_what_waits_is_taken_out() -> None:
    box = mailbox(4)
    for number in range(4):
        box.put(number)
    waiting = asyncio.ensure_future(box.room())
    await turns()
    box.discard(lambda _: True)
    await turns()
    assert waiting.done()


@virtual
async def test_a_call_of_a_caller_that_takes_no_answers_waits_at_its_place() -> None:
    caller = Nobody()
    taken: list[Call] = []
    box = mailbox(10, taken)
    caller.is_behind = True
    window = Counted()
    for message in ("before", call(caller, 7, 1_000.0), "after"):
        box.put(message)
    box.arrived(window, "key", 3, 1)
    assert await box.get() == "before"
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await box.get(timeout=2)
    assert (len(box), box.taken, taken) == (2, 1, []), "a wait that ends early has taken nothing"
    waiting = asyncio.ensure_future(box.get())
    await asyncio.sleep(3)
    assert not waiting.done()
    caller.is_behind = False
    assert await waiting is taken[0]
    assert await box.get() == "after"
    box.settle()
    assert window.count == 3, "each message is told once"


class Counted:
    step = 1

    def __init__(self) -> None:
        self.count = 0

    def took(self, key: Any, count: int, /) -> None:
        self.count += count


@virtual
async def test_the_owner_is_told_of_calls_that_waited_for_half_of_their_time() -> None:
    cases = [
        (0.0, 4.0, 1.9, False),
        (0.0, 4.0, 2.1, True),
        (1.0, 4.0, 2.1, False),
        (0.0, 2.0, 3.0, True),  # It has expired.
        (-math.inf, 4.0, 3.1, True),  # When it came is not known: who is told must look.
        (math.inf, 4.0, 3.2, False),
        (0.0, math.inf, 99.0, False),
        (99.0, 99.4, 99.24, False),  # A short wait is no news, though it was most of the time.
        (99.0, 99.4, 99.39, True),
    ]
    clock = SimLoop.current().time
    start = clock()
    for began, deadline, taken_at, is_told in cases:
        owner = Taker()
        box = Mailbox(4, owner)
        waited = Call("slow", Nobody(), 1, start + deadline, clock, began=start + began)  # type: ignore[arg-type]
        box.put(waited)
        box.put("message")
        await asyncio.sleep(start + taken_at - clock())
        await box.get()
        assert [call for call, _ in getattr(owner, "waited", [])] == ([waited] if is_told else [])
    assert f"> {LONG_WAIT_S}:" in inspect.getsource(Mailbox.__anext__)


@virtual
async def test_it_knows_which_windows_its_messages_count_against() -> None:
    box = mailbox()
    first, second = Told(), Told()
    for window, count in ((first, 2), (second, 3), (first, 1)):
        for _ in range(count):
            box.put("message")
        box.arrived(window, "key", count, 1)
    assert [*box.senders()] == [(first, 2), (second, 3), (first, 1)]
    assert (box.key_of(first), box.key_of(Told())) == ("key", None)
    for _ in range(3):
        await box.get()
    box.settle()
    assert [*box.senders()] == [(second, 2), (first, 1)]
