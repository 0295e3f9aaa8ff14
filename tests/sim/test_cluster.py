"""SimCluster: starts, ends and faults of nodes, and its reports."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from fleetlm import Call, NoConnection, NodeDown, NodeDraining, NodeLost, NodeUp, StartFailed
from fleetlm.messaging.mailbox import Mailbox
from fleetlm.process import Process
from fleetlm.testing import (
    Leaked,
    NotMeshed,
    Reply,
    SimCluster,
    SimulationError,
    run,
)
from fleetlm.testing.cluster import SETTINGS, WALL_MS
from tests.sim.invariants import held

Scenario = Callable[[SimCluster], Coroutine[Any, Any, None]]
A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)


def simulated(scenario: Scenario) -> Callable[[], None]:
    """Run a test on its own cluster with several seeds."""

    @functools.wraps(scenario)
    def test() -> None:
        async def main(seed: int) -> None:
            async with SimCluster(seed) as cluster:
                await scenario(cluster)

        for seed in range(5):
            run(main(seed), seed=seed)

    del test.__wrapped__  # pytest would ask for a fixture `cluster`
    return test


async def echo(process: Process) -> None:
    async for message in process.mailbox:
        match message:
            case Call(message=text):
                message.reply(text)


# Nodes.


@simulated
async def test_nodes_find_each_other(cluster: SimCluster) -> None:
    nodes = await cluster.start(4)
    assert [node.name for node in nodes] == [f"fleetlm@10.0.0.{n}" for n in (1, 2, 3, 4)]
    assert list(cluster.nodes.values()) == nodes
    assert not cluster.meshed()
    assert await cluster.mesh(timeout=5) < 5
    assert cluster.meshed()
    assert nodes[0].list() == [node.name for node in nodes[1:]]


@simulated
async def test_they_are_real_nodes(cluster: SimCluster) -> None:
    one, two = await cluster.start(2, mailbox_limit=7)
    two.spawn(echo, name="echo")
    await cluster.mesh()
    assert await one.call(("echo", two.name), {"a": (1, 2)}) == {"a": (1, 2)}
    assert one.settings.mailbox_limit == 7
    assert one.settings.node_ip == A


@simulated
async def test_one_that_stops_says_goodbye(cluster: SimCluster) -> None:
    one, two = await cluster.start(2)
    await cluster.mesh()
    events = one.events()
    await cluster.stop(two, "maintenance")
    await asyncio.sleep(1)
    assert await anext(events) == NodeUp(two.name, two.incarnation)
    draining = await anext(events)
    assert isinstance(draining, NodeDraining)
    assert (draining.name, draining.source) == (two.name, "api")
    assert await anext(events) == NodeDown(two.name, two.incarnation, "left: maintenance")
    assert cluster.dns.records == [A]
    assert list(cluster.nodes) == [A]
    events.close()


@simulated
async def test_a_crash_is_seen_within_50_ms(cluster: SimCluster) -> None:
    one, two = await cluster.start(2)
    await cluster.mesh()
    await cluster.crash(two.name)
    await asyncio.sleep(0.05)
    assert one.list() == []
    assert cluster.dns.records == [A]


@simulated
async def test_a_power_loss_is_seen_by_heartbeat(cluster: SimCluster) -> None:
    one, _ = await cluster.start(2)
    await cluster.mesh()
    await cluster.crash(B, silent=True, stale=True)
    await asyncio.sleep(SETTINGS.node_timeout_s - 0.1)
    assert one.list() == [f"fleetlm@{B}"]
    await asyncio.sleep(SETTINGS.heartbeat_interval_s + 0.2)
    assert one.list() == []
    assert cluster.dns.records == [A, B]


@simulated
async def test_what_a_crashed_node_had_asked_ends(cluster: SimCluster) -> None:
    one, two = await cluster.start(2)
    await cluster.mesh()
    asked = asyncio.create_task(one.call(("mute", two.name), 1))
    two.spawn(_mute, name="mute")
    await asyncio.sleep(0.5)
    await cluster.crash(one)
    with pytest.raises(NodeLost):
        await asked


async def _mute(process: Process) -> None:
    await process.receive()
    await asyncio.sleep(1000)


@simulated
async def test_a_restarted_node_is_another_incarnation_at_the_address(cluster: SimCluster) -> None:
    one, two = await cluster.start(2)
    await cluster.mesh()
    again = await cluster.restart(two)
    assert again.name == two.name
    assert again.incarnation != two.incarnation
    await asyncio.sleep(1)
    assert one.info(two.name).incarnation == again.incarnation  # type: ignore[union-attr]
    await cluster.crash(again)
    third = await cluster.restart(B, mailbox_limit=3)
    assert (await cluster.restart(third)).settings.mailbox_limit == 3
    await cluster.mesh()


@simulated
async def test_the_clock_runs_with_virtual_time_and_may_go_back(cluster: SimCluster) -> None:
    one, two = await cluster.start(2)
    assert one.incarnation >> 22 == WALL_MS & ((1 << 42) - 1)
    await asyncio.sleep(2)
    again = await cluster.restart(two, clock_s=-3600)
    assert (again.incarnation >> 22) - (one.incarnation >> 22) == 2_000 - 3_600_000
    await cluster.mesh()


@simulated
async def test_two_nodes_cannot_have_one_address(cluster: SimCluster) -> None:
    await cluster.start_at(A, node_slot=0)
    with pytest.raises(StartFailed):
        await cluster.start_at(A, node_slot=0)


@simulated
async def test_what_does_not_run_cannot_be_ended(cluster: SimCluster) -> None:
    await cluster.start(2)
    await cluster.crash(B)
    with pytest.raises(ValueError, match=r"no node runs at 10.0.0.2; running: 10.0.0.1"):
        await cluster.crash(B)
    with pytest.raises(ValueError, match=r"no node runs"):
        await cluster.stop(f"fleetlm@{C}")


@simulated
async def test_a_node_may_be_given_as_itself_by_name_or_by_address(cluster: SimCluster) -> None:
    [node] = await cluster.start()
    assert [cluster.ip_of(who) for who in (node, node.name, A)] == [A, A, A]
    assert cluster.ip_of("fleetlm@fdaa::2") == "fdaa::2"


@simulated
async def test_ipv6_nodes(cluster: SimCluster) -> None:
    one = await cluster.start_at("fdaa::1")
    two = await cluster.start_at("fdaa::2")
    await cluster.mesh(5)
    assert one.list() == [two.name] == ["fleetlm@fdaa::2"]


def test_nodes_that_drew_the_same_number_are_not_taken_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleetlm.runtime.assembly.new_incarnation", lambda _wall_ms, _rng: 7)

    async def main() -> None:
        async with SimCluster() as cluster:
            one, two, _ = await cluster.start(3)
            two.spawn(echo, name="echo")
            await cluster.mesh(5)
            assert await one.call(("echo", two.name), 1) == 1

    run(main())


@simulated
async def test_a_network_that_flaps_leaves_no_trace_in_its_nodes(cluster: SimCluster) -> None:
    nodes = await cluster.start(3)
    await cluster.mesh()
    for _ in range(50):
        cluster.network.break_connection(A, B)
        cluster.network.break_connection(C, A)
        await asyncio.sleep(0.5)
    await cluster.mesh()
    await asyncio.sleep(20)
    for node in nodes:
        assert held(cluster, node) == []


# Faults.


@simulated
async def test_a_partition_and_its_end(cluster: SimCluster) -> None:
    one, two, three = await cluster.start(3)
    await cluster.mesh()
    cluster.partition([one])
    await asyncio.sleep(SETTINGS.longest_silence_s + 0.1)
    assert one.list() == []
    assert two.list() == [three.name]
    cluster.heal()
    await cluster.mesh()


@simulated
async def test_a_partition_between_two_of_three(cluster: SimCluster) -> None:
    one, two, three = await cluster.start(3)
    await cluster.mesh()
    cluster.partition([one], [two.name])
    await asyncio.sleep(SETTINGS.longest_silence_s + 0.1)
    assert one.list() == two.list() == [three.name]
    assert three.list() == [one.name, two.name]


@simulated
async def test_a_partition_one_way(cluster: SimCluster) -> None:
    one, two = await cluster.start(2)
    await cluster.mesh()
    cluster.partition_one_way([A], [B])
    await asyncio.sleep(SETTINGS.longest_silence_s + 0.1)
    assert one.list() == two.list() == []


@simulated
async def test_a_frozen_node_is_given_up_and_comes_back(cluster: SimCluster) -> None:
    one, two = await cluster.start(2)
    await cluster.mesh()
    cluster.freeze(two)
    await asyncio.sleep(SETTINGS.longest_silence_s + 0.1)
    assert one.list() == []
    cluster.thaw(two)
    await cluster.mesh()


@simulated
async def test_a_stalled_node_is_busy_and_not_given_up(cluster: SimCluster) -> None:
    one, two = await cluster.start(2)
    await cluster.mesh()
    two.spawn(echo, name="echo")
    cluster.stall(two)
    await asyncio.sleep(20)
    assert one.list() == one.list("busy") == [two.name]
    cluster.unstall(two)
    await asyncio.sleep(2)
    assert one.list("busy") == []
    assert await one.call(("echo", two.name), "still the same") == "still the same"


@simulated
async def test_a_slow_node_is_slow(cluster: SimCluster) -> None:
    one, two = await cluster.start(2)
    await cluster.mesh()
    two.spawn(echo, name="echo")
    cluster.slow(two, 1000)
    began_s = cluster.loop.time()
    await one.call(("echo", two.name), 1)
    assert cluster.loop.time() - began_s > 0.4
    cluster.heal()
    await asyncio.sleep(5)
    began_s = cluster.loop.time()
    await one.call(("echo", two.name), 1)
    assert cluster.loop.time() - began_s < 0.05


@simulated
async def test_what_ails_a_host_outlives_its_node_until_it_is_healed(cluster: SimCluster) -> None:
    _, two = await cluster.start(2)
    cluster.slow(two, 10)
    await cluster.crash(two)
    assert cluster.network.host(B).slowness == 10
    cluster.heal()
    assert cluster.network.host(B).slowness == 1


# What is said of it.


@simulated
async def test_the_error_of_a_mesh_says_which_node_misses_which(cluster: SimCluster) -> None:
    await cluster.start(2)
    cluster.partition([A])
    with pytest.raises(NotMeshed, match=r"fleetlm@10.0.0.1 misses fleetlm@10.0.0.2 \(") as caught:
        await cluster.mesh(timeout=3)
    assert caught.value.missing.keys() == {f"fleetlm@{A}", f"fleetlm@{B}"}
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, SimulationError)


@simulated
async def test_a_node_that_lists_a_dead_one_is_no_mesh(cluster: SimCluster) -> None:
    await cluster.start(2)
    await cluster.mesh()
    await cluster.crash(B, silent=True)
    assert not cluster.meshed()
    assert await cluster.mesh(timeout=SETTINGS.longest_silence_s + 1) > 1


@simulated
async def test_no_node_and_one_node_are_meshes(cluster: SimCluster) -> None:
    assert cluster.meshed()
    await cluster.start()
    assert await cluster.mesh() == 0


def test_invariants_are_called_after_each_fact() -> None:
    async def main() -> None:
        facts: list[str] = []
        async with SimCluster(3, on_fact=facts.append, trace=True) as cluster:
            await cluster.start(3)
            await cluster.mesh()
            cluster.network.knock(A, "authentication failed")
            await cluster.crash(B)
            await asyncio.sleep(5)
        assert set(facts) == {A, B, C}
        assert cluster.network.trace is not None
        assert facts == [ip for _, ip, *_ in cluster.network.trace]

    run(main())


def test_a_leak_is_reported() -> None:
    async def main() -> None:
        async with SimCluster() as cluster:
            await cluster.start(2)
            await cluster.mesh()
            one = cluster.nodes[A]
            link = one._driver.sessions[f"fleetlm@{B}"]
            await cluster.stop(one)
            one._driver.sessions["fleetlm@10.0.0.9"] = link

    with pytest.raises(Leaked, match=r"fleetlm@10.0.0.1: session with fleetlm@10.0.0.9"):
        run(main())


def test_what_a_test_raises_comes_before_a_leak() -> None:
    async def main() -> None:
        async with SimCluster() as cluster:
            [one] = await cluster.start()
            ghost: Any = _Ghost()
            one._local._processes[7] = ghost
            raise KeyError("the test's own")

    with pytest.raises(KeyError) as caught:
        run(main())
    assert any("left behind" in note for note in caught.value.__notes__)


class _Ghost:
    _open_calls = 0
    _calls = None
    _beside = None
    _on_answered = None
    mailbox = Mailbox(1, cast("Any", None))
    _children = None

    def info(self) -> Any:
        return type("Info", (), {"runs": "a ghost"})


def test_another_seed_runs_another_course() -> None:
    async def main(seed: int) -> Any:
        async with SimCluster(seed, trace=True) as cluster:
            await cluster.start(3)
            await cluster.mesh()
        return cluster.network.trace

    assert run(main(1)) == run(main(1))
    assert run(main(1)) != run(main(2))


# The name server.


@simulated
async def test_dns_faults_change_nothing_for_connected_nodes(cluster: SimCluster) -> None:
    one, two, three = await cluster.start(3)
    await cluster.mesh()
    events = one.events()
    for reply in Reply:
        cluster.dns.script(reply, extra=["10.9.9.9", "0.0.0.0"], hidden=[B])
        await asyncio.sleep(30)
        assert cluster.meshed()
    events.close()
    assert {event async for event in events} == {
        NodeUp(two.name, two.incarnation),
        NodeUp(three.name, three.incarnation),
    }


@simulated
async def test_a_script_for_one_node_is_for_that_one(cluster: SimCluster) -> None:
    cluster.dns.script(Reply.NXDOMAIN, to=[A, B])
    one, two, three = await cluster.start(3)
    cluster.partition([A])  # so that no peer reports it
    await asyncio.sleep(10)
    assert one.list("known") == [one.name]
    assert set(two.list()) == {three.name}  # which has dialled it
    cluster.dns.script(Reply.ALL)
    cluster.heal()
    await cluster.mesh()


@simulated
async def test_a_node_that_only_others_find_is_found(cluster: SimCluster) -> None:
    cluster.dns.script(Reply.TIMEOUT, to=[C])
    await cluster.start(3)
    await cluster.mesh(5)


@simulated
async def test_a_node_outside_dns_is_not_found_until_it_asks(cluster: SimCluster) -> None:
    one = await cluster.start_at(A)
    cluster.dns.script(Reply.SERVFAIL, to=[B])
    two = await cluster.start_at(B, in_dns=False)
    await asyncio.sleep(20)
    assert one.list() == []
    with pytest.raises(NoConnection):
        await one.send(("nobody", two.name), 1)
    assert await two.connect(one.name)
    await cluster.mesh(timeout=0.1)
