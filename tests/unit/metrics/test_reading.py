"""What a reading takes of the tables of a node: bounded, and sums that only grow."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fleetlm.metrics import reading
from fleetlm.metrics.counts import FullClock
from fleetlm.metrics.labels import MAX_PEERS, OTHER
from fleetlm.metrics.reading import Depths, PeerSums


class Local:
    """Processes with mailboxes of given lengths."""

    def __init__(self, lengths: dict[int, int]) -> None:
        self.lengths = lengths
        self.looked_at = 0

    def numbers(self) -> list[int]:
        return list(self.lengths)

    def by_number(self, number: int) -> Any:
        self.looked_at += 1
        length = self.lengths.get(number)
        return None if length is None else SimpleNamespace(mailbox=SimpleNamespace(queue=range(length)))


def depths_of(local: Local, due: deque[Callable[[], None]]) -> Depths:
    return Depths(local, due.append)  # type: ignore[arg-type]


def test_few_mailboxes_are_looked_at_at_once() -> None:
    due: deque[Callable[[], None]] = deque()
    depths = depths_of(Local({1: 3, 2: 0, 7: 5}), due)
    depths.look()
    assert (depths.total, depths.longest, len(due)) == (8, 5, 0)
    depths = depths_of(Local({}), due)
    depths.look()
    assert (depths.total, depths.longest, len(due)) == (0, 0, 0)


def test_many_mailboxes_are_looked_at_in_turns_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAILBOXES_AT_ONCE", 10)
    due: deque[Callable[[], None]] = deque()
    local = Local(dict.fromkeys(range(35), 1))
    depths = depths_of(local, due)
    depths.look()
    depths.look()  # A second scrape begins no second pass.
    assert (local.looked_at, depths.total, len(due)) == (10, 0, 1)
    del local.lengths[0]  # It ends meanwhile.
    while due:
        before = local.looked_at
        due.popleft()()
        assert local.looked_at - before <= 10
    assert (depths.total, depths.longest) == (34, 1)
    depths.look()
    assert depths.total == 34  # That of the last whole pass.


class Session:
    """What a session shows of what it has carried."""

    def __init__(self, name: str, carried: int = 0) -> None:
        self.name = name
        self.byte_window = SimpleNamespace(sent_bytes=0)
        self.byte_credit = SimpleNamespace(taken_bytes=0)
        self.carry(carried)

    def carry(self, count: int) -> None:
        self.messages_sent = self.messages_received = count
        self.byte_window.sent_bytes = self.byte_credit.taken_bytes = 10 * count


def add(sums: PeerSums, session: Session, **how: bool) -> str:
    return sums.add(session, **how)  # type: ignore[arg-type]


def carried(sums: PeerSums, label: str) -> list[int]:
    """Messages and bytes, each sent and received."""
    found = sums.carried[label]
    return [found.messages_sent, found.messages_received, found.bytes_sent, found.bytes_received]


def test_sums_of_a_peer_grow_over_its_sessions() -> None:
    sums = PeerSums()
    first = Session("a", 5)
    assert add(sums, first) == "a"
    add(sums, first)
    first.carry(7)
    add(sums, first, is_over=True)
    second = Session("a", 2)
    add(sums, second)
    assert set(sums.carried) == {"a"}
    assert carried(sums, "a") == [9, 9, 90, 90]
    assert len(sums._seen) == 1


def test_peers_without_a_label_share_one_whose_sums_never_fall() -> None:
    sums = PeerSums()
    sessions = [Session(f"n{number}", 1) for number in range(MAX_PEERS + 5)]
    for session in sessions:
        add(sums, session)
    assert len(sums.carried) == MAX_PEERS + 1
    assert carried(sums, OTHER) == [5, 5, 50, 50]
    for session in sessions:
        add(sums, session, is_over=True)
    sums.forget_all_but({"n0"}, {})
    assert set(sums.carried) == {"n0", OTHER}
    late = Session(sessions[-1].name, 3)
    assert add(sums, late) == late.name  # There is room for it now.
    assert carried(sums, OTHER) == [5, 5, 50, 50]
    assert carried(sums, late.name) == [3, 3, 30, 30]


def test_the_time_of_full_windows_only_grows_too() -> None:
    sums = PeerSums()
    clocks = {"a": FullClock()}
    clocks["a"].begin(1.0)
    sums.add_full("a", clocks["a"].seconds(3.0), sums.label("a"))
    sums.add_full("a", clocks["a"].seconds(4.0), sums.label("a"))
    assert sums.full_s == {"a": 3.0}
    sums.forget_all_but({"a"}, clocks)
    assert set(clocks) == {"a"}
    sums.forget_all_but((), clocks)
    assert set(clocks) == {"a"}  # A sender still waits.
    clocks["a"].end(5.0)
    sums.forget_all_but((), clocks)
    assert clocks == {}
    assert sums.full_s == {}


def test_a_clock_that_was_replaced_begins_anew() -> None:
    sums = PeerSums()
    for seconds in (5.0, 1.0):
        sums.add_full("a", seconds, sums.label("a"))
    assert sums.full_s == {"a": 6.0}
    sums.forget_all_but((), {})
    assert sums._full_s == {}


def test_memory_is_told_where_the_system_does_not_say_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    assert reading._resident_bytes(1) > 1_000_000
    monkeypatch.setattr(reading, "_STATM", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "linux")
    assert reading._resident_bytes(2) == 2048
    monkeypatch.setattr(sys, "platform", "darwin")
    assert reading._resident_bytes(2_048) == 2048
