"""A host whose ports are not known is dialled port by port, slowly, as long as it is wanted."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fleetlm.core.effects import Dial, HangUp
from fleetlm.core.port_scan import GAP_S, MAX_DIALS, PortScan
from fleetlm.settings import Settings

OWN, OTHER = "10.0.0.1", "10.0.0.2"
T = 100.0


class World:
    """A scan with what it asks for, and a clock that goes on from deadline to deadline."""

    def __init__(self, own_port: int = 4370, **settings: Any) -> None:
        self.settings = Settings().replace(**settings)
        self.wanted = {OWN, OTHER}
        self.known: set[tuple[str, int]] = set()
        self.channels = itertools.count(1)
        self.scan = PortScan(self.settings, OWN, own_port, lambda ip: ip in self.wanted)
        self.now = T

    def dials(self) -> list[Dial]:
        found = self.scan.dials(
            self.now, lambda ip, port: (ip, port) in self.known, lambda: next(self.channels)
        )
        return [each for each in found if isinstance(each, Dial)]

    def watch(self, until: float, *foreign: int) -> list[tuple[float, int]]:
        """Go on to a time. Returns when each port was dialled.

        Each dial is refused at once, but for those of the ports ``foreign``, where another program answers.
        """
        found = []
        while True:
            for dial in self.dials():
                found.append((round(self.now - T, 3), dial.port))
                self.scan.end(self.now, dial.channel, is_foreign=dial.port in foreign)
            when = min(self.scan.deadlines(), default=until)
            if when >= until:
                return found
            self.now = max(when, self.now)


def test_one_port_is_dialled_at_a_time_the_lowest_first_and_each_round_is_slower() -> None:
    world = World(node_ports=(4370, 4373))
    world.scan.begin(T, OTHER)
    world.scan.begin(T, OTHER)
    found = world.watch(T + 10)
    assert found[:7] == [
        (0.5, 4371), (1.0, 4372), (1.5, 4373), (2.0, 4371), (3.0, 4372), (4.0, 4373), (5.0, 4371),
    ]  # fmt: skip
    assert [b[0] - a[0] for a, b in itertools.pairwise(world.watch(T + 2_000))][-1] == 15.0


def test_the_own_host_is_searched_at_once_and_then_slowly_below_the_own_port() -> None:
    world = World(own_port=4372, node_ports=(4370, 4373))
    world.scan.begin(T, OWN)
    assert [dial.port for dial in world.dials()] == [4370, 4371, 4373]
    for channel in (1, 2, 3):
        world.scan.end(T, channel)
    assert world.watch(T + 4) == [(0.5, 4370), (1.5, 4371), (2.5, 4370)]


def test_of_two_nodes_of_a_host_the_one_on_the_higher_port_looks_for_the_other_for_ever() -> None:
    lower, higher = World(own_port=4370), World(own_port=4373)
    for world in (lower, higher):
        world.scan.begin(T, OWN)
        world.wanted.clear()  # Each is connected to another node of this host.
        world.watch(T + 3_600)
    assert lower.scan.deadlines() == [], "it wakes no more"
    assert [port for _, port in higher.watch(T + 3_660)] == [4370, 4371, 4372, 4370]
    higher.known = {(OWN, 4370), (OWN, 4372)}
    assert {port for _, port in higher.watch(T + 4_000)} == {4371}


def test_a_port_where_another_program_answers_is_dialled_more_and_more_rarely() -> None:
    world = World(own_port=4371)
    world.scan.begin(T, OWN)
    world.scan.begin(T, OTHER)
    world.wanted.remove(OTHER)
    found = [at_s for at_s, port in world.watch(T + 3_600, 4370) if port == 4370]
    pauses = [b - a for a, b in itertools.pairwise(found)]
    assert pauses[0] >= world.settings.backoff_max_s
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(world.settings.foreign_backoff_max_s, abs=15)
    assert [at_s for at_s, _ in world.watch(T + 3_960)], "nothing listens there any more"
    [first, second, *_] = world.watch(T + 4_000)
    assert second[0] - first[0] == 15.0


def test_a_dial_may_end_when_its_host_is_not_searched_any_more() -> None:
    world = World()
    world.scan.begin(T, OTHER)
    world.now = T + 0.5
    [dial] = world.dials()
    world.wanted.clear()
    world.now = T + 1
    assert world.dials() == []
    assert world.scan.end(T + 1, dial.channel, is_foreign=True).port == 4371


def test_a_host_that_is_not_wanted_any_more_is_left_alone() -> None:
    world = World()
    world.scan.begin(T, OTHER)
    world.wanted.clear()
    assert world.watch(T + 60) == []
    assert world.scan.deadlines() == []
    world.wanted.add(OTHER)
    world.scan.begin(world.now, OTHER)
    assert world.scan.deadlines() == [world.now + 0.5]


def test_ports_of_nodes_that_are_known_are_not_dialled() -> None:
    world = World(node_ports=(4370, 4373))
    world.known = {(OTHER, 4371), (OTHER, 4373)}
    world.scan.begin(T, OTHER)
    assert {port for _, port in world.watch(T + 60)} == {4372}


def test_many_hosts_are_dialled_at_a_limited_rate() -> None:
    world = World()
    hosts = {f"10.1.{number >> 8}.{number & 255}" for number in range(1_000)}
    world.wanted |= hosts
    for host in sorted(hosts):
        world.scan.begin(T, host)
    assert len(world.watch(T + 10.5)) <= 10 / GAP_S + 1


def test_dials_that_are_not_answered_count_until_they_expire() -> None:
    world = World(node_ports=(4370, 4399))
    world.scan.begin(T, OWN)
    assert len(world.dials()) == MAX_DIALS
    assert world.dials() == []
    assert world.scan.deadlines() == [T + 3.0] * MAX_DIALS
    assert world.scan.expired(T + 2.9) == []
    for channel in world.scan.expired(T + 3.0):
        assert world.scan.end(T, channel).ip == OWN
    assert len(world.dials()) == 29 - MAX_DIALS


def test_a_search_that_is_stopped_hangs_up_and_dials_nothing_more() -> None:
    world = World(node_ports=(4370, 4371))
    world.scan.begin(T, OWN)
    [dial] = world.dials()
    assert world.scan.stop() == [HangUp(dial.channel)]
    assert world.watch(T + 60) == []


@pytest.mark.parametrize(
    ("settings", "own", "other"),
    [
        ({"node_ports": (4370, 4370)}, [], []),
        ({"node_ports": (5000, 5002)}, [5000, 5001, 5002], [5001, 5002]),
        ({"dns_query": "_fleetlm._tcp.w.test", "node_ports": (5000, 5001)}, [5000, 5001], []),
    ],
    ids=["one port", "a range", "SRV records"],
)
def test_which_ports_are_searched(settings: dict[str, Any], own: list[int], other: list[int]) -> None:
    for ip, expected in ((OWN, own), (OTHER, other)):
        world = World(**settings)
        world.scan.begin(T, ip)
        assert list(dict.fromkeys(port for _, port in world.watch(T + 30))) == expected
