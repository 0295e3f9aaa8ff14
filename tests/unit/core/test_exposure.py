"""Where a node may listen without a cookie, and what is said about it."""

from __future__ import annotations

import pytest

from fleetlm.core.exposure import (
    EVERYWHERE,
    check_exposure,
    describe_exposure,
    is_only_here,
    is_private,
    refuse_exposed,
)
from fleetlm.errors import SettingsError
from fleetlm.settings import Settings

NONE = Settings()
COOKIE = Settings(cookie="kaeluo4Uo6Xei3shohg0aiQu")

PRIVATE = [
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1",
    "100.127.255.255", "169.254.169.254", "fd00::7", "fdaa:0:22b7:a7b::3", "fc00::1", "fe80::1",
    "240.0.0.9", "198.18.0.5", "::ffff:10.0.0.1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "9.255.255.255", "11.0.0.1", "172.15.255.255", "172.32.0.1", "192.167.255.255", "192.169.0.1",
    "100.63.255.255", "100.128.0.1", "169.253.255.255", "203.0.113.7", "192.0.2.1", "2001:db8::1",
    "2600:1f18::1", "2a00:1450:4001::200e", "2002:a00:1::1", "2001:0:53aa::1", "64:ff9b::a00:1",
    "fec0::1", "::ffff:8.8.8.8", "0.0.0.0", "::",
]  # fmt: skip
LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("ip", [*LOOPBACK, *PRIVATE])
def test_three_variables_are_enough_on_a_private_network(ip: str) -> None:
    assert is_private(ip)
    check_exposure(NONE, [ip])
    assert is_only_here(ip) == (ip in LOOPBACK)


@pytest.mark.parametrize("ip", PUBLIC)
def test_an_address_that_the_internet_may_reach_needs_a_cookie(ip: str) -> None:
    assert not is_private(ip)
    with pytest.raises(SettingsError) as caught:
        check_exposure(NONE, ["10.0.0.1", ip])
    text = str(caught.value)
    assert text.startswith("FLEETLM_COOKIE is not set; allowed: a cookie, because ")
    assert f"{ip} may be reached from the Internet" in text
    assert "10.0.0.1" not in text
    assert "`fleetlm cookie`" in text
    assert "FLEETLM_INSECURE=1" in text
    check_exposure(COOKIE, [ip])
    check_exposure(NONE.replace(insecure=True), [ip])


def test_all_addresses_of_a_machine_that_does_not_list_them_count_as_public() -> None:
    with pytest.raises(SettingsError, match="any address of this machine may be reached"):
        check_exposure(NONE, ["10.0.0.1", EVERYWHERE])


@pytest.mark.parametrize("ips", [["10.0.0.1"], ["fd00::1", "fd00::1"], ["127.0.0.1", "192.168.1.4"]])
def test_a_private_network_has_one_warning_that_names_the_address_and_the_cure(ips: list[str]) -> None:
    warning = describe_exposure(NONE, ips)
    assert warning is not None
    assert warning.startswith(f"no cookie is set: every machine that reaches {ips[-1]} (containers included)")
    assert warning.endswith("make one with `fleetlm cookie`, and set FLEETLM_COOKIE to it on every node")
    assert warning.count(ips[-1]) == 1
    assert describe_exposure(COOKIE, ips) is None


def test_a_node_that_is_insecure_on_purpose_is_warned_about_too() -> None:
    warning = describe_exposure(NONE.replace(insecure=True), ["10.0.0.1", "8.8.8.8", "2600::1"])
    assert warning is not None
    assert "reaches 8.8.8.8, 2600::1 (the Internet included" in warning


def test_many_addresses_are_counted() -> None:
    warning = describe_exposure(NONE, [f"10.0.0.{number}" for number in range(1, 10)])
    assert warning is not None
    assert "10.0.0.4 and 5 more (" in warning


@pytest.mark.parametrize("ip", LOOPBACK)
def test_nobody_is_warned_of_what_only_this_machine_reaches(ip: str) -> None:
    assert describe_exposure(NONE, [ip]) is None


def test_a_node_that_listens_everywhere_refuses_what_comes_to_an_address_that_is_not_private() -> None:
    refuse = refuse_exposed(NONE, [EVERYWHERE])
    assert refuse is not None
    assert [refuse(ip) for ip in (*LOOPBACK, *PRIVATE)] == [None] * len(LOOPBACK + PRIVATE)
    for ip in PUBLIC:
        reason = refuse(ip)
        assert reason is not None
        assert f"it came to {ip}, which this machine has got since" in reason
        assert "`fleetlm cookie`" in reason


@pytest.mark.parametrize(
    ("settings", "listening"),
    [(COOKIE, [EVERYWHERE]), (NONE.replace(insecure=True), [EVERYWHERE]), (NONE, ["10.0.0.1", "fd00::1"])],
    ids=["cookie", "insecure", "listens at what was checked"],
)
def test_nothing_is_refused_where_nothing_can_be_exposed_later(
    settings: Settings, listening: list[str]
) -> None:
    assert refuse_exposed(settings, listening) is None
