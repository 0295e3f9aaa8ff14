from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.dns import DnsDiscovery, StaticDiscovery
from fleetlm.discovery.own_address import OwnAddress, Rule
from fleetlm.errors import SettingsError
from fleetlm.node import Node
from fleetlm.runtime import bootstrap as startup
from fleetlm.runtime.bootstrap import Parts, prepare, warn_about
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.testing.network import SimNetwork, SimTransport
from tests.support.session_fakes import virtual

ON = Settings(node_ip="10.0.0.1", dns_query="fleet.test")


async def parts(settings: Settings | None, **given: Any) -> Parts:
    loop = SimLoop.current()
    options: dict[str, Any] = {
        "discovery": None,
        "transport": SimTransport(SimNetwork(loop, loop.rng)),
        "rng": random.Random(1),
        "wall_ms": 5,
    }
    return await prepare(settings, **(options | given))


@virtual
async def test_what_is_given_is_used() -> None:
    discovery = StaticDiscovery(["10.0.0.2"])
    made = await parts(ON, discovery=discovery)
    assert made.settings is ON
    assert made.discovery is discovery
    assert (made.own_address.ip, made.wall_ms, made.first_answer) == ("10.0.0.1", 5, None)
    assert made.console is None


@virtual
async def test_a_query_means_dns_and_none_means_alone_on_loopback() -> None:
    assert isinstance((await parts(ON)).discovery, DnsDiscovery)
    alone = await parts(Settings())
    assert alone.discovery is None
    assert alone.own_address.ip == "127.0.0.1"


@virtual
async def test_the_answer_that_decided_the_own_address_is_kept() -> None:
    answer = Answer(Outcome.ADDRESSES, ("127.0.0.1",), "one")

    class Once:
        source = "once"
        asked = 0

        async def lookup(self) -> Answer:
            self.asked += 1
            return answer

    made = await parts(ON.replace(node_ip=None), discovery=Once())
    assert made.first_answer == answer


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNS_CLUSTER_NODE_BASENAME", "worker")
    monkeypatch.setenv("FLEETLM_NODE_IP", "10.0.0.4")

    async def main() -> None:
        made = await parts(None)
        assert (made.settings.node_basename, made.own_address.ip) == ("worker", "10.0.0.4")

    run(main())
    monkeypatch.setenv("DNS_POLL_INTERVAL_MS", "soon")

    async def refused() -> None:
        with pytest.raises(SettingsError, match="DNS_POLL_INTERVAL_MS"):
            await parts(None)

    run(refused())


def test_warnings_of_the_environment_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await parts(ON.replace(warnings=("DNS_CLUSTER_QURY is set",)))

    run(main())
    assert "DNS_CLUSTER_QURY is set" in caplog.text


class Told:
    """As much of a node as `warn_about` looks at."""

    def __init__(
        self, ip: str, settings: Settings, discovery: Any = "dns", warning: str | None = None
    ) -> None:
        self.own_address = OwnAddress(ip, "said so", Rule.EXPLICIT, (), warning)
        self.settings = settings
        self.discovery = discovery
        self.name = f"fleetlm@{ip}"


@pytest.mark.parametrize(
    ("node", "warned"),
    [
        (Told("10.0.0.1", ON), True),
        (Told("fd00::1", ON), True),
        (Told("10.0.0.1", ON.replace(cookie="x" * 32)), False),
        (Told("127.0.0.2", ON), False),
        (Told("::1", ON), False),
        (Told("10.0.0.1", Settings(), None), False),
    ],
    ids=["open", "open IPv6", "cookie", "loopback", "IPv6 loopback", "alone"],
)
def test_an_open_cluster_is_warned_about(node: Any, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    warn_about(node)
    assert ("FLEETLM_COOKIE" in caplog.text) == warned
    assert len(caplog.records) == warned


def test_a_simulated_node_is_told_nothing_of_this_machine(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = SimLoop.current()
        transport = SimTransport(SimNetwork(loop, loop.rng), ON)
        made = await parts(ON.replace(node_ip="10.0.0.1"), transport=transport, discovery=StaticDiscovery([]))
        assert not made.on_this_network
        node = await Node(made)._begin(made)
        await node.stop()

    run(main())
    assert "FLEETLM" not in caplog.text


def test_a_doubtful_own_address_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    told: Any = Told("127.0.0.1", Settings(), None, "two addresses: set FLEETLM_NODE_IP")
    warn_about(told)
    assert "two addresses" in caplog.text


def test_a_node_whose_console_cannot_start_leaves_nothing_behind() -> None:
    class Broken:
        def __init__(self, node: Node) -> None:
            self.stopped = False

        async def start(self) -> None:
            raise MemoryError

        async def stop(self, *_: Any) -> None:
            self.stopped = True

    async def main() -> None:
        loop = SimLoop.current()
        network = SimNetwork(loop, loop.rng)
        made = await parts(ON, transport=SimTransport(network, ON), discovery=StaticDiscovery([]))
        broken = Parts(
            made.settings, made.own_address, made.discovery, None,
            made.transport, made.rng, made.wall_ms, Broken, False,
        )  # fmt: skip
        with pytest.raises(MemoryError):
            await Node(broken)._begin(broken)
        assert not network.host("10.0.0.1").endpoints
        await asyncio.sleep(100)

    logging.disable(logging.CRITICAL)
    try:
        run(main())
    finally:
        logging.disable(logging.NOTSET)
    assert startup.log.name == "fleetlm"
