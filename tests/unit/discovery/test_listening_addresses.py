"""Where a node listens, and under which addresses it is reached."""

from __future__ import annotations

import pytest

from fleetlm.discovery.interfaces import InterfaceAddress
from fleetlm.discovery.listening_addresses import choose_listening, list_reached
from fleetlm.discovery.own_address import OwnAddress, Rule
from fleetlm.errors import SettingsError

HERE = (
    InterfaceAddress("127.0.0.1", "lo"),
    InterfaceAddress("10.0.0.7", "eth0"),
    InterfaceAddress("fd00::7", "eth0"),
    InterfaceAddress("8.8.8.8", "eth1"),
    InterfaceAddress("fe80::7", "eth0"),
)
OWN = OwnAddress("10.0.0.7", "said so", Rule.EXPLICIT)


def test_a_node_listens_at_its_address_and_its_aliases_and_nowhere_else() -> None:
    own = OwnAddress("10.0.0.7", "in DNS", Rule.DNS, ("fd00::7",))
    assert choose_listening(None, own, HERE) == ("10.0.0.7", "fd00::7")
    elsewhere = OwnAddress("203.0.113.5", "said so", Rule.EXPLICIT)
    assert choose_listening(None, elsewhere, HERE) == ("203.0.113.5",), "never at all addresses by itself"


@pytest.mark.parametrize(
    ("bind", "listening"),
    [
        ("*", ("*",)),
        ("10.0.0.9", ("10.0.0.9",)),
        ("eth0", ("10.0.0.7", "fd00::7")),
        ("fd00::/8", ("fd00::7",)),
        ("0.0.0.0/0", ("10.0.0.7", "8.8.8.8", "127.0.0.1")),
    ],
)
def test_bind_says_where_to_listen(bind: str, listening: tuple[str, ...]) -> None:
    assert choose_listening(bind, OWN, HERE) == listening


def test_the_own_address_comes_first() -> None:
    own = OwnAddress("fd00::7", "said so", Rule.EXPLICIT)
    assert choose_listening("eth0", own, HERE) == ("fd00::7", "10.0.0.7")


@pytest.mark.parametrize("bind", ["eth9", "10.9.0.0/16"])
def test_an_interface_without_an_address_is_refused_with_those_that_have_one(bind: str) -> None:
    with pytest.raises(SettingsError, match=f"FLEETLM_BIND is '{bind}'.*eth1 \\(8.8.8.8\\)"):
        choose_listening(bind, OWN, HERE)
    with pytest.raises(SettingsError, match="does not list its interfaces: give an address"):
        choose_listening(bind, OWN, ())


def test_a_node_is_reached_at_the_address_in_its_name_and_where_it_listens() -> None:
    assert list_reached(OWN, ("10.0.0.7", "fd00::7"), HERE) == ("10.0.0.7", "fd00::7")
    behind_nat = OwnAddress("203.0.113.5", "said so", Rule.EXPLICIT)
    assert list_reached(behind_nat, ("10.0.0.7",), HERE) == ("203.0.113.5", "10.0.0.7")
    everywhere = ("10.0.0.7", "127.0.0.1", "fd00::7", "8.8.8.8", "fe80::7")
    assert list_reached(OWN, ("*",), HERE) == everywhere
    assert list_reached(OWN, ("*",), ()) == ("10.0.0.7", "*")
