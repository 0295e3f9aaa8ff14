"""One connection, fact by fact: the exact effects of the handshake, the end, and the back-off."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from fleetlm.core.connection import HELLO_BURST, MAX_CONFIRMED, MAX_HEARD, Connection, Phase
from fleetlm.core.effects import Dial, Down, Effect, HangUp, Send, Up
from fleetlm.core.halves import Incoming
from tests.support.kernel_fakes import (
    SETTINGS,
    T,
    connection,
    goodbye_frame,
    hello_frame,
    hello_of,
    identity,
    ip,
    name,
    ready_frame,
)

PEER = name(2)
INCARNATION = 200
THEIRS = 77
"""The epoch of the peer's half."""


def our_hello(epoch: int = 1, *, is_check: bool = False) -> bytes:
    return hello_frame(identity().hello(PEER, is_check=is_check), epoch)


def our_ready(epoch: int = 1, seq: int = 1, named: int = THEIRS) -> bytes:
    return ready_frame(epoch, seq, named, identity().hello(PEER))


def heard(c: Connection, now: float = T, *, epoch: int = THEIRS, incarnation: int = 0) -> list[Effect]:
    """A HELLO in the peer's name has come."""
    return c.hello(now, b"half%d" % epoch, epoch, hello_of(2, incarnation))


def confirmed(
    c: Connection, now: float = T, named: int = 1, *, epoch: int = THEIRS, incarnation: int = 0
) -> list[Effect]:
    """A READY of the peer has come that names an epoch of ours; the kernel passes on expected ones only."""
    if not c.expects(named):
        return []
    half = Incoming(b"half%d" % epoch, epoch, hello_of(2, incarnation), ip(2), seq=2)
    return c.ready(now, half)


def came_up(c: Connection, incarnation: int = INCARNATION) -> Up:
    assert c.outgoing is not None
    assert c.incoming is not None
    return Up(PEER, incarnation, c.outgoing, c.incoming)


def dialling(channel: int = 5) -> Connection:
    c = connection()
    c.dial(T, channel)
    return c


def opened(channel: int = 5) -> Connection:
    c = dialling(channel)
    c.opened(T, 5)
    return c


def up() -> Connection:
    c = opened()
    heard(c)
    confirmed(c, T, 1)
    assert c.phase is Phase.UP
    return c


# ── the handshake ────────────────────────────────────────────────────────────────────────────────


def test_a_new_connection_wants_to_dial_at_once() -> None:
    c = connection()
    assert (c.phase, c.next_dial_at, c.attempt, c.ups) == (Phase.IDLE, T, 0, 0)


def test_a_dial_goes_to_the_address_in_the_name() -> None:
    c = connection()
    assert c.dial(T, 5) == [Dial(5, "10.0.0.2", 4370)]
    assert (c.phase, c.deadline) == (Phase.DIALLING, T + SETTINGS.connect_timeout_s)


def test_each_dial_draws_an_epoch_of_64_bits() -> None:
    c = Connection(PEER, ip(2), identity(), SETTINGS, random.Random(5), T)
    epochs = []
    for channel in range(64):
        c.dial(T, channel)
        assert c.outgoing is not None
        epochs.append(c.outgoing.epoch)
    assert len(set(epochs)) == 64
    assert max(epochs).bit_length() == 64
    assert min(epochs) >= 1


def test_hello_is_sent_when_the_channel_opens_and_ready_when_the_peers_hello_has_come() -> None:
    c = dialling()
    assert c.opened(T + 1, 5) == [Send(5, our_hello())]
    assert c.deadline == T + 1 + SETTINGS.handshake_timeout_s
    assert heard(c, T + 2) == [Send(5, our_ready())]
    assert confirmed(c, T + 3, 1) == [came_up(c)]
    assert (c.phase, c.up_at, c.ups, c.attempt) == (Phase.UP, T + 3, 1, 0)


def test_a_hello_that_came_before_the_channel_opened_is_confirmed_with_our_hello() -> None:
    c = dialling()
    assert heard(c) == []
    assert c.opened(T, 5) == [Send(5, our_hello()), Send(5, our_ready())]


def test_a_hello_that_came_before_the_dial_is_confirmed_with_our_hello() -> None:
    c = connection()
    assert heard(c) == []
    c.dial(T, 5)
    assert c.opened(T, 5) == [Send(5, our_hello()), Send(5, our_ready())]


def test_a_hello_ends_a_back_off() -> None:
    c = dialling()
    c.failed(T, "connection refused")
    assert c.next_dial_at > T + 0.1
    heard(c, T + 0.1)
    assert c.next_dial_at == T + 0.1


def test_an_open_channel_says_hello_once() -> None:
    c = opened()
    assert c.opened(T + 1, 5) == []
    assert c.deadline == T + SETTINGS.handshake_timeout_s


def test_ready_is_said_once_for_each_half_of_the_peer() -> None:
    c = opened()
    assert heard(c, epoch=77) == [Send(5, our_ready(seq=1, named=77))]
    assert heard(c, epoch=77) == []
    assert heard(c, epoch=78) == [Send(5, our_ready(seq=2, named=78))]


def test_a_half_of_any_epoch_gets_its_ready() -> None:
    c = opened()
    assert heard(c, epoch=0) == [Send(5, our_ready(named=0))]


def test_a_ready_for_another_dial_confirms_nothing() -> None:
    c = opened()
    heard(c)
    assert confirmed(c, T, 2) == []
    assert c.phase is Phase.DIALLING
    assert confirmed(c, T, 1) == [came_up(c)]


def test_a_ready_without_a_hello_before_it_is_enough() -> None:
    """It has the HELLO in it, so a flood of forged HELLOs displaces nothing."""
    c = opened()
    assert confirmed(c) == [Send(5, our_ready()), came_up(c)]


def test_a_ready_that_came_again_changes_nothing() -> None:
    c = up()
    assert confirmed(c, T + 1, 1) == []
    assert (c.phase, c.ups, c.up_at) == (Phase.UP, 1, T)


# ── every phase and every fact ───────────────────────────────────────────────────────────────────

GONE = Down(PEER, INCARNATION, "why")
END = [GONE, HangUp(5)]


@pytest.mark.parametrize(
    ("make", "fact", "effects", "phase"),
    [
        (connection, lambda c: c.opened(T, 5), [], Phase.IDLE),
        (connection, lambda c: confirmed(c, T, 1), [], Phase.IDLE),
        (connection, lambda c: c.channel_lost(T, "why"), [], Phase.IDLE),
        (connection, lambda c: c.failed(T, "why"), [], Phase.IDLE),
        (connection, lambda c: c.leave(T, "why"), [], Phase.IDLE),
        (connection, heard, [], Phase.IDLE),
        (dialling, lambda c: c.opened(T, 5), [Send(5, our_hello())], Phase.DIALLING),
        (dialling, lambda c: confirmed(c, T, 1), [], Phase.DIALLING),
        (dialling, lambda c: c.channel_lost(T, "why"), [HangUp(5)], Phase.IDLE),
        (dialling, lambda c: c.timed_out(T), [HangUp(5)], Phase.IDLE),
        (dialling, lambda c: c.leave(T, "why"), [HangUp(5)], Phase.IDLE),
        (dialling, heard, [], Phase.DIALLING),
        (opened, lambda c: c.opened(T, 5), [], Phase.DIALLING),
        (opened, lambda c: confirmed(c, T, 9), [], Phase.DIALLING),
        (opened, lambda c: c.channel_lost(T, "why"), [HangUp(5)], Phase.IDLE),
        (opened, lambda c: c.timed_out(T), [HangUp(5)], Phase.IDLE),
        (
            opened,
            lambda c: c.leave(T, "why"),
            [Send(5, goodbye_frame(1, 1, "why")), HangUp(5, SETTINGS.goodbye_flush_s)],
            Phase.IDLE,
        ),
        (opened, heard, [Send(5, our_ready())], Phase.DIALLING),
        (up, lambda c: c.opened(T, 5), [], Phase.UP),
        (up, lambda c: confirmed(c, T, 9), [], Phase.UP),
        (up, lambda c: c.channel_lost(T, "why"), END, Phase.IDLE),
        (up, lambda c: c.source_lost(T, "why"), END, Phase.IDLE),
        (
            up,
            lambda c: c.broken(T, "why"),
            [Send(5, goodbye_frame(1, 2, "why")), GONE, HangUp(5, SETTINGS.goodbye_flush_s)],
            Phase.IDLE,
        ),
        (up, lambda c: c.down(T, "why"), END, Phase.IDLE),
        (
            up,
            lambda c: c.leave(T, "why"),
            [Send(5, goodbye_frame(1, 2, "why")), GONE, HangUp(5, SETTINGS.goodbye_flush_s)],
            Phase.IDLE,
        ),
        (up, heard, [], Phase.UP),
    ],
)
def test_every_fact_in_every_phase(
    make: Callable[[], Connection],
    fact: Callable[[Connection], list[Effect]],
    effects: list[Effect],
    phase: Phase,
) -> None:
    c = make()
    assert fact(c) == effects
    assert c.phase is phase
    if phase is Phase.IDLE:
        assert (c.outgoing, c.incoming, c.up_at) == (None, None, None)


def test_what_ended_leaves_its_reason_and_its_time() -> None:
    c = up()
    c.down(T + 7, "why")
    assert (c.last_error, c.last_error_at) == ("why", T + 7)


def test_an_end_without_an_error_leaves_the_last_one() -> None:
    c = opened()
    c.failed(T, "connection refused")
    c.leave(T + 7, "bye")
    assert (c.last_error, c.last_error_at) == ("connection refused", T)


# ── HELLOs that may be forged ────────────────────────────────────────────────────────────────────


def test_a_forged_hello_takes_nothing_from_a_handshake() -> None:
    c = opened()
    heard(c, epoch=77)
    for forged in range(1_000, 1_100):
        effects = heard(c, T, epoch=forged, incarnation=forged)
        assert [type(effect) for effect in effects] in ([Send], [])
    assert len(c.heard) == MAX_HEARD
    assert c.outgoing is not None
    assert len(c.outgoing.confirmed) == MAX_CONFIRMED
    assert confirmed(c) == [came_up(c)]
    assert c.incoming is not None
    assert c.incoming.source == b"half77"


def test_the_half_that_proves_itself_is_confirmed_after_any_number_of_forged_hellos() -> None:
    c = opened()
    for forged in range(1_000, 1_100):
        heard(c, epoch=forged)
    effects = confirmed(c)
    assert effects == [Send(5, our_ready(seq=MAX_CONFIRMED + 1)), came_up(c)]


def test_hellos_bring_a_dial_forward_a_few_times_and_then_once_in_a_while() -> None:
    c = connection()
    early = 0
    for n in range(100):
        now = T + n / 100
        c.next_dial_at = now + 10
        heard(c, now, epoch=n)
        early += c.next_dial_at == now
    assert early == HELLO_BURST
    c.next_dial_at = T + 30
    heard(c, T + 2)
    assert c.next_dial_at == T + 2


def claimed(incarnation: int = INCARNATION) -> Connection:
    """A connection that is up, after a HELLO in the peer's name, with a check on channel 6."""
    c = up()
    assert heard(c, T + 1, epoch=78, incarnation=incarnation) == []
    assert c.wake_at(T + 1) == T + 1
    assert c.begin_check(T + 1, 6) == [Dial(6, "10.0.0.2", 4370)]
    assert c.opened(T + 1, 6) == [Send(6, our_hello(2, is_check=True))]
    assert c.opened(T + 1, 6) == []
    return c


@pytest.mark.parametrize(
    ("incarnation", "why"), [(200, "the peer dialled anew"), (201, "restarted: another incarnation")]
)
def test_a_connection_falls_when_the_check_is_confirmed(incarnation: int, why: str) -> None:
    c = claimed(incarnation)
    assert c.phase is Phase.UP
    effects = confirmed(c, T + 1, 2, epoch=78, incarnation=incarnation)
    assert effects == [Down(PEER, 200, why), HangUp(5), HangUp(6)]
    assert c.next_dial_at <= T + 1 + 2 * SETTINGS.backoff_min_s
    c.dial(c.next_dial_at, 7)
    assert c.opened(T + 2, 7) == [Send(7, our_hello(3)), Send(7, our_ready(3, named=78))]


def test_a_settled_connection_whose_peer_dialled_anew_is_dialled_at_once() -> None:
    c = up()
    later = T + SETTINGS.settled_s
    heard(c, later, epoch=78)
    c.begin_check(later, 6)
    c.opened(later, 6)
    confirmed(c, later, 2, epoch=78)
    assert c.next_dial_at == later


def test_a_ready_that_names_the_connection_itself_confirms_no_claim() -> None:
    c = claimed()
    assert confirmed(c, T + 1, 1) == []
    assert c.phase is Phase.UP


def test_a_check_that_nobody_confirms_costs_nothing() -> None:
    c = claimed()
    assert c.end_check() == [HangUp(6)]
    assert c.end_check() == []
    assert (c.phase, c.wake_at(T + 1)) == (Phase.UP, None)


def test_checks_are_limited_and_a_claim_waits_for_its_turn() -> None:
    c, checks = up(), 0
    for n in range(1_000):
        now = T + 1 + n / 100
        heard(c, now, epoch=n)
        wake_at = c.wake_at(now)
        if wake_at is not None and wake_at <= now and c.check is None:
            c.begin_check(now, 100 + n)
            c.end_check()
            checks += 1
    assert HELLO_BURST + 8 <= checks <= HELLO_BURST + 11
    assert c.claim is not None


@pytest.mark.parametrize("begun", [True, False])
def test_a_connection_that_ends_while_a_claim_waits_is_dialled_at_once(begun: bool) -> None:
    c = up()
    later = T + SETTINGS.settled_s
    heard(c, later, epoch=78)
    if begun:
        c.begin_check(later, 6)
    effects = c.source_lost(later, "why")
    assert effects[:2] == [Down(PEER, 200, "why"), HangUp(5)]
    assert effects[2:] == ([HangUp(6)] if begun else [])
    assert (c.next_dial_at, c.check, c.claim) == (later, None, None)


def test_the_incarnation_that_was_up_does_not_hinder_the_next_one() -> None:
    c = up()
    c.source_lost(T, "connection closed")
    c.dial(T + 1, 6)
    assert c.opened(T + 1, 6) == [Send(6, our_hello(2))]
    assert heard(c, T + 1, epoch=78, incarnation=201) == [Send(6, our_ready(2, named=78))]
    assert confirmed(c, T + 1, 2, epoch=78, incarnation=201) == [came_up(c, 201)]


def test_a_hello_survives_the_failure_of_our_own_half() -> None:
    c = opened()
    heard(c)
    c.channel_lost(T, "connection refused")
    c.dial(T + 1, 6)
    assert c.opened(T + 1, 6) == [Send(6, our_hello(2)), Send(6, our_ready(2))]


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_address_that_does_not_answer_is_reported() -> None:
    c = dialling()
    c.timed_out(T + 3)
    assert c.last_error == "connect timeout: 10.0.0.2:4370 did not answer within 3 s"


def test_a_peer_that_does_not_dial_back_is_reported_with_our_address() -> None:
    c = opened()
    c.timed_out(T + 5)
    assert c.last_error == (
        "10.0.0.2:4370 answers but does not dial back within 5 s: it cannot reach us at 10.0.0.1:4370, "
        "or is not a fleetlm node"
    )


def test_a_peer_that_does_not_confirm_is_reported() -> None:
    c = opened()
    heard(c)
    c.timed_out(T + 5)
    assert c.last_error == "handshake timeout: 10.0.0.2:4370 dialled us but did not confirm within 5 s"


def test_the_missing_step_names_ipv6_endpoints_in_brackets() -> None:
    c = Connection("fleetlm@fd00::2", "fd00::2", identity(), SETTINGS, random.Random(1), T)
    assert c.dial(T, 1) == [Dial(1, "fd00::2", 4370)]
    c.timed_out(T + 3)
    assert c.last_error.startswith("connect timeout: [fd00::2]:4370 did not answer")


def test_back_off_doubles_up_to_its_ceiling() -> None:
    c, now, waits = connection(), T, []
    for channel in range(10):
        c.dial(now, channel)
        c.failed(now, "connection refused")
        waits.append(c.next_dial_at - now)
        now = c.next_dial_at
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0]


def test_back_off_has_full_jitter_above_a_floor() -> None:
    c = Connection(PEER, ip(2), identity(), SETTINGS, random.Random(7), T)
    c.attempt = 40
    waits = []
    for _ in range(2_000):
        c.failed(0.0, "connection refused")
        waits.append(c.next_dial_at)
    assert min(waits) >= SETTINGS.backoff_min_s / 5
    assert max(waits) <= SETTINGS.backoff_max_s
    assert 7.0 < sum(waits) / len(waits) < 8.0
    c.attempt = 10**9  # days of a dead address: no overflow
    c.failed(T, "connection refused")
    assert c.next_dial_at <= T + SETTINGS.backoff_max_s


def test_back_off_never_spins() -> None:
    class Unlucky(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return a

    c = Connection(PEER, ip(2), identity(), SETTINGS, Unlucky(), T)
    c.dial(T, 5)
    c.failed(T, "connection refused")
    assert c.next_dial_at == T + SETTINGS.backoff_min_s / 5


def brought_up(c: Connection, now: float) -> None:
    """Dial the peer and complete the handshake at once."""
    c.dial(now, c.ups + 5)
    c.opened(now, c.ups + 5)
    heard(c)
    confirmed(c, now, c.outgoing.epoch if c.outgoing else 0)
    assert c.phase is Phase.UP


def test_back_off_starts_anew_after_the_connection_has_lived() -> None:
    c = connection()
    for channel in range(5):
        c.dial(T, channel)
        c.failed(T, "connection refused")
    assert c.attempt == 5
    brought_up(c, T)
    assert c.attempt == 0
    ended = T + SETTINGS.settled_s
    c.source_lost(ended, "connection closed")
    assert (c.short_lived, c.next_dial_at) == (0, ended + SETTINGS.backoff_min_s)


def test_connections_that_end_soon_are_dialled_after_longer_and_longer_pauses() -> None:
    c, now, waits = connection(), T, []
    for _ in range(8):
        brought_up(c, now)
        now += SETTINGS.settled_s - 0.1
        c.source_lost(now, "connection reset")
        waits.append(c.next_dial_at - now)
        now = c.next_dial_at
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert c.short_lived == 8
    brought_up(c, now)
    c.source_lost(now + SETTINGS.settled_s, "connection reset")
    assert (c.short_lived, c.next_dial_at) == (0, now + SETTINGS.settled_s + SETTINGS.backoff_min_s)


def test_a_connection_that_a_node_ends_on_purpose_does_not_count_as_short_lived() -> None:
    c = connection()
    for _ in range(3):
        brought_up(c, T)
        c.leave(T, "disconnected on request")
    for _ in range(3):
        brought_up(c, T)
        c.down(T, "left: disconnected on request", in_order=True)
    assert c.short_lived == 0


def test_the_pause_after_a_short_lived_connection_is_at_least_half_of_its_ceiling() -> None:
    class Unlucky(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return a

    c = Connection(PEER, ip(2), identity(), SETTINGS, Unlucky(1), T)
    for _ in range(20):
        brought_up(c, T)
        c.source_lost(T, "connection reset")
    assert c.next_dial_at == T + SETTINGS.backoff_max_s


def test_a_peer_that_dials_anew_at_once_is_dialled_back_after_half_the_pause() -> None:
    c = connection()
    for _ in range(3):
        brought_up(c, T)
        c.source_lost(T, "connection reset")
    heard(c)
    assert c.next_dial_at == T + 2.0
    heard(c, T + 3)
    assert c.next_dial_at <= T + 3, "the least pause is over"


def test_a_restarted_peer_is_dialled_back_at_once_after_short_lived_connections() -> None:
    c = connection()
    for _ in range(3):
        brought_up(c, T)
        c.source_lost(T, "connection reset")
    heard(c, incarnation=999)
    assert (c.next_dial_at, c.short_lived) == (T, 0)
