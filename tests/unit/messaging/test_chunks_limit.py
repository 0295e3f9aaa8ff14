"""Large messages are begun only as the receiver can hold them: `Lanes` keeps to `Reassembly`'s limit."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fleetlm.messaging.chunks import Lanes, Reassembly
from fleetlm.wire.frames import BadFrame

CHUNK = 4
LIMIT = 20


def arrive(lanes: Lanes, parts: Reassembly) -> list[bytes]:
    """Everything that is queued goes over; what came out at the other end."""
    out = []
    while (item := lanes.next(CHUNK)) is not None:
        if isinstance(item, bytes):
            out.append(item)
        elif (whole := parts.add(*item)) is not None:
            out.append(whole.envelope)
    return out


def test_without_the_limit_two_large_senders_would_cost_the_connection() -> None:
    lanes, parts = Lanes(CHUNK), Reassembly(LIMIT)
    lanes.add("a", b"a" * 15)
    lanes.add("b", b"b" * 15)
    with pytest.raises(BadFrame, match="more than 20 bytes"):
        arrive(lanes, parts)


def test_the_second_waits_for_the_first() -> None:
    lanes, parts = Lanes(CHUNK, LIMIT), Reassembly(LIMIT)
    lanes.add("a", b"a" * 15)
    lanes.add("b", b"b" * 15)
    lanes.add("c", b"c" * 5)
    assert arrive(lanes, parts) == [b"c" * 5, b"a" * 15, b"b" * 15]
    assert not lanes


def test_small_messages_behind_one_that_waits_wait_with_it() -> None:
    lanes, parts = Lanes(CHUNK, LIMIT), Reassembly(LIMIT)
    lanes.add("a", b"a" * 20)
    lanes.add("b", b"b" * 20)
    lanes.add("b", b"s")
    assert arrive(lanes, parts) == [b"a" * 20, b"b" * 20, b"s"]


def test_a_message_of_the_whole_limit_goes_alone() -> None:
    lanes, parts = Lanes(CHUNK, LIMIT), Reassembly(LIMIT)
    lanes.add("a", b"a" * LIMIT)
    assert arrive(lanes, parts) == [b"a" * LIMIT]


def test_a_cleared_road_owes_nothing() -> None:
    lanes = Lanes(CHUNK, LIMIT)
    lanes.add("a", b"a" * LIMIT)
    assert lanes.next(CHUNK) is not None
    lanes.clear()
    lanes.add("a", b"a" * LIMIT)
    assert arrive(lanes, Reassembly(LIMIT)) == [b"a" * LIMIT]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, LIMIT)), max_size=30))
def test_everything_arrives_in_each_senders_order(messages: list[tuple[str, int]]) -> None:
    lanes, parts = Lanes(CHUNK, LIMIT), Reassembly(LIMIT)
    sent: dict[str, list[bytes]] = {}
    for number, (sender, size) in enumerate(messages):
        text = (sender + chr(97 + number) * size)[:size]
        text = sender + text[1:]
        lanes.add(sender, text.encode())
        sent.setdefault(sender, []).append(text.encode())
    arrived = arrive(lanes, parts)
    for sender, texts in sent.items():
        assert [text for text in arrived if text.startswith(sender.encode())] == texts
    assert len(arrived) == len(messages)
    assert lanes.waiting_bytes == 0
