"""Targets for bytes that come over a connection: frames, values, operations, chunks, and whole batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgpack

from fleetlm.call import Call
from fleetlm.errors import FleetError, MessageTooLarge, NoProcess, NotSerializable
from fleetlm.messaging.chunks import Reassembly
from fleetlm.settings import Settings
from fleetlm.testing.loop import run
from fleetlm.texts import SHORT, text_of
from fleetlm.wire import frames
from fleetlm.wire.carriers import checked_carrier, may_travel, pack_carrier, unpack_carrier
from fleetlm.wire.codec import BadData, Codec
from fleetlm.wire.decoder import TooManySteps
from fleetlm.wire.failures import error_of_failure
from fleetlm.wire.frames import CHUNK_HEAD, BadFrame, Kind, read_chunk
from fleetlm.wire.operations import NONSENSE, SCHEMAS, Op
from tests.fuzz.inputs import Inputs
from tests.support.session_fakes import EPOCH_THERE, Pair

MAX_INPUT_S = 5.0
"""Seconds of the processor that no input may take. Inputs have a few kilobytes, and take about a millisecond.
Other work on the machine does not count."""
MAX_SHOWN_CHARS = 1_000
CODEC = Codec()
SMALL_BOXES = Settings(mailbox_limit=64)


def in_time(read: Callable[..., Any], *args: Any) -> Any:
    """Call ``read``. Raises: AssertionError if that takes too long."""
    began = time.thread_time()
    try:
        return read(*args)
    finally:
        taken = time.thread_time() - began
        assert taken < MAX_INPUT_S, f"{taken:.1f} s"


def fuzz_frames(data: bytes) -> None:
    """Each reader of a handshake returns what packs to the same value, or raises BadFrame."""
    for read in (frames.read_header, frames.read_goodbye, frames.read_answer):
        with contextlib.suppress(BadFrame):
            in_time(read, data)
    with contextlib.suppress(BadFrame):
        hello = in_time(frames.read_hello, data)
        assert frames.read_hello(frames.pack_hello(hello)) == hello
    with contextlib.suppress(BadFrame):
        ready = in_time(frames.read_ready, data)
        assert frames.read_ready(frames.pack_ready(ready)) == ready


def fuzz_codec(data: bytes) -> None:
    """Bytes are refused, or become a value that can be shown and packed again."""
    failures = CODEC.failures
    with contextlib.suppress(BadData):
        in_time(CODEC.unpack_batch, b"\xdd\0\0\0\1" + data)
    compare_slices(b"\xdd\0\0\0\2\x01" + data)
    if CODEC.failures != failures:
        return
    try:
        value = in_time(CODEC.unpack, data)
    except BadData:
        return
    assert len(in_time(SHORT.repr, value)) < MAX_SHOWN_CHARS
    in_time(text_of, value)
    try:
        packed = in_time(CODEC.pack_value, value)
    except (NotSerializable, MessageTooLarge):
        return  # It was nested too deeply, or has a zone that only the other node knows.
    again = CODEC.unpack(packed)
    assert CODEC.pack_value(again) == packed, SHORT.repr(value)


def compare_slices(batch: bytes) -> None:
    """A batch that is unpacked in slices holds what it holds otherwise, or is refused as well."""
    codec, sliced = Codec(), CODEC.sliced_batch(memoryview(batch))
    try:
        messages: Any = codec.unpack_batch(batch)
    except BadData:
        messages = None
    found: Any = []
    try:
        for part, _ in sliced.slices():
            found += part
    except BadData:
        found = None
    except TooManySteps:
        return
    assert (found is None) == (messages is None)
    if found is None:
        return
    assert sliced.failures == codec.failures
    if not codec.failures:
        with contextlib.suppress(NotSerializable, MessageTooLarge):  # It was nested too deeply.
            assert CODEC.pack_value(found) == CODEC.pack_value(messages)


def fuzz_operations(data: bytes) -> None:
    """Each reader of an operation returns, or raises one of `NONSENSE`; a failure becomes an error."""
    try:
        message = CODEC.unpack(data)
    except BadData:
        return
    if not isinstance(message, list):
        return
    for operation, schema in SCHEMAS.items():
        with contextlib.suppress(*NONSENSE):
            read = in_time(schema.read, [int(operation), *message], *[4_096][: schema.has_limit])
            if operation == Op.FAILURE:
                error = error_of_failure(read[1], read[2])
                assert isinstance(error, FleetError)
                assert len(in_time(text_of, error)) <= 70_000


def fuzz_carriers(data: bytes) -> None:
    """Whatever comes as a carrier is dropped, or becomes values that pack to the same carrier again."""
    values = in_time(unpack_carrier, checked_carrier(data))
    assert all(may_travel(*pair) for pair in values.items())
    assert unpack_carrier(pack_carrier(values)) == values


def fuzz_chunks(data: bytes) -> None:
    """Chunks in any order: what waits stays below the limit, and every message that ends is whole."""
    limit_bytes, source = 10_000, Inputs(data)
    reassembly = Reassembly(limit_bytes)
    while source:
        number, total = source.number(4), source.choice((1, 20, 200, 4_000, 10_000, 10_001, 1 << 40))
        blobs = source.choice((0, 0, 1, 2, 255))
        body = CHUNK_HEAD.pack(number, 1, 0, total, blobs) + source.take(source.number(64))
        with contextlib.suppress(BadFrame):
            whole = reassembly.add(read_chunk(memoryview(body)), memoryview(source.take(source.number(64))))
            assert whole is None or total == whole.total_bytes == len(whole.envelope) + sum(
                len(blob.to_bytes()) for blob in whole.blobs
            )
        unfinished = reassembly._unfinished.values()
        assert sum(each.total_bytes for each in unfinished) <= limit_bytes
        assert all(0 < each.left_bytes < each.total_bytes for each in unfinished)


def fuzz_messages(data: bytes) -> None:
    """Batches of a connected peer: nothing but BadFrame is raised, and then the session is over."""
    run(take_batches(data))


async def take_batches(data: bytes) -> bool:
    """Return whether the session is still up after all batches."""
    source, side, is_up = Inputs(data), Pair(SMALL_BOXES).here, False
    for name in ("echo", "stuck"):
        side.box(name, 64)
    with contextlib.suppress(BadFrame):
        while source:
            messages = [source.block() for _ in range(1 + source.number(3))]
            body = b"\xdd" + len(messages).to_bytes(4, "big") + b"".join(messages)
            head = frames.header(Kind.BATCH, EPOCH_THERE, side.session.incoming.seq)
            in_time(side.receive, [head + body])
            side.flush()
            for message in side.boxes["echo"].queue:
                assert len(SHORT.repr(message)) < MAX_SHOWN_CHARS
        is_up = True
    for box in side.boxes.values():
        for message in box.queue:
            if isinstance(message, Call):
                message.refuse(NoProcess("echo"))
    side.session.close("the test is over")
    return is_up


def packed(*items: Any) -> bytes:
    """Pack plain values."""
    data: bytes = msgpack.packb(list(items))
    return data
