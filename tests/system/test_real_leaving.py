"""Leaving: peers learn the reason at once, and a dead peer does not delay a stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from fleetlm import Node, NotDelivered, Process, WouldBlock
from tests.support.patience import allowed_s
from tests.system.cluster_tools import PORT, Fleet, Worker, all_sunk, until

LEAVES_WITHIN_S = 2.0
PROGRAM = """
import asyncio

async def echo(process):
    async for call in process.mailbox:
        call.reply(call.message)

async def flood(process, to):
    while True:
        try:
            await process.node.send(("slow", to), b"x" * 100_000)
        except Exception:
            return

async def main(node):
    node.spawn(echo, name="echo")
    async for event in node.events():
        if type(event).__name__ == "NodeUp":
            node.spawn(flood, event.node)
"""


@contextlib.contextmanager
def black_hole(ip: str) -> Iterator[None]:
    """Return an address that neither accepts nor refuses: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, PORT))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((ip, PORT))
        yield


async def left(fleet: Fleet, program: Worker, node: Node, name: str) -> float:
    """Send SIGTERM. Checks the exit code and that peers got the reason. Returns seconds until the end."""
    began = time.monotonic()
    program.signal(signal.SIGTERM)
    down = await fleet.down(node, name, since=began)
    assert down.reason.startswith("left:"), down.reason
    code = await program.exit_code()
    took = time.monotonic() - began
    print(
        f"SIGTERM: peers told after {(down.at - began) * 1000:.0f} ms ({down.reason}), "
        f"exit after {took:.2f} s"
    )
    assert code == 0
    return took


async def test_after_sigterm_a_started_program_leaves_with_a_reason() -> None:
    async with Fleet(static=(2, 3)) as fleet:
        node = await fleet.node(2)
        program = await fleet.program(3, "start")
        await node.ready(1, 10.0)
        took = await left(fleet, program, node, fleet.name(3))
        assert took < allowed_s(LEAVES_WITHIN_S)
        assert node.list() == []


async def test_messages_sent_before_leaving_arrive_before_the_nodedown() -> None:
    async with Fleet(static=(2, 3)) as fleet:
        node = await fleet.node(2)
        worker = await fleet.worker(3)
        there = fleet.name(3)
        await node.ready(1, 10.0)
        for number in range(3_000):
            await node.send(("sink", there), ["last", number, None, b"x" * 500])
        began = time.monotonic()
        await node.stop("enough")
        print(f"stopped after {(time.monotonic() - began) * 1000:.0f} ms")
        down = await fleet.down(there, node.name, since=began)
        assert down.reason == "left: enough"
        await all_sunk(worker, {"last": 3_000})


async def busy(process: Process) -> None:
    """Take one call, and never another one."""
    await process.receive()
    await asyncio.Event().wait()


async def sink(process: Process) -> None:
    async for _ in process.mailbox:
        pass


def fill_window(node: Node, to: str) -> None:
    """Send as much as is taken at once, so that answers have to wait."""
    with contextlib.suppress(WouldBlock):
        while True:
            node.send_nowait(("sink", to), b"x" * 1_000)


@pytest.mark.parametrize("road", ["on", "off"])
async def test_a_caller_that_stood_still_learns_which_requests_a_node_that_left_had_not_taken(
    road: str,
) -> None:
    """When its loop goes on, it finds the end of its own channel beside the last words of the peer."""
    async with Fleet(static=(2, 3)) as fleet, AsyncExitStack() as stack:
        leaver = await fleet.node(2, fleet.settings(2, FLEETLM_LOCAL_ROAD=road))
        asked = leaver.spawn(busy, name="busy")
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        stack.callback(loop.close)
        stack.callback(thread.join)
        stack.callback(loop.call_soon_threadsafe, loop.stop)

        async def start() -> Node:
            node = await Node.start(fleet.settings(3, FLEETLM_LOCAL_ROAD=road))
            node.spawn(sink, name="sink")
            await node.ready(1, 10.0)
            return node

        async def ask(node: Node) -> list[object]:
            calls = (node.call(("busy", leaver.name), number, timeout=60.0) for number in range(20))
            return await asyncio.gather(*calls, return_exceptions=True)

        def there(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))

        caller = await there(start())
        outcomes = there(ask(caller))
        await until(lambda: (info := leaver.process_info(asked)) is not None and info.mailbox == 19)
        await until(lambda: leaver.info(caller.name).road == ("local" if road == "on" else "zeromq"))
        loop.call_soon_threadsafe(time.sleep, 1.5)
        await asyncio.sleep(0.1)
        fill_window(leaver, caller.name)
        began = time.monotonic()
        await leaver.stop(drain_s=0)
        assert time.monotonic() - began < allowed_s(LEAVES_WITHIN_S)
        kinds = Counter(
            "not delivered" if isinstance(each, NotDelivered) else "in doubt" for each in await outcomes
        )
        assert kinds == {"in doubt": 1, "not delivered": 19}
        await there(caller.stop())


async def test_a_node_ends_in_time_in_whatever_state_its_peers_are(tmp_path: Path) -> None:
    """A node stops in time with a stopped peer with full windows, a killed peer and a silent address."""
    (tmp_path / "flooding.py").write_text(PROGRAM)
    async with Fleet(static=(2, 3, 4, 5, 6), FLEETLM_NODE_TIMEOUT_MS="60000") as fleet:
        with black_hole(fleet.ip(6)):
            node = await fleet.node(2)
            stopped, killed = await fleet.worker(3), await fleet.worker(4)
            search = f"{tmp_path}{os.pathsep}{Path.cwd()}"
            program = await fleet.program(5, "start", "flooding:main", PYTHONPATH=search)
            await node.ready(3, 10.0)
            await stopped.ask("meshed", others=3, timeout=10.0)
            await killed.ask("meshed", others=3, timeout=10.0)
            stopped.signal(signal.SIGSTOP)
            await asyncio.sleep(0.5)  # let its windows fill
            killed.kill()
            await fleet.down(node, fleet.name(4))
            assert await node.call(("echo", fleet.name(5)), "still there") == "still there"
            took = await left(fleet, program, node, fleet.name(5))
            assert took < allowed_s(LEAVES_WITHIN_S)
