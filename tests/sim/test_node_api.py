"""The public API of a node, between two and three of them, on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm import (
    Address,
    AlreadyRegistered,
    Call,
    CallTimeout,
    NoConnection,
    Node,
    NodeDown,
    NodeInfo,
    NodeLost,
    NodeUp,
    NoProcess,
    NotDelivered,
    OutcomeUnknown,
    Pid,
    Process,
    ProcessDown,
    RemoteError,
    Settings,
)
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import A, B, Fleet, collector, echo, simulated
from tests.sim.invariants import LATE_S

# Processes and names.


def test_the_constructor_of_a_node_says_how_one_is_made() -> None:
    with pytest.raises(TypeError, match=r"async with Node\.start\(settings\)"):
        Node(Settings(node_ip="127.0.0.1"))  # type: ignore[arg-type]


@simulated
async def test_names_are_registered_and_found_here_and_there(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    pid = b.spawn(echo, name="echo")
    other = b.spawn(echo)
    assert await b.whereis("echo") == await a.whereis("echo", at=b.name) == pid
    assert await a.whereis("echo") is None
    assert await a.whereis("nobody", at=b.name) is None
    await a.register("second", other)
    assert b.registered() == {"echo": pid, "second": other}
    assert b.name_of(other) == "second"
    for node in (a, b):
        with pytest.raises(AlreadyRegistered) as caught:
            await node.register("echo", other)
        assert (caught.value.name, str(caught.value.owner)) == ("echo", str(pid))
    assert await a.unregister("echo", at=b.name)
    assert not await a.unregister("echo", at=b.name)
    assert await b.whereis("echo") is None
    with pytest.raises(NoConnection):
        await a.whereis("echo", at="fleetlm@10.9.9.9")


@simulated
async def test_processes_are_listed_stopped_and_gone(fleet: Fleet) -> None:
    (a,) = await fleet.mesh(1)
    pid = a.spawn(echo, name="echo")
    info = a.process_info(pid)
    assert info is not None
    assert (info.pid, info.name, info.runs, info.mailbox) == (pid, "echo", "echo", 0)
    assert a.processes() == [info]
    a.exit(pid)
    await asyncio.sleep(0.1)
    a.exit(pid)
    assert a.process_info(pid) is None
    with pytest.raises(NoProcess):
        await a.send("echo", 1)


# Sending.


@simulated
async def test_a_message_reaches_a_pid_a_name_and_an_address(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    got: list[Any] = []
    pid = b.spawn(collector(got), name="sink")
    targets = [pid, ("sink", b.name), Address("sink", b.name)]
    for number, to in enumerate(targets):
        await a.send(to, number)  # type: ignore[arg-type]
    a.send_nowait(pid, 3)
    await b.send("sink", "local")
    await b.send(pid, "local")
    await asyncio.sleep(0.1)
    assert [each for each in got if each != "local"] == [0, 1, 2, 3]
    assert got.count("local") == 2


@simulated
async def test_a_message_to_an_unknown_name_on_another_node_is_counted_there(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    await a.send(("nobody", b.name), 1)
    await asyncio.sleep(0.1)
    info = b.info()
    assert isinstance(info, NodeInfo)
    assert info.undelivered == 1


@simulated
async def test_pids_and_addresses_travel_and_can_be_used(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    got: list[Any] = []
    mine = a.spawn(collector(got))

    async def back(process: Process) -> None:
        sender, name = await process.receive()
        await process.node.send(sender, ("hello", name))

    b.spawn(back, name="back")
    await a.send(("back", b.name), (mine, Address("x", a.name)))
    await asyncio.sleep(0.1)
    assert got == [("hello", Address("x", a.name))]


@simulated
async def test_a_pid_of_a_former_incarnation_is_no_process(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    pid = b.spawn(echo, name="echo")
    events = a.events()
    assert await anext(events) == NodeUp(b.name, b.incarnation)
    await fleet.crash(b)
    newcomer = await fleet.start(B, A)
    got: list[Any] = []
    assert newcomer.spawn(collector(got)).number == pid.number
    assert isinstance(await anext(events), NodeDown)
    assert await anext(events) == NodeUp(b.name, newcomer.incarnation)
    for attempt in (a.send(pid, 1), a.call(pid, 1)):
        with pytest.raises(NoProcess):
            await attempt
    with pytest.raises(NoProcess):
        a.send_nowait(pid, 1)
    await asyncio.sleep(1)
    assert got == []


# Calls.


@simulated
async def test_every_outcome_of_a_call(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    for node in (a, b):
        node.spawn(echo, name="echo")
        for to in ("echo", ("echo", node.name), await node.whereis("echo")):
            if node is b and to == "echo":
                continue
            assert to is not None
            assert await a.call(to, {"x": [1, (2, b"3")]}) == {"x": [1, (2, b"3")]}
            with pytest.raises(RemoteError) as raised:
                await a.call(to, "raise")
            assert (raised.value.type_name, raised.value.text) == ("ValueError", "as asked")
        with pytest.raises(ProcessDown):
            await a.call(("echo", node.name), "stop")
        with pytest.raises(NoProcess):
            await a.call(("echo", node.name), "again")
    with pytest.raises(NoConnection):
        await a.call(("echo", "fleetlm@10.9.9.9"), 1)


@pytest.mark.parametrize("remote", [False, True])
def test_calls_that_an_ended_process_took_and_did_not_take_end_differently(remote: bool) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        a, b = await fleet.mesh(2)
        node = b if remote else a

        async def brief(process: Process) -> None:
            await process.receive()
            await asyncio.sleep(1)

        node.spawn(brief, name="brief")
        calls = [asyncio.ensure_future(a.call(("brief", node.name), n)) for n in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in results] == [ProcessDown, NoProcess, NoProcess]
        assert isinstance(results[0], OutcomeUnknown)
        assert isinstance(results[1], NotDelivered)

    story()


@simulated
async def test_a_deadline_is_kept_and_reaches_the_server(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    calls: list[Call] = []
    b.spawn(collector(calls), name="holder")
    started = SimLoop.current().time()
    with pytest.raises(CallTimeout) as caught:
        await a.call(("holder", b.name), "hi", timeout=0.5)
    assert 0.5 <= SimLoop.current().time() - started <= 0.5 + LATE_S
    assert caught.value.timeout_s == 0.5
    await asyncio.sleep(0.1)
    assert not calls[0].wanted
    calls[0].reply("too late")
    started = SimLoop.current().time()
    with pytest.raises(CallTimeout):
        await a.call(("holder", b.name), "default")
    default_s = Settings().call_timeout_s
    assert default_s <= SimLoop.current().time() - started <= default_s + LATE_S


@simulated
async def test_a_caller_that_is_cancelled_is_no_longer_waited_for(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    calls: list[Call] = []
    pid = b.spawn(collector(calls), name="holder")
    calling = asyncio.ensure_future(a.call(("holder", b.name), "hi", timeout=60))
    await asyncio.sleep(0.1)
    assert calls[0].wanted
    calling.cancel()
    await asyncio.sleep(0.1)
    assert not calls[0].wanted
    info = b.process_info(pid)
    assert info is not None
    assert info.open_calls == 0


@simulated
async def test_expired_and_given_up_calls_are_not_run(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    ran: list[Any] = []

    async def slow(process: Process) -> None:
        async for call in process.mailbox:
            await asyncio.sleep(1)
            ran.append(call.message)
            call.reply(call.message)

    b.spawn(slow, name="slow")
    to = ("slow", b.name)
    first = asyncio.ensure_future(a.call(to, "first"))
    await asyncio.sleep(0.1)
    expired = asyncio.ensure_future(a.call(to, "expired", timeout=0.2))
    given_up = asyncio.ensure_future(a.call(to, "given up"))
    last = asyncio.ensure_future(a.call(to, "last"))
    await asyncio.sleep(0.1)
    given_up.cancel()
    assert await first == "first"
    assert await last == "last"
    assert ran == ["first", "last"]
    assert isinstance(expired.exception(), CallTimeout)


@simulated
async def test_an_answer_may_come_from_any_task_and_in_any_order(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)

    async def shuffled(process: Process) -> None:
        held = [await process.receive() for _ in range(5)]
        for call in reversed(held):
            call.reply(call.message * 2)

    b.spawn(shuffled, name="x")
    results = await asyncio.gather(*(a.call(("x", b.name), n) for n in range(5)))
    assert results == [0, 2, 4, 6, 8]


@simulated
async def test_a_call_over_a_connection_that_is_lost_may_have_run(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    b.spawn(collector([]), name="holder")
    calling = asyncio.ensure_future(a.call(("holder", b.name), "hi", timeout=60))
    await asyncio.sleep(0.1)
    await fleet.crash(b)
    with pytest.raises(NodeLost):
        await calling
    with pytest.raises(NoConnection):
        await a.call(("holder", b.name), "hi")


@simulated
async def test_an_error_text_that_is_not_unicode_is_delivered(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)

    async def server(process: Process) -> None:
        (await process.receive()).fail(OSError("a\udcff"))

    b.spawn(server, name="x")
    with pytest.raises(RemoteError, match="OSError"):
        await a.call(("x", b.name), 1)


@simulated
async def test_a_reply_that_cannot_travel_is_an_error_on_both_sides(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, debug=True)
    seen: list[Exception] = []

    async def server(process: Process) -> None:
        async for call in process.mailbox:
            try:
                call.reply(object())
            except TypeError as error:
                seen.append(error)

    for node in (a, b):
        node.spawn(server, name="x")
        with pytest.raises(RemoteError, match="NotSerializable"):
            await a.call(("x", node.name), 1)
    assert len(seen) == 2


# One to many.


@simulated
async def test_multicall_and_broadcast(fleet: Fleet) -> None:
    a, b, c = await fleet.mesh(3)
    got: list[Any] = []
    for node in (a, b):
        node.spawn(echo, name="echo")
        node.spawn(collector(got), name="sink")
    targets = [("echo", n.name) for n in (c, b, a)] + [("echo", "fleetlm@10.9.9.9")]
    results = await a.multicall(targets, {"q": 1}, timeout=2)
    assert [r if isinstance(r, dict) else type(r) for r in results] == [
        NoProcess, {"q": 1}, {"q": 1}, NoConnection,
    ]  # fmt: skip
    assert await a.broadcast("sink", "all") == 3  # that c has no such process is not noticed
    assert await a.broadcast("sink", "some", [b.name, "fleetlm@10.9.9.9"]) == 1
    await asyncio.sleep(0.1)
    assert sorted(got) == ["all", "all", "some"]


@simulated
async def test_debug_mode_copies_what_stays_on_the_node(fleet: Fleet) -> None:
    (a,) = await fleet.mesh(1, debug=True)
    got: list[Any] = []
    a.spawn(collector(got), name="sink")
    message = [1, {"a": (2,)}]
    await a.send("sink", message)
    message.append("later")
    await asyncio.sleep(0.1)
    assert got == [[1, {"a": (2,)}]]
    with pytest.raises(TypeError, match="cannot be sent"):
        await a.send("sink", [print])


@simulated
async def test_a_caller_with_an_unknown_pid_gets_an_error(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    with pytest.raises(NoProcess):
        await a.call(Pid(b.name, b.incarnation, 999), 1)
    with pytest.raises(NoProcess):
        await a.call(Pid(a.name, a.incarnation, 999), 1)
    with pytest.raises(NoConnection):
        await a.call(Pid("fleetlm@10.9.9.9", 1, 1), 1)
