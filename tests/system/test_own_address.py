"""This node's address, decided with real probes and a real name server on loopback."""

from __future__ import annotations

import asyncio
import time

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery import own_address as module
from fleetlm.discovery.dns import DnsDiscovery, StaticDiscovery
from fleetlm.discovery.own_address import Rule, has_address, host_addresses, own_address, route_source
from fleetlm.settings import Settings
from fleetlm.testing import DnsServer
from fleetlm.testing.dns_server import Reply
from tests.support.patience import allowed_s

NAME = "fleet.test."
FOREIGN = "192.0.2.1"
"""An address that no machine has. Source: RFC 5737."""


class Forbidden:
    """A discovery that must not be asked."""

    source = "nothing"

    async def lookup(self) -> Answer:
        raise AssertionError("asked")


def at(server: DnsServer) -> DnsDiscovery:
    return DnsDiscovery(NAME, server=(server.host, server.port), lifetime_s=0.5)


@pytest.mark.parametrize(
    ("ip", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.9", True),
        ("::1", True),
        (FOREIGN, False),
        ("2001:db8::1", False),
    ],
)
def test_an_address_of_this_machine_is_one_that_an_interface_has(ip: str, own: bool) -> None:
    assert has_address(ip) is own


def test_the_route_to_loopback_leaves_from_loopback() -> None:
    source = route_source("127.0.0.9")
    assert source is not None
    assert source.startswith("127.")
    assert route_source("::1") == "::1"
    assert route_source("255.255.255.255") is None  # not permitted without SO_BROADCAST


async def test_the_hosts_own_name_is_looked_up_in_bounded_time() -> None:
    started = time.monotonic()
    found = await host_addresses(timeout_s=0.5)
    assert time.monotonic() - started < allowed_s(1.0)
    assert all(isinstance(ip, str) for ip in found)


@pytest.mark.parametrize(
    ("settings", "ip", "rule"),
    [
        (Settings(node_ip="127.0.0.5", pod_ip="127.0.0.6"), "127.0.0.5", Rule.EXPLICIT),
        (Settings(fly_private_ip="::1", pod_ip="127.0.0.6"), "::1", Rule.PLATFORM),
        (Settings(pod_ip="127.0.0.6"), "127.0.0.6", Rule.PLATFORM),
    ],
)
async def test_a_told_address_waits_for_nothing(settings: Settings, ip: str, rule: Rule) -> None:
    own, answer = await own_address(settings, Forbidden())
    assert (own.ip, own.rule, own.warning, answer) == (ip, rule, None, None)


async def test_without_clustering_it_is_loopback() -> None:
    own, answer = await own_address(Settings(pod_ip="127.0.0.6"), None)
    assert (own.ip, own.rule, own.warning, answer) == ("127.0.0.1", Rule.LOOPBACK, None, None)


async def test_the_first_answer_with_an_own_address_ends_the_wait() -> None:
    async with DnsServer() as server:
        server.set(NAME, [FOREIGN, "127.0.0.7"])
        server.behave(Reply.NXDOMAIN)

        async def heal() -> None:
            await asyncio.sleep(0.15)
            server.set(NAME, ["127.0.0.7"])
            server.heal()

        healing = asyncio.create_task(heal())
        started = time.monotonic()
        own, answer = await own_address(Settings(), at(server), budget_s=20.0)
        await healing
    assert (own.ip, own.rule) == ("127.0.0.7", Rule.DNS)
    assert answer == Answer(Outcome.ADDRESSES, ("127.0.0.7",), "1 address")
    assert time.monotonic() - started < allowed_s(5.0)


async def test_an_answer_without_an_own_address_is_given_the_budget_and_then_the_route_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = "198.51.100.1"
    monkeypatch.setattr(module, "route_source", {FOREIGN: mine}.get)
    monkeypatch.setattr(module, "observe_addresses", lambda: mine.__eq__)
    started = time.monotonic()
    own, answer = await own_address(Settings(), StaticDiscovery([FOREIGN]), budget_s=0.4)
    assert (own.ip, own.rule) == (mine, Rule.ROUTE)
    assert answer is not None
    assert 0.4 <= time.monotonic() - started < allowed_s(1.0)


async def test_an_ambiguous_answer_on_loopback_does_not_get_better_by_waiting() -> None:
    started = time.monotonic()
    own, _ = await own_address(Settings(), StaticDiscovery(["127.0.0.2", "127.0.0.3"]), budget_s=20.0)
    assert time.monotonic() - started < allowed_s(5.0)
    assert (own.ip, own.rule) == ("127.0.0.1", Rule.LOOPBACK)
    assert own.warning is not None


@pytest.mark.parametrize("reply", [Reply.SERVFAIL, Reply.DROP, Reply.NXDOMAIN])
async def test_without_an_answer_the_hosts_name_decides_within_the_budget(
    reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def named(*, timeout_s: float) -> tuple[str, ...]:
        return ("198.51.100.1",)

    monkeypatch.setattr(module, "host_addresses", named)
    monkeypatch.setattr(module, "observe_addresses", lambda: lambda _ip: True)
    async with DnsServer() as server:
        server.behave(reply)
        started = time.monotonic()
        own, answer = await own_address(Settings(), at(server), budget_s=0.4)
        assert time.monotonic() - started < allowed_s(1.0)
    assert (own.ip, own.rule) == ("198.51.100.1", Rule.HOSTNAME)
    assert answer is None or not answer.addresses


async def test_an_answer_with_addresses_is_not_forgotten_for_a_later_failure() -> None:
    answers = [
        Answer(Outcome.ADDRESSES, (FOREIGN,), "1 address"),
        Answer(Outcome.FAILED, (), "SERVFAIL"),
    ]

    class Fading:
        source = "a name server that fails"

        async def lookup(self) -> Answer:
            return answers.pop(0) if len(answers) > 1 else answers[0]

    _, answer = await own_address(Settings(), Fading(), budget_s=0.4)
    assert answer == Answer(Outcome.ADDRESSES, (FOREIGN,), "1 address")
    assert len(answers) == 1


async def test_cancelling_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    deciding = asyncio.create_task(own_address(Settings(), StaticDiscovery([FOREIGN])))
    await asyncio.sleep(0.05)
    deciding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deciding
    assert asyncio.all_tasks() == before
