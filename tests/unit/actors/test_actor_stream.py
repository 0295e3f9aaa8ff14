"""Handlers that yield, against a consumer that only takes notes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm import Actor, NoHandler, NotSerializable, Process, handler
from fleetlm.call import Call
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.failures import FailureKind
from fleetlm.wire.invocation import Invoke
from tests.sim.fleet import Fleet, simulated


class Consumer:
    """`Caller` of a stream: notes what comes."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def replied(self, ref: int, value: Any) -> None:
        self.got.append(("end", value))

    def failed(self, ref: int, kind: FailureKind, details: list[str]) -> None:
        self.got.append((kind, *details[:2]))

    is_behind = False

    async def caught_up(self) -> None: ...

    def packed_item(self, ref: int, value: Any, window: int) -> tuple[Any, int]:
        return value, 1

    async def item(self, ref: int, packed: Any, timeout_s: float) -> None:
        self.got.append(packed)

    def forget(self, ref: int) -> None:
        self.got.append("forgotten")


class StreamCall(Call):
    """A call for a stream, with credit for some items."""

    streaming = True  # type: ignore[assignment,misc,unused-ignore]

    def __init__(self, request: Any, consumer: Consumer, credit: int = 100, deadline: float = 60.0) -> None:
        super().__init__(request, consumer, 1, deadline, SimLoop.current().time)
        self.consumer = consumer
        self.credit = credit
        self.more = asyncio.Event()  # type: ignore[assignment]

    async def put(self, item: Any) -> bool:
        while self.credit <= 0 and self.open:
            self.more.clear()  # type: ignore[attr-defined]
            await self.more.wait()  # type: ignore[attr-defined]
        if not self.wanted:
            self.abandon()
            return False
        if item == "unsendable":
            raise NotSerializable("item", "made up")
        self.credit -= 1
        await self.consumer.item(1, item, 60.0)
        return True

    def consumer_gone(self) -> None:
        self.abandon()
        self.more.set()  # type: ignore[attr-defined]


class Model(Actor):
    def __init__(self) -> None:
        self.log: list[str] = []
        self.closed_by: asyncio.Task[Any] | None = None

    @handler
    async def count(self, upto: int, pause: float = 0.0) -> AsyncIterator[int]:
        try:
            for number in range(upto):
                yield number
                await asyncio.sleep(pause)
        except (asyncio.CancelledError, GeneratorExit) as error:
            self.log.append(type(error).__name__)
            raise
        finally:
            await asyncio.sleep(0)
            self.log.append("closed")
            self.closed_by = asyncio.current_task()

    @handler
    async def texts(self, *texts: str) -> AsyncIterator[str]:
        try:
            for text in texts:
                if text == "crash":
                    raise ValueError("no")
                yield text
        finally:
            self.log.append("closed")

    @handler(concurrent=True)
    async def beside(self, upto: int) -> AsyncIterator[int]:
        try:
            for number in range(upto):
                await asyncio.sleep(1)
                yield number
        finally:
            self.log.append("closed")

    @handler
    async def plain(self) -> str:
        return "plain"


async def started(fleet: Fleet) -> tuple[Model, Process]:
    (node,) = await fleet.mesh(1)
    model = Model()
    ref = await node.start_actor(model, name="model")
    process = node._local.process(ref.pid)
    assert process is not None
    return model, process  # type: ignore[return-value]


async def ask(process: Process, name: str, *args: Any, **options: Any) -> tuple[StreamCall, list[Any]]:
    """Put a request for a stream into the mailbox, as a mailbox would hand it over."""
    consumer = Consumer()
    call = StreamCall(Invoke(name, args, {}), consumer, **options)
    process._accept_call(call)
    process.mailbox.put(call)
    await asyncio.sleep(0.01)
    return call, consumer.got


@simulated
async def test_items_come_in_order_and_then_the_end(fleet: Fleet) -> None:
    model, process = await started(fleet)
    _, got = await ask(process, "count", 3)
    assert got == [0, 1, 2, ("end", None)]
    assert model.log == ["closed"]
    assert process.info().open_calls == 0


@simulated
async def test_the_generator_waits_for_its_consumer(fleet: Fleet) -> None:
    _, process = await started(fleet)
    call, got = await ask(process, "count", 5, credit=2)
    assert got == [0, 1]
    call.credit = 1
    call.more.set()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)
    assert got == [0, 1, 2]
    assert process.info().open_calls == 1


@simulated
async def test_an_exception_ends_the_stream_after_its_items(fleet: Fleet) -> None:
    model, process = await started(fleet)
    _, got = await ask(process, "texts", "a", "crash", "b")
    assert got == ["a", (FailureKind.RAISED, "ValueError", "no")]
    _, got = await ask(process, "texts", "a", "unsendable", "b")
    assert got[0] == "a"
    assert got[1][:2] == (FailureKind.RAISED, "NotSerializable")
    _, got = await ask(process, "count")
    assert got[0][:2] == (FailureKind.NO_HANDLER, "model")
    assert model.log == ["closed", "closed"]
    assert await fleet.nodes[0].ref(Model, "model").call(Model.plain) == "plain"


@simulated
async def test_a_consumer_that_goes_while_an_item_is_made_cancels_the_handler(fleet: Fleet) -> None:
    model, process = await started(fleet)
    call, got = await ask(process, "count", 3, 10.0)
    call.consumer_gone()
    await asyncio.sleep(0.01)
    assert got == [0, "forgotten"]
    assert model.log == ["CancelledError", "closed"]
    assert await fleet.nodes[0].ref(Model, "model").call(Model.plain) == "plain"


@simulated
async def test_a_consumer_that_goes_while_it_is_behind_closes_the_generator(fleet: Fleet) -> None:
    model, process = await started(fleet)
    call, got = await ask(process, "count", 3, credit=1)
    call.consumer_gone()
    await asyncio.sleep(0.01)
    assert got == [0, "forgotten"]
    assert model.log == ["GeneratorExit", "closed"]
    assert model.closed_by is process._task
    assert await fleet.nodes[0].ref(Model, "model").call(Model.plain) == "plain"


@simulated
async def test_a_deadline_that_passes_closes_the_generator(fleet: Fleet) -> None:
    model, process = await started(fleet)
    deadline = SimLoop.current().time() + 1.5
    _, got = await ask(process, "count", 5, 1.0, deadline=deadline)
    await asyncio.sleep(5)
    assert got == [0, 1, "forgotten"]
    assert model.log == ["GeneratorExit", "closed"]


@simulated
async def test_an_exit_signal_closes_the_generator(fleet: Fleet) -> None:
    model, process = await started(fleet)
    _, got = await ask(process, "count", 5, 10.0)
    fleet.nodes[0].exit(process.pid, "enough")
    await fleet.nodes[0].join(process.pid)
    assert model.log == ["CancelledError", "closed"]
    assert got[-1][0] == FailureKind.PROCESS_DOWN


@simulated
async def test_concurrent_streams_run_beside_each_other_and_plain_ones_do_not(fleet: Fleet) -> None:
    model, process = await started(fleet)
    one, two = [(await ask(process, "beside", 2))[1] for _ in range(2)]
    assert await fleet.nodes[0].ref(Model, "model").call(Model.plain) == "plain"
    await asyncio.sleep(2)
    assert one == two == [0, 1, ("end", None)]
    assert model.log == ["closed", "closed"]
    gone, got = await ask(process, "beside", 2)
    gone.consumer_gone()
    await asyncio.sleep(0.01)
    assert got == ["forgotten"]
    assert model.log == ["closed"] * 3
    _, serial = await ask(process, "count", 2, 1.0)
    _, later = await ask(process, "count", 1)
    assert (serial, later) == ([0], [])
    await asyncio.sleep(3)
    assert (serial[-1], later) == (("end", None), [0, ("end", None)])


@simulated
async def test_a_stream_and_a_call_are_told_apart(fleet: Fleet) -> None:
    _, process = await started(fleet)
    node = fleet.nodes[0]
    _, got = await ask(process, "plain")
    assert got[0][0] == FailureKind.NO_HANDLER
    assert "'plain' of Model returns one result: use call() or cast()" in got[0][2]
    with pytest.raises(NoHandler, match=r"'count' of Model yields: use stream\(\)"):
        await node.call("model", Invoke("count", (1,), {}))
    await node.send("model", Invoke("count", (1,), {}))
    assert await node.ref(Model, "model").call(Model.plain) == "plain"
