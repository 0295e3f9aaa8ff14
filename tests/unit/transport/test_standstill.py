"""Which connections end while the loop stands still: what a look has found in, offenders out."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from fleetlm.settings import Settings
from fleetlm.transport import standstill
from fleetlm.transport.bounds import STRANGER_BYTES, Accepted, Bounds
from fleetlm.transport.standstill import MOST_ANSWERED_BYTES, Seen, Standstill, choose, memory_bytes
from fleetlm.transport.tcp import Identity

MIB = 2**20
SETTINGS = Settings(window_bytes=MIB, unread_bytes=4 * MIB)


def seen(fd: int, unread: int, most: int = MIB, *, is_stranger: bool = True) -> Seen:
    return Seen(fd, unread, most, is_stranger)


def standstill_of(
    bounds: Bounds, accepted: dict[int, Accepted], rounds: Callable[[], int] = int
) -> Standstill:
    return Standstill(
        asyncio.get_running_loop(),
        ((), 4370),
        bounds,
        accepted=accepted,
        dialled=(),
        waiting=(),
        count_rounds=rounds,
        stop_accepting=lambda: None,
        ended=lambda _: None,
    )


def test_who_is_beyond_its_own_bound_ends_the_worst_first() -> None:
    found = [seen(1, MIB), seen(2, MIB + 1), seen(3, 9 * MIB, is_stranger=False), seen(4, 0)]
    assert [each.fd for each in choose(found, 8 * MIB)] == [3, 2]


def test_strangers_with_most_end_until_all_together_have_little_enough() -> None:
    found = [seen(fd, fd * 1_000) for fd in range(1, 11)]
    assert [each.fd for each in choose(found, 30_000)] == [10, 9, 8]


def test_what_peers_have_does_not_count_in_the_sum_of_strangers() -> None:
    found = [seen(1, 9 * MIB, 10 * MIB, is_stranger=False), seen(2, 10)]
    assert choose(found, 100) == []


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.booleans()), max_size=20),
    st.integers(0, 300),
)
def test_what_is_left_keeps_to_all_bounds(rows: list[tuple[int, int, bool]], most: int) -> None:
    found = [seen(fd, unread, own, is_stranger=who) for fd, (unread, own, who) in enumerate(rows)]
    ended = choose(found, most)
    left = [each for each in found if each not in ended]
    assert all(each.unread_bytes <= each.most_bytes for each in left)
    assert sum(each.unread_bytes for each in left if each.is_stranger) <= most
    assert [each.unread_bytes for each in ended] == sorted(
        (each.unread_bytes for each in ended), reverse=True
    )


def test_a_peer_may_have_more_unread_than_a_stranger_and_one_that_said_hello_more_than_one_that_did_not() -> (
    None
):
    bounds = Bounds(SETTINGS, 1_000)
    known = Accepted(3, Identity("10.0.0.1", 3, b""), 0.0)
    bounds.accept(known)
    assert bounds.most_unread(known) == STRANGER_BYTES
    bounds.hear(known, 10, is_hello=True)
    assert bounds.most_unread(known) == bounds.most_of_strangers == MIB
    bounds.admit(known)
    assert bounds.most_unread(known) == 4 * MIB


async def test_heartbeats_of_a_neighbour_do_not_add_up_over_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where frames have moved to a local road, none is read that would show that the rest was taken."""
    bounds, moved = Bounds(SETTINGS, 1_000), Accepted(0, Identity("127.0.0.1", 3, b"cookie"), 0.0)
    bounds.accept(moved)
    bounds.admit(moved)
    bounds.moved(moved, 0.0, 1_000)
    received = {0: 9 * MIB}
    monkeypatch.setattr(standstill, "count_received", received.get)
    monkeypatch.setattr(standstill, "read_cookie", lambda _: b"cookie")
    looks = standstill_of(bounds, accepted={0: moved})
    found = [*looks._see()]
    assert choose(found, 8 * MIB) == []
    received[0] += MOST_ANSWERED_BYTES + 1
    assert [each.known for each in choose(looks._see(), 8 * MIB)] == [moved], "but a flood does"


@pytest.mark.parametrize(
    ("has_bytes", "is_looked_at"), [(1_000, False), (1_001, True), (0, True)], ids=["few", "more", "unknown"]
)
async def test_connections_are_looked_at_when_memory_has_grown(
    monkeypatch: pytest.MonkeyPatch, has_bytes: int, *, is_looked_at: bool
) -> None:
    """A loop that is late because many nodes connect at once would be later with each look."""
    looked: list[int] = []
    monkeypatch.setattr(standstill, "memory_bytes", lambda: has_bytes)
    monkeypatch.setattr(standstill, "count_received", looked.append)
    monkeypatch.setattr(standstill, "LOOK_S", 0.0)
    looks = standstill_of(Bounds(SETTINGS, 1_000), {}, iter([0, 0, 0, 1]).__next__)
    looks._look_until_it_goes_on(0, 1_000)
    assert bool(looked) is is_looked_at


async def test_a_descriptor_that_is_closed_during_the_look_is_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standstill, "count_received", {0: 1}.get)
    monkeypatch.setattr(standstill, "read_cookie", lambda _: b"cookie")
    monkeypatch.setattr("fleetlm.transport.tcp.socket.socket", closed)
    assert [*standstill_of(Bounds(SETTINGS, 1_000), {})._see()] == []


def closed(*_: object, **__: object) -> None:
    raise OSError(errno.EBADF, "Bad file descriptor")


def test_the_memory_of_this_process_is_known() -> None:
    assert memory_bytes() > MIB
