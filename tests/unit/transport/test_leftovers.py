"""From whom no connection is accepted, while what strangers have sent is still to be read."""

from __future__ import annotations

from fleetlm.transport.leftovers import (
    EVERYBODY,
    FEW_LEFT_BYTES,
    MAX_ADDRESSES,
    MOST_LEFT_BYTES,
    TOLD_S,
    Leftovers,
)

NOBODY: frozenset[str] = frozenset()


def leftovers() -> tuple[Leftovers, list[frozenset[str]]]:
    told: list[frozenset[str]] = []
    made = Leftovers()
    made.turn_away = told.append
    return made, told


def test_as_much_as_can_be_read_soon_turns_nobody_away() -> None:
    made, told = leftovers()
    for _ in range(4):
        made.add("10.0.0.1", MOST_LEFT_BYTES // 4)
    made.add("10.0.0.1", 0)
    made.add("10.0.0.1", -5)
    assert (told, made.turned_away, made.tell(0.0)) == ([], NOBODY, "")


def test_who_left_more_is_turned_away_until_nearly_all_of_it_is_read() -> None:
    made, told = leftovers()
    made.add("10.0.0.1", MOST_LEFT_BYTES)
    made.add("10.0.0.2", 1)
    assert told == [{"10.0.0.1", "10.0.0.2"}]
    made.read(MOST_LEFT_BYTES - FEW_LEFT_BYTES)
    assert len(told) == 1
    made.read(1)
    assert told[1:] == [NOBODY]
    made.end()
    assert (made.left_bytes, len(told)) == (0, 2)


def test_a_router_without_a_frame_has_nothing_left() -> None:
    made, told = leftovers()
    made.add("10.0.0.1", MOST_LEFT_BYTES + 1)
    made.end()
    made.add("10.0.0.2", MOST_LEFT_BYTES)
    assert told == [{"10.0.0.1"}, NOBODY]


def test_more_is_never_read_than_was_left() -> None:
    """Some bytes that are read were never counted, such as those of a connection whose end was not seen."""
    made, told = leftovers()
    made.read(MOST_LEFT_BYTES)
    made.add("10.0.0.1", MOST_LEFT_BYTES + 1)
    assert told == [{"10.0.0.1"}]


def test_when_it_came_from_many_addresses_everybody_is_turned_away() -> None:
    made, told = leftovers()
    for number in range(2 * MAX_ADDRESSES):
        made.add(f"10.0.0.{number}", MOST_LEFT_BYTES // MAX_ADDRESSES)
    assert told[-1] == EVERYBODY
    assert "accepts no connection from any address" in made.tell(0.0)


def test_an_address_that_is_not_known_may_be_anybodys() -> None:
    made, told = leftovers()
    made.add("", MOST_LEFT_BYTES + 1)
    assert told == [EVERYBODY]


def test_addresses_that_left_little_are_not_turned_away_for_the_others() -> None:
    made, _ = leftovers()
    for number in range(MAX_ADDRESSES):
        made.add(f"10.0.0.{number}", MOST_LEFT_BYTES // MAX_ADDRESSES)
    made.add("10.0.1.1", 100)
    assert made.turned_away == {f"10.0.0.{number}" for number in range(MAX_ADDRESSES)}


def test_it_is_said_once_in_a_minute() -> None:
    made, _ = leftovers()
    made.add("10.0.0.1", MOST_LEFT_BYTES + 1)
    assert made.tell(5.0) == (
        "connections that are not a node's send faster than this node reads: until it has read what came, it "
        "accepts no connection from 10.0.0.1"
    )
    assert made.tell(5.0 + TOLD_S - 0.1) == ""
    assert made.tell(5.0 + TOLD_S)
