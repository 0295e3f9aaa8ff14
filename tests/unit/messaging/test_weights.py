"""A message that counts less than its weight demands ends the connection of its sender."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from fleetlm.errors import WouldBlock
from fleetlm.messaging.beside import BATCH_ON_LOOP_BYTES
from fleetlm.messaging.inbound import CHECK_BITS, LONG_BATCHES
from fleetlm.messaging.windows import (
    LEAST_WEIGHED_BYTES,
    LEAST_WEIGHED_VALUES,
    UNIT_BYTES,
    UNITS_FIELD_BYTES,
    check_units,
    units,
)
from fleetlm.wire import operations
from fleetlm.wire.codec import Codec
from fleetlm.wire.frames import CHUNK_HEAD, BadFrame, Kind, header
from fleetlm.wire.weights import CONTAINER_BYTES, VALUE_BYTES
from tests.support.session_fakes import Pair, Side, virtual
from tests.unit.messaging.test_outbound import Rig as Sending

LARGE = b"x" * 60_000
LISTS: list[Any] = [[] for _ in range(800)]
"""Has 803 bytes and weighs more than 100,000."""
LIMIT = 4_096
LIST_BYTES = CONTAINER_BYTES + VALUE_BYTES
"""What an empty list in another one weighs, beside its byte."""


def batch(side: Side, *messages: Any) -> bytes:
    incoming = side.session.incoming
    packer = msgpack.Packer()
    body = packer.pack_array_header(len(messages)) + b"".join(map(msgpack.packb, messages))
    return header(Kind.BATCH, incoming.epoch, incoming.seq) + body


def receive(side: Side, *messages: Any) -> None:
    """Let a node take one batch of a peer that packs what it likes."""
    side.receive([batch(side, *messages)])


def receive_chunk(side: Side, message: Any, count: int) -> None:
    """Let a node take one large message of a peer that says what it likes of its units."""
    incoming, packed = side.session.incoming, msgpack.packb(message)
    head = header(Kind.CHUNK, incoming.epoch, incoming.seq) + CHUNK_HEAD.pack(1, count, 0, len(packed), 0)
    side.receive([head + packed])


def weigh(message: Any, weight: int, limit: int = LIMIT) -> None:
    check_units([message], [weight], limit)


def test_a_message_counts_at_least_what_its_weight_demands() -> None:
    for weight in (UNIT_BYTES, 2 * UNIT_BYTES, 100 * UNIT_BYTES + 5):
        full = units(weight, LIMIT)
        weigh(operations.heavy("box", b"", full), weight)
        weigh(operations.heavy("box", b"", full + 3), weight)
        heavier = weight + UNIT_BYTES + UNITS_FIELD_BYTES
        with pytest.raises(ValueError, match=f"weighs {heavier:,} bytes and counts as {full}"):
            weigh(operations.heavy("box", b"", full), heavier)


def test_the_field_that_says_the_units_does_not_count() -> None:
    weigh(operations.one_way("box", b""), UNIT_BYTES + UNITS_FIELD_BYTES - 1)
    with pytest.raises(ValueError, match="counts as 1"):
        weigh(operations.one_way("box", b""), UNIT_BYTES + UNITS_FIELD_BYTES)


def test_no_message_counts_more_than_a_whole_window() -> None:
    weigh(operations.heavy("box", b"", 16), 1_000 * UNIT_BYTES, limit=16)


def test_what_counts_in_no_window_may_weigh_anything() -> None:
    weigh(operations.reply(7, b""), 100 * UNIT_BYTES)


@pytest.mark.parametrize("payload", [LARGE, LISTS], ids=["large", "of many values"])
@pytest.mark.parametrize(
    "cheat",
    [
        lambda payload: operations.one_way("box", payload),
        lambda payload: operations.heavy("box", payload, 3),
        lambda payload: operations.cast("box", payload, 1),
        lambda payload: operations.call("box", payload, 7, 5_000),
        lambda payload: operations.stream("box", payload, 7, 5_000, 64, 0, 0, 1),
        lambda payload: operations.item(7, payload),
    ],
    ids=["one way", "heavy", "cast", "call", "stream", "item"],
)
def test_who_counts_too_little_is_found_out_among_small_messages(
    payload: Any, cheat: Callable[[Any], list[Any]]
) -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        small = [operations.one_way("other", "x")] * 200
        with pytest.raises(BadFrame, match=r"a message that weighs [\d,]+ bytes and counts as \d"):
            receive(side, *small, cheat(payload), *small)
        assert not box.queue, "nothing of that batch was delivered"

    main()


@pytest.mark.parametrize("count", [300_000, 1_100_000], ids=["on the loop", "beside it"])
def test_who_counts_too_little_for_a_message_in_chunks_is_found_out(count: int) -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        message = operations.one_way("box", [[]] * 300 + [b"x" * count])
        honest = units(count + 301 * LIST_BYTES + 310, LIMIT)
        receive_chunk(side, message, honest)
        assert len(box.queue) == 1
        with pytest.raises((BadFrame, ValueError), match=f"counts as {honest - 3}"):
            receive_chunk(side, message, honest - 3)
        assert len(box.queue) == 1

    main()


def test_honest_heavy_messages_pass() -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        receive(side, operations.heavy("box", LARGE, units(60_010, LIMIT)), operations.one_way("box", "x"))
        receive(side, operations.heavy("box", LISTS, units(803 + CONTAINER_BYTES + 800 * LIST_BYTES, LIMIT)))
        few = [[]] * (UNIT_BYTES // LIST_BYTES - 6)
        receive(side, *[operations.one_way("box", few)] * 100)
        assert [*box.queue][:4] == [LARGE, "x", LISTS, few]

    main()


def test_the_heavier_a_batch_is_the_more_often_it_is_weighed_and_a_light_one_never() -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        asked: list[int] = []
        drawn = 0

        def draw(bits: int) -> int:
            asked.append(bits)
            return drawn

        side.session.byte_window.draw = draw
        receive(side, *[operations.one_way("box", b"x" * 100)] * 50)
        receive(side, operations.one_way("box", [1.5] * 30))
        assert not asked
        receive(side, operations.one_way("box", [[]] * 50))
        assert asked == [CHECK_BITS], "it may weigh much, for all that its bytes say"
        asked.clear()
        drawn = len(LARGE) + UNIT_BYTES
        receive(side, operations.one_way("box", LARGE))
        assert asked == [CHECK_BITS]
        assert len(box.queue) == 53, "this one was not weighed"
        drawn = len(LARGE)
        with pytest.raises(BadFrame):
            receive(side, operations.one_way("box", LARGE))

    main()


def test_items_of_a_small_stream_count_more_than_its_window_and_pass() -> None:
    """The units of an item that weighs more than the whole window of its stream."""

    @virtual
    async def main() -> None:
        pair = Pair()
        packed, counted = pair.here.session.packed_item(7, LISTS, 2)
        assert counted == 2
        pair.here.session.append(packed[0])
        pair.here.flush()
        pair.there.receive([frame for _, frame in pair.here.transport.frames])

    main()


def fill(rig: Sending, value: Any) -> None:
    while True:
        rig.outbound.send_nowait(("slow", rig.session.name), value)


@pytest.mark.parametrize("value", [LISTS, [{}] * 700, [[1.5] * 10] * 30], ids=["lists", "dicts", "numbers"])
def test_a_mailbox_full_of_the_worst_values_takes_the_memory_that_is_promised(value: Any) -> None:
    limit = 256

    @virtual
    async def main() -> None:
        rig = Sending()
        rig.session.windows.limit = rig.session.held_limit = limit
        there = rig.pair.there
        there.session.arrivals.limit = limit
        box = there.box("slow")
        there.codec.unpack(there.codec.pack_value(value))
        gc.collect()
        tracemalloc.start()
        try:
            with pytest.raises(WouldBlock):
                fill(rig, value)
            await rig.settle()
            rig.pair.here.transport.frames.clear()
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert box.queue
        assert len(box.queue) < limit / 2
        assert taken < 1.5 * limit * UNIT_BYTES

    main()


def test_a_short_message_of_many_lists_counts_what_they_cost_the_collector() -> None:
    """4,096 messages of 230 lists would make it stop the loop for a tenth of a second, again and again."""

    @virtual
    async def main() -> None:
        rig = Sending()
        limit = rig.session.held_limit
        box = rig.pair.there.box("slow")
        value = [[] for _ in range(230)]
        with pytest.raises(WouldBlock):
            fill(rig, value)
        await rig.settle()
        assert 0.9 * limit < 231 * len(box.queue) * LIST_BYTES / UNIT_BYTES < 1.1 * limit + 5

    main()


@pytest.mark.parametrize("value", [[[]], [()], [{}], {1: []}, [[[[]]]]], ids=str)
def test_what_is_not_weighed_weighs_little(value: Any) -> None:
    """The bounds from which messages and batches are weighed, for all kinds of containers."""
    codec, many = Codec(), value
    while True:
        packed = codec.pack_whole(["b", many], many)
        decoder = Codec()
        decoder.unpack_batch(b"\x91" + packed)
        if len(packed) + codec.extra_bytes >= UNIT_BYTES:
            break
        many = {**many, len(many) + 1: []} if type(many) is dict else many + value
    assert len(packed) >= LEAST_WEIGHED_BYTES
    assert decoder.values >= LEAST_WEIGHED_VALUES


def note_what_goes_beside(side: Side) -> list[Any]:
    """Collect what would be unpacked in the thread, instead of unpacking it."""
    beside: list[Any] = []
    side.inbound.unpack_beside = lambda _session, unpack: beside.append(unpack)
    return beside


@pytest.mark.parametrize(
    ("count", "is_beside"), [(16_000, False), (17_000, True), (200_000, True)], ids=lambda count: f"{count:,}"
)
def test_a_message_of_many_values_in_chunks_is_unpacked_and_weighed_beside_the_loop(
    count: int, is_beside: bool
) -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box, beside = side.box("box"), note_what_goes_beside(side)
        receive_chunk(side, operations.one_way("box", [[]] * count), LIMIT)
        assert (len(beside), len(box.queue)) == ((1, 0) if is_beside else (0, 1))

    main()


def frame_of(side: Side, messages: list[Any]) -> bytes:
    incoming = side.session.incoming
    return header(Kind.BATCH, incoming.epoch, incoming.seq) + side.codec.pack_value(messages)


def rest_of(side: Side, frame: bytes) -> int:
    """Let a node take a frame in turns that are over at once. Returns in how many."""
    inbound = side.inbound
    inbound.until = 0.0
    rest, turns = inbound.frame(side.session, frame), 1
    while rest is not None:
        rest = inbound.go_on(side.session, rest)
        turns += 1
    return turns


@pytest.mark.parametrize(
    "item", [set(), (), dict.fromkeys(range(40))], ids=["sets", "tuples", "numbers as keys"]
)
def test_a_batch_that_takes_long_is_unpacked_in_several_turns(item: Any) -> None:
    """Its size is that of an honest batch. A long message of it is unpacked beside the loop."""

    @virtual
    async def main() -> None:
        side = Pair().there
        box, beside = side.box("box"), note_what_goes_beside(side)
        count = 6_000 if type(item) is not dict else 300
        sent = [operations.heavy("box", [item] * (count // 50), 5) for _ in range(50)]
        frame = frame_of(side, sent)
        assert len(frame) < BATCH_ON_LOOP_BYTES
        assert rest_of(side, frame) > len(frame) // 2_048
        assert (len(beside), list(box.queue)) == (0, [message[2] for message in sent])
        assert side.session.messages_received == 50
        sent[5] = operations.heavy("box", [item] * count, 1_000)
        assert rest_of(side, frame_of(side, sent)) > 1
        assert (len(beside), len(box.queue)) == (1, 55)
        assert beside[0]() == (sent[5:], 0)
        receive(side, operations.one_way("box", "what comes next is unpacked on the loop"))
        assert len(box.queue) == 56

    main()


def test_after_a_batch_that_takes_long_the_next_ones_are_unpacked_in_slices_at_once() -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        usual = [operations.one_way("box", "x" * 100)] * 100

        def turns() -> int:
            return rest_of(side, frame_of(side, usual))

        assert turns() == 1
        assert (
            rest_of(side, frame_of(side, [operations.one_way("box", (number,)) for number in range(600)])) > 1
        )
        assert side.session.long_batches == LONG_BATCHES
        assert [turns() > 1 for _ in range(LONG_BATCHES + 1)] == [True] * LONG_BATCHES + [False]
        assert len(box.queue) == 600 + (LONG_BATCHES + 2) * 100

    main()


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (["box", LISTS], "counts as 1"),
        ([], "a malformed message"),
        (["box", msgpack.ExtType(2, b"\xc1")], "a batch that cannot be read"),
        (["box", msgpack.ExtType(100, b"")], ""),
    ],
    ids=["weight", "no message", "no value", "unreadable"],
)
def test_a_batch_in_slices_is_checked_as_any_other(last: Any, why: str) -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        side.session.long_batches = 1
        frame = batch(side, *[operations.one_way("box", "x" * 100)] * 100, last)
        if why:
            with pytest.raises(BadFrame, match=why):
                rest_of(side, frame)
        else:
            rest_of(side, frame)
            assert (side.inbound.unreadable, len(box.queue)) == (1, 100)
        assert 0 < len(box.queue) <= 100

    main()


def test_batches_of_small_messages_are_unpacked_on_the_loop() -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box, beside = side.box("box"), note_what_goes_beside(side)
        receive(side, *[operations.one_way("box", {"a": [1, 2], "b": {"c": None}})] * 3_000)
        side.receive([frame_of(side, [["box", (number, ())] for number in range(1_024)])])
        assert (len(beside), len(box.queue)) == (0, 4_024)

    main()


def test_a_batch_of_few_large_texts_is_unpacked_at_once_and_one_of_many_values_in_turns() -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box, beside = side.box("box"), note_what_goes_beside(side)
        receive(side, *[operations.heavy("box", "x" * 120_000, 40)] * 5)
        receive(side, *[operations.one_way("box", [1] * 20)] * 2_000)
        assert (len(beside), len(box.queue), side.session.long_batches) == (0, 2_005, 0)
        assert rest_of(side, batch(side, *[operations.one_way("nobody", [1] * 20)] * 4_090)) > 40
        assert (len(beside), side.inbound.undelivered) == (0, 4_090)

    main()


def test_a_large_batch_is_unpacked_in_slices_and_may_hold_so_many_messages() -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        small = [operations.one_way("box", "x" * 1_000)] * 300
        assert rest_of(side, batch(side, *small)) == 2
        assert rest_of(side, batch(side, *small, *small)) > 200
        assert side.session.messages_received == len(box.queue) == 900
        with pytest.raises(BadFrame, match="a batch of 4,097 messages"):
            receive(side, *[operations.one_way("box", "x" * 100)] * 4_097)

    main()


def test_what_is_unpacked_beside_the_loop_is_always_weighed() -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        side.box("box")
        side.session.byte_window.draw = lambda _bits: 1 << 30
        lists = operations.heavy("box", [[]] * 20_000, 1_000)
        receive(side, lists, *[operations.one_way("box", "x" * 1_000)] * 600)
        with pytest.raises(BadFrame, match="counts as 1"):
            receive(
                side, lists, *[operations.one_way("box", "x" * 1_000)] * 600, operations.one_way("box", LARGE)
            )

    main()
