"""Streams between simulated nodes and on one node; both behave alike."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from fleetlm import (
    Call,
    CallTimeout,
    Node,
    NodeLost,
    NoProcess,
    NotDelivered,
    Pid,
    Process,
    ProcessDown,
    ProcessExit,
    RemoteError,
)
from fleetlm.testing import SimCluster, SimLoop, run

WINDOW = 64


class Model:
    """A process function that streams what a call asks for, and records its progress."""

    def __init__(self) -> None:
        self.sent = 0
        self.ends: list[str] = []

    async def __call__(self, process: Process) -> None:
        async for message in process.mailbox:
            assert isinstance(message, Call)
            try:
                await self._serve(message)
            except ValueError as error:
                message.fail(error)

    async def _serve(self, call: Call) -> None:
        for number in range(call.message["items"]):
            if number == call.message.get("raise_at"):
                raise ValueError("no more")
            if number == call.message.get("exit_at"):
                raise ProcessExit("tired")
            if "pause_s" in call.message:
                await asyncio.sleep(call.message["pause_s"])
            if not await call.put(number):
                self.ends.append("unwanted")
                return
            self.sent += 1
        call.reply()
        self.ends.append("done")


class Rig:
    def __init__(self, cluster: SimCluster, consumer: Node, producer: Node) -> None:
        self.cluster, self.consumer, self.producer = cluster, consumer, producer
        self.model = Model()
        self.pid: Pid = producer.spawn(self.model, name="model")

    def stream(self, timeout: float | None = None, **request: Any) -> Any:
        return self.consumer.stream(("model", self.producer.name), request, timeout)

    async def collect(self, timeout: float | None = None, **request: Any) -> list[int]:
        return [item async for item in self.stream(timeout, **request)]


def scenario(test: Any, *, remote: bool) -> None:
    async def main() -> None:
        async with SimCluster(seed=3) as cluster:
            nodes = await cluster.start(2 if remote else 1)
            await cluster.mesh()
            await test(Rig(cluster, nodes[0], nodes[-1]))
            for node in cluster.nodes.values():
                assert not node._outbound.local_calls
                for link in node._driver.sessions.values():
                    assert not link.calls

    run(main())


where = pytest.mark.parametrize("remote", [False, True])


@where
def test_all_items_come_in_order(remote: bool) -> None:
    async def test(rig: Rig) -> None:
        assert await rig.collect(items=1_000) == list(range(1_000))
        assert await rig.collect(items=0) == []
        assert rig.model.ends == ["done", "done"]

    scenario(test, remote=remote)


@where
def test_a_slow_consumer_makes_the_producer_wait(remote: bool) -> None:
    async def test(rig: Rig) -> None:
        stream = rig.stream(items=10_000)
        for number in range(100):
            assert await anext(stream) == number
            await asyncio.sleep(1)
            assert rig.model.sent <= number + 1 + WINDOW
        await stream.aclose()
        await asyncio.sleep(1)
        assert rig.model.ends == ["unwanted"]

    scenario(test, remote=remote)


@where
def test_leaving_the_loop_cancels_the_producer(remote: bool) -> None:
    async def test(rig: Rig) -> None:
        async for number in rig.stream(items=10_000, pause_s=0.1):
            if number == 5:
                break
        await asyncio.sleep(1)
        assert rig.model.ends == ["unwanted"]
        async with aclosing(rig.stream(items=10_000)) as stream:
            await anext(stream)
        await asyncio.sleep(1)
        assert rig.model.ends == ["unwanted"] * 2

    scenario(test, remote=remote)


@where
def test_a_consumer_that_is_killed_cancels_the_producer(remote: bool) -> None:
    async def test(rig: Rig) -> None:
        async def consume(process: Process) -> None:
            await rig.collect(items=10_000, pause_s=0.1)

        pid = rig.consumer.spawn(consume)
        await asyncio.sleep(1)
        rig.consumer.exit(pid, "kill")
        await asyncio.sleep(1)
        assert rig.model.ends == ["unwanted"]

    scenario(test, remote=remote)


@where
def test_every_end_has_its_type(remote: bool) -> None:
    async def test(rig: Rig) -> None:
        stream = rig.stream(items=9, raise_at=3)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(RemoteError, match="ValueError: no more"):
            await anext(stream)
        with pytest.raises(ProcessDown, match="tired"):
            await rig.collect(items=9, exit_at=3)
        with pytest.raises(NoProcess):
            await rig.collect(items=9)

    scenario(test, remote=remote)


@where
def test_deadlines(remote: bool) -> None:
    async def test(rig: Rig) -> None:
        began = SimLoop.current().time()
        with pytest.raises(CallTimeout, match="within 3 s"):
            await rig.collect(3.0, items=100, pause_s=0.5)
        assert SimLoop.current().time() - began == pytest.approx(3.0, abs=0.01)
        await asyncio.sleep(1)
        assert rig.model.ends == ["unwanted"]
        with pytest.raises(CallTimeout, match="no item came for 60 s"):
            await rig.collect(items=1, pause_s=100)

    scenario(test, remote=remote)


def test_the_loss_of_the_node_is_the_end() -> None:
    async def test(rig: Rig) -> None:
        got = []

        async def consume() -> None:
            got.extend([item async for item in rig.stream(items=100, pause_s=0.1)])

        consuming = asyncio.ensure_future(consume())
        await asyncio.sleep(1)
        await rig.cluster.crash(rig.producer)
        with pytest.raises(NodeLost):
            await consuming
        with pytest.raises(NotDelivered):
            await rig.collect(items=1)

    scenario(test, remote=True)


def test_the_first_item_takes_as_long_as_a_call() -> None:
    async def test(rig: Rig) -> None:
        async def echo(process: Process) -> None:
            async for message in process.mailbox:
                message.reply()

        rig.producer.spawn(echo, name="echo")
        loop = SimLoop.current()
        times = []
        for _ in range(2):
            began = loop.time()
            await rig.consumer.call(("echo", rig.producer.name), 1)
            times.append(loop.time() - began)
            began = loop.time()
            async with aclosing(rig.stream(items=5)) as stream:
                await anext(stream)
            times.append(loop.time() - began)
        assert max(times) < 0.005  # two ways at the network's latency each

    scenario(test, remote=True)


def test_many_streams_at_a_time_do_not_mix() -> None:
    async def test(rig: Rig) -> None:
        models = [rig.producer.spawn(Model()) for _ in range(20)]

        async def one(pid: Pid, count: int) -> list[Any]:
            return [item async for item in rig.consumer.stream(pid, {"items": count})]

        got = await asyncio.gather(*(one(pid, 50 * n) for n, pid in enumerate(models)))
        assert got == [list(range(50 * n)) for n in range(20)]

    scenario(test, remote=True)
