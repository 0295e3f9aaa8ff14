"""The metrics of nodes in a simulated cluster, as Prometheus gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fleetlm import (
    Actor,
    CallEnded,
    CallTimeout,
    Child,
    ChildRestarted,
    Node,
    NoProcess,
    Process,
    RemoteError,
    Supervisor,
    handler,
    taps,
)
from fleetlm.metrics import SERIES, NodeMetrics, reading
from fleetlm.metrics.labels import MAX_GROUPS, OTHER
from fleetlm.testing.loop import SimLoop
from tests.sim.fleet import A, B, Fleet, collector, echo, simulated


class Model(Actor):
    @handler
    async def infer(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @handler
    async def fail(self) -> None:
        raise ValueError("as asked")


class Scrape:
    """The values of one scrape, by name and labels."""

    def __init__(self, metrics: NodeMetrics) -> None:
        self.text = metrics.render().decode()
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                self.values[sample.name, frozenset(sample.labels.items())] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self.values[f"fleetlm_{name}", frozenset(labels.items())]

    def labels(self, name: str) -> Iterator[dict[str, str]]:
        return (dict(labels) for found, labels in self.values if found == f"fleetlm_{name}")


@simulated
async def test_every_series_is_shown_and_no_other(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    metrics = NodeMetrics(a)
    b.spawn(echo, name="echo")
    await a.call(("echo", b.name), 1)
    scrape = Scrape(metrics)
    families = {family.name: family.type for family in text_string_to_metric_families(scrape.text)}
    assert families == {series.name.removesuffix("_total"): series.type for series in SERIES}


@simulated
async def test_calls_and_handlers_are_counted_by_outcome(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    here, there = NodeMetrics(a), NodeMetrics(b)
    model = a.ref(Model, b.spawn(Model, name="model"))
    for _ in range(3):
        await model.call(Model.infer, 0.2)
    with pytest.raises(RemoteError):
        await model.call(Model.fail)
    with pytest.raises(CallTimeout):
        await model.within(0.5).call(Model.infer, 60.0)
    with pytest.raises(NoProcess):
        await a.call(("nobody", b.name), 1)
    await asyncio.sleep(0.1)
    scrape = Scrape(here)
    assert scrape("call_seconds_count", outcome="ok") == 3
    assert scrape("call_seconds_sum", outcome="ok") == pytest.approx(0.6, abs=0.1)
    assert scrape("call_seconds_bucket", outcome="ok", le="0.1") == 0
    assert scrape("call_seconds_bucket", outcome="ok", le="0.25") == 3
    for outcome in ("RemoteError", "CallTimeout", "NoProcess"):
        assert scrape("call_seconds_count", outcome=outcome) == 1
        assert scrape("failed_calls_total", outcome=outcome) == 1
    scrape = Scrape(there)
    assert scrape("handler_seconds_count", actor="Model", handler="infer") == 4
    assert scrape("handler_seconds_count", actor="Model", handler="fail") == 1
    assert scrape("handler_failures_total", actor="Model", handler="fail") == 1
    assert scrape("queue_seconds_count", actor="Model") == 5


@simulated
async def test_of_many_calls_some_are_measured_and_each_failure_is_counted(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    here, there = NodeMetrics(a), NodeMetrics(b)
    model = a.ref(Model, b.spawn(Model))
    weights: list[int] = []
    a.telemetry.listen({CallEnded: lambda *fields: weights.append(fields[-1])})
    count, rounds = 128, 4

    async def many(times: int) -> None:
        for _ in range(times):
            await model.call(Model.infer, 0.0)
            await asyncio.gather(a.call(("nobody", b.name), 1), return_exceptions=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taps, "SAMPLES", 32)
        for _ in range(rounds):
            await asyncio.gather(*(many(count // 16) for _ in range(16)))
            for node in (a, b):
                node._parts.context.taps.tick()
    assert max(weights) > 1
    assert len(weights) < 2 * count * rounds
    scrape = Scrape(here)
    made = scrape("call_seconds_count", outcome="ok") + scrape("call_seconds_count", outcome="NoProcess")
    assert made == pytest.approx(2 * count * rounds, rel=0.05)
    assert scrape("failed_calls_total", outcome="NoProcess") == count * rounds
    served = Scrape(there)("handler_seconds_count", actor="Model", handler="infer")
    assert served == pytest.approx(count * rounds, rel=0.05)


@simulated
async def test_failures_of_a_multicall_and_of_handlers_are_counted_without_metrics(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    model = a.ref(Model, b.spawn(Model))
    for _ in range(3):
        with pytest.raises(RemoteError):
            await model.call(Model.fail)
    await a.multicall([("nobody", a.name), ("nobody", b.name)], 1)
    scrape = Scrape(NodeMetrics(a))
    assert scrape("failed_calls_total", outcome="RemoteError") == 3
    assert scrape("failed_calls_total", outcome="NoProcess") == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "MAX_HANDLERS", 0)
        assert Scrape(NodeMetrics(b))("handler_failures_total", actor=OTHER, handler=OTHER) == 3


@simulated
async def test_traffic_of_a_peer_grows_over_sessions_that_end(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    metrics = NodeMetrics(a)
    b.spawn(collector([]), name="sink")
    before = Scrape(metrics)
    for round_ in range(3):
        for number in range(100):
            await a.send(("sink", b.name), b"x" * number)
        await asyncio.sleep(1)
        scrape = Scrape(metrics)
        for name in ("sent_messages", "received_messages", "sent_bytes", "received_bytes"):
            assert scrape(f"{name}_total", peer=b.name) > before(f"{name}_total", peer=b.name)
        assert scrape("sent_messages_total", peer=b.name) >= 100 * (round_ + 1)
        assert scrape("sent_bytes_total", peer=b.name) >= 4_950 * (round_ + 1)
        before = scrape
        fleet.net.break_connection(A, B)
        await asyncio.sleep(5)
        await a.ready(1, timeout=60)
    scrape = Scrape(metrics)
    assert scrape("reconnects_total", reason="lost") == 3
    assert scrape("sessions_ended_total", reason="lost") == 3
    assert scrape("peers", state="up") == 1


@simulated
async def test_what_a_session_carried_after_the_last_scrape_is_not_lost(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    metrics = NodeMetrics(a)
    b.spawn(collector([]), name="sink")
    for number in range(100):
        await a.send(("sink", b.name), number)
    await asyncio.sleep(1)
    fleet.net.break_connection(A, B)
    await asyncio.sleep(0.5)
    assert Scrape(metrics)("sent_messages_total", peer=b.name) >= 100


@simulated
async def test_full_windows_take_time_while_they_are_full(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=4)
    metrics = NodeMetrics(a)

    async def slow(process: Process) -> None:
        await asyncio.sleep(10)
        async for _ in process.mailbox:
            pass

    async def feed(process: Process, to: Any) -> None:
        for number in range(10):
            await process.node.send(to, number)

    for node, at in ((b, b.name), (a, a.name)):
        to = node.spawn(slow)
        feeder = a.spawn(feed, to)
        await asyncio.sleep(5)
        scrape = Scrape(metrics)
        assert scrape("window_full_seconds_total", peer=at) == pytest.approx(5, abs=0.2)
        assert scrape("waiting_senders", peer=at) == 1
        await a.join(feeder, 30)
        scrape = Scrape(metrics)
        assert scrape("window_full_seconds_total", peer=at) == pytest.approx(10, abs=2)
        assert scrape("waiting_senders", peer=at) == 0


@simulated
async def test_mailboxes_processes_and_drops(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    metrics = NodeMetrics(b)

    async def idle(process: Process) -> None:
        await asyncio.sleep(600)

    for count in (3, 5, 0):
        to = b.spawn(idle)
        for number in range(count):
            await a.send(to, number)
    await a.send(("nobody", b.name), 1)
    await asyncio.sleep(0.1)
    scrape = Scrape(metrics)
    assert (scrape("mailbox_messages"), scrape("mailbox_messages_max")) == (8, 5)
    assert (scrape("processes"), scrape("processes_spawned_total")) == (3, 3)
    assert scrape("undelivered_messages_total") == 1
    assert scrape("dropped_messages_total", reason="no_process") == 1
    b.exit(to, "kill")
    assert Scrape(metrics)("processes_spawned_total") == 3


@simulated
async def test_a_scrape_of_many_processes_goes_on_in_later_turns(fleet: Fleet) -> None:
    a = await fleet.start(A)
    metrics = NodeMetrics(a)

    async def idle(process: Process) -> None:
        await process.receive()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "MAILBOXES_AT_ONCE", 16)
        for _ in range(100):
            a.send_nowait(a.spawn(idle), 1)
        assert Scrape(metrics)("mailbox_messages") == 0
        assert metrics._reader._depths._left
        await asyncio.sleep(0.1)
        assert not metrics._reader._depths._left


@simulated
async def test_restarts_are_those_of_the_overview_also_of_children_that_restart_together(
    fleet: Fleet,
) -> None:
    (node,) = await fleet.mesh(1)
    metrics = NodeMetrics(node)
    told: list[ChildRestarted] = []
    node.telemetry.attach(told.append, kinds={ChildRestarted})

    async def crashes_once(process: Process) -> None:
        if not told:
            raise ValueError("once")
        await process.receive()

    async def goes_on(process: Process) -> None:
        await process.receive()

    children = [Child("first", goes_on), Child("second", crashes_once), Child("third", goes_on)]
    node.spawn(Supervisor(children, strategy="one_for_all"), name="root")
    await asyncio.sleep(5)
    (tree,) = (await node.overview())["nodes"][node.name]["trees"]
    assert Scrape(metrics)("child_restarts_total") == tree["restarted"] == 3
    assert [(each.child, each.reason) for each in told] == [
        ("first", "restarted with second"),
        ("second", "ValueError: once"),
        ("third", "restarted with second"),
    ]


@simulated
async def test_restarts_tables_groups_dns_and_draining(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    metrics = NodeMetrics(a)

    async def crashes(process: Process) -> None:
        raise ValueError("again")

    root = a.spawn(Supervisor([Child("worker", crashes)], max_restarts=2), name="root")
    await a.join(root, 60)
    a.groups.join("workers", a.spawn(echo, name="echo"))
    b.groups.join("workers", b.spawn(echo))
    echo_pid = await a.whereis("echo")
    assert echo_pid is not None
    await a.registry.register("leader", echo_pid)
    await asyncio.sleep(1)
    scrape = Scrape(metrics)
    assert (scrape("child_restarts_total"), scrape("supervisors_gave_up_total")) == (2, 1)
    assert scrape("group_members", group="workers") == 2
    sizes = {each["table"]: scrape("table_entries", **each) for each in scrape.labels("table_entries")}
    assert sizes["groups"] == sizes["own_cluster_names"] == sizes["peers"] == sizes["sessions"] == 1
    assert scrape("dns_outcome", outcome="addresses") == 1
    assert sum(scrape("dns_outcome", **each) for each in scrape.labels("dns_outcome")) == 1
    assert scrape("dns_addresses") == 2
    assert scrape("dns_lookups_total") >= 1
    assert scrape("dns_age_seconds") >= 0
    assert (scrape("draining"), scrape("scrape_stale")) == (0, 0)
    await a.drain(0)
    assert Scrape(metrics)("draining") == 1


@simulated
async def test_groups_have_so_many_labels_and_no_pid_or_key_is_a_label(fleet: Fleet) -> None:
    a = await fleet.start(A)
    metrics = NodeMetrics(a)
    pids = [a.spawn(echo) for _ in range(2)]
    for number in range(MAX_GROUPS + 20):
        a.groups.join(f"group {number}", *pids)
    scrape = Scrape(metrics)
    assert len(list(scrape.labels("group_members"))) == MAX_GROUPS + 1
    assert scrape("group_members", group=OTHER) == 40
    assert str(pids[0]) not in scrape.text
    for number in range(MAX_GROUPS):
        a.groups.leave(f"group {number}", *pids)
    scrape = Scrape(metrics)
    shown = {each["group"] for each in scrape.labels("group_members")}
    assert shown == {f"group {MAX_GROUPS + number}" for number in range(20)}


@simulated
async def test_a_node_that_lags_shows_it(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    metrics = NodeMetrics(a)
    b._driver.lag_ms = 1_500
    b._driver.tick_sessions()
    a._driver.lag_s, a._driver.lag_ms = 2.5, 250
    await asyncio.sleep(0.1)
    scrape = Scrape(metrics)
    assert scrape("peer_lag_seconds", peer=b.name) == 1.5
    assert (scrape("loop_lag_seconds"), scrape("loop_late_seconds_total")) == (0.25, 2.5)
    assert scrape("uptime_seconds") > 0
    assert scrape("resident_memory_bytes") > 1_000_000
    assert scrape("cpu_seconds_total") > 0


@simulated
async def test_metrics_can_be_in_a_registry_of_the_program_and_twice(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    registry = CollectorRegistry()
    first = NodeMetrics(a, registry)
    with NodeMetrics(a) as second:
        assert b"fleetlm_uptime_seconds" in first.render()
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            NodeMetrics(b, registry)
        assert b._parts.context.taps.call_ended is None  # Nothing is left behind.
        with pytest.raises(NoProcess):
            await a.call("nobody", 1)
        for metrics in (first, second):
            assert Scrape(metrics)("call_seconds_count", outcome="NoProcess") == 1
    assert b"fleetlm" not in second.render()
    first.close()
    first.close()
    assert not a._parts.context.taps.calls
    assert a._parts.context.taps.session_ended is None
    assert registry.get_sample_value("fleetlm_uptime_seconds") is None
    NodeMetrics(b, registry)


@simulated
async def test_the_same_seed_runs_the_same_course_with_metrics(fleet: Fleet) -> None:
    """Counting must change nothing that the node does."""
    a, b = await fleet.mesh(2)
    metrics = NodeMetrics(a)
    b.spawn(echo, name="echo")
    began = SimLoop.current().time()
    await a.call(("echo", b.name), 1)
    assert SimLoop.current().time() - began < 1
    assert isinstance(a, Node)
    assert Scrape(metrics)("open_calls") == 0
