"""Turns of inbound work: what is left of a frame waits, in order, and every source has its turn."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest

from fleetlm.messaging import backlog, inbound as module
from fleetlm.messaging.backlog import QUIET_S, Backlog, Rest
from fleetlm.messaging.inbound import SLICE_MESSAGES
from fleetlm.settings import MAX_BATCH_MESSAGES, Settings
from fleetlm.testing import run
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.frames import BadFrame, Kind, header
from fleetlm.wire.operations import Op
from tests.support.session_fakes import EPOCH_THERE, HERE, THERE, Side, turns, virtual


class Node:
    """Takes frames of so many messages, of which a turn has time for three."""

    def __init__(self, max_bytes: int = 100, pause_s: float = 0.0) -> None:
        self.done: list[tuple[bytes, int]] = []
        self.lost: list[str] = []
        self.left = 3
        self.turns = 0
        self.backlog = Backlog(
            SimLoop.current(), max_bytes, go_on=self.go_on, take=self.take,
            begin_turn=self.begin_turn, is_over=lambda: self.left <= 0, pause_s=pause_s,
        )  # fmt: skip

    def begin_turn(self) -> None:
        self.turns += 1
        self.left = 3

    def go_on(self, source: bytes, rest: Rest) -> Rest | None:
        for (number,) in rest:
            self.done.append((source, number))
            self.left -= 1
            if self.left <= 0:
                return rest
        return None

    def take(self, source: bytes, frame: bytes, _tail: memoryview | None) -> None:
        rest = self.go_on(source, slices(*frame))
        if rest is not None:
            self.backlog.begin(source, rest)

    def of(self, source: bytes) -> list[int]:
        return [number for whose, number in self.done if whose == source]


def slices(*numbers: int) -> Rest:
    return Rest([number] for number in numbers)


def test_a_slice_that_was_put_back_comes_next() -> None:
    rest = slices(1, 2)
    assert next(rest) == [1]
    assert list(rest.put_back([])) == [[], [2]]


def test_what_was_delivered_of_a_frame_is_not_kept_until_its_end() -> None:
    class Message:
        """Something that can be watched."""

    rest, delivered = Rest([Message(), Message()] for _ in range(3)), []
    for messages in rest:
        delivered.append(weakref.ref(messages.pop(0)))
        if len(delivered) == 5:
            break
        if messages:
            rest.put_back(messages)
    del messages
    assert [message() for message in delivered] == [None] * 5


@virtual
async def test_what_is_left_is_taken_in_the_next_turns_and_in_order() -> None:
    node = Node()
    node.backlog.begin(b"a", slices(*range(7)))
    assert b"a" in node.backlog
    assert node.backlog.add(b"a", bytes([7, 8])) == 0
    assert node.done == []
    await turns(1)
    assert node.of(b"a") == [0, 1, 2], "no more than a turn has time for"
    await turns(9)
    assert node.of(b"a") == list(range(9))
    assert b"a" not in node.backlog
    assert node.turns == 4


@virtual
async def test_sources_take_turns() -> None:
    node = Node()
    node.backlog.begin(b"flood", slices(*range(60)))
    node.backlog.begin(b"other", slices(1, 2, 3))
    await turns(2)
    assert node.of(b"other") == [1, 2, 3], "it waited for one turn of the other"
    assert len(node.of(b"flood")) == 3
    await turns(30)
    assert node.of(b"flood") == list(range(60))


@virtual
async def test_sources_with_little_share_a_turn() -> None:
    node = Node()
    for source in (b"a", b"b", b"c"):
        node.backlog.begin(source, slices(1))
    await turns(1)
    assert node.done == [(b"a", 1), (b"b", 1), (b"c", 1)]
    assert node.turns == 1


@virtual
async def test_the_end_of_a_connection_waits_behind_what_came_over_it() -> None:
    node = Node()
    node.backlog.begin(b"a", slices(*range(8)))
    node.backlog.end(b"a", lambda: node.lost.append("first half"))
    node.backlog.end(b"a", lambda: node.lost.append("second half"))
    assert node.backlog.add(b"a", bytes(1_000)) == 0
    await turns(2)
    assert node.lost == []
    await turns(5)
    assert node.lost == ["first half"], "the connection ends once"
    assert len(node.of(b"a")) == 8, "nothing comes behind its end"


@virtual
async def test_a_source_may_let_a_bounded_amount_wait() -> None:
    node = Node(max_bytes=10)
    node.backlog.begin(b"a", slices(*range(5)))
    assert node.backlog.add(b"a", bytes(6)) == 0
    assert node.backlog.add(b"a", bytes(4)) == 0
    assert node.backlog.add(b"a", bytes(1)) == 11
    await turns(12)
    assert len(node.of(b"a")) == 15, "what was refused was not queued"


@virtual
async def test_what_was_dropped_is_not_taken_even_in_the_middle_of_its_turn() -> None:
    node = Node()
    node.backlog.begin(b"a", slices(*range(8)))
    node.backlog.begin(b"b", slices(*range(8)))
    node.backlog.drop(b"a")
    node.backlog.drop(b"unknown")
    await turns(2)
    assert node.of(b"a") == []
    node.backlog.clear()
    await turns(5)
    assert len(node.of(b"b")) == 6


@virtual
async def test_a_session_that_ends_while_its_frame_is_taken_leaves_no_queue() -> None:
    node = Node()

    def go_on(source: bytes, rest: Rest) -> Rest | None:
        node.backlog.drop(source)
        return None

    node.backlog._go_on = go_on
    node.backlog.begin(b"a", slices(1))
    await turns(3)
    assert b"a" not in node.backlog


# Pauses.


class Rounds:
    """A clock that passes for each round of the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, round_s: float) -> None:
        self.now, self.round_s = 100.0, round_s
        monkeypatch.setattr(backlog, "thread_time", lambda: self.now)

    async def go(self, count: int) -> None:
        for _ in range(count):
            self.now += self.round_s
            await turns(1)


@virtual
async def test_after_a_turn_the_rest_of_the_node_has_the_loop_for_as_long_if_it_has_work() -> None:
    with pytest.MonkeyPatch.context() as patch:
        rounds = Rounds(patch, QUIET_S * 2)
        node = Node(pause_s=QUIET_S * 10)
        node.backlog.begin(b"a", slices(*range(7)))
        await rounds.go(4)
        assert node.turns == 0, "the first turn was that of the frame"
        await rounds.go(2)
        assert node.turns == 1
        await rounds.go(3)
        assert node.turns == 1
        await rounds.go(3)
        assert node.turns == 2
        assert node.of(b"a") == list(range(6))
        rounds.round_s = QUIET_S * 20
        await rounds.go(1)
        assert node.of(b"a") == list(range(7)), "rounds that are longer than a pause have a turn each"


@virtual
async def test_a_loop_that_has_nothing_else_to_do_pauses_for_one_round_in_which_it_looks_at_its_sockets() -> (
    None
):
    with pytest.MonkeyPatch.context() as patch:
        rounds = Rounds(patch, QUIET_S / 10)
        node = Node(pause_s=1.0)
        node.backlog.begin(b"a", slices(*range(7)))
        await rounds.go(1)
        assert node.turns == 0
        await rounds.go(1)
        assert node.turns == 1
        await rounds.go(4)
        assert node.turns == 3
        assert node.of(b"a") == list(range(7))


def test_a_node_in_a_simulation_pauses_never_and_one_on_a_network_as_long_as_a_turn() -> None:
    async def told() -> None:
        assert side_with(math.inf).inbound.pause_s == 0
        side = Side(HERE, THERE, Settings())
        made = module.Inbound(
            side.inbound._boxes, side.codec, side.inbound._service, side.inbound._clock, 10, turn_s=0.5
        )
        assert made.pause_s == 0.5

    run(told())


# What `Inbound` leaves.


class Clock:
    """Each look takes a second."""

    def __init__(self, step: float = 1.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def frame(side: Side, messages: list[Any]) -> bytes:
    side.incoming_seq = getattr(side, "incoming_seq", 0) + 1  # type: ignore[attr-defined]
    body = b"\xdd" + len(messages).to_bytes(4, "big") + b"".join(map(side.codec.pack_value, messages))
    return header(Kind.BATCH, EPOCH_THERE, side.incoming_seq) + body  # type: ignore[attr-defined]


def side_with(turn_s: float) -> Side:
    side = Side(HERE, THERE, Settings())
    side.inbound.turn_s = turn_s / module.QUEUED_PART
    return side


@virtual
async def test_messages_are_delivered_in_slices_between_which_the_clock_is_looked_at() -> None:
    side = side_with(1e-9)
    box = side.box("echo")
    count = 2 * SLICE_MESSAGES + 7
    side.inbound.begin_turn()
    rest = side.inbound.frame(side.session, frame(side, [["echo", n] for n in range(count)]))
    assert list(box.queue) == list(range(SLICE_MESSAGES))
    looks = 1
    while rest is not None:
        rest = side.inbound.go_on(side.session, rest)
        looks += 1
    assert list(box.queue) == list(range(count))
    assert looks == 3
    assert side.session.messages_received == count


@virtual
async def test_batches_that_follow_one_of_which_much_is_left_are_read_in_slices() -> None:
    count = 9 * SLICE_MESSAGES
    for slices_taken, turn_s in [(1, 0.5), (2, 1.5)]:
        side = side_with(turn_s)
        box = side.box("echo")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "monotonic", Clock())
            side.inbound.begin_turn()
            rest = side.inbound.frame(side.session, frame(side, [["echo", n] for n in range(count)]))
            assert len(box.queue) == slices_taken * SLICE_MESSAGES
            assert side.session.long_batches == (module.LONG_BATCHES if slices_taken == 1 else 0)
            while rest is not None:
                rest = side.inbound.go_on(side.session, rest)
        assert list(box.queue) == list(range(count))


@virtual
async def test_a_costly_operation_ends_the_turn_and_what_follows_it_waits() -> None:
    side = side_with(3.0)
    box = side.box("echo")
    clock = Clock()
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "monotonic", clock)
    try:
        side.inbound.begin_turn()
        signals = [[int(Op.SIGNAL), n, None] for n in range(5)]
        rest = side.inbound.frame(side.session, frame(side, [*signals, ["echo", "last"]]))
        assert [what for _, what in side.service.questions] == [0, 1, 2]
        assert not box
        assert rest is not None
        side.inbound.begin_turn()
        assert side.inbound.go_on(side.session, rest) is None
        assert [what for _, what in side.service.questions] == [0, 1, 2, 3, 4]
        assert list(box.queue) == ["last"]
    finally:
        patch.undo()


@virtual
async def test_a_fact_that_takes_several_turns_holds_up_only_what_follows_it() -> None:
    side = side_with(3.0)
    box = side.box("echo")
    parts: list[Any] = []

    def told_table(_: Any, topic: str, fact: Any) -> bool:
        parts.append((topic, fact))
        return len(parts) < 7

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "monotonic", Clock())
        patch.setattr(side.service, "told_table", told_table)
        side.inbound.begin_turn()
        fact = [int(Op.TABLE), "groups", ["exit", 5]]
        rest = side.inbound.frame(side.session, frame(side, [["echo", 1], fact, ["echo", 2]]))
        taken = [len(parts)]
        while rest is not None:
            assert list(box.queue) == [1]
            side.inbound.begin_turn()
            rest = side.inbound.go_on(side.session, rest)
            taken.append(len(parts))
        assert taken == [3, 6, 7]
        assert parts == [("groups", ["exit", 5])] * 7
        assert list(box.queue) == [1, 2]


@virtual
async def test_refs_that_take_long_to_find_end_the_turn() -> None:
    side = side_with(3.0)
    box = side.box("echo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "monotonic", Clock())
        side.inbound.begin_turn()
        cancels = [[int(Op.CANCEL), n, None] for n in range(5)]
        rest = side.inbound.frame(side.session, frame(side, [*cancels, ["echo", "last"]]))
        assert rest is not None
        assert not box
        side.inbound.begin_turn()
        assert side.inbound.go_on(side.session, rest) is None
        assert list(box.queue) == ["last"]


@virtual
async def test_nothing_is_left_when_the_last_message_ends_the_turn() -> None:
    side = side_with(1e-9)
    side.inbound.begin_turn()
    assert side.inbound.frame(side.session, frame(side, [[int(Op.SIGNAL), 1, None]])) is None
    assert side.inbound.is_over()


@virtual
async def test_a_batch_of_too_many_messages_breaks_the_protocol_before_it_is_decoded() -> None:
    side = side_with(1.0)
    box = side.box("echo")
    messages = [["echo", 1]] * (MAX_BATCH_MESSAGES + 1)
    with pytest.raises(BadFrame, match="more than 4,096 messages"):
        side.inbound.frame(side.session, frame(side, messages))
    side = side_with(1.0)
    side.incoming_seq = 1  # type: ignore[attr-defined]
    body = b"\xdc" + len(messages).to_bytes(2, "big") + b"".join(map(side.codec.pack_value, messages))
    with pytest.raises(BadFrame, match="a batch of 4,097 messages"):
        side.inbound.frame(side.session, header(Kind.BATCH, EPOCH_THERE, 1) + body)
    assert not box
