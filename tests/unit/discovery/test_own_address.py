"""The rules for this node's address, without sockets and clocks: the probes are sets and dicts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any
from unittest import mock

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery import own_address as module
from fleetlm.discovery.interfaces import InterfaceAddress
from fleetlm.discovery.own_address import (
    OwnAddress,
    Rule,
    choose,
)
from fleetlm.errors import SettingsError
from fleetlm.settings import Settings
from tests.support.session_fakes import virtual


def decided(
    *,
    explicit: str | None = None,
    env: tuple[tuple[str, str], ...] = (),
    answer: tuple[str, ...] = (),
    mine: Collection[str] = (),
    routes: Mapping[str, str] | None = None,
    host: tuple[str, ...] = (),
    clustering: bool = True,
    interfaces: tuple[InterfaceAddress, ...] = (),
) -> OwnAddress:
    """`choose` on a machine that has the addresses ``mine`` and, as on Linux, all of 127/8."""
    return choose(
        explicit=explicit,
        env=env,
        answer_addresses=answer,
        has_address=lambda ip: ip in mine or ip.startswith("127.") or ip == "::1",
        route_to=(routes or {}).get,
        host_addresses=host,
        clustering=clustering,
        interfaces=interfaces,
    )


class Answers:
    """A discovery that always finds the same addresses."""

    source = "a table"

    async def lookup(self) -> Answer:
        return Answer(Outcome.ADDRESSES, ("fd00::2", "fd00::7"), "2 addresses")


POD = ("POD_IP", "10.0.0.7")
FLY = ("FLY_PRIVATE_IP", "fdaa::3")
EVERYTHING: dict[str, Any] = {
    "explicit": "10.9.9.9",
    "env": (FLY, POD),
    "answer": ("10.1.0.1", "10.1.0.2"),
    "mine": {"10.9.9.9", "fdaa::3", "10.0.0.7", "10.1.0.1", "10.2.0.1", "10.3.0.1"},
    "routes": {"10.1.0.2": "10.2.0.1"},
    "host": ("10.3.0.1",),
}


@pytest.mark.parametrize(
    ("without", "ip", "rule"),
    [
        ({}, "10.9.9.9", Rule.EXPLICIT),
        ({"explicit": None}, "fdaa::3", Rule.PLATFORM),
        ({"explicit": None, "env": (POD,)}, "10.0.0.7", Rule.PLATFORM),
        ({"explicit": None, "env": ()}, "10.1.0.1", Rule.DNS),
        ({"explicit": None, "env": (), "answer": ("10.1.0.2",)}, "10.2.0.1", Rule.ROUTE),
        ({"explicit": None, "env": (), "answer": ()}, "10.3.0.1", Rule.HOSTNAME),
        ({"explicit": None, "env": (), "answer": (), "host": ()}, "127.0.0.1", Rule.LOOPBACK),
    ],
)
def test_rules_apply_in_their_order(without: dict[str, Any], ip: str, rule: Rule) -> None:
    own = decided(**{**EVERYTHING, **without})
    assert (own.ip, own.rule) == (ip, rule)
    assert (own.warning is None) == (rule is not Rule.LOOPBACK)


@pytest.mark.parametrize(
    ("answer", "mine", "ip", "aliases"),
    [
        (("10.0.0.1", "10.0.0.2"), {"10.0.0.2"}, "10.0.0.2", ()),
        (("10.0.0.1", "fd00::1"), {"10.0.0.1", "fd00::1"}, "10.0.0.1", ("fd00::1",)),
        (("10.0.0.1", "fd00::1"), {"fd00::1"}, "fd00::1", ()),
        (("127.0.0.2",), (), "127.0.0.2", ()),
        (("127.0.0.2", "::1"), (), "127.0.0.2", ()),
        (("::1",), (), "::1", ()),
        (("10.0.0.1", "127.0.0.2", "127.0.0.3"), {"10.0.0.1"}, "10.0.0.1", ()),
    ],
)
def test_the_address_in_the_answer_that_this_machine_has(
    answer: tuple[str, ...], mine: Collection[str], ip: str, aliases: tuple[str, ...]
) -> None:
    own = decided(answer=answer, mine=mine)
    assert own == OwnAddress(ip, "it is this machine's address in the DNS answer", Rule.DNS, aliases)


def test_several_own_addresses_of_one_family_in_the_answer_give_the_lowest_and_a_warning() -> None:
    own = decided(answer=("10.0.0.1", "10.0.0.2"), mine={"10.0.0.1", "10.0.0.2"})
    assert (own.ip, own.rule, own.aliases) == ("10.0.0.1", Rule.DNS, ("10.0.0.2",))
    assert own.warning is not None
    assert "10.0.0.1, 10.0.0.2" in own.warning
    assert "set FLEETLM_NODE_IP" in own.warning


def test_several_loopback_addresses_in_the_answer_cannot_tell_which_is_this_nodes() -> None:
    own = decided(
        answer=("127.0.0.2", "127.0.0.3"),
        mine={"10.0.0.1"},
        host=("10.0.0.1",),
        routes={"127.0.0.2": "127.0.0.1"},
    )
    assert (own.ip, own.rule, own.aliases) == ("127.0.0.1", Rule.LOOPBACK, ())
    assert own.warning is not None
    assert "127.0.0.2, 127.0.0.3" in own.warning
    assert "set FLEETLM_NODE_IP" in own.warning


def test_a_stray_loopback_address_in_the_answer_is_not_ours_although_it_can_be_bound() -> None:
    own = decided(answer=("10.0.0.2", "127.0.1.1"), routes={"10.0.0.2": "10.0.0.1"}, mine={"10.0.0.1"})
    assert (own.ip, own.rule) == ("10.0.0.1", Rule.ROUTE)


def test_the_route_to_the_first_peer_that_has_one_decides() -> None:
    own = decided(answer=("10.0.0.2", "fd00::2"), routes={"fd00::2": "fd00::1"}, mine={"fd00::1"})
    assert (own.ip, own.rule, own.warning) == ("fd00::1", Rule.ROUTE, None)
    assert own.why == "packets to the peer fd00::2 leave from it"


def test_a_route_that_leaves_from_loopback_is_no_route() -> None:
    own = decided(answer=("10.0.0.2",), routes={"10.0.0.2": "127.0.0.1"})
    assert own.rule is Rule.LOOPBACK


def test_a_link_local_source_of_a_route_is_passed_over() -> None:
    own = decided(
        answer=("fd00::2", "fd00::3"),
        routes={"fd00::2": "fe80::7", "fd00::3": "fd00::1"},
        mine={"fe80::7", "fd00::1"},
    )
    assert (own.ip, own.rule) == ("fd00::1", Rule.ROUTE)


def test_a_huge_answer_without_routes_is_given_up_after_a_few() -> None:
    asked: list[str] = []

    def route_to(ip: str) -> None:
        asked.append(ip)

    choose(
        explicit=None,
        env=(),
        answer_addresses=tuple(f"10.0.{n >> 8}.{n & 255}" for n in range(1, 2000)),
        has_address=lambda _: False,
        route_to=route_to,
        host_addresses=(),
        clustering=True,
    )
    assert len(asked) == 16


@pytest.mark.parametrize(
    ("host", "mine", "ip", "warns"),
    [
        (("10.0.0.1",), {"10.0.0.1"}, "10.0.0.1", False),
        (("127.0.1.1", "10.0.0.1"), {"10.0.0.1"}, "10.0.0.1", False),
        (("10.0.0.1", "10.0.0.1"), {"10.0.0.1"}, "10.0.0.1", False),
        (("10.0.0.1", "10.0.0.2"), {"10.0.0.2"}, "10.0.0.2", True),
        (("10.0.0.1", "10.0.0.2"), {"10.0.0.1", "10.0.0.2"}, "10.0.0.1", True),
        (("10.0.0.1",), (), "127.0.0.1", True),
        (("127.0.1.1",), (), "127.0.0.1", True),
    ],
)
def test_what_the_hosts_name_resolves_to(
    host: tuple[str, ...], mine: Collection[str], ip: str, warns: bool
) -> None:
    own = decided(host=host, mine=mine)
    assert (own.ip, own.warning is not None) == (ip, warns)
    assert own.warning is None or "set FLEETLM_NODE_IP" in own.warning


def test_without_clustering_the_node_is_on_loopback_and_that_is_no_reason_to_warn() -> None:
    own = decided(**{**EVERYTHING, "explicit": None, "clustering": False})
    assert own == OwnAddress("127.0.0.1", "clustering is off", Rule.LOOPBACK)


def test_an_explicit_address_holds_without_clustering_too() -> None:
    own = decided(explicit="127.0.0.5", clustering=False)
    assert own == OwnAddress("127.0.0.5", "set by FLEETLM_NODE_IP", Rule.EXPLICIT)


@pytest.mark.parametrize(
    ("given", "name", "ip"),
    [
        ({"explicit": "10.0.0.9"}, "FLEETLM_NODE_IP", "10.0.0.9"),
        ({"env": (POD,)}, "POD_IP", "10.0.0.7"),
        ({"env": (FLY,)}, "FLY_PRIVATE_IP", "fdaa::3"),
    ],
)
def test_a_told_address_that_is_not_here_is_taken_with_a_warning(
    given: dict[str, Any], name: str, ip: str
) -> None:
    own = decided(**given)
    assert own.ip == ip
    assert own.warning is not None
    assert own.warning.startswith(f"{name} is {ip}, which is not an address of this machine")


def test_a_told_address_of_a_dual_stack_pod_has_the_other_as_alias() -> None:
    own = decided(env=(POD,), answer=("10.0.0.7", "fd00::7"), mine={"10.0.0.7", "fd00::7"})
    assert (own.ip, own.aliases, own.warning) == ("10.0.0.7", ("fd00::7",), None)


def test_ports_of_the_answer_do_not_matter() -> None:
    answer = ("10.0.0.2:4370", "10.0.0.7:20001", "10.0.0.7:20002", "[fd00::7]:20001")
    own = decided(answer=answer, mine={"10.0.0.7", "fd00::7"})
    assert (own.ip, own.rule, own.aliases, own.warning) == ("10.0.0.7", Rule.DNS, ("fd00::7",), None)
    routed = decided(answer=answer[:1], mine={"10.0.0.7"}, routes={"10.0.0.2": "10.0.0.7"})
    assert (routed.ip, routed.rule) == ("10.0.0.7", Rule.ROUTE)
    local = decided(answer=("127.0.0.1:4370", "127.0.0.1:4371"), mine={"127.0.0.1"})
    assert (local.ip, local.rule) == ("127.0.0.1", Rule.DNS)


def test_an_explicit_address_has_no_aliases_since_another_node_may_live_there() -> None:
    own = decided(explicit="10.0.0.1", answer=("10.0.0.1", "10.0.0.2"), mine={"10.0.0.1", "10.0.0.2"})
    assert (own.aliases, own.warning) == ((), None)


# ── interfaces ───────────────────────────────────────────────────────────────────────────────────

ETH0 = InterfaceAddress("10.0.0.20", "eth0")
ETH1 = InterfaceAddress("172.31.0.20", "eth1")
VIRTUAL = InterfaceAddress("10.0.0.5", "lo", may_be_shared=True)
LO = InterfaceAddress("127.0.0.1", "lo")
SIX = InterfaceAddress("fd00::20", "eth0")
LINK_LOCAL = InterfaceAddress("fe80::1", "eth0")


def test_an_address_that_other_machines_may_have_is_not_this_nodes() -> None:
    own = decided(
        answer=("10.0.0.5", "10.0.0.20", "10.0.0.21"),
        mine=("10.0.0.5", "10.0.0.20"),
        interfaces=(LO, VIRTUAL, ETH0),
    )
    assert (own.ip, own.rule, own.aliases) == ("10.0.0.20", Rule.DNS, ())


def test_an_answer_with_a_shared_address_alone_is_a_warning() -> None:
    own = decided(
        answer=("10.0.0.5",), mine=("10.0.0.5", "10.0.0.20"), interfaces=(LO, VIRTUAL, ETH0),
        routes={"10.0.0.5": "10.0.0.5"},
    )  # fmt: skip
    assert (own.ip, own.rule) == ("10.0.0.20", Rule.INTERFACE)
    assert own.warning is not None
    assert "virtual address" in own.warning
    assert "10.0.0.5" in own.warning


@pytest.mark.parametrize(
    ("interfaces", "ip"),
    [
        ((LO, ETH0), "10.0.0.20"),
        ((LO, ETH0, SIX, LINK_LOCAL), "10.0.0.20"),
        ((LO, SIX, LINK_LOCAL), "fd00::20"),
        ((LO, ETH0, ETH1), "127.0.0.1"),
        ((LO, VIRTUAL), "127.0.0.1"),
        ((), "127.0.0.1"),
    ],
)
def test_before_dns_is_there_the_only_address_of_the_machine_is_right(
    interfaces: tuple[InterfaceAddress, ...], ip: str
) -> None:
    assert decided(interfaces=interfaces).ip == ip


def test_a_cluster_on_loopback_does_not_take_the_address_of_an_interface() -> None:
    own = decided(answer=("127.0.0.2", "127.0.0.3"), interfaces=(LO, ETH0))
    assert own.rule is Rule.LOOPBACK


MACHINE = (
    InterfaceAddress("127.0.0.1", "lo"),
    InterfaceAddress("::1", "lo"),
    InterfaceAddress("fe80::7", "eth1"),
    InterfaceAddress("fd00::7", "eth1"),
    InterfaceAddress("10.8.0.7", "eth1"),
    InterfaceAddress("10.8.0.9", "eth1"),
    InterfaceAddress("10.9.0.7", "eth0"),
    InterfaceAddress("fe80::9", "eth2"),
)


@pytest.mark.parametrize(
    ("wanted", "interface", "ip"),
    [
        ("eth1", "eth1", "10.8.0.7"),
        ("eth0", "eth0", "10.9.0.7"),
        ("lo", "lo", "127.0.0.1"),
        ("10.9.0.0/16", "eth0", "10.9.0.7"),
        ("10.0.0.0/8", "eth1", "10.8.0.7"),
        ("10.8.0.8/29", "eth1", "10.8.0.9"),
        ("fd00::/8", "eth1", "fd00::7"),
        ("0.0.0.0/0", "eth1", "10.8.0.7"),
        ("127.0.0.0/8", "lo", "127.0.0.1"),
    ],
)
def test_of_an_interface_or_network_the_first_address_is_taken_and_both_are_named(
    wanted: str, interface: str, ip: str
) -> None:
    own = decided(explicit=wanted, interfaces=MACHINE)
    assert own == OwnAddress(ip, f"FLEETLM_NODE_IP={wanted}: {interface} has {ip}", Rule.EXPLICIT)


@pytest.mark.parametrize("wanted", ["eth2", "eth9", "10.7.0.0/16", "fe80::/10", "worker-1"])
def test_an_interface_or_network_without_an_address_here_is_an_error_that_lists_what_there_is(
    wanted: str,
) -> None:
    with pytest.raises(SettingsError) as caught:
        decided(explicit=wanted, interfaces=MACHINE)
    assert caught.value.value == wanted
    assert "lo (127.0.0.1, ::1), eth1 (fe80::7, fd00::7, 10.8.0.7, 10.8.0.9), eth0 (10.9.0.7)" in str(
        caught.value
    )


def test_where_the_system_lists_no_interfaces_the_error_asks_for_an_address() -> None:
    with pytest.raises(SettingsError, match="give an address"):
        decided(explicit="eth1", interfaces=())


@virtual
async def test_an_address_that_the_kernel_checks_for_duplicates_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    for settings in (Settings(fly_private_ip="fd00::7"), Settings(node_ip="fd00::7")):
        end = loop.time() + 3

        def tentative(end: float = end) -> frozenset[str]:
            return frozenset({"fd00::7"} if loop.time() < end else ())

        def observe(end: float = end) -> Callable[[str], bool]:
            return lambda _: loop.time() >= end

        with (
            mock.patch.object(module, "tentative_addresses", tentative),
            mock.patch.object(module, "observe_addresses", observe),
        ):
            own, _ = await module.own_address(settings, Answers())
        assert (own.ip, own.warning) == ("fd00::7", None)
        assert end <= loop.time() < end + 0.2


@virtual
async def test_an_address_of_the_dns_answer_that_is_checked_for_duplicates_is_this_machines() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()

    def tentative() -> frozenset[str]:
        return frozenset({"fd00::7"} if loop.time() < begun + 3 else ())

    with (
        mock.patch.object(module, "tentative_addresses", tentative),
        mock.patch.object(
            module, "observe_addresses", return_value=lambda ip: ip == "fd00::7" and ip not in tentative()
        ),
        mock.patch.object(module, "route_source", return_value=None),
        mock.patch.object(module, "local_addresses", return_value=()),
    ):
        own, _ = await module.own_address(Settings(), Answers())
    assert (own.ip, own.rule) == ("fd00::7", Rule.DNS)


@virtual
async def test_an_address_that_is_checked_for_ever_delays_the_start_by_seconds_only() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with mock.patch.object(module, "tentative_addresses", return_value=frozenset({"fd00::7"})):
        await module.own_address(Settings(pod_ip="fd00::7"), Answers())
    assert loop.time() - begun == pytest.approx(module.DETECTION_LIMIT_S)


@virtual
async def test_an_interface_that_gets_its_address_after_a_moment_is_waited_for() -> None:
    looks = 0

    def slowly() -> tuple[InterfaceAddress, ...]:
        nonlocal looks
        looks += 1
        return MACHINE if looks > 5 else MACHINE[:2]

    with mock.patch.object(module, "local_addresses", slowly):
        own, answer = await module.own_address(Settings(node_ip="eth1"), None)
        assert (own.ip, answer) == ("10.8.0.7", None)
        with pytest.raises(SettingsError, match="eth9"):
            await module.own_address(Settings(node_ip="eth9"), None)


@virtual
async def test_an_interface_is_not_waited_for_where_the_system_lists_none() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with (
        mock.patch.object(module, "local_addresses", return_value=None),
        pytest.raises(SettingsError, match="does not list its interfaces"),
    ):
        await module.own_address(Settings(node_ip="en0"), None)
    assert loop.time() == begun
