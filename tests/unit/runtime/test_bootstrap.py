from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from fleetlm import cookies
from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.dns import DnsDiscovery, StaticDiscovery
from fleetlm.discovery.own_address import OwnAddress, Rule
from fleetlm.errors import SettingsError
from fleetlm.node import Node
from fleetlm.remote.health_server import HealthServer
from fleetlm.remote.server import RemoteServer
from fleetlm.runtime.bootstrap import (
    HEALTH,
    REMOTE_SHELL,
    NodeStarting,
    Prepared,
    load_service,
    prepare,
    take_port,
    warn_about,
)
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, run
from fleetlm.testing.network import SimNetwork, SimTransport
from tests.support.session_fakes import virtual

COOKIE = "kaeluo4Uo6Xei3shohg0aiQu"
ON = Settings(node_ip="10.0.0.1", dns_query="fleet.test")


async def parts(settings: Settings | None, **given: Any) -> Prepared:
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
    assert made.services == ()


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


@virtual
async def test_a_simulated_network_has_no_interfaces() -> None:
    with pytest.raises(SettingsError, match="simulated network"):
        await parts(ON.replace(node_ip="eth1"))


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


def run_real(making: Coroutine[Any, Any, Prepared]) -> Prepared:
    return asyncio.run(making)


def prepared(
    ip: str, settings: Settings, discovery: Any = "dns", warning: str | None = None, **given: Any
) -> Prepared:
    """What a node on this machine's network is made from, as far as `warn_about` looks at it."""
    given = {"transport": None, "rng": random.Random(1), "wall_ms": 5, "services": ()} | given
    own = OwnAddress(ip, "said so", Rule.EXPLICIT, (), warning)
    return Prepared(settings, own, discovery, None, on_this_network=True, **given)


async def here(**fields: Any) -> Prepared:
    """What a node on this machine's network is made from. Nothing is opened."""
    return await prepare(Settings(**fields), None, None, random.Random(1), 5)


@pytest.mark.parametrize("query", ["worker", None])
@pytest.mark.parametrize("ip", ["10.0.0.1", "fd00::1"])
def test_an_open_cluster_is_warned_about_once_however_it_came_to_listen(
    ip: str, query: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    made = run_real(here(node_ip=ip, dns_query=query))
    assert made.listening == (ip,)
    warn_about(replace(made, own_address=replace(made.own_address, warning=None)))
    (record,) = caplog.records
    assert f"every machine that reaches {ip} " in record.message
    assert "FLEETLM_COOKIE" in record.message


@pytest.mark.parametrize(
    "fields",
    [{"node_ip": "10.0.0.1", "cookie": COOKIE}, {"node_ip": "127.0.0.2"}, {"node_ip": "::1"}, {}],
    ids=["cookie", "loopback", "IPv6 loopback", "alone"],
)
def test_a_cluster_that_is_not_open_is_not_warned_about(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    made = run_real(here(**fields))
    warn_about(replace(made, own_address=replace(made.own_address, warning=None)))
    assert not caplog.records


@pytest.mark.parametrize(
    "fields",
    [
        {"node_ip": "8.8.8.8"},
        {"node_ip": "2600::1", "dns_query": "worker"},
        {"dns_query": "worker", "fly_private_ip": "8.8.8.8"},
        {"dns_query": "worker", "pod_ip": "8.8.8.8"},
        {"node_ip": "8.8.8.8", "bind": "127.0.0.1"},
        {"bind": "8.8.8.8"},
    ],
    ids=str,
)
def test_a_node_with_a_public_address_does_not_start_without_a_cookie(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"COOKIE is not set; .* may be reached from the Internet"):
        run_real(here(**fields))
    assert run_real(here(**fields, cookie=COOKIE)).exposure_warning is None
    insecure = run_real(here(**fields, insecure=True)).exposure_warning
    assert insecure is not None
    assert "the Internet included" in insecure


def test_all_addresses_are_bound_only_on_request_and_said_so() -> None:
    assert run_real(here(node_ip="10.9.9.9")).endpoints == ("10.9.9.9:4370",)
    everywhere = run_real(here(node_ip="10.9.9.9", bind="*", insecure=True))
    assert everywhere.endpoints == ("*:4370",)
    assert everywhere.listening == ("*",)
    assert replace(everywhere, port=4372).endpoints == ("*:4372",)


def test_a_node_takes_its_cookie_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cookies, "_taken", {})
    monkeypatch.setenv("FLEETLM_NODE_IP", "127.0.0.1")
    monkeypatch.setenv("FLEETLM_COOKIE", COOKIE)
    monkeypatch.setenv(cookies.TAKEN, "")  # So that it is restored.
    made = run_real(prepare(None, None, None, random.Random(1), 5))
    assert made.settings.cookie == COOKIE
    assert "FLEETLM_COOKIE" not in os.environ
    assert os.environ[cookies.TAKEN] == "1"
    again = run_real(prepare(None, None, None, random.Random(1), 5))
    assert again.settings.cookie == COOKIE


def test_a_simulated_node_is_told_nothing_of_this_machine(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = SimLoop.current()
        transport = SimTransport(SimNetwork(loop, loop.rng), ON)
        made = await parts(ON.replace(node_ip="10.0.0.1"), transport=transport, discovery=StaticDiscovery([]))
        assert not made.on_this_network
        warn_about(made)
        node = await Node._begin(await take_port(made))
        await node.stop()

    run(main())
    assert "FLEETLM" not in caplog.text


def test_a_doubtful_own_address_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    warn_about(prepared("127.0.0.1", Settings(), None, "two addresses: set FLEETLM_NODE_IP"))
    assert "two addresses" in caplog.text


def test_what_a_node_draws_cannot_be_guessed_unless_it_is_given_a_generator() -> None:
    """Epochs prove that a HELLO has arrived, and `random.Random` tells its next numbers by its last ones."""
    drawn: list[random.Random] = []

    class Stopped(Exception):
        pass

    async def begin(made: Prepared) -> Node:
        drawn.append(made.rng)
        raise Stopped

    async def main() -> None:
        network = SimNetwork(SimLoop.current(), SimLoop.current().rng)
        for given in (None, random.Random(7)):
            with pytest.raises(Stopped):
                await NodeStarting(begin, ON, None, SimTransport(network, ON), given, None)

    run(main())
    assert [type(each) for each in drawn] == [random.SystemRandom, random.Random]


# Services.


class Service:
    """A service that a test loads by name."""

    seen: ClassVar[list[Any]] = []

    def __init__(self, node: Node) -> None:
        self.node = node

    async def start(self) -> None:
        self.seen.append(("start", self.node.name))

    async def stop(self, reason: str, asked_by: Any) -> None:
        self.seen.append(("stop", reason, asked_by is asyncio.current_task()))


class BrokenService(Service):
    """One that cannot start."""

    async def start(self) -> None:
        raise MemoryError


async def simulated_parts(network: SimNetwork, service: str) -> Prepared:
    made = await parts(ON, transport=SimTransport(network, ON), discovery=StaticDiscovery([]))
    return replace(made, services=(service,))


def test_the_service_of_the_remote_shell_is_loaded_by_its_name() -> None:
    assert load_service(REMOTE_SHELL) is RemoteServer
    assert load_service(HEALTH) is HealthServer

    async def main() -> None:
        settings = Settings(node_ip="127.0.0.1", remote=True)
        network = SimNetwork(SimLoop.current(), SimLoop.current().rng)
        made = await parts(settings, transport=SimTransport(network, settings))
        assert made.services == (), "a simulated node has no remote shell"
        on_this_machine = await prepare(settings, None, None, random.Random(1), 5)
        assert on_this_machine.services == (HEALTH, REMOTE_SHELL)
        off = await prepare(settings.replace(remote=False), None, None, random.Random(1), 5)
        assert off.services == (HEALTH,)

    run(main())


@virtual
async def test_a_service_starts_with_the_node_and_stops_with_it() -> None:
    Service.seen.clear()
    network = SimNetwork(SimLoop.current(), SimLoop.current().rng)
    node = await Node._begin(await take_port(await simulated_parts(network, f"{__name__}:Service")))
    assert Service.seen == [("start", node.name)]
    await node.stop("enough")
    assert Service.seen == [("start", node.name), ("stop", "enough", False)]


@pytest.mark.parametrize(
    ("service", "error"),
    [
        (f"{__name__}:BrokenService", MemoryError),
        (f"{__name__}:NoSuchService", AttributeError),
        ("fleetlm.no_such_module:Service", ImportError),
    ],
)
def test_a_node_whose_service_cannot_start_leaves_nothing_behind(
    service: str, error: type[Exception]
) -> None:
    async def main() -> None:
        network = SimNetwork(SimLoop.current(), SimLoop.current().rng)
        made = await simulated_parts(network, service)
        with pytest.raises(error):
            await Node._begin(await take_port(made))
        assert not network.host("10.0.0.1").endpoints
        await asyncio.sleep(100)

    logging.disable(logging.CRITICAL)
    try:
        run(main())
    finally:
        logging.disable(logging.NOTSET)


def test_a_node_that_was_not_awaited_says_so() -> None:
    starting: Any = Node.start(ON)
    with pytest.raises(AttributeError, match=r"no node yet that has \.list: write `node = await Node.start"):
        starting.list()
    with pytest.raises(TypeError, match=r"async with Node.start\(...\) as node"), starting:
        pass
    assert not hasattr(starting, "name")
