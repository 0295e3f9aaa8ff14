"""A message that counts less than its size demands ends the connection of its sender."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from fleetlm.messaging.inbound import CHECKED_BITS
from fleetlm.messaging.windows import UNIT_BYTES, UNITS_FIELD_BYTES, check_units, units
from fleetlm.wire import operations
from fleetlm.wire.frames import BadFrame, Kind, header
from tests.support.session_fakes import Pair, Side, virtual

LARGE = b"x" * 60_000
LIMIT = 4_096


def receive(side: Side, *messages: Any) -> None:
    """Let a node take one batch of a peer that packs what it likes."""
    incoming = side.session.incoming
    packer = msgpack.Packer()
    body = packer.pack_array_header(len(messages)) + b"".join(map(msgpack.packb, messages))
    side.receive([header(Kind.BATCH, incoming.epoch, incoming.seq) + body])


def weigh(message: Any, size: int, limit: int = LIMIT) -> None:
    check_units([message], [size], limit)


def test_a_message_counts_at_least_what_its_size_demands() -> None:
    for size in (UNIT_BYTES, 2 * UNIT_BYTES, 100 * UNIT_BYTES + 5):
        full = units(size, LIMIT)
        weigh(operations.heavy("box", b"", full), size)
        weigh(operations.heavy("box", b"", full + 3), size)
        larger = size + UNIT_BYTES + UNITS_FIELD_BYTES
        with pytest.raises(ValueError, match=f"{larger:,} bytes that counts as {full}"):
            weigh(operations.heavy("box", b"", full), larger)


def test_the_field_that_says_the_units_does_not_count() -> None:
    weigh(operations.one_way("box", b""), UNIT_BYTES + UNITS_FIELD_BYTES - 1)
    with pytest.raises(ValueError, match="counts as 1"):
        weigh(operations.one_way("box", b""), UNIT_BYTES + UNITS_FIELD_BYTES)


def test_no_message_counts_more_than_a_whole_window() -> None:
    weigh(operations.heavy("box", b"", 16), 1_000 * UNIT_BYTES, limit=16)


def test_what_counts_in_no_window_may_be_of_any_size() -> None:
    weigh(operations.reply(7, b""), 100 * UNIT_BYTES)


@pytest.mark.parametrize(
    "cheat",
    [
        operations.one_way("box", LARGE),
        operations.heavy("box", LARGE, 3),
        operations.call("box", LARGE, 7, 5_000),
        operations.stream("box", LARGE, 7, 5_000, 64, 0, 0, 1),
        operations.item(7, LARGE),
    ],
    ids=["one way", "heavy", "call", "stream", "item"],
)
def test_who_counts_too_little_is_found_out_among_small_messages(cheat: list[Any]) -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        small = [operations.one_way("other", "x")] * 200
        with pytest.raises(BadFrame, match=r"a message of 60,0\d\d bytes that counts as \d"):
            receive(side, *small, cheat, *small)
        assert not box.queue, "nothing of that batch was delivered"

    main()


def test_honest_large_messages_pass() -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        receive(side, operations.heavy("box", LARGE, units(60_010, LIMIT)), operations.one_way("box", "x"))
        assert list(box.queue) == [LARGE, "x"]

    main()


def test_one_of_eight_large_batches_is_looked_at_and_no_small_one() -> None:
    @virtual
    async def main() -> None:
        side = Pair().there
        box = side.box("box")
        asked: list[int] = []

        def draw(bits: int) -> int:
            asked.append(bits)
            return 1

        side.session.byte_window.draw = draw
        receive(side, operations.one_way("box", b"x" * 1_000))
        assert not asked
        receive(side, operations.one_way("box", LARGE))
        assert asked == [CHECKED_BITS]
        assert len(box.queue) == 2, "this one was not looked at"

    main()
