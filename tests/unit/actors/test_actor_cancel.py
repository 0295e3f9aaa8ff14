"""Who gives up cancels the handler, deadlines travel into what it asks, and neither harms the actor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from fleetlm import (
    Actor,
    ActorRef,
    CallTimeout,
    Expired,
    NotDelivered,
    ProcessDown,
    ProcessExit,
    RemoteError,
    handler,
)
from fleetlm.messaging.deadline import SERVING, within_deadline
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated


class Worker(Actor):
    """Works, and notes what becomes of it."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.tasks: set[asyncio.Task[Any]] = set()

    @handler
    async def work(self, name: str, seconds: float = 10.0) -> str:
        return await self._work(name, seconds)

    @handler(concurrent=True)
    async def beside(self, name: str, seconds: float = 10.0) -> str:
        return await self._work(name, seconds)

    async def _work(self, name: str, seconds: float) -> str:
        self.log.append(f"+{name}")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.log.append(f"!{name}")
            raise
        self.log.append(f"-{name}")
        return name

    @handler
    async def swallow(self) -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            self.log.append("swallowed")
        return "late"

    @handler
    async def convert(self) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise KeyError("converted") from None

    @handler
    async def exit_when_cancelled(self) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise ProcessExit("given up") from None

    @handler
    async def clean_up(self, seconds: float) -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(seconds)
            self.log.append("clean")

    @handler
    async def limited(self, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(10)
        except TimeoutError:
            return "own time-out"
        return "never"

    @handler
    async def grouped(self) -> str:
        async with asyncio.TaskGroup() as group:
            one = group.create_task(asyncio.sleep(1))
            two = group.create_task(asyncio.sleep(2))
        return f"{one.done()} {two.done()}"

    @handler
    async def group_that_fails(self, *, is_caught: bool, then_s: float = 0.0) -> None:
        """Let a task fail while the group waits for it, at its end."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fail())
        except* ZeroDivisionError:
            if not is_caught:
                raise
        await asyncio.sleep(then_s)

    async def _fail(self) -> None:
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    @handler
    async def awaits_what_is_cancelled(self) -> None:
        other = asyncio.ensure_future(asyncio.sleep(10))
        other.cancel()
        await other

    @handler
    async def cancelling(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    @handler
    async def ask(self, to: ActorRef[Worker], seconds: float) -> str:
        return await to.call(Worker.work, "nested", seconds)

    @handler
    async def leave_behind(self, to: ActorRef[Worker], after: float) -> None:
        async def later() -> None:
            await asyncio.sleep(after)
            try:
                self.log.append(await to.within(3).call(Worker.work, "later", 2.0))
            except NotDelivered as error:
                self.log.append(error)

        self.tasks.add(asyncio.ensure_future(later()))

    @handler
    async def ambient(self) -> float:
        return within_deadline(100.0)


async def started(fleet: Fleet, **changes: Any) -> tuple[Worker, ActorRef[Worker]]:
    node = fleet.nodes[0] if fleet.nodes else (await fleet.mesh(1, **changes))[0]
    worker = Worker()
    return worker, await node.start_actor(worker)


async def times_out(call: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(CallTimeout):
        await call


# Giving up.


@simulated
async def test_a_time_out_cancels_the_handler_and_the_actor_goes_on(fleet: Fleet) -> None:
    worker, ref = await started(fleet)
    await times_out(ref.within(1).call(Worker.work, "a"))
    assert await ref.call(Worker.work, "b", 1.0) == "b"
    assert worker.log == ["+a", "!a", "+b", "-b"]


@simulated
async def test_a_caller_that_is_cancelled_cancels_the_handler(fleet: Fleet) -> None:
    worker, ref = await started(fleet)
    for method in (Worker.work, Worker.beside):
        asking = asyncio.ensure_future(ref.call(method, "a"))
        await asyncio.sleep(1)
        asking.cancel()
        await asyncio.sleep(0.001)
        assert worker.log == ["+a", "!a"]
        worker.log.clear()
    assert await ref.call(Worker.cancelling) == 0


@simulated
async def test_what_waits_and_is_given_up_never_runs(fleet: Fleet) -> None:
    worker, ref = await started(fleet)
    first = asyncio.ensure_future(ref.call(Worker.work, "a", 2.0))
    await asyncio.sleep(0)
    await times_out(ref.within(1).call(Worker.work, "b"))
    assert await first == "a"
    assert worker.log == ["+a", "-a"]


@simulated
async def test_what_a_handler_returns_after_all_is_dropped(fleet: Fleet) -> None:
    worker, ref = await started(fleet)
    await times_out(ref.within(1).call(Worker.swallow))
    assert await ref.call(Worker.cancelling) == 0
    assert worker.log == ["swallowed"]
    await times_out(ref.within(1).call(Worker.convert))
    await times_out(ref.within(1).call(Worker.clean_up, 1.0))
    assert await ref.call(Worker.work, "b", 1.0) == "b"
    assert worker.log == ["swallowed", "clean", "+b", "-b"]
    await times_out(ref.within(1).call(Worker.exit_when_cancelled))
    await asyncio.sleep(0.1)
    assert fleet.nodes[0].processes() == []


@simulated
async def test_time_outs_and_task_groups_of_later_handlers_work_as_ever(fleet: Fleet) -> None:
    _, ref = await started(fleet)
    for _ in range(3):
        await times_out(ref.within(1).call(Worker.limited, 5))
        assert await ref.call(Worker.limited, 1) == "own time-out"
        await times_out(ref.within(1).call(Worker.grouped))
        assert await ref.call(Worker.grouped) == "True True"


@simulated
async def test_a_task_group_that_has_failed_makes_no_later_time_out_end_the_actor(
    fleet: Fleet,
) -> None:
    worker, ref = await started(fleet)
    with pytest.raises(RemoteError, match="TaskGroup"):
        await ref.call(Worker.group_that_fails, is_caught=False)
    with pytest.raises(RemoteError, match="CancelledError"):
        await ref.call(Worker.awaits_what_is_cancelled)
    assert await ref.call(Worker.cancelling) == 0
    await ref.call(Worker.group_that_fails, is_caught=True)
    await times_out(ref.within(1).call(Worker.work, "a"))
    await times_out(ref.within(1).call(Worker.group_that_fails, is_caught=True, then_s=10.0))
    assert await ref.call(Worker.work, "b", 1.0) == "b"
    assert worker.log == ["+a", "!a", "+b", "-b"]


@simulated
@pytest.mark.parametrize("other_first", [True, False])
async def test_a_time_out_at_the_moment_at_which_other_code_cancels_the_task_ends_the_actor(
    fleet: Fleet, other_first: bool
) -> None:
    worker, ref = await started(fleet)
    await ref.call(Worker.group_that_fails, is_caught=True)
    asking = asyncio.ensure_future(ref.call(Worker.work, "a"))
    await asyncio.sleep(0.5)
    (task,) = (each for each in asyncio.all_tasks() if "Worker" in each.get_name())
    if not other_first:
        asking.cancel()
        await asyncio.sleep(0)
    task.cancel()
    asking.cancel()
    await asyncio.sleep(0.1)
    assert task.done()
    assert worker.log == ["+a", "!a"]


@simulated
async def test_an_end_and_a_caller_that_gives_up_at_the_same_time_end_it(fleet: Fleet) -> None:
    for first in ("exit", "cancel"):
        worker, ref = await started(fleet)
        node = fleet.nodes[0]
        asking = asyncio.ensure_future(ref.call(Worker.work, "a"))
        await asyncio.sleep(1)
        if first == "exit":
            node.exit(ref.pid, "enough")
            asking.cancel()
        else:
            asking.cancel()
            await asyncio.sleep(0)
            node.exit(ref.pid, "enough")
        await asyncio.wait([asking])
        await asyncio.wait_for(node.join(ref.pid), 1)
        assert worker.log == ["+a", "!a"]


@simulated
async def test_an_end_while_the_cancelled_handler_cleans_up(fleet: Fleet) -> None:
    worker, ref = await started(fleet)
    await times_out(ref.within(1).call(Worker.clean_up, 5.0))
    await asyncio.sleep(0.1)
    fleet.nodes[0].exit(ref.pid)
    await asyncio.wait_for(fleet.nodes[0].join(ref.pid), 1)
    assert worker.log == []


@simulated
async def test_a_handler_that_ends_its_own_call_is_cancelled_where_it_waits_next(fleet: Fleet) -> None:
    worker, _ = await started(fleet)
    asking: list[asyncio.Future[str]] = []

    class Own(Actor):
        @handler
        async def cancel_caller(self, wait: bool) -> str:
            asking[-1].cancel()
            call = SERVING.get()
            assert call is not None
            call.abandon()  # What a connection does that is cut from within a handler.
            if wait:
                await asyncio.sleep(1)
                worker.log.append("not cancelled")
            return "done"

        @handler
        async def alive(self) -> bool:
            task = asyncio.current_task()
            assert task is not None
            await asyncio.sleep(0)
            return not task.cancelling()

    own = await fleet.nodes[0].start_actor(Own)
    for wait in (True, False):
        asking.append(asyncio.ensure_future(own.call(Own.cancel_caller, wait)))
        await asyncio.wait(asking[-1:])
        assert await own.call(Own.alive)
    assert worker.log == []


def test_a_failure_that_nobody_hears_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        _, ref = await started(fleet)
        await times_out(ref.within(1).call(Worker.convert))
        await asyncio.sleep(0.1)

    with caplog.at_level(logging.INFO):
        story()
    assert "Worker.convert failed after its caller had gone" in caplog.text
    assert "KeyError: 'converted'" in caplog.text


# Deadlines.


@simulated
async def test_what_a_handler_asks_has_no_longer_than_its_caller_waits(fleet: Fleet) -> None:
    one, first = await started(fleet)
    two, second = await started(fleet)
    started_at = SimLoop.current().time()
    await times_out(first.within(2).call(Worker.ask, second, 10.0))
    await asyncio.sleep(0.001)
    assert two.log == ["+nested", "!nested"]
    assert SimLoop.current().time() - started_at == pytest.approx(2.001)
    assert await first.within(60).call(Worker.ask, second, 1.0) == "nested"
    two.log.clear()
    asking = asyncio.ensure_future(first.within(60).call(Worker.ask, second, 10.0))
    await asyncio.sleep(4.999)  # The default of the nested call is less than what is left.
    assert two.log == ["+nested"]
    await asyncio.sleep(0.02)
    assert two.log == ["+nested", "!nested"]
    await asyncio.wait([asking])
    assert "CallTimeout" in str(asking.exception())
    assert one.log == []


@simulated
async def test_the_shorter_of_both_counts(fleet: Fleet) -> None:
    _, ref = await started(fleet)
    assert await ref.within(3).call(Worker.ambient) == pytest.approx(3.0)
    assert await ref.within(3_000).call(Worker.ambient) == 100.0
    assert within_deadline(100.0) == 100.0


@simulated
async def test_once_answered_it_counts_no_more(fleet: Fleet) -> None:
    one, first = await started(fleet)
    two, second = await started(fleet)
    await first.within(1).call(Worker.leave_behind, second, 0.5)
    await asyncio.sleep(5)
    assert one.log == ["later"]
    assert two.log == ["+later", "-later"]


@simulated
async def test_with_nothing_left_nothing_is_sent(fleet: Fleet) -> None:
    two, second = await started(fleet)
    said: list[Any] = []

    class Blocking(Actor):
        @handler
        async def late(self) -> None:
            call = SERVING.get()
            assert call is not None
            call.deadline = SimLoop.current().time()  # As after a long stretch without a turn of the loop.
            for ask in (
                lambda: second.call(Worker.work, "nested"),
                lambda: second.within(60).call(Worker.work, "nested"),
                lambda: self.node.call(second.pid, 1),
                lambda: self.node.multicall([second.pid], 1),
                lambda: self.node.whereis("x", at="fleetlm@10.0.0.9"),
                lambda: self.node.start_actor(Worker),
            ):
                try:
                    await ask()
                except Expired as error:
                    said.append(error)

    ref = await fleet.nodes[0].start_actor(Blocking)
    await ref.call(Blocking.late)
    assert len(said) == 6
    assert isinstance(said[0], NotDelivered)
    assert "has passed, so nothing was sent" in str(said[0])
    assert two.log == []


@simulated
async def test_a_spawned_process_and_a_cast_have_no_deadline(fleet: Fleet) -> None:
    await started(fleet)
    seen: list[float] = []

    class Parent(Actor):
        @handler
        async def spawn(self) -> None:
            pid = self.node.spawn(child)
            await self.node.join(pid)

        @handler
        async def note(self) -> None:
            seen.append(within_deadline(100.0))

        async def handle_info(self, message: Any) -> None:
            seen.append(within_deadline(100.0))
            if message != "raw":
                raise ValueError

        async def terminate(self, reason: Any) -> None:
            seen.append(within_deadline(100.0))
            raise ProcessExit

    async def child(process: Any) -> None:
        seen.append(within_deadline(100.0))

    node = fleet.nodes[0]
    ref = await node.start_actor(Parent)
    await ref.call(Parent.spawn)
    await ref.cast(Parent.note)
    await ref.send("raw")
    logging.disable(logging.CRITICAL)
    with pytest.raises(ProcessDown):
        await node.call(ref.pid, "call", timeout=7)
    assert seen == [100.0, 100.0, 100.0, pytest.approx(7.0), 100.0]


@simulated
async def test_concurrent_handlers_have_deadlines_of_their_own(fleet: Fleet) -> None:
    await started(fleet)
    seen: dict[float, float] = {}

    class Beside(Actor):
        @handler(concurrent=True)
        async def note(self, key: float) -> None:
            await asyncio.sleep(1)
            seen[key] = within_deadline(100.0)

    ref = await fleet.nodes[0].start_actor(Beside)
    await asyncio.gather(*(ref.within(key).call(Beside.note, key) for key in (2.0, 3.0)))
    await ref.cast(Beside.note, 0.0)
    await asyncio.sleep(2)
    assert seen == {2.0: pytest.approx(1.0), 3.0: pytest.approx(2.0), 0.0: 100.0}


@simulated
async def test_an_actor_that_waits_holds_no_request(fleet: Fleet) -> None:
    _, ref = await started(fleet)
    contexts: list[Any] = []

    class Holder(Actor):
        @handler
        async def take(self, value: bytes) -> None:
            contexts.append(SERVING.get())

    ref2 = await fleet.nodes[0].start_actor(Holder)
    await ref2.call(Holder.take, b"large")
    (call,) = contexts
    assert call.message is None
    asking = asyncio.ensure_future(ref.call(Worker.work, "a", 1.0))
    await asking
    assert SERVING.get() is None


@simulated
async def test_a_death_while_serving_is_told_as_such(fleet: Fleet) -> None:
    _, ref = await started(fleet)
    asking = asyncio.ensure_future(ref.call(Worker.beside, "a"))
    other = asyncio.ensure_future(ref.call(Worker.work, "b"))
    await asyncio.sleep(1)
    fleet.nodes[0].exit(ref.pid, "enough")
    for each in (asking, other):
        with pytest.raises(ProcessDown, match="enough"):
            await each
