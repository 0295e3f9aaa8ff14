"""Two machines, one with IPv4 and IPv6, the other with IPv6 only: network namespaces with a veth pair."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.patience import allowed_s

ROOT = Path(__file__).resolve().parent.parent.parent
FOUR, BOTH, SIX = "10.77.7.2", "fd00:f1ee:77::2", "fd00:f1ee:77::3"
PROGRAM = """
import asyncio, sys
from fleetlm import Node, Settings

async def main():
    async with Node.start(Settings.from_env()) as node:
        await node.ready(1, timeout=float(sys.argv[1]))
        print(node.name, *node.list(), flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=10.0)
    if done.returncode:
        pytest.skip(f"no network namespaces with IPv6 here: ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and `ip` (iproute2)")
    dual, six = names = (f"fleetlm-dual-{os.getpid()}", f"fleetlm-six-{os.getpid()}")
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", dual, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", six)
        ip("-n", dual, "addr", "add", f"{FOUR}/24", "dev", "eth0")
        ip("-n", dual, "addr", "add", f"{BOTH}/64", "dev", "eth0", "nodad")
        ip("-n", six, "addr", "add", f"{SIX}/64", "dev", "eth0", "nodad")
        for name in names:
            ip("-n", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=10.0)


def test_a_node_with_ipv6_only_and_one_with_both_are_connected_under_one_name(
    machines: tuple[str, str],
) -> None:
    patience_s = allowed_s(15.0)
    env = {each: text for each, text in os.environ.items() if not each.startswith(("FLEETLM_", "DNS_"))}
    env |= {
        "DNS_CLUSTER_QUERY": f"{FOUR},{BOTH},{SIX}",
        "FLEETLM_COOKIE": "a secret for both families",
        "FLEETLM_REMOTE": "off",
    }
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                subprocess.Popen(
                    ["ip", "netns", "exec", machine, sys.executable, "-c", PROGRAM, str(patience_s)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=env,
                    cwd=ROOT,
                )
            )
            for machine in machines
        ]
        try:
            said = [node.stdout.readline().split() for node in nodes if node.stdout is not None]
            for node in nodes:
                assert node.stdin is not None
                node.stdin.close()
            assert said == [
                [f"fleetlm@{FOUR}", f"fleetlm@{SIX}"],
                [f"fleetlm@{SIX}", f"fleetlm@{FOUR}"],
            ]
        finally:
            for node in nodes:
                node.kill()
