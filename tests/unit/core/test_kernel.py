"""Which peers are in the table, why, and for how long; when a kernel dials; what it logs."""

from __future__ import annotations

import random

import pytest

from fleetlm.core.connection import Phase
from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.core.effects import Dial, Disconnect, Down, HangUp, Report, Send
from fleetlm.core.kernel import MAX_SOURCES, Kernel
from fleetlm.core.port_scan import Search
from fleetlm.core.reports import MAX_STRANGERS, MAX_VERDICTS
from fleetlm.settings import Settings
from fleetlm.wire import frames
from fleetlm.wire.frames import Refusal, Refused
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
    outcome,
    quiet,
    ready_frame,
    said,
)

EMPTY = outcome(Outcome.EMPTY, "NXDOMAIN")
FAILED = outcome(Outcome.FAILED, "SERVFAIL")


def refusal_of(number: int, refusal: Refusal, detail: str = "why") -> bytes:
    return frames.refused(Refused(refusal, detail, name(number)))


# ── discovery ────────────────────────────────────────────────────────────────────────────────────


def test_every_address_is_dialled_at_once_but_not_this_node() -> None:
    effects = kernel().looked_up(T, addresses(1, 2, 3))
    assert quiet(effects) == [Dial(1, ip(2), 4370), Dial(2, ip(3), 4370)]


def test_the_same_answer_again_orders_nothing() -> None:
    k = kernel()
    k.looked_up(T, addresses(1, 2, 3))
    assert k.looked_up(T + 1, addresses(1, 2, 3)) == []


@pytest.mark.parametrize("answer", [EMPTY, FAILED])
def test_an_answer_without_addresses_orders_nothing(answer: Answer) -> None:
    assert quiet(kernel().looked_up(T, answer)) == []


def test_part_of_an_answer_adds() -> None:
    k = kernel()
    assert quiet(k.looked_up(T, outcome(Outcome.PARTIAL, "AAAA failed", 2))) == [Dial(1, ip(2), 4370)]
    assert k.topology.select(["dns"]) == []


def test_hearsay_adds_candidates_of_any_basename() -> None:
    effects = kernel().heard_of(T, [name(1), name(2), "other@10.0.0.9", name(2)], TELLER)
    assert effects == [Dial(1, ip(2), 4370), Dial(2, "10.0.0.9", 4370)]


@pytest.mark.parametrize(
    "answer",
    [EMPTY, FAILED, outcome(Outcome.PARTIAL, "", 9), addresses(9), addresses(2)],
)
def test_no_dns_answer_ever_touches_a_connected_peer(answer: Answer) -> None:
    m = Meeting()
    m.up(2)
    for n in range(1, 200):
        effects = m.kernel.looked_up(T + n, answer)
        assert not [effect for effect in effects if isinstance(effect, Down)]
        assert not [effect for effect in effects if isinstance(effect, HangUp) and effect.channel == 1]
    assert m.status(2) == "up"


# ── forgetting ───────────────────────────────────────────────────────────────────────────────────


def unreachable(settings: Settings = SETTINGS) -> Kernel:
    """Node 2 was named once, and refused the connection."""
    k = kernel(settings=settings)
    k.looked_up(T, addresses(2))
    k.channel_lost(T, 1, "connection refused")
    return k


def absent(k: Kernel, *times: float) -> bool:
    """Whether node 2 is still known after successful lookups without it at these times."""
    for time in times:
        k.looked_up(T + time, EMPTY)
    return name(2) in k.topology.peers


def test_a_peer_is_forgotten_after_three_lookups_and_thirty_seconds() -> None:
    assert not absent(unreachable(), 5, 10, 30.1)


def test_two_lookups_forget_no_peer() -> None:
    assert absent(unreachable(), 5, 1000)


def test_thirty_seconds_must_have_passed() -> None:
    assert absent(unreachable(), *range(1, 31))


def test_a_peer_that_is_named_again_starts_anew() -> None:
    k = unreachable()
    assert absent(k, 5, 20)
    k.looked_up(T + 25, addresses(2))
    assert absent(k, 30, 35, 55)
    assert not absent(k, 55.1)


def test_hearsay_counts_as_mention_but_not_as_lookup() -> None:
    k = unreachable()
    assert absent(k, 5, 10)
    k.heard_of(T + 29, [name(2)], TELLER)
    assert absent(k, 31, 59)
    assert not absent(k, 59.1)


@pytest.mark.parametrize("answer", [FAILED, outcome(Outcome.PARTIAL, "AAAA failed", 9)])
def test_only_successful_lookups_count(answer: Answer) -> None:
    k = unreachable()
    for time in range(1, 100):
        k.looked_up(T + time, answer)
    assert name(2) in k.topology.peers
    assert absent(k, 100, 101)
    assert not absent(k, 102)


@pytest.mark.parametrize("kind", [Outcome.ADDRESSES, Outcome.PARTIAL, Outcome.FAILED, Outcome.EMPTY])
def test_absence_counts_in_the_family_for_which_an_answer_is_whole(kind: Outcome) -> None:
    has_addresses = kind in (Outcome.ADDRESSES, Outcome.PARTIAL)
    k = unreachable()
    k.looked_up(T, Answer(Outcome.ADDRESSES, (ip(2), "fdaa::2"), "2 addresses"))
    for time in (5, 10, 31):
        k.looked_up(T + time, Answer(kind, (ip(9),) if has_addresses else (), "AAAA failed", (4,)))
    assert name(2) not in k.topology.peers
    assert "fleetlm@fdaa::2" in k.topology.peers
    assert k.topology.peers["fleetlm@fdaa::2"].in_dns
    for time in (40, 45, 75):
        k.looked_up(T + time, Answer(Outcome.PARTIAL, (ip(9),), "A failed", (6,)))
    assert "fleetlm@fdaa::2" not in k.topology.peers


def test_what_is_in_dns_is_what_a_whole_family_names() -> None:
    k = kernel()
    k.looked_up(T, Answer(Outcome.PARTIAL, (ip(2), "fdaa::2"), "AAAA was cut short", (4,)))
    assert k.topology.select(["dns"]) == [name(2)]
    assert k.topology.select(["known"]) == [name(1), name(2), "fleetlm@fdaa::2"]


def test_a_peer_that_was_asked_for_is_not_forgotten() -> None:
    k = unreachable()
    k.asked_for(T, name(2))
    assert absent(k, *range(5, 200, 5))
    k.pulse(T + 10_000)
    assert name(2) in k.topology.peers


@pytest.mark.parametrize("answer", [FAILED, outcome(Outcome.PARTIAL, "AAAA failed", 9)])
def test_a_peer_that_is_named_by_nobody_is_forgotten_in_the_end_whatever_dns_answers(answer: Answer) -> None:
    k = unreachable()
    last = T + SETTINGS.forget_unnamed_s
    for now in range(int(T), int(last), 50):
        k.looked_up(now, answer)
        k.pulse(now)
    assert name(2) in k.topology.peers
    k.pulse(last)
    assert name(2) in k.topology.peers
    assert all(not isinstance(effect, Dial) for effect in k.pulse(last + 1))
    assert name(2) not in k.topology.peers


def test_a_peer_that_is_up_or_named_is_not_forgotten_however_long_dns_fails() -> None:
    m = Meeting()
    m.up(2)
    m.kernel.heard_of(T, [name(3), name(4)], TELLER)
    for n in range(1, 5):
        m.kernel.heard_of(T + n * 400, [name(3)], TELLER)
        m.kernel.pulse(T + n * 400)
    assert list(m.kernel.topology.peers) == [name(2), name(3)]


def test_a_peer_that_was_up_is_kept_for_the_whole_time() -> None:
    m = Meeting()
    half = m.up(2)
    for n in range(100):
        m.kernel.looked_up(T + n, EMPTY)
    m.kernel.source_lost(T + 100, half, "connection closed")
    assert absent(m.kernel, 101, 102, 130)
    assert not absent(m.kernel, 130.1)


def test_an_attempt_to_a_forgotten_peer_ends() -> None:
    k = unreachable()
    (dial,) = k.tick(T + 0.25)
    assert isinstance(dial, Dial)
    k.opened(T + 0.25, dial.channel)
    for n in range(4):
        k.looked_up(T + n / 10 + 0.3, EMPTY)
    effects = quiet(k.looked_up(T + 40, EMPTY))
    assert effects == [
        Send(2, goodbye_frame(1 + 1, 1, "not in DNS any more, and not connected")),
        HangUp(2, SETTINGS.goodbye_flush_s),
    ]
    assert (k.topology.peers, k._channels) == ({}, {})
    assert quiet(k.looked_up(T + 41, addresses(2))) == [Dial(3, ip(2), 4370)]


def test_the_forgotten_is_not_dialled_by_what_was_scheduled_for_it() -> None:
    k = unreachable()
    absent(k, 5, 10, 31)
    k.heard_of(T + 31, [], TELLER)
    assert k.tick(T + 100) == []


# ── aliases ──────────────────────────────────────────────────────────────────────────────────────


def test_an_address_that_answers_as_this_node_is_an_alias_of_it() -> None:
    k = kernel()
    k.looked_up(T, addresses(9))
    k.opened(T, 1)
    first = k.answered(T, 1, refusal_of(1, Refusal.SELF))
    assert quiet(first) == [HangUp(1)]
    assert [effect.text for effect in first if isinstance(effect, Report)] != []
    assert k.topology.peers == {}
    assert k.heard_of(T + 60, [name(9)], TELLER) == []


def test_an_address_that_led_to_this_node_is_dialled_again_in_silence_while_it_is_alone() -> None:
    """Behind a virtual address there may be another node the next time."""
    k = kernel()
    for channel in (1, 2, 3):
        assert quiet(k.looked_up(T + 60 * channel, addresses(9))) == [Dial(channel, ip(9), 4370)]
        k.opened(T, channel)
        effects = k.answered(T + 60 * channel, channel, refusal_of(1, Refusal.SELF))
        assert (len(effects) > len(quiet(effects))) == (channel == 1), "reported once"


def test_an_address_that_turns_out_to_be_another_node_leads_to_it() -> None:
    k = kernel()
    k.heard_of(T, ["fleetlm@fd00::2"], TELLER)
    k.opened(T, 1)
    effects = k.answered(T, 1, refusal_of(2, Refusal.WRONG_NAME))
    assert quiet(effects) == [HangUp(1), Dial(2, ip(2), 4370)]
    assert list(k.topology.peers) == [name(2)]
    assert k.heard_of(T, ["fleetlm@fd00::2"], TELLER) == []


@pytest.mark.parametrize(
    ("refusal", "owner", "addresses_in_dns", "is_reported"),
    [
        (Refusal.WRONG_NAME, 3, (2,), True),
        (Refusal.SELF, 1, (2,), True),
        (Refusal.WRONG_NAME, 3, (2, 4), False),
    ],
)
def test_the_only_address_in_dns_that_leads_to_another_name_may_be_virtual(
    refusal: Refusal, owner: int, addresses_in_dns: tuple[int, ...], is_reported: bool
) -> None:
    k = kernel()
    k.looked_up(T, addresses(*addresses_in_dns))
    k.opened(T, 1)
    texts = [
        effect.text for effect in k.answered(T, 1, refusal_of(owner, refusal)) if isinstance(effect, Report)
    ]
    said = [text for text in texts if "perhaps the virtual address of a load balancer" in text]
    assert len(said) == is_reported
    if is_reported:
        assert ip(2) in said[0]
        assert name(owner) in said[0]


def test_a_node_of_another_basename_is_not_dialled() -> None:
    k = kernel()
    k.looked_up(T, addresses(2))
    k.opened(T, 1)
    answer = frames.refused(Refused(Refusal.WRONG_NAME, "why", "other@10.0.0.2"))
    assert quiet(k.answered(T, 1, answer)) == [HangUp(1)]
    assert list(k.topology.peers) == [name(2)]


def test_the_other_address_family_of_a_node_is_not_dialled_once_it_has_answered_there() -> None:
    m = Meeting()
    m.kernel.heard_of(T, ["fleetlm@fd00::2"], TELLER)
    m.up(2, aliases=("fd00::2",))
    m.kernel.opened(T, 1)
    assert quiet(m.kernel.answered(T, 1, refusal_of(2, Refusal.WRONG_NAME))) == [HangUp(1)]
    assert list(m.kernel.topology.peers) == [name(2)]
    assert m.kernel.heard_of(T + 60, ["fleetlm@fd00::2"], TELLER) == []
    assert m.kernel.looked_up(T + 60, Answer(Outcome.ADDRESSES, ("fd00::2",), ""))[1:] == []


def test_false_aliases_keep_no_two_nodes_apart() -> None:
    m = Meeting()
    m.kernel.heard_of(T, [name(3)], TELLER)
    m.kernel.channel_lost(T, 1, "connection refused")
    m.up(2, aliases=(ip(3), ip(4)))
    assert name(3) in m.kernel.topology.peers
    assert ip(4) in [d.ip for d in m.kernel.heard_of(T + 1, [name(4)], TELLER) if isinstance(d, Dial)]


def test_a_node_without_ipv4_dials_back_at_the_alias_that_the_hello_names() -> None:
    m = Meeting(name="fleetlm@fd00::1")
    first = m.kernel.heard_of(T, [name(2)], TELLER)
    assert quiet(first) == [Dial(1, ip(2), 4370)]
    m.kernel.channel_lost(T, 1, "network is unreachable")
    hello = identity(2, aliases=("10.9.0.2", "fd00::2")).hello("fleetlm@fd00::1")
    effects = m.kernel.control_frame(T, m.met(2, "fd00::2"), hello_frame(hello, 77))
    assert Dial(2, "fd00::2", 4370) in quiet(effects)


def test_a_node_without_ipv4_dials_at_the_address_that_led_to_the_other_name() -> None:
    k = kernel(name="fleetlm@fd00::1")
    k.heard_of(T, ["fleetlm@fd00::2"], TELLER)
    k.opened(T, 1)
    effects = k.answered(T, 1, refusal_of(2, Refusal.WRONG_NAME))
    assert quiet(effects) == [HangUp(1), Dial(2, "fd00::2", 4370)]
    assert list(k.topology.peers) == [name(2)]


def test_an_address_that_passed_to_another_node_is_admitted() -> None:
    m = Meeting()
    m.up(2)
    m.kernel.topology.learn_alias(T, ip(3), name(2))
    assert quiet(m.kernel.looked_up(T, addresses(3))) == []
    _, effects = m.hello(3, 88)
    assert quiet(effects) == [Dial(2, ip(3), 4370)]


# ── a full table ─────────────────────────────────────────────────────────────────────────────────


def test_a_full_table_is_said_once_and_refuses_politely() -> None:
    m = Meeting(Settings(max_peers=2))
    effects = m.kernel.looked_up(T, addresses(2, 3, 4))
    assert len(quiet(effects)) == 2
    text = "refused more nodes: the table holds 2, which is Settings.max_peers"
    assert ("warning", text) in said(effects)
    assert m.kernel.looked_up(T, addresses(2, 3, 4, 5)) == []
    m.up(2)
    m.up(3, epoch=78)
    _, effects = m.hello(5, 88)
    answer = frames.read_answer(quiet(effects)[0].frame)  # type: ignore[union-attr]
    assert isinstance(answer, Refused)
    assert (answer.refusal, answer.detail) == (
        Refusal.TOO_MANY,
        "fleetlm@10.0.0.1 knows 2 nodes already (Settings.max_peers)",
    )


# ── when to dial ─────────────────────────────────────────────────────────────────────────────────


def test_a_kernel_without_peers_has_no_deadline() -> None:
    assert kernel().deadline() is None
    assert kernel().tick(T + 1e9) == []


def test_deadlines_are_those_of_the_step_under_way() -> None:
    k = kernel()
    k.looked_up(T, addresses(2))
    assert k.deadline() == T + SETTINGS.connect_timeout_s
    k.opened(T + 1, 1)
    assert k.tick(T + 3.5) == []
    assert k.deadline() == T + 1 + SETTINGS.handshake_timeout_s
    assert quiet(k.tick(T + 6)) == [HangUp(1)]
    assert k.deadline() == T + 6 + SETTINGS.backoff_min_s
    assert k.tick(T + 6.25) == [Dial(2, ip(2), 4370)]


def test_several_searches_of_ports_that_take_too_long_end_at_once() -> None:
    k = kernel()
    for channel in (7, 8, 9):
        k.ports.searches[channel] = Search(ip(9), 4_370 + channel, T + 1)
    assert k.tick(T + 2) == [HangUp(7), HangUp(8), HangUp(9)]
    assert k.ports.searches == {}


def test_one_dead_address_delays_no_other_peer() -> None:
    k = kernel()
    k.looked_up(T, addresses(2, 3))
    k.channel_lost(T, 2, "connection refused")
    assert k.tick(T + 0.25) == [Dial(3, ip(3), 4370)]
    assert quiet(k.tick(T + 3)) == [HangUp(1)]


def test_days_of_a_dead_address_leave_the_schedule_small() -> None:
    k = Kernel(identity(), SETTINGS, random.Random(3))
    k.looked_up(T, addresses(2, 3))
    now = T
    for _ in range(3_000):
        deadline = k.deadline()
        assert deadline is not None
        now = max(now, deadline)
        for effect in k.tick(now):
            if isinstance(effect, Dial):
                k.channel_lost(now, effect.channel, "connection refused")
    assert len(k._due) < 100
    assert len(k._channels) == 0


def test_asking_dials_at_once_and_keeps() -> None:
    k = unreachable()
    assert k.asked_for(T + 0.1, name(2)) == [Dial(2, ip(2), 4370)]
    assert k.asked_for(T + 0.1, name(2)) == []
    assert k.asked_for(T + 0.1, name(1)) == []


# ── what is logged ───────────────────────────────────────────────────────────────────────────────


def test_a_verdict_of_dns_is_logged_when_it_changes() -> None:
    k = kernel()
    assert said(k.looked_up(T, EMPTY)) == [
        ("info", "DNS: NXDOMAIN; connected nodes stay connected, and lookups continue")
    ]
    assert said(k.looked_up(T, EMPTY)) == []
    assert said(k.looked_up(T, addresses(2))) == [("info", "DNS names 1 address(es): 1 addresses")]
    assert said(k.looked_up(T, addresses(2, 3))) == []
    assert [level for level, _ in said(k.looked_up(T, FAILED))] == ["warning"]
    assert said(k.looked_up(T, FAILED)) == []
    assert k.reports.verdict == "FAILED: SERVFAIL"


def test_an_error_of_a_peer_is_logged_once() -> None:
    k = kernel()
    k.looked_up(T, addresses(2))
    lines, now = [], T
    for n in range(20):
        now += 20
        for effect in k.tick(now) if n else [Dial(1, "", 0)]:
            if isinstance(effect, Dial):
                why = "connection refused" if n % 3 else "no route to host"
                lines += said(k.channel_lost(now, effect.channel, why))
    assert lines == [
        ("info", "fleetlm@10.0.0.2: no route to host"),
        ("info", "fleetlm@10.0.0.2: connection refused"),
    ]


def test_an_error_that_the_transport_has_logged_is_not_logged_for_each_peer() -> None:
    k = kernel()
    k.looked_up(T, addresses(1, 2))
    assert said(k.channel_lost(T, 1, "no descriptors", is_logged=True)) == []
    (row,) = k.topology.info(T)
    assert row.last_error == "no descriptors"


def test_a_refusal_on_both_sides_is_logged_once_on_each() -> None:
    m = Meeting(cluster="green")
    lines, now = said(m.kernel.looked_up(T, addresses(2)))[1:], T
    for n in range(10):
        m.kernel.opened(now, m.channel(2))
        lines += said(m.kernel.answered(now, m.channel(2), refusal_of(2, Refusal.WRONG_CLUSTER)))
        _, effects = m.hello(2, 88 + n)
        lines += said(effects)
        now += 20
        m.kernel.tick(now)
    assert [text.partition("(")[0] for _, text in lines] == [
        "fleetlm@10.0.0.2: refused by fleetlm@10.0.0.2: wrong_cluster ",
        "fleetlm@10.0.0.2: refused it: wrong_cluster ",
    ]


def test_an_error_is_logged_again_after_the_peer_was_up() -> None:
    m = Meeting()
    m.kernel.looked_up(T, addresses(2))
    assert said(m.kernel.channel_lost(T, 1, "connection refused")) != []
    half = m.up(2)
    assert (
        said(m.kernel.source_lost(T, half, "connection closed")) == []
    )  # the log line of the nodedown has it
    m.kernel.tick(T + 1)
    assert said(m.kernel.channel_lost(T + 1, m.channel(2), "connection refused")) != []


def test_errors_of_a_peer_that_never_repeat_are_bounded() -> None:
    m = Meeting()
    m.kernel.looked_up(T, addresses(2))
    for n in range(100):
        m.kernel.channel_lost(T + n * 20, m.channel(2), f"error {n}")
        m.kernel.tick(T + n * 20 + 20)
        assert len(m.kernel.topology.peers[name(2)].logged) <= MAX_VERDICTS


COOKIE = "authentication failed: another cookie"
KNOCK = "it closed, or said nothing"


def test_a_peer_that_only_connects_and_closes_is_logged_as_info() -> None:
    k = unreachable()
    before = k.topology.info(T + 1)[0].last_error
    assert said(k.stranger_refused(T, ip(9), KNOCK)) == [("info", f"refused 10.0.0.9: {KNOCK}")]
    k.stranger_refused(T + 1, ip(2), KNOCK)
    assert before
    assert k.topology.info(T + 2)[0].last_error == before


def test_strangers_are_said_once_and_bounded() -> None:
    k = kernel()
    assert said(k.stranger_refused(T, ip(9), COOKIE)) == [("warning", f"refused 10.0.0.9: {COOKIE}")]
    assert k.stranger_refused(T, ip(9), COOKIE) == []
    for n in range(2 * MAX_STRANGERS):
        assert said(k.stranger_refused(T, f"10.1.{n >> 8}.{n & 255}", COOKIE))
    assert len(k.reports._said) == MAX_STRANGERS


def test_garbage_of_a_stranger_is_said_once_however_it_varies() -> None:
    m = Meeting()
    half = m.met(9)
    assert len(said(m.kernel.control_frame(T, half, b"x"))) == 1
    assert m.kernel.control_frame(T, half, b"xx") == [Disconnect(half)]


def test_another_cookie_is_the_error_of_the_peer_at_that_address() -> None:
    k = unreachable()
    assert said(k.stranger_refused(T + 1, ip(2), COOKIE)) == [("info", f"fleetlm@10.0.0.2: {COOKIE}")]
    assert k.topology.info(T + 2)[0].last_error == COOKIE


def test_sources_are_bounded_and_known_ones_kept() -> None:
    m = Meeting()
    half = m.up(2)
    for n in range(MAX_SOURCES + 50):
        m.kernel.source_met(b"stranger %d" % n, ip(9))
    assert len(m.kernel._ips) == MAX_SOURCES
    assert m.kernel._ips[half] == ip(2)
    assert m.kernel.topology.peers[name(2)].connection.phase is Phase.UP


def test_a_blocked_address_is_not_dialled_when_its_time_comes() -> None:
    k = kernel()
    k.looked_up(T, addresses(2))
    k.opened(T, 1)
    k.answered(T, 1, refusal_of(2, Refusal.WRONG_CLUSTER))
    k.topology.peers[name(2)].is_blocked = True
    assert k.tick(T + 100) == []
    assert k.deadline() is None


def test_addresses_that_names_do_not_have_are_reported_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetlm.core.reports.MAX_STRANGERS", 2)
    m = Meeting()
    reported = []
    for number in (2, 3, 4):
        m.kernel.asked_for(T, name(number))
        m.kernel.opened(T, m.channel(number))
        half = m.met(number, f"192.168.0.{number}")
        m.kernel.control_frame(T, half, hello_frame(hello_of(number), 77))
        effects = m.kernel.control_frame(T, half, ready_frame(77, 1, m.epoch(number), hello_of(number)))
        assert m.status(number) == "up"
        reported += [text for _, text in said(effects) if "dials us from" in text]
    assert [text.split(",")[0] for text in reported] == [
        f"{name(number)} dials us from 192.168.0.{number}" for number in (2, 3)
    ]


def test_hearsay_of_a_node_that_is_known_already_keeps_it_in_the_table() -> None:
    k = kernel()
    k.heard_of(T, [name(2)], TELLER)
    k.heard_of(T + 7, [name(2)], TELLER)
    assert k.topology.peers[name(2)].last_seen == T + 7
    k.heard_of(T + 8, ["fleetlm@fd00::2"], TELLER)
    k.heard_of(T + 9, ["fleetlm@fd00::0:2"], TELLER)  # The same name, written otherwise.
    assert k.topology.peers["fleetlm@fd00::2"].last_seen == T + 9
