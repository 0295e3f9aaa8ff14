"""Timers and tasks of a process: what comes when, and that nothing outlives its process."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

import pytest

from fleetlm import Actor, Crash, Down, Node, Pid, Process, ProcessExit, Timer, handler
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import Fleet, simulated


def now() -> float:
    return round(SimLoop.current().time(), 6)


async def held(node: Node, function: Callable[..., Any] | None = None, name: str = "held") -> Process:
    """Start a process that only takes messages when it is told to, and return it."""

    async def wait(process: Process) -> None:
        await asyncio.sleep(1_000_000)

    pid = node.spawn(function or wait, name=name)
    await asyncio.sleep(0)
    process = node._local.process(pid)
    assert isinstance(process, Process)
    return process


async def reason_of(node: Node, pid: Pid) -> Any:
    """Wait until a process ends, and return why."""
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def watch(process: Process) -> None:
        process.monitor(pid)
        message = await process.receive()
        assert isinstance(message, Down)
        ended.set_result(message.reason)

    node.spawn(watch)
    return await ended


# Timers.


@simulated
async def test_send_after_puts_one_message_into_the_own_mailbox(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    start = now()
    timer = process.send_after(2.5, ("tick", object))
    process.mailbox.put("before")
    assert timer.active
    assert await process.receive() == "before"
    assert await process.receive() == ("tick", object)
    assert now() == pytest.approx(start + 2.5)
    assert not timer.active
    assert not timer.cancel()


@simulated
async def test_a_cancelled_timer_sends_nothing(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    once, often = process.send_after(1, "once"), process.send_every(1, "often")
    await asyncio.sleep(0.5)
    assert once.cancel()
    assert often.cancel()
    assert not often.cancel()
    with pytest.raises(TimeoutError):
        await process.receive(10)


@simulated
async def test_send_every_does_not_drift_when_messages_are_taken_late(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    start = now()
    process.send_every(1.0, "tick")
    times = []
    for _ in range(5):
        await process.receive()
        times.append(now() - start)
        await asyncio.sleep(0.3)
    assert times == pytest.approx([1, 2, 3, 4, 5])


@simulated
async def test_a_slow_process_gets_fewer_ticks_and_no_backlog(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    start = now()
    process.send_every(1.0, "tick")
    await asyncio.sleep(10.5)
    assert len(process.mailbox) == 1
    await process.receive()
    await process.receive()
    assert now() == pytest.approx(start + 11)


@simulated
async def test_a_tick_waits_behind_what_came_before_it(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    process.send_every(1.0, "tick")
    for number in range(3):
        process.mailbox.put(number)
    await asyncio.sleep(1.5)
    process.mailbox.put("last")
    assert [await process.receive() for _ in range(3)] == [0, 1, 2]
    await asyncio.sleep(5)  # The tick is still there, so no other one came.
    assert [await process.receive() for _ in range(2)] == ["tick", "last"]
    with pytest.raises(TimeoutError):
        await process.receive(0.1)


@simulated
async def test_times_that_passed_while_the_loop_was_blocked_are_left_out(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    start = now()
    process.send_every(1.0, "tick")
    fleet.loop._now_s += 3.5  # As a blocking call does.
    await asyncio.sleep(0)
    assert await process.receive() == "tick"
    await process.receive()
    assert now() == pytest.approx(start + 4)


@simulated
async def test_timers_end_with_their_process(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    timers = [process.send_every(1, "x"), process.send_after(1, "x")]
    node.exit(process.pid, "kill")
    assert not any(timer.active for timer in timers)
    with pytest.raises(RuntimeError, match="has ended, so it takes no timer"):
        process.send_after(1, "x")


@simulated
async def test_timers_are_bounded_and_their_times_are_checked(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1, max_timers=2)
    process = await held(node)
    timers: list[Timer] = [process.send_after(100, "x") for _ in range(2)]
    for more in (process.send_after, process.send_every):
        with pytest.raises(RuntimeError, match=r"held has 2 timers already \(Settings.max_timers\)"):
            more(1, "x")
    timers[0].cancel()
    process.send_every(1, "x")
    for bad in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="0 or more"):
            process.send_after(bad, "x")
    for bad in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            process.send_every(bad, "x")


class Clock(Actor):
    """Counts its own ticks."""

    def __init__(self) -> None:
        self.ticks: list[Any] = []

    async def init(self) -> None:
        self.send_every(1.0, "info")
        self.cast_every(2.0, Clock.tick, "cast", twice=True)
        self.cast_after(5.0, Clock.tick, "once")

    async def handle_info(self, message: Any) -> None:
        self.ticks.append(message)

    @handler
    async def tick(self, text: str, *, twice: bool = False) -> None:
        self.ticks.extend([text] * (1 + twice))

    @handler
    async def items(self) -> Any:
        yield 1

    async def plain(self) -> None: ...


@simulated
async def test_an_actor_gets_ticks_as_messages_and_as_casts_to_its_handlers(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    clock = Clock()
    ref = await node.start_actor(clock)
    await asyncio.sleep(5.5)
    assert sorted(clock.ticks) == sorted(["info"] * 5 + ["cast"] * 4 + ["once"])
    with pytest.raises(TypeError, match="put @handler above it"):
        clock.cast_after(1, Clock.plain)
    with pytest.raises(TypeError, match="yields"):
        clock.cast_after(1, Clock.items)
    node.exit(ref.pid)
    await node.join(ref.pid)
    clock.ticks.clear()
    await asyncio.sleep(10)
    assert clock.ticks == []


# Tasks.


@pytest.mark.parametrize("how", ["returns", "raises", "shutdown", "kill", "node stops"])
def test_tasks_end_with_their_process_however_it_ends(how: str) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        log: list[str] = []
        go = asyncio.Event()

        async def job() -> None:
            try:
                await asyncio.sleep(1_000)
            finally:
                await asyncio.sleep(1)
                log.append("cleaned up")

        async def work(process: Process) -> None:
            process.create_task(job())
            try:
                await go.wait()
                if how == "raises":
                    raise ValueError
            finally:
                log.append("ended")

        process = await held(node, work)
        await asyncio.sleep(0.1)
        if how == "node stops":
            await node.stop()
        elif how in {"shutdown", "kill"}:
            node.exit(process.pid, how)
        go.set()
        await node.join(process.pid)
        await asyncio.sleep(0 if how != "kill" else 2)  # A kill waits for nothing.
        assert log == ["ended", "cleaned up"]
        assert process._owned is not None
        assert not process._owned.tasks

    story()


def test_a_task_that_raises_ends_its_process_with_that_reason(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        for error, reason in (
            (ValueError("no"), "ValueError"),
            (SystemExit(3), "SystemExit"),
            (KeyboardInterrupt(), "KeyboardInterrupt"),
            (ProcessExit("left"), "left"),
            (ExceptionGroup("g", [ProcessExit("left")]), "left"),
        ):

            async def job(error: BaseException = error) -> None:
                await asyncio.sleep(1)
                raise error

            async def work(process: Process, job: Any = job) -> None:
                await process.create_task(job(), name="the job")

            ended = await reason_of(node, node.spawn(work))
            assert (ended.type_name if isinstance(ended, Crash) else ended) == reason

    with caplog.at_level(logging.ERROR):
        story()
    assert caplog.text.count("crashed: the job of") == 3
    assert "ValueError: no" in caplog.text
    assert "SystemExit: 3" in caplog.text


@simulated
async def test_a_task_that_is_cancelled_ends_alone_and_one_whose_work_is_cancelled_is_a_crash(
    fleet: Fleet,
) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    task = process.create_task(asyncio.sleep(10))
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.sleep(1)
    assert node.process_info(process.pid) is not None

    other: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def job() -> None:
        await other

    process.create_task(job())
    await asyncio.sleep(1)
    other.cancel()
    ended = await reason_of(node, process.pid)
    assert (ended.type_name, ended.text) == ("CancelledError", "what it awaited was cancelled")


@simulated
async def test_a_task_has_a_name_and_its_result_can_be_awaited(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    task = process.create_task(asyncio.sleep(1, "slept"), name="nap")
    assert task.get_name() == f"nap of {process.pid.number}"
    assert await task == "slept"


@simulated
async def test_a_process_that_ends_starts_no_task(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    process = await held(node)
    node.exit(process.pid, "kill")
    coroutine = asyncio.sleep(1)
    with pytest.raises(RuntimeError, match="is ending, so it starts no task"):
        process.create_task(coroutine)
    assert (
        inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    )  # It was closed: nothing warns that it was never awaited.


def test_a_task_that_ignores_its_end_is_left_behind_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1, terminate_s=2.0)

        async def deaf() -> None:
            for _ in range(60):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)

        process = await held(node)
        process.create_task(deaf(), name="deaf")
        await asyncio.sleep(0.1)
        start = now()
        node.exit(process.pid)
        await node.join(process.pid)
        assert now() - start == pytest.approx(2)
        await asyncio.sleep(61)

    with caplog.at_level(logging.WARNING):
        story()
    assert "1 task(s) of held ignore their cancellation and are left behind: deaf of" in caplog.text


@simulated
async def test_tasks_of_an_actor_end_before_terminate(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    log: list[str] = []

    class Poller(Actor):
        async def init(self) -> None:
            self.create_task(self.poll())

        async def poll(self) -> None:
            try:
                await asyncio.sleep(1_000)
            finally:
                await asyncio.sleep(1)
                log.append("poll ended")

        async def terminate(self, reason: Any) -> None:
            log.append(f"terminate {reason}")

        @handler
        async def leave(self) -> None:
            self.stop()

    ref = await node.start_actor(Poller)
    await ref.cast(Poller.leave)
    await node.join(ref.pid)
    assert log == ["poll ended", "terminate normal"]
