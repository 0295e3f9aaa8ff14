"""A node imports what a program does not use only when it is used: imports cost time and memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
import fleetlm

async def echo(process):
    async for message in process.mailbox:
        pass

async def main():
    async with fleetlm.Node.start() as node:
        print(*sys.modules)
        node.spawn(echo, name="echo")
        await node.send("echo", {"any": "message"})
        print(*sys.modules)
    print(*sys.modules)

asyncio.run(main())
"""
NOT_AT_THE_START = {
    "dns": "the lookup of a name",
    "multiprocessing": "run_in_process",
    "concurrent.futures.thread": "run_blocking of asyncio, and large messages",
    "zoneinfo": "a time with a zone",
    "difflib": "a misspelt setting",
    "pathlib": "a cookie in a file",
    "sysconfig": "the paths of an installation",
    "secrets": "fleetlm cookie",
    "hashlib": "a cookie, and picks by key",
    "hmac": "a cookie",
    "zmq.auth": "a cookie",
    "ctypes": "a shortage of descriptors",
    "argparse": "the command line",
    "queue": "functions that block",
    "fleetlm.blocking.pools": "functions that block",
    "fleetlm.blocking.pool": "functions that block, and hooks and checks that are plain functions",
    "fleetlm.blocking.generators": "generators that block",
    "fleetlm.process_pool": "a pool of processes",
    "fleetlm.runtime.hook_threads": "hooks and checks that are plain functions",
    "fleetlm.actor": "actors",
    "fleetlm.actors.run": "actors",
    "fleetlm.core.picking": "picks of members",
    "fleetlm.core.sticky_keys": "picks of members",
    "fleetlm.directory.group_calls": "calls to groups",
    "fleetlm.directory.group_ref": "calls to groups",
    "fleetlm.messaging.multicall": "Node.multicall",
    "fleetlm.messaging.streams": "streams",
    "fleetlm.runtime.own_info": "Node.info",
    "fleetlm.wire.arrays": "arrays in messages",
    "fleetlm.entity": "entities",
    "fleetlm.entities.hosting": "entities",
    "fleetlm.leaders.singletons": "singletons and cron jobs",
    "fleetlm.stores": "states of entities",
    "fleetlm.sync": "threads of the program",
    "fleetlm.runtime.overview": "Node.overview",
    "fleetlm.core.overview_shape": "Node.overview",
    "fleetlm.threads": "threads of the program",
    "fleetlm.supervisor": "a supervisor",
    "fleetlm.telemetry": "observers",
    "fleetlm.metrics": "metrics",
    "prometheus_client": "metrics",
    "fleetlm.testing": "tests",
    "fleetlm.remote.protocol": "the remote shell, which is off here",
    "fleetlm.remote.server": "the remote shell, which is off here",
    "fleetlm.discovery.dns_search": "the lookup of a name",
    "fleetlm.runtime.limited_requests": "Settings.peers_may",
    "fleetlm.ops": "the ops listener, which is off here",
    "starlette": "the ops listener",
    "uvicorn": "the ops listener",
}
"""Modules, and what needs them."""


@pytest.fixture(scope="module")
def imported() -> list[frozenset[str]]:
    """The modules of a node that has started, that has delivered a message, and that has left."""
    env = {name: text for name, text in os.environ.items() if not name.startswith(("FLEETLM_", "DNS_"))}
    env |= {"DNS_CLUSTER_QUERY": "127.0.0.1", "FLEETLM_NODE_IP": "127.0.0.1", "FLEETLM_REMOTE": "off"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return [frozenset(line.split()) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("module", NOT_AT_THE_START)
def test_a_node_starts_without(module: str, imported: list[frozenset[str]]) -> None:
    assert "fleetlm.node" in imported[0]
    assert module not in imported[0], f"only needed for {NOT_AT_THE_START[module]}"


def test_a_node_needs_no_further_code_to_deliver_messages_and_to_leave(
    imported: list[frozenset[str]],
) -> None:
    """By then its files may be those of another version, or there may be no descriptor to read them with."""
    started, working, left = imported
    assert working == started
    assert left == started
