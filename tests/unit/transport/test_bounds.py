"""Which accepted connections a node ends: plain facts in, offenders out."""

from __future__ import annotations

import sys

import pytest

from fleetlm.settings import Settings
from fleetlm.transport.bounds import (
    DECODED_AT_ONCE,
    MAX_EXPIRED,
    STRANGER_BYTES,
    STRANGER_FRAMES,
    UNCERTAIN_BYTES,
    WINDOWS_UNREAD,
    Accepted,
    Bounds,
    Offence,
)
from fleetlm.transport.heartbeats import MOST_BESIDE_BYTES
from fleetlm.transport.tcp import Identity

MIB = 2**20
SETTINGS = Settings(window_bytes=MIB, unread_bytes=4 * MIB, max_strangers=16, stranger_s=10.0)


def bounds(settings: Settings = SETTINGS, descriptors: int = sys.maxsize) -> Bounds:
    return Bounds(settings, descriptors)


def connection(number: int, ip: str = "10.0.0.1", now: float = 0.0) -> Accepted:
    return Accepted(number, Identity(ip, number, b""), now)


def numbers(ended: list[Offence] | list[Accepted]) -> list[int]:
    return [each.fd if isinstance(each, Accepted) else each[0].fd for each in ended]


def introduced(limits: Bounds, known: Accepted) -> Accepted:
    assert limits.accept(known) == []
    assert limits.hear(known, 0, is_hello=True) == []
    return known


def peer(limits: Bounds, number: int = 1) -> Accepted:
    known = connection(number)
    assert limits.accept(known) == []
    limits.admit(known)
    return known


# How many.


def test_a_connection_of_a_peer_is_no_stranger() -> None:
    limits = bounds()
    for number in range(100):
        peer(limits, number)
    assert limits.strangers == 0


def test_the_latest_connection_of_an_address_is_refused_when_it_has_a_quarter() -> None:
    limits = bounds()
    assert [numbers(limits.accept(connection(number))) for number in range(6)] == [[], [], [], [], [4], [5]]
    assert limits.accept(connection(7, "10.0.0.2")) == []
    assert limits.strangers == 5


def test_when_there_are_too_many_those_of_the_busiest_addresses_end_and_the_oldest_first() -> None:
    limits = bounds()
    newcomer = connection(99, "10.0.1.1", 0.0)
    assert limits.accept(newcomer) == []
    for number in range(15):
        assert limits.accept(connection(number, f"10.0.0.{number // 4}", 1.0 + number)) == []
    offences = limits.accept(connection(15, "10.0.0.3", 16.0))
    assert numbers(offences) == [0, 4, 8]
    assert limits.strangers == 14


def test_a_crowd_is_told_of_once_in_a_minute() -> None:
    limits = bounds()
    assert limits.tell_crowd(5.0, 3, "10.0.0.9") == (
        "too many connections that are not a node's, 3 were ended since this was last said, the latest one "
        "from 10.0.0.9: at most 16 at a time, and 4 from one address (Settings.max_strangers)"
    )
    assert [limits.tell_crowd(5.0 + number, 2, "10.0.0.9") for number in range(60)] == [""] * 60
    assert "122 were ended since this was last said, the latest one from an unknown" in limits.tell_crowd(
        65.0, 2, ""
    )


def test_only_so_many_end_at_one_time() -> None:
    limits = bounds(Settings(max_strangers=1_000))
    for number in range(MAX_EXPIRED + 1):
        limits.accept(connection(number, f"10.0.0.{number}"))
    assert len(limits.expire(1e9)) == MAX_EXPIRED
    assert len(limits.expire(1e9)) == 1


def test_strangers_have_at_most_a_quarter_of_the_descriptors() -> None:
    limits = bounds(descriptors=16)
    ended = [numbers(limits.accept(connection(number, f"10.0.0.{number}", number))) for number in range(5)]
    assert ended == [[], [], [], [], [0, 1]]
    assert bounds(descriptors=0).accept(connection(1)) == []


# How long.


def test_a_stranger_has_a_time_to_become_a_peer() -> None:
    limits = bounds()
    early, late, friend = connection(1, now=0.0), connection(2, now=5.0), connection(3, now=0.0)
    for known in (early, friend, late):
        limits.accept(known)
    limits.admit(friend)
    assert limits.expire(10.0) == []
    assert limits.expire(10.1) == [(early, "it did not become a node's connection within 10 s")]
    assert limits.expire(14.9) == []
    assert numbers(limits.expire(15.1)) == [2]
    assert limits.expire(1e9) == []
    assert limits.strangers == 0


def test_a_connection_that_ended_is_forgotten_once() -> None:
    limits = bounds()
    known = connection(1)
    limits.accept(known)
    limits.forget(known)
    limits.forget(known)
    assert (limits.strangers, limits.expire(100.0)) == (0, [])


# How much.


def test_a_stranger_may_send_a_handshake() -> None:
    limits = bounds()
    known = connection(1)
    limits.accept(known)
    for _ in range(4):
        assert limits.hear(known, STRANGER_BYTES // 4, is_hello=False) == []
    ((who, why),) = limits.hear(known, 1, is_hello=False)
    assert who is known
    assert why == "it sent more than 64 KiB, and is not connected as a node"


def test_a_stranger_may_send_a_few_frames() -> None:
    limits = bounds()
    known = connection(1)
    for number in range(STRANGER_FRAMES):
        assert limits.hear(known, 0, is_hello=number == 7) == []
    ((who, why),) = limits.hear(known, 0, is_hello=False)
    assert who is known
    assert why == "it sent more than 32 frames, and is not connected as a node"


def test_before_its_hello_is_read_a_stranger_has_sent_no_more_than_a_handshake() -> None:
    limits = bounds()
    known = connection(1)
    limits.accept(known)
    assert limits.look(known, STRANGER_BYTES, None, 0) == []
    assert limits.hear(known, 14, is_hello=False) == []
    ((who, why),) = limits.look(known, STRANGER_BYTES + 1024, None, 0)
    assert who is known
    assert why == "it sent 65 KiB before it was heard, and no node begins so"
    assert limits.strangers == 0


def test_after_its_hello_a_stranger_may_send_what_a_peer_does_since_it_may_be_one_already() -> None:
    limits = bounds()
    known = introduced(limits, connection(1))
    assert limits.hear(known, 14, is_hello=False) == []
    assert limits.look(known, MIB, None, 0) == []


def test_a_peer_may_have_unread_what_its_windows_allow_and_no_more() -> None:
    limits = bounds()
    known = peer(limits)
    known.read_bytes = 100 * MIB
    assert limits.look(known, 104 * MIB, None, 0) == []
    ((who, why),) = limits.look(known, 104 * MIB + 1, None, 0)
    assert who is known
    assert why.startswith("4.0 MiB of it are unread")


def test_the_bound_follows_the_window() -> None:
    limits = bounds(Settings(window_bytes=10 * MIB, unread_bytes=MIB))
    known = peer(limits)
    assert limits.look(known, WINDOWS_UNREAD * 10 * MIB, None, 0) == []
    assert numbers(limits.look(known, WINDOWS_UNREAD * 10 * MIB + 1, None, 0)) == [1]


def test_one_stranger_may_have_a_quarter_unread() -> None:
    limits = bounds()
    known = introduced(limits, connection(1))
    assert limits.look(known, MIB, None, 0) == []
    assert numbers(limits.look(known, MIB + 1, None, 0)) == [1]
    assert limits.look(known, MIB + 1, None, 0) == []  # It is to be ended already.


def test_all_strangers_together_may_have_unread_what_one_peer_may_and_the_worst_ends_first() -> None:
    limits = bounds()
    strangers = [connection(number, f"10.0.0.{number}") for number in range(6)]
    for known in strangers:
        introduced(limits, known)
    sizes = [900_000, 1_000_000, 900_000, 900_000, 400_000, 100_000]
    ended = [numbers(limits.look(known, size, None, 0)) for known, size in zip(strangers, sizes, strict=True)]
    assert ended == [[], [], [], [], [], [1]]
    limits.forget(strangers[0])
    assert limits.look(strangers[5], 1_000_000, None, 0) == []


def test_what_was_left_of_a_peer_is_bounded_as_its_peer_was() -> None:
    limits = bounds()
    known = peer(limits)
    known.is_peer, known.is_over = False, True
    assert limits.look(known, 4 * MIB, None, 0) == []
    assert numbers(limits.look(known, 4 * MIB + 1, None, 0)) == [1]


# Messages without end.


def endless(limits: Bounds, known: Accepted, *looks: tuple[int, int | None, int]) -> list[tuple[int, str]]:
    """Look several times; return the number of each look that ends the connection, with the reason."""
    found = [(number, limits.look(known, *each)) for number, each in enumerate(looks)]
    return [(number, offences[0][1]) for number, offences in found if offences]


def test_a_message_that_is_longer_than_a_frame_ends_its_peer_once_nothing_is_left_to_read() -> None:
    limits = bounds(Settings())
    size = Settings().max_frame_bytes + DECODED_AT_ONCE
    assert endless(limits, peer(limits), (size, 0, 5), (size, 0, 6), (size, 0, 7)) == []
    ((number, why),) = endless(limits, peer(limits), (size + 1, 0, 5), (size + 1, 0, 5), (size + 1, 0, 6))
    assert number == 2
    assert why == "it sends a message without end: 2.1 MiB of it have come"


def test_a_stranger_has_no_message_longer_than_a_handshake() -> None:
    limits = bounds(Settings())
    known, size = introduced(limits, connection(1)), STRANGER_BYTES + DECODED_AT_ONCE + 1
    assert [number for number, _ in endless(limits, known, (size, 0, 1), (size, 0, 2))] == [1]
    assert limits.strangers == 0


def test_what_waits_in_the_kernel_or_can_be_read_is_no_message_without_end() -> None:
    limits = bounds(Settings())
    known, size = peer(limits), 4 * MIB
    assert endless(limits, known, *((size, size - 100, drains) for drains in range(1, 9))) == []
    assert endless(limits, known, *((size, None, drains) for drains in range(9, 20))) == []
    assert endless(limits, known, *((size, 0, 20) for _ in range(9))) == []
    known.read_bytes = size - 100  # All of it was read before the ROUTER was empty.
    assert endless(limits, known, (size, 0, 21)) == []


def test_who_sends_much_and_is_read_again_and_again_has_no_message_without_end() -> None:
    limits = bounds(Settings())
    known = peer(limits)
    for number in range(1, 50):
        assert limits.look(known, known.read_bytes + 8 * MIB, 4 * MIB, number) == []
        known.read_bytes += 4 * MIB


# Heartbeats are not read, and are no debt.


class Line:
    """A peer that is looked at, with the kernel's count of its bytes and the reads of its frames."""

    def __init__(self) -> None:
        self.limits = bounds()
        self.known = peer(self.limits)
        self.received = self.drains = 0

    def come(self, frames: int = 0, unseen: int = 0) -> None:
        self.received += frames + unseen
        self.known.read_bytes += frames
        if frames:
            self.drains += 1

    def look(self, waiting: int | None = 0) -> list[Offence]:
        return self.limits.look(self.known, self.received, waiting, self.drains)


def test_heartbeats_of_years_are_forgiven() -> None:
    line = Line()
    for _ in range(5_000):
        line.come(frames=40, unseen=9_000)
        assert line.look() == []
    assert line.received > 10 * SETTINGS.unread_bytes
    assert line.known.unread_bytes < 5 * 9_040 + UNCERTAIN_BYTES


def test_a_message_without_end_is_not_forgiven() -> None:
    line = Line()
    for _ in range(600):
        line.come(unseen=9_000)
        line.drains += 1  # The others' frames are all read.
        if line.look():
            break
    else:
        pytest.fail("it was never ended")
    assert line.received <= 4 * MIB + 2 * 9_000


def test_nothing_is_forgiven_while_the_kernel_holds_bytes() -> None:
    line = Line()
    for _ in range(100):
        line.come(frames=40, unseen=9_000)
        line.look(waiting=1)
    assert line.known.unread_bytes == 900_000
    for _ in range(100):
        line.come(frames=40, unseen=0)
        line.look(waiting=None)
    assert line.known.unread_bytes == 900_000


def test_a_frame_that_waited_already_proves_nothing() -> None:
    """The ROUTER must have been empty between the look and the frame."""
    line = Line()
    line.come(unseen=100_000)
    line.look()
    for _ in range(10):
        line.received += 40
        line.known.read_bytes += 40
        line.look()
    assert line.known.unread_bytes == 100_000
    line.drains += 1
    line.look()
    assert line.known.unread_bytes == 100_000
    line.come(frames=40)
    line.look()
    assert line.known.unread_bytes == 40 * 11


# Beside a local road.


def test_heartbeats_beside_a_local_road_never_end_a_peer() -> None:
    """No frame shows that they were read, and after some days they are more than a message may have."""
    limits = bounds()
    known = peer(limits)
    known.read_bytes = 5_000
    limits.moved(known, 0.0, 6_000)
    for hour in range(1, 10 * 24):
        received = 6_000 + hour * 3_600 * 50
        assert limits.look_beside(known, hour * 3_600.0, received) == []
        assert known.unread_bytes == 0
        assert not limits.is_suspect(known)
    assert received > 20 * MIB


def test_a_peer_that_sends_beside_its_local_road_ends() -> None:
    limits = bounds()
    known = peer(limits)
    limits.moved(known, 0.0, 6_000)
    assert limits.look_beside(known, 1.0, 6_000 + MOST_BESIDE_BYTES) == []
    [(ended, why)] = limits.look_beside(known, 1.0, 10_000 + MOST_BESIDE_BYTES)
    assert ended is known
    assert "beside its local road" in why
