"""Times that a program gives: what is one, and that each argument that is a time is looked at."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import fractions
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from fleetlm import Actor, Call, Child, Entity, Node, Process, SQLiteStore, Supervisor, handler
from fleetlm.runtime.hooks import PHASES
from fleetlm.seconds import check_pauses, check_seconds, check_timeout
from tests.sim.fleet import Fleet, simulated

NAN = math.nan


@pytest.mark.parametrize("value", [0, 1, 2.5, -1, -0.5, math.inf, -math.inf, fractions.Fraction(1, 3)])
def test_numbers_are_times_and_a_negative_one_is_a_time_that_is_over(value: Any) -> None:
    check_seconds(value)
    check_timeout(value)


def test_none_is_a_default_where_it_may_be() -> None:
    check_timeout(None)
    with pytest.raises(TypeError, match="timeout is None, not a number of seconds"):
        check_seconds(None)


@pytest.mark.parametrize(
    ("value", "limits", "error", "text"),
    [
        (NAN, {}, ValueError, "idle is nan, not a number of seconds"),
        ("5", {}, TypeError, "idle is '5', not a number of seconds"),
        (True, {}, TypeError, "idle is True, not a number of seconds"),
        (decimal.Decimal(1), {}, TypeError, "idle is Decimal('1'), not a number of seconds"),
        (1j, {}, TypeError, "idle is 1j, not a number of seconds"),
        (-1, {"least": 0}, ValueError, "idle is -1, not a number of seconds, 0 or more"),
        (NAN, {"least": 0}, ValueError, "idle is nan, not a number of seconds, 0 or more"),
        (0, {"above": 0}, ValueError, "idle is 0, not a number of seconds above 0"),
        (math.inf, {"least": 0, "finite": True}, ValueError, "idle is inf, not a finite number"),
        (
            dt.timedelta(seconds=5),
            {},
            TypeError,
            "idle is datetime.timedelta(seconds=5), not a number of seconds; use its total_seconds()",
        ),
    ],
)  # fmt: skip
def test_the_error_says_the_argument_the_value_and_what_is_wanted(
    value: Any, limits: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        check_seconds(value, "idle", **limits)
    assert text in str(caught.value)


@pytest.mark.parametrize("pauses", [(0, 0), (0.25, 15.0), [1, 2]])
def test_pauses_are_a_pair_in_order(pauses: Any) -> None:
    check_pauses(pauses, "backoff_s")


@pytest.mark.parametrize(
    ("pauses", "error", "text"),
    [
        (0.5, TypeError, "backoff_s is 0.5, not a pair of seconds"),
        ((1,), ValueError, "not a pair of seconds"),
        ((2, 1), ValueError, r"backoff_s is \(2, 1\), not a pair of seconds, the shortest and the longest"),
        ((0, NAN), ValueError, r"backoff_s\[1\] is nan, not a finite number of seconds, 0 or more"),
        (("1", 2), TypeError, r"backoff_s\[0\] is '1'"),
    ],
)
def test_other_pauses_are_refused(pauses: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check_pauses(pauses, "backoff_s")


class Echo(Actor):
    @handler
    async def say(self, text: str) -> str:
        return text

    @handler
    async def letters(self, text: str) -> Any:
        for letter in text:
            yield letter


class Kept(Entity):
    @handler
    async def say(self, text: str) -> str:
        return text

    @handler
    async def letters(self, text: str) -> Any:
        for letter in text:
            yield letter


async def idle(process: Process) -> None:
    async for message in process.mailbox:
        if isinstance(message, Call):
            message.reply("ok")


class Stage:
    """Two nodes, a process that is held, and what each way to give a time needs."""

    def __init__(self, node: Node, other: Node, process: Process) -> None:
        self.node, self.process = node, process
        self.there = other.name
        self.far = ("echo", other.name)
        self.near = "echo"
        self.near_ref = node.ref(Echo, "actor")
        self.far_ref = node.ref(Echo, "actor", at=other.name)
        self.entity = node.entities.ref(Kept, "kept")["k"]
        self.far_pid = other.registered()["echo"]

    async def first(self, stream: Any) -> Any:
        async with stream as items:
            return await anext(items)


Way = Callable[[Stage, Any], Any]

ON_THE_ROAD: dict[str, Way] = {  # Nothing looks at these until something raises; a bool is a number there.
    "call": lambda stage, t: stage.node.call(stage.far, 1, t),
    "call here": lambda stage, t: stage.node.call(stage.near, 1, t),
    "call of a ref": lambda stage, t: stage.far_ref.within(t).call(Echo.say, "a"),
    "call of a ref here": lambda stage, t: stage.near_ref.within(t).call(Echo.say, "a"),
    "call of an entity": lambda stage, t: stage.entity.within(t).call(Kept.say, "a"),
}  # fmt: skip

WAYS: dict[str, Way] = {
    "move of a shard": lambda stage, t: stage.node.entities.ref(Kept, "kept").move(0, stage.there, timeout=t),
    "stream": lambda stage, t: stage.first(stage.node.stream(stage.far, 1, t)),
    "stream, idle": lambda stage, t: stage.first(stage.node.stream(stage.far, 1, idle=t)),
    "stream of a ref": lambda stage, t: stage.first(stage.far_ref.within(t).stream(Echo.letters, "a")),
    "stream of a group": lambda stage, t: stage.first(stage.node.groups.stream("g", 1, timeout=t)),
    "stream of a group, idle": lambda stage, t: stage.first(stage.node.groups.stream("g", 1, idle=t)),
    "stream of an entity": lambda stage, t: stage.first(stage.entity.within(t).stream(Kept.letters, "a")),
    "call of a group": lambda stage, t: stage.node.groups.call("g", 1, timeout=t),
    "cast to a group": lambda stage, t: stage.node.groups.ref(Echo, "g").within(t).cast(Echo.say, "a"),
    "multicall": lambda stage, t: stage.node.multicall([stage.far], 1, t),
    "multicall of refs": lambda stage, t: stage.node.refs(Echo, "actor").within(t).multicall(Echo.say, "a"),
    "retry": lambda stage, t: stage.node.retry(lambda: stage.node.call(stage.far, 1), timeout=t),
    "ready": lambda stage, t: stage.node.ready(1, timeout=t),
    "connect": lambda stage, t: stage.node.connect(stage.there, t),
    "ping": lambda stage, t: stage.node.ping(stage.there, t),
    "overview": lambda stage, t: stage.node.overview(t),
    "drain": lambda stage, t: stage.node.drain(t),
    "stop": lambda stage, t: stage.node.stop(drain_s=t),
    "hook": lambda stage, t: stage.node.on_leaving(print, timeout=t),
    "decorated hook": lambda stage, t: stage.node.on_leaving(phase=PHASES[0], timeout=t),
    "start_actor": lambda stage, t: stage.node.start_actor(Echo, timeout=t),
    "start_actor_link": lambda stage, t: stage.process.start_actor_link(Echo, timeout=t),
    "spawn_at": lambda stage, t: stage.node.spawn_at(stage.there, "idle", timeout=t),
    "spawn_link_at": lambda stage, t: stage.process.spawn_link_at(stage.there, "idle", timeout=t),
    "spawn_monitor_at": lambda stage, t: stage.process.spawn_monitor_at(stage.there, "idle", timeout=t),
    "join": lambda stage, t: stage.node.join(stage.process.pid, t),
    "whereis": lambda stage, t: stage.node.whereis("echo", stage.there, t),
    "whereis here": lambda stage, t: stage.node.whereis("echo", timeout=t),
    "register": lambda stage, t: stage.node.register("x", stage.far_pid, t),
    "unregister": lambda stage, t: stage.node.unregister("x", stage.there, t),
    "registry.register": lambda stage, t: stage.node.registry.register("x", stage.far_pid, timeout=t),
    "registry.unregister": lambda stage, t: stage.node.registry.unregister("x", timeout=t),
    "registry.wait_for": lambda stage, t: stage.node.registry.wait_for("x", t),
    "singletons.find": lambda stage, t: stage.node.singletons.find("x", t),
    "singletons.call": lambda stage, t: stage.node.singletons.call("x", 1, t),
    "singletons.send": lambda stage, t: stage.node.singletons.send("x", 1, t),
    "singleton, settle": lambda stage, t: stage.node.singleton("y", idle, settle_s=t),
    "singleton, end": lambda stage, t: stage.node.singleton("y", idle, end_s=t),
    "singleton, period": lambda stage, t: stage.node.singleton("y", idle, period_s=t),
    "singleton, back-off": lambda stage, t: stage.node.singleton("y", idle, backoff_s=(0.1, t)),
    "cron, settle": lambda stage, t: stage.node.cron("y", 5, "echo", settle_s=t),
    "host, idle": lambda stage, t: stage.node.entities.host(Kept, "other", idle_s=t),
    "host, handoff": lambda stage, t: stage.node.entities.host(Kept, "other", handoff_s=t),
    "host, settle": lambda stage, t: stage.node.entities.host(Kept, "other", settle_s=t),
    "host, rebalance": lambda stage, t: stage.node.entities.host(Kept, "other", rebalance_s=t),
    "host, store": lambda stage, t: stage.node.entities.host(Kept, "other", store_s=t),
    "receive": lambda stage, t: stage.process.receive(t),
    "send_after": lambda stage, t: stage.process.send_after(t, 1),
    "send_every": lambda stage, t: stage.process.send_every(t, 1),
    "Child, shutdown": lambda _, t: Child("c", idle, shutdown_s=t),
    "Child, init": lambda _, t: Child("c", Echo, init_s=t),
    "Supervisor, period": lambda _, t: Supervisor(period_s=t),
    "Supervisor, back-off": lambda _, t: Supervisor(backoff_s=(t, 5)),
    "SQLiteStore": lambda _, t: SQLiteStore("never.db", busy_s=t),
}


async def set_up(fleet: Fleet) -> Stage:
    node, other = await fleet.mesh(2)
    held: asyncio.Future[Process] = asyncio.get_running_loop().create_future()

    async def hold(process: Process) -> None:
        held.set_result(process)
        await asyncio.sleep(math.inf)

    node.spawn(hold)
    for each in (node, other):
        each.spawn(idle, name="echo")
        each.spawn(Echo, name="actor")
        each.factories.register("idle", idle)
        each.groups.join("g", each.registered()["echo"])
        await each.entities.host(Kept, "kept", shards=1)
    await node.entities.ref(Kept, "kept")["k"].call(Kept.say, "it has an owner")
    return Stage(node, other, await held)


async def outcome(way: Way, stage: Stage, value: Any) -> BaseException | None:
    """Return what giving this time raised, or None; a wait without end is an error of its own."""
    try:
        result = way(stage, value)
        if inspect.isawaitable(result):
            async with asyncio.timeout(1_000):
                await result
    except BaseException as error:  # noqa: BLE001  # it is looked at
        return error
    return None


@simulated
async def test_each_argument_that_is_a_time_is_looked_at_before_anything_is_done(fleet: Fleet) -> None:
    stage = await set_up(fleet)
    wrong: list[str] = []
    for value, kind in (
        (NAN, ValueError),
        ("5", TypeError),
        (dt.timedelta(seconds=5), TypeError),
        (True, TypeError),
    ):
        for name, way in {**WAYS, **({} if value is True else ON_THE_ROAD)}.items():
            error = await outcome(way, stage, value)
            if type(error) is not kind or not all(
                part in str(error) for part in (f" is {value!r}, not a ", "number of seconds")
            ):
                wrong.append(f"{name} with {value!r}: {error!r}")
    assert not wrong, "\n".join(wrong)
    # Nothing was started, sent or left behind.
    assert not stage.node.is_draining
    assert stage.node._outbound.local_calls == {}
    assert [session.calls for session in stage.node._driver.sessions.values()] == [{}]
    assert await stage.node.call(stage.far, 1, timeout=5) == "ok"


@simulated
async def test_a_negative_time_is_over_and_an_infinite_one_never_ends(fleet: Fleet) -> None:
    stage = await set_up(fleet)
    with pytest.raises(TimeoutError):
        await stage.node.ready(2, timeout=-1)
    with pytest.raises(TimeoutError):
        await stage.node.call(("actor", stage.there), "of no handler", -1)
    assert await stage.node.call(stage.far, 1, math.inf) == "ok"
    assert await stage.node.ping(stage.there, math.inf) == "pong"
    assert not await stage.node.join(stage.process.pid, -1)


@simulated
async def test_a_send_that_must_wait_looks_at_its_time(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1, mailbox_limit=1)
    node.spawn(lambda _: asyncio.sleep(math.inf), name="full")
    await node.send("full", 1)
    for value, error in ((NAN, ValueError), ("5", TypeError)):
        with pytest.raises(error, match=f"timeout is {value!r}, not a number of seconds"):
            await node.send("full", 2, value)  # type: ignore[arg-type]
        with pytest.raises(error, match=f"timeout is {value!r}, not a number of seconds"):
            await node.ref(Echo, "full").within(value).cast(Echo.say, "a")  # type: ignore[arg-type]
