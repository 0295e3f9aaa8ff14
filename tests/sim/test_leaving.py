"""What a node that leaves waits for, and why a node stops by itself, on virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm import (
    Actor,
    Call,
    Child,
    Node,
    NodeDown,
    NodeDraining,
    NotDelivered,
    OutcomeUnknown,
    Process,
    ProcessExit,
    Supervisor,
    handler,
)
from fleetlm.node import parts_of
from fleetlm.runtime.draining import LATER_S
from fleetlm.testing import SimCluster, run


class Model(Actor):
    @handler
    async def slow(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @handler
    async def tokens(self, count: int) -> AsyncIterator[int]:
        for nth in range(count):
            await asyncio.sleep(0.5)
            yield nth


def story(told: Any, count: int = 1) -> None:
    async def main() -> None:
        async with SimCluster(seed=3) as cluster:
            nodes = await cluster.start(count)
            await cluster.mesh(timeout=10)
            await told(*nodes)

    run(main())


async def seconds_to_stop(node: Node, drain_s: float | None = None) -> float:
    began = asyncio.get_running_loop().time()
    await node.stop(drain_s=drain_s)
    return asyncio.get_running_loop().time() - began


async def deaf(_process: Process) -> None:
    await asyncio.sleep(1_000)


def test_messages_that_nothing_reads_do_not_delay_a_stop() -> None:
    async def told(node: Node, other: Node) -> None:
        node.spawn(deaf, name="deaf")
        node.spawn(Model, name="model")
        await asyncio.sleep(0.1)
        for number in range(100):
            await other.send(("deaf", node.name), number)
            await node.send("deaf", number)
        await asyncio.sleep(0.1)
        assert await seconds_to_stop(node) < 0.5

    story(told, 2)


@pytest.mark.parametrize("remote", [False, True])
def test_open_calls_and_streams_are_finished_and_those_that_wait_for_their_turn_too(remote: bool) -> None:
    async def told(node: Node, other: Node) -> None:
        node.spawn(Model, name="model")
        node.spawn(Model, name="streams")
        caller = other if remote else node
        model = caller.ref(Model, "model", at=node.name).within(60)
        calls = [asyncio.create_task(model.call(Model.slow, 2.0)) for _ in range(3)]
        streams = caller.ref(Model, "streams", at=node.name).within(60)

        async def consume() -> list[int]:
            return [item async for item in streams.stream(Model.tokens, 20)]

        stream = asyncio.create_task(consume())
        await asyncio.sleep(1)
        took_s = await seconds_to_stop(node)
        assert await asyncio.gather(*calls) == ["done"] * 3
        assert await stream == list(range(20))
        assert 9.0 <= took_s < 9.5

    story(told, 2)


def test_a_call_that_takes_longer_than_the_drain_time_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def told(node: Node, other: Node) -> None:
        node.spawn(Model, name="model")
        model = other.ref(Model, "model", at=node.name).within(600)
        call = asyncio.create_task(model.call(Model.slow, 500.0))
        await asyncio.sleep(1)
        assert 7.0 <= await seconds_to_stop(node, 7.0) < 8.0
        with pytest.raises(OutcomeUnknown):
            await call

    story(told, 2)
    assert "finishes what it has begun before it leaves, for at most 7 s" in caplog.text
    assert "leaves without waiting any longer for 1 call(s) of Model" in caplog.text


def test_steady_traffic_does_not_keep_a_node_that_leaves() -> None:
    async def told(node: Node, other: Node) -> None:
        async def echo(process: Process) -> None:
            async for message in process.mailbox:
                assert isinstance(message, Call)
                await asyncio.sleep(0.004)
                message.reply(message.message)

        node.spawn(echo, name="echo")
        answers = 0

        async def ask() -> None:
            nonlocal answers
            while True:
                await other.call(("echo", node.name), 1)
                answers += 1

        asking = [asyncio.create_task(ask()) for _ in range(5)]
        await asyncio.sleep(1)
        assert answers > 100
        assert await seconds_to_stop(node) < 0.5, "new calls of other nodes are refused"
        await asyncio.wait(asking)
        assert all(isinstance(task.exception(), NotDelivered) for task in asking)

    story(told, 2)


def test_steady_calls_of_a_node_to_itself_do_not_keep_it() -> None:
    async def told(node: Node, other: Node) -> None:
        async def echo(process: Process) -> None:
            async for message in process.mailbox:
                assert isinstance(message, Call)
                await asyncio.sleep(0.004)
                message.reply(message.message)

        async def ask() -> None:
            while True:
                await node.call("echo", 1)

        node.spawn(echo, name="echo")
        asking = [asyncio.create_task(ask()) for _ in range(5)]
        await asyncio.sleep(1)
        assert LATER_S * 0.9 < await seconds_to_stop(node) < LATER_S + 1.0
        await asyncio.gather(*asking, return_exceptions=True)
        assert node.drain_report is not None
        assert node.drain_report.was_clean

    story(told, 2)


def test_a_caller_that_has_gone_is_not_waited_for() -> None:
    async def told(node: Node, other: Node) -> None:
        async def hold(process: Process) -> None:
            held = [await process.receive(), await process.receive()]
            await asyncio.sleep(1_000)
            assert held

        node.spawn(hold, name="hold")
        late = asyncio.create_task(node.call("hold", 1, timeout=3.0))
        gone = asyncio.create_task(other.call(("hold", node.name), 2, timeout=600.0))
        await asyncio.sleep(1)
        gone.cancel()
        assert 1.9 < await seconds_to_stop(node) < 2.5
        assert isinstance((await asyncio.gather(late, return_exceptions=True))[0], OutcomeUnknown)

    story(told, 2)


def test_a_search_for_open_calls_is_spread_over_turns_of_the_loop() -> None:
    async def told(node: Node) -> None:
        for _ in range(5_000):
            node.spawn(deaf)
        await asyncio.sleep(0)
        looking = asyncio.create_task(parts_of(node).draining._unfinished.look(set()))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not looking.done()
        assert (await looking).is_done()

    story(told)


def test_trees_have_what_the_open_calls_left_of_the_drain_time() -> None:
    async def told(node: Node) -> None:
        async def stubborn(process: Process) -> None:
            process.trap_exit = True
            while True:
                await process.receive()

        node.spawn(Supervisor([Child("s", stubborn, shutdown_s=600)]))
        await asyncio.sleep(1)
        assert 10.0 <= await seconds_to_stop(node, 10.0) < 12.0

    story(told)


# ── essential processes ──────────────────────────────────────────────────────────────────────────


async def brief(process: Process) -> None:
    reason = await process.receive()
    if reason == "crash":
        raise ValueError("boom")
    raise ProcessExit(reason)


@pytest.mark.parametrize(
    ("reason", "failure"),
    [
        ("crash", "essential process worker ({}) ended: ValueError: boom"),
        ("shutdown", "essential process worker ({}) ended: shutdown"),
        ("normal", ""),
    ],
)
def test_a_node_stops_when_an_essential_process_ends(reason: str, failure: str) -> None:
    async def told(node: Node, other: Node) -> None:
        node.spawn(brief, name="worker", essential=True)
        node.spawn(Model, name="model")
        slow = asyncio.create_task(other.ref(Model, "model", at=node.name).call(Model.slow, 2.0))
        await asyncio.sleep(0.1)
        events = other.events()
        assert (await anext(events)).node == node.name
        await node.send("worker", reason)
        async with asyncio.timeout(10):
            await node.wait_stopped()
        assert await slow == "done", "what has begun is finished all the same"
        assert node.failure == failure.format(brief.__qualname__)
        assert isinstance(await anext(events), NodeDraining)
        down = await anext(events)
        assert isinstance(down, NodeDown)
        assert down.reason == (f"left: failed: {node.failure}" if failure else "left: shutdown")

    story(told, 2)


def test_other_processes_may_end_and_a_node_that_is_stopped_has_not_failed() -> None:
    async def told(node: Node) -> None:
        node.spawn(brief, name="other")
        node.spawn(brief, name="may", essential=False)
        node.spawn(brief, name="worker", essential=True)
        await asyncio.sleep(0.1)
        await node.send("other", "crash")
        await node.send("may", "crash")
        await asyncio.sleep(0.1)
        assert [info.name for info in node.processes()] == ["worker"]
        await node.stop()
        assert node.failure == ""

    story(told)


@pytest.mark.parametrize(("guards", "essential", "fails"), [
    (True, None, True), (True, False, False), (False, None, False), (False, True, True),
])  # fmt: skip
def test_a_root_supervisor_that_gives_up_ends_a_node_that_a_program_runs(
    guards: bool, essential: bool | None, fails: bool
) -> None:
    async def told(node: Node) -> None:
        parts_of(node).essential.guards_roots = guards
        tree = Supervisor([Child("worker", brief, register="worker")], max_restarts=0)
        branch = Supervisor([Child("inner", tree)])
        node.spawn(branch, name="top", essential=essential)
        await asyncio.sleep(0.1)
        await node.send("worker", "crash")
        await asyncio.sleep(0.1)
        assert node.failure == "", "a branch that gives up is restarted"
        for _ in range(4):
            if await node.whereis("worker"):
                await node.send("worker", "crash")
            await asyncio.sleep(0.9)
        await asyncio.sleep(2)
        assert (await node.whereis("top")) is None
        assert bool(node.failure) is fails
        if fails:
            assert node.failure.startswith(
                "supervisor top gave up: more than 3 restarts in 5 s, the last of inner"
            )
            await node.wait_stopped()

    story(told)


def test_a_program_may_end_a_root_supervisor_on_purpose() -> None:
    async def told(node: Node) -> None:
        parts_of(node).essential.guards_roots = True
        tree = node.spawn(Supervisor([Child("worker", brief)]))
        await asyncio.sleep(0.1)
        node.exit(tree)
        await node.join(tree)
        await asyncio.sleep(0.1)
        assert node.failure == ""
        assert node.spawn(brief)

    story(told)


def test_a_factory_of_another_node_does_not_make_a_tree_essential() -> None:
    async def told(node: Node, other: Node) -> None:
        parts_of(node).essential.guards_roots = True
        node.factories.register("tree", Supervisor([Child("w", brief, register="w")], max_restarts=0))
        tree = await other.spawn_at(node.name, "tree")
        await asyncio.sleep(0.1)
        await node.send("w", "crash")
        assert await node.join(tree, 5)
        await asyncio.sleep(0.1)
        assert node.failure == ""

    story(told, 2)
