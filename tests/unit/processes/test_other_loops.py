"""A node is asked on its own loop only; other threads and loops are told to use node.sync."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fleetlm import Actor, Call, Node, Process, Settings, handler
from tests.sim.fleet import Fleet, simulated


class Idle(Actor):
    @handler
    async def ping(self) -> str:
        return "pong"


def elsewhere(code: Callable[[], Any], *, with_loop: bool) -> BaseException | None:
    """Run code in another thread, in a coroutine of another loop or without one; return what it raised."""
    errors: list[BaseException] = []

    async def call() -> None:
        result = code()
        if asyncio.iscoroutine(result):
            await result

    def work() -> None:
        try:
            if with_loop:
                asyncio.run(call())
            else:
                result = code()
                if asyncio.iscoroutine(result):
                    result.send(None)
        except BaseException as error:  # noqa: BLE001  # the error is what is tested
            errors.append(error)

    thread = threading.Thread(target=work, name="elsewhere")
    thread.start()
    thread.join()
    return errors[0] if errors else None


@simulated
async def test_whatever_needs_the_loop_is_refused_elsewhere_and_nothing_is_done(fleet: Fleet) -> None:
    one, two = await fleet.mesh(2)
    pid = one.spawn(Idle, name="idle")
    two.spawn(Idle, name="idle")
    process = one._local.process(pid)
    assert isinstance(process, Process)
    here, there = one.ref(Idle, pid), one.ref(Idle, "idle", at=two.name)
    assert await there.call(Idle.ping) == "pong"
    before = [info.pid for info in one.processes()]
    events = one.events()
    for nth, code in enumerate(
        (
            lambda: one.spawn(Idle),
            lambda: one.start_actor(Idle),
            lambda: one.send("idle", 1),
            lambda: one.send(("idle", two.name), 1),
            lambda: one.send_nowait(("idle", two.name), 1),
            lambda: one.call(("idle", two.name), 1),
            lambda: one.broadcast("idle", 1),
            lambda: here.cast(Idle.ping),
            lambda: there.cast(Idle.ping),
            lambda: there.call(Idle.ping),
            lambda: one.exit(pid),
            lambda: one.register("other", pid),
            lambda: one.unregister("idle"),
            lambda: one.disconnect(two.name),
            lambda: one.connect(two.name),
            one.stop,
            lambda: one.groups.join("group", pid),
            one.events,
            lambda: one.groups.watch("group"),
            lambda: anext(events),
            lambda: process.link(pid),
            lambda: process.monitor("idle"),
            lambda: process.exit(pid),
            lambda: process.send_after(1, "x"),
            lambda: process.send_every(1, "x"),
            lambda: setattr(process, "trap_exit", True),
        )
    ):
        for with_loop in (True, False):
            error = elsewhere(code, with_loop=with_loop)
            assert isinstance(error, RuntimeError), (nth, with_loop)
            assert "node.sync" in str(error)
            assert "'elsewhere'" in str(error)
    assert [info.pid for info in one.processes()] == before
    assert one.list() == [two.name]
    assert await there.call(Idle.ping) == "pong"


def test_a_thread_may_answer_a_call_and_the_answer_is_sent_at_once() -> None:
    async def engine(process: Process) -> None:
        async for message in process.mailbox:
            assert isinstance(message, Call)
            answer = message.fail if message.message == "bad" else message.reply
            value: Any = ValueError("bad") if message.message == "bad" else message.message
            threading.Thread(target=answer, args=(value,)).start()

    async def main() -> list[Any]:
        settings = Settings(node_ip="127.0.0.1", remote=False)
        async with Node.start(settings.replace(node_ports=(28_431, 28_431))) as node:
            node.spawn(engine, name="engine")
            answers = [await node.call("engine", number, timeout=30) for number in range(5)]
            with pytest.raises(Exception, match="bad"):
                await node.call("engine", "bad", timeout=30)
            return answers

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]
