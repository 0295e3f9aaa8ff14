"""Slow things explain themselves: mailboxes that stay full, and calls that spend their time in them."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest

from fleetlm import Actor, CallTimeout, Process, Settings, WouldBlock, handler
from fleetlm.messaging.windows import UNIT_BYTES
from fleetlm.processes.slowness import BURST_LINES
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import A, Fleet, simulated

STALLED_S = Settings().stalled_after_s


class Model(Actor):
    @handler
    async def infer(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Other(Model):
    """Another class, whose lines are counted apart."""


async def stuck(process: Process) -> None:
    await asyncio.sleep(600)


async def waits_for_reply(process: Process) -> None:
    await process.receive()
    await process.node.call("nobody who answers", "?", timeout=600)


def lines(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [each.getMessage() for each in caplog.records if what in each.getMessage()]


async def feed(process: Process, to: Any, count: int, size: int = 0) -> None:
    for _ in range(count):
        try:
            await process.node.send(to, b"x" * size, timeout=600)
        except WouldBlock:
            return


# Mailboxes.


@simulated
async def test_a_mailbox_that_a_peer_keeps_full_is_named_once_with_who_fills_it(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=64)
    to = b.spawn(stuck, name="stuck")
    a.spawn(feed, to, 100)
    await asyncio.sleep(STALLED_S - 1)
    assert lines(caplog, "has been full") == []
    await asyncio.sleep(5)
    [line] = lines(caplog, "has been full")
    assert re.fullmatch(
        r"the mailbox of 'stuck' on fleetlm@10\.0\.0\.2 \(stuck\) has been full for [5-7](\.\d+)? s: "
        r"64 messages wait there, 64 of them from fleetlm@10\.0\.0\.1; "
        r"its process took 0 meanwhile, and is busy",
        line,
    )
    await asyncio.sleep(60)
    assert len(lines(caplog, "has been full")) == 1


@simulated
async def test_a_mailbox_that_senders_of_its_own_node_fill_is_named(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=64)
    a.spawn(stuck, name="nobody who answers")
    to = a.spawn(waits_for_reply, name="busy")
    for node in (a, b):
        node.spawn(feed, to, 200)
    await asyncio.sleep(STALLED_S + 3)
    [line] = lines(caplog, "has been full")
    assert "127 messages wait there, 64 of them from fleetlm@10.0.0.2, 63 of them from this node" in line
    assert "took 0 meanwhile, and waits for reply from 'nobody who answers'" in line


@simulated
async def test_large_messages_fill_a_mailbox_by_their_weight(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=64)
    a.spawn(feed, b.spawn(stuck), 100, 7 * UNIT_BYTES)
    await asyncio.sleep(STALLED_S + 3)
    [line] = lines(caplog, "has been full")
    assert " 8 messages wait there" in line


@simulated
async def test_a_mailbox_that_drains_is_not_full_however_often_it_fills(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=64)

    async def in_batches(process: Process) -> None:
        while True:
            await asyncio.sleep(3)
            while len(process.mailbox):
                await process.receive()

    async def feed_in_batches(process: Process, to: Any) -> None:
        for _ in range(10):
            for _ in range(64):
                await process.node.send(to, 1)
            await asyncio.sleep(4.5)

    a.spawn(feed_in_batches, b.spawn(in_batches))
    await asyncio.sleep(60)
    assert lines(caplog, "has been full") == []
    assert b._parts.full_mailboxes._full == {}


@simulated
async def test_a_mailbox_whose_process_ends_is_forgotten(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=64)
    to = b.spawn(stuck)
    a.spawn(feed, to, 100)
    await asyncio.sleep(STALLED_S - 1.5)
    assert len(b._parts.full_mailboxes._full) == 1
    b.exit(to, "kill")
    await asyncio.sleep(10)
    assert b._parts.full_mailboxes._full == {}
    assert lines(caplog, "has been full") == []


@simulated
async def test_lines_about_full_mailboxes_are_limited_and_say_what_they_leave_out(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a = await fleet.start(A, mailbox_limit=8)
    for _ in range(20):
        a.spawn(feed, a.spawn(stuck), 10)
    await asyncio.sleep(STALLED_S + 3)
    assert len(lines(caplog, "has been full")) == BURST_LINES
    await asyncio.sleep(10)
    a.spawn(feed, a.spawn(stuck), 10)
    await asyncio.sleep(30)
    assert "17 more such mailboxes since the last line" in lines(caplog, "has been full")[-1]


# Calls.


@simulated
async def test_a_call_that_spent_most_of_its_deadline_in_a_mailbox_is_logged_where_it_was_served(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2)
    model = a.ref(Model, b.spawn(Model, name="model")).within(5)
    first = asyncio.create_task(model.call(Model.infer, 4.2))
    await asyncio.sleep(0.01)
    await asyncio.gather(first, model.call(Model.infer, 0.1), model.call(Model.infer, 0.1))
    waited = lines(caplog, "of the caller's deadline")
    assert len(waited) == 2
    assert re.fullmatch(
        r"a call of infer: of the 5 s of the caller's deadline, 4\.\d+ s were spent in the mailbox of "
        r"'model' on fleetlm@10\.0\.0\.2 \(Model\); 1 more message\(s\) wait",
        waited[0],
    )
    assert {each.levelno for each in caplog.records} == {logging.WARNING}


@simulated
async def test_a_call_that_is_served_in_time_is_not_logged(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2)
    model = a.ref(Model, b.spawn(Model)).within(5)
    began = SimLoop.current().time()
    await asyncio.gather(model.call(Model.infer, 2.3), model.call(Model.infer, 2.3))
    assert SimLoop.current().time() - began < 5
    assert lines(caplog, "deadline") == []


@simulated
async def test_a_call_that_expires_in_the_mailbox_is_logged_whether_it_was_swept_or_not(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2)
    model = a.ref(Model, b.spawn(Model))
    await model.cast(Model.infer, 3.0)
    with pytest.raises(CallTimeout):
        await model.within(1).call(Model.infer, 0.1)
    await asyncio.sleep(5)
    [line] = lines(caplog, "of the caller's deadline")
    assert "of the 1 s of the caller's deadline, 1 s were spent" in line
    assert line.endswith("and it is not run")


@simulated
async def test_a_caller_that_gave_up_early_is_no_slow_call(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2)
    model = a.ref(Model, b.spawn(Model))
    await model.cast(Model.infer, 3.0)
    calling = asyncio.create_task(model.within(60).call(Model.infer, 0.1))
    await asyncio.sleep(1)
    calling.cancel()
    await asyncio.sleep(5)
    assert lines(caplog, "deadline") == []


@simulated
async def test_streams_without_a_deadline_are_no_slow_calls(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2)

    async def numbers(process: Process) -> None:
        await asyncio.sleep(20)
        call = await process.receive()
        await call.put(1)
        call.reply()

    assert [item async for item in a.stream(b.spawn(numbers), "go", idle=60)] == [1]
    assert lines(caplog, "deadline") == []


@simulated
async def test_lines_about_slow_calls_are_limited_for_each_class(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a = await fleet.start(A)
    for cls in (Model, Other):
        model = a.ref(cls, a.spawn(cls)).within(10)
        calls = [model.call(cls.infer, 0.2) for _ in range(45)]
        await asyncio.gather(*calls)
    for name in ("(Model)", "(Other)"):
        assert len(lines(caplog, f"{name};")) == BURST_LINES
    await asyncio.sleep(20)
    model = a.ref(Model, a.spawn(Model)).within(1)
    await asyncio.gather(model.call(Model.infer, 0.7), model.call(Model.infer, 0.1))
    assert re.search(r"; \d\d? more such calls since the last line$", lines(caplog, "(Model);")[-1])
