"""Names of time zones that a peer invents do not make this machine search for each of them."""

from __future__ import annotations

import zoneinfo
from zoneinfo import ZoneInfo

import pytest

from fleetlm.wire.zones import Zones


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names that are looked for in the file system, in their order."""
    names: list[str] = []

    def search(key: str) -> ZoneInfo:
        names.append(key)
        return ZoneInfo(key)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", search)
    return names


def test_a_zone_is_looked_for_once(searched: list[str]) -> None:
    found = Zones()
    for _ in range(3):
        assert found.find("Europe/Paris") is ZoneInfo("Europe/Paris")
        assert "No time zone found" in str(found.find("Europe/Atlantis"))
    assert searched == ["Europe/Paris", "Europe/Atlantis"]


@pytest.mark.parametrize(
    "key",
    ["", "../etc/passwd", "/etc/passwd", "a b", "A/b/c/d/e", "x" * 33, "A/" + "b" * 33, "A\n", "Ä", "A//b"],
)
def test_what_has_not_the_shape_of_a_key_is_never_looked_for(key: str, searched: list[str]) -> None:
    assert Zones().find(key) == "this is not the key of a time zone"
    assert searched == []


def test_after_many_names_only_zones_of_this_machine_are_looked_for(searched: list[str]) -> None:
    found = Zones()
    for number in range(10_000):
        assert isinstance(found.find(f"A/z{number}"), str)
    assert len(searched) == 64
    assert isinstance(found.find("Europe/Paris"), ZoneInfo)
    assert isinstance(found.find("America/Argentina/Buenos_Aires"), ZoneInfo)
    assert isinstance(found.find("Etc/GMT+1"), ZoneInfo)
    assert len(searched) == 67
