"""A connected peer that sends well-formed nonsense loses its own session at most; others are not affected.

The nonsense is close to what is right: it names processes, requests and streams that there are, and
counts around the limits. Whatever comes, the node under attack serves everybody else as before, nothing
but `BadFrame` is raised on the way in, and what it keeps for the attacker ends with the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, given, settings, strategies as st

from fleetlm import Actor, FleetError, Node, Pid, Process, handler
from fleetlm.testing.loop import run
from fleetlm.wire.operations import Op
from tests.sim.fleet import A, Fleet

LIMIT = 16
WINDOW = 8


class Echo(Actor):
    """The actor that well-behaved peers call meanwhile."""

    @handler
    async def echo(self, value: Any) -> Any:
        return value

    @handler(concurrent=True)
    async def wait(self) -> None:
        await asyncio.sleep(1_000)

    @handler(concurrent=True)
    async def count(self, most: int) -> AsyncIterator[int]:
        for number in range(min(most, 100)):
            yield number


texts = st.sampled_from(["echo", "stuck", "nobody", "count", "groups", "names", "join", "leave", "has", ""])
numbers = st.sampled_from([0, 1, 2, 3, 5, LIMIT - 1, LIMIT, LIMIT + 1, 1 << 31, (1 << 64) - 1, -1])
pids = st.builds(
    Pid, st.sampled_from([f"fleetlm@{A}", "fleetlm@10.9.9.9"]), st.integers(0, 3), st.integers(0, 4)
)
leaves = (
    st.none() | st.booleans() | numbers | texts | st.binary(max_size=3) | st.floats() | pids
    | st.just(Decimal("sNaN"))
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=8,
)
keys = st.sampled_from(["echo", "stuck", "nobody", 1, 2, 3, 99]) | values
refs = st.integers(0, 8) | values
counts = numbers | values
members = st.dictionaries(texts, st.lists(numbers | values, max_size=3), max_size=2)
rows = st.lists(st.tuples(texts, numbers, st.binary(max_size=3), numbers).map(list) | values, max_size=3)
facts = (
    st.tuples(st.sampled_from(["join", "leave"]), members | values)
    | st.tuples(st.just("exit"), counts)
    | st.tuples(st.just("has"), rows | values)
    | st.tuples(st.just("gone"), texts | values, texts | values)
).map(list) | values
parts = st.tuples(texts | values, values, values).map(list) | st.tuples(
    st.sampled_from(["echo", "wait", "count"]), st.lists(values, max_size=2), st.just({})
).map(list)
payloads = parts | values


def operation(number: int, *parts: Any) -> Any:
    return st.tuples(st.just(int(number)), *parts).map(list)


right = (
    operation(Op.TABLE, st.sampled_from(["groups", "names"]) | values, facts)
    | operation(Op.HEAVY, keys, payloads, counts)
    | operation(Op.TAKEN, keys, counts)
    | operation(Op.STREAM, keys, payloads, refs, counts, counts, counts, counts, counts)
    | operation(Op.HANDLE, keys, parts | values, refs, counts, counts)
    | operation(Op.CAST, keys, parts | values, counts)
    | operation(Op.YIELD, keys, parts | values, refs, counts, counts, counts, counts, counts)
    | operation(Op.ITEM, refs, values)
    | operation(Op.MORE, refs, counts)
    | operation(Op.CALL, keys, payloads, refs, counts, counts)
    | operation(Op.CANCEL, refs, st.none())
    | operation(Op.REPLY, refs, values)
    | operation(Op.FAILURE, refs, st.integers(0, 12), st.lists(texts, max_size=3) | values)
    | st.tuples(keys, payloads).map(list)
)
too_short = st.tuples(right, st.integers(1, 3)).map(lambda cut: cut[0][: -cut[1]])
too_long = st.tuples(right, values).map(lambda more: [*more[0], more[1]])
messages = st.lists(right | right | right | too_short | too_long, max_size=6)


class Errors(logging.Handler):
    """Collects logged errors: the driver logs as a bug whatever is not a `BadFrame`."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage() + str(record.exc_info))


async def hold(process: Process) -> None:
    """Take calls without answering them; of a stream send three items."""
    async for call in process.mailbox:
        for number in range(3):
            if getattr(call, "streaming", False):
                await call.put(number)


async def stuck(process: Process) -> None:
    await asyncio.Event().wait()


async def ends(asking: Any) -> None:
    with contextlib.suppress(FleetError):
        await asking


async def reads(node: Node, to: Any) -> list[Any]:
    return [item async for item in node.stream(to, "x", timeout=4)]


async def attack(nonsense: list[list[Any]]) -> None:
    fleet = Fleet()
    here, good, bad = await fleet.mesh(3, mailbox_limit=LIMIT, stream_window=WINDOW)
    here.spawn(Echo, name="echo")
    here.spawn(stuck, name="stuck")
    bad.spawn(hold, name="hold")
    there = ("hold", bad.name)
    theirs = bad.ref(Echo, "echo", at=here.name)
    asked = [
        asyncio.ensure_future(ends(asking))
        for asking in (
            here.call(there, "x", timeout=4), reads(here, there), theirs.call(Echo.wait),
            bad.send(("stuck", here.name), "x"),
        )
    ]  # fmt: skip
    await asyncio.sleep(0.1)
    session, others = bad._driver.sessions[here.name], here._driver.sessions[good.name]
    for message in nonsense:
        session.signal(bad._outbound._codec.pack_value(message))
    await asyncio.sleep(0.5)
    ours = good.ref(Echo, "echo", at=here.name)
    assert await ours.within(1).call(Echo.echo, "still there") == "still there"
    assert [number async for number in ours.within(1).stream(Echo.count, 20)] == list(range(20))
    assert here._driver.sessions.get(good.name) is others, "the connection of somebody else has ended"
    await fleet.crash(bad)
    await asyncio.wait(asked)
    await asyncio.sleep(10)
    assert [info.open_calls for info in here.processes() if info.runs == "Echo"] == [0]
    for node in fleet.nodes:
        await node.stop(drain_s=0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages)
def test_nonsense_of_one_peer_does_not_affect_the_others(nonsense: list[list[Any]]) -> None:
    errors = Errors()
    log = logging.getLogger("fleetlm")
    log.addHandler(errors)
    try:
        run(attack(nonsense))
    finally:
        log.removeHandler(errors)
    assert errors.seen == []
