"""Large messages are unpacked beside the loop, and nothing that follows them overtakes them."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from fleetlm import Call, NodeDown, Process, Undecodable
from fleetlm.testing import Fleet
from fleetlm.wire import large


@functools.cache
def large_value() -> list[dict[str, Any]]:
    """A value that takes long to unpack; made at its first use: each test worker imports this module."""
    return [{"id": number, "text": "lorem ipsum"} for number in range(60_000)]


async def test_messages_behind_a_large_one_arrive_behind_it(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    seen: list[Any] = []

    async def note(process: Process) -> None:
        async for message in process.mailbox:
            if isinstance(message, Call):
                message.reply(len(seen))
            else:
                seen.append(message if isinstance(message, int) else len(message))

    two.spawn(note, name="note")
    to = ("note", two.name)

    async def send(process: Process) -> None:
        for number in range(3):
            await one.send(to, large_value())
            for each in range(20):
                await one.send(to, number * 100 + each)

    one.spawn(send)
    await fleet.until(lambda: len(seen) >= 63)
    expected = [[len(large_value()), *range(number * 100, number * 100 + 20)] for number in range(3)]
    assert seen[:63] == [each for part in expected for each in part]


async def test_a_node_that_leaves_is_down_after_its_last_large_message(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    seen: list[Any] = []

    async def note(process: Process) -> None:
        async for message in process.mailbox:
            seen.append(len(message))  # noqa: PERF401  # one by one

    async def watch(_process: Process) -> None:
        nonlocal seen
        async for event in two.events():
            seen += ["down"] if isinstance(event, NodeDown) else []

    two.spawn(note, name="note")
    two.spawn(watch)
    await one.send(("note", two.name), large_value())
    await one.stop()
    await fleet.until(lambda: "down" in seen)
    assert seen == [len(large_value()), "down"]


async def test_a_call_with_too_much_inside_fails_alone(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await fleet.start(2)
    monkeypatch.setattr(large, "RESERVE_BYTES", 1 << 20)

    async def echo(process: Process) -> None:
        async for message in process.mailbox:
            message.reply("ok")

    two.spawn(echo, name="echo")
    with pytest.raises(Undecodable, match="more than 8 times its size"):
        await one.call(("echo", two.name), [[]] * 1_200_000, timeout=5)
    assert await one.call(("echo", two.name), 1, timeout=5) == "ok"
    assert one.list() == [two.name]


async def test_large_bytes_reach_all_receivers_of_one_message(fleet: Fleet) -> None:
    one, *others = await fleet.start(4)
    seen: list[Any] = []

    async def answer(process: Process) -> None:
        async for message in process.mailbox:
            if isinstance(message, Call):
                data, what = message.message
                message.reply([len(data), type(data).__name__, what])
            else:
                seen.append(message)

    for node in others:
        for name in ("first", "second"):
            node.spawn(answer, name=name)
    targets = [(name, node.name) for node in others for name in ("first", "second")]
    data = bytes(range(256)) * 2_000
    expected = [[len(data), "bytearray", "call"]] * 6
    assert await one.multicall(targets, [bytearray(data), "call"]) == expected
    assert await one.broadcast("first", {"data": data, "also": bytearray(data)}) == 3
    await fleet.until(lambda: len(seen) == 3)
    assert all(each["data"] == data and each["also"] == data for each in seen)
    seen[0]["also"][0] = 7
    assert seen[1]["also"][0] == 0, "each receiver has memory of its own"
