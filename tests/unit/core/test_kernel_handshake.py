"""Which peers come up, are refused or replace another, and how connections end; with a whole kernel."""

from __future__ import annotations

import pytest

from fleetlm.core.connection import Phase
from fleetlm.core.effects import Dial, Disconnect, Down, Effect, HangUp, Reply, Send, Up
from fleetlm.settings import Settings
from fleetlm.wire import frames
from fleetlm.wire.frames import IAm, Kind, Refusal, Refused
from tests.support.kernel_fakes import (
    SETTINGS,
    Meeting,
    T,
    addresses,
    goodbye_frame,
    hello_frame,
    hello_of,
    identity,
    ip,
    kernel,
    name,
    quiet,
    ready_frame,
    said,
)

FLUSH_S = SETTINGS.goodbye_flush_s


def refusal_in(effects: list[Effect]) -> Refused:
    (answer,) = [effect for effect in effects if isinstance(effect, Reply)]
    read = frames.read_answer(answer.frame)
    assert isinstance(read, Refused)
    return read


def iam(number: int, incarnation: int) -> bytes:
    return frames.iam(IAm(name(number), incarnation, "", 0))


# ── the handshake ────────────────────────────────────────────────────────────────────────────────


def test_a_peer_that_dials_an_idle_node_is_dialled_back_at_once() -> None:
    m = Meeting()
    half, effects = m.hello(2, 77)
    assert effects == [Dial(1, ip(2), 4370)]
    hello = identity().hello(name(2), 0)
    assert m.kernel.opened(T, 1) == [Send(1, hello_frame(hello, 1)), Send(1, ready_frame(1, 1, 77, 200))]
    effects = m.kernel.control_frame(T, half, ready_frame(77, 1, 1))
    connection = m.kernel.topology.peers[name(2)].connection
    assert connection.outgoing is not None
    assert connection.incoming is not None
    assert effects == [Up(name(2), 200, connection.outgoing, connection.incoming)]


def test_a_hello_ends_the_back_off() -> None:
    m = Meeting()
    m.kernel.looked_up(T, addresses(2))
    m.kernel.channel_lost(T, 1, "connection refused")
    _, effects = m.hello(2, 77)
    assert effects == [Dial(2, ip(2), 4370)]


def test_the_handshake_needs_both_halves() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    assert m.status(2) == "dialling"
    half, _ = m.hello(2, 77)
    assert m.status(2) == "dialling"
    m.kernel.control_frame(T, half, ready_frame(77, 1, 1))
    assert m.status(2) == "up"


def test_a_ready_before_any_hello_is_passed_over() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    assert m.kernel.control_frame(T, m.met(2), ready_frame(77, 0, 1)) == []
    assert m.status(2) == "dialling"


def test_facts_about_unknown_channels_and_sources_have_no_effects() -> None:
    k = kernel()
    assert k.opened(T, 9) == []
    assert k.channel_lost(T, 9, "why") == []
    assert k.answered(T, 9, frames.refused(Refused(Refusal.SELF, "", name(2), 200))) == []
    assert k.answered(T, 9, iam(2, 200)) == []
    assert k.source_lost(T, b"?", "why") == []
    assert k.disconnected(T, name(9), "why") == []


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"cluster": "blue"}, Refusal.WRONG_CLUSTER),
        ({"to": 3}, Refusal.WRONG_NAME),
        ({"name": name(1)}, Refusal.DUPLICATE_NAME),
        ({"name": name(1), "incarnation": 100}, Refusal.SELF),
    ],
)
def test_a_refused_node_is_told_why_and_gets_no_row(changes: dict[str, object], refusal: Refusal) -> None:
    m = Meeting()
    half, effects = m.hello(2, 77, **changes)  # type: ignore[arg-type]
    assert [type(effect) for effect in quiet(effects)] == [Reply]
    answer = refusal_in(effects)
    assert (answer.refusal, answer.name, answer.incarnation) == (refusal, name(1), 100)
    assert len(said(effects)) == (refusal is not Refusal.SELF)
    assert m.kernel.topology.peers == {}
    assert m.kernel.control_frame(T, half, ready_frame(77, 1, 1)) == []


def test_a_refusal_ends_the_dial_and_is_seen_in_the_table() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    answer = frames.refused(Refused(Refusal.WRONG_CLUSTER, "blue and green", name(2), 200))
    assert quiet(m.kernel.answered(T, 1, answer)) == [HangUp(1)]
    (info,) = m.kernel.topology.info(T)
    assert info.last_error == "refused by fleetlm@10.0.0.2: wrong_cluster (blue and green)"


def test_a_probe_is_answered_to_anybody_and_changes_nothing() -> None:
    m = Meeting(cluster="blue")
    half = m.met(9)
    for _ in range(3):
        assert m.kernel.control_frame(T, half, frames.probe()) == [
            Reply(half, frames.iam(IAm(name(1), 100, "blue", 0)))
        ]
    assert m.kernel.topology.peers == {}


# ── restarts, and two who claim one name ─────────────────────────────────────────────────────────


def test_a_former_self_is_told_that_it_is_stale() -> None:
    m = Meeting()
    half, _ = m.hello(2, 77)
    m.kernel.opened(T, 1)
    effects = m.kernel.control_frame(T, half, ready_frame(77, 1, 1, incarnation=99))
    assert refusal_in(effects).refusal is Refusal.STALE
    assert m.status(2) == "dialling"


def test_after_a_stale_refusal_the_former_incarnation_is_not_confirmed() -> None:
    m = Meeting()
    m.hello(2, 77)
    m.kernel.opened(T, 1)
    stale = frames.refused(Refused(Refusal.STALE, "restarted", name(2), 201))
    m.kernel.answered(T, 1, stale)
    m.kernel.tick(T + 1)
    assert len(m.kernel.opened(T + 1, 2)) == 1  # HELLO alone


def claimed() -> Meeting:
    """Node 2 is up as incarnation 200 on channel 1; 201 claims its name, and channel 2 probes the address."""
    m = Meeting()
    m.up(2)
    _, effects = m.hello(2, 88, 201)
    assert effects == [Dial(2, ip(2), 4370)]
    assert m.kernel.opened(T, 2) == [Send(2, frames.probe())]
    assert m.kernel.deadline() == T + SETTINGS.connect_timeout_s
    return m


def test_a_restarted_node_replaces_its_former_self() -> None:
    m = claimed()
    effects = m.kernel.answered(T, 2, iam(2, 201))
    assert effects == [
        HangUp(2),
        Down(name(2), 200, "restarted: another incarnation"),
        HangUp(1),
        Dial(3, ip(2), 4370),
    ]
    m.kernel.opened(T, 3)
    effects = m.kernel.control_frame(T, b"2.2", ready_frame(88, 1, m.epoch(2)))
    assert [type(effect) for effect in effects] == [Up]


@pytest.mark.parametrize("owner", [200, 555])
def test_a_claimant_that_does_not_answer_at_the_address_is_refused(owner: int) -> None:
    m = claimed()
    effects = m.kernel.answered(T, 2, iam(2, owner))
    assert quiet(effects)[0] == HangUp(2)
    refused = refusal_in(effects)
    assert refused.refusal is Refusal.DUPLICATE_NAME
    assert f"is incarnation {owner:x}" in refused.detail
    assert m.status(2) == "up"
    assert [level for level, _ in said(effects)] == ["warning"]


@pytest.mark.parametrize("how", ["lost", "timeout", "garbage"])
def test_a_claim_that_no_probe_confirms_is_refused(how: str) -> None:
    m = claimed()
    match how:
        case "lost":
            effects = m.kernel.channel_lost(T, 2, "connection refused")
        case "timeout":
            assert m.kernel.tick(T + 2.9) == []
            effects = m.kernel.tick(T + 3)
        case _:
            effects = m.kernel.answered(T, 2, b"garbage")
    assert quiet(effects)[0] == HangUp(2)
    assert refusal_in(effects).refusal is Refusal.DUPLICATE_NAME
    assert m.status(2) == "up"
    assert m.kernel.tick(T + 100) == []
    assert m.kernel.deadline() is None


def test_a_claimant_that_disconnected_is_forgotten() -> None:
    m = claimed()
    m.kernel.source_lost(T, b"2.2", "connection closed")
    assert m.kernel.answered(T, 2, iam(2, 201)) == [HangUp(2)]
    assert m.status(2) == "up"


def test_a_second_claimant_has_to_wait_for_the_first() -> None:
    m = claimed()
    _, effects = m.hello(2, 99, 202)
    assert refusal_in(effects).refusal is Refusal.DUPLICATE_NAME
    assert not [effect for effect in effects if isinstance(effect, Dial)]


def test_a_claim_is_admitted_when_the_name_became_free_meanwhile() -> None:
    m = claimed()
    m.kernel.source_lost(T, b"2.1", "connection closed")
    effects = m.kernel.channel_lost(T + 0.01, 2, "connection refused")
    assert effects == [HangUp(2), Dial(3, ip(2), 4370)]


def test_a_claimant_that_came_up_over_a_later_dial_keeps_its_connection() -> None:
    m = claimed()
    m.kernel.source_lost(T, b"2.1", "connection closed")
    m.kernel.tick(T + 1)
    m.kernel.opened(T + 1, m.channel(2))
    half, _ = m.hello(2, 99, 201)
    m.kernel.control_frame(T, half, ready_frame(99, 1, m.epoch(2)))
    assert m.status(2) == "up"
    assert m.kernel.answered(T, 2, iam(2, 201)) == [HangUp(2)]
    assert m.status(2) == "up"


def test_another_node_at_the_address_is_not_the_claimant() -> None:
    m = claimed()
    assert refusal_in(m.kernel.answered(T, 2, iam(3, 201))).refusal is Refusal.DUPLICATE_NAME


def test_a_claim_costs_its_owner_nothing() -> None:
    m = claimed()
    m.kernel.answered(T, 2, iam(2, 200))
    assert m.kernel.topology.peers[name(2)].connection.ups == 1


# ── losses ───────────────────────────────────────────────────────────────────────────────────────


def test_the_loss_of_a_half_ends_a_connection_and_dials_soon() -> None:
    m = Meeting()
    half = m.up(2)
    assert m.kernel.source_lost(T, half, "connection closed") == [
        Down(name(2), 200, "connection closed"),
        HangUp(1),
    ]
    assert m.kernel.tick(T + 1.0) == [Dial(2, ip(2), 4370)]


def test_frames_of_a_former_half_are_passed_over() -> None:
    m = Meeting()
    former = m.up(2)
    m.now = T + SETTINGS.settled_s
    m.hello(2, 88)
    m.kernel.opened(T, 2)
    m.kernel.control_frame(T, b"2.2", ready_frame(88, 1, m.epoch(2)))
    assert m.status(2) == "up"
    assert m.kernel.source_lost(T, former, "connection closed") == []
    assert m.kernel.broken(T, former, "gap")[1:] == [Disconnect(former)]
    assert m.kernel.control_frame(T, former, goodbye_frame(77, 2, "bye")) == []
    assert m.status(2) == "up"


@pytest.mark.parametrize(("epoch", "seq"), [(77, 3), (77, 1), (78, 2)])
def test_a_gap_takes_the_connection_down_and_says_so(epoch: int, seq: int) -> None:
    m = Meeting()
    half = m.up(2)
    effects = m.kernel.control_frame(T, half, ready_frame(epoch, seq, 1))
    reason = (
        f"protocol error: expected frame 2 of epoch 4d, got {seq} of {epoch:x}: something was lost on the way"
    )
    goodbye = Send(1, goodbye_frame(1, 2, reason))
    gone = Disconnect(half, SETTINGS.goodbye_flush_s)  # After the peer had time to read why.
    assert effects == [goodbye, Down(name(2), 200, reason), HangUp(1, FLUSH_S), gone]


@pytest.mark.parametrize("kind", [Kind.BATCH, Kind.REFUSED, 99])
def test_a_kind_out_of_place_takes_the_connection_down(kind: int) -> None:
    m = Meeting()
    half = m.up(2)
    effects = m.kernel.control_frame(T, half, frames.header(kind, 77, 2))
    assert [type(effect) for effect in effects] == [Send, Down, HangUp, Disconnect]


def test_a_half_begins_once() -> None:
    m = Meeting()
    half = m.up(2)
    effects = m.kernel.control_frame(T, half, hello_frame(hello_of(3), 88))
    assert [type(effect) for effect in effects] == [Send, Down, HangUp, Disconnect]
    assert name(3) not in m.kernel.topology.peers


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────


def test_a_goodbye_ends_what_was_up() -> None:
    m = Meeting()
    half = m.up(2)
    effects = m.kernel.control_frame(T, half, goodbye_frame(77, 2, "SIGTERM"))
    assert effects == [Down(name(2), 200, "left: SIGTERM"), HangUp(1)]


def test_a_peer_that_saw_a_protocol_error_says_so_in_its_goodbye() -> None:
    m = Meeting()
    half = m.up(2)
    effects = m.kernel.control_frame(T, half, goodbye_frame(77, 2, "protocol error: too many names"))
    why = "the peer ended the connection: protocol error: too many names"
    assert effects == [Down(name(2), 200, why), HangUp(1)]


def test_a_goodbye_ends_a_dial_and_is_seen_in_the_table() -> None:
    m = Meeting()
    half, _ = m.hello(2, 77)
    m.kernel.opened(T, 1)
    assert quiet(m.kernel.control_frame(T, half, goodbye_frame(77, 1, "SIGTERM"))) == [HangUp(1)]
    assert m.kernel.topology.info(T)[0].last_error == "left: SIGTERM"
    assert m.kernel.tick(T + 1.0) == [Dial(2, ip(2), 4370)]


def test_a_goodbye_while_idle_lets_the_back_off_be() -> None:
    m = Meeting()
    half, _ = m.hello(2, 77)
    m.kernel.channel_lost(T, 1, "connection refused")
    assert quiet(m.kernel.control_frame(T, half, goodbye_frame(77, 1, "SIGTERM"))) == []
    assert m.kernel.topology.peers[name(2)].connection.phase is Phase.IDLE
    assert m.kernel.topology.peers[name(2)].connection.incoming is None


def test_leaving_says_goodbye_to_all_and_dials_no_more() -> None:
    m = Meeting()
    m.up(2)
    m.kernel.heard_of(T, [name(3), name(4)])
    m.kernel.opened(T, m.channel(3))
    m.kernel.opened(T, m.channel(4))
    m.hello(2, 88, 201)
    assert quiet(m.kernel.left(T, "SIGTERM")) == [
        HangUp(4),  # the probe of node 2's address
        Send(1, goodbye_frame(1, 2, "SIGTERM")),
        Down(name(2), 200, "SIGTERM"),
        HangUp(1, FLUSH_S),
        Send(2, goodbye_frame(2, 1, "SIGTERM")),
        HangUp(2, FLUSH_S),
        Send(3, goodbye_frame(3, 1, "SIGTERM")),
        HangUp(3, FLUSH_S),
    ]
    later = [
        *m.kernel.tick(T + 60),
        *m.kernel.looked_up(T + 60, addresses(2, 3, 4, 5)),
        *m.kernel.asked_for(T + 60, name(6)),
        *m.kernel.heard_of(T + 60, [name(7)]),
    ]
    assert quiet(later) == []
    _, effects = m.hello(5, 99)
    assert refusal_in(effects).refusal is Refusal.DRAINING
    assert quiet(m.kernel.left(T + 61, "SIGTERM")) == []
    m.kernel.tick(T + 1000)
    assert m.kernel.deadline() is None


def test_disconnecting_lasts_until_asked_for() -> None:
    m = Meeting()
    m.up(2)
    assert m.kernel.disconnected(T, name(2), "told to")[:3] == [
        Send(1, goodbye_frame(1, 2, "told to")),
        Down(name(2), 200, "told to"),
        HangUp(1, FLUSH_S),
    ]
    assert m.status(2) == "discovered"
    assert quiet(m.kernel.looked_up(T + 60, addresses(2))) == []
    assert m.kernel.tick(T + 60) == []
    _, effects = m.hello(2, 88)
    assert refusal_in(effects).detail == f"{name(1)} was told to disconnect from {name(2)}"
    assert m.kernel.asked_for(T + 60, name(2)) == [Dial(2, ip(2), 4370)]


def test_disconnecting_lasts_until_the_node_restarts() -> None:
    m = Meeting()
    m.up(2)
    m.kernel.disconnected(T, name(2), "told to")
    _, effects = m.hello(2, 88, 201)
    assert quiet(effects) == [Dial(2, ip(2), 4370)]


@pytest.mark.parametrize("heard", [True, False])
def test_disconnecting_works_before_the_node_was_ever_up(heard: bool) -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    if heard:
        m.hello(2, 77)
    m.kernel.disconnected(T, name(2), "told to")
    for epoch in (88, 89):
        _, effects = m.hello(2, epoch)
        assert refusal_in(effects).refusal is Refusal.DRAINING
    _, effects = m.hello(2, 90, 201)
    assert quiet(effects) == [Dial(2, ip(2), 4370)]


# ── the loop's pulse, and addresses that differ ──────────────────────────────────────────────────


def test_a_silent_loop_is_busy_and_not_cut() -> None:
    m = Meeting()
    m.up(2)
    assert m.kernel.pulse(T + 3.0) == []
    assert said(m.kernel.pulse(T + 3.1)) == [("info", f"{name(2)} is busy: its loop is silent for 3.1 s")]
    assert m.kernel.pulse(T + 500) == []
    assert m.kernel.topology.select(["busy", "visible"]) == [name(2)]
    m.kernel.ticked(T + 501, name(2), 7)
    assert said(m.kernel.pulse(T + 501)) == [("info", f"{name(2)} answers again")]
    m.kernel.ticked(T, name(9), 7)  # of nobody


def test_a_peer_that_dials_from_another_address_is_reported_once() -> None:
    m = Meeting()
    for number in (2, 3):
        m.kernel.asked_for(T, name(number))
        m.kernel.opened(T, m.channel(number))
        half = m.met(number, "172.17.0.1")
        m.kernel.control_frame(T, half, hello_frame(hello_of(number), 77))
        effects = m.kernel.control_frame(T, half, ready_frame(77, 1, m.epoch(number)))
        assert [level for level, _ in said(effects)] == (["warning"] if number == 2 else [])
    assert m.kernel.observed == {"172.17.0.1"}


def test_the_address_in_a_nodes_name_is_not_an_alias() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    half = m.met(2, "fd00::2")
    m.kernel.control_frame(T, half, hello_frame(hello_of(2, aliases=("fd00::2",)), 77))
    assert said(m.kernel.control_frame(T, half, ready_frame(77, 1, 1))) == []
    assert m.kernel.observed == set()


def test_the_port_and_time_limits_come_from_the_settings() -> None:
    m = Meeting(Settings(node_ports=(5000, 5000), connect_timeout_s=1.0))
    assert m.kernel.asked_for(T, name(2)) == [Dial(1, ip(2), 5000)]
    assert m.kernel.deadline() == T + 1


def test_halves_that_were_replaced_are_not_remembered() -> None:
    m = Meeting()
    for epoch in range(1, 50):
        m.hello(2, epoch)
    assert list(m.kernel._sources) == [b"2.49"]


def test_connections_that_end_soon_are_reported_once_with_the_reason() -> None:
    m = Meeting()
    lines = []
    for attempt in range(6):
        half = m.up(2, epoch=70 + attempt)
        m.now += 2
        lines += said(m.kernel.source_lost(m.now, half, "too many memberships"))
        m.now += 60
    assert len(lines) == 1
    level, text = lines[0]
    assert level == "warning"
    assert text.startswith(f"{name(2)}: 3 connections in a row ended within 10 s")
    assert "too many memberships" in text
    (row,) = m.kernel.topology.info(m.now)
    assert (row.short_lived, row.last_error, row.last_error_age_s) == (6, "too many memberships", 60)


def test_the_end_of_a_silent_connection_says_how_long_nothing_was_read() -> None:
    m = Meeting()
    half = m.up(2)
    m.kernel.ticked(T + 20, name(2), 0)
    (down, *_) = m.kernel.source_lost(T + 28.4, half, "connection closed")
    measured = "nothing was read from it for 8.4 s; FLEETLM_NODE_TIMEOUT_MS is 8 s"
    assert down == Down(name(2), 200, f"connection closed ({measured})")
    m.now = T + 100
    m.up(2, epoch=78)
    (down, *_) = m.kernel.channel_lost(m.now + 0.2, m.channel(2), "reset")
    assert down == Down(name(2), 200, "reset")
