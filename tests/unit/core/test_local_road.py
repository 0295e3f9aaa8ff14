"""The agreement on a local road: which half changes over when, by exact effects."""

from __future__ import annotations

import pytest

from fleetlm.core.effects import Effect, ExpectRoad, FollowRoad, HangUp, OpenRoad, Send, TakeRoad, Up
from fleetlm.wire import frames
from fleetlm.wire.frames import Kind
from tests.support.kernel_fakes import Meeting, hello_of, name, ready_frame

OURS, THEIRS = 5, 9
"""The numbers of the two listeners."""
EPOCH = 77
"""Of the peer's half."""
ROADS = ExpectRoad, OpenRoad, TakeRoad, FollowRoad


def moved_frame(seq: int, epoch: int = EPOCH) -> bytes:
    return frames.header(Kind.MOVED, epoch, seq)


def on_roads(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, ROADS)]


def come_up(m: Meeting, *, road: int = THEIRS) -> tuple[bytes, list[Effect]]:
    """Complete the handshake with node 2. Returns its source, and the effects of its READY."""
    m.kernel.asked_for(m.now, name(2))
    m.kernel.opened(m.now, m.channel(2))
    half, _ = m.hello(2, EPOCH, road=road)
    ready = ready_frame(EPOCH, 1, m.epoch(2), hello_of(2, road=road))
    return half, m.kernel.control_frame(m.now, half, ready)


def neighbours() -> tuple[Meeting, bytes]:
    """Node 1, to which node 2 is connected, and the source of node 2. Both have local roads."""
    m = Meeting(road=OURS)
    half, _ = come_up(m)
    return m, half


def test_when_the_connection_is_up_each_half_has_a_ticket_of_both_epochs() -> None:
    m = Meeting(road=OURS)
    half, effects = come_up(m)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Up) < kinds.index(ExpectRoad) < kinds.index(OpenRoad), "first there is a session"
    assert on_roads(effects) == [
        ExpectRoad(half, frames.ticket(EPOCH, m.epoch(2))),
        OpenRoad(m.channel(2), THEIRS, frames.ticket(m.epoch(2), EPOCH)),
    ]


def test_what_one_node_shows_is_what_the_other_one_expects() -> None:
    shown, expected = frames.ticket(1, 2), frames.ticket(2, 1)
    assert shown != expected
    assert len(shown) == frames.TICKET.size == 16


@pytest.mark.parametrize(("ours", "theirs"), [(0, THEIRS), (OURS, 0), (0, 0)])
def test_a_node_without_local_roads_is_not_asked_for_one(ours: int, theirs: int) -> None:
    _, effects = come_up(Meeting(road=ours), road=theirs)
    assert on_roads(effects) == []


def test_our_half_changes_over_behind_a_numbered_frame() -> None:
    m, _ = neighbours()
    channel, out = m.channel(2), m.kernel.topology.peers[name(2)].connection.outgoing
    assert out is not None
    seq = out.seq
    effects = m.kernel.road_opened(m.now, channel)
    assert effects == [
        Send(channel, frames.header(Kind.MOVED, m.epoch(2), seq)),
        TakeRoad(channel),
    ]
    assert out.seq == seq + 1, "the numbers go on"


def test_a_road_that_opens_too_late_is_not_taken() -> None:
    m, half = neighbours()
    channel = m.channel(2)
    m.kernel.source_lost(m.now, half, "connection closed")
    assert m.kernel.road_opened(m.now, channel) == []
    assert m.kernel.road_opened(m.now, 999) == []


def test_the_channel_of_an_attempt_or_of_a_check_takes_no_road() -> None:
    m = Meeting(road=OURS)
    m.kernel.asked_for(m.now, name(3))
    assert m.kernel.road_opened(m.now, m.channel(3)) == []
    come_up(m)
    m.hello(2, EPOCH + 1, road=THEIRS)  # A claim, which is checked beside the connection.
    connection = m.kernel.topology.peers[name(2)].connection
    assert connection.check is not None
    assert m.kernel.road_opened(m.now, connection.check.out.channel) == []
    assert connection.road == "zeromq"


def test_the_half_of_the_peer_is_followed_when_it_says_that_it_changes_over() -> None:
    m, half = neighbours()
    assert m.kernel.control_frame(m.now, half, moved_frame(2)) == [FollowRoad(half)]
    goodbye = frames.header(Kind.GOODBYE, EPOCH, 3) + frames.pack_goodbye("over")
    assert any(isinstance(effect, HangUp) for effect in m.kernel.control_frame(m.now, half, goodbye))


@pytest.mark.parametrize("seq", [1, 3])
def test_a_frame_that_is_missing_before_the_change_ends_the_connection(seq: int) -> None:
    m, half = neighbours()
    m.kernel.control_frame(m.now, half, moved_frame(seq))
    assert m.status(2) == "down"


def test_a_peer_changes_over_only_once() -> None:
    m, half = neighbours()
    m.kernel.control_frame(m.now, half, moved_frame(2))
    m.kernel.control_frame(m.now, half, moved_frame(3))
    assert m.status(2) == "down"
    last_error = m.kernel.topology.peers[name(2)].connection.last_error
    assert last_error == "protocol error: it changes over to a local road that there is not"


def test_a_node_without_local_roads_does_not_let_a_peer_change_over() -> None:
    m = Meeting()
    half, _ = come_up(m)
    m.kernel.control_frame(m.now, half, moved_frame(2))
    assert m.status(2) == "down"


def test_a_stranger_cannot_change_over() -> None:
    m = Meeting(road=OURS)
    half = m.met(2)
    assert m.kernel.control_frame(m.now, half, moved_frame(0)) == []


def test_after_a_connection_that_ended_soon_the_next_one_keeps_to_zeromq() -> None:
    m, half = neighbours()
    m.kernel.source_lost(m.now + 1, half, "the local road ended")
    m.now += 120
    m.kernel.tick(m.now)
    _, effects = come_up(m)
    assert m.status(2) == "up"
    assert on_roads(effects) == []


def test_after_a_connection_that_had_settled_the_next_one_has_a_local_road_again() -> None:
    m, half = neighbours()
    m.now += 120
    m.kernel.source_lost(m.now, half, "connection closed")
    m.now += 120
    m.kernel.tick(m.now)
    _, effects = come_up(m)
    assert len(on_roads(effects)) == 2


def test_the_table_shows_which_road_messages_to_a_peer_take() -> None:
    m, half = neighbours()

    def road() -> str:
        (row,) = m.kernel.topology.info(m.now)
        return row.road

    assert road() == "zeromq"
    m.kernel.road_opened(m.now, m.channel(2))
    assert road() == "local"
    m.kernel.source_lost(m.now, half, "connection closed")
    assert road() == ""
