"""Many nodes on few addresses: a mesh of them; workers of a web server that are killed, and reloaded."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from fleetlm import Node, Settings
from tests.system.servers import kill_workers, served

pytestmark = pytest.mark.long
KILLS = 100


@pytest.mark.deadline(170)
async def test_a_hundred_killed_workers_are_replaced_and_no_message_reaches_a_successor(
    tmp_path: Path,
) -> None:
    watcher = await kill_workers(KILLS, f"127.199.{os.getpid() % 251}.1", tmp_path)
    print(watcher.answered, "answered,", watcher.refused, "refused,", watcher.unknown, "unknown")
    assert watcher.answered > KILLS
    assert watcher.refused > KILLS


@pytest.mark.deadline(120)
@pytest.mark.parametrize(
    "command",
    [
        "gunicorn -w 2 -k asgi -b 127.0.0.1:{port} web:app",
        "gunicorn -c gunicorn_sync.py -w 2 -b 127.0.0.1:{port} wsgi:app",
        "gunicorn -c gunicorn_sync.py --preload -w 2 -b 127.0.0.1:{port} wsgi:app",
    ],
    ids=["asgi", "sync", "preload"],
)
def test_a_reload_replaces_the_workers_while_the_old_ones_leave(command: str, tmp_path: Path) -> None:
    ip = f"127.198.{os.getpid() % 251}.{1 + len(command) % 250}"
    with served(command, ip, tmp_path) as server:
        before = {pid for _, pid in server.eventually(2)["everyone"]}
        server.process.send_signal(signal.SIGHUP)
        server.eventually(2, other_than=before)
        log = server.stop()
    assert server.process.returncode == 0, log
    assert "StartFailed" not in log
    assert "Traceback" not in log


NODES = 32
"""Nodes of a mesh. All run on this loop, so the CPU time of this thread and of ZeroMQ's is what they take."""


async def _form_mesh(ips: list[str], port: int) -> tuple[float, float]:
    """Start the nodes, as many on each address, and return the seconds until the last is connected with all.

    Returns:
        By the wall clock, and of CPU time, which other programs of the machine change less.
    """
    async with AsyncExitStack() as stack:
        began, cpu = time.monotonic(), time.process_time()
        nodes = []
        for number in range(NODES):
            settings = Settings(
                dns_query=",".join(ips),
                node_ip=ips[number % len(ips)],
                node_ports=(port, port + 15),
                remote=False,
            )
            nodes.append(await stack.enter_async_context(Node.start(settings)))
        await asyncio.gather(*(node.ready(NODES - 1, timeout=100) for node in nodes))
        took = time.monotonic() - began, time.process_time() - cpu
        assert len({node.name for node in nodes}) == NODES
        assert all(len(node.list()) == NODES - 1 for node in nodes)
        return took


@pytest.mark.alone
@pytest.mark.deadline(400)
async def test_eight_nodes_on_each_of_four_addresses_mesh_as_fast_as_on_addresses_of_their_own() -> None:
    net = f"127.197.{os.getpid() % 251}"
    apart, apart_cpu = await _form_mesh([f"{net}.{number + 1}" for number in range(NODES)], 24_370)
    together, together_cpu = await _form_mesh([f"{net}.{number + 101}" for number in range(4)], 24_370)
    print(f"apart {apart:.1f} s, CPU {apart_cpu:.1f}; together {together:.1f} s, CPU {together_cpu:.1f}")
    assert together < 3 * apart + 10
    assert together_cpu < 3 * apart_cpu + 2
