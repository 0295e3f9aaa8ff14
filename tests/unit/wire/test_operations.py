"""The schema of what nodes say to each other: each operation is built, read and checked in one place."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from fleetlm.ids import Pid
from fleetlm.messaging.stream_items import ConsumerEnd
from fleetlm.testing.loop import SimLoop
from fleetlm.wire import frames, operations
from fleetlm.wire.codec import Codec
from fleetlm.wire.failures import FailureKind
from fleetlm.wire.frames import HEADER_BYTES, MAX_TEXT_CHARS, Kind
from fleetlm.wire.invocation import Invoke
from fleetlm.wire.operations import MAX_STREAM_WINDOW, NONSENSE, SCHEMAS, Op
from tests.support.kernel_fakes import name
from tests.support.session_fakes import EPOCH_HERE, THERE, Pair, virtual
from tests.unit.messaging.test_outbound import Rig as Sending

LIMIT = 16
BIG = (1 << 64) - 1
REQUEST = Invoke("append", (1, [2]), {"text": "x"})
PARTS = REQUEST.parts()

# Operation → what its builder is given, and what its reader returns.
CASES: list[tuple[int, tuple[Any, ...], Any]] = [
    (Op.CALL, ("echo", {"a": 1}, 7, 5_000), ("echo", {"a": 1}, 7, 5_000, False, 1)),
    (Op.HANDLE, (12, PARTS, BIG, 0, 1), (12, REQUEST, BIG, 0, True, 1)),
    (Op.STREAM, ("echo", None, 7, 0, 1, 50, 0, LIMIT), ("echo", None, 7, 0, 1, 50, False, LIMIT)),
    (Op.YIELD, (12, PARTS, 7, 9, 64, 0, 1, 1), (12, REQUEST, 7, 9, 64, 0, True, 1)),
    (Op.HEAVY, ("echo", "x", 2), ("echo", "x", 2)),
    (Op.CAST, (12, PARTS, LIMIT), (12, REQUEST, LIMIT)),
    (Op.REPLY, (7, [1]), (7, [1])),
    (Op.ITEM, (7, None), (7, None, 1)),
    (Op.FAILURE, (7, FailureKind.NO_PROCESS, ["echo"]), (7, 1, ["echo"])),
    (Op.CANCEL, (7,), 7),
    (Op.MORE, (7, 64), (7, 64)),
    (Op.TAKEN, ("echo", 3), ("echo", 3)),
    (Op.CREDIT, (BIG,), BIG),
    (Op.MARK, (BIG, 1), (BIG, True)),
    (Op.TICK, (12,), 12),
    (Op.DRAIN, (3, 1, 25_000, "signal"), (3, 1, 25_000, "signal")),
    (Op.HEARD, (3, 2), (3, 2)),
    (Op.SETTLED, ([3, 7], 2), ([3, 7], 2)),
    (Op.PEERS, ([name(2), name(3)],), [name(2), name(3)]),
    (Op.REQUEST, ("ping", None, 7), ("ping", None, 7)),
    (Op.SIGNAL, (["down", 1, "normal"],), ["down", 1, "normal"]),
    (Op.TABLE, ("groups", ["exit", 3]), ("groups", ["exit", 3])),
]


NUMBERS = {name: number for name, number in vars(Op).items() if name.isupper()}
"""The operations by name."""


def name_of(op: int) -> str:
    return next(name for name, number in NUMBERS.items() if number == op)


def read(op: int, message: Any) -> Any:
    schema = SCHEMAS[op]
    return schema.read(message, LIMIT) if schema.has_limit else schema.read(message)


# ── every operation ──────────────────────────────────────────────────────────────────────────────


def test_every_operation_has_a_schema_and_a_case_here() -> None:
    assert SCHEMAS.keys() == set(NUMBERS.values())
    assert [op for op, _, _ in CASES] == list(dict.fromkeys(op for op, _, _ in CASES))
    assert {op for op, _, _ in CASES} == set(NUMBERS.values())


def test_the_numbers_on_the_wire_never_change() -> None:
    assert NUMBERS == {
        "CALL": 1, "REPLY": 2, "FAILURE": 3, "CANCEL": 4, "REQUEST": 5, "CREDIT": 6, "TICK": 7, "PEERS": 8,
        "SIGNAL": 9, "TABLE": 10, "HEAVY": 11, "TAKEN": 12, "STREAM": 13, "ITEM": 14, "MORE": 15,
        "HANDLE": 16, "CAST": 17, "YIELD": 18, "DRAIN": 19, "HEARD": 20, "MARK": 21,
        "SETTLED": 22,
    }  # fmt: skip


@pytest.mark.parametrize(("op", "given", "read_back"), CASES, ids=[name_of(op) for op, _, _ in CASES])
def test_what_is_built_is_read_on_the_other_side(op: int, given: tuple[Any, ...], read_back: Any) -> None:
    message = SCHEMAS[op].build(*given)
    assert message[0] == op
    assert type(message[0]) is int, "msgpack refuses an IntEnum, and comparing one is slow"
    assert len(message) > 2, "two items are a one-way message"
    assert read(op, msgpack.unpackb(msgpack.packb(message))) == read_back


numbers = st.sampled_from([0, 1, LIMIT, LIMIT + 1, MAX_STREAM_WINDOW + 1, BIG, BIG + 1, -1])
fields = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=3) | st.floats() | st.just(Decimal("sNaN")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)


@given(st.sampled_from(sorted(NUMBERS.values())), st.lists(fields, max_size=8))
def test_a_reader_raises_nothing_but_nonsense(op: int, rest: list[Any]) -> None:
    try:
        read(op, [op, *rest])
    except NONSENSE:
        return


@pytest.mark.parametrize("op", [op for op in NUMBERS.values() if op not in (Op.CANCEL, Op.PEERS)])
def test_a_message_of_another_length_is_refused(op: int) -> None:
    given = next(given for case, given, _ in CASES if case == op)
    message = SCHEMAS[op].build(*given)
    too_long = [*message, 1, 1] if op in (Op.CALL, Op.HANDLE, Op.ITEM) else [*message, 1]
    for bad in (message[:-1], too_long):
        with pytest.raises(ValueError, match="unpack"):
            read(op, bad)


def test_the_source_of_a_drain_is_a_short_text() -> None:
    for source in (5, None, "x" * 513):
        with pytest.raises(TypeError, match="DRAIN"):
            read(Op.DRAIN, [Op.DRAIN, 1, [1, 1, source]])


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [-1, BIG + 1, True, 1.0, "1", None])
def test_counts_are_unsigned_integers_of_64_bits(count: Any) -> None:
    marks = ([Op.MARK, count, 0], [Op.MARK, 0, count])
    for message in (*marks, [Op.CREDIT, count, None], [Op.TICK, count, False]):
        with pytest.raises(ValueError, match="is not a count"):
            read(message[0], message)
    for op, bad in (
        (Op.DRAIN, [count, [1, 1, "api"]]),
        (Op.DRAIN, [1, [count, 1, "api"]]),
        (Op.DRAIN, [1, [1, count, "api"]]),
        (Op.HEARD, [count, 1]),
        (Op.HEARD, [1, count]),
        (Op.TAKEN, ["echo", count]),
        (Op.MORE, [7, count]),
        (Op.REQUEST, ["ping", None, count]),
        (Op.CALL, ["echo", None, count, 1, 0]),
        (Op.CALL, ["echo", None, 1, count, 0]),
        (Op.CALL, ["echo", None, 1, 1, count]),
        (Op.STREAM, ["echo", None, count, 1, 1, 0, 0, 1]),
        (Op.STREAM, ["echo", None, 1, count, 1, 0, 0, 1]),
        (Op.STREAM, ["echo", None, 1, 1, count, 0, 0, 1]),
        (Op.STREAM, ["echo", None, 1, 1, 1, count, 0, 1]),
        (Op.STREAM, ["echo", None, 1, 1, 1, 0, count, 1]),
        (Op.ITEM, [7, None, count]),
    ):
        with pytest.raises(ValueError, match="is not a count"):
            read(op, [op, *bad])


@pytest.mark.parametrize("units", [0, LIMIT + 1])
def test_a_message_counts_at_least_one_and_at_most_a_window(units: int) -> None:
    for op, message in (
        (Op.CALL, ["echo", None, 1, 1, 0, units]),
        (Op.STREAM, ["echo", None, 1, 1, 1, 0, 0, units]),
        (Op.HEAVY, ["echo", None, units]),
    ):
        with pytest.raises(ValueError, match=f"counts 1 to 16 units, not {units}"):
            read(op, [op, *message])


@pytest.mark.parametrize("to", [None, 1.0, True, b"echo", ["echo"]])
def test_a_process_is_a_number_or_a_name(to: Any) -> None:
    for op, message in (
        (Op.CALL, [to, None, 1, 1, 0]),
        (Op.STREAM, [to, None, 1, 1, 1, 0, 0, 1]),
        (Op.HEAVY, [to, None, 1]),
    ):
        with pytest.raises(ValueError, match="is not the number or name of a process"):
            read(op, [op, *message])


@pytest.mark.parametrize("window", [0, MAX_STREAM_WINDOW + 1])
def test_a_stream_has_a_window_of_at_least_one_item(window: int) -> None:
    with pytest.raises(ValueError, match=f"a stream with a window of {window}"):
        read(Op.STREAM, [Op.STREAM, "echo", None, 1, 1, window, 0, 0, 1])


@pytest.mark.parametrize("op", [Op.HANDLE, Op.CAST, Op.YIELD])
def test_a_request_to_an_actor_is_a_handler_and_its_arguments(op: int) -> None:
    rest = {Op.HANDLE: [1, 1, 0], Op.CAST: [1], Op.YIELD: [1, 1, 1, 0, 0, 1]}[op]
    for parts in (["append", (), {}], ["append", [], None]):
        with pytest.raises(ValueError, match="without its arguments"):
            read(op, [op, "echo", parts, *rest])


def test_names_of_peers_that_are_no_texts_are_passed_over() -> None:
    names: list[Any] = [name(2), "nobody", 5, None, "x" * (MAX_TEXT_CHARS + 1), "fleetlm@FD00:0::07", name(3)]
    assert operations.read_peers(operations.peers(names), 10) == [
        name(2), "nobody", "fleetlm@FD00:0::07", name(3),
    ]  # fmt: skip


def test_names_of_peers_are_read_up_to_the_limit() -> None:
    message = operations.peers([name(n) for n in range(2, 200)])
    assert operations.read_peers(message, 3) == [name(2), name(3), name(4)]


@pytest.mark.parametrize("names", [None, name(2), {name(2): 1}, 7])
def test_names_of_peers_are_a_list(names: Any) -> None:
    with pytest.raises(TypeError, match="without a list"):
        operations.read_peers(operations.peers(names), 10)


# ── the copies on the hot path ───────────────────────────────────────────────────────────────────


@virtual
async def test_a_sender_builds_one_way_messages_as_the_schema_says() -> None:
    rig = Sending()
    payload = {"a": (1, 2)}
    await rig.outbound.send(("echo", THERE), payload)
    await rig.outbound.send(Pid(THERE, 2, 5), payload)
    rig.pair.here.flush()
    (frame,) = rig.pair.here.transport.take()
    assert rig.pair.here.codec.unpack_batch(frame[HEADER_BYTES:]) == [
        operations.one_way("echo", payload),
        operations.one_way(5, payload),
    ]


@virtual
async def test_a_receiver_reads_one_way_messages_and_answers_as_the_schema_says() -> None:
    side = Pair().there
    box, consumer = side.box("echo"), ConsumerEnd(8, lambda _: None)
    future = SimLoop.current().create_future()
    side.session.calls.update({7: future, 8: consumer})
    messages = [operations.one_way("echo", "a"), operations.reply(7, "b"), operations.item(8, "c")]
    body = side.codec.pack_whole(messages, None)
    side.inbound.frame(side.session, frames.header(Kind.BATCH, EPOCH_HERE, 1) + body)
    found = [("echo", box.queue[0]), (7, future.result()), (8, consumer.take(), 1)]
    one_way, reply, item = messages
    readers = [operations.read_one_way(one_way), operations.read_answer(reply), operations.read_item(item)]
    assert found == readers


def test_messages_packed_from_parts_are_those_that_the_builders_make() -> None:
    codec = Codec()
    payload = {"a": (1, 2)}
    packed = codec.pack_value(payload)
    parts = Invoke("put", ("k", payload), {}).parts()
    packed_parts = codec.pack_value(parts)
    for to in ("echo", 12, BIG):
        key = codec.pack_value(to)
        assert operations.packed_one_way(key, packed) == codec.pack_whole(
            operations.one_way(to, payload), payload
        )
        assert operations.packed_cast(key, packed_parts) == codec.pack_whole(
            operations.cast(to, parts, 1), parts
        )
        for ref, timeout_ms in ((1, 1), (BIG, 86_400_000)):
            call = operations.call(to, payload, ref, timeout_ms, 1)
            assert operations.packed_call(key, packed, ref, timeout_ms, 1) == codec.pack_whole(call, payload)
            handle = operations.handle(to, parts, ref, timeout_ms)
            made = operations.packed_call(key, packed_parts, ref, timeout_ms, to_actor=True)
            assert made == codec.pack_whole(handle, parts)


@pytest.mark.parametrize("units", [2, 200, 4_096])
def test_units_are_written_into_packed_messages_as_the_builders_would(units: int) -> None:
    pack, unpack = msgpack.packb, msgpack.unpackb
    packed = operations.set_units(pack(operations.one_way("echo", "x")), units)
    assert packed == pack(operations.heavy("echo", "x", units))
    call = operations.call("echo", "x", 7, 5_000)
    assert unpack(operations.set_units(pack(call), units)) == [*call, units]
    for build, fields in (
        (operations.cast, ("echo", PARTS)),
        (operations.stream, ("echo", "x", 7, 5_000, 64, 0, 1)),
        (operations.yield_, ("echo", PARTS, 7, 5_000, 64, 0, 1)),
    ):
        packed = pack(build(*fields, 1))  # type: ignore[call-arg]
        assert operations.set_units(packed, units) == pack(build(*fields, units))  # type: ignore[call-arg]
    handle = operations.handle("echo", PARTS, 7, 5_000)
    assert unpack(operations.set_units(pack(handle), units)) == [*handle, units]
    item = unpack(operations.set_units(pack(operations.item(7, "x")), units))
    assert operations.read_item(item) == (7, "x", units)


def test_a_packed_request_is_marked_as_the_builders_would() -> None:
    for build, fields, rest in (
        (operations.call, ("echo", b"x", 7, 5_000), ()),
        (operations.handle, ("echo", PARTS, BIG, 0), ()),
        (operations.stream, ("echo", b"x", 7, 5_000, 64, 0), (1,)),
        (operations.yield_, ("echo", PARTS, 7, 5_000, 64, 0), (1,)),
    ):
        plain, marked = (msgpack.packb(build(*fields, mark, *rest)) for mark in (0, 1))  # type: ignore[call-arg]
        assert operations.set_in_flight(plain) == operations.set_in_flight(marked) == marked


def test_the_receiver_of_pieces_sets_the_units_itself() -> None:
    to, payload = operations.read_one_way(operations.one_way("echo", "x"))
    assert (to, payload) == ("echo", "x")
    for before, after in (
        (operations.one_way("echo", "x"), operations.heavy("echo", "x", 9)),
        (operations.call("echo", "x", 7, 5), [Op.CALL, "echo", "x", 7, 5, 0, 9]),
        (operations.handle("echo", PARTS, 7, 5), [Op.HANDLE, "echo", PARTS, 7, 5, 0, 9]),
        (operations.stream("echo", "x", 7, 5, 1, 0, 0, 1), operations.stream("echo", "x", 7, 5, 1, 0, 0, 9)),
        (
            operations.yield_("echo", PARTS, 7, 5, 1, 0, 0, 1),
            operations.yield_("echo", PARTS, 7, 5, 1, 0, 0, 9),
        ),
        (operations.cast("echo", PARTS, 1), operations.cast("echo", PARTS, 9)),
        (operations.item(7, "x"), [Op.ITEM, 7, "x", 9]),
        (operations.reply(7, "x"), operations.reply(7, "x")),
        (operations.request("spawn", "x", 7), operations.request("spawn", "x", 7)),
    ):
        assert operations.with_units(before, 9) == after
    assert operations.with_units(b"no message", 9) == b"no message"


def test_the_requests_that_were_taken_are_refs_of_a_bounded_number() -> None:
    assert operations.read_settled(operations.settled([7, 9, 7], 0)) == ([7, 9, 7], 0)
    for refs in (None, {7: 9}, [0] * (operations.MAX_UNANSWERED + 1), [-1], ["7"]):
        with pytest.raises(ValueError, match=r"SETTLED without its refs|is not a count"):
            operations.read_settled([Op.SETTLED, refs, 0])
    for left in (None, -1, "1"):
        with pytest.raises((TypeError, ValueError)):
            operations.read_settled([Op.SETTLED, [7], left])


def test_a_message_tells_what_it_counts_if_its_kind_counts_at_all() -> None:
    for message, units in (
        (operations.one_way("echo", "x"), 1),
        (operations.heavy("echo", "x", 9), 9),
        (operations.call("echo", "x", 7, 5), 1),
        (operations.with_units(operations.call("echo", "x", 7, 5), 9), 9),
        (operations.with_units(operations.handle("echo", PARTS, 7, 5), 9), 9),
        (operations.item(7, "x"), 1),
        (operations.with_units(operations.item(7, "x"), 9), 9),
        (operations.stream("echo", "x", 7, 5, 1, 0, 0, 1), 1),
        (operations.yield_("echo", PARTS, 7, 5, 1, 0, 0, 9), 9),
        (operations.with_units([Op.CAST, "echo", PARTS, 1], 9), 9),
        (operations.reply(7, "x"), None),
        (operations.request("spawn", "x", 7), None),
        ([Op.HEAVY, "echo", "x", "9"], None),
        (b"no message", None),
    ):
        assert operations.declared_units(message) == units


def test_a_destination_is_a_number_of_64_bits_or_a_text_that_could_be_a_name() -> None:
    for good in (0, BIG, "n", "n" * 255):
        assert operations.checked_destination(good) == good
    for bad in (-1, BIG + 1, True, 1.0, None, b"n", "n" * 256):
        with pytest.raises(ValueError, match="is not the number or name"):
            operations.checked_destination(bad)
