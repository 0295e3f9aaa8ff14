"""A node imports what a program does not use only when it is used: imports cost time and memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
import fleetlm

async def main():
    async with fleetlm.Node.start() as node:
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
    "fleetlm.sync": "threads of the program",
    "fleetlm.runtime.overview": "Node.overview",
    "fleetlm.core.overview_shape": "Node.overview",
    "fleetlm.threads": "threads of the program",
    "fleetlm.supervisor": "a supervisor",
    "fleetlm.testing": "tests",
    "fleetlm.remote.server": "the remote shell, which is off here",
    "fleetlm.ops": "the ops listener, which is off here",
    "starlette": "the ops listener",
    "uvicorn": "the ops listener",
}
"""Modules, and what needs them."""


@pytest.fixture(scope="module")
def imported() -> frozenset[str]:
    env = {name: text for name, text in os.environ.items() if not name.startswith(("FLEETLM_", "DNS_"))}
    env |= {"DNS_CLUSTER_QUERY": "127.0.0.1", "FLEETLM_NODE_IP": "127.0.0.1", "FLEETLM_REMOTE": "off"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return frozenset(run.stdout.split())


@pytest.mark.parametrize("module", NOT_AT_THE_START)
def test_a_node_starts_without(module: str, imported: frozenset[str]) -> None:
    assert "fleetlm.node" in imported
    assert module not in imported, f"only needed for {NOT_AT_THE_START[module]}"
