"""Events, connections, and the end of a node, on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetlm import (
    InvalidName,
    Node,
    NodeDown,
    NodeDraining,
    NodeInfo,
    NodeStopped,
    NodeUp,
    PeerInfo,
    Process,
    ProcessDown,
    Settings,
    SettingsError,
    StartFailed,
    StaticDiscovery,
)
from fleetlm.testing.network import SimTransport
from tests.sim.fleet import A, B, C, Fleet, collector, echo, simulated
from tests.sim.seeded import no_logs

KIB = 1024
NARROW = {
    "window_bytes": 64 * KIB,
    "chunk_bytes": 4 * KIB,
    "bulk_window_bytes": 8 * KIB,
    "batch_bytes": 4 * KIB,
}


# Events, readiness, connections.


@simulated
async def test_events_start_with_the_present_and_alternate(fleet: Fleet) -> None:
    a, b, c = await fleet.mesh(3)
    events = a.events()
    snapshot = {(await anext(events)).node for _ in range(2)}
    assert snapshot == {b.name, c.name}
    await b.stop("done for today")
    assert (await anext(events)).node == b.name
    down = await anext(events)
    assert down == NodeDown(b.name, b.incarnation, "left: done for today")
    fleet.nodes.remove(b)
    again = await fleet.start(B, A)
    assert await anext(events) == NodeUp(b.name, again.incarnation)
    assert again.incarnation != b.incarnation
    await a.stop()
    rest = [event async for event in events]
    assert {(type(each), each.node) for each in rest} == {
        (NodeDraining, a.name), (NodeDown, b.name), (NodeDown, c.name),
    }  # fmt: skip


@simulated
async def test_nodeup_comes_before_the_first_message_and_nodedown_after_the_last(fleet: Fleet) -> None:
    a = await fleet.start(A)
    order: list[str] = []
    a.spawn(collector(order), name="sink")
    b = await fleet.start(B, A)
    await b.ready(timeout=5)
    assert a.list() == [b.name] or b.list() == [a.name]
    for number in range(3):
        await b.send(("sink", a.name), number)
    await b.stop()
    events = a.events()
    await asyncio.sleep(1)
    assert order == [0, 1, 2]
    events.close()
    fleet.nodes.remove(b)


@simulated
async def test_ready_waits_for_so_many_nodes(fleet: Fleet) -> None:
    a = await fleet.start(A)
    with pytest.raises(TimeoutError):
        await a.ready(1, timeout=2)
    waiting = asyncio.ensure_future(a.ready(2))
    for ip in (B, C):
        await asyncio.sleep(1)
        assert not waiting.done()
        await fleet.start(ip, A)
    await waiting
    assert a.list() == [f"fleetlm@{B}", f"fleetlm@{C}"]
    await a.ready(0)
    waiting = asyncio.ensure_future(a.ready(3))
    connecting = asyncio.ensure_future(a.connect("fleetlm@10.9.9.9", timeout=60))
    await asyncio.sleep(0.1)
    await a.stop()
    for each in (waiting, connecting):
        with pytest.raises(NodeStopped):
            await each


@simulated
async def test_connect_disconnect_and_ping(fleet: Fleet) -> None:
    a, b = await fleet.start(A), await fleet.start(B)
    assert a.list() == []
    assert not a.disconnect(b.name)
    assert await a.ping(a.name) == "pong"
    assert await a.ping(b.name) == "pong"
    assert await a.connect(a.name)
    assert (a.list(), b.list()) == ([b.name], [a.name])
    assert a.disconnect(b.name)
    await asyncio.sleep(60)
    assert (a.list(), b.list()) == ([], [])
    assert await a.connect(b.name)
    await asyncio.sleep(1)
    assert (a.list(), b.list()) == ([b.name], [a.name])
    started = fleet.loop.time()
    assert await a.ping("fleetlm@10.9.9.9", timeout=3) == "pang"
    assert not await a.connect("fleetlm@10.9.9.9", timeout=2)
    assert fleet.loop.time() - started == pytest.approx(5)
    with pytest.raises(InvalidName):
        await a.connect("somewhere")
    row = a.info("fleetlm@10.9.9.9")
    assert isinstance(row, PeerInfo)
    assert row.last_error


@simulated
async def test_info_of_this_node_and_of_others(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, cluster="blue", cookie="x good cookie 7f3a91c")
    b.spawn(collector([]), name="sink")
    for number in range(10):
        await a.send(("sink", b.name), number)
    await asyncio.sleep(5)
    info = a.info()
    assert isinstance(info, NodeInfo)
    assert (info.name, info.incarnation, info.cluster, info.cookie) == (a.name, a.incarnation, "blue", True)
    assert info.uptime_s >= 5
    assert info.messages_sent >= 10
    assert info.polls >= 1
    assert "addresses" in info.dns_verdict.lower()
    assert "x" * 32 not in repr(info)
    (row,) = info.peers
    assert a.info(b.name) == row
    assert (row.name, row.status, row.incarnation) == (b.name, "up", b.incarnation)
    assert a.info("fleetlm@10.9.9.9") is None
    assert a.info(a.name) == a.info()
    assert isinstance(b.info(), NodeInfo)
    with pytest.raises(ValueError, match="unknown selector"):
        a.list("everything")
    assert a.list("this", "connected") == [a.name, b.name]


# Waiting for other nodes.


async def alone(fleet: Fleet, ip: str) -> Node:
    """A node without discovery: clustering is off."""
    settings = Settings(node_ip=ip)
    node = await Node.start(settings, transport=SimTransport(fleet.net, settings))
    fleet.nodes.append(node)
    return node


@simulated
async def test_ready_says_at_once_that_clustering_is_off_and_what_to_do(fleet: Fleet) -> None:
    a = await alone(fleet, A)
    started = fleet.loop.time()
    with pytest.raises(SettingsError, match=r"DNS_CLUSTER_QUERY is not set.*node\.connect\(name\)") as caught:
        await a.ready(timeout=60)
    assert fleet.loop.time() == started
    assert (caught.value.variable, caught.value.value) == ("DNS_CLUSTER_QUERY", None)
    assert "ready(min_nodes=1)" in str(caught.value)
    await a.ready(0)


@simulated
async def test_ready_waits_for_what_connect_asked_for(fleet: Fleet) -> None:
    a = await alone(fleet, A)
    assert not await a.connect(f"fleetlm@{B}", timeout=0.1), "it does not run yet"
    waiting = asyncio.ensure_future(a.ready(timeout=60))
    await asyncio.sleep(1)
    b = await alone(fleet, B)
    await waiting
    assert a.list() == [b.name]
    await a.ready()
    with pytest.raises(TimeoutError):
        await a.ready(2, timeout=1)
    await b.ready()  # It looked up no peers: the other node has connected to it.
    a.disconnect(b.name)
    with pytest.raises(SettingsError):
        await a.ready(timeout=60)


@simulated
async def test_a_node_without_discovery_that_is_met_is_ready(fleet: Fleet) -> None:
    a = await alone(fleet, A)
    b = await fleet.start(B, A)
    await b.ready(timeout=30)
    await a.ready(timeout=30)


# The end of a node.


@simulated
async def test_stopping_finishes_calls_in_flight(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)

    async def slow(process: Process) -> None:
        async for call in process.mailbox:
            await asyncio.sleep(1)
            call.reply(call.message)

    b.spawn(slow, name="slow")
    calls = [asyncio.ensure_future(a.call(("slow", b.name), n, timeout=30)) for n in range(3)]
    await asyncio.sleep(0.1)
    stopping = asyncio.ensure_future(b.stop())
    await asyncio.sleep(0.5)
    assert a.list("draining") == [b.name]
    with pytest.raises(NodeStopped):
        b.spawn(echo)
    assert await asyncio.gather(*calls) == [0, 1, 2]
    await stopping


@simulated
async def test_a_drain_has_an_end(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    b.spawn(collector([]), name="holder")
    calling = asyncio.ensure_future(a.call(("holder", b.name), 1, timeout=60))
    await asyncio.sleep(0.1)
    started = fleet.loop.time()
    await asyncio.gather(b.stop(drain_s=2), b.stop(), b.wait_stopped())
    assert fleet.loop.time() - started == pytest.approx(2, abs=0.6)
    with pytest.raises(ProcessDown):
        await calling


@simulated
async def test_a_large_reply_in_flight_is_finished_before_the_end(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)

    async def large(process: Process) -> None:
        (await process.receive()).reply(b"x" * 20_000 * KIB)
        await process.receive()

    b.spawn(large, name="large")
    calling = asyncio.ensure_future(a.call(("large", b.name), 1))
    await asyncio.sleep(0.005)
    await b.stop()
    assert len(await calling) == 20_000 * KIB


@simulated
async def test_stopping_with_dead_peers_takes_under_two_seconds(fleet: Fleet) -> None:
    a, b, c = await fleet.mesh(3)
    for number in range(1000):
        a.send_nowait(("sink", b.name), number)
    fleet.net.crash(B, silent=True)
    fleet.net.freeze(C)
    started = fleet.loop.time()
    await a.stop()
    assert fleet.loop.time() - started < 2
    assert b.name in b.list("this")
    assert c.name in c.list("this")


@simulated
async def test_a_stopped_node_says_so(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    pid = a.spawn(echo, name="echo")
    await a.stop()
    await a.stop()
    await a.wait_stopped()
    there = ("echo", b.name)
    for attempt in (
        a.send("echo", 1),
        a.send(there, 1),
        a.call(there, 1),
        a.broadcast("echo", 1),
        a.whereis("echo", at=b.name),
        a.unregister("echo", at=b.name),
        a.connect(b.name),
        a.ready(1),
    ):
        with pytest.raises(NodeStopped):
            await attempt
    for refused in (lambda: a.send_nowait(pid, 1), lambda: a.spawn(echo)):
        with pytest.raises(NodeStopped):
            refused()
    assert [event async for event in a.events()] == []
    assert (a.list(), a.processes(), a.registered()) == ([], [], {})
    assert isinstance(a.info(), NodeInfo)


@simulated
async def test_a_process_may_stop_its_own_node(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)

    async def switch(process: Process) -> None:
        await process.receive()
        await process.node.stop("as told")

    b.spawn(switch, name="switch")
    await a.send(("switch", b.name), "off")
    await asyncio.wait_for(b.wait_stopped(), 10)
    await asyncio.sleep(0.1)
    assert a.list() == []
    row = a.info(b.name)
    assert isinstance(row, PeerInfo)


@simulated
async def test_cancelling_a_caller_of_stop_does_not_cancel_the_stop(fleet: Fleet) -> None:
    (a,) = await fleet.mesh(1)
    a.spawn(collector([]), name="holder")
    calling = asyncio.ensure_future(a.call("holder", 1, timeout=60))
    await asyncio.sleep(0.1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await a.stop()
    await asyncio.wait_for(a.wait_stopped(), a.settings.drain_s + 5)
    with pytest.raises(ProcessDown):
        await calling


@simulated
async def test_a_node_can_be_entered_and_leaves_with_its_block(fleet: Fleet) -> None:
    settings = Settings(node_ip=A, dns_query="x.test")
    transport = SimTransport(fleet.net, settings)
    with pytest.raises(ZeroDivisionError):
        async with Node.start(settings, discovery=StaticDiscovery([A]), transport=transport) as node:
            raise ZeroDivisionError
    await node.wait_stopped()
    again = await fleet.start(A, node_slot=0)
    with pytest.raises(StartFailed):
        await fleet.start(A, node_slot=0)
    assert again.incarnation != node.incarnation


@simulated
async def test_a_block_that_is_cancelled_leaves_in_order_and_has_not_crashed(fleet: Fleet) -> None:
    """Ctrl-C cancels the main task: peers must not take that for a crash."""
    (a,) = await fleet.mesh(1)
    events = a.events()
    settings = Settings(node_ip=B, dns_query="x.test")
    transport = SimTransport(fleet.net, settings)

    async def program() -> None:
        async with Node.start(settings, discovery=StaticDiscovery([A, B]), transport=transport):
            await asyncio.Event().wait()

    running = asyncio.ensure_future(program())
    assert isinstance(await anext(events), NodeUp)
    running.cancel()
    assert isinstance(await anext(events), NodeDraining)
    down = await anext(events)
    assert isinstance(down, NodeDown)
    assert down.reason == "left: shutdown"
    with pytest.raises(asyncio.CancelledError):
        await running


def test_the_same_seed_gives_the_same_run() -> None:
    traces: list[Any] = []

    @simulated
    async def story(fleet: Fleet) -> None:
        fleet.net.trace = []
        nodes = await fleet.mesh(3, **NARROW)
        for node in nodes:
            for _ in range(5):
                node.spawn(collector([]))
            node.spawn(echo, name="echo")
        await nodes[0].multicall([("echo", n.name) for n in nodes], b"x" * 9 * KIB)
        calls = [asyncio.ensure_future(nodes[0].call(p.pid, 1, 60)) for p in nodes[1].processes()[:5]]
        await asyncio.sleep(0.1)
        await nodes[1].stop(drain_s=0)
        await asyncio.gather(*calls, return_exceptions=True)
        traces.append(list(fleet.net.trace))

    with no_logs():
        story()
        story()
    assert traces[0] == traces[1]
