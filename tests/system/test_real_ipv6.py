"""IPv6 only: a network namespace with several addresses on one interface, with AAAA records only.

All nodes of a cluster use one port, and ``::1`` is a single address, so several nodes need more addresses.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.system.cluster_tools import QUERY, Fleet

SUBNET = "fd00:f1ee:7::"
NUMBERS = (2, 3, 4)
_namespaces = itertools.count(1)


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=10.0)


@pytest.fixture
def namespace() -> Iterator[str]:
    """Make a network namespace without IPv4 except on loopback."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` (iproute2), which makes the network namespace")
    if os.geteuid() != 0:
        pytest.skip("a network namespace with addresses of its own needs root")
    name = f"fleetlm-{os.getpid()}-{next(_namespaces)}"
    made = ip("netns", "add", name)
    if made.returncode:
        pytest.skip(f"no network namespace is to be had: {made.stderr.strip()}")
    try:
        # On an interface to a network: an address on loopback may be on other machines too.
        steps: list[tuple[str, ...]] = [("link", "set", "lo", "up")]
        steps += [("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")]
        steps += [("link", "set", each, "up") for each in ("eth0", "eth1")]
        steps += [("-6", "addr", "add", f"{SUBNET}{n}/128", "dev", "eth0", "nodad") for n in NUMBERS]
        for step in steps:
            done = ip("-n", name, *step)
            if done.returncode:
                pytest.skip(f"no IPv6 here: ip {' '.join(step)}: {done.stderr.strip()}")
        yield name
    finally:
        ip("netns", "delete", name)


@pytest.mark.parametrize(
    "cookie",
    [
        pytest.param(None, id="plain"),
        pytest.param("a secret for the namespace", id="cookie", marks=pytest.mark.long),
    ],
)
async def test_a_cluster_on_ipv6_alone(namespace: str, cookie: str | None) -> None:
    prefix = ("ip", "netns", "exec", namespace)
    env = {"FLEETLM_COOKIE": cookie} if cookie else {}
    async with Fleet(prefix=prefix, subnet=SUBNET, DNS_CLUSTER_QUERY=QUERY, **env) as fleet:  # type: ignore[arg-type]
        server = await fleet.waiting()
        addresses = fleet.ips(*NUMBERS)
        dns = await server.ask("dns", host="::1", name=QUERY, addresses=addresses)
        workers = [await fleet.waiting(FLEETLM_DNS_SERVER=dns) for _ in NUMBERS]
        await asyncio.gather(*(w.start(address) for w, address in zip(workers, addresses, strict=True)))
        await asyncio.gather(*(w.ask("meshed", others=2, timeout=10.0) for w in workers))
        first, second, third = workers
        names = [fleet.name(number) for number in NUMBERS]
        assert await first.ask("list") == {names[0]: names[1:]}
        for name in names[1:]:
            assert (await first.ask("call", to=name, name="echo", message="v6"))["reply"] == "v6"
        await first.ask("bulk", to=names[1], size=2_000_000, count=1, stream="bulk")
        assert (await second.ask("sunk"))["sizes"] == [2_000_000, 0]
        killed = time.monotonic()
        third.kill()
        down = await fleet.down(names[0], names[2], since=killed)
        print(f"IPv6: kill -9 seen after {(down.at - killed) * 1000:.1f} ms")
        await third.exit_code()
        again = await fleet.waiting(FLEETLM_DNS_SERVER=dns)
        await again.start(addresses[2])
        up = await fleet.up(names[0], names[2], since=down.at)
        assert up.incarnation == again.incarnations[names[2]] != down.incarnation


async def test_a_started_program_finds_its_own_ipv6_address(namespace: str) -> None:
    """Without FLEETLM_NODE_IP, a node uses the address of the answer that its machine can bind."""
    prefix = ("ip", "netns", "exec", namespace)
    async with Fleet(prefix=prefix, subnet=SUBNET, DNS_CLUSTER_QUERY=QUERY) as fleet:
        server = await fleet.waiting()
        dns = await server.ask("dns", host="::1", name=QUERY, addresses=fleet.ips(2))
        peer = await fleet.waiting(FLEETLM_DNS_SERVER=dns)
        await peer.start(fleet.ip(3))
        program = await fleet.program(2, "start", FLEETLM_DNS_SERVER=dns, FLEETLM_NODE_IP=None)
        await peer.ask("meshed", others=1, timeout=10.0)
        assert await peer.ask("list") == {fleet.name(3): [fleet.name(2)]}
        began = time.monotonic()
        program.signal(signal.SIGTERM)
        down = await fleet.down(fleet.name(3), fleet.name(2), since=began)
        assert down.reason.startswith("left:")
        assert await program.exit_code() == 0
