from __future__ import annotations

from typing import Any

import pytest

from fleetlm.core.connection import Phase
from fleetlm.core.draining import Step
from fleetlm.core.topology import MIN_UNPROVEN_ROWS, SELECTORS, Peer, PeerInfo, Topology
from fleetlm.settings import Settings
from tests.support.kernel_fakes import SETTINGS, TELLER, Dice, Meeting, T, identity, ip, name

SIX = "fleetlm@fd00::2"


def topology(settings: Settings = SETTINGS, **changes: Any) -> Topology:
    return Topology(identity(**changes), settings, Dice())


def met(table: Topology, who: str, now: float = T) -> Peer:
    peer = table.meet(now, who)
    assert peer is not None
    return peer


def test_a_row_is_made_once_and_seen_again() -> None:
    table = topology()
    peer = met(table, name(2))
    assert (peer.connection.ip, peer.status, peer.last_seen) == (ip(2), "wanted", T)
    assert met(table, name(2), T + 9) is peer
    assert peer.last_seen == T + 9


def test_this_node_is_not_a_peer_under_any_of_its_addresses() -> None:
    table = topology(aliases=("fd00::1",))
    assert table.meet(T, name(1)) is None
    assert table.meet(T, "fleetlm@fd00::1") is None
    assert table.meet(T, "fleetlm@fd00::1", introduced_by=ip(9)) is None
    assert table.peers == {}


def test_a_full_table_keeps_its_rows_and_takes_no_new_one() -> None:
    table = topology(Settings(max_peers=2))
    first = met(table, name(2))
    met(table, name(3))
    assert table.meet(T, name(4)) is None
    assert (table.is_full, met(table, name(2))) == (True, first)
    table.forget(first)
    assert (table.is_full, len(table.peers)) == (False, 1)
    met(table, name(4))


def test_an_answer_makes_rows_and_counts_absences() -> None:
    table = topology()
    made, stale = table.answered(T, [name(1), name(2), name(3)])
    assert [peer.connection.name for peer in made] == [name(2), name(3)]
    assert stale == []
    made, stale = table.answered(T, [name(3)])
    assert (made, stale) == ([], [])
    assert [(peer.in_dns, peer.misses) for peer in table.peers.values()] == [(False, 1), (True, 0)]


# ── other addresses of a node ────────────────────────────────────────────────────────────────────


def test_another_address_of_a_node_is_not_dialled() -> None:
    table = topology()
    met(table, name(2))
    row = met(table, SIX)
    assert table.learn_alias(T, "fd00::2", name(2)) is row
    table.forget(row)
    assert table.meet(T, SIX) is None


def test_a_nodes_own_address_is_not_an_alias_of_it() -> None:
    table = topology()
    met(table, name(2))
    assert table.learn_alias(T, ip(2), name(2)) is None
    assert table.aliases == {}


def test_a_row_that_is_up_is_never_given_up_for_an_alias() -> None:
    table = topology()
    met(table, SIX).connection.phase = Phase.UP
    assert table.learn_alias(T, "fd00::2", name(2)) is None
    assert SIX in table.peers


def test_an_alias_is_forgotten_with_its_owner() -> None:
    table = topology()
    owner = met(table, name(2))
    table.learn_alias(T, "fd00::2", name(2))
    table.forget(owner)
    assert table.meet(T, SIX) is not None


def test_a_node_that_introduces_itself_is_not_an_alias_any_more() -> None:
    table = topology()
    met(table, name(2))
    table.learn_alias(T, "fd00::2", name(2))
    assert table.meet(T, SIX) is None
    assert table.meet(T, SIX, introduced_by=ip(9)) is not None
    assert table.aliases == {}


def test_a_dialled_alias_is_tried_again_at_once_while_no_node_is_connected() -> None:
    """The virtual address of a load balancer may have led a node to itself."""
    table = topology()
    table.learn_alias(T, "fd00::2", name(1))
    assert table.meet(T, SIX) is None, "hearsay does not end it"
    assert table.meet(T, SIX, by_dns=True) is not None
    assert table.aliases == {}


def test_a_dialled_alias_is_tried_again_after_a_time_once_a_node_is_connected() -> None:
    table = topology()
    met(table, name(2)).connection.phase = Phase.UP
    table.learn_alias(T, "fd00::2", name(2))
    assert table.meet(T + table.settings.forget_after_s, SIX, by_dns=True) is None
    assert table.meet(T + table.settings.forget_after_s + 1, SIX, by_dns=True) is not None


def test_an_announced_alias_has_no_end_while_its_node_is_connected() -> None:
    table = topology()
    owner = met(table, name(2))
    owner.connection.phase = Phase.UP
    owner.announced = ("fd00::2",)
    table.learn_alias(T, "fd00::2", name(2))
    assert table.meet(T + 1e6, SIX, by_dns=True) is None
    owner.connection.phase = Phase.IDLE
    assert table.meet(T + 1e6, SIX, by_dns=True) is not None


def test_an_announcement_alone_hides_no_address() -> None:
    """A node that announces the addresses of others would keep these apart."""
    table = topology()
    liar = met(table, name(2))
    liar.connection.phase = Phase.UP
    liar.announced = (ip(3), "fd00::2")
    for victim in (name(3), SIX):
        assert table.meet(T, victim) is not None
    assert not table.has_connected(ip(3))
    assert not table.is_wrong_guess(table.peers[name(3)])


def test_aliases_are_bounded() -> None:
    table = topology(Settings(max_peers=2))
    for number in range(100):
        table.learn_alias(T, f"fd00::{number + 10:x}", name(2))
    assert len(table.aliases) == 8


# ── as people see it ─────────────────────────────────────────────────────────────────────────────


def test_status_words() -> None:
    m = Meeting()
    m.kernel.heard_of(T, [], TELLER)
    peer = met(m.kernel.topology, name(2))
    assert peer.status == "wanted"
    m.kernel.asked_for(T, name(2))
    assert peer.status == "dialling"
    m.kernel.opened(T, m.channel(2))
    assert peer.status == "dialling"
    m.kernel.channel_lost(T, m.channel(2), "connection refused")
    assert peer.status == "wanted"
    half = m.up(2)
    assert peer.status == "up"
    m.kernel.pulse(T + 60)
    assert peer.status == "busy"
    m.kernel.source_lost(T + 60, half, "connection closed")
    assert peer.status == "down"
    m.kernel.disconnected(T + 60, name(2), "told to")
    assert peer.status == "discovered"


def crowd() -> Topology:
    """2 and 10 are up, 10 busy and draining; 3 is wanted and in DNS."""
    table = topology()
    table.answered(T, [name(10), name(3), name(2)])
    for number in (2, 10):
        table.peers[name(number)].connection.phase = Phase.UP
    table.peers[name(10)].is_busy, table.peers[name(10)].drain_step = True, Step.ANNOUNCED
    table.answered(T, [name(3)])
    return table


@pytest.mark.parametrize(
    ("selectors", "numbers"),
    [
        (["visible"], [2, 10]),
        (["connected"], [2, 10]),
        (["hidden"], []),
        (["this"], [1]),
        (["known"], [1, 2, 3, 10]),
        (["dns"], [3]),
        (["busy"], [10]),
        (["draining"], [10]),
        (["visible", "this", "visible"], [1, 2, 10]),
        ([], []),
    ],
)
def test_selectors(selectors: list[str], numbers: list[int]) -> None:
    assert crowd().select(selectors) == [name(number) for number in numbers]


def test_busy_and_draining_select_only_connected_peers() -> None:
    table = crowd()
    table.peers[name(10)].connection.phase = Phase.IDLE
    assert table.select(["busy", "draining"]) == []


def test_a_node_that_drains_is_among_those_that_do() -> None:
    table = crowd()
    table.is_draining = True
    assert table.select(["draining"]) == [name(1), name(10)]


def test_the_nodes_of_this_host_are_those_that_share_an_address_with_it() -> None:
    table = topology(aliases=("fd00::1",))
    by_ip, by_alias = f"{name(1)}:4371", "fleetlm@[fd00::1]:4374"
    for mate in (by_ip, by_alias, name(2), name(3)):
        met(table, mate).connection.phase = Phase.UP
    met(table, f"{name(1)}:4372")
    table.learn_alias(T, "[fd00::1]:4375", name(3))
    table.learn_alias(T, "fd00::2", name(2))
    assert set(table.select(["host"])) == {by_ip, by_alias, name(3)}


def test_an_unknown_selector_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown selector 'all'; use one of visible, hidden, ") as caught:
        topology().select(["this", "all"])
    assert all(selector in str(caught.value) for selector in SELECTORS)


def test_the_info_of_a_row_has_what_is_known_of_a_peer() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(3))
    m.kernel.channel_lost(T + 1, m.channel(3), "connection refused")
    half = m.up(2)
    m.kernel.ticked(T, name(2), 12)
    m.kernel.topology.peers[name(2)].drain_step = Step.REFUSING
    two, three = m.kernel.topology.info(T + 4)
    assert m.kernel.topology.info_of(three.name, T + 4) == three
    assert m.kernel.topology.info_of("fleetlm@10.0.0.99", T + 4) is None
    assert two == PeerInfo(name(2), "up", 200, False, 4.0, 1, 0, "", None, 12, True, 0, "zeromq")
    assert three == PeerInfo(name(3), "wanted", None, False, None, 0, 1, "connection refused", 3.0, 0, False)
    m.kernel.source_lost(T + 5, half, "connection closed")
    (two, _) = m.kernel.topology.info(T + 6)
    assert (two.status, two.incarnation, two.up_for_s, two.draining) == ("down", None, None, False)
    assert (two.last_error, two.last_error_age_s) == (
        "connection closed (nothing was read from it for 5.0 s)",
        1.0,
    )
    assert two.short_lived == 1


def test_in_a_full_table_hearsay_gives_way_to_nodes_named_by_dns_or_themselves() -> None:
    table = topology(Settings(max_peers=3))
    rumours = [met(table, name(n), T + n) for n in (2, 3, 4)]
    assert table.meet(T + 9, name(5)) is None, "one rumour is as good as another"
    table.answered(T + 10, [name(6)])
    assert list(table.peers) == [name(3), name(4), name(6)], "the oldest went"
    assert table.meet(T + 11, name(7), introduced_by=ip(9)) is not None
    assert list(table.peers) == [name(4), name(6), name(7)]
    assert rumours[2].connection.phase is Phase.IDLE
    rumours[2].connection.dial(T + 12, 1)
    table.peers[name(7)].is_pinned = True
    table.answered(T + 13, [name(6), name(8)])
    assert list(table.peers) == [name(4), name(6), name(7)], "in DNS, asked for, or being dialled: all stay"
    assert table.is_full


def test_a_peer_that_was_up_is_not_hearsay() -> None:
    table = topology(Settings(max_peers=1))
    met(table, name(2)).connection.ups = 1
    table.answered(T, [name(3)])
    assert list(table.peers) == [name(2)]


def test_a_node_that_was_up_or_is_in_dns_is_displaced_by_nobody() -> None:
    table = topology(Settings(max_peers=4))
    table.answered(T, [name(2), name(3)])
    for n in (4, 5):
        met(table, name(n)).connection.ups = 1
    table.answered(T, [name(2), name(3)])
    for n in range(300):
        assert (
            table.meet(T + 40, f"fleetlm@10.1.0.{n % 250}:{5_000 + n}", introduced_by=f"10.2.{n % 9}.1")
            is None
        )
    assert list(table.peers) == [name(n) for n in (2, 3, 4, 5)]
    assert table.is_full


def test_an_answer_with_many_new_names_looks_through_a_full_table_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, looks = topology(Settings(max_peers=100)), [0]
    is_displaceable = Topology._is_displaceable

    def count(self: Topology, peer: Peer) -> bool:
        looks[0] += 1
        return is_displaceable(self, peer)

    monkeypatch.setattr(Topology, "_is_displaceable", count)
    table.answered(T, [f"fleetlm@10.1.{n % 2}.{n // 2}" for n in range(400)])
    assert len(table.peers) == 100
    for peer in list(table.peers.values())[:40]:
        peer.connection.ups = 1
    kept = list(table.peers)[:40]
    table.answered(T + 1, [f"fleetlm@10.2.{n % 2}.{n // 2}" for n in range(400)])
    assert looks[0] <= 400, "and not once for each name"
    assert list(table.peers)[:40] == kept, "who was up stays, and the others give way"
    assert all(known.startswith("fleetlm@10.2.") for known in list(table.peers)[40:])
    assert table.is_full


def test_in_a_full_table_nodes_that_nobody_names_leave_soon() -> None:
    table = topology(Settings(max_peers=2))
    met(table, name(2)).connection.ups = 1
    met(table, name(3)).connection.ups = 1
    assert table.unnamed(T + 31) == []
    assert table.meet(T + 31, name(4), introduced_by=ip(4)) is None
    assert [peer.connection.name for peer in table.unnamed(T + 31)] == [name(2), name(3)]


# ── rows that nothing has proven ─────────────────────────────────────────────────────────────────


def test_one_address_introduces_no_more_nodes_than_a_machine_has() -> None:
    table = topology()
    for n in range(1_045):
        stranger = table.meet(T + n, f"fleetlm@10.{n % 200}.0.1:{5_000 + n}", introduced_by=ip(9))
        assert stranger is not None
    assert len(table.peers) == MIN_UNPROVEN_ROWS
    assert table.meet(T, name(2), introduced_by=ip(2)) is not None


def test_one_host_has_no_more_unproven_rows_than_ports() -> None:
    table = topology(Settings(node_ports=(4_370, 4_401)))
    for n in range(1_045):
        table.meet(T + n, f"{name(2)}:{5_000 + n}", introduced_by=f"10.{n % 200}.0.1")
    assert len(table.hosts[ip(2)]) == 32
    for n in range(100):
        table.meet(T + n, f"{name(2)}:{9_000 + n}")
    assert len(table.hosts[ip(2)]) == 32, "nor by hearsay"


def test_what_others_say_of_a_host_takes_no_place_of_its_own_nodes() -> None:
    table = topology()
    for n in range(MIN_UNPROVEN_ROWS):
        row = table.meet(T, f"{name(2)}:{5_000 + n}", introduced_by=ip(9))
        assert row is not None
        row.connection.phase = Phase.DIALLING
    assert table.meet(T, f"{name(2)}:6000", introduced_by=ip(9)) is None
    assert table.meet(T, f"{name(2)}:4371", introduced_by=ip(2)) is not None


def test_a_row_that_is_proven_counts_for_nobody() -> None:
    table = topology()
    for n in range(100):
        row = table.meet(T, f"fleetlm@10.1.0.{n}", introduced_by=ip(9))
        assert row is not None
        row.connection.ups = 1
    assert len(table.peers) == 100
    for row in list(table.peers.values()):
        table.forget(row)
    assert (table.hosts, table._introduced) == ({}, {})


def test_a_blocked_peer_keeps_its_place_in_a_full_table() -> None:
    table = topology(Settings(max_peers=1))
    met(table, name(2)).is_blocked = True
    met(table, name(2)).connection.ups = 1
    assert table.meet(T, name(3), introduced_by=ip(9)) is None


@pytest.mark.parametrize(
    ("mine", "theirs", "aliases", "dialled"),
    [
        ("10.0.0.1", "10.0.0.2", ("fd00::2",), "10.0.0.2"),
        ("fd00::1", "10.0.0.2", ("10.9.0.2", "fd00::2", "fd01::2"), "fd00::2"),
        ("10.0.0.1", "fd00::2", ("10.0.0.2",), "10.0.0.2"),
        ("fd00::1", "10.0.0.2", (), "10.0.0.2"),
        ("fd00::1", "10.0.0.2", ("10.9.0.2",), "10.0.0.2"),
    ],
)
def test_a_peer_is_dialled_at_an_address_of_a_family_that_this_node_has(
    mine: str, theirs: str, aliases: tuple[str, ...], dialled: str
) -> None:
    table = topology(name=f"fleetlm@{mine}")
    peer = table.meet(0.0, f"fleetlm@{theirs}")
    assert peer is not None
    table.learn_alias(T, "fd00::9", "fleetlm@10.0.0.9")
    for alias in aliases:
        table.learn_alias(T, alias, f"fleetlm@{theirs}")
    assert table.address_to_dial(peer) == (dialled, 4370)


def test_a_node_with_both_families_dials_the_address_in_the_name() -> None:
    table = topology(aliases=("fd00::1",))
    for theirs, alias in (("10.0.0.2", "fd00::2"), ("fd00::3", "10.0.0.3")):
        peer = table.meet(0.0, f"fleetlm@{theirs}")
        assert peer is not None
        table.learn_alias(T, alias, f"fleetlm@{theirs}")
        assert table.address_to_dial(peer) == (theirs, 4370)


def test_a_node_is_unmet_until_it_was_up_once_or_could_not_be_reached_so_often() -> None:
    m = Meeting()
    table = m.kernel.topology
    assert table.unmet(2) == ""
    m.up(2)
    assert table.unmet(2) == ""
    other = met(table, name(9))
    assert table.unmet(2) == f"{name(9)} is being connected"
    other.connection.attempt = 2
    assert table.unmet(2) == ""
