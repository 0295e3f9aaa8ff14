from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm.call import Call
from fleetlm.errors import AlreadyRegistered, InvalidName, NoProcess, ProcessDown, ProcessExit
from fleetlm.ids import Pid
from fleetlm.messaging.outbound import Outbound
from fleetlm.process import Process
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.wire.codec import Codec
from tests.support.session_fakes import HERE, context, processes_and_signals, turns, virtual, waits_of


class FakeNode:
    """As much of a node as processes and its sending side need."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(mailbox_limit=4)
        self.local, _ = processes_and_signals(self, context(self.settings))
        self.outbound = Outbound(
            HERE, 1, self.settings, Codec(), self.local.boxes, {}, None, waits_of(self.local)  # type: ignore[arg-type]
        )  # fmt: skip

    def name_of(self, pid: Pid) -> str | None:
        return self.local.table.name_of(pid.number)


async def wait(process: Process) -> None:
    await asyncio.sleep(1_000)


@virtual
async def test_a_process_runs_with_its_arguments_and_gets_what_is_put_into_its_mailbox() -> None:
    node = FakeNode()
    seen: list[Any] = []

    async def work(process: Process, *args: Any) -> None:
        seen.extend([args, process.name, process.pid, process.node, await process.receive()])

    pid = node.local.spawn(work, (1, 2), "worker")
    node.local.boxes["worker"].put("by name")
    await turns()
    assert seen == [(1, 2), "worker", pid, node, "by name"]
    assert pid == Pid(HERE, 1, 1)
    assert node.local.boxes == {}
    assert node.local.info() == []


@virtual
async def test_pids_are_never_given_twice() -> None:
    node = FakeNode()
    first = node.local.spawn(wait, (), None)
    process = node.local.process(first)
    assert process is not None
    process._end_with("shutdown")
    await turns()
    assert node.local.process(first) is None
    assert node.local.spawn(wait, (), None).number == 2
    await node.local.stop()


@virtual
async def test_a_taken_or_impossible_name_starts_nothing() -> None:
    node = FakeNode()
    pid = node.local.spawn(wait, (), "worker")
    with pytest.raises(AlreadyRegistered) as caught:
        node.local.spawn(wait, (), "worker")
    assert caught.value.owner == pid
    with pytest.raises(InvalidName):
        node.local.spawn(wait, (), "")
    assert [each.pid for each in node.local.info()] == [pid]
    await node.local.stop()


@virtual
async def test_names_come_and_go() -> None:
    node = FakeNode()
    pid = node.local.spawn(wait, (), None)
    node.local.register("a", pid)
    assert node.local.boxes["a"] is node.local.boxes[pid.number]
    with pytest.raises(AlreadyRegistered):
        node.local.register("b", pid)
    assert node.local.unregister("a")
    assert not node.local.unregister("a")
    assert "a" not in node.local.boxes
    node.local.register("b", pid)
    await node.local.stop()
    assert node.local.table.registered() == {}
    with pytest.raises(NoProcess):
        node.local.register("c", pid)
    assert node.local.boxes == {}


@virtual
async def test_a_pid_of_another_incarnation_is_nobody() -> None:
    node = FakeNode()
    pid = node.local.spawn(wait, (), None)
    assert node.local.process(Pid(HERE, 2, pid.number)) is None
    with pytest.raises(NoProcess):
        node.local.register("a", Pid(HERE, 2, pid.number))
    await node.local.stop()


def test_a_crash_is_logged_and_frees_the_name(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        node = FakeNode()

        async def crash(process: Process) -> None:
            raise ZeroDivisionError("by design")

        node.local.spawn(crash, (), "crasher")
        await turns()
        assert node.local.table.registered() == {}
        node.local.spawn(wait, (), "crasher")
        await node.local.stop()

    with caplog.at_level(logging.ERROR):
        run(main())
    assert "process crasher (" in caplog.text
    assert "ZeroDivisionError: by design" in caplog.text


def test_a_function_that_turns_out_to_return_no_awaitable_crashes_with_what_to_write(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async def each(process: Process) -> AsyncIterator[int]:
            yield 1

        def job(process: Process) -> object:
            return each(process)

        node = FakeNode()
        node.local.spawn(job, (), None)  # type: ignore[arg-type]
        await turns()
        assert node.local.info() == []

    run(scenario())
    assert (
        "job returned async_generator, which cannot be awaited; what a process runs is a coroutine"
        in caplog.text
    )


@virtual
async def test_a_class_is_made_inside_the_process() -> None:
    node = FakeNode()
    seen: list[Any] = []

    class Work:
        def __init__(self, *args: Any) -> None:
            seen.append((args, asyncio.current_task() is node.local.task_of(Pid(HERE, 1, 1))))

        async def __call__(self, process: Process) -> None:
            seen.append((process.runs, process.pid.number))

    node.local.spawn(Work, (1, 2), None)
    assert seen == []
    await turns()
    (made, inside), (runs, number) = seen
    assert (made, inside, number) == ((1, 2), True, 1)
    assert runs.endswith("Work")
    crashing = node.local.spawn(lambda *args: args, (), None)  # type: ignore[arg-type]
    logging.disable(logging.CRITICAL)
    await turns()
    assert node.local.process(crashing) is None


@virtual
async def test_a_process_that_closes_is_cut_short_by_a_kill_alone() -> None:
    node = FakeNode(Settings(terminate_s=5.0))
    log: list[str] = []

    async def close(process: Process, name: str, seconds: float) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            process._is_closing = True
            await asyncio.sleep(seconds)
            log.append(name)

    first, second = (node.local.spawn(close, (name, 3), None) for name in ("first", "second"))
    node.local.spawn(close, ("third", 4), None)
    await turns()
    for pid in (first, second):
        node.local.stop_process(pid.number, "enough")
    await asyncio.sleep(1)
    node.local.stop_process(first.number, "again")
    node.local.stop_process(second.number, "killed", at_once=True)
    gone = node.local.process(second)
    assert gone is None
    await node.local.stop()
    assert log == ["first", "third"]


@virtual
async def test_what_a_process_leaves_behind_is_answered() -> None:
    node = FakeNode()

    async def take_one(process: Process) -> None:
        await process.receive()
        await process.receive()

    node.local.spawn(take_one, (), "worker")
    await turns()
    calls = [asyncio.ensure_future(node.outbound.call("worker", number, 5.0)) for number in range(3)]
    await turns()
    one, two, three = await asyncio.gather(*calls, return_exceptions=True)
    assert (type(one), type(two), type(three)) == (ProcessDown, ProcessDown, NoProcess)
    assert one.reason == "normal"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("end", "reason"), [("cancel", "shutdown"), ("raise", "ValueError: no"), ("return", "normal")]
)
def test_the_reason_of_an_end_is_told(end: str, reason: str) -> None:
    async def main() -> None:
        node = FakeNode()

        async def work(process: Process) -> None:
            await process.receive()
            if end == "raise":
                raise ValueError("no")
            if end == "cancel":
                process._end_with("shutdown")
                await asyncio.sleep(1)

        node.local.spawn(work, (), "worker")
        with pytest.raises(ProcessDown) as caught:
            await node.outbound.call("worker", 1, 5.0)
        assert caught.value.reason == reason

    logging.disable(logging.CRITICAL)
    try:
        run(main())
    finally:
        logging.disable(logging.NOTSET)


@virtual
async def test_a_call_that_is_passed_on_belongs_to_the_process_that_took_it_last() -> None:
    node = FakeNode()

    async def front(process: Process) -> None:
        async for message in process.mailbox:
            await node.outbound.send("back", message)

    async def back(process: Process) -> None:
        async for message in process.mailbox:
            message.reply(message.message * 2)

    pids = [node.local.spawn(front, (), "front"), node.local.spawn(back, (), "back")]
    assert await node.outbound.call("front", 21, 5.0) == 42
    assert [node.local.process(pid)._open_calls for pid in pids] == [0, 0]  # type: ignore[union-attr]
    await node.local.stop()


@virtual
async def test_info_tells_what_waits_and_what_is_open() -> None:
    node = FakeNode()

    async def hold(process: Process) -> None:
        call = await process.receive()
        assert isinstance(call, Call)
        await asyncio.sleep(1)
        call.reply("done")

    pid = node.local.spawn(hold, (), "holder")
    asking = asyncio.ensure_future(node.outbound.call("holder", 1, 5.0))
    await turns()
    await node.outbound.send("holder", "more")
    (info,) = node.local.info()
    assert (info.pid, info.name, info.mailbox, info.taken, info.open_calls) == (pid, "holder", 1, 1, 1)
    assert info.runs.endswith("hold")
    (process,) = node.local.every()
    calls = [*node.local.unanswered(process)]
    assert [call.message for call in calls] == [1], "a message without a caller is not one"
    assert await asking == "done"
    assert [call.open for call in calls] == [False]
    await turns()
    assert node.local.every() == []


@virtual
async def test_stopping_waits_for_clean_up() -> None:
    node = FakeNode()
    cleaned: list[str] = []

    async def tidy(process: Process) -> None:
        try:
            await process.receive()
        finally:
            await asyncio.sleep(0.5)
            cleaned.append("done")

    node.local.spawn(tidy, (), None)
    await turns()
    await node.local.stop()
    assert cleaned == ["done"]


def test_a_process_that_will_not_end_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        node = FakeNode()
        ended = asyncio.Event()

        async def stubborn(process: Process) -> None:
            while not ended.is_set():
                try:
                    await ended.wait()
                except asyncio.CancelledError:
                    continue

        node.local.spawn(stubborn, (), None)
        await turns()
        started = SimLoop.current().time()
        await node.local.stop()
        assert SimLoop.current().time() - started == 1.0
        ended.set()
        await turns()

    run(main())
    assert "ignore their cancellation" in caplog.text


@virtual
async def test_processes_are_ended_in_the_order_in_which_they_were_spawned() -> None:
    node = FakeNode()
    ended: list[int] = []

    async def note(process: Process, number: int) -> None:
        try:
            await process.receive()
        finally:
            ended.append(number)

    for number in range(50):
        node.local.spawn(note, (number,), None)
    await turns()
    await node.local.stop()
    assert ended == list(range(50))


class Broken(Exception):
    """An exception of which nobody can ask what it is."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            raise RuntimeError("no class")
        return super().__getattribute__(name)


def test_a_process_whose_exception_cannot_be_looked_at_ends_nevertheless(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(process: Process) -> None:
        raise Broken

    async def scenario() -> None:
        node = FakeNode()
        node.local.spawn(work, (), "worker")
        await turns()
        assert node.local.info() == []

    run(scenario())
    assert "process worker (" in caplog.text
    assert "crashed: its exception cannot be looked at: that raises RuntimeError" in caplog.text


@virtual
async def test_of_many_processes_that_end_in_one_turn_some_are_removed_in_the_next_ones() -> None:
    node = FakeNode()
    local = node.local
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    async def brief(process: Process) -> None:
        await process.receive()

    pids = [local.spawn(brief, (), None) for _ in range(50)]
    await turns()
    local._time = clock
    tasks = [local.task_of(pid) for pid in pids]
    for pid in pids:
        local.boxes[pid.number].put("end")
    left = []
    for _ in range(40):
        await asyncio.sleep(0)
        left.append(len(local.info()))
    assert left[-1] == 0
    gone = [before - after for before, after in itertools.pairwise([50, *left])]
    assert max(gone) < 10
    assert None not in tasks


@virtual
async def test_a_process_that_has_ended_and_is_not_removed_yet_keeps_its_reason() -> None:
    node = FakeNode()
    local = node.local
    reasons: list[Any] = []
    local._on_exited = lambda _process, reason: reasons.append(reason)
    local._time = iter(range(1_000)).__next__  # Each look at the clock finds the turn's time used up.

    async def brief(process: Process) -> None:
        raise ProcessExit(await process.receive())

    pids = [local.spawn(brief, (), None) for _ in range(3)]
    await turns()
    tasks = [local.task_of(pid) for pid in pids]
    for pid in pids:
        local.boxes[pid.number].put(f"own {pid.number}")
    while not all(task is not None and task.done() for task in tasks):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(local.info()) == 3
    local.stop_process(pids[2].number, "shutdown")
    assert reasons == ["own 3"], "it is removed before the others, which wait for their turn"
    assert tasks[1] is not None
    local.settle(tasks[1])
    await turns()
    assert reasons == ["own 3", "own 2", "own 1"]
    assert local.info() == []


@virtual
async def test_a_process_that_is_told_to_end_in_a_later_turn_takes_no_message_before() -> None:
    node = FakeNode()
    local = node.local
    taken: list[Any] = []

    async def take(process: Process) -> None:
        taken.append(await process.receive())

    pids = [local.spawn(take, (), None) for _ in range(200)]
    await turns()
    for pid in pids:
        local.stop_process(pid.number, "shutdown")
        local.boxes[pid.number].put("too late")
    assert {info.state for info in local.info()} == {"ending"}
    local.stop_process(pids[-1].number, "killed", at_once=True)
    for _ in range(10):
        await asyncio.sleep(0)
    assert local.info() == []
    assert taken == []
    assert local.task_of(pids[-1]) is None


def test_a_logging_handler_that_raises_keeps_no_crashed_process() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the disk is full")

    async def crash(process: Process) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        node = FakeNode()
        node.local.spawn(crash, (), "crasher")
        await turns()
        assert node.local.count == 0
        assert node.local.table.registered() == {}

    logger, broken = logging.getLogger("fleetlm"), Broken()
    logger.addHandler(broken)
    try:
        asyncio.run(main())
    finally:
        logger.removeHandler(broken)


@virtual
async def test_a_join_from_another_thread_is_refused() -> None:
    node = FakeNode()
    raised: list[BaseException] = []

    def join() -> None:
        try:
            node.local.join(Pid(HERE, 1, 1), 1.0).send(None)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=join)
    thread.start()
    thread.join()
    assert "Node.join was called from the thread" in str(raised[0])
