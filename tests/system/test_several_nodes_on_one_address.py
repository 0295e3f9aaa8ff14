"""Nodes of one address on real sockets: eight of them, and a port that passes to another process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable

import pytest

from fleetlm import FleetError, Node, Settings
from tests.support.patience import allowed_s

IP = "127.0.71.2"
PORTS = (24_700, 24_715)
SETTINGS = Settings(dns_query=IP, node_ip=IP, node_ports=PORTS, remote=False, poll_interval_s=0.5)

RANK = f"""
import asyncio
from fleetlm import Node, Settings

async def box(me):
    while True:
        print("got", await me.receive(), flush=True)

async def main():
    settings = Settings(dns_query={IP!r}, node_ip={IP!r}, node_ports={PORTS}, node_slot=2, remote=False)
    async with Node.start(settings) as node:
        pid = node.spawn(box, name="box")
        print("up", node.name, node.incarnation, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    async with asyncio.timeout(allowed_s(timeout)):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("query", [IP, "nowhere.invalid"], ids=["DNS", "DNS is down"])
async def test_eight_nodes_on_one_address_are_connected(query: str) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            settings = SETTINGS.replace(dns_query=query)
            nodes = [await stack.enter_async_context(Node.start(settings)) for _ in range(8)]
            assert [node.name for node in nodes] == [
                f"fleetlm@{IP}", *(f"fleetlm@{IP}:{port}" for port in range(24_701, 24_708))
            ]  # fmt: skip
            await until(lambda: all(len(node.list()) == 7 for node in nodes))

    await asyncio.wait_for(main(), allowed_s(60))


@contextlib.asynccontextmanager
async def rank() -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Run a node with a fixed place. Yields its process and its incarnation."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RANK, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    try:
        assert process.stdout is not None
        word, name, incarnation = (await process.stdout.readline()).split()
        assert (word, name.decode()) == (b"up", f"fleetlm@{IP}:24702")
        yield process, int(incarnation)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_what_was_meant_for_a_killed_rank_does_not_reach_the_process_that_takes_its_port() -> None:
    async def main() -> None:
        async with Node.start(SETTINGS) as node:
            name = f"fleetlm@{IP}:24702"
            async with rank() as (first, incarnation):
                await until(lambda: node.list() == [name])
                old = await node.whereis("box", at=name)
                assert old is not None
                assert old.incarnation == incarnation
                first.send_signal(signal.SIGKILL)
                async with rank() as (second, successor):
                    assert successor != incarnation
                    sent = 0
                    async with asyncio.timeout(allowed_s(20)):
                        while True:
                            with contextlib.suppress(FleetError):
                                await node.send(old, "for the former one")
                                sent += 1
                            found = None
                            with contextlib.suppress(FleetError):
                                found = await node.whereis("box", at=name)
                            if found is not None and found.incarnation == successor:
                                break
                            await asyncio.sleep(0.01)
                    with pytest.raises(FleetError):
                        await node.send(old, "for the former one, too late")
                    await node.send(found, "for the new one")
                    assert second.stdout is not None
                    assert await second.stdout.readline() == b"got for the new one\n"

    await asyncio.wait_for(main(), allowed_s(90))
