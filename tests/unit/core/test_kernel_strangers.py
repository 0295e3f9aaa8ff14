"""What strangers and lying peers can make a node do: little, at a rate, and nothing to those it knows."""

from __future__ import annotations

from typing import Any

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.core.effects import Dial, Effect, HangUp, Reply
from fleetlm.core.newcomers import (
    BURST_S,
    INTRODUCTIONS_AT_ONCE,
    INTRODUCTIONS_PER_S,
    LOOKS_AT_ONCE,
    LOOKS_PER_S,
    MAX_UNLIKELY,
    TOLD_AT_ONCE,
)
from fleetlm.core.port_scan import Search
from fleetlm.core.topology import MIN_UNPROVEN_ROWS, PEERS_READ
from fleetlm.settings import Settings
from fleetlm.wire import frames
from fleetlm.wire.frames import IAm, Refusal, Refused
from tests.support.kernel_fakes import (
    SETTINGS,
    TELLER,
    Meeting,
    T,
    addresses,
    dials,
    hello_frame,
    hello_of,
    ip,
    kernel,
    name,
    quiet,
    ready_frame,
    said,
)

ALLOWED = SETTINGS.replace(allowed_networks=("10.0.0.0/24",))


def refusals(effects: list[Effect]) -> list[Refusal]:
    answers = [frames.read_answer(effect.frame) for effect in effects if isinstance(effect, Reply)]
    return [answer.refusal for answer in answers if isinstance(answer, Refused)]


def introduce(m: Meeting, n: int, text: str, from_ip: str, **changes: Any) -> list[Effect]:
    """A stranger dials from an address and introduces itself in any name."""
    stranger = b"stranger %d" % n
    m.kernel.source_met(stranger, from_ip)
    hello = hello_of(9, n + 1, name=text, **changes)
    return m.kernel.control_frame(m.now, stranger, hello_frame(hello, n + 1))


# ── names without number ─────────────────────────────────────────────────────────────────────────


def test_a_flood_of_names_from_one_address_costs_few_rows_and_few_dials() -> None:
    m = Meeting()
    m.kernel.looked_up(T, addresses(2, 3))
    m.up(2)
    made, lines = 0, 0
    for n in range(6_000):
        m.now = T + n / 600
        effects = introduce(m, n, f"fleetlm@10.0.2.{1 + n % 29}:{5_000 + n}", ip(9))
        lines += len(said(effects))
        for effect in effects:
            if isinstance(effect, Dial):
                made += 1
                lines += len(said(m.kernel.channel_lost(m.now, effect.channel, "connection refused")))
    rows = m.kernel.topology.peers
    assert {name(2), name(3)} < rows.keys()
    assert len(rows) <= 2 + MIN_UNPROVEN_ROWS
    assert made <= INTRODUCTIONS_AT_ONCE + 10 * INTRODUCTIONS_PER_S
    assert lines <= 5
    assert m.status(2) == "up"
    _, effects = m.hello(4, 99)
    assert dials(effects) == [ip(4)], "a newcomer from elsewhere is welcome"


def test_refusals_are_said_once_for_each_address_however_names_vary() -> None:
    m = Meeting()
    lines = [
        line for n in range(1_000) for line in said(introduce(m, n, f"x{n}@10.0.2.9", ip(9), cluster="other"))
    ]
    assert len(lines) == 1
    assert len(said(introduce(m, 5_000, "y@10.0.2.9", ip(8), cluster="other"))) == 1


def test_a_storm_of_honest_newcomers_behind_one_gateway_comes_up() -> None:
    """A thousand nodes that DNS does not name, all of which dial from one address, within two minutes."""
    m = Meeting()
    waiting = {n: f"fleetlm@10.1.{n // 250}.{n % 250}" for n in range(1_000)}
    epoch = 0
    while waiting and m.now < T + 120:
        for n, text in list(waiting.items()):
            epoch += 1
            half = b"%d" % epoch
            m.kernel.source_met(half, ip(9))
            hello = hello_of(9, n + 1, name=text)
            for effect in m.kernel.control_frame(m.now, half, hello_frame(hello, epoch)):
                if isinstance(effect, Dial):
                    peer = m.kernel._channels[effect.channel]
                    m.kernel.opened(m.now, effect.channel)
                    if peer.connection.name == text:
                        out = peer.connection.outgoing
                        assert out is not None
                        m.kernel.control_frame(m.now, half, ready_frame(epoch, 1, out.epoch, hello))
                        assert peer.is_up
                        del waiting[n]
        m.now += 5.0
    assert not waiting


def test_dials_to_unproven_nodes_wait_for_their_budget_and_others_do_not() -> None:
    m = Meeting(SETTINGS.replace(unproven_dials_per_s=1.0, dials_per_turn=64))
    told = [f"fleetlm@10.2.0.{n}" for n in range(40)]
    assert len(dials(m.kernel.heard_of(T, told, TELLER))) == BURST_S
    assert len(dials(m.kernel.looked_up(T, addresses(2, 3, 4)))) == 3
    assert dials(m.kernel.asked_for(T, name(5))) == [ip(5)]
    deadline = m.kernel.deadline()
    assert deadline is not None
    assert deadline <= T + 1
    assert len(dials(m.kernel.tick(T + 1))) == 1
    assert len(dials(m.kernel.tick(T + 2))) == 1


def test_a_node_that_may_not_exist_is_dialled_again_after_longer_pauses() -> None:
    k = kernel()
    k.heard_of(T, [name(2)], TELLER)
    k.looked_up(T, addresses(3))
    k.channel_lost(T, 1, "connection refused")
    k.channel_lost(T, 2, "connection refused")
    assert dials(k.tick(T + 1.9)) == [ip(3)]
    assert dials(k.tick(T + 2.0)) == [ip(2)]


# ── hearsay ──────────────────────────────────────────────────────────────────────────────────────


def test_hearsay_of_places_where_no_peer_can_be_is_not_believed() -> None:
    k = kernel()
    told = ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "8.8.8.8", "::1", "fe80::1", ip(2)]
    effects = k.heard_of(T, [f"fleetlm@{each}" for each in told], TELLER)
    assert effects == [Dial(1, ip(2), 4370)]


def test_names_that_are_told_are_looked_at_at_a_rate_and_those_of_other_peers_all_the_same() -> None:
    k = kernel(1, SETTINGS.replace(max_peers=10_000))
    names = [f"fleetlm@8.8.{n // 200}.{n % 200}" for n in range(LOOKS_AT_ONCE)]
    k.heard_of(T, names, TELLER)
    k.heard_of(T, [name(2)], TELLER)
    assert not k.topology.peers, "the time that this peer may take is used up"
    k.heard_of(T, [name(3)], "fleetlm@10.0.0.98")
    assert [*k.topology.peers] == [name(3)]
    k.heard_of(T + 1 / LOOKS_PER_S, [name(3), *names, name(2)], TELLER)
    assert [*k.topology.peers] == [name(3), name(2)], "what was looked at in vain costs nothing again"


def test_texts_that_are_no_names_are_passed_over_and_few_of_them_are_remembered() -> None:
    k = kernel()
    for turn in range(3):
        texts = ["", "nobody", "x@", *(f"{turn} {n}" for n in range(1_000))]
        k.heard_of(T + 20.0 * turn, texts, TELLER)
    assert not k.topology.peers
    assert len(k._newcomers.unlikely) == MAX_UNLIKELY
    k.heard_of(T + 60.0, ["fleetlm@10.0.0.2:4370", name(3)], TELLER)
    assert [*k.topology.peers] == [name(2), name(3)], "names are entered in their canonical form"


def test_a_peer_tells_of_new_names_at_a_rate_and_known_ones_cost_it_nothing() -> None:
    k = kernel(1, SETTINGS.replace(max_peers=10_000))
    names = [f"fleetlm@10.{n // 200}.1.{n % 200}" for n in range(2_000)]
    k.heard_of(T, names, TELLER)
    assert len(k.topology.peers) == TOLD_AT_ONCE
    known = list(k.topology.peers)
    k.heard_of(T + 0.001, known, TELLER)
    assert all(peer.last_seen == T + 0.001 for peer in k.topology.peers.values())
    k.heard_of(T + 0.001, names, "fleetlm@10.0.0.98")
    assert len(k.topology.peers) == 2 * TOLD_AT_ONCE


def test_the_pulse_lets_each_peer_tell_again() -> None:
    m = Meeting()
    m.up(2)
    peer = m.kernel.topology.peers[name(2)]
    peer.peers_left = 0
    m.kernel.pulse(T)
    assert peer.peers_left == PEERS_READ


def test_hearsay_does_not_grow_a_full_table() -> None:
    k = kernel(1, Settings(max_peers=1))
    k.looked_up(T, addresses(2))
    assert dials(k.heard_of(T, [name(3)], TELLER)) == []


# ── claims to the name of a connected node ───────────────────────────────────────────────────────


def test_a_claim_beyond_the_limit_is_checked_in_its_turn() -> None:
    m = Meeting()
    m.up(2)
    for n in range(20):
        for effect in m.hello(2, 500 + n)[1]:
            assert isinstance(effect, Dial)
            m.kernel.channel_lost(T, effect.channel, "connection refused")
    peer = m.kernel.topology.peers[name(2)]
    assert peer.connection.claim is not None
    assert m.kernel.tick(T + 0.5) == []
    assert dials(m.kernel.tick(T + 1)) == [ip(2)]


def test_the_end_of_a_check_leaves_nothing_to_wake_for() -> None:
    m = Meeting()
    m.up(2)
    m.hello(2, 88)
    m.kernel.channel_lost(T, 2, "connection refused")
    assert m.kernel.tick(T + 60) == []
    assert m.kernel.deadline() is None


# ── allowed networks ─────────────────────────────────────────────────────────────────────────────


def test_a_node_outside_of_the_allowed_networks_is_refused() -> None:
    m = Meeting(ALLOWED)
    effects = introduce(m, 1, "fleetlm@10.0.1.9", "10.0.0.9")
    assert refusals(effects) == [Refusal.NOT_ALLOWED]
    effects = introduce(m, 2, "fleetlm@10.0.0.9", "10.0.1.9")
    assert refusals(effects) == [Refusal.NOT_ALLOWED]
    assert "10.0.1.9 is outside of FLEETLM_ALLOWED_NETWORKS of fleetlm@10.0.0.1" in said(effects)[0][1]
    assert dials(introduce(m, 3, "fleetlm@10.0.0.9", "10.0.0.9")) == [ip(9)]


def test_what_dns_names_outside_of_the_allowed_networks_is_passed_over_and_said_once() -> None:
    k = kernel(1, ALLOWED)
    answer = Answer(Outcome.ADDRESSES, (ip(2), "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"), "5")
    effects = k.looked_up(T, answer)
    assert dials(effects) == [ip(2)]
    named = "10.1.0.1, 10.1.0.2, 10.1.0.3 and 1 more"
    text = f"passed over what DNS names outside of FLEETLM_ALLOWED_NETWORKS: {named}"
    assert ("warning", text) in said(effects)
    assert said(k.looked_up(T + 1, answer)) == []


def test_an_answer_with_nothing_allowed_in_it_adds_nothing() -> None:
    k = kernel(1, ALLOWED)
    assert dials(k.looked_up(T, Answer(Outcome.PARTIAL, ("10.1.0.1",), "1"))) == []
    assert dials(k.looked_up(T, Answer(Outcome.ADDRESSES, ("10.1.0.1",), "1"))) == []


def test_hearsay_and_answers_that_lead_outside_of_the_allowed_networks_are_passed_over() -> None:
    k = kernel(1, ALLOWED)
    assert k.heard_of(T, ["fleetlm@10.1.0.1"], TELLER) == []
    k.looked_up(T, addresses(2))
    k.opened(T, 1)
    answer = frames.refused(Refused(Refusal.WRONG_NAME, "why", "fleetlm@10.1.0.1"))
    assert dials(k.answered(T, 1, answer)) == []
    k.ports.searches[7] = Search(ip(3), 4371, T + 1)
    answer = frames.iam(IAm("fleetlm@10.1.0.1", "", 0))
    assert quiet(k.answered(T, 7, answer)) == [HangUp(7)]
    assert "fleetlm@10.1.0.1" not in k.topology.peers


def test_a_node_that_was_found_on_a_further_port_has_answered_there() -> None:
    k = kernel(1)
    k.ports.searches[7] = Search("fd00::3", 4371, T + 1)
    k.answered(T, 7, frames.iam(IAm(name(3), "", 0)))
    assert k.topology.aliases == {"[fd00::3]:4371": name(3)}
