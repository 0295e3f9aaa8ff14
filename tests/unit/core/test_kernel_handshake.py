"""Which peers come up, are refused or replace another, and how connections end; with a whole kernel."""

from __future__ import annotations

import pytest

from fleetlm.core.effects import Dial, Disconnect, Down, Effect, HangUp, Reply, Send, Up
from fleetlm.settings import Settings
from fleetlm.wire import frames
from fleetlm.wire.frames import IAm, Kind, Refusal, Refused
from tests.support.kernel_fakes import (
    SETTINGS,
    TELLER,
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


def iam(number: int) -> bytes:
    return frames.iam(IAm(name(number), "", 0))


# ── the handshake ────────────────────────────────────────────────────────────────────────────────


def test_a_peer_that_dials_an_idle_node_is_dialled_back_at_once() -> None:
    m = Meeting()
    half, effects = m.hello(2, 77)
    assert effects == [Dial(1, ip(2), 4370)]
    hello = identity().hello(name(2))
    assert m.kernel.opened(T, 1) == [Send(1, hello_frame(hello, 1)), Send(1, ready_frame(1, 1, 77, hello))]
    effects = m.kernel.control_frame(T, half, ready_frame(77, 1, 1, hello_of(2)))
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
    m.kernel.control_frame(T, half, ready_frame(77, 1, 1, hello_of(2)))
    assert m.status(2) == "up"


def test_a_ready_that_names_no_dial_of_this_node_is_passed_over() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    assert m.kernel.control_frame(T, m.met(2), ready_frame(77, 0, 9, hello_of(2))) == []
    assert m.status(2) == "dialling"


def test_facts_about_unknown_channels_and_sources_have_no_effects() -> None:
    k = kernel()
    assert k.opened(T, 9) == []
    assert k.channel_lost(T, 9, "why") == []
    assert k.answered(T, 9, frames.refused(Refused(Refusal.SELF, "", name(2)))) == []
    assert k.answered(T, 9, iam(2)) == []
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
    assert (answer.refusal, answer.name) == (refusal, name(1))
    assert len(said(effects)) == (refusal is not Refusal.SELF)
    assert m.kernel.topology.peers == {}
    assert m.kernel.control_frame(T, half, ready_frame(77, 1, 1, hello_of(2))) == []


def test_a_refusal_ends_the_dial_and_is_seen_in_the_table() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    answer = frames.refused(Refused(Refusal.WRONG_CLUSTER, "blue and green", name(2)))
    assert quiet(m.kernel.answered(T, 1, answer)) == [HangUp(1)]
    (info,) = m.kernel.topology.info(T)
    assert info.last_error == "refused by fleetlm@10.0.0.2: wrong_cluster (blue and green)"


def test_a_probe_is_answered_to_anybody_and_changes_nothing() -> None:
    m = Meeting(cluster="blue")
    half = m.met(9)
    for _ in range(3):
        assert m.kernel.control_frame(T, half, frames.probe()) == [
            Reply(half, frames.iam(IAm(name(1), "blue", 0)))
        ]
    assert m.kernel.topology.peers == {}


# ── restarts, and two who claim one name ─────────────────────────────────────────────────────────


def claimed(incarnation: int = 201) -> Meeting:
    """Node 2 is up on channel 1; a HELLO in its name has come, and channel 2 checks its address."""
    m = Meeting()
    m.up(2)
    _, effects = m.hello(2, 88, incarnation)
    assert effects == [Dial(2, ip(2), 4370)]
    hello = identity().hello(name(2), is_check=True)
    assert m.kernel.opened(T, 2) == [Send(2, hello_frame(hello, 2))]
    assert m.kernel.topology.peers[name(2)].due == T + SETTINGS.handshake_timeout_s
    return m


def confirmed(m: Meeting, incarnation: int = 201) -> list[Effect]:
    """The node at the address of node 2 answers the check, on the half whose HELLO was the claim."""
    frame = ready_frame(88, 1, 2, hello_of(2, incarnation))
    return m.kernel.control_frame(m.now, b"2.2", frame)


@pytest.mark.parametrize(
    ("incarnation", "why"), [(200, "the peer dialled anew"), (201, "restarted: another incarnation")]
)
def test_a_node_that_dialled_anew_replaces_its_former_connection(incarnation: int, why: str) -> None:
    m = claimed(incarnation)
    m.now = T + SETTINGS.settled_s
    effects = confirmed(m, incarnation)
    assert effects == [Down(name(2), 200, why), HangUp(1), HangUp(2), Dial(3, ip(2), 4370)]
    ready = ready_frame(3, 1, 88, identity().hello(name(2)))
    assert m.kernel.opened(m.now, 3)[1:] == [Send(3, ready)]
    hello = hello_of(2, incarnation)
    effects = m.kernel.control_frame(m.now, b"2.2", ready_frame(88, 2, m.epoch(2), hello))
    assert [type(effect) for effect in effects] == [Up]


def test_a_ready_of_a_check_ends_a_connection_only_with_the_epoch_of_the_check() -> None:
    m = claimed()
    for named in (1, 3, 88, 0):
        frame = ready_frame(88, 1, named, hello_of(2, 201))
        assert m.kernel.control_frame(T, b"2.2", frame) == []
    assert m.status(2) == "up"


@pytest.mark.parametrize("how", ["connected", "another", "lost", "timeout", "garbage"])
def test_a_claim_that_its_address_does_not_confirm_is_refused(how: str) -> None:
    m = claimed()
    match how:
        case "connected":
            answer = frames.refused(Refused(Refusal.CONNECTED, "why", name(2)))
            effects = m.kernel.answered(T, 2, answer)
        case "another":
            answer = frames.refused(Refused(Refusal.WRONG_NAME, "why", name(3)))
            effects = m.kernel.answered(T, 2, answer)
        case "lost":
            effects = m.kernel.channel_lost(T, 2, "connection refused")
        case "timeout":
            assert m.kernel.tick(T + 4.9) == []
            effects = m.kernel.tick(T + 5)
        case _:
            effects = m.kernel.answered(T, 2, b"garbage")
    assert HangUp(2) in effects or how in ("lost", "garbage")
    assert refusal_in(effects).refusal is Refusal.DUPLICATE_NAME
    assert [level for level, _ in said(effects)] == ["warning"]
    assert m.status(2) == "up"
    assert m.kernel._channels.keys() == {1}
    assert m.kernel.topology.peers[name(2)].connection.ups == 1
    assert m.kernel.tick(T + 100) == []
    assert m.kernel.deadline() is None


def test_a_claimant_that_disconnected_is_forgotten() -> None:
    m = claimed()
    m.kernel.source_lost(T, b"2.2", "connection closed")
    assert quiet(m.kernel.channel_lost(T, 2, "connection refused")) == [HangUp(2)]
    assert m.status(2) == "up"


def test_a_connected_node_says_that_it_did_not_dial_anew() -> None:
    m = Meeting()
    m.up(2)
    _, effects = m.hello(2, 88, is_check=True)
    assert refusal_in(effects).refusal is Refusal.CONNECTED
    assert said(effects) == []
    assert len(effects) == 1


def test_a_check_is_as_good_as_any_dial_to_a_node_that_is_not_connected() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    _, effects = m.hello(2, 88, is_check=True)
    assert effects == [Send(1, ready_frame(1, 1, 88, identity().hello(name(2))))]


def test_a_check_of_a_restarted_node_is_checked_itself() -> None:
    m = Meeting()
    m.up(2)
    _, effects = m.hello(2, 88, 201, is_check=True)
    assert effects == [Dial(2, ip(2), 4370)]


def test_a_claim_is_dialled_when_the_name_became_free_meanwhile() -> None:
    m = claimed()
    m.now = T + SETTINGS.settled_s
    m.kernel.ticked(m.now, name(2), 0)
    effects = m.kernel.source_lost(m.now, b"2.1", "connection closed")
    assert effects == [Down(name(2), 200, "connection closed"), HangUp(1), HangUp(2)]
    assert m.kernel.tick(m.now) == [Dial(3, ip(2), 4370)]


def test_forged_hellos_with_the_name_of_a_connected_node_take_nothing_down() -> None:
    """From any address, with its incarnation or another one, of any number."""
    m = Meeting()
    m.up(2)
    dials = 0
    for n in range(2_000):
        m.now = T + n / 100
        stranger = b"stranger %d" % n
        m.kernel.source_met(stranger, ip(9))
        frame = hello_frame(hello_of(2, 200 if n % 2 else n), n)
        for effect in m.kernel.control_frame(m.now, stranger, frame):
            if isinstance(effect, Dial):
                dials += 1
                assert (effect.ip, effect.port) == (ip(2), 4370)
                m.kernel.opened(m.now, effect.channel)
                m.kernel.answered(
                    m.now, effect.channel, frames.refused(Refused(Refusal.CONNECTED, "", name(2)))
                )
            assert not isinstance(effect, Down)
        for kind in (Kind.GOODBYE, Kind.BATCH, Kind.READY):
            body = frames.pack_goodbye("SIGTERM")
            if kind is Kind.READY:
                body = frames.pack_ready(frames.Ready(n, hello_of(2)))
            frame = frames.header(kind, n, 1) + body
            assert m.kernel.control_frame(m.now, stranger, frame) == []
    assert m.status(2) == "up"
    assert m.kernel.topology.peers[name(2)].connection.ups == 1
    assert 20 <= dials <= 30, "as many as the limit for one name allows in 20 s"


def test_a_real_restart_is_seen_in_the_midst_of_forged_hellos() -> None:
    m = Meeting()
    m.up(2)
    m.now = T + 100
    for n in range(50):
        stranger = b"stranger %d" % n
        m.kernel.source_met(stranger, ip(9))
        m.kernel.control_frame(m.now, stranger, hello_frame(hello_of(2, n), n))
    check = m.kernel.topology.peers[name(2)].connection.check
    assert check is not None
    m.kernel.opened(m.now, check.out.channel)
    half, _ = m.hello(2, 88, 201)
    effects = m.kernel.control_frame(m.now, half, ready_frame(88, 1, check.out.epoch, hello_of(2, 201)))
    assert effects[0] == Down(name(2), 200, "restarted: another incarnation")


def test_forged_hellos_in_the_midst_of_a_handshake_hinder_nothing() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    half, _ = m.hello(2, 77)
    for n in range(100):
        stranger = b"stranger %d" % n
        m.kernel.source_met(stranger, ip(9))
        m.kernel.control_frame(T, stranger, hello_frame(hello_of(2, n), n))
        m.kernel.control_frame(T, stranger, goodbye_frame(n, 1, "bye"))
    effects = m.kernel.control_frame(T, half, ready_frame(77, 1, 1, hello_of(2)))
    assert [type(effect) for effect in effects] == [Up]
    up = effects[0]
    assert isinstance(up, Up)
    assert (up.incarnation, up.incoming.source) == (200, half)


def test_a_ready_with_another_cluster_in_it_is_refused() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    effects = m.kernel.control_frame(T, m.met(2), ready_frame(77, 1, 1, hello_of(2, cluster="blue")))
    assert refusal_in(effects).refusal is Refusal.WRONG_CLUSTER
    assert m.status(2) == "dialling"


def test_a_ready_of_a_node_that_nobody_knows_is_passed_over() -> None:
    m = Meeting()
    assert m.kernel.control_frame(T, m.met(2), ready_frame(77, 1, 1, hello_of(2))) == []


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
    m.kernel.opened(m.now, 2)
    m.kernel.control_frame(m.now, b"2.2", ready_frame(88, 1, 2, hello_of(2)))
    m.kernel.opened(m.now, 3)
    m.kernel.control_frame(m.now, b"2.2", ready_frame(88, 2, m.epoch(2), hello_of(2)))
    assert m.status(2) == "up"
    assert m.kernel.source_lost(T, former, "connection closed") == []
    assert m.kernel.broken(T, former, "gap")[1:] == [Disconnect(former)]
    assert m.kernel.control_frame(T, former, goodbye_frame(77, 2, "bye")) == []
    assert m.status(2) == "up"


@pytest.mark.parametrize(("epoch", "seq"), [(77, 3), (77, 1), (78, 2)])
def test_a_gap_takes_the_connection_down_and_says_so(epoch: int, seq: int) -> None:
    m = Meeting()
    half = m.up(2)
    effects = m.kernel.control_frame(T, half, ready_frame(epoch, seq, 1, hello_of(2)))
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


def test_a_goodbye_of_a_half_that_nothing_has_proven_ends_nothing() -> None:
    m = Meeting()
    half, _ = m.hello(2, 77)
    m.kernel.opened(T, 1)
    assert m.kernel.control_frame(T, half, goodbye_frame(77, 1, "SIGTERM")) == []
    assert m.status(2) == "dialling"


def test_leaving_says_goodbye_to_all_and_dials_no_more() -> None:
    m = Meeting()
    m.up(2)
    m.kernel.heard_of(T, [name(3), name(4)], TELLER)
    m.kernel.opened(T, m.channel(3))
    m.kernel.opened(T, m.channel(4))
    m.hello(2, 88, 201)
    assert quiet(m.kernel.left(T, "SIGTERM")) == [
        Send(1, goodbye_frame(1, 2, "SIGTERM")),
        Down(name(2), 200, "SIGTERM"),
        HangUp(1, FLUSH_S),
        HangUp(4, FLUSH_S),  # the check of node 2's address
        Send(2, goodbye_frame(2, 1, "SIGTERM")),
        HangUp(2, FLUSH_S),
        Send(3, goodbye_frame(3, 1, "SIGTERM")),
        HangUp(3, FLUSH_S),
    ]
    later = [
        *m.kernel.tick(T + 60),
        *m.kernel.looked_up(T + 60, addresses(2, 3, 4, 5)),
        *m.kernel.asked_for(T + 60, name(6)),
        *m.kernel.heard_of(T + 60, [name(7)], TELLER),
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
    """Nothing has proven which incarnation it is. The first one that proves its name is the one."""
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    if heard:
        m.hello(2, 77)
    m.kernel.disconnected(T, name(2), "told to")
    assert m.kernel.tick(T + 60) == []
    m.now = T + 60
    half, effects = m.hello(2, 88)
    assert effects == [Dial(2, ip(2), 4370)]
    m.kernel.opened(m.now, 2)
    effects = m.kernel.control_frame(m.now, half, ready_frame(88, 1, m.epoch(2), hello_of(2)))
    assert refusal_in(effects).refusal is Refusal.DRAINING
    assert HangUp(2, FLUSH_S) in effects
    assert m.status(2) == "discovered"
    _, effects = m.hello(2, 89)
    assert refusal_in(effects).refusal is Refusal.DRAINING
    _, effects = m.hello(2, 90, 201)
    assert quiet(effects) == [Dial(3, ip(2), 4370)]


def test_a_forged_restart_does_not_bring_back_a_disconnected_node() -> None:
    m = Meeting()
    m.up(2)
    m.kernel.disconnected(T, name(2), "told to")
    m.now = T + 60
    m.hello(2, 88, 666)  # forged, so the node at that address is dialled, and it dials back
    m.kernel.opened(m.now, 2)
    half, effects = m.hello(2, 89)
    assert refusal_in(effects).refusal is Refusal.DRAINING
    effects = m.kernel.control_frame(m.now, half, ready_frame(89, 1, m.epoch(2), hello_of(2)))
    assert refusal_in(effects).refusal is Refusal.DRAINING
    assert m.status(2) == "discovered"
    assert m.kernel.tick(m.now + 60) == []


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
        effects = m.kernel.control_frame(T, half, ready_frame(77, 1, m.epoch(number), hello_of(number)))
        assert [level for level, _ in said(effects)] == (["warning"] if number == 2 else [])
    assert m.kernel.reports.observed == {"172.17.0.1"}


def test_the_address_in_a_nodes_name_is_not_an_alias() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, 1)
    half = m.met(2, "fd00::2")
    m.kernel.control_frame(T, half, hello_frame(hello_of(2, aliases=("fd00::2",)), 77))
    hello = hello_of(2, aliases=("fd00::2",))
    assert said(m.kernel.control_frame(T, half, ready_frame(77, 1, 1, hello))) == []
    assert m.kernel.reports.observed == set()


def test_the_port_and_time_limits_come_from_the_settings() -> None:
    m = Meeting(Settings(node_ports=(5000, 5000), connect_timeout_s=1.0))
    assert m.kernel.asked_for(T, name(2)) == [Dial(1, ip(2), 5000)]
    assert m.kernel.deadline() == T + 1


def test_halves_that_nothing_has_proven_are_not_remembered() -> None:
    m = Meeting()
    for epoch in range(1, 50):
        m.hello(2, epoch)
    assert m.kernel._sources == {}


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


def test_another_ready_of_a_peer_that_is_up_changes_nothing() -> None:
    m = Meeting()
    half = m.up(2)
    peer = m.kernel.topology.peers[name(2)]
    m.now += 1
    assert m.kernel.control_frame(m.now, half, ready_frame(77, 2, 99, hello_of(2))) == []
    assert (peer.is_up, peer.last_heard) == (True, m.now)
