"""What former connections of one node may leave in mailboxes of processes that take nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetlm.messaging.former_windows import FormerWindows
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.messaging.windows import MAX_NAMES_OF_ONE, ReceiveWindows

LIMIT = 8
OWNER: Any = None  # These mailboxes hold no calls.


class Session:
    """As much of a session as `FormerWindows` looks at."""

    def __init__(self, former: FormerWindows, name: str = "peer") -> None:
        self.name = name
        self.arrivals = ReceiveWindows(LIMIT, lambda _key, _units: None, LIMIT)
        former.began(self)  # type: ignore[arg-type]
        self._former = former

    def send(self, box: Mailbox, *messages: Any, key: int | str = 1, weight: int = 1) -> None:
        for message in messages:
            box.put(message)
            self.arrivals.received(key, 1, box, weight)

    def end(self) -> None:
        for _ in self._former.ended(self):  # type: ignore[arg-type]
            pass


def test_one_connection_alone_leaves_all_that_it_may_send() -> None:
    former, box = FormerWindows(), Mailbox(LIMIT, OWNER)
    session = Session(former)
    session.send(box, *range(LIMIT - 1))
    session.send(box, "large", weight=LIMIT)
    session.end()
    assert list(box.queue) == [*range(LIMIT - 1), "large"]


def test_of_many_connections_what_two_windows_hold_stays_and_the_newest_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    former, box, other = FormerWindows(), Mailbox(LIMIT, OWNER), Mailbox(LIMIT, OWNER)
    with caplog.at_level(logging.WARNING, "fleetlm"):
        for connection in range(5):
            session = Session(former)
            session.send(box, *((connection, number) for number in range(LIMIT - 1)))
            box.put(("own", connection))
            session.send(other, connection, key=2)
            session.end()
    sent = [*((0, n) for n in range(7)), ("own", 0), *((1, n) for n in range(7)), ("own", 1)]
    assert list(box.queue) == [*sent, (2, 0), (2, 1), ("own", 2), ("own", 3), ("own", 4)]
    assert list(other.queue) == [0, 1, 2, 3, 4], "another process is not concerned"
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"dropped {count} messages of former connections of peer" for count in (5, 7, 7)
    ]


def test_who_has_taken_everything_is_forgotten_and_others_count_for_themselves() -> None:
    former, box = FormerWindows(), Mailbox(LIMIT, OWNER)
    for name in ("a", "b", "c"):
        session = Session(former, name)
        session.send(box, *[name] * LIMIT)
        session.end()
    assert len(box) == 3 * LIMIT
    assert len(former) == 3
    box.close()
    Session(former)
    assert len(former) == 0


def test_exit_signals_go_on_counting() -> None:
    former, box = FormerWindows(), Mailbox(LIMIT, OWNER)
    for _ in range(2):
        session = Session(former)
        for _ in range(LIMIT // 2):
            box.put("exit")
            session.arrivals.exits.received(1, box)
        session.end()
        assert len(former) == 1
    with pytest.raises(ValueError, match="exit signals"):
        Session(former).arrivals.exits.received(1, box)


def test_a_process_whose_name_changes_has_a_few_windows_and_no_more() -> None:
    session, box = Session(FormerWindows()), Mailbox(LIMIT, OWNER)
    for number in range(MAX_NAMES_OF_ONE + 1):
        session.send(box, number, key=f"name {number}")
    with pytest.raises(ValueError, match="under more than 4 names"):
        session.arrivals.received("one more", 1, box)


class Window:
    step = 1_000

    def __init__(self) -> None:
        self.taken = 0

    def took(self, _key: int | str, count: int, /) -> None:
        self.taken += count


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4))), st.integers(0, 30), st.integers(0, 5))
def test_trimming_drops_the_newest_of_some_windows_and_nothing_else(
    sent: list[tuple[int, int]], most: int, taken: int
) -> None:
    box, windows = Mailbox(LIMIT, OWNER), [Window(), Window(), Window()]
    for number, (whose, weight) in enumerate(sent):
        box.put((number, whose, weight))
        if whose < 3:
            box.arrived(windows[whose], 1, 1, weight)
    for _ in range(min(taken, len(sent))):
        box.queue.popleft()
        box.taken += 1
    waiting, ours = list(box.queue), windows[:2]
    dropped = box.trim(ours, most)
    left = list(box.queue)
    assert dropped == len(waiting) - len(left)
    assert [each for each in waiting if each[1] > 1] == [each for each in left if each[1] > 1]
    units = sum(weight for _, whose, weight in left if whose < 2)
    assert units <= most or not dropped
    assert dropped == 0 or sum(weight for _, whose, weight in waiting if whose < 2) > most
    assert left == [each for each in waiting if each in left], "the order stays"
    for window in windows:
        waits = sum(weight for _, whose, weight in left if whose < 3 and windows[whose] is window)
        assert window.taken + waits == sum(w for whose, w in sent if whose < 3 and windows[whose] is window)
    box.close()
    for number, window in enumerate(windows):
        assert window.taken == sum(weight for whose, weight in sent if whose == number)
