"""What nodes say to observers: each kind of event, where it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from fleetlm import (
    Actor,
    CallEnded,
    CallStarted,
    CallTimeout,
    Child,
    ChildRestarted,
    Draining,
    HandlerEnded,
    MessageDropped,
    Node,
    NoProcess,
    NotSerializable,
    Process,
    RemoteError,
    SessionDown,
    SessionUp,
    Supervisor,
    SupervisorGaveUp,
    WindowFull,
    WindowOpened,
    WouldBlock,
    handler,
)
from fleetlm.messages import MessageTypes
from fleetlm.messaging.windows import UNIT_BYTES
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.codec import Codec
from tests.sim.fleet import A, B, Fleet, echo, simulated


@dataclass
class Strange:
    """A type that one node knows."""

    x: int


class Model(Actor):
    """An actor whose handlers end in each way."""

    @handler
    async def infer(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @handler
    async def fail(self) -> None:
        raise ValueError("as asked")

    @handler
    async def tokens(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(0.5)
            yield number

    @handler(concurrent=True)
    async def beside(self) -> None:
        await asyncio.sleep(1)

    async def handle_info(self, message: Any) -> None:
        await asyncio.sleep(0.25)


def observe(node: Node, *kinds: Any) -> list[Any]:
    heard: list[Any] = []
    node.telemetry.attach(heard.append, kinds=kinds or None)
    return heard


# Calls and handlers.


@simulated
async def test_a_call_begins_and_ends_at_its_caller_and_its_handler_ends_there(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    calls, handlers = observe(a, CallStarted, CallEnded), observe(b, HandlerEnded)
    pid = b.spawn(Model, name="model")
    began = SimLoop.current().time()
    await a.ref(Model, pid).call(Model.infer, 2.0)
    took_s = SimLoop.current().time() - began
    await asyncio.sleep(0.1)
    started, ended = calls
    assert started == CallStarted(pid, "infer")
    assert (ended.to, ended.handler, ended.outcome) == (pid, "infer", "ok")
    assert ended.seconds == pytest.approx(took_s)
    [done] = handlers
    assert (done.actor, done.handler, done.outcome) == ("Model", "infer", "ok")
    assert done.seconds == pytest.approx(2.0)
    assert done.queued_s == pytest.approx(0.0, abs=0.01)


@simulated
async def test_a_handler_knows_how_long_its_call_has_waited(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    handlers = observe(b, HandlerEnded)
    model = a.ref(Model, b.spawn(Model))
    await asyncio.gather(*(model.call(Model.infer, 1.0) for _ in range(3)))
    await asyncio.sleep(0.1)
    assert [round(each.queued_s) for each in handlers] == [0, 1, 2]


@simulated
async def test_each_outcome_of_a_call_is_told(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    calls = observe(a, CallEnded)
    b.spawn(echo, name="echo")
    with pytest.raises(RemoteError):
        await a.call(("echo", b.name), "raise")
    with pytest.raises(NoProcess):
        await a.call(("nobody", b.name), 1)
    with pytest.raises(CallTimeout):
        await a.call(b.spawn(Model), 1, timeout=0.5)
    waiting = asyncio.create_task(a.call(b.spawn(Model), 1))
    await asyncio.sleep(0.5)
    waiting.cancel()
    await a.call(("echo", b.name), 1)
    await asyncio.sleep(0.1)
    assert [each.outcome for each in calls] == ["RemoteError", "NoProcess", "CallTimeout", "cancelled", "ok"]
    assert {each.handler for each in calls} == {""}


@simulated
async def test_calls_that_stay_on_the_node_are_told_too(fleet: Fleet) -> None:
    a = await fleet.start(A)
    calls = observe(a, CallStarted, CallEnded)
    model = await a.start_actor(Model)
    await model.call(Model.infer, 1.0)
    with pytest.raises(NoProcess):
        await a.call("nobody", 1)
    await asyncio.sleep(0)
    assert [(type(each), getattr(each, "outcome", "")) for each in calls] == [
        (CallStarted, ""), (CallEnded, "ok"), (CallStarted, ""), (CallEnded, "NoProcess"),
    ]  # fmt: skip


@simulated
async def test_each_call_of_a_multicall_is_told(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    for node in (a, b):
        node.spawn(echo, name="echo")
    calls = observe(a, CallStarted, CallEnded)
    targets = [("echo", a.name), ("echo", b.name), ("nobody", b.name)]
    await a.multicall(targets, 1)
    many = asyncio.create_task(a.multicall([b.spawn(Model)], 1))
    await asyncio.sleep(0.5)
    many.cancel()
    await asyncio.sleep(0.1)
    with pytest.raises(NotSerializable):
        await a.multicall(targets[1:2], object())
    await asyncio.sleep(0.1)
    outcomes = [each.outcome for each in calls if isinstance(each, CallEnded)]
    assert outcomes == ["ok", "ok", "NoProcess", "cancelled", "NotSerializable"]
    assert len(calls) == 2 * len(outcomes)


@simulated
async def test_an_observer_may_come_and_go_while_a_call_waits(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    model = a.ref(Model, b.spawn(Model))
    heard: list[Any] = []
    early = a.telemetry.attach(heard.append, kinds={CallStarted, CallEnded})
    first = asyncio.create_task(model.call(Model.infer, 1.0))
    await asyncio.sleep(0.5)
    early.detach()
    second = asyncio.create_task(model.call(Model.infer, 1.0))
    await asyncio.sleep(0.5)
    a.telemetry.attach(heard.append, kinds={CallEnded})
    await asyncio.gather(first, second)
    await asyncio.sleep(0.1)
    assert [type(each) for each in heard] == [CallStarted, CallEnded]  # The second began unobserved.


@simulated
async def test_handlers_end_with_outcomes(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    handlers = observe(b, HandlerEnded)
    model = a.ref(Model, b.spawn(Model))
    with pytest.raises(RemoteError):
        await model.call(Model.fail)
    with pytest.raises(CallTimeout):
        await model.within(0.5).call(Model.infer, 60.0)
    assert [item async for item in model.stream(Model.tokens, 4)] == [0, 1, 2, 3]
    async with model.stream(Model.tokens, 4) as items:
        assert await anext(items) == 0
    await model.call(Model.beside)
    await model.cast(Model.infer, 1.0)
    await a.send(model.pid, "no request")
    await asyncio.sleep(5)
    assert [(each.handler, each.outcome) for each in handlers] == [
        ("fail", "other"),
        ("infer", "cancelled"),
        ("tokens", "ok"),
        ("tokens", "cancelled"),
        ("beside", "ok"),
        ("infer", "ok"),
        ("handle_info", "ok"),
    ]
    assert handlers[2].seconds == pytest.approx(2.0)
    assert handlers[3].seconds < 1.1
    assert [each.queued_s is None for each in handlers] == [False] * 5 + [True, True]


@simulated
async def test_what_a_handler_raises_itself_is_its_outcome(fleet: Fleet) -> None:
    a = await fleet.start(A)

    class Front(Actor):
        @handler
        async def ask(self) -> None:
            await self.node.call("nobody", 1)

    handlers = observe(a, HandlerEnded)
    front = await a.start_actor(Front)
    with pytest.raises(RemoteError):
        await front.call(Front.ask)
    await asyncio.sleep(0)
    assert [each.outcome for each in handlers] == ["NoProcess"]


@simulated
async def test_a_call_in_flight_during_a_drain_has_no_known_wait(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    handlers = observe(b, HandlerEnded)
    model = b.spawn(Model, name="model")

    class Front(Actor):
        @handler
        async def ask(self) -> None:
            await asyncio.sleep(1)
            await self.node.ref(Model, model).call(Model.infer, 1.0)

    front = a.ref(Front, a.spawn(Front))
    asking = asyncio.create_task(front.call(Front.ask))
    await asyncio.sleep(0.5)
    draining = asyncio.create_task(b.drain(20))
    await asyncio.sleep(0.3)
    with pytest.raises(Draining):
        await a.call(model, 1)
    await asking
    await draining
    assert [each.queued_s for each in handlers] == [None]


# Messages.


@simulated
async def test_what_is_dropped_is_told_with_its_reason(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    drops = observe(b, MessageDropped)
    await a.send(("nobody", b.name), 1)
    await a.send(("nobody", b.name), 2)
    await asyncio.sleep(0.1)
    assert drops.pop() == MessageDropped("no_process", 2, "nobody", a.name)

    pid = b.spawn(Model)
    await a.ref(Model, pid).cast(Model.infer, 5.0)
    for nth in range(2):  # One of them is swept before the actor takes it, the other one is not.
        with pytest.raises(CallTimeout):
            await a.ref(Model, pid).within(4.99 if nth else 1.0).call(Model.infer, 1.0)
        if not nth:
            await a.ref(Model, pid).cast(Model.infer, 4.0)
    await asyncio.sleep(10)
    assert drops == [MessageDropped("expired", 1, pid, "")] * 2
    drops.clear()

    a.ref(Model, pid).cast_nowait(Model.infer, 5.0)
    await asyncio.sleep(0.1)
    for _ in range(3):
        await a.send(pid, "left behind")
    await asyncio.sleep(0.1)
    b.exit(pid, "kill")
    await asyncio.sleep(0.1)
    assert drops == [MessageDropped("process_ended", 3, pid, "")]


@simulated
async def test_casts_without_a_handler_are_told(fleet: Fleet) -> None:
    class Private(Actor):
        @handler(local=True)
        async def own(self) -> None: ...

        @handler
        async def two(self, one: int) -> None: ...

    class Public(Actor):
        @handler
        async def own(self) -> None: ...

        @handler
        async def two(self) -> None: ...

        @handler
        async def unknown(self) -> None: ...

    a, b = await fleet.mesh(2)
    drops = observe(b, MessageDropped)
    pid = b.spawn(Private)
    for method in (Public.own, Public.two, Public.unknown):
        await a.ref(Public, pid).cast(method)
    await asyncio.sleep(0.1)
    assert drops == [MessageDropped("no_handler", 1, pid, "")] * 3


@simulated
async def test_a_message_of_an_unknown_type_is_told(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    types = MessageTypes()
    types.register("strange", Strange)
    a._outbound._codec = Codec(types)  # As if only this node had registered it.
    drops = observe(b, MessageDropped)
    b.spawn(echo, name="echo")
    await a.send(("echo", b.name), Strange(1))
    await asyncio.sleep(0.1)
    assert drops == [MessageDropped("unreadable", 1, "", a.name)]


@simulated
async def test_full_windows_are_told_with_the_time_that_senders_waited(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=4)
    heard = observe(a, WindowFull, WindowOpened)

    async def slow(process: Process) -> None:
        await asyncio.sleep(2)
        async for _ in process.mailbox:
            pass

    for node in (b, a):
        pid = node.spawn(slow)
        for number in range(5):
            await a.send(pid, number)
        await asyncio.sleep(0.1)
        full, opened = heard
        where = "" if node is a else b.name
        assert full == WindowFull(pid, where)
        assert (opened.to, opened.node) == (pid, where)
        assert opened.seconds == pytest.approx(2.0, abs=1.2)
        heard.clear()


@simulated
async def test_a_sender_that_gives_up_is_told_too(fleet: Fleet) -> None:
    a = await fleet.start(A, mailbox_limit=4)
    heard = observe(a, WindowFull, WindowOpened)

    async def stuck(process: Process) -> None:
        await asyncio.sleep(60)

    pid = a.spawn(stuck)
    for number in range(4):
        await a.send(pid, number)
    with pytest.raises(WouldBlock):
        await a.send(pid, b"x" * UNIT_BYTES, timeout=3)
    await asyncio.sleep(0)
    assert [type(each) for each in heard] == [WindowFull, WindowOpened]
    assert heard[1].seconds == pytest.approx(3.0)


# Supervisors and sessions.


@simulated
async def test_restarts_are_told_and_a_supervisor_that_gives_up(fleet: Fleet) -> None:
    a = await fleet.start(A)
    heard = observe(a, ChildRestarted, SupervisorGaveUp)

    async def crashes(process: Process) -> None:
        raise ValueError("again")

    pid = a.spawn(Supervisor([Child("worker", crashes)], max_restarts=2), name="root")
    await a.join(pid, 60)
    await asyncio.sleep(0)
    assert [type(each) for each in heard] == [ChildRestarted, ChildRestarted, SupervisorGaveUp]
    assert (heard[0].supervisor, heard[0].child) == ("root", "worker")
    assert "ValueError" in heard[0].reason
    assert "more than 2 restarts" in heard[2].reason


@simulated
async def test_sessions_are_told_with_what_ended_them(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    heard = observe(a, SessionUp, SessionDown)
    await asyncio.sleep(30)
    await fleet.crash(b)
    await asyncio.sleep(30)
    [down] = heard
    assert (down.node, down.incarnation, down.kind) == (b.name, b.incarnation, "lost")
    assert down.seconds > 30
    assert "closed" in down.reason or "reset" in down.reason
    again = await fleet.start(b.own_address.ip, A)
    await again.ready(1, timeout=60)
    await asyncio.sleep(1)
    assert heard[1:] == [SessionUp(again.name, again.incarnation, "lost")]
    a.disconnect(again.name)
    await asyncio.sleep(1)
    assert heard[-1].kind == "requested"


@simulated
async def test_a_peer_that_stops_has_left_and_the_one_that_stops_knows_it(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    there, here = observe(a, SessionDown), observe(b, SessionDown)
    fleet.nodes.remove(b)
    await b.stop(drain_s=0)
    await asyncio.sleep(1)
    assert [each.kind for each in there] == ["left"]
    assert [each.kind for each in here] == ["stopping"]


@simulated
async def test_a_protocol_error_is_told_on_both_sides(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    there, here = observe(a, SessionDown), observe(b, SessionDown)
    a._driver.sessions[b.name].control([99, "nonsense", 1, 2])
    await asyncio.sleep(1)
    assert [each.kind for each in here] == ["protocol_error"]
    assert [each.kind for each in there] == ["ended_by_peer"]


@simulated
async def test_an_observer_that_raises_hurts_nobody_and_is_logged_once(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a = await fleet.start(A)

    def broken(event: object) -> None:
        raise ValueError("of the observer")

    a.telemetry.attach(broken)
    a.spawn(echo, name="echo")
    for number in range(3):
        assert await a.call("echo", number) == number
    await asyncio.sleep(0)
    assert caplog.text.count("an observer raised ValueError, and stays attached") == 1
    assert caplog.text.count("ValueError: of the observer") == 1


@simulated
async def test_an_observer_may_use_the_node(fleet: Fleet) -> None:
    a = await fleet.start(A)
    got: list[Any] = []

    async def note(process: Process) -> None:
        async for message in process.mailbox:
            got.append(message)  # noqa: PERF401  # read meanwhile

    a.spawn(note, name="notes")
    a.telemetry.attach(lambda event: a.send_nowait("notes", event.outcome), kinds={CallEnded})
    with pytest.raises(NoProcess):
        await a.call("nobody", 1)
    await asyncio.sleep(0.1)
    assert got == ["NoProcess"]


@simulated
async def test_a_peer_that_falls_silent_is_told_apart_from_one_whose_connection_closes(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    heard = observe(a, SessionDown)
    fleet.net.crash(b.own_address.ip, silent=True)
    fleet.nodes.remove(b)
    await b.stop(drain_s=0)
    await asyncio.sleep(60)
    assert [each.kind for each in heard] == ["silent"]
    assert "nothing was read" in heard[0].reason


@simulated
async def test_a_peer_that_takes_too_little_is_overloaded(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    heard = observe(a, SessionDown)
    a._driver.sessions[b.name].give_up("it took nothing for 60 s")
    await asyncio.sleep(1)
    assert [(each.kind, each.reason) for each in heard] == [("overloaded", "it took nothing for 60 s")]


@simulated
async def test_a_peer_that_dials_anew_and_one_that_restarted_are_told_apart(fleet: Fleet) -> None:
    a, _ = await fleet.mesh(2)
    heard = observe(a, SessionDown, SessionUp)
    fleet.net.break_connection(B, A)
    await asyncio.sleep(30)
    ups = [each for each in heard if isinstance(each, SessionUp)]
    downs = [each for each in heard if isinstance(each, SessionDown)]
    assert {up.after for up in ups} == {down.kind for down in downs}
    assert {down.kind for down in downs} <= {"lost", "redialled"}
    assert a._driver.reconnects == a._driver.ends
