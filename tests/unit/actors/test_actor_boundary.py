"""What handlers and process functions raise is the end of a call or a process, never of the node."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm import (
    Actor,
    ActorRef,
    CallTimeout,
    Child,
    Crash,
    InitFailed,
    Node,
    Process,
    ProcessDown,
    ProcessExit,
    RemoteError,
    Supervisor,
    handler,
)
from fleetlm.testing.loop import LeftOver, run
from tests.sim.fleet import Fleet, simulated
from tests.unit.processes.test_owned import reason_of


class Odd(BaseException):
    """A program's own exception that is no `Exception`."""


def made(kind: str) -> BaseException:
    """Make an exception, by the name of its kind."""
    errors: dict[str, BaseException] = {
        "SystemExit": SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "GeneratorExit": GeneratorExit(),
        "Odd": Odd("odd"),
        "BaseExceptionGroup": BaseExceptionGroup("g", [SystemExit(3), ProcessExit("normal")]),
        "ExceptionGroup": ExceptionGroup("g", [ValueError("v"), ProcessExit("normal")]),
        "ValueError": ValueError("boom"),
    }
    return errors[kind]


KINDS = ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "Odd", "BaseExceptionGroup", "ExceptionGroup")


class Raising(Actor):
    def __init__(self, at: str = "", kind: str = "") -> None:
        self.at = at
        self.kind = kind
        if at == "constructor":
            raise made(kind)

    async def init(self) -> None:
        if self.at == "init":
            raise made(self.kind)

    async def terminate(self, reason: Any) -> None:
        if self.at == "terminate":
            raise made(self.kind)

    async def handle_info(self, message: Any) -> None:
        raise made(message)

    @handler
    async def fail(self, kind: str) -> None:
        raise made(kind)

    @handler
    async def fail_late(self, kind: str) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise made(kind) from None

    @handler(concurrent=True)
    async def fail_beside(self, kind: str) -> None:
        raise made(kind)

    @handler
    async def items(self, kind: str) -> AsyncIterator[int]:
        yield 1
        raise made(kind)

    @handler
    async def leave_in_a_group(self, reason: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leave(reason))

    async def _leave(self, reason: str) -> None:
        raise ProcessExit(reason)

    @handler
    async def exit_by_argparse(self) -> None:
        sys.exit(2)

    @handler
    async def ping(self) -> str:
        return "pong"


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_call_raises_is_told_to_its_caller_and_the_actor_goes_on(kind: str) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        one, two = await fleet.mesh(2)
        ref = await one.start_actor(Raising, name="raising")
        for asked in (ref, two.ref(Raising, "raising", at=one.name)):
            for method in (Raising.fail, Raising.fail_beside):
                with pytest.raises(RemoteError) as told:
                    await asked.call(method, kind)
                assert told.value.type_name == kind
            with pytest.raises(RemoteError) as told:
                async for _ in asked.stream(Raising.items, kind):
                    pass
            assert told.value.type_name == kind
            with pytest.raises(CallTimeout):
                await asked.within(1).call(Raising.fail_late, kind)
            assert await asked.call(Raising.ping) == "pong"

    story()


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_cast_or_a_message_raises_ends_the_actor_and_nothing_else(kind: str) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        other = await node.start_actor(Raising)

        async def send(ref: ActorRef[Raising], way: int) -> None:
            match way:
                case 0:
                    await ref.cast(Raising.fail, kind)
                case 1:
                    await ref.cast(Raising.fail_beside, kind)
                case _:
                    await node.send(ref.pid, kind)

        for way in range(3):
            ref = await node.start_actor(Raising)
            sending = asyncio.ensure_future(send(ref, way))
            reason = await reason_of(node, ref.pid)
            assert isinstance(reason, Crash)
            assert reason.type_name == kind
            await sending
        assert await other.call(Raising.ping) == "pong"

    story()


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_process_raises_is_its_reason(kind: str) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)

        async def fail(process: Process) -> None:
            await asyncio.sleep(1)
            raise made(kind)

        def fail_before(process: Process) -> Any:
            raise made(kind)

        node.factories.register("fail", fail)
        for pid in (
            node.spawn(fail),
            node.spawn(fail_before),
            await node.spawn_at(node.name, "fail"),
            node.spawn(Raising, "constructor", kind),
        ):
            reason = await reason_of(node, pid) if node.process_info(pid) else None
            assert reason is None or reason.type_name == kind
        for at in ("constructor", "init"):
            with pytest.raises(InitFailed, match=kind):
                await node.start_actor(Raising, at, kind)

    story()


@pytest.mark.parametrize("kind", KINDS)
def test_what_terminate_raises_changes_no_reason(kind: str) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        ref = await node.start_actor(Raising, "terminate", kind)
        node.exit(ref.pid, "enough")
        assert await reason_of(node, ref.pid) in {"enough", "noproc"}
        assert node.process_info(ref.pid) is None

    story()


@simulated
async def test_an_exit_in_a_task_group_is_an_exit_and_no_crash(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    for reason in ("normal", "left"):
        ref = await node.start_actor(Raising)
        with pytest.raises(ProcessDown, match=reason):
            await ref.call(Raising.leave_in_a_group, reason)
        ref = await node.start_actor(Raising)
        waiting = asyncio.ensure_future(reason_of(node, ref.pid))
        await asyncio.sleep(0)
        await ref.cast(Raising.leave_in_a_group, reason)
        assert await waiting == reason


@simulated
async def test_a_supervisor_restarts_no_child_that_left_in_a_task_group(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    starts: list[int] = []

    async def child(process: Process) -> None:
        starts.append(1)

        async def leave() -> None:
            raise ProcessExit("normal")

        await asyncio.sleep(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(leave())

    node.spawn(Supervisor([Child("child", child, restart="transient")]))
    await asyncio.sleep(10)
    assert starts == [1]


# Cancellations that fleetlm did not cause.


@pytest.mark.parametrize("how", ["the task", "what it awaits", "before its first line"])
def test_a_foreign_cancellation_is_a_crash_that_is_logged_and_restarted(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        tasks: list[asyncio.Future[Any]] = []
        seen: list[Any] = []

        async def child(process: Process) -> None:
            waits: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task if how == "the task" else waits)
            await waits

        pid = node.spawn(child, name="child")
        if how == "before its first line":
            task = node._local.task_of(pid)
            assert task is not None
            task.cancel()
        else:
            await asyncio.sleep(1)
            seen.append(tasks.pop().cancel())
        reason = await reason_of(node, pid) if node.process_info(pid) else None
        if reason is not None:
            assert reason.type_name == "CancelledError"
        node.spawn(Supervisor([Child("again", child, restart="transient")]))
        await asyncio.sleep(1)
        tasks[-1].cancel()
        await asyncio.sleep(3)
        assert len(tasks) == 2

    with caplog.at_level(logging.ERROR):
        story()
    assert "process child (" in caplog.text
    assert "crashed: CancelledError: " in caplog.text
    what = "what it awaited" if how == "what it awaits" else "its task was cancelled by code"
    assert what in caplog.text


class Cancelled(Actor):
    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []

    @handler
    async def wait(self) -> None:
        await self._wait()

    @handler(concurrent=True)
    async def wait_beside(self) -> None:
        await self._wait()

    async def _wait(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        await asyncio.sleep(100)

    @handler
    async def ping(self) -> str:
        return "pong"


@simulated
async def test_other_code_that_cancels_the_task_of_an_actor_crashes_it(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    actor = Cancelled()
    ref = await node.start_actor(actor)
    waiting = asyncio.ensure_future(reason_of(node, ref.pid))
    asking = asyncio.ensure_future(ref.within(60).call(Cancelled.wait))
    await asyncio.sleep(1)
    actor.tasks[0].cancel()
    with pytest.raises(ProcessDown, match="its task was cancelled by code that is not part of fleetlm"):
        await asking
    assert (await waiting).type_name == "CancelledError"


@simulated
async def test_other_code_that_cancels_a_concurrent_handler_fails_its_call(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    actor = Cancelled()
    ref = await node.start_actor(actor)
    asking = asyncio.ensure_future(ref.within(60).call(Cancelled.wait_beside))
    await asyncio.sleep(1)
    actor.tasks[0].cancel()
    with pytest.raises(RemoteError) as told:
        await asking
    assert told.value.type_name == "CancelledError"
    assert await ref.call(Cancelled.ping) == "pong"

    waiting = asyncio.ensure_future(reason_of(node, ref.pid))
    await ref.cast(Cancelled.wait_beside)
    await asyncio.sleep(1)
    actor.tasks[1].cancel()
    assert (await waiting).type_name == "CancelledError"


def test_the_end_of_the_loop_is_one_line_and_not_a_crash_of_each_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        fleet = Fleet()
        node = (await fleet.mesh(1))[0]
        for _ in range(20):
            node.spawn(wait_for_ever)
        await asyncio.sleep(1)

    async def wait_for_ever(process: Process) -> None:
        await process.receive()

    with caplog.at_level(logging.WARNING), pytest.raises(LeftOver):
        run(main())
    assert "crashed" not in caplog.text
    assert caplog.text.count("all 20 processes of this node were cancelled at once") == 1


# The operator.


def test_ctrl_c_in_the_middle_of_a_handler_ends_the_program_not_the_call() -> None:
    former = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told: list[BaseException] = []

    class Busy(Actor):
        @handler
        async def work(self) -> None:
            signal.raise_signal(signal.SIGINT)  # The operator, while Python code runs here.

    async def main() -> None:
        node: Node = (await Fleet().mesh(1))[0]
        ref = await node.start_actor(Busy)
        try:
            await ref.call(Busy.work)
        except RemoteError as error:
            told.append(error)

    try:
        with pytest.raises(KeyboardInterrupt):
            run(main())
    finally:
        signal.signal(signal.SIGINT, former)
    assert told == []


# Words on the actor's own node.


def test_the_node_of_a_handler_logs_each_kind_of_failure_once(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        (node,) = await fleet.mesh(1)
        for name in ("first", "second"):
            ref = await node.start_actor(Raising, name=name)
            for _ in range(3):
                for kind in ("ValueError", "SystemExit"):
                    with pytest.raises(RemoteError):
                        await ref.call(Raising.fail, kind)

    with caplog.at_level(logging.WARNING):
        story()
    warned = [record for record in caplog.records if "handler fail of first (Raising)" in record.message]
    assert len([record for record in caplog.records if "handler fail of" in record.message]) == 2
    assert [record.levelname for record in warned] == ["WARNING"] * 2
    assert "raised ValueError: its caller was told" in warned[0].message
    assert "raise made(kind)" in caplog.text

    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        story()
    assert len([record for record in caplog.records if "handler fail of" in record.message]) == 12
